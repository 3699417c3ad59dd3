"""What faster and smaller training costs and gains: the studies and the arithmetic of chapter 17.

:func:`lora_study` compares low-rank adapters with a probe and with full fine-tuning on handwritten
digits, :func:`speed` measures memory formats, bfloat16 and ``torch.compile``, and :func:`rehearse`
kills a worker of a cluster. :func:`rounds` times things by turns, and :func:`saved_bytes` counts
what a forward pass keeps for its backward pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers import datasets, evaluate, features, lora, models, records, runtime, train, zoo
from tlhelpers.evaluate import Estimate
from tlhelpers.features import Engine, Keep, Work
from tlhelpers.models import Backbone, SmallResNet
from tlhelpers.ray_extract import KillsOnce, OnRay
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.train import Recipe

COMMAND = "python experiments/scaling.py"

# --- timing -------------------------------------------------------------------------------


def rounds(
    works: Mapping[str, Callable[[], Any]],
    *,
    count: int = 7,
    clock: Callable[[], float] = time.process_time,
) -> pd.DataFrame:
    """Time several things by turns, so that what disturbs the machine disturbs them all.

    Each is called once before, unmeasured.

    Args:
        works: what is called, by name; on an accelerator it must wait for the device itself.
        count: how often each is measured.
        clock: gives seconds. The default counts those that this process spends on the processor's
            cores, all threads together, which other programs disturb least; where an accelerator
            computes, take ``time.perf_counter``.

    Returns:
        seconds: a row for each round, a column for each thing.

    Example:
        >>> import itertools
        >>> import tlhelpers as tl
        >>> works = {"short": lambda: sum(range(10)), "long": lambda: sum(range(10_000))}
        >>> seconds = tl.scaling.rounds(works, count=3)
        >>> seconds.shape, list(seconds)
        ((3, 2), ['short', 'long'])
    """
    for work in works.values():
        work()
    rows = []
    for _ in range(count):
        row = {}
        for name, work in works.items():
            start = clock()
            work()
            row[name] = clock() - start
        rows.append(row)
    return pd.DataFrame(rows)


def _core_seconds() -> float:
    """Those of this process and of the programs that it has run, such as a compiler."""
    return sum(os.times()[:4])


def times_as_fast(seconds: pd.DataFrame, name: str, reference: str) -> Estimate:
    """How many times as fast one column is as another, round by round.

    The geometric mean of the ratios, so that "twice as fast" and "half as fast" are one distance.

    Args:
        seconds: from :func:`rounds`.
        name: a column.
        reference: another.

    Example:
        >>> import pandas as pd
        >>> import tlhelpers as tl
        >>> seconds = pd.DataFrame({"new": [1.0, 1.1, 1.0], "old": [2.0, 2.2, 2.0]})
        >>> tl.scaling.times_as_fast(seconds, "new", "old")
        2.000 [2.000, 2.000]
    """
    logs = np.log(seconds[reference] / seconds[name])
    mean = evaluate.mean_interval(logs, unit="")
    value, low, high = (float(np.exp(x)) for x in (mean.value, mean.low, mean.high))
    return Estimate(value, low, high, unit="")


# --- memory -------------------------------------------------------------------------------


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters and input not counted.

    A storage that is kept several times counts once. Works on the device ``"meta"`` too, where
    tensors have shapes and no contents, so that a large network can be asked on a small machine (a
    frozen BatchNorm there keeps a few numbers more than it does on a CPU).

    Args:
        network: in the mode that it is to be measured in.
        x: a batch.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network, images = tl.models.small_resnet(10), torch.zeros(32, 1, 16, 16)
        >>> whole = tl.scaling.saved_bytes(network, images)
        >>> _ = tl.models.freeze(network)
        >>> _ = tl.models.unfreeze(network.head)
        >>> head = tl.scaling.saved_bytes(network, images)
        >>> head, whole > 100 * head
        (8192, True)
    """
    known = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers(), x)}
    found: dict[int, tuple[Tensor, int]] = {}  # the tensors too: an address is not used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(x)
    del out
    return sum(size for _, size in found.values())


# --- low-rank adapters --------------------------------------------------------------------

WAYS = ("probe", "LoRA", "full")
RATES: Mapping[str, tuple[float, ...]] = {
    "probe": (1e-2, 3e-2, 1e-1),
    "LoRA": (2e-3, 8e-3, 3e-2),
    "full": (5e-4, 2e-3, 8e-3),
}
"""The learning rates to choose from, of the head for the probe and of the body for the others."""

SHOTS = (1, 10, 100)
RANKS = (1, 4)
DRAWS = 5
TUNING_DRAWS = (100,)
TUNING_SHOTS = 10


def adapted(way: str, *, rank: int = lora.RANK, seed: int = 0) -> SmallResNet:
    """The network that knows letters, with a head for digits and what ``way`` lets learn.

    Args:
        way: one of ``WAYS``.
        rank: of the updates of ``"LoRA"``.
        seed: of the head and of the updates.

    Raises:
        ValueError: if there is no such way.

    Example:
        >>> import tlhelpers as tl
        >>> for way in tl.scaling.WAYS:
        ...     network = tl.scaling.adapted(way)
        ...     print(way, sum(p.numel() for p in network.parameters() if p.requires_grad))
        probe 650
        LoRA 8558
        full 77754
    """
    network = models.small_resnet(10, weights="letters", seed=seed)
    if way == "full":
        return network
    if way == "probe":
        models.freeze(network)
        models.unfreeze(network.head)
        return network
    if way == "LoRA":
        found: Any = lora.insert(network, rank, seed=seed)
        return found
    raise ValueError(f"a way is one of {', '.join(WAYS)}, found {way!r}.")


def recipe(way: str, rate: float) -> Recipe:
    """That of the zoo with another learning rate: the body's, or the head's for the probe.

    Example:
        >>> import tlhelpers as tl
        >>> for way in ("probe", "full"):
        ...     recipe = tl.scaling.recipe(way, 0.1)
        ...     print(way, recipe.lr, recipe.head_lr)
        probe 0.002 0.1
        full 0.1 0.01
    """
    change: dict[str, Any] = {"head_lr": rate} if way == "probe" else {"lr": rate}
    return dataclasses.replace(zoo.FINE_TUNING, **change)


def tune(way: str, task: Dataset, run: Run, rates: Sequence[float]) -> dict[float, float]:
    """The mean validation accuracy for each rate, on draws that are used for nothing else."""
    found = {}
    for rate in rates:
        top1 = []
        for draw in TUNING_DRAWS:
            network = adapted(way, seed=run.seed + draw)
            few = zoo.few(task, draw, k=TUNING_SHOTS)
            own = dataclasses.replace(run, seed=run.seed + draw)
            train.fit(network, few, recipe(way, rate), own)
            top1.append(evaluate.validate(network.cpu(), task.validation, resamples=2).value)
        found[rate] = float(np.mean(top1))
    return found


def lora_study(
    run: Run | None = None,
    *,
    shots: Sequence[int] = SHOTS,
    ranks: Sequence[int] = RANKS,
    draws: int = DRAWS,
    rates: Mapping[str, Sequence[float]] = RATES,
) -> Record:
    """From letters to handwritten digits by a probe, by low-rank updates, and by all weights.

    All have the recipe of the zoo but for the learning rate, which is chosen once for each way on
    validation images, with draws of its own. The test split is read once for each number of
    labels, by all networks together.

    Args:
        run: device, and the seed of everything, to which the draw is added.
        shots: labels a class.
        ranks: of updates that are compared at the last but one number of labels.
        draws: how many draws of the labelled images.
        rates: the learning rates to choose from.

    Returns:
        the record ``scaling/lora``: a row for each number of labels, way, rank and draw with
        ``top1`` on test, the ``rate`` chosen, and the ``core_seconds`` of the training. In the
        result, ``<way>, <k> labels`` is the mean
        accuracy and ``LoRA minus <way>, <k> labels`` a mean of paired differences.
    """
    run = runtime.default(run)
    origin = records.provenance(lora_study, lora.insert, command=COMMAND)
    start = time.perf_counter()
    digits = datasets.digits()
    rate = {}
    for way in WAYS:
        tuned = tune(way, digits, run, rates[way])
        rate[way] = max(tuned, key=lambda r: tuned[r])
    rows: list[dict[str, Any]] = []
    middle = shots[-2] if len(shots) > 1 else shots[0]
    for k in shots:
        jobs = [(way, lora.RANK) for way in WAYS]
        if k == middle:
            jobs += [("LoRA", rank) for rank in ranks if rank != lora.RANK]
        networks, seconds = {}, {}
        for draw in range(draws):
            own, few = dataclasses.replace(run, seed=run.seed + draw), zoo.few(digits, draw, k=k)
            for way, rank in jobs:
                network = adapted(way, rank=rank, seed=own.seed)
                history = train.fit(network, few, recipe(way, rate[way]), own)
                networks[way, rank, draw] = network.cpu()
                seconds[way, rank, draw] = float(history.core_seconds.iloc[-1])
        reports = evaluate.grid(networks, digits.test, name=f"{k} labels a class", resamples=2)
        rows += [
            {
                "k": k,
                "way": way,
                "rank": rank if way == "LoRA" else 0,
                "draw": draw,
                "top1": report.top1.value,
                "rate": rate[way],
                "core_seconds": seconds[way, rank, draw],
            }
            for (way, rank, draw), report in reports.items()
        ]
    return Record(
        name="scaling/lora",
        tier=run.tier,
        split=f"{digits.split_name}; {draws} draws of the labels, no validation among them",
        input=f"digits, {datasets.GLYPH_SIZE} px, {zoo.FINE_TUNING.steps} steps, "
        f"rank {lora.RANK} where no other is named",
        seeds=tuple(range(draws)),
        curve=tuple(rows),
        interval_over=f"95 %, t, over {draws} draws",
        wall_seconds=time.perf_counter() - start,
        **records.figures(_compared(pd.DataFrame(rows), shots)),
        **origin,
    )


def _compared(rows: pd.DataFrame, shots: Sequence[int]) -> dict[str, Estimate]:
    found = {}
    plain = rows[rows["rank"].isin((0, lora.RANK))]
    for k in shots:
        table = plain[plain.k == k].pivot(index="draw", columns="way", values="top1")
        for way in WAYS:
            found[f"{way}, {k} labels"] = evaluate.mean_interval(table[way])
        for way in ("probe", "full"):
            gap = table["LoRA"] - table[way]
            found[f"LoRA minus {way}, {k} labels"] = evaluate.mean_interval(gap, unit="points")
    for rank, some in rows[(rows.way == "LoRA") & (rows["rank"] != lora.RANK)].groupby("rank"):
        found[f"LoRA of rank {rank}, {some.k.iloc[0]} labels"] = evaluate.mean_interval(some.top1)
    return found


# --- speed --------------------------------------------------------------------------------

NETWORKS: Mapping[str, tuple[int, int]] = {"small_resnet": (128, 16), "resnet18": (16, 64)}
"""Batch size and side in pixels at which each network is timed."""

VARIANTS = ("as it comes", "channels last", "bfloat16", "channels last, bfloat16", "compiled")


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which ``torch.compile`` needs on a CPU."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))


def training_step(name: str, variant: str, *, device: torch.device) -> Callable[[], Any]:
    """A training step on noise: forward, backward, and an AdamW update.

    Args:
        name: one of ``NETWORKS``.
        variant: one of ``VARIANTS``; ``"compiled"`` is channels last and float32.
        device: where it runs; the step waits for it.
    """
    batch, side = NETWORKS[name]
    network: nn.Module
    if name == "small_resnet":
        network = models.small_resnet(10)
    else:
        network = models.photo_classifier(name, 10, weights=None, size=side).body
    last = "channels last" in variant or variant == "compiled"
    layout = torch.channels_last if last else torch.contiguous_format
    network = network.to(device).to(memory_format=layout).train()
    generator = Run().generator(18)
    channels = 1 if name == "small_resnet" else 3
    x = torch.rand(batch, channels, side, side, generator=generator).to(device)
    x = x.contiguous(memory_format=layout)
    y = (torch.arange(batch) % 10).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=device.type in ("cpu", "cuda"))
    forward = torch.compile(network) if variant == "compiled" else network
    half = "bfloat16" in variant

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device

    return step


def speed(
    run: Run | None = None,
    *,
    networks: Sequence[str] = tuple(NETWORKS),
    count: int = 12,
) -> Record:
    """Training steps in two memory formats, in two precisions, and compiled, by turns.

    Args:
        run: the device.
        networks: names in ``NETWORKS``.
        count: rounds.

    Returns:
        the record ``scaling/speed``: a row for each network and round with the seconds of a step
        of each variant, on a CPU those of its cores, all threads together. In the result,
        ``<network>, <variant>`` is how many times as fast a step is as one without any of them;
        ``<network>, start-up seconds`` what the first compiled step took more than a later one;
        and ``<network>, steps to pay`` the start-up over what a step gains on a channels-last one
        (-1 where it gains nothing). Without a C++
        compiler what is compiled is left out.
    """
    run = runtime.default(run)
    origin = records.provenance(speed, command=COMMAND)
    start = time.perf_counter()
    variants = VARIANTS if has_compiler() else VARIANTS[:-1]
    on_cpu = run.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    start_clock = _core_seconds if on_cpu else time.perf_counter
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    interval: dict[str, list[float]] = {}
    for name in networks:
        works = {v: training_step(name, v, device=run.device) for v in variants}
        with _set_in_environment(TORCHINDUCTOR_CACHE_DIR=None):  # what was compiled before
            begin = start_clock()
            works[variants[-1]]()
            first = start_clock() - begin
            seconds = rounds(works, count=count, clock=clock)
        rows += [
            {"network": name, "round": i} | row for i, row in enumerate(seconds.to_dict("records"))
        ]
        for variant in variants[1:]:
            ratio = times_as_fast(seconds, variant, VARIANTS[0])
            key = f"{name}, {variant}"
            result[key], interval[key] = ratio.value, [ratio.low, ratio.high]
        if "compiled" in variants:
            gain = float((seconds["channels last"] - seconds["compiled"]).median())
            startup = first - float(seconds["compiled"].median())
            result[f"{name}, start-up seconds"] = startup
            result[f"{name}, steps to pay"] = startup / gain if gain > 0 else -1.0
            ratio = times_as_fast(seconds, "compiled", "channels last")
            key = f"{name}, compiled over channels last"
            result[key], interval[key] = ratio.value, [ratio.low, ratio.high]
    return Record(
        name="scaling/speed",
        tier=run.tier,
        split="none: noise",
        input="; ".join(
            f"{n}: batches of {NETWORKS[n][0]} at {NETWORKS[n][1]} px" for n in networks
        ),
        seeds=(),
        curve=tuple(rows),
        result=result,
        interval=interval,
        interval_over=f"95 %, t, of the logarithm, over {count} rounds of one process",
        wall_seconds=time.perf_counter() - start,
        **origin,
    )


# --- extraction by workers of which one dies ------------------------------------------------

RAY_COMMAND = "python experiments/extract_ray.py --data PATH --classes 10 --kill --record"


def rehearse(
    data: Dataset,
    backbone: Backbone,
    *,
    workers: int = 2,
    kill: bool = True,
    run: Run | None = None,
    command: str = RAY_COMMAND,
) -> Record:
    """Extract the same bank by one process, by workers on Ray, and by workers of which one dies.

    The cache is left alone: each extraction has an empty one.

    Args:
        data: photographs, lazy.
        backbone: with preprocessing.
        workers: on Ray.
        kill: whether to make the third extraction.
        run: device and dtype.
        command: of the record.

    Returns:
        the record ``scaling/extract_ray``: a row for each extraction with its ``seconds``, the
        ``largest_difference`` of a feature from those of one process, whether the bank has the
        ``same_ids`` in the same order, and how many ``chunks`` there are and were ``delivered``.

    Raises:
        RuntimeError: if a worker should have died and did not.
    """
    run = runtime.default(run)
    origin = records.provenance(rehearse, features.extract, command=command)
    begin = time.perf_counter()
    rows: list[dict[str, Any]] = []
    banks = []
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder) / "killed"
        ways: dict[str, tuple[Any, Engine]] = {
            "one process": (data.x, features.on_cores),
            f"{workers} workers on Ray": (data.x, OnRay(workers)),
        }
        if kill:
            # In the middle: in the first chunk nothing would be done yet.
            mortal = KillsOnce(data.x, len(data) // 2, marker)
            ways[f"{workers} workers, one killed"] = (mortal, OnRay(workers))
        for way, (images, engine) in ways.items():
            counted = _Counted(engine)
            with _set_in_environment(**{runtime.CACHE_VARIABLE: None}):
                start = time.perf_counter()
                task = dataclasses.replace(data, x=images)
                bank = features.extract(task, backbone, run=run, engine=counted)
                seconds = time.perf_counter() - start
            banks.append(bank)
            difference = float((bank.x - banks[0].x).abs().max())
            rows.append(
                {
                    "way": way,
                    "seconds": seconds,
                    "largest_difference": difference,
                    "same_ids": bank.ids == banks[0].ids,
                    "chunks": len(set(counted.kept)),
                    "delivered": len(counted.kept),
                }
            )
        if kill and not marker.is_file():
            raise RuntimeError("no worker came to the image that kills: nothing was rehearsed.")
    return Record(
        name="scaling/extract_ray",
        tier=run.tier,
        split=data.split_name,
        input=f"{len(data)} images of {data.name}, {backbone.name}, chunks of {features.CHUNK}",
        seeds=(),
        curve=tuple(rows),
        result={f"{row['way']}, seconds": row["seconds"] for row in rows},
        interval={},
        interval_over="",
        wall_seconds=time.perf_counter() - begin,
        **origin,
    )


class _Counted:
    """An engine, and the chunks that it hands over."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.kept = engine, list[range]()

    def __call__(self, work: Work, chunks: Sequence[range], keep: Keep) -> None:
        def count(chunk: range, rows: Tensor, unread: Mapping[int, str]) -> None:
            keep(chunk, rows, unread)
            self.kept.append(chunk)

        self.engine(work, chunks, count)


@contextlib.contextmanager
def _set_in_environment(**values: str | None) -> Iterator[None]:
    """Variables of the environment while the block runs; None for a new, empty folder."""
    before = {name: os.environ.get(name) for name in values}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ.update({name: value or folder for name, value in values.items()})
        try:
            yield
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value
