"""Checks for the exercises of chapter 12: learning to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tlhelpers import meta
from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number


@exercise("12.1", "an inner loop that changes nothing in place, and through which one can derive.")
def _inner_loop(answer: Any) -> None:
    """Write a function `inner_loop(loss, theta, steps, rate)`: gradient descent that can itself be
    differentiated.

    `loss` is a function of one tensor that returns a scalar tensor; `theta` is the tensor to start
    from. Take `steps` steps of gradient descent with the inner rate `rate`, and return the tensor
    where they end. Leave `theta` as it is, and let the result depend on it, so that derivatives of
    the result with respect to `theta` hold the loss's second derivatives.
    """
    expect_function(answer, "inner_loop(loss, theta, steps, rate)")

    def loss(theta: Tensor) -> Tensor:
        return (theta**4).sum() / 4 + (theta[0] * theta[1]) ** 2

    start = torch.tensor([0.8, -0.6], dtype=torch.float64)
    for steps in (1, 3):
        call = f"inner_loop, with {steps} step{'s' * (steps > 1)} of rate 0.1,"
        theta = start.clone().requires_grad_()
        found = ask(answer, loss, theta, steps, 0.1, call=call)
        if not isinstance(found, Tensor):
            raise Hint(f"{call} should return a tensor, but it returned {describe(found)}.")
        if not torch.equal(theta.detach(), start):
            raise Hint(f"{call} changed theta itself. Make a new tensor at each step.")
        expected = _descended(loss, theta, steps, order=2)
        _check_end(found, expected, start, call)
        _check_slopes(found, theta, loss, steps, call)


def _descended(loss: Any, theta: Tensor, steps: int, *, order: int) -> Tensor:
    end = meta.adapt(
        lambda p: loss(p["theta"]), {"theta": theta}, steps=steps, rate=0.1, order=order
    )
    return end["theta"]


def _check_end(found: Tensor, expected: Tensor, start: Tensor, call: str) -> None:
    if found.shape != expected.shape:
        raise Hint(
            f"{call} should return a tensor of theta's shape {tuple(expected.shape)}, found "
            f"{tuple(found.shape)}."
        )
    if torch.allclose(found.detach().double(), expected.detach()):
        return
    if torch.allclose(found.detach().double() - start, start - expected.detach(), atol=0.02):
        raise Hint(f"{call} walked up the hill: the step is against the gradient.")
    raise Hint(f"{call} ended elsewhere. Look at where each gradient is taken, and at the rate.")


def _check_slopes(found: Tensor, theta: Tensor, loss: Any, steps: int, call: str) -> None:
    if not found.requires_grad:
        raise Hint(f"{call} returned a tensor that no longer depends on theta.")
    slopes = []
    for end in (found, *(_descended(loss, theta, steps, order=order) for order in (2, 1))):
        (slope,) = torch.autograd.grad(end.sum(), [theta], allow_unused=True)
        slopes.append(torch.zeros_like(theta) if slope is None else slope)
    if torch.allclose(slopes[0], slopes[1]):
        return
    if torch.allclose(slopes[0], slopes[2]):
        raise Hint(
            f"{call} ends in the right place, but its derivative is of first order: the gradients "
            f"of the steps count as constants. Is their own graph kept?"
        )
    raise Hint(f"{call} ends in the right place, but its derivative by theta is another.")


@exercise("12.2", "the second-order term is a matrix that you know, applied once a step.")
def _meta_gradient(answer: Any) -> None:
    """Write a function `meta_gradient(theta, X, y, Z, t, rate, steps)`: MAML's gradient for one
    task of least squares, without automatic differentiation.

    `theta` is a (d,) NumPy array. The support is `X`, (n, d), with targets `y`, (n,); the queries
    are `Z`, (m, d), with targets `t`, (m,). Both losses are mean squared errors. Take `steps` steps
    of gradient descent on the support with the inner rate `rate`, and return the gradient of the
    queries' loss at their end with respect to the start: a (d,) array.
    """
    expect_function(answer, "meta_gradient(theta, X, y, Z, t, rate, steps)")
    for seed, steps in ((0, 1), (1, 4)):
        g = np.random.default_rng(seed)
        X, Z = g.normal(size=(7, 3)), g.normal(size=(5, 3))
        case = (g.normal(size=3), X, g.normal(size=7), Z, g.normal(size=5))
        call = f"meta_gradient, with {steps} step{'s' * (steps > 1)},"
        found = _vector(
            ask(answer, *(part.copy() for part in case), 0.1, steps, call=call), 3, call
        )
        _check_meta_gradient(found, case, steps, call)


def _check_meta_gradient(
    found: np.ndarray, case: tuple[np.ndarray, ...], steps: int, call: str
) -> None:
    theta, X, y, Z, t = case
    slope = _query_slope(theta, X, y, Z, t, steps)
    factor = np.eye(3) - 0.1 * 2 * X.T @ X / len(X)
    power = np.linalg.matrix_power(factor, steps)
    right = power @ slope
    if np.allclose(found, right):
        return
    if np.allclose(found, slope):
        raise Hint(f"{call} returned the first order: the queries' gradient where the steps end.")
    if steps > 1 and np.allclose(found, factor @ slope):
        raise Hint(f"{call} used the curvature once; every inner step multiplies by it again.")
    if np.allclose(found, power @ _query_slope(theta, X, y, Z, t, 0)):
        raise Hint(f"{call} took the queries' gradient at the start, not where the steps end.")
    ratio = found / right
    if np.allclose(ratio, ratio[0]):
        raise Hint(f"{call} is off by a factor of {ratio[0]:.3g}. The losses are means of squares.")
    raise Hint(f"{call} returned another gradient. Compare with the chapter's chain rule.")


def _query_slope(
    theta: np.ndarray, X: np.ndarray, y: np.ndarray, Z: np.ndarray, t: np.ndarray, steps: int
) -> np.ndarray:
    for _ in range(steps):
        theta = theta - 0.1 * 2 * X.T @ (X @ theta - y) / len(X)
    return np.asarray(2 * Z.T @ (Z @ theta - t) / len(Z))


@exercise("12.3", "one walk a task, and a step towards the mean of where they end.")
def _reptile_step(answer: Any) -> None:
    """Write a function `reptile_step(start, tasks, steps, rate, outer_rate)`: one step of Reptile.

    `start` is a (d,) NumPy array, and `tasks` a list of functions, each from a (d,) array to the
    gradient of a task's loss there. For each task take `steps` steps of gradient descent with the
    rate `rate`, from `start`. Then move `start` by the share `outer_rate` of the way to the mean of
    the ends, and return where it is now.
    """
    expect_function(answer, "reptile_step(start, tasks, steps, rate, outer_rate)")
    g = np.random.default_rng(3)
    minima, curvature = g.normal(size=(4, 3)), g.uniform(0.5, 2, size=(4, 3))
    tasks = [
        lambda theta, h=h, a=a: h * (theta - a) for h, a in zip(curvature, minima, strict=True)
    ]
    start = g.normal(size=3)
    call = "reptile_step, on 4 tasks with 3 steps,"
    given = start.copy()
    found = _vector(ask(answer, given, tasks, 3, 0.2, 0.4, call=call), 3, call)
    if not np.array_equal(given, start):
        raise Hint(f"{call} changed start itself. Every task begins at the same place.")
    left = (1 - 0.2 * curvature) ** 3
    ends = minima + left * (start - minima)
    if np.allclose(found, start + 0.4 * (ends.mean(axis=0) - start)):
        return
    if np.allclose(found, ends.mean(axis=0)):
        raise Hint(f"{call} went all the way; the outer rate is the share of it.")
    if np.allclose(found, start + 0.4 * (ends.sum(axis=0) - 4 * start)):
        raise Hint(f"{call} added the tasks' walks up; what is wanted is their mean.")
    if np.allclose(found, start - 0.4 * (ends.mean(axis=0) - start)):
        raise Hint(f"{call} went away from where the inner loops end.")
    here = start
    for h, a in zip(curvature, minima, strict=True):
        here = a + (1 - 0.2 * h) ** 3 * (here - a)
    if np.allclose(found, start + 0.4 * (here - start)):
        raise Hint(f"{call} let each task begin where the one before it ended.")
    raise Hint(f"{call} went elsewhere. Follow one task alone first.")


@exercise("12.4", "each way of learning a start is a weighted mean of the tasks' minima.")
def _best_start(answer: Any) -> None:
    """Write a function `best_start(h, a, rate, steps)`: where does MAML want to start?

    There are T tasks in one dimension: task i has the loss $h_i (\\theta - a_i)^2 / 2$, for the
    support and the queries alike. `h` and `a` are (T,) NumPy arrays. Return the start, one number,
    from which the mean loss after `steps` steps of gradient descent with the rate `rate` is
    smallest.
    """
    expect_function(answer, "best_start(h, a, rate, steps)")
    for seed, steps in ((0, 0), (1, 2), (2, 4)):
        g = np.random.default_rng(seed)
        h, a = g.uniform(0.2, 1.8, size=6), g.normal(size=6)
        call = f"best_start, with {steps} step{'s' * (steps != 1)},"
        found = number(ask(answer, h.copy(), a.copy(), 0.5, steps, call=call), call)
        _check_best_start(found, h, a, steps, call)


def _check_best_start(found: float, h: np.ndarray, a: np.ndarray, steps: int, call: str) -> None:
    left = (1 - 0.5 * h) ** steps  # of the distance to each minimum

    def at(weight: np.ndarray) -> bool:
        return abs(found - float(np.average(a, weights=weight))) < 1e-8

    if at(h * left**2):
        return
    if at(h * left):
        raise Hint(f"{call} is where first-order MAML ends: one factor is missing.")
    if at(h):
        raise Hint(f"{call} is the start with the smallest mean loss before any step.")
    if at(1 - left if steps else h):
        raise Hint(f"{call} is where Reptile ends; MAML minimises a loss.")
    if abs(found - a.mean()) < 1e-8:
        raise Hint(f"{call} is the plain mean of the minima. Do all tasks count alike?")
    if at(left**2):
        raise Hint(f"{call} weighs the distances that are left, but not by the curvature.")
    raise Hint(f"{call} is another start. Set the derivative of the mean loss to 0.")


def _vector(value: Any, d: int, call: str) -> np.ndarray:
    """The value as a (d,) array of finite numbers; a hint if it is anything else."""
    if isinstance(value, Tensor):
        value = value.detach().numpy()
    if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.number):
        raise Hint(f"{call} should return an array of numbers, but it returned {describe(value)}.")
    if value.shape != (d,):
        raise Hint(f"{call} should return an array of shape ({d},), found {value.shape}.")
    if not np.isfinite(value).all():
        raise Hint(f"{call} should return finite numbers, but some are not.")
    return value.astype(np.float64)
