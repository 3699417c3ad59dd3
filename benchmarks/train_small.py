"""Steps a second of our training loop, of plain loops and of fastai, and the limit, in one run.

All train the same network (``models.small_resnet``, 52 classes) from the same weights on the same
16-pixel images with AdamW at a constant rate, in float32 on all cores, with the same batch size:

* **limit**: forward, backward and the optimiser's fused step alone, on one batch that stays in
  memory; the better of malloc's default and ``runtime.keep_memory``;
* **ours**: ``tl.train.fit``, training and its validation passes, everything included;
* **ours, training alone**: the same without a validation split;
* **tutorial**: a ``DataLoader`` over a ``TensorDataset``, the optimiser's defaults, ``loss.item()``
  at each step, as PyTorch's introductory tutorial has it;
* **by hand**: the plain loop that indexes tensors with a permutation, ``fused=True``;
* **fastai**: a ``Learner`` on the same data set, its defaults otherwise, without progress bars.

The peers take no validation pass. The rounds go through all of them by turns, so that a busy
moment of the machine hits everybody; medians over rounds are printed, of the rates and of the
ratios within a round.

    python benchmarks/train_small.py [--batch 32] [--no-fastai] [--json PATH]
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import tlhelpers as tl
from tlhelpers import runtime
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

CLASSES = 52
LR = 1e-3
WEIGHT_DECAY = 1e-2
VALIDATION = 520

Loop = Callable[[nn.Module, Dataset, int, int], float]  # seconds of so many steps
Table = dict[str, list[float]]


def images(train: int, validation: int) -> Dataset:
    """Noise with labels: how fast a loop is does not depend on what it learns."""
    n = train + validation
    return Dataset(
        name="noise",
        classes=tuple(map(str, range(CLASSES))),
        x=torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(0)),
        labels=torch.arange(n) % CLASSES,
        split=np.repeat(["train", "validation"], [train, validation]),
        ids=tuple(map(str, range(n))),
        split_name="none",
    )


def limit(network: nn.Module, data: Dataset, batch: int, steps: int) -> float:
    """Seconds of the arithmetic alone, on one batch."""
    x, y = data.train.x[:batch], data.train.y[:batch]
    optimizer = fused(network)

    def work() -> None:
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    network.train()
    found = timed(work, steps // 2)
    with runtime.keep_memory():
        work()
        return min(found, timed(work, steps // 2)) * 2


def timed(work: Callable[[], None], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - start


def ours(network: nn.Module, data: Dataset, batch: int, steps: int) -> float:
    """Seconds of ``fit``."""
    recipe = tl.train.Recipe(
        steps=steps,
        batch_size=batch,
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        schedule="constant",
        validate_every=-(-len(data.train) // batch),
    )
    start = time.perf_counter()
    tl.train.fit(network, data, recipe, Run())
    return time.perf_counter() - start


def ours_without_validation(network: nn.Module, data: Dataset, batch: int, steps: int) -> float:
    """Seconds of ``fit`` where there is no validation split."""
    return ours(network, data.subset(np.flatnonzero(data.split == "train")), batch, steps)


def tutorial(network: nn.Module, data: Dataset, batch: int, steps: int) -> float:
    """Seconds of the loop of the tutorials."""
    examples = torch.utils.data.TensorDataset(data.train.x, data.train.y)
    loader = torch.utils.data.DataLoader(examples, batch_size=batch, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    loss_function = nn.CrossEntropyLoss()
    network.train()
    done, running = 0, 0.0
    start = time.perf_counter()
    while done < steps:
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = loss_function(network(inputs), labels)
            loss.backward()
            optimizer.step()
            running += loss.item()
            done += 1
            if done == steps:
                break
    return time.perf_counter() - start


def by_hand(network: nn.Module, data: Dataset, batch: int, steps: int) -> float:
    """Seconds of a loop that somebody writes who knows how."""
    x, y = data.train.x, data.train.y
    optimizer = fused(network)
    network.train()
    done = 0
    start = time.perf_counter()
    while done < steps:
        for rows in torch.randperm(len(y)).split(batch):
            loss = F.cross_entropy(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    return time.perf_counter() - start


def fastai(network: nn.Module, data: Dataset, batch: int, steps: int) -> float:
    """Seconds of fastai's ``fit``, without its validation pass."""
    import fastai.callback.progress  # noqa: F401 -- brings no_bar
    from fastai.callback.core import Callback, CancelValidException
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    class NoValidation(Callback):
        def before_validate(self) -> None:
            raise CancelValidException

    pairs = list(zip(data.train.x, data.train.y, strict=True))
    loaders = DataLoaders(DataLoader(pairs, bs=batch, shuffle=True), DataLoader(pairs, bs=batch))
    learner = Learner(
        loaders,
        network,
        nn.CrossEntropyLoss(),
        opt_func=partial(OptimWrapper, opt=partial(torch.optim.AdamW, fused=True)),
        wd=WEIGHT_DECAY,
        cbs=NoValidation(),
    )
    per_epoch = -(-len(pairs) // batch)
    epochs = -(-steps // per_epoch)
    start = time.perf_counter()
    with learner.no_logging(), learner.no_bar():
        learner.fit(epochs, LR)
    return (time.perf_counter() - start) * steps / (per_epoch * epochs)


def fused(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)


def measure(loops: dict[str, Loop], data: Dataset, batch: int, steps: int, rounds: int) -> Table:
    """Steps a second of each loop in each round."""
    start = tl.models.small_resnet(CLASSES)
    table: Table = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            network = copy.deepcopy(start)
            loop(network, data, batch, max(steps // 10, 2))  # to warm up
            gc.collect()
            table[name].append(steps / loop(copy.deepcopy(start), data, batch, steps))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=32, help="examples in a step")
    parser.add_argument("--steps", type=int, default=260, help="of each loop in each round")
    parser.add_argument("--examples", type=int, default=2080, help="in the training split")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-fastai", action="store_true", help="leave fastai out")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    print(tl.runtime.Run())
    loops: dict[str, Loop] = {
        "limit": limit,
        "ours": ours,
        "ours, training alone": ours_without_validation,
        "tutorial": tutorial,
        "by hand": by_hand,
    }
    if not arguments.no_fastai:
        loops["fastai"] = fastai
    batch, steps = arguments.batch, arguments.steps
    data = images(arguments.examples, VALIDATION)
    table = measure(loops, data, batch, steps, arguments.rounds)
    rates = {name: statistics.median(found) for name, found in table.items()}
    ratios = {
        name: statistics.median(
            mine / other for mine, other in zip(table["ours"], found, strict=True)
        )
        for name, found in table.items()
    }
    print(
        f"\nbatches of {batch}, {steps} steps, median of {arguments.rounds} rounds, "
        f"{torch.get_num_threads()} threads; an epoch of {arguments.examples:,} examples, "
        f"{VALIDATION} validated after each by ours"
    )
    for name, rate in rates.items():
        print(
            f"{name:22}{rate:8.1f} steps/s {rate * batch:10,.0f} images/s {ratios[name]:8.2f} x as "
            f"fast is ours"
        )
    if arguments.json:
        figures = {"batch": batch, "steps per second": rates, "ours times": ratios}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
