"""Checks for the exercises of chapter 08: Stanford Dogs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tlhelpers.exercises import Hint, ask, exercise, expect_function, number


@exercise("08.1", "a number of labels that the interval supports, not only the mean.")
def _labels_for_a_target(answer: Any) -> None:
    """Write a function `smallest_k(frame, target)`: how many labels a class are enough?

    The frame is a learning curve with the columns `k`, `mean`, `low` and `high`, one row for
    each number k of labels a class, in any order. Return the smallest `k` whose lower bound
    `low` is `target` or more, and `None` if there is none.
    """
    expect_function(answer, "smallest_k(frame, target)")
    k = np.array([1, 2, 5, 10, 20, 50])
    mean = np.array([0.31, 0.44, 0.58, 0.66, 0.74, 0.80])
    curve = pd.DataFrame({"k": k, "mean": mean, "low": mean - 0.05, "high": mean + 0.05})
    curve["low"] = curve["low"].round(2)
    dip = curve.assign(low=[0.26, 0.55, 0.5, 0.6, 0.7, 0.76])
    frames = {
        "a curve": (curve, 0.58),
        "a curve whose bound equals the target at one k": (curve, 0.61),
        "a curve whose rows are not sorted": (curve.sample(frac=1, random_state=3), 0.42),
        "a curve whose rows go down in k": (curve[::-1], 0.35),
        "a curve that falls again after reaching the target": (dip, 0.52),
        "a curve that reaches the target nowhere": (curve, 0.79),
        "a curve that reaches the target everywhere": (curve, 0.2),
    }
    for kind, (frame, target) in frames.items():
        found = ask(answer, frame.copy(), target, call=f"smallest_k, on {kind},")
        _check_smallest(found, frame, target, kind)


def _check_smallest(found: Any, frame: pd.DataFrame, target: float, kind: str) -> None:
    right = _smallest_k(frame, frame["low"] >= target)
    if found is None or right is None:
        if found is not right:
            returned = "None" if found is None else f"{found!r}"
            raise Hint(
                f"on {kind}, smallest_k returned {returned}. None is for the case that no k has a "
                f"lower bound of the target or more, and only for it."
            )
        return
    value = number(found, f"smallest_k, on {kind},")
    if value == right:
        return
    row = frame[frame["k"] == value]
    if row.empty:
        raise Hint(f"on {kind}, smallest_k returned {found!r}, which is not in the column k.")
    if row["low"].item() >= target:
        raise Hint(
            f"on {kind}, the lower bound reaches the target at the k returned, but at a smaller "
            f"one too. Reaching includes being equal; the rows may be in any order, and the curve "
            f"may fall again."
        )
    reached = [name for name in ("mean", "high") if row[name].item() >= target]
    raise Hint(
        f"on {kind}, the lower bound at the k returned is below the target"
        + (f"; it is the column {reached[0]!r} that reaches it." if reached else ".")
    )


def _smallest_k(frame: pd.DataFrame, reached: Any) -> int | None:
    return min(frame.loc[reached, "k"].tolist(), default=None)


@exercise("08.2", "the head chooses among the data set's own classes, in the data set's order.")
def _untrained_head(answer: Any) -> None:
    """Write a function `restricted_top1(logits, labels, columns)`: how well does the *untrained*
    ImageNet head tell the breeds apart, if it may answer only with a breed?

    `logits` has shape (n, 1000). `labels` has shape (n,) and holds the data set's own labels,
    0 to m − 1. `columns` has shape (m,): class i of the data set is class `columns[i]` of ImageNet,
    in no particular order. Return the accuracy as a number from 0 to 1.
    """
    expect_function(answer, "restricted_top1(logits, labels, columns)")
    for seed, (n, m) in enumerate(((400, 12), (300, 120))):
        logits, labels, columns = _imagenet_example(n, m, seed)
        call = f"restricted_top1, on {n} images of {m} classes,"
        given = (logits.clone(), labels.clone(), columns.clone())
        found = number(ask(answer, *given, call=call), call)
        _check_restricted(found, logits, labels, columns)


def _imagenet_example(n: int, m: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randperm(1000, generator=generator)[:m]
    labels = torch.randint(m, (n,), generator=generator)
    logits = torch.randn(n, 1000, generator=generator)
    # Strong enough that the head is often right, and often distracted by other classes.
    logits[torch.arange(n), columns[labels]] += 3
    return logits, labels, columns


def _check_restricted(found: float, logits: Tensor, labels: Tensor, columns: Tensor) -> None:
    def accuracy(predicted: Tensor, truth: Tensor) -> float:
        return (predicted == truth).double().mean().item()

    def same(other: float) -> bool:
        return abs(found - other) < 1e-6

    right = accuracy(logits[:, columns].argmax(1), labels)
    if same(right):
        return
    everything, ordered = logits.argmax(1), columns.sort().values
    if not 0 <= found <= 1:
        raise Hint(
            f"an accuracy is a proportion from 0 to 1, but restricted_top1 returned {found:g}. "
            f"Is it a count, or in per cent?"
        )
    if same(accuracy(everything, columns[labels])):
        raise Hint("the head still chooses among all 1,000 classes: nothing is restricted.")
    if same(accuracy(logits[:, ordered].argmax(1), labels)):
        raise Hint(
            "the classes compared are in ImageNet's order, but label i belongs to columns[i]: "
            "the order of columns matters."
        )
    if found < 0.5 * right:
        raise Hint(
            "hardly any image counts as right. Do both sides of the comparison speak of the same "
            "numbers, the data set's 0 to m − 1 or ImageNet's 0 to 999?"
        )
    raise Hint(
        f"the accuracy is {'higher' if found > right else 'lower'} than it should be. Which "
        f"columns compete, and over which images is the average?"
    )


@exercise("08.3", "the lowest threshold that keeps its promise, and so accepts the most images.")
def _confidence_threshold(answer: Any) -> None:
    """Write a function `accept(probabilities, labels, error)` that finds a confidence threshold.

    `probabilities` has shape (n, m), `labels` has shape (n,): predictions on *validation* images.
    The confidence of an image is its largest probability. A threshold t accepts the images with a
    confidence of t or more; its error rate is the proportion of wrong predictions among those
    accepted. Return, as a float, the smallest t among the n confidences whose error rate is
    `error` or less, and `None` if there is none.
    """
    expect_function(answer, "accept(probabilities, labels, error)")
    for kind, (probabilities, labels, error) in _predictions().items():
        call = f"accept, on {kind},"
        given = (probabilities.clone(), labels.clone(), error)
        found = ask(answer, *given, call=call)
        confidence, predicted = probabilities.max(1)
        _check_threshold(found, confidence.double(), predicted != labels, error, kind)


def _predictions() -> dict[str, tuple[Tensor, Tensor, float]]:
    generator = torch.Generator().manual_seed(5)
    probabilities = torch.softmax(3 * torch.randn(300, 6, generator=generator), 1)
    labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    def binary(confidence: list[float], wrong: list[int]) -> tuple[Tensor, Tensor]:
        first = torch.tensor(confidence)
        return torch.stack([first, 1 - first], 1), torch.tensor(wrong)

    early = binary([0.97, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6], [1, 0, 0, 0, 0, 0, 1, 1])
    tied = binary([0.95, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6], [0, 0, 0, 1, 1, 0, 1])
    # Targets that no rate equals, or equals in every dtype: the reader may compute in float32.
    return {
        "300 images": (probabilities, labels, 0.1037),
        "300 images and a large error": (probabilities, labels, 0.9),
        "images of which the most confident is wrong": (*early, 0.19),
        "images with equal confidences": (*tied, 0.25),
        "images whose error rate equals the target": (
            *binary([0.9, 0.7, 0.6, 0.8], [0, 0, 1, 0]),
            0.25,
        ),
        "images with an error of 0": (*binary([0.6, 0.9, 0.8, 0.7], [1, 0, 0, 1]), 0.0),
        "images that are all wrong": (*binary([0.9, 0.8, 0.7], [1, 1, 1]), 0.3),
    }


def _check_threshold(
    found: Any, confidence: Tensor, wrong: Tensor, error: float, kind: str
) -> None:
    kept = [t for t in confidence.tolist() if wrong[confidence >= t].double().mean() <= error]
    right = min(kept, default=None)
    if found is None or right is None:
        if found is not right:
            returned = "None" if found is None else f"{found!r}"
            raise Hint(
                f"on {kind}, accept returned {returned}. None is for the case that no threshold "
                f"has an error rate of {error:g} or less, and only for it."
            )
        return
    value = number(found, f"accept, on {kind},")
    if abs(value - right) < 1e-6:
        return
    _hint_about_threshold(value, confidence, wrong, error, kind)


def _hint_about_threshold(
    value: float, confidence: Tensor, wrong: Tensor, error: float, kind: str
) -> None:
    # A threshold is meant to the precision of the reader's dtype.
    accepted, above = confidence >= value - 1e-6, confidence > value + 1e-6
    if not accepted.any():
        raise Hint(f"on {kind}, the threshold returned accepts no image at all.")
    rate = wrong[accepted].double().mean().item()
    if rate <= error:
        raise Hint(
            f"on {kind}, the threshold returned keeps the error rate at {rate:.3g}, but it is not "
            f"the smallest confidence that does. A rate equal to the target will do, and the rate "
            f"need not rise steadily as the threshold falls: it can exceed the target and return."
        )
    start = f"on {kind}, the error rate among the images accepted is {rate:.3g}, above {error:g}. "
    if above.any() and wrong[above].double().mean().item() <= error:
        raise Hint(f"{start}An image whose confidence equals the threshold is accepted too.")
    if wrong[accepted].double().sum().item() / len(wrong) <= error:
        raise Hint(f"{start}Which images is the rate a proportion of: all, or those accepted?")
    raise Hint(f"{start}The promise is about wrong predictions, not about how many are accepted.")
