"""The checks of chapter 13 pass right answers, and name each mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from answers import accepted, hint


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
