"""The checks of chapter 10 pass right answers, and name each mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from answers import accepted, hint
from torch import Tensor
from torch.nn.functional import normalize


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (mean, "lengths differ"),
        (lambda h, m: h.mean(1), "lengths differ"),
        (lambda h, m: normalize(h.mean(1), dim=1), "change with the batch"),
        (lambda h, m: normalize(h[:, 0], dim=1), "first token"),
        (lambda h, m: mean(normalize(h, dim=2), m), "scaled the tokens"),
        (lambda h, m: normalize(mean(normalize(h, dim=2), m), dim=1), "scaled the tokens"),
        (lambda h, m: normalize(h.amax(1), dim=1), "other features"),
        (lambda h, m: mean(h, m).T, "the shape"),
        (lambda h, m: 1.0, "a tensor"),
    ],
)
def test_pool(answer: Callable[..., Any], expected: str) -> None:
    accepted("10.1", lambda h, m: normalize(mean(h, m), dim=1))
    assert re.search(expected, hint("10.1", answer))


def combine(name: Tensor, shots: Tensor, alpha: float) -> Tensor:
    return (alpha * name + shots.sum(0)) / (alpha + len(shots))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda n, s, a: combine(n, s, 1.0), "whatever alpha"),
        (lambda n, s, a: (a * n + s.mean(0)) / (a + 1), "the weight of one"),
        (lambda n, s, a: a * n + s.sum(0), "weights of one"),
        (lambda n, s, a: (n + a * s.sum(0)) / (1 + a * len(s)), "wrong way round"),
        (lambda n, s, a: s.mean(0), "weighted mean"),
        (lambda n, s, a: combine(n, s, a) if len(s) else s.mean(0), "not finite"),
        (lambda n, s, a: combine(n, s, a)[None], "the shape"),
    ],
)
def test_combine(answer: Callable[..., Any], expected: str) -> None:
    accepted("10.2", combine)
    assert re.search(expected, hint("10.2", answer))


def variances(x: Tensor, y: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
    means = torch.stack([x[y == c].mean(0) for c in range(len(names))])
    within = (x - means[y]).square().sum() / (len(y) - len(names)) / x.shape[1]
    return within, (means - names).square().mean()


def worth(x: Tensor, y: Tensor, names: Tensor) -> float:
    within, between = variances(x, y, names)
    return float(within / between)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda x, y, n: 1 / worth(x, y, n), "turn it round"),
        (lambda x, y, n: worth(x, y, n) ** 0.5, "standard deviations"),
        (lambda x, y, n: worth(x, y, n) * (len(y) - len(n)) / len(y), "divided by n"),
        (lambda x, y, n: worth(x, y, n) * x.shape[1], "one side only"),
        (
            lambda x, y, n: float(
                (x - x.mean(0)).square().sum() / 3 / (len(y) - 4) / variances(x, y, n)[1]
            ),
            "mean of all",
        ),
        (
            lambda x, y, n: float(variances(x, y, n)[0] / (x - n[y]).square().mean()),
            "single questions",
        ),
        (lambda x, y, n: 7.0, "one at a time"),
    ],
)
def test_worth(answer: Callable[..., Any], expected: str) -> None:
    accepted("10.3", worth)
    assert re.search(expected, hint("10.3", answer))


def mean_cosine(x: Tensor) -> float:
    total, n = normalize(x, dim=1).sum(0), len(x)
    return float((total @ total - n) / (n * (n - 1)))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda x: float(normalize(x, dim=1).mean(0).square().sum()), "with itself"),
        (
            lambda x: float((x.sum(0).square().sum() - x.square().sum()) / len(x) / (len(x) - 1)),
            "inner products",
        ),
        (lambda x: mean_cosine(x) / 2, "factor of 2"),
        (lambda x: 0.123, "another number"),
        (lambda x: mean_cosine(x) if len(x) < 100 else 1.0, "random directions"),
    ],
)
def test_mean_cosine(answer: Callable[..., Any], expected: str) -> None:
    accepted("10.4", mean_cosine)
    assert re.search(expected, hint("10.4", answer))
