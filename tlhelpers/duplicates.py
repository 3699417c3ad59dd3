"""Near-duplicates: one photograph twice in a data set, perhaps with two labels.

Photographs collected from the web come in several copies, in other sizes, cut a little otherwise,
mirrored. A copy of a test image among the training images makes the test easier than it is; copies
with two labels prove that one label, at least, is wrong. :func:`nearest_pairs` lets features
propose pairs, :func:`likeness` compares the pixels, :func:`near_duplicates` does both.
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from tlhelpers import records
from tlhelpers.records import Record
from tlhelpers.splits import Dataset

LEAST = 0.9
COMMAND = "python experiments/dogs_duplicates.py --data PATH"

_BLOCK = 2048  # rows whose similarities to all others are in memory at a time
_SIDE = 32  # of a thumbnail, in pixels


def nearest_pairs(bank: Dataset, n: int = 100) -> pd.DataFrame:
    """The pairs of examples whose features point most nearly in one direction.

    Args:
        bank: a feature bank, or any data set whose ``x`` is (examples, d).
        n: the number of pairs.

    Returns:
        n rows, the most similar first: ``similarity`` (the cosine), ``first`` and ``second``
        (ids), ``first_part`` and ``second_part`` (of the split), ``first_class`` and
        ``second_class``.

    Raises:
        ValueError: if ``x`` is no matrix, or n is not between 1 and the number of pairs.

    Example:
        >>> import tlhelpers as tl
        >>> dogs = tl.features.load("stanford_dogs/mobilenet_v2")
        >>> pair = tl.datasets.with_classes(dogs, ["Pug", "Boxer"])
        >>> pairs = tl.duplicates.nearest_pairs(pair, 3)
        >>> pairs[["similarity", "first_part", "second_part", "first_class"]].round(2)
           similarity  first_part second_part first_class
        0        0.93  validation        test         Pug
        1        0.93       train        test       Boxer
        2        0.93        test        test         Pug
    """
    x = bank.x
    if not isinstance(x, Tensor) or x.ndim != 2:
        raise ValueError(
            f"nearest_pairs compares features of shape (examples, d), found {type(x).__name__} "
            f"{tuple(getattr(x, 'shape', ()))}. Extract features first (tl.features.extract)."
        )
    possible = len(x) * (len(x) - 1) // 2
    if not 1 <= n <= possible:
        raise ValueError(f"n must lie between 1 and the {possible:,} pairs there are, found {n}.")
    values, rows, columns = _nearest(F.normalize(x.float(), dim=1), n)
    names, found = np.array(bank.classes), {"similarity": values.numpy()}
    for name, chosen in (("first", rows.numpy()), ("second", columns.numpy())):
        found[name] = np.array(bank.ids)[chosen]
        found[f"{name}_part"] = bank.split[chosen]
        found[f"{name}_class"] = names[bank.labels.numpy()[chosen]]
    return pd.DataFrame(found)


def _nearest(unit: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The n largest products of two different rows, and the rows; a block of rows at a time."""
    best = torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    for start in range(0, len(unit), _BLOCK):
        block = unit[start : start + _BLOCK] @ unit[start:].T
        # Each pair once, and no row with itself.
        block[torch.tril(torch.ones_like(block, dtype=torch.bool))] = -torch.inf
        values, places = block.flatten().topk(min(n, block.numel()))
        rows = start + places // block.shape[1]
        columns = start + places % block.shape[1]
        together = [torch.cat(parts) for parts in zip(best, (values, rows, columns), strict=True)]
        values, order = together[0].topk(min(n, len(together[0])))
        best = values, together[1][order], together[2][order]
    return best


def likeness(first: Tensor, second: Tensor) -> float:
    """How alike two images are, pixel by pixel: the correlation of their grey thumbnails.

    1 for a picture and its copy, brightened or not; about 0 for two pictures that have nothing to
    do with each other. Of ``second`` and its mirror image, whichever is more alike counts.

    Args:
        first, second: (channels, height, width), of any sizes.

    >>> picture = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    >>> round(likeness(picture, 0.5 * picture.flip(-1)), 4)
    1.0
    """
    a, b = (thumbnail(image) for image in (first, second))
    mirrored = thumbnail(second.flip(-1))
    return float(torch.maximum(a @ b, a @ mirrored))


def thumbnail(image: Tensor) -> Tensor:
    """(1024,) the picture as 32 × 32 grey values of mean 0 and length 1; zeros without contrast.

    The product of two thumbnails is their correlation, see :func:`likeness`.

    Args:
        image: (channels, height, width).

    Example:
        >>> import torch
        >>> from tlhelpers.duplicates import thumbnail
        >>> picture = torch.rand(3, 60, 90, generator=torch.Generator().manual_seed(0))
        >>> brighter = 0.5 + picture / 2
        >>> bool((thumbnail(picture) @ thumbnail(brighter)).isclose(torch.tensor(1.0)))
        True
    """
    grey = F.adaptive_avg_pool2d(image.float().mean(dim=0, keepdim=True), _SIDE).flatten()
    centred = grey - grey.mean()
    return centred / centred.norm().clamp_min(1e-12)


def near_duplicates(
    photos: Dataset, bank: Dataset, *, proposed: int = 2000, least: float = LEAST
) -> Record:
    """Photographs that are in a data set twice: proposed by features, confirmed by pixels.

    The test split is not read: nothing is learnt and nothing predicted. But the labels of test
    images that have a copy are shown, as they must be.

    Args:
        photos: images, each as ``photos.x[i]``, (channels, height, width).
        bank: features of the same images; ids say which is which.
        proposed: the number of pairs whose pixels are compared, the nearest ones.
        least: the :func:`likeness` from which on two images count as one picture.

    Returns:
        the record ``dogs/near_duplicates``: a row of the curve for each pair that was confirmed,
        with the columns of :func:`nearest_pairs` and ``likeness``. ``result``: ``pairs``,
        ``with_two_classes``, ``across_train_and_test``, and ``images`` in any pair.

    Raises:
        ValueError: if an image of the bank is not among the photographs.

    Example:
        >>> import dataclasses
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.with_classes(tl.datasets.digits(), ["1", "7"])
        >>> pixels = dataclasses.replace(digits, x=digits.x.flatten(1))
        >>> record = tl.duplicates.near_duplicates(digits, pixels, proposed=20, least=0.99)
        >>> record.result
        {'pairs': 9, 'with_two_classes': 0, 'across_train_and_test': 4, 'images': 18}
    """
    origin, start = records.provenance(near_duplicates, command=COMMAND), time.perf_counter()
    place = {identity: i for i, identity in enumerate(photos.ids)}
    if missing := [identity for identity in bank.ids if identity not in place]:
        raise ValueError(
            f"the bank should be of these photographs, but {missing[0]} (and {len(missing) - 1} "
            f"more) is not among the {len(place):,} of {photos.name}."
        )
    pairs = nearest_pairs(bank, proposed)
    pairs["likeness"] = [
        likeness(photos.x[place[first]], photos.x[place[second]])
        for first, second in zip(pairs["first"], pairs["second"], strict=True)
    ]
    found = pairs[pairs["likeness"] >= least].round({"similarity": 4, "likeness": 4})
    parts = [set(row) for row in found[["first_part", "second_part"]].to_numpy()]
    return Record(
        name="dogs/near_duplicates",
        tier="cpu",
        split=photos.split_name,
        input=f"the {proposed:,} nearest pairs of {bank.name}, likeness from {least:g} on",
        seeds=(),
        curve=tuple(found.to_dict("records")),
        result={
            "pairs": len(found),
            "with_two_classes": int((found["first_class"] != found["second_class"]).sum()),
            "across_train_and_test": sum(part == {"train", "test"} for part in parts),
            "images": len({*found["first"], *found["second"]}),
        },
        interval={},
        interval_over="",
        wall_seconds=time.perf_counter() - start,
        **origin,
    )
