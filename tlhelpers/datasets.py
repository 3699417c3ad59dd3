"""Data sets: glyphs, handwritten digits, dogs, chest X-rays, bank questions, or your own folder.

Glyphs and digits are small tensors that every installation has. Photographs stay where they are,
in a folder or in an uncompressed tar, and are decoded when asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import tarfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol
from xml.etree import ElementTree

import numpy as np
import pooch
import scipy.io
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tlhelpers import characters, runtime
from tlhelpers.characters import ALPHABETS as ALPHABETS
from tlhelpers.characters import CLEAN as CLEAN
from tlhelpers.characters import FONTS as FONTS
from tlhelpers.characters import GLYPH_SIZE as GLYPH_SIZE
from tlhelpers.characters import MILD as MILD
from tlhelpers.characters import Shift as Shift
from tlhelpers.download import fetch
from tlhelpers.pixels import PixelCache as PixelCache
from tlhelpers.pixels import pixel_cache as pixel_cache
from tlhelpers.questions import Texts as Texts
from tlhelpers.questions import banking77 as banking77
from tlhelpers.splits import PARTS, Dataset, take

DOGS_IMAGENET: tuple[int, ...] = (*(i for i in range(151, 269) if i != 251), 273, 274, 275)
"""The 120 breeds among ImageNet's 1,000 classes, in wnid order (251 is the dalmatian)."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
OTHER_PICTURES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".tif", ".tiff")

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in stored pixels, x1 and y1 not included


class Source(Protocol):
    """Where files lie: :class:`Folder` or :class:`Archive`.

    Attributes:
        label: what to call it in a message.
        names: its files, as paths within it with ``/`` between the parts.
        folders: its folders, likewise.
    """

    label: str
    names: tuple[str, ...]
    folders: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """The bytes of one file; from any thread."""
        ...


# --- glyphs and digits -------------------------------------------------------------------------


def glyphs(
    alphabets: str | Sequence[str] = ("latin_upper", "latin_lower"),
    *,
    fonts: Sequence[str] | None = None,
    test_fonts: Sequence[str] = (),
    per_class: int = 100,
    shift: Shift | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    size: int = GLYPH_SIZE,
) -> Dataset:
    """Characters drawn from the fonts that Matplotlib ships; no download.

    A glyph fills its frame, as the handwritten :func:`digits` do, so that upper and lower case of
    one shape (O and o) differ in their strokes alone. Characters that look the same (A in
    Latin, Greek and Cyrillic) are one class, named after the first, see
    :func:`~tlhelpers.characters.look_alikes`. The same seed draws the same fonts and the same
    random numbers whatever the shift: sets that differ in it alone are paired, image by image.

    Args:
        alphabets: one or more of :data:`~tlhelpers.characters.ALPHABETS`, by name; a single
            character counts as an alphabet too.
        fonts: names among :data:`~tlhelpers.characters.FONTS`; each class is drawn in those that
            have it, equally often. By default all of them.
        test_fonts: fonts that are kept for the test split; the other splits use the rest.
        per_class: images of each class, all splits together.
        shift: how images vary, see :class:`~tlhelpers.characters.Shift`. By default not at all:
            then the images of one class and font are equal, in different splits too.
        validation, test: shares of each class that are held out; at least one image, or 0.
        seed: of the fonts, the split and the shift.
        size: side in pixels.

    Returns:
        a data set with x of shape (n, 1, size, size), float32 in 0..1, ink 1 on paper 0, and ids
        such as ``"A/DejaVu Sans Bold/17"``.

    Raises:
        ValueError: if an alphabet or a font is unknown, a split has no font for a class, or
            there are too few images a class for the splits.

    >>> glyphs(("latin_upper", "greek_upper"), per_class=10)
    Dataset 'glyphs': 36 classes; train 288, validation 36, test 36; split 'random, seed 0'
    """
    _require_pixels(size)
    groups = characters.look_alikes(_spelled(alphabets))
    chosen = tuple(dict.fromkeys([*(FONTS if fonts is None else fonts), *test_fonts]))
    members = {font: [_member(font, group) for group in groups] for font in chosen}
    seen = tuple(font for font in chosen if font not in test_fonts)
    generator = runtime.Run(seed).generator(0)
    drawn: list[tuple[int, int, str, str]] = []  # place in its class, class, font, part
    start = 0
    for part, count in _glyph_counts(per_class, validation, test).items():
        here = tuple(test_fonts) if test_fonts and part == "test" else seen
        for label, group in enumerate(groups):
            usable = [font for font in here if members[font][label]]
            if count and not usable:
                raise ValueError(
                    f"no font of the {part} split has {group[0]!r}; they are: "
                    f"{', '.join(here) or 'none'}. Give it one that does, or leave the "
                    f"character out."
                )
            turns = torch.randperm(len(usable), generator=generator).tolist()
            drawn += [
                (start + j, label, usable[turns[j % len(usable)]], part) for j in range(count)
            ]
        start += count
    drawn.sort()  # classes take turns, so that the first rows of each part hold them all
    return Dataset(
        name="glyphs",
        classes=tuple(group[0] for group in groups),
        x=_draw([(font, members[font][label]) for _, label, font, _ in drawn], shift, seed, size),
        labels=torch.tensor([label for _, label, _, _ in drawn]),
        split=np.array([part for _, _, _, part in drawn]),
        ids=tuple(f"{groups[label][0]}/{font}/{j}" for j, label, font, _ in drawn),
        split_name=f"{'fonts kept for test' if test_fonts else 'random'}, seed {seed}",
    )


def _require_pixels(size: int) -> None:
    if size < 1:
        raise ValueError(f"size is a number of pixels from 1 on, found {size}.")


def _spelled(alphabets: str | Sequence[str]) -> list[str]:
    names = [alphabets] if isinstance(alphabets, str) else list(alphabets)
    if not names:
        raise ValueError(f"glyphs needs an alphabet; there are: {', '.join(ALPHABETS)}.")
    spelled: list[str] = []
    for name in names:
        if name not in ALPHABETS and len(name) != 1:
            raise ValueError(f"there is no alphabet {name!r}; there are: {', '.join(ALPHABETS)}.")
        spelled += ALPHABETS.get(name, (name,))
    return spelled


def _member(font: str, group: tuple[str, ...]) -> str:
    """The first of a group of look-alikes that the font has; empty if it has none."""
    return next((c for c in group if characters.has(font, c)), "")


def _glyph_counts(per_class: int, validation: float, test: float) -> dict[str, int]:
    """Images of each class in each part: one at least where a share is asked for."""
    if not (0 <= validation < 1 and 0 <= test < 1):
        raise ValueError(f"shares lie in 0..1, found validation={validation}, test={test}.")
    held = {
        name: max(1, round(share * per_class)) if share else 0
        for name, share in (("validation", validation), ("test", test))
    }
    counts = {"train": per_class - sum(held.values()), **held}
    if counts["train"] < 1:
        raise ValueError(
            f"per_class={per_class} should leave each class an image to train on, but "
            f"{held['validation']} are for validation and {held['test']} for the test. Ask for "
            f"more images, or for smaller shares."
        )
    return counts


def _draw(glyphs: Sequence[tuple[str, str]], shift: Shift | None, seed: int, size: int) -> Tensor:
    """(n, 1, size, size): the glyphs with these fonts and characters, each shifted on its own."""
    side = characters.MASK_SCALE * size
    number: dict[tuple[str, str], int] = {}
    rows = torch.tensor([number.setdefault(glyph, len(number)) for glyph in glyphs])
    masks = torch.stack([characters.mask(*glyph, side) for glyph in number])
    x = torch.empty(len(glyphs), 1, size, size)
    with runtime.keep_memory():
        for i, chunk in enumerate(rows.split(2048)):
            images = masks[chunk].unsqueeze(1).float() / 255
            x[2048 * i : 2048 * i + len(chunk)] = (shift or CLEAN).apply(
                images, runtime.Run(seed).generator(1, i), average=characters.MASK_SCALE
            )
    return x


def digits(*, seed: int = 0, size: int = GLYPH_SIZE) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, at the size and polarity of :func:`glyphs`.

    The originals are 8 × 8 with 17 levels of ink; they are interpolated to ``size`` (bilinearly, so
    nothing leaves 0..1). Of each class 100 images are drawn for training, 30 for validation, and
    the rest (44 to 53) are the test split. ``few(5, draw=3)`` is five labels a class.

    Args:
        seed: of the split.
        size: side in pixels.

    Returns:
        a data set with x of shape (n, 1, size, size), float32, ink 1 on paper 0, in
        scikit-learn's order with ids ``"digit 0000"`` to ``"digit 1796"``.

    Source: the test part of "Optical recognition of handwritten digits" (E. Alpaydin and
    C. Kaynak, UCI machine learning repository, 1998), written by 13 people. scikit-learn's copy
    does not say who wrote which digit, so the same hand is on all sides of the split, and the
    accuracy for a new writer may be lower.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits()
        >>> digits.train, digits.x.shape
        (train split: 1,000 examples, 10 classes, torch.Size([1797, 1, 16, 16]))
        >>> digits.few(5, draw=0).train
        train split: 50 examples, 10 classes
    """
    from sklearn.datasets import load_digits

    _require_pixels(size)
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target).long()
    generator = runtime.Run(seed).generator(0)
    split = np.full(len(labels), "test", dtype="<U10")
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
        split[rows[:100]], split[rows[100:130]] = "train", "validation"
    return Dataset(
        name="digits",
        classes=tuple("0123456789"),
        x=torch.nn.functional.interpolate(images, (size, size), mode="bilinear"),
        labels=labels,
        split=split,
        ids=tuple(f"digit {i:04d}" for i in range(len(labels))),
        split_name=f"100/30/rest per class, seed {seed}",
    )


# --- data sets made from others ----------------------------------------------------------------


def with_classes(data: Dataset, names: Sequence[str]) -> Dataset:
    """The examples of some classes alone, which are renumbered in the order of ``names``.

    Raises:
        ValueError: if a name is not a class of ``data``, or appears twice.

    Example:
        >>> import tlhelpers as tl
        >>> pair = tl.datasets.with_classes(tl.datasets.digits(), ["8", "3"])
        >>> pair.train
        train split: 200 examples, 2 classes
        >>> pair.train.ids[0], pair.train.y[0], pair.classes[0]
        ('digit 0003', tensor(1), '8')
    """
    names = tuple(names)
    if unknown := [name for name in names if name not in data.classes]:
        raise ValueError(f"{data.name} has no class {unknown[0]!r}; it has {_some(data.classes)}.")
    if len(set(names)) != len(names):
        raise ValueError(f"each class may be named once, found {names}.")
    old = torch.tensor([data.classes.index(name) for name in names])
    new = torch.full((len(data.classes),), -1)
    new[old] = torch.arange(len(names))
    rows = np.flatnonzero(new[data.labels].numpy() >= 0)
    return dataclasses.replace(
        data,
        classes=names,
        x=take(data.x, rows),
        labels=new[data.labels[torch.from_numpy(rows)]],
        split=data.split[rows],
        ids=tuple(data.ids[i] for i in rows),
        imagenet=None if data.imagenet is None else tuple(data.imagenet[i] for i in old.tolist()),
    )


def shuffled_labels(data: Dataset, seed: int) -> Dataset:
    """The same images with the labels of each split shuffled: there is nothing to generalise.

    Each split keeps how often a class occurs in it.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits()
        >>> shuffled = tl.datasets.shuffled_labels(digits, seed=0)
        >>> round(float((shuffled.train.y == digits.train.y).float().mean()), 1)
        0.1
    """
    generator = runtime.Run(seed).generator(0)
    labels = data.labels.clone()
    for part in PARTS:
        rows = torch.from_numpy(np.flatnonzero(data.split == part))
        labels[rows] = labels[rows[torch.randperm(len(rows), generator=generator)]]
    return dataclasses.replace(data, name=f"{data.name}, labels shuffled", labels=labels)


# --- images ------------------------------------------------------------------------------------


class Images:
    """A lazy sequence of image files: ``images[i]`` is read and decoded when asked for.

    ``images[i]`` is a (3, height, width) uint8 tensor, RGB, with its channels last in memory
    (which resizing and convolutions on a CPU prefer). Grayscale and CMYK become RGB,
    transparency is dropped, and a turn that the camera noted (EXIF) is applied.

    Args:
        source: where the files are: a :class:`Folder` or an :class:`Archive`.
        names: the files, in the order of the sequence; by default all image files of the source.
        boxes: for each file the box ``(x0, y0, x1, y1)`` to cut out, in stored pixels.
        size: side in pixels to which the largest centred square of each image is resized (with
            antialiasing), so that all have one size; by default images keep their own.

    Attributes:
        names: the files' names, in order.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (48, 32)).save(Path(folder, "a.png"))
        ...     Image.new("RGB", (30, 60)).save(Path(folder, "b.jpg"))
        ...     files = tl.datasets.Folder(folder)
        ...     print([tuple(image.shape) for image in tl.datasets.Images(files)])
        ...     print(tl.datasets.Images(files, size=16).stack().shape)
        [(3, 32, 48), (3, 60, 30)]
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        source: Source,
        names: Sequence[str] | None = None,
        *,
        boxes: Sequence[Box] | None = None,
        size: int | None = None,
    ) -> None:
        self.source = source
        self.names = tuple(filter(_is_image, source.names) if names is None else names)
        self.boxes = None if boxes is None else tuple(boxes)
        self.size = size
        if self.boxes is not None and len(self.boxes) != len(self.names):
            raise ValueError(f"{len(self.names)} images need as many boxes, not {len(self.boxes)}.")
        if size is not None and size < 1:
            raise ValueError(f"size is a number of pixels from 1 on, found {size}.")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        cut = ", cut to their boxes" if self.boxes is not None else ""
        resized = f", {self.size} × {self.size}" if self.size else ""
        return f"{len(self):,} images of {self.source.label}{cut}{resized}"

    def __getitem__(self, i: int) -> Tensor:
        """Image ``i``, (3, height, width) uint8.

        Raises:
            ValueError: if the file cannot be decoded whole, naming it.
        """
        name = self.names[i]
        box = None if self.boxes is None else self.boxes[i]
        try:
            image = decode(self.source.read(name), box=box)
        except ValueError as error:
            raise ValueError(f"{name} in {self.source.label} is unreadable: {error}.") from error
        return image if self.size is None else _square(image, self.size)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def read(self, i: int) -> bytes:
        """The bytes of file ``i`` as they are stored."""
        return self.source.read(self.names[i])

    def take(self, indices: Sequence[int]) -> Images:
        """The images at ``indices``, in that order; nothing is read."""
        boxes = None if self.boxes is None else [self.boxes[i] for i in indices]
        names = [self.names[i] for i in indices]
        return Images(self.source, names, boxes=boxes, size=self.size)

    def stack(self) -> Tensor:
        """All images as one (n, 3, height, width) uint8 tensor, decoded on all cores.

        Raises:
            ValueError: if there is no image, an image is unreadable, or their sizes differ.
        """
        if len(self) == 0:
            raise ValueError("no images to stack: at least one is needed.")
        first = self[0].permute(1, 2, 0).numpy()
        out = np.empty((len(self), *first.shape), dtype=np.uint8)

        def fill(i: int) -> None:
            pixels = self[i].permute(1, 2, 0).numpy() if i else first
            if pixels.shape != first.shape:
                raise ValueError(
                    f"images of one size are needed, but {self.names[0]} has {first.shape[0]} × "
                    f"{first.shape[1]} pixels (height × width) and {self.names[i]} has "
                    f"{pixels.shape[0]} × {pixels.shape[1]}. Load the data set with size=224, say, "
                    f"to resize them."
                )
            # NumPy copies in this thread; torch would wake all of its own for each image.
            out[i] = pixels

        with ThreadPoolExecutor(runtime.cores()) as pool:
            for _ in pool.map(fill, range(len(self))):
                pass  # errors surface here
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def digest(self) -> str:
        """sha256 over every file's bytes, the boxes and the size: what the pixels depend on."""
        whole = hashlib.sha256(repr((self.boxes, self.size)).encode())
        with ThreadPoolExecutor(runtime.cores()) as pool:
            hashes = pool.map(lambda i: hashlib.sha256(self.read(i)).digest(), range(len(self)))
            for part in hashes:
                whole.update(part)
        return whole.hexdigest()


def _square(image: Tensor, size: int) -> Tensor:
    # Cut, then resize: the other order would blow up a picture of 1 × 10,000 pixels.
    square = F.center_crop(image, [min(image.shape[1:])])
    return F.resize(square, [size, size], antialias=True)


def decode(data: bytes, *, box: Box | None = None) -> Tensor:
    """A JPEG, PNG or WebP file's bytes as a (3, height, width) uint8 RGB tensor.

    JPEG goes through libjpeg-turbo in its strict mode. torchvision and Pillow refuse a file
    that ends early too, but where bytes *within* the picture are damaged, or missing with the end
    mark in place, both return grey or garbled rows without an error. (A progressive JPEG that ends
    exactly between two of its passes, its end mark in place, is whole, only coarser.)

    Args:
        data: the file's bytes; the format is found from them, not from a name.
        box: ``(x0, y0, x1, y1)`` to cut out, in stored pixels, before any turn.

    Raises:
        ValueError: if the bytes are damaged, cut off, or in another format; or if the box lies
            outside the image.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> file = io.BytesIO()
        >>> Image.new("L", (60, 40), color=128).save(file, "JPEG")
        >>> tl.datasets.decode(file.getvalue()).shape
        torch.Size([3, 40, 60])
        >>> tl.datasets.decode(file.getvalue(), box=(0, 0, 10, 20)).shape
        torch.Size([3, 20, 10])
        >>> tl.datasets.decode(file.getvalue()[:-2])
        Traceback (most recent call last):
            ...
        ValueError: Premature end of JPEG file
    """
    if data[:2] == b"\xff\xd8":
        pixels, turn = _decode_jpeg(data)
    else:
        pixels, turn = _decode_with_pillow(data, "PNG", "WEBP")
    if box is not None:
        height, width, _ = pixels.shape
        x0, y0, x1, y1 = max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)
        if x0 >= x1 or y0 >= y1:
            raise ValueError(f"its box {box} leaves nothing of {width} × {height} pixels")
        pixels = pixels[y0:y1, x0:x1]
    return torch.from_numpy(np.ascontiguousarray(_TURNS[turn](pixels))).permute(2, 0, 1)


# EXIF orientation → what makes the stored pixels upright.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p[::-1].transpose(1, 0, 2),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p[:, ::-1].transpose(1, 0, 2),
}


def _decode_jpeg(data: bytes) -> tuple[np.ndarray, int]:
    """(height, width, 3) uint8, and the EXIF orientation."""
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        if _DAMAGE.match(str(error)):
            raise
        # The strict mode also minds what leaves the pixels alone (a revision number, say), and
        # TurboJPEG knows the usual chroma subsamplings only.
        return _decode_with_pillow(data, "JPEG")
    return pixels, _open_with_pillow(data, "JPEG")[1] if b"Exif\0\0" in data else 1


_DAMAGE = re.compile("Corrupt JPEG data: (?!bad ICC)|Premature end")  # libjpeg's words


def _decode_with_pillow(data: bytes, *formats: str) -> tuple[np.ndarray, int]:
    """The same for what is rarer, by Pillow, which knows all kinds of each format."""
    image, turn = _open_with_pillow(data, *formats)
    try:
        if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
            gray = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(gray[:, :, None], 3, axis=2), turn
        return np.array(image.convert("RGB")), turn
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def _open_with_pillow(data: bytes, *formats: str) -> tuple[Image.Image, int]:
    """The image, not decoded yet, and its EXIF orientation."""
    if not data:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        turn = image.getexif().get(0x0112, 1)
    except Image.UnidentifiedImageError:
        raise ValueError("it is not a whole JPEG, PNG or WebP file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    return image, turn if turn in _TURNS else 1


# --- where files lie ---------------------------------------------------------------------------


class Folder:
    """The files in a folder and in its folders, hidden ones left out.

    Args:
        path: the folder.

    Attributes:
        label: the folder's name.
        names: its files, as paths within it with ``/`` between the parts.
        folders: its folders, and those in them, likewise.

    Raises:
        FileNotFoundError: if there is no such folder.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as path:
        ...     Path(path, "cats").mkdir()
        ...     for name in ("cats/tom.jpg", "notes.txt", ".hidden"):
        ...         Path(path, name).touch()
        ...     folder = tl.datasets.Folder(path)
        >>> folder.names, folder.folders
        (('notes.txt', 'cats/tom.jpg'), ('cats',))
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.label = self.path.resolve().name
        names: list[str] = []
        folders: list[str] = []
        outer = ["", *(f"{name}/" for name in _visible(self.path, folders=True))]
        for within in outer:
            names += [within + name for name in _visible(self.path / within, folders=False)]
            folders += [within + name for name in _visible(self.path / within, folders=True)]
        self.names, self.folders = tuple(names), tuple(folders)

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        return (self.path / name).read_bytes()


def _visible(path: Path, *, folders: bool) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() == folders and _is_visible(e.name))


class Archive:
    """An uncompressed tar whose files are read in place, from any thread.

    Nothing is unpacked: there is one copy on disk, and no half-unpacked folder after an
    interruption. An archive in which something would land outside the folder it is unpacked to is
    refused all the same, since nobody makes one by accident.

    Args:
        path: the tar.

    Attributes:
        label: the file's name.
        names: its files, as paths within it with ``/`` between the parts.
        folders: its folders, likewise.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is compressed, no tar, cut off, or holds a link, a device, a name
            twice, or a path that leads out.

    Example:
        >>> import io
        >>> import tarfile
        >>> import tempfile
        >>> from pathlib import Path
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "cats.tar")
        ...     with tarfile.open(path, "w") as tar:
        ...         entry = tarfile.TarInfo("cats/tom.jpg")
        ...         entry.size = 3
        ...         tar.addfile(entry, io.BytesIO(b"tom"))
        ...     archive = tl.datasets.Archive(path)
        ...     print(archive.names, archive.read("cats/tom.jpg"))
        ('cats/tom.jpg',) b'tom'
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.label = self.path.name
        members = _members(self.path)
        self.folders = tuple(_clean(m.name) for m in members if m.isdir())
        self._where = {_clean(m.name): (m.offset_data, m.size) for m in members if m.isreg()}
        self.names = tuple(name for name in self._where if _is_visible(name))
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens the file for itself; the list of members goes with it.
        return {k: v for k, v in vars(self).items() if k not in ("_descriptor", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            ValueError: if the archive has become shorter since it was opened.
        """
        offset, size = self._where[name]
        if hasattr(os, "pread"):
            data = os.pread(self._descriptor, size, offset)
        else:  # Windows
            with self._lock:
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                data = os.read(self._descriptor, size)
        if len(data) < size:
            raise ValueError(f"{len(data):,} of its {size:,} bytes are in the archive")
        return data


_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh91A": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


def _members(path: Path) -> list[tarfile.TarInfo]:
    """The members of a tar, if it is whole and harmless."""
    with path.open("rb") as file:
        start = file.read(6)
        if kind := next((k for magic, k in _COMPRESSED.items() if start.startswith(magic)), None):
            raise ValueError(
                f"{path.name} is compressed ({kind}), so its files cannot be read in place. Unpack "
                f"it and pass the folder, or make it an uncompressed tar."
            )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                members = tar.getmembers()
        except tarfile.TarError as error:
            raise ValueError(
                f"{path.name} is not a tar archive, or not all of it ({error}). Fetch it again."
            ) from error
        last = members[-1] if members else None
        file.seek(0 if last is None else last.offset_data + -(-last.size // 512) * 512)
        # Python's tarfile takes a broken header, or the file's end, for the archive's end.
        if file.read(512) != bytes(512):
            raise ValueError(
                f"{path.name} has no end mark after {len(members):,} members: it is cut off or "
                f"damaged. Fetch it again."
            )
    seen: set[str] = set()
    for member in members:
        _require_harmless(member, path, seen)
    return members


def _require_harmless(member: tarfile.TarInfo, path: Path, seen: set[str]) -> None:
    name, why = member.name, None
    if not (member.isreg() or member.isdir()) or member.issparse():
        why = "is neither a plain file nor a folder"
    elif name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or name[1:2] == ":":
        why = "would land outside the folder it is unpacked to"
    elif member.isreg() and _clean(name) in seen:
        why = "is there twice"
    if why is not None:
        raise ValueError(
            f"{path.name} was not read: its member {name!r} {why}. Fetch the archive from a place "
            f"that you trust."
        )
    seen.add(_clean(name))


def _clean(name: str) -> str:
    return name.removeprefix("./").rstrip("/") or "."


def _is_visible(name: str) -> bool:
    return not name.rpartition("/")[2].startswith(".")


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


# --- Stanford Dogs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Remote:
    """A file on the data set's own server."""

    name: str
    size: int
    sha256: str

    @property
    def url(self) -> str:
        return f"http://vision.stanford.edu/aditya86/ImageNetDogs/{self.name}"


# The images come last: where they are, the rest is there too.
DOGS_FILES = (
    _Remote(
        "lists.tar", 481_280, "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c"
    ),
    _Remote(
        "annotation.tar",
        21_852_160,
        "662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd",
    ),
    _Remote(
        "images.tar",
        793_579_520,
        "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
    ),
)

TRAIN, VALIDATION, TEST = 90, 10, 48  # images a breed, where the official lists are absent
OFFICIAL_SPLIT = "official (90/10/rest)"
HASHED_SPLIT = f"sha256 {TRAIN}/{VALIDATION}/{TEST}"


def stanford_dogs(
    path: Path | str | None = None,
    *,
    lists: Path | str | Literal[False] | None = None,
    crop: bool = False,
    size: int | None = None,
    download: bool = False,
) -> Dataset:
    """Stanford Dogs: photographs of 120 breeds, all of them taken from ImageNet.

    With the official lists, the official split: the last 10 images a breed of its training part
    are held out for validation, rows stand in the order of ``train_list.mat`` and then
    ``test_list.mat``, so that ``few(k)`` is the official few-sample rule (the first k of each
    class). Without them, our own split: per breed by the sha256 of the file's base name, ascending,
    90 for training, 10 for validation, and up to 48 of the rest for testing. The name of
    the split is on every result.

    Args:
        path: an uncompressed tar that holds ``Images/``; the folder ``Images``; or a folder that
            holds ``images.tar``, one ``stanford_dogs*.tar``, or ``Images``. By default these are
            looked for in the folder that ``TLHELPERS_DATA`` names, in its subfolder
            ``stanford_dogs``, and where ``download=True`` puts them.
        lists: ``lists.tar``, or a folder with ``train_list.mat`` and ``test_list.mat``. By default
            they are looked for next to the images; False leaves them out.
        crop: cut each photograph to its annotated box (where several dogs are annotated, to the
            first); needs ``annotation.tar`` or the folder ``Annotation`` next to the images.
        size: side in pixels to which the largest centred square is resized, see :class:`Images`.
        download: where no path is given and no images are found, fetch the three official
            archives (816 MB) into the cache folder.

    Returns:
        a data set whose ids are paths below ``Images/``. Where it has exactly the 120 breeds,
        ``imagenet`` is :data:`DOGS_IMAGENET`.

    Raises:
        FileNotFoundError: if images, lists or annotations that are needed are not there.
        ValueError: if an archive is damaged or unsafe, a breed is empty or too small, or listed
            images or annotations are missing.

    Source: Khosla, Jayadevaprakash, Yao and Fei-Fei, "Novel dataset for fine-grained image
    categorization", workshop on fine-grained visual categorization, CVPR 2011.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for breed in ("n02110958-pug", "n02088364-beagle"):
        ...         Path(folder, "Images", breed).mkdir(parents=True)
        ...         for i in range(150):
        ...             picture = Path(folder, "Images", breed, f"{breed[:9]}_{i}.jpg")
        ...             Image.new("RGB", (8, 8)).save(picture)
        ...     dogs = tl.datasets.stanford_dogs(folder)
        >>> dogs.classes, len(dogs.train), len(dogs.test), dogs.split_name
        (('Beagle', 'Pug'), 180, 96, 'sha256 90/10/48')
    """
    location = _locate_dogs(path, download=download)
    homes = _homes(location)
    photos = _find_photos(location)
    listed = _read_lists(lists, homes)
    rows = _hashed_rows(photos) if listed is None else _official_rows(photos, *listed)
    ids = [i for i, _ in rows]
    breeds = sorted({_folder(i) for i in ids})
    number = {breed: label for label, breed in enumerate(breeds)}
    wnids = "\n".join(breed.partition("-")[0] for breed in breeds)
    is_whole = hashlib.sha256(wnids.encode()).hexdigest() == _WNIDS_SHA256
    return Dataset(
        name="stanford_dogs_cropped" if crop else "stanford_dogs",
        classes=tuple(_breed_name(breed) for breed in breeds),
        x=Images(
            photos.source,
            [photos.files[i] for i in ids],
            boxes=_read_boxes(ids, homes) if crop else None,
            size=size,
        ),
        labels=torch.tensor([number[_folder(i)] for i in ids]),
        split=np.array([part for _, part in rows]),
        ids=tuple(ids),
        split_name=HASHED_SPLIT if listed is None else OFFICIAL_SPLIT,
        imagenet=DOGS_IMAGENET if is_whole else None,
    )


_WNID_FOLDER = re.compile(r"n\d{8}-.+")
# Of the 120 breeds' WordNet ids, one a line.
_WNIDS_SHA256 = "c7f76b7e647fe4fbb0b8c35a30eb92eaf3f438f4addfaf8c88b56632b8367ace"

Rows = list[tuple[str, str]]  # id and part of each image, in the data set's order


def _folder(path: str) -> str:
    """The folder that a file lies in: ``a/b/c.jpg`` → ``b``."""
    return path.rpartition("/")[0].rpartition("/")[2]


def _breed_name(folder: str) -> str:
    """``n02090721-Irish_wolfhound`` → ``Irish wolfhound``."""
    name = folder.partition("-")[2].replace("_", " ")
    return name[0].upper() + name[1:]


@dataclass(frozen=True)
class _Photos:
    """The images of a source that lie in folders named like breeds.

    Attributes:
        source: where they lie.
        files: id (``n02085620-Chihuahua/n02085620_10074.jpg``) → name in the source.
    """

    source: Source
    files: dict[str, str]


def _find_photos(location: Path) -> _Photos:
    source: Source = Folder(location) if location.is_dir() else Archive(location)
    names = [n for n in source.names if _is_image(n) and _WNID_FOLDER.fullmatch(_folder(n))]
    files = {"/".join(name.split("/")[-2:]): name for name in names}
    if not files:
        raise ValueError(
            f"{source.label} holds no photographs of Stanford Dogs: expected files like "
            f"Images/n02085620-Chihuahua/n02085620_10074.jpg, found {len(source.names):,} files, "
            f"none of that kind."
        )
    if len(files) < len(names):
        twice = sorted(set(names) - set(files.values()))
        raise ValueError(
            f"{source.label} holds {len(twice):,} photographs in two places ({_some(twice)}): "
            f"keep one folder Images/."
        )
    folders = {folder.rpartition("/")[2] for folder in source.folders}
    empty = sorted(folders - {_folder(name) for name in names})
    if empty := [folder for folder in empty if _WNID_FOLDER.fullmatch(folder)]:
        raise ValueError(
            f"{source.label} has {len(empty)} breeds without a photograph ({_some(empty)}). Fetch "
            f"them again, or remove the empty folders to go without these breeds."
        )
    return _Photos(source, files)


def _hashed_rows(photos: _Photos) -> Rows:
    """Our split: a file's place depends on its name alone, so anybody can redo it."""
    breeds: dict[str, list[str]] = {}
    for i in photos.files:
        breeds.setdefault(_folder(i), []).append(i)
    least = TRAIN + VALIDATION + 1
    if small := [f"{_breed_name(b)} has {len(i)}" for b, i in breeds.items() if len(i) < least]:
        raise ValueError(
            f"{photos.source.label}: the split {HASHED_SPLIT} needs {least} images of each breed "
            f"or more, but {_some(small)}. Fetch the data set again; for pictures of your own "
            f"use image_folder."
        )
    parts = ["train"] * TRAIN + ["validation"] * VALIDATION + ["test"] * TEST
    return [
        row
        for breed in sorted(breeds)
        for row in zip(sorted(breeds[breed], key=_name_hash), parts, strict=False)
    ]


def _name_hash(path: str) -> str:
    return hashlib.sha256(path.rpartition("/")[2].encode()).hexdigest()


def _official_rows(photos: _Photos, train: list[str], test: list[str]) -> Rows:
    """The official split, with the last images a breed of the training part for validation."""
    if missing := [i for i in train + test if i not in photos.files]:
        raise ValueError(
            f"{len(missing):,} of {len(train) + len(test):,} photographs on the official lists are "
            f"not in {photos.source.label} ({_some(missing)}). Complete it, or pass lists=False "
            f"for the split {HASHED_SPLIT}."
        )
    left: dict[str, int] = {}  # how many of its breed come after an image, counted backwards
    parts = []
    for i in reversed(train):
        after = left[_folder(i)] = left.get(_folder(i), -1) + 1
        parts.append("validation" if after < VALIDATION else "train")
    if small := [_breed_name(breed) for breed, after in left.items() if after < VALIDATION]:
        raise ValueError(
            f"{VALIDATION} images a breed of train_list.mat are held out for validation, which "
            f"leaves none of {_some(small)} for training. Fetch the official lists again."
        )
    return [*zip(train, reversed(parts), strict=True), *((i, "test") for i in test)]


LISTS = ("train_list.mat", "test_list.mat")


def _read_lists(
    lists: Path | str | Literal[False] | None, homes: Sequence[Path]
) -> tuple[list[str], list[str]] | None:
    """The official training and test files in their order; None where there are no lists."""
    if lists is False:
        return None
    if lists is not None:
        places = [Path(lists).expanduser()]
    else:
        usual = [place for home in homes for place in (home / "lists.tar", home / "lists", home)]
        places = [place for place in usual if place.exists()]
    for place in places:
        if not place.exists():
            raise FileNotFoundError(
                f"lists should be lists.tar or a folder with {' and '.join(LISTS)}, but {place} "
                f"is not there. Correct it, or pass lists=False for the split {HASHED_SPLIT}."
            )
        found = _files_named(place, LISTS)
        if len(found) == len(LISTS):
            train, test = (_read_list(found[name], name) for name in LISTS)
            return train, test
        if found or place not in homes:
            lost = " and no ".join(name for name in LISTS if name not in found)
            raise FileNotFoundError(
                f"the official split needs {' and '.join(LISTS)}, but {place} has no {lost}. Fetch "
                f"lists.tar again, or pass lists=False for the split {HASHED_SPLIT}."
            )
    return None


def _files_named(place: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Those of the named files that a tar holds, or a folder itself."""
    if place.is_dir():
        return {n: (place / n).read_bytes() for n in names if (place / n).is_file()}
    archive = Archive(place)
    bases = {full.rpartition("/")[2]: full for full in archive.names}
    return {n: archive.read(bases[n]) for n in names if n in bases}


def _read_list(data: bytes, name: str) -> list[str]:
    file: Any = io.BytesIO(data)
    try:
        cells = scipy.io.loadmat(file, variable_names=["file_list"], squeeze_me=True)
        return [str(cell) for cell in np.atleast_1d(cells["file_list"])]
    except Exception as error:  # loadmat raises whatever a damaged file runs it into
        raise ValueError(
            f"{name} is not a MATLAB file with the variable file_list "
            f"({type(error).__name__}: {error}). Fetch lists.tar again."
        ) from error


def _read_boxes(ids: Sequence[str], homes: Sequence[Path]) -> list[Box]:
    """The first annotated box of each image; the files are named like the images, without .jpg."""
    places = [
        h / n for h in homes for n in ("annotation.tar", "Annotation", "annotations/Annotation")
    ]
    place = next((place for place in places if place.exists()), None)
    if place is None:
        raise FileNotFoundError(
            f"crop=True needs the annotated boxes, but neither annotation.tar nor the folder "
            f"Annotation lies next to the photographs, in {_some([str(h) for h in homes])}. Put "
            f"it there, or leave crop out."
        )
    source: Source = Folder(place) if place.is_dir() else Archive(place)
    files = {"/".join(name.split("/")[-2:]): name for name in source.names}
    keys = [i.rpartition(".")[0] for i in ids]
    if missing := [key for key in keys if key not in files]:
        raise ValueError(
            f"{len(missing):,} of {len(ids):,} photographs have no annotation in {place.name} "
            f"({_some(missing)}). Complete it, or leave crop out."
        )
    return [_box(source.read(files[key]), key) for key in keys]


def _box(xml: bytes, name: str) -> Box:
    try:
        first = ElementTree.fromstring(xml).find("object/bndbox")
        if first is None:
            raise ValueError("no object/bndbox")
        x0, y0, x1, y1 = (int(first.findtext(tag, "")) for tag in ("xmin", "ymin", "xmax", "ymax"))
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(
            f"the annotation {name} holds no box (object/bndbox with xmin, ymin, xmax and ymax as "
            f"whole numbers): {error}. Fetch annotation.tar again, or leave crop out."
        ) from error
    return x0, y0, x1, y1


def _locate_dogs(path: Path | str | None, *, download: bool) -> Path:
    """The tar, or the folder of breeds."""
    if path is not None:
        path = Path(path).expanduser()
        if path.is_file():
            return path
        if path.is_dir() and (found := _images_in(path)):
            return found
        kind = "a folder without them" if path.is_dir() else "not there"
        raise FileNotFoundError(
            f"path should be an uncompressed tar of Stanford Dogs, the folder Images, or a folder "
            f"that holds {_DOGS_NAMES}; {path} is {kind}."
        )
    data, cache = runtime.data_folder(), runtime.cache_folder() / "stanford_dogs"
    for folder in [data, data / "stanford_dogs", cache] if data else [cache]:
        if folder.is_dir() and (found := _images_in(folder)):
            return found
    if download:
        for file in DOGS_FILES:
            fetch(file.url, path=cache / file.name, size=file.size, sha256=file.sha256)
        return cache / "images.tar"
    looked = f"in {data}, its subfolder stanford_dogs, and {cache}" if data else f"in {cache}"
    unset = "" if data else f" ({runtime.DATA_VARIABLE} is not set)"
    raise FileNotFoundError(
        f"no photographs of Stanford Dogs found: looked for {_DOGS_NAMES} {looked}{unset}. Pass "
        f"path= if you have them; or put them into the folder that {runtime.DATA_VARIABLE} names; "
        f"or pass download=True to fetch {sum(f.size for f in DOGS_FILES) / 1e6:.0f} MB from "
        f"Stanford. The banks of features that the package ships need none of this."
    )


_DOGS_NAMES = "images.tar, stanford_dogs*.tar or Images/"


def _images_in(folder: Path) -> Path | None:
    """The images of the data set in a folder, in any layout that they come in."""
    if any(_WNID_FOLDER.fullmatch(inner.name) for inner in folder.iterdir() if inner.is_dir()):
        return folder
    tars = sorted(folder.glob("stanford_dogs*.tar"))
    if len(tars) > 1 and not (folder / "images.tar").is_file():
        raise ValueError(
            f"{folder} holds several archives ({_some([t.name for t in tars])}). Name one as path=."
        )
    places = [folder / "images.tar", *tars, folder / "Images", folder / "images" / "Images"]
    return next((place for place in places if place.exists()), None)


def _homes(location: Path) -> list[Path]:
    """Where lists and annotations may lie: next to the images, or next to ``images/Images``."""
    parent = location.parent
    inside = [location] if location.is_dir() else []
    return [*inside, parent, *([parent.parent] if parent.name == "images" else [])]


# --- chest X-rays ------------------------------------------------------------------------------

PNEUMONIA_MD5: Mapping[int, str] = MappingProxyType(
    {
        28: "28209eda62fecd6e6a2d98b1501bb15f",
        64: "8f4eceb4ccffa70c672198ea285246c6",
        128: "05b46931834c231683c68f40c47b2971",
        224: "d6a3c71de1b945ea11211b03746c1fe1",
    }
)
"""The four official files of PneumoniaMNIST, by the side of their films in pixels."""

PNEUMONIA_CLASSES = ("normal", "pneumonia")
PNEUMONIA_SPLIT = "official (4,708/524/624)"
_PNEUMONIA_URL = "https://zenodo.org/records/10519652/files"
_PNEUMONIA_MEGABYTES = {28: 4, 64: 21, 128: 76, 224: 214}


def pneumonia_mnist(
    path: Path | str | None = None, *, size: int = 28, download: bool = False
) -> Dataset:
    """PneumoniaMNIST: chest X-ray films of children, normal or with pneumonia.

    The official file is known by its checksum. Any other file in its format, such as a part of
    it, is taken by path alone: the data set then has the file's name, and the split says that it
    is not the official one, so that no result on it passes for one on the official file.

    Args:
        path: a file of the official format (``.npz`` with ``train_images``, ``train_labels`` and
            so on), or a folder that holds the official file. By default it is looked for in the
            folder that ``TLHELPERS_DATA`` names, in its subfolder ``pneumonia_mnist``, and where
            ``download=True`` puts it.
        size: side of the films in pixels: 28, 64, 128 or 224. Each is a file of its own.
        download: where no path is given and the file is not found, fetch it from Zenodo into the
            cache folder (4, 21, 76 or 214 MB).

    Returns:
        a data set with x of shape (n, 3, size, size), uint8, its three channels the same; and ids
        such as ``"train/0017"``, the part and the place in the file. At 224 pixels a part takes
        up to 0.7 GB of memory when it is used.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file of an official name has another checksum; or if a file has not the
            format, holds films of another size, or cannot be read whole.

    Source: films of children of one to five years from Guangzhou Women and Children's Medical
    Center (Kermany et al. 2018); reduced and split by Yang et al. (2023), MedMNIST v2, CC BY 4.0.
    Not for clinical use.

    >>> pneumonia_mnist("nowhere.npz")
    Traceback (most recent call last):
    ...
    FileNotFoundError: path should be a file of PneumoniaMNIST or a folder, found nowhere.npz.
    """
    if size not in PNEUMONIA_MD5:
        sizes = ", ".join(map(str, PNEUMONIA_MD5))
        raise ValueError(f"PneumoniaMNIST has films of {sizes} pixels, found size={size}.")
    file = _locate_pneumonia(path, size, download=download)
    official = _is_official(file, size)
    films, labels = _read_pneumonia(file, size)
    parts = [part for part, y in labels.items() for _ in y]
    return Dataset(
        name=_pneumonia_name(size).removesuffix(".npz") if official else file.stem,
        classes=PNEUMONIA_CLASSES,
        x=torch.from_numpy(np.concatenate(list(films.values())))[:, None].expand(-1, 3, -1, -1),
        labels=torch.from_numpy(np.concatenate(list(labels.values()))),
        split=np.array(parts),
        ids=tuple(f"{part}/{i:04d}" for part, y in labels.items() for i in range(len(y))),
        split_name=PNEUMONIA_SPLIT if official else f"of {file.name}, not the official file",
    )


def _pneumonia_name(size: int) -> str:
    return "pneumoniamnist.npz" if size == 28 else f"pneumoniamnist_{size}.npz"


def _locate_pneumonia(path: Path | str | None, size: int, *, download: bool) -> Path:
    name = _pneumonia_name(size)
    if path is not None:
        path = Path(path).expanduser()
        if path.is_file():
            return path
        if not path.is_dir():
            raise FileNotFoundError(
                f"path should be a file of PneumoniaMNIST or a folder, found {path}."
            )
        folders = [path]
    else:
        data, cache = runtime.data_folder(), runtime.cache_folder() / "pneumonia_mnist"
        folders = [data, data / "pneumonia_mnist", cache] if data else [cache]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    if download and path is None:
        url = f"{_PNEUMONIA_URL}/{name}?download=1"
        return fetch(url, path=folders[-1] / name, md5=PNEUMONIA_MD5[size])
    looked = " and ".join(str(folder) for folder in folders)
    unset = "" if path or runtime.data_folder() else f" ({runtime.DATA_VARIABLE} is not set)"
    others = [p.name for folder in folders for p in sorted(folder.glob("pneumoniamnist*.npz"))]
    hint = f" There is {_some(others)}: to use a file, pass it as path=." if others else ""
    raise FileNotFoundError(
        f"no {name} found in {looked}{unset}.{hint} Pass path= if you have the file elsewhere; or "
        f"put it into the folder that {runtime.DATA_VARIABLE} names; or pass download=True to "
        f"fetch {_PNEUMONIA_MEGABYTES[size]} MB from Zenodo. The banks of features that the "
        f"package ships need none of this."
    )


def _is_official(file: Path, size: int) -> bool:
    """Whether a file is the official one; one that bears its name has to be."""
    found, expected = pooch.file_hash(str(file), alg="md5"), PNEUMONIA_MD5[size]
    if found != expected and file.name == _pneumonia_name(size):
        raise ValueError(
            f"{file} has the name of the official file, but another content: its md5 is {found}, "
            f"expected {expected}. Fetch it again; or, if it is a part that was made on purpose, "
            f"rename it and pass it as path=."
        )
    return found == expected


def _read_pneumonia(file: Path, size: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Films (n, size, size) uint8 and labels (n,) int64 of each part."""
    films, labels = {}, {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            for part, key in zip(PARTS, ("train", "val", "test"), strict=True):
                films[part], labels[part] = arrays[f"{key}_images"], arrays[f"{key}_labels"]
    except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{file.name} should be a whole file of PneumoniaMNIST, an .npz with train_images, "
            f"train_labels, val_images and so on ({type(error).__name__}: {error}). Fetch it again."
        ) from error
    for part in PARTS:
        x, y = films[part], labels[part]
        if x.dtype != np.uint8 or x.ndim != 3 or x.shape[1:] != (size, size):
            raise ValueError(
                f"{file.name}: the {part} films should be uint8 of shape (n, {size}, {size}), "
                f"found {x.dtype} of shape {x.shape}. Pass the size= that the file has."
            )
        if y.dtype.kind not in "iu" or y.size != len(x) or not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"{file.name}: the {part} labels should be {len(x)} integers, 0 or 1, found "
                f"{y.dtype} of shape {y.shape}. Fetch the file again."
            )
        labels[part] = y.reshape(-1).astype(np.int64)
    return films, labels


# --- folders of one's own ----------------------------------------------------------------------


def image_folder(
    path: Path | str,
    *,
    train: float = 0.6,
    validation: float = 0.2,
    name: str | None = None,
    size: int | None = None,
) -> Dataset:
    """Your own pictures: a folder with one folder a class, the folder's name being the class.

    Within a class pictures are ordered by the sha256 of their file name, so that the split looks
    random, is the same on every machine, and hardly changes when a picture is added. Near-copies
    of one picture (frames of a film, say) can then lie on both sides of it: keep only one of
    them.

    Args:
        path: the folder. JPEG, PNG and WebP files are read; hidden files are left out.
        train: share of each class for training.
        validation: share for validation; the rest is for testing. Each gets one picture at least.
        name: the data set's name; by default the folder's.
        size: side in pixels to which the largest centred square is resized, see :class:`Images`.

    Returns:
        a data set with the classes in alphabetical order and ids like ``cats/tom.jpg``.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the shares are not shares, there are fewer than two classes, a class has
            fewer than three pictures, or pictures lie where they would be overlooked.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cats", "dogs"):
        ...         Path(folder, name).mkdir()
        ...         for i in range(5):
        ...             Image.new("RGB", (48, 32)).save(Path(folder, name, f"{i}.png"))
        ...     pets = tl.datasets.image_folder(folder, name="pets", size=16)
        ...     print(pets)
        ...     print(pets.train.ids[0], pets.train.x.stack().shape)
        Dataset 'pets': 2 classes; train 6, validation 2, test 2; split 'sha256 60%/20%/rest'
        cats/0.png torch.Size([6, 3, 16, 16])
    """
    path = Path(path).expanduser()
    if not (train > 0 and validation > 0 and train + validation < 1):
        raise ValueError(
            f"train and validation are shares above 0 that leave something for testing, found "
            f"{train} and {validation}."
        )
    if not path.is_dir():
        raise FileNotFoundError(f"path should be a folder with one folder a class, found {path}.")
    source = Folder(path)
    _require_one_level(source)
    members: dict[str, list[str]] = {folder: [] for folder in source.folders}
    for file in source.names:
        if _is_image(file):
            members[_folder(file)].append(file)
    if small := [f"{c!r} has {len(files)}" for c, files in members.items() if len(files) < 3]:
        raise ValueError(
            f"each class needs 3 pictures or more, for training, validation and testing, but "
            f"{_some(small)}. Add pictures, or remove the folder."
        )
    if len(members) < 2:
        raise ValueError(f"{path} should hold 2 classes (folders) or more, found {len(members)}.")
    rows = [
        (file, part, label)
        for label, folder in enumerate(sorted(members))
        for file, part in zip(
            sorted(members[folder], key=_name_hash),
            _shares(len(members[folder]), train, validation),
            strict=True,
        )
    ]
    return Dataset(
        name=path.resolve().name if name is None else name,
        classes=tuple(sorted(members)),
        x=Images(source, [file for file, _, _ in rows], size=size),
        labels=torch.tensor([label for _, _, label in rows]),
        split=np.array([part for _, part, _ in rows]),
        ids=tuple(file for file, _, _ in rows),
        split_name=f"sha256 {train:.0%}/{validation:.0%}/rest",
    )


def _shares(n: int, train: float, validation: float) -> list[str]:
    """The parts of n >= 3 examples in a row, each with one at least.

    >>> [_shares(n, 0.6, 0.2).count("train") for n in (3, 4, 5, 10)]
    [1, 2, 3, 6]
    """
    for_train = min(max(round(train * n), 1), n - 2)
    for_validation = min(max(round(validation * n), 1), n - for_train - 1)
    parts = ["train"] * for_train + ["validation"] * for_validation
    return parts + ["test"] * (n - len(parts))


def _require_one_level(source: Folder) -> None:
    """Refuse what would be overlooked: pictures outside the class folders, or in other formats."""
    if deep := [folder for folder in source.folders if "/" in folder]:
        raise ValueError(
            f"{source.label} should hold one folder a class and no folders within those, found "
            f"{_some(deep)}. Move the pictures up, or name the folder one level further down."
        )
    if loose := [file for file in source.names if "/" not in file and _is_image(file)]:
        raise ValueError(
            f"{len(loose)} pictures lie in {source.label} itself ({_some(loose)}). Move each to "
            f"the folder of its class."
        )
    if other := [file for file in source.names if file.lower().endswith(OTHER_PICTURES)]:
        raise ValueError(
            f"{len(other)} pictures in {source.label} are of a kind that is not read here "
            f"({_some(other)}). Convert them to JPEG, PNG or WebP, or move them away."
        )


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many, in words."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")
