"""Domain adaptation: labels in the source, none in the target, and the same classes in both.

- :func:`domains` joins a labelled source and a target whose labels stay out of reach;
- on features: how far apart two samples are (:func:`mmd_squared`, :func:`mmd_test`,
  :func:`proxy_a_distance`, :func:`coral_distance`), and what to do about it (:func:`coral`,
  :func:`importance_weights`, :func:`label_shift`);
- on networks: :func:`fit` trains by any of :data:`METHODS`, from its parts
  :func:`adapt_batchnorm`, :func:`reverse_gradient` and :func:`pseudo_labels`;
- several networks or sources: :func:`average_states`, :func:`interpolate_states`,
  :func:`with_state`, :func:`ensemble` and :func:`concatenate`.

Chapter 13 derives the methods and measures them; chapter 14 uses what concerns several sources.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from tlhelpers import _randomness, models, runtime
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Split, TestSplit

ArrayLike = Any  # a torch tensor, a NumPy array, or nested sequences of numbers
StateDict = Mapping[str, Tensor]

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""What the median distance is multiplied with for the kernels of the MMD."""

METHODS = ("source_only", "batchnorm", "coral", "mmd", "dann", "self_training")
"""What :func:`fit` trains by."""

CHOICES = ("source", "oracle", "last")
"""The ways to choose among the weights of a run, see :class:`Adapted`."""

COLUMNS = (
    "step", "source_loss", "domain_loss", "weight", "source_validation_loss",
    "source_validation_top1", "oracle_top1", "pseudo_labelled", "seconds",
)  # fmt: skip

# What a method's own loss weighs at its height, chosen without target labels. CORAL's has 1 / 4 d²
# in it and is small: with this weight, on printed and handwritten digits, it is about as large as
# the source's loss at the end of training, as Sun and Saenko (2016) ask.
_WEIGHTS = {"coral": 100.0, "mmd": 1.0, "dann": 1.0, "self_training": 1.0}
_EVALUATION_BATCH = 512


# --- a source with labels, a target without -----------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Unlabelled:
    """Examples whose labels are not at hand: asking for ``y`` is an error.

    Attributes:
        name: what they are called.
        x: (n, ...) tensor.
        ids: n names, one for each example.
    """

    name: str
    x: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{self.name}: {len(self):,} examples without labels"

    @property
    def y(self) -> NoReturn:
        """Refused.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(
            f"the labels of {self.name} are out of reach: an adaptation method sees the target's "
            f"inputs alone. Use the source's labels, or pseudo_labels(network, target.x); results "
            f"are for evaluate.report(network, domains.test)."
        )


@dataclass(frozen=True, eq=False, repr=False)
class Domains:
    """A source and a target with the same classes; make one with :func:`domains`.

    Attributes:
        source: the source with its labels; methods learn from its train split, and the honest
            choice of the weights is made on its validation split.
        target: the target's training inputs, without labels.
        oracle: labelled target examples that only the choice "oracle" looks at: what somebody
            with no target label could not do.
        test: the target's test split.
    """

    source: Dataset
    target: Unlabelled
    oracle: Split
    test: TestSplit

    def __post_init__(self) -> None:
        if not isinstance(self.target, Unlabelled):
            raise TypeError(
                f"the target must come without labels, found {type(self.target).__name__}. Make "
                f"the pair with adapt.domains(source, target), which puts the labels away."
            )
        if not isinstance(self.test, TestSplit):
            raise TypeError(
                f"test must be the target's test split, found {type(self.test).__name__}."
            )
        if self.source.classes != self.test.classes:
            raise ValueError(
                f"source and target must have the same classes in the same order, found "
                f"{_some(self.source.classes)} and {_some(self.test.classes)}. "
                f"datasets.with_classes brings them into one order."
            )
        if len(self.source.classes) < 2:
            raise ValueError(
                f"a classifier needs 2 classes or more, {self.source.name} has "
                f"{len(self.source.classes)}: with one there is nothing to carry over."
            )
        parts = {
            f"{self.source.name}, train": self.source.train.x,
            f"{self.source.name}, validation": self.source.validation.x,
            self.target.name: self.target.x,
            f"{self.target.name}, oracle": self.oracle.x,
        }
        for name, x in parts.items():
            _check_inputs(x, name)
        shapes = {name: tuple(x.shape[1:]) for name, x in parts.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"all examples must have one shape, found {shapes}.")

    def __repr__(self) -> str:
        return (
            f"{self.source.name} ({len(self.source.train):,} labelled) → {self.target.name} "
            f"({len(self.target):,} without labels; test {len(self.test):,}), "
            f"{len(self.source.classes)} classes"
        )


def domains(source: Dataset, target: Dataset, *, oracle: Split | None = None) -> Domains:
    """Join a labelled source and a target, and put the target's labels away.

    Args:
        source: its train and validation splits are used, with labels.
        target: its train split is used without labels; its test split is for results.
        oracle: the labelled target examples by which the choice "oracle" is made; by default the
            target's validation split. Many published tables took the test split: to show what
            that does, give ``target.test.open(reason=...)``, which is logged.

    Raises:
        TypeError: if examples are no floating-point tensors.
        ValueError: if the classes or shapes of source and target differ, there are fewer than two
            classes, a split is empty, or an input is not finite.
    """
    unlabelled = Unlabelled(target.name, target.train.x, target.train.ids)
    return Domains(source, unlabelled, target.validation if oracle is None else oracle, target.test)


def _check_inputs(x: Any, name: str) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name}: the examples should be one floating-point tensor, found {found}. Stack the "
            f"images, or extract features first (features.extract)."
        )
    if not len(x):
        raise ValueError(f"{name} is empty. Adaptation needs examples of both domains, and some "
                         f"held out to choose by.")  # fmt: skip
    if bad := int((~x.reshape(len(x), -1).isfinite()).any(dim=1).sum()):
        raise ValueError(
            f"{name}: {bad} of {len(x):,} examples hold NaN or infinity. Leave them out, or find "
            f"out where they come from."
        )


# --- how far apart two samples are --------------------------------------------------------


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
        ValueError: as :func:`mmd_squared`, or if half of all pairs are of equal examples.

    >>> median_heuristic([[0.0], [1.0]], [[3.0], [4.0]], factors=(0.5, 1))
    (1.25, 2.5)
    """
    a, b = _samples(source, target)
    with torch.no_grad():
        squared = _squared_distances(torch.cat([a, b]))
        median = _median_distance(squared)
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
    a, b = _samples(source, target)
    widths = median_heuristic(a, b) if bandwidths is None else tuple(bandwidths)
    if not widths or not all(0 < width < math.inf for width in widths):
        raise ValueError(f"bandwidths should be one or more numbers above 0, found {widths}.")
    return _mmd_squared(a, b, widths, unbiased=unbiased)


def _mmd_squared(a: Tensor, b: Tensor, widths: Sequence[float], *, unbiased: bool) -> Tensor:
    n, m = len(a), len(b)
    kernel = _kernel(_squared_distances(torch.cat([a, b])), widths)
    within_a, within_b, across = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    if unbiased:  # the diagonal of a Gaussian kernel is 1
        inside = (within_a.sum() - n) / (n * (n - 1)) + (within_b.sum() - m) / (m * (m - 1))
    else:
        inside = within_a.mean() + within_b.mean()
    return inside - 2 * across.mean()


def _squared_distances(z: Tensor) -> Tensor:
    """(n, n), with gradients also where two examples are equal."""
    z = z - z.detach().mean(dim=0)  # smaller numbers, so that the difference below stays exact
    lengths = z.square().sum(dim=1)
    squared = (lengths[:, None] + lengths - 2 * z @ z.T).clamp(min=0)
    return squared * (1 - torch.eye(len(z), dtype=z.dtype, device=z.device))


def _median_distance(squared: Tensor) -> float:
    rows, columns = torch.triu_indices(len(squared), len(squared), offset=1)
    return float(np.median(squared[rows, columns].sqrt().cpu().numpy()))


def _kernel(squared: Tensor, widths: Sequence[float]) -> Tensor:
    kernels = [torch.exp(-squared / (2 * width**2)) for width in widths]
    return torch.stack(kernels).mean(dim=0)


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
        ValueError: as :func:`mmd_squared`, or if there is no permutation.
    """
    a, b = (sample.detach().cpu().double() for sample in _samples(source, target))
    if permutations < 1:
        raise ValueError(f"a test needs 1 permutation or more, found {permutations}.")
    widths = median_heuristic(a, b) if bandwidths is None else tuple(bandwidths)
    value = float(mmd_squared(a, b, bandwidths=widths, unbiased=True))
    n, m = len(a), len(b)
    kernel = _kernel(_squared_distances(torch.cat([a, b])), widths)
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
    return _coral_distance(*_samples(source, target))


def _coral_distance(a: Tensor, b: Tensor) -> Tensor:
    gap = _covariance(a) - _covariance(b)
    return gap.square().sum() / (4 * a.shape[1] ** 2)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    return centred.T @ centred / (len(x) - 1)


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
    :func:`coral`, on target examples that it has not seen.

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
    """
    scores, domain = _domain_scores(source, target, folds, ridge, seed, balanced=True)
    wrong = (scores > 0) != domain
    error = (wrong[~domain].mean() + wrong[domain].mean()) / 2
    return float(2 * (1 - 2 * error))


def _domain_scores(
    source: ArrayLike, target: ArrayLike, folds: int, ridge: float, seed: int, *, balanced: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out log odds for "target", and whether it is: both (n + m,)."""
    a, b = _samples(source, target)
    if not 2 <= folds <= (fewest := min(len(a), len(b))):
        raise ValueError(
            f"folds should lie in 2..{fewest}, since the smaller domain has {fewest} examples; "
            f"found {folds}."
        )
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge should be a number above 0, found {ridge}.")
    x = torch.cat([a, b]).detach().cpu().double().numpy()
    domain = np.repeat([False, True], [len(a), len(b)])
    classifier = make_pipeline(
        StandardScaler(),
        LogisticRegression(
            C=1 / ridge, class_weight="balanced" if balanced else None, max_iter=1000
        ),
    )
    dealt = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return cross_val_predict(classifier, x, domain, cv=dealt, method="decision_function"), domain


# --- remedies on features -----------------------------------------------------------------


def coral(source: ArrayLike, target: ArrayLike, *, ridge: float = 0.01) -> Tensor:
    r"""Move source features so that their mean and covariance are the target's.

    .. math:: h \mapsto (C_T + \lambda I)^{1/2} (C_S + \lambda I)^{-1/2} (h - \mu_S) + \mu_T

    The covariance of the result is :math:`C_T` as λ goes to 0. A classifier learns from the
    result with the source's labels. The paper standardises both domains first, which puts both
    means at 0, and takes λ = 1; here the means are moved too.

    Source: Sun, Feng and Saenko (2016), Return of Frustratingly Easy Domain Adaptation.

    Args:
        source: (n, d).
        target: (m, d), without labels.
        ridge: λ, in the units of a variance of the features; above 0, for with few examples a
            covariance has no inverse.

    Returns:
        (n, d) moved source features.

    Raises:
        TypeError, ValueError: as :func:`mmd_squared`, or if the ridge is not above 0.
    """
    a, b = _samples(source, target)
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge should be a number above 0, found {ridge}.")
    x, y = a.cpu().double(), b.cpu().double()
    whiten, colour = _power(_covariance(x), -0.5, ridge), _power(_covariance(y), 0.5, ridge)
    return ((x - x.mean(dim=0)) @ whiten @ colour + y.mean(dim=0)).to(a)


def _power(covariance: Tensor, exponent: float, ridge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * (values.clamp(min=0) + ridge) ** exponent @ vectors.T


@dataclass(frozen=True, eq=False, repr=False)
class Weights:
    """The outcome of :func:`importance_weights`.

    Attributes:
        values: (n,) the weight of each source example.
        told_apart: the share of pairs of a source and a target example that the domain
            classifier puts in the right order (area under the ROC curve): 0.5 where it cannot
            tell them apart; near 1 the supports hardly overlap, and weights will not help.
    """

    values: Tensor
    told_apart: float

    @property
    def effective(self) -> float:
        """The effective sample size, (Σ w)² / Σ w² (Kong et al. 1994)."""
        return float(self.values.sum() ** 2 / self.values.square().sum())

    def flattened(self, alpha: float) -> Weights:
        """The weights to the power α: more bias and less noise (Shimodaira 2000).

        Args:
            alpha: 0 for equal weights, 1 for these.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha should lie in 0..1, found {alpha}.")
        return dataclasses.replace(self, values=self.values**alpha)

    def __repr__(self) -> str:
        n = len(self.values)
        return (
            f"weights of {n:,} examples, which do the work of {self.effective:,.0f}; the domain "
            f"classifier orders {self.told_apart:.1%} of the pairs right"
        )


def importance_weights(
    source: ArrayLike, target: ArrayLike, *, folds: int = 5, ridge: float = 1.0, seed: int = 0
) -> Weights:
    r"""Weigh source examples so that they stand for the target: density ratios by a classifier.

    .. math:: w(x) = \frac{p_T(x)}{p_S(x)}
        = \frac{n_S}{n_T} \cdot \frac{P(\text{target} \mid x)}{P(\text{source} \mid x)}

    with the held-out probabilities of logistic regression on standardised features. Right where
    the rule :math:`p(y \mid x)` is the same in both domains (covariate shift) and the log ratio
    is linear in the features.

    Source: Shimodaira (2000), Improving Predictive Inference under Covariate Shift; by a
    classifier Bickel, Brückner and Scheffer (2007), Discriminative Learning for Differing Training
    and Test Distributions.

    Args:
        source: (n, d).
        target: (m, d), without labels.
        folds: the number of stratified folds.
        ridge: the weight of ‖w‖² / 2 beside the sum of the losses; larger makes flatter weights,
            which is wanted where the domains are told apart almost without fault.
        seed: how examples are dealt to the folds.

    Raises:
        TypeError, ValueError: as :func:`proxy_a_distance`.
    """
    scores, domain = _domain_scores(source, target, folds, ridge, seed, balanced=False)
    sizes = (~domain).sum(), domain.sum()
    values = torch.from_numpy(np.exp(scores[~domain]) * sizes[0] / sizes[1])
    return Weights(values, float(roc_auc_score(domain, scores)))


@dataclass(frozen=True, eq=False, repr=False)
class LabelShift:
    """The outcome of :func:`label_shift`.

    Attributes:
        weights: (m,) the ratio of each class's share in the target to that in the source.
        source_shares: (m,) of the classes in the source.
        target_shares: (m,) of the classes in the target, as estimated.
        n_target: how many target examples the estimate rests on.
    """

    weights: Tensor
    source_shares: Tensor
    target_shares: Tensor
    n_target: int

    def correct(self, logits: Tensor) -> Tensor:
        """Logits for the target's shares: log w is added, by Bayes' rule.

        A class that the estimate leaves no share gets that of half an example, so that the
        result stays finite.

        Args:
            logits: (n, m) of a classifier that was trained with the source's shares.
        """
        scores = torch.as_tensor(logits)
        if scores.ndim != 2 or scores.shape[1] != len(self.weights):
            raise ValueError(
                f"logits should have the shape (n, {len(self.weights)}), found "
                f"{tuple(scores.shape)}."
            )
        least = 0.5 / self.n_target / self.source_shares
        return scores + torch.maximum(self.weights, least).log().to(scores)

    def __repr__(self) -> str:
        shares = ", ".join(f"{share:.1%}" for share in self.target_shares[:10].tolist())
        more = ", …" if len(self.target_shares) > 10 else ""
        return f"estimated target shares: {shares}{more} ({self.n_target:,} examples)"


def label_shift(
    source_logits: ArrayLike, source_labels: ArrayLike, target_logits: ArrayLike
) -> LabelShift:
    r"""Estimate the target's class shares from what a classifier predicts there.

    If only the shares :math:`p(y)` differ between the domains, and not :math:`p(x \mid y)`, a
    classifier errs in the same way in both. With the joint shares
    :math:`C_{ij} = P_S(\hat y = i, y = j)` on held-out source examples and the shares
    :math:`\mu_i = P_T(\hat y = i)` of its predictions on the target, the ratios
    :math:`w_j = p_T(j) / p_S(j)` solve :math:`C w = \mu`; here by least squares with
    :math:`w \ge 0`, scaled so that the target's shares sum to 1.

    Source: Lipton, Wang and Smola (2018), Detecting and Correcting for Label Shift with Black Box
    Predictors.

    Args:
        source_logits: (n, m), of *held-out* source examples: on the training examples the
            classifier errs too rarely.
        source_labels: (n,) integers 0..m − 1, each of which occurs.
        target_logits: (q, m).

    Raises:
        ValueError: if shapes disagree, a number is not finite, there are fewer than two classes, a
            class has no example, or classes are predicted alike, so that their shares cannot be
            told apart.
    """
    scores, new = _samples(source_logits, target_logits, what="logits", least=1)
    y = torch.as_tensor(source_labels).cpu()
    m = scores.shape[1]
    if y.ndim != 1 or len(y) != len(scores) or y.is_floating_point():
        raise ValueError(
            f"source_labels should be {len(scores)} integers, one for each row of source_logits, "
            f"found {y.dtype} of shape {tuple(y.shape)}."
        )
    if m < 2:
        raise ValueError(f"logits of 2 classes or more are needed, found {m}: nothing can shift.")
    if int(y.min()) < 0 or int(y.max()) >= m:
        raise ValueError(f"source_labels should lie in 0..{m - 1}, found {int(y.min())} to "
                         f"{int(y.max())}.")  # fmt: skip
    counts = np.bincount(y.numpy(), minlength=m)
    if missing := np.flatnonzero(counts == 0).tolist():
        raise ValueError(
            f"every class needs a held-out source example, but {missing[:5]} have none. Hold out "
            f"more examples."
        )
    joint = np.zeros((m, m))
    np.add.at(joint, (scores.argmax(dim=1).cpu().numpy(), y.numpy()), 1 / len(y))
    if np.linalg.matrix_rank(joint) < m:
        raise ValueError(
            "the classifier predicts some classes alike or never, so that their shares in the "
            "target cannot be told apart. Take a better classifier, or more held-out examples."
        )
    predicted = np.bincount(new.argmax(dim=1).cpu().numpy(), minlength=m) / len(new)
    weights, _ = nnls(joint, predicted)
    shares = counts / len(y)
    weights /= weights @ shares
    return LabelShift(
        weights=torch.from_numpy(weights),
        source_shares=torch.from_numpy(shares),
        target_shares=torch.from_numpy(weights * shares),
        n_target=len(new),
    )


# --- the parts of methods on networks -----------------------------------------------------


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    """The same numbers; on the way back, the gradient times −strength.

    Between features and a domain classifier it makes the classifier learn to tell the domains
    apart, and the features to prevent it, in one backward pass.

    Source: Ganin et al. (2016), Domain-Adversarial Training of Neural Networks.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> (3 * reverse_gradient(x, strength=0.5)).sum().backward()
    >>> x.grad
    tensor([-1.5000, -1.5000])
    """
    return _ReverseGradient.apply(x, strength)


def ramp(progress: float, *, gamma: float = 10.0) -> float:
    """How strongly the domain's part counts in the course of training: 2 / (1 + exp(−γ p)) − 1.

    Source: Ganin et al. (2016), who take γ = 10.

    Args:
        progress: p, the share of the training that is done, in 0..1.
        gamma: how steeply it rises.

    >>> [round(ramp(p), 2) for p in (0, 0.1, 0.25, 0.5, 1)]
    [0.0, 0.46, 0.85, 0.99, 1.0]
    """
    return 2 / (1 + math.exp(-gamma * progress)) - 1


def adapt_batchnorm(network: nn.Module, x: Tensor, *, batch_size: int = 256) -> nn.Module:
    """A copy of a network whose BatchNorm layers have the statistics of other examples.

    All weights stay; means and variances become the averages over batches of ``x``, each layer
    normalising by the batch on the way. With the inputs of a target this is adaptation without
    any training; after weights were averaged it is a repair, see :func:`with_state`.

    Source: Li et al. (2017), Revisiting Batch Normalization For Practical Domain Adaptation.

    Args:
        network: a network with BatchNorm layers; it stays as it is.
        x: (n, ...) inputs, without labels.
        batch_size: about how many examples are normalised together.

    Returns:
        the copy, in evaluation mode.

    Raises:
        TypeError: if x is given with labels, or is no floating-point tensor.
        ValueError: if the network has no BatchNorm layer with running statistics, there are fewer
            than two examples, or one is not finite.
    """
    _refuse_labels(x, "x")
    _check_inputs(x, "x")
    if batch_size < 2 or len(x) < 2:
        raise ValueError(
            f"statistics need batches of 2 examples or more, found {len(x)} examples and "
            f"batch_size {batch_size}."
        )
    adapted = copy.deepcopy(network).eval()
    layers = [part for part in adapted.modules() if isinstance(part, _BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no BatchNorm layer with running statistics, so there is "
            f"nothing to adapt in this way."
        )
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's way to ask for the plain average over batches
        layer.training = True  # this layer alone: dropout stays off
    device = next(iter(adapted.state_dict().values())).device
    with torch.no_grad():
        # Equal parts: a small last batch would count as much as the others.
        for part in x.tensor_split(-(-len(x) // batch_size)):
            adapted(part.to(device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum, layer.training = momentum, False
    return adapted


def pseudo_labels(
    network: nn.Module, x: Tensor, *, threshold: float = 0.9
) -> tuple[Tensor, Tensor]:
    """What a network says of unlabelled examples, where it is sure.

    Source: Lee (2013), Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for
    Deep Neural Networks.

    Args:
        network: (n, ...) inputs to (n, m) logits.
        x: (n, ...) inputs, without labels.
        threshold: the least probability of the predicted class.

    Returns:
        the positions of the sure examples (k,), and their predicted classes (k,), int64; k may
        be 0.

    Raises:
        TypeError: if x is given with labels.
        ValueError: if the threshold does not lie in 0..1.
    """
    _refuse_labels(x, "x")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability in 0..1, found {threshold}.")
    confidence, labels = _logits(network, x).softmax(dim=1).max(dim=1)
    rows = torch.nonzero(confidence >= threshold).flatten()
    return rows, labels[rows]


# --- training -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How :func:`fit` adapts a network.

    Attributes:
        method: one of :data:`METHODS`.
        steps: optimiser steps, all rounds together.
        batch_size: examples of each domain in a step.
        lr: the learning rate of AdamW, which falls to 0 along a cosine.
        weight_decay: of matrices and filters.
        weight: the weight of the domain's part at its height; None for the method's own default.
        gamma: how steeply that weight rises for "coral", "mmd" and "dann", see :func:`ramp`.
        hidden: the width of the hidden layer of DANN's domain classifier.
        threshold: of :func:`pseudo_labels`, for "self_training".
        rounds: how often pseudo-labels are given, for "self_training". The steps are shared
            equally by a first stage on the source alone and the rounds, each with a cosine of its
            own.
        evaluations: how many rows the history has, at most.

    Raises:
        ValueError: if a setting cannot be meant.
    """

    method: str = "source_only"
    steps: int = 300
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-4
    weight: float | None = None
    gamma: float = 10.0
    hidden: int = 64
    threshold: float = 0.9
    rounds: int = 3
    evaluations: int = 20

    def __post_init__(self) -> None:
        self._require("method", self.method in METHODS, f"one of {', '.join(METHODS)}")
        for name, least in (
            ("steps", 1),
            ("batch_size", 2),
            ("hidden", 1),
            ("rounds", 1),
            ("evaluations", 1),
        ):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            self._require(name, whole and value >= least, f"a whole number, {least} or larger")
        for name in ("lr", "gamma"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0")
        self._require("weight_decay", 0 <= self.weight_decay < math.inf, "0 or larger")
        good = self.weight is None or (self.method in _WEIGHTS and 0 <= self.weight < math.inf)
        self._require("weight", good, "0 or larger, or None; None for a method that adds no loss")
        self._require("threshold", 0 <= self.threshold <= 1, "a probability in 0..1")
        if self.method == "self_training":
            enough = self.steps > self.rounds
            self._require("steps", enough, f"more than the number of rounds, {self.rounds}")

    def _require(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise ValueError(f"Plan: {name} must be {expected}, found {getattr(self, name)!r}.")

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for records."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False, repr=False)
class Adapted:
    """A run of :func:`fit`, with the weights that each way of choosing takes from it.

    - ``"source"`` takes those with the highest accuracy on source validation, of equals the
      lowest loss there: all that can be done without target labels;
    - ``"oracle"`` takes those with the highest accuracy on labelled target examples, as many
      published tables did: what it gains beside "source" is not the method's merit;
    - ``"last"`` takes those of the last step.

    Attributes:
        networks: a network for each of :data:`CHOICES`, in evaluation mode.
        history: a row for each evaluation. ``source_loss`` and ``domain_loss`` are means over the
            steps since the row before; the latter is what the method adds, before its weight: the
            penalty of CORAL or MMD, the cross-entropy of DANN's domain classifier in nats (log 2
            where it can tell nothing), that of the pseudo-labels; NaN where there is none.
            ``weight`` is the domain's weight at the last step; ``pseudo_labelled`` is the share of
            the target with a pseudo-label. ``oracle_top1`` is measured with target labels and used
            by the choice "oracle" alone.
        rows: the row of the history that each choice took.
        plan: how the network was trained.
        pair: the domains, in words.
        seed: of the run.
    """

    networks: Mapping[str, nn.Module]
    history: pd.DataFrame
    rows: Mapping[str, int]
    plan: Plan
    pair: str
    seed: int

    @property
    def network(self) -> nn.Module:
        """The network chosen on source validation."""
        return self.networks["source"]

    def choices(self) -> pd.DataFrame:
        """A row for each choice: its step, and the accuracies there."""
        columns = ["step", "source_validation_top1", "oracle_top1"]
        table = self.history.loc[[self.rows[choice] for choice in CHOICES], columns]
        return table.assign(choice=list(CHOICES)).set_index("choice")

    def __repr__(self) -> str:
        table = self.choices()
        found = "; ".join(
            f"{choice}: step {int(row.step)}, target {row.oracle_top1:.1%}"
            for choice, row in table.iterrows()
        )
        return f"{self.plan.method} on {self.pair}. Chosen by {found} (oracle examples)"


def fit(
    network: nn.Module, domains: Domains, plan: Plan | None = None, run: Run | None = None
) -> Adapted:
    """Train a network on a labelled source so that it works on an unlabelled target.

    Each step takes a batch of the source, with replacement, and its mean cross-entropy. The
    methods add to it:

    - ``"source_only"``: nothing; the target is not looked at.
    - ``"batchnorm"``: nothing; before each evaluation on the target, and in the networks
      returned, :func:`adapt_batchnorm` takes the target's statistics. Source validation is judged
      with the source's.
    - ``"coral"`` (Sun and Saenko 2016): :func:`coral_distance` between the features of the source
      batch and of a target batch; features are what the head sees.
    - ``"mmd"`` (Long et al. 2015): the biased :func:`mmd_squared` between them, with the median
      heuristic in each step.
    - ``"dann"`` (Ganin et al. 2016): a domain classifier with one hidden layer, behind
      :func:`reverse_gradient`. The classifier learns at the full rate; the weight acts on the
      reversed gradient alone.
    - ``"self_training"`` (Lee 2013): in rounds, the cross-entropy of a batch with
      :func:`pseudo_labels`, which are given anew at the start of each round.

    Where a method takes a target batch, both batches go through the network as one, so BatchNorm
    sees the mixture. Everything random comes from ``run.seed``, to the same bits on one CPU; the
    global random state is left as it was found.

    Args:
        network: (n, ...) inputs to (n, m) logits, whose last linear layer is its head; it stays
            as it is.
        domains: the pair.
        plan: the method and its settings; None for ``Plan()``.
        run: seed and device; None for seed 0 on the best device.

    Raises:
        FloatingPointError: if a loss becomes NaN or infinite.
        TypeError: if ``domains`` is something else.
        ValueError: if the network's output does not fit the classes, the network is nothing but a
            head, or it has no BatchNorm to adapt.
    """
    plan = Plan() if plan is None else plan
    run = runtime.default(run)
    if not isinstance(domains, Domains):
        raise TypeError(
            f"fit takes a pair made by adapt.domains(source, target), which puts the target's "
            f"labels away; found {type(domains).__name__}."
        )
    keep = runtime.keep_memory() if run.device.type == "cpu" else contextlib.nullcontext()
    with keep, _randomness.global_state_kept(run.device):
        loop = _Loop(copy.deepcopy(network).to(run.device), domains, plan, run)
        with runtime.progress(total=plan.steps, desc=plan.method, unit="step") as bar:
            for stage, steps in enumerate(_stages(plan)):
                loop.begin(stage, steps)
                for _ in range(steps):
                    loop.take_step()
                    bar.update()
    return loop.result()


def _stages(plan: Plan) -> list[int]:
    """The steps of each stage; all methods but self-training have one."""
    if plan.method != "self_training":
        return [plan.steps]
    count = plan.rounds + 1
    return [plan.steps // count + (i < plan.steps % count) for i in range(count)]


class _Loop:
    """A run of :func:`fit`: what has to be kept from step to step."""

    def __init__(self, network: nn.Module, domains: Domains, plan: Plan, run: Run) -> None:
        self.network, self.domains, self.plan, self.run = network, domains, plan, run
        train = domains.source.train
        self.source_x, self.target_x = (_held(x, run.device) for x in (train.x, domains.target.x))
        self.source_y = train.y.to(run.device)
        self.draw = run.generator(0)
        # The critic's weights and dropout draw from the global state, which `fit` restores.
        seed = _randomness.epoch_seeds(run.seed, 0, 1)[0]
        for device in {torch.device("cpu"), run.device}:
            _randomness.seed_dropout(seed, device)
        _check_output(network, self.source_x, domains.source)
        if plan.method == "batchnorm":
            adapt_batchnorm(network, self.target_x)  # fails now, if at all
        name = models.head_name(network)
        if plan.method in ("coral", "mmd", "dann") and not name:
            raise ValueError(
                f"{plan.method} changes the layers before the head, but the network is nothing but "
                f"a head. Give it a hidden layer, or move the features with adapt.coral."
            )
        self.head = network.get_submodule(name)
        groups = models.param_groups(network, lr=plan.lr, weight_decay=plan.weight_decay)
        if plan.method == "dann":
            assert isinstance(self.head, nn.Linear)
            self.critic = nn.Sequential(
                nn.Linear(self.head.in_features, plan.hidden), nn.ReLU(), nn.Linear(plan.hidden, 1)
            ).to(run.device)
            groups.append({"params": list(self.critic.parameters()), "lr": plan.lr})
            groups[-1]["weight_decay"] = plan.weight_decay
        self.rates = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, fused=run.device.type in ("cpu", "cuda"))
        self.full_weight = plan.weight if plan.weight is not None else _WEIGHTS.get(plan.method, 0)
        self.weight = 0.0
        self.pseudo: tuple[Tensor, Tensor] | None = None
        self.step, self.start = 0, time.perf_counter()
        self.losses: list[Tensor] = []
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, tuple[float, ...]] = {}
        self.chosen: dict[str, tuple[int, nn.Module]] = {}
        every = -(-plan.steps // plan.evaluations)
        self.evaluate_at = {*range(every, plan.steps, every), plan.steps}

    def begin(self, stage: int, steps: int) -> None:
        """Start a stage: a schedule of its own, and for self-training new pseudo-labels."""
        self.stage_start, self.stage_steps = self.step, steps
        if stage > 0:
            threshold = self.plan.threshold
            self.pseudo = pseudo_labels(self.network, self.target_x, threshold=threshold)
        self.network.train()

    def take_step(self) -> None:
        self.weight = self._weight()
        source_loss, domain_loss = self._losses()
        reversed_already = self.plan.method == "dann"
        total = source_loss + (1.0 if reversed_already else self.weight) * domain_loss
        share = (self.step - self.stage_start) / self.stage_steps
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * share)) / 2
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.step += 1
        self.losses.append(torch.stack([source_loss.detach(), domain_loss.detach()]))
        if self.step in self.evaluate_at:
            self._evaluate()
            self.network.train()

    def _weight(self) -> float:
        if self.plan.method == "self_training":
            return self.full_weight if self._pseudo_count() else 0.0
        return self.full_weight * ramp(self.step / self.plan.steps, gamma=self.plan.gamma)

    def _losses(self) -> tuple[Tensor, Tensor]:
        """The source's cross-entropy and what the method adds, before its weight."""
        rows = self._rows(len(self.source_x))
        x, y, n = self.source_x[rows], self.source_y[rows], self.plan.batch_size
        method = self.plan.method
        if method in ("source_only", "batchnorm") or (
            method == "self_training" and not self._pseudo_count()
        ):
            return F.cross_entropy(self.network(x), y), torch.zeros((), device=x.device)
        if method == "self_training":
            assert self.pseudo is not None
            picked = self._rows(len(self.pseudo[0]))
            logits = self.network(torch.cat([x, self.target_x[self.pseudo[0][picked]]]))
            pseudo_loss = F.cross_entropy(logits[n:], self.pseudo[1][picked])
            return F.cross_entropy(logits[:n], y), pseudo_loss
        new = self.target_x[self._rows(len(self.target_x))]
        logits, features = _forward(self.network, self.head, torch.cat([x, new]))
        return F.cross_entropy(logits[:n], y), self._domain_loss(features, n)

    def _domain_loss(self, features: Tensor, n: int) -> Tensor:
        source, target = features[:n], features[n:]
        if self.plan.method == "coral":
            return _coral_distance(source, target)
        if self.plan.method == "mmd":
            # Features that have all become equal have no distance to speak of.
            median = _median_distance(_squared_distances(features.detach()))
            widths = [factor * max(median, 1e-6) for factor in FACTORS]
            return _mmd_squared(source, target, widths, unbiased=False)
        scores = self.critic(reverse_gradient(features, self.weight)).squeeze(1)
        domain = torch.arange(2 * n, device=scores.device) >= n
        return F.binary_cross_entropy_with_logits(scores, domain.to(scores))

    def _rows(self, count: int) -> Tensor:
        rows = torch.randint(count, (self.plan.batch_size,), generator=self.draw)
        return rows.to(self.run.device)

    def _pseudo_count(self) -> int:
        return 0 if self.pseudo is None else len(self.pseudo[0])

    def _evaluate(self) -> None:
        source_loss, domain_loss = torch.stack(self.losses).mean(dim=0).tolist()
        self.losses = []
        if not math.isfinite(source_loss + domain_loss):
            raise FloatingPointError(
                f"a loss became NaN or infinite by step {self.step} of {self.plan.steps}, with "
                f"{self.plan.method} at a learning rate of {self.plan.lr:.3g}. Lower lr or weight."
            )
        adapted = self.network.eval()
        if self.plan.method == "batchnorm":
            adapted = adapt_batchnorm(self.network, self.target_x)
        logits, y = self._scores(self.network, self.domains.source.validation)
        loss, top1 = float(F.cross_entropy(logits, y)), _accuracy(logits, y)
        oracle = _accuracy(*self._scores(adapted, self.domains.oracle))
        self._keep(adapted, {"source": (top1, -loss), "oracle": (oracle,), "last": (self.step,)})
        adds = self.plan.method not in ("source_only", "batchnorm")
        adds &= self.plan.method != "self_training" or self._pseudo_count() > 0
        self.rows.append(
            {
                "step": self.step,
                "source_loss": source_loss,
                "domain_loss": domain_loss if adds else math.nan,
                "weight": self.weight,
                "source_validation_loss": loss,
                "source_validation_top1": top1,
                "oracle_top1": oracle,
                "pseudo_labelled": self._pseudo_count() / len(self.target_x),
                "seconds": time.perf_counter() - self.start,
            }
        )

    def _scores(self, network: nn.Module, split: Split) -> tuple[Tensor, Tensor]:
        return _logits(network, split.x), split.y.to(self.run.device)

    def _keep(self, network: nn.Module, values: Mapping[str, tuple[float, ...]]) -> None:
        """Copy the weights for every choice to which they are the best so far."""
        better = [choice for choice in CHOICES if values[choice] > self.best.get(choice, ())]
        for choice in better:
            self.best[choice] = values[choice]
            self.chosen[choice] = len(self.rows), copy.deepcopy(network).eval()

    def result(self) -> Adapted:
        history = pd.DataFrame(self.rows, columns=list(COLUMNS)).astype({"step": int})
        return Adapted(
            networks={choice: self.chosen[choice][1] for choice in CHOICES},
            history=history,
            rows={choice: self.chosen[choice][0] for choice in CHOICES},
            plan=self.plan,
            pair=repr(self.domains),
            seed=self.run.seed,
        )


def _forward(network: nn.Module, head: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and the features that the head was given."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        return network(x), seen[-1]
    finally:
        handle.remove()


def _held(x: Tensor, device: torch.device) -> Tensor:
    x = x.to(device)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    """(n, m) in evaluation mode, in batches; every part of the network gets its mode back."""
    device = next(iter(network.state_dict().values())).device
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            return torch.cat([network(part.to(device)) for part in x.split(_EVALUATION_BATCH)])
    finally:
        for module, training in modes:
            module.training = training


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(dim=1) == y).float().mean())


def _check_output(network: nn.Module, x: Tensor, data: Dataset) -> None:
    out = _logits(network, x[:2])
    expected = (len(x[:2]), len(data.classes))
    if tuple(out.shape) != expected:
        raise ValueError(
            f"the network should return logits of shape {expected} for {expected[0]} examples of "
            f"the {expected[1]} classes of {data.name}, found {tuple(out.shape)}. Give it a head "
            f"of {expected[1]} outputs."
        )


# --- several networks, several sources ----------------------------------------------------


def average_states(
    states: Sequence[StateDict], *, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The average of the weights of several networks of one architecture: a model soup.

    It makes sense for networks that were trained from the same starting weights. Whole numbers,
    such as BatchNorm's count of batches, are taken from the first; so BatchNorm's statistics are
    averages too, which fit no network: see :func:`with_state`.

    Source: Wortsman et al. (2022), Model soups: averaging weights of multiple fine-tuned models
    improves accuracy without increasing inference time.

    Args:
        states: state dicts, from ``network.state_dict()``.
        weights: one for each, 0 or larger, which are scaled to sum to 1; None for equal ones.

    Raises:
        ValueError: if there is no state, names or shapes differ, a number is not finite, or the
            weights do not fit.

    >>> average_states([{"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 4.0])}])
    {'w': tensor([2., 3.])}
    """
    if not states:
        raise ValueError("an average needs at least one state dict, found none.")
    shares = np.ones(len(states)) if weights is None else np.asarray(weights, dtype=float)
    valid = shares.shape == (len(states),) and np.isfinite(shares).all() and (shares >= 0).all()
    if not valid or shares.sum() == 0:
        raise ValueError(
            f"weights should be {len(states)} numbers, 0 or larger and not all 0, found {weights}."
        )
    shares = shares / shares.sum()
    for i, state in enumerate(states):
        _check_alike(states[0], state, i)
    averaged = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            averaged[name] = first.clone()
            continue
        # On the CPU: not every device has double precision, in which ends stay as they are.
        total = torch.zeros_like(first, dtype=torch.float64, device="cpu")
        for share, state in zip(shares.tolist(), states, strict=True):
            total += share * state[name].cpu()
        averaged[name] = total.to(first)
    return averaged


def _check_alike(first: StateDict, other: StateDict, position: int) -> None:
    if odd := sorted(set(first) ^ set(other)):
        raise ValueError(
            f"only networks of one architecture can be averaged: state {position} and state 0 do "
            f"not both have {_some(odd)}."
        )
    for name, value in first.items():
        if value.shape != other[name].shape:
            raise ValueError(
                f"only networks of one architecture can be averaged: {name} has the shape "
                f"{tuple(value.shape)} in state 0 and {tuple(other[name].shape)} in state "
                f"{position}. Heads for different classes have to be left out."
            )
        if not other[name].isfinite().all():
            raise ValueError(f"{name} of state {position} holds NaN or infinity.")


def interpolate_states(start: StateDict, end: StateDict, alpha: float) -> dict[str, Tensor]:
    """(1 − α) times one network's weights plus α times another's, as in WiSE-FT.

    Source: Wortsman et al. (2022), Robust fine-tuning of zero-shot models.

    Args:
        start: the state dict at α = 0, such as that of the network before fine-tuning.
        end: the state dict at α = 1, such as that of the network after it.
        alpha: the share of ``end``.

    Raises:
        ValueError: as :func:`average_states`, or if α does not lie in 0..1.

    >>> interpolate_states({"w": torch.tensor([0.0])}, {"w": torch.tensor([8.0])}, 0.25)
    {'w': tensor([2.])}
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha should lie in 0..1, found {alpha}.")
    return average_states([start, end], weights=[1 - alpha, alpha])


def with_state(network: nn.Module, state: StateDict, *, x: Tensor | None = None) -> nn.Module:
    """A copy of a network with other weights, and BatchNorm statistics that fit them.

    Averaged weights make other activations than any of the networks averaged, so that averaged
    statistics do not fit; one pass over training inputs repairs it, see :func:`adapt_batchnorm`.

    Source: Izmailov et al. (2018), Averaging Weights Leads to Wider Optima and Better
    Generalization.

    Args:
        network: of the same architecture; it stays as it is.
        state: such as :func:`average_states` returns.
        x: (n, ...) inputs for BatchNorm's statistics, without labels; None to take the statistics
            in ``state``, or where there is no BatchNorm.

    Returns:
        the copy, in evaluation mode.

    Raises:
        TypeError, ValueError: as :func:`adapt_batchnorm`, if x is given; or if the state is of
            another architecture.
    """
    _check_alike(network.state_dict(), state, 1)
    changed = copy.deepcopy(network).eval()
    changed.load_state_dict(dict(state))
    return changed if x is None else adapt_batchnorm(changed, x)


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble:
    """Several predictors that answer as one; make one with :func:`ensemble`.

    Attributes:
        members: networks, or functions from inputs to (n, m) logits.
        weights: one for each, which sum to 1.
    """

    members: tuple[Callable[[Tensor], Tensor], ...]
    weights: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """(n, m) logarithms of the average probabilities; a predictor for ``evaluate``.

        Raises:
            ValueError: if the members do not answer with logits of one shape.
        """
        answers = [_answer(member, x) for member in self.members]
        shapes = [tuple(answer.shape) for answer in answers]
        if len(set(shapes)) > 1 or answers[0].ndim != 2 or len(answers[0]) != len(x):
            raise ValueError(
                f"all members should return logits of one shape ({len(x)}, m), found {shapes}. "
                f"Only predictors for the same classes make an ensemble."
            )
        logs = torch.stack([answer.log_softmax(dim=1) for answer in answers])
        shares = torch.tensor(self.weights, dtype=logs.dtype).log()
        return (logs + shares[:, None, None]).logsumexp(dim=0)

    def __repr__(self) -> str:
        shares = ", ".join(f"{weight:.2g}" for weight in self.weights)
        return f"ensemble of {len(self.members)} predictors, with the weights {shares}"


def ensemble(
    members: Sequence[Callable[[Tensor], Tensor]], *, weights: Sequence[float] | None = None
) -> Ensemble:
    """Let several predictors vote with their probabilities.

    Members may differ in everything but the classes. Each costs its own forward pass.

    Source: Lakshminarayanan, Pritzel and Blundell (2017), Simple and Scalable Predictive
    Uncertainty Estimation using Deep Ensembles.

    Args:
        members: networks (taken in evaluation mode), or functions from inputs to (n, m) logits.
        weights: one for each, above 0, which are scaled to sum to 1; None for equal ones.

    Raises:
        TypeError: if a member cannot be called.
        ValueError: if there is no member, or the weights do not fit.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member, found none.")
    if odd := [type(member).__name__ for member in members if not callable(member)]:
        raise TypeError(
            f"a member is a network or a function from inputs to logits, found {odd[0]}. Wrap a "
            f"scikit-learn classifier in a function that returns its log probabilities."
        )
    shares = np.ones(len(members)) if weights is None else np.asarray(weights, dtype=float)
    if shares.shape != (len(members),) or not np.isfinite(shares).all() or (shares <= 0).any():
        raise ValueError(f"weights should be {len(members)} numbers above 0, found {weights}.")
    return Ensemble(tuple(members), tuple((shares / shares.sum()).tolist()))


def _answer(member: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if isinstance(member, nn.Module):
        return _logits(member, x).float().cpu()
    with torch.no_grad():
        return torch.as_tensor(member(x)).float().cpu()


def concatenate(banks: Sequence[Dataset]) -> Dataset:
    """The features of several backbones side by side, for the same examples.

    Each bank is centred, and divided by one number, so that the variances of its training
    features sum to 1: no backbone outweighs another by its scale or its width alone. A probe keeps
    that balance with ``probe.fit(bank, scale="common")``.

    Args:
        banks: data sets of (n, d) features with the same ids, labels and splits, in one order.

    Returns:
        a data set of features (n, d_1 + d_2 + ...). It shares the log of the first bank's test
        split.

    Raises:
        TypeError: if a data set does not hold features.
        ValueError: if there is none, the examples differ, or features are not finite or constant.
    """
    if not banks:
        raise ValueError("there is nothing to concatenate: give one bank or more.")
    first = banks[0]
    parts = []
    for bank in banks:
        if not isinstance(bank.x, Tensor) or bank.x.ndim != 2:
            raise TypeError(
                f"{bank.name} should hold features of shape (n, d). Call features.extract first."
            )
        if bank.ids != first.ids or not (
            torch.equal(bank.labels, first.labels) and np.array_equal(bank.split, first.split)
        ):
            raise ValueError(
                f"{bank.name} and {first.name} are not of the same examples, with the same labels "
                f"and splits, in one order. Extract both from one data set."
            )
        _check_inputs(bank.x, bank.name)
        train = bank.train.x
        size = train.var(dim=0, correction=0).sum().sqrt()
        if not size > 0:
            raise ValueError(f"the training features of {bank.name} are constant.")
        parts.append((bank.x - train.mean(dim=0)) / size)
    return Dataset(
        name=" + ".join(bank.name for bank in banks),
        classes=first.classes,
        x=torch.cat(parts, dim=1),
        labels=first.labels,
        split=first.split,
        ids=first.ids,
        split_name=first.split_name,
        imagenet=first.imagenet,
        log=first.log,
    )


# --- input --------------------------------------------------------------------------------


def _samples(
    source: ArrayLike, target: ArrayLike, *, what: str = "features", least: int = 2
) -> tuple[Tensor, Tensor]:
    """Two floating-point samples (n, d) and (m, d) of one dtype, on one device."""
    a, b = (
        _sample(x, f"{name} {what}", least) for x, name in ((source, "source"), (target, "target"))
    )
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"source and target {what} should have the same width, found {a.shape[1]} and "
            f"{b.shape[1]}. Take both from one backbone."
        )
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(a.device, dtype)


def _sample(sample: ArrayLike, name: str, least: int) -> Tensor:
    _refuse_labels(sample, name)
    x = torch.as_tensor(sample)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} should have the shape (n, d), found {tuple(x.shape)}.")
    if len(x) < least:
        raise ValueError(f"{name} should be of {least} examples or more, found {len(x)}.")
    if bad := int((~x.isfinite()).any(dim=1).sum()):
        raise ValueError(
            f"{name} should be finite, but {bad} of {len(x):,} rows hold NaN or infinity. Leave "
            f"them out, or find out where they come from."
        )
    return x


def _refuse_labels(sample: Any, name: str) -> None:
    """Splits and pairs bring labels along, which this method does not take."""
    if isinstance(sample, Split | TestSplit | Dataset | Domains | Unlabelled):
        raise TypeError(
            f"{name}: inputs alone are wanted, found {type(sample).__name__}. Give its x: no "
            f"method here takes labels from the target."
        )
    if (
        isinstance(sample, tuple)
        and len(sample) == 2
        and all(isinstance(p, Tensor) for p in sample)
    ):
        raise TypeError(
            f"{name}: inputs alone are wanted, found two tensors, which look like inputs and "
            f"labels. Give the first: no method here takes labels from the target."
        )


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
