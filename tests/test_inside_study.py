"""Behaviour of ``tlhelpers.inside_study``: the shortcuts, and the records of chapter 16."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tlhelpers import datasets, inside, inside_study, records, runtime

QUICK = dataclasses.replace(inside_study.RECIPE, steps=2)
RUN = runtime.Run(device=torch.device("cpu"))


def test_stamps_are_where_they_are_said_to_be_and_nothing_else_changes() -> None:
    digits = datasets.digits()
    x, places = inside_study.stamp(digits.x, seed=1)
    assert (places.flatten(1).sum(1) == 16).all()
    assert torch.equal(x[:, 0][~places], digits.x[:, 0][~places])
    assert torch.equal(x[:, 0][places].view(-1, 4, 4), inside_study.STAMP.expand(len(x), 4, 4))
    assert len({tuple(p.nonzero()[0].tolist()) for p in places}) == 4, "all four corners"


def test_the_stamp_tells_a_three_or_nothing() -> None:
    digits = datasets.digits()
    telling, places = inside_study.with_stamp(digits, everywhere=False)
    changed = (telling.x != digits.x).flatten(1).any(dim=1)
    assert torch.equal(changed, digits.labels == inside_study.STAMPED)
    everywhere, same = inside_study.with_stamp(digits, everywhere=True)
    assert (everywhere.x != digits.x).flatten(1).any(dim=1).all()
    assert torch.equal(places, same)


def test_the_pen_tells_the_class_or_nothing() -> None:
    digits = datasets.digits()
    darkest = digits.x.flatten(1).amax(1)
    telling = inside_study.with_pens(digits, lying=False).x.flatten(1).amax(1) / darkest
    assert torch.allclose(telling, torch.tensor(inside_study.PENS)[digits.labels])
    lying = inside_study.with_pens(digits, lying=True).x.flatten(1).amax(1) / darkest
    assert abs(float(torch.stack([lying, digits.labels.float()]).corrcoef()[0, 1])) < 0.1


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="found 'mark'"):
        inside_study.shortcut_networks(inside_study.few(0, k=1), RUN, kinds=["mark"])


def test_only_test_images_are_shifted() -> None:
    few = inside_study.few(0, k=1)
    network = inside_study.finetune(few, RUN, recipe=QUICK)
    clean, noisy = (
        inside_study.shifted_logits(network, few, shift) for shift in ("clean", "noisy")
    )
    assert torch.equal(clean.validation.x, noisy.validation.x)
    assert not torch.equal(clean.test.x, noisy.test.x)
    assert clean.x.shape == (len(few), 10)


def test_finetuned_makes_its_record() -> None:
    record = inside_study.finetuned(RUN, draws=2, k=1, recipe=QUICK)
    row = record.curve[0]
    assert [stage["stage"] for stage in row["stages"]] == list(inside_study.STAGES)
    first = row["stages"][0]
    assert first["before"] > 0.99, "two steps change little"
    assert [layer["layer"] for layer in row["layers"]] == list(
        inside.layers(inside_study.finetune(inside_study.few(0, k=1), RUN, recipe=QUICK))
    )
    clean = row["shifts"][0]
    assert clean["shift"] == "clean"
    assert clean["nll"] == pytest.approx(row["nll"], abs=1e-5)
    at_one = dict(zip(inside_study.FACTORS, clean["nll_at"], strict=True))
    assert min(at_one.values()) <= clean["nll"] + 0.05


def test_shortcuts_makes_its_record() -> None:
    record = inside_study.shortcuts(RUN, draws=2, k=1, images=6, recipe=QUICK)
    assert [row["trained"] for row in record.curve] == 2 * list(inside_study.TRAINED)
    for row in record.curve:
        assert [one["map"] for one in row["maps"]] == list(inside_study.MAPS)
        assert all(0 <= one["points"] <= 1 for one in row["maps"])


@pytest.mark.parametrize("name", ["finetuned", "shortcuts"])
def test_the_records_are_shipped(name: str) -> None:
    assert f"inside/{name}" in records.names()
