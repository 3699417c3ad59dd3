"""Files to features: our rate, the limit that the hardware sets, and two peers, in one run.

Everything is measured on the same photographs, one after the other, on the same cores:

* **forward**: the backbone alone, on a tensor that is already in memory; the best over dtype,
  batch size, memory layout, BatchNorm folded or not, and one network on all cores or one a core;
* **decode**: JPEG bytes in memory to 224-pixel tensors, on all cores;
* **limit**: what decode and forward together allow, 1 / (1 / forward + 1 / decode);
* **ours**: ``tl.features.extract``, files to features, nothing cached;
* **tutorial**: the loop of PyTorch's transfer learning tutorial (frozen backbone, batch 4,
  4 workers, PIL transforms), an epoch's rate;
* **fastai**: ``vision_learner`` frozen, batch 64, its defaults otherwise.

The probe needs one pass where the two loops need one an epoch. So the time to a validation
accuracy is printed as well: ours measured, the peers' *estimated* as one measured pass, scaled to
the training set, times the epochs that their head and optimiser need on cached features.

    python benchmarks/extract.py --data PATH [--images 2000] [--no-fastai] [--precision]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import tlhelpers as tl
from tlhelpers import runtime
from tlhelpers.models import Backbone
from tlhelpers.splits import Dataset

TARGET = 0.82  # validation accuracy
SECONDS = 2.0  # of each forward measurement
MOST_EPOCHS = {"tutorial": 25, "fastai": 50}


def rate(step: Callable[[], int], seconds: float = SECONDS) -> float:
    """Images a second of a step that returns how many it did, after one step to warm up."""
    step()
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        done += step()
    return done / elapsed


def on_each_core(make: Callable[[], Callable[[], int]]) -> float:
    """The summed rate of one single-threaded step a core."""

    def work(_: int) -> float:
        torch.set_num_threads(1)
        with torch.inference_mode():
            return rate(make())

    with runtime.torch_threads(1), ThreadPoolExecutor(runtime.cores()) as pool:
        return sum(pool.map(work, range(runtime.cores())))


def forward_limit(backbone: Backbone) -> pd.DataFrame:
    """Images a second of the bare network, for each way to run it; best first."""
    rows = []
    dtypes = {torch.float32, runtime.default(None).dtype}
    folded = {False: backbone.network, True: fuse(copy.deepcopy(backbone.network))}
    for dtype, fold, batch, last in itertools.product(dtypes, folded, (8, 16, 32, 64), (0, 1)):
        layout = torch.channels_last if last else torch.contiguous_format
        network = copy.deepcopy(folded[fold]).to(dtype=dtype).to(memory_format=layout)
        images = torch.randn(batch, 3, 224, 224).to(dtype).contiguous(memory_format=layout)

        def step(network: nn.Module = network, images: Tensor = images) -> int:
            return len(network(images))

        with torch.inference_mode():
            together = rate(step)
        for threads, found in (("all cores", together), ("one a core", on_each_core(lambda: step))):
            settings = (str(dtype).removeprefix("torch."), fold, batch, bool(last), threads)
            rows.append((*settings, found))
    columns = ["dtype", "folded", "batch", "channels last", "threads", "images/s"]
    return pd.DataFrame(rows, columns=columns).sort_values("images/s", ascending=False)


def decode_limit(data: Dataset, backbone: Backbone) -> float:
    """Images a second of decoding alone, on all cores."""
    numbers = itertools.cycle(range(len(data)))
    preprocess = backbone.preprocess
    assert preprocess is not None

    def step() -> int:
        for _ in range(16):
            preprocess.geometry(data.x[next(numbers)])
        return 16

    return on_each_core(lambda: step)


def ours(data: Dataset, backbone: Backbone) -> float:
    """Images a second of ``extract`` with an empty cache, everything included."""
    with tempfile.TemporaryDirectory() as cache:
        before = os.environ.get(runtime.CACHE_VARIABLE)
        os.environ[runtime.CACHE_VARIABLE] = cache
        try:
            start = time.perf_counter()
            tl.features.extract(data, backbone)
            return len(data) / (time.perf_counter() - start)
        finally:
            del os.environ[runtime.CACHE_VARIABLE]
            if before is not None:
                os.environ[runtime.CACHE_VARIABLE] = before


def write_folder(data: Dataset, folder: Path) -> None:
    """The photographs as files, a folder a class, as the peers' loaders want them."""
    for i, name in enumerate(data.ids):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.x.read(i))


def tutorial_loop(folder: Path, backbone: Backbone) -> float:
    """Images a second of an epoch of the tutorial's fixed feature extractor."""
    transforms, preprocess = torchvision.transforms, backbone.preprocess
    assert preprocess is not None
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    images = torchvision.datasets.ImageFolder(str(folder), transform)
    loader = torch.utils.data.DataLoader(images, batch_size=4, shuffle=True, num_workers=4)
    body = copy.deepcopy(backbone.network).requires_grad_(False)
    model = nn.Sequential(body, nn.Linear(backbone.dim, len(images.classes))).train()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.001, momentum=0.9)
    loss_function = nn.CrossEntropyLoss()
    start = time.perf_counter()
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = loss_function(model(inputs), labels)
        loss.backward()
        optimizer.step()
        loss.item()
    return len(images) / (time.perf_counter() - start)


def fastai_loop(folder: Path, backbone: Backbone) -> float:
    """Images a second of an epoch of a frozen ``Learner``, without its validation pass."""
    from fastai.vision.all import (
        CrossEntropyLossFlat,
        ImageDataLoaders,
        Learner,
        Normalize,
        aug_transforms,
        create_vision_model,
        default_split,
    )

    assert backbone.preprocess is not None
    normalize = Normalize.from_stats(backbone.preprocess.mean, backbone.preprocess.std)
    loaders = ImageDataLoaders.from_folder(
        folder, valid_pct=0.01, seed=0, bs=64, batch_tfms=[*aug_transforms(), normalize]
    )
    # What vision_learner would do; it does not pass on where the body ends, and torchvision's
    # MobileNetV2 pools in a function, which fastai cannot see.
    architecture = torchvision.models.mobilenet_v2
    model = create_vision_model(architecture, len(loaders.vocab), pretrained=False, cut=-1)
    learner = Learner(loaders, model, CrossEntropyLossFlat(), splitter=default_split)
    learner.freeze()
    start = time.perf_counter()
    with learner.no_logging(), learner.no_bar():
        learner.fit(1)
    return len(loaders.train_ds) / (time.perf_counter() - start)


def epochs_needed(bank: Dataset, peer: str) -> int | None:
    """Epochs that a peer's head needs on cached features to reach the validation accuracy.

    None if it does not get there: within the 25 epochs of the tutorial, or in cycles of up to 50
    epochs as fastai's schedule is one cycle, for each number of epochs a run of its own.
    """
    if peer == "tutorial":
        accuracies = tutorial_head(bank, epochs=25)
        reached = [i for i, accuracy in enumerate(accuracies, start=1) if accuracy >= TARGET]
        return reached[0] if reached else None
    for epochs in (1, 2, 3, 5, 8, 12, 20, 30, 50):
        if fastai_head(bank, epochs=epochs) >= TARGET:
            return epochs
    return None


def tutorial_head(bank: Dataset, *, epochs: int) -> list[float]:
    """Validation accuracy after each epoch of the tutorial's linear head.

    SGD with rate 0.001 and momentum 0.9, batch 4, a tenth of the rate every 7 epochs.
    """
    torch.manual_seed(0)
    head = nn.Linear(bank.x.shape[1], len(bank.classes))
    optimizer = torch.optim.SGD(head.parameters(), 0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1)
    accuracies = []
    for epoch in range(epochs):
        train_head(head, optimizer, bank, batch=4, seed=epoch)
        schedule.step()
        accuracies.append(validation_accuracy(head, bank))
    return accuracies


def fastai_head(bank: Dataset, *, epochs: int) -> float:
    """Validation accuracy of fastai's head after one cycle of so many epochs.

    BatchNorm, dropout and a hidden layer; one-cycle Adam with peak rate 0.002, batch 64. Its input
    has the average-pooled features only, where fastai concatenates the max-pooled ones.
    """
    torch.manual_seed(0)
    d, m = bank.x.shape[1], len(bank.classes)
    head = nn.Sequential(
        nn.BatchNorm1d(d), nn.Dropout(0.25), nn.Linear(d, 512, bias=False), nn.ReLU(),
        nn.BatchNorm1d(512), nn.Dropout(0.5), nn.Linear(512, m, bias=False),
    )  # fmt: skip
    optimizer = torch.optim.Adam(head.parameters(), 0.002)
    steps = epochs * -(-len(bank.train) // 64)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.002, total_steps=steps)
    for epoch in range(epochs):
        train_head(head, optimizer, bank, batch=64, seed=epoch, after_step=cycle.step)
    return validation_accuracy(head, bank)


def train_head(
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    bank: Dataset,
    *,
    batch: int,
    seed: int,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """One epoch of a head on cached features."""
    head.train()
    for x, y in bank.train.batches(batch, torch.Generator().manual_seed(seed)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(x), y).backward()
        optimizer.step()
        after_step()


@torch.no_grad()
def validation_accuracy(head: nn.Module, bank: Dataset) -> float:
    hits = head.eval()(bank.validation.x).argmax(dim=1) == bank.validation.y
    return float(hits.float().mean())


def precision(dogs: Dataset, backbone: Backbone) -> str:
    """What the fast dtype costs: features and probe against those of float32, in a sentence."""
    fast = tl.features.extract(dogs, backbone)
    exact = tl.features.extract(dogs, backbone, run=runtime.Run(dtype=torch.float32))
    error = (fast.x - exact.x).norm(dim=1) / exact.x.norm(dim=1)
    probes = {"fast": tl.probe.fit(fast), "exact": tl.probe.fit(exact)}
    fast_report = tl.evaluate.report(probes["fast"], fast.test, name="fast dtype")
    exact_report = tl.evaluate.report(probes["exact"], exact.test, name="float32")
    assert fast.provenance is not None
    return (
        f"{fast.provenance.dtype} against float32: relative error of the features "
        f"{error.median():.2%} in the median, {error.max():.2%} at most; probe's test top-1 "
        f"{fast_report.top1} against {exact_report.top1}, "
        f"difference {tl.evaluate.difference(fast_report, exact_report)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the dogs and weights")
    parser.add_argument(
        "--images",
        type=int,
        default=2000,
        help="photographs for the rates, rounded up to as many a breed",
    )
    parser.add_argument("--no-fastai", action="store_true", help="leave fastai out")
    parser.add_argument(
        "--precision", action="store_true", help="only compare the fast dtype with float32"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    run = tl.setup()
    backbone = tl.models.backbone(
        "mobilenet_v2", weights=arguments.data / "mobilenet_v2_imagenet.safetensors"
    )
    dogs = tl.datasets.stanford_dogs(arguments.data)
    if arguments.precision:
        print(precision(dogs, backbone))
        return
    few = dogs.few(-(-arguments.images // len(dogs.classes)))
    some = few.subset(np.flatnonzero(few.split == "train"))
    with runtime.keep_memory():
        table = forward_limit(backbone)
    print(table.head(5).to_string(index=False, float_format="%.0f"))
    plain = table[(table.dtype == "float32") & ~table.folded & (table.batch == 64)]
    forward, decode = table["images/s"].iloc[0], decode_limit(dogs, backbone)
    limit = 1 / (1 / forward + 1 / decode)
    rates = {"forward, float32, batch 64, as it comes": plain["images/s"].min()}
    rates |= {"forward": forward, "decode": decode, "limit": limit, "ours": ours(some, backbone)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(some, folder)
        rates["tutorial"] = tutorial_loop(folder, backbone)
        if not arguments.no_fastai:
            rates["fastai"] = fastai_loop(folder, backbone)
    print(f"\n{len(some):,} photographs, {run.device.type}, {runtime.cores()} cores")
    for name, value in rates.items():
        print(f"{name:42}{value:8.0f} images/s {rates['ours'] / value:8.2f} x as fast is ours")
    times = time_to_target(dogs, backbone, rates)
    print(f"\nminutes to {TARGET:.0%} validation accuracy")
    for name, (minutes, how) in times.items():
        print(f"{name:12}{minutes:8.1f}  {how}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rates": rates, "minutes": times}, indent=1) + "\n")


def time_to_target(
    dogs: Dataset, backbone: Backbone, rates: dict[str, float]
) -> dict[str, tuple[float, str]]:
    """Minutes from files to the target accuracy: ours measured, the peers' estimated."""
    start = time.perf_counter()
    bank = tl.features.extract(dogs, backbone)
    extracted = time.perf_counter() - start
    probe = tl.probe.fit(bank)
    minutes = (time.perf_counter() - start) / 60
    reached = tl.evaluate.validate(probe, bank.validation)
    how = f"measured: {len(dogs):,} images in {extracted:.0f} s, then the probe; reaches {reached}"
    times = {"ours": (minutes, how)}
    print(f"ours, all {len(dogs):,} images: {len(dogs) / extracted:.0f} images/s")
    for peer in ("tutorial", "fastai"):
        if peer in rates:
            epochs = epochs_needed(bank, peer)
            passes = epochs or MOST_EPOCHS[peer]
            needed = f"{passes} epochs" if epochs else f"not reached in {passes} epochs"
            minutes = len(bank.train) * passes / rates[peer] / 60
            times[peer] = (minutes, f"estimated: {needed} x one measured pass")
    return times


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
