"""Behaviour of ``tlhelpers.labels``: the four ways, their search, and the study made small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tlhelpers import datasets, evaluate, labels, models, probe
from tlhelpers.characters import Shift
from tlhelpers.evaluate import Report
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

RUN = Run(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.digits()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network that has learnt nothing: enough to see what is done with them."""
    network = models.small_resnet(3, seed=5)
    path = tmp_path_factory.mktemp("weights") / "source.safetensors"
    return models.save_small_resnet(network, path, classes=("a", "b", "c"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two settings for each way, and hardly any steps."""
    recipes = {
        name: dataclasses.replace(labels.RECIPES[name], steps=2, validate_every=1)
        for name in ("lr 0.001", "lr 0.01, augmented")
    }
    monkeypatch.setattr(labels, "RECIPES", recipes)
    monkeypatch.setattr(labels, "RIDGES", {"ridge 1": 1.0, "ridge 0.1": 0.1})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("way", labels.WAYS)
def test_each_way_learns_from_the_training_images_alone(
    way: str, digits: Dataset, source: Path
) -> None:
    few = digits.few(2, draw=0)
    before = len(digits.test.readings)
    setting = list(labels.settings(way))[-1]
    first, second = (labels.learn(way, few, setting, source=source, run=RUN) for _ in range(2))
    scores = evaluate.validate(first.predict, digits.validation, resamples=2)
    assert 0 <= scores.value <= 1
    x = digits.validation.x[:5]
    with torch.no_grad():
        assert first.predict(x).shape == (5, 10)
        assert torch.equal(first.predict(x), second.predict(x)), "the same seed, the same result"
    assert (first.history is None) == (way in ("pixels", "frozen"))
    assert len(digits.test.readings) == before


def test_frozen_is_a_probe_on_the_features_of_the_source(digits: Dataset, source: Path) -> None:
    few = digits.few(3, draw=1)
    learnt = labels.learn("frozen", few, "ridge 0.1", source=source, run=RUN)
    network = models.small_resnet(weights=source).eval()
    with torch.no_grad():
        seen = dataclasses.replace(few, x=network.features(few.x))
        shown = network.features(digits.validation.x)
        scores = learnt.predict(digits.validation.x)
    by_hand = probe.fit(seen, ridge=0.1, run=RUN)(shown)
    assert torch.allclose(scores.float(), by_hand.float(), atol=0.02)


def test_fine_tuning_starts_from_the_source_and_scratch_does_not(
    digits: Dataset, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = dataclasses.replace(labels.RECIPES["lr 0.001"], steps=1, lr=1e-12, head_lr=1e-12)
    monkeypatch.setattr(labels, "RECIPES", {"still": still})
    expected = models.small_resnet(weights=source).stem[0].weight
    for way, is_source in (("fine-tuned", True), ("scratch", False)):
        learnt = labels.learn(way, digits.few(1, draw=0), "still", source=source, run=RUN)
        assert isinstance(learnt.predict, models.SmallResNet)
        assert torch.allclose(learnt.predict.stem[0].weight, expected, atol=1e-5) == is_source


def test_unknown_ways_and_settings_are_refused(digits: Dataset) -> None:
    with pytest.raises(ValueError, match=r"one of pixels, frozen.*'magic'"):
        labels.learn("magic", digits, "ridge 1", run=RUN)
    with pytest.raises(ValueError, match="scratch has the settings lr"):
        labels.learn("scratch", digits, "ridge 1", run=RUN)


@pytest.mark.usefixtures("small")
def test_search_tries_every_setting_and_reads_no_test_image(digits: Dataset, source: Path) -> None:
    before = len(digits.test.readings)
    for way in ("pixels", "scratch"):
        scores = labels.search(way, digits, 1, draws=(7,), source=source, run=RUN)
        assert list(scores.index) == list(labels.settings(way))
        assert scores.between(0, 1).all()
    assert len(digits.test.readings) == before


def test_graded_letters_differ_in_what_is_asked_for() -> None:
    data = labels.graded("noise", {"none": 0.0, "some": 0.1, "much": 0.3}, per_class=60)
    assert data.classes == ("none", "some", "much")
    assert {part: (data.split == part).sum() for part in ("train", "validation", "test")} == {
        "train": 90,
        "validation": 36,
        "test": 54,
    }
    assert data.train.y.bincount().tolist() == [30, 30, 30]
    # Noise is what differs from one pixel to the next but one.
    rough = (data.x[..., 2:] - data.x[..., :-2]).abs().median(-1).values.mean((1, 2))
    means = [rough[data.labels == c].mean() for c in range(3)]
    assert means == sorted(means)
    again = labels.graded("noise", {"none": 0.0, "some": 0.1, "much": 0.3}, per_class=60)
    assert torch.equal(data.x, again.x)


@pytest.mark.parametrize("name", labels.FAR)
def test_far_tasks_have_the_labels_that_the_study_takes(name: str) -> None:
    task = labels.FAR[name]()
    assert len(task.classes) == 5
    assert len(task.few(labels.FAR_LABELS, draw=0).train) == 5 * labels.FAR_LABELS
    assert 0 <= float(task.x.min()) <= float(task.x.max()) <= 1


def reports(*answers: list[int]) -> list[Report]:
    """A report for each list of answers, on images whose classes are 0, 1, 0, 1, ..."""
    n = len(answers[0])
    truth = torch.arange(n) % 2
    data = Dataset(
        name="toy",
        classes=("even", "odd"),
        x=torch.zeros(n + 2, 1),
        labels=torch.cat([truth, torch.tensor([0, 1])]),
        split=np.array(["test"] * n + ["train"] * 2),
        ids=tuple(f"{i:03}" for i in range(n + 2)),
        split_name="toy",
    )
    made = []
    for answer in answers:
        scores = 5.0 * torch.nn.functional.one_hot(torch.tensor(answer), 2) - 1
        made.append(evaluate.report(lambda x, s=scores: s, data.test, name="toy", resamples=2))
    return made


def test_a_gain_is_the_mean_difference_over_draws() -> None:
    right, wrong = [0, 1] * 20, [1, 0] * 20
    half = [0, 0] * 20
    assert labels.gain(reports(right, right), reports(wrong, wrong)).value == 1
    same = labels.gain(reports(right, half), reports(right, half))
    assert (same.value, same.low, same.high) == (0, 0, 0)
    mixed = labels.gain(reports(right, right), reports(half, half))
    assert mixed.value == 0.5
    assert 0.2 < mixed.low < 0.5 < mixed.high < 0.8, "forty images leave the gain uncertain"
    assert mixed.unit == "points"


def test_the_interval_of_a_gain_covers_draws_too() -> None:
    right, wrong = [0, 1] * 20, [1, 0] * 20
    steady = labels.gain(reports(right, right), reports(wrong, wrong))
    lucky = labels.gain(reports(right, wrong), reports(wrong, wrong))
    assert lucky.high - lucky.low > steady.high - steady.low


def test_a_gain_needs_pairs() -> None:
    one, two = reports([0, 1]), reports([0, 1], [0, 1])
    for ours, theirs in ((one, one), (two, one)):
        with pytest.raises(ValueError, match="one for each draw"):
            labels.gain(ours, theirs)


@pytest.mark.usefixtures("small")
def test_the_study_on_a_small_scale(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = labels.graded("noise", {"little": 0.0, "much": 0.3}, per_class=60)
    monkeypatch.setattr(labels, "FAR", {"how noisy it is": lambda: task})
    monkeypatch.setattr(labels, "CHOOSING", (9,))
    seen = datasets.digits()
    monkeypatch.setattr(datasets, "digits", lambda: seen)
    record = labels.study(RUN, source=source, grid=(1, 2), draws=2, far_draws=2)
    table = record.to_frame()
    ways = [*labels.WAYS, labels.PLAIN]
    assert len(table) == len(ways) * 2 * (2 + 1)
    assert set(table["way"]) == set(ways)
    assert seen.test.readings == tuple(
        f"{k} labels, {kind}" for k in (1, 2) for kind in labels.SHIFTED
    )
    digits = table[table["task"] == "digits"]
    assert digits[list(labels.SHIFTED)].notna().all(axis=None)
    assert table.loc[table["task"] == "noise", "rotated"].isna().all()
    plain = digits.loc[digits["way"] == labels.PLAIN, "setting"]
    assert (plain == "lr 0.001").all(), "the weaker opponent has no augmentation"
    mean = digits[digits["k"] == 1].groupby("way")["clean"].mean()
    key = "fine-tuned minus scratch, 1 labels"
    assert record.result[key] == pytest.approx(mean["fine-tuned"] - mean["scratch"])
    networks = digits[digits["way"].isin(["scratch", "fine-tuned"])]
    assert networks["curve"].map(len).eq(2).all(), "one value for each evaluation"


def test_shifted_predictions_repeat() -> None:
    shifted = labels._after(Shift(noise=0.2), lambda x: x.flatten(1))
    x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(shifted(x), shifted(x))
    assert not torch.equal(shifted(x), x.flatten(1))


def test_what_is_learnt_prints_as_a_line(digits: Dataset) -> None:
    learnt = labels.learn("pixels", digits.few(1, draw=0), "ridge 1", run=RUN)
    assert repr(learnt).startswith("pixels: learnt in")
    assert isinstance(labels.search("pixels", digits, 1, draws=(0,), run=RUN), pd.Series)
