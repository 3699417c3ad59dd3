"""Which pretrained network suits my data? Scores that need no fine-tuning, and how to judge them.

Six estimators, each a function from what a source network says about the labelled target images to
one number, the higher the better:

- from features: :func:`logme`, :func:`h_score`, :func:`knn`, :func:`probe`;
- from what the source network's own head says: :func:`leep`, :func:`nce`.

:func:`weighted_tau` and :func:`regret` compare such scores with the truth, the accuracies after
fine-tuning, and :func:`compare` does so for several estimators over many occasions, with paired
intervals. Chapter 07 derives the formulas.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import StratifiedKFold

from tlhelpers import records, runtime
from tlhelpers.evaluate import Estimate, mean_interval
from tlhelpers.features import extract
from tlhelpers.models import LOGITS, Backbone
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

ArrayLike = Any  # a NumPy array, a torch tensor, or nested sequences of numbers
Metric = Callable[[ArrayLike, ArrayLike], float]

SHOTS = (5, 20, 90)
COMMAND = "python experiments/transferability_dogs.py --data PATH"
RIDGES = tuple(10.0 ** np.arange(-2, 5))  # on standardised features, as sums over images
_NOISE_FLOOR = 1e-6  # LogME: the noise's variance, as a share of the target's mean square
_ITERATIONS = 1000
_TOLERANCE = 1e-8  # LogME: of the evidence, in nats a sample
_LEVEL = 0.95

# --- estimators from features -------------------------------------------------------------


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    r"""LogME: the largest log evidence of a Bayesian linear model, a sample and a class.

    For each class c, its indicator :math:`y \in \{0, 1\}^n` is modelled as
    :math:`y = F w + \varepsilon` with :math:`w \sim N(0, \alpha^{-1} I)` and
    :math:`\varepsilon \sim N(0, \beta^{-1} I)`. With
    :math:`A = \alpha I + \beta F^\top F` and :math:`m = \beta A^{-1} F^\top y` the log evidence is

    .. math::
        L(\alpha, \beta) = \tfrac n2 \log \beta + \tfrac d2 \log \alpha - \tfrac n2 \log 2\pi
        - \tfrac\beta2 \|F m - y\|^2 - \tfrac\alpha2 \|m\|^2 - \tfrac12 \log |A| .

    It is maximised by the fixed point :math:`\gamma = \sum_i \beta\sigma_i / (\alpha +
    \beta\sigma_i)`, :math:`\alpha = \gamma / \|m\|^2`, :math:`\beta = (n - \gamma) / \|Fm -
    y\|^2`, where the :math:`\sigma_i` are the squared singular values of F; LogME is the mean of
    :math:`\max L / n` over the classes. Features are taken as they are, neither centred nor
    scaled. Where features explain the labels without any error the evidence has no upper limit,
    so the noise's variance is kept above a millionth of the mean of y².

    Source: You, Liu, Wang and Long (2021), LogME: Practical Assessment of Pre-trained Models for
    Transfer Learning.

    Args:
        features: (n, d).
        labels: (n,) integers.

    Returns:
        nats a sample; any sign.

    Raises:
        ValueError: if a feature is not finite, shapes disagree, or there are fewer than two
            classes.

    Example:
        >>> import tlhelpers as tl
        >>> for stage in ("stage_6", "stage_11", "last_layer"):
        ...     train = tl.features.load(f"pneumonia/{stage}").few(50, draw=0).train
        ...     print(f"{stage:10} {tl.transferability.logme(train.x, train.y):.2f}")
        stage_6    -0.84
        stage_11   -0.76
        last_layer -0.74
    """
    x, y = _checked(features, labels)
    n = len(x)
    u, singular, _ = np.linalg.svd(x, full_matrices=False)
    # To scale all features only rescales alpha, so the largest singular value may be 1.
    squared = (singular[:, None] / max(singular[0], np.finfo(float).tiny)) ** 2  # (r, 1)
    one_hot = np.eye(int(y.max()) + 1)[y]  # (n, m)
    inside = (u.T @ one_hot) ** 2  # (r, m): what of y lies along each direction of the features
    outside = np.maximum((one_hot**2).sum(axis=0) - inside.sum(axis=0), 0.0)
    floor = _NOISE_FLOOR * (one_hot**2).mean(axis=0)
    alpha, beta = np.ones(one_hot.shape[1]), np.ones(one_hot.shape[1])
    evidence = np.full(one_hot.shape[1], -np.inf)
    for _ in range(_ITERATIONS):
        shrunk = alpha + beta * squared
        gamma = (beta * squared / shrunk).sum(axis=0)
        length = (beta**2 * squared * inside / shrunk**2).sum(axis=0)  # ‖m‖²
        residual = outside + (alpha**2 * inside / shrunk**2).sum(axis=0)  # ‖Fm − y‖²
        before = evidence
        evidence = 0.5 * (
            n * np.log(beta)
            + len(squared) * np.log(alpha)  # the other d − r directions cancel against log |A|
            - n * np.log(2 * np.pi)
            - beta * residual
            - alpha * length
            - np.log(shrunk).sum(axis=0)
        )
        if (np.abs(evidence - before) < n * _TOLERANCE).all():
            break
        alpha = np.clip(gamma / np.maximum(length, np.finfo(float).tiny), 1e-12, 1e12)
        beta = np.maximum(n - gamma, 0.0) / np.maximum(residual, np.finfo(float).tiny)
        beta = np.clip(beta, np.finfo(float).tiny, 1 / floor)
    return float(evidence.mean() / n)


def h_score(features: ArrayLike, labels: ArrayLike, *, shrinkage: bool = False) -> float:
    r"""H-score: how much of the features' variance lies between the classes.

    With the covariance :math:`\Sigma` of the features and the covariance :math:`\Sigma_y` of
    their class means, each image counted with the mean of its class,

    .. math:: H = \operatorname{tr}(\Sigma^{-1} \Sigma_y) .

    It lies between 0 and the number of classes less one. With few images :math:`\Sigma` is hard
    to estimate, and where n is no larger than d + 1 the score of almost any features is the
    number of classes less one, whatever the labels. ``shrinkage=True`` therefore takes the
    covariance of Ledoit and Wolf, :math:`\Sigma_\lambda = (1 - \lambda) \Sigma + \lambda \bar s
    I`, and :math:`H = (1 - \lambda) \operatorname{tr}(\Sigma_\lambda^{-1} \Sigma_y)`.

    Source: Bao et al. (2019), An Information-Theoretic Approach to Transferability in Task
    Transfer Learning; with shrinkage Ibrahim, Ponomareva and Mazumder (2022), Newer is not always
    better.

    Args:
        features: (n, d).
        labels: (n,) integers.
        shrinkage: whether to shrink the covariance.

    Raises:
        ValueError: as :func:`logme`.

    Example:
        >>> import tlhelpers as tl
        >>> train = tl.features.load("pneumonia/last_layer").few(5, draw=0).train
        >>> for shrinkage in (False, True):
        ...     print(f"{tl.transferability.h_score(train.x, train.y, shrinkage=shrinkage):.2f}")
        1.00
        0.84
    """
    x, y = _checked(features, labels)
    centred = x - x.mean(axis=0)
    counts = np.bincount(y)[:, None]
    means = np.stack([np.bincount(y, column) for column in centred.T], axis=1) / counts
    if shrinkage:
        fitted = LedoitWolf(assume_centered=True).fit(centred)
        covariance, keep = fitted.covariance_, 1 - fitted.shrinkage_
    else:
        covariance, keep = centred.T @ centred / len(x), 1.0
    between = (means * counts).T @ means / len(x)
    # A pseudo-inverse: features may be collinear, and n smaller than d.
    return float(keep * np.trace(np.linalg.pinv(covariance, hermitian=True) @ between))


def knn(features: ArrayLike, labels: ArrayLike, *, k: int = 5) -> float:
    """Accuracy of k nearest neighbours, each image judged by all the others.

    Leave-one-out with Euclidean distance; of classes with equally many neighbours the one whose
    neighbours are nearer wins.

    Source: Cover and Hart (1967), Nearest neighbor pattern classification.

    Args:
        features: (n, d).
        labels: (n,) integers.
        k: the number of neighbours.

    Returns:
        a proportion, 0..1.

    Raises:
        ValueError: as :func:`logme`, or if k does not lie in 1..n - 1.

    Example:
        >>> import tlhelpers as tl
        >>> train = tl.features.load("pneumonia/last_layer").few(50, draw=0).train
        >>> round(tl.transferability.knn(train.x, train.y, k=5), 2)
        0.94
    """
    x, y = _checked(features, labels)
    n = len(x)
    if not 1 <= k < n:
        raise ValueError(f"k should lie in 1..{n - 1} for {n} images, found {k}.")
    centred = x - x.mean(axis=0)  # smaller numbers, so that the difference below stays exact
    lengths = (centred**2).sum(axis=1)
    # The i-th neighbour's vote is 1 and a little, and the little bits never sum to a vote.
    votes = 1 + 0.5 ** (np.arange(k) + 2)
    right, block = 0, max(1, 4_000_000 // n)
    for start in range(0, n, block):
        rows = np.arange(start, min(start + block, n))
        distance = lengths - 2 * centred[rows] @ centred.T  # + ‖x‖², the same along a row
        distance[np.arange(len(rows)), rows] = np.inf
        near = np.argpartition(distance, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distance, near, axis=1), axis=1, kind="stable")
        found = y[np.take_along_axis(near, order, axis=1)]
        tally = np.zeros((len(rows), int(y.max()) + 1))
        for i, vote in enumerate(votes):
            tally[np.arange(len(rows)), found[:, i]] += vote
        right += int((tally.argmax(axis=1) == y[rows]).sum())
    return right / n


def probe(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    folds: int = 5,
    ridges: Sequence[float] = RIDGES,
    seed: int = 0,
) -> float:
    """Accuracy of a linear classifier under cross-validation: a small rehearsal of the real thing.

    Least squares with a ridge on the classes' indicators, and the class with the largest
    prediction (scikit-learn's ``RidgeClassifierCV`` on standardised features, to the same
    predictions). The ridge weight is chosen within the training folds by their exact
    leave-one-out error, so no image is judged by a model that has seen it in any way. One
    singular value decomposition a fold serves all ridge weights.

    Args:
        features: (n, d).
        labels: (n,) integers.
        folds: the number of stratified folds.
        ridges: the ridge weights to choose from, for sums over images.
        seed: how images are dealt to the folds.

    Returns:
        a proportion, 0..1: the mean over the folds.

    Raises:
        ValueError: as :func:`logme`, or if a class has fewer images than there are folds.

    Example:
        >>> import tlhelpers as tl
        >>> train = tl.features.load("pneumonia/last_layer").few(50, draw=0).train
        >>> round(tl.transferability.probe(train.x, train.y), 2)
        0.93
    """
    x, y = _checked(features, labels)
    if not 2 <= folds <= (fewest := int(np.bincount(y).min())):
        raise ValueError(
            f"folds should lie in 2..{fewest}, since the smallest class has {fewest} images; "
            f"found {folds}. Take fewer folds, or leave small classes out."
        )
    one_hot = np.eye(int(y.max()) + 1)[y]
    dealt = StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y)
    hits = [
        (_ridge_scores(x[seen], one_hot[seen], x[held], ridges).argmax(axis=1) == y[held]).mean()
        for seen, held in dealt
    ]
    return float(np.mean(hits))


def _ridge_scores(
    x: np.ndarray, one_hot: np.ndarray, new: np.ndarray, ridges: Sequence[float]
) -> np.ndarray:
    """(q, m) predictions for new features, with the ridge of the least leave-one-out error."""
    mean, spread = x.mean(axis=0), x.std(axis=0)
    # A constant feature differs from its mean by rounding errors, which must not be blown up.
    spread[spread <= 1e-9 * np.abs(mean)] = np.inf
    prior = one_hot.mean(axis=0)
    u, singular, v = np.linalg.svd((x - mean) / spread, full_matrices=False)
    along, squared = u.T @ (one_hot - prior), singular**2
    best, weights = np.inf, np.zeros_like(along)
    for ridge in ridges:
        keep = squared / (squared + ridge)
        error = one_hot - prior - u @ (keep[:, None] * along)
        # Without image i its error grows by 1 / (1 - its own weight); 1/n is the intercept's.
        own = 1 / len(x) + (u**2) @ keep
        left_out = float(((error / (1 - own)[:, None]) ** 2).mean())
        if left_out < best:
            best, weights = left_out, (singular / (squared + ridge))[:, None] * along
    return prior + ((new - mean) / spread) @ v.T @ weights


# --- estimators from what the source's head says ------------------------------------------


def leep(source_probabilities: ArrayLike, labels: ArrayLike) -> float:
    r"""LEEP: the log-likelihood of the labels through the source's own classes.

    The source network gives image i the probabilities :math:`\theta(x_i)_z` over its classes z.
    Their joint distribution with the target's labels is :math:`\hat P(y, z) = \frac1n \sum_{i:
    y_i = y} \theta(x_i)_z`, and with :math:`\hat P(y \mid z) = \hat P(y, z) / \hat P(z)`

    .. math:: \mathrm{LEEP} = \frac1n \sum_i \log \sum_z \hat P(y_i \mid z)\, \theta(x_i)_z .

    Source: Nguyen, Hassner, Seeger and Archambeau (2020), LEEP: A New Measure to Evaluate
    Transferability of Learned Representations.

    Args:
        source_probabilities: (n, s), each row sums to 1: the softmax of the source's logits.
        labels: (n,) integers, of the target.

    Returns:
        nats a sample, at most 0.

    Raises:
        ValueError: as :func:`logme`, or if a row is not a distribution.

    Example:
        >>> import tlhelpers as tl
        >>> labels = [0, 0, 1, 1]
        >>> sure, unsure = [[1, 0], [1, 0], [0, 1], [0, 1]], [[0.5, 0.5]] * 4
        >>> [round(tl.transferability.leep(p, labels), 2) for p in (sure, unsure)]
        [0.0, -0.69]
    """
    theta, y = _checked(source_probabilities, labels, what="source_probabilities")
    sums = theta.sum(axis=1)
    if theta.min() < -1e-6 or np.abs(sums - 1).max() > 1e-3:
        raise ValueError(
            f"each row of source_probabilities should be a distribution over the source's classes, "
            f"but values go from {theta.min():.3g} to {theta.max():.3g} and rows sum to "
            f"{sums.min():.3g} to {sums.max():.3g}. Take the softmax of the logits first."
        )
    theta = np.maximum(theta, 0.0)
    joint = np.eye(int(y.max()) + 1)[y].T @ theta  # (m, s)
    seen = joint.sum(axis=0)
    given = np.divide(joint, seen, out=np.zeros_like(joint), where=seen > 0)
    likelihood = (given[y] * theta).sum(axis=1) / theta.sum(axis=1)
    return float(np.log(np.clip(likelihood, np.finfo(float).tiny, 1.0)).mean())


def nce(source_labels: ArrayLike, labels: ArrayLike) -> float:
    r"""NCE: minus the conditional entropy of the target's labels given the source's.

    With the share :math:`\hat P(y, z)` of images that have the target label y and the source label
    z,

    .. math:: -H(Y \mid Z) = \sum_{y, z} \hat P(y, z) \log \frac{\hat P(y, z)}{\hat P(z)} .

    Where the images carry no source labels, the source network's predictions take their place.

    Source: Tran, Nguyen and Hassner (2019), Transferability and Hardness of Supervised
    Classification Tasks.

    Args:
        source_labels: (n,) integers, the source classes of the same images.
        labels: (n,) integers, of the target.

    Returns:
        nats a sample, at most 0.

    Raises:
        ValueError: if labels are not integers, lengths disagree, or there are fewer than two
            classes in ``labels``.

    Example:
        >>> import tlhelpers as tl
        >>> labels = [0, 0, 1, 1]
        >>> for source in ([5, 5, 7, 7], [5, 7, 5, 7]):
        ...     print(source, round(tl.transferability.nce(source, labels), 2))
        [5, 5, 7, 7] 0.0
        [5, 7, 5, 7] -0.69
    """
    y = _labels(labels)
    z = _labels(source_labels, what="source_labels", at_least=1)
    if len(y) != len(z):
        raise ValueError(
            f"source_labels and labels should be of the same images, found {len(z)} and {len(y)}."
        )
    joint = np.zeros((int(y.max()) + 1, int(z.max()) + 1))
    np.add.at(joint, (y, z), 1 / len(y))
    given = joint / joint.sum(axis=0)
    return float(special.xlogy(joint, given).sum())


# --- how good is an estimator? ------------------------------------------------------------


def weighted_tau(scores: ArrayLike, truth: ArrayLike) -> float:
    """Kendall's rank correlation in which the places at the top count most.

    Every pair of networks that the scores put in the right order adds to it, every other pair
    takes from it; the pair of the places r and s (from 0) weighs 1/(r + 1) + 1/(s + 1). It is
    the mean of two such figures, one with the places in the order of the scores, one in the
    order of the truth. This is ``scipy.stats.weightedtau`` as it comes.

    The top is where values are *large*. Errors or ranks in place of accuracies would give the
    worst networks the largest weight, without a warning.

    Source: Vigna (2015), A weighted correlation index for rankings with ties.

    Args:
        scores: (s,) of the source networks, higher is better.
        truth: (s,) accuracies of the same networks after fine-tuning.

    Returns:
        from -1 (the order is reversed) to 1.

    Raises:
        ValueError: if there are fewer than two networks, a value is not finite, or all scores
            are the same, so that there is no order.

    Example:
        >>> import tlhelpers as tl
        >>> truth = [0.9, 0.8, 0.7, 0.6]
        >>> for scores in ([4, 3, 2, 1], [3, 4, 2, 1], [4, 3, 1, 2]):
        ...     print(scores, round(tl.transferability.weighted_tau(scores, truth), 2))
        [4, 3, 2, 1] 1.0
        [3, 4, 2, 1] 0.52
        [4, 3, 1, 2] 0.81
    """
    a, b = _pair(scores, truth)
    for what, values in (("scores", a), ("truth", b)):
        if values.min() == values.max():
            raise ValueError(f"the {what} are all {values[0]:g}, so there is no order to compare.")
    return float(stats.weightedtau(a, b).statistic)


def regret(scores: ArrayLike, truth: ArrayLike) -> float:
    """What it costs to take the network with the highest score instead of the best one.

    Where several networks share the highest score, one of them is taken at random, and this is
    the mean.

    Args:
        scores: (s,) of the source networks, higher is better.
        truth: (s,) accuracies of the same networks after fine-tuning.

    Returns:
        accuracy lost, in the unit of ``truth``; 0 where the best network was picked.

    Raises:
        ValueError: if there are fewer than two networks, or a value is not finite.

    >>> regret([3.0, 1.0, 2.0], [0.75, 0.5, 1.0])
    0.25
    """
    a, b = _pair(scores, truth)
    return float(b.max() - b[a == a.max()].mean())


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Several estimators on the same occasions, see :func:`compare`.

    Attributes:
        values: for each estimator, (t, d): the metric on each of t targets and d draws.
        unit: how figures print, see :class:`~tlhelpers.evaluate.Estimate`.
        resamples: how many resamples the intervals come from.
        seed: of the resamples.
    """

    values: Mapping[str, np.ndarray]
    unit: str
    resamples: int
    seed: int

    def __repr__(self) -> str:
        return "; ".join(f"{name} {self.estimate(name)}" for name in self.values)

    def estimate(self, name: str) -> Estimate:
        """The mean over targets and draws, with its interval."""
        return self._summed_up(self._values(name))

    def difference(self, a: str, b: str) -> Estimate:
        """The mean of ``a`` minus ``b``, both on the same resamples of targets and draws."""
        return self._summed_up(self._values(a) - self._values(b))

    def to_frame(self, *, against: str | None = None) -> pd.DataFrame:
        """A row for each estimator: mean, low, high; with ``against`` the difference as well.

        The estimator named by ``against`` has a difference of 0 from itself.
        """
        rows = []
        for name in self.values:
            mine = self.estimate(name)
            row = {"estimator": name, "mean": mine.value, "low": mine.low, "high": mine.high}
            if against is not None:
                gap = self.difference(name, against)
                row |= {"difference": gap.value, "gap_low": gap.low, "gap_high": gap.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def _values(self, name: str) -> np.ndarray:
        if name not in self.values:
            raise KeyError(f"there is no estimator {name!r}; there are {', '.join(self.values)}.")
        return self.values[name]

    def _summed_up(self, table: np.ndarray) -> Estimate:
        counts = _resample(*table.shape, self.resamples, self.seed)
        low, high = np.quantile(
            np.einsum("rtd,td->r", counts, table), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
        )
        value = float(table.mean())
        return Estimate(value, min(float(low), value), max(float(high), value), unit=self.unit)


def compare(
    scores: Mapping[str, ArrayLike],
    truth: ArrayLike,
    *,
    metric: Metric = weighted_tau,
    unit: str = "",
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Judge estimators on many occasions, with intervals that allow for the choice of targets.

    An occasion is a target with a draw of its labelled images: somebody computes the scores on
    it and picks a network. The scores of each occasion are compared with the truth of its target,
    averaged over that target's draws. The bootstrap draws targets, and draws within each target,
    with replacement, the same for all estimators, so differences between estimators are paired.
    With a handful of targets such an interval is a rough guide, and rather too short.

    Args:
        scores: for each estimator, (t, d, s): on t targets, d draws, for s source networks.
            (t, 1, s) and (1, 1, s) will do for scores that do not depend on the draw or target.
        truth: (t, d, s) accuracies after fine-tuning.
        metric: :func:`weighted_tau`, :func:`regret`, or any function of (s,) scores and (s,)
            truths.
        unit: how figures print, see :class:`~tlhelpers.evaluate.Estimate`; ``"points"`` for
            :func:`regret`.
        resamples: of targets and draws.
        seed: of the resamples.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> import tlhelpers as tl
        >>> regret = tl.transferability.regret
        >>> truth = [[[0.9, 0.8, 0.7]], [[0.6, 0.7, 0.5]]]
        >>> scores = {"knows": truth, "always the first": [[[3, 2, 1]]]}
        >>> found = tl.transferability.compare(scores, truth, metric=regret, unit="points")
        >>> found.to_frame()[["estimator", "mean"]]
                  estimator  mean
        0             knows  0.00
        1  always the first  0.05
    """
    real = np.asarray(truth, dtype=np.float64)
    if real.ndim != 3:
        raise ValueError(
            f"truth should have the shape (targets, draws, sources), found {real.shape}."
        )
    if resamples < 1:
        raise ValueError(f"resamples should be 1 or more, found {resamples}.")
    values = {}
    for name, given in scores.items():
        try:
            table = np.broadcast_to(np.asarray(given, dtype=np.float64), real.shape)
        except ValueError as error:
            raise ValueError(
                f"the scores of {name!r} should have the shape {real.shape} of truth, or one that "
                f"broadcasts to it; found {np.shape(given)}."
            ) from error
        values[name] = np.array(
            [
                [metric(row, target) for row in rows]
                for rows, target in zip(table, real.mean(axis=1), strict=True)
            ]
        )
    return Comparison(values, unit, resamples, seed)


@functools.lru_cache(maxsize=8)
def _resample(targets: int, draws: int, resamples: int, seed: int) -> np.ndarray:
    """(r, t, d) weights that sum to 1: targets, then draws in each target drawn, with replacement.

    A target that is drawn twice gets fresh draws each time.
    """
    generator = np.random.default_rng([seed, targets, draws])
    weights = np.zeros((resamples, targets, draws))
    target = generator.integers(targets, size=(resamples, targets, 1))
    draw = generator.integers(draws, size=(resamples, targets, draws))
    np.add.at(weights, (np.arange(resamples)[:, None, None], target, draw), 1 / (targets * draws))
    weights.setflags(write=False)
    return weights


# --- what others have measured ------------------------------------------------------------


def published() -> pd.DataFrame:
    """Scores and fine-tuned accuracies of ten torchvision models on eight data sets, as printed.

    From the file ``examples/model_selection/README.md`` of the Transfer-Learning-Library (Jiang,
    Chen, Fu and Long, 2020; its revision 56ccfd7). On DTD its column of NCE repeats that of LogME.

    Returns:
        80 rows: ``data``, ``model`` (torchvision's name), ``finetuned`` (per cent), ``h_score``,
        ``leep``, ``logme``, ``nce``.

    Example:
        >>> import tlhelpers as tl
        >>> table = tl.transferability.published()
        >>> table.shape
        (80, 7)
        >>> table.loc[table.groupby("data").finetuned.idxmax(), ["data", "model"]].head(3)
                data         model
        1   Aircraft  inception_v3
        24   CIFAR10     resnet152
        34  CIFAR100     resnet152
    """
    path = resources.files("tlhelpers") / "data" / "tables" / "model_ranking.csv"
    with path.open(encoding="utf-8") as file:
        return pd.read_csv(file)


# --- ImageNet's head on photographs -------------------------------------------------------


def imagenet_head(
    data: Dataset,
    backbone: Backbone,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = 5,
    run: Run | None = None,
) -> Record:
    """LEEP and NCE of a backbone through its own 1,000 classes, on few and on many labels.

    A compressed bank keeps no logits, and these two estimators need them: hence a record.

    Args:
        data: photographs; only their training part is used.
        backbone: a backbone with ImageNet's head.
        shots: the numbers of training images a class.
        draws: how many draws of them, with the seeds 0, 1, ...; all training images are taken
            once.
        run: None means the best device.

    Returns:
        the record ``dogs/transferability_<backbone>``: a row of the curve for each number of
        images a class and each draw, with ``leep`` and ``nce`` in nats.
    """
    run = runtime.default(run)
    origin = records.provenance(imagenet_head, command=COMMAND)
    start = time.perf_counter()
    logits = extract(data, backbone, at=LOGITS, run=run)
    curve, values = [], {}
    whole = int(logits.train.y.bincount().min())
    for k in shots:
        repeats = range(draws) if k < whole else range(1)
        for draw in repeats:
            train = logits.few(k, draw=draw).train
            theta = train.x.double().softmax(dim=1)
            curve.append(
                {
                    "k": k,
                    "draw": draw,
                    "leep": leep(theta, train.y),
                    "nce": nce(theta.argmax(dim=1), train.y),
                }
            )
        for name in ("leep", "nce"):
            values[f"{name}_nats_k{k}"] = [row[name] for row in curve if row["k"] == k]
    estimates = {
        key: mean_interval(found, unit="nats") for key, found in values.items() if len(found) > 1
    }
    return Record(
        name=f"dogs/transferability_{backbone.name}",
        tier=run.tier,
        split=data.split_name,
        input=f"{backbone.name}, {backbone.weights}, {LOGITS}, training part",
        seeds=tuple(range(draws)),
        curve=tuple(curve),
        result={key: float(np.mean(found)) for key, found in values.items()},
        interval={key: [estimate.low, estimate.high] for key, estimate in estimates.items()},
        interval_over=f"95 %, t, over {draws} draws of the images" if estimates else "",
        wall_seconds=time.perf_counter() - start,
        **origin,
    )


# --- input --------------------------------------------------------------------------------


def _checked(
    features: ArrayLike, labels: ArrayLike, *, what: str = "features"
) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) float64 and (n,) labels 0..m - 1, each class with an image."""
    x = np.asarray(_plain(features), dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{what} should have the shape (n, d), found {x.shape}.")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).any(axis=1).sum())
        raise ValueError(
            f"{what} should be finite, but {bad} of {len(x)} rows hold NaN or infinity. Compute "
            f"them again, in float32 and with the network in evaluation mode."
        )
    y = _labels(labels)
    if len(y) != len(x):
        raise ValueError(f"{what} and labels should be of the same images: {len(x)} and {len(y)}.")
    return x, y


def _labels(labels: ArrayLike, *, what: str = "labels", at_least: int = 2) -> np.ndarray:
    """(n,) integers 0..m - 1 without gaps."""
    y = np.asarray(_plain(labels))
    if y.ndim != 1:
        raise ValueError(f"{what} should have the shape (n,), found {y.shape}.")
    if not len(y):
        raise ValueError(f"{what} should be of at least one image, found none.")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"{what} should be integers, found {y.dtype}. Class numbers, not one-hot rows, names "
            f"or scores, are wanted."
        )
    present, numbered = np.unique(y, return_inverse=True)
    if len(present) < at_least:
        raise ValueError(
            f"{what} should have {at_least} classes or more, found {len(present)}: with a single "
            f"class there is nothing to tell apart."
        )
    return numbered


def _plain(values: ArrayLike) -> ArrayLike:
    """A tensor as an array; anything else as it is."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values


def _pair(scores: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    # Copies: a view may be read-only, which older versions of SciPy refuse.
    a, b = (np.array(_plain(values), dtype=np.float64) for values in (scores, truth))
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(
            f"scores and truth should each hold a number for the same two or more networks, found "
            f"the shapes {a.shape} and {b.shape}."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("scores and truth should be finite, found NaN or infinity among them.")
    return a, b
