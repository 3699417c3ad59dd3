"""Checks for the exercises of chapter 16: looking inside, and confidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number

Array = np.ndarray


@exercise("16.1", "rotations and shifts leave it alone, and the paper is the same on both sides.")
def _plain_cka(answer: Any) -> None:
    """Write a function `plain_cka(x, y)`: linear CKA as its formula says, with the bias and all.

    `x` is an (n, d) NumPy array of features, `y` an (n, e) one of the same examples. Centre both,
    and return ‖YᵀX‖² divided by ‖XᵀX‖ ‖YᵀY‖, with Frobenius norms: one number.
    """
    expect_function(answer, "plain_cka(x, y)")
    generator = np.random.default_rng(0)
    for n, d, e in ((30, 4, 4), (12, 20, 7)):
        x = generator.normal(size=(n, d)) + 2 * generator.normal(size=d)
        y = np.tanh(x @ generator.normal(size=(d, e))) + 1
        call = f"plain_cka, on arrays of shape ({n}, {d}) and ({n}, {e}),"
        found = number(ask(answer, x.copy(), y.copy(), call=call), call)
        _check_cka(found, x, y, call)


def _cka(x: Array, y: Array) -> float:
    across = np.square(y.T @ x).sum()
    return float(across / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _check_cka(found: float, x: Array, y: Array, call: str) -> None:
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    right = _cka(a, b)

    def same(other: float) -> bool:
        return math.isclose(found, other, rel_tol=1e-6)

    if same(right):
        return
    if same(_cka(x, y)):
        raise Hint(f"{call} did not centre: features far from the origin look alike for that.")
    if same(_cka(a, y)) or same(_cka(x, b)):
        # One centred side suffices for the numerator, but not for its own norm.
        raise Hint(f"{call} centred one of the two only.")
    if same(_cka(x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True))):
        raise Hint(f"{call} centred each example; it is each feature whose mean should be 0.")
    if same(math.sqrt(right)) or same(right**2):
        raise Hint(f"{call} is right but for a square: only the norm above is squared.")
    top = float(np.linalg.norm(b.T @ a, 2) ** 2)
    if same(top / float(np.linalg.norm(a.T @ a, 2) * np.linalg.norm(b.T @ b, 2))):
        raise Hint(f"{call} took spectral norms; Frobenius's sums the squares of all entries.")
    raise Hint(f"{call} returned {found:.4f}. For x and x itself it should give 1; does it?")


@exercise("16.2", "the map adds up to what the function gained on the way.")
def _integrated(answer: Any) -> None:
    """Write a function `attribute(gradient, x, baseline, steps)`: integrated gradients.

    `gradient(z)` returns the gradient of a function at a point, an array of its shape; `x` and
    `baseline` are two points, (d,) NumPy arrays. Average the gradient over the midpoints of
    `steps` equal steps from the baseline to x, and return the map, a (d,) array.
    """
    expect_function(answer, "attribute(gradient, x, baseline, steps)")
    weights = np.array([1.0, -2.0, 0.5, 3.0])

    def gradient(z: Array) -> Array:  # of (w · z)² / 2 + Σ z³
        return float(weights @ z) * weights + 3 * np.square(z)

    generator = np.random.default_rng(1)
    for steps in (3, 10):
        x, baseline = generator.normal(size=4), generator.normal(size=4)
        call = f"attribute, with {steps} steps,"
        given = (gradient, x.copy(), baseline.copy(), steps)
        returned = ask(answer, *given, call=call)
        try:
            found = np.asarray(returned, dtype=float)
        except (TypeError, ValueError):
            raise Hint(f"{call} should return an array, not {describe(returned)}.") from None
        if found.shape != (4,) or not np.isfinite(found).all():
            raise Hint(
                f"{call} should return four finite numbers as an array of shape (4,), found "
                f"{describe(returned)}."
            )
        _check_map(found, gradient, x, baseline, steps, call)


def _average(gradient: Callable[[Array], Array], x: Array, baseline: Array, shares: Array) -> Array:
    return np.mean([gradient(baseline + share * (x - baseline)) for share in shares], axis=0)


def _check_map(
    found: Array,
    gradient: Callable[[Array], Array],
    x: Array,
    baseline: Array,
    steps: int,
    call: str,
) -> None:
    middles = (np.arange(steps) + 0.5) / steps
    mean = _average(gradient, x, baseline, middles)
    way = x - baseline

    def same(other: Array) -> bool:
        return bool(np.allclose(found, other, rtol=1e-6, atol=1e-9))

    if same(mean * way):
        return
    if same(mean):
        raise Hint(f"{call} averaged the gradients and stopped: by what is the mean multiplied?")
    if same(mean * x):
        raise Hint(f"{call} multiplied with x, which is right for a baseline of zeros only.")
    if same(-mean * way):
        raise Hint(f"{call} has the sign of the way back, from x to the baseline.")
    if same(steps * mean * way):
        raise Hint(f"{call} summed over the steps where the average is asked for.")
    for ends in (
        np.arange(steps) / steps,
        (np.arange(steps) + 1) / steps,
        np.linspace(0, 1, steps),
    ):
        if same(_average(gradient, x, baseline, ends) * way):
            raise Hint(f"{call} looked at the ends of the steps; their midpoints are asked for.")
    if same(gradient(x) * way):
        raise Hint(f"{call} took the gradient at x alone.")
    raise Hint(
        f"{call} returned another map. Its sum is {found.sum():.3f}; it should be near what the "
        f"function gains from the baseline to x."
    )


@exercise("16.3", "slope and curvature of the likelihood; the curvature is never below 0.")
def _slope(answer: Any) -> None:
    """Write a function `slope(logits, labels, beta)` for fitting a temperature T = 1 / beta.

    `logits` is an (n, m) NumPy array, `labels` an (n,) one of integers. The mean negative
    log-likelihood of the logits times `beta` is a function of `beta`: return its first and second
    derivative there, two numbers.
    """
    expect_function(answer, "slope(logits, labels, beta)")
    generator = np.random.default_rng(2)
    for n, beta in ((50, 1.0), (20, 0.4)):
        logits = 3 * generator.normal(size=(n, 5)) + 1
        labels = generator.integers(0, 5, n)
        call = f"slope, on {n} examples with beta = {beta:g},"
        found = ask(answer, logits.copy(), labels.copy(), beta, call=call)
        if not isinstance(found, tuple | list | Array) or len(found) != 2:
            raise Hint(f"{call} should return two numbers, but it returned {describe(found)}.")
        first, second = (number(value, call) for value in found)
        _check_slope(first, second, logits, labels, beta, call)


def _check_slope(
    first: float, second: float, logits: Array, labels: Array, beta: float, call: str
) -> None:
    def softmax(scale: float) -> Array:
        e = np.exp(scale * logits - (scale * logits).max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    n, own = len(labels), logits[np.arange(len(labels)), labels]

    def moments(p: Array) -> tuple[float, float, float]:
        mean = (p * logits).sum(axis=1)
        square = (p * logits**2).sum(axis=1)
        return float((mean - own).mean()), float((square - mean**2).mean()), float(square.mean())

    slope, curvature, square = moments(softmax(beta))

    def close(a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-9)

    if close(first, slope) and close(second, curvature):
        return
    if close(first, -slope):
        raise Hint(f"{call} has the first derivative of the likelihood, not of its negative.")
    if close(first, n * slope):
        raise Hint(f"{call} summed over the examples; the mean is asked for.")
    if beta != 1 and close(first, moments(softmax(1.0))[0]):
        raise Hint(f"{call} took the probabilities at beta = 1, not at the one given.")
    if beta != 1 and (close(first, -slope * beta**2) or close(first, slope * beta)):
        raise Hint(f"{call} differentiated with respect to something else than beta.")
    if not close(first, slope):
        raise Hint(
            f"{call} gives the slope {first:.4f}. Nudge beta and look how much the mean negative "
            f"log-likelihood changes."
        )
    if close(second, square):
        raise Hint(f"{call} has the mean square of the logits; it is their variance that counts.")
    raise Hint(
        f"{call} has the slope right and the curvature not. It is a mean of variances: of what, "
        f"and with which weights?"
    )


@exercise("16.4", "the area counts each wrong answer the more, the surer it was given.")
def _area(answer: Any) -> None:
    """Write a function `area(correct, confidence)`: the area under the risk-coverage curve.

    `correct` is an (n,) NumPy array of booleans, `confidence` an (n,) one of numbers, all
    different. Answer the 1, 2, ..., n surest examples; return the mean of the n error rates.
    """
    expect_function(answer, "area(correct, confidence)")
    generator = np.random.default_rng(3)
    for n in (12, 200):
        confidence = generator.random(n)
        correct = generator.random(n) < 0.4 + 0.5 * confidence
        call = f"area, on {n} examples,"
        found = number(ask(answer, correct.copy(), confidence.copy(), call=call), call)
        _check_area(found, correct, confidence, call)


def _check_area(found: float, correct: Array, confidence: Array, call: str) -> None:
    n = len(correct)

    def curve(right: Array) -> float:
        return float(np.mean(np.cumsum(~right) / np.arange(1, n + 1)))

    def same(other: float) -> bool:
        return math.isclose(found, other, rel_tol=1e-6, abs_tol=1e-9)

    order = np.argsort(-confidence)
    right = curve(correct[order])
    if same(right):
        return
    if same(1 - right):
        raise Hint(f"{call} returned the area under the accuracy; risk is the share of errors.")
    if same(curve(correct[order[::-1]])):
        raise Hint(f"{call} answered the least sure first.")
    if same(curve(correct)):
        raise Hint(f"{call} took the examples as they came, without a look at the confidence.")
    if same(float(np.mean(np.cumsum(~correct[order]) / n))):
        raise Hint(f"{call} divided by all examples; the risk is the share of those answered.")
    if same(float((~correct).mean())):
        raise Hint(f"{call} returned the error at full coverage, one point of the curve.")
    if same(right * n):
        raise Hint(f"{call} summed the error rates; their mean is asked for.")
    raise Hint(f"{call} returned {found:.4f}. What is the error rate of the surest example alone?")
