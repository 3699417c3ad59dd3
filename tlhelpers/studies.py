"""The long measurements behind the chapters, each a function from data to a record.

``experiments/`` calls these functions and saves what they return; a chapter passes one as
``live=`` to ``records.get``, so that it runs again where the reader sets the profile ``"full"``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tlhelpers import evaluate, features, probe, records, runtime, splits
from tlhelpers.evaluate import Estimate
from tlhelpers.features import FeatureBank
from tlhelpers.models import LOGITS, Backbone
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Split

OVER_IMAGES = "95 %, bootstrap over test images"
DIMS = (8, 16, 32, 64, 128, 256, 512)
SHOTS = (5, 20, 90)
DOGS_COMMAND = "python experiments/dogs_bank.py --data PATH"


def untrained_head(data: Dataset, backbone: Backbone, *, run: Run | None = None) -> Record:
    """What the head that came with the backbone says about a data set of ImageNet's classes.

    Nothing is trained. The head's 1,000 logits are judged twice: as they are, and restricted to
    the columns of the data set's own classes.

    Args:
        data: photographs whose classes are ImageNet's too (``data.imagenet`` is set).
        backbone: a backbone with ImageNet's head.
        run: None means the best device.

    Returns:
        the record ``dogs/untrained_head_<backbone>``: the top-1 on each part, over all 1,000
        classes (``of_1000``) and over the data set's m (``of_<m>``).

    Raises:
        ValueError: if the classes are not known to be among ImageNet's.
    """
    if data.imagenet is None:
        raise ValueError(
            f"{data.name} does not say which of ImageNet's classes its classes are, so ImageNet's "
            f"head cannot be judged on it."
        )
    run = runtime.default(run)
    origin, start = _origin(untrained_head)
    logits = features.extract(data, backbone, at=LOGITS, run=run)
    columns, m = torch.tensor(data.imagenet), len(data.classes)
    result, interval = {}, {}
    for part in splits.PARTS:
        shown = _labelled(logits, part, reason=f"untrained head of {backbone.name}")
        hits = {
            "of_1000": logits_top1(shown.x, columns[shown.y]),
            f"of_{m}": logits_top1(shown.x[:, columns], shown.y),
        }
        for key, hit in hits.items():
            estimate = _share(hit)
            result[f"{part}_{key}"] = estimate.value
            interval[f"{part}_{key}"] = [estimate.low, estimate.high]
    return Record(
        name=f"dogs/untrained_head_{backbone.name}",
        tier=run.tier,
        split=data.split_name,
        input=_input(logits),
        seeds=(),
        curve=(),
        result=result,
        interval=interval,
        interval_over="95 %, Wilson, over the images of the part",
        wall_seconds=time.perf_counter() - start,
        **origin,
    )


def logits_top1(logits: Tensor, columns: Tensor) -> Tensor:
    """(n,) booleans: is the largest of each row's logits the one in the right column?

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> logits = torch.tensor([[0.1, 2.0, 0.3], [1.0, 0.0, 0.5]])
        >>> tl.studies.logits_top1(logits, torch.tensor([1, 2]))
        tensor([ True, False])
    """
    return logits.argmax(dim=1) == columns


def compression(bank: FeatureBank, *, dims: Sequence[int] = DIMS) -> Record:
    """What is lost when a bank is compressed: a probe at several numbers of components.

    The test split is read once, for the curve whose grid is fixed beforehand.

    Args:
        bank: a full bank.
        dims: the numbers of principal components to try, besides all features uncompressed.

    Returns:
        the record ``dogs/compression_<backbone>``: a row of the curve for each number of
        components, with validation and test top-1; the last row is the full bank.
    """
    origin, start = _origin(compression)
    banks = {dim: bank.compress(dim) for dim in dims if dim < bank.x.shape[1]}
    probes = {dim: probe.fit(small) for dim, small in banks.items()}
    full = bank.x.shape[1]
    probes[full] = probe.fit(bank)
    predictors: dict[int, Any] = {
        dim: _through(small, probes[dim]) for dim, small in banks.items()
    } | {full: probes[full]}
    reports = evaluate.grid(predictors, bank.test, name="probes on compressed banks")
    curve = []
    for dim, report in reports.items():
        small = banks.get(dim, bank)
        curve.append(
            {
                "dims": dim,
                "variance": small.projection.explained if small.projection else 1.0,
                "ridge": probes[dim].ridge,
                "validation": evaluate.validate(probes[dim], small.validation).value,
                **_mean_low_high(report.top1),
            }
        )
    return Record(
        name=f"dogs/compression_{_backbone(bank)}",
        tier="cpu",
        split=bank.split_name,
        input=_input(bank),
        seeds=(),
        curve=tuple(curve),
        result={f"test_{dim}": report.top1.value for dim, report in reports.items()},
        interval={
            f"test_{dim}": [report.top1.low, report.top1.high] for dim, report in reports.items()
        },
        interval_over=OVER_IMAGES,
        wall_seconds=time.perf_counter() - start,
        **origin,
    )


def _through(bank: FeatureBank, fitted: probe.Probe) -> Callable[[Tensor], Tensor]:
    """A probe on a compressed bank as a predictor that takes full features."""
    return lambda x: fitted(bank.quantise(bank.project(x)))


def views(
    data: Dataset,
    backbone: Backbone,
    *,
    dims: int = 128,
    shots: Sequence[int] = SHOTS,
    run: Run | None = None,
) -> Record:
    """What augmentation gives a probe, when each photograph is cached in several views.

    A cached feature is fixed, so an image cannot be augmented anew each epoch. What can be done is
    to extract a few views of each training image once: here the image itself, its mirror image,
    and two random crops, mirrored half of the time.

    Args:
        data: photographs.
        backbone: the backbone.
        dims: all features go through the compression of the plain bank to so many components.
        shots: the numbers of training images a class.
        run: seed of the crops, and device.

    Returns:
        the record ``dogs/views_<backbone>``: a row of the curve for each number of labels and
        views; the test images are seen in one view.
    """
    run = runtime.default(run)
    origin, start = _origin(views)
    plain = features.extract(data, backbone, run=run).compress(dims)
    kinds = {
        "mirror": View(mirror=True),
        **{f"crop {i}": View(seed=run.seed + i) for i in (1, 2)},
    }
    train = data.subset((data.split == "train").nonzero()[0])
    seen = {}
    for name, view in kinds.items():
        viewed = dataclasses.replace(train, x=ViewedImages(train.x, view))
        bank = features.extract(viewed, backbone, run=run)
        seen[name] = dataclasses.replace(bank, x=plain.quantise(plain.project(bank)))
    predictors = {}
    for k in shots:
        few = plain.few(k)
        for names in ((), ("mirror",), tuple(seen)):
            bank = _with_views(few, {name: seen[name] for name in names})
            predictors[k, 1 + len(names)] = probe.fit(bank)
    reports = evaluate.grid(predictors, plain.test, name="probes on several views")
    return Record(
        name=f"dogs/views_{backbone.name}",
        tier=run.tier,
        split=data.split_name,
        input=f"{_input(plain)}, {dims} components",
        seeds=(run.seed,),
        curve=tuple(
            {"k": k, "views": n, **_mean_low_high(report.top1)}
            for (k, n), report in reports.items()
        ),
        result={f"k{k}_views{n}": report.top1.value for (k, n), report in reports.items()}
        | {f"k{k}_gain": evaluate.difference(reports[k, 4], reports[k, 1]).value for k in shots},
        interval={
            f"k{k}_gain": list(_low_high(evaluate.difference(reports[k, 4], reports[k, 1])))
            for k in shots
        },
        interval_over=f"{OVER_IMAGES}, paired; one draw of the crops",
        wall_seconds=time.perf_counter() - start,
        **origin,
    )


@dataclass(frozen=True)
class View:
    """One way to look at an image: mirrored, or a random crop that may be mirrored.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> image = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
        >>> tl.studies.View(mirror=True)(image, 0)
        tensor([[[2, 1, 0],
                 [5, 4, 3]]], dtype=torch.uint8)
    """

    mirror: bool = False
    seed: int | None = None

    def __call__(self, image: Tensor, i: int) -> Tensor:
        """The view of image number ``i``, (3, h, w) uint8 of the same size."""
        mirror = self.mirror
        if self.seed is not None:
            # A stream of its own for each image: the threads may come in any order.
            generator = np.random.default_rng([self.seed, i])
            height, width = image.shape[-2:]
            side = np.sqrt(generator.uniform(0.5, 1.0))  # half of the area at least
            h, w = max(1, round(side * height)), max(1, round(side * width))
            top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
            image = F.resized_crop(image, int(top), int(left), h, w, [height, width])
            mirror = bool(generator.random() < 0.5)
        return F.horizontal_flip(image) if mirror else image


@dataclass(frozen=True)
class ViewedImages:
    """A lazy sequence of images, each in one view.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> images = torch.arange(6, dtype=torch.uint8).reshape(2, 1, 1, 3)
        >>> mirrored = tl.studies.ViewedImages(images, tl.studies.View(mirror=True))
        >>> mirrored.stack().flatten(1)
        tensor([[2, 1, 0],
                [5, 4, 3]], dtype=torch.uint8)
    """

    images: Any
    view: View

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.view(self.images[i], i)

    def take(self, indices: Sequence[int]) -> ViewedImages:
        return ViewedImages(self.images.take(indices), self.view)

    def stack(self) -> Tensor:
        return torch.stack([self[i] for i in range(len(self))])

    def digest(self) -> str:
        return f"{self.images.digest()} {self.view}"


def _with_views(few: FeatureBank, seen: dict[str, FeatureBank]) -> FeatureBank:
    """The bank with further views of its training images as further training examples."""
    bank = few
    for name, other in seen.items():
        row = {identity: i for i, identity in enumerate(other.ids)}
        rows = [row[identity] for identity in few.train.ids]
        bank = dataclasses.replace(
            bank,
            x=torch.cat([bank.x, other.x[rows]]),
            labels=torch.cat([bank.labels, other.labels[rows]]),
            split=np.concatenate([bank.split, other.split[rows]]),
            ids=bank.ids + tuple(f"{identity} ({name})" for identity in few.train.ids),
        )
    return bank


def _origin(function: Callable[..., Record]) -> tuple[dict[str, Any], float]:
    return records.provenance(function, command=DOGS_COMMAND), time.perf_counter()


def _labelled(bank: FeatureBank, part: str, *, reason: str) -> Split:
    if part == "test":
        return bank.test.open(reason=reason)
    return bank.train if part == "train" else bank.validation


def _share(hits: Tensor) -> Estimate:
    """The share of true values, with Wilson's interval."""
    test = stats.binomtest(int(hits.sum()), len(hits))
    interval = test.proportion_ci(method="wilson")
    return Estimate(test.statistic, interval.low, interval.high)


def _mean_low_high(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def _low_high(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def _backbone(bank: FeatureBank) -> str:
    return bank.provenance.backbone if bank.provenance else bank.name


def _input(bank: FeatureBank) -> str:
    if (made := bank.provenance) is None:
        return f"{bank.x.shape[1]} features"
    return f"{made.preprocess['crop']} px, {made.backbone}, {made.weights}, {made.at}, {made.dtype}"
