"""Checks for the exercises of chapter 04: feature extraction."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function


@exercise("04.1", "one affine map, from d features to m logits: multinomial logistic regression.")
def _head_shape(answer: Any) -> None:
    """Write a function `head(d, m)` that returns the head of a linear probe as a torch module.

    It takes a batch of features of shape (n, d) to logits of shape (n, m), for any d and m:
    one weight for each feature and class and one bias for each class. There is nothing else in
    it: no hidden layer, no dropout, and no softmax, which the loss applies.
    """
    expect_function(answer, "head(d, m)")
    for d, m in ((8, 3), (5, 11), (64, 120)):
        call = f"head({d}, {m})"
        head = ask(answer, d, m, call=call)
        if not isinstance(head, nn.Module):
            raise Hint(f"{call} should return a torch module, but it returned {describe(head)}.")
        _check_logits(head.train(), d, m, call)
        _check_affine(head, d, m, call)


def _check_logits(head: nn.Module, d: int, m: int, call: str) -> None:
    x = 3 * torch.randn(32, d)
    logits = ask(head, x, call=f"the module of {call}, on features of shape (32, {d}),")
    if not isinstance(logits, Tensor):
        raise Hint(f"the module of {call} should return a tensor, not {describe(logits)}.")
    if logits.shape != (32, m):
        raise Hint(
            f"the module of {call} turned features of shape (32, {d}) into shape "
            f"{tuple(logits.shape)}; each row should hold one logit for each of the {m} classes."
        )
    sums = logits.detach().sum(1), logits.detach().exp().sum(1)
    if any(torch.allclose(total, torch.ones(32), atol=1e-3) for total in sums):
        raise Hint(
            f"the rows that {call} gives are probabilities or their logarithms. The loss "
            f"normalises logits itself; doing it in the head as well is at best superfluous."
        )
    if (logits >= 0).all():
        raise Hint(
            f"no logit of {call} is ever negative. A logit may have either sign: what at the "
            f"end of the module prevents it?"
        )
    if not torch.equal(logits, head(x)):
        raise Hint(f"{call} gives other logits for the same features each time: what is random?")


def _check_affine(head: nn.Module, d: int, m: int, call: str) -> None:
    count, needed = sum(p.numel() for p in head.parameters()), d * m + m
    if count != needed:
        raise Hint(
            f"{call} has {count:,} parameters, which is {'fewer' if count < needed else 'more'} "
            f"than one weight for each feature and class and one bias for each class. "
            + ("Is something left out?" if count < needed else "Is there a layer too many?")
        )
    a, b = torch.randn(2, 16, d)
    with torch.no_grad():
        gap = head(a) + head(b) - head(a + b) - head(torch.zeros(16, d))
    if gap.abs().max() > 1e-3:
        raise Hint(f"{call} bends: with logits Wx + b, f(a) + f(b) = f(a + b) + f(0) should hold.")


@exercise("04.2", "no parameter learns, and no forward pass changes the model or its output.")
def _freeze_honestly(answer: Any) -> None:
    """Write a function `frozen(model)` that returns the model, frozen in every respect.

    No parameter requires a gradient. And where a training loop later calls `train()` on the
    model, or on a larger network that holds it, forward passes still give what the model gave in
    evaluation mode, and nothing in its `state_dict()` changes. The check uses a small network with
    convolution, batch normalisation and dropout.
    """
    expect_function(answer, "frozen(model)")
    original = _small_network()
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 1
    with torch.no_grad():
        expected = copy.deepcopy(original).eval()(x)
    model = ask(answer, original, call="frozen(model)")
    if not isinstance(model, nn.Module):
        raise Hint(f"frozen(model) should return the model, but it returned {describe(model)}.")
    parameters = list(model.parameters())
    if learning := sum(p.requires_grad for p in parameters):
        raise Hint(
            f"{learning} of {len(parameters)} parameter tensors still require a gradient, so an "
            f"optimiser would move them."
        )
    _check_stays(model, x, expected)


def _small_network() -> nn.Module:
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    # Statistics as if from earlier training, unlike those of the check's images.
    nn.init.uniform_(norm.get_buffer("running_mean"), -0.5, 0.5)
    nn.init.uniform_(norm.get_buffer("running_var"), 0.5, 1.5)
    pool = nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(convolution, norm, nn.ReLU(), nn.Dropout(0.5), pool, nn.Flatten())


def _check_stays(model: nn.Module, x: Tensor, expected: Tensor) -> None:
    network = nn.Sequential(model, nn.Linear(16, 2))
    call = "a forward pass of the frozen model, after train(),"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network.train()
    first, second = (ask(model, x, call=call) for _ in range(2))
    after = model.state_dict()
    if moved := [name for name, value in before.items() if not torch.equal(value, after[name])]:
        raise Hint(
            f"no parameter requires a gradient, yet a forward pass after train() changed "
            f"{', '.join(moved)}. These are not parameters: which layer keeps them, and when does "
            f"it update them?"
        )
    if not torch.equal(first, second):
        raise Hint(
            "after train(), two passes over the same images differ: a layer that is random in "
            "training mode still is."
        )
    if first.shape != expected.shape or not torch.allclose(first, expected, atol=1e-5):
        raise Hint(
            "the state stays and nothing is random, but after train() the output is not what the "
            "model gave in evaluation mode. Which statistics does it normalise with, and are its "
            "weights the ones it came with?"
        )


@exercise(
    "04.3", "nearest prototype is a linear classifier, here with squared distances as logits."
)
def _prototypes_as_head(answer: Any) -> None:
    """Write a function `prototypes_to_linear(prototypes)` that turns nearest-prototype
    classification into a linear layer.

    It takes an (m, d) tensor with one prototype a class and returns `(weight, bias)` of shapes
    (m, d) and (m,), such that for features `x` of shape (n, d) the logits
    `x @ weight.T + bias` equal minus the squared Euclidean distances to the prototypes, up to a
    number for each row of `x` that is the same for all classes. So the largest logit belongs to
    the nearest prototype, and the softmax is that of prototypical networks.
    """
    expect_function(answer, "prototypes_to_linear(prototypes)")
    for m, d in ((4, 6), (30, 12)):
        call = f"prototypes_to_linear, on prototypes of shape ({m}, {d}),"
        # Prototypes of different lengths: with equal ones, half of the answer is not needed.
        prototypes = torch.randn(m, d) * torch.linspace(0.5, 3, m)[:, None]
        x = 2 * torch.randn(200, d)
        weight, bias = _linear_layer(ask(answer, prototypes.clone(), call=call), m, d, call)
        distances = torch.cdist(x, prototypes).square()
        _check_scores(x @ weight.T + bias, distances)


def _linear_layer(found: Any, m: int, d: int, call: str) -> tuple[Tensor, Tensor]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Hint(f"{call} should return (weight, bias), but it returned {describe(found)}.")
    for name, value, shape in zip(("weight", "bias"), found, ((m, d), (m,)), strict=True):
        if not isinstance(value, Tensor):
            raise Hint(f"the {name} should be a torch tensor, found {describe(value)}.")
        if value.shape != shape:
            raise Hint(f"the {name} should have shape {shape}, found {tuple(value.shape)}.")
        if not value.isfinite().all():
            raise Hint(f"the {name} holds NaN or infinity.")
    return found[0].detach().float(), found[1].detach().float()


def _check_scores(scores: Tensor, distances: Tensor) -> None:
    nearest = distances.argmin(1)
    share = (scores.argmax(1) == nearest).float().mean().item()
    if (scores.argmin(1) == nearest).float().mean() > share:
        raise Hint("the smallest logit marks the nearest prototype; it should be the largest.")
    if share < 1:
        raise Hint(
            f"the largest logit belongs to the nearest prototype for {100 * share:.0f} % of the "
            f"features only. Expand the squared distance: which terms differ from class to class?"
        )
    offset = scores + distances
    if (offset - offset.mean(1, keepdim=True)).abs().max() > 1e-2:
        raise Hint(
            "the largest logit always belongs to the nearest prototype, but the logits are not "
            "minus the squared distances up to a number for each row: compare their scale."
        )
