"""Behaviour of ``tlhelpers.distances``: the record, and that it can be made again."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tlhelpers import advice, distances, evaluate, records, runtime, zoo

RUN = runtime.Run(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def small() -> records.Record:
    digits = functools.partial(zoo.target, "digits")
    return distances.measure(RUN, targets={"digits": digits}, draws=2)


def test_every_source_is_measured_and_random_is_not_among_them(small: records.Record) -> None:
    assert [row["source"] for row in small.curve] == list(distances.SOURCES)
    assert "random" not in distances.SOURCES
    assert small.result["near"] + small.result["unclear"] + small.result["far"] == len(small.curve)


def test_the_first_draws_of_the_shipped_record_come_out_again(small: records.Record) -> None:
    shipped = {
        row["source"]: row["gap"]
        for row in records.load("glyphs/distances").curve
        if row["target"] == "digits"
    }
    for row in small.curve:
        # Where two classes are about equally likely, machines may differ on an image.
        assert row["gap"] == pytest.approx(shipped[row["source"]][:2], abs=0.021)


def test_word_and_interval_of_the_shipped_record_follow_from_its_gaps() -> None:
    for row in records.load("glyphs/distances").curve:
        gap = evaluate.mean_interval(row["gap"], unit="points")
        assert (gap.value, gap.low, gap.high) == pytest.approx(
            (row["mean"], row["low"], row["high"])
        )
        assert advice.distance_word(gap) == row["word"]
        assert len(row["words"]) == len(row["gap"])


def test_tasks_are_those_of_the_zoo_and_of_chapter_01() -> None:
    made = distances.tasks()
    assert set(zoo.TARGETS) | {"rotation", "stroke", "noise"} == set(made)
    assert np.all([callable(make) for make in made.values()])
