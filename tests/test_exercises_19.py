"""The checks of chapter 19 pass right answers, and name each mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from answers import accepted, hint
from scipy import stats

from tlhelpers import combine


def verdict(low: float, high: float, margin: float) -> str:
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "level" if -margin < low and high < margin else "open"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda a, b, m: "better" if a + b > 0 else "worse", "holds 0"),
        (lambda a, b, m: "level" if -m < a and b < m else verdict(a, b, m), "A small difference"),
        (lambda a, b, m: "level" if a <= 0 <= b else verdict(a, b, m), "not shown"),
        (lambda a, b, m: "open" if a <= 0 <= b else verdict(a, b, m), "too small to matter"),
        (lambda a, b, m: verdict(-b, -a, m), "on which side"),
        (lambda a, b, m: "better" if a >= 0 else verdict(a, b, m), "holds 0"),
        (lambda a, b, m: a > 0, "one of better"),
        (lambda a, b, m: "none", "one of better"),
    ],
)
def test_verdict(answer: Callable[..., Any], expected: str) -> None:
    accepted("19.1", verdict)
    assert re.search(expected, hint("19.1", answer))


State = dict[str, torch.Tensor]


def weighted(states: list[State], sizes: list[float]) -> State:
    return {
        key: sum(size * state[key] for size, state in zip(sizes, states, strict=True))
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }


def federated_average(states: list[State], sizes: list[int]) -> State:
    return weighted(states, [size / sum(sizes) for size in sizes])


def in_place(states: list[State], sizes: list[int]) -> State:
    for key, value in federated_average(states, sizes).items():
        states[0][key].copy_(value)
    return states[0]


def all_entries(states: list[State], sizes: list[int]) -> State:
    average = federated_average(states, sizes)
    count = torch.stack([state["num_batches_tracked"].float() for state in states]).mean()
    return average | {"num_batches_tracked": count}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda states, sizes: combine.average_states(states), "counts all clients alike"),
        (weighted, "shares should add up"),
        (lambda states, sizes: federated_average(states, sizes[::-1]), "wrong order"),
        (in_place, "changed one of the states"),
        (all_entries, "counts whole batches"),
        (lambda states, sizes: states[0], "average over all images"),
        (lambda states, sizes: {"weight": states[0]["weight"]}, "all entries"),
        (lambda states, sizes: 1.0, "one state dict"),
    ],
)
def test_federated_average(answer: Callable[..., Any], expected: str) -> None:
    accepted("19.2", federated_average)
    accepted("19.2", lambda states, sizes: combine.average_states(states, weights=sizes))
    assert re.search(expected, hint("19.2", answer))


NUMBER = r"(?<![\d.])\d{4}\.\d{4,5}(?!\d)"


def cited(text: str, numbers: dict[str, str], pattern: str = NUMBER) -> list[str]:
    return list(dict.fromkeys(repeated(text, numbers, pattern)))


def repeated(text: str, numbers: dict[str, str], pattern: str = NUMBER) -> list[str]:
    keys = {number: key for key, number in numbers.items()}
    return [keys[number] for number in re.findall(pattern, text) if number in keys]


def substrings(text: str, numbers: dict[str, str]) -> list[str]:
    found = [key for key, number in numbers.items() if number in text]
    return sorted(found, key=lambda key: text.find(numbers[key]))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda text, n: [k for k, v in n.items() if v in text], "order of the text"),
        (repeated, "each work once"),
        (substrings, "longer numbers"),
        (lambda text, n: cited(text, n, NUMBER + r"(?!\w)"), "with or without"),
        (lambda text, n: [], "with or without"),
        (lambda text, n: ", ".join(cited(text, n)), "a list of keys"),
    ],
)
def test_cited(answer: Callable[..., Any], expected: str) -> None:
    accepted("19.3", cited)
    assert re.search(expected, hint("19.3", answer))


def flattery(p: float, n: int, m: int) -> float:
    return float((1 - stats.binom(n, p).cdf(np.arange(n)) ** m).sum() / n - p)


def simulated(p: float, n: int, m: int) -> float:
    draws = np.random.default_rng(0).binomial(n, p, size=(20000, m))
    return float(draws.max(1).mean() / n - p)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda p, n, m: flattery(p, n, m) + p, "subtract the truth"),
        (lambda p, n, m: n * flattery(p, n, m), "a share"),
        (lambda p, n, m: flattery(p, n, 1), "Take the best"),
        (lambda p, n, m: (p * (1 - p) / n) ** 0.5, "standard error of one"),
        (lambda p, n, m: 2 * flattery(p, n, m), "take the highest each time"),
        (lambda p, n, m: [0.1], "one number"),
    ],
)
def test_flattery(answer: Callable[..., Any], expected: str) -> None:
    accepted("19.4", flattery)
    accepted("19.4", simulated)
    assert re.search(expected, hint("19.4", answer))
