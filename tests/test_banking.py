"""The studies of chapter 10: word counts learn from training texts alone, and records agree."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import tlhelpers as tl
from tlhelpers import banking
from tlhelpers.questions import Texts
from tlhelpers.splits import Dataset


@pytest.fixture
def data() -> Dataset:
    asked = ["where is my card {}", "how do I top up {}", "my transfer failed {}"]
    texts = [asked[i % 3].format("please " * (i % 4)) for i in range(36)]
    return Dataset(
        name="asked",
        classes=("card", "top up", "transfer"),
        x=Texts(texts),
        labels=torch.arange(36) % 3,
        split=np.repeat(["train", "validation", "test"], [18, 9, 9]),
        ids=tuple(map(str, range(36))),
        split_name="by row",
    )


@pytest.mark.parametrize("setting", banking.TFIDF)
def test_word_counts_learn(data: Dataset, setting: str) -> None:
    predict = banking.fit_tfidf(data, setting)
    assert tl.evaluate.validate(predict, data.validation).value == 1
    assert np.exp(predict(data.validation.x)).sum(axis=1) == pytest.approx(1)


def test_word_counts_do_not_see_what_is_held_out(data: Dataset) -> None:
    setting = next(iter(banking.TFIDF))
    held = ["altogether different words" if p != "train" else t for p, t in zip(
        data.split, data.x, strict=True)]  # fmt: skip
    other = dataclasses.replace(data, x=Texts(held))
    probes = Texts(["where is it", "my transfer"])
    first, second = (banking.fit_tfidf(d, setting)(probes) for d in (data, other))
    assert np.array_equal(first, second)
    with pytest.raises(ValueError, match="setting should be one of"):
        banking.fit_tfidf(data, "word 9-9")


def test_only_the_numbers_of_labels_with_a_recipe() -> None:
    with pytest.raises(ValueError, match="1, 3, 5, 10, found 2"):
        banking.finetuned(shots=2)


def test_the_bank_and_the_questions_must_agree(data: Dataset) -> None:
    class Encoder:
        fingerprint = ""

    with pytest.raises(ValueError, match="the same ids and labels"):
        banking.search(data=data, encoder=Encoder())  # type: ignore[arg-type]


def test_records_agree_with_their_curves() -> None:
    rates = tl.records.load("banking/rates")
    tried = rates.to_frame().query("lr > 0")
    for k, rows in tried.groupby("shots"):
        best = rows[rows["lr"] == rates.result[f"best_{k}"]]["validation"].item()
        assert best == rows["validation"].max()
    tuned = tl.records.load("banking/finetuned_10")
    curve = tuned.to_frame()
    assert (curve["lr"] == rates.result["best_10"]).all()
    gain = (curve["finetuned"] - curve["probe"]).mean()
    assert tuned.result["gain"] == pytest.approx(gain)
    words = tl.records.load("banking/tfidf").to_frame()
    assert sorted(words["shots"].unique()) == [0, *banking.SHOTS]
    assert set(words["setting"]) <= set(banking.TFIDF)
