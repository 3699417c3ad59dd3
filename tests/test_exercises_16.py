"""The checks of chapter 16 pass right answers, and name each mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from answers import accepted, hint

Array = np.ndarray


def ratio(x: Array, y: Array, *, order: Any = None) -> float:
    def norm(a: Array) -> float:
        return float(np.linalg.norm(a, order))

    return norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))


def centred(x: Array) -> Array:
    return x - x.mean(axis=0)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ratio, "did not centre"),
        (lambda x, y: ratio(centred(x), y), "one of the two"),
        (lambda x, y: ratio(centred(x.T).T, centred(y.T).T), "each example"),
        (lambda x, y: ratio(centred(x), centred(y)) ** 0.5, "a square"),
        (lambda x, y: ratio(centred(x), centred(y), order=2), "spectral"),
        (lambda x, y: 0.5, "give 1"),
        (lambda x, y: None, "number"),
    ],
)
def test_cka(answer: Callable[..., Any], expected: str) -> None:
    accepted("16.1", lambda x, y: ratio(centred(x), centred(y)))
    assert re.search(expected, hint("16.1", answer))


def attribute(
    gradient: Callable[[Array], Array], x: Array, baseline: Array, steps: int, at: float = 0.5
) -> Array:
    shares = (np.arange(steps) + at) / steps
    mean = np.mean([gradient(baseline + s * (x - baseline)) for s in shares], axis=0)
    return mean * (x - baseline)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda g, x, b, s: attribute(g, x, b, s) / (x - b), "averaged the gradients and stopped"),
        (lambda g, x, b, s: attribute(g, x, b, s) / (x - b) * x, "baseline of zeros"),
        (lambda g, x, b, s: -attribute(g, x, b, s), "the way back"),
        (lambda g, x, b, s: s * attribute(g, x, b, s), "summed over"),
        (lambda g, x, b, s: attribute(g, x, b, s, 0.0), "ends of the steps"),
        (lambda g, x, b, s: attribute(g, x, b, s, 1.0), "ends of the steps"),
        (lambda g, x, b, s: g(x) * (x - b), "at x alone"),
        (lambda g, x, b, s: g(b) * (x - b), "another map"),
        (lambda g, x, b, s: attribute(g, x, b, s).sum(), r"shape \(4,\)"),
        (lambda g, x, b, s: {"map": x}, "return an array"),
    ],
)
def test_attribute(answer: Callable[..., Any], expected: str) -> None:
    accepted("16.2", attribute)
    assert re.search(expected, hint("16.2", answer))


def slope(logits: Array, labels: Array, beta: float) -> tuple[float, float]:
    p = np.exp(beta * logits)
    p /= p.sum(axis=1, keepdims=True)
    mean = (p * logits).sum(axis=1)
    own = logits[np.arange(len(labels)), labels]
    variance = (p * logits**2).sum(axis=1) - mean**2
    return float((mean - own).mean()), float(variance.mean())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda z, y, b: (-slope(z, y, b)[0], slope(z, y, b)[1]), "of its negative"),
        (lambda z, y, b: (len(y) * slope(z, y, b)[0], 1.0), "the mean is asked"),
        (lambda z, y, b: slope(z, y, 1.0), "not at the one given"),
        (
            lambda z, y, b: (slope(z, y, b)[0] * (b if b != 1 else 1), slope(z, y, b)[1]),
            "something else",
        ),
        (lambda z, y, b: (slope(z, y, b)[0] + 0.1, 1.0), "Nudge beta"),
        (lambda z, y, b: (slope(z, y, b)[0], 1.0), "mean of variances"),
        (lambda z, y, b: 1.0, "two numbers"),
    ],
)
def test_slope(answer: Callable[..., Any], expected: str) -> None:
    accepted("16.3", slope)
    assert re.search(expected, hint("16.3", answer))


def test_slope_knows_the_mean_square() -> None:
    def squares(z: Array, y: Array, b: float) -> tuple[float, float]:
        p = np.exp(b * z)
        p /= p.sum(axis=1, keepdims=True)
        return slope(z, y, b)[0], float((p * z**2).sum(axis=1).mean())

    assert "their variance" in hint("16.3", squares)


def area(correct: Array, confidence: Array) -> float:
    wrong = ~correct[np.argsort(-confidence)]
    return float(np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1)))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda c, s: 1 - area(c, s), "the accuracy"),
        (lambda c, s: area(c, -s), "least sure first"),
        (lambda c, s: area(c, -np.arange(len(c))), "as they came"),
        (lambda c, s: np.cumsum(~c[np.argsort(-s)]).mean() / len(c), "those answered"),
        (lambda c, s: (~c).mean(), "full coverage"),
        (lambda c, s: area(c, s) * len(c), "summed"),
        (lambda c, s: 0.123, "surest example"),
    ],
)
def test_area(answer: Callable[..., Any], expected: str) -> None:
    accepted("16.4", area)
    assert re.search(expected, hint("16.4", answer))
