"""Checks for the exercises of chapter 10: sentences, names of classes, and their features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tlhelpers.exercises import Hint, ask, describe, exercise, expect_function, number


@exercise("10.1", "padding has no say, and every sentence has length 1.")
def _pool(answer: Any) -> None:
    """Write a function `pool(hidden, mask)` that makes a sentence's features of its tokens'.

    `hidden` is an (n, t, d) tensor, `mask` an (n, t) tensor of integers: 1 for a token, 0 for
    padding. Return an (n, d) tensor: the mean over each sentence's own tokens, scaled to length 1.
    """
    expect_function(answer, "pool(hidden, mask)")
    hidden = torch.randn(4, 6, 5, dtype=torch.float64) + 1
    mask = (torch.arange(6) < torch.tensor([[6], [3], [1], [4]])).long()
    call = "pool(hidden, mask)"
    found = _tensor(ask(answer, hidden.clone(), mask.clone(), call=call), (4, 5), call)
    weights = mask.unsqueeze(-1)
    mean = (hidden * weights).sum(1) / weights.sum(1)
    if _close(found, mean) or _close(found, hidden.mean(1)):
        raise Hint(f"{call} returned features whose lengths differ from sentence to sentence.")
    if _close(found, nn.functional.normalize(hidden.mean(1), dim=1)):
        raise Hint(f"{call}: a short sentence in a long batch should not change with the batch.")
    if _close(found, nn.functional.normalize(hidden[:, 0], dim=1)):
        raise Hint(f"{call} looked at the first token only.")
    each = nn.functional.normalize(hidden, dim=2) * weights
    if _close(found, each.sum(1) / weights.sum(1)) or _close(
        found, nn.functional.normalize(each.sum(1), dim=1)
    ):
        raise Hint(f"{call} scaled the tokens; it is the sentence that gets length 1.")
    if not _close(found, nn.functional.normalize(mean, dim=1)):
        raise Hint(f"{call} gives other features than the mean over the tokens, at length 1.")


@exercise("10.2", "a name counts as so many questions, and as no more when real ones come.")
def _combine(answer: Any) -> None:
    """Write a function `combine(name, shots, alpha)`: the prototype of a class from both.

    `name` is a (d,) tensor, the features of the class's name; `shots` a (k, d) tensor, those of its
    labelled questions; `alpha` is the number of questions that the name counts as. Return the
    mean of μ given both, a (d,) tensor. It should work for k = 0 too.
    """
    expect_function(answer, "combine(name, shots, alpha)")
    name = torch.randn(3, dtype=torch.float64)
    for k, alpha in ((2, 0.7), (5, 3.0), (1, 4.0), (0, 2.0)):
        shots = torch.randn(k, 3, dtype=torch.float64)
        call = f"combine, with {k} questions and alpha = {alpha:g},"
        found = _tensor(ask(answer, name.clone(), shots.clone(), alpha, call=call), (3,), call)
        if not torch.isfinite(found).all():
            raise Hint(f"{call} is not finite. Without a question, what is left of the two?")
        right = (alpha * name + shots.sum(0)) / (alpha + k)
        wrong = {
            "counts the name as one question, whatever alpha is.": (name + shots.sum(0)) / (1 + k),
            "gives the mean of the questions the weight of one.": (
                (alpha * name + (shots.mean(0) if k else 0 * name)) / (alpha + 1)
            ),
            "does not add up to weights of one.": alpha * name + shots.sum(0),
            "has the two roles the wrong way round.": (
                (name + alpha * shots.sum(0)) / (1 + alpha * k)
            ),
        }
        for what, values in wrong.items():
            if _close(found, values) and not _close(found, right):
                raise Hint(f"{call} {what}")
        if not _close(found, right):
            raise Hint(f"{call} is another point than the weighted mean of name and questions.")


@exercise("10.3", "two variances say how many questions a name is worth, before any is read.")
def _worth(answer: Any) -> None:
    """Write a function `worth(x, y, names)` that estimates how many questions a name is worth.

    `x` is an (n, d) tensor of features, `y` their (n,) classes 0..m-1, `names` an (m, d) tensor.
    Estimate σ², the variance of a coordinate within its class (the squared deviations from the
    class means, over d (n - m)), and τ², the mean squared distance between a class's mean and its
    name, over d. Return σ² / τ², one number.
    """
    expect_function(answer, "worth(x, y, names)")
    m, d = 4, 3
    y = torch.arange(m).repeat_interleave(torch.tensor([3, 8, 5, 20]))
    names = 2 * torch.randn(m, d, dtype=torch.float64)
    x = names[y] + torch.randn(m, d, dtype=torch.float64)[y]
    x = x + 0.8 * torch.randn(len(y), d, dtype=torch.float64)
    order = torch.randperm(len(y))
    x, y = x[order], y[order]
    call = "worth(x, y, names)"
    found = number(ask(answer, x.clone(), y.clone(), names.clone(), call=call), call)
    means = torch.stack([x[y == c].mean(0) for c in range(m)])
    within = float((x - means[y]).square().sum())
    sigma2, tau2 = within / d / (len(y) - m), float((means - names).square().mean())
    right = sigma2 / tau2

    def is_like(value: float) -> bool:
        return abs(found - value) <= 1e-6 * abs(value)

    if is_like(1 / right):
        raise Hint(f"{call} says that a name far from its class is worth more: turn it round.")
    if is_like(right**0.5):
        raise Hint(f"{call} compared standard deviations; it is variances that are compared.")
    if is_like(within / d / len(y) / tau2):
        raise Hint(f"{call} divided by n. Each class's mean was itself fitted to its examples.")
    if is_like(right / d) or is_like(right * d):
        raise Hint(f"{call} counted the coordinates on one side only.")
    if is_like(float((x - x.mean(0)).square().sum()) / d / (len(y) - m) / tau2):
        raise Hint(f"{call} took deviations from the mean of all; the classes have their own.")
    if is_like(sigma2 / float((x - names[y]).square().mean())):
        raise Hint(f"{call} measured from the name to single questions; μ is their mean.")
    if not is_like(right):
        raise Hint(f"{call} gives {found:.3f}; look at both variances, one at a time.")


@exercise("10.4", "one sum of all directions replaces a table of all pairs.")
def _cosine(answer: Any) -> None:
    """Write a function `mean_cosine(x)`: the mean cosine over all pairs of two different rows.

    `x` is an (n, d) tensor. Return one number. With 200,000 rows there are twenty billion pairs,
    so do not look at them one by one, and make no (n, n) table.
    """
    expect_function(answer, "mean_cosine(x)")
    x = torch.randn(40, 6, dtype=torch.float64) * torch.rand(40, 1, dtype=torch.float64) + 0.5
    call = "mean_cosine(x)"
    found = number(ask(answer, x.clone(), call=call), call)
    unit = nn.functional.normalize(x, dim=1)
    n = len(x)
    right = float((unit.sum(0).square().sum() - n) / (n * (n - 1)))
    if abs(found - float(unit.sum(0).square().sum()) / n**2) < 1e-9:
        raise Hint(f"{call} counts each row as a pair with itself.")
    if abs(found - float((x @ x.T).sum() - x.square().sum()) / (n * (n - 1))) < 1e-9:
        raise Hint(f"{call} is a mean of inner products: rows of other lengths than 1 count more.")
    if abs(found - right / 2) < 1e-9 or abs(found - 2 * right) < 1e-9:
        raise Hint(f"{call} is off by a factor of 2: each pair occurs in both orders.")
    if abs(found - right) > 1e-9:
        raise Hint(f"{call} gives {found:.4f}, and the pairs taken one by one another number.")
    large = torch.randn(200_000, 8)
    result = number(ask(answer, large, call="mean_cosine, on 200,000 rows,"), call)
    if abs(result) > 0.01:
        raise Hint(f"{call} gives {result:.3f} for 200,000 random directions.")


def _tensor(found: Any, shape: tuple[int, ...], call: str) -> Tensor:
    if not isinstance(found, Tensor):
        raise Hint(f"{call} should return a tensor, but it returned {describe(found)}.")
    if tuple(found.shape) != shape:
        raise Hint(f"{call} should have the shape {shape}, found {tuple(found.shape)}.")
    return found.double()


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-6, atol=1e-9))
