"""Honest reports: accuracy, calibration and confusions on a test split, each with an interval.

:func:`report` is the one way to the labels of a test split, and counts as one reading of it;
:func:`grid` reads it once for several predictors that were fixed beforehand. Choices are made
with :func:`validate`, which refuses the test split. :func:`difference` compares two reports
on the same images, and :func:`mean_interval` sums up repeated draws or seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import pandas as pd
import torch
from scipy import sparse, stats
from torch import Tensor, nn

from tlhelpers import _inference
from tlhelpers.splits import Split, TestSplit

# The metrics of a report, and the unit in which each is printed.
_UNITS = {
    "top1": "%",
    "top5": "%",
    "balanced_accuracy": "%",
    "macro_f1": "%",
    "auc": "",
    "nll": "nats",
    "ece": "%",
}
METRICS = tuple(_UNITS)
# Not means over images, hence biased, and on resamples biased once more: see `report`.
_REFLECTED = ("macro_f1", "ece")

_LEVEL = 0.95
_BINS = 15
_BLOCK = 250  # resamples that are turned into floating point at a time
_IMAGE_BATCH = 64
_FEATURE_BATCH = 4096

Key = TypeVar("Key", bound=Hashable)


@runtime_checkable
class Classifier(Protocol):
    """A fitted scikit-learn classifier."""

    def predict_proba(self, x: Any) -> Any:
        """The class probabilities (n, m) of ``x``."""


Predictor = Callable[[Any], Any] | Classifier


@dataclass(frozen=True)
class Estimate:
    """A number with an interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        unit: ``"%"`` for a proportion, ``"points"`` for a difference of two, ``"nats"`` or
            nothing for any other number. Proportions are kept in 0..1 and printed in per cent.
        level: the share of intervals made in this way that hold the truth.

    >>> Estimate(0.8237, 0.814, 0.834)
    82.4 % [81.4, 83.4]
    >>> Estimate(-0.012, -0.021, -0.003, unit="points")
    -1.2 points [-2.1, -0.3]
    """

    value: float
    low: float
    high: float
    unit: str = "%"
    level: float = _LEVEL

    def __str__(self) -> str:
        if self.unit == "%":
            return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        if self.unit == "points":
            value, low, high = 100 * self.value, 100 * self.low, 100 * self.high
            return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    __repr__ = __str__

    def to_frame(self) -> pd.DataFrame:
        """One row: value, low, high, unit, level."""
        return pd.DataFrame([dataclasses.asdict(self)])


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a predictor did to each of n images, in the order of their ids.

    Attributes:
        ids: n names, sorted, so that two samples of the same images match row by row.
        true: (n,) int64, the class of each image.
        predicted: (n,) int64, the class with the highest score.
        confidence: (n,) the probability of the predicted class.
        loss: (n,) the negative log-likelihood of the true class, in nats.
        rank: (n,) how many classes scored higher than the true one.
        classes: the number of classes, m.
        margin: (n,) the score of the second class minus that of the first, its log odds, where
            there are two classes; None otherwise.

    Example:
        >>> import tlhelpers as tl
        >>> dogs = tl.features.load("stanford_dogs/mobilenet_v2")
        >>> pair = tl.datasets.with_classes(dogs, ["Malamute", "Siberian husky"])
        >>> report = tl.evaluate.report(tl.probe.fit(pair, ridge=0.1), pair.test, name="probe")
        >>> report.outcomes
        75 of 96 images right, 2 classes
    """

    ids: tuple[str, ...]
    true: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    rank: np.ndarray
    classes: int
    margin: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{int(self.correct.sum()):,} of {len(self):,} images right, {self.classes} classes"

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool, whether each image was classified right."""
        return self.rank == 0

    def to_frame(self) -> pd.DataFrame:
        """A row for each image: id, true, predicted, correct, confidence, loss, rank."""
        columns = ("true", "predicted", "correct", "confidence", "loss", "rank")
        return pd.DataFrame({"id": self.ids} | {name: getattr(self, name) for name in columns})


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What a predictor does on a test split; see :func:`report` for how it is measured.

    Attributes:
        name: the name of the reading.
        classes: m class names.
        split_name: how the split was made.
        top1: share of images whose class got the highest score.
        top5: share whose class is among the five highest scores; None for five classes or
            fewer, where it would say nothing.
        balanced_accuracy: mean over classes of recall; unlike accuracy it does not depend on
            how often each class occurs.
        macro_f1: mean over classes of the harmonic mean of precision and recall.
        auc: with two classes the area under the ROC curve: the share of pairs of an image of the
            second class and one of the first in which the former has the higher margin, ties
            counting one half. No threshold enters. None for more classes, and where the test
            images are all of one class.
        nll: mean negative log-likelihood of the true class, in nats.
        ece: expected calibration error over 15 bins.
        ece_floor: the ECE that a perfectly calibrated predictor with these confidences shows
            on average on so few images.
        readings: the reasons of all readings of the test split up to this one.
        outcomes: what happened to each image, see :class:`Outcomes`.
        resamples: the number of bootstrap resamples behind each interval.
        seed: the seed of the resamples.
        groups: where whole groups of images were drawn, (n,) int64, the group of each image, from
            0; None where images were drawn one by one.
    """

    name: str
    classes: tuple[str, ...]
    split_name: str
    top1: Estimate
    top5: Estimate | None
    balanced_accuracy: Estimate
    macro_f1: Estimate
    auc: Estimate | None
    nll: Estimate
    ece: Estimate
    ece_floor: float
    readings: tuple[str, ...]
    outcomes: Outcomes
    resamples: int
    seed: int
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def n(self) -> int:
        """The number of test images."""
        return len(self.outcomes)

    @property
    def ids(self) -> tuple[str, ...]:
        """n names of the test images, sorted; the arrays below are in this order."""
        return self.outcomes.ids

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool, whether each image was classified right."""
        return self.outcomes.correct

    @property
    def confidence(self) -> np.ndarray:
        """(n,) the probability of the predicted class of each image."""
        return self.outcomes.confidence

    def __repr__(self) -> str:
        more = "" if self.top5 is None else f"top-5 {self.top5}, "
        if self.auc is not None:
            more = f"balanced accuracy {self.balanced_accuracy}, AUC {self.auc}, "
        drawn = "" if self.groups is None else f" in {int(self.groups.max()) + 1:,} groups"
        return (
            f"{self.name} (split {self.split_name!r}, {len(self):,} test images{drawn}): "
            f"top-1 {self.top1}, {more}NLL {self.nll}, ECE {self.ece} "
            f"(noise floor {100 * self.ece_floor:.1f} %); {_history(self.readings)}"
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each metric: metric, value, low, high."""
        rows = [(metric, getattr(self, metric)) for metric in METRICS]
        return pd.DataFrame(
            [(metric, e.value, e.low, e.high) for metric, e in rows if e is not None],
            columns=["metric", "value", "low", "high"],
        )

    def per_class(self) -> pd.DataFrame:
        """A row for each class: n, and recall, precision and F1 with their intervals.

        Recall is the accuracy on the images of the class. Precision is NaN where the class
        was never predicted, and recall where it has no image. With few images a class the
        intervals are wide and rough; where all images are right, the bootstrap cannot see
        beyond them and the interval has no width.
        """
        columns: dict[str, Any] = {"class": self.classes}
        whole = _class_counts(self.outcomes, _once(len(self)))
        blocks = [
            _class_counts(self.outcomes, weights)
            for weights in _draw(len(self), self.resamples, self.seed, self.groups)
        ]
        drawn = [np.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True)]
        columns["n"] = whole[1][:, 0].astype(np.int64)
        for name, ratio in (("recall", _recall), ("precision", _precision), ("f1", _f1)):
            columns[name] = ratio(*whole)[:, 0]
            columns[f"{name}_low"], columns[f"{name}_high"] = _nan_quantiles(ratio(*drawn))
        return pd.DataFrame(columns)

    def confused(self, n: int | None = 10, *, symmetric: bool = False) -> pd.DataFrame:
        """The most frequent confusions, most frequent first.

        Args:
            n: the number of rows; None for all confusions that happened.
            symmetric: count a pair of classes once, in both directions together.

        Returns:
            Columns true, predicted, count, and share of the true class's images; with
            ``symmetric``: first, second, count, and share of the two classes' images.
        """
        m = len(self.classes)
        table = np.zeros((m, m), dtype=np.int64)
        np.add.at(table, (self.outcomes.true, self.outcomes.predicted), 1)
        sizes = table.sum(axis=1)
        np.fill_diagonal(table, 0)
        names = ["true", "predicted", "count", "share"]
        totals = np.repeat(sizes[:, None], m, axis=1)
        if symmetric:
            table = np.triu(table + table.T)
            totals = sizes[:, None] + sizes[None, :]
            names[:2] = ["first", "second"]
        rows, columns = np.nonzero(table)
        counts = table[rows, columns]
        shares = counts / totals[rows, columns].clip(1)
        order = np.lexsort((columns, rows, -shares, -counts))[:n]
        return pd.DataFrame(
            {
                names[0]: [self.classes[i] for i in rows[order]],
                names[1]: [self.classes[i] for i in columns[order]],
                names[2]: counts[order],
                names[3]: shares[order],
            }
        )

    def reliability(self, bins: int = _BINS) -> pd.DataFrame:
        """Accuracy against confidence, in equal-width bins of the confidence.

        Returns:
            A row for each bin (low, high]: low, high, confidence (mean), accuracy, count, and
            accuracy_low and accuracy_high, the 95 % interval of the accuracy (Wilson 1927); what
            is measured is NaN in an empty bin.
        """
        if bins < 1:
            raise ValueError(f"reliability needs 1 bin or more, found {bins}.")
        where = _bin(self.outcomes.confidence, bins)
        count = np.bincount(where, minlength=bins)
        filled = np.where(count > 0, count, np.nan)
        edges = np.linspace(0, 1, bins + 1)
        right = np.bincount(where, self.outcomes.correct, bins)
        ends = [_wilson(int(k), int(n)) for k, n in zip(right, count, strict=True)]
        return pd.DataFrame(
            {
                "low": edges[:-1],
                "high": edges[1:],
                "confidence": np.bincount(where, self.outcomes.confidence, bins) / filled,
                "accuracy": right / filled,
                "count": count,
                "accuracy_low": [low for low, _ in ends],
                "accuracy_high": [high for _, high in ends],
            }
        )


def report(
    predictor: Predictor,
    test: TestSplit,
    *,
    name: str,
    resamples: int = 1000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
) -> Report:
    """Measure a predictor on a test split; one reading of it, logged as ``name``.

    A predictor is a callable that takes what ``test.x`` holds and returns (n, m) scores whose
    softmax are the class probabilities (a ``Probe``, a function, a network), or a scikit-learn
    classifier with ``predict_proba``. A network is called in batches, in evaluation mode and
    without gradients, and gets its modes back; so is any callable on images. Scores are
    computed and checked before the split is opened: a predictor that fails costs no reading.

    **Intervals.** 95 % intervals from the bootstrap: the test images are drawn with
    replacement, uniformly, ``resamples`` times, and the percentiles 2.5 and 97.5 of a metric
    over the resamples are its interval (Efron and Tibshirani 1993). It covers the choice of
    test images, not that of training images or seeds; for these see :func:`mean_interval`. All
    reports with the same ids, ``resamples`` and ``seed`` share the resamples. Macro-F1 and ECE
    are no means over images: chance moves them down and up on average, and on a resample it
    does so once more. Their percentiles are therefore reflected in the estimate (the
    basic bootstrap; Davison and Hinkley 1997), and the interval is widened to hold it.

    **Groups.** Five photographs of one patient say less than photographs of five patients. With
    ``groups`` whole groups are drawn instead of images, so that the interval covers the choice of
    patients (the cluster bootstrap; Davison and Hinkley 1997). With a dozen groups or fewer it is
    too narrow all the same.

    **Calibration.** The ECE (Naeini et al. 2015; Guo et al. 2017) is the mean over the images of
    ``|accuracy - confidence|`` of their bin, of 15 equal-width bins of the top-1 confidence. Chance
    alone keeps it above 0, see ``ece_floor``: its interval starts at 0 unless the ECE is above
    97.5 % of those that a calibrated predictor would show. In simulations this interval covers
    the truth 75 to 98 times in 100, least where the truth is about the floor; the
    percentile interval never does for a calibrated predictor.

    Args:
        predictor: see above.
        test: the test split of a data set.
        name: what is being read, for the log and the report; say which predictor and data.
        resamples: the number of bootstrap resamples.
        seed: the seed of the resamples.
        groups: the group of each test image, by its id; None where each image stands for itself.

    Raises:
        TypeError: if the predictor is none, or returns no array.
        ValueError: if its scores have another shape than (n, m), are NaN, or look like
            probabilities where scores are due; if the split or the name is empty; if a test
            image has no group, or all are of one.

    Example:
        >>> import tlhelpers as tl
        >>> dogs = tl.features.load("stanford_dogs/mobilenet_v2")
        >>> pair = tl.datasets.with_classes(dogs, ["Malamute", "Siberian husky"])
        >>> report = tl.evaluate.report(tl.probe.fit(pair, ridge=0.1), pair.test, name="probe")
        >>> report.top1
        78.1 % [69.8, 86.5]
        >>> report.confused().round(2)
                     true       predicted  count  share
        0        Malamute  Siberian husky     14   0.29
        1  Siberian husky        Malamute      7   0.15
        >>> pair.test.readings
        ('probe',)
    """
    whole = _group_numbers(test, groups)
    scores, opened = _read({name: predictor}, test, name, resamples)
    return _report(name, scores[name], opened, test, resamples, seed, whole)


def grid(
    predictors: Mapping[Key, Predictor],
    test: TestSplit,
    *,
    name: str,
    resamples: int = 1000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
) -> dict[Key, Report]:
    """Measure predictors that were fixed beforehand: together one reading of the test split.

    A learning curve is one reading, provided that nothing about its points is chosen after
    seeing others. What :func:`report` says of predictors, intervals, groups and errors holds here.

    Returns:
        A report for each key, in the order given, named ``"{name}: {key}"``.

    Example:
        >>> import tlhelpers as tl
        >>> dogs = tl.features.load("stanford_dogs/mobilenet_v2")
        >>> pair = tl.datasets.with_classes(dogs, ["Malamute", "Siberian husky"])
        >>> probes = {k: tl.probe.fit(pair.few(k, draw=0), ridge=0.1) for k in (1, 10)}
        >>> reports = tl.evaluate.grid(probes, pair.test, name="few labels")
        >>> for k, report in reports.items():
        ...     print(k, report.top1)
        1 58.3 % [49.0, 67.7]
        10 74.0 % [65.6, 82.3]
        >>> pair.test.readings
        ('few labels',)
    """
    whole = _group_numbers(test, groups)
    scores, opened = _read(predictors, test, name, resamples)
    return {
        key: _report(f"{name}: {key}", scores[key], opened, test, resamples, seed, whole)
        for key in predictors
    }


def validate(
    predictor: Predictor,
    split: Split,
    *,
    metric: str = "top1",
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The accuracy of a predictor on a labelled split, with a bootstrap interval.

    For choices, on validation, and for looking at the training part. Predictors and intervals
    are those of :func:`report`.

    Args:
        predictor: see :func:`report`.
        split: the train or the validation split.
        metric: accuracy, or another one of ``METRICS``.
        resamples: the number of bootstrap resamples.
        seed: the seed of the resamples.

    Raises:
        ValueError: if the split is the test split, or empty; if the metric is not defined on it;
            and as :func:`report`.

    Example:
        >>> import tlhelpers as tl
        >>> dogs = tl.features.load("stanford_dogs/mobilenet_v2")
        >>> pair = tl.datasets.with_classes(dogs, ["Malamute", "Siberian husky"])
        >>> for k in (1, 10):
        ...     tl.evaluate.validate(tl.probe.fit(pair.few(k, draw=0), ridge=0.1), pair.validation)
        50.0 % [30.0, 70.0]
        90.0 % [75.0, 100.0]
    """
    _check_metric(metric)
    if split.name == "test":
        raise ValueError(
            "validate is for the train and validation splits; what is chosen on the test split "
            "is no longer tested by it. For a result use evaluate.report(predictor, data.test)."
        )
    _check_resamples(resamples)
    scores = _scores(predictor, split, None)
    if scores.shape[1] <= int(split.y.max()):
        raise ValueError(
            f"the predictor has {scores.shape[1]} classes, but the {split.name} split has labels "
            f"up to {int(split.y.max())}. Fit it on the classes of this data set."
        )
    outcomes = _outcomes(scores, split)
    if metric not in _defined(outcomes):
        raise ValueError(
            f"{metric} is not defined on the {split.name} split: it has {scores.shape[1]} classes, "
            f"of which {len(np.unique(outcomes.true))} occur. top5 needs more than 5, auc needs 2 "
            f"that both occur."
        )
    value = float(_metrics(outcomes, _once(len(outcomes)), [metric])[metric][0])
    drawn = _replicates(outcomes, resamples, seed, [metric])[metric]
    return _estimate(metric, value, drawn)


def difference(a: Report, b: Report, metric: str = "top1") -> Estimate:
    """``a`` minus ``b``, with a paired bootstrap interval.

    Both are measured on the same resamples, so what makes a test image hard for both cancels,
    and the interval is narrower than the two reports' intervals suggest. It excludes 0 where
    the test images suffice to tell the two predictors apart.

    Args:
        a: a report.
        b: another one on the same test images, in any order.
        metric: one of ``METRICS``.

    Raises:
        ValueError: if the reports are not of the same test images and resamples, or do not
            both hold the metric.

    Example:
        >>> import tlhelpers as tl
        >>> dogs = tl.features.load("stanford_dogs/mobilenet_v2")
        >>> pair = tl.datasets.with_classes(dogs, ["Malamute", "Siberian husky"])
        >>> probes = {k: tl.probe.fit(pair.few(k, draw=0), ridge=0.1) for k in (10, 90)}
        >>> reports = tl.evaluate.grid(probes, pair.test, name="few labels")
        >>> tl.evaluate.difference(reports[90], reports[10])
        +4.2 points [-3.1, +13.5]
    """
    _check_metric(metric)
    if sorted(a.ids) != sorted(b.ids):
        shared = len(set(a.ids) & set(b.ids))
        raise ValueError(
            f"a paired difference needs the same test images: {a.name!r} has {len(a):,}, "
            f"{b.name!r} has {len(b):,}, and they share {shared:,}. Make both reports on one "
            f"test split."
        )
    if (a.outcomes.true != b.outcomes.true).any():
        raise ValueError(
            f"{a.name!r} and {b.name!r} have the same test images with different labels. Make "
            f"both reports on one test split."
        )
    if (a.resamples, a.seed) != (b.resamples, b.seed):
        raise ValueError(
            f"a paired difference needs the same resamples: {a.name!r} has {a.resamples} with "
            f"seed {a.seed}, {b.name!r} has {b.resamples} with seed {b.seed}."
        )
    drawn_alike = (a.groups is None and b.groups is None) or (
        a.groups is not None and b.groups is not None and np.array_equal(a.groups, b.groups)
    )
    if not drawn_alike:
        raise ValueError(
            f"a paired difference needs the same resamples, but {a.name!r} and {b.name!r} were "
            f"made with different groups. Give both reports the same groups."
        )
    first, second = getattr(a, metric), getattr(b, metric)
    if first is None or second is None:
        raise ValueError(
            f"the reports hold no {metric}, since there are {len(a.classes)} classes: top5 needs "
            f"more than 5, and auc 2 that both occur."
        )
    value = first.value - second.value
    drawn = [
        _replicates(r.outcomes, r.resamples, r.seed, [metric], r.groups)[metric] for r in (a, b)
    ]
    low, high = _interval(metric, value, drawn[0] - drawn[1])
    unit = "points" if _UNITS[metric] == "%" else _UNITS[metric]
    return Estimate(value, low, high, unit=unit)


def _check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, found {metric!r}.")


def mean_interval(
    values: Sequence[float] | np.ndarray, *, level: float = _LEVEL, unit: str = "%"
) -> Estimate:
    """The mean of independent repetitions (draws, seeds) with Student's t interval.

    Args:
        values: two or more numbers; proportions are given in 0..1.
        level: the coverage wanted, between 0 and 1.
        unit: how it prints, see :class:`Estimate`.

    Raises:
        ValueError: if there are fewer than two values, one is not finite, proportions lie
            outside 0..1, or the level is not between 0 and 1.

    >>> mean_interval([0.80, 0.82, 0.81])
    81.0 % [78.5, 83.5]
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    if len(x) < 2:
        raise ValueError(
            f"an interval over repetitions needs 2 values or more, found {len(x)}. Repeat with "
            f"other draws or seeds."
        )
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {len(x)} values are not finite.")
    if unit == "%" and not ((x >= 0) & (x <= 1)).all():
        raise ValueError(
            f"proportions lie in 0..1, found values from {x.min():g} to {x.max():g}. Divide by "
            f'100, or give another unit: "points", "nats" or "".'
        )
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}.")
    error = x.std(ddof=1) / np.sqrt(len(x))
    half = float(stats.t.ppf((1 + level) / 2, len(x) - 1) * error)
    mean = float(x.mean())
    return Estimate(mean, mean - half, mean + half, unit=unit, level=level)


def _group_numbers(test: TestSplit, groups: Mapping[str, str] | None) -> np.ndarray | None:
    """(n,) int64: the group of each test image, in the order of their sorted ids."""
    if groups is None or not isinstance(test, TestSplit):
        return None
    if missing := [identity for identity in test.ids if identity not in groups]:
        raise ValueError(
            f"each test image needs a group, but {len(missing):,} of {len(test):,} have none "
            f"(first: {missing[0]}). Name their groups, by id."
        )
    named = np.array([str(groups[identity]) for identity in sorted(test.ids)])
    found, numbers = np.unique(named, return_inverse=True)
    if len(found) < 2:
        raise ValueError(
            f"all {len(test):,} test images are of one group ({found[0]!r}), from which no "
            f"interval over groups can be made. Test on two groups or more."
        )
    return numbers.astype(np.int64)


def _read(
    predictors: Mapping[Key, Predictor], test: TestSplit, name: str, resamples: int
) -> tuple[dict[Key, np.ndarray], Split]:
    """The scores of each predictor, and then the test split, opened once."""
    if not isinstance(test, TestSplit):
        raise TypeError(
            f"a report needs the test split of a data set, data.test, found "
            f"{type(test).__name__}. For a train or validation split use evaluate.validate."
        )
    if not predictors:
        raise ValueError("a grid needs at least one predictor, found none.")
    if not name.strip():
        raise ValueError("a reading of the test split needs a name, found an empty one.")
    _check_resamples(resamples)
    unlabelled = Split(test.name, test.x, torch.zeros(len(test), dtype=torch.int64), test.ids)
    m = len(test.classes)
    scores = {key: _scores(predictor, unlabelled, m) for key, predictor in predictors.items()}
    return scores, test.open(reason=name)


def _check_resamples(resamples: int) -> None:
    if resamples < 2:
        raise ValueError(f"a bootstrap interval needs 2 resamples or more, found {resamples}.")


def _scores(predictor: Predictor, split: Split, m: int | None) -> np.ndarray:
    """(n, m) scores whose softmax are the class probabilities, checked."""
    if len(split) == 0:
        raise ValueError(f"the {split.name} split is empty: there is nothing to measure on.")
    if callable(predictor):
        scores = _as_array(_call(predictor, split))
        _check_scores(scores, split, m, "scores")
        if _are_probabilities(scores):
            raise ValueError(
                "the predictor returned probabilities (no number is negative and every row "
                "adds up to 1), but scores are due, whose softmax are the probabilities. Return "
                "the logits, or the logarithm of the probabilities."
            )
        return scores
    if isinstance(predictor, Classifier):
        return _scores_of_classifier(predictor, split, m)
    raise TypeError(
        f"a predictor is a callable that returns scores (n, m), or a scikit-learn classifier with "
        f"predict_proba; found {type(predictor).__name__}."
    )


def _call(predictor: Callable[[Any], Any], split: Split) -> Any:
    """The scores of a callable; in batches where all at once may not fit into memory."""
    if isinstance(predictor, nn.Module):
        return _call_module(predictor, split)
    if isinstance(split.x, Tensor) and split.x.ndim == 2:
        with torch.no_grad():
            return predictor(split.x)
    with torch.no_grad():
        return np.concatenate([_as_array(predictor(x)) for x, _ in _batches(split)])


def _call_module(network: nn.Module, split: Split) -> np.ndarray:
    with _inference.evaluating(network) as device:
        return np.concatenate([_as_array(network(x.to(device))) for x, _ in _batches(split)])


def _batches(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    is_features = isinstance(split.x, Tensor) and split.x.ndim == 2
    return split.batches(_FEATURE_BATCH if is_features else _IMAGE_BATCH)


def _as_array(scores: Any) -> np.ndarray:
    if isinstance(scores, Tensor):
        exact = scores.dtype if scores.dtype == torch.float64 else torch.float32
        return scores.detach().to("cpu", exact).numpy()
    if isinstance(scores, np.ndarray) and scores.dtype.kind in "fiu":
        return scores if scores.dtype == np.float32 else scores.astype(np.float64)
    raise TypeError(
        f"a predictor should return a tensor or an array of scores (n, m), found "
        f"{type(scores).__name__}."
    )


def _check_scores(scores: np.ndarray, split: Split, m: int | None, what: str) -> None:
    n = len(split)
    if scores.ndim != 2 or len(scores) != n:
        raise ValueError(
            f"a predictor should return {what} of shape ({n}, {m or 'm'}) for {n} examples, "
            f"found {scores.shape}."
        )
    if m is not None and scores.shape[1] != m:
        raise ValueError(
            f"the predictor returned {what} for {scores.shape[1]} classes, but the {split.name} "
            f"split has {m}. Give a predictor of these {m} classes: choose their columns, or fit "
            f"a head on them."
        )
    # A score of minus infinity is a probability of 0; a row of nothing else is none.
    bad = np.isnan(scores).any(axis=1) | (scores.max(axis=1, initial=-np.inf) == np.inf)
    bad |= np.isneginf(scores).all(axis=1)
    if bad.any():
        rows = np.flatnonzero(bad)
        first = ", ".join(split.ids[i] for i in rows[:3])
        raise ValueError(
            f"the predictor returned NaN or infinite {what} for {len(rows):,} of {n:,} examples "
            f"(first: {first}). Look at these examples and at the predictor's weights."
        )


def _are_probabilities(scores: np.ndarray) -> bool:
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-4))


def _scores_of_classifier(classifier: Classifier, split: Split, m: int | None) -> np.ndarray:
    name = type(classifier).__name__
    if not isinstance(split.x, Tensor):
        raise TypeError(
            f"{name} takes features, an (n, d) array, but the {split.name} split holds "
            f"{type(split.x).__name__}. Call features.extract(data, backbone) first."
        )
    given = np.asarray(classifier.predict_proba(_as_array(split.x)), dtype=np.float64)
    classes = np.asarray(getattr(classifier, "classes_", np.arange(given.shape[-1])))
    limit = m if m is not None else 2**31
    if classes.dtype.kind not in "iu" or not ((classes >= 0) & (classes < limit)).all():
        raise ValueError(
            f"{name} was fitted on the classes {classes[:3].tolist()}…, but labels are the numbers "
            f"0..{'m - 1' if m is None else m - 1}. Fit it on split.y."
        )
    if given.ndim == 2 and given.shape[1] == len(classes):
        # A class that the classifier never met has probability 0.
        full = np.zeros((len(given), m or int(classes.max()) + 1))
        full[:, classes] = given
        given = full
    _check_scores(given, split, m, "probabilities")
    if not _are_probabilities(given):
        raise ValueError(
            f"predict_proba of {name} should return rows of probabilities that add up to 1; found "
            f"sums from {given.sum(axis=1).min():.3g} to {given.sum(axis=1).max():.3g}."
        )
    with np.errstate(divide="ignore"):
        return np.log(given)


def _outcomes(scores: np.ndarray, split: Split) -> Outcomes:
    """Scores and labels, joined and brought into the order of the ids."""
    order = np.argsort(np.array(split.ids), kind="stable")
    scores, true = scores[order], split.y.numpy()[order]
    rows = np.arange(len(true))
    log_p = torch.log_softmax(torch.from_numpy(scores).double(), dim=1).numpy()
    predicted = scores.argmax(axis=1)
    # Of equal scores the first counts as the highest, as it does for argmax.
    own = scores[rows, true][:, None]
    tied_before = (scores == own) & (np.arange(scores.shape[1]) < true[:, None])
    return Outcomes(
        ids=tuple(split.ids[i] for i in order),
        true=true,
        predicted=predicted,
        confidence=np.exp(log_p[rows, predicted]),
        # As in scikit-learn, a probability of 0 counts as the smallest step above it.
        loss=-np.maximum(log_p[rows, true], np.log(np.finfo(np.float64).eps)),
        rank=((scores > own) | tied_before).sum(axis=1),
        classes=scores.shape[1],
        margin=_margin(scores),
    )


def _margin(scores: np.ndarray) -> np.ndarray | None:
    """(n,) log odds of the second of two classes; a probability of 0 is the lowest or highest."""
    if scores.shape[1] != 2:
        return None
    return scores[:, 1].astype(np.float64) - scores[:, 0]


def _defined(outcomes: Outcomes) -> list[str]:
    """The metrics that these outcomes have."""
    missing = set()
    if outcomes.classes <= 5:
        missing.add("top5")
    if outcomes.margin is None or len(np.unique(outcomes.true)) < 2:
        missing.add("auc")
    return [metric for metric in METRICS if metric not in missing]


def _report(
    name: str,
    scores: np.ndarray,
    opened: Split,
    test: TestSplit,
    resamples: int,
    seed: int,
    groups: np.ndarray | None,
) -> Report:
    outcomes = _outcomes(scores, opened)
    wanted = _defined(outcomes)
    values = _metrics(outcomes, _once(len(outcomes)), wanted)
    estimates = {
        metric: _estimate(metric, float(values[metric][0]), drawn)
        for metric, drawn in _replicates(outcomes, resamples, seed, wanted, groups).items()
    }
    floor, ceiling = _calibrated_ece(outcomes, resamples, seed)
    ece = estimates["ece"]
    if ece.value <= ceiling:
        ece = dataclasses.replace(ece, low=0.0)
    return Report(
        name=name,
        classes=test.classes,
        split_name=test.split_name,
        top1=estimates["top1"],
        top5=estimates.get("top5"),
        balanced_accuracy=estimates["balanced_accuracy"],
        macro_f1=estimates["macro_f1"],
        auc=estimates.get("auc"),
        nll=estimates["nll"],
        ece=ece,
        ece_floor=floor,
        readings=test.readings,
        outcomes=outcomes,
        resamples=resamples,
        seed=seed,
        groups=groups,
    )


def _estimate(metric: str, value: float, drawn: np.ndarray) -> Estimate:
    low, high = _interval(metric, value, drawn)
    if metric != "nll":  # all others are shares
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(value, low, high, unit=_UNITS[metric])


def _interval(metric: str, value: float, drawn: np.ndarray) -> tuple[float, float]:
    # A resample without one of two classes has no AUC.
    low, high = _quantiles(drawn[~np.isnan(drawn)])
    if metric in _REFLECTED:
        low, high = 2 * value - high, 2 * value - low
    return min(low, value), max(high, value)


def _metrics(
    outcomes: Outcomes, weights: np.ndarray, wanted: Sequence[str]
) -> dict[str, np.ndarray]:
    """(R,) values of each wanted metric, for R resamples.

    All of them are functions of sums over images, so a resample enters as the number of times
    that it holds each image: ``weights`` (n, R).
    """
    n = weights.sum(axis=0)  # the number of images, also where groups of unequal size are drawn
    found: dict[str, np.ndarray] = {}
    per_image = {"top1": outcomes.rank == 0, "top5": outcomes.rank < 5, "nll": outcomes.loss}
    for name, values in per_image.items():
        if name in wanted:
            found[name] = values.astype(weights.dtype) @ weights / n
    if {"balanced_accuracy", "macro_f1"} & set(wanted):
        counts = _class_counts(outcomes, weights)
        found["balanced_accuracy"] = np.nanmean(_recall(*counts), axis=0)
        found["macro_f1"] = np.nanmean(_f1(*counts), axis=0)
    if "auc" in wanted:
        found["auc"] = _auc(outcomes, weights)
    if "ece" in wanted:
        gaps = _sum_by(
            _bin(outcomes.confidence, _BINS), outcomes.correct - outcomes.confidence, _BINS, weights
        )
        found["ece"] = np.abs(gaps).sum(axis=0) / n
    return {metric: found[metric] for metric in wanted}


def _auc(outcomes: Outcomes, weights: np.ndarray) -> np.ndarray:
    """(R,) areas under the ROC curve; NaN where a resample lacks a class."""
    assert outcomes.margin is not None
    levels, level = np.unique(outcomes.margin, return_inverse=True)
    # In double precision, since numbers of pairs are added up.
    counts = weights.astype(np.float64)
    first, second = (_sum_by(level, outcomes.true == c, len(levels), counts) for c in (0, 1))
    below = np.cumsum(first, axis=0) - first
    pairs = first.sum(axis=0) * second.sum(axis=0)
    return (second * (below + first / 2)).sum(axis=0) / np.where(pairs > 0, pairs, np.nan)


def _class_counts(
    outcomes: Outcomes, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(m, R) each: the images that are right, those of each class, those predicted as it."""
    m, one = outcomes.classes, np.ones(len(outcomes))
    return (
        _sum_by(outcomes.true, outcomes.correct, m, weights),
        _sum_by(outcomes.true, one, m, weights),
        _sum_by(outcomes.predicted, one, m, weights),
    )


def _sum_by(group: np.ndarray, values: np.ndarray, groups: int, weights: np.ndarray) -> np.ndarray:
    """(groups, R) weighted sums of ``values`` (n,) within each group."""
    n = len(group)
    data = np.asarray(values, dtype=weights.dtype)
    return sparse.csr_array((data, (group, np.arange(n))), shape=(groups, n)) @ weights


def _recall(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return hits / np.where(true > 0, true, np.nan)


def _precision(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return hits / np.where(predicted > 0, predicted, np.nan)


def _f1(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """NaN for a class that neither occurs nor is predicted, which macro-F1 leaves out."""
    return 2 * hits / np.where(true + predicted > 0, true + predicted, np.nan)


def _wilson(right: int, n: int) -> tuple[float, float]:
    """The ends of Wilson's interval of a proportion; NaN where nothing was counted."""
    if n == 0:
        return float("nan"), float("nan")
    interval = stats.binomtest(right, n).proportion_ci(_LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The number of the bin (low, high] that each confidence falls into."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _calibrated_ece(outcomes: Outcomes, resamples: int, seed: int) -> tuple[float, float]:
    """Mean and 97.5 % quantile of the ECE if each image were right with its confidence."""
    n = len(outcomes)
    generator = np.random.default_rng([seed, n, 1])
    group = _bin(outcomes.confidence, _BINS)
    confidence = outcomes.confidence.astype(np.float32)[:, None]
    drawn = []
    for start in range(0, resamples, _BLOCK):
        size = (n, min(_BLOCK, resamples - start))
        gap = (generator.random(size, dtype=np.float32) < confidence) - confidence
        drawn.append(np.abs(_sum_by(group, np.ones(n), _BINS, gap)).sum(axis=0) / n)
    ece = np.concatenate(drawn)
    return float(ece.mean()), float(np.quantile(ece, (1 + _LEVEL) / 2))


@lru_cache(maxsize=4)
def _counts(n: int, resamples: int, seed: int) -> np.ndarray:
    """(n, R) uint8: how often each of n images is in each resample of size n.

    A count above 255 would take an image drawn 256 times in n draws: impossible for n < 256
    and of no practical probability above.
    """
    generator = np.random.default_rng([seed, n])
    counts = np.empty((n, resamples), dtype=np.uint8)
    for column in range(resamples):
        counts[:, column] = np.bincount(generator.integers(0, n, n), minlength=n)
    counts.setflags(write=False)
    return counts


def _draw(
    n: int, resamples: int, seed: int, groups: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """The resamples in blocks: (n, R') float32 counts; those of an image are its group's."""
    counts = _counts(n if groups is None else int(groups.max()) + 1, resamples, seed)
    for start in range(0, resamples, _BLOCK):
        block = counts[:, start : start + _BLOCK].astype(np.float32)
        yield block if groups is None else block[groups]


def _once(n: int) -> np.ndarray:
    """(n, 1) weights that count each image once."""
    return np.ones((n, 1))


def _replicates(
    outcomes: Outcomes,
    resamples: int,
    seed: int,
    wanted: Sequence[str],
    groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """(R,) values of each wanted metric, one for each resample."""
    drawn = _draw(len(outcomes), resamples, seed, groups)
    blocks = [_metrics(outcomes, weights, wanted) for weights in drawn]
    return {metric: np.concatenate([b[metric] for b in blocks]) for metric in wanted}


def _quantiles(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _nan_quantiles(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for each row; NaN for a row of NaN."""
    known = ~np.isnan(drawn).all(axis=1)
    low, high = np.full(len(drawn), np.nan), np.full(len(drawn), np.nan)
    if known.any():
        low[known], high[known] = np.nanquantile(
            drawn[known], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=1
        )
    return low, high


def _history(readings: tuple[str, ...]) -> str:
    """``reading 3 of the test split, after 'probe' and 'k-NN'``."""
    line = f"reading {len(readings)} of the test split"
    earlier = [repr(reading) for reading in readings[:-1]]
    if not earlier:
        return line
    if len(earlier) > 4:
        earlier = [*earlier[:3], f"{len(earlier) - 3} more"]
    return f"{line}, after {', '.join(earlier)}"
