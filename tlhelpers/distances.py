"""How far each source of the glyph world is from each target: a record that the advice reads.

:func:`measure` asks for every network of :mod:`~tlhelpers.negative`'s family and of the zoo what
:func:`tlhelpers.advice.distance` asks: is a probe on its features better than a probe on the
features of the same network with random weights?
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tlhelpers import advice, evaluate, evidence, labels, negative, records, runtime, zoo
from tlhelpers.evaluate import Estimate
from tlhelpers.models import SmallResNet
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

COMMAND = "python experiments/distances.py"
LABELS = 10
DRAWS = 10
SOURCES = (
    *(name for name in zoo.names() if name != negative.SCRATCH),
    negative.SIDEWAYS,
    negative.PIXELS,
    negative.NOISE,
)
"""All sources that the tasks of the zoo are compared with; those of chapter 01 have letters."""


def tasks() -> dict[str, Callable[[], Dataset]]:
    """The six targets of the zoo, and the three tasks of chapter 01 that letters do not help.

    Example:
        >>> import tlhelpers as tl
        >>> tasks = tl.distances.tasks()
        >>> [name for name in tasks if name not in tl.zoo.TARGETS]
        ['rotation', 'stroke', 'noise']
    """
    made: dict[str, Callable[[], Dataset]] = {
        name: functools.partial(zoo.target, name) for name in zoo.TARGETS
    }
    return made | {task.name: _given(task) for task in (make() for make in labels.FAR.values())}


def _given(task: Dataset) -> Callable[[], Dataset]:
    return lambda: task


def measure(
    run: Run | None = None,
    *,
    targets: Mapping[str, Callable[[], Dataset]] | None = None,
    draws: int = DRAWS,
    k: int = LABELS,
) -> Record:
    """The distance of each source from each target.

    Each draw takes k labelled training images a class and other random weights; validation and
    test images are not touched.

    Args:
        run: device and seed, to which the draw is added.
        targets: functions that make them, by name; None for :func:`tasks`.
        draws: of the labelled images, two or more.
        k: labels a class.

    Returns:
        the record ``glyphs/distances``: a row for each target and source with the ``gap`` in each
        draw, its mean and interval over the draws, the ``word`` that this interval gives, and the
        ``words`` that somebody with a single draw would have found. In the result: how many pairs
        there are of each word, and how often a single draw gives the word of all, or the opposite.

    Example:
        >>> import tlhelpers as tl
        >>> digits = {"my digits": tl.datasets.digits}
        >>> record = tl.distances.measure(targets=digits, draws=2, k=10)
        >>> record.to_frame()[["target", "source", "word", "words"]]
              target   source  word         words
        0  my digits  letters  near  [near, near]
    """
    run = runtime.default(run)
    origin = records.provenance(measure, advice.distance, command=COMMAND)
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for name, make in (tasks() if targets is None else targets).items():
        names = SOURCES if name in zoo.TARGETS else ("letters",)
        rows += _of_target(name, make(), names, draws=draws, k=k, seed=run.seed)
    return Record(
        name="glyphs/distances",
        tier="cpu",
        split=f"{k} training images a class, {draws} draws",
        input="glyphs and digits, 16 px",
        seeds=tuple(run.seed + draw for draw in range(draws)),
        curve=tuple(rows),
        result=_summary(rows),
        interval={},
        interval_over="",
        wall_seconds=time.perf_counter() - start,
        **origin,
    )


def _of_target(
    target: str, task: Dataset, names: tuple[str, ...], *, draws: int, k: int, seed: int
) -> list[dict[str, Any]]:
    few = [zoo.few(task, seed + draw, k=k).train for draw in range(draws)]
    y = [part.y.numpy() for part in few]
    untrained = [
        _hits(negative.load(negative.SCRATCH, seed=seed + draw), few[draw].x, y[draw])
        for draw in range(draws)
    ]
    rows = []
    for source in names:
        network = negative.load(source)
        found = [
            advice.compare_hits(_hits(network, few[draw].x, y[draw]), untrained[draw])
            for draw in range(draws)
        ]
        gaps = [one.gap.value for one in found]
        mean: Estimate = evaluate.mean_interval(gaps, unit="points")
        rows.append(
            {
                "target": target,
                "source": source,
                "gap": gaps,
                "mean": mean.value,
                "low": mean.low,
                "high": mean.high,
                "word": advice.distance_word(mean),
                "words": [one.word for one in found],
            }
        )
    return rows


def _hits(network: SmallResNet, images: Tensor, labels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        features = network.eval().features(images).double().numpy()
    return advice.probe_hits(features, labels)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    words = [row["word"] for row in rows]
    single = [(row["word"], one) for row in rows for one in row["words"]]
    opposite = {("near", "far"), ("far", "near")}
    return {
        **{word: words.count(word) for word in evidence.DISTANCES[1:]},
        "single_draw_agrees": float(np.mean([a == b for a, b in single])),
        "single_draw_opposite": float(np.mean([pair in opposite for pair in single])),
    }
