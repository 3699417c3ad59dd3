"""Behaviour of shards: what goes in comes out, in another order that can be taken up anywhere."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tlhelpers import datasets, shards
from tlhelpers.shards import Sample, Shards
from tlhelpers.splits import Dataset

COUNT = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of small pictures; one name has two dots, one picture is a PNG."""
    pixels = np.random.default_rng(1).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    place = tmp_path / "pictures"
    for i in range(COUNT):
        home = place / "abc"[i % 3]
        home.mkdir(parents=True, exist_ok=True)
        if i == 5:
            Image.fromarray(pixels[i]).save(home / "five.PNG")
        else:
            (home / f"{i}.v2.jpg").write_bytes(simplejpeg.encode_jpeg(pixels[i], quality=90))
    return place


@pytest.fixture
def data(folder: Path) -> Dataset:
    return datasets.image_folder(folder)


@pytest.fixture
def made(data: Dataset, tmp_path: Path) -> Shards:
    return shards.write(data, tmp_path / "shards", per_shard=4)


def as_read(data: Dataset) -> dict[str, Sample]:
    return {
        name: Sample(name, data.x.read(i), int(data.labels[i]), str(data.split[i]))
        for i, name in enumerate(data.ids)
    }


def test_what_goes_in_comes_out(data: Dataset, made: Shards) -> None:
    assert [shard.samples for shard in made.files] == [4] * 7 + [2]
    assert len(made) == len(data)
    for epoch in range(2):
        found = list(made.stream(epoch=epoch))
        assert {sample.id: sample for sample in found} == as_read(data)
        assert len(found) == len(data)
    made.verify()


def test_webdataset_reads_the_same(data: Dataset, made: Shards) -> None:
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed.")
    found = {}
    for sample in wds.WebDataset(made.paths, shardshuffle=False):
        [image] = [v for k, v in sample.items() if k in ("jpg", "png")]
        found[sample["__key__"]] = (image, int(sample["cls"]))
    ours = {
        key: (next(v for k, v in members.items() if k in ("jpg", "png")), int(members["cls"]))
        for path in made.paths
        for key, members in shards.grouped(path)
    }
    assert found == ours
    assert Counter(found.values()) == Counter((s.image, s.label) for s in as_read(data).values())


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_processes_share_a_pass_out(made: Shards, window: int, size: int) -> None:
    parts = [list(made.stream(window=window, rank=r, size=size)) for r in range(size)]
    ids = [sample.id for part in parts for sample in part]
    assert len(ids) == len(set(ids)) == len(made)


@pytest.mark.parametrize("start", [0, 1, 7, 8, 9, COUNT - 1, COUNT, COUNT + 3])
def test_a_stream_is_taken_up_anywhere(
    made: Shards, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(made.stream(window=2, seed=3, epoch=1))
    opened: list[str] = []
    read = Shards.read
    monkeypatch.setattr(
        Shards, "read", lambda self, shard: (opened.append(shard.name), read(self, shard))[1]
    )
    assert list(made.stream(window=2, seed=3, epoch=1, start=start)) == whole[start:]
    left = 8 - 2 * (start // 8) if start < COUNT else 0
    assert len(opened) <= left, "windows before the start are not read"


def test_orders_differ_by_seed_and_epoch_and_repeat(made: Shards) -> None:
    def order(**settings: int) -> list[str]:
        return [sample.id for sample in made.stream(**settings)]

    assert order() == order()
    assert len({tuple(order(seed=s, epoch=e)) for s in range(2) for e in range(2)}) == 4


def test_files_are_the_same_byte_for_byte_and_not_written_twice(
    data: Dataset, made: Shards, tmp_path: Path
) -> None:
    again = shards.write(data, tmp_path / "again", per_shard=4)
    assert again.files == made.files
    other = shards.write(data, tmp_path / "other", per_shard=4, seed=1)
    assert other.files != made.files
    # An interrupted call: no index, and one shard is missing.
    (again.folder / shards.INDEX).unlink()
    (again.folder / again.files[2].name).unlink()
    with pytest.raises(FileNotFoundError, match="call it again if it was interrupted"):
        shards.load(again.folder)
    before = (again.folder / again.files[0].name).stat().st_mtime_ns
    assert shards.write(data, again.folder, per_shard=4).files == made.files
    assert (again.folder / again.files[0].name).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="Name an empty folder"):
        shards.write(data, again.folder, per_shard=5)


def test_damage_is_named(made: Shards) -> None:
    path = made.folder / made.files[1].name
    content = path.read_bytes()
    path.write_bytes(content[:2000])
    with pytest.raises(ValueError, match=made.files[1].name):
        made.verify()
    with pytest.raises(ValueError, match=made.files[1].name):
        list(made.stream())
    shutil.copy(made.folder / made.files[-1].name, path)  # whole, with two samples for four
    with pytest.raises(ValueError, match="should hold 4 samples, found 2"):
        list(made.stream())
    path.unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        made.verify()


def test_what_cannot_be_written_is_refused(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="image files"):
        shards.write(datasets.digits(), tmp_path / "x")
    resized = dataclasses.replace(data, x=datasets.Images(data.x.source, data.x.names, size=4))
    with pytest.raises(ValueError, match="cut out or resized"):
        shards.write(resized, tmp_path / "x")
    with pytest.raises(ValueError, match="per_shard"):
        shards.write(data, tmp_path / "x", per_shard=0)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("wrong", [{"window": 0}, {"start": -1}, {"rank": 2, "size": 2}])
def test_a_stream_that_cannot_be_meant_is_refused(made: Shards, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a stream needs"):
        next(made.stream(**wrong))


def test_labels_are_mixed_when_written(made: Shards, data: Dataset) -> None:
    stored = [sample.label for shard in made.files for sample in made.read(shard)]
    assert sorted(stored) == sorted(data.labels.tolist())
    runs = int(np.count_nonzero(np.diff(stored))) + 1
    assert runs > 10, "sorted labels would make three runs"
