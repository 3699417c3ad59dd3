"""Behaviour of ``tlhelpers.decide``: shares, thresholds, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor, nn

from tlhelpers import decide
from tlhelpers.splits import Split


def identity(x: Tensor) -> Tensor:
    return x


def made(n: int, share: float, *, seed: int = 0, name: str = "validation") -> Split:
    """Two Gaussian classes, one of them with this share; x are the logits for equal shares."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < share).astype(np.int64)
    margin = 2 * rng.normal(loc=2 * y - 1, scale=1.0)  # log p(x|1) / p(x|0) with unit variance
    x = torch.from_numpy(np.stack([np.zeros(n), margin], axis=1))
    return Split(name, x, torch.from_numpy(y), tuple(map(str, range(n))))


def rate(predictor: decide.Shifted, split: Split) -> float:
    return float((predictor(split.x).argmax(1) == split.y).double().mean())


def test_shares_by_bayes_rule() -> None:
    logits = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    trained, wanted = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    found = decide.with_shares(identity, trained=trained, wanted=wanted)(logits).softmax(1)
    joint = logits.softmax(1).numpy() / trained * wanted
    assert np.allclose(found, joint / joint.sum(1, keepdims=True), atol=1e-6)


def test_counts_do_as_well_as_shares_and_the_way_back_is_the_way_there() -> None:
    logits = torch.randn(20, 2)
    there = decide.with_shares(identity, trained=(388, 3494), wanted=(1, 1))
    back = decide.with_shares(there, trained=(0.5, 0.5), wanted=(388 / 3882, 3494 / 3882))
    assert torch.allclose(back(logits), logits, atol=1e-5)
    assert "for shares 50%/50%" in repr(there)


def test_the_right_shares_are_the_best_ones() -> None:
    split = made(40_000, 0.9)
    rates = {
        share: rate(decide.with_shares(identity, trained=(1, 1), wanted=(1 - share, share)), split)
        for share in (0.5, 0.7, 0.9, 0.99)
    }
    assert max(rates, key=rates.__getitem__) == 0.9


@pytest.mark.parametrize("criterion", decide.CRITERIA)
@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_does_better_on_the_split(criterion: str, seed: int) -> None:
    split = made(60, 0.8, seed=seed)
    split = Split(split.name, split.x.round(decimals=1), split.y, split.ids)  # with ties
    t = decide.choose_threshold(identity, split, criterion=criterion)
    measure = balanced_accuracy_score if criterion == "balanced_accuracy" else accuracy_score
    p, y = split.x.softmax(1)[:, 1].numpy(), split.y.numpy()
    best = max(measure(y, p > c) for c in [0.0, *np.unique(p)])
    predicted = decide.with_threshold(identity, t)(split.x).argmax(1)
    assert measure(y, predicted) == pytest.approx(best)
    assert ((p > t) == predicted.numpy().astype(bool)).all()


def test_with_many_examples_it_is_the_threshold_of_theory() -> None:
    split = made(200_000, 0.9)
    assert decide.choose_threshold(identity, split) == pytest.approx(0.5, abs=0.05)
    t = decide.choose_threshold(identity, split, criterion="top1")
    assert t == pytest.approx(0.1, abs=0.03)


def test_one_half_changes_nothing() -> None:
    assert decide.with_threshold(identity, 0.5).by.tolist() == [0, 0]


def test_networks_are_evaluated_in_evaluation_mode() -> None:
    network = nn.Sequential(nn.Dropout(0.9), nn.Linear(2, 2))
    split = made(40, 0.5)
    split = Split(split.name, split.x.float(), split.y, split.ids)
    first = decide.choose_threshold(network.train(), split)
    assert decide.choose_threshold(network, split) == first
    assert network.training
    shifted = decide.with_threshold(network, first)
    assert torch.equal(shifted(split.x), shifted(split.x))


def test_refusals() -> None:
    split = made(40, 0.5)
    with pytest.raises(ValueError, match="chosen on validation"):
        decide.choose_threshold(identity, made(40, 0.5, name="test"))
    with pytest.raises(ValueError, match="both classes in the validation split"):
        decide.choose_threshold(identity, made(40, 1.0))
    with pytest.raises(ValueError, match=r"two classes, \(n, 2\), found the shape \(40, 3\)"):
        decide.choose_threshold(lambda x: torch.zeros(len(x), 3), split)
    with pytest.raises(ValueError, match="criterion should be one of"):
        decide.choose_threshold(identity, split, criterion="f1")
    with pytest.raises(ValueError, match=r"between 0 and 1, found 1\.5"):
        decide.with_threshold(identity, 1.5)
    with pytest.raises(ValueError, match="of the same classes, found 2 and 3"):
        decide.with_shares(identity, trained=(1, 1), wanted=(1, 1, 1))
    with pytest.raises(ValueError, match="trained should hold shares above 0"):
        decide.with_shares(identity, trained=(0, 1), wanted=(1, 1))
    with pytest.raises(ValueError, match=r"shape \(n, 2\), found \(40, 3\)"):
        decide.with_threshold(lambda x: torch.zeros(len(x), 3), 0.4)(split.x)
