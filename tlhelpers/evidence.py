"""What the book's records say about one method against another, and in which setting.

:data:`STUDIES` lists the comparisons that the shipped records hold: of which two methods, on what
task, with how many labels, how far from the source. :func:`load` reads them, and
:mod:`~tlhelpers.advice` makes advice of them. A chapter with a new record adds a :class:`Study` for
each comparison in it.
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

from tlhelpers import evaluate, records
from tlhelpers.evaluate import Estimate
from tlhelpers.records import Record

DISTANCES = ("same", "near", "unclear", "far")
COMPUTE = ("frozen", "training", "pretraining")

_CHARACTERS, _DOGS = "small images of characters", "photographs of dogs"


@dataclass(frozen=True, repr=False)
class Method:
    """A way to solve the target task.

    Attributes:
        name: as the advice calls it.
        text: what is done.
        compute: the least of ``COMPUTE`` that it takes.
        same: whether it makes sense only where the source has the target's classes.

    Example:
        >>> import tlhelpers as tl
        >>> tl.evidence.METHODS["probe"]
        probe: logistic regression on a frozen backbone's features (compute: frozen)
    """

    name: str
    text: str
    compute: str
    same: bool = False

    def __repr__(self) -> str:
        return f"{self.name}: {self.text} (compute: {self.compute})"


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method("own head", "the source network as it is; no label is used", "frozen", True),
            Method("pixels", "logistic regression on the grey values, no network", "frozen"),
            Method("prototypes", "class means of a frozen backbone's features", "frozen"),
            Method("probe", "logistic regression on a frozen backbone's features", "frozen"),
            Method("new head", "a linear head on a frozen backbone, by gradient steps", "training"),
            Method("fine-tuning", "the backbone, or much of it, learns on", "training"),
            Method("scratch", "the same kind of network from random weights", "training"),
            Method("adaptation", "fitting source to unlabelled target images", "pretraining", True),
            Method("episodes", "a prototypical network, pretrained on episodes", "pretraining"),
            Method("meta-learning", "a start learnt by MAML", "pretraining"),
            Method("joint training", "source and target in one training", "pretraining"),
        )
    }
)
"""All methods that the records compare, by name, the cheapest first."""


# --- a comparison, and how it is read ----------------------------------------------------


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

    Example:
        >>> import tlhelpers as tl
        >>> study = tl.evidence.Study(
        ...     record="glyphs/unfreeze",
        ...     chapter="05",
        ...     claims=("05.depth",),
        ...     task="handwritten digits",
        ...     source="letters",
        ...     distance="near",
        ...     classes=10,
        ...     labels=(2, 50),
        ...     method="new head",
        ...     over="fine-tuning",
        ...     read=tl.evidence.quoted("head only, {k} labels"),
        ... )
        >>> for row in tl.evidence.load(studies=[study]):
        ...     print(row.labels, row.gain)
        2 -1.4 points [-6.1, +3.3]
        50 -2.3 points [-3.0, -1.7]
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
        record: its name.
        chapter: the number of the chapter that shows it.
        claims: ids of that chapter's claims about it.
        task: what was to be learnt.
        source: what the network had learnt before.
        distance: a word of ``DISTANCES``.
        classes: of the target.
        labels: a class.
        method: a name in ``METHODS``.
        over: the one that it is compared with.
        gain: accuracy of ``method`` less that of ``over``.
        repetitions: how many seeds, draws or tasks stand behind it; with one or none, the interval
            covers other test images and nothing else.
        world: what kind of data.
        how: what was special in this comparison; empty for nothing.
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

    @property
    def side(self) -> str:
        """``"better"``, ``"worse"`` or ``"open"``: where the interval of the gain lies."""
        if self.gain.low > 0:
            return "better"
        return "worse" if self.gain.high < 0 else "open"

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

    Example:
        >>> import tlhelpers as tl
        >>> read = tl.evidence.quoted("head only, {k} labels")
        >>> gain, repetitions = read(tl.records.load, "glyphs/unfreeze", 50)
        >>> gain, repetitions
        (-2.3 points [-3.0, -1.7], 6)
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

    Example:
        >>> import tlhelpers as tl
        >>> read = tl.evidence.paired(
        ...     {"variant": "from scratch"}, {"variant": "baseline"}, value="accuracy", by="seed"
        ... )
        >>> gain, repetitions = read(tl.records.load, "glyphs/ablation", 10)
        >>> gain, repetitions
        (-4.0 points [-6.2, -1.8], 6)
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

    Example:
        >>> import tlhelpers as tl
        >>> record = tl.records.load("glyphs/federated")
        >>> read = tl.evidence.apart("letters, even", "letters, alone")
        >>> gain, repetitions = read(tl.records.load, record.name, 10)
        >>> gain
        +9.3 points [+5.1, +13.6]
        >>> record.estimate("letters, even minus alone", unit="points")  # paired, hence shorter
        +9.3 points [+7.9, +10.7]
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
        means = [float(np.mean(own)) for own in gains.values()]
        return evaluate.mean_interval(means, unit="points"), len(means)

    return read


def _measured_words(load: Load) -> dict[tuple[str, str], str]:
    rows = load("glyphs/distances").curve
    return {(row["target"], row["source"]): row["word"] for row in rows}


# --- the comparisons --------------------------------------------------------------------


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
_SCRATCH = {15: "dogs/scratch_resnet18_112_15epochs", 60: "dogs/scratch_resnet18_112"}  # epochs

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
            read=paired({"way": a}, {"way": b}, value="top1", by="seed", second_k=second_k),
            how=how,
        )
        for method, over, a, b, second_k, how in (
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
            record=record,
            claims=("08.scratch",),
            labels=(90,),
            method="scratch",
            over=over,
            read=apart("test_top1", "test_top1", second_in=f"dogs/{way}_mobilenet_v2_128"),
            how=f"a ResNet-18 at 112 px, {epochs} epochs, against a MobileNetV2 at 128 px",
        )
        for epochs, record in _SCRATCH.items()
        for over, way in (("probe", "probe"), ("fine-tuning", "lp_ft_norms"))
    ),
)
"""Every comparison of two methods that the advice knows of."""


# --- reading them -----------------------------------------------------------------------


def load(
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

    Example:
        >>> import tlhelpers as tl
        >>> rows = [row for row in tl.evidence.load() if row.record == "glyphs/unfreeze"]
        >>> for row in rows:
        ...     print(row.labels, row.side)
        2 open
        10 worse
        50 worse
    """
    read = functools.cache(functools.partial(records.load, folder=folder))
    return tuple(
        _read(study, k, read)
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
                f"{study.distance}, but it does not. Add them to tlhelpers.distances, and run its "
                f"script in experiments/ again."
            )
        word = words[study.distance]
    else:
        word = one_of("the distance of a study", study.distance, DISTANCES)
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

    Example:
        >>> import tlhelpers as tl
        >>> rows = [row for row in tl.evidence.load() if row.record == "glyphs/unfreeze"]
        >>> rows[0].method, rows[0].over, rows[0].gain
        ('new head', 'fine-tuning', -1.4 points [-6.1, +3.3])
        >>> seen = tl.evidence.against(rows, "new head")[0]
        >>> seen.method, seen.over, seen.gain
        ('fine-tuning', 'new head', +1.4 points [-3.3, +6.1])
    """
    over = one_of("a method", over, tuple(METHODS))
    both = [seen for row in rows for seen in (row, row.turned())]
    return [row for row in both if row.over == over]


def to_frame(rows: Iterable[Evidence]) -> pd.DataFrame:
    """A row for each comparison; value, low and high are differences of proportions.

    Example:
        >>> import tlhelpers as tl
        >>> rows = [row for row in tl.evidence.load() if row.record == "glyphs/unfreeze"]
        >>> tl.evidence.to_frame(rows)[["method", "over", "labels", "value"]].round(2)
             method         over  labels  value
        0  new head  fine-tuning       2  -0.01
        1  new head  fine-tuning      10  -0.01
        2  new head  fine-tuning      50  -0.02
    """
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
                "world": row.world,
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


def unread(folder: Path | None = None) -> list[str]:
    """The shipped records that no study reads: they compare no two methods, or nobody added them.

    A record of which a study reads only the second figure counts as read.

    Example:
        >>> import tlhelpers as tl
        >>> unread = tl.evidence.unread()
        >>> "dogs/near_duplicates" in unread, "glyphs/unfreeze" in unread
        (True, False)
    """
    read: dict[str, Record] = {}

    def load(name: str) -> Record:
        if name not in read:
            read[name] = records.load(name, folder)
        return read[name]

    for study in STUDIES:
        for k in study.labels:
            _read(study, k, load)
    return [name for name in records.names(folder) if name not in read]


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """The value, if it is one of those that are known.

    Args:
        name: what it is, as the error calls it.
        value: a word.
        known: the words that there are.

    Raises:
        ValueError: if it is not.

    Example:
        >>> import tlhelpers as tl
        >>> tl.evidence.one_of("a distance", "close", tl.evidence.DISTANCES)
        Traceback (most recent call last):
            ...
        ValueError: a distance should be one of same, near, unclear, far; found 'close'.
    """
    if value not in known:
        raise ValueError(f"{name} should be one of {', '.join(known)}; found {value!r}.")
    return str(value)
