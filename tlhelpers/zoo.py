"""A zoo of small source networks, and target tasks to choose one of them for.

All are :func:`~tlhelpers.models.small_resnet`, pretrained on glyphs in a minute or less, and
each differs from the others in something that is declared: its characters, its images, its
labels, its size, or what it was asked to learn. :func:`load` gives one, :func:`describe` lists
them, :func:`target` gives a task with few labels, and :func:`finetuned` measures which source
was the best for which target: the truth that the estimators of
:mod:`~tlhelpers.transferability` are judged by.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch

from tlhelpers import datasets, evaluate, models, records, runtime, train
from tlhelpers.characters import MILD, Shift
from tlhelpers.models import SmallResNet
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.train import Recipe

COMMAND = "python experiments/zoo.py"
IMAGES = 16_000  # of a source, all splits together
OBJECTIVES = ("characters", "shuffled labels", "rotation", "nothing")
LETTERS = ("latin_upper", "latin_lower")
TURNS = ("0°", "90°", "180°", "270°")

PRETRAINING = Recipe(steps=700, batch_size=128, lr=3e-3, warmup=0.1, keep="last")
"""How every source of the zoo is trained, but for ``letters``, which has a recipe of its own."""

K = 10  # labels a class of a target
DRAWS = 5
FINE_TUNING = Recipe(steps=120, batch_size=32, lr=2e-3, head_lr=1e-2, keep="last")
"""The one recipe by which every source is fine-tuned, chosen on validation images."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a source network was pretrained on.

    The data that are not named are as for ``letters``, but ``letters`` alone was trained by a
    recipe of its own, for longer and with stronger augmentation; the others by ``PRETRAINING``.

    Attributes:
        name: such as ``"greek"``.
        text: what is special about it, in words.
        alphabets: as :func:`~tlhelpers.datasets.glyphs` takes them.
        fonts: None for all.
        shift: how its images vary.
        objective: what it was asked to tell from an image: the ``"characters"``; ``"shuffled
            labels"``, the characters after a random permutation over all images; the
            ``"rotation"`` by a multiple of 90°, which needs no labels; or ``"nothing"``.
        widths: the channels of its stages.

    Raises:
        ValueError: if the objective is unknown.

    Example:
        >>> import tlhelpers as tl
        >>> source = tl.zoo.Source(name="vowels", text="five letters", alphabets=tuple("AEIOU"))
        >>> source.objective, source.widths
        ('characters', (16, 32, 64))
    """

    name: str
    text: str
    alphabets: tuple[str, ...] = LETTERS
    fonts: tuple[str, ...] | None = None
    shift: Shift = MILD
    objective: str = "characters"
    widths: tuple[int, int, int] = models.WIDTHS

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"the objective of a source is one of {', '.join(OBJECTIVES)}; found "
                f"{self.objective!r}."
            )


SOURCES: tuple[Source, ...] = (
    Source(name="letters", text="the 52 Latin letters"),
    Source(name="five_letters", text="few classes: A to E", alphabets=tuple("ABCDE")),
    Source(name="greek", text="Greek", alphabets=("greek_upper", "greek_lower")),
    Source(name="cyrillic", text="Cyrillic", alphabets=("cyrillic_upper", "cyrillic_lower")),
    Source(
        name="caucasus",
        text="Armenian and Georgian capitals",
        alphabets=("armenian_upper", "georgian_capitals"),
    ),
    Source(name="signs", text="mathematical signs and arrows", alphabets=("maths", "arrows")),
    Source(
        name="blurred",
        text="letters, blurred and noisy",
        shift=dataclasses.replace(MILD, blur=(1.0, 2.0), noise=(0.1, 0.25)),
    ),
    Source(
        name="inverted",
        text="letters, paper and ink swapped",
        shift=dataclasses.replace(MILD, invert=1.0),
    ),
    Source(name="one_font", text="letters of a single font", fonts=("DejaVu Sans",)),
    Source(name="shuffled", text="letters with shuffled labels", objective="shuffled labels"),
    Source(name="rotation", text="letters without labels: which way up?", objective="rotation"),
    Source(name="wide", text="letters, twice as many channels", widths=(32, 64, 128)),
    Source(name="narrow", text="letters, half as many channels", widths=(8, 16, 32)),
    Source(name="random", text="no pretraining", objective="nothing"),
)

_BY_NAME = MappingProxyType({source.name: source for source in SOURCES})


# --- source networks ----------------------------------------------------------------------


def names() -> tuple[str, ...]:
    """The names of the source networks.

    Example:
        >>> import tlhelpers as tl
        >>> tl.zoo.names()[:4]
        ('letters', 'five_letters', 'greek', 'cyrillic')
    """
    return tuple(_BY_NAME)


def source(name: str) -> Source:
    """What is declared of a source network.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> import tlhelpers as tl
        >>> tl.zoo.source("greek").alphabets, tl.zoo.source("rotation").text
        (('greek_upper', 'greek_lower'), 'letters without labels: which way up?')
    """
    if name not in _BY_NAME:
        raise ValueError(f"the zoo has no source {name!r}; it has {', '.join(_BY_NAME)}.")
    return _BY_NAME[name]


def load(name: str, classes: int | None = None, *, seed: int = 0) -> SmallResNet:
    """A source network with its trained weights.

    Args:
        name: one of :func:`names`.
        classes: None keeps the head that it was pretrained with; a number gives a fresh one.
        seed: of a fresh head; and of everything for ``"random"``, whose own head has the classes
            of ``"letters"``.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> import tlhelpers as tl
        >>> greek = tl.zoo.load("greek")
        >>> greek.head.out_features, tl.zoo.load("greek", classes=10).head.out_features
        (49, 10)
    """
    chosen = source(name)
    if chosen.objective == "nothing":
        own = len(datasets.glyphs(chosen.alphabets, per_class=3, validation=0, test=0).classes)
        return models.small_resnet(
            own if classes is None else classes, widths=chosen.widths, seed=seed
        )
    weights = name if name == "letters" else f"zoo/{name}"
    return models.small_resnet(classes, weights=weights, seed=seed)


def describe() -> pd.DataFrame:
    """A row for each source network: what it is, its size, and how well it knows its own task.

    ``own_task`` is the accuracy on held-out images of what it was pretrained for, from the record
    ``zoo/pretrained``. It can only be compared where the tasks are the same.

    Example:
        >>> import tlhelpers as tl
        >>> tl.zoo.describe()[["source", "classes", "features", "parameters"]].tail(4)
              source  classes  features  parameters
        10  rotation        4        64       77364
        11      wide       52       128      313492
        12    narrow       52        32       21196
        13    random       52        64       80484
    """
    known = records.load("zoo/pretrained").to_frame().set_index("source")
    rows = []
    for name, one in _BY_NAME.items():
        network = load(name)
        rows.append(
            {
                "source": name,
                "pretrained on": one.text,
                "objective": one.objective,
                "classes": network.head.out_features,
                "features": network.head.in_features,
                "parameters": sum(p.numel() for p in network.parameters()),
                "own_task": float(known.loc[name, "top1"]),
            }
        )
    return pd.DataFrame(rows)


def data(source: Source, *, images: int = IMAGES, seed: int = 0) -> Dataset:
    """What a source network is pretrained on.

    Args:
        source: its declaration.
        images: how many, all splits together; the classes share them evenly.
        seed: of the images, and of what is shuffled or turned.

    Example:
        >>> import tlhelpers as tl
        >>> tl.zoo.data(tl.zoo.source("rotation"), images=260)
        Dataset 'turned': 4 classes; train 156, validation 52, test 52; split 'random, seed 0'
    """
    per_class = images // _count(source)
    drawn = datasets.glyphs(
        source.alphabets, fonts=source.fonts, shift=source.shift, per_class=per_class, seed=seed
    )
    generator = runtime.Run(seed).generator(7)
    if source.objective == "shuffled labels":
        mixed = torch.randperm(len(drawn), generator=generator)
        return dataclasses.replace(drawn, name="shuffled", labels=drawn.labels[mixed])
    if source.objective == "rotation":
        turns = torch.randint(4, (len(drawn),), generator=generator)
        x = torch.stack(
            [image.rot90(turn, (1, 2)) for image, turn in zip(drawn.x, turns.tolist(), strict=True)]
        )
        return dataclasses.replace(drawn, name="turned", classes=TURNS, x=x, labels=turns)
    return drawn


def pretrain(
    source: Source,
    run: Run | None = None,
    *,
    recipe: Recipe = PRETRAINING,
    images: int = IMAGES,
) -> SmallResNet:
    """Train a source network; under a minute of one core with the recipe of the zoo.

    Args:
        source: its declaration.
        run: seed and device; None for seed 0 on the best device.
        recipe: how it is trained.
        images: how many.
    """
    run = runtime.default(run)
    task = data(source, images=images, seed=run.seed)
    network = models.small_resnet(len(task.classes), widths=source.widths, seed=run.seed)
    if source.objective != "nothing":
        train.fit(network, task, recipe, run)
    return network.cpu().eval()


def pretrained(run: Run | None = None, *, images: int = IMAGES) -> Record:
    """How well each source network of the zoo, as shipped, does its own task.

    Returns:
        the record ``zoo/pretrained``: a row for each source network with its accuracy on the test
        split of its own task.
    """
    run = runtime.default(run)
    origin = records.provenance(pretrained, command=COMMAND)
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    interval = {}
    for name, one in _BY_NAME.items():
        task = data(one, images=images, seed=run.seed)
        report = evaluate.report(load(name), task.test, name=name)
        rows.append({"source": name, "top1": report.top1.value})
        interval[name] = [report.top1.low, report.top1.high]
    return Record(
        name="zoo/pretrained",
        tier=run.tier,
        split=f"random, seed {run.seed}",
        input=f"glyphs, {datasets.GLYPH_SIZE} px",
        seeds=(run.seed,),
        curve=tuple(rows),
        result={row["source"]: row["top1"] for row in rows},
        interval=interval,
        interval_over="95 %, bootstrap over the test images of the source's own task",
        wall_seconds=time.perf_counter() - start,
        **origin,
    )


def _count(source: Source) -> int:
    """The number of characters that are drawn; look-alikes count once."""
    return len(
        datasets.glyphs(
            source.alphabets, fonts=source.fonts, per_class=1, validation=0, test=0
        ).classes
    )


# --- targets ------------------------------------------------------------------------------

HARD = dataclasses.replace(
    MILD, rotation=20, shear=0.4, elastic=1.5, translate=1.5, resolution=(6, 12), noise=0.1
)
_BLURRED = Shift(blur=(1.0, 2.0), noise=(0.1, 0.25))
TARGETS: tuple[str, ...] = (
    "digits",
    "digits, inverted",
    "digits, blurred",
    "hebrew",
    "armenian",
    "georgian, inverted",
)
"""Six target tasks. No source network has seen one of their printed characters."""

# Hebrew and Armenian letters that look like Latin, Greek or Cyrillic ones: l, o, n, g, h, u.
_SEEN = frozenset("ןօոցհս")


def target(name: str) -> Dataset:
    """A target task: images and labels to draw a few from, and a test split.

    Handwritten digits, as they are, with paper and ink swapped, and blurred and noisy; and three
    alphabets, drawn more wildly than any source network has seen letters.

    Args:
        name: one of :data:`TARGETS`.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> import tlhelpers as tl
        >>> tl.zoo.target("digits, inverted")  # doctest: +NORMALIZE_WHITESPACE
        Dataset 'digits, inverted': 10 classes; train 1,000, validation 300, test 497; split
        '100/30/rest per class, seed 0'
        >>> tl.zoo.target("klingon")  # doctest: +NORMALIZE_WHITESPACE
        Traceback (most recent call last):
            ...
        ValueError: there is no target 'klingon'; there are: digits; digits, inverted; digits,
        blurred; hebrew; armenian; georgian, inverted.
    """
    if name not in TARGETS:
        raise ValueError(f"there is no target {name!r}; there are: {'; '.join(TARGETS)}.")
    kind, _, change = name.partition(", ")
    if kind == "digits":
        drawn = datasets.digits()
        shift = {"": Shift(), "inverted": Shift(invert=1.0), "blurred": _BLURRED}[change]
        x = shift.apply(drawn.x, runtime.Run().generator(8))
        return dataclasses.replace(drawn, name=name, x=x)
    alphabet = datasets.ALPHABETS["armenian_lower" if kind == "armenian" else kind]
    unseen = [character for character in alphabet if character not in _SEEN]
    shift = dataclasses.replace(HARD, invert=1.0) if change == "inverted" else HARD
    drawn = datasets.glyphs(unseen, shift=shift, per_class=80, validation=0.25, test=0.25)
    return dataclasses.replace(drawn, name=name)


def few(task: Dataset, draw: int, *, k: int = K) -> Dataset:
    """The target with k labels a class and nothing else to choose by: no validation split.

    Example:
        >>> import tlhelpers as tl
        >>> tl.zoo.few(tl.zoo.target("digits"), draw=0, k=5)  # doctest: +NORMALIZE_WHITESPACE
        Dataset 'digits': 10 classes; train 50, validation 0, test 497; split '100/30/rest per
        class, seed 0'
    """
    chosen = task.few(k, draw=draw)
    return chosen.subset(np.flatnonzero(chosen.split != "validation"))


# --- the truth ----------------------------------------------------------------------------


def finetune(
    name: str, task: Dataset, run: Run | None = None, *, recipe: Recipe = FINE_TUNING
) -> SmallResNet:
    """A source network, all of it trained on for a target with a fresh head.

    Args:
        name: one of :func:`names`.
        task: a target, as :func:`few` gives it.
        run: seed of the head and of the order, and device.
        recipe: how; by default the one for all.

    Example:
        >>> import dataclasses
        >>> import tlhelpers as tl
        >>> digits, run = tl.zoo.target("digits"), tl.runtime.Run()
        >>> recipe = dataclasses.replace(tl.zoo.FINE_TUNING, steps=15)
        >>> network = tl.zoo.finetune("letters", tl.zoo.few(digits, draw=0), run, recipe=recipe)
        >>> tl.evaluate.validate(network, digits.validation).value > 0.6
        True
    """
    run = runtime.default(run)
    network = load(name, len(task.classes), seed=run.seed)
    train.fit(network, task, recipe, run)
    return network


def finetuned(
    run: Run | None = None,
    *,
    sources: Sequence[str] | None = None,
    targets: Sequence[str] = TARGETS,
    k: int = K,
    draws: int = DRAWS,
    recipe: Recipe = FINE_TUNING,
) -> Record:
    """Fine-tune every source network on every target: what the estimators are to predict.

    The recipe is one for all and fixed beforehand, the last weights are taken, and each draw is
    one reading of its target's test split.

    Args:
        run: device, and the seed of heads and orders, to which the draw is added.
        sources: by default all.
        targets: the target tasks.
        k: labels a class.
        draws: how many draws of the labelled images, with the seeds 0, 1, ...
        recipe: how each is fine-tuned.

    Returns:
        the record ``zoo/finetuned``: a row for each target and source, with the test accuracies
        of its draws as a list, and the mean seconds of one fine-tuning.
    """
    run = runtime.default(run)
    sources = names() if sources is None else tuple(sources)
    origin = records.provenance(finetuned, command=COMMAND)
    start = time.perf_counter()
    rows, result, interval = [], {}, {}
    for target_name in targets:
        task = target(target_name)
        top1: dict[str, list[float]] = {name: [] for name in sources}
        seconds: dict[str, list[float]] = {name: [] for name in sources}
        for draw in range(draws):
            drawn = few(task, draw, k=k)
            networks = {}
            for name in sources:
                begin = time.perf_counter()
                again = dataclasses.replace(run, seed=run.seed + draw)
                networks[name] = finetune(name, drawn, again, recipe=recipe)
                seconds[name].append(time.perf_counter() - begin)
            reports = evaluate.grid(networks, drawn.test, name=f"draw {draw}", resamples=2)
            for name, report in reports.items():
                top1[name].append(report.top1.value)
        rows += [
            {
                "target": target_name,
                "source": name,
                "mean": float(np.mean(top1[name])),
                "top1": top1[name],
                "seconds": float(np.mean(seconds[name])),
            }
            for name in sources
        ]
        best = max(sources, key=lambda name: float(np.mean(top1[name])))
        estimate = evaluate.mean_interval(top1[best])
        key = f"best on {target_name}: {best}"
        result[key], interval[key] = estimate.value, [estimate.low, estimate.high]
    result["seconds a fine-tuning"] = float(np.mean([row["seconds"] for row in rows]))
    return Record(
        name="zoo/finetuned",
        tier=run.tier,
        split=f"{k} labels a class, {draws} draws, no validation",
        input=f"glyphs and digits, {datasets.GLYPH_SIZE} px",
        seeds=tuple(range(draws)),
        curve=tuple(rows),
        result=result,
        interval=interval,
        interval_over=f"95 %, t, over {draws} draws",
        wall_seconds=time.perf_counter() - start,
        **origin,
    )
