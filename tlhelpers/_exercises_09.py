"""Checks for the exercises of chapter 09: chest X-rays, shares and thresholds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number


@exercise("09.1", "the area under the ROC curve is a count of pairs, and no threshold is in it.")
def _auc(answer: Any) -> None:
    """Write a function `auc(scores, ill)` that returns the area under the ROC curve from its
    meaning, without scikit-learn.

    `scores` is an (n,) NumPy array, `ill` an (n,) array of booleans. Of all pairs of an ill and a
    healthy child, return the share in which the ill one has the higher score. A pair with equal
    scores counts one half.
    """
    expect_function(answer, "auc(scores, ill)")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        ill = rng.random(60) < 0.7
        scores = (rng.normal(size=60) + ill).round(0 if seed else 6)
        call = "auc, on scores with ties," if seed else "auc, on 60 children,"
        found = number(ask(answer, scores.copy(), ill.copy(), call=call), call)
        _check_auc(found, scores, ill, call)


def _check_auc(found: float, scores: np.ndarray, ill: np.ndarray, call: str) -> None:
    right = roc_auc_score(ill, scores)
    gaps = scores[ill][:, None] - scores[~ill][None]
    if math.isclose(found, right, rel_tol=1e-6):
        return
    if math.isclose(found, 1 - right, rel_tol=1e-6):
        raise Hint(f"{call} counted the pairs in which the healthy child has the higher score.")
    for share, what in ((float((gaps > 0).mean()), "nothing"), (float((gaps >= 0).mean()), "one")):
        if math.isclose(found, share, rel_tol=1e-6):
            raise Hint(f"{call} counts a pair with equal scores as {what}; it should be a half.")
    if math.isclose(found, float((gaps > 0).sum()), rel_tol=1e-6):
        raise Hint(f"{call} returned the number of pairs; their share is asked for.")
    if math.isclose(found, ((scores > 0) == ill).mean(), rel_tol=1e-6):
        raise Hint(f"{call} returned an accuracy: it compared each score with a threshold.")
    raise Hint(f"{call} returned {found:.4f}, which is not the share of pairs in the right order.")


@exercise("09.2", "where only the shares of the classes change, nothing has to be trained anew.")
def _posterior(answer: Any) -> None:
    """Write a function `posterior(p, trained, wanted)`: what a classifier should say where the
    classes have other shares.

    `p` is an (n, m) NumPy array of probabilities of a classifier that was trained where the classes
    had the shares `trained`, (m,); `wanted` are the shares of the new population, (m,). Return the
    (n, m) probabilities for the new population. Every row adds up to 1.
    """
    expect_function(answer, "posterior(p, trained, wanted)")
    for m in (2, 3):
        rng = np.random.default_rng(m)
        p = rng.dirichlet(np.ones(m), size=20)
        trained, wanted = rng.dirichlet(3 * np.ones(m)), rng.dirichlet(3 * np.ones(m))
        call = f"posterior, for {m} classes,"
        found = ask(answer, p.copy(), trained.copy(), wanted.copy(), call=call)
        _check_posterior(found, p, trained, wanted, call)


def _check_posterior(
    found: Any, p: np.ndarray, trained: np.ndarray, wanted: np.ndarray, call: str
) -> None:
    found = np.asarray(found, dtype=np.float64) if isinstance(found, np.ndarray | list) else found
    if not isinstance(found, np.ndarray) or found.shape != p.shape:
        raise Hint(f"{call} should return an array of the shape of p, but returned "
                   f"{describe(found)}.")  # fmt: skip

    def same(joint: np.ndarray, *, normalised: bool = True) -> bool:
        expected = joint / joint.sum(1, keepdims=True) if normalised else joint
        return bool(np.allclose(found, expected, atol=1e-8))

    if same(p * wanted / trained):
        return
    if same(p * wanted / trained, normalised=False):
        raise Hint(f"{call} returned rows that do not add up to 1.")
    if same(p * trained / wanted):
        raise Hint(f"{call} went the other way: it made frequent what has become rare.")
    if same(p * wanted):
        raise Hint(f"{call} put the new shares in, but p still holds the old ones as well.")
    if same(p / trained):
        raise Hint(f"{call} took the old shares out: that is the answer for equal shares.")
    if same(p):
        raise Hint(f"{call} returned p as it was.")
    raise Hint(f"{call} does not follow from Bayes' rule with p(x | y) held fixed.")


@exercise("09.3", "a threshold is a choice like any other: made on validation, for a stated aim.")
def _threshold(answer: Any) -> None:
    """Write a function `threshold(p, ill)` that chooses a threshold on validation.

    `p` is an (n,) NumPy array of predicted probabilities of being ill, `ill` an (n,) array of
    booleans. A child is called ill where its probability is *above* the threshold. Return a
    threshold, a number in 0..1, for which the balanced accuracy, the mean of sensitivity and
    specificity, is as large as it can be.
    """
    expect_function(answer, "threshold(p, ill)")
    for seed, share in ((0, 0.75), (1, 0.3), (2, 0.9)):
        rng = np.random.default_rng(seed)
        ill = rng.random(80) < share
        p = 1 / (1 + np.exp(-(2 * rng.normal(size=80) + 2 * ill + 1.5))).round(3)
        call = f"threshold, on 80 children of whom {ill.sum()} are ill,"
        found = number(ask(answer, p.copy(), ill.copy(), call=call), call)
        if not 0 <= found <= 1:
            raise Hint(f"{call} should return a probability, but it returned {found:.3f}.")
        _check_threshold(found, p, ill, call)


def _balanced(p: np.ndarray, ill: np.ndarray, t: float) -> float:
    return float(((p > t)[ill].mean() + (p <= t)[~ill].mean()) / 2)


def _check_threshold(found: float, p: np.ndarray, ill: np.ndarray, call: str) -> None:
    candidates = np.concatenate([[0.0], np.unique(p)])
    reached = _balanced(p, ill, found)
    best = max(_balanced(p, ill, t) for t in candidates)
    if math.isclose(reached, best, rel_tol=1e-9):
        return
    if found == 0.5:
        raise Hint(f"{call} returned one half, with which nothing was chosen.")
    accuracies = {t: ((p > t) == ill).mean() for t in candidates}
    if math.isclose(((p > found) == ill).mean(), max(accuracies.values())):
        raise Hint(f"{call} has the best accuracy; the rare class should count as much.")
    raise Hint(
        f"{call} reaches a balanced accuracy of {reached:.3f}, but another threshold reaches more. "
        f"Which thresholds make a difference at all?"
    )


@exercise("09.4", "the shares of a new place can be read off films that nobody has labelled.")
def _shares(answer: Any) -> None:
    """Write a function `new_shares(p, trained, rounds)` that estimates the shares of the classes in
    a new place from predictions alone, by the rule of Saerens, Latinne and Decaestecker.

    `p` is an (n, m) NumPy array of probabilities for films of the new place, by a classifier that
    was trained with the shares `trained`, (m,). Begin with `trained` as the estimate. In each of
    `rounds` rounds, first correct `p` for the present estimate (exercise 09.2, always from the
    original `p`), then take the mean of the corrected rows as the next estimate. Return the last,
    (m,).
    """
    expect_function(answer, "new_shares(p, trained, rounds)")
    for m, rounds in ((2, 1), (2, 20), (3, 5)):
        rng = np.random.default_rng([m, rounds])
        p = rng.dirichlet(0.5 * np.ones(m), size=200)
        trained = rng.dirichlet(4 * np.ones(m))
        call = f"new_shares, for {m} classes and {rounds} round{'s' if rounds > 1 else ''},"
        found = ask(answer, p.copy(), trained.copy(), rounds, call=call)
        _check_shares(found, p, trained, rounds, call)


def _em(p: np.ndarray, trained: np.ndarray, rounds: int, *, compound: bool = False) -> np.ndarray:
    estimate, q = trained, p
    for _ in range(rounds):
        joint = (q if compound else p) * estimate / trained
        q = joint / joint.sum(1, keepdims=True)
        estimate = q.mean(0)
    return estimate


def _check_shares(found: Any, p: np.ndarray, trained: np.ndarray, rounds: int, call: str) -> None:
    if not isinstance(found, np.ndarray) or found.shape != trained.shape:
        raise Hint(f"{call} should return {len(trained)} shares, but returned {describe(found)}.")

    def same(other: np.ndarray) -> bool:
        return bool(np.allclose(found, other, atol=1e-7))

    if same(_em(p, trained, rounds)):
        return
    if same(trained):
        raise Hint(f"{call} returned the shares of training.")
    if same(p.mean(0)):
        raise Hint(f"{call} stopped after the first round: later rounds correct p first.")
    if rounds > 1 and same(_em(p, trained, rounds, compound=True)):
        raise Hint(f"{call} corrected what was corrected already; start from the original p.")
    if same(_em(p, trained, rounds + 1)) or same(_em(p, trained, rounds - 1)):
        raise Hint(f"{call} made one round too many, or one too few.")
    if not math.isclose(float(found.sum()), 1, abs_tol=1e-6):
        raise Hint(f"{call} returned shares that add up to {found.sum():.3f}.")
    raise Hint(f"{call} does not alternate between correcting p and averaging its rows.")
