"""Sources from near to far, and what becomes of a target that starts from them.

A family of networks of one architecture: those of the :mod:`~tlhelpers.zoo`, and four more that
are pretrained here, on letters that lie on their side, on letters whose pixels are shuffled, on
white noise, and on five alphabets together. :func:`finetuned` measures what the far ones are worth
to handwritten digits, :func:`remedies` and :func:`freezing` what helps where one is worth less than
nothing, and :func:`several` what several fine-tuned networks are worth together. They make the
records of chapter 14.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlhelpers import (
    combine,
    datasets,
    evaluate,
    features,
    models,
    probe,
    records,
    runtime,
    train,
    zoo,
)
from tlhelpers.characters import CLEAN, Shift
from tlhelpers.evaluate import Estimate
from tlhelpers.models import SmallResNet
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Split
from tlhelpers.train import Recipe

COMMAND = "python experiments/negative_transfer.py"
SIDEWAYS, PIXELS, NOISE = "sideways", "pixels", "noise"
JOINT = zoo.Source(
    name="joint",
    text="the characters of letters, greek, cyrillic, caucasus and signs together",
    alphabets=tuple(
        alphabet
        for name in ("letters", "greek", "cyrillic", "caucasus", "signs")
        for alphabet in zoo.source(name).alphabets
    ),
)
OWN = (SIDEWAYS, PIXELS, NOISE, JOINT.name)  # the sources that are pretrained here
SCRATCH = "random"
NAMES = (
    "letters",
    "greek",
    "blurred",
    SIDEWAYS,
    "rotation",
    "inverted",
    PIXELS,
    "shuffled",
    NOISE,
    SCRATCH,
)
"""The family, and no source at all."""

TUNED = (PIXELS, "shuffled", SCRATCH)
STAGES = ("stem", "stage1", "stage2", "stage3")
"""Of a network of the family, from the image on."""

SHOTS = (1, 100)  # ten labels: see remedies() here, and zoo.finetuned()
DRAWS = 5


# --- the family ---------------------------------------------------------------------------


def load(name: str, classes: int | None = None, *, seed: int = 0) -> SmallResNet:
    """A network of the family, of the zoo, or ``"joint"``.

    Args:
        name: its name.
        classes: None keeps the head that it was pretrained with; a number gives a fresh one.
        seed: of a fresh head; and of everything for ``"random"``.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> import tlhelpers as tl
        >>> network = tl.negative.load("sideways")
        >>> network.head.out_features, network.about["classes"][:3]
        (52, ['A', 'B', 'C'])
    """
    if name in OWN:
        return models.small_resnet(classes, weights=f"negative/{name}", seed=seed)
    return zoo.load(name, classes, seed=seed)


def data(name: str, *, images: int = zoo.IMAGES, seed: int = 0) -> Dataset:
    """What a network of the family was pretrained on.

    Three are made of ``"letters"`` and keep its labels: ``"sideways"`` turns every image by 90°,
    ``"pixels"`` puts its pixels in another order, one order for all images, and ``"noise"`` has
    uniform white noise in its place, so that no image says anything of its label.

    Args:
        name: as :func:`load` takes it.
        images: how many, all splits together; the classes share them evenly.
        seed: of the images.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> import tlhelpers as tl
        >>> letters = tl.negative.data("letters", images=260)
        >>> sideways = tl.negative.data("sideways", images=260)
        >>> bool((sideways.x[0, 0] == letters.x[0, 0].rot90()).all())
        True
        >>> bool((sideways.labels == letters.labels).all())
        True
    """
    if name not in (SIDEWAYS, PIXELS, NOISE):
        chosen = JOINT if name == JOINT.name else zoo.source(name)
        return zoo.data(chosen, images=images, seed=seed)
    letters = zoo.data(zoo.source("letters"), images=images, seed=seed)
    if name == SIDEWAYS:
        x = letters.x.rot90(1, (2, 3))
    elif name == NOISE:
        x = torch.rand(letters.x.shape, generator=Run(seed).generator(15))
    else:
        order = torch.randperm(letters.x[0].numel(), generator=Run(0).generator(14))
        x = letters.x.flatten(1)[:, order].reshape(letters.x.shape)
    return dataclasses.replace(letters, name=name, x=x)


def pretrain(
    name: str,
    run: Run | None = None,
    *,
    recipe: Recipe = zoo.PRETRAINING,
    images: int = zoo.IMAGES,
) -> SmallResNet:
    """Train a source that the zoo has not, as the zoo trains its own.

    Args:
        name: one of ``OWN``.
        run: seed and device; None for seed 0 on the best device.
        recipe: how it is trained.
        images: how many.

    Raises:
        ValueError: if it is not one of those.
    """
    if name not in OWN:
        raise ValueError(f"{', '.join(OWN)} are pretrained here, found {name!r}; see zoo.")
    run = runtime.default(run)
    task = data(name, images=images, seed=run.seed)
    network = models.small_resnet(len(task.classes), seed=run.seed)
    train.fit(network, task, recipe, run)
    return network.cpu().eval()


# --- hits: which images a predictor gets right, as text -----------------------------------


def pack(hits: np.ndarray) -> str:
    """(n,) booleans as hexadecimal digits, for a record.

    >>> pack(np.array([True, False, True, True]))
    'b0'
    """
    return np.packbits(np.asarray(hits, dtype=bool)).tobytes().hex()


def unpack(text: str, n: int) -> np.ndarray:
    """(n,) booleans from :func:`pack`.

    Raises:
        ValueError: if the text is of another number of booleans.

    >>> unpack("b0", 4).tolist()
    [True, False, True, True]
    """
    packed = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    if len(packed) != -(-n // 8):
        raise ValueError(f"{n} booleans are packed in {-(-n // 8)} bytes, found {len(packed)}.")
    return np.unpackbits(packed, count=n).astype(bool)


def hits(predict: Callable[[Tensor], Tensor], split: Split) -> np.ndarray:
    """(n,) booleans: which images of a split a predictor gets right.

    Raises:
        ValueError: if the split is the test split.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits()
        >>> def always_three(images):
        ...     return torch.eye(10)[3].expand(len(images), -1)
        >>> int(tl.negative.hits(always_three, digits.validation).sum()), len(digits.validation)
        (30, 300)
    """
    if split.name == "test":
        raise ValueError("hits are for train and validation; use evaluate.report for the test.")
    if isinstance(predict, nn.Module):
        predict.eval()
    with torch.inference_mode():
        return (predict(split.x).argmax(dim=1) == split.y).numpy()


# --- what each source is worth ------------------------------------------------------------


def finetune(
    name: str,
    task: Dataset,
    run: Run,
    *,
    recipe: Recipe = zoo.FINE_TUNING,
    l2_sp: float | None = None,
    frozen: int = 0,
) -> SmallResNet:
    """A network of the family, trained on for a target with a fresh head.

    Args:
        name: one of ``NAMES``.
        task: the target with few labels, see :func:`~tlhelpers.zoo.few`.
        run: seed of the head and of the order, and device.
        recipe: how; by default as in the zoo.
        l2_sp: how strongly the body is held near where it starts, in the place of weight decay.
        frozen: how many of ``STAGES`` stay as they are, counted from the image.

    Raises:
        ValueError: if there are not that many stages.

    Example:
        >>> import dataclasses
        >>> import tlhelpers as tl
        >>> task, run = tl.zoo.few(tl.zoo.target("digits"), draw=0), tl.runtime.Run()
        >>> recipe = dataclasses.replace(tl.zoo.FINE_TUNING, steps=3)
        >>> network = tl.negative.finetune("letters", task, run, recipe=recipe, frozen=4)
        >>> start = tl.negative.load("letters", 10)
        >>> [move.name for move in tl.models.diff_state(start, network).moves]
        ['head.weight', 'head.bias']
    """
    if not 0 <= frozen <= len(STAGES):
        raise ValueError(f"a network has 0 to {len(STAGES)} stages to freeze, found {frozen}.")
    network = load(name, len(task.classes), seed=run.seed)
    for stage in STAGES[:frozen]:
        models.freeze(network.get_submodule(stage))
    if l2_sp is not None:
        penalty = train.l2_sp(network, alpha=l2_sp)
        recipe = dataclasses.replace(recipe, weight_decay=0.0, regulariser=penalty)
    train.fit(network, task, recipe, run)
    return network.cpu().eval()


def finetuned(
    run: Run | None = None,
    *,
    sources: Sequence[str] = TUNED,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    recipe: Recipe = zoo.FINE_TUNING,
) -> Record:
    """Fine-tune the far sources on handwritten digits with few and with many labels.

    The recipe, the draws and the seeds are those of :func:`~tlhelpers.zoo.finetuned`. The test
    split is read once for each number of labels, by all sources and draws together.

    Args:
        run: device, and the seed of heads and orders, to which the draw is added.
        sources: networks of the family, no source among them.
        shots: labels a class.
        draws: how many draws of the labelled images.
        recipe: one for all.

    Returns:
        the record ``negative/finetuned``: a row for each source, number of labels and draw, with
        ``top1`` on test and the packed ``hits`` on validation. In the result, ``<source> minus
        random, <k> labels`` are paired differences.
    """
    run = runtime.default(run)
    origin = records.provenance(finetuned, command=COMMAND)
    start = time.perf_counter()
    digits = datasets.digits()
    rows: list[dict[str, Any]] = []
    for k in shots:
        networks = {}
        for draw in range(draws):
            own, few = dataclasses.replace(run, seed=run.seed + draw), zoo.few(digits, draw, k=k)
            for name in sources:
                networks[name, draw] = finetune(name, few, own, recipe=recipe)
        rows += _measured(networks, digits, f"family, {k} labels", k=k)
    return _record(
        "finetuned",
        rows,
        _gains(rows, "source", SCRATCH, shots),
        split=f"{digits.split_name}; {draws} draws of the labels",
        training=f"{recipe.steps} steps",
        draws=draws,
        run=run,
        origin=origin,
        start=start,
    )


def _measured(
    networks: Mapping[tuple[str, int], SmallResNet],
    digits: Dataset,
    name: str,
    *,
    column: str = "source",
    **more: Any,
) -> list[dict[str, Any]]:
    """A row for each network: its test accuracy, and its hits on validation."""
    reports = evaluate.grid(networks, digits.test, name=name, resamples=2)
    return [
        {
            column: key,
            "draw": draw,
            "top1": reports[key, draw].top1.value,
            "hits": pack(hits(network, digits.validation)),
            **more,
        }
        for (key, draw), network in networks.items()
    ]


def _gains(
    rows: Sequence[Mapping[str, Any]], column: str, baseline: str, shots: Sequence[int]
) -> dict[str, Estimate]:
    """Paired differences from the baseline, for each number of labels."""
    top1 = {(row[column], row["k"], row["draw"]): row["top1"] for row in rows}
    found = {}
    for name in dict.fromkeys(row[column] for row in rows):
        for k in shots:
            draws = [draw for n, j, draw in top1 if n == name and j == k]
            gaps = [top1[name, k, draw] - top1[baseline, k, draw] for draw in draws]
            if name != baseline and len(gaps) > 1:
                key = f"{name} minus {baseline}, {k} labels"
                found[key] = evaluate.mean_interval(gaps, unit="points")
    return found


def _record(
    name: str,
    rows: Sequence[dict[str, Any]],
    estimates: Mapping[str, Estimate],
    *,
    split: str,
    training: str,
    draws: int,
    run: Run,
    origin: Mapping[str, Any],
    start: float,
) -> Record:
    """The record of a study on handwritten digits with several draws of the labels."""
    return records.of_draws(
        f"negative/{name}",
        rows,
        estimates,
        split=split,
        input=f"digits, {datasets.GLYPH_SIZE} px, {training}",
        seeds=range(draws),
        run=run,
        origin=origin,
        start=start,
    )


# --- what helps ---------------------------------------------------------------------------

REMEDIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "as it comes": {},
        "L2-SP 1": {"l2_sp": 1.0},
        "rate x 5": {"recipe": dataclasses.replace(zoo.FINE_TUNING, lr=1e-2)},
    }
)
"""What is done otherwise than in ``zoo.FINE_TUNING``, by name."""

FREEZING: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"nothing": {}} | {stage: {"frozen": i} for i, stage in enumerate(STAGES, start=1)}
)
"""How much is frozen, by the last stage that is."""


def remedies(
    run: Run | None = None,
    *,
    sources: Sequence[str] = (PIXELS,),
    ways: Sequence[str] = tuple(REMEDIES),
    k: int = 10,
    draws: int = DRAWS,
) -> Record:
    """A source far away, fine-tuned with less and with more freedom to leave it.

    Args:
        run: device, and the seed of heads and orders, to which the draw is added.
        sources: networks of the family.
        ways: names in :data:`REMEDIES`.
        k: labels a class.
        draws: how many draws of the labelled images.

    Returns:
        the record ``negative/remedies``: a row for each source, way and draw, with ``top1`` on
        test and the packed ``hits`` on validation. In the result, ``<source>, <way>`` is the mean
        accuracy.
    """
    changes = {way: REMEDIES[way] for way in ways}
    return _compared(remedies, run, sources, changes, k=k, draws=draws)


def freezing(
    run: Run | None = None,
    *,
    sources: Sequence[str] = ("letters", PIXELS),
    ways: Sequence[str] = tuple(FREEZING),
    k: int = 10,
    draws: int = DRAWS,
) -> Record:
    """A near and a far source, fine-tuned with more and more of their stages frozen.

    The recipe is one for all, ``zoo.FINE_TUNING``; with all stages frozen it trains the head.

    Args:
        run: device, and the seed of heads and orders, to which the draw is added.
        sources: networks of the family.
        ways: names in :data:`FREEZING`.
        k: labels a class.
        draws: how many draws of the labelled images.

    Returns:
        the record ``negative/freezing``, with the rows and results of :func:`remedies`.
    """
    changes = {way: FREEZING[way] for way in ways}
    return _compared(freezing, run, sources, changes, k=k, draws=draws)


def _compared(
    study: Callable[..., Record],
    run: Run | None,
    sources: Sequence[str],
    changes: Mapping[str, Mapping[str, Any]],
    *,
    k: int,
    draws: int,
) -> Record:
    """The record of a study that fine-tunes each source in several ways."""
    run = runtime.default(run)
    origin = records.provenance(study, command=COMMAND)
    start = time.perf_counter()
    digits = datasets.digits()
    rows: list[dict[str, Any]] = []
    for source in sources:
        networks = {}
        for draw in range(draws):
            own, few = dataclasses.replace(run, seed=run.seed + draw), zoo.few(digits, draw, k=k)
            for way, change in changes.items():
                networks[way, draw] = finetune(source, few, own, **change)
        name = f"{study.__name__}, {source}"
        rows += _measured(networks, digits, name, column="way", source=source)
    means = {
        f"{source}, {way}": evaluate.mean_interval(
            [row["top1"] for row in rows if row["source"] == source and row["way"] == way]
        )
        for source in sources
        for way in changes
    }
    return _record(
        study.__name__,
        rows,
        means,
        split=f"{digits.split_name}; {k} labels a class, {draws} draws",
        training=f"{zoo.FINE_TUNING.steps} steps",
        draws=draws,
        run=run,
        origin=origin,
        start=start,
    )


# --- several networks ---------------------------------------------------------------------

INGREDIENTS = tuple((lr, seed) for lr in (1e-3, 4e-3) for seed in range(2))
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHORT = dataclasses.replace(zoo.FINE_TUNING, steps=50)
SHIFTED: Mapping[str, Shift] = MappingProxyType({"clean": CLEAN, "rotated": Shift(rotation=30)})
"""How the test digits are changed before a network sees them, as in chapter 01."""


def probed(name: str, task: Dataset, run: Run, *, ridge: float = 0.03) -> SmallResNet:
    """A network of the family with the head of a linear probe: where LP-FT starts.

    Args:
        name: one of ``NAMES``.
        task: the target with few labels.
        run: device.
        ridge: of the probe.

    Example:
        >>> import tlhelpers as tl
        >>> digits, run = tl.zoo.target("digits"), tl.runtime.Run()
        >>> network = tl.negative.probed("letters", tl.zoo.few(digits, draw=0), run)
        >>> tl.evaluate.validate(network, digits.validation).value > 0.8
        True
    """
    network = load(name, len(task.classes), seed=run.seed).eval()
    shown = task.subset(np.flatnonzero(task.split == "train"))
    bank = features.extract(shown, models.as_backbone(network), run=run)
    network.head.load_state_dict(probe.fit(bank, ridge=ridge, run=run).to_linear().state_dict())
    return network


def ingredients(
    start: SmallResNet,
    task: Dataset,
    run: Run,
    *,
    settings: Sequence[tuple[float, int]] = INGREDIENTS,
    recipe: Recipe = SHORT,
) -> list[SmallResNet]:
    """The same start, fine-tuned with several rates and orders.

    Args:
        start: such as :func:`probed` returns; it stays as it is.
        task: the target with few labels.
        run: device, and what is added to the seeds.
        settings: the rate, and the seed of the order, of each.
        recipe: the rest; body and head have one rate, since the head is no longer random.

    Example:
        >>> import dataclasses
        >>> import tlhelpers as tl
        >>> task, run = tl.zoo.few(tl.zoo.target("digits"), draw=0), tl.runtime.Run()
        >>> start = tl.negative.load("letters", 10)
        >>> recipe = dataclasses.replace(tl.negative.SHORT, steps=3)
        >>> settings = [(1e-3, 0), (1e-2, 0)]
        >>> slow, fast = tl.negative.ingredients(start, task, run, settings=settings, recipe=recipe)
        >>> moved = [tl.inside.movement(start, network).moved.mean() for network in (slow, fast)]
        >>> bool(moved[0] < moved[1])
        True
    """
    networks = []
    for lr, seed in settings:
        network = models.small_resnet(len(task.classes), widths=start.widths)
        network.load_state_dict(start.state_dict())
        rates = dataclasses.replace(recipe, lr=lr, head_lr=lr)
        train.fit(network, task, rates, dataclasses.replace(run, seed=100 * run.seed + seed))
        networks.append(network.cpu().eval())
    return networks


def together(
    start: SmallResNet, tuned: Sequence[SmallResNet], few: Dataset
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The ways to make one predictor of several fine-tuned networks, by name.

    Args:
        start: where all were fine-tuned from.
        tuned: they.
        few: what they were fine-tuned on, for BatchNorm's statistics.

    Returns:
        ``"tuned 0"``, ...: each alone; ``"ensemble"``; ``"soup"``, their average weights with
        BatchNorm's statistics measured again; ``"soup, averaged statistics"``; and ``"alpha 0"``
        to ``"alpha 1"``, on the way from the start to the last of them.

    Example:
        >>> import tlhelpers as tl
        >>> few = tl.zoo.few(tl.zoo.target("digits"), draw=0)
        >>> start, *tuned = (tl.negative.load("letters", 10, seed=seed) for seed in range(3))
        >>> predictors = tl.negative.together(start, tuned, few)
        >>> list(predictors)  # doctest: +NORMALIZE_WHITESPACE
        ['tuned 0', 'tuned 1', 'ensemble', 'soup', 'soup, averaged statistics', 'alpha 0',
        'alpha 0.25', 'alpha 0.5', 'alpha 0.75', 'alpha 1']
        >>> predictors["soup"](few.train.x).shape
        torch.Size([100, 10])
    """
    states = [network.state_dict() for network in tuned]
    average = combine.average_states(states)
    made: dict[str, Callable[[Tensor], Tensor]] = {f"tuned {i}": n for i, n in enumerate(tuned)}
    made["ensemble"] = combine.ensemble(tuned)
    made["soup"] = combine.with_state(start, average, x=few.train.x)
    made["soup, averaged statistics"] = combine.with_state(start, average)
    for alpha in ALPHAS:
        between = combine.interpolate_states(start.state_dict(), states[-1], alpha=alpha)
        made[f"alpha {alpha:g}"] = combine.with_state(start, between)
    return made


def several(
    run: Run | None = None,
    *,
    source: str = "letters",
    k: int = 10,
    draws: int = DRAWS,
    settings: Sequence[tuple[float, int]] = INGREDIENTS,
    recipe: Recipe = SHORT,
) -> Record:
    """Soups, ensembles and WiSE-FT on digits and on shifted digits.

    Nothing is chosen. Each draw of the labels has its own probe, fine-tuned networks and
    combinations. The test split is read once for each kind of shift.

    Args:
        run: device, and the seed, to which the draw is added.
        source: a network of the family.
        k: labels a class.
        draws: how many draws of the labelled images.
        settings, recipe: as :func:`ingredients` takes them.

    Returns:
        the record ``negative/several``: a row for each way (see :func:`together`) and draw, with
        the accuracies on the kinds of test images, by name, and that on ``validation`` of each
        network alone. In the result, ``<way>, <kind>`` is the mean.
    """
    run = runtime.default(run)
    origin = records.provenance(several, command=COMMAND)
    began = time.perf_counter()
    digits = datasets.digits()
    made: dict[tuple[str, int], Callable[[Tensor], Tensor]] = {}
    right: dict[tuple[str, int], float] = {}
    for draw in range(draws):
        own, few = dataclasses.replace(run, seed=run.seed + draw), zoo.few(digits, draw, k=k)
        start = probed(source, few, own)
        tuned = ingredients(start, few, own, settings=settings, recipe=recipe)
        made |= {(way, draw): one for way, one in together(start, tuned, few).items()}
        right |= {
            (f"tuned {i}", draw): float(hits(network, digits.validation).mean())
            for i, network in enumerate(tuned)
        }
    top1: dict[tuple[str, str, int], float] = {}
    for kind, shift in SHIFTED.items():
        seen = {key: after(shift, predict) for key, predict in made.items()}
        reports = evaluate.grid(seen, digits.test, name=f"several, {kind}", resamples=2)
        top1 |= {(kind, *key): report.top1.value for key, report in reports.items()}
    rows: list[dict[str, Any]] = [
        {"way": way, "draw": draw, "validation": right.get((way, draw))}
        | {kind: top1[kind, way, draw] for kind in SHIFTED}
        for way, draw in made
    ]
    means = {
        f"{way}, {kind}": evaluate.mean_interval([row[kind] for row in rows if row["way"] == way])
        for way in dict.fromkeys(way for way, _ in made)
        for kind in SHIFTED
    }
    return _record(
        "several",
        rows,
        means,
        split=f"{digits.split_name}; {k} labels a class, {draws} draws",
        training=f"{len(settings)} times {recipe.steps} steps",
        draws=draws,
        run=run,
        origin=origin,
        start=began,
    )


def after(shift: Shift, predict: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A predictor that sees its images shifted, always in the same way.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> predict = torch.nn.Flatten()
        >>> inverted = tl.negative.after(tl.characters.Shift(invert=1.0), predict)
        >>> inverted(torch.tensor([[[[0.0, 1.0], [0.25, 0.0]]]]))
        tensor([[1.0000, 0.0000, 0.7500, 1.0000]])
    """

    def shifted(images: Tensor) -> Tensor:
        if isinstance(predict, nn.Module):
            predict.eval()
        with torch.inference_mode():
            return predict(shift.apply(images, torch.Generator().manual_seed(0)))

    return shifted
