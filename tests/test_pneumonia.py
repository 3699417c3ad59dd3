"""Behaviour of ``datasets.pneumonia_mnist``: the official file, other files, and damaged ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tlhelpers import datasets, features, models
from tlhelpers.datasets import pneumonia_mnist

COUNTS = {"train": 9, "val": 4, "test": 5}


def arrays(size: int = 28, **changed: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for part, n in COUNTS.items():
        found[f"{part}_images"] = rng.integers(0, 256, (n, size, size), dtype=np.uint8)
        found[f"{part}_labels"] = (np.arange(n)[:, None] % 3 > 0).astype(np.uint8)
    return {key: value for key, value in (found | changed).items() if value is not None}


def write(path: Path, **changed: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays(**changed))
    return path


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file whose checksum passes for the official one."""
    monkeypatch.delenv("TLHELPERS_DATA", raising=False)
    path = write(tmp_path / "here" / "pneumoniamnist.npz")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets, "PNEUMONIA_MD5", {**datasets.PNEUMONIA_MD5, 28: md5})
    return path


def test_the_official_file_is_a_data_set(official: Path) -> None:
    data = pneumonia_mnist(official)
    assert repr(data) == (
        "Dataset 'pneumoniamnist': 2 classes; train 9, validation 4, test 5; split "
        "'official (4,708/524/624)'"
    )
    stored = arrays()
    assert data.classes == ("normal", "pneumonia")
    assert data.validation.x.dtype == torch.uint8
    for channel in range(3):
        assert np.array_equal(data.validation.x[:, channel], stored["val_images"])
    assert data.train.y.tolist() == stored["train_labels"].ravel().tolist()
    assert data.train.ids[8] == "train/0008"
    assert data.test.ids[0] == "test/0000"


def test_where_it_is_looked_for(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pneumonia_mnist(official.parent).name == "pneumoniamnist"
    with pytest.raises(FileNotFoundError, match="TLHELPERS_DATA is not set") as caught:
        pneumonia_mnist()
    for word in ("pneumoniamnist.npz", str(tmp_path / "cache"), "path=", "download=True", "4 MB"):
        assert word in str(caught.value)
    monkeypatch.setenv("TLHELPERS_DATA", str(official.parent))
    assert pneumonia_mnist().split_name == datasets.PNEUMONIA_SPLIT
    with pytest.raises(
        FileNotFoundError, match=r"no pneumoniamnist_64\.npz found in .*here.*21 MB"
    ):
        pneumonia_mnist(size=64)


def test_another_file_is_taken_by_path_alone_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "pneumoniamnist_part.npz")
    monkeypatch.setenv("TLHELPERS_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"There is pneumoniamnist_part\.npz: .* as path="):
        pneumonia_mnist()
    data = pneumonia_mnist(path)
    assert data.name == "pneumoniamnist_part"
    assert data.split_name == "of pneumoniamnist_part.npz, not the official file"
    large = write(tmp_path / "large.npz", size=64)
    assert pneumonia_mnist(large, size=64).x.shape == (18, 3, 64, 64)


def test_a_wrong_checksum_under_the_official_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "pneumoniamnist.npz")
    monkeypatch.setenv("TLHELPERS_DATA", str(tmp_path))
    for call in (path, tmp_path, None):
        with pytest.raises(ValueError, match=r"its md5 is \w{32}, expected 28209eda.*rename it"):
            pneumonia_mnist(call)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val_labels": None}, "val_labels"),
        ({"size": 64}, r"shape \(n, 28, 28\), found uint8 of shape \(9, 64, 64\).*size="),
        ({"test_images": np.zeros((5, 28, 28))}, "test films should be uint8 .* found float64"),
        ({"train_labels": np.zeros((8, 1), dtype=np.uint8)}, "should be 9 integers"),
        ({"train_labels": np.full((9, 1), 2)}, "0 or 1"),
        ({"train_labels": np.array([None] * 9)}, "should be a whole file"),
        ({"train_labels": np.ones((9, 1), dtype=np.uint8)}, "have no training example"),
    ],
)
def test_files_of_another_format(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        pneumonia_mnist(write(tmp_path / "other.npz", **changed))


def test_damaged_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for name, content in (("cut", whole[:-40]), ("flipped", bytes(flipped)), ("text", b"hello")):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.npz should be a whole file"):
            pneumonia_mnist(path)


def test_other_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="28, 64, 128, 224 pixels, found size=32"):
        pneumonia_mnist(size=32)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pneumonia_mnist(tmp_path / "nowhere.npz")
    with pytest.raises(FileNotFoundError, match=r"no pneumoniamnist\.npz found"):
        pneumonia_mnist(tmp_path, download=True)  # a path is where the reader says it is


@pytest.mark.parametrize("size", datasets.PNEUMONIA_MD5)
def test_download_fetches_the_official_file_once(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fake(url: str, *, path: Path, md5: str) -> Path:
        assert url == f"https://zenodo.org/records/10519652/files/{path.name}?download=1"
        assert len(bytes.fromhex(md5)) == 16
        fetched.append(path.name)
        return write(path, size=size)

    monkeypatch.delenv("TLHELPERS_DATA", raising=False)
    monkeypatch.setattr(datasets, "fetch", fake)
    with pytest.raises(ValueError, match="another content"):  # ours is not the official one
        pneumonia_mnist(size=size, download=True)
    assert fetched == ["pneumoniamnist.npz" if size == 28 else f"pneumoniamnist_{size}.npz"]
    assert (tmp_path / "cache" / "pneumonia_mnist" / fetched[0]).is_file()


def test_a_backbone_takes_the_films(official: Path) -> None:
    backbone = models.backbone("squeezenet1_1", weights=None)
    bank = features.extract(pneumonia_mnist(official), backbone)
    assert bank.x.shape == (18, 512)
    assert bank.name == "pneumoniamnist/squeezenet1_1"


def test_the_reduced_file(shared_data: Path) -> None:
    data = pneumonia_mnist(shared_data / "pneumoniamnist_reduced.npz")
    assert [len(data.train), len(data.validation), len(data.test)] == [3882, 524, 624]
    assert data.train.y.bincount().tolist() == [388, 3494]
    assert data.validation.y.bincount().tolist() == [135, 389]
    assert "not the official file" in data.split_name
