"""Checks for the exercises of chapter 07: choosing a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from tlhelpers import transferability
from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number


@exercise("07.1", "the source's classes as a bridge to yours, without one step of training.")
def _leep(answer: Any) -> None:
    """Write a function `leep(theta, labels)` that returns the LEEP score as one number, in nats.

    `theta` is an (n, s) array: row i holds the source network's probabilities for image i over its
    own s classes. `labels` is an (n,) array of your labels, 0 to m − 1. Both are NumPy arrays, and
    every class has an image.
    """
    expect_function(answer, "leep(theta, labels)")
    for seed, (n, s, m) in enumerate(((60, 5, 3), (200, 8, 12))):
        theta, labels = _source_says(n, s, m, seed)
        call = f"leep, on {n} images with {s} source classes and {m} of your own,"
        found = number(ask(answer, theta.copy(), labels.copy(), call=call), call)
        _check_leep(found, theta, labels, call)


def _source_says(n: int, s: int, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    # Classes of unequal size: else one mistake in the conditional distribution would not show.
    labels = np.concatenate([np.arange(m), generator.integers(0, (m + 1) // 2, n - m)])
    logits = generator.normal(size=(n, s)) + 2 * generator.normal(size=(m, s))[labels]
    theta = np.exp(logits)
    return theta / theta.sum(axis=1, keepdims=True), labels


def _check_leep(found: float, theta: np.ndarray, labels: np.ndarray, call: str) -> None:
    right = transferability.leep(theta, labels)

    def same(other: float) -> bool:
        return abs(found - other) < 1e-6 * max(1.0, abs(other))

    if same(right):
        return
    joint = np.eye(labels.max() + 1)[labels].T @ theta / len(labels)
    likelihood = ((joint / joint.sum(axis=0))[labels] * theta).sum(axis=1)
    other_way = ((joint / joint.sum(axis=1, keepdims=True))[labels] * theta).sum(axis=1)
    if same(transferability.nce(theta.argmax(axis=1), labels)):
        raise Hint(
            f"{call} returned minus the conditional entropy given the most likely source class. "
            f"LEEP uses all the probabilities of an image, not the largest alone."
        )
    if same(-right):
        raise Hint(f"{call} has the wrong sign: higher should be better, and 0 is the best.")
    if same(right * len(labels)):
        raise Hint(f"{call} returned a sum over the images; what is wanted is a figure an image.")
    if same(float(np.log(likelihood.mean()))):
        raise Hint(
            f"{call} returned the logarithm of a mean; a likelihood averages the logarithms."
        )
    if same(float(likelihood.mean())):
        raise Hint(f"{call} returned a mean likelihood: no logarithm has been taken.")
    if same(float(np.log(other_way).mean())):
        raise Hint(
            f"{call} used the distribution of the source's classes given yours. It is the other "
            f"one that answers the question: given a source class, how likely is each of yours?"
        )
    if same(float(np.log((joint[labels] * theta).sum(axis=1)).mean())):
        raise Hint(
            f"{call} used the joint distribution of both labels where the conditional one belongs."
        )
    if found > 0:
        raise Hint(
            f"{call} returned {found:.3f}: a mean of logarithms of probabilities is not > 0."
        )
    raise Hint(
        f"{call} returned {found:.4f}, too {'high' if found > right else 'low'}. Check the two "
        f"distributions: each column of the conditional one sums to 1."
    )


@exercise("07.2", "what a pick costs is a matter of the truth; the score only decides the pick.")
def _regret(answer: Any) -> None:
    """Write a function `regret(scores, truth)`: what does it cost to trust the scores?

    `scores` and `truth` are (s,) NumPy arrays: for each of s networks an estimator's score, and the
    accuracy after fine-tuning. One takes the network with the highest score, and where several
    share it, one of these at random. Return the accuracy that is lost, on average, against the best
    network of all: a number of 0 or more.
    """
    expect_function(answer, "regret(scores, truth)")
    truth = np.array([0.81, 0.62, 0.93, 0.78, 0.55])
    cases = {
        "scores whose highest is the best network's": np.array([2.0, 1.0, 5.0, 3.0, 0.0]),
        "scores whose highest is another network's": np.array([4.0, 1.0, 2.0, 9.0, 0.0]),
        "negative scores": np.array([-4.0, -1.5, -2.0, -3.0, -9.0]),
        "scores of which two are highest": np.array([7.0, 1.0, 2.0, 7.0, 0.0]),
        "scores that are all the same": np.full(5, 0.5),
    }
    for kind, scores in cases.items():
        call = f"regret, on {kind},"
        found = number(ask(answer, scores.copy(), truth.copy(), call=call), call)
        right = transferability.regret(scores, truth)
        if abs(found - right) < 1e-9:
            continue
        if right and abs(found + right) < 1e-9:
            raise Hint(f"{call} has the wrong sign: what is lost counts as positive.")
        if abs(found - (truth.max() - truth[scores.argmin()])) < 1e-9:
            raise Hint(f"{call} took the network with the lowest score; higher is better.")
        if kind.startswith(("scores of which", "scores that")):
            raise Hint(
                f"{call} returned {found:.3f}. Where several networks share the highest score, any "
                f"of them may be taken: what is lost on average?"
            )
        if abs(found - (scores.max() - scores[truth.argmax()])) < 1e-9:
            raise Hint(
                f"{call} returned a difference of scores, but it is accuracy that is lost or not."
            )
        raise Hint(
            f"{call} returned {found:.3f}. Whose accuracy does one get, and whose could one have?"
        )


@exercise("07.3", "n fits for the price of one: the same identity makes the probe cheap.")
def _leave_one_out(answer: Any) -> None:
    """Write a function `leave_one_out(features, targets, ridge)`: what does ridge regression say of
    each example when it is fitted on all the others?

    `features` is an (n, d) NumPy array F, `targets` an (n, m) array Y, `ridge` a number λ above 0.
    The fit on all is the W that minimises ‖F W − Y‖² + λ ‖W‖², without an intercept. Return the
    (n, m) array whose row i is what the fit *without example i* predicts for it.

    Do it without n fits: with the hat matrix H = F (FᵀF + λI)⁻¹ Fᵀ the predictions of the full fit
    are H Y, and example i has helped to predict itself with the weight H_ii.
    """
    expect_function(answer, "leave_one_out(features, targets, ridge)")
    generator = np.random.default_rng(0)
    for n, d, m, ridge in ((12, 3, 2, 1.0), (20, 30, 3, 0.5), (300, 60, 2, 10.0)):
        x = generator.normal(size=(n, d)) + 0.3
        y = np.eye(m)[np.arange(n) % m] + 0.1 * generator.normal(size=(n, m))
        call = f"leave_one_out, on {n} examples of {d} features,"
        found = ask(answer, x.copy(), y.copy(), ridge, call=call)
        found = found.numpy() if hasattr(found, "numpy") else found
        if not isinstance(found, np.ndarray):
            raise Hint(f"{call} should return an array, but it returned {describe(found)}.")
        if found.shape != y.shape:
            raise Hint(
                f"{call} should return the shape {y.shape}, a prediction for each example and "
                f"target; it returned the shape {found.shape}."
            )
        _check_left_out(found, x, y, ridge, call)


def _check_left_out(
    found: np.ndarray, x: np.ndarray, y: np.ndarray, ridge: float, call: str
) -> None:
    def solve(rows: np.ndarray) -> np.ndarray:
        system = x[rows].T @ x[rows] + ridge * np.eye(x.shape[1])
        return np.linalg.solve(system, x[rows].T @ y[rows])

    everything = x @ solve(np.arange(len(x)))
    if np.allclose(found, everything, atol=1e-8):
        raise Hint(f"{call} returned what the full fit predicts: each example has seen itself.")
    for i in range(0, len(x), max(1, len(x) // 4)):
        right = x[i] @ solve(np.delete(np.arange(len(x)), i))
        if np.allclose(found[i], right, atol=1e-6):
            continue
        if np.allclose(y[i] - found[i], right, atol=1e-6):
            raise Hint(f"{call} returned the errors; what is wanted are the predictions.")
        if np.allclose(found[i], everything[i] * (y[i] - right) / (y[i] - everything[i])):
            raise Hint(
                f"{call} scales the prediction, but what grows when example {i} is left out is its "
                f"error."
            )
        raise Hint(
            f"{call} predicts {np.round(found[i], 3).tolist()} for example {i}; without it the fit "
            f"predicts something else. How does the error of the full fit grow?"
        )
