"""Checks for the exercises of chapter 05: fine-tuning."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number


@exercise("05.1", "the head learns at its own rate, and every trainable parameter learns once.")
def _two_groups(answer: Any) -> None:
    """Write a function `groups(network, lr, head_lr)` that returns parameter groups.

    They are what `torch.optim.AdamW` takes: a list of two dicts, each with `"params"` and `"lr"`.
    The parameters of `network.head` are to learn at `head_lr`, all other parameters at `lr`.
    Parameters that are frozen (`requires_grad` is false) belong to neither.
    """
    expect_function(answer, "groups(network, lr, head_lr)")
    for frozen in ((), ("stem",), ("stem", "body")):
        network = _network()
        for part in frozen:
            network.get_submodule(part).requires_grad_(False)
        call = "groups(network, 0.001, 0.01)"
        groups = ask(answer, network, 1e-3, 1e-2, call=call)
        rates = _rates(groups, call)
        for name, parameter in network.named_parameters():
            found = rates.get(id(parameter), [])
            if not parameter.requires_grad:
                if found:
                    raise Hint(f"{name} is frozen, but a group holds it.")
                continue
            if len(found) != 1:
                raise Hint(f"{name} should be in one group, but it is in {len(found)}.")
            wanted = 1e-2 if name.startswith("head.") else 1e-3
            if not math.isclose(found[0], wanted):
                raise Hint(
                    f"{name} learns at {found[0]:g}. Which of the two rates is meant for it?"
                )
        if len(groups) != 2:
            raise Hint(f"{call} should return two groups, but it returned {len(groups)}.")


def _network() -> nn.Module:
    network = nn.Module()
    network.stem = nn.Linear(3, 4)
    network.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    network.headless = nn.Linear(4, 4)
    network.head = nn.Linear(4, 2)
    return network


def _rates(groups: Any, call: str) -> dict[int, list[float]]:
    if not isinstance(groups, list | tuple) or not all(isinstance(g, dict) for g in groups):
        raise Hint(f"{call} should return a list of dicts, but it returned {describe(groups)}.")
    rates: dict[int, list[float]] = {}
    for group in groups:
        if missing := {"params", "lr"} - group.keys():
            raise Hint(f"a group lacks the key {sorted(missing)[0]!r}.")
        if not isinstance(group["params"], list | tuple):
            raise Hint(
                "the value of 'params' should be a list: a generator is empty once it was read."
            )
        for parameter in group["params"]:
            if not isinstance(parameter, Tensor):
                raise Hint(f"'params' should hold parameters, found {describe(parameter)}.")
            rates.setdefault(id(parameter), []).append(float(group["lr"]))
    return rates


@exercise("05.2", "up on a straight line, then down along half a cosine, and never above the peak.")
def _warm_cosine(answer: Any) -> None:
    """Write a function `rate(step, total, warmup, peak)` that returns a learning rate.

    Steps count from 0 to `total` - 1. In the first `warmup` of them the rate rises on a straight
    line: it is `peak` / `warmup` at step 0 and `peak` at step `warmup` - 1. From step `warmup` on
    it falls along half a cosine, which is at `peak` at step `warmup` and would reach 0 at step
    `total`. `warmup` may be 0.
    """
    expect_function(answer, "rate(step, total, warmup, peak)")
    for total, warmup, peak in ((10, 0, 1.0), (100, 10, 0.5), (40, 20, 2.0)):
        for step in (0, warmup // 2, max(warmup - 1, 0), warmup, (total + warmup) // 2, total - 1):
            call = f"rate({step}, {total}, {warmup}, {peak})"
            found = number(ask(answer, step, total, warmup, peak, call=call), call)
            wanted = _wanted_rate(step, total, warmup, peak)
            if math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-9):
                continue
            if step < warmup:
                raise Hint(f"{call} is {found:.4g}. Is the line right at its two ends?")
            share = "at the top" if step == warmup else "on the way down"
            raise Hint(
                f"{call} is {found:.4g}; this step is {share}. Over how many steps does the cosine "
                f"fall, and where does it start?"
            )


def _wanted_rate(step: int, total: int, warmup: int, peak: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@exercise("05.3", "the weights of the best look are the ones to keep, whatever came afterwards.")
def _early_stopping(answer: Any) -> None:
    """Write a function `stop(losses, patience)` for early stopping.

    `losses` are the validation losses, look by look. Training ends at the first look at which
    none of the last `patience` looks was better (strictly lower) than the best one before them,
    or at the last look of the list. Return two integers that count from 0: the look at which
    training ends, and the look whose weights are kept.
    """
    expect_function(answer, "stop(losses, patience)")
    cases = [
        ([3.0, 2.0, 1.0], 1),
        ([1.0, 2.0, 0.5], 1),
        ([1.0, 2.0, 0.5, 0.6, 0.7, 0.1], 2),
        ([1.0, 1.0, 1.0, 1.0], 3),
        ([2.0, 1.0, 1.5, 0.9, 1.0, 1.1, 0.8, 1.0, 1.0, 1.0], 3),
    ]
    for losses, patience in cases:
        call = f"stop({losses}, {patience})"
        found = ask(answer, list(losses), patience, call=call)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Hint(f"{call} should return two integers, but it returned {describe(found)}.")
        ended, kept = (number(value, call) for value in found)
        end, best = _wanted_stop(losses, patience)
        if ended != end:
            early = "too early" if ended < end else "too late"
            raise Hint(
                f"{call} ends at look {ended:g}, which is {early}. An equal loss is not better."
            )
        if kept != best:
            raise Hint(f"{call} keeps look {kept:g}. Which look had the lowest loss so far?")


def _wanted_stop(losses: list[float], patience: int) -> tuple[int, int]:
    best = 0
    for look, loss in enumerate(losses):
        if loss < losses[best]:
            best = look
        if look - best >= patience:
            return look, best
    return len(losses) - 1, best
