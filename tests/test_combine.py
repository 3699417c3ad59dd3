"""Soups, ensembles and features side by side: ends, averages and checks."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from test_adapt import dataset, moon_domains, moons, small_mlp, with_norm
from test_discrepancy import sample
from torch.nn import functional as F

from tlhelpers import combine, evaluate, probe
from tlhelpers.splits import Dataset


def test_soups_and_interpolations() -> None:
    first, second = (with_norm(seed).state_dict() for seed in (0, 1))
    second["1.num_batches_tracked"] += 7
    for alpha, known in ((0.0, first), (1.0, second)):
        found = combine.interpolate_states(first, second, alpha=alpha)
        for key in first:
            assert torch.equal(found[key], (first if "num" in key else known)[key])
    quarter = combine.interpolate_states(first, second, alpha=0.25)["0.weight"]
    assert torch.allclose(quarter, 0.75 * first["0.weight"] + 0.25 * second["0.weight"])
    soup = combine.average_states([first, second, second])["0.weight"]
    assert torch.allclose(soup, (first["0.weight"] + 2 * second["0.weight"]) / 3)
    weighted = combine.average_states([first, second], weights=[2, 4])["0.weight"]
    assert torch.allclose(weighted, soup)
    assert found["0.weight"].data_ptr() != second["0.weight"].data_ptr()


def test_a_soup_gets_statistics_that_fit_it() -> None:
    networks = [with_norm(seed) for seed in (0, 1)]
    state = combine.average_states([network.state_dict() for network in networks])
    x = sample(80, 2, mean=3).float()
    plain = combine.with_state(networks[0], state)
    assert all(torch.equal(v, state[k]) for k, v in plain.state_dict().items())
    repaired = combine.with_state(networks[0], state, x=x)
    hidden = F.linear(x, state["0.weight"], state["0.bias"])
    assert torch.allclose(repaired.state_dict()["1.running_mean"], hidden.mean(dim=0), atol=1e-4)
    assert torch.equal(networks[0].state_dict()["0.weight"], with_norm(0).state_dict()["0.weight"])


def test_states_that_cannot_be_averaged() -> None:
    state = small_mlp(0).state_dict()
    with pytest.raises(ValueError, match=r"4\.weight has the shapes \(2, 32\) and \(3, 32\)"):
        combine.average_states([state, small_mlp(0, outputs=3).state_dict()])
    with pytest.raises(ValueError, match="do not both have"):
        combine.average_states([state, with_norm().state_dict()])
    with pytest.raises(ValueError, match="the network and the state should be of one architecture"):
        combine.with_state(with_norm(), state)
    with pytest.raises(ValueError, match="at least one"):
        combine.average_states([])
    with pytest.raises(ValueError, match="2 numbers, 0 or larger"):
        combine.average_states([state, state], weights=[1, -1])
    with pytest.raises(ValueError, match=r"alpha should lie in 0\.\.1"):
        combine.interpolate_states(state, state, alpha=1.5)
    spoilt = {key: value * math.nan for key, value in state.items()}
    with pytest.raises(ValueError, match="of state 1 holds NaN"):
        combine.average_states([state, spoilt])


def test_an_ensemble_averages_probabilities() -> None:
    networks = [with_norm(seed).train() for seed in (0, 1)]
    x = sample(10, 2).float()
    answers = [copy.deepcopy(network).eval()(x).softmax(dim=1) for network in networks]
    both = combine.ensemble(networks)
    assert torch.allclose(both(x).exp(), (answers[0] + answers[1]) / 2, atol=1e-6)
    assert all(network.training for network in networks)
    weighted = combine.ensemble([networks[0], lambda x: answers[1].log()], weights=[3, 1])
    assert torch.allclose(weighted(x).exp(), 0.75 * answers[0] + 0.25 * answers[1], atol=1e-6)
    assert repr(weighted) == "ensemble of 2 predictors, with the weights 0.75, 0.25"
    pair = moon_domains()
    assert evaluate.report(both, pair.test, name="ensemble", resamples=2).n == 100


def test_ensembles_that_cannot_be_meant() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="logits of one shape"):
        combine.ensemble([small_mlp(0), small_mlp(0, outputs=3)])(x)
    with pytest.raises(ValueError, match="at least one member"):
        combine.ensemble([])
    with pytest.raises(TypeError, match="found str"):
        combine.ensemble(["a"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="1 numbers above 0"):
        combine.ensemble([small_mlp(0)], weights=[0])


def test_features_side_by_side() -> None:
    first = moons(200, degrees=0, seed=0, name="a")
    second = dataset(
        sample(200, 3, mean=5, scale=100, seed=1).float(), first.labels, name="b", held=50
    )
    with pytest.raises(ValueError, match="not of the same examples"):
        combine.concatenate([first, second])
    second = Dataset(**{**vars(second), "ids": first.ids})
    both = combine.concatenate([first, second])
    assert both.name == "a + b"
    assert both.x.shape == (200, 5)
    variances = both.train.x.var(dim=0, correction=0)
    assert float(variances[:2].sum()) == pytest.approx(1)
    assert float(variances[2:].sum()) == pytest.approx(1, abs=1e-5)
    assert both.train.x.mean(dim=0).numpy() == pytest.approx(np.zeros(5), abs=1e-5)
    fitted = probe.fit(both, ridge=0.01, scale="common")
    evaluate.report(fitted, both.test, name="both", resamples=2)
    assert first.test.readings == ("both",)


def test_features_that_cannot_stand_side_by_side() -> None:
    data = moons(80, degrees=0, seed=0, name="a")
    images = dataset(torch.zeros(80, 1, 8, 8), data.labels, name="a", held=20)
    with pytest.raises(TypeError, match=r"features\.extract"):
        combine.concatenate([data, images])
    with pytest.raises(ValueError, match="constant"):
        combine.concatenate([dataset(torch.ones(80, 2), data.labels, name="a", held=20)])
    with pytest.raises(ValueError, match="nothing to concatenate"):
        combine.concatenate([])
