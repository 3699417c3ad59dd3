"""The studies of chapter 15 with models hardly trained, and the shipped records."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tlhelpers import captions, records, words_study
from tlhelpers.contrastive import Plan
from tlhelpers.evaluate import mean_interval

SEEDS = (0, 1)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of training, and few pictures."""
    plan = Plan(steps=2, batch_size=16)

    def train(seed: int, way: str = words_study.CONTRASTIVE) -> torch.nn.Module:
        return words_study.train(seed, way, plan=plan)[0]

    monkeypatch.setattr(words_study, "trained", functools.cache(train))
    small = functools.partial(captions.exam, sizes=(640, 100, 640))
    monkeypatch.setattr(captions, "exam", small)


@pytest.mark.usefixtures("short")
def test_combinations_are_counted_apart() -> None:
    record = words_study.combinations(seeds=SEEDS)
    assert len(record.curve) == len(SEEDS) * len(words_study.WAYS)
    for row in record.curve:
        assert len(row["characters"]) == 40
        for part in ("seen", "unseen"):
            assert 0 <= row[f"both_{part}"] <= min(row[f"name_{part}"], row[f"style_{part}"])


@pytest.mark.usefixtures("short")
def test_every_head_is_read_once() -> None:
    record = words_study.few_labels(seeds=SEEDS, shots=(1, 2), draws=1)
    frame = record.to_frame()
    assert len(frame) == len(SEEDS) * 2 * len(words_study.METHODS)
    words = frame[frame["method"] == "zero-shot"]
    assert words.groupby("seed")["top1"].nunique().eq(1).all()  # words need no label
    assert words["ridge"].isna().all()


@pytest.mark.usefixtures("short")
def test_wordings_and_the_space_are_measured_for_every_seed() -> None:
    asked = words_study.prompts(seeds=SEEDS).to_frame()
    assert len(asked) == len(SEEDS) * (2 * len(words_study.PROMPTS) + 2)
    inside = words_study.inside(seeds=SEEDS)
    assert all(row["bound"] < row["possible"] for row in inside.curve)


def test_an_average_lies_between_two_heads() -> None:
    heads = [words_study.Head(torch.full((2, 3), value), 1.0) for value in (0.0, 4.0)]
    assert (words_study.average_heads(*heads, alpha=0.25).weight == 1).all()


def test_a_trained_model_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path))
    calls = []
    real = words_study.train

    def train(seed: int, way: str) -> tuple[torch.nn.Module, pd.DataFrame]:
        calls.append(way)
        return real(seed, way, plan=Plan(steps=1, batch_size=8))

    monkeypatch.setattr(words_study, "train", train)
    first, second = (words_study.trained.__wrapped__(3, words_study.LABELS) for _ in range(2))
    assert calls == [words_study.LABELS]
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not second.training


def test_shipped_figures_follow_from_their_rows() -> None:
    few = records.load("words/few")
    table = few.to_frame().groupby(["k", "method", "seed"])["top1"].mean()
    for k in words_study.SHOTS:
        for method in words_study.METHODS:
            again = mean_interval(table[k, method].to_numpy())
            assert few.estimate(f"{method}, {k}").value == pytest.approx(again.value)
            assert few.estimate(f"{method}, {k}").high == pytest.approx(again.high)
    combinations = records.load("words/combinations").to_frame()
    assert set(combinations["way"]) == set(words_study.WAYS)
    assert combinations.groupby("way")["seed"].nunique().eq(len(words_study.SEEDS)).all()
    inside = records.load("words/inside").to_frame()
    assert np.allclose(inside["possible"], captions.information(captions.held_out(0)))
