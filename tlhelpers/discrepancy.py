"""How far apart two samples are: the distances of domain adaptation, on features.

- :func:`mmd_squared`, the maximum mean discrepancy, with the bandwidths of
  :func:`median_heuristic`; :func:`mmd_test` says whether it could be chance;
- :func:`coral_distance`, between covariances;
- :func:`proxy_a_distance`, by a classifier that tells the samples apart.

Chapter 13 derives them; ``adapt`` makes them small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tlhelpers import _samples
from tlhelpers._samples import ArrayLike

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""What the median distance is multiplied with for the kernels of the MMD."""


def median_heuristic(
    source: ArrayLike, target: ArrayLike, *, factors: Sequence[float] = FACTORS
) -> tuple[float, ...]:
    """Bandwidths for the kernels of the MMD: multiples of the median distance between examples.

    The median runs over all pairs of different examples of both samples together.

    Source: Gretton et al. (2012), A Kernel Two-Sample Test; several kernels after Long et al.
    (2015), Learning Transferable Features with Deep Adaptation Networks.

    Args:
        source: (n, d).
        target: (m, d).
        factors: one for each kernel.

    Raises:
        TypeError, ValueError: as :func:`mmd_squared`, or if half of all pairs are of equal
            examples.

    >>> median_heuristic([[0.0], [1.0]], [[3.0], [4.0]], factors=(0.5, 1))
    (1.25, 2.5)
    """
    a, b = _samples.pair(source, target)
    with torch.no_grad():
        squared = _samples.squared_distances(torch.cat([a, b]))
        median = _samples.median_distance(squared)
    if not median > 0:
        raise ValueError(
            "the median distance is 0: at least half of all pairs are of equal examples. Give "
            "bandwidths of your own, or check that the features vary."
        )
    return tuple(factor * median for factor in factors)


def mmd_squared(
    source: ArrayLike,
    target: ArrayLike,
    *,
    bandwidths: Sequence[float] | None = None,
    unbiased: bool = False,
) -> Tensor:
    r"""The squared maximum mean discrepancy of two samples, with Gaussian kernels.

    The distance between the means of both samples in the space of the kernel
    :math:`k(x, y) = \frac1K \sum_\sigma \exp(-\|x - y\|^2 / 2\sigma^2)`,

    .. math::
        \widehat{\mathrm{MMD}}^2 = \frac{1}{n^2} \sum_{i, j} k(x_i, x_j)
        + \frac{1}{m^2} \sum_{i, j} k(y_i, y_j) - \frac{2}{n m} \sum_{i, j} k(x_i, y_j) .

    This estimate is never negative, 0 for two identical samples, and too large on average: an
    example always resembles itself. Without the terms i = j, over n (n − 1) and m (m − 1) pairs,
    it is right on average, and may be negative. Gradients flow to both samples, but not through
    bandwidths that the median heuristic finds. It takes memory for some (n + m)² numbers.

    Source: Gretton et al. (2012), equations 3 and 5.

    Args:
        source: (n, d).
        target: (m, d).
        bandwidths: one σ for each kernel; None for :func:`median_heuristic`.
        unbiased: whether to leave out the terms i = j.

    Returns:
        a scalar tensor.

    Raises:
        TypeError: if a sample is given with its labels.
        ValueError: if a sample has fewer than two examples or another shape than (n, d), widths
            differ, a number is not finite, or a bandwidth is not above 0.

    >>> x = torch.arange(6.0).reshape(3, 2)
    >>> round(float(mmd_squared(x, x)), 6), round(float(mmd_squared(x, x + 100)), 2)
    (0.0, 0.97)
    """
    a, b = _samples.pair(source, target)
    widths = median_heuristic(a, b) if bandwidths is None else tuple(bandwidths)
    if not widths or not all(0 < width < math.inf for width in widths):
        raise ValueError(f"bandwidths should be one or more numbers above 0, found {widths}.")
    return _samples.mmd_squared(a, b, widths, unbiased=unbiased)


@dataclass(frozen=True, eq=False, repr=False)
class MMDTest:
    """The outcome of :func:`mmd_test`.

    Attributes:
        mmd_squared: the statistic, without the bias.
        p_value: how often samples of one distribution lie as far apart, or further.
        null: (permutations,) the statistic of the permuted samples.
        bandwidths: of the kernels.
    """

    mmd_squared: float
    p_value: float
    null: np.ndarray
    bandwidths: tuple[float, ...]

    def __repr__(self) -> str:
        return (
            f"MMD² {self.mmd_squared:.4f}, p = {self.p_value:.3g} ({len(self.null):,} "
            f"permutations, of which 95 % lie below {np.quantile(self.null, 0.95):.4f})"
        )


def mmd_test(
    source: ArrayLike,
    target: ArrayLike,
    *,
    bandwidths: Sequence[float] | None = None,
    permutations: int = 1000,
    seed: int = 0,
) -> MMDTest:
    """Do two samples come from one distribution? A permutation test with the unbiased MMD².

    If they do, it makes no difference which example is called source and which target. So the
    names are dealt out anew, many times, and the p-value is the share of deals (the one at hand
    included) with as large an MMD². Under one distribution a p-value below 0.05 turns up in at
    most one case of 20, whatever the kernel, which is the same for all deals.

    Source: Gretton et al. (2012); the share with the deal at hand included is exact, see Phipson
    and Smyth (2010), Permutation P-values Should Never Be Zero.

    Args:
        source: (n, d).
        target: (m, d).
        bandwidths: as in :func:`mmd_squared`.
        permutations: how many deals.
        seed: of the deals.

    Raises:
        TypeError, ValueError: as :func:`mmd_squared`, or if there is no permutation.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> a, b = torch.randn(2, 80, 5, generator=torch.Generator().manual_seed(0))
        >>> [tl.discrepancy.mmd_test(a, b + shift, permutations=99).p_value for shift in (0, 0.5)]
        [0.23, 0.01]
    """
    a, b = (sample.detach().cpu().double() for sample in _samples.pair(source, target))
    if permutations < 1:
        raise ValueError(f"a test needs 1 permutation or more, found {permutations}.")
    widths = median_heuristic(a, b) if bandwidths is None else tuple(bandwidths)
    value = float(mmd_squared(a, b, bandwidths=widths, unbiased=True))
    n, m = len(a), len(b)
    kernel = _samples.gaussian_kernel(_samples.squared_distances(torch.cat([a, b])), widths)
    kernel.fill_diagonal_(0)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.rand(permutations, n + m, generator=generator).argsort(dim=1)
    first = torch.zeros(permutations, n + m, dtype=kernel.dtype).scatter_(1, orders[:, :n], 1.0)
    second = 1 - first
    reach = first @ kernel
    across = (reach * second).sum(dim=1) / (n * m)
    inside = (reach * first).sum(dim=1) / (n * (n - 1))
    inside += ((second @ kernel) * second).sum(dim=1) / (m * (m - 1))
    null = (inside - 2 * across).numpy()
    # Deals that are equal up to rounding count as equal.
    p_value = (1 + int((null >= value - 1e-12).sum())) / (1 + permutations)
    return MMDTest(value, p_value, null, widths)


def coral_distance(source: ArrayLike, target: ArrayLike) -> Tensor:
    r"""How far apart the covariances of two samples are: the loss of Deep CORAL.

    .. math:: \frac{1}{4 d^2} \, \| C_S - C_T \|_F^2

    with the Frobenius norm and covariances over n − 1. Gradients flow to both samples.

    Source: Sun and Saenko (2016), Deep CORAL: Correlation Alignment for Deep Domain Adaptation.

    Args:
        source: (n, d).
        target: (m, d).

    Returns:
        a scalar tensor.

    Raises:
        TypeError, ValueError: as :func:`mmd_squared`.

    >>> x = torch.tensor([[0.0], [2.0]])  # variance 2
    >>> coral_distance(x, 2 * x)  # (2 - 8)² / 4
    tensor(9.)
    """
    return _samples.coral_distance(*_samples.pair(source, target))


def proxy_a_distance(
    source: ArrayLike, target: ArrayLike, *, folds: int = 5, ridge: float = 1.0, seed: int = 0
) -> float:
    """How well a linear classifier tells the domains apart: 2 (1 − 2 e).

    The error e of logistic regression on standardised features is measured by cross-validation,
    so that no example is judged by a classifier that has learnt from it, and both domains count
    as much, whatever their sizes. The distance is 0 where the domains cannot be told apart and 2
    where they always can. By chance it may fall below 0; and far below after a remedy that was
    fitted on the same examples: where the means are equal overall, those of the training folds
    and of the held-out fold differ in opposite directions. So measure a remedy, such as
    :func:`~tlhelpers.adapt.coral`, on target examples that it has not seen.

    Source: Ben-David et al. (2006), Analysis of Representations for Domain Adaptation; Ben-David
    et al. (2010), A Theory of Learning from Different Domains.

    Args:
        source: (n, d).
        target: (m, d).
        folds: the number of stratified folds.
        ridge: the weight of ‖w‖² / 2 beside the sum of the losses.
        seed: how examples are dealt to the folds.

    Raises:
        TypeError, ValueError: as :func:`mmd_squared`, or if a domain has fewer examples than
            there are folds, or the ridge is not above 0.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> a, b = torch.randn(2, 200, 5, generator=torch.Generator().manual_seed(0))
        >>> [round(tl.discrepancy.proxy_a_distance(a, b + shift)) for shift in (0, 1, 10)]
        [0, 1, 2]
    """
    scores, domain = _samples.domain_scores(source, target, folds, ridge, seed, balanced=True)
    wrong = (scores > 0) != domain
    error = (wrong[~domain].mean() + wrong[domain].mean()) / 2
    return float(2 * (1 - 2 * error))
