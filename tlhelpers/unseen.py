"""Alphabets never seen: how chapter 11 trains its networks, on glyphs and on Omniglot.

Small networks learn the letters of some alphabets, as plain classifiers or on episodes, from the
same number of images. :func:`compare` judges their features on episodes of other alphabets::

    pools = unseen.glyphs()
    network = unseen.train_on_labels(pools.train)
    other = unseen.train_on_episodes(pools.train, unseen.SHAPES["20-way 1-shot"])

:func:`omniglot` gives handwritten alphabets in the place of the glyphs.
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
import torchvision
from torchvision.transforms.v2 import functional as F

from tlhelpers import datasets, episodes, evaluate, fewshot, models, records, runtime, train
from tlhelpers.characters import MILD
from tlhelpers.episodes import Pool, Pools
from tlhelpers.fewshot import Classifier
from tlhelpers.models import SmallResNet
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.train import Recipe

NAME = "glyphs/unseen"
COMMAND = "python experiments/unseen.py"

LEARNT = (
    "latin_upper", "latin_lower", "greek_upper", "greek_lower", "cyrillic_upper",
    "cyrillic_lower", "digits_printed",
)  # fmt: skip
UNSEEN = ("georgian", "georgian_capitals", "hebrew", "arabic")
PER_CLASS = 30

WIDTHS = (8, 16, 32)
STEPS = 200
LONGER = 400  # the record's, which no build has to wait for
LR = 1e-2
SEEDS = (0, 1, 2, 3, 4)
EPISODES = 2_000


# --- data ---------------------------------------------------------------------------------------


def glyphs(*, per_class: int = PER_CLASS, seed: int = 0) -> Pools:
    """Printed characters: Latin, Greek, Cyrillic and digits to learn, four other alphabets to test.

    All are shifted mildly. Without a shift the images of one character and font would be equal,
    and a query could be a copy of its support.

    Args:
        per_class: images of each character.
        seed: of fonts and shifts.

    Example:
        >>> import tlhelpers as tl
        >>> pools = tl.unseen.glyphs(per_class=1)
        >>> pools.train
        glyphs, meta-train: 132 examples of 132 classes, 1 to 1 a class
        >>> pools.test
        glyphs, meta-test: 133 examples of 133 classes, 1 to 1 a class
    """
    split = episodes.split_alphabets(train=LEARNT, test=UNSEEN)
    names = (*split.train, *split.test)
    data = datasets.glyphs(names, per_class=per_class, shift=MILD, validation=0, test=0, seed=seed)
    return split.pools(data)


def omniglot(root: Path | str | None = None, *, download: bool = False, size: int = 28) -> Pools:
    """Omniglot: characters of 50 alphabets, each written by 20 people.

    Its authors' own division is kept: the *background* alphabets are to be learnt, the
    *evaluation* alphabets are the test, so that no alphabet is in both. Papers on few-shot
    learning mostly divide the 1,623 characters at random, and count turned ones as further
    classes; their figures are of another task.

    Args:
        root: the folder in which torchvision keeps it; by default the cache folder.
        download: fetch the archives (about 18 MB) where they are missing.
        size: side in pixels of the images, which come with 105.

    Returns:
        pools of (n, 1, size, size) images, ink 1 on paper 0, with classes such as
        ``"Greek/character01"``, and no meta-validation.

    Raises:
        RuntimeError: if the data set is not there and is not to be fetched.

    Source: Lake, Salakhutdinov and Tenenbaum (2015), Human-level concept learning through
    probabilistic program induction; read through ``torchvision.datasets.Omniglot``.
    """
    folder = runtime.cache_folder() if root is None else Path(root).expanduser()
    parts = {
        name: torchvision.datasets.Omniglot(
            str(folder), background=name == "background", download=download
        )
        for name in ("background", "evaluation")
    }
    train, test = (_drawings(data, f"Omniglot, {name}", size) for name, data in parts.items())
    episodes.ClassSplit(train=train.classes, validation=(), test=test.classes)  # share no class
    return Pools(train=train, validation=None, test=test)


def _drawings(data: Any, name: str, size: int) -> Pool:
    """The drawings in the order of their names: torchvision lists them as the disk does."""
    paths = [
        (Path(data._characters[label]).as_posix(), file)
        for file, label in data._flat_character_images
    ]
    classes = tuple(sorted({character for character, _ in paths}))
    number = {character: c for c, character in enumerate(classes)}
    images, labels = [], []
    for i in sorted(range(len(data)), key=paths.__getitem__):
        paper = F.to_dtype(F.to_image(data[i][0].convert("L")), torch.float32, scale=True)
        images.append(1 - F.resize(paper, [size, size], antialias=True).clamp(0, 1))
        labels.append(number[paths[i][0]])
    return Pool(torch.stack(images), torch.tensor(labels), classes, name)


# --- training -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The shape of training episodes, and how many of them make a step.

    Attributes:
        ways: classes in an episode.
        shots: labelled examples of each.
        queries: further examples of each.
        batch: episodes in a step.

    Example:
        >>> import tlhelpers as tl
        >>> tl.unseen.Shape(ways=5, shots=1, queries=5, batch=4).images
        120
        >>> {shape.images for shape in tl.unseen.SHAPES.values()}
        {120}
    """

    ways: int
    shots: int
    queries: int
    batch: int

    @property
    def images(self) -> int:
        """Images in a step."""
        return self.batch * self.ways * (self.shots + self.queries)


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "5-way 1-shot": Shape(5, 1, 5, batch=4),
        "5-way 5-shot": Shape(5, 5, 7, batch=2),
        "20-way 1-shot": Shape(20, 1, 5, batch=1),
        "20-way 5-shot": Shape(20, 5, 1, batch=1),
    }
)
"""Training episodes whose steps have 120 images each."""

IMAGES = 120


def train_on_labels(
    pool: Pool, *, cosine: bool = False, steps: int = STEPS, lr: float = LR, run: Run | None = None
) -> SmallResNet:
    """A network that learns to tell all classes of the pool apart: a plain classifier.

    Args:
        pool: the meta-train classes.
        cosine: give it a :class:`~tlhelpers.fewshot.CosineHead`, as in Baseline++.
        steps: of the optimiser, each on 120 images.
        lr: the learning rate at the start.
        run: seed of weights and batches, and device.

    Source: Chen et al. (2019), A Closer Look at Few-shot Classification.

    Example:
        >>> import tlhelpers as tl
        >>> digits, run = tl.datasets.digits().train, tl.runtime.Run()
        >>> pool = tl.episodes.Pool(digits.x, digits.y, name="digits")
        >>> network = tl.unseen.train_on_labels(pool, steps=3, run=run)
        >>> network.features(digits.x[:2]).shape, network.head.out_features
        (torch.Size([2, 32]), 10)
    """
    run = runtime.default(run)
    network = models.small_resnet(len(pool.classes), widths=WIDTHS, seed=run.seed)
    if cosine:
        head = fewshot.CosineHead(WIDTHS[-1], len(pool.classes), seed=run.seed)
        network.head = head
    recipe = Recipe(steps=steps, batch_size=IMAGES, lr=lr, keep="last")
    train.fit(network, labelled(pool), recipe, run)
    return network


def labelled(pool: Pool) -> Dataset:
    """The examples of a pool as a data set to train a classifier on, all of them.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> pool = tl.episodes.Pool(torch.rand(60, 1, 16, 16), torch.arange(60) % 6, name="noise")
        >>> tl.unseen.labelled(pool)
        Dataset 'noise': 6 classes; train 60, validation 0, test 0; split 'by class'
    """
    return Dataset(
        name=pool.name,
        classes=pool.classes,
        x=pool.x,
        labels=pool.labels,
        split=np.full(len(pool), "train", dtype="<U10"),
        ids=tuple(map(str, range(len(pool)))),
        split_name="by class",
    )


def train_on_episodes(
    pool: Pool,
    shape: Shape,
    *,
    classifier: Classifier = fewshot.nearest_centroid,
    steps: int = STEPS,
    lr: float = LR,
    run: Run | None = None,
) -> SmallResNet:
    """A network that learns on episodes of the pool: a prototypical or matching network.

    It starts from the same weights as the plain classifier of the same seed.

    Args:
        pool: the meta-train classes.
        shape: of the episodes.
        classifier: what classifies the queries.
        steps: of the optimiser.
        lr: the learning rate at the start.
        run: seed of weights and episodes, and device.

    Example:
        >>> import tlhelpers as tl
        >>> digits, run = tl.datasets.digits().train, tl.runtime.Run()
        >>> pool = tl.episodes.Pool(digits.x, digits.y, name="digits")
        >>> shape = tl.unseen.Shape(ways=5, shots=1, queries=5, batch=4)
        >>> trained = tl.unseen.train_on_episodes(pool, shape, steps=15, run=run)
        >>> fresh = tl.models.small_resnet(10, widths=tl.unseen.WIDTHS)
        >>> episodes, classify = (
        ...     pool.episodes(50, ways=5, shots=1, queries=5),
        ...     tl.fewshot.nearest_centroid,
        ... )
        >>> found = [
        ...     tl.fewshot.measure(classify, episodes.embedded(one)) for one in (fresh, trained)
        ... ]
        >>> found[0].accuracy.high < found[1].accuracy.low
        True
    """
    run = runtime.default(run)
    network = models.small_resnet(len(pool.classes), widths=WIDTHS, seed=run.seed)
    fewshot.fit(
        network,
        pool,
        ways=shape.ways,
        shots=shape.shots,
        queries=shape.queries,
        batch=shape.batch,
        classifier=classifier,
        steps=steps,
        lr=lr,
        run=run,
    )
    return network


# --- the comparison -----------------------------------------------------------------------------

TESTS = ((5, 1, 15), (5, 5, 15), (20, 1, 5), (20, 5, 5))
"""Ways, shots and queries of the episodes on which networks are judged."""

LABELS = "labels"


def compare(
    run: Run | None = None,
    *,
    pools: Pools | None = None,
    name: str = NAME,
    seeds: Sequence[int] = SEEDS,
    steps: int = LONGER,
    count: int = EPISODES,
) -> Record:
    """A plain classifier and four prototypical networks, judged on the same new episodes.

    Nothing is chosen on the way: every network is the one after its last step. All see 120 images
    a step, and those of one seed start from the same body. The test episodes are the same for
    all networks and seeds; queries go to the nearest prototype.

    Args:
        run: the device; seeds come from ``seeds``.
        pools: the classes to learn and to test on; by default :func:`glyphs`.
        name: of the record.
        seeds: each of the weights, the batches and the training episodes.
        steps: of training.
        count: episodes of each of :data:`TESTS`.

    Returns:
        the record: a row of the curve for each way of training (``"labels"``, or one of
        :data:`SHAPES`) and each test, with the accuracies of the seeds (``top1``), their ``mean``,
        ``low`` and ``high``. In the result ``<way> minus labels, <test>`` are differences to the
        plain classifier of the same seed.
    """
    run = runtime.default(run)
    origin = records.provenance(compare, command=COMMAND)
    start = time.perf_counter()
    pools = glyphs() if pools is None else pools
    tests = {
        f"{ways}-way {shots}-shot": pools.test.episodes(
            count, ways=ways, shots=shots, queries=queries
        )
        for ways, shots, queries in TESTS
    }
    found: dict[tuple[str, str], list[float]] = {}
    for seed in seeds:
        own = dataclasses.replace(run, seed=seed)
        for way in (LABELS, *SHAPES):
            embedded = pools.test.embedded(_trained(way, pools.train, steps, own))
            for test, drawn in tests.items():
                asked = dataclasses.replace(drawn, pool=embedded)
                accuracy = fewshot.measure(fewshot.nearest_centroid, asked).accuracy.value
                found.setdefault((way, test), []).append(accuracy)
    gaps = {
        f"{way} minus {LABELS}, {test}": evaluate.mean_interval(
            np.subtract(values, found[LABELS, test]), unit="points"
        )
        for (way, test), values in found.items()
        if way != LABELS
    }
    return Record(
        name=name,
        tier=run.tier,
        split=f"{pools.train!r}; {pools.test!r}",
        input=f"{tuple(pools.test.x.shape[1:])} images, {steps} steps of {IMAGES}",
        seeds=tuple(seeds),
        curve=tuple(
            {"trained": way, "test": test, "top1": values} | _over_seeds(values)
            for (way, test), values in found.items()
        ),
        interval_over=f"95 %, t, over {len(seeds)} seeds; the same classes and episodes for all",
        wall_seconds=time.perf_counter() - start,
        **records.figures(gaps),
        **origin,
    )


def _trained(way: str, pool: Pool, steps: int, run: Run) -> SmallResNet:
    if way == LABELS:
        return train_on_labels(pool, steps=steps, run=run)
    return train_on_episodes(pool, SHAPES[way], steps=steps, run=run)


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
    estimate = evaluate.mean_interval(values)
    return {
        "mean": estimate.value,
        "low": max(0.0, estimate.low),
        "high": min(1.0, estimate.high),
    }
