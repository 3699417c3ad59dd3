"""Minutes from JPEG files to a validation accuracy: ours measured, the peers' estimated.

MobileNetV2 with ImageNet's weights, the book's split of Stanford Dogs, without its test split. Each
of ours begins with files and an empty cache, and is measured once, evaluations included:

* **probe**: ``features.extract`` on the training and validation images, then ``probe.fit``.
  Nothing is augmented;
* **fine-tuning**: ``datasets.pixel_cache``, then ``train.fit`` with ``augment.PhotoAugment`` on all
  layers, from a random head, in its default precision (float32 on a CPU); up to its first
  evaluation that reaches the target;
* **LP-FT**: cache, probe, and then ``train.fit`` from the probe's head at a lower rate; again up to
  the first evaluation within ``fit``, which comes after half an epoch.

Each peer trains a head on a frozen body and decodes the files in each epoch, in float32. Its
minutes are *estimated*: one pass, measured on a part of the training images, times the epochs that
its head needs on cached features with its optimiser's settings. That favours the peers: they are
charged no validation pass, and a head needs fewer epochs on plain features than on augmented ones.

* **tutorial**: PyTorch's; body in training mode, batch 4, a linear head, SGD in steps;
* **lightning**: body in evaluation mode, batch 32, a linear head, Adam with torch's default rate
  (Lightning prescribes neither head nor optimiser);
* **fastai**: BatchNorm trainable as its ``freeze`` has it, batch 64, a hidden layer, one cycle.

The passes are those of ``benchmarks/epoch.py``, the heads of tutorial and fastai those of
``benchmarks/extract.py``.

    python benchmarks/time_to_accuracy.py --data PATH [--no-fastai] [--no-lightning]

PATH is a folder with the photographs and ``mobilenet_v2_imagenet.safetensors``. About forty
minutes on two cores, most of it fine-tuning, which ``--no-fine-tuning`` leaves out.
``--json FILE`` writes

* ``setting``: what ran, and where; ``target``;
* ``parts``: seconds of each part of ours; ``rates``: images a second of each peer's pass;
* ``rows``, each with ``method``, ``minutes`` (all that was spent, where the target was not
  reached), ``reached``, ``kind`` (``measured`` or ``estimated``), ``accuracy`` (the best one on
  validation), ``how``, and ``times`` (its minutes over those of the quickest of ours that reached
  the target; null if none did).

``--record`` saves the rows as the record that chapter 08 shows. Nothing is measured twice, so it
has no intervals.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import epoch
import extract
import numpy as np
import torch
from torch import nn

import tlhelpers as tl
from tlhelpers import models, runtime
from tlhelpers.models import Backbone, PhotoClassifier
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.train import History, Recipe

ARCHITECTURE = "mobilenet_v2"
TARGET = 0.80
EVALUATIONS = 2  # an epoch, while fine-tuning
RATES = {"fine-tuning": (3e-4, 3e-3), "LP-FT": (1e-4, 1e-4)}  # of the body and of the head
PEER_BATCH = {"tutorial": 4, "lightning": 32, "fastai": 64}
MOST_EPOCHS = extract.MOST_EPOCHS | {"lightning": 25}


@dataclass(frozen=True)
class Row:
    """How long a method took, or would take.

    Attributes:
        method: its name.
        minutes: from files to the target, or all that was spent where it was not reached.
        reached: whether the target was reached.
        kind: ``"measured"`` or ``"estimated"``.
        accuracy: the best validation accuracy, in 0..1.
        how: what the minutes consist of.
    """

    method: str
    minutes: float
    reached: bool
    kind: str
    accuracy: float
    how: str


# --- ours ---------------------------------------------------------------------------------


@contextlib.contextmanager
def watch(parts: dict[str, float], part: str) -> Iterator[None]:
    """Note the seconds that the block takes."""
    start = time.perf_counter()
    yield
    parts[part] = time.perf_counter() - start


def ours(
    data: Dataset,
    backbone: Backbone,
    network: PhotoClassifier,
    recipes: dict[str, Recipe],
    run: Run,
    target: float,
) -> tuple[list[Row], dict[str, float], Dataset]:
    """The rows of ours, the seconds of their parts, and the bank of features.

    Args:
        data: photographs, training and validation.
        backbone: for the features.
        network: the same body with a head from random weights; it stays as it is.
        recipes: of ``"fine-tuning"`` and ``"LP-FT"``, or of neither.
        run: seed, device and dtype.
        target: the validation accuracy.
    """
    parts: dict[str, float] = {}
    with watch(parts, "features"):
        bank = tl.features.extract(data, backbone, run=run)
    with watch(parts, "probe"):
        probe = tl.probe.fit(bank, run=run)
    accuracy = probe.chosen.validation_accuracy
    minutes = (parts["features"] + parts["probe"]) / 60
    how = f"features of {len(data):,} images in {parts['features']:.0f} s, then the probe"
    rows = [Row("probe", minutes, accuracy >= target, "measured", accuracy, how)]
    if recipes:
        with watch(parts, "cache"):
            cached = tl.datasets.pixel_cache(data, size=network.preprocess.crop)
    for method, recipe in recipes.items():
        start, before = copy.deepcopy(network), parts["cache"]
        if method == "LP-FT":
            start.head.load_state_dict(probe.to_linear().state_dict())
            before += parts["features"] + parts["probe"]
        with watch(parts, method):
            history = tl.train.fit(start, cached, recipe, run)
        rows.append(fine_tuned(method, history, before=before, spent=parts[method], target=target))
    return rows, parts, bank


def fine_tuned(method: str, history: History, *, before: float, spent: float, target: float) -> Row:
    """The row of a call of ``fit``.

    Args:
        method: its name.
        history: what the call returned.
        before: seconds of what came before it.
        spent: seconds of the call.
        target: the validation accuracy.
    """
    reached = history[history.validation_top1 >= target]
    row = reached.iloc[0] if len(reached) else history.iloc[-1]
    # What the history does not count, such as a copy of the weights, is charged in full.
    seconds = before + spent - history.seconds.iloc[-1] + row.seconds
    best = float(history.validation_top1.max())
    how = f"{before:.0f} s of preparation, then {int(row.step):,} steps (epoch {row.epoch:.0f})"
    return Row(method, float(seconds) / 60, len(reached) > 0, "measured", best, how)


def recipe_for(method: str, *, examples: int, epochs: int, batch: int, size: int) -> Recipe:
    lr, head_lr = RATES[method]
    return Recipe(
        epochs=epochs,
        lr=lr,
        head_lr=head_lr,
        warmup=0.1,
        batch_size=batch,
        augment=tl.augment.PhotoAugment(size=size, scale=(0.35, 1)),
        monitor="top1",
        validate_every=-(-examples // (EVALUATIONS * batch)),
    )


# --- the peers ----------------------------------------------------------------------------


def peer(
    name: str, photos: Dataset, bank: Dataset, network: PhotoClassifier, run: Run, target: float
) -> tuple[Row, float]:
    """The row of a peer, and its images a second in a pass over the photographs."""
    rate = pass_rate(name, photos, network, run.device)
    epochs, accuracy = epochs_needed(name, bank, target)
    reached = accuracy >= target
    how = f"a pass in {len(bank.train) / rate:.0f} s, as often as its head has epochs: {epochs}"
    minutes = estimate(epochs, images=len(bank.train), rate=rate)
    return Row(name, minutes, reached, "estimated", accuracy, how), rate


def estimate(epochs: int, *, images: int, rate: float) -> float:
    """Minutes of so many passes over so many images, at a rate in images a second."""
    return epochs * images / rate / 60


def pass_rate(name: str, photos: Dataset, network: PhotoClassifier, device: torch.device) -> float:
    """Images a second of a peer that trains a head on a frozen body, in float32."""
    with epoch.empty_cache() as folder:
        make = partial(
            epoch.prepare,
            network=frozen(network, name),
            square=network.preprocess.crop,
            batch=PEER_BATCH[name],
            device=device,
        )
        task, _ = make(photos, folder=folder / "all")
        few = epoch.choose(photos, 2 * PEER_BATCH[name], PEER_BATCH[name])
        warm_up, _ = make(few, folder=folder / "few")
        loop = partial(epoch.METHODS[name], dtype=torch.float32)
        (rate,) = epoch.measure({(name, "float32"): loop}, warm_up, task, 1)[name, "float32"]
        return rate


def frozen(network: PhotoClassifier, name: str) -> PhotoClassifier:
    """A copy whose body is frozen as a peer does it."""
    network = copy.deepcopy(network)
    if name == "lightning":
        models.freeze(network.body)
        return network
    network.body.requires_grad_(False)
    if name == "fastai":
        for part in network.body.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.requires_grad_(True)
    return network


def epochs_needed(name: str, bank: Dataset, target: float) -> tuple[int, float]:
    """The epochs that a peer's head needs on cached features, and the accuracy it then has.

    Where the target is not reached: the most epochs tried, and the best accuracy. As fastai's
    schedule is one cycle, each number of epochs is a run of its own there.
    """
    if name == "fastai":
        best = 0.0
        for epochs in (1, 2, 3, 5, 8, 12, 20, 30, MOST_EPOCHS[name]):
            accuracy = extract.fastai_head(bank, epochs=epochs)
            if accuracy >= target:
                return epochs, accuracy
            best = max(best, accuracy)
        return MOST_EPOCHS[name], best
    train = extract.tutorial_head if name == "tutorial" else lightning_head
    accuracies = train(bank, epochs=MOST_EPOCHS[name])
    for epochs, accuracy in enumerate(accuracies, start=1):
        if accuracy >= target:
            return epochs, accuracy
    return len(accuracies), max(accuracies)


def lightning_head(bank: Dataset, *, epochs: int) -> list[float]:
    """Validation accuracy after each epoch of a linear head with torch's default Adam, batch 32."""
    torch.manual_seed(0)
    head = nn.Linear(bank.x.shape[1], len(bank.classes))
    optimizer = torch.optim.Adam(head.parameters())
    accuracies = []
    for number in range(epochs):
        extract.train_head(head, optimizer, bank, batch=PEER_BATCH["lightning"], seed=number)
        accuracies.append(extract.validation_accuracy(head, bank))
    return accuracies


# --- the table ----------------------------------------------------------------------------


def times_ours(rows: Sequence[Row]) -> list[float | None]:
    """Each row's minutes over those of the quickest of ours that reached the target."""
    own = [row.minutes for row in rows if row.reached and row.method not in epoch.PEERS]
    return [row.minutes / min(own) if own else None for row in rows]


def show(rows: Sequence[Row], target: float) -> str:
    """The rows as text; what did not reach the target has a > before its minutes."""
    lines = [f"minutes from files to {target:.0%} validation accuracy"]
    for row, times in zip(rows, times_ours(rows), strict=True):
        minutes = ("" if row.reached else "> ") + f"{row.minutes:.2f}"
        ratio = "" if times is None else f"{times:.1f} x"
        lines.append(
            f"{row.method:12}{minutes:>9}{ratio:>9}  {row.kind}, {row.accuracy:.1%}: {row.how}"
        )
    return "\n".join(lines)


def figures_of_record(
    target: float, parts: dict[str, float], rates: dict[str, float]
) -> dict[str, float]:
    """The target, the seconds of each part of ours, and images a second of each peer's pass."""
    seconds = {f"{part}_seconds": value for part, value in parts.items()}
    passes = {f"{peer}_images_per_second": value for peer, value in rates.items()}
    return {"target": target, **seconds, **passes}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    epoch.add_common(parser)
    parser.add_argument("--target", type=float, default=TARGET, help="validation accuracy in 0..1")
    parser.add_argument(
        "--epochs", type=epoch.positive, default=3, help="of fine-tuning; LP-FT takes one"
    )
    parser.add_argument(
        "--images", type=epoch.positive, default=512, help="photographs in a peer's measured pass"
    )
    parser.add_argument("--no-fine-tuning", action="store_true", help="only measure the probe")
    arguments = parser.parse_args(argv)
    names = epoch.wanted_peers(parser, arguments)
    run, begin = tl.setup(), time.perf_counter()
    origin = tl.records.provenance(
        main, tl.train.fit, tl.probe.fit, command=epoch.command(parser, arguments, __file__)
    )
    dogs = tl.datasets.stanford_dogs(arguments.data)
    data = dogs.subset(np.flatnonzero(dogs.split != "test"))
    size, file = arguments.size, epoch.weights(arguments.weights, arguments.data, ARCHITECTURE)
    backbone = models.backbone(ARCHITECTURE, weights=file)
    assert backbone.preprocess is not None
    # Squares of the network's size are in the cache, so features must be of such squares too.
    backbone = replace(backbone, preprocess=replace(backbone.preprocess, resize=size, crop=size))
    network = PhotoClassifier(backbone, len(data.classes))
    make = partial(recipe_for, examples=len(data.train), batch=arguments.batch, size=size)
    epochs = {} if arguments.no_fine_tuning else {"fine-tuning": arguments.epochs, "LP-FT": 1}
    recipes = {method: make(method, epochs=number) for method, number in epochs.items()}
    with epoch.empty_cache():
        rows, parts, bank = ours(data, backbone, network, recipes, run, arguments.target)
    photos, rates = epoch.choose(data, arguments.images, max(PEER_BATCH.values())), {}
    for name in names:
        row, rates[name] = peer(name, photos, bank, network, run, arguments.target)
        rows.append(row)
    print(f"\n{show(rows, arguments.target)}")
    setting = epoch.describe_setting(
        run, architecture=ARCHITECTURE, size=size, batch=arguments.batch, epochs=epochs
    )
    lines = [
        asdict(row) | {"times": times} for row, times in zip(rows, times_ours(rows), strict=True)
    ]
    if arguments.json:
        found = {
            "setting": setting,
            "target": arguments.target,
            "parts": parts,
            "rates": rates,
            "rows": lines,
        }
        runtime.write_whole(arguments.json, epoch.as_json(found))
    if arguments.record:
        record = Record(
            name=epoch.record_name(__file__, run, ARCHITECTURE, size),
            tier=epoch.tier(run),
            split=dogs.split_name,
            input=f"training and validation photographs; {epoch.describe_words(setting)}",
            seeds=(run.seed,),
            curve=tuple(lines),
            result=figures_of_record(arguments.target, parts, rates),
            interval={},
            interval_over="",
            wall_seconds=time.perf_counter() - begin,
            **origin,
        )
        epoch.keep(record)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
