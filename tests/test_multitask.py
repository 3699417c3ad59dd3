"""Behaviour of ``tlhelpers.multitask``: two heads on one body, and three ways to train them."""

from __future__ import annotations

import pytest
import torch

from tlhelpers import datasets, models, multitask, records
from tlhelpers.multitask import TwoHeads
from tlhelpers.splits import Dataset


def letters() -> Dataset:
    return datasets.glyphs([*"OIZ"], per_class=20, validation=0.0, test=0.2)


def digits() -> Dataset:
    return datasets.glyphs([*"012"], per_class=20, validation=0.0, test=0.2, seed=1)


def test_both_heads_read_the_same_features() -> None:
    network = TwoHeads(4, 3, seed=5).eval()
    x = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = network(x)
    h = network.body.features(x)
    assert first.shape == (6, 4)
    assert torch.equal(first, network.body.head(h))
    assert torch.equal(second, network.second(h))


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    one, same, other = (TwoHeads(4, 3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(2), expected)
    assert models.fingerprint(one) == models.fingerprint(same) != models.fingerprint(other)


def test_a_task_without_a_share_of_the_batch_leaves_its_head_alone() -> None:
    network = TwoHeads(3, 3)
    before = {name: p.clone() for name, p in network.named_parameters()}
    tasks = [(letters().train, 8), (digits().train, 0)]
    multitask.train(network, tasks, steps=4, lr=1e-2)
    moved = {
        name: float((p - before[name]).detach().abs().max())
        for name, p in network.named_parameters()
    }
    assert moved["body.head.weight"] > 1e-3
    assert moved["body.stem.0.weight"] > 1e-3
    assert moved["second.weight"] < 1e-5, "only weight decay, which is tiny"
    assert not network.training


def test_training_learns_both_tasks_and_repeats() -> None:
    def trained() -> TwoHeads:
        network = TwoHeads(3, 3)
        tasks = [(letters().train, 15), (digits().train, 15)]
        multitask.train(network, tasks, steps=40, lr=3e-3)
        return network

    network = trained()
    for head, data in enumerate((letters(), digits())):
        with torch.inference_mode():
            hits = network(data.train.x)[head].argmax(1) == data.train.y
        assert hits.float().mean() > 0.9
    assert models.fingerprint(network) == models.fingerprint(trained())


@pytest.mark.parametrize("shares", [(0, 0), (4,)])
def test_two_tasks_with_some_images_are_needed(shares: tuple[int, ...]) -> None:
    tasks = [(letters().train, share) for share in shares]
    with pytest.raises(ValueError, match="two tasks with a share of the batch"):
        multitask.train(TwoHeads(3, 3), tasks, steps=1, lr=0.1)


def test_compare_makes_the_record_and_reads_each_test_split_once() -> None:
    first, second = letters(), digits()
    record = multitask.compare(
        letters=first, digits=second, shots=(1, 2), seeds=(0, 1), steps=(5, 1)
    )
    assert record.name == multitask.NAME
    frame = record.to_frame()
    assert frame[["way", "k"]].to_numpy().tolist() == [
        [way, k] for way in multitask.WAYS for k in (1, 2)
    ]
    assert frame[["mean", "letters"]].stack().between(0, 1).all()
    assert set(record.result) == {
        f"{name}_{k}" for name in ("together_minus_then", "then_minus_alone") for k in (1, 2)
    }
    means = frame.set_index(["way", "k"])["mean"]
    gap = means["together", 1] - means["letters, then digits", 1]
    assert record.result["together_minus_then_1"] == pytest.approx(gap)
    assert len(first.test.readings) == len(second.test.readings) == 1


def test_the_record_is_shipped() -> None:
    assert multitask.NAME in records.names()
