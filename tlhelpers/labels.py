"""What pretraining is worth, counted in labels: the measurements behind chapter 01.

A network pretrained on printed letters meets a task with few labels. Four ways to learn the task
are compared: the same data, the same number of steps, and for each way six settings to choose
from on validation. :func:`learn` takes one of the ways, :func:`search` compares its settings, and
:func:`study` makes the whole record.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tlhelpers import datasets, evaluate, features, models, probe, records, runtime, train
from tlhelpers.characters import CLEAN, MILD, Shift
from tlhelpers.evaluate import Estimate, Report
from tlhelpers.models import SmallResNet
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import PARTS, Dataset
from tlhelpers.train import History, Recipe

COMMAND = "python experiments/labels.py"
WAYS = ("pixels", "frozen", "scratch", "fine-tuned")
PLAIN = "scratch, no augmentation"
GRID = (1, 2, 5, 10, 20, 50, 100)
FAR_LABELS = 20
DRAWS = 10
FAR_DRAWS = 5
CHOOSING = (1000, 1001)  # draws that choose settings and are not used again
CHOSEN_AT = (1, 5, 20, 100)  # labels a class; numbers between them take the choice below
STEPS = 200
VALIDATE_EVERY = 10

VARIETY = Shift(rotation=10, shear=0.2, scale=(0.9, 1.1), translate=1.0)
"""The augmentation that the search may use; the target is handwriting."""

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        f"lr {lr:g}{', augmented' if augment else ''}": Recipe(
            steps=STEPS,
            lr=lr,
            head_lr=1e-2,
            warmup=0.1,
            augment=train.augmentation(VARIETY) if augment else None,
            validate_every=VALIDATE_EVERY,
            keep="last",
        )
        for augment in (False, True)
        for lr in (1e-3, 3e-3, 1e-2)
    }
)
"""What the two ways that train the whole network choose from, by name."""

RIDGES: Mapping[str, float] = MappingProxyType(
    {f"ridge {ridge:g}": ridge for ridge in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)}
)
"""What the two linear ways choose from, by name."""

SHIFTED: Mapping[str, Shift] = MappingProxyType(
    {
        "clean": CLEAN,
        "rotated": Shift(rotation=30),
        "blurred": Shift(blur=1.5),
        "noisy": Shift(noise=0.3),
    }
)
"""How the test digits are changed before a predictor sees them."""


# --- the four ways ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Learnt:
    """What a way of learning has come to.

    Attributes:
        way: one of ``WAYS``.
        predict: (n, 1, h, w) images to (n, m) scores.
        history: of the network that was trained; None for the linear ways.
        seconds: how long it took.
    """

    way: str
    predict: Callable[[Tensor], Tensor]
    history: History | None
    seconds: float

    def __repr__(self) -> str:
        steps = "" if self.history is None else f" and {int(self.history.step.iloc[-1])} steps"
        return f"{self.way}: learnt in {self.seconds:.2f} s{steps}"


def settings(way: str) -> Mapping[str, Any]:
    """The six settings of a way, by name: recipes or ridge weights.

    Raises:
        ValueError: if there is no such way.

    Example:
        >>> import tlhelpers as tl
        >>> list(tl.labels.settings("frozen"))
        ['ridge 1', 'ridge 0.3', 'ridge 0.1', 'ridge 0.03', 'ridge 0.01', 'ridge 0.003']
        >>> list(tl.labels.settings("fine-tuned"))[:2]
        ['lr 0.001', 'lr 0.003']
    """
    if way not in WAYS:
        raise ValueError(f"way should be one of {', '.join(WAYS)}, found {way!r}.")
    return RIDGES if way in ("pixels", "frozen") else RECIPES


def learn(
    way: str,
    data: Dataset,
    setting: str,
    *,
    source: str | Path = "letters",
    run: Run | None = None,
) -> Learnt:
    """Learn a task in one of the four ways.

    Args:
        way: ``"pixels"``: logistic regression on the grey values; ``"frozen"``: logistic
            regression on the features of the pretrained network, which stays as it is;
            ``"scratch"``: the same network, trained from random weights; ``"fine-tuned"``:
            trained from the pretrained weights, with a new head.
        data: images; only ``data.train`` is learnt from.
        setting: a name in :func:`settings`.
        source: the pretrained weights, see :func:`~tlhelpers.models.small_resnet`.
        run: seed of the weights that are random and of the order, and device.

    Raises:
        ValueError: if there is no such way, or the way has no such setting.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits()
        >>> for k in (1, 5):
        ...     learnt = tl.labels.learn("pixels", digits.few(k, draw=0), "ridge 0.1")
        ...     found = tl.evaluate.validate(learnt.predict, digits.validation)
        ...     print(f"{k} labels a class: {found.value:.1f}")
        1 labels a class: 0.7
        5 labels a class: 0.9
    """
    run = runtime.default(run)
    known = settings(way)
    if setting not in known:
        raise ValueError(f"{way} has the settings {', '.join(known)}; found {setting!r}.")
    start = time.perf_counter()
    history = None
    predict: Callable[[Tensor], Tensor]
    if way == "pixels":
        flat = dataclasses.replace(data, x=data.x.flatten(1))
        # Grey values share a unit: one scale for all is much better than one for each pixel.
        fitted = probe.fit(flat, ridge=known[setting], scale="common", run=run)
        predict = functools.partial(_on_pixels, fitted)
    elif way == "frozen":
        network = models.small_resnet(weights=source).eval()
        shown = data.subset(np.flatnonzero(data.split == "train"))
        bank = features.extract(shown, models.as_backbone(network), run=run)
        predict = functools.partial(
            _on_features, probe.fit(bank, ridge=known[setting], run=run), network
        )
    else:
        weights = source if way == "fine-tuned" else None
        network = models.small_resnet(len(data.classes), weights=weights, seed=run.seed)
        history = train.fit(network, data, known[setting], run)
        predict = network.cpu()
    return Learnt(way, predict, history, time.perf_counter() - start)


def _on_pixels(fitted: probe.Probe, images: Tensor) -> Tensor:
    return fitted(images.flatten(1))


def _on_features(fitted: probe.Probe, network: SmallResNet, images: Tensor) -> Tensor:
    return fitted(network.features(images))


def search(
    way: str,
    data: Dataset,
    k: int,
    *,
    draws: Iterable[int] = CHOOSING,
    source: str | Path = "letters",
    run: Run | None = None,
) -> pd.Series:
    """The mean accuracy of each setting on the whole validation split.

    Args:
        way: one of ``WAYS``.
        data: all of it; each draw takes k training images a class.
        k: labels a class.
        draws: seeds of draws and weights; use others for the result.
        source: the pretrained weights.
        run: device.

    Returns:
        a series named after the settings; ``idxmax()`` is the choice.

    Example:
        >>> import tlhelpers as tl
        >>> scores = tl.labels.search("pixels", tl.datasets.digits(), k=1, draws=[1000])
        >>> scores.name, len(scores), float(scores.max().round(1))
        ('pixels, k = 1', 6, 0.8)
    """
    run = runtime.default(run)
    unseen = data.subset(np.flatnonzero(data.split != "validation"))
    means = {}
    for setting in settings(way):
        scores = []
        for draw in draws:
            own = dataclasses.replace(run, seed=draw)
            learnt = learn(way, unseen.few(k, draw=draw), setting, source=source, run=own)
            scores.append(evaluate.validate(learnt.predict, data.validation, resamples=2).value)
        means[setting] = float(np.mean(scores))
    return pd.Series(means, name=f"{way}, k = {k}")


# --- tasks that letters do not prepare for ------------------------------------------------


def graded(
    parameter: str, grades: Mapping[str, Any], *, per_class: int = 200, seed: int = 0
) -> Dataset:
    """Letters again, but the label is how strongly one thing was done to them.

    Which letter it is does not matter: whoever learns to read has to ignore just what is asked
    for here.

    Args:
        parameter: one of the attributes of :class:`~tlhelpers.characters.Shift`.
        grades: the name of each class, and the value that the parameter takes in it.
        per_class: images of a class: half to train on, a fifth for validation, the rest a test.
        seed: of the images and the split.

    Example:
        >>> import tlhelpers as tl
        >>> tl.labels.graded(
        ...     "rotation", {"upright": (-10, 10), "lying": (80, 100)}, per_class=50
        ... )  # doctest: +NORMALIZE_WHITESPACE
        Dataset 'rotation': 2 classes; train 50, validation 20, test 30; split '50/20/30 % per
        class, seed 0'
    """
    images, labels = [], []
    for label, value in enumerate(grades.values()):
        shift = dataclasses.replace(MILD, **{parameter: value})
        drawn = datasets.glyphs(
            per_class=-(-per_class // 52),
            shift=shift,
            validation=0,
            test=0,
            seed=100 * seed + label,
        )
        order = torch.randperm(len(drawn), generator=runtime.Run(seed).generator(label))
        images.append(drawn.x[order[:per_class]])
        labels += [label] * per_class
    counts = np.round(np.cumsum((0.5, 0.2, 0.3)) * per_class).astype(int)
    parts = np.repeat(PARTS, np.diff(counts, prepend=0))
    return Dataset(
        name=parameter,
        classes=tuple(grades),
        x=torch.cat(images),
        labels=torch.tensor(labels),
        split=np.tile(parts, len(grades)),
        ids=tuple(f"{name}/{i}" for name in grades for i in range(per_class)),
        split_name=f"50/20/30 % per class, seed {seed}",
    )


FAR: Mapping[str, Callable[[], Dataset]] = MappingProxyType(
    {
        "which way it is turned": lambda: graded(
            "rotation", {f"{a}°": (a - 10, a + 10) for a in (-60, -30, 0, 30, 60)}
        ),
        "how thick the strokes are": lambda: graded(
            "stroke", {f"{a:g} px": (a - 0.2, a + 0.2) for a in (-0.6, 0.0, 0.6, 1.2, 1.8)}
        ),
        "how noisy it is": lambda: graded(
            "noise", {f"{a:g}": (a, a + 0.03) for a in (0.0, 0.04, 0.08, 0.12, 0.16)}
        ),
    }
)
"""Tasks on pictures of letters whose answer a reader of letters has learnt to ignore."""


# --- the study ----------------------------------------------------------------------------


def gain(ours: Sequence[Report], theirs: Sequence[Report], *, resamples: int = 1000) -> Estimate:
    """The mean accuracy of one way minus that of another, over draws and over test images.

    Both are measured draw by draw on the same images. The interval is a bootstrap that resamples
    draws and images independently of each other, so it covers other labelled images, other
    initial weights, and other test images.

    Args:
        ours, theirs: a report for each draw, in the same order, on one test split.
        resamples: of draws and images.

    Raises:
        ValueError: if the numbers of reports differ, or there are fewer than two.

    Example:
        >>> import tlhelpers as tl
        >>> digits, reports = tl.datasets.digits(), {}
        >>> for k in (1, 20):
        ...     reports[k] = [
        ...         tl.evaluate.report(
        ...             tl.labels.learn("pixels", digits.few(k, draw=draw), "ridge 0.1").predict,
        ...             digits.test,
        ...             name=f"{k} labels, draw {draw}",
        ...             resamples=2,
        ...         )
        ...         for draw in (0, 1)
        ...     ]
        >>> gain = tl.labels.gain(reports[20], reports[1])
        >>> round(gain.value, 1), gain.low > 0
        (0.3, True)
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(
            f"a gain needs two reports or more on either side, one for each draw, found "
            f"{len(ours)} and {len(theirs)}."
        )
    a, b = (np.stack([report.correct for report in side]).astype(float) for side in (ours, theirs))
    difference = a - b
    draws, images = difference.shape
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        rows = np.bincount(generator.integers(draws, size=draws), minlength=draws)
        columns = np.bincount(generator.integers(images, size=images), minlength=images)
        drawn.append(rows @ difference @ columns / difference.size)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(difference.mean()), float(low), float(high), unit="points")


def study(
    run: Run | None = None,
    *,
    source: str | Path = "letters",
    grid: Sequence[int] = GRID,
    draws: int = DRAWS,
    far_draws: int = FAR_DRAWS,
) -> Record:
    """Every way on handwritten digits with few and many labels, and on tasks far from letters.

    Settings are chosen on the whole validation split with draws that are not used again; see
    :func:`search`. Each task's test split is read once for each number of labels, by all ways
    and draws together; for digits once more for each kind of shift.

    Args:
        run: device.
        source: the pretrained weights.
        grid: labels a class, for digits.
        draws: repetitions with other labelled images, other random weights and another order.
        far_draws: the same for the other tasks.

    Returns:
        the record ``glyphs/labels``: a row of the curve for each task, way, number of labels and
        draw; in ``result`` for each number of labels what fine-tuning gains over training from
        scratch, and over training from scratch without augmentation.
    """
    run = runtime.default(run)
    origin = records.provenance(study, command=COMMAND)
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    result, interval = {}, {}
    digits = datasets.digits()
    chosen: dict[str, str] = {}
    for k in grid:
        if k in CHOSEN_AT or not chosen:
            chosen = _choices(digits, k, CHOOSING, source, run)
        points, reports = _repeat(digits, k, chosen, draws, source, run, shifts=SHIFTED)
        rows += points
        for other in ("scratch", PLAIN):
            estimate = gain(reports["fine-tuned"], reports[other])
            key = f"fine-tuned minus {other}, {k} labels"
            result[key], interval[key] = estimate.value, [estimate.low, estimate.high]
    for make in FAR.values():
        task = make()
        chosen = _choices(task, FAR_LABELS, CHOOSING[:1], source, run)
        clean = {"clean": CLEAN}
        points, _ = _repeat(task, FAR_LABELS, chosen, far_draws, source, run, shifts=clean)
        rows += points
    return Record(
        name="glyphs/labels",
        tier=run.tier,
        split=digits.split_name,
        input=f"glyphs and digits, {datasets.GLYPH_SIZE} px, {STEPS} steps",
        seeds=tuple(range(draws)),
        curve=tuple(rows),
        result=result,
        interval=interval,
        interval_over="95 %, bootstrap over draws and test images",
        wall_seconds=time.perf_counter() - start,
        **origin,
    )


def _choices(
    data: Dataset, k: int, draws: Sequence[int], source: str | Path, run: Run
) -> dict[str, str]:
    """The setting of each way, and the best of training from scratch without augmentation."""
    scores = {way: search(way, data, k, draws=draws, source=source, run=run) for way in WAYS}
    plain = [name for name, recipe in RECIPES.items() if recipe.augment is None]
    chosen = {way: str(score.idxmax()) for way, score in scores.items()}
    return chosen | {PLAIN: str(scores["scratch"][plain].idxmax())}


def _repeat(
    data: Dataset,
    k: int,
    chosen: Mapping[str, str],
    draws: int,
    source: str | Path,
    run: Run,
    *,
    shifts: Mapping[str, Shift],
) -> tuple[list[dict[str, Any]], dict[str, list[Report]]]:
    """A row for each way and draw, and the reports on the clean test split by way."""
    learnt, few = {}, {}
    for draw in range(draws):
        few[draw] = data.few(k, draw=draw)
        own = dataclasses.replace(run, seed=draw)
        for name, setting in chosen.items():
            way = "scratch" if name == PLAIN else name
            learnt[name, draw] = learn(way, few[draw], setting, source=source, run=own)
    reports = {
        kind: evaluate.grid(
            {key: _after(shift, one.predict) for key, one in learnt.items()},
            data.test,
            name=f"{k} labels, {kind}",
            resamples=2,
        )
        for kind, shift in shifts.items()
    }
    rows = []
    for (name, draw), one in learnt.items():
        seen = evaluate.validate(one.predict, few[draw].train, resamples=2).value
        history = one.history
        rows.append(
            {"task": data.name, "k": k, "way": name, "draw": draw, "setting": chosen[name]}
            | {kind: reports[kind][name, draw].top1.value for kind in reports}
            | {kind: None for kind in SHIFTED if kind not in reports}
            | {"train": seen, "seconds": one.seconds}
            | {"curve": [] if history is None else history.validation_top1.tolist()}
        )
    by_way = {name: [reports["clean"][name, draw] for draw in range(draws)] for name in chosen}
    return rows, by_way


def _after(shift: Shift, predict: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A predictor that sees its images shifted, always in the same way."""
    if shift == CLEAN:
        return predict

    def shifted(images: Tensor) -> Tensor:
        return predict(shift.apply(images, torch.Generator().manual_seed(0)))

    return shifted
