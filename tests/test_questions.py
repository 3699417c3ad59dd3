"""Banking77: the split, what goes wrong with files, and the bank that is made of it."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import tlhelpers as tl
from tlhelpers import questions
from tlhelpers.questions import Texts


def write(folder: Path, name: str, rows: list[tuple[str, str]], header: str = "category") -> None:
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", header), *rows])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [(f"Question {i}, with a comma\nand a line?", "Top_up") for i in range(14)]
    rows += [(f"Where is card {i}?", "card_gone?") for i in range(12)]
    write(tmp_path, "train.csv", rows)
    write(tmp_path, "test.csv", [("Hello?", "card_gone?"), ("Money?", "Top_up")])
    return tmp_path


def test_split_is_by_hash_within_each_intent(folder: Path) -> None:
    data = tl.datasets.banking77(folder)
    assert data.classes == ("card gone", "top up")
    assert [int((data.split == part).sum()) for part in ("train", "validation", "test")] == [
        6,
        20,
        2,
    ]
    for label in (0, 1):
        hashes = {
            part.name: [
                hashlib.sha256(text.encode()).hexdigest()
                for text, y in zip(part.x, part.y.tolist(), strict=True)
                if y == label
            ]
            for part in (data.train, data.validation)
        }
        assert max(hashes["validation"]) < min(hashes["train"])
    assert data.train.ids == tuple(sorted(data.train.ids))  # in the file's order
    assert data.test.ids == ("test 0000", "test 0001")
    assert "comma\nand" in data.train.x[0]


def test_texts_come_in_batches_of_texts(folder: Path) -> None:
    data = tl.datasets.banking77(folder)
    batches = list(data.train.batches(4))
    assert [len(x) for x, _ in batches] == [4, 2]
    assert all(isinstance(x, Texts) for x, _ in batches)
    assert [t for x, _ in batches for t in x] == list(data.train.x)
    few = data.few(2, draw=0)
    assert len(few.train) == 4
    with pytest.raises(TypeError, match="strings"):
        Texts(["a", 1])  # type: ignore[list-item]


def test_a_network_is_not_trained_on_texts(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"tensor|lazy"):
        tl.train.fit(torch.nn.Linear(3, 2), tl.datasets.banking77(folder))


def test_what_is_wrong_with_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TLHELPERS_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="download=True"):
        tl.datasets.banking77()
    with pytest.raises(FileNotFoundError, match="is none"):
        tl.datasets.banking77(folder / "nowhere")
    write(folder, "test.csv", [("Hello?", "card_gone?"), ("Loan?", "loan")])
    with pytest.raises(ValueError, match="'loan' is in one"):
        tl.datasets.banking77(folder)
    write(folder, "test.csv", [("Hello?", "")])
    with pytest.raises(ValueError, match="no category"):
        tl.datasets.banking77(folder)
    write(folder, "test.csv", [("Hello?", "card_gone?")], header="label")
    with pytest.raises(ValueError, match="columns text and category"):
        tl.datasets.banking77(folder)


def test_found_where_the_variable_points(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLHELPERS_DATA", str(folder))
    assert len(tl.datasets.banking77()) == 28


def test_download_fetches_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, *, path: Path, size: int, sha256: str) -> Path:
        asked.append((url, size, sha256))
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path.parent, path.name, [(f"Text {i}?", "a") for i in range(12)])
        return path

    monkeypatch.delenv("TLHELPERS_DATA", raising=False)
    monkeypatch.setattr(questions, "fetch", fetch)
    assert len(tl.datasets.banking77(download=True)) == 24
    assert [url.rpartition("/")[2] for url, _, _ in asked] == ["train.csv", "test.csv"]
    assert all(url.startswith("https://") and len(sha) == 64 for url, _, sha in asked)


def test_the_official_files(shared_data: Path) -> None:
    data = tl.datasets.banking77(shared_data / "banking77")
    assert len(data.classes) == 77
    parts = [int((data.split == part).sum()) for part in ("train", "validation", "test")]
    assert parts == [9233, 770, 3080]
    bank = tl.features.load("banking77/all-MiniLM-L6-v2")
    assert bank.ids == data.ids
    assert bank.classes == data.classes
    assert torch.equal(bank.labels, data.labels)
    assert np.array_equal(bank.split, data.split)
    for name, (size, sha256) in questions.FILES.items():
        content = (shared_data / "banking77" / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, sha256)


def test_the_shipped_banks_fit_each_other() -> None:
    bank = tl.features.load("banking77/all-MiniLM-L6-v2")
    names = tl.features.load("banking77/intent_names")
    assert names.classes == bank.classes == names.ids
    assert names.x.shape == (77, bank.x.shape[1])
    # A name lies nearer to the questions of its own intent than to the average one.
    means = torch.stack([bank.train.x[bank.train.y == c].mean(0) for c in range(77)])
    distance = torch.cdist(names.x, means)
    assert (distance.diagonal() < distance.mean(dim=1)).float().mean() > 0.95
