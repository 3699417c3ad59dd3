"""Behaviour of ``tlhelpers.datasets``: decoding, archives, and the splits of photographs."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image, ImageOps
from torchvision.models import MobileNet_V2_Weights

from tlhelpers import datasets
from tlhelpers.datasets import DOGS_IMAGENET, Archive, Folder, Images, decode, stanford_dogs
from tlhelpers.splits import Lazy

BREEDS = ("n02085620-Chihuahua", "n02086910-papillon", "n02090721-Irish_wolfhound")
RNG = np.random.default_rng(0)
# Blobs with some noise: enough detail that a damaged byte shows.
PICTURE = np.kron(RNG.integers(0, 200, (6, 8, 3)), np.ones((16, 16, 1)))
PICTURE = (PICTURE + RNG.integers(0, 50, PICTURE.shape)).astype(np.uint8)  # 96 × 128


def encode(pixels: np.ndarray | Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def pixels(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


TINY = encode(PICTURE[:6, :8])


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, files: dict[str, bytes], *members: tarfile.TarInfo) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in members:
            tar.addfile(member)
    return path


# --- decoding ----------------------------------------------------------------------------------

RGB = Image.fromarray(PICTURE)
KINDS = {
    "RGB": encode(RGB),
    "RGB without chroma subsampling": encode(RGB, subsampling=0, quality=95),
    "progressive": encode(RGB, progressive=True),
    "with restart markers": encode(RGB, restart_marker_rows=1),
    "grayscale": encode(RGB.convert("L")),
    "one pixel": encode(PICTURE[:1, :1]),
    "one pixel, grayscale": encode(RGB.convert("L").crop((0, 0, 1, 1))),
    "one row": encode(PICTURE[:1]),
    "PNG": encode(RGB, "PNG"),
    "PNG, grayscale": encode(RGB.convert("L"), "PNG"),
    "PNG, one bit": encode(RGB.convert("1"), "PNG"),
    "PNG, palette": encode(RGB.convert("P"), "PNG"),
    "PNG, transparent": encode(RGB.convert("RGBA"), "PNG"),
    "WebP": encode(RGB, "WEBP"),
    "WebP, lossless": encode(RGB, "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_what_pillow_makes_of_it(kind: str) -> None:
    image = decode(KINDS[kind])
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(pixels(image), by_pillow(KINDS[kind]))


def with_transform(cmyk: bytes, transform: int) -> bytes:
    """The same CMYK JPEG, its Adobe marker saying how its channels are coded."""
    at = cmyk.index(b"Adobe") + 11
    return cmyk[:at] + bytes([transform]) + cmyk[at + 1 :]


@pytest.mark.parametrize("transform", [0, 2])
def test_cmyk_is_not_inverted(transform: int) -> None:
    """Adobe stores CMYK inverted (transform 2: as YCCK); a decoder that forgets it shows this."""
    data = with_transform(encode(RGB.convert("CMYK")), transform)
    # The two libraries round the product of two channels differently.
    np.testing.assert_allclose(pixels(decode(data)), by_pillow(data), atol=1)


def test_sixteen_bits_a_pixel_are_scaled_and_not_cut_off() -> None:
    gray = PICTURE[:, :, 0]
    data = encode(Image.fromarray(gray.astype(np.uint16) * 256 + 77), "PNG")
    np.testing.assert_array_equal(pixels(decode(data)), np.stack([gray] * 3, axis=2))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_turn_that_the_camera_noted_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation  # 0 and 9 do not exist and turn nothing
    data = encode(RGB, kind, exif=exif.tobytes())
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    image = decode(data)
    np.testing.assert_array_equal(pixels(image), upright)
    assert image.shape[1:] == ((128, 96) if orientation in (5, 6, 7, 8) else (96, 128))


def test_a_box_is_cut_in_stored_pixels_before_the_turn() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = encode(RGB, exif=exif.tobytes()), encode(RGB)
    cut = pixels(decode(plain, box=(10, 20, 50, 80)))
    np.testing.assert_array_equal(cut, by_pillow(plain)[20:80, 10:50])
    np.testing.assert_array_equal(pixels(decode(turned, box=(10, 20, 50, 80))), np.rot90(cut, -1))


def test_a_box_reaches_no_further_than_the_image() -> None:
    data = KINDS["PNG"]
    np.testing.assert_array_equal(pixels(decode(data, box=(-5, 90, 999, 999))), PICTURE[90:])
    with pytest.raises(ValueError, match=r"box \(128, 0, 140, 9\) leaves nothing of 128 × 96"):
        decode(data, box=(128, 0, 140, 9))


JPEG = encode(RGB, quality=90)
HALF = len(JPEG) // 2
END = b"\xff\xd9"
NOISE = bytes(range(1, 65))
DAMAGED = {
    "cut off": JPEG[:HALF],
    "end mark missing": JPEG[:-2],
    "one byte missing": JPEG[:-1],
    "only the start mark": JPEG[:2],
    "cut off, end mark in place": JPEG[:HALF] + END,
    "second half zero": JPEG[:HALF] + bytes(HALF),
    "second half zero, end mark in place": JPEG[:HALF] + bytes(HALF) + END,
    "overwritten in the middle": JPEG[:HALF] + NOISE + JPEG[HALF + 64 :],
    "a piece missing": JPEG[:HALF] + JPEG[HALF + 500 :],
    "progressive, cut off, end mark in place": KINDS["progressive"][:1000] + END,
    "broken header": JPEG[:4] + NOISE + JPEG[68:],
    "empty": b"",
    "text": b"no picture at all",
    "GIF": encode(RGB.convert("P"), "GIF"),
    "PNG, cut off": KINDS["PNG"][: len(KINDS["PNG"]) // 2],
    "PNG, one byte changed": KINDS["PNG"][:5000] + b"\0\0\0\0" + KINDS["PNG"][5004:],
    "WebP, cut off": KINDS["WebP"][: len(KINDS["WebP"]) // 2],
    "WebP, only the start": KINDS["WebP"][:20],
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_image_is_refused_with_its_name(damage: str, tmp_path: Path) -> None:
    images = Images(Folder(write(tmp_path / "pets", {"cat/tom.jpg": DAMAGED[damage]})))
    with pytest.raises(ValueError, match=r"^cat/tom\.jpg in pets is unreadable: .*[a-z0-9)]\.$"):
        images[0]


@pytest.mark.parametrize("damage", [d for d in DAMAGED if "place" in d or "missing" in d[-7:]])
def test_the_strict_decoder_is_needed(damage: str) -> None:
    """Pillow returns grey or garbled rows without a word; should it ever refuse, use Pillow."""
    if damage == "end mark missing" or damage == "one byte missing":
        with pytest.raises(OSError, match="truncated"):
            by_pillow(DAMAGED[damage])
    else:
        assert (by_pillow(DAMAGED[damage]) != by_pillow(JPEG)).any()


def test_what_leaves_the_pixels_alone_is_no_damage() -> None:
    jfif = JPEG.index(b"JFIF\0") + 5
    unknown_revision = JPEG[:jfif] + b"\x09" + JPEG[jfif + 1 :]
    for data in (JPEG + b"whatever a camera appends", unknown_revision):
        np.testing.assert_array_equal(pixels(decode(data)), by_pillow(JPEG))


def test_rare_chroma_subsampling_is_read() -> None:
    """An even gray, so that only the header decides how many pixels a chroma block covers."""
    data = bytearray(encode(Image.new("RGB", (32, 32), (128, 128, 128)), subsampling=0))
    start = data.index(b"\xff\xc0") + 11
    data[start], data[start + 3] = 0x22, 0x21  # luma 2 × 2, first chroma 2 × 1, second 1 × 1
    assert decode(bytes(data)).shape == (3, 32, 32)


# --- sequences of images -----------------------------------------------------------------------


def numbered(folder: Path, n: int = 6) -> Images:
    """n images, the i-th all of value 40·i; the third is damaged on disk."""
    files = {f"{i}.png": encode(np.full((5, 7, 3), 40 * i, np.uint8), "PNG") for i in range(n)}
    return Images(Folder(write(folder, files | {"2.png": b"damaged"})))


def first_values(images: Iterable[torch.Tensor]) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


def test_images_are_read_when_asked_for(tmp_path: Path) -> None:
    images = numbered(tmp_path / "some")
    assert isinstance(images, Lazy)
    assert len(images) == 6
    assert repr(images) == "6 images of some"
    assert images.names == tuple(f"{i}.png" for i in range(6))
    some = images.take([5, 1, 3]).take([2, 0, 0])
    assert first_values(some) == [120, 200, 200]
    assert int(images[-1][0, 0, 0]) == 200
    assert images.read(2) == b"damaged"
    with pytest.raises(ValueError, match=r"2\.png"):
        images[2]
    with pytest.raises(IndexError):
        images[6]


def test_stack_keeps_the_order(tmp_path: Path) -> None:
    images = numbered(tmp_path)
    stacked = images.take([4, 0, 1, 4]).stack()
    assert stacked.shape == (4, 3, 5, 7)
    assert stacked.dtype == torch.uint8
    assert first_values(stacked) == [160, 0, 40, 160]
    assert stacked.is_contiguous(memory_format=torch.channels_last)


def test_stack_refuses_what_it_cannot_stack(tmp_path: Path) -> None:
    images = numbered(tmp_path)
    with pytest.raises(ValueError, match=r"2\.png in .* is unreadable"):
        images.stack()
    with pytest.raises(ValueError, match="at least one"):
        images.take([]).stack()
    write(tmp_path, {"0.png": KINDS["PNG"]})
    with pytest.raises(ValueError, match=r"0\.png has 96 × 128 pixels .* 3\.png has 5 × 7.*size="):
        images.take([0, 3]).stack()


@pytest.mark.parametrize("shape", [(96, 128), (128, 96), (100, 100), (1, 1), (1, 3000)])
def test_size_gives_the_centred_square(shape: tuple[int, int], tmp_path: Path) -> None:
    height, width = shape
    picture = np.resize(PICTURE, (height, width, 3))
    write(tmp_path, {"a.png": encode(picture, "PNG"), "b.png": KINDS["PNG"]})
    images = Images(Folder(tmp_path), size=32)
    side = min(shape)
    top, left = round((height - side) / 2), round((width - side) / 2)
    square = Image.fromarray(picture[top : top + side, left : left + side])
    by_pillow = np.array(square.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    # Pillow's filter is antialiased too, and rounds its weights differently.
    assert np.abs(pixels(images[0]) - by_pillow).max() <= 1
    assert images.stack().shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="size is a number of pixels from 1 on, found 0"):
        Images(Folder(tmp_path), size=0)


def test_boxes_follow_their_images(tmp_path: Path) -> None:
    source = Folder(write(tmp_path, {"a.png": KINDS["PNG"], "b.png": KINDS["PNG"]}))
    images = Images(source, boxes=[(0, 0, 8, 6), (9, 9, 19, 29)])
    assert repr(images).endswith("cut to their boxes")
    np.testing.assert_array_equal(pixels(images.take([1])[0]), PICTURE[9:29, 9:19])
    with pytest.raises(ValueError, match="2 images need as many boxes, not 1"):
        Images(source, boxes=[(0, 0, 1, 1)])


def test_digest_tells_what_the_pixels_depend_on(tmp_path: Path) -> None:
    files = {"a.png": KINDS["PNG"], "b.png": KINDS["RGB"]}
    source = Folder(write(tmp_path / "folder", files))
    images = Images(source)
    box = (0, 0, 4, 4)
    different = [
        images,
        images.take([1, 0]),
        images.take([0]),
        Images(source, size=8),
        Images(source, size=9),
        Images(source, boxes=[box, box]),
        Images(source, boxes=[box, (0, 0, 4, 5)]),
    ]
    assert len({x.digest() for x in different}) == len(different)
    # Where the bytes lie does not matter, what they are does.
    assert Images(Archive(write_tar(tmp_path / "a.tar", files))).digest() == images.digest()
    before = images.digest()
    write(tmp_path / "folder", {"b.png": KINDS["progressive"]})
    assert images.digest() != before


# --- archives ----------------------------------------------------------------------------------


def test_an_archive_is_read_in_place_from_many_threads(tmp_path: Path) -> None:
    files = {f"./deep/er/{i}.jpg": os.urandom(int(RNG.integers(0, 3000))) for i in range(200)}
    hidden = {"./deep/._0.jpg": b"resource fork", "./.DS_Store": b"x"}
    archive = Archive(write_tar(tmp_path / "a.tar", hidden | files))
    assert archive.names == tuple(name.removeprefix("./") for name in files)
    order = RNG.integers(0, 200, 2000)
    names, expected = list(archive.names), list(files.values())
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: archive.read(names[i]), order))
    assert read == [expected[i] for i in order]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar"]


def test_an_archive_closes_its_file(tmp_path: Path) -> None:
    archive = Archive(write_tar(tmp_path / "a.tar", {"a.jpg": TINY}))
    descriptor = archive._descriptor
    os.fstat(descriptor)
    del archive
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


NASTY = {
    "absolute": member("/etc/cron.d/evil.jpg"),
    "upwards": member("../../evil.jpg"),
    "upwards from within": member("Images/../../evil.jpg"),
    "upwards on Windows": member("Images\\..\\..\\evil.jpg"),
    "a drive": member("C:/evil.jpg"),
    "a folder upwards": member("../evil", tarfile.DIRTYPE),
    "a link out": member("Images/a.jpg", tarfile.SYMTYPE, "../../../etc/passwd"),
    "a link within": member("Images/a.jpg", tarfile.SYMTYPE, "b.jpg"),
    "a hard link": member("Images/a.jpg", tarfile.LNKTYPE, "/etc/passwd"),
    "a device": member("Images/a.jpg", tarfile.CHRTYPE),
    "a pipe": member("Images/a.jpg", tarfile.FIFOTYPE),
    "a file with holes": member("Images/a.jpg", tarfile.GNUTYPE_SPARSE),
    "a name twice": member("Images/n02085620-Chihuahua/n02085620_1.jpg"),
}


@pytest.mark.parametrize("kind", NASTY)
def test_an_archive_that_reaches_out_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "in" / "images.tar"
    write_tar(path, {"Images/n02085620-Chihuahua/n02085620_1.jpg": TINY}, NASTY[kind])
    with pytest.raises(ValueError, match=r"images\.tar was not read: its member ") as caught:
        stanford_dogs(path)
    assert repr(NASTY[kind].name) in str(caught.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "images.tar"]


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="Python before 3.11.4")
def test_the_standard_filter_is_no_stricter(tmp_path: Path) -> None:
    refused = 0
    for info in NASTY.values():
        try:
            tarfile.data_filter(info, str(tmp_path))
        except tarfile.FilterError:
            refused += 1
            with pytest.raises(ValueError, match="was not read"):
                Archive(write_tar(tmp_path / "a.tar", {}, info))
    assert refused >= 5


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_archive_is_refused(mode: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.addfile(member("a.jpg"))
    with pytest.raises(ValueError, match=rf"images\.tar is compressed \({kind}\).*Unpack it"):
        Archive(path)


@pytest.mark.parametrize("content", [b"", b"<html>403 Forbidden</html>", os.urandom(5000)])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "images.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.tar .*Fetch it again"):
        Archive(tmp_path / "images.tar")


def test_an_archive_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {f"{i}.jpg": TINY for i in range(3)}).read_bytes()
    used = 3 * (512 + -(-len(TINY) // 512) * 512)
    for end in sorted({*range(0, used + 1, 512), *range(100, used, 512), used - 1}):
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"cut\.tar .*Fetch it again"):
            Archive(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(whole[: used + 1024])  # the end mark, without the padding
    assert len(Archive(tmp_path / "cut.tar").names) == 3


def test_an_archive_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{i}.jpg": b"x" for i in range(3)})
    data = bytearray(path.read_bytes())
    data[1024 + 10] ^= 1  # the second member's header
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no end mark after 1 members"):
        Archive(path)


def test_an_archive_that_shrinks_later_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.jpg": TINY, "b.jpg": TINY})
    images = Images(Archive(path))
    os.truncate(path, 600)
    with pytest.raises(ValueError, match=r"a\.jpg in a\.tar is unreadable: 88 of its"):
        images[0]


# --- Stanford Dogs -----------------------------------------------------------------------------


def dog_ids(per_breed: Sequence[int] = (149, 101, 120)) -> list[str]:
    return [
        f"{breed}/{breed[:9]}_{k * 37}.jpg"
        for breed, n in zip(BREEDS, per_breed, strict=True)
        for k in range(n)
    ]


def photographs(ids: Iterable[str]) -> dict[str, bytes]:
    return {f"Images/{i}": TINY for i in ids}


@pytest.fixture(scope="module")
def dogs_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with photographs only, large enough for the split by hash."""
    return write_tar(tmp_path_factory.mktemp("dogs") / "dogs.tar", photographs(dog_ids()))


def test_the_split_by_hash_is_the_one_that_is_described(dogs_tar: Path) -> None:
    dogs = stanford_dogs(dogs_tar)
    expected: list[tuple[str, str]] = []
    for breed in BREEDS:
        names = [i.split("/")[1] for i in dog_ids() if i.startswith(breed)]
        hashed = sorted((hashlib.sha256(n.encode("utf-8")).hexdigest(), n) for n in names)
        for place, (_, name) in enumerate(hashed[:148]):
            part = "train" if place < 90 else "validation" if place < 100 else "test"
            expected.append((f"{breed}/{name}", part))
    assert list(zip(dogs.ids, dogs.split, strict=True)) == expected
    assert [BREEDS.index(i.split("/")[0]) for i in dogs.ids] == dogs.labels.tolist()
    assert dogs.classes == ("Chihuahua", "Papillon", "Irish wolfhound")
    assert dogs.split_name == "sha256 90/10/48"
    assert [len(dogs.train), len(dogs.validation), len(dogs.test)] == [270, 30, 48 + 1 + 20]
    assert dogs.imagenet is None
    assert dogs.train.x[0].shape == (3, 6, 8)


def layouts(ids: list[str]) -> dict[str, Callable[[Path], Path]]:
    """Ways in which readers have the photographs; each returns what they pass as path=."""
    files = photographs(ids)
    tar = {f"./{name}": data for name, data in files.items()}
    deep = {f"images/{name}": data for name, data in files.items()}
    clutter = {"Images/.DS_Store": b"x", f"Images/{BREEDS[0]}/._x.jpg": b"x", "README": b"x"}
    return {
        "tar": lambda p: write_tar(p / "any name.tar", tar | clutter),
        "folder with images.tar": lambda p: write_tar(p / "images.tar", files).parent,
        "folder with another tar": lambda p: write_tar(p / "stanford_dogs_1.tar", files).parent,
        "folder with Images": lambda p: write(p, files | clutter),
        "Images": lambda p: write(p, files | clutter) / "Images",
        "images/Images": lambda p: write(p, deep),
    }


@pytest.mark.parametrize("layout", layouts([]))
def test_every_layout_gives_the_same_data_set(
    layout: str, tmp_path: Path, dogs_tar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stanford_dogs(dogs_tar)
    path = layouts(dog_ids())[layout](tmp_path / "here")
    dogs = stanford_dogs(path)
    assert dogs.ids == expected.ids
    assert dogs.x.read(7) == TINY
    if path.is_dir():
        monkeypatch.setenv("TLHELPERS_DATA", str(path))
        assert stanford_dogs().ids == expected.ids


def test_photographs_in_the_cache_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TLHELPERS_DATA", raising=False)
    write_tar(tmp_path / "cache" / "stanford_dogs" / "images.tar", photographs(dog_ids()))
    assert len(stanford_dogs()) == 148 + 101 + 120


def test_nothing_found_says_where_it_looked_and_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TLHELPERS_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="TLHELPERS_DATA is not set") as caught:
        stanford_dogs()
    for word in ("images.tar", str(tmp_path / "cache"), "path=", "download=True", "816 MB"):
        assert word in str(caught.value)
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("TLHELPERS_DATA", str(data))
    with pytest.raises(FileNotFoundError, match=str(data)):
        stanford_dogs()
    with pytest.raises(FileNotFoundError, match="is a folder without them"):
        stanford_dogs(data)
    with pytest.raises(FileNotFoundError, match="is not there"):
        stanford_dogs(data / "images.tar")
    for name in ("stanford_dogs_a.tar", "stanford_dogs_b.tar"):
        write_tar(data / name, photographs(dog_ids()))
    with pytest.raises(ValueError, match=r"several archives .*_a\.tar, .*_b\.tar.*path="):
        stanford_dogs()


def test_a_breed_that_is_too_small_or_empty_is_named(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", photographs(dog_ids((149, 100, 120))))
    with pytest.raises(ValueError, match=r"needs 101 images of each breed.*Papillon has 100"):
        stanford_dogs(tar)
    empty = member(f"Images/{BREEDS[1]}", tarfile.DIRTYPE)
    tar = write_tar(tmp_path / "b.tar", photographs(dog_ids((149, 0, 120))), empty)
    with pytest.raises(ValueError, match=f"1 breeds without a photograph .{BREEDS[1]}"):
        stanford_dogs(tar)
    folder = write(tmp_path / "c", photographs(dog_ids((149, 0, 120))))
    (folder / "Images" / BREEDS[1]).mkdir()
    with pytest.raises(ValueError, match=f"1 breeds without a photograph .{BREEDS[1]}"):
        stanford_dogs(folder)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no photographs of Stanford Dogs.*found 1 files"):
        stanford_dogs(write_tar(tmp_path / "cats.tar", {"cats/tom.jpg": TINY}))
    twice = photographs(dog_ids()) | {f"copy/{dog_ids()[0]}": TINY}
    with pytest.raises(ValueError, match="1 photographs in two places"):
        stanford_dogs(write_tar(tmp_path / "twice.tar", twice))


# --- the official lists ------------------------------------------------------------------------


def as_mat(ids: Sequence[str]) -> bytes:
    """A list as the data set's authors store it: cells of strings in a column, and labels."""
    cells = np.empty((len(ids), 1), dtype=object)
    notes = np.empty((len(ids), 1), dtype=object)
    cells[:, 0], notes[:, 0] = ids, [i.removesuffix(".jpg") for i in ids]
    labels = np.array([[BREEDS.index(i.split("/")[0]) + 1] for i in ids], dtype=np.uint8)
    file: Any = io.BytesIO()
    scipy.io.savemat(file, {"file_list": cells, "annotation_list": notes, "labels": labels})
    return file.getvalue()


def annotation(*boxes: tuple[int, int, int, int]) -> bytes:
    objects = "".join(
        f"<object><name>dog</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    return f"<annotation><size><width>8</width></size>{objects}</annotation>".encode()


IDS = dog_ids((20, 17, 19))
# The official lists are in no order that a computer would make.
TRAIN = [IDS[i] for i in RNG.permutation(20)[:14]]
TRAIN += [IDS[20 + i] for i in RNG.permutation(17)[:14]]
TRAIN += [IDS[37 + i] for i in RNG.permutation(19)[:14]]
TEST = [i for i in reversed(IDS) if i not in TRAIN]
MATS = {"train_list.mat": as_mat(TRAIN), "test_list.mat": as_mat(TEST)}
NOTES = {
    f"Annotation/{i.removesuffix('.jpg')}": annotation((1, 2, 4 + k % 5, 6), (0, 0, 1, 1))
    for k, i in enumerate(IDS)
}


def official_layouts() -> dict[str, Callable[[Path], Path]]:
    files = photographs(IDS)
    notes = {f"annotations/{name}": data for name, data in NOTES.items()}
    lists_tar = MATS | {"file_list.mat": b"not needed"}

    def tars(path: Path) -> Path:
        write_tar(path / "images.tar", files)
        write_tar(path / "lists.tar", lists_tar)
        return write_tar(path / "annotation.tar", NOTES).parent

    def unpacked(path: Path) -> Path:
        return write(path, files | MATS | NOTES)

    def mixed(path: Path) -> Path:
        write(path / "lists", MATS)
        return write(path, {f"images/{n}": d for n, d in files.items()} | notes)

    return {
        "tars": tars,
        "unpacked": unpacked,
        "mixed": mixed,
        "the tar itself": lambda p: tars(p) / "images.tar",
        "the folder Images": lambda p: unpacked(p) / "Images",
    }


@pytest.mark.parametrize("layout", official_layouts())
def test_the_official_split(layout: str, tmp_path: Path) -> None:
    path = official_layouts()[layout](tmp_path)
    dogs = stanford_dogs(path)
    assert dogs.split_name == "official (90/10/rest)"
    assert list(dogs.ids) == TRAIN + TEST
    assert dogs.test.ids == tuple(TEST)
    for label, breed in enumerate(BREEDS):
        listed = [i for i in TRAIN if i.startswith(breed)]
        of_breed = dogs.train.y == label
        assert [i for i, mine in zip(dogs.train.ids, of_breed, strict=True) if mine] == listed[:4]
        assert [i for i in dogs.validation.ids if i.startswith(breed)] == listed[4:]
        few = dogs.few(3).train
        assert [i for i in few.ids if i.startswith(breed)] == listed[:3]
    assert [BREEDS.index(i.split("/")[0]) for i in dogs.ids] == dogs.labels.tolist()

    cropped = stanford_dogs(path, crop=True)
    assert cropped.name == "stanford_dogs_cropped"
    widths = [4 + IDS.index(i) % 5 - 1 for i in dogs.ids]
    assert [image.shape[2] for image in cropped.x] == widths
    np.testing.assert_array_equal(pixels(cropped.x[0]), by_pillow(TINY)[2:6, 1 : 1 + widths[0]])
    assert stanford_dogs(path, crop=True, size=5).x.stack().shape == (56, 3, 5, 5)


def test_lists_can_be_named_and_left_out(tmp_path: Path, dogs_tar: Path) -> None:
    lists = write_tar(tmp_path / "elsewhere.tar", MATS)
    images = write_tar(tmp_path / "a" / "images.tar", photographs(IDS))
    assert list(stanford_dogs(images, lists=lists).ids) == TRAIN + TEST
    assert list(stanford_dogs(images, lists=write(tmp_path / "b", MATS)).ids) == TRAIN + TEST
    many = write_tar(tmp_path / "c" / "images.tar", photographs(dog_ids()))
    write(tmp_path / "c", MATS)
    assert stanford_dogs(many).split_name == "official (90/10/rest)"
    assert stanford_dogs(many, lists=False).ids == stanford_dogs(dogs_tar).ids
    with pytest.raises(FileNotFoundError, match=r"lists should be lists\.tar or a folder"):
        stanford_dogs(images, lists=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no train_list\.mat and no test_list\.mat"):
        stanford_dogs(images, lists=images)


def test_listed_photographs_that_are_missing_are_counted(tmp_path: Path) -> None:
    write(tmp_path, MATS)
    write_tar(tmp_path / "images.tar", photographs(i for i in IDS if i not in TEST[1:3]))
    with pytest.raises(ValueError, match=rf"2 of 56 photographs .*\({TEST[1]}, {TEST[2]}\)"):
        stanford_dogs(tmp_path)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train_list.mat": MATS["train_list.mat"]}, r"has no test_list\.mat"),
        (MATS | {"test_list.mat": b"damaged"}, r"test_list\.mat is not a MATLAB file"),
        (MATS | {"test_list.mat": MATS["test_list.mat"][:500]}, r"test_list\.mat is not"),
        (MATS | {"train_list.mat": as_mat(TRAIN[:10] + TRAIN[14:])}, "none of Chihuahua"),
    ],
)
def test_lists_that_are_incomplete_or_damaged(
    lists: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    write_tar(tmp_path / "images.tar", photographs(IDS))
    write_tar(tmp_path / "lists.tar", lists)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stanford_dogs(tmp_path)


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({}, "neither annotation.tar nor the folder Annotation"),
        (dict(list(NOTES.items())[2:]), "2 of 56 photographs have no annotation"),
        ({name: b"<annotation>" for name in NOTES}, "holds no box"),
        ({name: annotation() for name in NOTES}, "holds no box .*no object/bndbox"),
        ({n: d.replace(b"ymax", b"zmax") for n, d in NOTES.items()}, "holds no box"),
    ],
)
def test_crop_needs_annotations(notes: dict[str, bytes], message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "images.tar", photographs(IDS))
    write(tmp_path, MATS | notes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stanford_dogs(tmp_path, crop=True)


def test_download_fetches_three_archives_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"lists.tar": MATS, "annotation.tar": NOTES, "images.tar": photographs(IDS)}
    fetched: list[str] = []

    def fake(url: str, *, path: Path, size: int, sha256: str) -> Path:
        assert url == f"http://vision.stanford.edu/aditya86/ImageNetDogs/{path.name}"
        assert len(bytes.fromhex(sha256)) == 32
        assert size > 400_000
        fetched.append(path.name)
        return write_tar(path, content[path.name])

    monkeypatch.delenv("TLHELPERS_DATA", raising=False)
    monkeypatch.setattr(datasets, "fetch", fake)
    assert list(stanford_dogs(download=True, crop=True).ids) == TRAIN + TEST
    # The images last: an interrupted download must not pass as an archive without lists.
    assert fetched == ["lists.tar", "annotation.tar", "images.tar"]
    assert list(stanford_dogs(download=True).ids) == TRAIN + TEST
    assert list(stanford_dogs().ids) == TRAIN + TEST
    assert len(fetched) == 3


# --- the real archive --------------------------------------------------------------------------


def test_the_real_archive(shared_data: Path) -> None:
    dogs = stanford_dogs(shared_data)
    assert [len(dogs.train), len(dogs.validation), len(dogs.test)] == [10_800, 1_200, 5_760]
    assert dogs.split_name == "sha256 90/10/48"
    assert len(set(dogs.classes)) == 120
    with tarfile.open(shared_data / "stanford_dogs_crops.tar") as tar:
        names = [n.split("/")[-1] for n in tar.getnames() if "/n02085620-" in n]
    first = min(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert dogs.train.ids[0] == f"n02085620-Chihuahua/{first}"
    assert dogs.train.batches(64).__next__()[0].shape == (64, 3, 224, 224)


def test_the_real_breeds_are_the_classes_of_imagenet_that_we_say(shared_data: Path) -> None:
    dogs = stanford_dogs(shared_data)
    assert dogs.imagenet == DOGS_IMAGENET
    categories = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    imagenet = [categories[i].replace("-", " ").casefold() for i in DOGS_IMAGENET]
    assert [name.replace("-", " ").casefold() for name in dogs.classes] == imagenet


def test_the_dogs_of_imagenet() -> None:
    categories = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    assert len(DOGS_IMAGENET) == len(set(DOGS_IMAGENET)) == 120
    assert categories[DOGS_IMAGENET[0]] == "Chihuahua"
    assert categories[DOGS_IMAGENET[-1]] == "African hunting dog"
    assert categories[251] == "dalmatian"


# --- folders of one's own ----------------------------------------------------------------------


def own(folder: Path, **counts: int) -> Path:
    return write(
        folder, {f"{name}/{k}.JPG": TINY for name, count in counts.items() for k in range(count)}
    )


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = own(tmp_path / "pets", dogs=10, cats=20)
    write(folder, {"cats/.x.jpg": b"x", ".git/a.jpg": b"x", "cats/notes.txt": b"x"})
    write(folder, {"dogs/a.png": KINDS["PNG"], "dogs/b.webp": KINDS["WebP"]})
    pets = datasets.image_folder(folder)
    assert pets.name == "pets"
    assert pets.classes == ("cats", "dogs")
    assert pets.split_name == "sha256 60%/20%/rest"
    for label, (name, sizes) in enumerate({"cats": (12, 4, 4), "dogs": (7, 2, 3)}.items()):
        mine = [p for p, y in zip(pets.split, pets.labels.tolist(), strict=True) if y == label]
        assert tuple(mine.count(p) for p in ("train", "validation", "test")) == sizes
        files = [i.split("/")[1] for i in pets.ids if i.startswith(name)]
        assert files == sorted(files, key=lambda f: hashlib.sha256(f.encode()).hexdigest())
    sized = datasets.image_folder(folder, train=0.5, validation=0.25, name="mine", size=16)
    assert sized.name == "mine"
    assert sized.split_name == "sha256 50%/25%/rest"
    assert sized.x.stack().shape == (32, 3, 16, 16)


def test_every_part_gets_a_picture_however_small_the_class(tmp_path: Path) -> None:
    for n in range(3, 12):
        for train, validation in ((0.6, 0.2), (0.98, 0.01), (0.01, 0.98), (0.01, 0.01)):
            parts = datasets._shares(n, train, validation)
            assert len(parts) == n
            assert set(parts) == {"train", "validation", "test"}


def test_another_picture_hardly_changes_the_split(tmp_path: Path) -> None:
    own(tmp_path, cats=40, dogs=40)

    def parts() -> dict[str, str]:
        data = datasets.image_folder(tmp_path)
        return dict(zip(data.ids, data.split.tolist(), strict=True))

    before = parts()
    write(tmp_path, {"cats/new.jpg": TINY})
    after = parts()
    # One picture moves at most over each of the two borders.
    assert sum(after[i] != part for i, part in before.items()) <= 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cats/a.jpg": TINY, "cats/b.jpg": TINY}, "3 pictures or more.*'cats' has 2"),
        ({"birds/a.txt": b"x"}, "'birds' has 0"),
        ({"loose.jpg": TINY}, r"1 pictures lie in pets itself \(loose\.jpg\)"),
        ({"dogs/young/a.jpg": TINY}, r"no folders within those, found dogs/young"),
        ({"dogs/a.HEIC": b"x"}, r"1 pictures .* kind that is not read here \(dogs/a\.HEIC\)"),
    ],
)
def test_pictures_that_would_be_overlooked_are_named(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    folder = write(own(tmp_path / "pets", dogs=5, horses=5), files)
    with pytest.raises(ValueError, match=message):
        datasets.image_folder(folder)


def test_folders_and_shares_that_make_no_data_set(tmp_path: Path) -> None:
    folder = own(tmp_path / "pets", dogs=5)
    with pytest.raises(ValueError, match=r"2 classes .folders. or more, found 1"):
        datasets.image_folder(folder)
    with pytest.raises(FileNotFoundError, match="one folder a class"):
        datasets.image_folder(folder / "nowhere")
    for train, validation in ((0.8, 0.2), (0, 0.2), (0.5, -0.1), (float("nan"), 0.2)):
        with pytest.raises(ValueError, match="shares above 0"):
            datasets.image_folder(folder, train=train, validation=validation)
