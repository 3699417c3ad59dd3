"""Pictures of one's own, as they lie on a disk: read, looked over, and split so that a test is one.

:func:`read` takes a folder with one folder a class, or one with ``train`` and ``test`` folders of
such. It decodes every picture once. What cannot be read is left out and named. Copies of a
picture, and pictures that belong together (of one animal, one patient), stay on one side of the
split. The result prints as a line and keeps a table of everything that was found.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from tlhelpers import datasets, duplicates, runtime
from tlhelpers.datasets import Images
from tlhelpers.splits import PARTS, Dataset

Groups = Callable[[str], Any] | Mapping[str, Any] | str | None

ALIKE = 0.99
"""From this :func:`~tlhelpers.duplicates.likeness` on, two pictures may be one. They count as such
if each is also four times nearer to the other than to the tenth of its neighbours: where all
pictures are alike, as small drawings are, likeness alone proves nothing."""

FOLDER = "folder"

_PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NEIGHBOUR, _RATIO = 10, 4
_BLOCK = 2048  # pictures whose likeness to all others is in memory at a time
_LEFT_OUT = ["file", "reason"]
_PAIR, _OF_A_PAIR = ("first", "second"), ("class", "part")
_COPIES = ["first", "second", "likeness", *(f"{w}_{c}" for c in _OF_A_PAIR for w in _PAIR)]


@dataclass(frozen=True, eq=False, repr=False)
class Pictures:
    """A folder of pictures, looked over and split; made by :func:`read`.

    Attributes:
        data: the pictures that can be used, with their classes and their split.
        groups: for each id the name of what it belongs to: the group given, or, without one,
            itself; pictures that are copies of each other share a name.
        grouped: whether groups were given.
        given: whether the folder came with its own division into training and test.
        files: a row for each picture that is used: ``id``, ``class``, ``part``, ``group``,
            ``width``, ``height``, ``grey`` (no colour), ``format``.
        left_out: a row for each picture that is not used: ``file`` and ``reason``.
        copies: a row for each pair of pictures that show the same: ``first``, ``second``,
            ``likeness``, and the class and the part of both, as the folder had them; the part is
            empty where the folder had none.
    """

    data: Dataset
    groups: Mapping[str, str]
    grouped: bool
    given: bool
    files: pd.DataFrame
    left_out: pd.DataFrame
    copies: pd.DataFrame

    def __repr__(self) -> str:
        counts = self.files["part"].value_counts()
        parts = ", ".join(f"{part} {counts.get(part, 0):,}" for part in PARTS)
        together = f"{len(set(self.groups.values())):,} groups; " if self.grouped else ""
        return (
            f"{self.data.name}: {len(self.data):,} pictures of {len(self.data.classes)} classes "
            f"({parts}); {together}{_counted(len(self.copies), 'pair')} of copies; "
            f"{len(self.left_out):,} left out; split {self.data.split_name!r}"
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each class: the pictures in each part and, with groups, their groups."""
        table = self.files.pivot_table(
            index="class", columns="part", values="id", aggfunc="count", fill_value=0
        )
        table = table.reindex(columns=list(PARTS), fill_value=0)
        table.columns.name = None
        if self.grouped:
            table["groups"] = self.files.groupby("class")["group"].nunique()
        return table

    def facts(self) -> Dataset:
        """What a file tells without a look at the picture, as features of the same data set.

        Width, height, their ratio, whether there is colour, and the format. Where these tell the
        classes apart, a classifier needs no content to be right: photographs of one class may
        all have come from one camera.
        """
        table = self.files
        columns = [
            np.log(table["width"]),
            np.log(table["height"]),
            np.log(table["width"] / table["height"]),
            table["grey"],
            *((table["format"] == kind) for kind in sorted(set(table["format"]))),
        ]
        x = torch.from_numpy(np.stack([np.asarray(c, dtype=np.float32) for c in columns], axis=1))
        data = self.data
        return Dataset(
            f"{data.name}, file facts", data.classes, x, data.labels, data.split, data.ids,
            data.split_name, log=data.log,
        )  # fmt: skip


def read(
    path: Path | str,
    *,
    groups: Groups = None,
    train: float = 0.6,
    validation: float = 0.2,
    leave_out: Sequence[str] = (),
    name: str | None = None,
) -> Pictures:
    """Read a folder of pictures, and split it so that nothing of the test is learnt from.

    **The folder** holds one folder a class. If its folders are called ``train`` and ``test`` (and
    perhaps ``val``), they are taken as a division that somebody made, and hold one folder a
    class each. Without a validation folder a part of the training pictures becomes validation.

    **The split** is a rule and has no seed. Groups are taken in the order of their size, groups of
    one size in the order of a hash of their names, and each goes to the part that lacks its
    classes most. Copies of one picture count as a group.

    **What is left out** is listed with its reason: pictures that cannot be decoded, a second copy
    of a picture, all copies of a picture that stands in two classes (at least one label is wrong),
    and, in a given division, training and validation pictures of which a copy, or another picture
    of the group, is in a part after theirs. The test of a given division stays as it is.

    **Copies** are found by their pixels: thumbnails of 32 × 32 grey values, mirrored ones too, that
    are nearly equal, see :data:`ALIKE`. Saved anew, resized or brightened, a picture is found; cut
    to another frame, it is not. For such pairs look at the nearest features
    (:func:`tlhelpers.duplicates.nearest_pairs`), and name groups.

    Args:
        path: the folder. JPEG, PNG and WebP files are read, hidden files and files of other kinds
            than pictures are not.
        groups: which pictures belong together. A function from an id such as ``cats/tom 1.jpg`` to
            the name of its group; a mapping from ids, or from file names, to groups;
            ``"folder"``: each folder within a class's folder is a group; None: each picture
            stands for itself.
        train: share of each class for training.
        validation: share for validation; the rest is for testing. Where the division is given, only
            their proportion counts.
        leave_out: classes to leave out.
        name: the data set's name; by default the folder's.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there are fewer than two classes, a class has too few pictures or groups, a
            picture has no group, or pictures lie where they would be overlooked.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> home, rng = Path(tempfile.mkdtemp()) / "pets", np.random.default_rng(0)
        >>> for i in range(12):
        ...     folder = home / ("cats" if i % 2 else "dogs")
        ...     folder.mkdir(parents=True, exist_ok=True)
        ...     noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        ...     Image.fromarray(noise).resize((40, 30)).save(folder / f"{i // 4} {i}.png")
        >>> animal = lambda i: i.split("/")[1].split()[0]  # the file's first word
        >>> pictures = tl.folders.read(home, groups=animal)
        >>> pictures.to_frame().reset_index()
          class  train  validation  test  groups
        0  cats      2           2     2       3
        1  dogs      2           2     2       3
        >>> len(pictures.left_out), len(pictures.copies)
        (0, 0)
    """
    path = Path(path).expanduser()
    if not (train > 0 and validation > 0 and train + validation < 1):
        raise ValueError(
            f"train and validation are shares above 0 that leave something for testing, found "
            f"{train} and {validation}."
        )
    if not path.is_dir():
        raise FileNotFoundError(f"path should be a folder with one folder a class, found {path}.")
    tree = _Tree(path)
    table, given = _sorted_into_classes(tree, nested=groups == FOLDER)
    if unknown := set(leave_out) - set(table["class"]):
        raise ValueError(
            f"{tree.label} has no class {sorted(unknown)[0]!r} to leave out; it has "
            f"{_some(sorted(set(table['class'])))}."
        )
    table = table[~table["class"].isin(leave_out)].reset_index(drop=True)
    _require_classes(table, tree, given)
    table["group"] = _named_groups(table, groups, tree)

    table, thumbnails, left_out = _looked_over(table, tree)
    _require_classes(table, tree, given)
    pairs = _copies(table, thumbnails)
    table, more = _without_second_copies(table)
    left_out += more
    table["unit"] = _units(table, pairs)
    if given:
        table, more = _without_leaks(table)
        left_out += more
    _assign(table, given, train, validation, tree)
    table = table.sort_values(["class", "order", "id"], ignore_index=True)

    classes = tuple(sorted(set(table["class"])))
    together = table.groupby("unit")["group"].transform("min")
    data = Dataset(
        name=tree.label if name is None else name,
        classes=classes,
        x=Images(tree, list(table["id"])),
        labels=torch.tensor([classes.index(c) for c in table["class"]]),
        split=table["part"].to_numpy(dtype=str),
        ids=tuple(table["id"]),
        split_name=_split_name(given, groups is not None, train, validation, table),
    )
    return Pictures(
        data=data,
        groups=dict(zip(table["id"], together, strict=True)),
        grouped=groups is not None,
        given=given,
        files=table[["id", "class", "part", "group", "width", "height", "grey", "format"]],
        left_out=pd.DataFrame(left_out, columns=_LEFT_OUT),
        copies=pairs,
    )


def _split_name(
    given: bool, grouped: bool, train: float, validation: float, table: pd.DataFrame
) -> str:
    whole = "groups and copies whole" if grouped else "copies whole"
    if not given:
        return f"sha256 {train:.0%}/{validation:.0%}/rest, {whole}"
    cut = "" if table.attrs["has_validation"] else ", validation cut from training"
    return f"as the folder has it{cut}, {whole}"


# --- what lies where ----------------------------------------------------------------------


class _Tree:
    """All files below a folder, hidden ones left out; a :class:`~tlhelpers.datasets.Source`."""

    def __init__(self, path: Path) -> None:
        self.path, self.label = path, path.resolve().name
        names, folders = [], []
        for place, inner, files in os.walk(path, followlinks=True):
            inner[:] = sorted(folder for folder in inner if not folder.startswith((".", "__")))
            within = Path(place).relative_to(path)
            folders += [(within / folder).as_posix() for folder in inner]
            names += [(within / f).as_posix() for f in sorted(files) if not f.startswith(".")]
        self.names, self.folders = tuple(names), tuple(folders)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


def _sorted_into_classes(tree: _Tree, *, nested: bool) -> tuple[pd.DataFrame, bool]:
    """A row for each picture: id, class, part ("" without a division), inner folder."""
    pictures = [name for name in tree.names if name.lower().endswith(datasets.SUFFIXES)]
    other = [name for name in tree.names if name.lower().endswith(datasets.OTHER_PICTURES)]
    if other:
        raise ValueError(
            f"{len(other)} pictures in {tree.label} are of a kind that is not read here "
            f"({_some(other)}). Convert them to JPEG, PNG or WebP, or move them away."
        )
    tops = sorted({folder for folder in tree.folders if "/" not in folder})
    named = {_PART_NAMES.get(top.lower()) for top in tops}
    given = len(tops) > 1 and None not in named
    if given and not {"train", "test"} <= named:
        raise ValueError(
            f"{tree.label} is divided into {_some(tops)}, but a result needs a training and a test "
            f"folder. If nothing was ever chosen on {tops[-1]!r}, call it test; else put its "
            f"pictures and the others together, one folder a class, and let a rule divide them."
        )
    depth = 3 if given else 2
    if loose := [name for name in pictures if name.count("/") < depth - 1]:
        raise ValueError(
            f"{_counted(len(loose), 'picture')} of {tree.label} (such as {loose[0]}) should lie in "
            f"the folder of a class{', within train or test' if given else ''}. Move each there."
        )
    if not nested and (deep := [name for name in pictures if name.count("/") > depth - 1]):
        raise ValueError(
            f"{_counted(len(deep), 'picture')} of {tree.label} (such as {deep[0]}) lie in folders "
            f"within the folder of a class. If each of these holds what belongs together, say "
            f"groups='folder'; else move the pictures up, or name the folder one level down."
        )
    rows = []
    for name in pictures:
        parts = PurePosixPath(name).parts
        part = _PART_NAMES[parts[0].lower()] if given else ""
        inner = "/".join(parts[depth - 1 : -1])
        rows.append((name, parts[depth - 2], part, inner))
    table = pd.DataFrame(rows, columns=["id", "class", "part", "inner"])
    # A folder without pictures is a class that somebody meant.
    level = [folder for folder in tree.folders if folder.count("/") == depth - 2]
    empty = {PurePosixPath(folder).name for folder in level} - set(table["class"])
    if empty:
        raise ValueError(
            f"{tree.label} has a folder without a picture: {_some(sorted(empty))}. Add pictures, "
            f"or remove the folder."
        )
    return table, given


def _require_classes(table: pd.DataFrame, tree: _Tree, given: bool) -> None:
    classes = sorted(set(table["class"]))
    if len(classes) < 2:
        found = f"{classes[0]!r} alone" if classes else "none"
        raise ValueError(
            f"{tree.label} should hold pictures of 2 classes or more, each in a folder of its own, "
            f"found {found}. With one class there is nothing to tell apart: add a folder with what "
            f"should be told from it."
        )
    if not given:
        return
    for part, other in (("test", "train"), ("train", "test"), ("validation", "train")):
        mine, theirs = (set(table.loc[table["part"] == p, "class"]) for p in (part, other))
        if mine and (alone := sorted(mine - theirs)):
            raise ValueError(
                f"{_some(alone)}: in the {part} folder of {tree.label}, but not in {other}. Give "
                f"both the same classes, or leave these out: leave_out={alone!r}."
            )


def _named_groups(table: pd.DataFrame, groups: Groups, tree: _Tree) -> list[str]:
    """The name of each picture's group; its own id where none was asked for."""
    ids = list(table["id"])
    if groups is None:
        return ids
    if isinstance(groups, str):
        if groups != FOLDER:
            raise ValueError(
                f"groups is a function, a mapping, 'folder' or None, found {groups!r}. For a "
                f"column of a table: dict(zip(table['file'], table['animal']))."
            )
        if loose := [i for i, inner in zip(ids, table["inner"], strict=True) if not inner]:
            raise ValueError(
                f"{_counted(len(loose), 'picture')} of {tree.label} (such as {loose[0]}) lie in no "
                f"folder within the class's. Give each group a folder."
            )
        # Two classes may both have a folder "1": only the whole path names a group.
        return [f"{c}/{inner}" for c, inner in zip(table["class"], table["inner"], strict=True)]
    if callable(groups):
        found = [groups(i) for i in ids]
    else:
        names = [PurePosixPath(i).name for i in ids]
        counts = Counter(names)
        found = [
            groups[i] if i in groups else groups.get(name) if counts[name] == 1 else None
            for i, name in zip(ids, names, strict=True)
        ]
    if missing := [i for i, g in zip(ids, found, strict=True) if g is None or g != g or g == ""]:
        raise ValueError(
            f"each picture needs a group, but {len(missing):,} of {len(ids):,} in {tree.label} "
            f"have none (first: {missing[0]}). Name groups by ids such as this one; file names do "
            f"where each is there once."
        )
    return [str(group) for group in found]


# --- a look at every picture --------------------------------------------------------------


def _looked_over(
    table: pd.DataFrame, tree: _Tree
) -> tuple[pd.DataFrame, Tensor, list[tuple[str, str]]]:
    """The pictures that can be decoded, with their facts; their thumbnails; and the others."""
    with runtime.torch_threads(1), ThreadPoolExecutor(runtime.cores()) as pool:
        seen = list(
            runtime.progress(
                pool.map(lambda name: _look(tree, name), table["id"]),
                total=len(table), desc="looking at pictures",
            )
        )  # fmt: skip
    reasons = [found if isinstance(found, str) else "" for found in seen]
    left_out = [(name, why) for name, why in zip(table["id"], reasons, strict=True) if why]
    good = [found for found in seen if not isinstance(found, str)]
    kept = table[[not why for why in reasons]].reset_index(drop=True)
    facts = pd.DataFrame(
        [found.facts for found in good], columns=["width", "height", "grey", "format", "digest"]
    )
    thumbnails = torch.stack([found.thumbnails for found in good]) if good else torch.empty(0)
    return pd.concat([kept, facts], axis=1), thumbnails, left_out


@dataclass(frozen=True, eq=False)
class _Seen:
    facts: tuple[int, int, bool, str, str]
    thumbnails: Tensor  # (2, 1024): as it is, and mirrored


def _look(tree: _Tree, name: str) -> _Seen | str:
    """What a picture is like, or why it cannot be read."""
    try:
        content = tree.read(name)
        pixels = datasets.decode(content)
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"
    _, height, width = pixels.shape
    kind = "jpeg" if content[:2] == b"\xff\xd8" else "png" if content[1:4] == b"PNG" else "webp"
    grey = bool((pixels[0] == pixels[1]).all() and (pixels[1] == pixels[2]).all())
    flat = pixels.permute(1, 2, 0).contiguous().numpy()
    digest = hashlib.blake2b(repr(flat.shape).encode() + flat.tobytes(), digest_size=16)
    small = torch.stack([duplicates.thumbnail(p) for p in (pixels, pixels.flip(-1))])
    return _Seen((width, height, grey, kind, digest.hexdigest()), small)


def _copies(table: pd.DataFrame, thumbnails: Tensor) -> pd.DataFrame:
    """The pairs of pictures that show the same, by place in the table."""
    upright, mirrored = thumbnails[:, 0], thumbnails[:, 1]
    far = torch.empty(len(upright))
    near: list[tuple[int, int, float]] = []
    for start in range(0, len(upright), _BLOCK):
        block = upright[start : start + _BLOCK]
        likeness = torch.maximum(block @ upright.T, block @ mirrored.T)
        own = torch.arange(len(block))
        likeness[own, start + own] = -1
        nearest = likeness.topk(min(_NEIGHBOUR, len(upright) - 1), dim=1).values
        far[start : start + len(block)] = nearest[:, -1]
        rows, columns = (likeness >= ALIKE).nonzero(as_tuple=True)
        values = likeness[rows, columns]
        found = zip((rows + start).tolist(), columns.tolist(), values.tolist(), strict=True)
        near += [(i, j, value) for i, j, value in found if i < j]
    limit = (_distance(far) / _RATIO).tolist()
    # Each to the first of its equals: enough to keep them together.
    equal = table.groupby("digest").groups.values()
    exact = {(int(rows[0]), int(other)) for rows in equal for other in rows[1:]}
    close = {
        (i, j): value
        for i, j, value in near
        if (i, j) in exact or _distance(torch.tensor(value)) < min(limit[i], limit[j])
    }
    pairs = sorted(exact | set(close))
    frame = pd.DataFrame(
        [(i, j, min(1.0, close.get((i, j), 1.0))) for i, j in pairs],
        columns=["i", "j", "likeness"],
    )
    for place, which in zip(("i", "j"), _PAIR, strict=True):
        chosen = table.iloc[frame[place]].reset_index(drop=True)
        frame[which] = chosen["id"]
        for column in _OF_A_PAIR:
            frame[f"{which}_{column}"] = chosen[column]
    return frame[_COPIES]


def _distance(likeness: Tensor) -> Tensor:
    """The distance of two thumbnails of length 1 with this product."""
    return (2 - 2 * likeness).clamp_min(0).sqrt()


def _without_second_copies(
    table: pd.DataFrame,
) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Equal pictures once in a part; not at all where they are in two classes."""
    reasons: dict[int, str] = {}
    for rows in table.groupby("digest").groups.values():
        classes = sorted(set(table.loc[rows, "class"]))
        first: dict[str, str] = {}
        for row in rows:
            part, identity = table.loc[row, "part"], table.loc[row, "id"]
            if len(classes) > 1:
                reasons[row] = (
                    f"the same picture is in the classes {' and '.join(classes)}: at least one "
                    f"label is wrong"
                )
            elif part in first:
                reasons[row] = f"the same picture as {first[part]}"
            else:
                first[part] = identity
    keep = ~table.index.isin(list(reasons))
    left_out = [(str(table.loc[row, "id"]), why) for row, why in reasons.items()]
    return table[keep].reset_index(drop=True), left_out


def _units(table: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """(n,) a number for each picture; those of one group or copies of each other share it."""
    place = {identity: i for i, identity in enumerate(table["id"])}
    links = [
        (place[a], place[b])
        for a, b in zip(pairs["first"], pairs["second"], strict=True)
        if a in place and b in place
    ]
    for rows in table.groupby("group").groups.values():
        links += [(int(rows[0]), int(other)) for other in rows[1:]]
    ends = np.array(links, dtype=np.int64).reshape(-1, 2)
    n = len(table)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def _without_leaks(table: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Leave out of a given division what has a copy, or one of its group, in a later part."""
    rank = table["part"].map({part: i for i, part in enumerate(PARTS)})
    last = rank.groupby(table["unit"]).transform("max")
    leaks = rank < last
    left_out = []
    for row in table.index[leaks]:
        later = table[(table["unit"] == table["unit"][row]) & (rank == last[row])].iloc[0]
        left_out.append(
            (
                str(table["id"][row]),
                f"a copy of {later['id']}, or of one group with it, which is in {later['part']}",
            )
        )
    return table[~leaks].reset_index(drop=True), left_out


# --- the split ----------------------------------------------------------------------------


def _assign(table: pd.DataFrame, given: bool, train: float, validation: float, tree: _Tree) -> None:
    """Give each picture its part, and the place of its unit in the order of the rule."""
    units = table.groupby("unit")
    names = units["group"].transform("min").map(_hash)
    size = units["group"].transform("size")
    table["order"] = [f"{10**9 - n:09}{h}" for n, h in zip(size, names, strict=True)]
    shares = {"train": train, "validation": validation, "test": 1 - train - validation}
    free = np.ones(len(table), dtype=bool)
    table.attrs["has_validation"] = True
    if given:
        table.attrs["has_validation"] = bool((table["part"] == "validation").any())
        free = np.zeros(len(table), dtype=bool)
        if not table.attrs["has_validation"]:
            del shares["test"]
            free = (table["part"] == "train").to_numpy()
    if free.any():
        _require_units(table[free], len(shares), tree)
        table.loc[free, "part"] = _by_rule(table[free], shares)
    counts = table.pivot_table(index="class", columns="part", values="id", aggfunc="count")
    for part in PARTS:
        lacking = counts.index[counts[part].isna()] if part in counts else counts.index
        if len(lacking):
            raise ValueError(
                f"{_some(list(lacking))} of {tree.label}: no picture for {part} after groups and "
                f"copies were kept together. Add pictures of other groups, or leave the classes "
                f"out: leave_out={list(lacking)!r}."
            )


def _require_units(table: pd.DataFrame, parts: int, tree: _Tree) -> None:
    counts = table.groupby("class")["unit"].nunique()
    if len(small := counts[counts < parts]):
        found = _some([f"{c!r} has {n}" for c, n in small.items()])
        raise ValueError(
            f"each class of {tree.label} needs {parts} pictures or more that are no copies of each "
            f"other and of different groups, one for each part, but {found}. Add pictures, or "
            f"leave these classes out: leave_out={list(small.index)!r}."
        )


def _by_rule(table: pd.DataFrame, shares: Mapping[str, float]) -> list[str]:
    """The part of each picture: units in order, each to where its classes are most lacking."""
    classes, labels = np.unique(table["class"], return_inverse=True)
    sizes = np.bincount(labels, minlength=len(classes))
    # Of a small class every part should get one, hence the least of 1.
    wanted = np.maximum(np.outer(list(shares.values()), sizes), 1.0)
    have = np.zeros_like(wanted)
    parts = list(shares)
    chosen: dict[Any, str] = {}
    order = table.reset_index(drop=True).groupby("unit")["order"].min().sort_values(kind="stable")
    rows = table.reset_index(drop=True).groupby("unit").indices
    for unit in order.index:
        counts = np.bincount(labels[rows[unit]], minlength=len(classes))
        lack = ((1 - have / wanted) * counts).sum(axis=1)
        best = int(np.argmax(np.round(lack, 9)))
        have[best] += counts
        chosen[unit] = parts[best]
    return [chosen[unit] for unit in table["unit"]]


def _hash(name: str) -> str:
    return hashlib.sha256(PurePosixPath(name).name.encode()).hexdigest()


def _counted(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")
