"""Checks for the exercises of chapter 19: intervals, federated averages, citations, the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats

from tlhelpers import combine
from tlhelpers.exercises import Hint, ask, differing, exercise, expect_function, number

VERDICTS = ("better", "worse", "level", "open")


@exercise("19.1", "an interval that holds 0 is not yet a proof that there is nothing.")
def _verdict(answer: Any) -> None:
    """Write a function `verdict(low, high, margin)` that says what may be claimed of a difference
    whose 95 % interval runs from `low` to `high`, where differences below `margin` do not matter.

    Return `"better"` if the interval lies above 0, `"worse"` if it lies below 0, `"level"` if it
    holds 0 and lies within ± `margin`, and `"open"` if it holds 0 and reaches to `margin` or
    beyond on either side. An interval that only touches 0 holds it.
    """
    expect_function(answer, "verdict(low, high, margin)")
    cases = (
        (0.01, 0.04, 0.02, "better"),
        (0.001, 0.004, 0.02, "better"),
        (-0.04, -0.01, 0.02, "worse"),
        (-0.004, -0.001, 0.02, "worse"),
        (-0.01, 0.015, 0.02, "level"),
        (-0.01, 0.05, 0.02, "open"),
        (-0.05, 0.01, 0.02, "open"),
        (-0.05, 0.06, 0.02, "open"),
        (0.0, 0.03, 0.02, "open"),
        (0.0, 0.01, 0.02, "level"),
    )
    for low, high, margin, right in cases:
        call = f"verdict({low:g}, {high:g}, {margin:g})"
        found = ask(answer, low, high, margin, call=call)
        if found not in VERDICTS:
            raise Hint(f"{call} should return one of {', '.join(VERDICTS)}; found {found!r}.")
        if found != right:
            raise Hint(_why(call, low, high, margin, found))


def _why(call: str, low: float, high: float, margin: float, found: str) -> str:
    if found in ("better", "worse") and low <= 0 <= high:
        return f"{call} returned {found!r}, but the interval holds 0: the sign is not settled."
    if found == "level" and not low <= 0 <= high:
        return (
            f"{call} returned 'level', but the whole interval lies on one side of 0. A small "
            f"difference is a difference; whether it matters is another sentence."
        )
    if found == "level":
        return (
            f"{call} returned 'level', but a difference of {margin:g} or more is not excluded: "
            f"that an effect was not shown does not show that there is none."
        )
    if found == "open" and low <= 0 <= high:
        return f"{call} returned 'open', but every value in the interval is too small to matter."
    return f"{call} returned {found!r}; on which side of 0 do all values of the interval lie?"


@exercise("19.2", "an image counts the same, whoever owns it.")
def _federated_average(answer: Any) -> None:
    """Write a function `federated_average(states, sizes)`: one round's average of the clients.

    `states` is a list of state dicts with the same names, `sizes` the number of images of each
    client. Floating-point entries are averaged, each client counting by its number of images;
    others, such as BatchNorm's count of batches, are taken from the first client. Return a state
    dict; the ones that were given stay as they are.
    """
    expect_function(answer, "federated_average(states, sizes)")
    for sizes in ([10, 30], [5, 20, 75]):
        states = _states(len(sizes))
        call = f"federated_average, for clients with {', '.join(map(str, sizes))} images,"
        given = [{k: v.clone() for k, v in state.items()} for state in states]
        found = ask(answer, given, list(sizes), call=call)
        if not isinstance(found, dict) or set(found) != set(states[0]):
            raise Hint(f"{call} should return one state dict with all entries.")
        for state, before in zip(given, states, strict=True):
            if any(not torch.equal(state[key], before[key]) for key in before):
                raise Hint(f"{call} changed one of the states that it was given.")
        _check_average(found, states, sizes, call)


def _states(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(count)
    return [
        {
            "weight": torch.randn(3, 2, generator=generator),
            "running_mean": torch.randn(2, generator=generator),
            "num_batches_tracked": torch.tensor(40 + i),
        }
        for i in range(count)
    ]


def _check_average(
    found: dict[str, Any], states: list[dict[str, torch.Tensor]], sizes: list[int], call: str
) -> None:
    right = combine.average_states(states, weights=sizes)
    for key in differing(found, right, call, source="the first client", atol=1e-5):
        entry = found[key]
        if torch.allclose(entry, combine.average_states(states)[key], atol=1e-5):
            raise Hint(f"{call} counts all clients alike, the one with most images too.")
        if torch.allclose(entry, right[key] * sum(sizes), atol=1e-3):
            raise Hint(f"{call} returned a weighted sum; the shares should add up to one.")
        if torch.allclose(entry, combine.average_states(states, weights=sizes[::-1])[key]):
            raise Hint(f"{call} gave the sizes to the clients in the wrong order.")
        raise Hint(f"{call} gives another {key!r} than the average over all images.")


@exercise("19.3", "the number names the paper; year and venue are what people get wrong.")
def _cited(answer: Any) -> None:
    """Write a function `cited(text, numbers)` that finds out which works a text cites, by their
    arXiv numbers.

    `numbers` maps keys of a bibliography to arXiv numbers, such as `"he2016"` to `"1512.03385"`.
    Return the list of the keys whose numbers occur in the text, in the order in which they occur
    there, each once. A number may carry a version, as in `1512.03385v2`, which does not matter; a
    number that is only a part of a longer one does not count.
    """
    expect_function(answer, "cited(text, numbers)")
    numbers = {"he2016": "1512.03385", "kingma2015": "1412.6980", "yosinski2014": "1411.1792"}
    cases: tuple[tuple[str, list[str], str], ...] = (
        ("ResNet is https://arxiv.org/abs/1512.03385.", ["he2016"], "plain"),
        ("Adam (arXiv:1412.6980v9) and ResNet [1512.03385]", ["kingma2015", "he2016"], "order"),
        ("1512.03385, again 1512.03385v1", ["he2016"], "once"),
        ("See 1412.69801 and 21411.1792.", [], "part"),
        ("ResNet is not 1406.5776.", [], "none"),
    )
    for text, right, kind in cases:
        call = f"cited, on {text!r},"
        found = ask(answer, text, dict(numbers), call=call)
        if not isinstance(found, list) or any(key not in numbers for key in found):
            raise Hint(f"{call} should return a list of keys, but it returned {found!r}.")
        if found == right:
            continue
        if kind == "part":
            raise Hint(f"{call} found {found}; but there the digits belong to longer numbers.")
        if kind == "once" and len(found) > 1:
            raise Hint(f"{call} should name each work once.")
        if kind == "order" and sorted(found) == sorted(right):
            raise Hint(f"{call} should keep the order of the text, not that of the bibliography.")
        raise Hint(f"{call} found {found}. Look for each number, with or without a version.")


@exercise("19.4", "the best of many equal networks looks better than any of them is.")
def _flattery(answer: Any) -> None:
    """Write a function `flattery(p, n, m)`: how far does the best of many lie above the truth?

    Each of `m` networks is right on each of `n` test images with probability `p`, all independent
    of each other. Return the expected difference between the highest of the `m` accuracies and
    `p`. An exact sum and a simulation that is right to a twentieth of the value are both welcome.
    """
    expect_function(answer, "flattery(p, n, m)")
    for p, n, m in ((0.8, 100, 20), (0.9, 50, 5), (0.7, 500, 100)):
        call = f"flattery({p:g}, {n}, {m})"
        found = number(ask(answer, p, n, m, call=call), call)
        right = _best_of(p, n, m) - p
        if math.isclose(found, right, rel_tol=0.05):
            continue
        if math.isclose(found, right + p, rel_tol=0.02):
            raise Hint(f"{call} returned the best accuracy itself; subtract the truth from it.")
        if math.isclose(found, n * right, rel_tol=0.05):
            raise Hint(f"{call} counted images; an accuracy is a share of them.")
        if abs(found) < right / 10:
            raise Hint(f"{call} is about 0: that is one network, or their mean. Take the best.")
        if math.isclose(found, math.sqrt(p * (1 - p) / n), rel_tol=0.05):
            raise Hint(f"{call} is the standard error of one accuracy, whatever m is.")
        raise Hint(
            f"{call} returned {found:.4f}. How often are all {m} networks right on k images or "
            f"fewer? Or draw many times, and take the highest each time."
        )


def _best_of(p: float, n: int, m: int) -> float:
    """The expected highest of m independent shares."""
    below: Callable[[Any], Any] = stats.binom(n, p).cdf
    return float((1 - below(np.arange(n)) ** m).sum() / n)
