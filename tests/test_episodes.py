"""Class splits, pools, and the episodes drawn from them."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from tlhelpers import characters, datasets, models, runtime
from tlhelpers.episodes import ClassSplit, Episodes, Pool, split_alphabets, split_classes
from tlhelpers.splits import Dataset

SIZES = (4, 5, 6, 7, 8, 9)


def uneven() -> Pool:
    """Six classes of four to nine examples in mixed order; each example is its own number."""
    labels = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    return Pool(torch.arange(len(labels)).float()[:, None], labels)


def rows_of(episodes: Episodes) -> Tensor:
    """(b, N, K + Q)"""
    return torch.cat([episodes.support_rows, episodes.query_rows], dim=2)


def looks_uniform(counts: list[int] | np.ndarray) -> bool:
    return bool(stats.chisquare(counts).pvalue > 1e-3)


# Class splits


def test_a_class_in_two_sets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"meta-train and meta-test overlap: 'cat'.*meta-train"):
        ClassSplit(train=("cat", "dog"), validation=("ox",), test=("cat", "owl"))
    with pytest.raises(ValueError, match="each class may stand once in meta-test"):
        ClassSplit(train=("cat",), validation=(), test=("owl", "owl"))
    with pytest.raises(ValueError, match="needs meta-test classes"):
        ClassSplit(train=("cat",), validation=(), test=())


def test_characters_that_look_alike_are_one_class() -> None:
    with pytest.raises(ValueError, match="'A' and 'Α', which a font draws alike"):
        ClassSplit(train=("A", "B"), validation=(), test=("Α", "Ω"))
    ClassSplit(train=("Latin A",), validation=(), test=("Greek Α",))  # names, not characters


def test_split_alphabets_leaves_no_look_alikes() -> None:
    split = split_alphabets(
        train=["latin_upper"], validation=["cyrillic_upper"], test=["greek_upper"]
    )
    parts = (split.train, split.validation, split.test)
    for one, other in itertools.permutations(parts, 2):
        assert characters.disjoint(one, other) == one
    assert len(split.test) == len(characters.ALPHABETS["greek_upper"])
    assert "R" in split.train
    assert "Ж" in split.validation
    with pytest.raises(ValueError, match="no alphabet 'klingon'"):
        split_alphabets(train=["klingon"], test=["hebrew"])


def test_split_classes_deals_all_of_them() -> None:
    names = [f"breed {i}" for i in range(20)]
    split = split_classes(names, validation=4, test=6, seed=1)
    assert sorted((*split.train, *split.validation, *split.test)) == sorted(names)
    assert (len(split.validation), len(split.test)) == (4, 6)
    assert split == split_classes(names, validation=4, test=6, seed=1)
    assert split != split_classes(names, validation=4, test=6, seed=2)
    with pytest.raises(ValueError, match="leave some to train on"):
        split_classes(names, validation=10, test=10)


def labelled(x: Tensor | list[int]) -> Dataset:
    """Six classes of ten, of which two each are for validation and for test."""
    n = 60
    return Dataset(
        name="things",
        classes=tuple(f"thing {c}" for c in range(6)),
        x=x,
        labels=torch.arange(n) % 6,
        split=np.array(["train"] * 36 + ["validation"] * 12 + ["test"] * 12),
        ids=tuple(map(str, range(n))),
        split_name="by hand",
    )


def test_pools_open_the_test_split_once_and_only_for_new_classes() -> None:
    data = labelled(torch.arange(60.0)[:, None])
    split = ClassSplit(train=("thing 4", "thing 0"), validation=(), test=("thing 1", "thing 2"))
    pools = split.pools(data)
    assert data.test.readings == ("few-shot episodes of 2 new classes",)
    assert pools.validation is None
    assert sorted(pools.test.x.flatten().tolist()) == [i for i in range(60) if i % 6 in (1, 2)]
    assert sorted(pools.train.x.flatten().tolist()) == [i for i in range(48) if i % 6 in (0, 4)]
    # Labels follow the order of the names.
    assert (pools.train.x.flatten()[pools.train.labels == 0] % 6 == 4).all()
    assert pools.train.classes == split.train


def test_pools_need_a_tensor() -> None:
    split = ClassSplit(train=("thing 0",), validation=(), test=("thing 1",))
    with pytest.raises(TypeError, match=r"features\.extract"):
        split.pools(labelled(list(range(60))))


def test_glyphs_of_a_split() -> None:
    split = split_alphabets(train=["latin_upper"], test=["greek_upper"])
    data = datasets.glyphs((*split.train, *split.test), per_class=2, validation=0, test=0)
    pools = split.pools(data)
    assert pools.train.classes == split.train
    assert len(pools.test) == 2 * len(split.test)


# Pools


@pytest.mark.parametrize(
    ("x", "labels", "error", "sentence"),
    [
        (torch.zeros(4, 2), torch.tensor([0, 0, 2, 2]), ValueError, "1 of 3 classes have no exam"),
        (torch.zeros(4, 2), torch.tensor([0, 0, 1]), ValueError, "found 4 and 3"),
        (torch.zeros(4, 2), torch.tensor([0, 0, -1, 1]), ValueError, "should lie in 0"),
        (torch.zeros(4, 2), torch.zeros(4), TypeError, "labels should be integers"),
        (np.zeros((4, 2)), torch.zeros(4).long(), TypeError, "found ndarray"),
        (
            torch.tensor([[0.0], [torch.nan], [1.0], [torch.inf]]),
            torch.zeros(4).long(),
            ValueError,
            "2 of 4 examples hold NaN",
        ),
    ],
)
def test_a_pool_refuses_what_it_cannot_mean(
    x: Tensor, labels: Tensor, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        Pool(x, labels)


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="each class may be named once"):
        Pool(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), ("cat", "cat"))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"ways": 7}, "7-way episodes need 7 classes or more, but pool has 6"),
        ({"ways": 1}, "ways should be 2 or more"),
        ({"shots": 0}, "shots should be 1 or more"),
        ({"queries": 0}, "queries should be 1 or more"),
        ({"count": 0}, "the number of episodes should be 1 or more"),
        ({"queries": 3}, r"need 5 examples of each class, but 1 of 6 .*'0' has 4\)\. Ask"),
        ({"shots": 5}, r"3 of 6 .*\. 2 of them would have no query at all\."),
    ],
)
def test_episodes_that_cannot_be_drawn(asked: dict[str, int], sentence: str) -> None:
    settings = {"count": 2, "ways": 3, "shots": 2, "queries": 2} | asked
    count = settings.pop("count")
    with pytest.raises(ValueError, match=sentence):
        uneven().episodes(count, **settings)


# Sampling


def test_within_an_episode_nothing_repeats() -> None:
    pool = uneven()
    episodes = pool.episodes(500, ways=6, shots=2, queries=2, generator=1)
    rows = rows_of(episodes).flatten(1).sort(dim=1).values
    assert (rows.diff(dim=1) > 0).all()  # support and query disjoint, and classes as well
    assert (episodes.classes.sort(dim=1).values == torch.arange(6)).all()


def test_examples_have_the_class_of_their_way() -> None:
    pool = uneven()
    episodes = pool.episodes(50, ways=4, shots=1, queries=3)
    assert (pool.labels[rows_of(episodes)] == episodes.classes[:, :, None]).all()
    assert (episodes.support[..., 0].long() == episodes.support_rows).all()
    assert episodes.query.shape == (50, 4, 3, 1)
    assert episodes.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_classes_and_examples_are_uniform() -> None:
    pool = uneven()
    episodes = pool.episodes(4000, ways=2, shots=1, queries=2, generator=2)
    pairs = Counter(map(tuple, episodes.classes.tolist()))
    assert len(pairs) == 30  # ordered, no class with itself
    assert looks_uniform(list(pairs.values()))
    for place in range(3):  # in every place each example of a class is equally likely
        rows = rows_of(episodes)[:, :, place].flatten()
        counts = torch.bincount(rows, minlength=len(pool))
        for c in range(len(SIZES)):
            assert looks_uniform(counts[pool.labels == c].numpy())


def test_all_orders_of_a_class_are_equally_likely() -> None:
    pool = Pool(torch.arange(8.0)[:, None], torch.arange(8) // 4)
    episodes = pool.episodes(6000, ways=2, shots=3, queries=1, generator=3)
    orders = Counter(map(tuple, rows_of(episodes).flatten(0, 1).remainder(4).tolist()))
    assert len(orders) == 24
    assert looks_uniform(list(orders.values()))


def test_the_seed_decides() -> None:
    pool = uneven()
    asked = {"ways": 3, "shots": 1, "queries": 1}
    first = pool.episodes(20, **asked, generator=5)
    assert first.digest == pool.episodes(20, **asked, generator=5).digest
    assert first.digest != pool.episodes(20, **asked, generator=6).digest
    generator = runtime.Run(5).generator(0)
    assert first.digest == pool.episodes(20, **asked, generator=generator).digest
    assert first.digest != pool.episodes(20, **asked, generator=generator).digest


def test_the_global_state_plays_no_part() -> None:
    before = torch.random.get_rng_state()
    uneven().episodes(5, ways=3, shots=1, queries=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_chunks_are_all_the_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlhelpers.episodes._NUMBERS", 20)
    episodes = uneven().episodes(11, ways=2, shots=1, queries=2)
    parts = list(episodes.chunks())
    assert [len(part) for part in parts] == [3, 3, 3, 2]
    assert torch.equal(torch.cat([part.query for part in parts]), episodes.query)


# Networks


def test_embedded_is_the_network_in_evaluation_mode() -> None:
    images = torch.rand(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pool = Pool(images, torch.arange(600) % 3)
    network = models.small_resnet(2, widths=(2, 2, 4)).train()
    before = models.snapshot(network)
    found = pool.embedded(network)
    assert network.training
    assert models.diff_state(before, network).count("buffer") == 0
    with torch.no_grad():
        assert torch.allclose(found.x, network.eval().features(images), atol=1e-6)


def test_embedded_calls_a_network_without_features() -> None:
    pool = uneven()
    assert torch.allclose(pool.embedded(nn.Flatten()).x, pool.x)


def test_embedded_episodes_are_the_same_episodes() -> None:
    episodes = uneven().episodes(5, ways=2, shots=1, queries=1)
    twice = episodes.embedded(nn.Linear(1, 4))
    assert twice.support.shape == (5, 2, 1, 4)
    assert twice.digest == episodes.digest
