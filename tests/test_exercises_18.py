"""The checks of chapter 18 pass right answers, and name each mistake."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from answers import accepted, hint


def predictive_value(sensitivity: float, specificity: float, prevalence: float) -> float:
    ill = sensitivity * prevalence
    positive = ill + (1 - specificity) * (1 - prevalence)
    return ill / positive if positive else 0.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda s, t, p: s, "given the disease"),
        (lambda s, t, p: s / (s + 1 - t) if s + 1 - t else 0, "how many people are ill"),
        (lambda s, t, p: s * p, "ask of the positive"),
        (lambda s, t, p: s * p / (s * p + t * (1 - p)), "test negative among"),
        (lambda s, t, p: p, "a million people"),
        (
            lambda s, t, p: predictive_value(s, t, p) if s else float("nan"),
            "never positive",
        ),
    ],
)
def test_predictive_value(answer: Callable[..., Any], expected: str) -> None:
    accepted("18.1", predictive_value)
    assert re.search(expected, hint("18.1", answer))


def weigh(intervals: Sequence[tuple[float, float]]) -> str:
    if not intervals:
        return "silent"
    up = any(low > 0 for low, _ in intervals)
    down = any(high < 0 for _, high in intervals)
    if up and down:
        return "disputed"
    return "better" if up else "worse" if down else "open"


def by_the_mean(intervals: Sequence[tuple[float, float]]) -> str:
    if not intervals:
        return "silent"
    return "better" if sum(map(sum, intervals)) > 0 else "worse"


def majority(intervals: Sequence[tuple[float, float]]) -> str:
    up = sum(low > 0 for low, _ in intervals)
    down = sum(high < 0 for _, high in intervals)
    if not intervals:
        return "silent"
    return "better" if up > down else "worse" if down > up else "open"


def unanimous(intervals: Sequence[tuple[float, float]]) -> str:
    if intervals and all(low > 0 for low, _ in intervals):
        return "better"
    if intervals and all(high < 0 for _, high in intervals):
        return "worse"
    return weigh(intervals) if not intervals else "open"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda i: weigh(i) if i else "open", "not the same as an open result"),
        (by_the_mean, "wherever its middle lies"),
        (unanimous, "contradicts nobody"),
        (majority, "votes are not counted"),
        (lambda i: weigh([(low + 1e-9, high) for low, high in i]), "holds it"),
        (lambda i: True, "should return a word"),
    ],
)
def test_weigh(answer: Callable[..., Any], expected: str) -> None:
    accepted("18.2", weigh)
    assert re.search(expected, hint("18.2", answer))


def time_split(times: np.ndarray, share: float) -> np.ndarray:
    first = next(t for t in np.unique(times)[::-1] if (times >= t).mean() >= share)
    return times >= first


def by_order(times: np.ndarray, share: float) -> np.ndarray:
    """Ties are torn apart."""
    test = np.zeros(len(times), dtype=bool)
    test[np.argsort(times, kind="stable")[-math.ceil(share * len(times)) :]] = True
    return test


def at_random(times: np.ndarray, share: float) -> np.ndarray:
    return np.random.default_rng(0).random(len(times)) < 2 * share


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (by_order, "both sides"),
        (at_random, "later than"),
        (lambda t, s: np.ones(len(t), dtype=bool), "later than"),
        (lambda t, s: t > np.unique(t)[-2], "too few"),
        (lambda t, s: t >= np.unique(t)[1], "fewer are enough"),
        (lambda t, s: time_split(t, s).tolist(), "booleans"),
    ],
)
def test_time_split(answer: Callable[..., Any], expected: str) -> None:
    accepted("18.3", time_split)
    assert re.search(expected, hint("18.3", answer))


Triple = tuple[float, float, float]


def square_and_add(a: Triple, b: Triple) -> Triple:
    value = a[0] - b[0]
    return (
        value,
        value - math.hypot(a[0] - a[1], b[2] - b[0]),
        value + math.hypot(a[2] - a[0], b[0] - b[1]),
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda a, b: (b[0] - a[0], 0.0, 1.0), "second from the first"),
        (lambda a, b: (a[0] - b[0], a[1] - b[2], a[2] - b[1]), "too cautious"),
        (lambda a, b: (a[0] - b[0], a[1] - b[1], a[2] - b[2]), "lower end from lower end"),
        (
            lambda a, b: (
                a[0] - b[0],
                a[0] - b[0] - math.hypot(a[0] - a[1], b[0] - b[1]),
                a[0] - b[0] + math.hypot(a[2] - a[0], b[2] - b[0]),
            ),
            "a is low and b is high",
        ),
        (lambda a, b: (a[0] - b[0], -1.0, 1.0), "Which end of b"),
        (lambda a, b: a[0] - b[0], "three numbers"),
    ],
)
def test_square_and_add(answer: Callable[..., Any], expected: str) -> None:
    accepted("18.4", square_and_add)
    assert re.search(expected, hint("18.4", answer))
