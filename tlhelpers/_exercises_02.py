"""Checks for the exercises of chapter 02: a map of the field."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number

SETTINGS = ("inductive", "transductive", "unsupervised")


@exercise("02.1", "the odds, corrected for the sizes of the two samples, are the ratio.")
def _importance_weights(answer: Any) -> None:
    """Write a function `importance_weights(p, n_source, n_target)` that turns a domain
    classifier's probabilities into importance weights.

    The classifier learnt from `n_source` inputs of the source and `n_target` inputs of the target,
    and `p` is a tensor of shape (n,) with the probabilities, strictly between 0 and 1, that
    inputs of the source are *from the target*. Return the (n,) weights w(x), the target's density
    divided by the source's.
    """
    expect_function(answer, "importance_weights(p, n_source, n_target)")
    for n_source, n_target in ((4000, 500), (60, 900), (250, 250)):
        call = f"importance_weights(p, {n_source}, {n_target})"
        true = torch.exp(torch.randn(40, dtype=torch.float64))
        p = n_target * true / (n_target * true + n_source)
        w = _vector(ask(answer, p.clone(), n_source, n_target, call=call), 40, call)
        _check_ratio(w, true, p, n_target / n_source, call)


def _vector(found: Any, n: int, call: str) -> Tensor:
    if not isinstance(found, Tensor | np.ndarray):
        raise Hint(f"{call} should return a tensor, but it returned {describe(found)}.")
    w = torch.as_tensor(found)
    if w.shape != (n,):
        raise Hint(f"{call} should return shape ({n},), one weight an input, not {tuple(w.shape)}.")
    if not w.isfinite().all():
        raise Hint(f"the weights of {call} hold NaN or infinity.")
    return w.detach().double()


def _check_ratio(w: Tensor, true: Tensor, p: Tensor, sizes: float, call: str) -> None:
    if torch.allclose(w, true, rtol=1e-4):
        return
    if (w < 0).any():
        raise Hint(f"{call} gives negative weights; a ratio of densities has none.")
    if torch.allclose(w, p, rtol=1e-4):
        raise Hint(f"{call} returns the probabilities. They stop at 1; may a ratio of densities?")
    factor = w / true
    if torch.allclose(factor, factor[:1].expand_as(factor), rtol=1e-3):
        if torch.allclose(factor, torch.full_like(factor, sizes), rtol=1e-3):
            raise Hint(
                f"{call} is right only where both samples are equally large. A classifier that has "
                f"seen more of one domain finds everything likelier to come from there."
            )
        if torch.allclose(factor, torch.full_like(factor, sizes**2), rtol=1e-3):
            raise Hint(f"{call} corrects for the sizes of the samples in the wrong direction.")
        raise Hint(
            f"the weights of {call} stand in the right proportions, but their scale is not that of "
            f"a ratio of densities. Are they normalised?"
        )
    if torch.corrcoef(torch.stack([w.log(), true.log()]))[0, 1] < 0:
        raise Hint(f"{call} gives the largest weights to what looks least like the target.")
    raise Hint(
        f"the weights of {call} are not the ratio of the densities. In the bag of both samples, "
        f"what is the ratio of the two probabilities, by Bayes?"
    )


@exercise("02.2", "n for equal weights, 1 where one weight is everything, whatever their scale.")
def _effective_sample_size(answer: Any) -> None:
    """Write a function `effective_sample_size(w)` that says how many equally weighted examples do
    the work of a weighted sample.

    `w` is a tensor of shape (n,) of weights, none negative and not all zero. Return a number: the
    variance of a plain mean of that many examples equals that of the weighted mean, where
    the examples are independent and equally noisy.
    """
    expect_function(answer, "effective_sample_size(w)")
    cases = {
        "seven equal weights of 1": torch.ones(7),
        "five equal weights of 0.2": torch.full((5,), 0.2),
        "one weight of 3 among zeros": torch.tensor([0.0, 0.0, 3.0, 0.0]),
        "fifty weights of many sizes": torch.exp(torch.randn(50)),
    }
    for what, w in cases.items():
        call = f"effective_sample_size(w), for {what},"
        w = w.double()
        found = number(ask(answer, w.clone(), call=call), call)
        right = float(w.sum() ** 2 / w.square().sum())
        if abs(found - right) > 1e-4 * right:
            raise Hint(_size_hint(found, w, call))


def _size_hint(found: float, w: Tensor, call: str) -> str:
    n, right = len(w), float(w.sum() ** 2 / w.square().sum())
    if abs(found - right / n) < 1e-4:
        return f"{call} returned a share of the sample; the number of examples is wanted."
    if found > n + 1e-6:
        return f"{call} returned more than the {n} examples that there are."
    if found < 1 - 1e-6:
        return f"{call} returned less than one example. Does the scale of the weights matter?"
    if found in (n, int((w > 0).sum())):
        return f"{call} counts the examples, whatever their weights. Does a tiny one count fully?"
    return (
        f"{call} returned {found:.4g}, which is not the number asked for. What is the variance of "
        f"the weighted mean, with one variance for all examples?"
    )


# Each scenario: what it is, and the question that a wrong answer is asked.
_SCENARIOS = {
    "a": ("inductive", "are the target's labels used, and are its classes those of the source?"),
    "b": ("transductive", "is the question another one, or are the inputs?"),
    "c": ("unsupervised", "is there a label anywhere?"),
    "d": ("inductive", "the source has no labels; has the target?"),
    "e": ("transductive", "what differs, and which side has labels?"),
    "f": ("inductive", "the source's labels are there during training; do the target's take part?"),
}


@exercise("02.3", "look at the target's labels first, then at what differs.")
def _settings(answer: Any) -> None:
    """Write a function `settings()` that returns a dict with the setting of each of six
    scenarios, by its letter: `"inductive"`, `"transductive"` or `"unsupervised"`.

    (a) A network that has learnt to name objects in photographs is trained on with 200 chest
    films, each marked as healthy or not. (b) Reviews of books are labelled by whether they
    praise; thousands of reviews of kitchenware are to be judged in the same way, and none of them
    is labelled. (c) Ten thousand songs of one archive help to sort 500 of another into groups;
    neither archive has labels, and the groups have no names. (d) A network learns from photographs
    that nobody has labelled to tell by which angle each was turned; then, from ten labelled leaves
    a species, to name trees. (e) Recordings of adults come with their words. For recordings of
    children there are no words, and the same words are to be recognised. (f) One network with two
    heads learns letters and digits together, both labelled; only the digits count.
    """
    expect_function(answer, "settings()")
    call = "settings()"
    found = ask(answer, call=call)
    if not isinstance(found, dict):
        raise Hint(f"{call} should return a dict, but it returned {describe(found)}.")
    if missing := [letter for letter in _SCENARIOS if letter not in found]:
        raise Hint(f"{call} has no answer for scenario {', '.join(missing)}.")
    if odd := [k for k in _SCENARIOS if found[k] not in SETTINGS]:
        raise Hint(
            f"the answer for scenario {odd[0]} should be one of {', '.join(SETTINGS)}, "
            f"found {found[odd[0]]!r}."
        )
    wrong = [letter for letter, (setting, _) in _SCENARIOS.items() if found[letter] != setting]
    if wrong:
        letter = wrong[0]
        raise Hint(
            f"{len(_SCENARIOS) - len(wrong)} of {len(_SCENARIOS)} are right. Look at scenario "
            f"{letter} again: {_SCENARIOS[letter][1]}"
        )


@exercise("02.4", "each example counts by its weight, and the scale of the weights drops out.")
def _weighted_loss(answer: Any) -> None:
    """Write a function `weighted_loss(logits, y, w)` that returns the weighted mean of the
    cross-entropy over examples.

    `logits` has shape (n, m), `y` holds n labels and `w` n weights, one for each *example*. The
    result is a tensor with one number, through which gradients flow, and it stays the same where
    all weights are doubled.
    """
    expect_function(answer, "weighted_loss(logits, y, w)")
    for n, m in ((6, 6), (40, 3)):
        call = f"weighted_loss, with logits of shape ({n}, {m}),"
        logits = torch.randn(n, m, dtype=torch.float64, requires_grad=True)
        y, w = torch.arange(n) % m, torch.rand(n, dtype=torch.float64) + 0.05
        loss = ask(answer, logits, y, w.clone(), call=call)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise Hint(f"{call} should return a tensor with one number, not {describe(loss)}.")
        each = F.cross_entropy(logits, y, reduction="none").detach()
        _check_loss(loss, each, w, call)
        if not loss.requires_grad:
            raise Hint(f"{call} returns the right number, but no gradient flows through it.")


def _check_loss(loss: Tensor, each: Tensor, w: Tensor, call: str) -> None:
    def is_close(value: Tensor) -> bool:
        return bool(torch.isclose(loss.detach().double(), value, rtol=1e-4))

    if is_close((w * each).sum() / w.sum()):
        return
    if is_close(each.mean()):
        raise Hint(f"{call} leaves the weights out.")
    if is_close((w * each).mean()) or is_close((w * each).sum()):
        raise Hint(
            f"the result of {call} doubles where all weights are doubled. By what should the sum "
            f"be divided?"
        )
    raise Hint(
        f"{call} returns another number. One loss for each example is needed before the weights "
        f"come in: does yours weigh examples, or classes?"
    )
