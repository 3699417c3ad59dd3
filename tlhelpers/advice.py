"""What to do with so many labels, a source so far away and so much compute, by the book's records.

:data:`STUDIES` lists which comparisons of two methods the shipped records hold, and in which
setting each was made. :func:`evidence` reads them, :func:`recommend` turns them into advice, and
:func:`distance` measures how far a source is. Nothing here has an opinion of its own: take a record
away and the advice changes, or says that the book has not measured it.

A chapter with new records adds a line for each comparison to ``STUDIES``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tlhelpers import evaluate, records
from tlhelpers.evaluate import Estimate
from tlhelpers.records import Record

DISTANCES = ("same", "near", "unclear", "far")
COMPUTE = ("frozen", "training", "pretraining")
RIDGES = tuple(10.0**power for power in range(-2, 5))
MARGIN = 0.01
_REACH = 2.0  # a study counts up to this factor of labels away

_CHARACTERS, _DOGS = "small images of characters", "photographs of dogs"


@dataclass(frozen=True, repr=False)
class Method:
    """A way to solve the target task.

    Attributes:
        name: as the advice calls it.
        text: what is done.
        compute: the least of ``COMPUTE`` that it takes.
    """

    name: str
    text: str
    compute: str

    def __repr__(self) -> str:
        return f"{self.name}: {self.text} (compute: {self.compute})"


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method("own head", "the source network as it is; no label is used", "frozen"),
            Method("pixels", "logistic regression on the grey values, no network", "frozen"),
            Method("prototypes", "class means of a frozen backbone's features", "frozen"),
            Method("probe", "logistic regression on a frozen backbone's features", "frozen"),
            Method("new head", "a linear head on a frozen backbone, by gradient steps", "training"),
            Method("fine-tuning", "the backbone, or much of it, learns on", "training"),
            Method("scratch", "the same kind of network from random weights", "training"),
            Method("adaptation", "fitting source to unlabelled target images", "pretraining"),
            Method("episodes", "a prototypical network, pretrained on episodes", "pretraining"),
            Method("meta-learning", "a start learnt by MAML", "pretraining"),
            Method("joint training", "source and target in one training", "pretraining"),
        )
    }
)
"""All methods that the records compare, by name, the cheapest first."""


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
    """
    gap = evaluate.mean_interval(pretrained.astype(float) - untrained, unit="points")
    return Distance(distance_word(gap), gap, len(pretrained))


def distance_word(gap: Estimate) -> str:
    """``"near"``, ``"far"`` or ``"unclear"``: on which side of 0 the interval lies.

    >>> distance_word(Estimate(0.1, 0.02, 0.18, unit="points"))
    'near'
    """
    return {"better": "near", "worse": "far", "open": "unclear"}[_side(gap)]


def _side(gap: Estimate) -> str:
    if gap.low > 0:
        return "better"
    return "worse" if gap.high < 0 else "open"


# --- what the records hold ----------------------------------------------------------------


Load = Callable[[str], Record]
Reading = tuple[Estimate, int]
Reader = Callable[[Load, str, int], Reading]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Where a record compares two methods, and in which setting: a line of ``STUDIES``.

    Attributes:
        record: its name.
        chapter: the number of the chapter that shows it, ``"01"``.
        claims: ids of that chapter's claims about it.
        task: what was to be learnt.
        source: what the network had learnt before.
        distance: a word of ``DISTANCES``; or the name of a target and of a source in the record
            ``glyphs/distances``, which measures it.
        classes: of the target.
        labels: a class; one comparison for each.
        method: the one whose gain is read, a name in ``METHODS``.
        over: the one it is compared with.
        read: takes a function that loads a record by name, the record's name and the number of
            labels, and returns the difference of the two accuracies and how many repetitions
            stand behind it; see :func:`quoted`, :func:`paired` and :func:`apart`.
        world: what kind of data.
        how: what was special in this comparison; empty for nothing.
    """

    record: str
    chapter: str
    claims: tuple[str, ...]
    task: str
    source: str
    distance: str | tuple[str, str]
    classes: int
    labels: tuple[int, ...]
    method: str
    over: str
    read: Reader
    world: str = _CHARACTERS
    how: str = ""


@dataclass(frozen=True, kw_only=True, repr=False)
class Evidence:
    """One comparison of two methods in one setting, read from a record.

    Attributes:
        record, chapter, claims, task, source, classes, method, over, world, how: as in
            :class:`Study`.
        labels: labels a class.
        distance: a word of ``DISTANCES``.
        gain: accuracy of ``method`` less that of ``over``.
        repetitions: how many seeds, draws or tasks stand behind it; with one or none, the interval
            covers other test images and nothing else.
    """

    record: str
    chapter: str
    claims: tuple[str, ...]
    task: str
    source: str
    distance: str
    classes: int
    labels: int
    method: str
    over: str
    gain: Estimate
    repetitions: int
    world: str
    how: str

    def __repr__(self) -> str:
        return (
            f"{self.method} minus {self.over} {self.gain}, {self.labels} labels a class, "
            f"{self.distance} ({self.record}, chapter {self.chapter})"
        )

    def turned(self) -> Evidence:
        """The same comparison, seen from the other method."""
        return dataclasses.replace(
            self, method=self.over, over=self.method, gain=_flipped(self.gain)
        )


def _flipped(gain: Estimate) -> Estimate:
    return dataclasses.replace(gain, value=-gain.value, low=-gain.high, high=-gain.low)


def quoted(key: str, *, flip: bool = False) -> Reader:
    """Reads a difference that stands in the record's result, with its interval.

    Args:
        key: its name; ``{k}`` stands for the number of labels.
        flip: whether the record has it the other way round.
    """

    def read(load: Load, record: str, k: int) -> Reading:
        found = load(record).estimate(key.format(k=k))
        gain = dataclasses.replace(found, unit="points")
        return _flipped(gain) if flip else gain, len(load(record).seeds)

    return read


def paired(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    *,
    value: str,
    by: str,
    second_k: int | None = None,
) -> Reader:
    """Reads the difference of two sets of rows of the curve, repetition by repetition.

    The interval is Student's over the repetitions.

    Args:
        first, second: what a row has to hold to belong to the one and to the other.
        value: the column of accuracies.
        by: the column that names the repetition.
        second_k: labels of the second rows, where they are not those of the first.
    """

    def read(load: Load, record: str, k: int) -> Reading:
        curve = load(record).curve
        a, b = (
            _rows(curve, {"k": labels, **where}, value=value, by=by, record=record)
            for where, labels in ((first, k), (second, k if second_k is None else second_k))
        )
        if a.keys() != b.keys():
            raise ValueError(
                f"the record {record!r} should hold both methods for the same repetitions, found "
                f"{sorted(a)} for {dict(first)} and {sorted(b)} for {dict(second)}. Run its "
                f"script in experiments/ again."
            )
        return evaluate.mean_interval([a[i] - b[i] for i in a], unit="points"), len(a)

    return read


def _rows(
    curve: Sequence[Mapping[str, Any]],
    where: Mapping[str, Any],
    *,
    value: str,
    by: str,
    record: str,
) -> dict[Any, float]:
    found = {
        row[by]: float(row[value])
        for row in curve
        if all(row.get(key, wanted) == wanted for key, wanted in where.items())
    }
    if len(found) < 2:
        raise ValueError(
            f"the record {record!r} should hold two or more rows with {dict(where)} in its curve, "
            f"found {len(found)}. Run its script in experiments/ again, or correct the study."
        )
    return found


def apart(first: str, second: str, *, first_in: str = "", second_in: str = "") -> Reader:
    """Reads the difference of two figures that were not compared image by image.

    The interval is that of Newcombe's square-and-add method: with estimates a and b, its lower end
    is (a - b) less the root of (a - low a)² + (high b - b)². It treats the two as independent;
    where both stand on the same test images they are not, and the interval is a little too long.

    Args:
        first, second: names of figures in the result, or of points of the curve written as
            ``"column=value, column=value"`` that hold ``mean``, ``low`` and ``high``; ``{k}``
            stands for the number of labels.
        first_in, second_in: the record of the one and of the other; empty for the study's own.
    """

    def read(load: Load, record: str, k: int) -> Reading:
        one, other = load(first_in or record), load(second_in or record)
        a, b = _figure(one, first.format(k=k)), _figure(other, second.format(k=k))
        value = a.value - b.value
        below = math.hypot(a.value - a.low, b.high - b.value)
        above = math.hypot(a.high - a.value, b.value - b.low)
        gain = Estimate(value, value - below, value + above, unit="points")
        return gain, min(len(one.seeds), len(other.seeds))

    return read


def _figure(record: Record, name: str) -> Estimate:
    if "=" not in name:
        return record.estimate(name)
    where = dict(part.split("=") for part in name.split(", "))
    found = [row for row in record.curve if all(str(row[key]) == where[key] for key in where)]
    if len(found) != 1:
        raise ValueError(
            f"the record {record.name!r} should hold one point with {name}, found {len(found)}. "
            f"Run its script in experiments/ again, or correct the study."
        )
    return Estimate(found[0]["mean"], found[0]["low"], found[0]["high"])


def _over_targets(word: str) -> Reader:
    """The zoo's gains from fine-tuning, over the pairs of a source and a task at one distance.

    A mean over the sources for each task, and Student's interval over the tasks.
    """

    def read(load: Load, record: str, k: int) -> Reading:
        top1 = {(row["target"], row["source"]): row["top1"] for row in load(record).curve}
        words = _measured_words(load)
        gains: dict[str, list[float]] = {}
        for (target, source), values in top1.items():
            if source != "random" and words[target, source] == word:
                own = np.mean(np.subtract(values, top1[target, "random"]))
                gains.setdefault(target, []).append(float(own))
        means = [np.mean(own) for own in gains.values()]
        return evaluate.mean_interval(means, unit="points"), len(means)

    return read


def _measured_words(load: Load) -> dict[tuple[str, str], str]:
    rows = load("glyphs/distances").curve
    return {(row["target"], row["source"]): row["word"] for row in rows}


_GRID = (1, 2, 5, 10, 20, 50, 100)
_NEAR = ("digits", "letters")
_WAYS = {"fine-tuning": "fine-tuned", "probe": "frozen", "scratch": "scratch", "pixels": "pixels"}


def _labels_studies() -> tuple[Study, ...]:
    """Chapter 01: digits after letters, and three tasks on letters that readers ignore."""
    tasks = (
        ("digits", "handwritten digits", _GRID, 10, ("01.fewer", "01.vanishes", "01.pixels")),
        ("rotation", "which way a letter is turned", (20,), 5, ("01.far",)),
        ("stroke", "how thick strokes are", (20,), 5, ("01.far",)),
        ("noise", "how noisy an image is", (20,), 5, ("01.far",)),
    )
    pairs = [(a, b) for i, a in enumerate(_WAYS) for b in list(_WAYS)[i + 1 :]]
    return tuple(
        Study(
            record="glyphs/labels",
            chapter="01",
            claims=claims,
            task=text,
            source="printed letters",
            distance=(task, "letters"),
            classes=classes,
            labels=labels,
            method=method,
            over=over,
            read=quoted("fine-tuned minus scratch, {k} labels")
            if (task, method, over) == ("digits", "fine-tuning", "scratch")
            else paired(
                {"task": task, "way": _WAYS[method]},
                {"task": task, "way": _WAYS[over]},
                value="clean",
                by="draw",
            ),
            how="settings of both chosen on 300 validation images" if task == "digits" else "",
        )
        for task, text, labels, classes, claims in tasks
        for method, over in pairs
    )


def _letters(**fields: Any) -> Study:
    """A study of handwritten digits after printed letters."""
    common = {"task": "handwritten digits", "source": "printed letters"}
    return Study(**{**common, "distance": _NEAR, "classes": 10, **fields})


def _printed(**fields: Any) -> Study:
    """A study of handwritten digits after printed digits: the same classes."""
    common = {"task": "handwritten digits", "source": "printed digits", "chapter": "13"}
    return Study(**{**common, "distance": "same", "classes": 10, **fields})


def _alphabets(**fields: Any) -> Study:
    """A study of episodes of alphabets that the source has not seen."""
    common = {"task": "characters of unseen alphabets", "source": "other alphabets"}
    common |= {"how": "distance by construction: new characters of the same fonts"}
    return Study(**{**common, "distance": "near", "classes": 5, **fields})


def _dogs(**fields: Any) -> Study:
    """A study of Stanford Dogs after ImageNet, which contains the breeds."""
    common = {"task": "breeds of dogs", "source": "ImageNet", "chapter": "08", "world": _DOGS}
    return Study(**{**common, "distance": "same", "classes": 120, **fields})


_RANDOM = "random start, fine-tuned, {k} shot"
_MOBILENET, _SQUEEZENET = "mobilenet_v2", "squeezenet1_1"
_SCRATCH = "dogs/scratch_resnet18_112_15epochs"

STUDIES: tuple[Study, ...] = (
    *_labels_studies(),
    _letters(
        record="glyphs/multitask",
        chapter="02",
        claims=("02.multitask",),
        labels=(1, 5, 20),
        method="fine-tuning",
        over="scratch",
        read=quoted("then_minus_alone_{k}"),
    ),
    _letters(
        record="glyphs/multitask",
        chapter="02",
        claims=("02.multitask",),
        labels=(1, 5, 20),
        method="joint training",
        over="fine-tuning",
        read=quoted("together_minus_then_{k}"),
    ),
    _letters(
        record="glyphs/unfreeze",
        chapter="05",
        claims=("05.depth",),
        labels=(2, 10, 50),
        method="new head",
        over="fine-tuning",
        read=quoted("head only, {k} labels"),
    ),
    _letters(
        record="glyphs/ablation",
        chapter="05",
        claims=("05.start",),
        labels=(10,),
        method="scratch",
        over="fine-tuning",
        read=paired(
            {"variant": "from scratch"}, {"variant": "baseline"}, value="accuracy", by="seed"
        ),
    ),
    _letters(
        record="negative/freezing",
        chapter="14",
        claims=("14.freezing",),
        labels=(10,),
        method="new head",
        over="fine-tuning",
        read=paired(
            {"source": "letters", "way": "stage3"},
            {"source": "letters", "way": "nothing"},
            value="top1",
            by="draw",
        ),
    ),
    _letters(
        record="negative/freezing",
        chapter="14",
        claims=("14.freezing",),
        source="letters with shuffled pixels",
        distance=("digits", "pixels"),
        labels=(10,),
        method="new head",
        over="fine-tuning",
        read=paired(
            {"source": "pixels", "way": "stage3"},
            {"source": "pixels", "way": "nothing"},
            value="top1",
            by="draw",
        ),
    ),
    *(
        _letters(
            record="negative/finetuned",
            chapter="14",
            claims=("14.freedom",),
            source=text,
            distance=("digits", source),
            labels=(1, 100),
            method="fine-tuning",
            over="scratch",
            read=quoted(f"{source} minus random, {{k}} labels"),
            how="no augmentation in either",
        )
        for source, text in (
            ("pixels", "letters with shuffled pixels"),
            ("shuffled", "letters with shuffled labels"),
        )
    ),
    *(
        _letters(
            record="zoo/finetuned",
            chapter="07",
            claims=("07.choice", "14.zoo"),
            task="six tasks, digits and alphabets",
            source="the sources of the zoo",
            distance=word,
            labels=(10,),
            method="fine-tuning",
            over="scratch",
            read=_over_targets(word),
            how="no augmentation in either; 10 to 33 classes",
        )
        for word in DISTANCES[1:]
    ),
    *(
        _alphabets(
            record="glyphs/meta",
            chapter="12",
            claims=("12.embedding",),
            labels=(1, 5),
            method=method,
            over=over,
            read=read,
        )
        for method, over, read in (
            (
                "episodes",
                "fine-tuning",
                quoted("prototypical network minus classifier, fine-tuned, {k} shot"),
            ),
            ("meta-learning", "episodes", quoted("MAML minus prototypical network, {k} shot")),
            (
                "meta-learning",
                "prototypes",
                quoted("MAML minus classifier, cosine to class means, {k} shot"),
            ),
            (
                "fine-tuning",
                "prototypes",
                quoted("classifier, fine-tuned minus classifier, cosine to class means, {k} shot"),
            ),
            *(
                (method, "scratch", apart(f"{name}, {{k}} shot", _RANDOM))
                for method, name in (
                    ("fine-tuning", "classifier, fine-tuned"),
                    ("probe", "classifier, logistic regression"),
                    ("prototypes", "classifier, cosine to class means"),
                    ("episodes", "prototypical network"),
                    ("meta-learning", "MAML"),
                )
            ),
            (
                "probe",
                "prototypes",
                apart(
                    "classifier, logistic regression, {k} shot",
                    "classifier, cosine to class means, {k} shot",
                ),
            ),
            (
                "fine-tuning",
                "probe",
                apart(
                    "classifier, fine-tuned, {k} shot", "classifier, logistic regression, {k} shot"
                ),
            ),
        )
    ),
    *(
        _alphabets(
            record="glyphs/unseen",
            chapter="11",
            claims=("11.practice", "11.mismatch"),
            labels=(1, 5),
            method="episodes",
            over="prototypes",
            read=quoted(f"{episodes} minus labels, 5-way {{k}}-shot"),
            how=f"practice on {episodes} episodes",
        )
        for episodes in ("5-way 1-shot", "5-way 5-shot", "20-way 1-shot", "20-way 5-shot")
    ),
    *(
        _printed(
            record=record,
            claims=claims,
            labels=(0,),
            method="adaptation",
            over="own head",
            read=quoted(f"{method}_gain"),
            how=f"{method.upper()}, {network}",
        )
        for record, claims, network in (
            ("glyphs/adaptation", ("13.choice",), "the small network"),
            ("glyphs/adaptation_larger", ("13.larger",), "a larger network"),
        )
        for method in ("coral", "mmd", "dann")
    ),
    *(
        _printed(
            record="glyphs/adaptation_few",
            claims=("13.labels",),
            labels=(1, 5, 20),
            method=method,
            over=over,
            read=paired({"way": _few}, {"way": _other}, value="top1", by="seed", second_k=_second),
            how=_how,
        )
        for method, over, _few, _other, _second, _how in (
            ("fine-tuning", "scratch", "source", "scratch", None, ""),
            ("adaptation", "fine-tuning", "adapted", "source", None, "CORAL, then fine-tuned"),
            ("fine-tuning", "own head", "source", "source", 0, ""),
        )
    ),
    *(
        _dogs(
            record="dogs/labels_mobilenet_v2_128",
            claims=("08.shots", "08.layers"),
            labels=(5, 20, 90),
            method="fine-tuning",
            over="probe",
            read=quoted("probe_minus_lp_ft_norms_k{k}", flip=True),
            how="from the head of a probe, normalisation frozen; 128 px",
        ),
    ),
    *(
        _dogs(
            record=f"dogs/{way}_squeezenet1_1_128",
            claims=claims,
            labels=(90,),
            method="fine-tuning",
            over="probe",
            read=apart("test_top1", "test_top1", second_in="dogs/probe_squeezenet1_1_128"),
            how=how,
        )
        for way, claims, how in (
            ("lp_ft", ("08.layers", "08.lpft"), "from the head of a probe; 128 px"),
            ("full", ("08.lpft",), "from a new head; 128 px"),
        )
    ),
    *(
        _dogs(
            record=f"dogs/recipe_{network}_224",
            claims=("08.recipe",),
            labels=(90,),
            method="new head",
            over="probe",
            read=apart("test_top1", "test_top1", second_in=f"dogs/probe_{network}_224"),
            how="Adam on crops and flips",
        )
        for network in (_MOBILENET, _SQUEEZENET)
    ),
    *(
        _dogs(
            record=f"dogs/untrained_head_{network}",
            claims=("08.leakage",),
            labels=(90,),
            method="own head",
            over="probe",
            read=apart("test_of_120", "test_top1", second_in=f"dogs/probe_{network}_224"),
            how="the 120 outputs of ImageNet's head that are breeds",
        )
        for network in (_MOBILENET, _SQUEEZENET)
    ),
    _dogs(
        record="dogs/untrained_head_mobilenet_v2",
        claims=("08.leakage",),
        labels=(5, 20),
        method="own head",
        over="probe",
        read=apart("test_of_120", "k={k}, views=1", second_in="dogs/views_mobilenet_v2"),
        how="the probe saw 128 components of the features",
    ),
    *(
        _dogs(
            record=_SCRATCH,
            claims=("08.scratch",),
            labels=(90,),
            method="scratch",
            over=over,
            read=apart("test_top1", "test_top1", second_in=f"dogs/{way}_mobilenet_v2_128"),
            how="a ResNet-18 at 112 px against a MobileNetV2 at 128 px",
        )
        for over, way in (("probe", "probe"), ("fine-tuning", "lp_ft_norms"))
    ),
)
"""Every comparison of two methods that the advice knows of."""


def evidence(
    folder: Path | None = None, *, studies: Sequence[Study] | None = None
) -> tuple[Evidence, ...]:
    """Read every comparison from the records.

    Args:
        folder: of the records; None for those that the package ships.
        studies: which comparisons; None for ``STUDIES``.

    Raises:
        FileNotFoundError: if a record is missing.
        KeyError, ValueError: if a record does not hold what the study says; and ValueError if a
            study names no known method or distance.
    """
    load = functools.cache(functools.partial(records.load, folder=folder))
    return tuple(
        _read(study, k, load)
        for study in (STUDIES if studies is None else studies)
        for k in study.labels
    )


def _read(study: Study, k: int, load: Load) -> Evidence:
    unknown = [name for name in (study.method, study.over) if name not in METHODS]
    if unknown:
        raise ValueError(
            f"a study of {study.record!r} compares {unknown[0]!r}, which is not in METHODS: "
            f"{', '.join(METHODS)}."
        )
    if isinstance(study.distance, tuple):
        words = _measured_words(load)
        if study.distance not in words:
            raise ValueError(
                f"the record 'glyphs/distances' should hold the target and source "
                f"{study.distance}, but it does not. Measure them in tlhelpers.distances."
            )
        word = words[study.distance]
    else:
        word = _one_of("the distance of a study", study.distance, DISTANCES)
    gain, repetitions = study.read(load, study.record, k)
    return Evidence(
        **{
            name: getattr(study, name)
            for name in (
                "record", "chapter", "claims", "task", "source", "classes", "method", "over",
                "world", "how",
            )
        },
        distance=word,
        labels=k,
        gain=gain,
        repetitions=repetitions,
    )  # fmt: skip


def against(rows: Iterable[Evidence], over: str) -> list[Evidence]:
    """Every comparison with one method, each seen from the other one.

    Args:
        rows: comparisons.
        over: a name in ``METHODS``.

    Raises:
        ValueError: if there is no such method.
    """
    over = _one_of("a method", over, tuple(METHODS))
    both = [seen for row in rows for seen in (row, row.turned())]
    return [row for row in both if row.over == over]


def to_frame(rows: Iterable[Evidence]) -> pd.DataFrame:
    """A row for each comparison; value, low and high are differences of proportions."""
    return pd.DataFrame(
        [
            {
                "method": row.method,
                "over": row.over,
                "labels": row.labels,
                "distance": row.distance,
                "value": row.gain.value,
                "low": row.gain.low,
                "high": row.gain.high,
                "repetitions": row.repetitions,
                "classes": row.classes,
                "task": row.task,
                "source": row.source,
                "record": row.record,
                "chapter": row.chapter,
                "claims": ", ".join(row.claims),
                "how": row.how,
            }
            for row in rows
        ]
    )


# --- the advice ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, repr=False)
class Advice:
    """What the records say to do, and on what grounds.

    Attributes:
        method: a name in ``METHODS``; None where the book has not measured the setting.
        labels_per_class, classes, distance, compute: what was asked.
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
        """The evidence, a row for each comparison; see :func:`to_frame`."""
        return to_frame(self.evidence)


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
    """
    k = _count("labels_per_class", labels_per_class, 0)
    m = _count("classes", classes, 2)
    word = distance.word if isinstance(distance, Distance) else distance
    word = _one_of("distance", word, DISTANCES)
    level = COMPUTE.index(_one_of("compute", compute, COMPUTE))
    if not margin >= 0:
        raise ValueError(f"margin should be 0 or more, a difference of proportions; found {margin}")
    wanted = list(METHODS) if methods is None else list(methods)
    for name in wanted:
        _one_of("a method", name, tuple(METHODS))
    known = evidence() if rows is None else rows
    here = _in_setting(known, k, word)
    usable = [n for n in METHODS if n in wanted and COMPUTE.index(METHODS[n].compute) <= level]
    table = _Table(here)
    asked = {"labels_per_class": k, "classes": m, "distance": word, "compute": compute}
    chosen, why = _choose(table, usable, margin)
    if chosen is None:
        return _silence(asked, why, known, usable)
    own = tuple(table.of(chosen))
    over = _baseline(table, chosen, usable)
    gains = _nearest(table.between(chosen, over), k)
    return Advice(
        method=chosen,
        **asked,
        why=why,
        gain=_hull([row.gain for row in gains]),
        over=over,
        agreement=_agreement(table, chosen, usable),
        evidence=own,
        unknown=_unknown(table, chosen, own, usable, k, m),
        alternatives=_alternatives(table, chosen, usable, margin),
    )


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} should be an integer, found {value!r}.")
    if value < least:
        raise ValueError(f"{name} should be {least} or more, found {value}.")
    return int(value)


def _one_of(name: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{name} should be one of {', '.join(known)}; found {value!r}.")
    return str(value)


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
        sides = {_side(row.gain) for row in self.between(method, over)}
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


def _baseline(table: _Table, chosen: str, usable: Sequence[str]) -> str:
    """What the gain is quoted over: no source at all where that was measured."""
    met = table.compared(chosen, usable, "better", "open", "disputed")
    return next((name for name in ("scratch", "own head", "probe") if name in met), met[0])


def _hull(gains: Sequence[Estimate]) -> Estimate:
    """The mean of the estimates, and the least interval that holds all of theirs."""
    return Estimate(
        float(np.mean([gain.value for gain in gains])),
        min(gain.low for gain in gains),
        max(gain.high for gain in gains),
        unit="points",
    )


def _agreement(table: _Table, chosen: str, usable: Sequence[str]) -> str:
    rows = [row for row in table.of(chosen) if row.over in usable]
    if table.compared(chosen, usable, "disputed"):
        return "disputed"
    if not table.compared(chosen, usable, "better"):
        return "open"
    return "one record" if len({row.record for row in rows}) == 1 else "undisputed"


def _unknown(
    table: _Table, chosen: str, own: Sequence[Evidence], usable: Sequence[str], k: int, m: int
) -> tuple[str, ...]:
    said = [
        f"Whether {chosen} is better than {name} is disputed between records."
        for name in table.compared(chosen, usable, "disputed")
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
    """
    known = evidence() if rows is None else rows

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
    """
    known = list(evidence() if rows is None else rows)
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


def unread(folder: Path | None = None) -> list[str]:
    """The shipped records that no study reads: they compare no two methods, or nobody added them.

    A record of which a study reads only the second figure counts as read.
    """
    read: set[str] = set()

    def load(name: str) -> Record:
        read.add(name)
        return records.load(name, folder)

    for study in STUDIES:
        for k in study.labels:
            _read(study, k, load)
    return [name for name in records.names(folder) if name not in read]
