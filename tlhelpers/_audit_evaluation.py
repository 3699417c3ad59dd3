"""Checks of :mod:`tlhelpers.audit` on how a network is evaluated."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tlhelpers._audit_check import Found, how_many, trap
from tlhelpers._audit_memory import seed
from tlhelpers._audit_setup import Lacking, Setup
from tlhelpers._audit_trace import mode_matters, normalises, takes_x, tensor_in

_FEW = 2  # examples that are looked at outside their batch


@trap(
    "evaluates-in-train-mode",
    "The evaluation runs the network in training mode.",
    why="Dropout draws at random and batch norm uses the statistics of the batch, and learns from "
    "validation images: the figure is of another network than the one that is kept.",
    fix="Call network.eval() before evaluating and network.train() afterwards.",
)
def evaluates_in_train_mode(setup: Setup) -> Found | None:
    seen = setup.evaluation
    active = [m for m in setup.network.modules() if m in seen.training and mode_matters(m)]
    if setup.evaluate is not None and takes_x(setup.evaluate) and _mixes_rows(setup, active):
        # One cause, one finding: test-time-batch-statistics says it of batch norms.
        active = [m for m in active if not normalises(m)]
    if not active:
        return None
    moved = f"; {how_many(len(seen.buffers), 'buffer')} moved" if seen.buffers else ""
    return Found(
        f"In training mode during the evaluation: {how_many(len(active), 'layer')} for which that "
        f"makes a difference (first: {setup.name(active[0])!r}){moved}.",
        {"modules": setup.named(active), "moved": len(seen.buffers)},
    )


@trap(
    "test-time-batch-statistics",
    "The prediction for one example depends on the other examples of its batch.",
    why="Batch norm in training mode normalises by the batch at hand: in few-shot tests it reads "
    "the statistics of all queries, and the result changes with the size and mix of the batch.",
    fix="Evaluate in eval mode, with running statistics (track_running_stats=True).",
)
def test_time_batch_statistics(setup: Setup) -> Found | None:
    active: list[nn.Module] = []
    if setup.evaluate is not None and takes_x(setup.evaluate):
        active = [m for m in setup.evaluation.training if normalises(m)]
    if setup.trace.error is not None:
        raise Lacking("a network that runs on the data")
    change = _mixes_rows(setup, active)
    if not change:
        return None
    return Found(
        f"The scores of {_FEW} examples change by {change:.0%} of their spread when they come "
        f"alone instead of in a batch of {len(setup.batch[0])}.",
        {"change": change, "in_training_mode": setup.named(active)},
    )


def _mixes_rows(setup: Setup, training: Iterable[nn.Module]) -> float:
    """How far two examples are answered differently from the same rows in the whole batch.

    Relative to the spread of the scores; 0 where the difference is no more than rounding.
    """
    x = setup.batch[0]
    with setup.untouched(), torch.no_grad():
        setup.network.eval()
        for part in training:
            part.training = True
        whole = tensor_in(setup.call("network", setup.network, x))
        few = tensor_in(setup.call("network", setup.network, x[:_FEW]))
    if whole is None or few is None or len(whole) != len(x):
        return 0.0
    apart = (whole[:_FEW].double() - few.double()).abs().mean()
    change = float(apart / whole.double().std().clamp_min(1e-12))
    return change if change > 0.01 else 0.0


@trap(
    "batch-averaged-loss",
    "The loss of an epoch is the mean over batches, not over examples.",
    why="The last batch is smaller, so each of its examples counts more than the others.",
    fix="Weight each batch by its number of examples: sum(loss * len(y)) / sum(len(y)).",
)
def batch_averaged_loss(setup: Setup) -> Found | None:
    loader_loss = setup.loader_loss
    if loader_loss is None:
        raise Lacking("loader_loss")
    x, y = setup.labelled
    n, small = len(x), min(2, len(x) - 1)
    batches = [(x[: n - small], y[: n - small]), (x[n - small :], y[n - small :])]

    def average(chosen: list[tuple[Tensor, Tensor]]) -> float:
        with setup.untouched():
            seed()
            return float(setup.call("loader_loss", loader_loss, chosen))

    large, little = average(batches[:1]), average(batches[1:])
    found = average(batches)
    exact = ((n - small) * large + small * little) / n
    naive = (large + little) / 2
    slack = 0.02 * abs(naive - exact) + 1e-6 * abs(exact)
    if abs(found - exact) <= slack or n == 2 * small:
        return None
    if abs(found - naive) > slack:
        raise Lacking("a loader_loss that is a mean")
    return Found(
        f"On batches of {n - small} and {small} examples the loss is {found:.4f}, the mean of the "
        f"two batches; the mean of the {n} examples is {exact:.4f}.",
        {"found": found, "expected": exact, "sizes": (n - small, small)},
    )
