"""Checks of :mod:`tlhelpers.audit` on the data: labels, splits, copies."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from tlhelpers._audit_check import ERROR, NOTE, Found, first_few, trap
from tlhelpers._audit_setup import CallableError, Lacking, Setup
from tlhelpers.splits import PARTS

_READ = 20_000  # images of a split whose bytes are compared
_DECODED = 2_000  # images of a split that are decoded to compare what they show
_SIMILAR = 16  # side of the thumbnail on which near-duplicates are sought
# Distances of unit vectors below which two examples may be copies, if they are also far below
# what is usual: where all are alike, as small digits are, none is a copy. On photographs of
# dogs, such pairs were the same photograph, cut or scaled otherwise, with few exceptions.
_SAME_FEATURES = 0.2
_SAME_THUMBNAILS = 0.07


@trap(
    "labels",
    "Labels that the loss cannot use: out of range, of another type, or all of one class.",
    why="cross_entropy takes int64 labels from 0 to m - 1 and reads the score at that position.",
    fix="Number the classes from 0 to m - 1, as int64.",
)
def labels(setup: Setup) -> Found | None:
    y = setup.part("train").y
    if y is None:
        raise Lacking("data with labels")
    if y.ndim != 1:
        return None  # several labels or a distribution for each example
    if y.is_floating_point():
        with contextlib.suppress(Lacking, CallableError):
            if setup.output.ndim == 1 or setup.output.shape[1] == 1:
                return None  # one score, as binary_cross_entropy takes them
        return Found(
            f"The labels are {y.dtype}, where classes are due as int64.",
            {"dtype": str(y.dtype)},
            fix="Call y.long(), after a look at whether they are class numbers.",
        )
    if y.dtype not in (torch.int64, torch.uint8):
        return Found(
            f"The labels are {y.dtype}, which cross_entropy does not take.",
            {"dtype": str(y.dtype)},
            fix="Call y.long().",
        )
    y = y.long()  # as bytes, 156 would be equal to -100
    kept = y[y != -100]  # cross_entropy's ignore_index
    if not len(kept):
        return Found(
            f"All {len(y):,} labels are -100, which cross_entropy leaves out.",
            {"ignored": len(y)},
            fix="Give the examples that are to be learnt from a class from 0 to m - 1.",
        )
    low, high = int(kept.min()), int(kept.max())
    with contextlib.suppress(Lacking):
        m = setup.m
        if low < 0 or high >= m:
            hint = " They seem to count from 1." if (low, high) == (1, m) else ""
            return Found(
                f"The labels run from {low} to {high}, where 0 to {m - 1} are due.{hint}",
                {"min": low, "max": high, "classes": m},
            )
    if low < 0:
        return Found(f"The smallest label is {low}.", {"min": low, "max": high})
    if low == high and not setup.is_batch:
        return Found(
            f"All {len(y):,} training examples are of class {low}.",
            {"min": low, "max": high},
            fix="Look at how the split was made: sorted files need shuffling first.",
        )
    return None


@trap(
    "imbalanced-accuracy",
    "Accuracy is reported, and one class makes up most of the data.",
    why="A constant answer then has a high accuracy, and a poor model can look like a good one.",
    fix="Report macro-F1 or the mean recall over classes as well, and the constant answer's "
    "accuracy beside it.",
)
def imbalanced_accuracy(setup: Setup) -> Found | None:
    name = "validation" if "validation" in setup.parts else "train"
    y = setup.part(name).y
    if y is None or y.ndim != 1 or y.is_floating_point():
        raise Lacking("data with labels")
    if setup.is_batch and len(y) < 64:
        raise Lacking("data")  # the mix of one small batch is chance
    if setup.metric.lower().replace("-", "") not in ("accuracy", "acc", "top1"):
        return None
    counts = y.unique(return_counts=True)[1]
    if len(counts) < 2:
        return None  # see labels
    m, share = len(counts), float(counts.max()) / len(y)
    if share < 1 / m + 0.25:
        return None
    return Found(
        f"{share:.1%} of the {name} examples belong to one of {m} classes; always to answer that "
        f"class is as accurate.",
        {"share": share, "classes": m, "split": name},
    )


@trap(
    "selected-on-test",
    "Epochs or settings are chosen on test data, or the test split was read more than once.",
    why="The best of many readings is the one that luck favoured: the figure flatters.",
    fix="Choose on the validation split; read the test split once, at the end.",
)
def selected_on_test(setup: Setup) -> Found | None:
    test = getattr(setup.data, "test", None)
    readings = setup.readings if setup.readings is not None else getattr(test, "readings", None)
    if setup.chosen_on is None and readings is None:
        raise Lacking("chosen_on")
    if setup.chosen_on is not None and (chosen := _chosen_from_test(setup)):
        return Found(f"Epochs or settings are chosen on {chosen}.", {"chosen_on_test": True})
    if readings is not None and len(readings) > 1:
        return Found(
            f"The test split has been read {len(readings)} times ({first_few(list(readings))}).",
            {"readings": tuple(readings)},
            fix="Report all of these results, or choose on the validation split from here on.",
            severity=NOTE,
        )
    return None


def _chosen_from_test(setup: Setup) -> str:
    """What of the test split serves for a choice; empty for nothing."""
    chosen = setup.chosen_on
    name = chosen if isinstance(chosen, str) else getattr(chosen, "name", None)
    if name == "test":
        return "the test split"
    ids = getattr(chosen, "ids", chosen)
    if isinstance(ids, str):
        return ""
    ids = ids.tolist() if isinstance(ids, (Tensor, np.ndarray)) else list(ids)
    if all(isinstance(i, int | np.integer) for i in ids):
        split = getattr(setup.data, "split", None)
        if split is None:
            raise Lacking("data with a split")
        common = sum(str(split[i]) == "test" for i in ids)
    else:
        test = setup.part("test")
        if test.ids is None:
            raise Lacking("data with ids")
        common = len(set(map(str, ids)) & set(test.ids))
    return f"{len(ids):,} examples, of which {common:,} are test examples" if common else ""


@trap(
    "duplicates",
    "The same example stands on both sides of a split.",
    why="What was learned by heart counts as understood.",
    fix="Put all copies of an image into one part; leave them out of validation and test.",
)
def duplicates(setup: Setup) -> Found | None:
    present = [name for name in PARTS if name in setup.parts]
    if len(present) < 2:
        raise Lacking("data with validation or test")
    pairs = [(a, b) for i, a in enumerate(present) for b in present[i + 1 :]]
    digests = {name: _digests(setup.parts[name].x) for name in present}
    exact = {(a, b): _equal(digests[a], digests[b]) for a, b in pairs}
    sketches = _sketches(setup, present)
    same = _SAME_THUMBNAILS if _shows_images(setup.part("train").x) else _SAME_FEATURES
    near = {}
    for a, b in pairs:
        if a in sketches and b in sketches:
            found = _close(sketches[a], sketches[b], min(same, _usual(sketches[a]) / 4))
            near[a, b] = {i: j for i, j in found.items() if i not in exact[a, b]}
    told = [_twins(setup, a, b, rows, "equal to") for (a, b), rows in exact.items() if rows]
    told += [_twins(setup, a, b, rows, "almost equal to") for (a, b), rows in near.items() if rows]
    if not told:
        return None
    equal = any(exact.values())
    partly = [name for name, sketch in sketches.items() if len(sketch) < len(setup.parts[name])]
    limit = f" Only the first {_DECODED:,} images of {first_few(partly)} were compared."
    return Found(
        "; ".join(told) + "." + (limit if partly else ""),
        {
            "equal": {f"{a}/{b}": len(rows) for (a, b), rows in exact.items()},
            "almost": {f"{a}/{b}": len(rows) for (a, b), rows in near.items()},
            "looked_at": {name: len(sketch) for name, sketch in sketches.items()},
        },
        fix=None
        if equal
        else "Look at these pairs: copies belong into one part, mere siblings may stay.",
        severity=ERROR if equal else NOTE,
    )


def _twins(setup: Setup, a: str, b: str, rows: Mapping[int, int], how: str) -> str:
    def name(part: str, row: int) -> str:
        ids = setup.parts[part].ids
        return f"row {row}" if ids is None else repr(ids[row])

    first = next(iter(rows))
    share = f"{len(rows):,} of {len(setup.parts[b]):,} {b} examples"
    return (
        f"{share} {'are' if len(rows) > 1 else 'is'} {how} one in {a} "
        f"(first: {name(b, first)} and {name(a, rows[first])})"
    )


def _equal(a: Sequence[bytes], b: Sequence[bytes]) -> dict[int, int]:
    """Rows of ``b`` that are in ``a`` too, each with its place there."""
    known = {digest: row for row, digest in enumerate(a)}
    return {row: known[digest] for row, digest in enumerate(b) if digest in known}


def _digests(x: Any) -> list[bytes]:
    """A digest of each example: of a tensor's values, or of the file of an image."""
    rows: Iterable[bytes]
    if isinstance(x, Tensor):
        if x[0].numel() < 8:
            return []  # a few small numbers are equal by chance
        rows = (r.tobytes() for r in x.detach().cpu().flatten(1).contiguous().numpy())
    elif hasattr(x, "read"):
        rows = (x.read(i) for i in range(min(len(x), _READ)))
    else:
        rows = (x.take([i]).stack().numpy().tobytes() for i in range(min(len(x), _DECODED)))
    return [hashlib.blake2b(row, digest_size=16).digest() for row in rows]


def _shows_images(x: Any) -> bool:
    return not isinstance(x, Tensor) or x.ndim == 4


def _sketches(setup: Setup, names: Sequence[str]) -> dict[str, Tensor]:
    """(n, d) rows of unit length for each part, whose products tell how alike examples are."""
    found: dict[str, Tensor] = {}
    centre: Tensor | None = None
    for name in names:
        x = setup.parts[name].x
        if isinstance(x, Tensor) and x.ndim == 2 and x.shape[1] >= 8 and x.is_floating_point():
            centre = x.mean(0) if centre is None else centre
            found[name] = nn.functional.normalize(x.float() - centre, dim=1)
        elif isinstance(x, Tensor) and x.ndim == 4:
            found[name] = torch.cat([_thumbnails(part) for part in x.split(1024)])
        elif not isinstance(x, Tensor):
            with contextlib.suppress(Exception):  # unreadable images are not for this check
                images = (_glance(x, i) for i in range(min(len(x), _DECODED)))
                found[name] = torch.cat([_thumbnails(image) for image in images])
    return found


def _glance(x: Any, i: int) -> Tensor:
    """(1, c, h, w) uint8: one image of a lazy sequence, coarse where that is faster."""
    if not hasattr(x, "read"):
        return x.take([i]).stack()
    with Image.open(io.BytesIO(x.read(i))) as image:
        image.draft("L", (4 * _SIMILAR, 4 * _SIMILAR))  # a JPEG is decoded at an eighth of its size
        return F.pil_to_tensor(image.convert("L")).unsqueeze(0)


def _thumbnails(images: Tensor) -> Tensor:
    """Small grey images (n, d) of mean 0 and length 1; zeros for images without contrast."""
    grey = images.float().mean(1, keepdim=True)
    if images.dtype == torch.uint8:
        grey = grey / 255
    small = F.resize(grey, [_SIMILAR, _SIMILAR], antialias=True).flatten(1)
    small = small - small.mean(1, keepdim=True)
    plain = small.std(1, keepdim=True) < 0.02
    return nn.functional.normalize(small.masked_fill(plain, 0), dim=1)


def _usual(a: Tensor) -> float:
    """The median distance of an example from the nearest other one of its part."""
    rows = torch.arange(0, len(a), max(1, len(a) // 1000))
    products = a[rows] @ a.T
    products[torch.arange(len(rows)), rows] = -1  # not from itself
    return float((2 - 2 * products.amax(1)).clamp_min(0).sqrt().median())


def _close(a: Tensor, b: Tensor, limit: float) -> dict[int, int]:
    """Rows of ``b`` less than this far from a row of ``a``, each with its place there."""
    nearest = [(part @ a.T).max(dim=1) for part in b.split(1024)]
    product, row = torch.cat([n.values for n in nearest]), torch.cat([n.indices for n in nearest])
    close = (2 - 2 * product).clamp_min(0).sqrt() < limit
    return {i: int(row[i]) for i in close.nonzero().flatten().tolist()}
