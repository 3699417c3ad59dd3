"""Behaviour of ``tlhelpers.xrays``: draws of few films, forms of the films, and the studies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from tlhelpers import features, models, xrays
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

SIZES = {"train": (20, 60), "validation": (8, 12), "test": (9, 11)}


def films(*, size: int = 28, seed: int = 0) -> Dataset:
    """Grey noise; the films of the second class are brighter in one corner."""
    rng = np.random.default_rng(seed)
    y, split = [], []
    for part, counts in SIZES.items():
        y += [0] * counts[0] + [1] * counts[1]
        split += [part] * sum(counts)
    x = rng.integers(0, 120, (len(y), 1, size, size))
    x[np.array(y) == 1, :, : size // 2, : size // 2] += 100
    return Dataset(
        name="films",
        classes=("normal", "pneumonia"),
        x=torch.from_numpy(x.astype(np.uint8)).expand(-1, 3, -1, -1),
        labels=torch.tensor(y),
        split=np.array(split),
        ids=tuple(f"{part}/{i}" for i, part in enumerate(split)),
        split_name="toy",
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights in the files that the studies take."""
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for name in ("mobilenet_v2", "squeezenet1_1"):
        torch.manual_seed(0)
        state = torchvision.models.get_model(name, weights=None).state_dict()
        found[name] = folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, found[name])
    return found


@pytest.mark.parametrize("n", [2, 3, 10, 37, 80])
def test_few_keeps_the_shares_and_no_class_is_lost(n: int) -> None:
    data = films()
    chosen = xrays.few(data, n, draw=0)
    counts = chosen.train.y.bincount(minlength=2).tolist()
    assert sum(counts) == n
    assert counts[0] == max(1, counts[0])
    assert abs(counts[0] - n / 4) <= 1
    assert chosen.validation.ids == data.validation.ids
    assert chosen.test.ids == data.test.ids


def test_a_draw_with_fewer_labels_lies_in_that_with_more() -> None:
    data = films()
    ids = [set(xrays.few(data, n, draw=3).train.ids) for n in (4, 12, 40, 80)]
    assert ids[0] < ids[1] < ids[2] < ids[3]
    assert set(xrays.few(data, 12, draw=4).train.ids) != ids[1]
    assert set(xrays.few(data, 12, draw=3).train.ids) == ids[1]


@pytest.mark.parametrize("n", [1, 81])
def test_few_says_how_many_there_are(n: int) -> None:
    with pytest.raises(ValueError, match=f"ask for 2 to 80, found {n}"):
        xrays.few(films(), n, draw=0)


def test_forms_of_the_films() -> None:
    data = films()
    assert xrays.shares(data) == [0.25, 0.75]
    grey, flat = xrays.grey(data), xrays.pixels(data)
    assert grey.x.shape == (len(data), 1, 28, 28)
    assert torch.equal(flat.x, grey.x.flatten(1))
    assert torch.equal((grey.x * 255).round().byte(), data.x[:, :1])
    grey.test.open(reason="one log for all forms")
    assert data.test.readings == ("one log for all forms",)


def test_jitter_moves_films_and_keeps_their_range() -> None:
    x = films().x[:5]
    moved = xrays.JITTER(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    assert moved.dtype == torch.float32
    assert 0 <= moved.min() <= moved.max() <= 1
    assert torch.equal(moved[:, 0], moved[:, 2])
    again = xrays.JITTER(x[:, :1].float() / 255, torch.Generator().manual_seed(0))
    torch.testing.assert_close(again, moved[:, :1])


def test_scratch_learns_from_the_training_films_alone() -> None:
    recipe = dataclasses.replace(xrays.SCRATCH, steps=40, batch_size=16)
    data = films()
    network = xrays.scratch(data, Run(), recipe=recipe)
    other = data.labels.clone()
    other[torch.from_numpy(data.split != "train")] = 0
    same = xrays.scratch(dataclasses.replace(data, labels=other), Run(), recipe=recipe)
    for a, b in zip(network.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    shown = xrays.grey(data).validation
    assert float((network(shown.x).argmax(1) == shown.y).double().mean()) > 0.8


def test_what_is_frozen_stays(weights: dict[str, Path]) -> None:
    recipe = dataclasses.replace(xrays.TUNING, steps=2)
    start = models.photo_classifier("squeezenet1_1", 2, weights=weights["squeezenet1_1"], size=64)
    assert len(xrays.units(start)) == 9
    tuned = xrays.finetune(
        films(), "squeezenet1_1", Run(), weights=weights["squeezenet1_1"], frozen=6, recipe=recipe
    )
    moved = [
        any(not torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        for a, b in zip(xrays.units(start), xrays.units(tuned), strict=True)
    ]
    assert moved == [False] * 6 + [True] * 3
    with pytest.raises(ValueError, match="has 0 to 9 units to freeze, found 10"):
        xrays.finetune(films(), "squeezenet1_1", Run(), weights=weights["squeezenet1_1"], frozen=10)


def test_the_path_of_resnet50() -> None:
    recipe = dataclasses.replace(xrays.TUNING, steps=1, batch_size=4)
    network = xrays.finetune(films(), "resnet50", Run(), weights=None, size=32, recipe=recipe)
    assert network(films().x[:2]).shape == (2, 2)
    assert len(xrays.units(network)) == 6


def test_the_record_of_labels(weights: dict[str, Path]) -> None:
    recipe = dataclasses.replace(xrays.SCRATCH, steps=2)
    data = films()
    record = xrays.labels(
        Run(), data=data, weights=weights["mobilenet_v2"], grid=(8,), draws=2, recipe=recipe
    )
    assert record.name == "xrays/labels"
    frame = record.to_frame()
    assert len(frame) == 6 * 2 * 2
    assert set(frame["way"]) == {"pixels", *xrays.STAGES, "scratch"}
    assert set(frame["n"]) == {8, 80}
    at_all = frame[(frame["way"] == "pixels") & (frame["n"] == 80)]
    assert at_all["auc"].nunique() == 1  # all films: nothing is drawn
    assert at_all["auc"].iloc[0] > 0.95
    eight = frame[frame["n"] == 8].set_index(["way", "draw"])["auc"]
    gap = record.estimate("pixels minus scratch auc, 8 labels")
    assert gap.value == pytest.approx((eight["pixels"] - eight["scratch"]).mean())
    assert record.estimate("scratch top1, 8 labels").low <= frame["top1"].max()
    assert len(data.test.readings) == 6


def test_the_record_of_layers(weights: dict[str, Path]) -> None:
    recipe = dataclasses.replace(xrays.TUNING, steps=1, batch_size=8)
    record = xrays.layers(
        Run(), data=films(), weights=weights["squeezenet1_1"], grid=(8, 12), draws=2, recipe=recipe
    )
    frame = record.to_frame()
    assert len(frame) == 5 * 2 + 2
    assert set(frame[frame["n"] == 12]["way"]) == {"all layers"}
    assert "head minus all layers auc, 8 labels" in record.interval


@pytest.mark.parametrize("way", xrays.STAGES)
def test_the_shipped_banks(way: str) -> None:
    bank = features.load(f"pneumonia/{xrays.bank_name(way)}")
    assert [len(bank.train), len(bank.validation), len(bank.test)] == [3882, 524, 624]
    assert bank.train.y.bincount().tolist() == [388, 3494]
    assert "not the official file" in bank.split_name
    assert bank.provenance is not None
    assert bank.provenance.at == xrays.STAGES[way]
    assert bank.provenance.command == xrays.BANK_COMMAND
    assert bank.train.ids[17] == "train/0017"


def test_the_shipped_banks_are_small() -> None:
    folder = Path(features.__file__).parent / "data" / "banks" / "pneumonia"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
