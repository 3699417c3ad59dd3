"""Checks for the exercises of chapter 11: few-shot learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tlhelpers import fewshot
from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number


@exercise("11.1", "new classes, new examples, and no query that is its own support.")
def _episode(answer: Any) -> None:
    """Write a function `episode(labels, ways, shots, queries, generator)` that draws an episode.

    `labels` is an (n,) tensor of integers: the class of each example. Draw `ways` classes, and of
    each of them `shots + queries` examples, all at random from the torch generator. Return two
    tensors of row numbers, the support (ways, shots) and the queries (ways, queries); row i of both
    belongs to one class. Classes need not be equally large.
    """
    expect_function(answer, "episode(labels, ways, shots, queries, generator)")
    sizes = torch.tensor([9, 12, 7, 30, 8])
    labels = torch.arange(5).repeat_interleave(sizes)
    labels = labels[torch.randperm(len(labels))]
    ways, shots, queries = 3, 2, 4
    call = f"episode(labels, {ways}, {shots}, {queries}, generator)"
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(300):
        found = ask(answer, labels.clone(), ways, shots, queries, generator, call=call)
        drawn.append(_rows(found, (ways, shots), (ways, queries), len(labels), call))
    for support, query in drawn:
        _check_episode(labels, support, query, call)
    _check_draws(labels, drawn, call)
    _check_generator(answer, labels, (ways, shots, queries), call)


def _rows(
    found: Any, support: tuple[int, int], query: tuple[int, int], n: int, call: str
) -> tuple[Tensor, Tensor]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Hint(f"{call} should return two tensors, but it returned {describe(found)}.")
    tensors = []
    for what, rows, shape in zip(("support", "queries"), found, (support, query), strict=True):
        if not isinstance(rows, Tensor) or rows.is_floating_point():
            raise Hint(f"{call} should return row numbers as a tensor of integers ({what}).")
        if tuple(rows.shape) != shape:
            raise Hint(
                f"{call} should return the {what} in the shape {shape}, found {tuple(rows.shape)}."
            )
        if not 0 <= int(rows.min()) <= int(rows.max()) < n:
            raise Hint(f"{call} returned row numbers outside 0..{n - 1}.")
        tensors.append(rows.contiguous())
    return tensors[0], tensors[1]


def _check_episode(labels: Tensor, support: Tensor, query: Tensor, call: str) -> None:
    both = torch.cat([support, query], dim=1)
    if not (labels[both] == labels[support[:, :1]]).all():
        raise Hint(f"{call}: within a row of support and queries the examples differ in class.")
    if len(labels[support[:, 0]].unique()) < len(support):
        raise Hint(f"{call} drew one class for two of its ways.")
    if torch.isin(query, support).any():
        raise Hint(
            f"{call}: a query was in the support as well. It is recognised because it was learnt."
        )
    if len(both.unique()) < both.numel():
        raise Hint(f"{call} drew an example twice.")


def _check_draws(labels: Tensor, drawn: list[tuple[Tensor, Tensor]], call: str) -> None:
    firsts = torch.stack([support[:, 0] for support, _ in drawn])
    first_class = torch.bincount(labels[firsts[:, 0]], minlength=5) / len(drawn)
    if first_class.max() > 0.9 or first_class.min() == 0:
        raise Hint(f"{call} does not draw its classes at random: some hardly ever come first.")
    if first_class[3] > 0.35:  # 30 of 66 examples, but one of five classes
        raise Hint(
            f"{call} draws large classes more often than small ones. Draw classes, then examples."
        )
    of_largest = torch.cat([torch.cat(pair, dim=1).flatten() for pair in drawn])
    of_largest = of_largest[labels[of_largest] == 3]
    if len(of_largest.unique()) < 30:
        raise Hint(f"{call} leaves some examples of a large class out, always.")
    supported = torch.cat([support.flatten() for support, _ in drawn])
    if len(supported[labels[supported] == 3].unique()) < 30:
        raise Hint(f"{call} always takes its support from the same examples.")


def _check_generator(
    answer: Callable[..., Any], labels: Tensor, asked: tuple[int, int, int], call: str
) -> None:
    one, two = (
        ask(answer, labels.clone(), *asked, torch.Generator().manual_seed(3), call=call)
        for _ in range(2)
    )
    if not all(torch.equal(a, b) for a, b in zip(one, two, strict=True)):
        raise Hint(f"{call} draws another episode from the same seed: use the generator only.")


@exercise("11.2", "what looked like a distance is a linear layer, written from the support.")
def _linear(answer: Any) -> None:
    """Write a function `linear(support)` that returns the linear layer of a prototypical network.

    `support` is an (N, K, d) tensor. Return a weight (N, d) and a bias (N,) such that
    `query @ weight.T + bias` has the same softmax as minus the squared distances of the queries to
    the N prototypes.
    """
    expect_function(answer, "linear(support)")
    for ways, shots, d in ((5, 1, 4), (3, 7, 16)):
        support = torch.randn(ways, shots, d, dtype=torch.float64) + 0.5
        query = torch.randn(20, d, dtype=torch.float64)
        call = f"linear, on {ways} classes with {shots} examples of {d} features,"
        found = ask(answer, support.clone(), call=call)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise Hint(f"{call} should return weight and bias, but it returned {describe(found)}.")
        for what, part, shape in zip(("weight", "bias"), found, ((ways, d), (ways,)), strict=True):
            if not isinstance(part, Tensor) or tuple(part.shape) != shape:
                where = tuple(part.shape) if isinstance(part, Tensor) else describe(part)
                raise Hint(f"the {what} of {call} should have the shape {shape}, found {where}.")
        _check_linear(found[0].double(), found[1].double(), support, query, call)


def _check_linear(weight: Tensor, bias: Tensor, support: Tensor, query: Tensor, call: str) -> None:
    def same(w: Tensor, b: Tensor) -> bool:
        scores, wanted = query @ w.T + b, fewshot.nearest_centroid(support[None], query[None])[0]
        return torch.allclose(scores.softmax(1), wanted.softmax(1), atol=1e-6)

    if same(weight, bias):
        return
    if same(weight, -bias):
        raise Hint(f"{call} has a bias of the wrong sign: a long prototype is a handicap.")
    if same(2 * weight, bias) or same(weight, 2 * bias):
        raise Hint(f"{call} has lost a factor of 2 somewhere: multiply the square out again.")
    if same(2 * weight, 2 * bias):
        raise Hint(
            f"{call} ranks the classes rightly, but its softmax is too flat by a factor in the "
            f"logits."
        )
    if same(weight, bias - weight.square().sum(1) / 4):
        raise Hint(f"{call} has no bias: then a class wins for the length of its prototype.")
    shots = support.shape[1]
    if same(weight / shots, bias / shots) or same(weight / shots, bias / shots**2):
        raise Hint(f"{call} adds the support up; a prototype is a mean.")
    raise Hint(
        f"{call} gives other probabilities than minus the squared distances. Multiply out "
        f"‖q − p‖², and leave out what is the same for all classes."
    )


@exercise("11.3", "one measurement with all classes holds those with any smaller number.")
def _n_way(answer: Any) -> None:
    """Write a function `n_way(better, m, ways)`: from all classes at once to any number of them.

    Queries of m classes were compared with the prototypes of all m. `better` is an (n,) NumPy
    array: for each query, how many of the m − 1 wrong classes had a higher score than the right
    one. Return the accuracy, in 0..1, that is to be expected where each query has only `ways - 1`
    wrong classes to compete with, drawn at random from the m − 1. There are no ties.
    """
    expect_function(answer, "n_way(better, m, ways)")
    generator = np.random.default_rng(0)
    for m, ways in ((6, 3), (30, 5), (120, 20), (12, 12), (50, 2)):
        better = generator.binomial(m - 1, generator.beta(0.5, 3, 200))
        call = f"n_way, with {m} classes and {ways} ways,"
        found = number(ask(answer, better.copy(), m, ways, call=call), call)
        _check_n_way(found, better, m, ways, call)


def _check_n_way(found: float, better: np.ndarray, m: int, ways: int, call: str) -> None:
    def expected(free: np.ndarray, of: int, draws: int) -> float:
        return float(np.mean([math.comb(int(f), draws) / math.comb(of, draws) for f in free]))

    def same(other: float) -> bool:
        return abs(found - other) < 1e-6

    free = m - 1 - better
    right = expected(free, m - 1, ways - 1)
    if same(right):
        return
    if same(float(np.mean(better == 0))):
        raise Hint(f"{call} returned the accuracy among all {m} classes; fewer rivals are easier.")
    if same(1 - right):
        raise Hint(f"{call} returned the share of wrong answers.")
    if same(float(np.mean((free / (m - 1)) ** (ways - 1)))):
        raise Hint(
            f"{call} draws the rivals with replacement; an episode has each class once. That is "
            f"close, but not it."
        )
    if same(float(np.mean(better < ways))) or same(float(np.mean(better < ways - 1))):
        raise Hint(f"{call} counts whether the right class is among the first few.")
    if ways < m and same(expected(free, m - 1, ways)):
        raise Hint(f"{call} draws {ways} rivals, but one of the {ways} ways is the right class.")
    raise Hint(
        f"{call} returned {found:.4f}, too {'high' if found > right else 'low'}. In how many of "
        f"the equally likely sets of {ways - 1} rivals is there none that has a higher score?"
    )


@exercise("11.4", "whether a method is transductive is a matter of fact, and can be tested.")
def _leaks(answer: Any) -> None:
    """Write a function `leaks(classifier, support, query)`: is the classifier transductive?

    `classifier(support, query)` takes an (N, K, d) and an (M, d) tensor and returns scores (M, N).
    Return True if the scores of a query depend on which other queries are asked with it, and False
    if each query is scored for itself. Differences of rounding, below a thousandth, do not count.
    """
    expect_function(answer, "leaks(classifier, support, query)")
    for name, classifier, transductive in _CLASSIFIERS:
        support, query = torch.randn(4, 3, 8) + 1, torch.randn(12, 8)
        call = f"leaks, on {name},"
        found = ask(answer, classifier, support, query, call=call)
        if isinstance(found, Tensor | np.ndarray) and found.ndim == 0:
            found = found.item()
        if not isinstance(found, bool | np.bool_):
            raise Hint(f"{call} should return True or False, but it returned {describe(found)}.")
        if found == transductive:
            continue
        if transductive:
            raise Hint(f"{call} returned False, but {_WHY[name]}.")
        raise Hint(f"{call} returned True, but each query is scored for itself there.")


def _one(classifier: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A classifier of batches as one of a single episode."""
    return lambda support, query: classifier(support[None], query[None])[0]


def _centred(support: Tensor, query: Tensor) -> Tensor:
    return _one(fewshot.cosine)(support - query.mean(0), query - query.mean(0))


def _by_neighbour(support: Tensor, query: Tensor) -> Tensor:
    """Adds to the scores of each query a little of those of the query before it."""
    scores = _one(fewshot.nearest_centroid)(support, query)
    return scores + 0.1 * scores.roll(1, dims=0)


def _noisy(support: Tensor, query: Tensor) -> Tensor:
    """Rounding that depends on the number of queries."""
    return _one(fewshot.cosine)(support, query) + 1e-6 * len(query)


_CLASSIFIERS = (
    ("the nearest centroid", _one(fewshot.nearest_centroid), False),
    ("soft k-means", _one(fewshot.soft_kmeans), True),
    ("a classifier that subtracts the mean of the queries", _centred, True),
    ("attention over the support", _one(fewshot.matching), False),
    ("a classifier that looks at the query before", _by_neighbour, True),
    ("a classifier with rounding errors", _noisy, False),
)
_WHY = {
    "soft k-means": "the prototypes move towards the queries",
    "a classifier that subtracts the mean of the queries": "that mean changes with the company",
    "a classifier that looks at the query before": "there each query borrows from another one",
}
