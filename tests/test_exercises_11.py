"""The checks of chapter 11 pass right answers, and name each mistake."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from answers import accepted, hint
from torch import Tensor

import tlhelpers as tl

# 11.1


def episode(
    labels: Tensor, ways: int, shots: int, queries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    classes = torch.randperm(int(labels.max()) + 1, generator=generator)[:ways]
    rows = []
    for c in classes:
        mine = torch.nonzero(labels == c).flatten()
        rows.append(mine[torch.randperm(len(mine), generator=generator)[: shots + queries]])
    both = torch.stack(rows)
    return both[:, :shots], both[:, shots:]


def by_keys(
    labels: Tensor, ways: int, shots: int, queries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Without a loop: examples in random order, class by class."""
    classes = torch.rand(int(labels.max()) + 1, generator=generator).argsort()[:ways]
    key = torch.rand(len(labels), generator=generator)
    masked = torch.where(labels == classes[:, None], key, 2.0)
    rows = masked.argsort(dim=1)[:, : shots + queries]
    return rows[:, :shots], rows[:, shots:]


def same_for_both(labels: Tensor, n: int, k: int, q: int, g: torch.Generator) -> Any:
    support, _ = episode(labels, n, k, q, g)
    return support, support[:, :1].repeat(1, q)


def classes_of_examples(labels: Tensor, n: int, k: int, q: int, g: torch.Generator) -> Any:
    """Draws examples, and takes their classes."""
    order = labels[torch.randperm(len(labels), generator=g)].tolist()
    classes = list(dict.fromkeys(order))[:n]
    rows = torch.stack(
        [
            mine[torch.randperm(len(mine), generator=g)[: k + q]]
            for mine in (torch.nonzero(labels == c).flatten() for c in classes)
        ]
    )
    return rows[:, :k], rows[:, k:]


def with_replacement(labels: Tensor, n: int, k: int, q: int, g: torch.Generator) -> Any:
    classes = torch.randint(5, (n,), generator=g)
    mine = [torch.nonzero(labels == c).flatten() for c in classes]
    rows = torch.stack([m[torch.randperm(len(m), generator=g)[: k + q]] for m in mine])
    return rows[:, :k], rows[:, k:]


def first_examples(labels: Tensor, n: int, k: int, q: int, g: torch.Generator) -> Any:
    classes = torch.randperm(5, generator=g)[:n]
    rows = torch.stack([torch.nonzero(labels == c).flatten()[: k + q] for c in classes])
    return rows[:, :k], rows[:, k:]


def global_state(labels: Tensor, n: int, k: int, q: int, g: torch.Generator) -> Any:
    return episode(labels, n, k, q, torch.Generator().manual_seed(int(torch.randint(9**9, ()))))


def fixed_classes(labels: Tensor, n: int, k: int, q: int, g: torch.Generator) -> Any:
    rows = torch.stack(
        [
            mine[torch.randperm(len(mine), generator=g)[: k + q]]
            for mine in (torch.nonzero(labels == c).flatten() for c in range(n))
        ]
    )
    return rows[:, :k], rows[:, k:]


def mixed_rows(labels: Tensor, n: int, k: int, q: int, g: torch.Generator) -> Any:
    support, query = episode(labels, n, k, q, g)
    return support, query.flip(0)


class TestEpisode:
    def test_right(self) -> None:
        accepted("11.1", episode)
        accepted("11.1", by_keys)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (same_for_both, "in the support as well"),
            (classes_of_examples, "large classes more often"),
            (with_replacement, "one class for two of its ways"),
            (first_examples, "leaves some examples"),
            (fixed_classes, "does not draw its classes"),
            (global_state, "another episode from the same seed"),
            (mixed_rows, "differ in class"),
            (lambda *a: episode(*a)[::-1], r"the support in the shape \(3, 2\)"),
            (lambda *a: tuple(r.float() for r in episode(*a)), "tensor of integers"),
            (lambda *a: episode(*a)[0], "two tensors"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("11.1", answer))


# 11.2


def linear(support: Tensor) -> tuple[Tensor, Tensor]:
    p = support.mean(1)
    return 2 * p, -(p**2).sum(1)


def scaled(weight: float, bias: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda s: (weight * linear(s)[0], bias * linear(s)[1])


class TestLinear:
    def test_right(self) -> None:
        accepted("11.2", linear)
        # A common vector and a common number change no softmax.
        accepted("11.2", lambda s: (linear(s)[0] + 1, linear(s)[1] + 3))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (scaled(1, -1), "wrong sign"),
            (scaled(0.5, 1), "factor of 2"),
            (scaled(1, 0.5), "factor of 2"),
            (scaled(0.5, 0.5), "too flat"),
            (scaled(1, 0), "no bias"),
            (lambda s: linear(s.sum(1, keepdim=True)), "a prototype is a mean|other probabilities"),
            (lambda s: linear(s[:, :1] * 3), "other probabilities"),
            (lambda s: (linear(s)[0].T, linear(s)[1]), r"the weight of .* found \(4, 5\)"),
            (lambda s: linear(s)[0], "should return weight and bias"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("11.2", answer))


# 11.3


def n_way(better: np.ndarray, m: int, ways: int) -> float:
    free = m - 1 - better
    return float(np.mean([math.comb(int(f), ways - 1) / math.comb(m - 1, ways - 1) for f in free]))


def by_product(better: np.ndarray, m: int, ways: int) -> Any:
    free = (m - 1 - better)[:, None] - np.arange(ways - 1)
    return np.prod(np.maximum(free, 0) / (m - 1 - np.arange(ways - 1)), axis=1).mean()


class TestNWay:
    def test_right(self) -> None:
        accepted("11.3", n_way)
        accepted("11.3", by_product)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda b, m, w: (b == 0).mean(), "among all 6 classes"),
            (lambda b, m, w: 1 - n_way(b, m, w), "wrong answers"),
            (lambda b, m, w: ((1 - b / (m - 1)) ** (w - 1)).mean(), "with replacement"),
            (lambda b, m, w: (b < w).mean(), "among the first few"),
            (lambda b, m, w: n_way(b, m, min(m, w + 1)), "one of the 3 ways is the right class"),
            (lambda b, m, w: 1 / w, "In how many of the equally likely"),
            (lambda b, m, w: b, "should return one number"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("11.3", answer))


# 11.4


def leaks(classifier: Callable[..., Tensor], support: Tensor, query: Tensor) -> bool:
    together = classifier(support, query)
    alone = torch.cat([classifier(support, one) for one in query.split(1)])
    return bool((together - alone).abs().max() > 1e-3)


def by_answer(classifier: Callable[..., Tensor], support: Tensor, query: Tensor) -> bool:
    """Sees only a change of the predicted class."""
    together = classifier(support, query).argmax(1)
    alone = torch.cat([classifier(support, one).argmax(1) for one in query.split(1)])
    return bool((together != alone).any())


def exact(classifier: Callable[..., Tensor], support: Tensor, query: Tensor) -> bool:
    together = classifier(support, query)
    alone = torch.cat([classifier(support, one) for one in query.split(1)])
    return not torch.equal(together, alone)


def first_two(classifier: Callable[..., Tensor], support: Tensor, query: Tensor) -> bool:
    """Leaves out the last query, and looks at the second: nothing follows that it borrows from."""
    gap = classifier(support, query)[1] - classifier(support, query[:-1])[1]
    return bool(gap.abs().max() > 1e-3)


class TestLeaks:
    def test_right(self) -> None:
        accepted("11.4", leaks)
        accepted("11.4", lambda *a: np.bool_(leaks(*a)))

        def in_other_company(c: Callable[..., Tensor], s: Tensor, q: Tensor) -> bool:
            other = torch.cat([q[:1], q[1:] + 5])
            more = torch.cat([q[-1:] - 9, q[:1]])
            one = (c(s, q)[0] - c(s, other)[0]).abs().max()
            two = (c(s, q)[0] - c(s, more)[-1]).abs().max()
            return bool(max(one, two) > 1e-3)

        accepted("11.4", in_other_company)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda *_: True, "returned True, but each query is scored for itself"),
            (lambda *_: False, "soft k-means, returned False"),
            (exact, "returned True"),
            (first_two, "the query before, returned False"),
            (lambda c, s, q: 1.0, "should return True or False"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("11.4", answer))

    def test_a_change_of_scores_counts_even_if_the_answer_stays(self) -> None:
        verdict = tl.check("11.4", by_answer)
        assert not verdict, verdict.message
