"""The checks of chapter 02 pass right answers, and name each mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from answers import accepted, hint
from torch import Tensor, nn

cross_entropy = nn.functional.cross_entropy


class TestImportanceWeights:
    @pytest.mark.parametrize(
        "answer",
        [
            lambda p, s, t: s / t * p / (1 - p),
            lambda p, s, t: torch.exp(torch.logit(p)) * (s / t),
            lambda p, s, t: (s / t * p / (1 - p)).numpy(),
        ],
    )
    def test_right(self, answer: Callable[..., Any]) -> None:
        accepted("02.1", answer)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda p, s, t: p, "returns the probabilities"),
            (lambda p, s, t: p / (1 - p), "equally large"),
            (lambda p, s, t: t / s * p / (1 - p), "wrong direction"),
            (lambda p, s, t: t / s * (1 - p) / p, "least like the target"),
            (lambda p, s, t: s / t * (p / (1 - p)) / (p / (1 - p)).sum(), "normalised"),
            (lambda p, s, t: s / t * p, "by Bayes"),
            (lambda p, s, t: torch.logit(p), "negative weights"),
            (lambda p, s, t: (s / t * p / (1 - p)).sum(), "shape"),
            (lambda p, s, t: s / t * p / (p - p), "NaN or infinity"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("02.1", answer))


class TestEffectiveSampleSize:
    @pytest.mark.parametrize(
        "answer",
        [
            lambda w: w.sum() ** 2 / (w**2).sum(),
            lambda w: 1 / ((w / w.sum()) ** 2).sum(),
            lambda w: float(np.sum(w.numpy()) ** 2 / np.sum(w.numpy() ** 2)),
        ],
    )
    def test_right(self, answer: Callable[..., Any]) -> None:
        accepted("02.2", answer)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (len, "counts the examples"),
            (lambda w: int((w > 0).sum()), "counts the examples"),
            (lambda w: w.sum() ** 2 / (w**2).sum() / len(w), "a share of the sample"),
            (lambda w: 1 / (w**2).sum(), "less than one example"),
            (lambda w: w.sum() ** 2, "more than the 7 examples"),
            (lambda w: w.sum() / w.max(), "not the number asked for"),
            (lambda w: w, "should return one number"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("02.2", answer))


RIGHT = dict(zip("abcdef", ["inductive", "transductive"] * 3, strict=True)) | {
    "c": "unsupervised",
    "d": "inductive",
    "e": "transductive",
    "f": "inductive",
}


class TestSettings:
    def test_right(self) -> None:
        accepted("02.3", lambda: dict(RIGHT))

    @pytest.mark.parametrize("letter", RIGHT)
    @pytest.mark.parametrize("setting", ["inductive", "transductive", "unsupervised"])
    def test_each_wrong_answer_is_found(self, letter: str, setting: str) -> None:
        if setting != RIGHT[letter]:
            message = hint("02.3", lambda: RIGHT | {letter: setting})
            assert f"5 of 6 are right. Look at scenario {letter} again" in message

    def test_missing_and_odd_answers(self) -> None:
        few = {k: v for k, v in RIGHT.items() if k not in "be"}
        assert "no answer for scenario b, e" in hint("02.3", lambda: few)
        assert "found 'Inductive'" in hint("02.3", lambda: RIGHT | {"a": "Inductive"})
        assert "found ['x']" in hint("02.3", lambda: RIGHT | {"a": ["x"]})


def each(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits, y, reduction="none")


class TestWeightedLoss:
    @pytest.mark.parametrize(
        "answer",
        [
            lambda z, y, w: (w * each(z, y)).sum() / w.sum(),
            lambda z, y, w: each(z, y) @ (w / w.sum()),
            lambda z, y, w: -(w * z.log_softmax(1)[range(len(y)), y]).sum() / w.sum(),
        ],
    )
    def test_right(self, answer: Callable[..., Any]) -> None:
        accepted("02.4", answer)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda z, y, w: cross_entropy(z, y), "leaves the weights out"),
            (lambda z, y, w: (w * each(z, y)).mean(), "doubles"),
            (lambda z, y, w: (w * each(z, y)).sum(), "doubles"),
            (lambda z, y, w: cross_entropy(z, y, weight=w), "raised RuntimeError"),
            (lambda z, y, w: cross_entropy(z, y, weight=w[: z.shape[1]]), "examples, or classes"),
            (lambda z, y, w: cross_entropy(z * w[:, None], y), "examples, or classes"),
            (lambda z, y, w: each(z, y), "one number"),
            (lambda z, y, w: ((w * each(z, y)).sum() / w.sum()).detach(), "no gradient"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("02.4", answer))
