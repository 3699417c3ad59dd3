"""Checks of chapter 15: images and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number


@exercise("15.1", "without a large factor on the cosines there is little that training could gain.")
def _least_loss(answer: Any) -> None:
    """Write a function `least_loss(n, scale)`: a number below which InfoNCE on a batch of `n` pairs
    cannot fall, whatever the embeddings, if cosines are multiplied by `scale`.

    A cosine lies between −1 and 1. Take a picture's cosine with its own sentence as high and those
    with the others as low as that allows. (For more than two pairs no vectors manage both, so it
    is a bound and not a minimum.) Return the loss of one row, in nats.
    """
    expect_function(answer, "least_loss(n, scale)")
    for n, scale in ((256, 1.0), (256, 14.3), (2, 1.0), (1000, 5.0)):
        call = f"least_loss({n}, {scale:g})"
        _check_least(number(ask(answer, n, scale, call=call), call), n, scale, call)


def _check_least(found: float, n: int, scale: float, call: str) -> None:
    def same(other: float) -> bool:
        return math.isclose(found, other, rel_tol=1e-6, abs_tol=1e-12)

    right = math.log1p((n - 1) * math.exp(-2 * scale))
    if same(right):
        return
    if same(math.log1p((n - 1) * math.exp(-scale))):
        raise Hint(f"{call} left the other cosines at 0; they may be lower.")
    if same(math.log1p(n * math.exp(-2 * scale))):
        raise Hint(f"{call} counted one sentence too many among the others.")
    if same(math.log1p((n - 1) * math.exp(-2 / scale))):
        raise Hint(f"{call} divided by the scale: it is the factor, one over the temperature.")
    if same(-right):
        raise Hint(f"{call} has the wrong sign: a loss is minus the log of a probability.")
    if same(right / math.log(2)):
        raise Hint(f"{call} is in bits; nats are asked for.")
    raise Hint(
        f"{call} returned {found:.4g}. Write down the softmax of a row with one score of "
        f"`scale` and the others at minus that."
    )


_VECTORS = {"pug": 0, "whippet": 1, "a": 2, "photo": 3, "of": 4, "my": 5, "old": 6}


def _embed(sentences: Sequence[str]) -> Tensor:
    """Embeddings of different lengths, as before a normalisation."""
    table = torch.randn(len(_VECTORS), 5, generator=torch.Generator().manual_seed(0))
    rows = [sum(table[_VECTORS[word]] for word in text.split()) for text in sentences]
    return torch.stack([torch.as_tensor(row) for row in rows])


@exercise("15.2", "an ensemble of prompts costs nothing at test time: it is one vector a class.")
def _head(answer: Any) -> None:
    """Write a function `head(embed, names, templates)` that makes a zero-shot classifier: an (m, d)
    tensor with a row of length 1 for each of the m names.

    `embed` takes a list of n sentences and returns an (n, d) tensor, whose rows are *not* of
    length 1. A template holds `{}` for the name. Each sentence counts as a direction: bring its
    embedding to length 1 before you average over templates, and the mean to length 1 afterwards.
    """
    expect_function(answer, "head(embed, names, templates)")
    names = ["pug", "whippet"]
    templates = ["a photo of a {}", "my old {}", "{}"]
    call = "head, with two names and three templates,"
    found = ask(answer, _embed, list(names), list(templates), call=call)
    if not isinstance(found, Tensor):
        raise Hint(f"{call} should return a tensor, but it returned {describe(found)}.")
    each = torch.stack([_embed([t.format(name) for t in templates]) for name in names])
    if found.shape != (2, 5):
        raise Hint(
            f"{call} should return a row for each name, of shape (2, 5); found "
            f"{tuple(found.shape)}."
        )

    def same(other: Tensor) -> bool:
        return torch.allclose(found.float(), other, atol=1e-5)

    unit = functional.normalize(each, dim=2)
    if same(functional.normalize(unit.mean(1), dim=1)):
        return
    if same(unit.mean(1)):
        raise Hint(
            f"{call} returned rows shorter than 1: a mean of directions is no direction yet."
        )
    if same(functional.normalize(each.mean(1), dim=1)):
        raise Hint(
            f"{call} averaged embeddings as they came, so that long ones outvote the others. "
            f"What should each sentence be before it counts?"
        )
    if any(same(unit[:, i]) for i in range(len(templates))):
        raise Hint(f"{call} used one template only.")
    raise Hint(
        f"{call} returned other rows than the mean directions. Which sentences belong to a name?"
    )


@exercise("15.3", "copies of a sentence raise the loss, and nothing that a model does lowers it.")
def _floor(answer: Any) -> None:
    """Write a function `floor(sentences)`: the least InfoNCE loss, in nats, that a batch with these
    sentences allows, however the model is trained.

    `sentences` is a list of strings, of which some may be equal. Equal sentences have equal
    embeddings. With n different ones the answer is 0.
    """
    expect_function(answer, "floor(sentences)")
    cases = (["x", "y", "z"], ["x", "x", "y", "z"], ["x"] * 4, ["x", "y", "x", "y", "x", "z"])
    for case in cases:
        call = f"floor({case})"
        found = number(ask(answer, list(case), call=call), call)
        counts = np.array([case.count(text) for text in case])
        groups = np.array([case.count(text) for text in dict.fromkeys(case)])
        if math.isclose(found, np.log(counts).mean(), rel_tol=1e-6, abs_tol=1e-9):
            continue
        if math.isclose(found, np.log(groups).mean(), rel_tol=1e-6, abs_tol=1e-9):
            raise Hint(f"{call} averaged over different sentences; the loss is a mean over pairs.")
        if math.isclose(found, math.log(counts.mean()), rel_tol=1e-6, abs_tol=1e-9):
            raise Hint(f"{call} took the logarithm of a mean; which of the two comes first?")
        if math.isclose(found, float(np.log2(counts).mean()), rel_tol=1e-6, abs_tol=1e-9):
            raise Hint(f"{call} is in bits; nats are asked for.")
        raise Hint(
            f"{call} returned {found:.4g}. A sentence and its copies get the same probability; how "
            f"large can it be for each, at most?"
        )


@exercise("15.4", "words and labels pull at the same weights, and the ridge says who pulls harder.")
def _gradient(answer: Any) -> None:
    """Write a function `gradient(W, U, y, W0, ridge)`: the gradient of minus the logarithm of the
    posterior with respect to the head's weights, an (m, d) NumPy array.

    `W` (m, d) are the weights, `U` (n, d) embeddings, `y` (n,) labels, and `W0` (m, d) the class
    embeddings that the prior is centred at. Differentiate the *sum* over examples of the
    cross-entropy of the logits $U W^\\top$, plus half the ridge times
    $\\lVert W - W_0 \\rVert^2$.
    """
    expect_function(answer, "gradient(W, U, y, W0, ridge)")
    generator = np.random.default_rng(0)
    for m, d, n, ridge in ((3, 4, 7, 0.5), (5, 2, 1, 3.0)):
        weights, start = generator.normal(size=(2, m, d))
        images, y = generator.normal(size=(n, d)), generator.integers(0, m, n)
        call = f"gradient, with {m} classes, {n} examples and ridge {ridge:g},"
        given = [a.copy() for a in (weights, images, y, start)]
        found = ask(answer, *given, ridge, call=call)
        if not isinstance(found, np.ndarray) or found.shape != (m, d):
            raise Hint(f"{call} should return an array of shape ({m}, {d}).")
        _check_gradient(found, weights, images, y, start, ridge, call)


def _check_gradient(
    found: np.ndarray,
    weights: np.ndarray,
    images: np.ndarray,
    y: np.ndarray,
    start: np.ndarray,
    ridge: float,
    call: str,
) -> None:
    w = torch.from_numpy(weights).requires_grad_()
    logits = torch.from_numpy(images) @ w.T
    loss = functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum")
    data = torch.autograd.grad(loss, w)[0].numpy()

    def same(other: np.ndarray) -> bool:
        return np.allclose(found, other, atol=1e-8)

    if same(data + ridge * (weights - start)):
        return
    if same(data):
        raise Hint(f"{call} left the prior out.")
    if same(data + ridge * weights):
        raise Hint(f"{call} pulls towards zero; the prior is centred elsewhere.")
    if same(data + ridge * (start - weights)):
        raise Hint(f"{call} pushes the weights away from the prior's centre: look at the sign.")
    if same(data / len(y) + ridge * (weights - start)):
        raise Hint(f"{call} took the mean over examples, and the sum is asked for.")
    if same(data + ridge / 2 * (weights - start)) or same(data + 2 * ridge * (weights - start)):
        raise Hint(f"{call} is off by a factor in the prior's part: differentiate half a square.")
    raise Hint(
        f"{call} is another gradient. For one example, how do its probabilities differ from what "
        f"its label says?"
    )
