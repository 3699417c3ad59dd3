"""Classes that never meet, and episodes of them: the data of few-shot learning.

A :class:`ClassSplit` keeps the classes of the test apart from those that a network learns. A
:class:`Pool` holds the examples of some classes and draws :class:`Episodes` from them: N classes, K
labelled examples of each (the *support*) and Q others (the *queries*) to be classified::

    split = split_classes(dogs.classes, validation=20, test=30)
    episodes = split.pools(dogs).test.episodes(10_000, ways=5, shots=5, queries=15)

What classifies them is in ``fewshot`` and ``meta``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tlhelpers import _inference, characters, datasets, runtime
from tlhelpers.characters import ALPHABETS
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

_NUMBERS = 2**21  # in the tensors of the episodes that are classified at a time
_IMAGES = 512  # embedded at a time

# --- classes that never meet ------------------------------------------------------------------


@dataclass(frozen=True)
class ClassSplit:
    """Three sets of classes that share none: to learn on, to choose on, and to report on.

    In few-shot learning the *classes* of the test are new, so what may not overlap are classes,
    not just images. Names of a single character are taken for characters, and those that a font
    draws alike (A in Latin, Greek and Cyrillic) for one class; see
    :func:`~tlhelpers.characters.look_alikes`.

    Attributes:
        train: names of the meta-train classes.
        validation: names of the meta-validation classes; may be empty.
        test: names of the meta-test classes.

    Raises:
        ValueError: if a class stands in two sets or twice in one, or a set is empty that may not
            be.

    >>> ClassSplit(train=("cat", "dog"), validation=(), test=("fox", "owl"))
    2 meta-train classes, 0 meta-validation, 2 meta-test; no class in two of them
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            names = tuple(getattr(self, part))
            object.__setattr__(self, part, names)
            if not names and part != "validation":
                raise ValueError(f"a class split needs meta-{part} classes, found none.")
        owner: dict[str, tuple[str, str]] = {}
        for part in ("train", "validation", "test"):
            for name in getattr(self, part):
                key = self._one_class[name]
                if key in owner:
                    raise ValueError(_overlap(*owner[key], part, name))
                owner[key] = (part, name)

    def __repr__(self) -> str:
        return (
            f"{len(self.train)} meta-train classes, {len(self.validation)} meta-validation, "
            f"{len(self.test)} meta-test; no class in two of them"
        )

    @cached_property
    def _one_class(self) -> dict[str, str]:
        """For each name the one that stands for its class."""
        names = (*self.train, *self.validation, *self.test)
        signs = [name for name in names if len(name) == 1]
        alike = {c: group[0] for group in characters.look_alikes(signs) for c in group}
        return {name: alike.get(name, name) for name in names}

    def pools(self, data: Dataset) -> Pools:
        """The examples of the three sets of classes.

        Meta-train and meta-validation get the training and validation examples of their classes.
        Meta-test classes are held out as a whole, so all their examples are drawn from; for this
        the test split of ``data`` is opened once, which its log shows. Whether a pretrained
        network has met these classes elsewhere is another question.

        Raises:
            ValueError: if ``data`` lacks a class, or its images are not in one tensor.
        """
        return Pools(
            train=self._pool(data, self.train, "meta-train"),
            validation=self._pool(data, self.validation, "meta-validation")
            if self.validation
            else None,
            test=self._pool(data, self.test, "meta-test"),
        )

    def _pool(self, data: Dataset, names: tuple[str, ...], part: str) -> Pool:
        if not isinstance(data.x, Tensor):
            raise TypeError(
                f"episodes are drawn from a tensor, but {data.name} holds "
                f"{type(data.x).__name__}. Call features.extract(data, backbone) first."
            )
        mine = datasets.with_classes(data, names)
        splits = [mine.train, mine.validation]
        if part == "meta-test":
            splits.append(mine.test.open(reason=f"few-shot episodes of {len(names)} new classes"))
        return Pool(
            x=torch.cat([split.x for split in splits]),
            labels=torch.cat([split.y for split in splits]),
            classes=names,
            name=f"{data.name}, {part}",
        )


def _overlap(first: str, one: str, second: str, other: str) -> str:
    if first == second:
        return (
            f"each class may stand once in meta-{first}, found {one!r} and {other!r}, which are "
            f"one class. Name it once."
        )
    what = f"{one!r}" if one == other else f"{one!r} and {other!r}, which a font draws alike,"
    return (
        f"classes of meta-{first} and meta-{second} overlap: {what} would be in both. A network "
        f"that learnt a class does not meet a new one in the test, and its accuracy there says "
        f"nothing of new classes. Take it out of meta-{first}; for alphabets split_alphabets does."
    )


def split_alphabets(
    *, train: Sequence[str], test: Sequence[str], validation: Sequence[str] = ()
) -> ClassSplit:
    """Split characters by alphabet; look-alikes of a later set leave the earlier ones.

    The test keeps all its characters. Those that a font draws like one of the test leave
    validation and training, and those like one of validation leave training. Within a set
    look-alikes are one class, named after the first, as in ``datasets.glyphs``.

    Args:
        train: alphabets to learn on, names in :data:`~tlhelpers.characters.ALPHABETS`.
        test: alphabets to report on.
        validation: alphabets to choose on.

    Raises:
        ValueError: if an alphabet is unknown, or nothing is left of a set.

    >>> split = split_alphabets(train=["latin_upper"], test=["greek_upper"])
    >>> "A" in split.train, "R" in split.train, "Α" in split.test
    (False, True, True)
    """
    for name in (*train, *validation, *test):
        if name not in ALPHABETS:
            raise ValueError(f"there is no alphabet {name!r}; there are: {', '.join(ALPHABETS)}.")
    one, two, three = (
        [c for name in part for c in ALPHABETS[name]] for part in (train, validation, test)
    )
    chosen = characters.disjoint(two, three)
    return ClassSplit(
        train=_first_of_each(characters.disjoint(one, [*chosen, *three])),
        validation=_first_of_each(chosen),
        test=_first_of_each(three),
    )


def _first_of_each(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(group[0] for group in characters.look_alikes(names))


def split_classes(
    classes: Sequence[str], *, test: int, validation: int = 0, seed: int = 0
) -> ClassSplit:
    """Deal classes at random to meta-train, meta-validation and meta-test.

    Args:
        classes: all names.
        test, validation: how many classes are held out.
        seed: of the deal.

    Raises:
        ValueError: if nothing is left to train on.

    >>> split_classes([f"breed {i}" for i in range(120)], validation=20, test=30)
    70 meta-train classes, 20 meta-validation, 30 meta-test; no class in two of them
    """
    if test < 1 or validation < 0 or test + validation >= len(classes):
        raise ValueError(
            f"of {len(classes)} classes {test} for the test and {validation} for validation should "
            f"leave some to train on, and the test needs one."
        )
    order = torch.randperm(len(classes), generator=Run(seed).generator(0)).tolist()
    names = [classes[i] for i in order]
    return ClassSplit(
        train=tuple(names[test + validation :]),
        validation=tuple(names[test : test + validation]),
        test=tuple(names[:test]),
    )


# --- episodes ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pool:
    """Examples of some classes, from which episodes are drawn.

    Attributes:
        x: (n, ...) features or images.
        labels: (n,) integers 0..m - 1.
        classes: m names; by default the numbers.
        name: what it is called in results.

    Raises:
        TypeError: if x is no tensor, or labels are no integers.
        ValueError: if lengths disagree, a feature is NaN or infinite, a label is unknown, a class
            has no example, or two have one name.

    >>> pool = Pool(torch.randn(60, 8), torch.arange(60) % 6, name="noise")
    >>> pool
    noise: 60 examples of 6 classes, 10 to 10 a class
    >>> episodes = pool.episodes(100, ways=5, shots=2, queries=3)
    >>> episodes.support.shape, episodes.query.shape
    (torch.Size([100, 5, 2, 8]), torch.Size([100, 5, 3, 8]))
    """

    x: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()
    name: str = "pool"

    def __post_init__(self) -> None:
        x, labels = self.x, torch.as_tensor(self.labels)
        if not isinstance(x, Tensor):
            raise TypeError(
                f"episodes are drawn from a tensor of features or images, found "
                f"{type(x).__name__}. Give torch.as_tensor(x), or extract features first."
            )
        if labels.is_floating_point() or labels.ndim != 1:
            raise TypeError(
                f"labels should be integers of shape (n,), found {labels.dtype} of shape "
                f"{tuple(labels.shape)}. Give class numbers, not one-hot rows or scores."
            )
        if len(x) != len(labels) or not len(x):
            raise ValueError(
                f"x and labels should be of the same examples, found {len(x)} and {len(labels)}."
            )
        if x.is_floating_point():
            bad = int((~x.flatten(1).isfinite().all(dim=1)).sum())
            if bad:
                raise ValueError(
                    f"{self.name}: {bad} of {len(x):,} examples hold NaN or infinity. Compute "
                    f"them again, with the network in evaluation mode, or leave them out."
                )
        names = tuple(self.classes) or tuple(map(str, range(int(labels.max()) + 1)))
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
            raise ValueError(f"labels should lie in 0..{len(names) - 1} for {len(names)} classes.")
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name}: each class may be named once, found {names}.")
        object.__setattr__(self, "labels", labels.long().cpu())
        object.__setattr__(self, "classes", names)
        if empty := [c for c, n in zip(names, self.sizes.tolist(), strict=True) if n == 0]:
            raise ValueError(
                f"{self.name}: {len(empty)} of {len(names)} classes have no example "
                f"({', '.join(empty[:5])}). Leave them out, and number the others from 0 on."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        least, most = int(self.sizes.min()), int(self.sizes.max())
        return (
            f"{self.name}: {len(self):,} examples of {len(self.classes)} classes, {least} to "
            f"{most} a class"
        )

    @cached_property
    def sizes(self) -> Tensor:
        """(m,) how many examples each class has."""
        return torch.bincount(self.labels, minlength=len(self.classes))

    @cached_property
    def _order(self) -> Tensor:
        """(n,) rows, class by class."""
        return self.labels.argsort(stable=True)

    def episodes(
        self,
        count: int,
        *,
        ways: int,
        shots: int,
        queries: int,
        generator: torch.Generator | int = 0,
    ) -> Episodes:
        """Draw episodes: classes without replacement, then examples of each without replacement.

        All classes are equally likely, however many examples they have. Within an episode no
        example appears twice, so support and queries are disjoint; different episodes are
        drawn independently. Only row numbers are drawn here; examples are gathered when asked for.

        Args:
            count: how many episodes.
            ways: classes in an episode, N.
            shots: labelled examples of each, K.
            queries: further examples of each, Q.
            generator: a CPU generator, or a seed.

        Raises:
            ValueError: if there are too few classes, or a class has too few examples.
        """
        self._require(count, ways, shots, queries)
        if not isinstance(generator, torch.Generator):
            generator = Run(generator).generator(0)
        m = torch.full((count,), len(self.classes))
        classes = _distinct(m, ways, generator)
        flat = classes.flatten()
        picks = _distinct(self.sizes[flat], shots + queries, generator)
        starts = self.sizes.cumsum(0) - self.sizes
        rows = self._order[starts[flat, None] + picks].view(count, ways, shots + queries)
        return Episodes(self, classes, rows[:, :, :shots], rows[:, :, shots:])

    def embedded(self, network: nn.Module) -> Pool:
        """The pool of the network's features, computed once in evaluation mode.

        In evaluation mode an example's features do not depend on the others in its batch, so they
        serve all episodes. The network gets its modes back.

        Args:
            network: its method ``features`` is called where it has one, else the network itself.
        """
        with _inference.evaluating(network) as device, runtime.keep_memory():
            forward = embedding(network)
            x = torch.cat([forward(part.to(device)) for part in self.x.split(_IMAGES)])
        return dataclasses.replace(self, x=x.to(self.x.device))

    def _require(self, count: int, ways: int, shots: int, queries: int) -> None:
        for what, value, least in (
            ("the number of episodes", count, 1),
            ("ways", ways, 2),
            ("shots", shots, 1),
            ("queries", queries, 1),
        ):
            if value < least:
                raise ValueError(f"{what} should be {least} or more, found {value}.")
        if ways > len(self.classes):
            raise ValueError(
                f"{ways}-way episodes need {ways} classes or more, but {self.name} has "
                f"{len(self.classes)}. Ask for fewer ways, or hold out more classes."
            )
        small = torch.nonzero(self.sizes < shots + queries).flatten().tolist()
        if not small:
            return
        named = ", ".join(f"{self.classes[c]!r} has {int(self.sizes[c])}" for c in small[:3])
        empty = sum(int(self.sizes[c]) <= shots for c in small)
        without = f" {empty} of them would have no query at all." if empty else ""
        raise ValueError(
            f"{shots} shots and {queries} queries need {shots + queries} examples of each class, "
            f"but {len(small)} of {len(self.classes)} classes of {self.name} have fewer "
            f"({named}).{without} Ask for fewer queries or shots, or leave these classes out."
        )


def _distinct(sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(r, count) distinct numbers, row i drawn from 0..sizes[i] - 1 without replacement, in order.

    Fisher and Yates's shuffle of all rows at once, stopped after ``count`` swaps. Step i swaps
    places i and ``to[i]``; instead of the whole table only what each swap left behind is kept.
    """
    steps = torch.arange(count)[:, None]
    share = torch.rand(count, len(sizes), generator=generator, dtype=torch.float64)
    to = steps + (share * (sizes - steps)).long()
    left, picked = torch.empty_like(to), torch.empty_like(to)
    for i in range(count):
        here, there = steps[i].expand(len(sizes)), to[i]
        for j in range(i):  # later swaps overwrite earlier ones
            here = torch.where(to[j] == i, left[j], here)
            there = torch.where(to[j] == to[i], left[j], there)
        picked[i], left[i] = there, here
    return picked.T.contiguous()


@dataclass(frozen=True, eq=False)
class Episodes:
    """A batch of episodes, made by :meth:`Pool.episodes`.

    Attributes:
        pool: where the examples are.
        classes: (b, N) the class of each way, as a label of the pool.
        support_rows: (b, N, K) row numbers.
        query_rows: (b, N, Q) row numbers.
    """

    pool: Pool
    classes: Tensor
    support_rows: Tensor
    query_rows: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def __repr__(self) -> str:
        return (
            f"{len(self):,} episodes, {self.ways}-way {self.shots}-shot with {self.queries} "
            f"queries a class, of {self.pool.name}"
        )

    @property
    def ways(self) -> int:
        """Classes in an episode, N."""
        return self.classes.shape[1]

    @property
    def shots(self) -> int:
        """Labelled examples of each class, K."""
        return self.support_rows.shape[2]

    @property
    def queries(self) -> int:
        """Queries of each class, Q."""
        return self.query_rows.shape[2]

    @property
    def support(self) -> Tensor:
        """(b, N, K, ...) the labelled examples."""
        return self._gather(self.support_rows)

    @property
    def query(self) -> Tensor:
        """(b, N, Q, ...) the examples to be classified; those of way i stand in row i."""
        return self._gather(self.query_rows)

    @property
    def labels(self) -> Tensor:
        """(N Q,) the way of each query, in the order of ``query.flatten(1, 2)``."""
        return torch.arange(self.ways).repeat_interleave(self.queries)

    @cached_property
    def digest(self) -> str:
        """Equal for two batches of the same rows in the same order, whatever their features."""
        digest = hashlib.sha256()
        for rows in (self.classes, self.support_rows, self.query_rows, self.pool.labels):
            digest.update(str(tuple(rows.shape)).encode())
            digest.update(rows.int().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def __getitem__(self, part: slice) -> Episodes:
        return Episodes(
            self.pool, self.classes[part], self.support_rows[part], self.query_rows[part]
        )

    def chunks(self) -> Iterator[Episodes]:
        """The episodes in stretches that fit into a processor's cache, more or less."""
        each = self.ways * (self.shots + self.queries) * max(1, self.pool.x[0].numel())
        size = max(1, _NUMBERS // each)
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def embedded(self, network: nn.Module) -> Episodes:
        """The same episodes of the network's features, see :meth:`Pool.embedded`."""
        return dataclasses.replace(self, pool=self.pool.embedded(network))

    def _gather(self, rows: Tensor) -> Tensor:
        x = self.pool.x
        return x.index_select(0, rows.flatten().to(x.device)).view(*rows.shape, *x.shape[1:])


@dataclass(frozen=True, eq=False)
class Pools:
    """The examples of a class split, see :meth:`ClassSplit.pools`.

    Attributes:
        train: to learn on.
        validation: to choose on; None where the split has no such classes.
        test: to report on.
    """

    train: Pool
    validation: Pool | None
    test: Pool

    def __repr__(self) -> str:
        return "; ".join(map(repr, filter(None, (self.train, self.validation, self.test))))


def embedding(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """What turns images into features: the method ``features`` where a network has one.

    Otherwise the network itself.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet(weights="letters")
        >>> x = torch.zeros(1, 1, 16, 16)
        >>> network(x).shape, tl.episodes.embedding(network)(x).shape
        (torch.Size([1, 52]), torch.Size([1, 64]))
    """
    if callable(getattr(type(network), "features", None)):
        method: Callable[[Tensor], Tensor] = network.features  # type: ignore[assignment]
        return method
    return network
