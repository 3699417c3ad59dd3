"""Checks of the exercises of chapter 01."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from tlhelpers.exercises import Hint, ask, exercise, expect_function, number


@exercise(
    "01.1", "labels of the target that the source has replaced: the effective data transferred."
)
def _labels_worth(answer: Any) -> None:
    """Write a function `labels_worth(pretrained, scratch, k)` that says how many labels a class the
    pretraining is worth to somebody who has k of them.

    Both curves are frames with the columns `k` (labels a class, rising) and `mean` (accuracy,
    rising). Read off the accuracy of the pretrained network at `k`, find the number of labels
    at which the other curve reaches the same accuracy, and return how many more than `k` that
    is. Between two points of a curve the accuracy is a straight line in the logarithm of the number
    of labels. Return `None` where the other curve does not get so far, and minus k plus its first
    number of labels where it starts higher already.
    """
    expect_function(answer, "labels_worth(pretrained, scratch, k)")
    grid = np.array([1, 2, 5, 10, 20, 50])
    scratch = pd.DataFrame({"k": grid, "mean": 0.30 + 0.11 * np.log2(grid)})
    # Pretraining makes one label do the work of four: 4k labels from scratch.
    pretrained = scratch.assign(mean=0.52 + 0.11 * np.log2(grid))
    for k in (2, 5, 10):
        call = f"labels_worth(pretrained, scratch, {k})"
        found = ask(answer, pretrained.copy(), scratch.copy(), k, call=call)
        if found is None:
            raise Hint(f"{call} returned None, but the other curve does reach that accuracy.")
        _compare_worth(number(found, call), k)
    call = "labels_worth on the last point of a better curve"
    if ask(answer, pretrained.copy(), scratch.copy(), 50, call=call) is not None:
        raise Hint(
            "at 50 labels the pretrained network is better than the other ever gets, so nothing "
            "says how many labels that would take: return None, not the end of the curve."
        )
    call = "labels_worth between two points of the grid"
    found = number(ask(answer, pretrained.copy(), scratch.copy(), 7, call=call), call)
    if abs(found - 21) > 0.1:
        raise Hint(
            "k need not be a point of the grid: interpolate the first curve too, in the logarithm."
        )
    call = "labels_worth where pretraining harms"
    found = number(ask(answer, scratch.copy(), pretrained.copy(), 1, call=call), call)
    if abs(found) > 1e-6:
        raise Hint("where the other curve starts higher already, return its first k minus k.")


def _compare_worth(found: float, k: int) -> None:
    if abs(found - 3 * k) < 0.05 * k:
        return
    if abs(found - 4 * k) < 0.05 * k:
        raise Hint("this is how many labels the other needs; take off the k that both have.")
    if abs(found - 4) < 0.1 or abs(found - 3) < 0.1:
        raise Hint("this is a ratio; asked for is a number of labels.")
    raise Hint(
        f"for k = {k} it should be another number, found {found:.2f}. Check the interpolation: "
        f"between two points the accuracy is a straight line in log k."
    )


@exercise("01.2", "what is spent once has to be earned back task by task.")
def _break_even(answer: Any) -> None:
    """Write a function `break_even(pretraining, scratch, finetuned)` that counts how many target
    tasks it takes until pretraining pays.

    All three are costs in the same unit, such as seconds: of pretraining, once; and of learning
    one target task, from scratch or by fine-tuning. Return the smallest whole number of tasks at
    which pretraining once and fine-tuning for every task costs less in all than
    learning every task from scratch; `None` if it never does.
    """
    expect_function(answer, "break_even(pretraining, scratch, finetuned)")
    for pretraining, scratch, finetuned in ((10, 30, 1), (95, 12, 2.5), (100, 8, 3), (1000, 5, 4)):
        call = f"break_even({pretraining}, {scratch}, {finetuned})"
        found = ask(answer, pretraining, scratch, finetuned, call=call)
        if found is None:
            raise Hint(f"{call} returned None, but each task does save something.")
        tasks = number(found, call)
        if tasks != int(tasks):
            raise Hint(f"{call} should return a whole number of tasks, found {tasks:g}.")
        with_pretraining, without = pretraining + tasks * finetuned, tasks * scratch
        if with_pretraining >= without:
            raise Hint(
                f"{call} gave {tasks:g}, but then the two ways cost {with_pretraining:g} and "
                f"{without:g}: pretraining is not cheaper yet."
            )
        before = tasks - 1
        if pretraining + before * finetuned < before * scratch:
            raise Hint(f"{call} gave {tasks:g}, but it pays with fewer tasks already.")
    for scratch, finetuned in ((3, 8), (5, 5)):
        call = f"break_even(100, {scratch}, {finetuned})"
        if (found := ask(answer, 100, scratch, finetuned, call=call)) is not None:
            raise Hint(
                f"{call} should return None, as no task saves anything; it returned {found!r}."
            )


@exercise("01.3", "one point inside the noise is not yet the end of the gain.")
def _gain_ends(answer: Any) -> None:
    """Write a function `gain_ends(frame)` that reads off where a gain can no longer be shown.

    The frame has the columns `k`, `low` and `high`, in any order of its rows: the interval of the
    gain at each number of labels. Return the smallest `k` of the frame from which on, at it and
    at every larger k, the gain is not shown to be above zero (`low` is zero or less). Return
    `None` if at the largest k it still is.
    """
    expect_function(answer, "gain_ends(frame)")
    grid = [1, 2, 5, 10, 20, 50]
    cases = (
        ("a gain that shrinks", [0.2, 0.1, 0.05, 0.01, -0.01, -0.02], 20),
        ("a gain with a dip at k = 5", [0.2, 0.1, -0.01, 0.02, 0.01, -0.01], 50),
        ("no gain at all", [-0.1, -0.1, -0.2, -0.1, -0.1, -0.1], 1),
        ("a gain that stays", [0.2, 0.1, -0.1, 0.1, 0.1, 0.05], None),
        ("a gain whose interval ends at zero", [0.2, 0.1, 0.1, 0.1, 0.1, 0.0], 50),
    )
    for name, low, expected in cases:
        frame = pd.DataFrame({"k": grid, "low": low, "high": np.add(low, 0.1)})
        shuffled = frame.sample(frac=1, random_state=1).reset_index(drop=True)
        for given, how in ((frame, ""), (shuffled, ", rows shuffled")):
            found = ask(answer, given.copy(), call=f"gain_ends on {name}{how}")
            same = found is None if expected is None else _is_whole(found, expected)
            if not same:
                what = "None" if found is None else f"{found!r}"
                raise Hint(
                    f"on {name}{how}, with low = {given['low'].round(2).tolist()} at "
                    f"k = {given['k'].tolist()}, the function returned {what}."
                )


def _is_whole(found: Any, expected: int) -> bool:
    try:
        return not isinstance(found, bool) and math.isclose(float(found), expected)
    except (TypeError, ValueError):
        return False


@exercise("01.4", "both sides chose on validation, and the test split was only read.")
def _honest_gain(answer: Any) -> None:
    """Write a function `honest_gain(frame)` that compares two ways fairly.

    Each row of the frame is one setting that was tried, with the columns `way` (`"scratch"` or
    `"fine-tuned"`), `setting`, `validation` and `test` (accuracies). Choose for each way its
    setting on validation, the first of equals, and return the test accuracy of `"fine-tuned"` minus
    that of `"scratch"`.
    """
    expect_function(answer, "honest_gain(frame)")
    generator = np.random.default_rng(3)
    for _ in range(20):
        frame = pd.DataFrame(
            {
                "way": ["scratch", "fine-tuned"] * 5,
                "setting": np.repeat([f"lr {i}" for i in range(5)], 2),
                "validation": generator.uniform(0.6, 0.9, 10).round(2),
                "test": generator.uniform(0.6, 0.9, 10).round(3),
            }
        )
        frame = frame.sample(frac=1, random_state=int(generator.integers(100)))
        call = "honest_gain(frame)"
        found = number(ask(answer, frame.copy(), call=call), call)
        by_way = dict(iter(frame.groupby("way")))
        tuned, scratch = by_way["fine-tuned"], by_way["scratch"]

        def chosen(rows: pd.DataFrame) -> float:
            return float(rows["test"].iloc[int(rows["validation"].to_numpy().argmax())])

        if math.isclose(found, chosen(tuned) - chosen(scratch), abs_tol=1e-9):
            continue
        if math.isclose(found, chosen(scratch) - chosen(tuned), abs_tol=1e-9):
            raise Hint("the sign is turned round: fine-tuned minus scratch.")
        if math.isclose(found, tuned["test"].max() - scratch["test"].max(), abs_tol=1e-9):
            raise Hint("this takes the best test accuracy on either side: the test split chose.")
        if math.isclose(found, tuned["test"].max() - chosen(scratch), abs_tol=1e-9):
            raise Hint("one side is chosen on the test split and the other is not.")
        if math.isclose(
            found, tuned["validation"].max() - scratch["validation"].max(), abs_tol=1e-9
        ):
            raise Hint("this is a difference on validation, where the settings were chosen.")
        raise Hint(
            f"the result {found:.3f} is not the difference of the test accuracies of the settings "
            f"chosen on validation. Do rows and settings still belong together?"
        )
