"""Chest X-ray films: few labels drawn as they come, and the studies behind chapter 09's records.

The films are PneumoniaMNIST's, see :func:`~tlhelpers.datasets.pneumonia_mnist`. Three things can be
put between a film and a linear classifier: nothing, as in :func:`pixels`; a network that learnt
from photographs, at one of :data:`STAGES`; or a small one that learns from the labelled films
alone, :func:`scratch`. :func:`labels` compares them over the number of labels, :func:`layers`
fine-tunes a pretrained network from different depths on; both make records.

**The rows of the records** hold, for each classifier, ``auc``, ``top1`` and ``balanced_accuracy``
on the test films, the last two once more with the logits corrected to equal shares of the classes
(``..._equal``, see :func:`~tlhelpers.decide.with_shares`) and with the threshold that is best on
validation (``..._tuned``).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlhelpers import datasets, decide, evaluate, features, models, probe, records, runtime, train
from tlhelpers.characters import Shift
from tlhelpers.evaluate import Estimate
from tlhelpers.models import Backbone, PhotoClassifier, SmallResNet
from tlhelpers.probe import Probe
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.train import Recipe

COMMAND = "python experiments/xrays.py --data PATH"
BANK_COMMAND = "python experiments/xrays_bank.py --data PATH"
BACKBONE = "mobilenet_v2"
SIZE = 112
"""Side to which films are enlarged before a network for photographs sees them."""
STAGES: Mapping[str, str] = MappingProxyType(
    {
        "stage 6": "features.6",
        "stage 11": "features.11",
        "stage 11, 4x4": "features.11/4x4",
        "last layer": models.FEATURES,
    }
)
"""Where the backbone is tapped, see :meth:`~tlhelpers.models.Backbone.at`, from the film on."""
GRID = (10, 30, 100, 300, 1000)
"""Numbers of labelled films, besides all of them."""
DRAWS = 5


def bank_name(way: str) -> str:
    """The name of a shipped bank within ``pneumonia/``.

    >>> bank_name("stage 11, 4x4")
    'stage_11_4x4'
    """
    return way.replace(",", "").replace(" ", "_")


METRICS = ("auc", "top1", "balanced_accuracy")
EQUAL, TUNED = "equal", "tuned"


# --- few labels, and forms of the films ---------------------------------------------------


def few(data: Dataset, n: int, *, draw: int) -> Dataset:
    """The data set with n labelled films, of each class as large a share as in all of training.

    At least one of each class; n as large as the training part takes all. The films of a draw with
    fewer labels are among those of the same draw with more. Validation and test stay whole.

    Args:
        data: films, or a bank of their features.
        n: how many labelled films.
        draw: the seed.

    Raises:
        ValueError: if there are not that many, or fewer than one a class is asked for.

    Example:
        >>> import tlhelpers as tl
        >>> bank = tl.features.load("pneumonia/last_layer")
        >>> few = tl.xrays.few(bank, 30, draw=0)
        >>> few.train
        train split: 30 examples, 2 classes
        >>> few.classes, few.train.y.bincount()
        (('normal', 'pneumonia'), tensor([ 3, 27]))
    """
    rows, m = np.flatnonzero(data.split == "train"), len(data.classes)
    if not m <= n <= len(rows):
        raise ValueError(
            f"{data.name} has {len(rows):,} training films of {m} classes: ask for {m} to "
            f"{len(rows):,}, found {n}."
        )
    labels = data.labels.numpy()[rows]
    counts = _counts(np.bincount(labels, minlength=m), n)
    generator = np.random.default_rng(draw)
    chosen = [
        generator.permutation(rows[labels == c])[:count] for c, count in enumerate(counts.tolist())
    ]
    keep = np.concatenate([*chosen, np.flatnonzero(data.split != "train")])
    return data.subset(np.sort(keep))


def _counts(sizes: np.ndarray, n: int) -> np.ndarray:
    """How many of each class: in proportion, none less than 1, n in all.

    >>> _counts(np.array([388, 3494]), 30)
    array([ 3, 27])
    """
    exact = sizes / sizes.sum() * n
    counts = np.maximum(np.floor(exact).astype(int), 1)
    while counts.sum() != n:  # the largest gap between due and given first
        step = 1 if counts.sum() < n else -1
        gap = np.where((counts > 1) | (step > 0), step * (exact - counts), -np.inf)
        counts[gap.argmax()] += step
    return counts


def shares(data: Dataset) -> list[float]:
    """The share of each class among the training films.

    Example:
        >>> import tlhelpers as tl
        >>> bank = tl.features.load("pneumonia/last_layer")
        >>> bank.classes, [round(share, 2) for share in tl.xrays.shares(bank)]
        (('normal', 'pneumonia'), [0.1, 0.9])
    """
    counts = torch.bincount(data.train.y, minlength=len(data.classes))
    return (counts / counts.sum()).tolist()


def grey(data: Dataset) -> Dataset:
    """The films as :func:`~tlhelpers.models.small_resnet` takes them: (n, 1, h, w) in 0..1.

    Example:
        >>> import dataclasses
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits()
        >>> films = dataclasses.replace(digits, x=(255 * digits.x).byte().expand(-1, 3, -1, -1))
        >>> films.x.shape, films.x.dtype
        (torch.Size([1797, 3, 16, 16]), torch.uint8)
        >>> grey = tl.xrays.grey(films)
        >>> grey.x.shape, grey.x.dtype
        (torch.Size([1797, 1, 16, 16]), torch.float32)
    """
    return dataclasses.replace(data, x=data.x[:, :1].float() / 255)


def pixels(data: Dataset) -> Dataset:
    """The films as features for a probe: each pixel one, (n, h w) in 0..1, and no network.

    Example:
        >>> import dataclasses
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits()
        >>> films = dataclasses.replace(digits, x=(255 * digits.x).byte().expand(-1, 3, -1, -1))
        >>> tl.xrays.pixels(films).x.shape
        torch.Size([1797, 256])
    """
    return dataclasses.replace(data, x=(data.x[:, 0].float() / 255).flatten(1))


def _train_only(data: Dataset) -> Dataset:
    """Without the validation part: nothing can be chosen by it."""
    return data.subset(np.flatnonzero(data.split != "validation"))


@dataclass(frozen=True)
class Jitter:
    """Augmentation for grey films with one or three equal channels, bytes or floats in 0..1.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> films = torch.randint(256, (4, 3, 28, 28), dtype=torch.uint8)
        >>> shifted = tl.xrays.JITTER(films, torch.Generator().manual_seed(0))
        >>> shifted.shape, shifted.dtype
        (torch.Size([4, 3, 28, 28]), torch.float32)
    """

    shift: Shift

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(n, c, h, w) images, each changed in its own way, as floats in 0..1."""
        one = images[:, :1].float() / (1 if images.is_floating_point() else 255)
        return self.shift.apply(one, generator).expand(-1, images.shape[1], -1, -1)


JITTER = Jitter(Shift(rotation=7, translate=0.6, scale=(0.93, 1.08), contrast=(0.8, 1.2)))
"""Films lie a little otherwise from child to child; none is mirrored, as the heart lies left."""

# --- classifiers of films -----------------------------------------------------------------

RIDGE = 0.03
"""Of every probe; fixed beforehand, on draws that are in no record, by AUC on validation."""
WIDTHS = (8, 16, 32)
SCRATCH = Recipe(
    steps=250, batch_size=32, lr=3e-3, weight_decay=0.05, warmup=0.1, augment=JITTER, keep="last"
)  # fmt: skip
"""Up to 300 labels; :data:`MORE_STEPS` for more. Fixed in the same way, like the widths."""
MORE_STEPS = 400
"""Of training from scratch with 1,000 labels and more."""
TUNING = Recipe(
    steps=100, batch_size=32, lr=1e-3, head_lr=1e-2, weight_decay=0.01, warmup=0.1,
    augment=JITTER, dropout=0.0, clip=1.0, keep="last",
)  # fmt: skip
"""The rate is the best of 1e-4, 3e-4 and 1e-3 in the same trials."""


def scratch(
    data: Dataset,
    run: Run | None = None,
    *,
    recipe: Recipe = SCRATCH,
    widths: tuple[int, int, int] = WIDTHS,
) -> SmallResNet:
    """A small network that learns from the labelled films alone, as :func:`grey` has them.

    Validation is not touched: the number of steps is fixed, and the last weights are kept.

    Args:
        data: films with few labels, as :func:`few` draws them.
        run: device, and the seed of weights and order.
        recipe: how it is trained.
        widths: of the three stages.
    """
    run = runtime.default(run)
    network = models.small_resnet(len(data.classes), widths=widths, seed=run.seed)
    train.fit(network, _train_only(grey(data)), recipe, run)
    return network.cpu().eval()


def finetune(
    data: Dataset,
    name: str,
    run: Run | None = None,
    *,
    weights: str | Path | None = "imagenet",
    size: int = 64,
    frozen: int = 0,
    recipe: Recipe = TUNING,
) -> PhotoClassifier:
    """A network that learnt from photographs, trained on for films with a new head.

    Films are enlarged to ``size`` within the network. Validation is not touched.

    Args:
        data: films with few labels.
        name: torchvision's name of the architecture, such as ``"squeezenet1_1"`` or ``"resnet50"``.
        run: device, and the seed of head and order.
        weights: of the body, see :func:`~tlhelpers.models.photo_classifier`.
        size: side in pixels that the network works on.
        frozen: how many of :func:`units`, counted from the film, stay as they are.
        recipe: how it is trained.

    Raises:
        ValueError: if the network has not that many units.
    """
    run = runtime.default(run)
    network = models.photo_classifier(
        name, len(data.classes), weights=weights, size=size, seed=run.seed
    )
    parts = units(network)
    if not 0 <= frozen <= len(parts):
        raise ValueError(f"{name} has 0 to {len(parts)} units to freeze, found {frozen}.")
    for part in parts[:frozen]:
        models.freeze(part)
    train.fit(network, _train_only(data), recipe, run)
    return network.cpu().eval()


def units(network: PhotoClassifier) -> list[nn.Module]:
    """The parts of a photo classifier's body that hold parameters, from the image on.

    Example:
        >>> import tlhelpers as tl
        >>> network = tl.models.photo_classifier("squeezenet1_1", 2, weights=None, size=64)
        >>> units = tl.xrays.units(network)
        >>> len(units), type(units[0]).__name__, type(units[-1]).__name__
        (9, 'Conv2d', 'Fire')
    """
    body: Any = getattr(network.body, "features", network.body)
    return [part for part in body.children() if next(part.parameters(), None) is not None]


# --- what is measured ---------------------------------------------------------------------

Key = tuple[Any, ...]


def measured(
    predictors: Mapping[Key, Any],
    data: Dataset,
    *,
    trained: Sequence[float],
    name: str,
    columns: Sequence[str],
) -> list[dict[str, Any]]:
    """A row for each predictor with its figures on the test films; one reading in all.

    Args:
        predictors: callables or networks from the data set's x to (n, 2) logits, by key.
        data: films in the form that the predictors take.
        trained: the shares of the classes that they were trained with.
        name: of the reading.
        columns: the names of the entries of the keys.

    Example:
        >>> import tlhelpers as tl
        >>> bank = tl.features.load("pneumonia/last_layer")
        >>> probes = {(n, 0): tl.xrays.fit(bank, n, draw=0) for n in (10, 300)}
        >>> trained, columns = tl.xrays.shares(bank), ("n", "draw")
        >>> rows = tl.xrays.measured(
        ...     probes, bank, trained=trained, name="an example", columns=columns
        ... )
        >>> [(row["n"], round(row["auc"], 1)) for row in rows]
        [(10, 0.8), (300, 0.9)]
        >>> [name for name in rows[0] if name.startswith("balanced")]
        ['balanced_accuracy', 'balanced_accuracy_equal', 'balanced_accuracy_tuned']
    """
    variants: dict[tuple[Key, str], Any] = {}
    for key, predictor in predictors.items():
        best = decide.choose_threshold(predictor, data.validation)
        variants[key, ""] = predictor
        variants[key, EQUAL] = decide.with_shares(predictor, trained=trained, wanted=(0.5, 0.5))
        variants[key, TUNED] = decide.with_threshold(predictor, best)
    reports = evaluate.grid(variants, data.test, name=name, resamples=2)
    rows = []
    for key, predictor in predictors.items():
        row = dict(zip(columns, key, strict=True))
        row["validation_auc"] = evaluate.validate(
            predictor, data.validation, metric="auc", resamples=2
        ).value
        for variant in ("", EQUAL, TUNED):
            report = reports[key, variant]
            ending = f"_{variant}" if variant else ""
            row |= {f"{m}{ending}": getattr(report, m).value for m in METRICS if m != "auc"}
        area = reports[key, ""].auc
        assert area is not None  # there are two classes
        row["auc"] = area.value
        rows.append(row)
    return rows


def _estimates(rows: Sequence[Mapping[str, Any]], baseline: str) -> dict[str, Estimate]:
    """Means over draws of each way and number of labels, and paired gaps from a baseline."""
    found = {}
    groups = dict.fromkeys((row["way"], row["n"]) for row in rows)
    for metric in (*METRICS, f"balanced_accuracy_{EQUAL}"):
        values = {
            group: np.array([row[metric] for row in rows if (row["way"], row["n"]) == group])
            for group in groups
        }
        unit = "" if metric == "auc" else "%"
        for (way, n), ours in values.items():
            found[f"{way} {metric}, {n} labels"] = evaluate.mean_interval(ours, unit=unit)
            if way != baseline:
                gaps = ours - values[baseline, n]
                key = f"{way} minus {baseline} {metric}, {n} labels"
                found[key] = evaluate.mean_interval(gaps, unit="points" if unit else "")
    return found


# --- the studies --------------------------------------------------------------------------


def backbone(weights: str | Path = "imagenet") -> Backbone:
    """MobileNetV2 for films that are enlarged to :data:`SIZE` pixels.

    Args:
        weights: ``"imagenet"`` or the path of a safetensors file.
    """
    found = models.backbone(BACKBONE, weights=weights)
    assert found.preprocess is not None
    preprocess = dataclasses.replace(found.preprocess, resize=SIZE, crop=SIZE)
    return dataclasses.replace(found, preprocess=preprocess)


def fit(data: Dataset, n: int, *, draw: int, run: Run | None = None) -> Probe:
    """A linear probe on n labelled films; its ridge weight is :data:`RIDGE`.

    Args:
        data: films as features: a bank, or what :func:`pixels` returns.
        n: number of labels, see :func:`few`.
        draw: the seed of the draw.
        run: device.

    Example:
        >>> import tlhelpers as tl
        >>> bank = tl.features.load("pneumonia/last_layer")
        >>> for n in (10, 300):
        ...     probe = tl.xrays.fit(bank, n, draw=0)
        ...     print(n, f"{tl.evaluate.validate(probe, bank.validation, metric='auc').value:.2f}")
        10 0.89
        300 0.97
    """
    return probe.fit(_train_only(few(data, n, draw=draw)), ridge=RIDGE, scale="common", run=run)


def labels(
    run: Run | None = None,
    *,
    data: Dataset | None = None,
    weights: str | Path = "imagenet",
    grid: Sequence[int] = GRID,
    draws: int = DRAWS,
    recipe: Recipe = SCRATCH,
) -> Record:
    """What n labelled films are worth to probes on pixels and on stages, and from scratch.

    Nothing is chosen by validation, except the threshold of the figures ``..._tuned``.

    Args:
        run: device, and the seed of weights and orders, to which the draw is added.
        data: films of 28 pixels; None for the official file, which is downloaded.
        weights: of the backbone.
        grid: numbers of labels; all of them are added.
        draws: how many draws of the labelled films. With all of them only training from scratch
            differs between draws.
        recipe: of training from scratch; from 1,000 labels on, of :data:`MORE_STEPS` steps.

    Returns:
        the record ``xrays/labels``: a row for each ``way`` (``"pixels"``, the names of
        :data:`STAGES`, ``"scratch"``), ``n`` and ``draw``. In the result ``<way> <metric>, <n>
        labels`` are means, and ``<way> minus scratch <metric>, <n> labels`` paired differences.
    """
    run = runtime.default(run)
    origin, start = records.provenance(labels, command=COMMAND), time.perf_counter()
    data = datasets.pneumonia_mnist(download=True) if data is None else data
    source = backbone(weights)
    forms = {"pixels": pixels(data)}
    forms |= {way: features.extract(data, source, at=at, run=run) for way, at in STAGES.items()}
    sizes, trained = (*grid, len(data.train)), shares(data)
    rows: list[dict[str, Any]] = []
    for way, form in forms.items():
        probes = {(way, n, i): fit(form, n, draw=i, run=run) for n in sizes for i in range(draws)}
        rows += measured(probes, form, trained=trained, name=f"labels, {way}", columns=_COLUMNS)
    networks: dict[Key, SmallResNet] = {}
    for n in sizes:
        steps = recipe if n < 1000 else dataclasses.replace(recipe, steps=MORE_STEPS)
        for i in range(draws):
            own = dataclasses.replace(run, seed=run.seed + i)
            networks["scratch", n, i] = scratch(few(data, n, draw=i), own, recipe=steps)
    films = grey(data)
    rows += measured(networks, films, trained=trained, name="labels, scratch", columns=_COLUMNS)
    return records.of_draws(
        "xrays/labels",
        rows,
        _estimates(rows, "scratch"),
        split=f"{data.name}, {data.split_name}",
        input=f"28 px; {BACKBONE} at {SIZE} px; scratch {recipe.steps} or {MORE_STEPS} steps",
        seeds=range(draws),
        run=run,
        origin=origin,
        start=start,
    )


_COLUMNS = ("way", "n", "draw")

DEPTHS: Mapping[str, int] = MappingProxyType(
    {"head": 9, "from unit 7 on": 6, "from unit 4 on": 3, "all layers": 0}
)
"""What of SqueezeNet is trained besides the head, as the number of its nine units that is not."""
RANDOM = "all layers, random start"
"""The same network without what it learnt from photographs."""


def layers(
    run: Run | None = None,
    *,
    data: Dataset | None = None,
    weights: str | Path = "imagenet",
    grid: Sequence[int] = (100, 1000),
    draws: int = DRAWS,
    recipe: Recipe = TUNING,
) -> Record:
    """Fine-tune SqueezeNet on films from different depths on, and all of it from random weights.

    Args:
        run: device, and the seed of heads and orders, to which the draw is added.
        data: films; None for the official file, which is downloaded.
        weights: of the network.
        grid: numbers of labels. The first is for all depths, any other for all layers alone.
        draws: how many draws of the labelled films.
        recipe: one for all.

    Returns:
        the record ``xrays/layers``: a row for each ``way`` (of :data:`DEPTHS`, and
        :data:`RANDOM`), ``n`` and ``draw``, with means and differences to ``"all layers"`` as in
        :func:`labels`.
    """
    run = runtime.default(run)
    origin, start = records.provenance(layers, command=COMMAND), time.perf_counter()
    data = datasets.pneumonia_mnist(download=True) if data is None else data
    networks: dict[Key, PhotoClassifier] = {}
    for n in grid:
        ways = {**DEPTHS, RANDOM: 0} if n == grid[0] else {"all layers": 0}
        for i in range(draws):
            own, some = dataclasses.replace(run, seed=run.seed + i), few(data, n, draw=i)
            for way, frozen in ways.items():
                networks[way, n, i] = finetune(
                    some, "squeezenet1_1", own, frozen=frozen, recipe=recipe,
                    weights=None if way == RANDOM else weights,
                )  # fmt: skip
    rows = measured(
        networks, data, trained=shares(data), name="layers, SqueezeNet", columns=_COLUMNS
    )
    return records.of_draws(
        "xrays/layers",
        rows,
        _estimates(rows, "all layers"),
        split=f"{data.name}, {data.split_name}",
        input=f"squeezenet1_1 at 64 px, {recipe.steps} steps",
        seeds=range(draws),
        run=run,
        origin=origin,
        start=start,
    )
