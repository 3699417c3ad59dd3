"""Checks for the exercises of chapter 18: weighing evidence, and measuring an application."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number

Interval = tuple[float, float]


@exercise("18.1", "what an alarm is worth depends on how rare the thing is that it warns of.")
def _predictive_value(answer: Any) -> None:
    """Write a function `predictive_value(sensitivity, specificity, prevalence)`: the probability
    that somebody with a positive test has the disease.

    All three are probabilities: that a test of somebody ill is positive, that a test of somebody
    well is negative, and that somebody is ill. Where no test is ever positive, return 0.
    """
    expect_function(answer, "predictive_value(sensitivity, specificity, prevalence)")
    for given in ((0.9, 0.95, 0.01), (0.8, 0.7, 0.3), (1.0, 0.999, 0.0001)):
        call = "predictive_value, with {:g}, {:g} and {:g},".format(*given)
        found = number(ask(answer, *given, call=call), call)
        _check_predictive_value(found, *given, call)
    call = "predictive_value, with a test that is never positive,"
    if number(ask(answer, 0.0, 1.0, 0.2, call=call), call) != 0:
        raise Hint(f"{call} should return 0: there is no positive test to be right about.")


def _check_predictive_value(
    found: float, sensitivity: float, specificity: float, prevalence: float, call: str
) -> None:
    ill, well = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    right = ill / (ill + well)
    if math.isclose(found, right, rel_tol=1e-9):
        return
    if math.isclose(found, sensitivity):
        raise Hint(f"{call} returned the sensitivity: that is given the disease, not the test.")
    if math.isclose(found, sensitivity / (sensitivity + 1 - specificity)):
        raise Hint(f"{call} does not depend on how many people are ill.")
    if math.isclose(found, ill):
        raise Hint(f"{call} returned how many are ill and positive, of all; ask of the positive.")
    if math.isclose(found, ill / (ill + specificity * (1 - prevalence))):
        raise Hint(f"{call} counted the well who test negative among the positive tests.")
    raise Hint(
        f"{call} gives {found:.4f}. Imagine a million people: how many ill ones test positive, how "
        f"many well ones, and who of all these is ill?"
    )


@exercise("18.2", "silence, doubt and contradiction are three answers, and none of them is a yes.")
def _weigh(answer: Any) -> None:
    """Write a function `weigh(intervals)` that says what several studies of one question show.

    `intervals` is a list of pairs (low, high): the interval of method A minus method B in each
    study, perhaps none. Return "silent" without a study; "disputed" where one study shows A better
    and another shows B better; "better" or "worse" (for A) where some study shows it and none
    shows the opposite; otherwise "open". A study shows something where its interval does not hold
    0, not even at its end.
    """
    expect_function(answer, "weigh(intervals)")
    cases: Sequence[tuple[list[Interval], str, str]] = (
        ([], "silent", "no study says nothing, which is not the same as an open result"),
        ([(0.01, 0.05)], "better", "the whole interval is above 0"),
        ([(-0.03, -0.01)], "worse", "the whole interval is below 0"),
        ([(-0.01, 0.08)], "open", "the interval holds 0, wherever its middle lies"),
        ([(-0.02, 0.01), (-0.01, 0.03)], "open", "both intervals hold 0"),
        ([(-0.02, 0.01), (0.02, 0.03)], "better", "an open study contradicts nobody"),
        ([(-0.01, 0.01), (-0.3, -0.2)], "worse", "an open study contradicts nobody"),
        ([(0.2, 0.3), (0.1, 0.2), (-0.02, -0.01)], "disputed", "votes are not counted"),
        ([(0.0, 0.1)], "open", "an interval that ends at 0 holds it"),
    )
    for intervals, right, why in cases:
        call = f"weigh({intervals})"
        found = ask(answer, list(intervals), call=call)
        if not isinstance(found, str):
            raise Hint(f"{call} should return a word, but it returned {describe(found)}.")
        if found != right:
            raise Hint(f"{call} returned {found!r}, but {why}.")


@exercise("18.3", "a split by time keeps the future out of the training part.")
def _time_split(answer: Any) -> None:
    """Write a function `time_split(times, share)` that says which examples are for testing.

    `times` is an (n,) NumPy array: when each example happened, in no particular order, several at
    the same time perhaps. Return an (n,) array of booleans. Testing takes the latest examples: the
    fewest that are at least `share` of all (0 < share < 1), where examples of one time stay
    together.
    """
    expect_function(answer, "time_split(times, share)")
    rng = np.random.default_rng(18)
    for n, moments, share in ((20, 1000, 0.25), (50, 12, 0.3), (30, 4, 0.1)):
        times = rng.integers(moments, size=n)
        call = f"time_split, with {n} examples at {len(np.unique(times))} times, share = {share},"
        found = ask(answer, times.copy(), share, call=call)
        if not isinstance(found, np.ndarray) or found.shape != (n,) or found.dtype != bool:
            raise Hint(f"{call} should return ({n},) booleans, but returned {describe(found)}.")
        _check_time_split(found, times, share, call)


def _check_time_split(found: np.ndarray, times: np.ndarray, share: float, call: str) -> None:
    if found.mean() < share:
        raise Hint(f"{call} tests on {found.sum()} of {len(found)} examples, which is too few.")
    if found.all() or times[found].min() < times[~found].max():
        raise Hint(f"{call} trains on an example that is later than one of those for testing.")
    if times[found].min() == times[~found].max():
        raise Hint(f"{call} puts examples of one and the same time on both sides.")
    latest = found & (times > times[found].min())
    if latest.mean() >= share:
        raise Hint(f"{call} tests on {found.sum()} examples; fewer are enough for the share.")


@exercise("18.4", "two results with intervals can be compared although nobody compared them.")
def _square_and_add(answer: Any) -> None:
    """Write a function `square_and_add(a, b)`: the difference of two independent results.

    `a` and `b` are triples (value, low, high), each a result with its interval. Return the triple
    of a minus b: the difference; its lower end, which is the difference less the root of the sum
    of two squares, those of how far the lower end of a is below a and of how far the upper end of
    b is above b; and its upper end, built in the same way.
    """
    expect_function(answer, "square_and_add(a, b)")
    for a, b in (((0.8, 0.7, 0.95), (0.5, 0.48, 0.53)), ((0.3, 0.2, 0.33), (0.6, 0.5, 0.64))):
        call = f"square_and_add({a}, {b})"
        found = ask(answer, a, b, call=call)
        if not isinstance(found, tuple | list) or len(found) != 3:
            raise Hint(f"{call} should return three numbers, but it returned {describe(found)}.")
        _check_difference([number(value, call) for value in found], a, b, call)


def _check_difference(
    found: list[float], a: tuple[float, ...], b: tuple[float, ...], call: str
) -> None:
    value = a[0] - b[0]
    if not math.isclose(found[0], value):
        raise Hint(f"{call} gives the difference {found[0]:.3f}; take the second from the first.")
    low = value - math.hypot(a[0] - a[1], b[2] - b[0])
    high = value + math.hypot(a[2] - a[0], b[0] - b[1])
    if math.isclose(found[1], low) and math.isclose(found[2], high):
        return
    if math.isclose(found[1], a[1] - b[2]) and math.isclose(found[2], a[2] - b[1]):
        raise Hint(
            f"{call} lets both results be as wrong as they can at once, which is too cautious: "
            f"independent errors rarely add up."
        )
    if math.isclose(found[1], a[1] - b[1]) or math.isclose(found[2], a[2] - b[2]):
        raise Hint(f"{call} took lower end from lower end, as if both erred to the same side.")
    if math.isclose(found[1], value - math.hypot(a[0] - a[1], b[0] - b[1])):
        raise Hint(f"{call}: the difference is low where a is low and b is high.")
    raise Hint(
        f"{call} gives the ends {found[1]:.3f} and {found[2]:.3f}. Which end of b makes the "
        f"difference small? Square, add, take the root."
    )
