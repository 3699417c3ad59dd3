"""Checks of :mod:`tlhelpers.audit` on training: what is frozen, the optimiser, the step."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

import torch
from torch import nn

from tlhelpers._audit_check import ERROR, NOTE, Found, first_few, how_many, trap
from tlhelpers._audit_setup import CallableError, Lacking, Setup

# --- freezing -----------------------------------------------------------------------------


@trap(
    "batchnorm-drift",
    "Statistics of batch norm (or other buffers) in a frozen part move in training mode.",
    why="requires_grad=False stops gradients, but batch norm updates its running mean and variance "
    "in every forward pass in training mode, so the frozen part becomes another one.",
    fix="Keep the frozen part in eval mode while the rest trains: tl.models.freeze(part), or "
    "part.eval() after every network.train().",
)
def batchnorm_drift(setup: Setup) -> Found | None:
    drifting = {m: names for m, names in setup.training_pass.moved.items() if m.training}
    if not drifting:
        return None
    count = sum(map(len, drifting.values()))
    return Found(
        f"{count} of {setup.training_pass.buffers} buffers of the frozen part move in one forward "
        f"pass in training mode, the first in {setup.name(next(iter(drifting)))!r}.",
        {
            "moved": count,
            "buffers": setup.training_pass.buffers,
            "modules": setup.named(drifting),
        },
    )


@trap(
    "eval-undone",
    "A frozen part is in eval mode now, but the next train() switches it back.",
    why="network.train() at the top of each epoch sets every child to training mode: batch norm "
    "moves again, dropout draws again.",
    fix="Use tl.models.freeze(part), whose train() leaves it in eval mode, or call part.eval() "
    "after every network.train().",
)
def eval_undone(setup: Setup) -> Found | None:
    seen = setup.training_pass
    back = [m for m in dict.fromkeys([*seen.moved, *seen.random]) if not m.training]
    if not back:
        return None
    count = sum(len(seen.moved.get(m, ())) for m in back)
    return Found(
        f"In eval mode now and in training mode after network.train(): "
        f"{how_many(len(back), 'layer')} of the frozen part (first: {setup.name(back[0])!r}); "
        f"{how_many(count, 'buffer')} would move.",
        {"modules": setup.named(back), "moved": count},
    )


@trap(
    "dropout-in-frozen",
    "A frozen part answers the same input differently each time: its dropout is active.",
    why="Dropout draws at random in training mode, frozen or not, so the head learns from "
    "features that never occur in evaluation.",
    fix="Keep the frozen part in eval mode while the rest trains: tl.models.freeze(part).",
)
def dropout_in_frozen(setup: Setup) -> Found | None:
    active = [m for m in setup.training_pass.random if m.training]
    if not active:
        return None
    names = setup.named(active)
    return Found(
        f"{first_few(names)} in the frozen part {'draw' if len(names) > 1 else 'draws'} at random "
        f"in training mode: two passes of one batch give different features.",
        {"modules": names},
    )


@trap(
    "nothing-trains",
    "No parameter is trainable, or the head is frozen along with the rest.",
    why="Without requires_grad a parameter gets no gradient, so the loss cannot fall through it.",
    fix="Freeze the body first and attach the head afterwards, or call head.requires_grad_(True).",
)
def nothing_trains(setup: Setup) -> Found | None:
    if setup.optimizer is None and setup.step is None and setup.loss is None:
        raise Lacking("optimizer or step")
    total = len(list(setup.network.parameters()))
    if not setup.trainable:
        return Found(
            f"None of the {total} parameters of the network is trainable.", {"trainable": 0}
        )
    head = setup.head
    if head is None or any(p.requires_grad for p in head.parameters()):
        return None
    if setup.frozen is not None and head in setup.frozen_modules:
        return None  # as the reader says
    return Found(
        f"The head {setup.name(head)!r} is frozen, while {len(setup.trainable)} of {total} "
        f"parameters before it train.",
        {"trainable": len(setup.trainable), "head": setup.name(head)},
        fix="Call requires_grad_(True) on the head, or name it in frozen if it is meant to stay.",
    )


@trap(
    "frozen-but-trained",
    "Parts that are said to be frozen have parameters that train.",
    why="Text and comments freeze nothing: a parameter stays as it is only without requires_grad, "
    "or outside the optimiser. Results are then those of fine-tuning under another name.",
    fix="Call tl.models.freeze(part) before the optimiser is built, and give the optimiser the "
    "trainable parameters alone.",
)
def frozen_but_trained(setup: Setup) -> Found | None:
    if setup.frozen is None:
        raise Lacking("frozen")
    claimed = {n: p for n, p in setup.frozen_parameters.items() if p.requires_grad}
    moved: set[str] | None = None
    with contextlib.suppress(Lacking, CallableError):
        moved = claimed.keys() & setup.steps.moved
    if moved is None and setup.optimizer is None:
        raise Lacking("optimizer or step")
    held = {id(p) for p in setup.held}
    loose = [n for n, p in claimed.items() if id(p) in held or (moved and n in moved)]
    if not loose:
        return None
    total = len(setup.frozen_parameters)
    proof = f"one step moves {len(moved)} of them" if moved else "the optimiser holds them"
    return Found(
        f"{len(loose)} of {total} parameters that are said to be frozen require gradients, and "
        f"{proof} (first: {loose[0]!r}).",
        {"trainable": len(loose), "parameters": total, "moved": sorted(moved or ())},
    )


# --- the optimiser and the step -----------------------------------------------------------


@trap(
    "optimizer-misses",
    "Trainable parameters that no group of the optimiser holds.",
    why="An optimiser keeps the list that it was built with. What was unfrozen or replaced "
    "afterwards gets gradients and never moves.",
    fix="Build the optimiser after the last change to the network, or add_param_group the missing "
    "ones; what is not meant to train should be frozen.",
)
def optimizer_misses(setup: Setup) -> Found | None:
    if setup.optimizer is None:
        raise Lacking("optimizer")
    held = {id(p) for p in setup.held}
    missed = [
        n
        for n, p in setup.trainable.items()
        if id(p) not in held and n not in setup.frozen_parameters
    ]
    if not missed:
        return None
    strangers = len(_strangers(setup))
    also = f" It holds {strangers} of another network or head instead." if strangers else ""
    return Found(
        f"The optimiser misses {len(missed)} of {len(setup.trainable)} trainable parameters "
        f"({first_few(missed)}).{also}",
        {"missed": missed, "strangers": strangers},
    )


@trap(
    "optimizer-holds-frozen",
    "The optimiser holds frozen parameters, or those of another network.",
    why="A parameter without a gradient is passed over, but one with a gradient left from before "
    "goes on moving by momentum and weight decay, frozen or not.",
    fix="Give the optimiser the trainable parameters of this network alone: "
    "[p for p in network.parameters() if p.requires_grad], or tl.models.param_groups.",
)
def optimizer_holds_frozen(setup: Setup) -> Found | None:
    if setup.optimizer is None:
        raise Lacking("optimizer")
    frozen = [p for p in setup.held if not p.requires_grad]
    strangers = _strangers(setup)
    held = {id(p) for p in setup.held}
    if any(id(p) not in held for p in setup.trainable.values()):
        strangers = []  # one cause, one finding: optimizer-misses
    idle = list({id(p): p for p in [*frozen, *strangers]}.values())
    if not idle:
        return None
    moved = _moved_by(setup, setup.optimizer, frozen)
    kinds = [f"{len(frozen)} frozen parameters"] if frozen else []
    kinds += [f"{len(strangers)} parameters that are not the network's"] if strangers else []
    effect = (
        f"its next step moves {moved} of the frozen ones"
        if moved
        else "none of them moves as things are"
    )
    return Found(
        f"The optimiser holds {' and '.join(kinds)}; {effect}.",
        {"frozen": len(frozen), "strangers": len(strangers), "moved": moved},
        severity=ERROR if moved else NOTE,
    )


def _strangers(setup: Setup) -> list[nn.Parameter]:
    own = {id(p) for p in setup.network.parameters()}
    return [p for p in setup.held if id(p) not in own]


def _moved_by(
    setup: Setup, optimizer: torch.optim.Optimizer, frozen: Sequence[nn.Parameter]
) -> int:
    """How many frozen parameters a step moves with the gradients that lie there now."""
    if all(p.grad is None for p in frozen):
        return 0
    before = [p.detach().clone() for p in frozen]
    with setup.untouched():
        with contextlib.suppress(Exception):  # such as LBFGS, which needs a closure
            optimizer.step()
        return sum(not torch.equal(a, b) for a, b in zip(before, frozen, strict=True))


@trap(
    "missing-zero-grad",
    "Gradients of one step are still there in the next.",
    why="backward() adds to the gradients that it finds, so that each step follows the sum of all "
    "batches so far.",
    fix="Call optimizer.zero_grad() in every step before loss.backward().",
)
def missing_zero_grad(setup: Setup) -> Found | None:
    leak, noise = setup.steps.leak, setup.steps.noise
    if leak is None or leak <= 0.002:
        return None
    if leak <= 5 * noise:
        raise Lacking("a step that gives the same gradients twice")
    return Found(
        f"The gradients of a second step differ by {leak:.0%} of their size from what they are "
        f"without a first step.",
        {"leak": leak},
    )


@trap(
    "one-rate",
    "A pretrained body and a fresh head share one high learning rate.",
    why="A rate that a random head needs moves pretrained weights far from where they were useful, "
    "most of all in the first steps, when the head's gradients are arbitrary.",
    fix="Give the body about a tenth of the head's rate: "
    "tl.models.param_groups(network, lr=1e-4, head_lr=1e-3).",
)
def one_rate(setup: Setup) -> Found | None:
    optimizer = setup.optimizer
    if optimizer is None:
        raise Lacking("optimizer")
    if setup.weights is None or setup.weights is False:
        raise Lacking("weights")
    head = setup.head
    if head is None:
        return None
    own = {id(p) for p in head.parameters()}
    body = {
        id(p)
        for n, p in setup.trainable.items()
        if id(p) not in own and n not in setup.frozen_parameters
    }
    rates = _rates(optimizer, own)
    if not rates or _rates(optimizer, body) != rates:
        return None
    lr, high = max(rates), 0.05 if isinstance(optimizer, torch.optim.SGD) else 1e-3
    if lr < high:
        return None
    return Found(
        f"{type(optimizer).__name__} moves the pretrained body and the head at the same "
        f"rate, {lr:g}.",
        {"lr": lr, "high": high},
        severity=NOTE,
    )


def _rates(optimizer: torch.optim.Optimizer, chosen: Collection[int]) -> set[float]:
    """The learning rates of those parameters whose ``id`` is among the chosen."""
    groups = optimizer.param_groups
    return {float(group["lr"]) for group in groups for p in group["params"] if id(p) in chosen}


@trap(
    "step-fails",
    "The network, or another callable of the set-up, raises an exception.",
    why="What depends on it could not be checked.",
    fix="Run it on one batch by itself, and repair it first.",
)
def step_fails(setup: Setup) -> Found | None:
    failed = {w: e for w, e in setup.failures.items() if w not in setup.explained}
    if not failed:
        return None
    told = [f"{who} raises {type(e).__name__}: {_first_line(e)}" for who, e in failed.items()]
    return Found(
        "; ".join(told) + ".", {who: f"{type(e).__name__}: {e}" for who, e in failed.items()}
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
