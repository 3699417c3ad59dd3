"""Behaviour of ``tlhelpers.splits``: the one shape of data, and the door to the test labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tlhelpers.splits import Dataset


def make(per_class: dict[str, int] | None = None, classes: int = 3) -> Dataset:
    """A data set whose feature is the row number; classes interleaved within each part."""
    per_class = per_class or {"train": 5, "validation": 2, "test": 4}
    parts = [part for part, k in per_class.items() for _ in range(k * classes)]
    n = len(parts)
    return Dataset(
        name="toy",
        classes=tuple("abcdefgh"[:classes]),
        x=torch.arange(n, dtype=torch.float32).unsqueeze(1),
        labels=torch.arange(n) % classes,
        split=np.array(parts),
        ids=tuple(f"row {i}" for i in range(n)),
        split_name="toy split",
    )


def test_parts_hold_their_rows_and_nothing_else() -> None:
    data = make()
    assert [len(data.train), len(data.validation), len(data.test)] == [15, 6, 12]
    rows = torch.cat([data.train.x, data.validation.x, data.test.x]).flatten()
    assert sorted(rows.tolist()) == list(range(33))
    assert data.train.ids[3] == "row 3"


def test_the_test_labels_have_one_door_with_a_log() -> None:
    test = make().test
    assert not hasattr(test, "y")
    assert not hasattr(test, "labels")
    opened = test.open(reason="to look")
    assert opened.y.tolist() == [i % 3 for i in range(21, 33)]
    assert test.readings == ("to look",)
    assert "1 readings" in repr(test)
    with pytest.raises(ValueError, match="needs a reason"):
        test.open(reason=" ")


def test_derived_data_sets_share_the_log() -> None:
    data = make()
    data.few(2).test.open(reason="few")
    data.few(3, draw=1).test.open(reason="draw")
    assert data.test.readings == ("few", "draw")


def test_few_takes_the_first_of_each_class_and_keeps_the_rest() -> None:
    data = make()
    few = data.few(2)
    assert few.train.x.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert len(few.validation) == 6
    assert len(few.test) == 12
    assert len(data.few(2, validation=1).validation) == 3


def test_a_subset_keeps_its_rows_in_order_and_shares_the_log() -> None:
    data = make()
    part = data.subset(np.array([5, 1, 0, 21]))
    assert part.ids == ("row 5", "row 1", "row 0", "row 21")
    assert part.x.flatten().tolist() == [5, 1, 0, 21]
    part.test.open(reason="subset")
    assert data.test.readings == ("subset",)
    with pytest.raises(ValueError, match="1 of 3 classes have no training example"):
        data.subset(np.array([0, 1]))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_draws_are_balanced_repeatable_and_differ(k: int) -> None:
    data = make({"train": 40, "validation": 1, "test": 1})
    draw = data.few(k, draw=1)
    assert torch.bincount(draw.train.y).tolist() == [k] * 3
    assert draw.train.ids == data.few(k, draw=1).train.ids
    assert draw.train.ids != data.few(k, draw=2).train.ids


def test_few_refuses_more_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"6 train examples a class asked for, but 'a' has only 5"):
        make().few(6)
    with pytest.raises(ValueError, match="at least 1 example a class"):
        make().few(0)


def test_batches_visit_each_example_once() -> None:
    train = make().train
    generator = torch.Generator().manual_seed(0)
    seen = [row for x, _ in train.batches(4, generator) for row in x.flatten().tolist()]
    assert sorted(seen) == train.x.flatten().tolist()
    assert seen != train.x.flatten().tolist(), "a generator shuffles"
    assert [len(y) for _, y in train.batches(4)] == [4, 4, 4, 3]
    with pytest.raises(ValueError, match="size of 1 or more"):
        next(train.batches(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "lengths"),
        ({"labels": torch.full((33,), 3)}, "labels must lie in 0..2"),
        ({"split": np.array(["train"] * 32 + ["held out"])}, "parts must be among"),
        ({"ids": ("same",) * 33}, "ids must be distinct"),
        ({"labels": torch.zeros(33, dtype=torch.int64)}, "2 of 3 classes have no training example"),
    ],
)
def test_impossible_data_sets_are_refused(change: dict[str, object], message: str) -> None:
    good = make()
    fields = {name: getattr(good, name) for name in ("name", "classes", "x", "labels", "split")}
    fields |= {"ids": good.ids, "split_name": good.split_name} | change
    with pytest.raises(ValueError, match=message):
        Dataset(**fields)  # type: ignore[arg-type]


def test_a_mask_takes_what_it_marks() -> None:
    data = make()
    marked = data.train.y == 1
    assert data.train.take(marked).ids == data.train.take(marked.nonzero()[:, 0]).ids
    kept = data.split != "validation"
    assert data.subset(kept).ids == data.subset(np.flatnonzero(kept)).ids
    with pytest.raises(ValueError, match="one boolean for each of the 15 rows"):
        data.train.take([True, False])
