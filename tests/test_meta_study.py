"""Behaviour of ``tlhelpers.meta_study``: the comparison of chapter 12, on a small scale."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from tlhelpers import characters, fewshot, meta, meta_study, models
from tlhelpers.episodes import Pool
from tlhelpers.meta import Inner
from tlhelpers.meta_study import SmallNet
from tlhelpers.records import Record
from tlhelpers.runtime import Run


def noise() -> Pool:
    generator = torch.Generator().manual_seed(0)
    return Pool(torch.rand(160, 1, 16, 16, generator=generator), torch.arange(160) % 8)


@functools.cache
def record() -> Record:
    return meta_study.compare(seeds=(0, 1), count=6, steps=6, norm_steps=2, per_class=15)


def test_no_alphabet_stands_twice() -> None:
    data, pools = meta_study.alphabets(per_class=1)
    assert pools.validation is not None
    sets = [pools.train.classes, pools.validation.classes, pools.test.classes]
    assert data.classes == pools.train.classes
    for i, one in enumerate(sets):
        for other in sets[i + 1 :]:
            assert len(characters.disjoint(one, other)) == len(one)


def test_the_network_is_its_head_on_its_features() -> None:
    x = noise().x[:6]
    network = SmallNet(7, seed=3)
    torch.testing.assert_close(network(x), network.head(network.features(x)))
    assert network(x).shape == (6, 7)
    prints = [models.fingerprint(SmallNet(7, seed=seed)) for seed in (3, 3, 4)]
    assert prints[0] == prints[1] != prints[2]


def test_a_new_head_says_the_same_of_every_class_and_leaves_the_network() -> None:
    network = SmallNet(7)
    before = models.fingerprint(network)
    twin = meta_study.with_new_head(network, 5)
    x = noise().x[:4]
    assert torch.equal(twin(x), torch.zeros(4, 5))
    torch.testing.assert_close(twin.features(x), network.features(x))
    assert models.fingerprint(network) == before


def test_watching_does_not_change_what_is_learnt() -> None:
    _, pools = meta_study.alphabets(per_class=8)
    seen: list[int] = []

    def watch(network: torch.nn.Module, step: int) -> None:
        seen.append(step)
        torch.rand(1)

    alone = meta_study.learn(meta_study.FIRST, pools, Run(1), steps=6)
    watched = meta_study.learn(meta_study.FIRST, pools, Run(1), steps=6, watch=watch)
    assert models.fingerprint(alone) == models.fingerprint(watched)
    assert seen == list(range(6))


def test_only_a_transductive_classifier_minds_who_else_is_asked() -> None:
    drawn = noise().episodes(8, ways=5, shots=1, queries=4)
    support, query = drawn.support, drawn.query.flatten(1, 2)
    network = SmallNet(5, norm=True)

    def scores(statistics: str) -> tuple[Tensor, Tensor]:
        classify = meta.fine_tuned(network, Inner(rate=0.1, statistics=statistics))
        alone = meta_study.one_class_at_a_time(classify)
        return classify(support, query), alone(support, query)

    torch.testing.assert_close(*scores("support"))
    together, apart = scores("batch")
    assert not torch.allclose(together, apart, atol=1e-3)


def test_the_record_holds_every_way_and_seed() -> None:
    frame = record().to_frame()
    test = frame[frame["what"] == "test"]
    assert len(test) == len(test[["way", "seed", "shots"]].drop_duplicates()) == 10 * 2 * 2
    assert (test["low"] <= test["mean"]).all()
    assert not test["transductive"].any()
    for way, rows in frame[frame["what"] == "training"].groupby("way"):
        steps = rows[rows["seed"] == 0]["step"].tolist()
        assert steps == [0, 1, 2, 3, 4, 5, 6], way
        assert rows[rows["seed"] == 0]["seconds"].is_monotonic_increasing


def test_inner_steps_end_where_the_test_does() -> None:
    frame = record().to_frame().set_index(["what", "way", "seed"])
    for way, inner in meta_study.AT_TEST.items():
        steps = frame.loc[("inner", way, 0)].set_index("step")["mean"]
        test = frame.loc[("test", way, 0)].set_index("shots")["mean"]
        assert steps[inner.steps] == pytest.approx(test[1])


def test_differences_are_those_of_the_means_over_seeds() -> None:
    result = record().result
    test = record().to_frame().query("what == 'test'")
    means = test.groupby(["way", "shots"])["mean"].mean()
    for a, b in meta_study.PAIRS:
        for k in meta_study.SHOTS:
            key = f"{a} minus {b}, {k} shot"
            assert result[key] == pytest.approx(means[a, k] - means[b, k])
            low, high = record().interval[key]
            assert low < result[key] < high


def test_batch_statistics_are_called_transductive() -> None:
    norm = record().to_frame().query("what == 'norm' and seed == 0").set_index("way")
    assert norm["transductive"].tolist() == [True, True, False, False]


def test_means_over_seeds_need_the_same_episodes() -> None:
    pool = noise()
    flat = Pool(pool.x.flatten(1), pool.labels)
    one, other = (
        fewshot.measure(
            fewshot.nearest_centroid, flat.episodes(6, ways=3, shots=1, queries=2, generator=seed)
        )
        for seed in (0, 1)
    )
    np.testing.assert_allclose(meta_study._mean([one, one]).correct, one.correct)
    with pytest.raises(ValueError, match="the same episodes"):
        meta_study._mean([one, other])
