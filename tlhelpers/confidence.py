"""What to do with a confidence: a temperature that makes it true, and when to rather not answer.

:func:`temperature` fits the one number of temperature scaling. :func:`risk_coverage` shows what
is gained by answering only the examples that a score is sure of, and :func:`threshold` turns a
promise, such as at most 5 wrong among 100 answers, into a threshold on that score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from tlhelpers.evaluate import Estimate

_STEPS = 20


def temperature(logits: Tensor, labels: Tensor) -> float:
    """What logits should be divided by for the lowest mean negative log-likelihood.

    Temperature scaling (Guo et al. 2017); to be fitted on validation. Above 1 the logits were
    overconfident, below 1 underconfident. Where all examples are classified right the likelihood
    has no best temperature: the smaller, the better, down to e⁻⁶ of the logits' spread.

    Args:
        logits: (n, m).
        labels: (n,) int64.

    Raises:
        ValueError: if there is no example, or the shapes do not fit.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> logits = torch.tensor([[4.0, 0.0]]).repeat(100, 1)
        >>> labels = (torch.arange(100) >= 75).long()
        >>> t = tl.confidence.temperature(logits, labels)
        >>> round(t, 2), (logits[:1] / t).softmax(dim=1).round(decimals=2)
        (3.64, tensor([[0.7500, 0.2500]]))
    """
    if logits.ndim != 2 or labels.shape != (len(logits),) or not len(logits):
        raise ValueError(
            f"a temperature is fitted to logits (n, m) and labels (n,) with n of 1 or more, found "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    # In units of the logits' spread the answer lies near 1, however large the logits are.
    spread = float((logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt())
    if spread == 0:
        return 1.0

    def nll(log_temperature: float) -> float:
        return float(
            functional.cross_entropy(logits / (spread * math.exp(log_temperature)), labels)
        )

    # The NLL is convex in 1/temperature, so it has one minimum.
    found = minimize_scalar(nll, bounds=(-6, 6), method="bounded", options={"xatol": 1e-3})
    return spread * math.exp(found.x)


@dataclass(frozen=True, eq=False, repr=False)
class RiskCoverage:
    """The error among those answered, for every share of examples that is answered.

    Attributes:
        coverage: (n,) the share answered, those with the highest scores, from 1/n to 1.
        risk: (n,) the share of wrong answers among them.
        area: the mean of ``risk``, with a 95 % bootstrap interval over the examples.
        best: the area that a score would have that puts every wrong answer last.
        error: the error where all are answered, which is also the area of a random order.
    """

    coverage: np.ndarray
    risk: np.ndarray
    area: Estimate
    best: float
    error: float

    def __repr__(self) -> str:
        return (
            f"risk-coverage curve of {len(self.risk):,} examples: area {self.area} "
            f"(best possible {100 * self.best:.1f} %, at random {100 * self.error:.1f} %)"
        )

    def at(self, coverage: float) -> float:
        """The error where this share, at most, is answered.

        Raises:
            ValueError: if the share is not above 0 and at most 1, or holds no example.
        """
        count = math.floor(coverage * len(self.risk) + 1e-9) if 0 < coverage <= 1 else 0
        if count < 1:
            raise ValueError(
                f"a coverage lies above 0 and at most at 1 and holds at least one of the "
                f"{len(self.risk)} examples, found {coverage}."
            )
        return float(self.risk[count - 1])

    def to_frame(self) -> pd.DataFrame:
        """A row for each number of examples answered: ``coverage``, ``risk``."""
        return pd.DataFrame({"coverage": self.coverage, "risk": self.risk})


def risk_coverage(
    correct: ArrayLike, score: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> RiskCoverage:
    """The risk-coverage curve of a score (El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017).

    Args:
        correct: (n,) whether each answer is right.
        score: (n,) higher for answers to be surer of. Among equal scores the order is random, and
            its expectation is taken.
        resamples: of the examples, for the interval.
        seed: of the resamples.

    Raises:
        ValueError: if the two do not fit, or a score is NaN.

    Example:
        >>> import numpy as np
        >>> import tlhelpers as tl
        >>> score = np.linspace(0, 1, 1000)
        >>> correct = np.random.default_rng(0).random(1000) < score
        >>> curve = tl.confidence.risk_coverage(correct, score)
        >>> [round(curve.at(share), 2) for share in (0.1, 0.5, 1.0)]
        [0.04, 0.25, 0.52]
    """
    wrong, values = _checked(correct, score)
    n = len(wrong)
    risk = _risk(wrong, values)
    generator = np.random.default_rng([seed, n])
    drawn = np.empty(resamples)
    for i in range(resamples):
        rows = generator.integers(0, n, n)
        drawn[i] = _risk(wrong[rows], values[rows]).mean()
    low, high = np.quantile(drawn, [0.025, 0.975])
    area = float(risk.mean())
    return RiskCoverage(
        coverage=np.arange(1, n + 1) / n,
        risk=risk,
        area=Estimate(area, min(float(low), area), max(float(high), area)),
        best=float(_risk(wrong, -wrong).mean()),
        error=float(wrong.mean()),
    )


def _risk(wrong: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(n,) the expected error among the first 1, 2, ..., n."""
    order = np.argsort(-score, kind="stable")
    ranked, errors = score[order], wrong[order]
    # Within a group of equal scores each place has the group's mean error.
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    sizes = np.diff(np.r_[starts, len(ranked)])
    expected = np.repeat(np.add.reduceat(errors, starts) / sizes, sizes)
    return np.cumsum(expected) / np.arange(1, len(errors) + 1)


@dataclass(frozen=True, repr=False)
class Threshold:
    """A threshold on a score that keeps a promise; made by :func:`threshold`.

    Attributes:
        value: answer where the score is this or higher; infinity: never.
        coverage: the share of the examples that it was chosen on which it answers.
        bound: an upper confidence bound of the error among those answered; NaN where nothing is.
        risk: what was promised.
        level: the confidence of the promise.
    """

    value: float
    coverage: float
    bound: float
    risk: float
    level: float

    def __repr__(self) -> str:
        if not self.coverage:
            return f"no threshold keeps the promise of an error of {100 * self.risk:g} % at most"
        return (
            f"answer at a score of {self.value:.3f} or higher ({100 * self.coverage:.0f} % of the "
            f"examples): error {100 * self.bound:.1f} % at most, with a confidence of "
            f"{100 * self.level:g} %"
        )


def threshold(
    correct: ArrayLike, score: ArrayLike, *, risk: float, level: float = 0.95, steps: int = _STEPS
) -> Threshold:
    """The threshold that answers most while the error stays below ``risk``, with confidence.

    For a fixed grid of coverages, 1/steps, 2/steps, ..., 1, the error among those answered gets an
    upper bound (Clopper and Pearson 1934) at the confidence 1 - (1 - level) / steps, so that all
    bounds hold together at ``level``. The largest coverage whose bound is at most ``risk`` is
    taken. This is the idea of Geifman and El-Yaniv (2017), with a plain grid. It holds for
    examples drawn as those here were, and says nothing about any others.

    Args:
        correct: (n,) whether each answer on *validation* is right.
        score: (n,) their scores; examples with equal scores are answered together.
        risk: the error promised, between 0 and 1.
        level: the confidence of the promise.
        steps: of the grid.

    Raises:
        ValueError: if something is out of its range.

    Example:
        >>> import numpy as np
        >>> import tlhelpers as tl
        >>> score = np.linspace(0, 1, 1000)
        >>> correct = np.random.default_rng(0).random(1000) < score
        >>> tl.confidence.threshold(correct, score, risk=0.2)  # doctest: +NORMALIZE_WHITESPACE
        answer at a score of 0.751 or higher (25 % of the examples): error 18.4 % at most,
        with a confidence of 95 %
        >>> tl.confidence.threshold(correct, score, risk=0.001)
        no threshold keeps the promise of an error of 0.1 % at most
    """
    wrong, values = _checked(correct, score)
    if not 0 < risk < 1 or not 0 < level < 1 or steps < 1:
        raise ValueError(
            f"risk and level lie between 0 and 1 and steps is 1 or more, found {risk}, {level} and "
            f"{steps}."
        )
    n = len(wrong)
    ranked = np.sort(values)[::-1]
    for share in np.arange(steps, 0, -1) / steps:
        if (count := math.floor(share * n + 1e-9)) < 1:
            break
        answered = values >= ranked[count - 1]
        k, errors = int(answered.sum()), int(wrong[answered].sum())
        tail = (1 - level) / steps
        bound = 1.0 if errors == k else float(stats.beta.ppf(1 - tail, errors + 1, k - errors))
        if bound <= risk:
            return Threshold(float(ranked[count - 1]), k / n, bound, risk, level)
    return Threshold(math.inf, 0.0, math.nan, risk, level)


def _checked(correct: ArrayLike, score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(n,) 1.0 where an answer is wrong, and the scores."""
    right, values = np.asarray(correct), np.asarray(score, dtype=np.float64)
    if right.dtype != bool or right.ndim != 1 or right.shape != values.shape or not len(right):
        raise ValueError(
            f"correct should be (n,) booleans and score (n,) numbers, n of 1 or more; found "
            f"{right.dtype} {right.shape} and {values.shape}."
        )
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} scores are NaN.")
    return (~right).astype(np.float64), values
