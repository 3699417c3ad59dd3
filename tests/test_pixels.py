"""Behaviour of ``tlhelpers.pixels``: squares on disk that survive what happens to them."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tlhelpers import datasets, features, models, pixels, runtime
from tlhelpers.datasets import PixelCache, pixel_cache
from tlhelpers.splits import Dataset, Lazy

N, SIZE = 90, 24


def write_jpegs(folder: Path, n: int = N) -> Path:
    """Two classes of small JPEGs of several shapes."""
    random = np.random.default_rng(0)
    for i in range(n):
        height, width = random.integers(SIZE - 6, 60, size=2)
        image = random.integers(0, 256, (height // 4, width // 4, 3)).astype(np.uint8)
        path = folder / f"{'ab'[i % 2]}/{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((width, height)).save(path)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Dataset:
    return datasets.image_folder(write_jpegs(tmp_path / "photos"))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "CHUNK", 8)


class Counted:
    """Images that count how often each is decoded; ``stop`` is an image that ends the process."""

    def __init__(self, images: datasets.Images, broken: tuple[int, ...] = (), stop: int = -1):
        self.images, self.broken, self.stop = images, broken, stop
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        if i == self.stop:
            raise KeyboardInterrupt
        if i in self.broken:
            raise ValueError("it is torn")
        self.decoded.append(i)
        return self.images[i]

    def take(self, indices: list[int]) -> Counted:
        return Counted(self.images.take(indices))

    def digest(self) -> str:
        return self.images.digest()


def files() -> list[Path]:
    folder = runtime.cache_folder() / "pixels"
    return sorted(folder.iterdir()) if folder.is_dir() else []


# --- what it gives --------------------------------------------------------------------------


def test_squares_are_those_of_the_preprocessing(photos: Dataset) -> None:
    cache = PixelCache.of(photos.x, size=SIZE)
    square = models.Preprocess(resize=SIZE, crop=SIZE).geometry
    expected = torch.stack([square(image) for image in photos.x])
    assert torch.equal(cache.stack(), expected)
    assert cache.shape == expected.shape
    assert torch.equal(torch.stack(list(cache)), expected)
    assert torch.equal(cache[-1], expected[-1])
    with pytest.raises(IndexError):
        cache[N]
    with pytest.raises(IndexError):
        cache.rows([0, N])
    assert repr(cache) == "90 cached images, 24 × 24, 0.2 MB"


def test_batches_and_views_share_the_file(photos: Dataset) -> None:
    cache = PixelCache.of(photos.x, size=SIZE)
    whole = cache.stack()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for indices in (order[:7], order[:7].numpy(), order[:7].tolist()):
        batch = cache.rows(indices)
        assert torch.equal(batch, whole[order[:7]])
        assert batch.is_contiguous(memory_format=torch.channels_last)
    view = cache.take(order.tolist()).take([5, 0])
    assert isinstance(view, Lazy)
    assert torch.equal(view.stack(), whole[order[[5, 0]]])
    assert (view.path, view.size, len(view)) == (cache.path, SIZE, 2)
    view.stack().zero_()
    view[0].zero_()
    assert torch.equal(cache.stack(), whole), "what is handed out is a copy"
    assert cache.rows([]).shape == (0, 3, SIZE, SIZE)


def test_a_pickle_carries_no_pixels(photos: Dataset) -> None:
    view = PixelCache.of(photos.x, size=SIZE).take([5, 0])
    pickled = pickle.dumps(view)
    assert len(pickled) < 1000
    assert torch.equal(pickle.loads(pickled).stack(), view.stack())


def test_any_reader_of_safetensors_opens_it(photos: Dataset) -> None:
    cache = PixelCache.of(photos.x, size=SIZE)
    stored = load_file(cache.path)["pixels"]
    assert torch.equal(stored.permute(0, 3, 1, 2), cache.stack())


def test_a_data_set_keeps_everything_but_its_images(photos: Dataset) -> None:
    cached = pixel_cache(photos, size=SIZE)
    assert isinstance(cached.x, PixelCache)
    assert (cached.name, cached.ids, cached.classes) == (photos.name, photos.ids, photos.classes)
    assert cached.split_name == photos.split_name
    assert cached.labels is photos.labels
    assert (cached.split == photos.split).all()
    cached.test.open(reason="shared")
    assert photos.test.readings == ("shared",)
    few = cached.few(2, draw=0)
    (x, y), *_ = few.train.batches(4)
    expected = torch.stack([cached.x[cached.ids.index(i)] for i in few.train.ids])
    assert torch.equal(x, expected)
    assert torch.equal(y, few.train.y)


def test_features_of_cached_pixels_are_those_of_the_photographs(photos: Dataset) -> None:
    backbone = dataclasses.replace(
        models.backbone("squeezenet1_1", weights=None, seed=0),
        preprocess=models.Preprocess(resize=SIZE, crop=SIZE),
    )
    few = photos.few(2, validation=1)
    few = few.subset(np.flatnonzero(few.split != "test"))
    run = runtime.Run(dtype=torch.float32)
    direct = features.extract(few, backbone, run=run)
    cached = features.extract(pixel_cache(few, size=SIZE), backbone, run=run)
    assert torch.equal(direct.features, cached.features)


def test_the_digest_tells_rows_and_sources_apart(photos: Dataset) -> None:
    cache = PixelCache.of(photos.x, size=SIZE)
    assert cache.digest() == PixelCache.of(photos.x, size=SIZE).digest()
    assert cache.take(range(N)).digest() == cache.digest()
    others = [cache.take(rows) for rows in ([0, 1], [1, 0], [0])]
    others += [PixelCache.of(photos.x, size=SIZE + 1), PixelCache.of(photos.x.take([0]), size=SIZE)]
    assert len({c.digest() for c in [cache, *others]}) == 6


def test_a_cache_can_be_made_of_a_cache(photos: Dataset) -> None:
    large = PixelCache.of(photos.x, size=48)
    small = PixelCache.of(large.take([3, 1]), size=SIZE)
    square = models.Preprocess(resize=SIZE, crop=SIZE).geometry
    assert torch.equal(small.stack(), square(large.rows([3, 1])))


# --- one file for one content -----------------------------------------------------------------


def test_the_second_call_decodes_nothing(photos: Dataset) -> None:
    first = Counted(photos.x)
    PixelCache.of(first, size=SIZE)
    assert sorted(first.decoded) == list(range(N))
    second = Counted(photos.x)
    PixelCache.of(second, size=SIZE)
    assert second.decoded == []
    assert [f.suffix for f in files()] == [".safetensors"]


def test_other_lists_orders_bytes_and_sizes_are_other_files(photos: Dataset) -> None:
    x = photos.x
    paths = [PixelCache.of(x, size=SIZE).path]
    paths += [PixelCache.of(x, size=SIZE + 1).path]
    paths += [PixelCache.of(x.take(range(N - 1)), size=SIZE).path]
    paths += [PixelCache.of(x.take([1, 0, *range(2, N)]), size=SIZE).path]
    before = PixelCache.of(x, size=SIZE)
    old = before.stack()
    Image.new("RGB", (30, 30), "red").save(x.source.path / x.names[4])
    after = PixelCache.of(x, size=SIZE)
    assert len({*paths, after.path}) == 5
    assert torch.equal(before.stack(), old)
    changed = (after.stack() != old).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [4]


def test_unreadable_images_are_all_named_refused_or_left_out(photos: Dataset) -> None:
    broken = (0, 1, 2, 3, 4, 5, 6, 7, 50)  # a whole chunk, and one
    for i in broken:
        path = photos.x.source.path / photos.x.names[i]
        path.write_bytes(path.read_bytes()[:-60])
    names = [photos.ids[i] for i in broken]
    with pytest.raises(ValueError, match="9 of 90 images of photos cannot be read") as caught:
        pixel_cache(photos, size=SIZE)
    assert all(name in str(caught.value) for name in names)
    with pytest.raises(ValueError, match="9 of 90 images cannot be read") as caught:
        PixelCache.of(photos.x, size=SIZE)
    assert all(name in str(caught.value) for name in names)
    with pytest.warns(UserWarning, match="9 of 90 images of photos") as warned:
        cached = pixel_cache(photos, size=SIZE, on_error="skip")
    assert all(name in str(warned[0].message) for name in names)
    kept = [i for i in range(N) if i not in broken]
    assert cached.ids == tuple(photos.ids[i] for i in kept)
    assert torch.equal(cached.x.stack(), PixelCache.of(photos.x.take(kept), size=SIZE).stack())
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        pixel_cache(photos, size=SIZE, on_error="ignore")


def test_what_cannot_be_cached_is_refused(photos: Dataset) -> None:
    with pytest.raises(TypeError, match="found Tensor"):
        PixelCache.of(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no images to cache"):
        PixelCache.of(photos.x.take([]))
    with pytest.raises(ValueError, match="size is a number of pixels"):
        PixelCache.of(photos.x, size=0)
    grey = Counted([torch.zeros(9, 9)])  # type: ignore[arg-type]
    grey.digest = lambda: "grey"  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"uint8 tensor, found float32 of shape \(9, 9\)"):
        PixelCache.of(grey)


# --- interruptions ----------------------------------------------------------------------------


def test_an_interrupted_call_continues(photos: Dataset) -> None:
    reference = PixelCache.of(photos.x, size=SIZE).path
    expected = reference.read_bytes()
    reference.unlink()
    stopped = Counted(photos.x, broken=(3,), stop=60)
    with pytest.raises(KeyboardInterrupt):
        PixelCache.of(stopped, size=SIZE)
    assert [f.suffix for f in files()] == [".journal", ".part"]
    journal, part = files()
    lines = journal.read_bytes().splitlines(keepends=True)
    listed = [json.loads(line)["start"] for line in lines]
    assert 2 <= len(listed) < 12
    # A machine that goes down can lose pixels that the journal lists, and half a line of it.
    lost = listed.pop()
    damaged = bytearray(part.read_bytes())
    damaged[4096 + lost * 3 * SIZE**2] ^= 1
    part.write_bytes(damaged)
    journal.write_bytes(b"".join(lines) + lines[0][:30])
    rest = Counted(photos.x, broken=(3,))
    with pytest.raises(ValueError, match="1 of 90 images cannot be read"):
        PixelCache.of(rest, size=SIZE)
    assert sorted(rest.decoded) == [i for i in range(N) if i - i % 8 not in listed and i != 3]
    [path] = files()
    path.unlink()
    assert PixelCache.of(photos.x, size=SIZE).path.read_bytes() == expected


def test_an_interruption_at_the_very_end_costs_nothing(
    photos: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            PixelCache.of(photos.x, size=SIZE)
    journal, part = files()
    content, lines = part.read_bytes(), journal.read_bytes()
    images = Counted(photos.x)
    assert PixelCache.of(images, size=SIZE).path.read_bytes() == content
    assert images.decoded == []
    journal.write_bytes(lines)  # renamed, but killed before the journal went
    PixelCache.of(images, size=SIZE)
    assert [f.suffix for f in files()] == [".safetensors"]


def test_two_calls_at_once_share_the_work(photos: Dataset) -> None:
    images = Counted(photos.x)
    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(lambda _: PixelCache.of(images, size=SIZE), range(2))
    assert torch.equal(a.stack(), b.stack())
    assert len(files()) == 1
    if sys.platform != "win32":
        assert sorted(images.decoded) == list(range(N))


KILLED = """
    import hashlib, os, random, signal, sys, time
    from pathlib import Path
    import torch
    from tlhelpers import datasets, pixels, runtime

    torch.set_num_threads(1)
    pixels.CHUNK = 8
    images = datasets.image_folder(sys.argv[1]).x

    def start():
        child = os.fork()
        if child == 0:
            datasets.PixelCache.of(images, size=int(sys.argv[2]))
            os._exit(0)
        return child, time.perf_counter()

    def end():
        [path] = (runtime.cache_folder() / "pixels").iterdir()
        print("whole", path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        path.unlink()

    child, began = start()
    assert os.waitpid(child, 0)[1] == 0
    duration = time.perf_counter() - began
    end()
    moments = random.Random(0)
    kills = 0
    while kills < 20:
        child, _ = start()
        time.sleep(moments.random() * duration / 2)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
            left = list((runtime.cache_folder() / "pixels").glob("*"))
            done = [p.read_bytes().count(b"checksums") for p in left if p.suffix == ".journal"]
            print("killed", *sorted(p.suffix for p in left), *done)
        else:
            end()
    assert os.waitpid(start()[0], 0)[1] == 0
    end()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children of a loaded process need fork")
def test_a_process_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    folder = write_jpegs(tmp_path / "photos", 400)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(SIZE)]
    ran = subprocess.run(command, text=True, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    whole = {line for line in lines if line.startswith("whole")}
    assert len(whole) == 1, "the same bytes whatever happened on the way"
    killed = [line.split() for line in lines if line.startswith("killed")]
    assert len(killed) == 20
    assert [".journal", ".part"] in [k[1:3] for k in killed]
    progress = [int(k[3]) for k in killed if k[1:3] == [".journal", ".part"]]
    assert any(a < b for a, b in itertools.pairwise(progress)), "work is taken over"


# --- damage -----------------------------------------------------------------------------------


def test_a_damaged_image_is_named_and_the_others_are_read(photos: Dataset) -> None:
    path = PixelCache.of(photos.x, size=SIZE).path
    content = bytearray(path.read_bytes())
    content[4096 + 7 * 3 * SIZE**2 + 100] ^= 16
    path.write_bytes(content)
    cache = PixelCache.of(photos.x, size=SIZE)
    kept = cache.take([i for i in range(N) if i != 7])
    kept.stack()
    for read in (cache.stack, lambda: cache[7], lambda: cache.rows([1, 7]), cache.take([7]).stack):
        with pytest.raises(ValueError, match=rf"{path.name} is damaged: image 7 .* Delete this"):
            read()
    assert path.read_bytes() == content, "nothing is deleted or repaired behind the reader's back"
    path.unlink()
    assert torch.equal(PixelCache.of(photos.x, size=SIZE).take(kept._rows).stack(), kept.stack())


def header_of_another_format(content: bytes) -> bytes:
    return content.replace(pixels.FORMAT.encode(), b"tlhelpers-pixels-0")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:5000],
        lambda content: content[:100],
        lambda content: content + b"x",
        lambda content: b"",
        lambda content: bytes(len(content)),
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"[]".ljust(4088) + content[4096:],
        lambda content: content[:-3] + b"\xff{\xff",
        header_of_another_format,
    ],
)
def test_a_file_that_is_not_what_was_written_is_refused(
    damage: Callable[[bytes], bytes], photos: Dataset
) -> None:
    path = PixelCache.of(photos.x, size=SIZE).path
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged: .* Delete this file"):
        PixelCache.of(photos.x, size=SIZE)
    assert path.read_bytes() == damaged


# --- a full disk ------------------------------------------------------------------------------


def test_too_little_room_is_noticed_before_anything_is_decoded(
    photos: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    images = Counted(photos.x)
    with pytest.raises(OSError, match=r"90 images at 24 × 24: 0\.2 MB .*, 0 MB are free") as caught:
        PixelCache.of(images, size=SIZE)
    assert caught.value.errno == errno.ENOSPC
    assert images.decoded == []


@pytest.fixture
def more_room() -> Iterator[Callable[[], None]]:
    """No file grows beyond 80,000 bytes, as on a full disk, until this is called."""
    resource = pytest.importorskip("resource", reason="limits on file sizes are a POSIX feature")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, before[1]))

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield lift
    lift()


def test_a_disk_that_fills_up_loses_nothing(photos: Dataset, more_room: Callable[[], None]) -> None:
    first = Counted(photos.x)
    with pytest.raises(OSError, match=r"no room for the pixels .* TLHELPERS_CACHE") as caught:
        PixelCache.of(first, size=SIZE)
    assert caught.value.errno in runtime.NO_SPACE
    assert [f.suffix for f in files()] == [".journal", ".part"]
    done = files()[0].read_bytes().count(b"start")
    assert 2 <= done < 12
    more_room()
    second = Counted(photos.x)
    cache = PixelCache.of(second, size=SIZE)
    assert len(second.decoded) == N - 8 * done
    square = models.Preprocess(resize=SIZE, crop=SIZE).geometry
    assert torch.equal(cache.stack(), torch.stack([square(image) for image in photos.x]))


# --- the real thing ---------------------------------------------------------------------------


def test_stanford_dogs_are_cached_as_they_are(shared_data: Path) -> None:
    dogs = datasets.stanford_dogs(shared_data)
    few = dogs.few(1, validation=1)
    few = few.subset(np.flatnonzero(few.split != "test"))
    cached = pixel_cache(few)
    assert cached.x.shape == (240, 3, 224, 224)
    assert torch.equal(cached.x.stack(), few.x.stack()), "squares of 224 are not changed"
