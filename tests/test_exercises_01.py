"""The checks of chapter 01: right answers pass, each likely mistake gets its own hint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tlhelpers import exercises


def labels_worth(pretrained: pd.DataFrame, scratch: pd.DataFrame, k: float) -> float | None:
    accuracy = np.interp(np.log(k), np.log(pretrained["k"]), pretrained["mean"])
    if accuracy > scratch["mean"].iloc[-1]:
        return None
    return float(np.exp(np.interp(accuracy, scratch["mean"], np.log(scratch["k"]))) - k)


def break_even(pretraining: float, scratch: float, finetuned: float) -> int | None:
    if scratch <= finetuned:
        return None
    return math.floor(pretraining / (scratch - finetuned)) + 1


def gain_ends(frame: pd.DataFrame) -> int | None:
    frame = frame.sort_values("k")
    shown = frame.loc[frame["low"] > 0, "k"]
    rest = frame["k"] if shown.empty else frame.loc[frame["k"] > shown.max(), "k"]
    return None if rest.empty else int(rest.min())


def honest_gain(frame: pd.DataFrame) -> float:
    ways = frame.reset_index(drop=True).groupby("way")
    best = frame.reset_index(drop=True).loc[ways["validation"].idxmax()].set_index("way")["test"]
    return float(best["fine-tuned"] - best["scratch"])


RIGHT: dict[str, Callable[..., Any]] = {
    "01.1": labels_worth,
    "01.2": break_even,
    "01.3": gain_ends,
    "01.4": honest_gain,
}


@pytest.mark.parametrize("id", RIGHT)
def test_right_answers_pass(id: str) -> None:
    verdict = exercises.check(id, RIGHT[id])
    assert verdict, verdict


def worth_linear(pretrained: pd.DataFrame, scratch: pd.DataFrame, k: float) -> float | None:
    accuracy = np.interp(k, pretrained["k"], pretrained["mean"])
    return float(np.interp(accuracy, scratch["mean"], scratch["k"]) - k)


def worth_with_own(pretrained: pd.DataFrame, scratch: pd.DataFrame, k: float) -> float | None:
    worth = labels_worth(pretrained, scratch, k)
    return None if worth is None else worth + k


def worth_ratio(pretrained: pd.DataFrame, scratch: pd.DataFrame, k: float) -> float | None:
    worth = labels_worth(pretrained, scratch, k)
    return None if worth is None else worth / k


def worth_clipped(pretrained: pd.DataFrame, scratch: pd.DataFrame, k: float) -> float:
    accuracy = np.interp(np.log(k), np.log(pretrained["k"]), pretrained["mean"])
    return float(np.exp(np.interp(accuracy, scratch["mean"], np.log(scratch["k"]))) - k)


def worth_on_the_grid(pretrained: pd.DataFrame, scratch: pd.DataFrame, k: float) -> float | None:
    nearest = (pretrained["k"] - k).abs().idxmin()
    return labels_worth(pretrained, scratch, float(pretrained["k"][nearest]))


def first_inside(frame: pd.DataFrame) -> int | None:
    inside = frame.loc[frame["low"] <= 0, "k"]
    return None if inside.empty else int(inside.min())


def gain_in_given_order(frame: pd.DataFrame) -> int | None:
    ends = None
    for k, low in zip(frame["k"], frame["low"], strict=True):
        ends = None if low > 0 else (k if ends is None else ends)
    return ends


def best_on_test(frame: pd.DataFrame) -> float:
    best = frame.groupby("way")["test"].max()
    return float(best["fine-tuned"] - best["scratch"])


def best_on_validation(frame: pd.DataFrame) -> float:
    best = frame.groupby("way")["validation"].max()
    return float(best["fine-tuned"] - best["scratch"])


WRONG: list[tuple[str, Any, str]] = [
    ("01.1", 3, "the function labels_worth"),
    ("01.1", worth_linear, "interpolation"),
    ("01.1", worth_with_own, "take off the k"),
    ("01.1", worth_ratio, "a ratio"),
    ("01.1", worth_clipped, "return None"),
    ("01.1", worth_on_the_grid, "need not be a point"),
    ("01.1", lambda a, b, k: None, "does reach"),
    ("01.1", lambda a, b, k: 1 / 0, "ZeroDivisionError"),
    ("01.2", lambda p, s, f: p / (s - f) if s > f else None, "whole number"),
    ("01.2", lambda p, s, f: math.ceil(p / (s - f)) if s > f else None, "not cheaper yet"),
    ("01.2", lambda p, s, f: math.ceil(p / (s - f)) + 5 if s > f else None, "fewer tasks"),
    ("01.2", lambda p, s, f: math.floor(p / s) + 1, "not cheaper yet"),
    ("01.2", lambda p, s, f: math.floor(p / max(s - f, 1e-9)) + 1, "should return None"),
    ("01.2", lambda p, s, f: None, "does save"),
    ("01.3", first_inside, "dip at k = 5"),
    ("01.3", gain_in_given_order, "rows shuffled"),
    ("01.3", lambda frame: "50", "shrinks"),
    ("01.4", best_on_test, "the test split chose"),
    ("01.4", best_on_validation, "difference on validation"),
    ("01.4", lambda frame: -honest_gain(frame), "sign"),
    ("01.4", lambda frame: 0.5, "is not the difference"),
    ("01.4", lambda frame: None, "should return one number"),
]


@pytest.mark.parametrize(("id", "answer", "hint"), WRONG)
def test_wrong_answers_get_a_hint_of_their_own(id: str, answer: Any, hint: str) -> None:
    verdict = exercises.check(id, answer)
    assert not verdict
    assert hint in verdict.message
