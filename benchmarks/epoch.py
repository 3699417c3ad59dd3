"""Images a second of fine-tuning on photographs: ours, three peers, and the limit, in one run.

All rows train the same network (a torchvision body and a head for the breeds, everything
trainable) from the same weights on the same photographs, with AdamW, in batches of one size, on
random crops and flips of one distribution. There are whole batches only and no validation pass.

* **limit**: forward, backward and the optimiser's fused step on one batch that is normalised and
  on the device already; on a CPU with ``runtime.keep_memory``. No image is read;
* **ours**: ``train.fit(..., mixed=...)`` with ``augment.PhotoAugment`` on a
  ``datasets.pixel_cache``. The photographs are decoded once, before the first epoch: this is timed
  apart and printed, with the number of epochs after which it has paid off. (The cache keeps the
  central square of a photograph, of 224 pixels; the peers cut their boxes from all of it);
* **tutorial**: the loop of PyTorch's transfer learning tutorial, over a ``DataLoader`` that opens
  the JPEG files with PIL, every epoch anew, with torchvision's v2 transforms and a worker a core;
* **lightning**: ``Trainer.fit`` over the same ``DataLoader``, without logger, bar and checkpoints;
* **fastai**: a ``Learner`` over its ``ImageDataLoaders``, with its ``RandomResizedCrop`` for each
  image and its ``Flip`` and ``Normalize`` for each batch, decoding every epoch. (Its
  ``aug_transforms`` would rotate, warp and light as well: work that the others do not do.)

A row is timed from the call that trains to its return, start of the workers included, the making of
loaders and models not. Peers come in float32, their default, and in the processor's fast precision
as well: by ``precision="bf16-mixed"``, by ``to_bf16()``, and in the tutorial by the ``autocast``
of PyTorch's recipe. (fastai's acts on CUDA alone.) Ours and the limit come in both, so that the
table tells what the precision gives from what the pipeline gives. The files were written just
before, so nobody waits for a disk. The rounds go through all rows by turns, so that a busy moment
of the machine hits everybody; medians over rounds are printed, of the rates and of the ratios
within a round.

    python benchmarks/epoch.py --data PATH [--images 128] [--no-fastai] [--no-lightning]

PATH is a folder with the photographs of Stanford Dogs. With MobileNetV2 at 224 pixels on two cores
a round takes about a minute; on a GPU ask for more, such as ``--images 4096 --epochs 3``, or the
start of the workers is most of what is measured. ``--json FILE`` writes

* ``setting``: what ran, and where; ``cache_seconds``: what decoding once took;
* ``rows``, each with ``method``, ``precision``, ``images_per_second`` (the median), ``rounds``
  (those of each round), ``of_limit`` (its share of the limit in its precision), ``ours_times`` (how
  many times as fast as it ours is, in the precision in which ours is faster),
  ``same_precision_times`` (the same, in the row's precision) and ``break_even_epochs`` (after which
  ours has made good for its cache, in the row's precision; null for never, or where the row is no
  peer);
* ``summary``: of ours in its faster ``precision`` the share ``of_limit``, and how many times as
  fast it is as ``best_peer`` in ``best_peer_precision``, the fastest of all peers' rows
  (``best_peer_times``), and as the tutorial in float32 (``tutorial_times``).

``--record`` saves the rows and the summary as the record that chapter 08 shows, its intervals from
the lowest to the highest of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib.util
import json
import logging
import math
import multiprocessing
import os
import shlex
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision
from extract import write_folder
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

import tlhelpers as tl
from tlhelpers import runtime
from tlhelpers.models import PhotoClassifier
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

LR = 1e-4
PEERS = ("tutorial", "lightning", "fastai")
LIGHTNING_PRECISION = {
    torch.float32: "32-true",
    torch.bfloat16: "bf16-mixed",
    torch.float16: "16-mixed",
}
# What we want of ours: its share of the limit, and how many times as fast as a peer it is.
AIMS = {
    "cpu": {"of_limit": 0.9, "best_peer_times": 2.0},
    "cuda": {"of_limit": 0.9, "tutorial_times": 4.0},
}

Key = tuple[str, str]  # method and precision
Rates = dict[Key, list[float]]  # images a second in each round


# --- what is trained, and on what ---------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Task:
    """What every row trains, and on what.

    Attributes:
        photos: photographs of the training split, whole batches of them.
        folder: their files, a folder a class.
        cached: the same, decoded to squares.
        network: the weights to start from; rows train copies.
        batch: images in a step.
        epochs: passes in one measurement.
        device: where all rows compute.
    """

    photos: Dataset
    folder: Path
    cached: Dataset
    network: PhotoClassifier
    batch: int
    epochs: int
    device: torch.device

    @property
    def steps(self) -> int:
        return self.epochs * len(self.photos) // self.batch

    def plain_network(self) -> nn.Module:
        """The network as the peers have it, for images that their loaders have normalised.

        In training mode, where Lightning would leave it in another.
        """
        parts = copy.deepcopy(self.network)
        return nn.Sequential(parts.body, parts.dropout, parts.head).train()


Loop = Callable[[Task], float]  # seconds of the task's epochs


def choose(data: Dataset, images: int, batch: int) -> Dataset:
    """Whole batches of the training split: of each class the first image, then the second, ...

    Args:
        data: any data set with ``train``.
        images: how many, rounded up to whole batches; all of these where there are fewer.
        batch: images in a batch.

    Raises:
        ValueError: if there is not one batch.
    """
    total = min(-(-images // batch), len(data.train) // batch) * batch
    if total < 1:
        raise ValueError(
            f"{data.name} has {len(data.train)} training images, fewer than one batch of {batch}. "
            f"Choose a smaller --batch."
        )
    data = tl.datasets.with_classes(data, data.classes[:total])
    rows = np.flatnonzero(data.split == "train")
    labels = data.labels.numpy()[rows]
    turn = pd.Series(labels).groupby(labels).cumcount().to_numpy()
    return data.subset(rows[np.lexsort((labels, turn))][:total])


def prepare(
    photos: Dataset,
    network: PhotoClassifier,
    folder: Path,
    *,
    square: int,
    batch: int,
    epochs: int = 1,
    device: torch.device,
) -> tuple[Task, float]:
    """A task on these photographs, and the seconds that their cache of pixels took.

    Files are written into the folder, the cache goes where ``TLHELPERS_CACHE`` says.
    """
    write_folder(photos, folder)
    start = time.perf_counter()
    cached = tl.datasets.pixel_cache(photos, size=square)
    seconds = time.perf_counter() - start
    return Task(photos, folder, cached, network, batch, epochs, device), seconds


@contextlib.contextmanager
def empty_cache() -> Iterator[Path]:
    """A new folder, whose part ``cache`` is the package's cache while the block runs."""
    before = os.environ.get(runtime.CACHE_VARIABLE)
    with tempfile.TemporaryDirectory() as name:
        os.environ[runtime.CACHE_VARIABLE] = str(Path(name) / "cache")
        try:
            yield Path(name)
        finally:
            del os.environ[runtime.CACHE_VARIABLE]
            if before is not None:
                os.environ[runtime.CACHE_VARIABLE] = before


# --- the rows -----------------------------------------------------------------------------


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the work is done on the device too."""
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def limit(task: Task, dtype: torch.dtype) -> float:
    """Seconds of the arithmetic alone, on one batch."""
    network = task.plain_network().to(task.device)
    network.to(memory_format=torch.channels_last)
    side = task.network.preprocess.crop
    x = torch.randn(task.batch, 3, side, side, device=task.device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(task.batch, device=task.device) % len(task.photos.classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(task.device, dtype):
            loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()

    def steps() -> None:
        for _ in range(task.steps):
            step()

    keep = runtime.keep_memory() if task.device.type == "cpu" else contextlib.nullcontext()
    with keep:
        step()
        return timed(steps, task.device)


def ours(task: Task, dtype: torch.dtype) -> float:
    """Seconds of ``fit``."""
    network = copy.deepcopy(task.network)
    recipe = tl.train.Recipe(
        epochs=task.epochs,
        lr=LR,
        batch_size=task.batch,
        schedule="constant",
        augment=tl.augment.PhotoAugment(size=network.preprocess.crop),
    )
    run = Run(device=task.device, dtype=dtype)
    return timed(lambda: tl.train.fit(network, task.cached, recipe, run, mixed=True), task.device)


def loader(task: Task) -> torch.utils.data.DataLoader[Any]:
    """Files to normalised crops, as torchvision's documentation has it."""
    preprocess = task.network.preprocess
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(preprocess.crop, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    images = torchvision.datasets.ImageFolder(str(task.folder), transform)
    return torch.utils.data.DataLoader(
        images, batch_size=task.batch, shuffle=True, num_workers=runtime.cores()
    )


def tutorial(task: Task, dtype: torch.dtype) -> float:
    """Seconds of the tutorial's loop."""
    examples, network = loader(task), task.plain_network().to(task.device)
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR)
    scaler = torch.amp.GradScaler(task.device.type, enabled=dtype == torch.float16)

    def train() -> None:
        for _ in range(task.epochs):
            network.train()
            running_loss, running_corrects = 0.0, torch.tensor(0, device=task.device)
            for inputs, labels in examples:
                inputs, labels = inputs.to(task.device), labels.to(task.device)
                optimizer.zero_grad()
                with autocast(task.device, dtype):
                    outputs = network(inputs)
                    loss = loss_function(outputs, labels)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                running_loss += loss.item() * len(inputs)
                running_corrects += (outputs.argmax(dim=1) == labels).sum()

    return timed(train, task.device)


def lightning(task: Task, dtype: torch.dtype) -> float:
    """Seconds of Lightning's ``Trainer.fit``."""
    import lightning as L

    class Classifier(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = task.plain_network()

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self.network(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=LR)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on workers and loggers
        trainer = L.Trainer(
            max_epochs=task.epochs,
            precision=LIGHTNING_PRECISION[dtype],
            accelerator="cpu" if task.device.type == "cpu" else "auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return timed(partial(trainer.fit, Classifier(), loader(task)), task.device)


def fastai(task: Task, dtype: torch.dtype) -> float:
    """Seconds of fastai's ``fit``, without its validation pass."""
    from fastai.callback.core import Callback, CancelValidException
    from fastai.vision.all import (
        CrossEntropyLossFlat,
        Flip,
        ImageDataLoaders,
        Learner,
        Normalize,
        RandomResizedCrop,
        get_image_files,
        parent_label,
    )

    class NoValidation(Callback):
        def before_validate(self) -> None:
            raise CancelValidException

    preprocess = task.network.preprocess
    loaders = ImageDataLoaders.from_path_func(
        task.folder,
        get_image_files(task.folder),
        parent_label,
        valid_pct=0,
        item_tfms=RandomResizedCrop(preprocess.crop),
        batch_tfms=[Flip(), Normalize.from_stats(preprocess.mean, preprocess.std)],
        bs=task.batch,
        num_workers=runtime.cores(),
        device=task.device,
    )
    learner = Learner(loaders, task.plain_network(), CrossEntropyLossFlat(), cbs=NoValidation())
    if dtype == torch.bfloat16:
        learner.to_bf16()
    if dtype == torch.float16:
        learner.to_fp16()
    with learner.no_logging(), learner.no_bar():
        return timed(partial(learner.fit, task.epochs, LR), task.device)


METHODS = {
    "limit": limit,
    "ours": ours,
    "tutorial": tutorial,
    "lightning": lightning,
    "fastai": fastai,
}


def rows(fast: torch.dtype, device: torch.device, peers: Sequence[str]) -> dict[Key, Loop]:
    """What is measured, in the order of a round."""
    found: dict[Key, Loop] = {}
    for name in ("limit", "ours", *peers):
        for dtype in dict.fromkeys((fast, torch.float32)):
            # fastai asks for autocast on "cuda" by name: elsewhere the call would change nothing.
            if name != "fastai" or dtype == torch.float32 or device.type == "cuda":
                precision = str(dtype).removeprefix("torch.")
                found[name, precision] = partial(METHODS[name], dtype=dtype)
    return found


def measure(loops: dict[Key, Loop], warm_up: Task, task: Task, rounds: int) -> Rates:
    """Images a second of each row in each round; the warm-up comes before the first."""
    rates: Rates = {key: [] for key in loops}
    for number in range(rounds):
        for key, loop in loops.items():
            if number == 0:
                loop(warm_up)
            gc.collect()
            rates[key].append(task.epochs * len(task.photos) / loop(task))
    return rates


# --- the table ----------------------------------------------------------------------------


def ratio(rates: Rates, key: Key, other: Key) -> float:
    """The median over the rounds of how many times as fast one row is as another."""
    return statistics.median(a / b for a, b in zip(rates[key], rates[other], strict=True))


def break_even(peer: float, own: float, *, images: int, cache_seconds: float) -> float:
    """Epochs after which ours, with its cache, has taken less time than a peer; inf for never.

    Args:
        peer: images a second.
        own: images a second, cache not included.
        images: in an epoch.
        cache_seconds: to decode them once.
    """
    gain = images / peer - images / own
    return math.floor(cache_seconds / gain) + 1 if gain > 0 else math.inf


def own_precision(rates: Rates) -> str:
    """The precision in which ours is faster; bfloat16 is not so for each network on each CPU."""
    medians = {p: statistics.median(found) for (m, p), found in rates.items() if m == "ours"}
    return max(medians, key=lambda precision: medians[precision])


def compare(rates: Rates, *, images: int, cache_seconds: float) -> pd.DataFrame:
    """A row for each method and precision; the columns are described at the top of the file."""
    lines, chosen = [], own_precision(rates)
    for method, precision in rates:
        key = method, precision
        median = statistics.median(rates[key])
        own = statistics.median(rates["ours", precision])
        pays = break_even(median, own, images=images, cache_seconds=cache_seconds)
        lines.append(
            {
                "method": method,
                "precision": precision,
                "images_per_second": median,
                "of_limit": ratio(rates, key, ("limit", precision)),
                "ours_times": ratio(rates, ("ours", chosen), key),
                "same_precision_times": ratio(rates, ("ours", precision), key),
                "break_even_epochs": pays if method in PEERS else math.nan,
            }
        )
    return pd.DataFrame(lines)


def summarise(table: pd.DataFrame, rates: Rates) -> dict[str, Any]:
    """What the aims are about, see the top of the file."""
    chosen = own_precision(rates)
    peers = table[table.method.isin(PEERS)]
    best = peers.loc[peers.images_per_second.idxmax()]
    return {
        "precision": chosen,
        "of_limit": ratio(rates, ("ours", chosen), ("limit", chosen)),
        "best_peer": best.method,
        "best_peer_precision": best.precision,
        "best_peer_times": float(best.ours_times),
        "tutorial_times": ratio(rates, ("ours", chosen), ("tutorial", "float32")),
    }


def describe(summary: dict[str, Any], device: str) -> str:
    """The summary in a sentence, with what we aim at."""
    aims = AIMS.get(device, {})
    found = {
        name: f"{summary[name]:.2f}" + (f" (aim: {aims[name]})" if name in aims else "")
        for name in ("of_limit", "best_peer_times", "tutorial_times")
    }
    return (
        f"ours in {summary['precision']}: share of the limit {found['of_limit']}; times as fast as "
        f"the best peer, {summary['best_peer']} in {summary['best_peer_precision']}, "
        f"{found['best_peer_times']}; as the tutorial in float32, {found['tutorial_times']}"
    )


def show(table: pd.DataFrame) -> str:
    """The table as text."""
    names = {
        "images_per_second": "images/s",
        "of_limit": "of limit",
        "ours_times": "ours is x",
        "same_precision_times": "same precision x",
        "break_even_epochs": "pays after epochs",
    }
    pays = ["" if math.isnan(n) else f"{n:.0f}" for n in table.break_even_epochs]
    shown = table.assign(
        break_even_epochs=[text.replace("inf", "never") for text in pays],
        images_per_second=table.images_per_second.map("{:.1f}".format),
    )
    return shown.rename(columns=names).to_string(index=False, float_format="%.2f")


def figures(
    table: pd.DataFrame,
    rates: Rates,
    *,
    cache_seconds: float,
    setting: dict[str, Any],
) -> dict[str, Any]:
    """What ``--json`` writes, see the top of the file."""
    lines = []
    for line in table.to_dict(orient="records"):
        pays = line["break_even_epochs"]
        line["break_even_epochs"] = int(pays) if math.isfinite(pays) else None
        line["rounds"] = rates[line["method"], line["precision"]]
        lines.append(line)
    return {
        "setting": setting,
        "cache_seconds": cache_seconds,
        "summary": summarise(table, rates),
        "rows": lines,
    }


def as_json(found: dict[str, Any]) -> bytes:
    return f"{json.dumps(found, indent=1, allow_nan=False)}\n".encode()


# --- the command --------------------------------------------------------------------------


def positive(text: str) -> int:
    """A whole number from 1 on, for ``argparse``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that this script and time_to_accuracy.py share."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the dogs")
    parser.add_argument(
        "--weights",
        help="a safetensors file, 'imagenet' or 'none' (random); "
        "by default ARCHITECTURE_imagenet.safetensors in that folder",
    )
    parser.add_argument("--size", type=positive, default=224, help="side of the network's images")
    parser.add_argument("--batch", type=positive, default=32, help="images in a step")
    parser.add_argument("--no-fastai", action="store_true", help="leave fastai out")
    parser.add_argument("--no-lightning", action="store_true", help="leave Lightning out")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--record", action="store_true", help="also save chapter 08's record")


def wanted_peers(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    """The peers that take part; one that should and is not installed ends the program."""
    peers = [name for name in PEERS if not getattr(arguments, f"no_{name}", False)]
    for name in peers:
        if name != "tutorial" and importlib.util.find_spec(name) is None:
            parser.error(
                f"{name} is not installed in this environment. Install it (pip install {name}), or "
                f"leave it out with --no-{name}."
            )
    return peers


def weights(given: str | None, data: Path, architecture: str) -> str | Path | None:
    """What ``--weights`` means, as ``models.backbone`` takes it."""
    if given is None:
        return data / f"{architecture}_imagenet.safetensors"
    return None if given == "none" else given


def describe_setting(run: Run, **settings: Any) -> dict[str, Any]:
    """What ran where, for JSON."""
    return settings | {
        "device": runtime.describe_device(run.device),
        "cores": runtime.cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def command(parser: argparse.ArgumentParser, arguments: argparse.Namespace, script: str) -> str:
    """What makes a record again: the options that are not at their defaults."""
    words = ["python", f"benchmarks/{Path(script).name}", "--data PATH"]
    for name, value in vars(arguments).items():
        if name in ("data", "json") or value == parser.get_default(name):
            continue
        option = f"--{name.replace('_', '-')}"
        # A file of weights lies elsewhere for each reader: its name has to do.
        words.append(option if value is True else f"{option} {shlex.quote(Path(str(value)).name)}")
    return " ".join(words)


def record_name(script: str, run: Run, architecture: str, size: int) -> str:
    """Rows of the two tiers are different facts, so that neither replaces the other."""
    return f"speed/{Path(script).stem}_{architecture}_{size}_{tier(run)}"


def tier(run: Run) -> str:
    return "cpu" if run.device.type == "cpu" else "gpu"


def keep(record: Record) -> None:
    """Save a record and print it."""
    tl.records.save(record)
    print(record)


def over_rounds(rates: Rates, key: Key, other: Key) -> list[float]:
    """The lowest and the highest ratio of two methods within a round."""
    found = [a / b for a, b in zip(rates[key], rates[other], strict=True)]
    return [min(found), max(found)]


def figures_of_record(
    found: dict[str, Any], rates: Rates
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Result and intervals of the record, from what ``--json`` writes."""
    summary, images = found["summary"], found["setting"]["images"]
    own = "ours", summary["precision"]
    others = {
        "of_limit": ("limit", summary["precision"]),
        "best_peer_times": (summary["best_peer"], summary["best_peer_precision"]),
        "tutorial_times": ("tutorial", "float32"),
    }
    cache = {"cache_ms_an_image": 1000 * found["cache_seconds"] / images}
    return summary | cache, {name: over_rounds(rates, own, key) for name, key in others.items()}


def describe_words(setting: dict[str, Any]) -> str:
    """The setting in words."""
    return ", ".join(f"{name} {value}" for name, value in setting.items())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_common(parser)
    parser.add_argument("--architecture", default="mobilenet_v2", help="a name in torchvision")
    parser.add_argument(
        "--images", type=positive, default=128, help="photographs, rounded up to whole batches"
    )
    parser.add_argument(
        "--square",
        type=positive,
        help="side of the cached squares; by default 224, or --size if larger",
    )
    parser.add_argument("--epochs", type=positive, default=1, help="passes in one measurement")
    parser.add_argument("--rounds", type=positive, default=5)
    arguments = parser.parse_args(argv)
    peers = wanted_peers(parser, arguments)
    run, begin = tl.setup(), time.perf_counter()
    origin = tl.records.provenance(main, tl.train.fit, command=command(parser, arguments, __file__))
    dogs = tl.datasets.stanford_dogs(arguments.data)
    photos = choose(dogs, arguments.images, arguments.batch)
    few = choose(photos, 2 * arguments.batch, arguments.batch)  # of fewer classes, perhaps
    network, small = (
        tl.models.photo_classifier(
            arguments.architecture,
            len(part.classes),
            weights=weights(arguments.weights, arguments.data, arguments.architecture),
            size=arguments.size,
        )
        for part in (photos, few)
    )
    make = partial(
        prepare,
        square=arguments.square or max(224, arguments.size),
        batch=arguments.batch,
        device=run.device,
    )
    loops = rows(run.dtype, run.device, peers)
    with empty_cache() as folder:
        # The cache that is timed comes first: the other one may be found in it.
        task, cache_seconds = make(photos, network, folder / "all", epochs=arguments.epochs)
        warm_up, _ = make(few, small, folder / "few")
        rates = measure(loops, warm_up, task, arguments.rounds)
    table = compare(rates, images=len(photos), cache_seconds=cache_seconds)
    setting = describe_setting(
        run,
        architecture=arguments.architecture,
        size=arguments.size,
        images=len(photos),
        batch=arguments.batch,
        epochs=arguments.epochs,
    )
    print(
        f"\n{arguments.architecture}, {arguments.size} pixels, {len(photos):,} images in batches "
        f"of {arguments.batch}, epochs: {arguments.epochs}, medians of {arguments.rounds} rounds, "
        f"{torch.get_num_threads()} threads\n{show(table)}"
    )
    print(
        f"ours decoded the {len(photos):,} images once, in {cache_seconds:.2f} s "
        f"({1000 * cache_seconds / len(photos):.1f} ms each), which the rates leave out"
    )
    if "fastai" in peers and run.dtype != torch.float32 and run.device.type != "cuda":
        print("fastai comes in float32 alone: its to_bf16() and to_fp16() act on CUDA only")
    print(describe(summarise(table, rates), run.device.type))
    found = figures(table, rates, cache_seconds=cache_seconds, setting=setting)
    if arguments.json:
        runtime.write_whole(arguments.json, as_json(found))
    if arguments.record:
        result, interval = figures_of_record(found, rates)
        record = Record(
            name=record_name(__file__, run, arguments.architecture, arguments.size),
            tier=tier(run),
            split=dogs.split_name,
            input=f"training photographs; {describe_words(setting)}; rounds {arguments.rounds}",
            seeds=(run.seed,),
            curve=tuple(found["rows"]),
            result=result,
            interval=interval,
            interval_over=f"lowest and highest of {arguments.rounds} rounds, of one run",
            wall_seconds=time.perf_counter() - begin,
            **origin,
        )
        keep(record)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
