"""The checks of chapter 17 pass right answers, and name each mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from answers import accepted, hint

Tensors = list[torch.Tensor]


def combined(means: Tensors, sizes: list[int]) -> torch.Tensor:
    weighted = [mean * n for mean, n in zip(means, sizes, strict=True)]
    return torch.stack(weighted).sum(0) / sum(sizes)


def in_place(means: Tensors, sizes: list[int]) -> torch.Tensor:
    means[0] *= sizes[0]
    return combined(means, sizes)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda means, sizes: torch.stack(means).mean(0), "the same weight"),
        (lambda means, sizes: torch.stack(means).sum(0), "would grow"),
        (lambda means, sizes: combined(means, sizes) * sum(sizes), "How much does one example"),
        (in_place, "changed the gradients"),
        (lambda means, sizes: 1.0, "a tensor of shape"),
    ],
)
def test_combined(answer: Callable[..., Any], expected: str) -> None:
    accepted("17.1", combined)
    assert re.search(expected, hint("17.1", answer))


def merged(
    weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float
) -> torch.Tensor:
    return weight + scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda w, d, u, s: merged(w, d, u, 1), "left out the scale"),
        (lambda w, d, u, s: merged(w, d, u, s) - w, "update alone"),
        (lambda w, d, u, s: w.add_(merged(w, d, u, s)), "in place"),
        (lambda w, d, u, s: w, "another weight"),
        (lambda w, d, u, s: d, "a tensor of shape"),
        (lambda w, d, u, s: 1.0, "a tensor of shape"),
    ],
)
def test_merged(answer: Callable[..., Any], expected: str) -> None:
    accepted("17.2", merged)
    assert re.search(expected, hint("17.2", answer))


def training_bytes(weights: int, trained: int, activations: int) -> int:
    return 4 * weights + 12 * trained + activations


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda w, t, a: 4 * w + 12 * t, "left out the activations"),
        (lambda w, t, a: 16 * w + a, "frozen parameters too"),
        (lambda w, t, a: 4 * w + 8 * t + a, "is one number"),
        (lambda w, t, a: w + 3 * t + a, "more than one byte"),
        (lambda w, t, a: 16 * t + a, "weights that are frozen"),
        (lambda w, t, a: 20 * w, "what does the optimiser keep"),
    ],
)
def test_training_bytes(answer: Callable[..., Any], expected: str) -> None:
    accepted("17.3", training_bytes)
    assert re.search(expected, hint("17.3", answer))


Blocks = list[tuple[int, np.ndarray]]


def assembled(blocks: Blocks, n: int) -> np.ndarray:
    rows = np.empty((n, blocks[0][1].shape[1]))
    seen = np.zeros(n, dtype=bool)
    for start, block in blocks:
        rows[start : start + len(block)] = block
        seen[start : start + len(block)] = True
    if not seen.all():
        raise ValueError(f"{(~seen).sum()} rows are missing")
    return rows


def careless(blocks: Blocks, n: int) -> np.ndarray:
    rows = np.zeros((n, blocks[0][1].shape[1]))
    for start, block in blocks:
        rows[start : start + len(block)] = block
    return rows


def first_come(blocks: Blocks, n: int) -> np.ndarray:
    return np.concatenate(list(dict(blocks).values()))


def impatient(blocks: Blocks, n: int) -> np.ndarray:
    if sum(len(block) for _, block in dict(blocks).items()) != n:
        raise KeyError("rows")
    return assembled(blocks, n)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (careless, "nobody would know"),
        (first_come, "in which they came"),
        (impatient, "in place of a ValueError"),
        (
            lambda b, n: np.concatenate([x for _, x in sorted(b, key=lambda p: p[0])]),
            "twice is one",
        ),
        (lambda b, n: list(b), "an array"),
    ],
)
def test_assembled(answer: Callable[..., Any], expected: str) -> None:
    accepted("17.4", assembled)
    assert re.search(expected, hint("17.4", answer))
