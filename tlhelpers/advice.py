"""What to do with so many labels, a source so far away and so much compute, by the book's records.

:func:`distance` measures how far a source is, and :func:`recommend` turns the comparisons that
:mod:`~tlhelpers.evidence` reads into advice. Nothing here has an opinion of its own: take a record
away and the advice changes, or says that the book has not measured it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tlhelpers import evaluate
from tlhelpers import evidence as comparisons
from tlhelpers.evaluate import Estimate
from tlhelpers.evidence import COMPUTE, DISTANCES, METHODS, Evidence, one_of

RIDGES = tuple(10.0**power for power in range(-2, 5))
MARGIN = 0.01
_REACH = 2.0  # a study counts up to this factor of labels away


# --- how far is the source? ---------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Distance:
    """How far a source is from a target, measured with the labels at hand.

    Attributes:
        word: ``"near"``, ``"unclear"`` or ``"far"``.
        gap: accuracy of a probe on the source's features less that of a probe on the features of
            the same network without any training, cross-validated on the same images.
        images: how many images it was measured on.
    """

    word: str
    gap: Estimate
    images: int

    def __repr__(self) -> str:
        return f"{self.word}: probe minus probe on random weights {self.gap}, {self.images} images"

    def to_frame(self) -> pd.DataFrame:
        """One row: word, value, low, high, images."""
        gap = self.gap
        row = {"word": self.word, "value": gap.value, "low": gap.low, "high": gap.high}
        return pd.DataFrame([row | {"images": self.images}])


def distance(
    pretrained: ArrayLike, untrained: ArrayLike, labels: ArrayLike, *, folds: int = 5, seed: int = 0
) -> Distance:
    """The distance of a source, by what its features are worth to a probe on your labels.

    ``"near"`` where the source's features are shown to be better than those of the same network
    with random weights, ``"far"`` where they are shown to be worse, ``"unclear"`` where the
    interval of the difference holds 0. (Where the source was trained on the target's own classes,
    say ``"same"``: that is read off two lists of classes, not measured.) The interval is Student's
    over images; folds share training images, so that with few images it is a little too short.

    Args:
        pretrained: (n, d) features of the labelled images by the source.
        untrained: (n, e) features of the same images by the same architecture, untrained.
        labels: (n,) integers, with at least as many images in each class as there are folds.
        folds: of the cross-validation.
        seed: how images are dealt to the folds.

    Raises:
        ValueError: if the numbers of rows differ, a feature is not finite, there are fewer than
            two classes, or a class has fewer images than there are folds.

    >>> y = np.repeat([0, 1], 50)
    >>> noise = np.random.default_rng(0).normal(size=(100, 4))
    >>> distance(noise + 3 * y[:, None], noise, y).word
    'near'
    """
    y = np.asarray(labels)
    ours, theirs = (probe_hits(x, y, folds=folds, seed=seed) for x in (pretrained, untrained))
    return compare_hits(ours, theirs)


def probe_hits(
    features: ArrayLike, labels: ArrayLike, *, folds: int = 5, seed: int = 0
) -> np.ndarray:
    """Which images a cross-validated ridge classifier gets right, as :func:`distance` compares.

    Args:
        features: (n, d).
        labels: (n,) integers.
        folds: of the cross-validation.
        seed: how images are dealt to the folds.

    Returns:
        (n,) booleans.

    Raises:
        ValueError: as :func:`distance`.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits().few(10).train
        >>> hits = tl.advice.probe_hits(digits.x.flatten(1), digits.y)
        >>> hits[:5]
        array([False,  True,  True,  True,  True])
        >>> int(hits.sum()), len(hits)
        (94, 100)
    """
    x, y = np.asarray(features, dtype=float), np.asarray(labels)
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y):
        raise ValueError(
            f"features should be (n, d) and labels (n,) for the same n images, found {x.shape} "
            f"and {y.shape}."
        )
    if not np.isfinite(x).all():
        raise ValueError("features should be finite numbers, found NaN or infinity among them.")
    counts = np.unique(y, return_counts=True)[1]
    if len(counts) < 2 or not 2 <= folds <= counts.min():
        raise ValueError(
            f"the distance needs two classes or more, each with at least as many images as there "
            f"are folds; found {len(counts)} classes, the smallest with "
            f"{counts.min(initial=len(y))} images, and {folds} folds. Take fewer folds (two or "
            f"more), or label more images."
        )
    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=RIDGES))
    dealt = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return np.asarray(cross_val_predict(classifier, x, y, cv=dealt) == y)


def compare_hits(pretrained: np.ndarray, untrained: np.ndarray) -> Distance:
    """The distance, from which images the one and the other probe get right.

    Args:
        pretrained, untrained: (n,) booleans for the same images, see :func:`probe_hits`.

    Example:
        >>> import numpy as np
        >>> import tlhelpers as tl
        >>> pretrained = np.arange(100) < 90
        >>> untrained = np.arange(100) < 60
        >>> tl.advice.compare_hits(pretrained, untrained)
        near: probe minus probe on random weights +30.0 points [+20.9, +39.1], 100 images
    """
    gap = evaluate.mean_interval(pretrained.astype(float) - untrained, unit="points")
    return Distance(distance_word(gap), gap, len(pretrained))


def distance_word(gap: Estimate) -> str:
    """``"near"``, ``"far"`` or ``"unclear"``: on which side of 0 the interval lies.

    >>> distance_word(Estimate(0.1, 0.02, 0.18, unit="points"))
    'near'
    """
    if gap.low > 0:
        return "near"
    return "far" if gap.high < 0 else "unclear"


# --- the advice ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, repr=False)
class Advice:
    """What the records say to do, and on what grounds.

    Attributes:
        method: a name in ``METHODS``; None where the book has not measured the setting.
        labels_per_class: as asked.
        classes: as asked.
        distance: as asked, or measured.
        compute: as asked.
        why: how the method came to be advised, a sentence or two.
        gain: what it gained over ``over``, by the studies at the nearest number of labels: their
            mean, and an interval that holds all of theirs; None where nothing is advised.
        over: the method that the gain is over; empty where nothing is advised.
        agreement: ``"undisputed"``, or ``"one record"`` where there are no others;
            ``"disputed"`` where a record shows it worse than a method that another shows it
            better than; ``"open"`` where it is not shown better than anything; ``"none"`` where
            nothing is advised.
        evidence: the comparisons of the advised method in this setting; where nothing is advised,
            the nearest that there are.
        unknown: what the book does not know here, sentences.
        alternatives: methods that are as good, or better at a higher price, sentences.
    """

    method: str | None
    labels_per_class: int
    classes: int
    distance: str
    compute: str
    why: str
    gain: Estimate | None
    over: str
    agreement: str
    evidence: tuple[Evidence, ...]
    unknown: tuple[str, ...]
    alternatives: tuple[str, ...]

    def __repr__(self) -> str:
        asked = f"{self.labels_per_class} labels a class, source {self.distance}"
        named = ", ".join(dict.fromkeys(f"{e.record} (ch. {e.chapter})" for e in self.evidence))
        if self.method is None:
            nearest = f"; nearest evidence: {named}" if named else ""
            return f"no advice: the book has not measured this ({asked}){nearest}"
        return f"{self.method}: {self.gain} over {self.over} ({asked}; {self.agreement}: {named})"

    def to_frame(self) -> pd.DataFrame:
        """The evidence, a row for each comparison; see :func:`tlhelpers.evidence.to_frame`."""
        return comparisons.to_frame(self.evidence)


def recommend(
    *,
    labels_per_class: int,
    classes: int,
    distance: str | Distance,
    compute: str = "training",
    methods: Sequence[str] | None = None,
    rows: Sequence[Evidence] | None = None,
    margin: float = MARGIN,
) -> Advice:
    """What the book's records say to do in a setting.

    A comparison counts for the setting if it was made at the same distance and at a number of
    labels no more than a factor of two away, the nearest of each study. One method is *shown worse*
    than another if some study's whole interval says so and no study's says the opposite. Methods
    that are shown worse than another one you can use are out. Of those left, the one that is shown
    better than most others leads (of equals, the one that could lose least by any interval); it is
    advised, unless a cheaper one was compared with it and no study lets that one lose more than
    the margin.

    Args:
        labels_per_class: 0 or more.
        classes: 2 or more; used to say how far the evidence is from your task.
        distance: a word of ``DISTANCES``, or what :func:`distance` measured.
        compute: ``"frozen"`` where there are only passes through a network that exists,
            ``"training"`` where a network can be trained on the target, ``"pretraining"`` where
            the source's data are at hand too.
        methods: which ones you could use at all, names in ``METHODS``; None for all.
        rows: the evidence; None for all that the package ships.
        margin: a loss that you would not mind, as a difference of proportions.

    Raises:
        ValueError: if an argument is not as described.
        TypeError: if the number of labels or of classes is not an integer.

    Example:
        >>> import tlhelpers as tl
        >>> advice = tl.advice.recommend(labels_per_class=20, classes=10, distance="near")
        >>> advice.method
        'fine-tuning'
        >>> frozen = tl.advice.recommend(
        ...     labels_per_class=20, classes=10, distance="near", compute="frozen"
        ... )
        >>> frozen.method
        'probe'
    """
    k = _count("labels_per_class", labels_per_class, 0)
    m = _count("classes", classes, 2)
    word = distance.word if isinstance(distance, Distance) else distance
    word = one_of("distance", word, DISTANCES)
    level = COMPUTE.index(one_of("compute", compute, COMPUTE))
    if not margin >= 0:
        raise ValueError(
            f"margin should be 0 or more, a difference of proportions; found {margin}."
        )
    wanted = list(METHODS) if methods is None else list(methods)
    for name in wanted:
        one_of("a method", name, tuple(METHODS))
    known = comparisons.load() if rows is None else rows
    here = _in_setting(known, k, word)
    usable = [
        name
        for name, method in METHODS.items()
        if name in wanted
        and COMPUTE.index(method.compute) <= level
        and (word == "same" or not method.same)
    ]
    table = _Table(here)
    asked: dict[str, Any] = {
        "labels_per_class": k,
        "classes": m,
        "distance": word,
        "compute": compute,
    }
    chosen, why = _choose(table, usable, margin)
    if chosen is None:
        return _silence(asked, why, known, usable)
    own = tuple(table.of(chosen))
    over = _baseline(table, chosen)
    gains = _nearest(table.between(chosen, over), k)
    return Advice(
        method=chosen,
        **asked,
        why=why,
        gain=_hull([row.gain for row in gains]),
        over=over,
        agreement=_agreement(table, chosen),
        evidence=own,
        unknown=_unknown(table, chosen, usable, k, m),
        alternatives=_alternatives(table, chosen, usable, margin),
    )


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} should be an integer, found {value!r}.")
    if value < least:
        raise ValueError(f"{name} should be {least} or more, found {value}.")
    return int(value)


def _away(labels: int, k: int) -> float:
    """The factor between two numbers of labels; no labels are infinitely far from some."""
    if labels == k:
        return 1.0
    return math.inf if 0 in (labels, k) else max(labels / k, k / labels)


def _nearest(rows: Sequence[Evidence], k: int) -> list[Evidence]:
    """Those measured at the number of labels nearest to k."""

    def far(row: Evidence) -> tuple[float, int]:
        return _away(row.labels, k), abs(row.labels - k)

    return [row for row in rows if far(row) == min(map(far, rows))]


def _in_setting(rows: Sequence[Evidence], k: int, word: str) -> list[Evidence]:
    """Of each study the comparison at the nearest number of labels, if that is near enough."""
    nearest: dict[tuple[Any, ...], Evidence] = {}
    for row in rows:
        away = _away(row.labels, k)
        if row.distance != word or away > _REACH:
            continue
        study = (row.record, row.task, row.source, row.method, row.over, row.how)
        kept = nearest.get(study)
        # Of two equally far, the fewer labels: the cautious side.
        if kept is None or (away, row.labels) < (_away(kept.labels, k), kept.labels):
            nearest[study] = row
    return list(nearest.values())


class _Table:
    """Who was compared with whom in a setting, and what came out."""

    def __init__(self, rows: Sequence[Evidence]) -> None:
        self._rows = [*rows, *(row.turned() for row in rows)]

    def of(self, method: str) -> list[Evidence]:
        return [row for row in self._rows if row.method == method]

    def between(self, method: str, over: str) -> list[Evidence]:
        return [row for row in self.of(method) if row.over == over]

    def verdict(self, method: str, over: str) -> str:
        """``"better"``, ``"worse"``, ``"open"``, ``"disputed"`` or ``"silent"``."""
        sides = {row.side for row in self.between(method, over)}
        if {"better", "worse"} <= sides:
            return "disputed"
        return next((s for s in ("better", "worse", "open") if s in sides), "silent")

    def compared(self, method: str, others: Sequence[str], *verdicts: str) -> list[str]:
        return [o for o in others if o != method and self.verdict(method, o) in verdicts]


def _choose(table: _Table, usable: Sequence[str], margin: float) -> tuple[str | None, str]:
    known = [n for n in usable if table.compared(n, usable, "better", "worse", "open", "disputed")]
    if not known:
        return None, "no two of the methods that you can use were compared in this setting."
    out = {n: table.compared(n, known, "worse") for n in known}
    left = [n for n in known if not out[n]]
    if not left:
        return None, "the records contradict each other in a circle: each method is shown worse."

    def standing(name: str) -> tuple[int, float, int]:
        # What a method is shown to beat counts for it also where you cannot afford that.
        wins = len(table.compared(name, tuple(METHODS), "better"))
        lows = [row.gain.low for row in table.of(name) if row.over in left]
        return wins, min(lows, default=-math.inf), -known.index(name)

    leader = max(left, key=standing)
    cheaper = [
        n
        for n in left[: left.index(leader)]
        if (rows := table.between(n, leader)) and all(row.gain.low >= -margin for row in rows)
    ]
    chosen = cheaper[0] if cheaper else leader
    beaten = table.compared(chosen, tuple(METHODS), "better")
    parts = []
    if beaten:
        parts.append(f"shown better than {', '.join(beaten)}")
    if cheaper:
        parts.append(f"cheaper than {leader}, and behind it by {100 * margin:g} points at most")
    if not parts:
        parts.append("not shown worse than anything it was compared with, nor better")
    return chosen, f"{chosen}: {'; '.join(parts)}."


def _baseline(table: _Table, chosen: str) -> str:
    """What the gain is quoted over: no source at all where that was measured."""
    met = [name for name in METHODS if table.between(chosen, name)]
    return next((name for name in ("scratch", "own head", "probe") if name in met), met[0])


def _hull(gains: Sequence[Estimate]) -> Estimate:
    """The mean of the estimates, and the least interval that holds all of theirs."""
    return Estimate(
        float(np.mean([gain.value for gain in gains])),
        min(gain.low for gain in gains),
        max(gain.high for gain in gains),
        unit="points",
    )


def _agreement(table: _Table, chosen: str) -> str:
    if table.compared(chosen, tuple(METHODS), "disputed"):
        return "disputed"
    if not table.compared(chosen, tuple(METHODS), "better"):
        return "open"
    return "one record" if len({row.record for row in table.of(chosen)}) == 1 else "undisputed"


def _unknown(table: _Table, chosen: str, usable: Sequence[str], k: int, m: int) -> tuple[str, ...]:
    own = table.of(chosen)
    said = [
        f"Whether {chosen} is better than {name} is disputed between records."
        for name in table.compared(chosen, tuple(METHODS), "disputed")
    ]
    if silent := table.compared(chosen, usable, "silent"):
        said.append(f"Never compared with {chosen} in this setting: {', '.join(silent)}.")
    if k not in (measured := sorted({row.labels for row in own})):
        said.append(f"Measured at {', '.join(map(str, measured))} labels a class, not at {k}.")
    sizes = sorted({row.classes for row in own})
    if not sizes[0] / 2 <= m <= 2 * sizes[-1]:
        said.append(f"Measured with {', '.join(map(str, sizes))} classes, not with {m}.")
    if len(worlds := {row.world for row in own}) == 1:
        said.append(f"All of it was measured on {next(iter(worlds))}.")
    if single := list(dict.fromkeys(row.record for row in own if row.repetitions < 2)):
        said.append(f"One seed only, so that other runs may differ more: {', '.join(single)}.")
    return tuple(said)


def _alternatives(
    table: _Table, chosen: str, usable: Sequence[str], margin: float
) -> tuple[str, ...]:
    said = [
        f"{name}: not shown better or worse than {chosen}."
        for name in table.compared(chosen, usable, "open")
    ]
    dearer = [name for name in METHODS if name not in usable]
    for name in table.compared(chosen, dearer, "worse"):
        gain = _hull([row.gain for row in table.between(name, chosen)])
        said.append(f"{name}, if you can afford it ({METHODS[name].compute}): {gain}.")
    return tuple(said)


def _silence(
    asked: Mapping[str, Any], why: str, rows: Sequence[Evidence], usable: Sequence[str]
) -> Advice:
    k, word = asked["labels_per_class"], asked["distance"]
    fit = [row for row in rows if row.method in usable and row.over in usable]
    there = [row for row in fit if row.distance == word] or fit
    nearest = tuple(_nearest(there, k))
    places = sorted({(row.distance, row.labels) for row in nearest})
    at = "; ".join(f"{d}, {labels} labels a class" for d, labels in places)
    return Advice(
        method=None,
        **asked,
        why=f"The book has not measured this: {why}"
        + (f" The nearest evidence: {at}." if at else ""),
        gain=None,
        over="",
        agreement="none",
        evidence=nearest,
        unknown=("What is best here.",),
        alternatives=(),
    )


# --- the chart as a table, and how far to trust it ------------------------------------------


def chart(
    rows: Sequence[Evidence] | None = None,
    *,
    labels: Sequence[int] = (0, 1, 2, 5, 10, 20, 50, 100),
    classes: int = 10,
) -> pd.DataFrame:
    """The advice for each distance, compute and number of labels.

    Args:
        rows: the evidence; None for all that the package ships.
        labels: labels a class, the columns.
        classes: of the target.

    Returns:
        names of methods, with a question mark where records dispute it, "(open)" where it is not
        shown better than anything, and a dash where nothing was measured; one row for each
        distance and compute.

    Example:
        >>> import tlhelpers as tl
        >>> rows = [row for row in tl.evidence.load() if row.record == "glyphs/unfreeze"]
        >>> tl.advice.chart(rows, labels=(2, 10, 50)).loc["near"]  # doctest: +NORMALIZE_WHITESPACE
        labels a class                  2            10           50
        compute
        frozen                           –            –            –
        training        fine-tuning (open)  fine-tuning  fine-tuning
        pretraining     fine-tuning (open)  fine-tuning  fine-tuning
    """
    known = comparisons.load() if rows is None else rows

    def cell(word: str, compute: str, k: int) -> str:
        advice = recommend(
            labels_per_class=k, classes=classes, distance=word, compute=compute, rows=known
        )
        mark = {"disputed": "?", "open": " (open)"}.get(advice.agreement, "")
        return (advice.method or "–") + mark

    index = [(word, compute) for word in DISTANCES for compute in COMPUTE]
    return pd.DataFrame(
        [[cell(word, compute, k) for k in labels] for word, compute in index],
        index=pd.MultiIndex.from_tuples(index, names=["distance", "compute"]),
        columns=pd.Index(labels, name="labels a class"),
    )


def leave_one_out(rows: Sequence[Evidence] | None = None) -> pd.DataFrame:
    """Does the advice from all other records fit what a record found?

    For each record and each setting in it, advice is asked for from the others, among the methods
    that the record compares there.

    Returns:
        a row for each record, task and setting: ``advised`` by the others, and ``outcome``:
        ``"no advice"``; ``"contradicted"`` where the record shows the advised method worse than
        another; ``"confirmed"`` where it shows it better than all others that it compares;
        ``"open"`` in between.

    Example:
        >>> import tlhelpers as tl
        >>> records = ("glyphs/unfreeze", "negative/freezing")
        >>> rows = [row for row in tl.evidence.load() if row.record in records]
        >>> tl.advice.leave_one_out(rows)[["record", "labels", "advised", "outcome"]]
                      record  labels      advised    outcome
        0    glyphs/unfreeze       2            –  no advice
        1    glyphs/unfreeze      10  fine-tuning  confirmed
        2    glyphs/unfreeze      50            –  no advice
        3  negative/freezing      10  fine-tuning       open
        4  negative/freezing      10            –  no advice
    """
    known = list(comparisons.load() if rows is None else rows)
    settings: dict[tuple[str, str, str, int], list[Evidence]] = {}
    for row in known:
        settings.setdefault((row.record, row.task, row.distance, row.labels), []).append(row)
    found = []
    for (record, task, word, k), own in settings.items():
        table = _Table(own)
        names = [n for n in METHODS if table.of(n)]
        advice = recommend(
            labels_per_class=k,
            classes=own[0].classes,
            distance=word,
            compute=COMPUTE[-1],
            methods=names,
            rows=[row for row in known if row.record != record],
        )
        found.append(
            {
                "record": record,
                "task": task,
                "distance": word,
                "labels": k,
                "methods": ", ".join(names),
                "advised": advice.method or "–",
                "outcome": _outcome(table, advice.method, names),
            }
        )
    return pd.DataFrame(found)


def _outcome(table: _Table, advised: str | None, names: Sequence[str]) -> str:
    if advised is None:
        return "no advice"
    if table.compared(advised, names, "worse"):
        return "contradicted"
    others = [name for name in names if name != advised]
    better = table.compared(advised, names, "better")
    return "confirmed" if len(better) == len(others) else "open"
