"""The checks of chapter 06 pass right answers, and name each mistake."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from answers import accepted, hint
from torch import Tensor, nn

import tlhelpers as tl

cross_entropy = nn.functional.cross_entropy


# 06.1


def right(network: Any, m: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    tl.models.freeze(network)
    network.fc = nn.Linear(network.fc.in_features, m)
    return network, torch.optim.SGD(network.fc.parameters(), lr=0.1)


class Stays(nn.Module):
    """A backbone in evaluation mode, whatever it is told."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Stays:
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(1)


def wrapped(network: Any, m: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    whole = nn.Sequential(Stays(network.body), nn.Linear(network.fc.in_features, m))
    return whole, torch.optim.AdamW(whole[1].parameters(), lr=0.01)


def attribute_only(network: Any, m: int) -> Any:
    network.requires_grad = False
    network.fc = nn.Linear(network.fc.in_features, m)
    return network, torch.optim.SGD(network.parameters(), lr=0.1)


def in_a_copy(network: Any, m: int) -> Any:
    return attribute_only(copy.deepcopy(network), m)


def drifting(network: Any, m: int) -> Any:
    network.requires_grad_(False).eval()
    network.fc = nn.Linear(network.fc.in_features, m)
    return network, torch.optim.SGD(network.fc.parameters(), lr=0.1)


def norms_only(network: Any, m: int) -> Any:
    network.requires_grad_(False)
    tl.models.freeze(network.body[1])
    network.fc = nn.Linear(network.fc.in_features, m)
    return network, torch.optim.SGD(network.fc.parameters(), lr=0.1)


def forgetful_norms(network: Any, m: int) -> Any:
    """Statistics that never move, because those of the batch are used instead."""
    network.requires_grad_(False)
    network.body[3] = nn.Identity()
    network.body[1].momentum = 0.0
    network.body[1].num_batches_tracked = None
    network.fc = nn.Linear(network.fc.in_features, m)
    return network, torch.optim.SGD(network.fc.parameters(), lr=0.1)


def optimiser_first(network: Any, m: int) -> Any:
    optimiser = torch.optim.SGD(network.fc.parameters(), lr=0.1)
    tl.models.freeze(network)
    network.fc = nn.Linear(network.fc.in_features, m)
    return network, optimiser


def everything_frozen(network: Any, m: int) -> Any:
    network.fc = nn.Linear(network.fc.in_features, m)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    return tl.models.freeze(network), optimiser


def holds_all(network: Any, m: int) -> Any:
    tl.models.freeze(network)
    network.fc = nn.Linear(network.fc.in_features, m)
    return network, torch.optim.SGD(network.parameters(), lr=0.1)


def holds_old_head(network: Any, m: int) -> Any:
    old = list(network.fc.parameters())
    network, _ = right(network, m)
    return network, torch.optim.SGD([*old, *network.fc.parameters()], lr=0.1)


def weight_only(network: Any, m: int) -> Any:
    network, _ = right(network, m)
    return network, torch.optim.SGD([network.fc.weight], lr=0.1)


def probabilities(network: Any, m: int) -> Any:
    network, _ = right(network, m)
    optimiser = torch.optim.SGD(network.fc.parameters(), lr=0.1)
    network.fc = nn.Sequential(network.fc, nn.Softmax(1))
    return network, optimiser


def on_logits(network: Any, m: int) -> Any:
    tl.models.freeze(network)
    whole = nn.Sequential(network, nn.Linear(network.fc.out_features, m))
    return whole, torch.optim.SGD(whole[1].parameters(), lr=0.1)


def many_outputs(network: Any, m: int) -> Any:
    return right(network, 5 * m)


@pytest.mark.parametrize("answer", [right, wrapped])
def test_preparing(answer: Callable[..., Any]) -> None:
    accepted("06.1", answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (attribute_only, "moved 3 parameters of the backbone .*body.0.weight"),
        (in_a_copy, "moved 3 parameters of the backbone"),
        (drifting, "running_mean.* without any gradient"),
        (norms_only, "still random"),
        (forgetful_norms, "With which statistics"),
        (optimiser_first, "Which of the two was made first"),
        (everything_frozen, "no gradient at all"),
        (holds_all, "still holds 3 parameters of the backbone"),
        (holds_old_head, "no longer has"),
        (weight_only, "only fc.weight learns"),
        (probabilities, "probabilities"),
        (on_logits, "one new linear layer on the features"),
        (many_outputs, r"into \(24, 20\)"),
        (lambda network, m: network, r"should return \(network, optimiser\)"),
        (lambda network, m: (network, m), "a module and an optimiser"),
    ],
)
def test_preparing_wrongly(answer: Callable[..., Any], expected: str) -> None:
    assert re.search(expected, hint("06.1", answer))


# 06.2


def stepped(network: Any, optimiser: Any, x: Tensor, y: Tensor) -> float:
    optimiser.zero_grad()
    loss = cross_entropy(network(x), y)
    loss.backward()
    optimiser.step()
    return loss.item()


def zeroed_after(network: Any, optimiser: Any, x: Tensor, y: Tensor) -> float:
    loss = cross_entropy(network(x), y)
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return float(loss.detach())


def accumulating(network: Any, optimiser: Any, x: Tensor, y: Tensor) -> float:
    loss = cross_entropy(network(x), y)
    loss.backward()
    optimiser.step()
    return loss.item()


def softmax_twice(network: Any, optimiser: Any, x: Tensor, y: Tensor) -> float:
    optimiser.zero_grad()
    loss = cross_entropy(network(x).softmax(1), y)
    loss.backward()
    optimiser.step()
    return loss.item()


def softmax_for_gradient(network: Any, optimiser: Any, x: Tensor, y: Tensor) -> float:
    honest = cross_entropy(network(x), y).item()
    softmax_twice(network, optimiser, x, y)
    return honest


def with_graph(network: Any, optimiser: Any, x: Tensor, y: Tensor) -> Tensor:
    optimiser.zero_grad()
    loss = cross_entropy(network(x), y)
    loss.backward()
    optimiser.step()
    return loss


def after_the_step(network: Any, optimiser: Any, x: Tensor, y: Tensor) -> float:
    stepped(network, optimiser, x, y)
    return cross_entropy(network(x), y).item()


@pytest.mark.parametrize("answer", [stepped, zeroed_after])
def test_stepping(answer: Callable[..., Any]) -> None:
    accepted("06.2", answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (accumulating, "step 2 goes elsewhere: what is left over"),
        (softmax_twice, "What was done to the logits"),
        (softmax_for_gradient, "Which loss was it the gradient of"),
        (with_graph, "graph"),
        (after_the_step, "when was the loss taken"),
    ],
)
def test_stepping_wrongly(answer: Callable[..., Any], expected: str) -> None:
    assert re.search(expected, hint("06.2", answer))


# 06.3

Batches = Iterable[tuple[Tensor, Tensor]]


def measured(network: nn.Module, batches: Batches) -> tuple[float, float]:
    mode, loss, hits, n = network.training, 0.0, 0, 0
    network.eval()
    with torch.no_grad():
        for x, y in batches:
            logits = network(x)
            loss += cross_entropy(logits, y, reduction="sum").item()
            hits += int((logits.argmax(1) == y).sum())
            n += len(y)
    network.train(mode)
    return loss / n, hits / n


def in_training_mode(network: nn.Module, batches: Batches) -> tuple[float, float]:
    with torch.no_grad():
        parts = [(network(x), y) for x, y in batches]
    logits, y = (torch.cat(part) for part in zip(*parts, strict=True))
    return cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()


def left_in_eval(network: nn.Module, batches: Batches) -> tuple[float, float]:
    result = measured(network, batches)
    network.eval()
    return result


def woken(network: nn.Module, batches: Batches) -> tuple[float, float]:
    result = measured(network, batches)
    network.train()
    return result


def over_batches(network: nn.Module, batches: Batches) -> tuple[float, float]:
    results = [measured(network, [batch]) for batch in batches]
    losses, hits = zip(*results, strict=True)
    return float(np.mean(losses)), float(np.mean(hits))


def accuracy_over_batches(network: nn.Module, batches: Batches) -> tuple[float, float]:
    kept = list(batches)
    return measured(network, kept)[0], over_batches(network, kept)[1]


def summed(network: nn.Module, batches: Batches) -> tuple[float, float]:
    kept = list(batches)
    loss, accuracy = measured(network, kept)
    return loss * sum(len(y) for _, y in kept), accuracy


def squeezed(network: nn.Module, batches: Batches) -> tuple[float, float]:
    network.eval()
    hits = [(network(x).squeeze().argmax(1) == y).sum() for x, y in batches]
    return 0.0, float(sum(hits))


def first_only(network: nn.Module, batches: Batches) -> tuple[float, float]:
    return measured(network, [next(iter(batches))])


def with_gradient(network: nn.Module, batches: Batches) -> Any:
    mode = network.training
    x, y = next(iter(batches))
    logits = network.eval()(x)
    network.train(mode)
    return cross_entropy(logits, y), 0.5


def leaves_gradients(network: nn.Module, batches: Batches) -> Any:
    mode = network.training
    x, y = next(iter(batches))
    cross_entropy(network.eval()(x), y).backward()
    network.train(mode)
    return 1.0, 0.5


def test_evaluating() -> None:
    accepted("06.3", measured)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (in_training_mode, "measuring has changed the network: .*running_mean"),
        (left_in_eval, "came in training mode, and evaluate left it in evaluation mode"),
        (woken, "came in evaluation mode, and evaluate left it in training mode"),
        (over_batches, "the loss is a mean over batches"),
        (accuracy_over_batches, "the accuracy is a mean over batches"),
        (summed, "a sum over the images"),
        (squeezed, "raised"),
        (first_only, "Are all batches counted"),
        (with_gradient, "carries a gradient"),
        (leaves_gradients, "left gradients"),
        (lambda network, batches: 0.5, r"should return \(loss, accuracy\)"),
    ],
)
def test_evaluating_wrongly(answer: Callable[..., Any], expected: str) -> None:
    assert re.search(expected, hint("06.3", answer))


# 06.4


def by_photograph(originals: Any, share: float, generator: Any) -> Any:
    names = np.unique(originals)
    return np.isin(originals, generator.permutation(names)[: round(share * len(names))])


def by_image(originals: Any, share: float, generator: Any) -> Any:
    return generator.random(len(originals)) < share


def first_photographs(originals: Any, share: float, generator: Any) -> Any:
    names = np.unique(originals)
    return np.isin(originals, names[: round(share * len(names))])


def of_its_own(originals: Any, share: float, generator: Any) -> Any:
    return by_photograph(originals, share, np.random.default_rng())


def coins(originals: Any, share: float, generator: Any) -> Any:
    names = np.unique(originals)
    return np.isin(originals, names[generator.random(len(names)) < share])


@pytest.mark.parametrize(
    "answer",
    [
        by_photograph,
        lambda o, s, g: by_photograph(o, s, g).tolist(),
        lambda o, s, g: torch.from_numpy(by_photograph(o, s, g)),
    ],
)
def test_splitting(answer: Callable[..., Any]) -> None:
    accepted("06.4", answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (by_image, "photographs have copies on both sides"),
        (first_photographs, "same split for two generators"),
        (of_its_own, "two splits for one state"),
        (coins, "photographs are for test; with a share of"),
        (lambda o, s, g: ~by_photograph(o, s, g), "photographs are for test"),
        (lambda o, s, g: by_photograph(o, s, g).astype(int), "found int64 of shape"),
        (lambda o, s, g: by_photograph(o, s, g)[:-1], "should return 120 booleans"),
    ],
)
def test_splitting_wrongly(answer: Callable[..., Any], expected: str) -> None:
    assert re.search(expected, hint("06.4", answer))
