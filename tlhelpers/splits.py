"""The one shape of data: a named data set with a train, a validation and a test split.

Photographs, banks of features, and whatever a reader brings all offer the same few
names. Training and selection touch ``train`` and ``validation``; the labels of ``test``
stay behind one door that counts who goes through it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

PARTS = ("train", "validation", "test")


@runtime_checkable
class Lazy(Protocol):
    """A sequence of images that are decoded when asked for, see ``datasets.Images``.

    Two more methods are used where there are any: ``digest()``, a hash of all that the pixels
    depend on, for caches and checkpoints; and ``rows(indices)``, the same as
    ``take(indices).stack()`` for those that are faster at it.
    """

    def __len__(self) -> int: ...
    def take(self, indices: Sequence[int]) -> Self: ...
    def stack(self) -> Tensor: ...


Rows = Tensor | Lazy


def take(x: Rows, indices: Sequence[int] | np.ndarray | Tensor) -> Any:
    """The rows of ``x`` at ``indices``, in that order, without decoding anything.

    Indices are positions, or a mask of booleans, one for each row.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> tl.splits.take(torch.arange(5), [3, 1])
        tensor([3, 1])
        >>> tl.splits.take(torch.arange(5), torch.arange(5) > 2)
        tensor([3, 4])
    """
    rows = positions(indices, len(x))
    return x[rows] if isinstance(x, Tensor) else x.take(rows.tolist())


def positions(indices: Sequence[int] | np.ndarray | Tensor, n: int) -> Tensor:
    """Indices, or a mask of n booleans, as int64 positions.

    Raises:
        ValueError: if a mask is not of this length.

    Example:
        >>> import tlhelpers as tl
        >>> tl.splits.positions([False, True, True], 3)
        tensor([1, 2])
        >>> tl.splits.positions([True, False], 3)
        Traceback (most recent call last):
            ...
        ValueError: a mask has one boolean for each of the 3 rows, found the shape (2,).
    """
    found = torch.as_tensor(indices)
    if found.dtype != torch.bool:
        return found.to(torch.int64)
    if found.shape != (n,):
        raise ValueError(
            f"a mask has one boolean for each of the {n:,} rows, found the shape "
            f"{tuple(found.shape)}."
        )
    return found.nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class Split:
    """Examples with their labels.

    Attributes:
        name: ``"train"``, ``"validation"`` or ``"test"``.
        x: (n, ...) tensor, or a lazy sequence of n images.
        y: (n,) int64 labels.
        ids: n names, one for each example.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> split = tl.datasets.digits().few(5, draw=0).train
        >>> split
        train split: 50 examples, 10 classes
        >>> [len(y) for x, y in split.batches(20, torch.Generator().manual_seed(0))]
        [20, 20, 10]
        >>> split.take(split.y == 3)
        train split: 5 examples, 1 class
    """

    name: str
    x: Any
    y: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        n, m = len(self), len(self.y.unique())
        examples, classes = "example" if n == 1 else "examples", "class" if m == 1 else "classes"
        return f"{self.name} split: {n:,} {examples}, {m} {classes}"

    def take(self, indices: Sequence[int] | np.ndarray | Tensor) -> Split:
        """The examples at ``indices``, in that order; or those of a mask of booleans."""
        rows = positions(indices, len(self))
        ids = tuple(self.ids[i] for i in rows.tolist())
        return Split(self.name, take(self.x, rows), self.y[rows], ids)

    def batches(
        self, size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(x, y)`` in batches of at most ``size``; shuffled if a generator is given.

        Images come as a tensor, texts as a sequence of texts. The last batch is smaller where
        ``size`` does not divide n: nothing is dropped.

        Raises:
            ValueError: if the size is below 1.
        """
        if size < 1:
            raise ValueError(f"a batch needs a size of 1 or more, found {size}.")
        n = len(self)
        order = torch.randperm(n, generator=generator) if generator else torch.arange(n)
        for rows in order.split(size):
            chosen = take(self.x, rows)
            # What does not stack, such as texts, stays the sequence that it is.
            yield (chosen.stack() if isinstance(chosen, Lazy) else chosen), self.y[rows]


class TestSplit:
    """Examples whose labels lie behind one door, :meth:`open`, which keeps a log.

    ``evaluate.report`` opens it once for each report and prints the log, so that a reader
    sees how often a test split was consulted before the number in front of them.

    Example:
        >>> import tlhelpers as tl
        >>> test = tl.datasets.digits().test
        >>> test  # doctest: +NORMALIZE_WHITESPACE
        test split: 497 examples, 10 classes, split '100/30/rest per class, seed 0', 0
        readings so far
        >>> opened = test.open(reason="to count the sevens")
        >>> int((opened.y == 7).sum()), test.readings
        (49, ('to count the sevens',))
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    name = "test"

    def __init__(
        self,
        x: Any,
        labels: Tensor,
        ids: tuple[str, ...],
        *,
        classes: tuple[str, ...],
        split_name: str,
        log: list[str],
    ) -> None:
        self.x = x
        self.ids = ids
        self.classes = classes
        self.split_name = split_name
        self._labels = labels
        self._log = log

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"test split: {len(self):,} examples, {len(self.classes)} classes, "
            f"split {self.split_name!r}, {len(self._log)} readings so far"
        )

    @property
    def readings(self) -> tuple[str, ...]:
        """The reason of each reading so far, oldest first."""
        return tuple(self._log)

    def open(self, *, reason: str) -> Split:
        """The examples with their labels; ``reason`` goes into the log.

        Call it yourself only to study the test split on purpose: for a result, hand the
        split to ``evaluate.report``.

        Raises:
            ValueError: if the reason is empty.
        """
        if not reason.strip():
            raise ValueError("opening a test split needs a reason for the log, found an empty one.")
        self._log.append(reason)
        return Split(self.name, self.x, self._labels, self.ids)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set; :class:`~tlhelpers.features.FeatureBank` is one, photographs are another.

    Attributes:
        name: what it is called in reports.
        classes: m class names; label i means ``classes[i]``.
        x: n examples: an (n, ...) tensor, or a lazy sequence of images.
        labels: (n,) int64.
        split: n strings, each ``"train"``, ``"validation"`` or ``"test"``.
        ids: n distinct names, one for each example.
        split_name: how the split was made; it is printed on every result.
        imagenet: where the classes are classes of ImageNet-1k too: m indices among its 1,000.
        log: the readings of the test split, shared by every data set derived from this one.

    Raises:
        ValueError: if the lengths disagree, a label or part is unknown, an id appears twice,
            or a class has no training example.
    """

    name: str
    classes: tuple[str, ...]
    x: Any
    labels: Tensor
    split: np.ndarray
    ids: tuple[str, ...]
    split_name: str
    imagenet: tuple[int, ...] | None = None
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        lengths = {"x": len(self.x), "labels": len(self.labels), "split": len(self.split)}
        if set(lengths.values()) != {len(self.ids)}:
            raise ValueError(f"{self.name}: {len(self.ids)} ids, but the lengths are {lengths}.")
        if unknown := set(np.unique(self.split)) - set(PARTS):
            raise ValueError(f"{self.name}: parts must be among {PARTS}, found {sorted(unknown)}.")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < (
            m := len(self.classes)
        ):
            raise ValueError(f"{self.name}: labels must lie in 0..{m - 1} for {m} classes.")
        if len(set(self.ids)) != len(self.ids):
            twice = sorted(i for i in set(self.ids) if self.ids.count(i) > 1)[:3]
            raise ValueError(f"{self.name}: ids must be distinct, found more than once: {twice}.")
        counts = np.bincount(
            self.labels[torch.from_numpy(self.split == "train")], minlength=len(self.classes)
        )
        if empty := [c for c, n in zip(self.classes, counts, strict=True) if n == 0]:
            raise ValueError(
                f"{self.name}: {len(empty)} of {len(self.classes)} classes have no training "
                f"example ({', '.join(empty[:5])}). Add examples, or leave these classes out."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {int((self.split == part).sum()):,}" for part in PARTS)
        return (
            f"{type(self).__name__} {self.name!r}: {len(self.classes)} classes; {sizes}; "
            f"split {self.split_name!r}"
        )

    @cached_property
    def train(self) -> Split:
        """What models learn from."""
        return self._part("train")

    @cached_property
    def validation(self) -> Split:
        """What choices of epochs, ridge weights and methods are made on."""
        return self._part("validation")

    @cached_property
    def test(self) -> TestSplit:
        """What results are reported on, see :class:`TestSplit`."""
        rows = np.flatnonzero(self.split == "test")
        return TestSplit(
            take(self.x, rows),
            self.labels[torch.from_numpy(rows)],
            tuple(self.ids[i] for i in rows),
            classes=self.classes,
            split_name=self.split_name,
            log=self.log,
        )

    def few(self, k: int, *, draw: int | None = None, validation: int | None = None) -> Self:
        """The same data set with ``k`` training examples a class; test stays whole.

        Args:
            k: training examples a class.
            draw: None takes the first k of each class in the data set's order (for Stanford
                Dogs with the official lists, its own few-sample rule); an integer is the seed
                of a random draw.
            validation: keep so many validation examples a class too, drawn in the same way; by
                default all of them. Somebody with k labels a class has no large validation
                set, so results that lean on one must say so.

        Raises:
            ValueError: if a class has fewer examples than asked for.
        """
        generator = None if draw is None else np.random.default_rng(draw)
        keep = [np.flatnonzero(self.split == "test"), self._few("train", k, generator)]
        if validation is None:
            keep.append(np.flatnonzero(self.split == "validation"))
        else:
            keep.append(self._few("validation", validation, generator))
        return self.subset(np.sort(np.concatenate(keep)))

    def _few(self, part: str, k: int, generator: np.random.Generator | None) -> np.ndarray:
        if k < 1:
            raise ValueError(f"{self.name}: at least 1 example a class is needed, found k = {k}.")
        labels = self.labels.numpy()
        chosen = []
        for c, name in enumerate(self.classes):
            rows = np.flatnonzero((self.split == part) & (labels == c))
            if len(rows) < k:
                raise ValueError(
                    f"{self.name}: {k} {part} examples a class asked for, but {name!r} has only "
                    f"{len(rows)}. Ask for {len(rows)} or fewer, or leave that class out."
                )
            chosen.append(rows[:k] if generator is None else generator.permutation(rows)[:k])
        return np.concatenate(chosen)

    def subset(self, rows: np.ndarray) -> Self:
        """The data set of these rows alone; the log of the test split stays shared.

        Args:
            rows: integer positions among all examples, in the order wanted; or a mask of booleans.

        Raises:
            ValueError: if a class is left without a training example.
        """
        rows = positions(rows, len(self)).numpy()
        return dataclasses.replace(
            self,
            x=take(self.x, rows),
            labels=self.labels[torch.from_numpy(rows)],
            split=self.split[rows],
            ids=tuple(self.ids[i] for i in rows),
        )

    def _part(self, part: str) -> Split:
        rows = np.flatnonzero(self.split == part)
        ids = tuple(self.ids[i] for i in rows)
        return Split(part, take(self.x, rows), self.labels[torch.from_numpy(rows)], ids)
