"""The checks of chapter 07 pass right answers, and name each mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from answers import accepted, hint

import tlhelpers as tl


def conditional(theta: np.ndarray, labels: np.ndarray) -> np.ndarray:
    joint = np.eye(labels.max() + 1)[labels].T @ theta
    return joint / joint.sum(axis=0)


def leep(theta: np.ndarray, labels: np.ndarray) -> Any:
    return np.log((conditional(theta, labels)[labels] * theta).sum(axis=1)).mean()


def with_loops(theta: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    for i, y in enumerate(labels):
        same = labels == y
        total += np.log(
            sum(
                theta[same, z].sum() / theta[:, z].sum() * theta[i, z]
                for z in range(theta.shape[1])
            )
        )
    return total / len(labels)


def backwards(theta: np.ndarray, labels: np.ndarray) -> Any:
    joint = np.eye(labels.max() + 1)[labels].T @ theta
    given = joint / joint.sum(axis=1, keepdims=True)
    return np.log((given[labels] * theta).sum(axis=1)).mean()


def joint_only(theta: np.ndarray, labels: np.ndarray) -> Any:
    joint = np.eye(labels.max() + 1)[labels].T @ theta / len(labels)
    return np.log((joint[labels] * theta).sum(axis=1)).mean()


class TestLeep:
    def test_right(self) -> None:
        accepted("07.1", leep)
        accepted("07.1", with_loops)
        accepted("07.1", lambda t, y: torch.tensor(leep(t, y)))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda t, y: -leep(t, y), "wrong sign"),
            (lambda t, y: leep(t, y) * len(y), "a sum over the images"),
            (
                lambda t, y: tl.transferability.nce(t.argmax(axis=1), y),
                "given the most likely source class",
            ),
            (
                lambda t, y: np.log((conditional(t, y)[y] * t).sum(axis=1).mean()),
                "the logarithm of a mean",
            ),
            (lambda t, y: (conditional(t, y)[y] * t).sum(axis=1).mean(), "no logarithm"),
            (backwards, "It is the other one"),
            (joint_only, "the joint distribution of both labels"),
            (lambda t, y: leep(np.exp(t) / np.exp(t).sum(1, keepdims=True), y), "too low"),
            (lambda t, y: 2.0, "is not > 0"),
            (lambda t, y: t, "should return one number"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("07.1", answer))


class TestRegret:
    def test_right(self) -> None:
        accepted("07.2", lambda s, t: t.max() - t[s == s.max()].mean())

        def loop(scores: np.ndarray, truth: np.ndarray) -> float:
            top = max(scores)
            picks = [t for s, t in zip(scores, truth, strict=True) if s == top]
            return max(truth) - sum(picks) / len(picks)

        accepted("07.2", loop)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda s, t: t.max() - t[s.argmax()], "several networks share the highest score"),
            (lambda s, t: t[s == s.max()].mean() - t.max(), "wrong sign"),
            (lambda s, t: t.max() - t[s.argmin()], "the lowest score"),
            (lambda s, t: s.max() - s[t.argmax()], "a difference of scores"),
            (lambda s, t: 0.0, "Whose accuracy does one get"),
            (lambda s, t: t, "should return one number"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("07.2", answer))


def hat(x: np.ndarray, ridge: float) -> np.ndarray:
    return x @ np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T)


def left_out(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    h = hat(x, ridge)
    own = np.diag(h)[:, None]
    return (h @ y - own * y) / (1 - own)


class TestLeaveOneOut:
    def test_right(self) -> None:
        accepted("07.3", left_out)

        def by_the_error(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
            h = hat(x, ridge)
            return y - (y - h @ y) / (1 - np.diag(h))[:, None]

        accepted("07.3", by_the_error)
        accepted("07.3", lambda *given: torch.from_numpy(left_out(*given)))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda x, y, r: hat(x, r) @ y, "each example has seen itself"),
            (lambda x, y, r: y - left_out(x, y, r), "returned the errors"),
            (
                lambda x, y, r: hat(x, r) @ y / (1 - np.diag(hat(x, r)))[:, None],
                "scales the prediction",
            ),
            (lambda x, y, r: left_out(x, y, 2 * r), "predicts something else"),
            (lambda x, y, r: left_out(x, y, r).argmax(axis=1), r"returned the shape \(12,\)"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("07.3", answer))
