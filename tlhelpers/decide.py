"""From scores to decisions: class shares that are not those of training, and thresholds.

Both add a constant to the logits of each class, :class:`Shifted`. The order of the examples, and
with it the area under the ROC curve, stays as it is; what changes is who is called what.

- :func:`with_shares` follows from Bayes' rule where only the classes' shares differ;
- :func:`with_threshold` moves the line between two classes, to where :func:`choose_threshold`
  finds it best on validation.

Chapter 09 derives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlhelpers import runtime
from tlhelpers.splits import Split

CRITERIA = ("balanced_accuracy", "top1")


@dataclass(frozen=True, eq=False, repr=False)
class Shifted:
    """A predictor with a constant added to the logits of each class; a predictor again.

    Attributes:
        predictor: a callable from inputs to (n, m) logits; a network is put into evaluation mode
            when it is called.
        by: (m,) what is added.
        what: in words, for print-outs.
    """

    predictor: Callable[[Any], Any]
    by: Tensor
    what: str

    def __call__(self, x: Any) -> Tensor:
        """The logits (n, m), shifted.

        Raises:
            ValueError: if the predictor knows another number of classes.
        """
        if isinstance(self.predictor, nn.Module):
            self.predictor.eval()
        scores = torch.as_tensor(self.predictor(x))
        if scores.ndim != 2 or scores.shape[1] != len(self.by):
            raise ValueError(
                f"the predictor should return logits of shape (n, {len(self.by)}), found "
                f"{tuple(scores.shape)}. Shift a predictor of these {len(self.by)} classes."
            )
        return scores + self.by.to(scores)

    def __repr__(self) -> str:
        added = ", ".join(f"{value:+.3f}" for value in self.by.tolist())
        return f"{self.what}: logits {added}"


def with_shares(
    predictor: Callable[[Any], Any], *, trained: Sequence[float], wanted: Sequence[float]
) -> Shifted:
    r"""The predictor for a population in which the classes have other shares.

    If only the shares :math:`\pi` differ and a class looks the same, :math:`p'(x \mid y) = p(x
    \mid y)`, then :math:`p'(y \mid x) \propto p(y \mid x)\, \pi'_y / \pi_y`: the logarithm of the
    ratio is added to each logit. With equal ``wanted`` shares the predictor aims at balanced
    accuracy.

    Source: Saerens, Latinne and Decaestecker (2002), Adjusting the Outputs of a Classifier to New
    a Priori Probabilities. Where the wanted shares are not known, see
    :func:`~tlhelpers.reweight.label_shift`.

    Args:
        predictor: a callable from inputs to (n, m) logits, trained with the shares ``trained``.
        trained: m shares (or counts) of the classes in training, each above 0.
        wanted: m shares (or counts) of the population, each above 0.

    Raises:
        ValueError: if a share is not above 0, or the numbers of classes differ.

    >>> with_shares(lambda x: x, trained=(10, 90), wanted=(0.5, 0.5)).by
    tensor([ 1.6094, -0.5878])
    """
    old, new = (np.asarray(shares, dtype=np.float64).ravel() for shares in (trained, wanted))
    if old.shape != new.shape or len(old) < 2:
        raise ValueError(
            f"trained and wanted should hold a share for each of the same classes, found "
            f"{len(old)} and {len(new)}."
        )
    for name, shares in (("trained", old), ("wanted", new)):
        if not (np.isfinite(shares).all() and (shares > 0).all()):
            raise ValueError(
                f"{name} should hold shares above 0, found {shares.tolist()}. A class without a "
                f"share cannot be predicted, or never was trained: leave it out."
            )
    ratio = (new / new.sum()) / (old / old.sum())
    shares_text = "/".join(f"{share:.0%}" for share in new / new.sum())
    return Shifted(predictor, torch.from_numpy(np.log(ratio)).float(), f"for shares {shares_text}")


def with_threshold(predictor: Callable[[Any], Any], threshold: float) -> Shifted:
    """The predictor that calls the second of two classes where its probability is above this.

    Args:
        predictor: a callable from inputs to (n, 2) logits.
        threshold: a probability between 0 and 1; one half leaves the predictor as it is.

    Raises:
        ValueError: if the threshold does not lie between 0 and 1.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> scores = torch.tensor([[0.9, 0.1], [0.7, 0.3]]).log()
        >>> careful = tl.decide.with_threshold(lambda x: scores, 0.2)
        >>> careful
        threshold 0.200: logits +0.000, +1.386
        >>> careful(None).argmax(dim=1)
        tensor([0, 1])
    """
    if not 0 < threshold < 1:
        raise ValueError(f"a threshold is a probability between 0 and 1, found {threshold}.")
    shift = torch.tensor([0.0, math.log1p(-threshold) - math.log(threshold)])
    return Shifted(predictor, shift, f"threshold {threshold:.3f}")


def choose_threshold(
    predictor: Callable[[Any], Any], split: Split, *, criterion: str = "balanced_accuracy"
) -> float:
    """The threshold with which a predictor of two classes does best on a labelled split.

    Candidates lie half-way, in log odds, between neighbouring scores, and beyond the last ones. Of
    several that are equally good, the middle one is taken.

    Args:
        predictor: a callable from inputs to (n, 2) logits, or a network.
        split: the validation split, as a rule.
        criterion: ``"balanced_accuracy"``, or ``"top1"`` for accuracy with the classes' shares in
            this split.

    Returns:
        A probability of the second class, for :func:`with_threshold`.

    Raises:
        ValueError: if the split is the test split, lacks one of the two classes, or the predictor
            does not return finite logits of two classes.

    Example:
        >>> import tlhelpers as tl
        >>> xrays = tl.features.load("pneumonia/last_layer").few(50, draw=0)
        >>> probe = tl.probe.fit(xrays, ridge=0.1)
        >>> threshold = tl.decide.choose_threshold(probe, xrays.validation)
        >>> moved = tl.decide.with_threshold(probe, threshold)
        >>> for predictor in (probe, moved):
        ...     tl.evaluate.validate(predictor, xrays.validation, metric="balanced_accuracy")
        87.9 % [85.0, 90.8]
        88.6 % [85.9, 91.0]
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion should be one of {', '.join(CRITERIA)}, found {criterion!r}.")
    if split.name == "test":
        raise ValueError(
            "a threshold is chosen on validation; one chosen on the test split is no longer "
            "tested by it."
        )
    margin, y = _margins(predictor, split), split.y.numpy() == 1
    if y.all() or not y.any():
        raise ValueError(f"a threshold needs both classes in the {split.name} split, found one.")
    values, place = np.unique(margin, return_inverse=True)
    # Called the second class above candidate i: the examples at places i, i + 1 and so on.
    first, second = (
        np.concatenate([[0], np.cumsum(np.bincount(place[c], minlength=len(values)))])
        for c in (~y, y)
    )
    right_first, right_second = first, second[-1] - second
    if criterion == "top1":
        score = right_first + right_second
    else:
        score = right_first / first[-1] + right_second / second[-1]
    best = np.flatnonzero(np.isclose(score, score.max(), rtol=0, atol=1e-12))
    ends = np.concatenate([[values[0] - 1], values, [values[-1] + 1]])
    log_odds = (ends[:-1] + ends[1:])[best[len(best) // 2]] / 2
    return float(1 / (1 + np.exp(-np.clip(log_odds, -30, 30))))


def _margins(predictor: Callable[[Any], Any], split: Split) -> np.ndarray:
    """(n,) log odds of the second class."""
    was_training = isinstance(predictor, nn.Module) and predictor.training
    if isinstance(predictor, nn.Module):
        predictor.eval()
    with torch.no_grad(), runtime.keep_memory():
        found = [torch.as_tensor(predictor(x)).double().cpu() for x, _ in split.batches(256)]
    if isinstance(predictor, nn.Module):
        predictor.train(was_training)
    scores = torch.cat(found)
    if scores.ndim != 2 or scores.shape[1] != 2 or not scores.isfinite().all():
        raise ValueError(
            f"a threshold needs finite logits of two classes, (n, 2), found the shape "
            f"{tuple(scores.shape)}."
        )
    return (scores[:, 1] - scores[:, 0]).numpy()
