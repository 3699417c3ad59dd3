"""Checks for the exercises of chapter 06: each hands out a broken set-up to repair."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number


class _Network(nn.Module):
    """A small classifier that has each layer with which freezing goes wrong, and a head ``fc``."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        convolution, norm = nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width)
        # Statistics as after a training on other images than the check's.
        nn.init.uniform_(norm.get_buffer("running_mean"), -0.5, 0.5)
        nn.init.uniform_(norm.get_buffer("running_var"), 0.5, 1.5)
        pool = nn.AdaptiveAvgPool2d(1)
        self.body = nn.Sequential(convolution, norm, nn.ReLU(), nn.Dropout(0.3), pool)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).flatten(1))


@exercise("06.1", "only the head learns, all of it does, and the rest stays what it was.")
def _prepare(answer: Any) -> None:
    """Write a function `prepare(network, m)` that makes a pretrained classifier ready for feature
    extraction, and returns `(network, optimiser)`.

    The network ends with a linear layer `network.fc`, whose input is a vector of features. The
    network returned gives logits for m classes through a new linear head. A loop then calls
    `network.train()` and takes steps with the cross-entropy of `network(x)`: the head has to
    learn, and the rest of the network must not change in any way, nor answer otherwise in
    training mode. The optimiser, of any kind, holds the parameters of the head and nothing else.
    """
    expect_function(answer, "prepare(network, m)")
    for width, m in ((8, 4), (12, 7)):
        x, y = torch.randn(24, 3, 8, 8), torch.arange(24) % m
        call = f"prepare(network, {m})"
        given = _Network(width, classes=9)
        network, optimiser = _pair(ask(answer, given, m, call=call), call)
        _check_logits(network, x, m, call)
        head = _new_head(network, width, m, call)
        before = copy.deepcopy(network.state_dict())
        _take_steps(network, optimiser, x, y, call)
        after = network.state_dict()
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        backbone = [name for name in before if not name.startswith(head)]
        _check_frozen([name for name in moved if name in backbone], network)
        _check_learning(network, optimiser, [n for n in moved if n not in backbone], head)
        _check_modes_agree(network, x)


def _pair(found: Any, call: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Hint(f"{call} should return (network, optimiser), but it returned {describe(found)}.")
    network, optimiser = found
    if not isinstance(network, nn.Module) or not isinstance(optimiser, torch.optim.Optimizer):
        raise Hint(
            f"{call} should return a module and an optimiser, but it returned "
            f"{describe(network)} and {describe(optimiser)}."
        )
    return network, optimiser


def _check_logits(network: nn.Module, x: Tensor, m: int, call: str) -> None:
    mode = network.training
    with torch.no_grad():
        logits = ask(network.eval(), x, call=f"the network of {call}, on images,")
    network.train(mode)
    if not isinstance(logits, Tensor) or logits.shape != (len(x), m):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else describe(logits)
        raise Hint(
            f"the network of {call} turned {len(x)} images into {found}; each row should hold one "
            f"logit for each of the {m} classes."
        )
    sums = logits.sum(1), logits.exp().sum(1)
    if any(torch.allclose(total, torch.ones(len(x)), atol=1e-4) for total in sums):
        raise Hint(
            "the rows that the network gives are probabilities or their logarithms. What does the "
            "cross-entropy do with its input first?"
        )


def _new_head(network: nn.Module, width: int, m: int, call: str) -> str:
    """The name of the head, with a full stop."""
    names = [
        name
        for name, part in network.named_modules()
        if isinstance(part, nn.Linear) and part.weight.shape == (m, width)
    ]
    if not names:
        raise Hint(f"the network of {call} should end with one new linear layer on the features.")
    return f"{names[-1]}."


def _take_steps(
    network: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, call: str
) -> None:
    network.train()
    for _ in range(3):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(ask(network, x, call=f"the network of {call}"), y)
        if not loss.requires_grad:
            raise Hint("the loss has no gradient at all: the new head is frozen with the rest.")
        loss.backward()
        optimiser.step()


def _check_frozen(moved: list[str], network: nn.Module) -> None:
    parameters = dict(network.named_parameters())
    if weights := [name for name in moved if name in parameters]:
        raise Hint(
            f"three steps moved {len(weights)} parameters of the backbone ({', '.join(weights)}). "
            f"What did the line that should freeze them change? Look at the parameters after it."
        )
    if moved:
        raise Hint(
            f"no parameter of the backbone moved, but {', '.join(moved)} did, without any "
            f"gradient: something in the backbone still follows train()."
        )


def _check_learning(
    network: nn.Module, optimiser: torch.optim.Optimizer, learnt: list[str], head: str
) -> None:
    own = {id(p): name for name, p in network.named_parameters()}
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    if not learnt:
        raise Hint(
            "after three steps nothing in the network has moved: the optimiser holds other tensors "
            "than those of the network's head. Which of the two was made first?"
        )
    if len(learnt) < 2:
        raise Hint(f"of the head, only {learnt[0]} learns.")
    if held - own.keys():
        raise Hint("the optimiser holds parameters that the network no longer has.")
    if extra := [own[i] for i in held if not own[i].startswith(head)]:
        raise Hint(
            f"the optimiser still holds {len(extra)} parameters of the backbone. They rest as long "
            f"as they have no gradient; hand over only what should learn."
        )


def _check_modes_agree(network: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        training, evaluation = network.train()(x), network.eval()(x)
        again = network.train()(x)
    if not torch.equal(training, again):
        raise Hint(
            "nothing moves, but in training mode the same images get other logits each time: a "
            "layer in the network is still random."
        )
    if not torch.allclose(training, evaluation, atol=1e-5):
        raise Hint(
            "nothing moves, but in training mode the network gives other logits than in "
            "evaluation mode. With which statistics does the backbone normalise?"
        )


@exercise("06.2", "each step follows the gradient of this batch, and of this batch alone.")
def _step(answer: Any) -> None:
    """Write a function `step(network, optimiser, x, y)` that takes one training step and returns
    the loss.

    `network(x)` gives logits of shape (n, m), `y` has shape (n,). The optimiser moves once, along
    the gradient of the mean cross-entropy of this batch, whatever happened before. Return the
    loss before the step, as a Python float.
    """
    expect_function(answer, "step(network, optimiser, x, y)")
    network = nn.Linear(6, 4)
    expected = copy.deepcopy(network)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    reference = torch.optim.SGD(expected.parameters(), lr=0.5)
    for i in range(3):
        x, y = 2 * torch.randn(16, 6), torch.randint(4, (16,))
        loss = _reference_step(expected, reference, x, y)
        found = ask(answer, network, optimiser, x.clone(), y.clone(), call="step")
        _check_loss(found, loss, i)
        gaps = [
            (a - b).abs().max().item()
            for a, b in zip(network.parameters(), expected.parameters(), strict=True)
        ]
        _check_gap(max(gaps), i)


def _reference_step(
    network: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> float:
    optimiser.zero_grad()
    loss = nn.functional.cross_entropy(network(x), y)
    loss.backward()
    optimiser.step()
    return loss.item()


def _check_loss(found: Any, loss: float, i: int) -> None:
    if isinstance(found, Tensor) and found.requires_grad:
        raise Hint(
            "step returned a tensor that still holds the graph of its computation. A list of such "
            "losses keeps every batch in memory; return a plain number."
        )
    value = number(found, "step")
    if abs(value - loss) < 1e-4:
        return
    if i == 0:
        raise Hint(
            f"the first loss returned is {value:.4f}, but the mean cross-entropy of the logits "
            f"before the step is {'lower' if value > loss else 'higher'}. What was done to the "
            f"logits, and when was the loss taken?"
        )
    raise Hint(f"the loss of step {i + 1} is not that of its batch.")


def _check_gap(gap: float, i: int) -> None:
    if gap < 1e-5:
        return
    if i == 0:
        raise Hint(
            "after one step the parameters are not where one step along the gradient leads. Which "
            "loss was it the gradient of, and how often did the optimiser step?"
        )
    raise Hint(
        f"the first step is right, but step {i + 1} goes elsewhere: what is left over from the "
        f"batch before?"
    )


@exercise("06.3", "every image counts once, and looking has changed nothing.")
def _evaluate(answer: Any) -> None:
    """Write a function `evaluate(network, batches)` that returns `(loss, accuracy)`, two floats:
    the mean cross-entropy over all images, and the share of them that is classified right.

    `batches` yields pairs of images and labels, once; the batches may differ in size, down to a
    single image. `network` gives logits of shape (n, m), and may arrive in training mode. It is
    measured in evaluation mode and without gradients. Afterwards its state is what it was, and
    it is in the mode in which it came.
    """
    expect_function(answer, "evaluate(network, batches)")
    network = _Network(8, classes=5)
    sizes = (16, 16, 5, 1)
    x, y = 2 * torch.randn(sum(sizes), 3, 8, 8) + 1, torch.randint(5, (sum(sizes),))
    # A last image that the network gets badly wrong: a mean over batches gives it a weight of 1/4.
    with torch.no_grad():
        y[-1] = network.eval()(x)[-1].argmin()
        network.fc.weight.mul_(6)
    for mode in (True, False):
        network.train(mode)
        before = copy.deepcopy(network.state_dict())
        found = ask(answer, network, _batches(x, y, sizes), call="evaluate")
        values = _two_numbers(found)
        _check_untouched(network, before, mode)
        _check_measured(values, network, x, y, sizes)


def _batches(x: Tensor, y: Tensor, sizes: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(x.clone().split(list(sizes)), y.clone().split(list(sizes)), strict=True)


def _two_numbers(found: Any) -> tuple[float, float]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Hint(f"evaluate should return (loss, accuracy), but it returned {describe(found)}.")
    if any(isinstance(value, Tensor) and value.requires_grad for value in found):
        raise Hint("what evaluate returned carries a gradient: nothing here is to be learnt.")
    return number(found[0], "evaluate, for the loss,"), number(found[1], "evaluate, the accuracy,")


def _check_untouched(network: nn.Module, before: dict[str, Tensor], mode: bool) -> None:
    after = network.state_dict()
    if moved := [name for name, value in before.items() if not torch.equal(value, after[name])]:
        raise Hint(
            f"measuring has changed the network: {', '.join(moved)}. In which mode did the images "
            f"go through it?"
        )
    if any(p.grad is not None for p in network.parameters()):
        raise Hint("measuring has left gradients in the parameters.")
    if network.training != mode:
        came, left = ("training", "evaluation") if mode else ("evaluation", "training")
        raise Hint(f"the network came in {came} mode, and evaluate left it in {left} mode.")


def _check_measured(
    values: tuple[float, float],
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    sizes: tuple[int, ...],
) -> None:
    mode = network.training
    with torch.no_grad():
        logits = network.eval()(x)
    network.train(mode)
    each = nn.functional.cross_entropy(logits, y, reduction="none")
    hits = (logits.argmax(1) == y).float()
    for value, rows, name in zip(values, (each, hits), ("loss", "accuracy"), strict=True):
        if abs(value - rows.mean().item()) < 1e-4:
            continue
        over_batches = torch.stack([part.mean() for part in rows.split(list(sizes))]).mean()
        if abs(value - over_batches.item()) < 1e-4:
            raise Hint(
                f"the {name} is a mean over batches, in which the last image, alone in its batch, "
                f"counts as much as sixteen others."
            )
        if abs(value - rows.sum().item()) < 1e-3:
            raise Hint(f"the {name} is a sum over the images, not their mean.")
        raise Hint(
            f"the {name} is not the mean over the images in evaluation mode. Are all batches "
            f"counted, and by their size?"
        )


@exercise("06.4", "copies of one image stay together, so the test images are new to the model.")
def _split(answer: Any) -> None:
    """Write a function `split(originals, share, generator)` that says which images to test on.

    `originals` is an array of n integers: image i is a copy of photograph `originals[i]`, turned,
    cropped or mirrored. Return n booleans, True for test. All copies of a photograph fall on
    the same side. Of the photographs, `round(share * number)` are for test, drawn at random with
    the `numpy.random.Generator` handed over.
    """
    expect_function(answer, "split(originals, share, generator)")
    rng = np.random.default_rng(7)
    cases = {
        "photographs with four copies each": (rng.permutation(np.repeat(np.arange(30), 4)), 0.2),
        "photographs with different numbers of copies": (rng.integers(3, 40, size=150), 0.3),
        "photographs without copies": (np.arange(20) * 5 + 2, 0.25),
    }
    for kind, (originals, share) in cases.items():
        call = f"split, on {kind},"
        drawn = []
        for seed in (0, 1, 0):
            given = (originals.copy(), share, np.random.default_rng(seed))
            drawn.append(_mask(ask(answer, *given, call=call), len(originals), call))
            _check_sides(drawn[-1], originals, share, kind)
        if not np.array_equal(drawn[0], drawn[2]):
            raise Hint(f"{call} gives two splits for one state of the generator.")
        if np.array_equal(drawn[0], drawn[1]):
            raise Hint(f"{call} gives the same split for two generators: what is drawn at random?")


def _mask(found: Any, n: int, call: str) -> np.ndarray:
    values = found.numpy() if isinstance(found, Tensor) else found
    if not isinstance(values, np.ndarray | list | tuple) or len(values) != n:
        raise Hint(f"{call} should return {n} booleans, but it returned {describe(found)}.")
    mask = np.asarray(values)
    if mask.dtype != bool or mask.shape != (n,):
        raise Hint(
            f"{call} should return booleans of shape ({n},), found {mask.dtype} of shape "
            f"{mask.shape}."
        )
    return mask


def _check_sides(mask: np.ndarray, originals: np.ndarray, share: float, kind: str) -> None:
    test, train = np.unique(originals[mask]), np.unique(originals[~mask])
    if both := len(np.intersect1d(test, train)):
        raise Hint(
            f"on {kind}, {both} photographs have copies on both sides: the model is tested on "
            f"what it has learnt by heart. What has to be drawn, images or photographs?"
        )
    number_of = len(np.unique(originals))
    if len(test) != round(share * number_of):
        raise Hint(
            f"on {kind}, {len(test)} of {number_of} photographs are for test; with a share of "
            f"{share:g} there should be {'more' if len(test) < share * number_of else 'fewer'}."
        )
