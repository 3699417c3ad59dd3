"""The checks of chapter 12 pass right answers, and name each mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from answers import accepted, hint
from torch import Tensor


def inner_loop(
    loss: Callable[[Tensor], Tensor], theta: Tensor, steps: int, rate: float, graph: bool = True
) -> Tensor:
    for _ in range(steps):
        (slope,) = torch.autograd.grad(loss(theta), [theta], create_graph=graph)
        theta = theta - rate * slope
    return theta


def in_place(loss: Callable[[Tensor], Tensor], theta: Tensor, steps: int, rate: float) -> Tensor:
    for _ in range(steps):
        (slope,) = torch.autograd.grad(loss(theta), [theta])
        with torch.no_grad():
            theta -= rate * slope
    return theta


def test_the_inner_loop() -> None:
    accepted("12.1", inner_loop)
    accepted("12.1", lambda f, x, s, a: inner_loop(f, x, s, a))
    first_order = hint("12.1", lambda f, x, s, a: inner_loop(f, x, s, a, graph=False))
    assert "is of first order" in first_order
    assert "no longer depends" in hint("12.1", lambda f, x, s, a: inner_loop(f, x, s, a).detach())
    assert "changed theta itself" in hint("12.1", in_place)
    assert "up the hill" in hint("12.1", lambda f, x, s, a: inner_loop(f, x, s, -a))
    assert "ended elsewhere" in hint("12.1", lambda f, x, s, a: inner_loop(f, x, s + 1, a))
    assert "of theta's shape" in hint("12.1", lambda f, x, s, a: f(x))


def meta_gradient(
    theta: Any, X: Any, y: Any, Z: Any, t: Any, rate: float, steps: int, *, power: int | None = None
) -> np.ndarray:
    J = np.eye(len(theta)) - rate * 2 * X.T @ X / len(X)
    for _ in range(steps):
        theta = theta - rate * 2 * X.T @ (X @ theta - y) / len(X)
    times = steps if power is None else power
    return np.linalg.matrix_power(J, times) @ (2 * Z.T @ (Z @ theta - t) / len(Z))


def at_the_start(theta: Any, X: Any, y: Any, Z: Any, t: Any, rate: float, steps: int) -> np.ndarray:
    J = np.eye(len(theta)) - rate * 2 * X.T @ X / len(X)
    return np.linalg.matrix_power(J, steps) @ (2 * Z.T @ (Z @ theta - t) / len(Z))


def test_the_meta_gradient() -> None:
    accepted("12.2", meta_gradient)
    assert "first order" in hint("12.2", lambda *a: meta_gradient(*a, power=0))
    assert "curvature once" in hint("12.2", lambda *a: meta_gradient(*a, power=1))
    assert "at the start" in hint("12.2", at_the_start)
    assert "off by a factor of 0.5" in hint("12.2", lambda *a: meta_gradient(*a) / 2)
    assert "another gradient" in hint("12.2", lambda *a: meta_gradient(*a) + 1)
    assert "of shape (3,)" in hint("12.2", lambda *a: meta_gradient(*a)[:, None])


def ends(start: Any, tasks: Any, steps: int, rate: float) -> list[np.ndarray]:
    found = []
    for slope in tasks:
        here = start
        for _ in range(steps):
            here = here - rate * slope(here)
        found.append(here)
    return found


def reptile_step(start: Any, tasks: Any, steps: int, rate: float, outer: float) -> np.ndarray:
    return start + outer * (np.mean(ends(start, tasks, steps, rate), axis=0) - start)


def one_after_the_other(
    start: Any, tasks: Any, steps: int, rate: float, outer: float
) -> np.ndarray:
    here = start
    for slope in tasks:
        (here,) = ends(here, [slope], steps, rate)
    return start + outer * (here - start)


def in_place_step(start: Any, tasks: Any, steps: int, rate: float, outer: float) -> np.ndarray:
    start += outer * (np.mean(ends(start, tasks, steps, rate), axis=0) - start)
    return start


def test_the_reptile_step() -> None:
    accepted("12.3", reptile_step)
    assert "all the way" in hint("12.3", lambda s, t, n, a, e: reptile_step(s, t, n, a, 1.0))
    assert "went away" in hint("12.3", lambda s, t, n, a, e: reptile_step(s, t, n, a, -e))
    assert "added the tasks' walks" in hint(
        "12.3", lambda s, t, n, a, e: reptile_step(s, t, n, a, 4 * e)
    )
    assert "one before it ended" in hint("12.3", one_after_the_other)
    assert "changed start itself" in hint("12.3", in_place_step)
    assert "went elsewhere" in hint("12.3", lambda s, t, n, a, e: reptile_step(s, t, 1, a, e))


def weighted(weight: Callable[[Any, Any], Any]) -> Callable[..., float]:
    def start(h: Any, a: Any, rate: float, steps: int) -> float:
        return float(np.average(a, weights=weight(h, (1 - rate * h) ** steps)))

    return start


def test_the_best_start() -> None:
    accepted("12.4", weighted(lambda h, left: h * left**2))
    assert "first-order MAML" in hint("12.4", weighted(lambda h, left: h * left))
    assert "before any step" in hint("12.4", weighted(lambda h, left: h))
    assert "plain mean" in hint("12.4", weighted(lambda h, left: 1 + 0 * h))
    assert "by the curvature" in hint("12.4", lambda h, a, r, s: squares(h, a, r, s))
    assert "another start" in hint("12.4", lambda h, a, r, s: 100.0)

    def reptile(h: Any, a: Any, rate: float, steps: int) -> float:
        left = (1 - rate * h) ** steps
        return float(np.average(a, weights=1 - left if steps else h))

    assert "where Reptile ends" in hint("12.4", reptile)


def squares(h: Any, a: Any, rate: float, steps: int) -> float:
    weight = (1 - rate * h) ** (2 * steps) if steps else h
    return float(np.average(a, weights=weight))
