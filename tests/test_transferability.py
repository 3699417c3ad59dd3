"""Each estimator against its formula as published, written naively; and its properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_features import FLOAT, pictures, small_backbone

from tlhelpers import features, records
from tlhelpers import transferability as tr

Scorer = Callable[[np.ndarray, np.ndarray], float]

ON_FEATURES: dict[str, Scorer] = {
    "logme": tr.logme,
    "h_score": tr.h_score,
    "h_score with shrinkage": lambda x, y: tr.h_score(x, y, shrinkage=True),
    "knn": tr.knn,
    "probe": tr.probe,
}


def clusters(
    *, n: int = 90, d: int = 6, m: int = 3, apart: float = 2.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features of m classes whose means lie ``apart`` standard deviations from the origin."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % m
    means = apart * np.linalg.qr(generator.normal(size=(d, m)))[0].T
    return generator.normal(size=(n, d)) + means[labels] + 0.5, labels


def source_says(
    *, n: int = 60, s: int = 5, m: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A source network's probabilities over s classes, which tell something about m classes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % m
    logits = generator.normal(size=(n, s)) + 2 * generator.normal(size=(m, s))[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


# Published formulas


def log_evidence(x: np.ndarray, y: np.ndarray, alpha: float, beta: float) -> float:
    """log N(y; 0, FFᵀ/α + I/β), without any algebra on it."""
    covariance = x @ x.T / alpha + np.eye(len(x)) / beta
    return float(stats.multivariate_normal(cov=covariance).logpdf(y))


@pytest.mark.parametrize(("n", "d"), [(40, 5), (12, 30)])
def test_logme_is_the_largest_evidence(n: int, d: int) -> None:
    x, labels = clusters(n=n, d=d, apart=1.0)
    largest = []
    for c in range(3):
        y = (labels == c).astype(float)
        starts = [(0.0, 0.0), (3.0, 2.0), (-2.0, 3.0)]
        found = [
            optimize.minimize(
                lambda t, y=y: -log_evidence(x, y, *np.exp(np.clip(t, -15, 15))),
                start,
                method="Nelder-Mead",
                options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000},
            ).fun
            for start in starts
        ]
        largest.append(-min(found) / n)
    assert tr.logme(x, labels) == pytest.approx(np.mean(largest), abs=1e-5)


def test_logme_ignores_the_scale_of_the_features() -> None:
    x, labels = clusters()
    assert tr.logme(1e-4 * x, labels) == pytest.approx(tr.logme(x, labels), abs=1e-9)
    assert tr.logme(1e4 * x, labels) == pytest.approx(tr.logme(x, labels), abs=1e-9)


def test_logme_stays_finite_where_the_evidence_has_no_limit() -> None:
    _, labels = clusters()
    perfect = tr.logme(np.eye(3)[labels], labels)
    assert math.isfinite(perfect)
    assert perfect > tr.logme(clusters(apart=3)[0], labels)
    nothing = tr.logme(np.zeros((90, 2)), labels)
    y = np.eye(3)[labels]
    # Without features the labels are noise of their own mean square.
    assert nothing == pytest.approx(-0.5 * np.log(2 * np.pi * np.e * (y**2).mean()), abs=1e-6)


@pytest.mark.parametrize("shrinkage", [False, True])
def test_h_score_is_its_trace(shrinkage: bool) -> None:
    x, labels = clusters()
    means = np.stack([x[labels == labels[i]].mean(axis=0) for i in range(len(x))])
    total, keep = np.cov(x, rowvar=False, bias=True), 1.0
    if shrinkage:
        fitted = LedoitWolf().fit(x)
        total, keep = fitted.covariance_, 1 - fitted.shrinkage_
        assert 0.01 < fitted.shrinkage_ < 1
    expected = np.trace(np.linalg.inv(total) @ (keep * np.cov(means, rowvar=False, bias=True)))
    assert tr.h_score(x, labels, shrinkage=shrinkage) == pytest.approx(expected, rel=1e-9)


def test_h_score_of_few_images_is_blind_and_shrinkage_is_not() -> None:
    x, labels = clusters(n=30, d=40)
    shuffled = np.random.default_rng(1).permutation(labels)
    assert tr.h_score(x, labels) == pytest.approx(2)
    assert tr.h_score(x, shuffled) == pytest.approx(2)
    assert tr.h_score(x, labels, shrinkage=True) > 1.5 * tr.h_score(x, shuffled, shrinkage=True)


def test_h_score_lies_between_0_and_classes_less_one() -> None:
    x, labels = clusters(apart=0.0)
    assert 0 <= tr.h_score(x, labels) < 0.5
    assert tr.h_score(np.eye(3)[labels], labels) == pytest.approx(2)


def test_knn_is_leave_one_out() -> None:
    x, labels = clusters(apart=1.0)
    hits = 0
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        # Weights that only break ties: three of them cannot outweigh a vote.
        model = KNeighborsClassifier(5, weights=lambda d: 1 + 1e-3 / (1 + d))
        hits += model.fit(x[others], labels[others]).predict(x[[i]])[0] == labels[i]
    assert tr.knn(x, labels) == pytest.approx(hits / len(x))


def test_knn_prefers_the_nearer_of_two_equals() -> None:
    x = np.array([[0.0], [1.0], [-1.5], [10.0], [11.0]])
    labels = np.array([0, 0, 1, 1, 1])
    # The first point has one neighbour of each class; class 0 is nearer.
    assert tr.knn(x, labels, k=2) == pytest.approx(np.mean([True, True, False, True, True]))


@pytest.mark.parametrize(("n", "d"), [(90, 6), (30, 40)])
def test_probe_is_scikit_learns_ridge_classifier(n: int, d: int) -> None:
    x, labels = clusters(n=n, d=d, apart=1.0)
    x[:, 0] *= 1000
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=tr.RIDGES))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    expected = cross_val_score(model, x, labels, cv=folds).mean()
    assert 0.3 < expected < 0.95
    assert tr.probe(x, labels) == pytest.approx(expected, abs=1e-12)


def test_probe_takes_constant_features() -> None:
    x, labels = clusters()
    with_constants = np.hstack([x, np.full((90, 1), 0.1), np.zeros((90, 2))])
    assert tr.probe(with_constants, labels) == pytest.approx(tr.probe(x, labels))


def test_probe_judges_no_image_that_it_has_seen() -> None:
    generator = np.random.default_rng(0)
    x, labels = generator.normal(size=(60, 200)), np.arange(60) % 3
    # With more features than images a classifier separates the training images perfectly.
    assert tr.probe(x, labels) < 0.6
    assert tr.probe(*clusters(apart=6.0)) == 1


def test_leep_is_its_double_sum() -> None:
    theta, labels = source_says()
    n, s = theta.shape
    total = 0.0
    for i in range(n):
        inner = 0.0
        for z in range(s):
            joint = sum(theta[j, z] for j in range(n) if labels[j] == labels[i]) / n
            marginal = sum(theta[j, z] for j in range(n)) / n
            inner += joint / marginal * theta[i, z]
        total += math.log(inner)
    assert tr.leep(theta, labels) == pytest.approx(total / n)


def test_nce_is_its_double_sum() -> None:
    theta, labels = source_says()
    source = theta.argmax(axis=1)
    total = 0.0
    for y in set(labels.tolist()):
        for z in set(source.tolist()):
            joint = float(((labels == y) & (source == z)).mean())
            if joint > 0:
                total += joint * math.log(joint / float((source == z).mean()))
    assert tr.nce(source, labels) == pytest.approx(total)


def test_leep_of_hard_probabilities_is_nce() -> None:
    theta, labels = source_says()
    source = theta.argmax(axis=1)
    assert tr.leep(np.eye(5)[source], labels) == pytest.approx(tr.nce(source, labels))


# Properties


@pytest.mark.parametrize("name", ON_FEATURES)
def test_the_order_of_images_and_the_names_of_classes_do_not_matter(name: str) -> None:
    x, labels = clusters(apart=1.5)
    order = np.random.default_rng(1).permutation(len(x))
    renamed = np.array([7, -2, 40])[labels]
    tolerance = 0.1 if name == "probe" else 1e-9  # its folds are dealt anew
    assert ON_FEATURES[name](x[order], labels[order]) == pytest.approx(
        ON_FEATURES[name](x, labels), abs=tolerance
    )
    assert ON_FEATURES[name](x, renamed) == pytest.approx(
        ON_FEATURES[name](x, labels), abs=tolerance
    )


@pytest.mark.parametrize("name", ["logme", "h_score", "h_score with shrinkage", "knn"])
def test_a_rotation_of_the_features_does_not_matter(name: str) -> None:
    x, labels = clusters(apart=1.0)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    assert ON_FEATURES[name](x @ rotation, labels) == pytest.approx(
        ON_FEATURES[name](x, labels), abs=1e-7
    )


@pytest.mark.parametrize("name", ON_FEATURES)
def test_the_further_apart_the_classes_the_higher(name: str) -> None:
    scores = [ON_FEATURES[name](*clusters(apart=apart)) for apart in (0.0, 1.0, 2.0, 6.0)]
    assert scores == sorted(scores)
    assert scores[0] < scores[1] < scores[2]
    x, labels = clusters(apart=2.0)
    shuffled = np.random.default_rng(3).permutation(labels)
    assert ON_FEATURES[name](x, shuffled) < scores[2]


@pytest.mark.parametrize("name", ON_FEATURES)
def test_tensors_and_arrays_agree(name: str) -> None:
    x, labels = clusters()
    single = x.astype(np.float32)
    score = ON_FEATURES[name](torch.from_numpy(single), torch.from_numpy(labels))  # type: ignore[arg-type]
    assert isinstance(score, float)
    assert score == ON_FEATURES[name](single, labels)


def test_leep_and_nce_are_0_at_best() -> None:
    theta, labels = source_says()
    assert tr.leep(np.eye(3)[labels], labels) == pytest.approx(0, abs=1e-12)
    assert tr.nce(labels, labels) == pytest.approx(0, abs=1e-12)
    assert tr.leep(theta, labels) < 0
    # A source that says the same of every image leaves the entropy of the labels.
    blind = np.full((60, 5), 0.2)
    assert tr.leep(blind, labels) == pytest.approx(-math.log(3))
    assert tr.nce(np.zeros(60, int), labels) == pytest.approx(-math.log(3))
    assert tr.leep(theta, labels) > tr.leep(blind, labels)


def test_leep_and_nce_do_not_care_about_order_or_names() -> None:
    theta, labels = source_says()
    order = np.random.default_rng(1).permutation(len(theta))
    mixed = theta[order][:, [3, 1, 4, 0, 2]]
    assert tr.leep(mixed, labels[order]) == pytest.approx(tr.leep(theta, labels))
    source = theta.argmax(axis=1)
    assert tr.nce(-3 * source[order], labels[order]) == pytest.approx(tr.nce(source, labels))


# Bad input


@pytest.mark.parametrize("name", ON_FEATURES)
def test_bad_input_gets_a_sentence(name: str) -> None:
    x, labels = clusters()
    broken = x.copy()
    broken[4, 2] = np.nan
    cases: list[tuple[Any, Any, str]] = [
        (broken, labels, "1 of 90 rows hold NaN or infinity"),
        (x[0], labels, r"should have the shape \(n, d\), found \(6,\)"),
        (x, labels[:-1], "should be of the same images: 90 and 89"),
        (x, np.zeros(90, int), "should have 2 classes or more, found 1"),
        (x, np.eye(3)[labels], r"should have the shape \(n,\), found \(90, 3\)"),
        (x, labels + 0.5, "should be integers, found float64"),
    ]
    for x_given, y_given, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            ON_FEATURES[name](x_given, y_given)


def test_further_bad_input_gets_a_sentence() -> None:
    x, labels = clusters()
    theta, of = source_says()
    with pytest.raises(ValueError, match=r"k should lie in 1\.\.89 for 90 images, found 90"):
        tr.knn(x, labels, k=90)
    with pytest.raises(ValueError, match=r"folds should lie in 2\.\.30, .* found 31"):
        tr.probe(x, labels, folds=31)
    with pytest.raises(ValueError, match="Take the softmax of the logits first"):
        tr.leep(np.log(theta), of)
    with pytest.raises(ValueError, match="rows sum to 2 to 2"):
        tr.leep(2 * theta, of)
    with pytest.raises(ValueError, match="source_labels should be integers, found float64"):
        tr.nce(theta.max(axis=1), of)
    with pytest.raises(ValueError, match="same images, found 59 and 60"):
        tr.nce(np.zeros(59, int), of)


# How good is an estimator?


def test_weighted_tau_weighs_the_top() -> None:
    truth = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    assert tr.weighted_tau(truth, truth) == pytest.approx(1)
    assert tr.weighted_tau(-truth, truth) == pytest.approx(-1)
    top_two_swapped = tr.weighted_tau([4, 5, 3, 2, 1], truth)
    last_two_swapped = tr.weighted_tau([5, 4, 3, 1, 2], truth)
    assert top_two_swapped < last_two_swapped < 1
    # With errors instead of accuracies the weights would lie on the worst networks.
    assert tr.weighted_tau(-np.array([4, 5, 3, 2, 1]), -truth) > top_two_swapped


def test_weighted_tau_is_the_formula() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 7))

    def one_way(by: np.ndarray) -> float:
        place = (-by).argsort().argsort()
        total = signed = 0.0
        for i in range(7):
            for j in range(i):
                weight = 1 / (place[i] + 1) + 1 / (place[j] + 1)
                total += weight
                signed += weight * np.sign((a[i] - a[j]) * (b[i] - b[j]))
        return signed / total

    assert tr.weighted_tau(a, b) == pytest.approx((one_way(a) + one_way(b)) / 2)


def test_regret_is_what_the_pick_loses() -> None:
    truth = np.array([0.9, 0.7, 0.8])
    assert tr.regret([3, 1, 2], truth) == 0
    assert tr.regret([1, 3, 2], truth) == pytest.approx(0.2)
    assert tr.regret([2, 2, 0], truth) == pytest.approx(0.1), "one of the two, at random"
    assert tr.regret([5, 5, 5], truth) == pytest.approx(0.1), "a random pick"


@pytest.mark.parametrize("metric", [tr.weighted_tau, tr.regret])
def test_metrics_refuse_what_they_cannot_compare(metric: tr.Metric) -> None:
    with pytest.raises(ValueError, match=r"found the shapes \(3,\) and \(2,\)"):
        metric([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="two or more networks"):
        metric([1], [1])
    with pytest.raises(ValueError, match="should be finite"):
        metric([1, math.nan], [1, 2])


def test_no_order_no_correlation() -> None:
    with pytest.raises(ValueError, match="scores are all 1, so there is no order"):
        tr.weighted_tau([1, 1, 1], [1, 2, 3])
    with pytest.raises(ValueError, match="truth are all 2"):
        tr.weighted_tau([1, 2, 3], [2, 2, 2])


def occasions(t: int = 6, d: int = 4, s: int = 8) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A good estimator, a slightly worse one that errs with it, and a bad one."""
    generator = np.random.default_rng(0)
    quality = generator.normal(size=(t, 1, s))
    truth = quality + 0.05 * generator.normal(size=(t, d, s))
    good = quality + 0.5 * generator.normal(size=(t, d, s))
    worse = good + 0.3 * generator.normal(size=(t, d, s))
    return {"good": good, "worse": worse, "bad": generator.normal(size=(t, d, s))}, truth


def test_compare_averages_over_targets_and_draws() -> None:
    scores, truth = occasions()
    result = tr.compare(scores, truth)
    by_hand = [
        tr.weighted_tau(scores["good"][t, d], truth[t].mean(axis=0))
        for t in range(6)
        for d in range(4)
    ]
    good, bad = result.estimate("good"), result.estimate("bad")
    assert good.value == pytest.approx(np.mean(by_hand))
    assert good.low < good.value < good.high
    assert bad.low < 0 < bad.high < good.low
    assert repr(result).startswith("good 0.")


def test_differences_are_paired() -> None:
    scores, truth = occasions()
    result = tr.compare(scores, truth, metric=tr.regret, unit="points")
    gap = result.difference("good", "worse")
    assert gap.value == pytest.approx(
        result.estimate("good").value - result.estimate("worse").value
    )
    unpaired = sum(
        (result.estimate(name).high - result.estimate(name).low) / 2 for name in ("good", "worse")
    )
    assert (gap.high - gap.low) / 2 < unpaired
    assert gap.unit == "points"
    same = result.difference("good", "good")
    assert (same.low, same.value, same.high) == (0, 0, 0)
    frame = result.to_frame(against="good")
    assert frame.estimator.tolist() == ["good", "worse", "bad"]
    assert frame.gap_low.iloc[0] == frame.gap_high.iloc[0] == 0


def test_compare_takes_scores_that_depend_on_neither_target_nor_draw() -> None:
    scores, truth = occasions()
    size = np.arange(8.0)
    result = tr.compare({"size": size[None, None], **scores}, truth)
    assert result.values["size"].shape == (6, 4)
    assert (result.values["size"] == result.values["size"][:, :1]).all()
    assert result.estimate("good").value == tr.compare(scores, truth).estimate("good").value


def test_compare_refuses_shapes_that_do_not_fit() -> None:
    scores, truth = occasions()
    with pytest.raises(ValueError, match=r"'good' should have the shape \(6, 4, 7\)"):
        tr.compare(scores, truth[..., :7])
    with pytest.raises(ValueError, match=r"\(targets, draws, sources\), found \(4, 8\)"):
        tr.compare(scores, truth[0])
    with pytest.raises(KeyError, match="there are good, worse, bad"):
        tr.compare(scores, truth).estimate("best")
    with pytest.raises(ValueError, match="resamples should be 1 or more"):
        tr.compare(scores, truth, resamples=0)


# What others have measured, and ImageNet's head


def test_the_published_table_is_whole() -> None:
    table = tr.published()
    assert table.groupby("data").model.nunique().tolist() == [10] * 8
    assert not table.isna().any().any()
    assert table["finetuned"].between(60, 98).all()
    assert (table["leep"] < 0).all()
    copied = (table["nce"] == table["logme"]).groupby(table["data"]).all()
    assert copied.index[copied].tolist() == ["DTD"]


def test_imagenets_head_is_scored_on_the_training_part() -> None:
    data, backbone = pictures(), small_backbone()
    record = tr.imagenet_head(data, backbone, shots=(2, 4), draws=2, run=FLOAT)
    rows = record.to_frame()
    assert data.test.readings == ()
    logits = features.extract(data, backbone, at="logits", run=FLOAT)
    few = logits.few(2, draw=1).train
    row = rows[(rows.k == 2) & (rows.draw == 1)].iloc[0]
    assert row.leep == pytest.approx(tr.leep(few.x.double().softmax(1), few.y))
    assert row.nce == pytest.approx(tr.nce(few.x.argmax(1), few.y))
    assert record.name == "dogs/transferability_mobilenet_v2"
    mean = rows[rows.k == 2].leep.mean()
    assert record.result["leep_nats_k2"] == pytest.approx(mean)
    assert record.interval["leep_nats_k2"][0] <= mean


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_the_shipped_scores_of_imagenets_head_are_log_likelihoods(name: str) -> None:
    rows = records.load(f"dogs/transferability_{name}").to_frame()
    assert set(rows.k) == set(tr.SHOTS)
    assert (rows[["leep", "nce"]] < 0).all().all()
    assert (rows[["leep", "nce"]] > -math.log(120)).all().all()
