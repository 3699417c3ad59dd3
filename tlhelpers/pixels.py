"""A cache of photographs: decoded once to squares of uint8, kept in one file, mapped into memory.

Training meets each photograph many times and decoding takes longer than a small network's step.
The squares of a whole data set fit a disk and often a memory: 17,760 images of 224 × 224 pixels
take 2.7 GB. Random crops, flips and colours are ``augment.PhotoAugment``'s.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from tlhelpers import runtime
from tlhelpers.splits import Dataset, positions

if sys.platform != "win32":
    import fcntl

FORMAT = "tlhelpers-pixels-1"
CHUNK = 64  # images between two entries in the journal: what an interruption can lose per core

_HEADER = 4096  # bytes before the pixels, so that they start with a page of memory


class Source(Protocol):
    """A sequence of images that are decoded when asked for, such as ``datasets.Images``."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Tensor:
        """Image ``i``, (3, height, width) uint8; ``ValueError`` if it cannot be read."""
        ...

    def digest(self) -> str:
        """What the pixels depend on, as a hash."""
        ...


class PixelCache:
    """Square uint8 images in a file that is mapped into memory; make one with :meth:`of`.

    A lazy sequence as :class:`~tlhelpers.splits.Split` takes it. :meth:`take` gives a view of the
    same file. Each image is checked against its stored checksum when it is first read, which
    costs about a tenth of a millisecond at 224 × 224.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i, colour in enumerate(["red", "green", "blue"] * 2):
        ...         place = Path(folder) / "ab"[i % 2]
        ...         place.mkdir(exist_ok=True)
        ...         Image.new("RGB", (600, 400), colour).save(place / f"{colour}.png")
        ...     data = tl.datasets.image_folder(folder)
        ...     cache = tl.pixels.PixelCache.of(data.x, size=224)
        >>> cache
        6 cached images, 224 × 224, 0.9 MB
        >>> cache.rows([0, 2]).shape
        torch.Size([2, 3, 224, 224])
    """

    def __init__(self, file: _File, rows: np.ndarray) -> None:
        self._file = file
        self._rows = rows

    @classmethod
    def of(cls, images: Source, *, size: int = 224) -> PixelCache:
        """Decode images to squares, or find the file in which an earlier call did.

        The shorter side becomes ``size`` pixels, with antialiasing, and the centre is cut out: what
        ``models.Preprocess(resize=size, crop=size).geometry`` does. All cores decode. The file lies
        in the cache folder under a key made from the images' digest and the size, so other images,
        another order or other bytes make another file; finding the key reads all source files
        once. An interrupted call continues where it stopped. A second process that wants the same
        file waits for the first.

        Args:
            images: ``datasets.Images``, another cache, or any other such sequence with a digest.
            size: side of the squares in pixels.

        Raises:
            ValueError: if images cannot be read (all of them are named; :func:`pixel_cache` can
                leave them out), there are none, or the file in the cache is damaged.
            TypeError: if ``images`` is no such sequence.
            OSError: if the disk is full; what was done before is kept.
        """
        file = _find_or_make(images, size)
        if file.unread:
            names = getattr(images, "names", range(len(images)))
            raise ValueError(
                f"{_list_unread(file, names, 'images')}. Repair or remove them, or leave them out "
                f"with datasets.pixel_cache(..., on_error='skip')."
            )
        return cls(file, np.arange(len(file.pixels)))

    @property
    def size(self) -> int:
        """The side of the squares in pixels."""
        return self._file.pixels.shape[1]

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape that :meth:`stack` would give: (n, 3, size, size)."""
        return len(self), 3, self.size, self.size

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        megabytes = len(self) * self._file.pixels[0].nbytes / 1e6
        return f"{len(self):,} cached images, {self.size} × {self.size}, {megabytes:,.1f} MB"

    def __reduce__(self) -> Any:
        # Workers of a data loader map the file for themselves; the pixels stay where they are.
        return _reopen, (self.path, self._rows)

    def __getitem__(self, i: int) -> Tensor:
        """Image ``i``, a (3, size, size) uint8 tensor of its own, channels last in memory."""
        return self.rows([i])[0]

    def rows(self, indices: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The images at ``indices``, in that order, copied into one tensor.

        Returns:
            (k, 3, size, size) uint8, channels last in memory.

        Raises:
            IndexError: if an index lies outside.
            ValueError: if an image is not what was stored; the message says what to do.
        """
        chosen = self._rows[positions(indices, len(self)).numpy()]
        self._file.check(chosen)
        return torch.from_numpy(self._file.pixels[chosen]).permute(0, 3, 1, 2)

    def take(self, indices: Sequence[int] | np.ndarray | Tensor) -> PixelCache:
        """The images at ``indices``, in that order, from the same file; nothing is read."""
        return PixelCache(self._file, self._rows[positions(indices, len(self)).numpy()])

    def stack(self) -> Tensor:
        """All images as one (n, 3, size, size) uint8 tensor, channels last in memory."""
        return self.rows(np.arange(len(self)))

    def digest(self) -> str:
        """sha256 of the file's key (source, size, format) and the rows chosen; nothing is read."""
        whole = hashlib.sha256(self.path.stem.encode())
        whole.update(self._rows.astype("<i8").tobytes())
        return whole.hexdigest()


def pixel_cache(data: Dataset, *, size: int = 224, on_error: str = "raise") -> Dataset:
    """The same data set with its photographs decoded to squares, see :meth:`PixelCache.of`.

    Split, labels, ids and the log of the test split are shared with ``data``. Cache a data set
    first and choose from it afterwards (``few``, ``subset``): a part of it would get a file of
    its own.

    Args:
        data: photographs, such as ``datasets.stanford_dogs()`` or ``datasets.image_folder(...)``.
        size: side of the squares in pixels.
        on_error: what to do with images that cannot be read: ``"raise"``, or ``"skip"`` to leave
            them out with a warning that names them.

    Raises:
        ValueError: if images cannot be read, or the file in the cache is damaged.
        TypeError: if ``x`` is not a lazy sequence of images with a digest.
        OSError: if the disk is full; what was done before is kept.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i, colour in enumerate(["red", "green", "blue"] * 2):
        ...         place = Path(folder) / "ab"[i % 2]
        ...         place.mkdir(exist_ok=True)
        ...         Image.new("RGB", (60, 40), colour).save(place / f"{colour}.png")
        ...     data = tl.pixels.pixel_cache(
        ...         tl.datasets.image_folder(folder, name="flags"), size=32
        ...     )
        >>> data
        Dataset 'flags': 2 classes; train 2, validation 2, test 2; split 'sha256 60%/20%/rest'
        >>> data.x
        6 cached images, 32 × 32, 0.0 MB
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', found {on_error!r}.")
    file = _find_or_make(data.x, size)
    cache = PixelCache(file, np.arange(len(data)))
    if not file.unread:
        return dataclasses.replace(data, x=cache)
    sentence = _list_unread(file, data.ids, f"images of {data.name}")
    if on_error == "raise":
        raise ValueError(
            f"{sentence}. Repair or remove them, or pass on_error='skip' to leave them out."
        )
    warnings.warn(f"{sentence}. They were left out.", stacklevel=2)
    cached = dataclasses.replace(data, x=cache)
    return cached.subset(np.array([i for i in range(len(data)) if i not in file.unread]))


def _list_unread(file: _File, names: Sequence[Any], what: str) -> str:
    listed = "; ".join(f"{names[i]}: {why}" for i, why in file.unread.items())
    return f"{len(file.unread)} of {len(file.pixels)} {what} cannot be read ({listed})"


def _find_or_make(images: Source, size: int) -> _File:
    if isinstance(images, Tensor) or not all(
        hasattr(images, name) for name in ("digest", "__len__", "__getitem__")
    ):
        raise TypeError(
            f"a cache is made of images that are decoded when asked for, with a digest, such as "
            f"datasets.Images; found {type(images).__name__}. Images in a tensor need no cache."
        )
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size is a number of pixels from 1 on, found {size!r}.")
    if len(images) == 0:
        raise ValueError("no images to cache: at least one is needed.")
    key = hashlib.sha256(json.dumps([FORMAT, images.digest(), size]).encode()).hexdigest()[:32]
    path = runtime.cache_folder() / "pixels" / f"{key}.safetensors"
    if not path.is_file():
        _make(images, size, path)
    _journal(path).unlink(missing_ok=True)  # left where a process was killed at the very end
    return _File.open(path)


# --- the file -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _File:
    """A finished cache: a safetensors file whose pixels start at byte 4096.

    Attributes:
        path: where it lies; its name is the key.
        pixels: (n, size, size, 3) uint8, mapped.
        checksums: (n,) CRC-32 of each image.
        checked: (n,) whether an image was compared with its checksum in this process.
        unread: why an image could not be read, by its number; its pixels are 0.
    """

    path: Path
    pixels: np.ndarray
    checksums: np.ndarray
    checked: np.ndarray
    unread: dict[int, str]

    @classmethod
    def open(cls, path: Path) -> _File:
        """Map a file, if its header and its length are right."""
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length != _HEADER - 8:
                    raise ValueError(f"its header has {length:,} bytes, not {_HEADER - 8:,}")
                header = json.loads(file.read(length))
                n, size = header["pixels"]["shape"][:2]
                start, middle = header["checksums"]["data_offsets"]
                end = header["unread"]["data_offsets"][1]
                if header != _header(n, size, end - middle):
                    raise ValueError("its header is not what was written")
                if (found := os.fstat(file.fileno()).st_size) != _HEADER + end:
                    raise ValueError(f"it has {found:,} bytes, not {_HEADER + end:,}")
                file.seek(_HEADER + start)
                checksums = np.frombuffer(file.read(middle - start), dtype="<u4")
                unread = json.loads(file.read(end - middle))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(_damaged(path, str(error))) from error
        pixels = np.memmap(path, np.uint8, mode="r", offset=_HEADER, shape=(n, size, size, 3))
        checked = np.zeros(n, dtype=bool)
        reasons = {int(i): why for i, why in unread.items()}
        return cls(path, np.asarray(pixels), checksums, checked, reasons)

    def check(self, rows: np.ndarray) -> None:
        """Compare images with their checksums, each once in a process."""
        for row in np.unique(rows[~self.checked[rows]]).tolist():
            if zlib.crc32(self.pixels[row]) != self.checksums[row]:
                raise ValueError(_damaged(self.path, f"image {row} is not what was stored"))
            self.checked[row] = True


def _reopen(path: Path, rows: np.ndarray) -> PixelCache:
    return PixelCache(_File.open(path), rows)


def _header(n: int, size: int, unread: int) -> dict[str, Any]:
    """What safetensors wants to know, with the length of the list of unread images."""
    pixels, checksums = n * size * size * 3, 4 * n
    ends = [0, pixels, pixels + checksums, pixels + checksums + unread]
    return {
        "__metadata__": {"format": FORMAT},
        "pixels": {"dtype": "U8", "shape": [n, size, size, 3], "data_offsets": ends[:2]},
        "checksums": {"dtype": "U32", "shape": [n], "data_offsets": ends[1:3]},
        "unread": {"dtype": "U8", "shape": [unread], "data_offsets": ends[2:]},
    }


def _damaged(path: Path, what: str) -> str:
    return (
        f"the cache of pixels {path} is damaged: {what}. Delete this file; the next call makes it "
        f"anew."
    )


# --- making it ----------------------------------------------------------------------------


def _journal(path: Path) -> Path:
    return path.with_suffix(".journal")


def _make(images: Source, size: int, path: Path) -> None:
    """Fill ``.part`` chunk by chunk on all cores, noting each in ``.journal``; then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with _locked(_journal(path)) as journal:
        if path.is_file():  # another process has made it while this one waited
            return
        with part.open("r+b" if part.exists() else "w+b", buffering=0) as file:
            making = _Making(images, size, file, journal)
            making.resume()
            free = shutil.disk_usage(path.parent).free
            if making.missing > free:
                raise making.no_room(errno.ENOSPC, f", {free / 1e6:,.0f} MB are free")
            try:
                making.run()
                making.finish()
            except OSError as error:
                if error.errno in runtime.NO_SPACE:
                    raise making.no_room(error.errno) from error
                raise
        os.replace(part, path)


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """A file to read and to append to, for one process at a time; a killed one leaves no lock."""
    with path.open("a+b", buffering=0) as file:
        if sys.platform != "win32":
            with suppress(OSError):  # some network folders know no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield file


class _Making:
    """The work of filling a file, and how far it is."""

    def __init__(self, images: Source, size: int, file: IO[bytes], journal: IO[bytes]) -> None:
        self.images, self.size, self.file, self.journal = images, size, file, journal
        n = len(images)
        self.bytes = size * size * 3
        self.done = np.zeros(n, dtype=bool)
        self.checksums = np.zeros(n, dtype="<u4")
        self.unread: dict[int, str] = {}
        self.lock = threading.Lock()

    @property
    def missing(self) -> int:
        """The bytes that are still to be written."""
        return _HEADER + 4 * len(self.done) + self.bytes * int((~self.done).sum())

    def no_room(self, number: int | None, free: str = "") -> OSError:
        """A full disk, in a sentence."""
        return OSError(
            number,
            f"no room for the pixels of {len(self.done):,} images at {self.size} × {self.size}: "
            f"{self.missing / 1e6:,.1f} MB are still to be written{free}. What was finished before "
            f"is kept: free some space, or set {runtime.CACHE_VARIABLE} to a folder with more of "
            f"it, and call again",
        )

    def resume(self) -> None:
        """Take over what the journal lists, as far as the file really holds it."""
        self.journal.seek(0)
        whole = 0
        for line in self.journal.read().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            self._take_over(entry)
        self.journal.truncate(whole)  # a line that was cut off would garble the next one

    def _take_over(self, entry: dict[str, Any]) -> None:
        start, sums = entry["start"], entry["checksums"]
        self.file.seek(_HEADER + start * self.bytes)
        pixels = self.file.read(len(sums) * self.bytes)
        found = [
            zlib.crc32(pixels[i : i + self.bytes])
            for i in range(0, len(sums) * self.bytes, self.bytes)
        ]
        # They differ where the machine, not the process alone, went down.
        if found == sums and len(pixels) == len(sums) * self.bytes:
            self._note(start, sums, {int(i): why for i, why in entry["unread"].items()})

    def _note(self, start: int, sums: list[int], unread: dict[int, str]) -> None:
        self.done[start : start + len(sums)] = True
        self.checksums[start : start + len(sums)] = sums
        self.unread |= unread

    def run(self) -> None:
        """Decode what is missing, on all cores."""
        n = len(self.done)
        chunks = [range(a, min(a + CHUNK, n)) for a in range(0, n, CHUNK)]
        todo = [chunk for chunk in chunks if not self.done[chunk.start : chunk.stop].all()]
        # torch's number of threads belongs to the thread that sets it.
        with (
            runtime.keep_memory(),
            runtime.progress(total=n, desc="pixels", unit="image") as bar,
            ThreadPoolExecutor(
                runtime.cores(), initializer=torch.set_num_threads, initargs=(1,)
            ) as pool,
        ):
            bar.update(n - sum(map(len, todo)))
            jobs = [pool.submit(self._fill, chunk, bar) for chunk in todo]
            runtime.finish(pool, jobs)

    def _fill(self, chunk: range, bar: Any) -> None:
        pixels = np.zeros((len(chunk), self.size, self.size, 3), dtype=np.uint8)
        unread: dict[int, str] = {}
        for out, i in zip(pixels, chunk, strict=True):
            try:
                out[:] = _square(self.images[i], self.size).permute(1, 2, 0).numpy()
            except ValueError as error:
                unread[i] = str(error)
        sums = [zlib.crc32(image.data) for image in pixels]
        entry = {"start": chunk.start, "checksums": sums, "unread": unread}
        with self.lock:
            self._write(_HEADER + chunk.start * self.bytes, pixels.reshape(-1).data)
            _write_all(self.journal, json.dumps(entry).encode() + b"\n")
            self._note(chunk.start, sums, unread)
            bar.update(len(chunk))

    def _write(self, offset: int, content: bytes | memoryview) -> None:
        self.file.seek(offset)
        _write_all(self.file, content)

    def finish(self) -> None:
        """Write what stands before and after the pixels."""
        n = len(self.done)
        unread = json.dumps(dict(sorted(self.unread.items()))).encode()
        header = json.dumps(_header(n, self.size, len(unread))).encode().ljust(_HEADER - 8)
        self._write(_HEADER + n * self.bytes, self.checksums.tobytes() + unread)
        self.file.truncate()
        self._write(0, len(header).to_bytes(8, "little") + header)
        os.fsync(self.file.fileno())


def _write_all(file: IO[bytes], content: bytes | memoryview) -> None:
    """An unbuffered file may take less than it is given, for one where the disk becomes full."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _square(image: Tensor, size: int) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise TypeError(
            f"an image is a (3, height, width) uint8 tensor, found "
            f"{str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}."
        )
    return F.center_crop(F.resize(image, [size], antialias=True), [size])
