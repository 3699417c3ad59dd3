"""Checks for the exercises of chapter 17: scaling out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number


@exercise("17.1", "parts of any size add up to the batch, if each counts by its examples.")
def _combined(answer: Any) -> None:
    """Write a function `combined(means, sizes)`: the gradient of a whole batch's mean loss.

    `means` is a list of tensors of one shape, the gradient of each part's mean loss; `sizes` is
    the list of the numbers of examples in the parts.
    """
    expect_function(answer, "combined(means, sizes)")
    generator = torch.Generator().manual_seed(0)
    for sizes in ([4, 4], [5, 2, 1], [1], [3, 0, 9]):
        call = f"combined, with parts of {sizes} examples,"
        means = [torch.randn(3, 2, generator=generator) for _ in sizes]
        kept = [mean.clone() for mean in means]
        found = ask(answer, means, list(sizes), call=call)
        if any(not torch.equal(a, b) for a, b in zip(means, kept, strict=True)):
            raise Hint(f"{call} changed the gradients that it was given.")
        if not isinstance(found, torch.Tensor) or found.shape != (3, 2):
            raise Hint(f"{call} should return a tensor of shape (3, 2), found {describe(found)}.")
        right = sum(m * n for m, n in zip(means, sizes, strict=True)) / sum(sizes)
        _check_combined(found, torch.stack(means), torch.as_tensor(right), call)


def _check_combined(
    found: torch.Tensor, means: torch.Tensor, right: torch.Tensor, call: str
) -> None:
    def same(other: torch.Tensor) -> bool:
        return torch.allclose(found, other, atol=1e-6)

    if same(right):
        return
    if same(means.mean(0)):
        raise Hint(
            f"{call} gave each part the same weight: one example of a small part then counts more."
        )
    if same(means.sum(0)):
        raise Hint(f"{call} added the gradients: the step would grow with the number of parts.")
    raise Hint(
        f"{call} returned another gradient. How much does one example weigh in the mean over the "
        f"whole batch?"
    )


@exercise("17.2", "a convolution with its update is a convolution, no larger than before.")
def _merged(answer: Any) -> None:
    """Write a function `merged(weight, down, up, scale)`: the weight of the one convolution that
    does what a frozen convolution and its low-rank update do together.

    `weight` is (o, i, k, k), `down` is (r, i, k, k), `up` is (o, r, 1, 1). Return an (o, i, k, k)
    tensor, and leave `weight` as it is.
    """
    expect_function(answer, "merged(weight, down, up, scale)")
    generator = torch.Generator().manual_seed(0)
    for o, i, k, r, scale in ((6, 4, 3, 2, 1.0), (3, 5, 1, 2, 0.5), (4, 4, 3, 4, 2.0)):
        call = f"merged, with o = {o}, i = {i}, k = {k}, r = {r} and scale = {scale:g},"
        weight, down, up = (
            torch.randn(shape, generator=generator)
            for shape in ((o, i, k, k), (r, i, k, k), (o, r, 1, 1))
        )
        kept = weight.clone()
        found = ask(answer, weight, down, up, scale, call=call)
        if not torch.equal(weight, kept):
            raise Hint(f"{call} changed the frozen weight in place; other tasks need it.")
        if not isinstance(found, torch.Tensor) or found.shape != weight.shape:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else describe(found)
            raise Hint(
                f"{call} should return a tensor of shape {tuple(weight.shape)}, found {shape}."
            )
        update = torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
        if torch.allclose(found, weight + scale * update, atol=1e-5):
            continue
        if torch.allclose(found, weight + update, atol=1e-5):
            raise Hint(f"{call} left out the scale.")
        if torch.allclose(found, scale * update, atol=1e-5):
            raise Hint(f"{call} returned the update alone.")
        raise Hint(
            f"{call} returned another weight. Write the update for one output channel: which "
            f"mixture of the r filters in down is it?"
        )


@exercise("17.3", "what is frozen costs its weight and nothing more.")
def _training_bytes(answer: Any) -> None:
    """Write a function `training_bytes(weights, trained, activations)`: what a training step with
    AdamW in float32 holds in memory, in bytes.

    `weights` is the number of parameters of the network, `trained` is how many of them learn, and
    `activations` is what the forward pass keeps for the backward pass, in bytes.
    """
    expect_function(answer, "training_bytes(weights, trained, activations)")
    for weights, trained, kept in ((1000, 1000, 0), (1000, 40, 0), (500, 500, 7000), (10, 0, 3)):
        call = f"training_bytes({weights}, {trained}, {kept})"
        found = number(ask(answer, weights, trained, kept, call=call), call)
        wrong = {
            4 * weights + 12 * trained: "left out the activations",
            16 * weights + kept: "counts gradients and moments of frozen parameters too",
            4 * weights + 8 * trained + kept: "is one number for each trained parameter short",
            weights + 3 * trained + kept: "counted numbers, and a float32 has more than one byte",
            16 * trained + kept: "left out the weights that are frozen",
        }
        if math.isclose(found, 4 * weights + 12 * trained + kept):
            continue
        for value, what in wrong.items():
            if math.isclose(found, value):
                raise Hint(f"{call} {what}.")
        raise Hint(
            f"{call} returned {found:g}. Besides its weight, what does the optimiser keep for a "
            f"parameter that learns, and what does the backward pass give it?"
        )


@exercise("17.4", "late, twice and in any order: nothing is lost, and what is lost is said.")
def _assembled(answer: Any) -> None:
    """Write a function `assembled(blocks, n)` that makes one (n, d) array of what workers send.

    `blocks` is a list of pairs: the number of the block's first row, and a (k, d) NumPy array of
    its rows. Blocks come in any order; some come twice, as their worker died after it had sent
    them. Raise a `ValueError` if a row is missing.
    """
    expect_function(answer, "assembled(blocks, n)")
    whole = np.random.default_rng(0).normal(size=(7, 2))
    cuts = {0: 3, 3: 2, 5: 2}  # first row: number of rows
    for order in ([0, 3, 5], [5, 0, 3], [3, 5, 0, 5], [0, 0, 3, 3, 5, 5]):
        call = f"assembled, with blocks that begin at {order},"
        blocks = [(start, whole[start : start + cuts[start]].copy()) for start in order]
        found = ask(answer, blocks, 7, call=call)
        if not isinstance(found, np.ndarray):
            raise Hint(f"{call} should return an array, but it returned {describe(found)}.")
        if found.shape != whole.shape:
            raise Hint(
                f"{call} returned an array of shape {found.shape} for 7 rows of 2: a block that "
                f"comes twice is one block."
            )
        if not np.allclose(found, whole):
            rows = "in the order in which they came" if len(order) == 3 else "in another order"
            raise Hint(f"{call} returned the rows {rows}, not in that of their numbers.")
    for missing in (0, 3, 5):
        blocks = [(s, whole[s : s + k].copy()) for s, k in cuts.items() if s != missing]
        blocks.append(blocks[0])
        call = f"assembled, without the block that begins at {missing},"
        try:
            found = answer(blocks, 7)
        except ValueError:
            continue
        except Exception as error:
            raise Hint(f"{call} raised {type(error).__name__} in place of a ValueError.") from error
        raise Hint(
            f"{call} should raise a ValueError, but it returned {describe(found)}: nobody would "
            f"know."
        )
