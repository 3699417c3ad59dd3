"""The checks of chapter 15 pass right answers, and name each mistake."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from answers import accepted, hint
from torch.nn import functional


def least_loss(n: int, scale: float) -> float:
    return math.log(1 + (n - 1) * math.exp(-2 * scale))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda n, s: math.log(1 + (n - 1) * math.exp(-s)), "may be lower"),
        (lambda n, s: math.log(1 + n * math.exp(-2 * s)), "one sentence too many"),
        (lambda n, s: least_loss(n, 1 / s) if s != 1 else least_loss(n, s), "divided by the scale"),
        (lambda n, s: -least_loss(n, s), "wrong sign"),
        (lambda n, s: least_loss(n, s) / math.log(2), "in bits"),
        (lambda n, s: 0.0, "softmax of a row"),
        (lambda n, s: None, "one number"),
    ],
)
def test_least_loss(answer: Callable[..., Any], expected: str) -> None:
    accepted("15.1", least_loss)
    assert re.search(expected, hint("15.1", answer))


def head(embed: Any, names: list[str], templates: list[str]) -> torch.Tensor:
    rows = [embed([t.format(name) for t in templates]) for name in names]
    means = [functional.normalize(row, dim=1).mean(0) for row in rows]
    return functional.normalize(torch.stack(means), dim=1)


def without(embed: Any, names: list[str], templates: list[str], step: str) -> torch.Tensor:
    each = torch.stack([embed([t.format(name) for t in templates]) for name in names])
    if step == "inner":
        return functional.normalize(each.mean(1), dim=1)
    return functional.normalize(each, dim=2).mean(1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda *given: without(*given, "outer"), "no direction yet"),
        (lambda *given: without(*given, "inner"), "outvote"),
        (lambda e, n, t: head(e, n, t[:1]), "one template only"),
        (lambda e, n, t: head(e, n[::-1], t), "belong to a name"),
        (lambda e, n, t: head(e, n, t).T, "a row for each name"),
        (lambda e, n, t: n, "a tensor"),
    ],
)
def test_head(answer: Callable[..., Any], expected: str) -> None:
    accepted("15.2", head)
    assert re.search(expected, hint("15.2", answer))


def floor(sentences: list[str]) -> float:
    return float(np.mean([math.log(sentences.count(text)) for text in sentences]))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda s: float(np.mean([math.log(s.count(t)) for t in set(s)])), "mean over pairs"),
        (lambda s: math.log(np.mean([s.count(t) for t in s])), "comes first"),
        (lambda s: floor(s) / math.log(2), "in bits"),
        (lambda s: 0.0, "at most"),
        (lambda s: math.nan, "finite"),
    ],
)
def test_floor(answer: Callable[..., Any], expected: str) -> None:
    accepted("15.3", floor)
    assert re.search(expected, hint("15.3", answer))


def gradient(
    W: np.ndarray, U: np.ndarray, y: np.ndarray, W0: np.ndarray, ridge: float
) -> np.ndarray:
    return data_part(W, U, y) + ridge * (W - W0)


def data_part(W: np.ndarray, U: np.ndarray, y: np.ndarray) -> np.ndarray:
    scores = np.exp(U @ W.T)
    return (scores / scores.sum(1, keepdims=True) - np.eye(len(W))[y]).T @ U


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda W, U, y, W0, r: data_part(W, U, y), "left the prior out"),
        (lambda W, U, y, W0, r: gradient(W, U, y, 0 * W0, r), "towards zero"),
        (lambda W, U, y, W0, r: gradient(W, U, y, W0, -r), "the sign"),
        (lambda W, U, y, W0, r: data_part(W, U, y) / len(y) + r * (W - W0), "took the mean"),
        (lambda W, U, y, W0, r: gradient(W, U, y, W0, r / 2), "half a square"),
        (lambda W, U, y, W0, r: -gradient(W, U, y, W0, r), "another gradient"),
        (lambda W, U, y, W0, r: gradient(W, U, y, W0, r).T, "shape"),
    ],
)
def test_gradient(answer: Callable[..., Any], expected: str) -> None:
    accepted("15.4", gradient)
    assert re.search(expected, hint("15.4", answer))
