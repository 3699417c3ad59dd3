"""Each check of chapter 03 passes a right answer, and answers each mistake with its own hint."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from answers import accepted, hint
from torch import Tensor
from torch.nn import functional as F

import tlhelpers as tl

IDS = ("03.1", "03.2", "03.3", "03.4")


def target(z: Tensor, y: Tensor, eps: float) -> Tensor:
    return (1 - eps) * F.one_hot(y, z.shape[1]) + eps / z.shape[1]


def smoothed(z: Tensor, y: Tensor, eps: float) -> Tensor:
    return (z.softmax(1) - target(z, y, eps)) / len(y)


def adamw(
    theta: Tensor, g: Tensor, u: Tensor, s: Tensor, t: int, lr: float, decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    u, s = 0.9 * u + 0.1 * g, 0.999 * s + 0.001 * g**2
    step = u / (1 - 0.9**t) / ((s / (1 - 0.999**t)).sqrt() + 1e-8)
    return theta - lr * decay * theta - lr * step, u, s


def dual(H: Tensor, Y: Tensor, c: float) -> Tensor:
    K = H @ H.T + c * torch.eye(len(H), dtype=H.dtype)
    return torch.linalg.solve(K, Y).T @ H


def primal(H: Tensor, Y: Tensor, c: float) -> Tensor:
    K = H.T @ H + c * torch.eye(H.shape[1], dtype=H.dtype)
    return torch.linalg.solve(K, H.T @ Y).T


def lda(prototypes: Tensor, cov: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    weight = prototypes @ torch.linalg.inv(cov)
    return weight, counts.double().log() - (weight * prototypes).sum(1) / 2


RIGHT = {"03.1": smoothed, "03.2": adamw, "03.3": dual, "03.4": lda}


class TestEvery:
    @pytest.mark.parametrize("id", IDS)
    def test_right(self, id: str) -> None:
        accepted(id, RIGHT[id])

    @pytest.mark.parametrize("id", IDS)
    def test_nan_gets_a_hint(self, id: str) -> None:
        def poisoned(*arguments: Any) -> Any:
            found = RIGHT[id](*arguments)
            if isinstance(found, Tensor):
                return found * float("nan")
            return tuple(value * float("nan") for value in found)

        assert "NaN" in hint(id, poisoned)

    @pytest.mark.parametrize("id", IDS)
    def test_random_state_of_the_reader_is_left_alone(self, id: str) -> None:
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        tl.check(id, RIGHT[id])
        assert torch.equal(torch.rand(2), expected)


class TestSmoothedGradient:
    def test_right_from_autograd_of_ones_own_loss(self) -> None:
        def by_autograd(z: Tensor, y: Tensor, eps: float) -> Tensor:
            z.requires_grad_()
            loss = -(target(z, y, eps) * z.log_softmax(1)).sum(1).mean()
            return torch.autograd.grad(loss, z)[0]

        accepted("03.1", by_autograd)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda z, y, eps: -smoothed(z, y, eps), "opposite sign"),
            (lambda z, y, eps: len(y) * smoothed(z, y, eps), "sum of the losses"),
            (lambda z, y, eps: smoothed(z, y, 0), "ignores eps"),
            (
                lambda z, y, eps: smoothed(z, y, eps * z.shape[1] / (z.shape[1] - 1)),
                "the other classes only",
            ),
            (
                lambda z, y, eps: (
                    (z.softmax(1) - F.one_hot(y, z.shape[1]) - eps / z.shape[1]) / len(y)
                ),
                "rows .* sum to zero",
            ),
            (lambda z, y, eps: smoothed(2 * z, y, eps), "small change of the logits"),
            (lambda z, y, eps: smoothed(z, y, eps)[:, :1], "should have shape"),
        ],
    )
    def test_mistakes(self, answer: Any, expected: str) -> None:
        assert re.search(expected, hint("03.1", answer))


class TestAdamW:
    def test_right_with_the_decay_last(self) -> None:
        def fused(
            theta: Tensor, g: Tensor, u: Tensor, s: Tensor, t: int, lr: float, decay: float
        ) -> Any:
            return list(adamw(theta, g, u, s, t, lr, decay))

        accepted("03.2", fused)

    def test_no_decay(self) -> None:
        def answer(
            theta: Tensor, g: Tensor, u: Tensor, s: Tensor, t: int, lr: float, decay: float
        ) -> Any:
            return adamw(theta, g, u, s, t, lr, 0)

        assert "without any decay" in hint("03.2", answer)

    def test_decay_in_the_gradient(self) -> None:
        def answer(
            theta: Tensor, g: Tensor, u: Tensor, s: Tensor, t: int, lr: float, decay: float
        ) -> Any:
            return adamw(theta, g + decay * theta, u, s, t, lr, 0)

        assert "went through the averages" in hint("03.2", answer)

    def test_no_correction(self) -> None:
        def answer(
            theta: Tensor, g: Tensor, u: Tensor, s: Tensor, t: int, lr: float, decay: float
        ) -> Any:
            u, s = 0.9 * u + 0.1 * g, 0.999 * s + 0.001 * g**2
            return theta * (1 - lr * decay) - lr * u / (s.sqrt() + 1e-8), u, s

        assert "several times too long" in hint("03.2", answer)

    def test_only_the_square_is_corrected(self) -> None:
        def answer(
            theta: Tensor, g: Tensor, u: Tensor, s: Tensor, t: int, lr: float, decay: float
        ) -> Any:
            u, s = 0.9 * u + 0.1 * g, 0.999 * s + 0.001 * g**2
            step = u / ((s / (1 - 0.999**t)).sqrt() + 1e-8)
            return theta * (1 - lr * decay) - lr * step, u, s

        assert "far too short" in hint("03.2", answer)

    def test_corrected_averages_handed_on(self) -> None:
        def answer(
            theta: Tensor, g: Tensor, u: Tensor, s: Tensor, t: int, lr: float, decay: float
        ) -> Any:
            new, u, s = adamw(theta, g, u, s, t, lr, decay)
            return new, u / (1 - 0.9**t), s / (1 - 0.999**t)

        assert "handed on" in hint("03.2", answer)

    def test_uphill(self) -> None:
        def answer(
            theta: Tensor, g: Tensor, u: Tensor, s: Tensor, t: int, lr: float, decay: float
        ) -> Any:
            return adamw(theta, -g, u, s, t, lr, decay)

        assert "against the gradient's sign" in hint("03.2", answer)


class TestDualRidge:
    def test_primal_is_right_but_too_large(self) -> None:
        assert "the weights are right, but" in hint("03.3", primal)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda H, Y, c: dual(H, Y, c).T, "transposed"),
            (lambda H, Y, c: dual(H, Y, len(H) * c), "n times the penalty"),
            (lambda H, Y, c: dual(H, Y, 2 * c), "twice the penalty"),
            (lambda H, Y, c: dual(H, Y, c) / 2, "the gradient is zero"),
            (lambda H, Y, c: torch.linalg.solve(H @ H.T, Y).T @ H, "raised|the gradient is zero"),
        ],
    )
    def test_mistakes(self, answer: Any, expected: str) -> None:
        assert re.search(expected, hint("03.3", answer))


class TestLdaHead:
    def test_a_constant_in_all_logits_does_not_matter(self) -> None:
        def shifted(prototypes: Tensor, cov: Tensor, counts: Tensor) -> Any:
            weight, bias = lda(prototypes, cov, counts)
            return weight + 1, bias - 3

        accepted("03.4", shifted)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda p, cov, n: lda(p, cov, torch.ones(len(p))), "leaves the counts out"),
            (lambda p, cov, n: lda(p, torch.eye(len(cov)).double(), n), "covariance out"),
            (lambda p, cov, n: lda(p, torch.linalg.inv(cov), n), "another power"),
            (lambda p, cov, n: (lda(p, cov, n)[0], 2 * lda(p, cov, n)[1]), "the bias is not"),
            (lambda p, cov, n: (lda(p, cov, n)[0] / 2, lda(p, cov, n)[1]), "normal density"),
            (lambda p, cov, n: lda(p, cov, n)[0], "should return"),
        ],
    )
    def test_mistakes(self, answer: Any, expected: str) -> None:
        assert expected in hint("03.4", answer)
