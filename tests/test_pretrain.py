"""Behaviour of ``tlhelpers.pretrain``, and what the shipped weights ``"letters"`` promise."""

from __future__ import annotations

import dataclasses

import pytest

from tlhelpers import datasets, evaluate, features, models, pretrain, probe, records
from tlhelpers.characters import MILD
from tlhelpers.runtime import Run


def test_pretraining_gives_a_network_and_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "DRAWS", 2)
    recipe = dataclasses.replace(pretrain.RECIPE, steps=3, batch_size=16)
    network, record = pretrain.letters(Run(seed=1), recipe=recipe, per_class=10)
    assert network.head.out_features == 52
    assert record.name == "glyphs/letters"
    assert record.seeds == (1,)
    assert record.curve[-1]["step"] == 3
    assert set(record.result) == set(record.interval) == {
        "letters_test_top1", *(f"digits_validation_top1_{k}" for k in pretrain.LABELS)
    }  # fmt: skip


def test_the_shipped_letters_are_those_of_the_recipe() -> None:
    path = models._weights_path("letters")
    assert path.stat().st_size < 500_000
    network = models.small_resnet(weights="letters")
    assert network.about["recipe"] == pretrain.RECIPE.as_dict()
    assert network.about["command"] == pretrain.COMMAND
    assert tuple(network.about["classes"]) == datasets.glyphs(per_class=10).classes


def test_the_shipped_letters_do_what_their_record_says() -> None:
    record = records.load("glyphs/letters")
    network = models.small_resnet(weights="letters")
    data = datasets.glyphs(per_class=pretrain.PER_CLASS, shift=MILD, validation=0.05)
    found = evaluate.report(network, data.test, name="letters", resamples=2).top1.value
    # The file has half precision, and other fonts and processors round otherwise.
    assert found == pytest.approx(record.result["letters_test_top1"], abs=0.01)
    bank = features.extract(datasets.digits(), models.as_backbone(network), run=Run())
    accuracy = evaluate.validate(probe.fit(bank.few(20, draw=0)), bank.validation).value
    assert accuracy == pytest.approx(record.result["digits_validation_top1_20"], abs=0.03)
