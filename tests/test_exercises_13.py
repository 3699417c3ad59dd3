"""The checks of chapter 13 pass right answers, and name each mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tlhelpers as tl
from tlhelpers import exercises

IDS = ["13.1", "13.2", "13.3", "13.4"]
# What a hint must never hold: the code of a right answer.
GIVEAWAYS = {
    "13.1": ["np.exp", "(n - 1)", "n - 1"],
    "13.2": ["x +", "+ ", "add"],
    "13.3": ["abs", "/ 2", "half"],
    "13.4": ["solve(", "sum(", "@"],
}


def hint(id: str, answer: Any) -> str:
    verdict = tl.check(id, answer)
    assert not verdict, f"{id} accepted a wrong answer"
    assert verdict.message.endswith((".", "?")) or " raised " in verdict.message
    for giveaway in GIVEAWAYS[id]:
        assert giveaway not in verdict.message
    return verdict.message


def accepted(id: str, answer: Any) -> None:
    verdict = tl.check(id, answer)
    assert verdict, verdict.message


def test_the_chapter_has_these_exercises() -> None:
    assert [id for id in exercises.ids() if id.startswith("13.")] == IDS


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("answer", [None, 3, nn.Linear(2, 3)])
def test_anything_but_a_function_gets_a_hint_about_the_type(id: str, answer: Any) -> None:
    assert "the answer should be the function" in hint(id, answer)


@pytest.mark.parametrize("id", IDS)
def test_an_empty_answer_and_a_broken_one_get_hints(id: str) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of luck")

    assert "returned a value" in hint(id, lambda *_: "x")
    assert "returned None" in hint(id, lambda *_: None)
    assert "raised RuntimeError: out of luck" in hint(id, broken)


def mmd(
    x: np.ndarray, y: np.ndarray, sigma: float, *, own: int = 0, pairs: int = 1, across: float = 2
) -> Any:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-np.square(a[:, None] - b).sum(axis=2) / (2 * sigma**2))

    n, m = len(x), len(y)
    inside = (kernel(x, x).sum() - n + own * n) / (n * (n - pairs))
    inside += (kernel(y, y).sum() - m + own * m) / (m * (m - pairs))
    return inside - across * kernel(x, y).mean()


class TestMmd:
    def test_right(self) -> None:
        accepted("13.1", mmd)
        accepted("13.1", lambda *given: torch.tensor(mmd(*given)))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda x, y, s: mmd(x, y, s, own=1, pairs=0), "compared with itself"),
            (lambda x, y, s: mmd(x, y, s, pairs=0), "divides as if they were there"),
            (lambda x, y, s: mmd(x, y, s / np.sqrt(2)), "another bandwidth"),
            (lambda x, y, s: mmd(x, y, s, across=1), "they stand twice"),
            (lambda x, y, s: -mmd(x, y, s), "wrong sign"),
            (lambda x, y, s: abs(mmd(x, y, s)) ** 0.5, "returned a root"),
            (lambda x, y, s: 0.0, "Which pairs are there"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("13.1", answer))


class TestBlindSpot:
    def test_right(self) -> None:
        accepted("13.2", lambda x: x + 1000)
        accepted("13.2", lambda x: 1000 - x)
        accepted("13.2", lambda x: torch.from_numpy(x - 100 * np.eye(x.shape[1])[0]))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda x: x, "Which moment is left"),
            (lambda x: -x, "Which moment is left"),
            (lambda x: 2 * x + 1000, "at a CORAL distance of"),
            (lambda x: x[:5], "should return the shape"),
            (lambda x: x / 0, "not finite"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:divide by zero")
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("13.2", answer))


class TestFloor:
    def test_right(self) -> None:
        accepted("13.3", lambda p, q: np.abs(p - q).sum() / 2)
        accepted("13.3", lambda p, q: (p - q).clip(0).sum())
        accepted("13.3", lambda p, q: 1 - np.minimum(p, q).sum())

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda p, q: np.abs(p - q).sum(), "twice"),
            (lambda p, q: (p - q).sum(), "signs cancel"),
            (lambda p, q: np.abs(p - q).max(), "one class alone"),
            (lambda p, q: 1.0, "how far are they"),
            (lambda p, q: p - q, "should return one number"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("13.3", answer))


def shares(joint: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return np.linalg.solve(joint, predicted) * joint.sum(axis=0)


class TestShares:
    def test_right(self) -> None:
        accepted("13.4", shares)
        accepted("13.4", lambda c, mu: np.linalg.solve(c / c.sum(axis=0), mu))
        accepted("13.4", lambda c, mu: torch.from_numpy(shares(c, mu)))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (np.linalg.solve, "the ratios of target to source"),
            (lambda c, mu: mu, "returned what is predicted"),
            (lambda c, mu: c.sum(axis=0), "the shares of the source"),
            (lambda c, mu: np.linalg.solve(c, mu) * c.sum(axis=1), "how often it occurs"),
            (lambda c, mu: shares(c.T, mu), "Which way round"),
            (lambda c, mu: mu[:2], r"of shape \(3,\)"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("13.4", answer))
