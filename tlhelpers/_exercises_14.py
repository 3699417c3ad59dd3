"""Checks for the exercises of chapter 14: negative transfer, and several sources."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tlhelpers import combine
from tlhelpers.exercises import Hint, ask, describe, differing, exercise, expect_function, number


@exercise("14.1", "a source is worth a fixed number of labels, however many examples it has.")
def _worth(answer: Any) -> None:
    """Write a function `worth(sigma, delta, n)` for the smallest case: noise of standard deviation
    `sigma` in each label, a source that is off by `delta` in each coordinate, and `n` labels.

    Return a pair of numbers: the number of labels of one's own that the source is worth, and the
    mean squared error per coordinate of the best combination of source and labels.
    """
    expect_function(answer, "worth(sigma, delta, n)")
    for sigma, delta, n in ((1.0, 0.5, 3), (2.0, 0.5, 10), (0.3, 1.2, 7)):
        call = f"worth, with sigma = {sigma:g}, delta = {delta:g} and n = {n},"
        found = ask(answer, sigma, delta, n, call=call)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Hint(f"{call} should return two numbers, but it returned {describe(found)}.")
        labels, error = (number(value, call) for value in found)
        _check_worth(labels, error, sigma, delta, n, call)


def _check_worth(
    labels: float, error: float, sigma: float, delta: float, n: int, call: str
) -> None:
    right = (sigma / delta) ** 2
    if math.isclose(labels, sigma / delta):
        raise Hint(f"{call} compared standard deviations; it is squared errors that are compared.")
    if math.isclose(labels, 1 / right) or math.isclose(labels, delta / sigma):
        raise Hint(f"{call} says that the farther the source, the more it is worth: turn it round.")
    if math.isclose(labels, right / n):
        raise Hint(
            f"{call} returned the best strength α first; what is asked for does not depend on n."
        )
    if not math.isclose(labels, right, rel_tol=1e-6):
        raise Hint(
            f"{call} says that the source is worth {labels:.3f} labels. With that many labels, "
            f"training from scratch would have the very error of the source."
        )
    own, source = sigma**2 / n, delta**2
    best = own * source / (own + source)
    if math.isclose(error, min(own, source), rel_tol=1e-9) and not math.isclose(error, best):
        raise Hint(f"{call} took the better of the two; a combination is better than either.")
    if math.isclose(error, math.sqrt(best), rel_tol=1e-9):
        raise Hint(f"{call} returned the root of the mean squared error.")
    if not math.isclose(error, best, rel_tol=1e-6):
        raise Hint(
            f"{call} gives the error {error:.4f}. The source counts like so many further labels: "
            f"which error has the mean of all of them?"
        )


@exercise("14.2", "a soup that is never worse on validation than its best ingredient.")
def _greedy_soup(answer: Any) -> None:
    """Write a function `greedy_soup(states, score)`: the soup that admits an ingredient only where
    it does no harm.

    `states` is a list of state dicts with the same names, all of floating-point tensors;
    `score(state)` is the validation accuracy of a network with that state. Begin with the state of
    the highest score. Then try the others, from the next highest to the lowest: one is admitted if
    the plain average of it and all that were admitted before scores no lower than the soup so far.
    Return the soup, a state dict.
    """
    expect_function(answer, "greedy_soup(states, score)")
    for seed in (27, 36, 64):  # here each mistake makes a soup of its own
        states, score = _kitchen(seed)
        call = f"greedy_soup, on {len(states)} states,"
        given = [{k: v.clone() for k, v in state.items()} for state in states]
        found = ask(answer, given, score, call=call)
        if not isinstance(found, dict) or set(found) != {"w"}:
            raise Hint(f"{call} should return one state dict, but returned {describe(found)}.")
        if any(not torch.equal(g["w"], s["w"]) for g, s in zip(given, states, strict=True)):
            raise Hint(f"{call} changed one of the states that it was given.")
        _check_soup(found["w"], states, score, call)


State = dict[str, torch.Tensor]


def _kitchen(seed: int) -> tuple[list[State], Callable[[State], float]]:
    """States around a point, and a score that is the better the nearer they are to it."""
    generator = torch.Generator().manual_seed(seed)
    states = [{"w": torch.randn(3, generator=generator)} for _ in range(5)]
    return states, lambda state: -float(state["w"].square().sum())


def _soup(
    states: list[State],
    score: Callable[[State], float],
    mix: Callable[[list[State]], State] = combine.average_states,
) -> torch.Tensor:
    admitted = states[:1]
    for state in states[1:]:
        if score(mix([*admitted, state])) >= score(mix(admitted)):
            admitted.append(state)
    return mix(admitted)["w"]


def _halves(states: list[State]) -> State:
    mixed = states[0]["w"]
    for state in states[1:]:
        mixed = (mixed + state["w"]) / 2
    return {"w": mixed}


def _check_soup(
    found: Any, states: list[State], score: Callable[[State], float], call: str
) -> None:
    ranked = sorted(states, key=score, reverse=True)
    right = _soup(ranked, score)

    def same(other: torch.Tensor) -> bool:
        return isinstance(found, torch.Tensor) and torch.allclose(found, other, atol=1e-5)

    if same(right):
        return
    if same(combine.average_states(states)["w"]):
        raise Hint(f"{call} admitted everybody: that is the uniform soup. Ask the score first.")
    if same(ranked[0]["w"]):
        raise Hint(f"{call} kept the best single state, but another one would have done no harm.")
    if same(_soup(states, score)):
        raise Hint(f"{call} tried the states in the order given; the best should come first.")
    if same(_soup(ranked[::-1], score)):
        raise Hint(f"{call} began with the worst state.")
    if same(_soup(ranked, score, _halves)):
        raise Hint(
            f"{call} averaged the soup with each new state half and half. All that were admitted "
            f"should have the same share."
        )
    if not isinstance(found, torch.Tensor) or found.shape != right.shape:
        raise Hint(f"{call} should give each entry as a tensor of the shape that it had.")
    raise Hint(
        f"{call} returned a soup that scores {score({'w': found}):.3f}; the greedy one scores "
        f"{score({'w': right}):.3f}. What is each trial compared with?"
    )


def _number(value: Any, call: str) -> float:
    """A number, which may be infinite."""
    if isinstance(value, float | np.floating) and math.isinf(value):
        return float(value)
    return number(value, call)


@exercise("14.3", "images on which both are right, or both wrong, say nothing of the difference.")
def _images_needed(answer: Any) -> None:
    """Write a function `images_needed(a, b, z)`: how many validation images does it take to tell
    two networks apart?

    `a` and `b` are (n,) NumPy arrays of booleans: which of n images the one and the other network
    gets right. Take their difference of accuracies and its variance from these images, and return
    how many images are needed for the difference to be `z` standard errors away from 0: a number,
    not rounded. Return infinity if both are equally accurate.
    """
    expect_function(answer, "images_needed(a, b, z)")
    generator = np.random.default_rng(0)
    for n, z in ((200, 1.96), (500, 1.0)):
        a = generator.random(n) < 0.9
        b = np.where(generator.random(n) < 0.8, a, generator.random(n) < 0.5)
        call = f"images_needed, on {n} images with z = {z:g},"
        found = _number(ask(answer, a.copy(), b.copy(), z, call=call), call)
        _check_images(found, a, b, z, call)
    call = "images_needed, on two networks with the same accuracy,"
    a, b = np.array([True, False, True]), np.array([False, True, True])
    if _number(ask(answer, a, b, 1.96, call=call), call) != math.inf:
        raise Hint(f"{call} should return infinity: no number of images is enough.")


def _check_images(found: float, a: np.ndarray, b: np.ndarray, z: float, call: str) -> None:
    difference = a.astype(float) - b.astype(float)
    gap, q = difference.mean(), np.square(difference).mean()
    right = z**2 * (q - gap**2) / gap**2

    def same(other: float) -> bool:
        return math.isclose(found, other, rel_tol=1e-6)

    # Over n or over n − 1: either is a variance.
    if same(right) or same(right * len(a) / (len(a) - 1)):
        return
    p, r = a.mean(), b.mean()
    if same(z**2 * (p * (1 - p) + r * (1 - r)) / gap**2):
        raise Hint(
            f"{call} added the variances of two accuracies, as if each network had images of its "
            f"own. Both saw the same images: take the variance of the difference on one image."
        )
    if same(right / z**2):
        raise Hint(f"{call} is right for one standard error; {z:g} are asked for.")
    if same(right / z) or same(z * math.sqrt(right / z**2)):
        raise Hint(f"{call} forgot a square: the standard error falls with the root of n.")
    raise Hint(
        f"{call} returned {found:.1f}. The difference on one image is 1, 0 or −1; what are its "
        f"mean and its variance, and what is the standard error over n images?"
    )


@exercise("14.4", "one line between two networks, and the count of batches left alone.")
def _wise(answer: Any) -> None:
    """Write a function `wise(start, tuned, alpha)` that returns a state dict on the way from one
    network to the other.

    `start` and `tuned` are state dicts of one architecture, `alpha` is the share of `tuned`, 0 to
    1. Floating-point entries are interpolated; others, such as BatchNorm's count of batches, are
    taken from `start`. Neither of the two may be changed.
    """
    expect_function(answer, "wise(start, tuned, alpha)")
    start, tuned = _states()
    for alpha in (0.25, 0.0, 1.0):
        call = f"wise, with alpha = {alpha:g},"
        given = [{k: v.clone() for k, v in state.items()} for state in (start, tuned)]
        found = ask(answer, *given, alpha, call=call)
        if not isinstance(found, dict):
            raise Hint(f"{call} should return a state dict, but it returned {describe(found)}.")
        if set(found) != set(start):
            raise Hint(f"{call} should return all entries, {', '.join(start)}, and no other.")
        for state, before in zip(given, (start, tuned), strict=True):
            if any(not torch.equal(state[key], before[key]) for key in before):
                raise Hint(f"{call} changed one of the two state dicts that it was given.")
        _check_wise(found, start, tuned, alpha, call)


def _states() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    states = [
        {
            "weight": torch.randn(3, 2, generator=generator),
            "running_var": torch.rand(3, generator=generator),
            "num_batches_tracked": torch.tensor(count),
        }
        for count in (700, 820)
    ]
    return states[0], states[1]


def _check_wise(
    found: dict[str, Any],
    start: dict[str, torch.Tensor],
    tuned: dict[str, torch.Tensor],
    alpha: float,
    call: str,
) -> None:
    right = combine.interpolate_states(start, tuned, alpha=alpha)
    turned = combine.interpolate_states(start, tuned, alpha=1 - alpha)
    for key in differing(found, right, call, source="the start", atol=1e-6):
        entry = found[key]
        if torch.allclose(entry, turned[key], atol=1e-6):
            raise Hint(f"{call} went the other way: alpha is the share of the tuned network.")
        raise Hint(f"{call} gives another {key!r} than the point between the two networks.")
