"""Checks for the exercises of chapter 13: domain adaptation."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from tlhelpers import discrepancy
from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number


@exercise("13.1", "an estimate that is right on average, and sometimes negative for it.")
def _mmd(answer: Any) -> None:
    """Write a function `mmd_squared(x, y, sigma)`: the unbiased estimate of the squared maximum
    mean discrepancy with one Gaussian kernel, as one number.

    `x` is an (n, d) NumPy array, `y` an (m, d) one, n and m need not be equal, and `sigma` is the
    bandwidth of k(a, b) = exp(−‖a − b‖² / 2 sigma²).
    """
    expect_function(answer, "mmd_squared(x, y, sigma)")
    for seed, (n, m, d, sigma) in enumerate(((6, 9, 2, 0.7), (30, 12, 5, 2.0))):
        draw = np.random.default_rng(seed)
        x, y = draw.normal(size=(n, d)), draw.normal(size=(m, d)) + 0.5
        call = f"mmd_squared, on {n} and {m} examples,"
        found = number(ask(answer, x.copy(), y.copy(), sigma, call=call), call)
        _check_mmd(found, x, y, sigma, call)


def _check_mmd(found: float, x: np.ndarray, y: np.ndarray, sigma: float, call: str) -> None:
    def same(other: float) -> bool:
        return abs(found - other) < 1e-6

    def estimate(width: float, unbiased: bool) -> float:
        return float(discrepancy.mmd_squared(x, y, bandwidths=(width,), unbiased=unbiased))

    n, m = len(x), len(y)
    right = estimate(sigma, unbiased=True)
    if same(right):
        return
    if same(estimate(sigma, unbiased=False)):
        raise Hint(f"{call} returned the biased estimate: each example is compared with itself.")
    # The diagonal taken out, but still n² and m² pairs counted.
    inside = [
        float(np.exp(-np.square(a[:, None] - a).sum(2) / (2 * sigma**2)).sum() - len(a))
        for a in (x, y)
    ]
    pairs = inside[0] / (n * (n - 1)) + inside[1] / (m * (m - 1))
    if same(right - pairs + inside[0] / n**2 + inside[1] / m**2):
        raise Hint(
            f"{call} leaves out the examples beside themselves, but divides as if they were there."
        )
    if same(estimate(sigma / np.sqrt(2), unbiased=True)):
        raise Hint(f"{call} seems to have another bandwidth: in the kernel stands 2 sigma².")
    if same((right + pairs) / 2):
        raise Hint(
            f"{call} counts the pairs across the samples once; in the square they stand twice."
        )
    if same(-right):
        raise Hint(f"{call} has the wrong sign: far apart should mean large.")
    if same(float(np.sqrt(abs(right)))):
        raise Hint(f"{call} returned a root; the square is wanted, which may be negative.")
    raise Hint(f"{call} returned {found:.4f}. Which pairs are there, and how many of each kind?")


@exercise("13.2", "a distance that is zero, between samples that a child could tell apart.")
def _blind_spot(answer: Any) -> None:
    """Write a function `blind_spot(x)` that finds what Deep CORAL's loss, which compares
    covariances, cannot see: a second sample of the same shape as `x`, an (n, d) NumPy array, such
    that

    - the CORAL distance between the two is 0 (up to rounding), and
    - a linear classifier tells the two apart without fault.
    """
    expect_function(answer, "blind_spot(x)")
    for seed, (n, d) in enumerate(((40, 3), (60, 5))):
        x = np.random.default_rng(seed).normal(size=(n, d)) * np.arange(1, d + 1)
        call = f"blind_spot, given {n} examples of {d} features,"
        found = ask(answer, x.copy(), call=call)
        found = found.numpy() if isinstance(found, Tensor) else found
        if not isinstance(found, np.ndarray):
            raise Hint(f"{call} should return an array, but it returned {describe(found)}.")
        if found.shape != x.shape:
            raise Hint(f"{call} should return the shape {x.shape}; it returned {found.shape}.")
        if not np.isfinite(found).all():
            raise Hint(f"{call} returned numbers that are not finite.")
        gap = float(discrepancy.coral_distance(x, found))
        if gap > 1e-6:
            raise Hint(
                f"{call} returned a sample at a CORAL distance of {gap:.3g}. What can be done to a "
                f"sample that leaves its covariance as it is?"
            )
        apart = discrepancy.proxy_a_distance(x, found)
        if apart < 1.99:
            raise Hint(
                f"{call} keeps the covariance, but the proxy A-distance is {apart:.2f}: a linear "
                f"classifier does not tell the two samples apart. Which moment is left?"
            )


@exercise("13.3", "no alignment of features, however good its loss, gets round this floor.")
def _floor(answer: Any) -> None:
    """Write a function `floor(p, q)`: how large must the errors in source and target together be
    at least, if the features have exactly the same distribution in both?

    `p` and `q` are (m,) NumPy arrays: the shares of the classes in the source and in the target,
    each of which sums to 1. Return the lower bound of the sum of both errors, as one number.
    """
    expect_function(answer, "floor(p, q)")
    cases = [(np.full(4, 0.25), np.array([0.4, 0.4, 0.1, 0.1]))]
    cases += [tuple(np.random.default_rng(i).dirichlet(np.ones(5), 2)) for i in range(3)]
    cases += [(np.full(3, 1 / 3), np.full(3, 1 / 3))]
    for p, q in cases:
        call = f"floor({np.round(p, 2).tolist()}, {np.round(q, 2).tolist()})"
        found = number(ask(answer, p.copy(), q.copy(), call=call), call)
        right = float(np.abs(p - q).sum() / 2)
        if abs(found - right) < 1e-9:
            continue
        if abs(found - 2 * right) < 1e-9:
            raise Hint(
                f"{call} counts each example that changes its class twice: once where it leaves, "
                f"and once where it arrives."
            )
        if abs(found) < 1e-9:
            raise Hint(f"{call} returned 0, though the shares differ: signs cancel in a plain sum.")
        if abs(found - np.abs(p - q).max()) < 1e-9:
            raise Hint(f"{call} looks at one class alone; all of them change.")
        raise Hint(
            f"{call} returned {found:.3f}. The predicted shares are the same in both domains: how "
            f"far are they from p and q, at best?"
        )


@exercise("13.4", "the target's shares without a label of it, from what a classifier gets wrong.")
def _shares(answer: Any) -> None:
    """Write a function `target_shares(joint, predicted)` that estimates the shares of the classes
    in the target, where only these differ from the source.

    `joint` is an (m, m) NumPy array from held-out source examples: row i, column j is the share
    of examples that are predicted as i and belong to j. `predicted` is an (m,) array: the share of
    target examples that are predicted as each class. Return an (m,) array that sums to 1.

    (Here the system can be solved as it stands, and no share comes out negative.)
    """
    expect_function(answer, "target_shares(joint, predicted)")
    for seed, m in enumerate((3, 6)):
        joint, predicted, truth = _source_and_target(m, seed)
        call = f"target_shares, with {m} classes,"
        found = ask(answer, joint.copy(), predicted.copy(), call=call)
        found = found.numpy() if isinstance(found, Tensor) else found
        if not isinstance(found, np.ndarray) or found.shape != (m,):
            shape = f"the shape {found.shape}" if isinstance(found, np.ndarray) else describe(found)
            raise Hint(f"{call} should return an array of shape ({m},), but it returned {shape}.")
        _check_shares(found, joint, predicted, truth, call)


def _source_and_target(m: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    confusion = 0.7 * np.eye(m) + 0.3 * draw.dirichlet(np.ones(m), m).T  # P(predicted | true)
    source, target = draw.dirichlet(5 * np.ones(m), 2)
    return confusion * source, confusion @ target, target


def _check_shares(
    found: np.ndarray, joint: np.ndarray, predicted: np.ndarray, truth: np.ndarray, call: str
) -> None:
    def same(other: np.ndarray) -> bool:
        return bool(np.allclose(found, other, atol=1e-6))

    if same(truth):
        return
    weights = np.linalg.solve(joint, predicted)
    if same(weights):
        raise Hint(
            f"{call} returned the ratios of target to source; what is wanted are the shares in the "
            f"target themselves."
        )
    if same(predicted):
        raise Hint(f"{call} returned what is predicted; the classifier errs, and in a known way.")
    if same(joint.sum(axis=0)):
        raise Hint(f"{call} returned the shares of the source.")
    if same(weights * joint.sum(axis=1)):
        raise Hint(
            f"{call} multiplied with how often each class is predicted in the source, and not with "
            f"how often it occurs there."
        )
    raise Hint(
        f"{call} returned {np.round(found, 3).tolist()}, which are not the shares that lead to "
        f"these predictions. Which way round does the matrix stand?"
    )
