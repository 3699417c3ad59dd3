"""Behaviour of ``tlhelpers.trial``: the two tasks, and the record of the trial."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tlhelpers import datasets, evaluate, evidence, labels, records, trial, zoo


def test_an_outline_is_empty_where_the_image_is_even() -> None:
    square = torch.zeros(1, 1, 16, 16)
    square[..., 4:12, 4:12] = 0.8
    drawn = trial.outline(square)
    assert drawn.shape == square.shape
    assert (drawn[..., 4:12, 4:12] == 0).all()
    assert (drawn[..., 3, 3:13] == 0.8).all()
    assert (drawn[..., :2, :] == 0).all()
    assert (trial.outline(torch.full((2, 1, 8, 8), 0.3)) == 0).all()


def test_scattered_pixels_are_the_same_in_one_other_order() -> None:
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    scattered = trial.scatter(images)
    assert not torch.equal(scattered, images)
    assert torch.equal(scattered, trial.scatter(images))
    assert torch.equal(
        scattered.flatten(1).sort(dim=1).values, images.flatten(1).sort(dim=1).values
    )
    assert torch.equal(trial.scatter(images[1:2]), scattered[1:2])


def test_the_tasks_are_the_digits_with_their_split_and_labels() -> None:
    digits = datasets.digits()
    for name in trial.CHANGES:
        task = trial.task(name)
        assert task.name == name
        assert task.ids == digits.ids
        assert torch.equal(task.labels, digits.labels)
        assert not torch.equal(task.x, digits.x)
        assert 0 <= float(task.x.min()) <= float(task.x.max()) <= 1
    with pytest.raises(ValueError, match="outlines, scattered"):
        trial.task("letters")


def test_the_trial_has_no_say_in_its_own_advice() -> None:
    known = {study.record for study in evidence.STUDIES}
    assert set(trial.RECORDS) <= known
    assert "glyphs/trial" not in trial.RECORDS


def test_the_record_compares_each_pair_once_and_its_figures_follow_from_its_rows() -> None:
    record = records.load("glyphs/trial")
    frame = record.to_frame().set_index(["task", "way", "draw"])["top1"].sort_index()
    assert len(frame) == len(trial.CHANGES) * len(trial.WAYS) * len(record.seeds)
    assert len(record.result) == len(trial.CHANGES) * 6
    for key in record.result:
        name, _, pair = key.partition(": ")
        way, other = pair.split(" minus ")
        gaps = np.subtract(frame[name, way], frame[name, other])
        expected = evaluate.mean_interval(gaps, unit="points")
        found = record.estimate(key)
        assert (found.value, found.low) == pytest.approx((expected.value, expected.low))


def test_the_shipped_draws_of_a_linear_way_come_out_again() -> None:
    data = trial.task("outlines")
    few = zoo.few(data, 0, k=10)
    learnt = labels.learn("pixels", few, trial.RIDGE)
    report = evaluate.report(learnt.predict, data.test, name="again", resamples=2)
    frame = records.load("glyphs/trial").to_frame()
    first = frame[(frame["task"] == "outlines") & (frame["way"] == "pixels")].iloc[0]
    assert report.top1.value == pytest.approx(first["top1"], abs=0.01)
