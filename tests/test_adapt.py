"""Domain adaptation: each method against a small case whose answer is known."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from test_discrepancy import sample
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers import adapt, discrepancy, evaluate, models
from tlhelpers.adapt import Plan
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

RUN = Run()


def dataset(
    x: Tensor, labels: Tensor, *, name: str = "data", held: int = 40, classes: int | None = None
) -> Dataset:
    """The last ``2 * held`` examples are for validation and test."""
    n = len(x)
    names = tuple("abcdefghij"[: int(labels.max()) + 1 if classes is None else classes])
    return Dataset(
        name=name,
        classes=names,
        x=x,
        labels=labels,
        split=np.repeat(["train", "validation", "test"], [n - 2 * held, held, held]),
        ids=tuple(f"{name} {i}" for i in range(n)),
        split_name="in order",
    )


def moons(n: int, *, degrees: float, seed: int, name: str) -> Dataset:
    """Two interleaved half circles, turned about the origin."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    angle = math.pi * torch.rand(n, generator=generator)
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    x = torch.where(labels[:, None] == 1, torch.tensor([1.0, 0.5]) - x, x)
    x = x - torch.tensor([0.5, 0.25]) + 0.05 * torch.randn(n, 2, generator=generator)
    turn = math.radians(degrees)
    rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return dataset(x @ rotation, labels, name=name, held=n // 4)


def moon_domains(seed: int = 0, *, degrees: float = 35.0, n: int = 400) -> adapt.Domains:
    source = moons(n, degrees=0, seed=2 * seed, name="upright")
    return adapt.domains(source, moons(n, degrees=degrees, seed=2 * seed + 1, name="turned"))


def blobs(n: int, *, offset: float, seed: int, name: str) -> Dataset:
    """Two classes, told apart by a clean coordinate, which is offset, and by a noisy one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    spread = torch.randn(n, 2, generator=generator) * torch.tensor([0.5, 0.2])
    x = 2.0 * labels[:, None] - 1 + spread + torch.tensor([0.0, offset])
    return dataset(x, labels, name=name, held=n // 4)


def blob_domains(seed: int = 0) -> adapt.Domains:
    """Who learns from the clean coordinate sees but one class in the target."""
    source = blobs(400, offset=0.0, seed=2 * seed, name="here")
    return adapt.domains(source, blobs(400, offset=3.0, seed=2 * seed + 1, name="there"))


def small_mlp(seed: int, *, inputs: int = 2, outputs: int = 2, width: int = 32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, outputs),
        )


def with_norm(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
        )


def top1(network: nn.Module, pair: adapt.Domains) -> float:
    return evaluate.report(network, pair.test, name="a test", resamples=2).top1.value


# The pair of domains


def test_the_targets_labels_are_out_of_reach() -> None:
    pair = moon_domains()
    with pytest.raises(AttributeError, match=r"out of reach.*inputs alone"):
        _ = pair.target.y
    assert not hasattr(pair.target, "y")
    assert len(pair.target) == 200
    assert repr(pair) == (
        "upright (200 labelled) → turned (200 without labels; test 100), 2 classes"
    )


def test_the_oracle_is_validation_unless_the_test_split_is_opened() -> None:
    target = moons(80, degrees=35, seed=1, name="turned")
    source = moons(80, degrees=0, seed=0, name="upright")
    assert adapt.domains(source, target).oracle.name == "validation"
    assert target.test.readings == ()
    opened = target.test.open(reason="as published tables do")
    assert adapt.domains(source, target, oracle=opened).oracle.name == "test"
    assert target.test.readings == ("as published tables do",)


def broken(part: str) -> tuple[Dataset, Dataset]:
    """A pair with one thing wrong."""
    source, target = (moons(80, degrees=0, seed=s, name=n) for s, n in ((0, "S"), (1, "T")))
    x, y = target.x.clone(), target.labels
    if part == "nan":
        x[3] = math.nan
        target = dataset(x, y, name="T", held=20)
    elif part == "bytes":
        target = dataset(x.to(torch.uint8), y, name="T", held=20)
    elif part == "shape":
        target = dataset(torch.cat([x, x], dim=1), y, name="T", held=20)
    elif part == "classes":
        target = dataset(x, torch.arange(80) % 3, name="T", held=20)
    elif part == "one class":
        source, target = (dataset(x, torch.zeros(80, dtype=torch.int64), held=20),) * 2
    elif part == "no validation":
        source = dataset(source.x, source.labels, held=0)
    return source, target


@pytest.mark.parametrize(
    ("part", "error", "sentence"),
    [
        ("nan", ValueError, "T: 1 of 40 examples hold NaN"),
        ("bytes", TypeError, "floating-point tensor, found torch.uint8"),
        ("shape", ValueError, "one shape"),
        ("classes", ValueError, "same classes in the same order, found a, b and a, b, c"),
        ("one class", ValueError, "2 classes or more"),
        ("no validation", ValueError, "data, validation is empty"),
    ],
)
def test_pairs_that_cannot_be_meant(part: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        adapt.domains(*broken(part))


def test_labels_of_the_target_are_refused() -> None:
    source, target = broken("")
    pair = adapt.domains(source, target)
    with pytest.raises(TypeError, match="must come without labels, found Split"):
        adapt.Domains(source, target.train, target.validation, target.test)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"adapt\.domains\(source, target\)"):
        adapt.fit(small_mlp(0), target)  # type: ignore[arg-type]
    for given in (target.train, target, pair, pair.target):
        with pytest.raises(TypeError, match=r"target features: inputs alone.*Give its x"):
            adapt.coral(source.x, given)
    with pytest.raises(TypeError, match="look like inputs and labels"):
        discrepancy.mmd_squared(source.x, (target.x, target.labels))
    with pytest.raises(TypeError, match="inputs alone"):
        adapt.adapt_batchnorm(with_norm(), target.train)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs alone"):
        adapt.pseudo_labels(with_norm(), target.train)  # type: ignore[arg-type]


# A remedy on features


def test_coral_moves_mean_and_covariance_to_the_targets() -> None:
    mixing = sample(4, 4, seed=5)
    source, target = sample(300, 4, scale=2) @ mixing, sample(200, 4, mean=3, seed=1)
    moved = adapt.coral(source, target, ridge=1e-9)
    assert moved.mean(dim=0).numpy() == pytest.approx(target.mean(dim=0).numpy())
    assert np.cov(moved.numpy().T) == pytest.approx(np.cov(target.numpy().T), abs=1e-6)
    # With the paper's λ = 1, on centred samples, its formula.
    source, target = source - source.mean(dim=0), target - target.mean(dim=0)
    eye = np.eye(4)

    def power(matrix: np.ndarray, exponent: float) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return vectors @ np.diag(values**exponent) @ vectors.T

    whiten = power(np.cov(source.numpy().T) + eye, -0.5)
    known = source.numpy() @ whiten @ power(np.cov(target.numpy().T) + eye, 0.5)
    assert adapt.coral(source, target, ridge=1).numpy() == pytest.approx(known)


def test_coral_with_fewer_examples_than_features() -> None:
    moved = adapt.coral(sample(5, 20).float(), sample(8, 20, seed=1).float())
    assert moved.dtype == torch.float32
    assert moved.isfinite().all()


def test_a_remedy_is_measured_on_examples_that_it_has_not_seen() -> None:
    source, target = sample(200, 20), sample(200, 20, mean=1, seed=1)
    moved = adapt.coral(source, target)
    fresh = [
        discrepancy.proxy_a_distance(moved, sample(200, 20, mean=1, seed=i)) for i in range(2, 12)
    ]
    assert np.mean(fresh) == pytest.approx(0, abs=0.15)
    assert discrepancy.proxy_a_distance(moved, target) < -0.3


# Parts of methods on networks


def test_the_gradient_is_reversed_and_scaled() -> None:
    x = sample(5, 3).requires_grad_()
    reversed_ = adapt.reverse_gradient(x, 0.7)
    assert torch.equal(reversed_, x)
    direction = sample(5, 3, seed=1)
    (reversed_ * direction).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, -0.7 * direction)


def test_one_backward_pass_serves_both_players() -> None:
    """The critic's gradient is that of its loss, the features' is minus the strength times it."""
    features, weight = sample(6, 3).requires_grad_(), sample(3, 1, seed=1).requires_grad_()
    domain = torch.tensor([0.0, 0, 0, 1, 1, 1], dtype=torch.float64)[:, None]

    def gradients(x: Tensor) -> tuple[Tensor, ...]:
        loss = F.binary_cross_entropy_with_logits(x @ weight, domain)
        return torch.autograd.grad(loss, [features, weight])

    plain = gradients(features)
    played = gradients(adapt.reverse_gradient(features, 0.3))
    assert torch.allclose(played[0], -0.3 * plain[0])
    assert torch.allclose(played[1], plain[1])


def test_the_ramp_rises_from_none_to_all() -> None:
    values = [adapt.ramp(p) for p in np.linspace(0, 1, 11)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] == pytest.approx(math.tanh(5))  # the same curve by another name
    assert adapt.ramp(0.1, gamma=1) < adapt.ramp(0.1)


def test_batchnorm_takes_the_statistics_of_other_examples() -> None:
    network = with_norm()
    x = sample(90, 2, mean=4, scale=3).float()
    before = copy.deepcopy(network.state_dict())
    adapted = adapt.adapt_batchnorm(network, x, batch_size=1000)
    hidden = network[0](x)  # type: ignore[index]
    norm = adapted[1]  # type: ignore[index]
    assert torch.allclose(norm.running_mean, hidden.mean(dim=0), atol=1e-4)
    assert torch.allclose(norm.running_var, hidden.var(dim=0), rtol=1e-4)
    assert norm.momentum == 0.1
    assert not any(part.training for part in adapted.modules())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, adapted.state_dict()[key])
    odd = adapt.adapt_batchnorm(network, x[:3], batch_size=2)[1]  # type: ignore[index]
    assert torch.allclose(odd.running_mean, network[0](x[:3]).mean(dim=0), atol=1e-4)  # type: ignore[index]
    parts = adapt.adapt_batchnorm(network, x, batch_size=40)[1]  # type: ignore[index]
    means = [part.mean(dim=0) for part in hidden.tensor_split(3)]
    assert torch.allclose(parts.running_mean, torch.stack(means).mean(dim=0), atol=1e-4)


def test_batchnorm_of_a_frozen_network_can_be_adapted() -> None:
    network = models.freeze(with_norm())
    x = sample(50, 2, mean=4).float()
    adapted = adapt.adapt_batchnorm(network, x)
    assert not torch.equal(adapted.state_dict()["1.running_mean"], torch.zeros(8))
    assert torch.equal(network.state_dict()["1.running_mean"], torch.zeros(8))


def test_batchnorm_that_cannot_be_adapted() -> None:
    with pytest.raises(ValueError, match="no BatchNorm layer"):
        adapt.adapt_batchnorm(small_mlp(0), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="2 examples or more, found 1 examples"):
        adapt.adapt_batchnorm(with_norm(), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="x is empty"):
        adapt.adapt_batchnorm(with_norm(), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="NaN"):
        adapt.adapt_batchnorm(with_norm(), torch.full((4, 2), math.nan))


def test_pseudo_labels_are_given_where_the_network_is_sure() -> None:
    network = nn.Identity()
    x = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.05, 0.95]]).log()
    rows, labels = adapt.pseudo_labels(network, x, threshold=0.8)
    assert rows.tolist() == [0, 2]
    assert labels.tolist() == [0, 1]
    assert len(adapt.pseudo_labels(network, x, threshold=0.99)[0]) == 0
    with pytest.raises(ValueError, match="a probability"):
        adapt.pseudo_labels(network, x, threshold=2)


# Training

QUICK = {"steps": 30, "batch_size": 32, "evaluations": 3}


@pytest.mark.parametrize("method", adapt.METHODS)
def test_every_method_runs_and_records(method: str) -> None:
    pair, network = moon_domains(), with_norm()
    before = copy.deepcopy(network.state_dict())
    global_state = torch.get_rng_state()
    result = adapt.fit(network, pair, Plan(method=method, threshold=0.5, **QUICK), RUN)
    again = adapt.fit(network, pair, Plan(method=method, threshold=0.5, **QUICK), RUN)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    for choice in adapt.CHOICES:
        first, second = (r.networks[choice].state_dict() for r in (result, again))
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert not result.networks[choice].training
    history = result.history
    assert history["step"].tolist() == [10, 20, 30]
    columns = ["source_loss", "source_validation_loss", "source_validation_top1", "oracle_top1"]
    assert np.isfinite(history[columns].to_numpy()).all()
    adds = method not in ("source_only", "batchnorm")
    assert np.isfinite(history["domain_loss"].iloc[-1]) == adds
    assert (history["weight"].iloc[-1] > 0) == adds
    assert (history["pseudo_labelled"].iloc[-1] > 0) == (method == "self_training")
    assert method in repr(result)
    assert "oracle examples" in repr(result)
    other = adapt.fit(network, pair, Plan(method=method, **QUICK), Run(seed=1))
    assert not history["source_loss"].equals(other.history["source_loss"])


def test_the_choices_are_the_best_rows_of_their_columns() -> None:
    result = adapt.fit(small_mlp(0), pair := moon_domains(), Plan(method="dann", lr=0.01), RUN)
    history, rows = result.history, result.rows
    assert len(history) == 20
    assert rows["last"] == 19
    top = history["source_validation_top1"]
    best = history[top == top.max()]["source_validation_loss"].idxmin()
    assert rows["source"] == best
    assert rows["oracle"] == history["oracle_top1"].idxmax()
    for choice, network in result.networks.items():
        found = evaluate.validate(network, pair.oracle, resamples=2).value
        assert found == pytest.approx(history["oracle_top1"][rows[choice]])
    assert result.choices().loc["oracle", "oracle_top1"] == history["oracle_top1"].max()
    assert result.network is result.networks["source"]
    assert pair.test.readings == ()


def test_the_oracles_labels_decide_nothing_but_the_oracles_choice() -> None:
    pair = moon_domains()
    oracle = pair.oracle
    flipped = type(oracle)(oracle.name, oracle.x, 1 - oracle.y, oracle.ids)
    other = adapt.Domains(pair.source, pair.target, flipped, pair.test)
    plan = Plan(method="self_training", threshold=0.6, **QUICK)
    a, b = (adapt.fit(small_mlp(0), p, plan, RUN) for p in (pair, other))
    for choice in ("source", "last"):
        first, second = (r.networks[choice].state_dict() for r in (a, b))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_source_only_never_sees_the_target() -> None:
    pair = moon_domains()
    away = adapt.Unlabelled("elsewhere", pair.target.x + 1000, pair.target.ids)
    other = adapt.Domains(pair.source, away, pair.oracle, pair.test)
    plan = Plan(method="source_only", **QUICK)
    a, b = (adapt.fit(with_norm(), p, plan, RUN).networks["last"] for p in (pair, other))
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_a_penalty_without_weight_is_no_penalty() -> None:
    pair = moon_domains()
    domain_blind = [
        adapt.fit(small_mlp(0), pair, Plan(method=method, weight=0.0, **QUICK), RUN)
        for method in ("coral", "mmd")
    ]
    first, second = (r.networks["last"].state_dict() for r in domain_blind)
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)


@pytest.mark.parametrize("method", ["coral", "mmd"])
def test_alignment_brings_the_features_together(method: str) -> None:
    pair, distance = blob_domains(), {}
    measure = discrepancy.coral_distance if method == "coral" else discrepancy.mmd_squared
    for name in ("source_only", method):
        result = adapt.fit(small_mlp(0), pair, Plan(method=name, lr=0.01), RUN)
        body = result.networks["last"][:-1]  # type: ignore[index]
        with torch.no_grad():
            features = [body(x) for x in (pair.source.validation.x, pair.target.x)]
        scale = torch.cat(features).std()  # to shrink all features is no merit
        distance[name] = float(measure(*(h / scale for h in features)))
    assert distance[method] < 0.6 * distance["source_only"]


@pytest.mark.parametrize("method", ["dann", "mmd"])
def test_aligned_networks_rely_on_what_both_domains_share(method: str) -> None:
    gains = []
    for seed in range(3):
        pair, found = blob_domains(seed), {}
        for name in ("source_only", method):
            plan = Plan(method=name, lr=0.01, evaluations=1)
            network = adapt.fit(small_mlp(seed), pair, plan, Run(seed=seed)).networks["last"]
            found[name] = top1(network, pair)
        assert found["source_only"] < 0.6
        gains.append(found[method] - found["source_only"])
    assert np.mean(gains) > 0.2
    assert min(gains) > -0.05


def test_batchnorm_undoes_a_change_of_contrast() -> None:
    """The target is the source, brighter and with more contrast: new statistics undo it."""
    source = moons(400, degrees=0, seed=0, name="upright")
    target = moons(400, degrees=0, seed=1, name="bright")
    target = dataset(5 * target.x + 10, target.labels, name="bright", held=100)
    pair, found = adapt.domains(source, target), {}
    norm_first = nn.Sequential(nn.BatchNorm1d(2), small_mlp(0))
    for method in ("source_only", "batchnorm"):
        plan = Plan(method=method, steps=300, lr=0.01, evaluations=4)
        result = adapt.fit(norm_first, pair, plan, RUN)
        found[method] = top1(result.network, pair)
        assert result.history["source_validation_top1"].max() > 0.95
    assert found["batchnorm"] > 0.95
    assert found["source_only"] < 0.85


def test_self_training_follows_a_moderate_turn() -> None:
    gains = []
    for seed in range(3):
        pair, found = moon_domains(seed, degrees=25), {}
        for method in ("source_only", "self_training"):
            plan = Plan(method=method, steps=600, lr=0.01, rounds=5, evaluations=1)
            network = adapt.fit(small_mlp(seed), pair, plan, Run(seed=seed)).networks["last"]
            found[method] = top1(network, pair)
        gains.append(found["self_training"] - found["source_only"])
    assert np.mean(gains) > 0


def test_self_training_without_a_sure_example_is_source_only() -> None:
    plan = Plan(method="self_training", threshold=1.0, lr=1e-4, **QUICK)
    history = adapt.fit(small_mlp(0), moon_domains(), plan, RUN).history
    assert (history["pseudo_labelled"] == 0).all()
    assert (history["weight"] == 0).all()
    assert history["domain_loss"].isna().all()


def test_the_loss_of_pseudo_labels_is_a_mean_over_the_steps_that_have_them() -> None:
    settings: dict[str, Any] = {"method": "self_training", "steps": 8, "rounds": 1}
    step_by_step, at_the_end = (
        adapt.fit(
            small_mlp(0),
            moon_domains(),
            Plan(threshold=0.5, evaluations=evaluations, **settings),
            RUN,
        ).history["domain_loss"]
        for evaluations in (8, 1)
    )
    assert step_by_step.isna().tolist() == [True] * 4 + [False] * 4
    assert at_the_end.item() == pytest.approx(step_by_step.mean())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "magic"}, "method must be one of source_only, batchnorm"),
        ({"steps": 0}, "steps must be a whole number, 1 or larger"),
        ({"batch_size": 1}, "batch_size must be a whole number, 2 or larger"),
        ({"lr": math.nan}, "lr must be above 0"),
        ({"threshold": 1.5}, "threshold must be a probability"),
        ({"weight": -1.0, "method": "mmd"}, "weight must be 0 or larger"),
        ({"weight": 1.0, "method": "source_only"}, "weight must be 0 or larger, or None; None for"),
        (
            {"method": "self_training", "steps": 3, "rounds": 3},
            "steps must be more than the number of rounds, 3",
        ),
    ],
)
def test_plans_that_cannot_be_meant(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"Plan: {sentence}"):
        Plan(**settings)


def test_networks_that_cannot_be_trained() -> None:
    pair = moon_domains()
    with pytest.raises(ValueError, match=r"logits of shape \(2, 2\).*found \(2, 3\)"):
        adapt.fit(small_mlp(0, outputs=3), pair, Plan(**QUICK), RUN)
    with pytest.raises(ValueError, match="nothing but a head"):
        adapt.fit(nn.Linear(2, 2), pair, Plan(method="dann", **QUICK), RUN)
    with pytest.raises(ValueError, match="no BatchNorm layer"):
        adapt.fit(small_mlp(0), pair, Plan(method="batchnorm", **QUICK), RUN)
    with pytest.raises(FloatingPointError, match="NaN or infinite by step"):
        adapt.fit(small_mlp(0), pair, Plan(lr=1e30, **QUICK), RUN)
    assert Plan().as_dict()["method"] == "source_only"
