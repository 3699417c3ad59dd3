"""Checks for the exercises of chapter 14: negative transfer, and several sources."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from tlhelpers import combine
from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number


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


@exercise("14.2", "the point where a source turns belongs to it, the method and the baseline.")
def _turning_point(answer: Any) -> None:
    """Write a function `turning_point(shots, gain)`: at how many labels does a source turn harmful?

    `shots` are (s,) numbers of labels, rising; `gain` is an (s,) NumPy array of transfer gains.
    Return the smallest number of labels at which the curve reaches 0 from above, with straight
    lines over the *logarithm* of the number of labels between the points. Return 0 if the first
    gain is negative already, and infinity if none is.
    """
    expect_function(answer, "turning_point(shots, gain)")
    shots = (1, 4, 16, 64)
    cases = {
        "a curve that falls through 0": (np.array([0.3, 0.1, -0.1, -0.2]), 8.0),
        "a curve that falls below 0 and rises again": (np.array([0.3, -0.1, 0.1, -0.3]), 2**1.5),
        "gains that are never negative": (np.array([0.3, 0.2, 0.1, 0.02]), math.inf),
        "gains that are negative from the start": (np.array([-0.1, -0.2, -0.3, -0.1]), 0.0),
        "gains that begin below 0 and rise": (np.array([-0.1, 0.2, 0.3, 0.1]), 0.0),
    }
    for kind, (gain, right) in cases.items():
        call = f"turning_point, on {kind},"
        found = _number(ask(answer, shots, gain.copy(), call=call), call)
        if found == right or math.isclose(found, right, rel_tol=1e-6):
            continue
        if kind.startswith("a curve") and math.isclose(found, _crossing(shots, gain), rel_tol=1e-6):
            raise Hint(
                f"{call} returned {found:.3f}, which is right for straight lines over the number "
                f"of labels; they are to be straight over its logarithm."
            )
        if found in shots:
            raise Hint(
                f"{call} returned {found:g}, one of the numbers of labels. The line is crossed "
                f"between two of them."
            )
        raise Hint(f"{call} returned {found:.3f}; {right:.3f} was expected.")


def _crossing(shots: tuple[int, ...], gain: np.ndarray) -> float:
    """The same, with straight lines over the number of labels itself."""
    i = int(np.flatnonzero(gain < 0)[0])
    share = gain[i - 1] / (gain[i - 1] - gain[i])
    return float(shots[i - 1] + share * (shots[i] - shots[i - 1]))


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
    for key, value in right.items():
        entry = found[key]
        if not isinstance(entry, torch.Tensor) or entry.shape != value.shape:
            raise Hint(f"{call} should give {key!r} as a tensor of shape {tuple(value.shape)}.")
        if not value.is_floating_point():
            if entry.is_floating_point() or not torch.equal(entry, value):
                raise Hint(f"{call} should take {key!r} from the start: it counts whole batches.")
            continue
        if torch.allclose(entry, value, atol=1e-6):
            continue
        if torch.allclose(entry, turned[key], atol=1e-6):
            raise Hint(f"{call} went the other way: alpha is the share of the tuned network.")
        raise Hint(f"{call} gives another {key!r} than the point between the two networks.")
