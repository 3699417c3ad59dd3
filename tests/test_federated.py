"""Behaviour of ``tlhelpers.federated``: who holds which image, and what is averaged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tlhelpers import combine, datasets, federated, models, records
from tlhelpers.splits import Split


@pytest.fixture(scope="module")
def images() -> Split:
    return datasets.digits().few(10, draw=0).train


def network() -> nn.Module:
    return models.small_resnet(10, widths=(4, 8, 8), seed=0)


@pytest.mark.parametrize("by_class", [True, False])
def test_every_image_has_one_owner(images: Split, by_class: bool) -> None:
    clients = federated.deal(images, by_class=by_class)
    assert sorted(name for client in clients for name in client.ids) == sorted(images.ids)
    assert {len(client) for client in clients} == {20}


def test_dealt_by_class_nobody_shares_a_class_and_dealt_evenly_everybody_has_all(
    images: Split,
) -> None:
    owned = [client.y.unique().tolist() for client in federated.deal(images, by_class=True)]
    assert sorted(c for classes in owned for c in classes) == list(range(10))
    for client in federated.deal(images, by_class=False):
        assert client.y.bincount(minlength=10).tolist() == [2] * 10


def test_an_odd_number_of_clients_leaves_no_image_over(images: Split) -> None:
    for by_class in (True, False):
        clients = federated.deal(images, 7, by_class=by_class)
        assert sum(map(len, clients)) == 100
        assert {len(client) for client in clients} == {14, 15}
    with pytest.raises(ValueError, match="to 1 to 100 clients, found 101"):
        federated.deal(images, 101, by_class=True)
    with pytest.raises(ValueError, match="found 0"):
        federated.deal(images, 0, by_class=True)


def test_one_round_of_one_client_is_plain_training(images: Split) -> None:
    start = network()
    averaged = federated.average(start, [images], lr=0.1, rounds=1, steps=3)
    trained = federated.train(copy.deepcopy(start), images, lr=0.1, steps=3)
    assert models.fingerprint(averaged) == models.fingerprint(trained)
    assert not averaged.training


def test_a_round_weighs_clients_by_their_images_whatever_their_order(images: Split) -> None:
    start, clients = network(), [images.take(range(60)), images.take(range(60, 100))]
    before = models.fingerprint(start)
    averaged = federated.average(start, clients, lr=0.1, rounds=1, steps=2)
    states = [
        federated.train(copy.deepcopy(start), client, lr=0.1, steps=2).state_dict()
        for client in clients
    ]
    right = combine.average_states(states, weights=[60, 40])
    for name, value in averaged.state_dict().items():
        assert torch.equal(value, right[name]), name
    turned = federated.average(start, clients[::-1], lr=0.1, rounds=1, steps=2)
    for name, value in averaged.state_dict().items():
        assert torch.allclose(value, turned.state_dict()[name], atol=1e-6), name
    assert models.fingerprint(start) == before


def test_clients_that_never_train_change_nothing(images: Split) -> None:
    start = network()
    still = federated.average(start, federated.deal(images, by_class=True), lr=0.1, steps=0)
    for name, value in still.state_dict().items():
        assert torch.allclose(value, start.state_dict()[name], atol=1e-6), name


def test_what_cannot_be_meant_is_refused(images: Split) -> None:
    with pytest.raises(ValueError, match="at least one client"):
        federated.average(network(), [], lr=0.1)
    with pytest.raises(ValueError, match="a way one of pooled, even, by class, alone"):
        federated.learn("letters", "together", images, lr=0.1)
    with pytest.raises(ValueError, match="found 'digits'"):
        federated.learn("digits", "even", images, lr=0.1)


def test_alone_gives_a_network_a_client_and_the_others_one(images: Split) -> None:
    found = {
        way: federated.learn("scratch", way, images, lr=0.1, rounds=1, steps=1)
        for way in federated.WAYS
    }
    assert {way: len(networks) for way, networks in found.items()} == {
        "pooled": 1,
        "even": 1,
        "by class": 1,
        "alone": federated.CLIENTS,
    }


def test_it_repeats(images: Split) -> None:
    clients = federated.deal(images, by_class=True)
    one, same = (federated.average(network(), clients, lr=0.1, rounds=2) for _ in range(2))
    assert models.fingerprint(one) == models.fingerprint(same)


def test_the_shipped_record_has_the_figures_that_a_run_makes() -> None:
    made, shipped = federated.compare(seeds=(0, 1), rounds=1), records.load(federated.NAME)
    assert len(made.curve) == 2 * len(federated.RATES)
    assert len(shipped.curve) == len(federated.SEEDS) * len(federated.RATES)
    assert shipped.result.keys() == made.result.keys() == made.interval.keys()
    assert shipped.seeds == federated.SEEDS
    assert shipped.clean
