"""The checks of chapter 14 pass right answers, and name each mistake."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from answers import accepted, hint

from tlhelpers import combine


def worth(sigma: float, delta: float, n: int) -> tuple[float, float]:
    labels = (sigma / delta) ** 2
    return labels, sigma**2 / (n + labels)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda s, d, n: (s / d, 0.0), "standard deviations"),
        (lambda s, d, n: (d**2 / s**2, 0.0), "turn it round"),
        (lambda s, d, n: (s**2 / d**2 / n, 0.0), "does not depend on n"),
        (lambda s, d, n: (s**2 / d**2, min(s**2 / n, d**2)), "better than either"),
        (lambda s, d, n: (s**2 / d**2, math.sqrt(worth(s, d, n)[1])), "the root"),
        (lambda s, d, n: (s**2 / d**2, s**2 / n + d**2), "further labels"),
        (lambda s, d, n: s**2 / d**2, "two numbers"),
    ],
)
def test_worth(answer: Callable[..., Any], expected: str) -> None:
    accepted("14.1", worth)
    assert re.search(expected, hint("14.1", answer))


State = dict[str, Any]


def greedy_soup(
    states: list[State],
    score: Callable[[State], float],
    key: Callable[[State], float] | None = None,
) -> State:
    ranked = sorted(states, key=key or (lambda state: -score(state)))
    admitted, best = ranked[:1], score(ranked[0])
    for state in ranked[1:]:
        trial = combine.average_states([*admitted, state])
        if score(trial) >= best:
            admitted, best = [*admitted, state], score(trial)
    return combine.average_states(admitted)


def half_and_half(states: list[State], score: Callable[[State], float]) -> State:
    ranked = sorted(states, key=score, reverse=True)
    soup = ranked[0]
    for state in ranked[1:]:
        trial = {"w": (soup["w"] + state["w"]) / 2}
        soup = trial if score(trial) >= score(soup) else soup
    return soup


def ruined(states: list[State], score: Callable[[State], float]) -> State:
    for state in states:
        state["w"].zero_()
    return states[0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda states, score: combine.average_states(states), "the uniform soup"),
        (lambda states, score: max(states, key=score), "best single state"),
        (lambda states, score: greedy_soup(states, score, lambda s: 0.0), "the order given"),
        (lambda states, score: greedy_soup(states, score, score), "the worst state"),
        (half_and_half, "half and half"),
        (ruined, "changed one of the states"),
        (lambda states, score: {"w": torch.ones(3)}, "compared with"),
        (lambda states, score: states, "one state dict"),
    ],
)
def test_greedy_soup(answer: Callable[..., Any], expected: str) -> None:
    accepted("14.2", greedy_soup)
    assert re.search(expected, hint("14.2", answer))


def images_needed(a: np.ndarray, b: np.ndarray, z: float, ddof: int = 0) -> float:
    difference = a.astype(float) - b.astype(float)
    gap = difference.mean()
    return float(z**2 * difference.var(ddof=ddof) / gap**2) if gap else math.inf


def unpaired(a: np.ndarray, b: np.ndarray, z: float) -> float:
    gap = a.mean() - b.mean()
    return float(z**2 * (a.var() + b.var()) / gap**2) if gap else math.inf


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (unpaired, "images of its own"),
        (lambda a, b, z: images_needed(a, b, 1), "one standard error"),
        (lambda a, b, z: images_needed(a, b, z) / z, "forgot a square"),
        (lambda a, b, z: 30.0, "its mean and its variance"),
        (lambda a, b, z: images_needed(a, b, z) if a.mean() != b.mean() else 9.0, "infinity"),
    ],
)
def test_images_needed(answer: Callable[..., Any], expected: str) -> None:
    accepted("14.3", images_needed)
    accepted("14.3", lambda a, b, z: images_needed(a, b, z, ddof=1))
    assert re.search(expected, hint("14.3", answer))


def wise(start: dict[str, Any], tuned: dict[str, Any], alpha: float) -> dict[str, Any]:
    return {
        k: torch.lerp(v, tuned[k], alpha) if v.is_floating_point() else v for k, v in start.items()
    }


def in_place(start: dict[str, Any], tuned: dict[str, Any], alpha: float) -> dict[str, Any]:
    for key, value in start.items():
        if value.is_floating_point():
            value.lerp_(tuned[key], alpha)
    return start


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda s, t, a: wise(s, t, 1 - a), "the other way"),
        (in_place, "changed one of the two"),
        (lambda s, t, a: {k: (1 - a) * v + a * t[k] for k, v in s.items()}, "whole batches"),
        (lambda s, t, a: {k: v for k, v in wise(s, t, a).items() if k == "weight"}, "all entries"),
        (lambda s, t, a: s, "another 'weight'"),
        (lambda s, t, a: 1.0, "a state dict"),
    ],
)
def test_wise(answer: Callable[..., Any], expected: str) -> None:
    accepted("14.4", wise)
    accepted("14.4", lambda s, t, a: combine.interpolate_states(s, t, alpha=a))
    assert re.search(expected, hint("14.4", answer))
