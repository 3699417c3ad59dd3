"""Two tasks that no record has seen: does the advice of chapter 18 hold there?

The advice was written down first, see :data:`ASKED`; then each task was learnt in four ways, and
its test split was read once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tlhelpers import datasets, evaluate, labels, records, runtime, zoo
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

COMMAND = "python experiments/trial.py"
ASKED: Mapping[str, Any] = MappingProxyType(
    {"labels_per_class": 10, "classes": 10, "compute": "training"}
)
"""What is asked of :func:`tlhelpers.advice.recommend`; the distance is measured on draw 0."""

RECORDS = (
    "dogs/full_squeezenet1_1_128",
    "dogs/labels_mobilenet_v2_128",
    "dogs/lp_ft_squeezenet1_1_128",
    "dogs/recipe_mobilenet_v2_224",
    "dogs/recipe_squeezenet1_1_224",
    "dogs/scratch_resnet18_112_15epochs",
    "dogs/untrained_head_mobilenet_v2",
    "dogs/untrained_head_squeezenet1_1",
    "glyphs/ablation",
    "glyphs/adaptation",
    "glyphs/adaptation_few",
    "glyphs/adaptation_larger",
    "glyphs/labels",
    "glyphs/meta",
    "glyphs/multitask",
    "glyphs/unfreeze",
    "glyphs/unseen",
    "negative/finetuned",
    "negative/freezing",
    "zoo/finetuned",
)
"""The records that there were when the advice was asked; later ones have no say in the trial."""

WAYS = ("pixels", "probe", "fine-tuning", "scratch")
DRAWS = 5
RIDGE = "ridge 0.1"  # fixed beforehand, for both linear ways


def outline(images: Tensor) -> Tensor:
    """Thickened strokes without the strokes.

    Args:
        images: (n, 1, h, w) in 0..1.

    Returns:
        the same shape, in 0..1.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> image = torch.zeros(1, 1, 5, 5)
        >>> image[0, 0, 2, 2] = 1
        >>> tl.trial.outline(image)[0, 0]
        tensor([[0., 0., 0., 0., 0.],
                [0., 1., 1., 1., 0.],
                [0., 1., 0., 1., 0.],
                [0., 1., 1., 1., 0.],
                [0., 0., 0., 0., 0.]])
    """
    return functional.max_pool2d(images, 3, stride=1, padding=1) - images


def scatter(images: Tensor) -> Tensor:
    """The pixels of each image in another order, one order for all images.

    Args:
        images: (n, 1, h, w).

    Returns:
        the same shape.

    Example:
        >>> import tlhelpers as tl
        >>> x = tl.datasets.digits().train.x[:2]
        >>> scattered = tl.trial.scatter(x)
        >>> bool((scattered == x).all())
        False
        >>> bool((scattered.flatten(1).sort().values == x.flatten(1).sort().values).all())
        True
    """
    order = torch.randperm(images[0].numel(), generator=Run(0).generator(18))
    return images.flatten(1)[:, order].reshape(images.shape)


CHANGES: Mapping[str, Callable[[Tensor], Tensor]] = {"outlines": outline, "scattered": scatter}
"""What is done to handwritten digits, by the name of the task."""


def task(name: str) -> Dataset:
    """Handwritten digits as outlines, or with scattered pixels.

    Raises:
        ValueError: if there is no such task.

    Example:
        >>> import tlhelpers as tl
        >>> tl.trial.task("outlines")  # doctest: +NORMALIZE_WHITESPACE
        Dataset 'outlines': 10 classes; train 1,000, validation 300, test 497; split
        '100/30/rest per class, seed 0'
    """
    if name not in CHANGES:
        raise ValueError(f"the tasks are {', '.join(CHANGES)}; found {name!r}.")
    digits = datasets.digits()
    return dataclasses.replace(digits, name=name, x=CHANGES[name](digits.x))


def run_trial(run: Run | None = None, *, draws: int = DRAWS) -> Record:
    """Learn both tasks in four ways, from ten labels a class.

    Networks are trained by the zoo's recipe, from letters and from random weights; the two linear
    ways have a ridge that was fixed beforehand.

    Args:
        run: device, and the seed of heads and orders, to which the draw is added.
        draws: how many draws of the labelled images.

    Returns:
        the record ``glyphs/trial``: a row for each task, way and draw with ``top1`` on test; in
        the result ``<task>: <way> minus <other way>``, paired differences, each pair once.
    """
    run = runtime.default(run)
    origin = records.provenance(run_trial, labels.learn, zoo.finetune, command=COMMAND)
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for name in CHANGES:
        rows += _learn_and_read(task(name), draws, run)
    return records.of_draws(
        "glyphs/trial",
        rows,
        _differences(rows),
        split=f"{datasets.digits().split_name}; {ASKED['labels_per_class']} labels a class",
        input=f"digits, 16 px, outlines or scattered pixels; {zoo.FINE_TUNING.steps} steps",
        seeds=[run.seed + draw for draw in range(draws)],
        run=run,
        origin=origin,
        start=start,
    )


def _learn_and_read(data: Dataset, draws: int, run: Run) -> list[dict[str, Any]]:
    learnt: dict[tuple[str, int], Callable[[Tensor], Tensor]] = {}
    for draw in range(draws):
        few = zoo.few(data, draw, k=ASKED["labels_per_class"])
        own = dataclasses.replace(run, seed=run.seed + draw)
        learnt["pixels", draw] = labels.learn("pixels", few, RIDGE, run=own).predict
        learnt["probe", draw] = labels.learn("frozen", few, RIDGE, run=own).predict
        learnt["fine-tuning", draw] = zoo.finetune("letters", few, own)
        learnt["scratch", draw] = zoo.finetune("random", few, own)
    reports = evaluate.grid(learnt, data.test, name=f"trial, {data.name}", resamples=2)
    return [
        {"task": data.name, "way": way, "draw": draw, "top1": report.top1.value}
        for (way, draw), report in reports.items()
    ]


def _differences(rows: list[dict[str, Any]]) -> dict[str, evaluate.Estimate]:
    found = {}
    for name in CHANGES:
        top1 = {
            way: [row["top1"] for row in rows if (row["task"], row["way"]) == (name, way)]
            for way in WAYS
        }
        for i, way in enumerate(WAYS):
            for other in WAYS[i + 1 :]:
                gaps = np.subtract(top1[way], top1[other])
                key = f"{name}: {way} minus {other}"
                found[key] = evaluate.mean_interval(gaps, unit="points")
    return found
