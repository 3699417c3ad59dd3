"""Chapter 05's checks pass a right answer, and answer plausible mistakes with a hint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from answers import accepted, hint
from torch import nn

import tlhelpers as tl


def groups(network: nn.Module, lr: float, head_lr: float) -> list[dict[str, Any]]:
    head = [p for p in network.head.parameters() if p.requires_grad]
    names = {id(p) for p in head}
    body = [p for p in network.parameters() if p.requires_grad and id(p) not in names]
    return [{"params": body, "lr": lr}, {"params": head, "lr": head_lr}]


class TestTwoGroups:
    def test_right(self) -> None:
        accepted("05.1", groups)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (groups(nn.ModuleDict({"head": nn.Linear(1, 1)}), 1, 1), "the function"),
            (lambda n, lr, head_lr: groups(n, head_lr, lr), "Which of the two rates"),
            (lambda n, lr, head_lr: [{"params": list(n.parameters()), "lr": lr}], "Which of"),
            (
                lambda n, lr, head_lr: [
                    {"params": list(n.parameters()), "lr": lr},
                    {"params": list(n.head.parameters()), "lr": head_lr},
                ],
                "it is in 2",
            ),
            (
                lambda n, lr, head_lr: [
                    {
                        "params": [p for k, p in n.named_parameters() if k[:4] != "head"],
                        "lr": lr,
                    },
                    {"params": list(n.head.parameters()), "lr": head_lr},
                ],
                "headless.weight should be in one group, but it is in 0",
            ),
            (
                lambda n, lr, head_lr: [
                    {
                        "params": [p for k, p in n.named_parameters() if k[:5] != "head."],
                        "lr": lr,
                    },
                    {"params": list(n.head.parameters()), "lr": head_lr},
                ],
                "is frozen",
            ),
            (
                lambda n, lr, head_lr: [{"params": n.parameters(), "lr": lr}],
                "a generator is empty",
            ),
            (lambda n, lr, head_lr: [{"lr": lr}], "lacks the key 'params'"),
            (lambda n, lr, head_lr: n, "a list of dicts"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert expected in hint("05.1", answer)


def rate(step: int, total: int, warmup: int, peak: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak / 2 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


class TestWarmCosine:
    def test_right(self) -> None:
        accepted("05.2", rate)

    def test_agrees_with_the_recipe_of_the_package(self) -> None:
        recipe = tl.train.Recipe(schedule="cosine", warmup=0.1)
        for step in range(100):
            assert rate(step, 100, 10, 1.0) == pytest.approx(recipe.factor(step, 100))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda s, t, w, p: p * s / w if s < w else rate(s, t, w, p), "two ends"),
            (
                lambda s, t, w, p: (
                    rate(s, t, w, p) if s < w else p / 2 * (1 + math.cos(math.pi * s / t))
                ),
                "where does it start",
            ),
            (
                lambda s, t, w, p: (
                    rate(s, t, w, p) if s < w else p * math.cos(math.pi * (s - w) / (t - w))
                ),
                "on the way down",
            ),
            (lambda s, t, w, p: [p], "should return one number"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert expected in hint("05.2", answer)


def stop(losses: list[float], patience: int) -> tuple[int, int]:
    best = 0
    for look in range(len(losses)):
        if losses[look] < losses[best]:
            best = look
        if look - best == patience:
            break
    return look, best


class TestEarlyStopping:
    def test_right(self) -> None:
        accepted("05.3", stop)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda losses, patience: (stop(losses, patience)[0],) * 2, "keeps look"),
            (lambda losses, patience: stop(losses, patience + 1), "too late"),
            (lambda losses, patience: stop(losses, max(patience - 1, 1)), "too early"),
            (lambda losses, patience: (len(losses) - 1, losses.index(min(losses))), "too late"),
            (lambda losses, patience: stop(losses, patience)[1], "two integers"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert expected in hint("05.3", answer)
