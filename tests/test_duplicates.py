"""Behaviour of ``tlhelpers.duplicates``: pairs against brute force, and planted copies."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from test_features import pictures

from tlhelpers import duplicates
from tlhelpers.splits import Dataset


def bank(n: int = 40, d: int = 6, *, seed: int = 0) -> Dataset:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return Dataset(
        name="features",
        classes=("a", "b"),
        x=x,
        labels=torch.arange(n) % 2,
        split=np.resize(["train", "validation", "test"], n),
        ids=tuple(f"{i:03}" for i in range(n)),
        split_name="made",
    )


@pytest.mark.parametrize("block", [7, 40, 1000])
def test_the_nearest_pairs_are_those_of_all_cosines(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    data = bank()
    cosines = 1 - pdist(data.x.numpy(), "cosine")
    n = len(cosines)
    for wanted in (1, 25, n):
        pairs = duplicates.nearest_pairs(data, wanted)
        expected = np.sort(cosines)[::-1][:wanted]
        np.testing.assert_allclose(pairs["similarity"], expected, atol=1e-5)
    # Each pair once, and every pair in the end.
    assert len({frozenset(pair) for pair in pairs[["first", "second"]].to_numpy()}) == n


def test_a_pair_says_where_it_is_from() -> None:
    data = bank()
    x = data.x.clone()
    x[31] = 2 * x[4]
    row = duplicates.nearest_pairs(dataclasses.replace(data, x=x), 1).iloc[0]
    assert row.to_dict() == pytest.approx(
        {
            "similarity": 1.0,
            "first": "004", "first_part": "validation", "first_class": "a",
            "second": "031", "second_part": "validation", "second_class": "b",
        }
    )  # fmt: skip


@pytest.mark.parametrize("n", [0, 781])
def test_there_must_be_so_many_pairs(n: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and the 780 pairs there are, found {n}"):
        duplicates.nearest_pairs(bank(), n)


def test_features_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"features of shape \(examples, d\), found .*Extract"):
        duplicates.nearest_pairs(pictures(), 1)


def test_likeness_knows_copies_and_tells_strangers_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(2, 3, 6, 8, generator=generator)
    one, other = torch.nn.functional.interpolate(rough, size=(90, 120), mode="bilinear")
    copy = torch.nn.functional.interpolate(one[None], size=(60, 60), mode="bilinear")[0]
    assert duplicates.likeness(one, copy) > 0.99
    assert duplicates.likeness(one, 0.4 * copy.flip(-1) + 0.3) > 0.99
    assert duplicates.likeness(one, other) < 0.7
    # An image of one colour is like nothing.
    assert duplicates.likeness(one, torch.ones(3, 5, 5)) == pytest.approx(0, abs=1e-5)


def test_planted_copies_are_found_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(1)
    rough = torch.rand(40, 3, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(rough, size=(48, 48), mode="bilinear")
    images[12] = images[3].flip(-1)  # train and train: one class less two
    images[8] = images[6]  # train and test
    features = bank()
    x = features.x.clone()
    x[12], x[8] = x[3] + 0.01, x[6] - 0.01
    photos = dataclasses.replace(features, x=images)
    record = duplicates.near_duplicates(photos, dataclasses.replace(features, x=x), proposed=50)
    assert {(row["first"], row["second"]) for row in record.curve} == {
        ("003", "012"),
        ("006", "008"),
    }
    assert record.result == {
        "pairs": 2,
        "with_two_classes": 1,
        "across_train_and_test": 1,
        "images": 4,
    }
    assert not features.test.readings


def test_the_bank_must_be_of_these_photographs() -> None:
    features = bank()
    others = dataclasses.replace(features, ids=tuple(f"x{i}" for i in range(40)))
    with pytest.raises(ValueError, match=r"but 000 \(and 39 more\) is not among the 40"):
        duplicates.near_duplicates(others, features)
