"""Each classifier against its definition or a library; what intervals cover; episodic training."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers import datasets, fewshot, models, train
from tlhelpers.characters import MILD
from tlhelpers.episodes import Episodes, Pool, Pools, split_alphabets
from tlhelpers.fewshot import Classifier, Result
from tlhelpers.runtime import Run

INDUCTIVE: dict[str, Classifier] = {
    "nearest_centroid": fewshot.nearest_centroid,
    "cosine": fewshot.cosine,
    "matching": fewshot.matching,
    "nearest_neighbour": fewshot.nearest_neighbour,
    "logistic_regression": fewshot.logistic_regression,
    "baseline_plus": fewshot.baseline_plus,
}


def gaussians(*, classes: int = 8, n: int = 40, d: int = 5, apart: float = 1.5) -> Pool:
    generator = torch.Generator().manual_seed(0)
    means = apart * torch.randn(classes, d, generator=generator, dtype=torch.float64)
    labels = torch.arange(classes * n) % classes
    noise = torch.randn(len(labels), d, generator=generator, dtype=torch.float64)
    return Pool(means[labels] + noise, labels, name="gaussians")


def batch(ways: int = 4, shots: int = 3, *, count: int = 6) -> tuple[Tensor, Tensor, Episodes]:
    episodes = gaussians().episodes(count, ways=ways, shots=shots, queries=2)
    return episodes.support, episodes.query.flatten(1, 2), episodes


def flat(support: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """One episode's support as scikit-learn takes it."""
    return support.flatten(0, 1).numpy(), np.repeat(np.arange(len(support)), support.shape[1])


# Classifiers


@pytest.mark.parametrize("name", INDUCTIVE)
def test_easy_classes_are_told_apart(name: str) -> None:
    pool = gaussians(apart=12.0)
    found = fewshot.measure(INDUCTIVE[name], pool.episodes(50, ways=5, shots=5, queries=4))
    assert found.accuracy.value > 0.99
    assert not found.transductive


@pytest.mark.parametrize("name", INDUCTIVE)
def test_names_of_ways_do_not_matter(name: str) -> None:
    support, query, _ = batch()
    order = torch.tensor([2, 0, 3, 1])
    scores = INDUCTIVE[name](support, query)
    assert torch.allclose(INDUCTIVE[name](support[:, order], query), scores[..., order], atol=1e-6)


@pytest.mark.parametrize("name", INDUCTIVE)
def test_episodes_do_not_touch_one_another(name: str) -> None:
    support, query, _ = batch()
    alone = INDUCTIVE[name](support[2:3], query[2:3])
    assert torch.allclose(alone, INDUCTIVE[name](support, query)[2:3], atol=1e-6)


def test_nearest_centroid_is_the_squared_distance_and_scikit_learns() -> None:
    support, query, _ = batch()
    scores = fewshot.nearest_centroid(support, query)
    distance = torch.cdist(query, support.mean(dim=2)).square()
    assert torch.allclose(scores, -distance)
    for i in range(len(support)):
        theirs = NearestCentroid().fit(*flat(support[i])).predict(query[i].numpy())
        assert (scores[i].argmax(dim=1).numpy() == theirs).all()


def test_prototypes_are_a_linear_layer() -> None:
    support, query, _ = batch()
    weight, bias = fewshot.prototype_layer(support)
    linear = torch.stack([F.linear(q, w, b) for q, w, b in zip(query, weight, bias, strict=True)])
    scores = fewshot.nearest_centroid(support, query)
    assert torch.allclose(linear.softmax(dim=-1), scores.softmax(dim=-1))
    gap = linear - scores  # what is left out is the same for all classes
    assert torch.allclose(gap, query.square().sum(dim=-1, keepdim=True).expand_as(gap))


def test_nearest_neighbour_is_scikit_learns() -> None:
    support, query, _ = batch()
    found = fewshot.nearest_neighbour(support, query).argmax(dim=-1)
    for i in range(len(support)):
        theirs = KNeighborsClassifier(1).fit(*flat(support[i])).predict(query[i].numpy())
        assert (found[i].numpy() == theirs).all()


def test_cosine_is_the_cosine_of_mean_directions() -> None:
    support, query, _ = batch()
    means = (support / support.norm(dim=-1, keepdim=True)).mean(dim=2)
    expected = F.cosine_similarity(query[:, :, None], means[:, None], dim=-1)
    assert torch.allclose(fewshot.cosine(support, query, scale=3.0), 3 * expected)
    # One shot: scale and length play no part in the order.
    assert torch.allclose(fewshot.cosine(5 * support, 2 * query), fewshot.cosine(support, query))


def test_matching_sums_attention_over_each_class() -> None:
    support, query, _ = batch(ways=3, shots=2, count=1)
    keys = F.normalize(support[0].flatten(0, 1), dim=-1)
    attention = (2.0 * F.normalize(query[0], dim=-1) @ keys.T).softmax(dim=-1)
    expected = torch.stack([attention[:, 2 * c : 2 * c + 2].sum(dim=1) for c in range(3)], dim=1)
    found = fewshot.matching(support, query, scale=2.0)[0].exp()
    assert torch.allclose(found, expected)
    assert torch.allclose(found.sum(dim=1), torch.ones(len(found), dtype=found.dtype))


@pytest.mark.parametrize("ways", [2, 4])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_logistic_regression_is_scikit_learns(ways: int, ridge: float) -> None:
    support, query, _ = batch(ways=ways)
    n = ways * support.shape[2]
    found = fewshot.logistic_regression(support, query, ridge=ridge).softmax(dim=-1)
    strength = (2 if ways == 2 else 1) / (ridge * n)
    for i in range(len(support)):
        theirs = LogisticRegression(C=strength, tol=1e-12, max_iter=20_000).fit(*flat(support[i]))
        expected = theirs.predict_proba(query[i].numpy())
        np.testing.assert_allclose(found[i].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("ridge", [1e-4, 1.0])
def test_logistic_layer_has_no_gradient_left(ridge: float) -> None:
    support = torch.randn(5, 5, 4, 64, generator=torch.Generator().manual_seed(0)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight, bias = fewshot.logistic_layer(support, ridge=ridge)
    weight.requires_grad_()
    bias.requires_grad_()
    logits = support.flatten(1, 2) @ weight.mT + bias[:, None]
    labels = torch.arange(5).repeat_interleave(4).repeat(5)
    loss = 5 * F.cross_entropy(logits.flatten(0, 1), labels) + ridge / 2 * weight.square().sum()
    for slope in torch.autograd.grad(loss, [weight, bias]):
        assert slope.abs().max() < 1e-7


def test_logistic_regression_of_float32_features_agrees() -> None:
    support, query, _ = batch()
    exact = fewshot.logistic_regression(support, query).softmax(dim=-1)
    rough = fewshot.logistic_regression(support.float(), query.float()).softmax(dim=-1)
    assert torch.allclose(rough.double(), exact, atol=1e-3)


def test_logistic_regression_takes_equal_features_as_they_are() -> None:
    support = torch.ones(3, 4, 2, 5)
    scores = fewshot.logistic_regression(support, torch.ones(3, 6, 5))
    assert torch.allclose(scores.softmax(dim=-1), torch.full((3, 6, 4), 0.25))


def test_a_ridge_weight_of_zero_is_refused() -> None:
    support, query, _ = batch()
    with pytest.raises(ValueError, match="ridge should be above 0"):
        fewshot.logistic_regression(support, query, ridge=0.0)


def test_baseline_plus_starts_at_cosine_and_lowers_the_loss() -> None:
    support, _, episodes = batch()
    x, y = support.flatten(1, 2), torch.arange(4).repeat_interleave(3).repeat(len(episodes))
    losses = [
        F.cross_entropy(fewshot.baseline_plus(support, x, steps=steps).flatten(0, 1), y)
        for steps in (0, 20, 100)
    ]
    start = F.cross_entropy(fewshot.cosine(support, x).flatten(0, 1), y)
    assert torch.isclose(losses[0], start)
    assert losses[2] < losses[1] < losses[0]


def test_soft_kmeans_without_steps_is_nearest_centroid() -> None:
    support, query, _ = batch()
    start = fewshot.nearest_centroid(support, query)
    assert torch.allclose(fewshot.soft_kmeans(support, query, steps=0), start)


def test_soft_kmeans_takes_the_queries_that_are_certain() -> None:
    # Far from one another, queries belong to one class wholly: prototypes are plain means.
    support = torch.tensor([[[[0.0]], [[100.0]]]])
    query = torch.tensor([[[4.0], [102.0]]])
    moved = torch.tensor([[[[2.0]], [[101.0]]]])
    assert torch.allclose(
        fewshot.soft_kmeans(support, query), fewshot.nearest_centroid(moved, query)
    )


def test_the_cosine_head_gives_cosines() -> None:
    head = fewshot.CosineHead(6, 3, scale=4.0, seed=1)
    x = torch.randn(5, 6)
    expected = 4 * F.cosine_similarity(x[:, None], head.weight[None], dim=-1)
    assert torch.allclose(head(x), expected, atol=1e-6)
    assert torch.equal(head.weight, fewshot.CosineHead(6, 3, seed=1).weight)
    network = models.small_resnet(3)
    network.head = fewshot.CosineHead(64, 3)
    assert models.head_name(network) == "head"


# What accuracy is worth


def test_two_gaussians_give_the_bayes_accuracy() -> None:
    apart, n = 2.0, 5000
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(2 * n) % 2
    x = torch.randn(2 * n, 2, generator=generator)
    x[:, 0] += apart * labels
    episodes = Pool(x, labels).episodes(2000, ways=2, shots=50, queries=20)
    found = fewshot.measure(fewshot.nearest_centroid, episodes)
    assert found.accuracy.value == pytest.approx(stats.norm.cdf(apart / 2), abs=0.01)


def test_features_that_say_nothing_give_chance() -> None:
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(2))
    pool = Pool(x, torch.arange(600) % 6)
    found = fewshot.measure(
        fewshot.nearest_centroid, pool.episodes(3000, ways=4, shots=2, queries=5)
    )
    assert found.accuracy.low < 0.25 < found.accuracy.high


def test_measure_counts_as_a_loop_does() -> None:
    _, _, episodes = batch(count=30)
    found = fewshot.measure(fewshot.nearest_centroid, episodes)
    for i in range(len(episodes)):
        part = episodes[i : i + 1]
        scores = fewshot.nearest_centroid(part.support, part.query.flatten(1, 2))[0]
        right = (scores.argmax(dim=1) == part.labels).double().mean()
        assert found.per_episode[i] == pytest.approx(float(right))
    table = found.to_frame()
    assert table.episodes.sum() == 30 * 4
    weighted = (table.accuracy * table.episodes).sum() / table.episodes.sum()
    assert weighted == pytest.approx(found.accuracy.value)
    assert "4-way 3-shot, 30 episodes" in str(found)


def centred_on_queries(support: Tensor, query: Tensor) -> Tensor:
    middle = query.mean(dim=1, keepdim=True)
    return fewshot.nearest_centroid(support - middle[:, None], F.normalize(query - middle, dim=-1))


@pytest.mark.parametrize("classifier", [fewshot.soft_kmeans, centred_on_queries])
def test_transductive_results_are_named(classifier: Classifier) -> None:
    found = fewshot.measure(classifier, batch()[2])
    assert found.transductive
    assert "TRANSDUCTIVE" in str(found)


def test_the_name_holds_the_settings() -> None:
    classifier = functools.partial(fewshot.cosine, scale=2.0)
    assert fewshot.measure(classifier, batch()[2]).name == "cosine (scale 2.0)"


def test_bad_scores_are_refused() -> None:
    episodes = batch()[2]
    with pytest.raises(ValueError, match=r"\(6, 8, 4\), found \(6, 8, 5\)"):
        fewshot.measure(lambda s, q: torch.zeros(len(q), q.shape[1], 5), episodes)
    with pytest.raises(ValueError, match="NaN for 48 queries"):
        fewshot.measure(lambda s, q: q.new_full((len(q), q.shape[1], 4), torch.nan), episodes)
    with pytest.raises(ValueError, match="2 episodes or more"):
        fewshot.measure(fewshot.cosine, episodes[:1])


def test_differences_are_paired() -> None:
    episodes = gaussians(apart=0.8).episodes(400, ways=4, shots=3, queries=5)
    a = fewshot.measure(fewshot.nearest_centroid, episodes)
    b = fewshot.measure(fewshot.logistic_regression, episodes)
    gap = fewshot.difference(a, b)
    assert gap.value == pytest.approx(a.accuracy.value - b.accuracy.value)
    # Narrower than if the two were of different episodes.
    width = np.hypot(a.accuracy.high - a.accuracy.low, b.accuracy.high - b.accuracy.low)
    assert gap.high - gap.low < 0.8 * width
    same = fewshot.difference(a, a, over="classes")
    assert (same.low, same.value, same.high) == (0, 0, 0)
    other = gaussians().episodes(400, ways=4, shots=3, queries=5, generator=1)
    with pytest.raises(ValueError, match="needs the same episodes"):
        fewshot.difference(a, fewshot.measure(fewshot.cosine, other))
    with pytest.raises(ValueError, match='"episodes" or "classes"'):
        fewshot.difference(a, b, over="images")


def simulated(world: np.random.Generator, *, classes: int, episodes: int) -> Result:
    """Accuracies with effects of each class and of each pair of classes around 0.7."""
    own = world.normal(0, 0.06, classes)
    pair = np.triu(world.normal(0, 0.04, (classes, classes)), 1)
    drawn = world.random((episodes, classes)).argsort(axis=1)[:, :5]
    both = (pair + pair.T)[drawn[:, :, None], drawn[:, None, :]].mean(axis=2)
    noise = world.normal(0, 0.05, (episodes, 5))
    return Result(
        name="simulated",
        pool="worlds",
        class_names=tuple(map(str, range(classes))),
        shots=1,
        queries=1,
        transductive=False,
        correct=0.7 + own[drawn] + both + noise,
        classes=drawn,
        digest="",
    )


def test_intervals_cover_what_they_say() -> None:
    world = np.random.default_rng(0)
    over_classes, over_episodes = [], []
    for _ in range(400):
        found = simulated(world, classes=16, episodes=1000)
        over_classes.append(found.over_classes.low <= 0.7 <= found.over_classes.high)
        over_episodes.append(found.accuracy.low <= 0.7 <= found.accuracy.high)
    assert 0.93 <= np.mean(over_classes) <= 0.985
    assert np.mean(over_episodes) < 0.5  # it covers these 16 classes, not others


def test_the_interval_over_episodes_covers_the_mean_of_these_classes() -> None:
    truth = fewshot.measure(
        fewshot.nearest_centroid, gaussians().episodes(20_000, ways=3, shots=1, queries=2)
    ).accuracy.value
    hits = []
    for seed in range(1, 201):
        episodes = gaussians().episodes(100, ways=3, shots=1, queries=2, generator=seed)
        found = fewshot.measure(fewshot.nearest_centroid, episodes).accuracy
        hits.append(found.low <= truth <= found.high)
    assert 0.90 <= np.mean(hits) <= 0.99


def test_an_interval_over_classes_needs_classes_to_leave_out() -> None:
    pool = gaussians(classes=4)
    found = fewshot.measure(fewshot.nearest_centroid, pool.episodes(20, ways=4, shots=1, queries=1))
    with pytest.raises(ValueError, match="Hold out more classes"):
        _ = found.over_classes


# Networks in episodes


def templates(classes: int, *, seed: int, first: int = 0) -> Pool:
    """Images of random patterns, one for each class, with noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = (torch.rand(classes, 1, 8, 8, generator=generator) > 0.5).float()
    labels = torch.arange(12 * classes) % classes
    noise = torch.rand(len(labels), 1, 8, 8, generator=generator)
    images = 0.35 * patterns[labels] + 0.65 * noise
    return Pool(images, labels, tuple(f"pattern {first + c}" for c in range(classes)))


def small(seed: int = 0) -> models.SmallResNet:
    return models.small_resnet(2, widths=(8, 8, 16), seed=seed)


SHAPE = {"ways": 5, "shots": 2, "queries": 4}


@pytest.fixture(scope="module")
def alphabets() -> Pools:
    split = split_alphabets(train=["latin_lower", "armenian_lower"], test=["georgian"])
    names = (*split.train, *split.test)
    data = datasets.glyphs(names, per_class=15, shift=MILD, validation=0, test=0)
    return split.pools(data)


@pytest.mark.parametrize("classifier", [fewshot.nearest_centroid, fewshot.matching])
def test_training_on_episodes_helps_with_new_classes(
    classifier: Classifier, alphabets: Pools
) -> None:
    new = alphabets.test.episodes(300, **SHAPE)
    network = models.small_resnet(2, widths=(8, 16, 32))
    before = fewshot.measure(classifier, new.embedded(network))
    history = fewshot.fit(
        network,
        alphabets.train,
        ways=10,
        shots=2,
        queries=4,
        classifier=classifier,
        steps=60,
        lr=5e-3,
    )
    after = fewshot.measure(classifier, new.embedded(network))
    assert fewshot.difference(after, before).low > 0.1
    assert history.train_loss.iloc[-1] < history.train_loss.iloc[0]
    assert history.step.tolist() == list(range(6, 61, 6))
    assert history.epoch.iloc[-1] == -(-60 * 60 // len(alphabets.train))
    assert history.validation_top1.isna().all()
    assert not network.training


def test_the_best_weights_on_validation_are_kept() -> None:
    validation = templates(10, seed=2, first=50).episodes(40, **SHAPE)
    network = small()
    history = fewshot.fit(
        network,
        templates(10, seed=0),
        **SHAPE,
        steps=8,
        lr=1e-2,
        validation=validation,
        validate_every=2,
    )
    found = fewshot.measure(fewshot.nearest_centroid, validation.embedded(network))
    assert history.best.validation_top1 == pytest.approx(history.validation_top1.max())
    assert found.accuracy.value == pytest.approx(history.best.validation_top1)


def test_training_follows_its_seed_alone() -> None:
    def weights(seed: int) -> str:
        network = small()
        augment: Callable[[Tensor, torch.Generator], Tensor] = lambda x, g: (  # noqa: E731
            x + 0.1 * torch.rand(x.shape, generator=g)
        )
        fewshot.fit(network, templates(8, seed=0), **SHAPE, steps=3, augment=augment, run=Run(seed))
        return models.fingerprint(network)

    torch.manual_seed(0)
    first, state = weights(1), torch.random.get_rng_state()
    torch.rand(3)
    assert weights(1) == first != weights(2)
    torch.manual_seed(0)
    weights(1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_validation_may_not_hold_classes_that_are_learnt() -> None:
    pool = templates(8, seed=0)
    with pytest.raises(ValueError, match="overlap: 'pattern 0'"):
        fewshot.fit(small(), pool, **SHAPE, validation=pool.episodes(5, **SHAPE))


def test_a_loss_that_diverges_gives_the_weights_back() -> None:
    network = small()
    before = models.fingerprint(network)

    def broken(support: Tensor, query: Tensor) -> Tensor:
        return fewshot.nearest_centroid(support, query) * torch.nan

    with pytest.raises(FloatingPointError, match="step 1 of 5"):
        fewshot.fit(network, templates(8, seed=0), **SHAPE, classifier=broken, steps=5)
    assert models.fingerprint(network) == before
    assert not network.training


def test_batch_statistics_are_those_of_training_mode() -> None:
    network = small().train()
    images = torch.rand(20, 1, 8, 8)
    twin = fewshot.with_batch_statistics(network)
    assert torch.allclose(twin(images), network(images), atol=1e-4)
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in network.named_parameters()]


def test_running_statistics_are_the_cached_features() -> None:
    episodes = templates(8, seed=0).episodes(10, **SHAPE)
    network = small()
    fewshot.fit(network, templates(8, seed=1), **SHAPE, steps=3)
    slow = fewshot.measure(fewshot.on_images(fewshot.nearest_centroid, network), episodes)
    fast = fewshot.measure(fewshot.nearest_centroid, episodes.embedded(network))
    assert not slow.transductive
    assert (slow.correct == fast.correct).all()


def test_a_network_left_in_training_mode_is_transductive() -> None:
    episodes = templates(8, seed=0).episodes(10, **SHAPE)
    network = small()
    trap = fewshot.on_images(fewshot.nearest_centroid, network, statistics="episode")
    found = fewshot.measure(trap, episodes)
    assert found.transductive
    # The same as a plain loop with the network in training mode.
    network.train()
    for i in range(3):
        support, query = episodes[i : i + 1].support[0], episodes[i : i + 1].query[0].flatten(0, 1)
        features = network.features(torch.cat([support.flatten(0, 1), query]))
        few, rest = features[:10].view(5, 2, -1), features[10:]
        scores = fewshot.nearest_centroid(few[None], rest[None])[0]
        right = (scores.argmax(dim=1) == episodes.labels).float().mean()
        assert found.per_episode[i] == pytest.approx(float(right))
    with pytest.raises(ValueError, match="running, episode"):
        fewshot.on_images(fewshot.cosine, network, statistics="train")


def test_on_images_takes_any_network() -> None:
    flatten = nn.Sequential(nn.Flatten())
    episodes = templates(8, seed=0).episodes(5, **SHAPE)
    found = fewshot.measure(fewshot.on_images(fewshot.cosine, flatten), episodes)
    assert (
        found.correct == fewshot.measure(fewshot.cosine, episodes.embedded(flatten)).correct
    ).all()


def test_history_reads_as_trains_does() -> None:
    history = fewshot.fit(small(), templates(8, seed=0), **SHAPE, steps=2)
    assert isinstance(history, train.History)
    assert "Ran all 2 steps" in history.summary()
