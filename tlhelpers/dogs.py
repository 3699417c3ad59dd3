"""Training on Stanford Dogs: the ways that chapter 08 compares, and the studies behind its records.

A text that this book answers recommends a frozen ResNet-18 with a new last layer, Adam at 1e-3,
random crops and flips, dropout and early stopping, and promises about 85 % against about 75 % from
scratch. :data:`RECIPE` is that text to the letter, :data:`SCRATCH` the other side of its
comparison, and the rest what else one would try. :func:`study` trains a network in one of
these ways, :func:`label_study` with few labels, :func:`ablation_study` with one decision
changed at a time.

**The layout of the records.** The curve has a row for each run (a network trained once and
measured once): ``way``, ``architecture``, ``size`` in pixels, ``k`` training images of each class,
``seed`` (of the draw of the labelled images too), figures of the run under the names of
``result``, and three nested parts: ``history`` (the rows of a :class:`~tlhelpers.train.History`),
``stages`` (what fine-tuning changed, see :class:`~tlhelpers.ways.Learnt`) and ``test_correct``,
which test images were classified right, packed. :func:`runs`, :func:`history`, :func:`stages` and
:func:`correct` read them back; :func:`difference` compares two runs, or a run and a report,
image by image.

The photographs in these records are crops to the annotated box, squashed to 224 × 224 pixels: what
holds for them need not hold for whole photographs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from tlhelpers import evaluate, labels, records, runtime, ways
from tlhelpers.augment import PhotoAugment
from tlhelpers.evaluate import Estimate, Report
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.train import Recipe
from tlhelpers.ways import Learnt, Penalty, Way

GRID = (1, 2, 5, 10, 20, 50, 90)
SIZES = (96, 128, 160, 224)
OVER_IMAGES = "95 %, bootstrap over test images; one seed"
FIGURES = (
    "test_top1", "test_top5", "test_nll", "test_ece", "validation_top1", "train_minutes",
    "core_minutes", "images_per_second", "peak_memory_gb", "epochs", "best_epoch",
)  # fmt: skip

# --- the ways -----------------------------------------------------------------------------

PROBE = Way(name="probe", head="probe", frozen="body", recipe=None)
"""Logistic regression on all features of the body, which stays as it is, as chapter 04 does it.

Without augmentation, and without the compression of the shipped banks."""

RECIPE = Way(
    name="recipe",
    frozen="body",
    augment=PhotoAugment(),
    recipe=Recipe(
        epochs=20,
        optimizer="adam",
        lr=1e-3,
        weight_decay=0.0,
        schedule="constant",
        batch_size=64,
        dropout=0.5,
        monitor="loss",
        patience=3,
    ),
)
"""The recipe that is quoted, with the last layer alone, Adam, crops, flips, dropout and stopping.

What the text leaves open is filled with what its readers would most likely type: torchvision's
defaults for crops (8 to 100 % of the area) and flips, Adam's defaults otherwise, dropout of a half,
a constant rate, and a patience of three epochs on the validation loss."""

_TUNING = Recipe(
    epochs=6,
    optimizer="sgd",
    lr=1e-3,
    weight_decay=0.0,
    warmup=0.1,
    batch_size=64,
    dropout=0.2,
    clip=5.0,
    monitor="top1",
)

LP_FT = Way(
    name="lp_ft",
    head="probe",
    augment=PhotoAugment(scale=(0.5, 1.0)),
    recipe=_TUNING,
    spread=0.1,
    penalty=Penalty(kind="l2", alpha=1e-4, beta=1e-4),
    least_steps=200,
)
"""All layers, from the head of a probe (LP-FT; Kumar et al. 2022), with rates that fall with depth.

SGD with momentum, since a penalty in the loss means what it says there: Adam would divide it by
the size of the gradients. The head, which is an optimum already, learns no faster than the layers
below it: their features are large, and at a higher rate the first steps throw away what the probe
has found. For the same reason the rates rise over the first tenth of the steps. The rate is the
better of 0.001 and 0.003 for MobileNetV2 in trials of two epochs on half of the training images, by
validation; for SqueezeNet the two were level. Six epochs: the start is good. Crops of half of the
area or more: our images are cut to the dog already. The penalty is the usual weight decay."""

LP_FT_SP = dataclasses.replace(
    LP_FT, name="lp_ft_sp", penalty=Penalty(kind="l2_sp", alpha=1e-2, beta=1e-2)
)
"""LP-FT, held near the pretrained weights instead of near 0 (L2-SP; Li et al. 2018).

Their alpha is larger than a usual weight decay for good reason: the start costs nothing."""

LP_FT_NORMS = dataclasses.replace(LP_FT, name="lp_ft_norms", frozen="norms")
"""LP-FT with batch normalisation as it was pretrained; not for networks that have none.

A probe sees features that were normalised by stored statistics. Where training normalises by those
of each batch, its features are others from the first step on, and the head does not fit them: the
more so with our MobileNetV2, whose stored statistics were rebuilt from crops of dogs at 224 px."""

FULL = dataclasses.replace(
    LP_FT, name="full", head="new", recipe=dataclasses.replace(_TUNING, head_lr=3e-2)
)
"""All layers, from a new head, as most people fine-tune; the head learns thirty times as fast."""

FULL_SP = dataclasses.replace(FULL, name="full_sp", penalty=LP_FT_SP.penalty)
"""The same, held near the pretrained weights."""

SCRATCH = Way(
    name="scratch",
    start="random",
    augment=PhotoAugment(scale=(0.25, 1.0), brightness=0.2, contrast=0.2, saturation=0.2),
    recipe=Recipe(
        epochs=60,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        warmup=0.1,
        batch_size=128,
        label_smoothing=0.1,
        clip=1.0,
        dropout=0.0,
        monitor="top1",
    ),
    least_steps=1000,
)
"""Random weights, with what training from scratch is known to need to be a fair rival.

A rate that rises first and then falls to 0, weight decay, label smoothing, clipped gradients,
stronger augmentation than for fine-tuning, ten times as many epochs, and with few labels no fewer
than a thousand steps. A run of a quarter of that length, beside one of 60 epochs, says what the
other three quarters bring."""

WAYS: Mapping[str, Way] = MappingProxyType(
    {way.name: way for way in (PROBE, RECIPE, LP_FT, LP_FT_SP, LP_FT_NORMS, FULL, FULL_SP, SCRATCH)}
)
"""The ways by name."""

COMPARED = (PROBE, LP_FT_NORMS, SCRATCH)
"""What :func:`label_study` compares."""


def decisions(base: Way = LP_FT, *, norms: bool = True) -> dict[str, Way]:
    """The base, and what becomes of it when one decision is changed.

    Args:
        base: trained in some way, with an augmentation.
        norms: whether the network has batch normalisation that can be frozen.

    Returns:
        ways by what is done instead; ``"baseline"`` is the base.

    Example:
        >>> import tlhelpers as tl
        >>> ways = tl.dogs.decisions()
        >>> len(ways), ways["baseline"].size, ways["96 px"].size
        (10, 224, 96)
        >>> tl.dogs.decisions(norms=False).keys() ^ ways.keys()
        {'norms frozen'}
    """
    assert base.recipe is not None
    found = {"baseline": base}
    sizes = [size for size in SIZES if size != base.size and size <= base.stored]
    found |= {f"{size} px": base.at(size=size) for size in sizes}
    found["no augmentation"] = dataclasses.replace(base, augment=None)
    for p in (0.0, 0.2, 0.5):
        if p != base.recipe.dropout:
            recipe = dataclasses.replace(base.recipe, dropout=p)
            found[f"dropout {p:g}"] = dataclasses.replace(base, recipe=recipe)
    found["no penalty"] = dataclasses.replace(base, penalty=None)
    found["L2-SP"] = dataclasses.replace(base, penalty=LP_FT_SP.penalty)
    if norms:
        found["norms frozen"] = dataclasses.replace(base, frozen="norms")
    return found


STOPPED_ON_TEST = "stopped on test"
"""The decision that :func:`ablation_study` makes wrongly on purpose."""


# --- the studies --------------------------------------------------------------------------


def study(
    way: Way,
    data: Dataset,
    architecture: str,
    *,
    weights: str | Path = "imagenet",
    seeds: Sequence[int] = (0,),
    run: Run | None = None,
    command: str,
) -> Record:
    """Train a network in a way, once for each seed, and read the test split once for each.

    Selection (early stopping, the best epoch, a ridge weight) is by validation. An interrupted
    study continues where it stopped; what it needs for that lies in :func:`checkpoints`.

    Args:
        way: one of :data:`WAYS`, or one of your own.
        data: photographs, such as ``datasets.stanford_dogs(PATH)``.
        architecture: torchvision's name of the network.
        weights: of the body where it is pretrained, see :func:`tlhelpers.models.backbone`.
        seeds: of the weights that are random, of the order, augmentation and dropout.
        run: device and dtype.
        command: the shell command that makes this record again.

    Returns:
        the record :func:`record_name`. ``result`` holds means over seeds: ``test_top1``,
        ``test_top5``, ``test_nll`` (nats), ``test_ece``, ``validation_top1``, and of training
        ``train_minutes`` (evaluations included), ``core_minutes`` (the same, on one core of the
        processor), ``images_per_second``, ``peak_memory_gb``, ``epochs`` and ``best_epoch``. The
        interval of ``test_top1`` is over test images, with several seeds over seeds too. Code and
        commit are those that trained.
    """
    run = runtime.default(run)
    origin, start = records.provenance(study, ways.learn, command=command), time.perf_counter()
    data = ways.stored(data, way.stored)
    name = record_name(way, architecture)
    done = [
        _measure(way, data, architecture, weights, seed, run, reading=f"{name}, seed {seed}")
        for seed in runtime.progress(_distinct(seeds, "seeds"), desc=name, unit="run")
    ]
    top1 = _mean_top1([one.report for one in done])
    return _record(
        name,
        done,
        data,
        input=_input(way, architecture, weights, run),
        result=_means([one.row for one in done]),
        interval={"test_top1": [top1.low, top1.high]},
        seeds=seeds,
        run=run,
        origin=origin,
        start=start,
    )


def label_study(
    data: Dataset,
    architecture: str,
    *,
    compared: Sequence[Way] = COMPARED,
    weights: str | Path = "imagenet",
    grid: Sequence[int] = GRID,
    draws: Sequence[int] = (0,),
    run: Run | None = None,
    command: str,
) -> Record:
    """How good a network gets with k labelled images a class, in several ways.

    Early stopping, the best epoch and the ridge weight are chosen on the whole validation split,
    ten images a breed, at every k: with one to ten labels a breed this is more than most people
    would keep for it, and flatters all ways, those that train the longest the most.

    Args:
        data: photographs.
        architecture: torchvision's name of the network.
        compared: the ways, on images of one size.
        weights: of the body where it is pretrained.
        grid: numbers of training images a class.
        draws: seeds of the draws of training images, and of everything random in training; with
            as many images as there are, draws differ in the latter alone.
        run: device and dtype.
        command: the shell command that makes this record again.

    Returns:
        the record :func:`label_name`. ``result`` holds for each way and k the
        mean top-1 over draws (``probe_top1_k5``), and for each two ways their paired difference
        (``probe_minus_scratch_k5``). The intervals are over test images, with several draws over
        draws too.
    """
    run = runtime.default(run)
    origin, start = (
        records.provenance(label_study, ways.learn, command=command),
        time.perf_counter(),
    )
    data = ways.stored(data, compared[0].stored)
    name = label_name(compared, architecture)
    jobs = [(way, k, draw) for k in grid for way in compared for draw in _distinct(draws, "draws")]
    done = {
        (way.name, k, draw): _measure(
            way, data.few(k, draw=draw), architecture, weights, draw, run,
            reading=f"{name}, {way.name}, k = {k}, draw {draw}",
        )
        for way, k, draw in runtime.progress(jobs, desc=name, unit="run")
    }  # fmt: skip
    estimates = {}
    for k in grid:
        reports = {w.name: [done[w.name, k, draw].report for draw in draws] for w in compared}
        for i, (way, ours) in enumerate(reports.items()):
            estimates[f"{way}_top1_k{k}"] = _mean_top1(ours)
            for other, theirs in list(reports.items())[i + 1 :]:
                estimates[f"{way}_minus_{other}_k{k}"] = _gain(ours, theirs)
    return _record(
        name,
        list(done.values()),
        data,
        input="; ".join(_input(way, architecture, weights, run) for way in compared),
        seeds=draws,
        run=run,
        origin=origin,
        start=start,
        **records.figures(estimates),
    )


def ablation_study(
    data: Dataset,
    architecture: str,
    *,
    base: Way = LP_FT,
    only: Sequence[str] | None = None,
    weights: str | Path = "imagenet",
    seeds: Sequence[int] = (0,),
    run: Run | None = None,
    command: str,
) -> Record:
    """What each decision in fine-tuning is worth, one at a time.

    The last decision is a mistake on purpose: a network whose best epoch is chosen on the test
    split, which it is given as its validation split (the test split is opened for this, and its
    log says so). The base, from the same seed, takes the same steps to the same weights, so that
    the accuracies on the test split at two of its epochs, that which is best there and that which
    is best on validation, tell how much the mistake flatters.

    Args:
        data: photographs.
        architecture: torchvision's name of the network.
        base: what one decision is changed of.
        only: some of the names in :func:`decisions`, or :data:`STOPPED_ON_TEST`; None for all
            that the network allows.
        weights: of the body where it is pretrained.
        seeds: one run each.
        run: device and dtype.
        command: the shell command that makes this record again.

    Returns:
        the record :func:`ablation_name`, in whose rows ``way`` names the decision. ``result`` holds
        for each its mean top-1 on the test split (``160 px``) and the paired difference to the
        baseline (``160 px minus baseline``), and as ``flattered by stopping on test`` how much the
        mistake adds. The intervals are over test images, with several seeds over seeds too. In
        ``history`` of the mistake, the columns ``validation_...`` are of the test split.

    Raises:
        ValueError: if there is no such decision.
    """
    run = runtime.default(run)
    origin, start = (
        records.provenance(ablation_study, ways.learn, command=command),
        time.perf_counter(),
    )
    chosen = _chosen(base, architecture, only)
    data = ways.stored(data, chosen["baseline"].stored)
    name = ablation_name(base, architecture)
    done: dict[tuple[str, int], _Measured] = {}
    jobs = [(label, seed) for label in chosen for seed in _distinct(seeds, "seeds")]
    for label, seed in runtime.progress(jobs, desc=name, unit="run"):
        reading = f"{name}, {label}, seed {seed}"
        learns_from = data
        if label == STOPPED_ON_TEST:
            learns_from = _test_as_validation(data, reason=f"{reading}: as validation, on purpose")
        done[label, seed] = _measure(
            chosen[label], data, architecture, weights, seed, run,
            reading=reading, label=label, learns_from=learns_from,
        )  # fmt: skip
    reports = {label: [done[label, seed].report for seed in seeds] for label in chosen}
    estimates = {label: _mean_top1(ours) for label, ours in reports.items()}
    for label in list(chosen)[1:]:
        gain = difference(reports[label], reports["baseline"])
        estimates[f"{label} minus baseline"] = gain
    found = records.figures(estimates)
    if STOPPED_ON_TEST in chosen:
        added = [
            _flattery(done["baseline", seed].row, done[STOPPED_ON_TEST, seed].row) for seed in seeds
        ]
        found["result"]["flattered by stopping on test"] = float(np.mean(added))
    return _record(
        name,
        list(done.values()),
        data,
        input=f"one decision changed of: {_input(chosen['baseline'], architecture, weights, run)}",
        seeds=seeds,
        run=run,
        origin=origin,
        start=start,
        **found,
    )


def _chosen(base: Way, architecture: str, only: Sequence[str] | None) -> dict[str, Way]:
    """The decisions to try, the baseline first."""
    known = decisions(base, norms=ways.has_norms(architecture))
    known[STOPPED_ON_TEST] = dataclasses.replace(known["baseline"], name="stopped_on_test")
    if only is None:
        return known
    if unknown := [label for label in only if label not in known]:
        raise ValueError(
            f"there is no decision {unknown[0]!r} about {architecture}; there are "
            f"{', '.join(known)}."
        )
    return {label: way for label, way in known.items() if label in ("baseline", *only)}


def _test_as_validation(data: Dataset, *, reason: str) -> Dataset:
    """The same training images, and the test split where selection looks."""
    data.test.open(reason=reason)
    kept = data.subset(np.flatnonzero(data.split != "validation"))
    return dataclasses.replace(kept, split=np.where(kept.split == "test", "validation", kept.split))


def _flattery(honest: Mapping[str, Any], mistaken: Mapping[str, Any]) -> float:
    """Test accuracy at the epoch that is best on test, minus that at the one best on validation."""
    on_test = {row["epoch"]: row["validation_top1"] for row in mistaken["history"]}
    return max(on_test.values()) - on_test[honest["best_epoch"]]


# --- one run of a study -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Measured:
    """A run: its row in the record, its report, and where its weights come from."""

    row: dict[str, Any]
    report: Report
    waited: float
    commit: str | None
    clean: bool | None


def _measure(
    way: Way,
    data: Dataset,
    architecture: str,
    weights: str | Path,
    seed: int,
    run: Run,
    *,
    reading: str,
    label: str | None = None,
    learns_from: Dataset | None = None,
) -> _Measured:
    run = dataclasses.replace(run, seed=seed)
    source = data if learns_from is None else learns_from
    learnt = ways.learn(
        way,
        source,
        architecture,
        run=run,
        # Whatever else it learns from, a probe chooses its ridge weight on validation.
        first=ways.begin(way, data, architecture, weights=weights, run=run),
        checkpoint=checkpoints(data) / _file_name(way, source, architecture, run),
    )
    # Measured in float32, whatever it was trained in.
    with runtime.keep_memory():
        report = evaluate.report(learnt.network, data.test, name=reading)
        validation = evaluate.validate(learnt.network, data.validation, resamples=2).value
    row = {
        "way": way.name if label is None else label,
        "architecture": architecture,
        "size": way.size,
        "k": _per_class(source),
        "seed": seed,
        "test_top1": report.top1.value,
        "test_top5": None if report.top5 is None else report.top5.value,
        "test_nll": report.nll.value,
        "test_ece": report.ece.value,
        "validation_top1": validation,
        **_of_training(learnt),
        "history": learnt.history.to_dict("records"),
        "stages": _without_nan(learnt.stages),
        "test_images": len(report),
        "test_ids": _digest(report.ids),
        "test_correct": np.packbits(report.correct).tobytes().hex(),
    }
    return _Measured(row, report, learnt.waited, learnt.commit, learnt.clean)


def _of_training(learnt: Learnt) -> dict[str, float | int | None]:
    history, peak = learnt.history, learnt.peak_bytes
    trained = not history.empty
    return {
        "train_minutes": learnt.seconds / 60 if trained else None,
        "core_minutes": history.core_seconds.iloc[-1] / 60 if trained else None,
        "images_per_second": learnt.images_per_second if trained else None,
        "peak_memory_gb": None if peak is None else peak / 1e9,
        "epochs": int(history.epoch.iloc[-1]) if trained else None,
        "best_epoch": history.best_epoch if trained else None,
    }


def _without_nan(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()}
        for row in frame.to_dict("records")
    ]


def _per_class(data: Dataset) -> int:
    """The training images of the rarest class."""
    return int(np.bincount(data.train.y.numpy(), minlength=len(data.classes)).min())


def _digest(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def checkpoints(data: Dataset) -> Path:
    """The folder from which interrupted studies of a data set continue.

    A finished run's file makes the next call cheap. Delete the folder when the records are saved;
    a ResNet-18 takes about 200 MB a run.

    Example:
        >>> import tlhelpers as tl
        >>> tl.dogs.checkpoints(tl.datasets.digits()).parts[-2:]
        ('checkpoints', 'digits')
    """
    return runtime.cache_folder() / "checkpoints" / data.name


def _file_name(way: Way, data: Dataset, architecture: str, run: Run) -> str:
    settings = hashlib.sha256(repr(way).encode()).hexdigest()[:8]
    return (
        f"{way.name}_{architecture}_{way.size}_k{_per_class(data)}_seed{run.seed}_"
        f"{run.device.type}_{settings}.pt"
    )


# --- making records -----------------------------------------------------------------------


def record_name(way: Way, architecture: str) -> str:
    """``dogs/<way>_<architecture>_<size>``, with the epochs where they are not the way's own.

    Example:
        >>> import tlhelpers as tl
        >>> tl.dogs.record_name(tl.dogs.LP_FT, "squeezenet1_1")
        'dogs/lp_ft_squeezenet1_1_224'
        >>> tl.dogs.record_name(tl.dogs.LP_FT.at(epochs=2), "squeezenet1_1")
        'dogs/lp_ft_squeezenet1_1_224_2epochs'
    """
    return f"dogs/{way.name}_{architecture}_{way.size}{_other_length(way)}"


def label_name(compared: Sequence[Way], architecture: str) -> str:
    """``dogs/labels_<architecture>_<size>``, with the epochs where they are not the ways' own.

    Raises:
        ValueError: if the ways see images of different sizes.

    Example:
        >>> import tlhelpers as tl
        >>> small = tl.dogs.LP_FT.at(size=128)
        >>> tl.dogs.label_name([small, tl.dogs.PROBE.at(size=128)], "mobilenet_v2")
        'dogs/labels_mobilenet_v2_128'
        >>> tl.dogs.label_name([small, tl.dogs.PROBE], "mobilenet_v2")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: ways that are compared should see images of one size and one stored size, ...
    """
    sizes = {(way.size, way.stored) for way in compared}
    if len(sizes) != 1:
        raise ValueError(
            f"ways that are compared should see images of one size and one stored size, found "
            f"{sorted(sizes)}."
        )
    lengths = dict.fromkeys(_other_length(way) for way in compared)
    return f"dogs/labels_{architecture}_{compared[0].size}{''.join(lengths)}"


def ablation_name(base: Way, architecture: str) -> str:
    """``dogs/ablation_<architecture>_<size>``, with the epochs where they are not the way's own.

    Example:
        >>> import tlhelpers as tl
        >>> tl.dogs.ablation_name(tl.dogs.LP_FT, "mobilenet_v2")
        'dogs/ablation_mobilenet_v2_224'
    """
    return f"dogs/ablation_{architecture}_{base.size}{_other_length(base)}"


def _other_length(way: Way) -> str:
    own = WAYS.get(way.name)
    if own is None or own.recipe is None or way.recipe is None:
        return ""
    return "" if way.recipe.epochs == own.recipe.epochs else f"_{way.recipe.epochs}epochs"


def find_weights(folder: str | Path, architecture: str) -> str | Path:
    """``<architecture>_imagenet.safetensors`` in a folder, or ``"imagenet"``: torchvision's own.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "resnet18_imagenet.safetensors").touch()
        ...     for architecture in ("resnet18", "mobilenet_v2"):
        ...         print(Path(tl.dogs.find_weights(folder, architecture)).name)
        resnet18_imagenet.safetensors
        imagenet
    """
    path = Path(folder) / f"{architecture}_imagenet.safetensors"
    return path if path.is_file() else "imagenet"


def _input(way: Way, architecture: str, weights: str | Path, run: Run) -> str:
    source = "random weights" if way.start == "random" else f"weights {Path(weights).name}"
    dtype = str(run.dtype).removeprefix("torch.")
    return (
        f"{way.size} px from squares of {way.stored} px, {architecture}, {source}, trained in "
        f"{dtype}, measured in float32, {way}"
    )


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each figure that all rows have."""
    known = [key for key in FIGURES if all(row[key] is not None for row in rows)]
    return {key: float(np.mean([row[key] for row in rows])) for key in known}


def _record(
    name: str,
    done: Sequence[_Measured],
    data: Dataset,
    *,
    input: str,
    result: dict[str, float],
    interval: dict[str, list[float]],
    seeds: Sequence[int],
    run: Run,
    origin: dict[str, Any],
    start: float,
) -> Record:
    sources = {(one.commit, one.clean) for one in done}
    commit, clean = sources.pop() if len(sources) == 1 else (origin["commit"], False)
    over = OVER_IMAGES
    if len(seeds) > 1:
        over = f"95 %, bootstrap over test images and {len(seeds)} seeds"
    return Record(
        name=name,
        tier=run.tier,
        split=data.split_name,
        input=input,
        seeds=tuple(seeds),
        curve=tuple(one.row for one in done),
        result=result,
        interval=interval,
        interval_over=over,
        wall_seconds=time.perf_counter() - start + sum(one.waited for one in done),
        **origin | {"commit": commit, "clean": clean},
    )


def _distinct(seeds: Sequence[int], what: str) -> Sequence[int]:
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"{what} should be one or more different numbers, found {list(seeds)}.")
    return seeds


# --- reading records ----------------------------------------------------------------------


_STUDIES = tuple(f"dogs/{way}_" for way in WAYS)
_COSTS = ("epochs", "core_minutes", "peak_memory_gb")


def results() -> pd.DataFrame:
    """A row for each record of :func:`study` that was kept: what was trained, and how it did.

    Returns:
        ``architecture``, ``way``, ``size`` (pixels), ``mean``, ``low`` and ``high`` (top-1 on the
        test split), and, NaN where nothing was trained, ``epochs``, ``core_minutes`` (NaN in older
        records too) and ``peak_memory_gb``; ``tier`` and ``record`` (its name). The best first.

    Example:
        >>> import tlhelpers as tl
        >>> found = tl.dogs.results().set_index("record")
        >>> names = [f"dogs/{way}_squeezenet1_1_128" for way in ("lp_ft", "full", "probe")]
        >>> columns = ["way", "size", "mean", "epochs"]
        >>> found.loc[names, columns].round(2)  # doctest: +NORMALIZE_WHITESPACE
                                        way  size  mean  epochs
        record
        dogs/lp_ft_squeezenet1_1_128  lp_ft   128  0.58     6.0
        dogs/full_squeezenet1_1_128    full   128  0.56     6.0
        dogs/probe_squeezenet1_1_128  probe   128  0.56     NaN
    """
    rows = []
    for name in records.names():
        if not name.startswith(_STUDIES):
            continue
        record = records.load(name)
        run, top1 = record.curve[0], record.estimate("test_top1")
        rows.append(
            {
                "architecture": run["architecture"],
                "way": run["way"],
                "size": run["size"],
                "mean": top1.value,
                "low": top1.low,
                "high": top1.high,
                **{key: record.result.get(key, math.nan) for key in _COSTS},
                "tier": record.tier,
                "record": name,
            }
        )
    return pd.DataFrame(rows).sort_values("mean", ascending=False, ignore_index=True)


_NESTED = ("history", "stages", "test_ids", "test_correct")


def runs(record: Record) -> pd.DataFrame:
    """The figures of each run: the rows of the curve without what is nested or packed.

    Example:
        >>> import tlhelpers as tl
        >>> record = tl.records.load("dogs/labels_mobilenet_v2_128")
        >>> tl.dogs.runs(record)[["way", "k", "test_top1"]].round(2)
                   way   k  test_top1
        0        probe   5       0.58
        1  lp_ft_norms   5       0.60
        2        probe  20       0.66
        3  lp_ft_norms  20       0.68
        4        probe  90       0.71
        5  lp_ft_norms  90       0.76
    """
    return record.to_frame().drop(columns=list(_NESTED))


def history(record: Record) -> pd.DataFrame:
    """A row for each evaluation of each run: ``way``, ``k``, ``seed`` and a history's columns.

    Example:
        >>> import tlhelpers as tl
        >>> record = tl.records.load("dogs/lp_ft_squeezenet1_1_128")
        >>> tl.dogs.history(record)[["way", "epoch", "train_loss", "validation_top1"]].round(2)
             way  epoch  train_loss  validation_top1
        0  lp_ft      1        1.48             0.56
        1  lp_ft      2        1.43             0.57
        2  lp_ft      3        1.33             0.58
        3  lp_ft      4        1.24             0.60
        4  lp_ft      5        1.19             0.60
        5  lp_ft      6        1.16             0.60
    """
    return _unnest(record, "history")


def stages(record: Record) -> pd.DataFrame:
    """A row for each stage of each run: ``way``, ``k``, ``seed``, ``stage``, ``moved``, ``cka``.

    Example:
        >>> import tlhelpers as tl
        >>> record = tl.records.load("dogs/lp_ft_squeezenet1_1_128")
        >>> tl.dogs.stages(record)[["stage", "moved", "cka"]].round(2).tail(3)
                 stage  moved   cka
        7  features.11   0.01  0.99
        8  features.12   0.01  0.96
        9     features   0.00  0.96
    """
    return _unnest(record, "stages")


def _unnest(record: Record, part: str) -> pd.DataFrame:
    rows = [
        {key: row[key] for key in ("way", "k", "seed")} | inner
        for row in record.curve
        for inner in row[part]
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class Correct:
    """Which test images were classified right, in one run or in several.

    Attributes:
        values: (runs, n) bool, the images in the order of their sorted ids.
        images: a digest of the ids, so that nobody compares different images.
    """

    values: np.ndarray
    images: str

    def __repr__(self) -> str:
        r, n = self.values.shape
        return f"{r} run{'s' * (r != 1)} of {n:,} images, {100 * self.values.mean():.1f} % right"


def correct(record: Record, **which: Any) -> Correct:
    """What a record says of each test image.

    Args:
        record: one that this module made.
        **which: values of the columns of :func:`runs` that the rows must have, such as ``seed=0``
            or ``way="lp_ft", k=5``; nothing for all rows.

    Raises:
        KeyError: if a row of the record has no such column.
        ValueError: if no row is left, or it was not this module that made the record.

    Example:
        >>> import tlhelpers as tl
        >>> record = tl.records.load("dogs/labels_mobilenet_v2_128")
        >>> tl.dogs.correct(record, way="probe", k=5)
        1 run of 5,760 images, 58.4 % right
        >>> tl.dogs.correct(record, way="probe", k=6)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: the record 'dogs/labels_mobilenet_v2_128' should hold packed outcomes of a ...
    """
    rows = [row for row in record.curve if all(row[key] == v for key, v in which.items())]
    if not rows or "test_correct" not in rows[0]:
        asked = ", ".join(f"{key}={value!r}" for key, value in which.items()) or "any"
        raise ValueError(
            f"the record {record.name!r} should hold packed outcomes of a run ({asked}), found "
            f"{len(rows)} such rows. runs(record) lists what it has."
        )
    return Correct(np.stack([_unpack(row) for row in rows]), rows[0]["test_ids"])


def difference(
    ours: Correct | Record | Report | Sequence[Report],
    theirs: Correct | Record | Report | Sequence[Report],
    *,
    resamples: int = 1000,
) -> Estimate:
    """The mean accuracy of one side minus that of the other, with a paired interval.

    95 %, from a bootstrap that draws test images, the same for both sides, and the runs of either
    side where it has several. So it covers other test images and, roughly, other seeds: with
    three seeds, the spread between them is known poorly, and a bootstrap of so few is a little
    too narrow.

    Args:
        ours: outcomes of a record's runs (see :func:`correct`), a record (all of its runs), a
            report, or several, such as that of a live probe.
        theirs: the same, of the same test images.
        resamples: of images and runs.

    Raises:
        ValueError: if the two are not of the same test images.

    Example:
        >>> import tlhelpers as tl
        >>> record = tl.records.load("dogs/labels_mobilenet_v2_128")
        >>> tuned = tl.dogs.correct(record, way="lp_ft_norms", k=20)
        >>> tl.dogs.difference(tuned, tl.dogs.correct(record, way="probe", k=20))
        +1.7 points [+0.9, +2.5]
    """
    a, b = _outcomes(ours), _outcomes(theirs)
    if a.images != b.images:
        raise ValueError(
            f"a paired difference needs the same test images, but one side is {a} and the other "
            f"{b}, and their ids differ. Compare runs on one split of one data set."
        )
    drawn = _bootstrap([a.values, b.values], resamples)
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    value = float(a.values.mean() - b.values.mean())
    return Estimate(value, float(low), float(high), unit="points")


def _unpack(row: Mapping[str, Any]) -> np.ndarray:
    packed = np.frombuffer(bytes.fromhex(row["test_correct"]), dtype=np.uint8)
    return np.unpackbits(packed, count=row["test_images"]).astype(bool)


def _outcomes(side: Correct | Record | Report | Sequence[Report]) -> Correct:
    if isinstance(side, Correct):
        return side
    if isinstance(side, Record):
        return correct(side)
    reports = [side] if isinstance(side, Report) else list(side)
    if len({report.ids for report in reports}) != 1:
        raise ValueError(
            f"one side of a difference should be one or more reports on one test split, found "
            f"{len(reports)} reports on {len({report.ids for report in reports})}."
        )
    return Correct(np.stack([report.correct for report in reports]), _digest(reports[0].ids))


def _bootstrap(sides: Sequence[np.ndarray], resamples: int) -> np.ndarray:
    """(sides, resamples) mean accuracies; a resample draws the same images for all sides."""
    generator = np.random.default_rng(0)
    n = sides[0].shape[1]
    counts = np.empty((n, resamples), dtype=np.float32)
    for column in range(resamples):
        counts[:, column] = np.bincount(generator.integers(n, size=n), minlength=n)
    drawn = []
    for side in sides:
        means = side.astype(np.float32) @ counts / n
        chosen = generator.integers(len(side), size=(len(side), resamples))
        drawn.append(np.take_along_axis(means, chosen, axis=0).mean(axis=0))
    return np.stack(drawn)


def _mean_top1(reports: Sequence[Report]) -> Estimate:
    """The accuracy of one report with its interval, or the mean of several over both."""
    if len(reports) == 1:
        return reports[0].top1
    values = _outcomes(reports).values
    low, high = np.percentile(_bootstrap([values], 1000)[0], [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high))


def _gain(ours: Sequence[Report], theirs: Sequence[Report]) -> Estimate:
    """Of two ways on the same draws of labelled images: with several, draw by draw."""
    return labels.gain(ours, theirs) if len(ours) > 1 else difference(ours, theirs)
