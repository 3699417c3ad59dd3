"""The checks of chapter 09 pass right answers, and name each mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from answers import accepted, hint

from tlhelpers import exercises

Array = np.ndarray


def gaps(scores: Array, ill: Array) -> Array:
    return scores[ill][:, None] - scores[~ill][None]


def auc(scores: Array, ill: Array) -> float:
    pairs = gaps(scores, ill)
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda s, y: 1 - auc(s, y), "healthy child has the higher"),
        (lambda s, y: (gaps(s, y) > 0).mean(), "as nothing"),
        (lambda s, y: (gaps(s, y) >= 0).mean(), "as one"),
        (lambda s, y: float((gaps(s, y) > 0).sum()), "number of pairs"),
        (lambda s, y: ((s > 0) == y).mean(), "an accuracy"),
        (lambda s, y: 0.5, "not the share of pairs"),
        (lambda s, y: None, "one number"),
    ],
)
def test_auc(answer: Callable[..., Any], expected: str) -> None:
    accepted("09.1", auc)
    assert re.search(expected, hint("09.1", answer))


def normalised(joint: Array) -> Array:
    return joint / joint.sum(1, keepdims=True)


def posterior(p: Array, trained: Array, wanted: Array) -> Array:
    return normalised(p * (wanted / trained))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda p, a, b: p * b / a, "add up to 1"),
        (lambda p, a, b: normalised(p * a / b), "the other way"),
        (lambda p, a, b: normalised(p * b), "still holds the old"),
        (lambda p, a, b: normalised(p / a), "equal shares"),
        (lambda p, a, b: p, "as it was"),
        (lambda p, a, b: normalised(p + b - a + 1), "Bayes"),
        (lambda p, a, b: p[:, 0], "shape of p"),
        (lambda p, a, b: None, "None"),
    ],
)
def test_posterior(answer: Callable[..., Any], expected: str) -> None:
    accepted("09.2", posterior)
    assert re.search(expected, hint("09.2", answer))


def best(p: Array, ill: Array, score: Callable[[Array], float]) -> float:
    grid = np.concatenate([[0.0], np.unique(p)])
    return float(max(grid, key=lambda t: score(p > t)))


def threshold(p: Array, ill: Array) -> float:
    return best(p, ill, lambda called: called[ill].mean() + (~called)[~ill].mean())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda p, y: 0.5, "nothing was chosen"),
        (lambda p, y: best(p, y, lambda called: (called == y).mean()), "best accuracy"),
        (lambda p, y: 0.123, "another threshold"),
        (lambda p, y: 1.5, "a probability"),
        (lambda p, y: p > 0.5, "one number"),
    ],
)
def test_threshold(answer: Callable[..., Any], expected: str) -> None:
    accepted("09.3", threshold)
    assert re.search(expected, hint("09.3", answer))


def new_shares(p: Array, trained: Array, rounds: int) -> Array:
    estimate = trained
    for _ in range(rounds):
        estimate = posterior(p, trained, estimate).mean(0)
    return estimate


def compound(p: Array, trained: Array, rounds: int) -> Array:
    estimate = trained
    for _ in range(rounds):
        p = posterior(p, trained, estimate)
        estimate = p.mean(0)
    return estimate


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda p, a, n: a, "shares of training"),
        (lambda p, a, n: p.mean(0), "after the first round"),
        (compound, "corrected already"),
        (lambda p, a, n: new_shares(p, a, n + 1), "one round too many"),
        (lambda p, a, n: 2 * new_shares(p, a, n), r"add up to 2\.000"),
        (lambda p, a, n: np.ones(len(a)) / len(a), "alternate"),
        (lambda p, a, n: p, "2 shares"),
    ],
)
def test_new_shares(answer: Callable[..., Any], expected: str) -> None:
    accepted("09.4", new_shares)
    assert re.search(expected, hint("09.4", answer))


def test_the_estimate_finds_shares_that_were_shifted() -> None:
    """What exercise 09.4 asks for works where only the shares differ."""
    rng = np.random.default_rng(0)
    trained, wanted = np.array([0.1, 0.9]), np.array([0.4, 0.6])
    y = rng.random(5000) < wanted[1]
    margin = 2 * rng.normal(2 * y - 1) + np.log(trained[1] / trained[0])
    p = np.stack([1 / (1 + np.exp(margin)), 1 / (1 + np.exp(-margin))], 1)
    assert new_shares(p, trained, 100)[0] == pytest.approx(0.4, abs=0.03)


def test_every_exercise_has_a_text() -> None:
    for number in "1234":
        assert exercises.text(f"09.{number}").startswith("Write a function `")
