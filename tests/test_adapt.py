"""Domain adaptation: each method against a small case whose answer is known."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers import adapt, evaluate, models, probe
from tlhelpers.adapt import Plan
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

RUN = Run()


def sample(n: int, d: int, *, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Independent normal features in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, d, generator=generator, dtype=torch.float64)


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
        adapt.mmd_squared(source.x, (target.x, target.labels))
    with pytest.raises(TypeError, match="inputs alone"):
        adapt.adapt_batchnorm(with_norm(), target.train)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs alone"):
        adapt.pseudo_labels(with_norm(), target.train)  # type: ignore[arg-type]


# Distances between samples

ON_TWO_SAMPLES: dict[str, Any] = {
    "mmd_squared": adapt.mmd_squared,
    "median_heuristic": adapt.median_heuristic,
    "mmd_test": adapt.mmd_test,
    "coral_distance": adapt.coral_distance,
    "coral": adapt.coral,
    "proxy_a_distance": adapt.proxy_a_distance,
    "importance_weights": adapt.importance_weights,
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
    found = adapt.mmd_squared(a, b, bandwidths=widths, unbiased=unbiased)
    assert float(found) == pytest.approx(mmd_by_definition(a, b, widths, unbiased), abs=1e-12)


def test_mmd_of_identical_samples() -> None:
    x = sample(30, 4)
    assert float(adapt.mmd_squared(x, x)) == pytest.approx(0, abs=1e-14)
    assert float(adapt.mmd_squared(x, x.flip(0))) == pytest.approx(0, abs=1e-14)
    assert float(adapt.mmd_squared(x, x, unbiased=True)) < 0  # without the self-similarities


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
                adapt.mmd_squared(
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
    found = adapt.median_heuristic(a, b, factors=(1, 3))
    assert found == pytest.approx((np.median(distances), 3 * np.median(distances)))
    with pytest.raises(ValueError, match="half of all pairs are of equal examples"):
        adapt.median_heuristic(torch.ones(4, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="bandwidths should be"):
        adapt.mmd_squared(a, b, bandwidths=[1.0, 0.0])


def test_gradients_of_the_distances() -> None:
    b = sample(6, 3, mean=1, seed=1)
    for distance in (
        lambda x: adapt.mmd_squared(x, b, bandwidths=[1.0]),
        lambda x: adapt.coral_distance(x, b),
    ):
        assert torch.autograd.gradcheck(distance, sample(5, 3).requires_grad_())
    equal = torch.ones(4, 3, requires_grad=True)  # where a distance has no derivative
    adapt.mmd_squared(equal, b.float(), bandwidths=[1.0]).backward()
    assert equal.grad is not None
    assert equal.grad.isfinite().all()


def test_the_permutation_test_finds_a_shift_and_keeps_its_level() -> None:
    shifted = adapt.mmd_test(sample(60, 3), sample(50, 3, mean=0.8, seed=1), permutations=200)
    assert shifted.p_value == pytest.approx(1 / 201)
    assert "p = 0.00498" in repr(shifted)
    p_values = [
        adapt.mmd_test(sample(12, 2, seed=2 * i), sample(15, 2, seed=2 * i + 1), permutations=99)
        for i in range(200)
    ]
    below = np.mean([test.p_value <= 0.2 for test in p_values])
    assert below == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 200))


def test_the_statistics_of_the_permutations_are_mmds() -> None:
    a, b, widths = sample(6, 2), sample(4, 2, mean=1, seed=1), (1.0,)
    test = adapt.mmd_test(a, b, bandwidths=widths, permutations=20, seed=3)
    z = torch.cat([a, b])
    orders = torch.rand(20, 10, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    known = [
        float(adapt.mmd_squared(z[o[:6]], z[o[6:]], bandwidths=widths, unbiased=True))
        for o in orders
    ]
    assert test.null == pytest.approx(known)
    assert test.mmd_squared == pytest.approx(mmd_by_definition(a, b, widths, True))
    with pytest.raises(ValueError, match="1 permutation or more"):
        adapt.mmd_test(a, b, permutations=0)


def test_coral_distance_by_its_definition() -> None:
    a, b = sample(20, 3), sample(15, 3, scale=2, seed=1)
    gap = np.cov(a.numpy().T) - np.cov(b.numpy().T)
    known = np.linalg.norm(gap) ** 2 / (4 * 3**2)
    assert float(adapt.coral_distance(a, b)) == pytest.approx(known)


def test_proxy_a_distance_from_equal_to_separable() -> None:
    same = [
        adapt.proxy_a_distance(sample(200, 3, seed=2 * i), sample(200, 3, seed=2 * i + 1))
        for i in range(10)
    ]
    assert np.mean(same) == pytest.approx(0, abs=0.15)
    assert adapt.proxy_a_distance(sample(200, 3), sample(60, 3, mean=9, seed=1)) == 2
    # Two normal distributions a distance of 2 apart are told apart with the error Φ(−1).
    known = 2 * (1 - 2 * 0.1587)
    between = adapt.proxy_a_distance(sample(2000, 1), sample(1000, 1, mean=2, seed=1))
    assert between == pytest.approx(known, abs=0.1)


def test_a_remedy_is_measured_on_examples_that_it_has_not_seen() -> None:
    source, target = sample(200, 20), sample(200, 20, mean=1, seed=1)
    moved = adapt.coral(source, target)
    fresh = [adapt.proxy_a_distance(moved, sample(200, 20, mean=1, seed=i)) for i in range(2, 12)]
    assert np.mean(fresh) == pytest.approx(0, abs=0.15)
    assert adapt.proxy_a_distance(moved, target) < -0.3


def test_folds_and_ridges_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match=r"folds should lie in 2\.\.3"):
        adapt.proxy_a_distance(sample(9, 2), sample(3, 2))
    with pytest.raises(ValueError, match="ridge should be"):
        adapt.importance_weights(sample(9, 2), sample(9, 2), ridge=0)
    with pytest.raises(ValueError, match="ridge should be"):
        adapt.coral(sample(9, 2), sample(9, 2), ridge=0)


# Remedies on features


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


def test_importance_weights_are_the_density_ratio() -> None:
    source, target = sample(3000, 1), sample(1500, 1, mean=1, seed=1)
    weights = adapt.importance_weights(source, target)
    known = (source[:, 0] - 0.5).exp()  # of two normal distributions with variance 1
    assert weights.values.numpy() == pytest.approx(known.numpy(), rel=0.25)
    mean = float((weights.values * source[:, 0]).sum() / weights.values.sum())
    assert mean == pytest.approx(1, abs=0.15)
    assert weights.told_apart == pytest.approx(0.76, abs=0.03)  # Φ(1 / √2)
    assert weights.effective < 0.6 * len(source)
    assert weights.flattened(0).effective == pytest.approx(len(source))
    assert "do the work of" in repr(weights)
    with pytest.raises(ValueError, match=r"alpha should lie in 0\.\.1"):
        weights.flattened(2)


def shifted_labels(n: int, shares: list[float], seed: int) -> tuple[Tensor, Tensor]:
    """Three overlapping classes with given shares; logits of the best rule for equal shares."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor(shares), n, replacement=True, generator=generator)
    means = 1.5 * torch.tensor([[0.0, 1.0], [0.87, -0.5], [-0.87, -0.5]])
    x = means[y] + torch.randn(n, 2, generator=generator)
    return -torch.cdist(x, means).square() / 2, y


def test_label_shift_is_found_and_corrected() -> None:
    source_logits, source_y = shifted_labels(6000, [1 / 3] * 3, seed=0)
    target_logits, target_y = shifted_labels(6000, [0.8, 0.15, 0.05], seed=1)
    shift = adapt.label_shift(source_logits, source_y, target_logits)
    assert shift.target_shares.numpy() == pytest.approx([0.8, 0.15, 0.05], abs=0.03)
    assert shift.weights.numpy() == pytest.approx([2.4, 0.45, 0.15], abs=0.1)
    assert float(shift.target_shares.sum()) == pytest.approx(1)
    before = float((target_logits.argmax(dim=1) == target_y).float().mean())
    corrected = shift.correct(target_logits)
    after = float((corrected.argmax(dim=1) == target_y).float().mean())
    known = target_logits + torch.tensor([0.8, 0.15, 0.05]).log()  # the best rule there is
    best = float((known.argmax(dim=1) == target_y).float().mean())
    assert after > before + 0.04
    assert after == pytest.approx(best, abs=0.005)
    assert repr(shift).startswith("estimated target shares: ")


def test_label_shift_is_exact_for_a_known_confusion_matrix() -> None:
    """Predictions that are right in 3 of 4 cases; the target has class 0 alone."""
    y = torch.arange(2).repeat_interleave(4)
    predicted = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
    shift = adapt.label_shift(F.one_hot(predicted), y, F.one_hot(torch.tensor([0, 0, 1, 0])))
    assert shift.weights.numpy() == pytest.approx([2, 0], abs=1e-9)
    assert shift.correct(torch.zeros(1, 2)).isfinite().all()
    with pytest.raises(ValueError, match=r"shape \(n, 2\), found \(1, 3\)"):
        shift.correct(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source_labels": torch.zeros(6, dtype=torch.int64)}, r"\[1, 2\] have none"),
        ({"source_labels": torch.zeros(6)}, "6 integers"),
        ({"source_labels": torch.arange(6)}, r"lie in 0\.\.2, found 0 to 5"),
        ({"source_logits": torch.ones(6, 3)}, "predicts some classes alike"),
        ({"target_logits": torch.full((4, 3), math.nan)}, "target logits should be finite"),
        ({"source_logits": torch.ones(6, 1), "target_logits": torch.ones(4, 1)}, "2 classes"),
    ],
)
def test_label_shift_that_cannot_be_estimated(change: dict[str, Tensor], sentence: str) -> None:
    y = torch.arange(6) % 3
    given = {"source_logits": torch.eye(3)[y], "source_labels": y, "target_logits": torch.eye(3)}
    with pytest.raises(ValueError, match=sentence):
        adapt.label_shift(**(given | change))


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
    network.register_buffer("device", torch.zeros(()))
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
    assert list(history.columns) == list(adapt.COLUMNS)
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
    measure = adapt.coral_distance if method == "coral" else adapt.mmd_squared
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


# Several networks, several sources


def test_soups_and_interpolations() -> None:
    first, second = (with_norm(seed).state_dict() for seed in (0, 1))
    second["1.num_batches_tracked"] += 7
    for alpha, known in ((0.0, first), (1.0, second)):
        found = adapt.interpolate_states(first, second, alpha)
        for key in first:
            assert torch.equal(found[key], (first if "num" in key else known)[key])
    quarter = adapt.interpolate_states(first, second, 0.25)["0.weight"]
    assert torch.allclose(quarter, 0.75 * first["0.weight"] + 0.25 * second["0.weight"])
    soup = adapt.average_states([first, second, second])["0.weight"]
    assert torch.allclose(soup, (first["0.weight"] + 2 * second["0.weight"]) / 3)
    weighted = adapt.average_states([first, second], weights=[2, 4])["0.weight"]
    assert torch.allclose(weighted, soup)
    assert found["0.weight"].data_ptr() != second["0.weight"].data_ptr()


def test_a_soup_gets_statistics_that_fit_it() -> None:
    networks = [with_norm(seed) for seed in (0, 1)]
    state = adapt.average_states([network.state_dict() for network in networks])
    x = sample(80, 2, mean=3).float()
    plain = adapt.with_state(networks[0], state)
    assert all(torch.equal(v, state[k]) for k, v in plain.state_dict().items())
    repaired = adapt.with_state(networks[0], state, x=x)
    hidden = F.linear(x, state["0.weight"], state["0.bias"])
    assert torch.allclose(repaired.state_dict()["1.running_mean"], hidden.mean(dim=0), atol=1e-4)
    assert torch.equal(networks[0].state_dict()["0.weight"], with_norm(0).state_dict()["0.weight"])


def test_states_that_cannot_be_averaged() -> None:
    state = small_mlp(0).state_dict()
    with pytest.raises(ValueError, match=r"4\.weight has the shape \(2, 32\) in state 0 and \(3"):
        adapt.average_states([state, small_mlp(0, outputs=3).state_dict()])
    with pytest.raises(ValueError, match="do not both have"):
        adapt.average_states([state, with_norm().state_dict()])
    with pytest.raises(ValueError, match="do not both have"):
        adapt.with_state(with_norm(), state)
    with pytest.raises(ValueError, match="at least one"):
        adapt.average_states([])
    with pytest.raises(ValueError, match="2 numbers, 0 or larger"):
        adapt.average_states([state, state], weights=[1, -1])
    with pytest.raises(ValueError, match=r"alpha should lie in 0\.\.1"):
        adapt.interpolate_states(state, state, 1.5)
    spoilt = {key: value * math.nan for key, value in state.items()}
    with pytest.raises(ValueError, match="of state 1 holds NaN"):
        adapt.average_states([state, spoilt])


def test_an_ensemble_averages_probabilities() -> None:
    networks = [with_norm(seed).train() for seed in (0, 1)]
    x = sample(10, 2).float()
    answers = [copy.deepcopy(network).eval()(x).softmax(dim=1) for network in networks]
    both = adapt.ensemble(networks)
    assert torch.allclose(both(x).exp(), (answers[0] + answers[1]) / 2, atol=1e-6)
    assert all(network.training for network in networks)
    weighted = adapt.ensemble([networks[0], lambda x: answers[1].log()], weights=[3, 1])
    assert torch.allclose(weighted(x).exp(), 0.75 * answers[0] + 0.25 * answers[1], atol=1e-6)
    assert repr(weighted) == "ensemble of 2 predictors, with the weights 0.75, 0.25"
    pair = moon_domains()
    assert evaluate.report(both, pair.test, name="ensemble", resamples=2).n == 100


def test_ensembles_that_cannot_be_meant() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="logits of one shape"):
        adapt.ensemble([small_mlp(0), small_mlp(0, outputs=3)])(x)
    with pytest.raises(ValueError, match="at least one member"):
        adapt.ensemble([])
    with pytest.raises(TypeError, match="found str"):
        adapt.ensemble(["a"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="1 numbers above 0"):
        adapt.ensemble([small_mlp(0)], weights=[0])


def test_features_side_by_side() -> None:
    first = moons(200, degrees=0, seed=0, name="a")
    second = dataset(
        sample(200, 3, mean=5, scale=100, seed=1).float(), first.labels, name="b", held=50
    )
    with pytest.raises(ValueError, match="not of the same examples"):
        adapt.concatenate([first, second])
    second = Dataset(**{**vars(second), "ids": first.ids})
    both = adapt.concatenate([first, second])
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
        adapt.concatenate([data, images])
    with pytest.raises(ValueError, match="constant"):
        adapt.concatenate([dataset(torch.ones(80, 2), data.labels, name="a", held=20)])
    with pytest.raises(ValueError, match="nothing to concatenate"):
        adapt.concatenate([])
