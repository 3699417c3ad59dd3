"""Distances between samples: definitions, known answers, and tests that keep their level."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tlhelpers import adapt, discrepancy, reweight


def sample(n: int, d: int, *, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Independent normal features in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, d, generator=generator, dtype=torch.float64)


ON_TWO_SAMPLES: dict[str, Any] = {
    "mmd_squared": discrepancy.mmd_squared,
    "median_heuristic": discrepancy.median_heuristic,
    "mmd_test": discrepancy.mmd_test,
    "coral_distance": discrepancy.coral_distance,
    "proxy_a_distance": discrepancy.proxy_a_distance,
    "coral": adapt.coral,
    "importance_weights": reweight.importance_weights,
}


@pytest.mark.parametrize("name", ON_TWO_SAMPLES)
def test_samples_that_cannot_be_meant(name: str) -> None:
    function, good = ON_TWO_SAMPLES[name], sample(20, 3)
    spoilt = good.clone()
    spoilt[1, 1] = math.inf
    for bad, sentence in (
        (spoilt, "target features should be finite, but 1 of 20 rows"),
        (good[:0], "target features should be of 2 examples or more, found 0"),
        (good[:, 0], r"shape \(n, d\), found \(20,\)"),
        (good[:, :2], "same width, found 3 and 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            function(good, bad)


def mmd_by_definition(a: Tensor, b: Tensor, widths: tuple[float, ...], unbiased: bool) -> float:
    def k(x: Tensor, y: Tensor) -> float:
        squared = float((x - y).square().sum())
        return float(np.mean([math.exp(-squared / (2 * w**2)) for w in widths]))

    def inside(z: Tensor) -> float:
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j or not unbiased]
        return sum(k(z[i], z[j]) for i, j in pairs) / len(pairs)

    across = sum(k(x, y) for x in a for y in b) / (len(a) * len(b))
    return inside(a) + inside(b) - 2 * across


@pytest.mark.parametrize("unbiased", [False, True])
def test_mmd_by_its_definition(unbiased: bool) -> None:
    a, b, widths = sample(7, 3), sample(5, 3, mean=0.5, seed=1), (0.5, 2.0)
    found = discrepancy.mmd_squared(a, b, bandwidths=widths, unbiased=unbiased)
    assert float(found) == pytest.approx(mmd_by_definition(a, b, widths, unbiased), abs=1e-12)


def test_mmd_of_identical_samples() -> None:
    x = sample(30, 4)
    assert float(discrepancy.mmd_squared(x, x)) == pytest.approx(0, abs=1e-14)
    assert float(discrepancy.mmd_squared(x, x.flip(0))) == pytest.approx(0, abs=1e-14)
    assert float(discrepancy.mmd_squared(x, x, unbiased=True)) < 0  # without the self-similarities


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_mmd_of_two_normal_distributions(shift: float) -> None:
    """E k(x, y) is a Gaussian integral: the estimate without bias is right on average."""
    d, width, repetitions = 2, 1.5, 60
    inside = (width**2 / (width**2 + 2)) ** (d / 2)
    known = 2 * inside * (1 - math.exp(-(d * shift**2) / (2 * (width**2 + 2))))
    means = {}
    for unbiased in (True, False):
        found = [
            float(
                discrepancy.mmd_squared(
                    sample(40, d, seed=2 * i),
                    sample(60, d, mean=shift, seed=2 * i + 1),
                    bandwidths=[width],
                    unbiased=unbiased,
                )
            )
            for i in range(repetitions)
        ]
        means[unbiased] = np.mean(found), 4 * np.std(found) / math.sqrt(repetitions)
    assert means[True][0] == pytest.approx(known, abs=means[True][1])
    bias = (1 - inside) * (1 / 40 + 1 / 60)
    assert means[False][0] == pytest.approx(known + bias, abs=means[False][1])


def test_the_median_heuristic_is_the_median_distance() -> None:
    a, b = sample(9, 3), sample(6, 3, mean=2, seed=1)
    distances = torch.pdist(torch.cat([a, b])).numpy()
    found = discrepancy.median_heuristic(a, b, factors=(1, 3))
    assert found == pytest.approx((np.median(distances), 3 * np.median(distances)))
    with pytest.raises(ValueError, match="half of all pairs are of equal examples"):
        discrepancy.median_heuristic(torch.ones(4, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="bandwidths should be"):
        discrepancy.mmd_squared(a, b, bandwidths=[1.0, 0.0])


def test_gradients_of_the_distances() -> None:
    b = sample(6, 3, mean=1, seed=1)
    for distance in (
        lambda x: discrepancy.mmd_squared(x, b, bandwidths=[1.0]),
        lambda x: discrepancy.coral_distance(x, b),
    ):
        assert torch.autograd.gradcheck(distance, sample(5, 3).requires_grad_())
    equal = torch.ones(4, 3, requires_grad=True)  # where a distance has no derivative
    discrepancy.mmd_squared(equal, b.float(), bandwidths=[1.0]).backward()
    assert equal.grad is not None
    assert equal.grad.isfinite().all()


def test_the_permutation_test_finds_a_shift_and_keeps_its_level() -> None:
    shifted = discrepancy.mmd_test(sample(60, 3), sample(50, 3, mean=0.8, seed=1), permutations=200)
    assert shifted.p_value == pytest.approx(1 / 201)
    assert "p = 0.00498" in repr(shifted)
    p_values = [
        discrepancy.mmd_test(
            sample(12, 2, seed=2 * i), sample(15, 2, seed=2 * i + 1), permutations=99
        )
        for i in range(200)
    ]
    below = np.mean([test.p_value <= 0.2 for test in p_values])
    assert below == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 200))


def test_the_statistics_of_the_permutations_are_mmds() -> None:
    a, b, widths = sample(6, 2), sample(4, 2, mean=1, seed=1), (1.0,)
    test = discrepancy.mmd_test(a, b, bandwidths=widths, permutations=20, seed=3)
    z = torch.cat([a, b])
    orders = torch.rand(20, 10, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    known = [
        float(discrepancy.mmd_squared(z[o[:6]], z[o[6:]], bandwidths=widths, unbiased=True))
        for o in orders
    ]
    assert test.null == pytest.approx(known)
    assert test.mmd_squared == pytest.approx(mmd_by_definition(a, b, widths, True))
    with pytest.raises(ValueError, match="1 permutation or more"):
        discrepancy.mmd_test(a, b, permutations=0)


def test_coral_distance_by_its_definition() -> None:
    a, b = sample(20, 3), sample(15, 3, scale=2, seed=1)
    gap = np.cov(a.numpy().T) - np.cov(b.numpy().T)
    known = np.linalg.norm(gap) ** 2 / (4 * 3**2)
    assert float(discrepancy.coral_distance(a, b)) == pytest.approx(known)


def test_proxy_a_distance_from_equal_to_separable() -> None:
    same = [
        discrepancy.proxy_a_distance(sample(200, 3, seed=2 * i), sample(200, 3, seed=2 * i + 1))
        for i in range(10)
    ]
    assert np.mean(same) == pytest.approx(0, abs=0.15)
    assert discrepancy.proxy_a_distance(sample(200, 3), sample(60, 3, mean=9, seed=1)) == 2
    # Two normal distributions a distance of 2 apart are told apart with the error Φ(−1).
    known = 2 * (1 - 2 * 0.1587)
    between = discrepancy.proxy_a_distance(sample(2000, 1), sample(1000, 1, mean=2, seed=1))
    assert between == pytest.approx(known, abs=0.1)


def test_folds_and_ridges_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match=r"folds should lie in 2\.\.3"):
        discrepancy.proxy_a_distance(sample(9, 2), sample(3, 2))
    for function in (discrepancy.proxy_a_distance, reweight.importance_weights, adapt.coral):
        with pytest.raises(ValueError, match="ridge should be"):
            function(sample(9, 2), sample(9, 2), ridge=0)


def test_the_losses_of_adaptation_are_offered_there_too() -> None:
    assert adapt.mmd_squared is discrepancy.mmd_squared
    assert adapt.coral_distance is discrepancy.coral_distance
