"""Let a labelled source stand for a target in which some examples are more frequent.

- :func:`importance_weights` for covariate shift, where the inputs are distributed otherwise and
  mean the same;
- :func:`label_shift`, where the classes have other shares and look the same.

Both estimate ratios of densities, target over source, without labels of the target. Chapter 13
derives them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tlhelpers import _samples
from tlhelpers._samples import ArrayLike


@dataclass(frozen=True, eq=False, repr=False)
class Weights:
    """The outcome of :func:`importance_weights`.

    Attributes:
        values: (n,) the weight of each source example, 1 on average where the model is right.
        told_apart: the share of pairs of a source and a target example that the domain
            classifier puts in the right order (area under the ROC curve): 0.5 where it cannot
            tell them apart; near 1 the supports hardly overlap, and weights will not help.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> weights = tl.reweight.Weights(torch.tensor([4.0, 1.0, 1.0]), told_apart=0.7)
        >>> weights  # doctest: +NORMALIZE_WHITESPACE
        weights of 3 examples, which do the work of 2; the domain classifier orders 70.0% of
        the pairs right
        >>> weights.flattened(0.5).values
        tensor([2., 1., 1.])
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

        Raises:
            ValueError: if α does not lie in 0..1.
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
        TypeError, ValueError: as :func:`~tlhelpers.discrepancy.proxy_a_distance`.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> source = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> target = torch.randn(1000, 1, generator=torch.Generator().manual_seed(1)) + 0.5
        >>> weights = tl.reweight.importance_weights(source, target)
        >>> weighted = (weights.values * source[:, 0]).sum() / weights.values.sum()
        >>> [abs(round(float(mean), 1)) for mean in (source.mean(), weighted, target.mean())]
        [0.0, 0.5, 0.5]
    """
    scores, domain = _samples.domain_scores(source, target, folds, ridge, seed, balanced=False)
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

        Raises:
            ValueError: if the logits have another shape.
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
        TypeError: if logits are given with labels.
        ValueError: if shapes disagree, a number is not finite, there are fewer than two classes, a
            class has no example, or classes are predicted alike, so that their shares cannot be
            told apart.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> y = torch.tensor([0, 1] * 50)
        >>> logits = torch.eye(2)[y]
        >>> target_logits = torch.eye(2)[torch.tensor([0] * 90 + [1] * 10)]
        >>> shift = tl.reweight.label_shift(logits, y, target_logits)
        >>> shift
        estimated target shares: 90.0%, 10.0% (100 examples)
        >>> shift.correct(torch.zeros(1, 2)).softmax(dim=1)
        tensor([[0.9000, 0.1000]])
    """
    scores, new = _samples.pair(source_logits, target_logits, what="logits", least=1)
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
