"""Photographs in a few large tar files, read from front to back: shards, as WebDataset has them.

A million small files are slow to list, to copy and to open; a shard is read in one piece, from a
disk or over a network. What is lost is the choice of any image at any time, so that shuffling and
resuming have to be thought about anew. Files are those that WebDataset reads and writes
(Aizman et al. 2019): all members of a sample follow each other and share their name up to the dot.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tlhelpers import runtime
from tlhelpers.datasets import Images
from tlhelpers.splits import Dataset

FORMAT = "tlhelpers-shards-1"
INDEX = "index.json"


@dataclass(frozen=True)
class Sample:
    """One photograph as it is stored.

    Attributes:
        id: its name in the data set.
        image: the bytes of its file, see ``datasets.decode``.
        label: the number of its class.
        part: ``"train"``, ``"validation"`` or ``"test"``.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (60, 40), "red").save(buffer, "PNG")
        >>> sample = tl.shards.Sample("cats/tom.png", buffer.getvalue(), label=0, part="train")
        >>> tl.datasets.decode(sample.image).shape
        torch.Size([3, 40, 60])
    """

    id: str
    image: bytes
    label: int
    part: str


@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
        name: of the file.
        samples: how many are in it.
        sha256: of its bytes.

    Example:
        >>> import tlhelpers as tl
        >>> file = tl.shards.Shard("shard-000000.tar", samples=1000, sha256="9f86d0...")
        >>> tl.shards.Shards(".", "cats", ("tom", "tim"), "random", files=(file, file))
        2,000 photographs of cats in 2 shards
    """

    name: str
    samples: int
    sha256: str


@dataclass(frozen=True)
class Shards:
    """A folder of shards; :func:`write` makes one, :func:`load` finds one.

    Attributes:
        folder: where the files are.
        name: the data set's.
        classes: its class names.
        split_name: how its split was made.
        files: the shards.
    """

    folder: Path
    name: str
    classes: tuple[str, ...]
    split_name: str
    files: tuple[Shard, ...]

    def __len__(self) -> int:
        return sum(shard.samples for shard in self.files)

    def __repr__(self) -> str:
        return f"{len(self):,} photographs of {self.name} in {len(self.files)} shards"

    @property
    def paths(self) -> list[str]:
        """The files, as ``webdataset.WebDataset`` takes them."""
        return [str(self.folder / shard.name) for shard in self.files]

    def read(self, shard: Shard) -> Iterator[Sample]:
        """The samples of one shard, in the order of the file, which is read once, front to back.

        Raises:
            ValueError: if the file is damaged or holds another number of samples.
        """
        count = 0
        for key, members in grouped(self.folder / shard.name):
            about = json.loads(members.pop("json", b"{}"))
            image = [v for k, v in members.items() if k != "cls"]
            if len(image) != 1 or "cls" not in members or not {"id", "part"} <= set(about):
                raise ValueError(
                    f"the sample {key} in {shard.name} should have an image, a .cls and a .json "
                    f"with its id and part. Write the shards again with shards.write."
                )
            count += 1
            yield Sample(about["id"], image[0], int(members["cls"]), about["part"])
        if count != shard.samples:
            raise ValueError(
                f"{shard.name} should hold {shard.samples} samples, found {count}. Copy it again."
            )

    def verify(self) -> None:
        """Compare every file with its sha256; reads them all.

        Raises:
            ValueError: naming the files that are not what was written.
        """
        bad = [
            shard.name
            for shard in self.files
            if not (path := self.folder / shard.name).is_file() or _sha256(path) != shard.sha256
        ]
        if bad:
            raise ValueError(
                f"{len(bad)} of {len(self.files)} shards are missing or damaged "
                f"({', '.join(bad[:3])}). Copy them again."
            )

    def stream(
        self,
        *,
        seed: int = 0,
        epoch: int = 0,
        window: int = 4,
        rank: int = 0,
        size: int = 1,
        start: int = 0,
    ) -> Iterator[Sample]:
        """One pass over a process's share, shuffled, from any position.

        The shards are shuffled and dealt out to the processes; then each process reads ``window``
        of its shards at a time and shuffles their samples. The order follows from the seed, the
        epoch and the window alone, so that a position is one number, and a stream that is taken
        up again reads no window that lies before it. (The buffer that WebDataset shuffles with
        mixes a little better for the same memory, and its position is the buffer's whole content.)

        Args:
            seed: of the run, the same in all processes.
            epoch: another one gives another order.
            window: shards in memory at a time.
            rank: the number of this process.
            size: the number of processes. Shares differ by a shard where it does not divide their
                number: processes that step together must agree on the steps beforehand.
            start: how many samples of this pass the process has had already.

        Raises:
            ValueError: if the window, the position or the rank is not one.
        """
        if window < 1 or start < 0 or not 0 <= rank < size:
            raise ValueError(
                f"a stream needs a window of 1 shard or more, a start of 0 or more, and a rank "
                f"below the number of processes; found window {window}, start {start}, rank "
                f"{rank} of {size}."
            )
        order = np.random.default_rng([seed, epoch]).permutation(len(self.files))[rank::size]
        for number, first in enumerate(range(0, len(order), window)):
            chosen = [self.files[i] for i in order[first : first + window]]
            count = sum(shard.samples for shard in chosen)
            if start >= count:
                start -= count
                continue
            samples = [sample for shard in chosen for sample in self.read(shard)]
            mixed = np.random.default_rng([seed, epoch, rank, number]).permutation(count)
            yield from (samples[i] for i in mixed[start:])
            start = 0


def grouped(path: Path | str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of any WebDataset shard: a key, and what is stored under it by extension.

    Raises:
        ValueError: if the file is no whole tar.

    Example:
        >>> import io
        >>> import tarfile
        >>> import tempfile
        >>> from pathlib import Path
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "shard.tar"
        ...     with tarfile.open(path, "w") as archive:
        ...         for name, content in {
        ...             "0.txt": b"a pug",
        ...             "0.cls": b"7",
        ...             "1.txt": b"a husky",
        ...         }.items():
        ...             member = tarfile.TarInfo(name)
        ...             member.size = len(content)
        ...             archive.addfile(member, io.BytesIO(content))
        ...     list(tl.shards.grouped(path))
        [('0', {'txt': b'a pug', 'cls': b'7'}), ('1', {'txt': b'a husky'})]
    """
    key, members = "", dict[str, bytes]()
    try:
        with tarfile.open(path, "r|") as archive:  # a stream: nothing is read twice
            for member in archive:
                if not member.isfile():
                    continue
                parent, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                this = f"{parent}/{stem}" if parent else stem
                if this != key and members:
                    yield key, members
                    members = {}
                key = this
                file: Any = archive.extractfile(member)
                members[extension] = file.read()
    except tarfile.TarError as error:
        raise ValueError(
            f"{Path(path).name} is not a whole tar: {error}. Copy it again."
        ) from error
    if members:
        yield key, members


def write(data: Dataset, folder: Path | str, *, per_shard: int = 1000, seed: int = 0) -> Shards:
    """Write photographs into shards, in random order.

    The order is drawn once, here: a stream mixes a few shards at a time, and would never mix
    classes that lie far apart. Files come out the same byte for byte, each is there whole or not
    at all, and those that an interrupted call has finished are not written again. The index comes
    last.

    Args:
        data: photographs whose files can be read as they are (``datasets.Images`` without boxes).
        folder: is made.
        per_shard: photographs in a file. Shards of a hundred megabytes or more read at full speed;
            there should be several for each process that reads.
        seed: of the order.

    Raises:
        TypeError: if the images are not files.
        ValueError: if there are boxes or sizes, which the files know nothing of; if
            ``per_shard`` is below 1; or the folder holds shards of something else.
        OSError: if the disk is full; what was finished is kept.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i, colour in enumerate(["red", "green", "blue"] * 2):
        ...         place = Path(folder) / "pictures" / "ab"[i % 2]
        ...         place.mkdir(exist_ok=True, parents=True)
        ...         Image.new("RGB", (60, 40), colour).save(place / f"{colour}.png")
        ...     data = tl.datasets.image_folder(Path(folder) / "pictures")
        ...     shards = tl.shards.write(data, Path(folder) / "shards", per_shard=4)
        ...     shards.verify()
        ...     read = [sample.id for sample in shards.stream(seed=1, epoch=0)]
        >>> shards
        6 photographs of pictures in 2 shards
        >>> sorted(read) == sorted(data.ids)
        True
    """
    if not isinstance(data.x, Images):
        raise TypeError(
            f"shards are made of image files, such as datasets.image_folder gives; the images of "
            f"{data.name} are {type(data.x).__name__}."
        )
    if data.x.boxes is not None or data.x.size is not None:
        raise ValueError(
            f"a shard holds files as they are, and the images of {data.name} are cut out or "
            f"resized when they are read. Save them as files first."
        )
    if per_shard < 1:
        raise ValueError(f"per_shard is a number of photographs from 1 on, found {per_shard}.")
    folder = Path(folder)
    order = np.random.default_rng(seed).permutation(len(data))
    plan = hashlib.sha256(json.dumps([FORMAT, per_shard, seed, *data.ids]).encode()).hexdigest()
    _claim(folder, plan)
    files = []
    for number, first in enumerate(range(0, len(data), per_shard)):
        rows = order[first : first + per_shard].tolist()
        path = folder / f"shard-{number:06d}.tar"
        if not path.is_file():
            runtime.write_whole(path, _tar(data, rows, first))
        files.append(Shard(path.name, len(rows), _sha256(path)))
    about = {
        "format": FORMAT,
        "name": data.name,
        "classes": data.classes,
        "split_name": data.split_name,
        "files": [asdict(file) for file in files],
    }
    runtime.write_whole(folder / INDEX, f"{json.dumps(about, indent=1)}\n".encode())
    return load(folder)


def load(folder: Path | str) -> Shards:
    """The shards in a folder, by their index.

    Raises:
        FileNotFoundError: if there is no index.
        ValueError: if it is not one.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i, colour in enumerate(["red", "green", "blue"] * 2):
        ...         place = Path(folder) / "pictures" / "ab"[i % 2]
        ...         place.mkdir(exist_ok=True, parents=True)
        ...         Image.new("RGB", (60, 40), colour).save(place / f"{colour}.png")
        ...     data = tl.datasets.image_folder(Path(folder) / "pictures")
        ...     _ = tl.shards.write(data, folder, per_shard=4)
        ...     shards = tl.shards.load(folder)
        >>> [(file.name, file.samples) for file in shards.files]
        [('shard-000000.tar', 4), ('shard-000001.tar', 2)]
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {INDEX}: shards.write makes it when all shards are written; call it "
            f"again if it was interrupted."
        )
    about = json.loads(path.read_text(encoding="utf-8"))
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} should be an index of the format {FORMAT!r}.")
    files = tuple(Shard(**file) for file in about["files"])
    return Shards(Path(folder), about["name"], tuple(about["classes"]), about["split_name"], files)


def _claim(folder: Path, plan: str) -> None:
    """See to it that unfinished shards of other data, or in another order, are not gone on with."""
    note = folder / ".plan"
    if note.is_file() and note.read_text() != plan:
        raise ValueError(
            f"{folder} holds shards of other photographs, of another size or in another order. "
            f"Name an empty folder."
        )
    runtime.write_whole(note, plan.encode())


def _tar(data: Dataset, rows: list[int], first: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for position, row in enumerate(rows, start=first):
            # A key of our own: WebDataset cuts a name at its first dot, and names have dots.
            key, suffix = f"{position:012d}", PurePosixPath(data.ids[row]).suffix.lower()
            about = {"id": data.ids[row], "part": str(data.split[row])}
            for extension, content in (
                (suffix, data.x.read(row)),
                (".cls", str(int(data.labels[row])).encode()),
                (".json", json.dumps(about).encode()),
            ):
                member = tarfile.TarInfo(key + extension)  # no time, no owner: the same bytes again
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
