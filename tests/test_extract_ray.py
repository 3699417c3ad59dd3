"""Extraction by Ray Data on a local cluster of two workers, with and without a worker's death."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import simplejpeg
import torch
from torch import Tensor, nn

from tlhelpers import datasets, features, models, ray_extract
from tlhelpers.features import FeatureBank, Keep, Work
from tlhelpers.models import Backbone, Preprocess
from tlhelpers.ray_extract import KillsOnce, OnRay
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

RUN = Run()
COUNT, CHUNK = 40, 4


@pytest.fixture(autouse=True)
def chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(features, "CHUNK", CHUNK)
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    pixels = torch.randint(0, 256, (COUNT, 3, 16, 16), generator=RUN.generator(1)).to(torch.uint8)
    for i in range(COUNT):
        home = tmp_path / "pictures" / "ab"[i % 2]
        home.mkdir(parents=True, exist_ok=True)
        rgb = pixels[i].permute(1, 2, 0).contiguous().numpy()
        (home / f"{i}.jpg").write_bytes(simplejpeg.encode_jpeg(rgb, quality=90))
    return datasets.image_folder(tmp_path / "pictures")


def backbone() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
        )  # fmt: skip
    return models.as_backbone(network, preprocess=Preprocess(resize=16, crop=16))


def assert_equal(found: FeatureBank, expected: FeatureBank) -> None:
    torch.testing.assert_close(found.x, expected.x, atol=1e-6, rtol=1e-5)
    assert found.ids == expected.ids
    assert found.labels.equal(expected.labels)
    assert found.provenance == expected.provenance


def other_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path / name))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, once for all tests: starting it is what takes the time."""
    ray = pytest.importorskip("ray", reason="ray[data] is not installed.")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no module for the workers
    with OnRay(2)._cluster(ray_extract._ray()):
        yield


@pytest.mark.usefixtures("cluster")
def test_two_workers_of_which_one_is_killed_write_the_bank_of_one_process(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = features.extract(data, backbone(), run=RUN)
    other_cache(monkeypatch, tmp_path, "two")
    marker = tmp_path / "killed"
    mortal = dataclasses.replace(data, x=KillsOnce(data.x, COUNT // 2 + 1, marker))
    found = features.extract(mortal, backbone(), run=RUN, engine=OnRay(2))
    assert marker.is_file(), "a worker was killed"
    assert int(marker.read_text()) != os.getpid()
    assert_equal(found, expected)


@pytest.mark.usefixtures("cluster")
def test_an_image_that_kills_each_time_is_named_and_the_rest_is_kept(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = dataclasses.replace(data, x=Deadly(data.x, COUNT // 2, tmp_path / "killed"))
    with pytest.raises(RuntimeError, match=r"1 workers died of images 20 to 23, or of their mem"):
        features.extract(deadly, backbone(), run=RUN, engine=OnRay(1, retries=0))
    parts = list((tmp_path / "cache").rglob("0*.safetensors"))
    assert {path.stem for path in parts} == {f"{i:09d}" for i in range(0, COUNT, CHUNK) if i != 20}


def test_a_chunk_that_was_begun_too_often_is_given_up(data: Dataset) -> None:
    work = Work(data.x, Preprocess(16, 16), nn.Flatten(), torch.device("cpu"), torch.float32)
    actor = ray_extract._Actor(work, lambda start: 4, 2)
    found = actor({"start": torch.tensor([4]).numpy(), "stop": torch.tensor([8]).numpy()})
    assert (found["deaths"], found["rows"]) == ([3], [b""])


class Deadly(KillsOnce):
    """Kills every process that asks."""

    def __getitem__(self, i: int) -> Tensor:
        if i == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images[i]


# Without Ray: what an engine may do, and what it may not.


def test_an_engine_may_hand_over_late_twice_and_in_any_order(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = features.extract(data, backbone(), run=RUN)
    other_cache(monkeypatch, tmp_path, "other")

    def engine(work: Work, chunks: Sequence[range], keep: Keep) -> None:
        work = pickle.loads(pickle.dumps(work))  # as it travels to another process
        for chunk in [*reversed(chunks), *chunks[:3]]:
            keep(chunk, *work.features(chunk))

    assert_equal(features.extract(data, backbone(), run=RUN, engine=engine), expected)


def test_an_engine_that_loses_a_chunk_is_found_out_and_only_that_is_done_again(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = features.extract(data, backbone(), run=RUN)
    other_cache(monkeypatch, tmp_path, "other")
    seen: list[range] = []

    def engine(work: Work, chunks: Sequence[range], keep: Keep) -> None:
        lossy = not seen
        seen.extend(chunks)
        features.on_cores(work, chunks[:-2] if lossy else chunks, keep)

    with pytest.raises(
        RuntimeError, match=f"without the features of {2 * CHUNK} of {COUNT} images"
    ):
        features.extract(data, backbone(), run=RUN, engine=engine)
    assert_equal(features.extract(data, backbone(), run=RUN, engine=engine), expected)
    assert len(seen) == COUNT // CHUNK + 2


def test_unreadable_images_travel(data: Dataset) -> None:
    (data.x.source.path / data.ids[3]).write_bytes(b"\xff\xd8 no picture")
    result: dict[str, Any] = {}

    def engine(work: Work, chunks: Sequence[range], keep: Keep) -> None:
        actor = ray_extract._Actor(work, lambda start: 1, 0)
        starts = torch.tensor([c.start for c in chunks]).numpy()
        stops = torch.tensor([c.stop for c in chunks]).numpy()
        found = actor({"start": starts, "stop": stops})
        for values in zip(*found.values(), strict=True):
            keep(*ray_extract._unpack(dict(zip(found, values, strict=True))))
        result.update(found)

    with pytest.warns(UserWarning, match=data.ids[3]):
        bank = features.extract(data, backbone(), run=RUN, engine=engine, on_error="skip")
    assert len(bank) == COUNT - 1
    assert data.ids[3] not in bank.ids
    assert set(result) == {"start", "stop", "rows", "unread", "deaths"}


def test_an_engine_is_for_photographs() -> None:
    def engine(work: Work, chunks: Sequence[range], keep: Keep) -> None: ...

    network = models.as_backbone(models.small_resnet(10))
    with pytest.raises(ValueError, match="leave the engine out"):
        features.extract(datasets.digits(), network, run=RUN, engine=engine)


def test_an_archive_goes_to_another_process(data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "pictures.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "pictures", "pictures")
    images = datasets.Images(datasets.Archive(path))
    copy = pickle.loads(pickle.dumps(images))
    assert [copy.read(i) for i in range(len(copy))] == [images.read(i) for i in range(COUNT)]


def test_images_that_kill_have_a_digest_of_their_own(data: Dataset, tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    marker.touch()
    mortal = KillsOnce(data.x, 2, marker)
    assert mortal.digest() != data.x.digest()
    assert len(mortal) == len(data)
    assert torch.equal(mortal[2], data.x[2]), "once"


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"retries": -1}, {"gpus": -0.5}])
def test_settings_that_cannot_be_meant_are_refused(wrong: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 worker or more"):
        OnRay(**wrong)
