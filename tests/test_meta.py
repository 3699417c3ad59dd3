"""MAML and Reptile against gradients derived by hand, and on the tasks of the papers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers import fewshot, meta, models
from tlhelpers.episodes import Pool
from tlhelpers.meta import Cost, Inner, Tasks
from tlhelpers.runtime import Run

RATE = 0.1


def line(*, seed: int = 0, d: int = 3) -> nn.Linear:
    """y = w · x in double precision: with squared errors every loss is a quadratic of w."""
    layer = nn.Linear(d, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(1, d, generator=torch.Generator().manual_seed(seed)))
    return layer


def quadratics(count: int = 4, n: int = 6, d: int = 3) -> Tasks:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Tasks(draw(count, n, d), draw(count, n, 1), draw(count, n, d), draw(count, n, 1))


def by_hand(w: Tensor, tasks: Tasks, *, steps: int, order: int) -> Tensor:
    """The meta-gradient: the Hessian H = 2 XᵀX / n is known, and so is all the rest."""
    total = torch.zeros_like(w)
    for x, y, query_x, query_y in zip(
        tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, strict=True
    ):
        hessian = 2 * x.T @ x / len(x)
        adapted, factor = w, torch.eye(len(w), dtype=w.dtype)
        for _ in range(steps):
            adapted = adapted - RATE * 2 * x.T @ (x @ adapted - y[:, 0]) / len(x)
            factor = factor @ (torch.eye(len(w), dtype=w.dtype) - RATE * hessian)
        slope = 2 * query_x.T @ (query_x @ adapted - query_y[:, 0]) / len(query_x)
        total += (factor.T if order == 2 else torch.eye(len(w), dtype=w.dtype)) @ slope
    return total / len(tasks)


def squared(**settings: Any) -> Inner:
    return Inner(**({"rate": RATE, "loss": F.mse_loss} | settings))


# Gradients


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_meta_gradient_is_the_one_by_hand(order: int, steps: int) -> None:
    layer, tasks = line(), quadratics()
    _, slopes = meta.meta_gradient(layer, tasks, squared(steps=steps), order=order)
    expected = by_hand(layer.weight.detach()[0], tasks, steps=steps, order=order)
    torch.testing.assert_close(slopes["weight"][0], expected)


def test_the_second_order_is_the_slope_of_the_objective() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    tasks, inner, small = quadratics(), squared(steps=2), 1e-6
    _, slopes = meta.meta_gradient(network, tasks, inner)
    with torch.no_grad():
        for name, p in network.named_parameters():
            where = tuple(0 for _ in p.shape)
            values = []
            for change in (small, -2 * small):
                p[where] += change
                with torch.enable_grad():
                    values.append(meta.meta_gradient(network, tasks, inner)[0])
            p[where] += small
            slope = (values[0] - values[1]) / (2 * small)
            assert float(slopes[name][where]) == pytest.approx(float(slope), rel=1e-4, abs=1e-8)


def test_first_order_is_second_order_without_curvature() -> None:
    # A loss that is linear in the outputs has no Hessian in a linear model.
    layer, tasks = line(), quadratics()
    inner = squared(steps=2, loss=lambda out, y: (out * y).mean())
    one, two = (meta.meta_gradient(layer, tasks, inner, order=order)[1] for order in (1, 2))
    torch.testing.assert_close(one["weight"], two["weight"])


def test_the_objective_is_the_mean_loss_after_the_inner_loop() -> None:
    layer, tasks, inner = line(), quadratics(), squared(steps=2)
    objective, _ = meta.meta_gradient(layer, tasks, inner)
    assert float(objective) == pytest.approx(meta.losses(layer, tasks, inner)[-1].mean())


def test_maml_takes_adams_step_along_the_meta_gradient() -> None:
    layer, tasks, inner = line(), quadratics(), squared()
    start = layer.weight.detach().clone()
    _, slopes = meta.meta_gradient(layer, tasks, inner)
    learnt = meta.maml(layer, lambda count, generator: tasks, inner, steps=1, lr=0.01)
    expected = start - 0.01 * slopes["weight"].sign()  # Adam's first step
    torch.testing.assert_close(layer.weight.detach(), expected, atol=1e-6, rtol=0)
    assert learnt.method == "MAML"


def test_reptile_on_quadratics() -> None:
    layer, tasks, inner = line(), quadratics(), squared(steps=3)
    start = layer.weight.detach().clone()[0]
    ends = []
    for i in range(len(tasks)):
        x = torch.cat([tasks.support_x[i], tasks.query_x[i]])
        y = torch.cat([tasks.support_y[i], tasks.query_y[i]])[:, 0]
        best = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
        shrink = torch.eye(3, dtype=x.dtype) - RATE * 2 * x.T @ x / len(x)
        # Gradient descent on a quadratic shrinks the distance from its minimum.
        ends.append(best + torch.linalg.matrix_power(shrink, 3) @ (start - best))
    expected = start + 0.5 * (torch.stack(ends).mean(dim=0) - start)
    meta.reptile(layer, lambda count, generator: tasks, inner, outer_rate=0.5, steps=1)
    torch.testing.assert_close(layer.weight.detach()[0], expected)


def test_reptile_walks_more_slowly_towards_its_end() -> None:
    tasks = quadratics()
    layer = line()
    start = layer.weight.detach().clone()
    meta.reptile(layer, lambda c, g: tasks, squared(), outer_rate=0.4, steps=2)
    twice = line()
    for rate in (0.4, 0.2):
        meta.reptile(twice, lambda c, g: tasks, squared(), outer_rate=rate, steps=1)
    torch.testing.assert_close(layer.weight, twice.weight)
    assert not torch.equal(layer.weight, start)


def test_minibatches_use_every_example_before_one_twice() -> None:
    rows = meta._minibatches(5, 6, 4, 3, torch.Generator().manual_seed(0))
    assert rows.shape == (5, 4, 3)
    for task in rows:
        assert sorted(task[:2].flatten().tolist()) == list(range(6))
        assert sorted(task[2:].flatten().tolist()) == list(range(6))


# The inner loop


def test_adapt_is_gradient_descent() -> None:
    start = {"w": torch.tensor([2.0, -1.0]), "b": torch.tensor(3.0)}
    found = meta.adapt(
        lambda p: (p["w"].square().sum() + p["b"] ** 2) / 2, start, steps=3, rate=0.5
    )
    assert torch.allclose(found["w"], start["w"] / 8)
    assert torch.allclose(found["b"], start["b"] / 8)
    assert start["b"] == 3


def test_a_part_can_adapt_alone() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    tasks = quadratics()
    x, y = tasks.support_x[0], tasks.support_y[0]

    def objective(p: meta.Parameters) -> Tensor:
        return F.mse_loss(torch.func.functional_call(network, p, (x,)), y)

    start = {name: p.detach() for name, p in network.named_parameters()}
    found = meta.adapt(objective, start, steps=2, rate=RATE, names=["2.weight", "2.bias"])
    moved = {name for name in start if not torch.equal(found[name], start[name])}
    assert moved == {"2.weight", "2.bias"}
    one = Tasks(
        *(part[:1] for part in (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y))
    )
    said = meta.outputs(network, one, squared(steps=2, part="2."))[-1, 0]
    expected = torch.func.functional_call(network, found, (one.query_x[0],))
    torch.testing.assert_close(said, expected)
    with pytest.raises(ValueError, match="starts with 'head'"):
        meta.outputs(network, tasks, squared(part="head"))


def test_outputs_follow_the_inner_loop_step_by_step() -> None:
    layer, tasks = line(), quadratics()
    found = meta.outputs(layer, tasks, squared(steps=2))
    assert found.shape == (3, 4, 6, 1)
    torch.testing.assert_close(found[0], layer(tasks.query_x).detach())
    shorter = meta.outputs(layer, tasks, squared(steps=1))
    torch.testing.assert_close(found[:2], shorter)
    losses = meta.losses(layer, tasks, squared(steps=2))
    expected = (found - tasks.query_y).square().mean(dim=(2, 3))
    np.testing.assert_allclose(losses, expected.numpy())


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="0 steps or more and a rate above 0"):
        Inner(rate=0.0)
    with pytest.raises(ValueError, match="running, batch, support"):
        Inner(statistics="eval")
    layer, tasks = line(), quadratics()
    with pytest.raises(ValueError, match="order should be 1 or 2"):
        meta.meta_gradient(layer, tasks, squared(), order=3)
    with pytest.raises(ValueError, match="1 inner step or more"):
        meta.reptile(layer, lambda c, g: tasks, squared(steps=0))
    with pytest.raises(ValueError, match="steps and tasks should be 1"):
        meta.maml(layer, lambda c, g: tasks, squared(), steps=0)


def test_a_loss_that_diverges_is_said() -> None:
    tasks = quadratics()
    with pytest.raises(FloatingPointError, match="Lower the inner rate"):
        meta.maml(line(), lambda c, g: tasks, squared(steps=200, rate=1e6), steps=3)


# BatchNorm


def glyph_like(seed: int = 0) -> Pool:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(120, 1, 8, 8, generator=generator)
    return Pool(images, torch.arange(120) % 8)


def small(seed: int = 0) -> models.SmallResNet:
    return models.small_resnet(3, widths=(4, 4, 8), seed=seed)


def test_batch_norm_has_to_be_decided_on() -> None:
    tasks = meta.episode_tasks(glyph_like(), ways=3, shots=2, queries=2)
    with pytest.raises(ValueError, match=r"has 9 BatchNorm layers.*'running', 'batch', 'support'"):
        meta.maml(small(), tasks, Inner(), steps=1)


@pytest.mark.parametrize("statistics", meta.STATISTICS)
def test_only_batch_statistics_are_transductive(statistics: str) -> None:
    episodes = glyph_like().episodes(6, ways=3, shots=2, queries=3)
    network = small()
    before = models.snapshot(network)
    classifier = meta.fine_tuned(network, Inner(statistics=statistics, rate=0.1))
    assert fewshot.measure(classifier, episodes).transductive == (statistics == "batch")
    assert not models.diff_state(before, network).to_frame().size


def test_support_statistics_are_what_they_say() -> None:
    # With no step, queries that are the support itself are normalised as in training mode.
    network = small()
    tasks = meta.episode_tasks(glyph_like(), ways=3, shots=4, queries=1)(
        2, torch.Generator().manual_seed(0)
    )
    same = Tasks(tasks.support_x, tasks.support_y, tasks.support_x, tasks.support_y)
    found = meta.outputs(network, same, Inner(steps=0, statistics="support"))[0]
    network.train()
    for x, mine in zip(tasks.support_x, found, strict=True):
        torch.testing.assert_close(mine, network(x).detach(), atol=1e-4, rtol=1e-3)


def test_running_statistics_stay_as_they_are() -> None:
    network = small()
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    tasks = meta.episode_tasks(glyph_like(), ways=3, shots=2, queries=2)
    first = network.stem[0].weight.detach().clone()
    meta.maml(network, tasks, Inner(statistics="running"), steps=2, tasks=2)
    assert all(torch.equal(b, buffers[name]) for name, b in network.named_buffers())
    assert not torch.equal(network.stem[0].weight, first)
    assert not network.training


# Tasks and classifiers


def test_sine_tasks_are_those_of_the_paper() -> None:
    tasks = meta.sine_tasks(shots=5, queries=200)(300, Run(0).generator(0))
    x, y = tasks.query_x[..., 0], tasks.query_y[..., 0]
    assert -5 <= float(x.min()) < -4.9 < 4.9 < float(x.max()) <= 5
    # y = a sin x + b cos x fits each task exactly, with amplitudes and phases in range.
    basis = torch.stack([x.sin(), x.cos()], dim=-1)
    fitted = torch.linalg.lstsq(basis, y[..., None]).solution[..., 0]
    torch.testing.assert_close((basis @ fitted[..., None])[..., 0], y, atol=1e-4, rtol=0)
    amplitude, phase = fitted.norm(dim=1), torch.atan2(-fitted[:, 1], fitted[:, 0])
    assert 0.1 <= float(amplitude.min()) < 0.4
    assert 4.8 < float(amplitude.max()) <= 5.0001
    assert -1e-3 <= float(phase.min()) < 0.1
    assert math.pi - 0.1 < float(phase.max()) <= math.pi + 1e-3


def test_episode_tasks_are_episodes() -> None:
    pool = glyph_like()
    tasks = meta.episode_tasks(pool, ways=3, shots=2, queries=4)(5, Run(0).generator(0))
    episodes = pool.episodes(5, ways=3, shots=2, queries=4, generator=Run(0).generator(0))
    assert torch.equal(tasks.support_x, episodes.support.flatten(1, 2))
    assert torch.equal(tasks.query_x, episodes.query.flatten(1, 2))
    assert tasks.support_y[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert tasks.query_y[4].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_fine_tuned_is_a_loop_over_episodes() -> None:
    pool = glyph_like()
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    episodes = pool.episodes(12, ways=3, shots=2, queries=2)
    scores = meta.fine_tuned(network, Inner(steps=3, rate=0.5))(
        episodes.support, episodes.query.flatten(1, 2)
    )
    start = [p.detach().clone() for p in network.parameters()]
    for i in range(len(episodes)):
        x, y = episodes.support[i].flatten(0, 1), torch.arange(3).repeat_interleave(2)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
        torch.testing.assert_close(scores[i], network(episodes.query[i].flatten(0, 1)).detach())
        with torch.no_grad():
            for p, value in zip(network.parameters(), start, strict=True):
                p.copy_(value)


def test_fine_tuned_needs_as_many_outputs_as_ways() -> None:
    episodes = glyph_like().episodes(4, ways=4, shots=1, queries=1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="needs 4 outputs, found 3"):
        fewshot.measure(meta.fine_tuned(network, Inner()), episodes)


# What it costs, and what it is good for


class Counting(nn.Module):
    """A line that counts its forward passes; a batch of tasks is one call."""

    def __init__(self) -> None:
        super().__init__()
        self.line = line()
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return self.line(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Counting:
        twin = Counting()
        twin.calls = self.calls
        return twin


def test_the_cost_is_what_happens() -> None:
    network, tasks = Counting(), quadratics()
    learnt = meta.maml(network, lambda c, g: tasks, squared(steps=3), steps=2)
    assert learnt.cost == Cost(forward=4 * len(network.calls), backward=32, curvature=24)
    network = Counting()
    first = meta.maml(network, lambda c, g: tasks, squared(steps=3), steps=2, order=1)
    assert first.cost == Cost(forward=4 * len(network.calls), backward=32, curvature=0)
    assert first.table[["forward", "backward"]].iloc[-1].tolist() == [32, 32]
    network = Counting()
    learnt = meta.reptile(network, lambda c, g: tasks, squared(steps=3), steps=2)
    assert learnt.cost == Cost(forward=24, backward=24, curvature=0)
    assert 4 * len(network.calls) == 24


def test_the_second_order_takes_more_memory() -> None:
    layer, tasks = meta.sine_network(), meta.sine_tasks()(8, Run(0).generator(0))
    one, two = (
        meta.peak_memory(
            lambda order=order: meta.meta_gradient(layer, tasks, squared(steps=5), order=order)
        )
        for order in (1, 2)
    )
    assert two > 1.5 * one


def test_peak_memory_forgets_what_is_freed() -> None:
    def loop() -> None:
        for _ in range(5):
            torch.ones(1000).sum()

    given = torch.ones(10_000)
    assert meta.peak_memory(loop) == 4004
    assert meta.peak_memory(lambda: given.view(100, 100).t()) == 0


@pytest.mark.parametrize("method", ["MAML", "first-order MAML", "Reptile"])
def test_a_learnt_start_goes_far_on_new_sines(method: str) -> None:
    network = meta.sine_network()
    inner = squared(steps=5, rate=0.02)
    new = meta.sine_tasks(queries=50)(60, Run(9).generator(0))
    before = meta.losses(network, new, inner)[-1]
    settings = {"steps": 150, "tasks": 16}
    if method == "Reptile":
        learnt = meta.reptile(
            network, meta.sine_tasks(), inner, outer_rate=1.0, batch=10, **settings
        )
    else:
        order = 2 if method == "MAML" else 1
        learnt = meta.maml(network, meta.sine_tasks(), inner, order=order, lr=1e-2, **settings)
    after = meta.losses(network, new, inner)
    assert learnt.method == method
    assert str(learnt).startswith(f"{method}: 150 steps of 16 tasks")
    assert after[-1].mean() < 0.8 * before.mean()
    assert after[-1].mean() < 0.8 * after[0].mean()
    assert len(learnt.to_frame()) >= 20


def test_the_seed_decides() -> None:
    def weights(seed: int) -> str:
        network = meta.sine_network()
        meta.reptile(network, meta.sine_tasks(), squared(), batch=5, steps=2, run=Run(seed))
        return models.fingerprint(network)

    assert weights(0) == weights(0) != weights(1)


def test_frozen_parameters_stay() -> None:
    tasks = quadratics()
    for method in (meta.maml, meta.reptile):
        network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
        network[0].requires_grad_(False)
        first, second = network[0].weight.clone(), network[1].weight.detach().clone()
        method(network, lambda c, g: tasks, squared(), steps=2)
        alone = meta.outputs(network, tasks, squared(steps=2))
        torch.testing.assert_close(alone, meta.outputs(network, tasks, squared(steps=2, part="1.")))
        assert torch.equal(network[0].weight, first)
        assert not torch.equal(network[1].weight, second)
