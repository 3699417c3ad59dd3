"""Behaviour of low-rank adapters: they start as nothing, learn, and disappear in the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tlhelpers import lora, models

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "1 x 1": (lambda: nn.Conv2d(6, 5, 1, bias=False), (2, 6, 4, 4)),
    "strided": (lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1), (2, 6, 9, 9)),
    "dilated": (lambda: nn.Conv2d(6, 5, 3, padding=2, dilation=2), (2, 6, 9, 9)),
    "oblong": (lambda: nn.Conv2d(6, 5, (1, 3), padding=(0, 1)), (2, 6, 9, 9)),
}


def trained(layer: lora.LoRALayer) -> lora.LoRALayer:
    """As if it had learnt something."""
    nn.init.normal_(layer.up.weight, generator=torch.Generator().manual_seed(1))  # type: ignore
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_it_starts_as_the_layer_and_ends_in_it(name: str) -> None:
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    plain = layer(x)
    adapted = lora.LoRALayer(layer, 2, scale=0.5)
    assert torch.equal(adapted(x), plain)
    moved = trained(adapted)(x)
    assert not torch.allclose(moved, plain, atol=0.1)
    merged = adapted.merged()
    assert type(merged) is type(layer)
    torch.testing.assert_close(merged(x), moved, atol=1e-5, rtol=1e-5)
    assert all(p.requires_grad for p in merged.parameters())
    assert not any(p.requires_grad for p in adapted.layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_the_update_has_the_rank(name: str) -> None:
    make, _ = LAYERS[name]
    adapted = trained(lora.LoRALayer(make(), 2))
    update = adapted.update()
    assert update.shape == adapted.layer.weight.shape
    assert torch.linalg.matrix_rank(update.flatten(1)) == 2


def test_at_full_rank_it_can_be_any_update() -> None:
    layer = nn.Linear(4, 3)
    adapted, wanted = lora.LoRALayer(layer, 3), torch.randn(3, 4)
    with torch.no_grad():
        down, up = adapted.down.weight, adapted.up.weight
        up.copy_(wanted @ torch.linalg.pinv(down))  # type: ignore
    # A has three independent rows of four: what is outside their span cannot be reached.
    reached = wanted @ torch.linalg.pinv(down) @ down  # type: ignore
    torch.testing.assert_close(adapted.update(), reached, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4),
    ],
)
def test_what_it_cannot_stand_beside_is_refused(layer: nn.Module) -> None:
    assert not lora.can_adapt(layer)
    with pytest.raises(TypeError, match="Leave this layer frozen"):
        lora.LoRALayer(layer)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_beyond_the_layer_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=r"lies in 1\.\.3"):
        lora.LoRALayer(nn.Linear(5, 3), rank)


def test_a_network_learns_through_its_updates_alone() -> None:
    network = models.small_resnet(3, seed=0)
    adapted = lora.insert(network, rank=2)
    x = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(adapted(x), network.eval()(x))
    before = {key: value.clone() for key, value in adapted.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.5)
    adapted.train()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(adapted(x), torch.arange(8) % 3).backward()
        optimizer.step()
    moved = {key for key, value in adapted.state_dict().items() if not value.equal(before[key])}
    assert moved == set(lora.trained_state(adapted))
    assert {name.rsplit(".", 2)[-2] for name in moved} == {"down", "up", "head"}
    merged = lora.merge(adapted)
    assert {k: v.shape for k, v in merged.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    torch.testing.assert_close(merged(x), adapted.eval()(x), atol=1e-5, rtol=1e-5)


def test_a_tasks_state_fits_another_copy() -> None:
    network = models.small_resnet(3)
    one, other = (lora.insert(network, rank=2, seed=seed) for seed in (0, 1))
    for layer in one.modules():
        if isinstance(layer, lora.LoRALayer):
            trained(layer)
    found = other.load_state_dict(lora.trained_state(one), strict=False)
    assert not found.unexpected_keys
    x = torch.rand(2, 1, 12, 12)
    assert torch.equal(one(x), other(x))


def test_a_seed_draws_the_same_and_leaves_the_global_state() -> None:
    network = models.small_resnet(3)
    state = torch.random.get_rng_state()
    first, second = (lora.trained_state(lora.insert(network, seed=3)) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_layers_can_be_chosen() -> None:
    network = models.small_resnet(3)
    adapted = lora.insert(network, where=lambda name, layer: name.startswith("stage3"))
    names = [n for n, m in adapted.named_modules() if isinstance(m, lora.LoRALayer)]
    assert names
    assert all(name.startswith("stage3") for name in names)
    with pytest.raises(ValueError, match="no layer of SmallResNet"):
        lora.insert(network, where=lambda name, layer: False)


def test_nothing_to_merge_is_said() -> None:
    with pytest.raises(ValueError, match="no low-rank update"):
        lora.merge(models.small_resnet(3))
