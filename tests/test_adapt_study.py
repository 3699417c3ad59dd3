"""The studies of chapter 13: what they keep, how one chooses, and what is skewed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tlhelpers import adapt, adapt_study, discrepancy, evaluate, models, records

FEW = {"source_only": ({"lr": 3e-3},), "batchnorm": ({"lr": 3e-3},), "mmd": ({"weight": 1.0},) * 2}


def runs() -> pd.DataFrame:
    """Two settings of one method, one seed: each way of choosing takes another row."""
    common: dict[str, Any] = {"method": "mmd", "seed": 0, "step": [1, 2, 3], "a_distance": 0.0}
    first: dict[str, Any] = {
        "setting": "a",
        "source_validation": [0.5, 0.9, 0.9],
        "target_test": [0.6, 0.5, 0.4],
    }
    first |= {"source_validation_loss": [1.0, 0.3, 0.2], "chosen": 2, "target_validation": 0.3}
    second: dict[str, Any] = {
        "setting": "b",
        "source_validation": [0.4, 0.8, 0.7],
        "target_test": [0.7, 0.65, 0.6],
    }
    second |= {"source_validation_loss": [1.0, 0.1, 0.2], "chosen": 1, "target_validation": 0.6}
    return pd.DataFrame([common | first, common | second])


@pytest.mark.parametrize(
    ("by", "setting", "step", "top1"),
    [
        ("source", "a", 3, 0.4),  # of two with equal accuracy, the lower loss
        ("target_validation", "b", 2, 0.65),
        ("target_test", "b", 1, 0.7),
    ],
)
def test_each_way_takes_its_own(by: str, setting: str, step: int, top1: float) -> None:
    (row,) = adapt_study.choose(runs(), by=by).to_dict("records")
    assert (row["setting"], row["step"], row["top1"]) == (setting, step, top1)


def test_ways_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="one of source, target_validation, target_test"):
        adapt_study.choose(runs(), by="last")


def test_compare_keeps_what_one_chooses_by() -> None:
    record = adapt_study.compare(seeds=(0, 1), settings=FEW, steps=6)
    frame = record.to_frame()
    assert record.name == adapt_study.COMPARE
    assert len(frame) == 2 * 4
    assert frame["setting"].unique().tolist() == ["lr 0.003", "weight 1"]
    for row in frame.itertuples():
        best = max(row.source_validation)
        assert row.source_validation[row.chosen] == best
        assert len(row.step) == len(row.target_test) == len(row.source_validation_loss)
    by_test, by_source = (adapt_study.choose(frame, by=way) for way in ("target_test", "source"))
    assert (by_test["top1"].to_numpy() >= by_source["top1"].to_numpy()).all()
    means = by_source.groupby("method")["top1"].mean()
    assert record.result["mmd_gain"] == pytest.approx(means["mmd"] - means["source_only"])
    assert record.result["mmd_optimism"] == pytest.approx(
        record.result["mmd_by_target_test"] - record.result["mmd_by_source"]
    )
    # The same training, seen with other statistics.
    wide = frame.pivot_table(index="seed", columns="method", values="target_test", aggfunc="first")
    assert (wide["batchnorm"] != wide["source_only"]).all()


def test_the_features_are_what_the_head_sees() -> None:
    source, target = adapt_study.pair(0)
    net = adapt_study.network(0)
    assert models.head_name(net) == str(len(net) - 1)
    x = source.validation.x[:5]
    with torch.inference_mode():
        assert torch.allclose(net[-1](adapt_study.features(net, x)), net.eval()(x))
    plain = adapt_study.a_distance(net, source, target)
    assert plain == discrepancy.proxy_a_distance(
        adapt_study.features(net, source.validation.x),
        adapt_study.features(net, target.validation.x),
    )
    adapted = adapt.adapt_batchnorm(net, target.train.x)
    assert adapt_study.a_distance(adapted, source, target, own_statistics=True) < plain


def test_features_of_another_kind_of_network_are_refused() -> None:
    with pytest.raises(TypeError, match="found SmallResNet"):
        adapt_study.features(models.small_resnet(10), torch.rand(2, 1, 16, 16))


def test_the_larger_network_is_the_books() -> None:
    made, x = adapt_study.resnet(3), torch.rand(2, 1, 16, 16)
    whole = models.small_resnet(10, seed=3)
    assert torch.allclose(made.eval()(x), whole.eval()(x), atol=1e-6)
    assert torch.allclose(adapt_study.features(made, x), whole.features(x), atol=1e-6)


def test_half_of_the_classes_become_rare_and_the_rest_stays() -> None:
    _, target = adapt_study.pair(0)
    skewed = adapt_study.skewed(target, ratio=0.1, seed=0)
    counts = np.bincount(skewed.target.train.y)
    assert sorted(counts) == [9] * 5 + [91] * 5
    assert skewed.shares == pytest.approx(counts / 500)
    assert skewed.target.validation.ids == target.validation.ids
    assert skewed.target.test.ids == target.test.ids
    assert repr(skewed).startswith("handwritten, 500 examples with the shares ")
    other = adapt_study.skewed(target, ratio=0.1, seed=1)
    assert (other.shares != skewed.shares).any()
    for ratio in (0.0, 1.5):
        with pytest.raises(ValueError, match="ratio should lie in"):
            adapt_study.skewed(target, ratio=ratio, seed=0)
    with pytest.raises(ValueError, match="smaller n"):
        adapt_study.skewed(target, ratio=0.1, seed=0, n=900)


def test_the_accuracy_is_that_of_the_targets_shares() -> None:
    _, target = adapt_study.pair(0)
    skewed = adapt_study.skewed(target, ratio=0.1, seed=0)
    frequent = int(skewed.shares.argmax())
    report = evaluate.report(
        lambda x: 5 * torch.eye(10)[torch.full((len(x),), frequent)],
        target.test, name="always one class", resamples=2,
    )  # fmt: skip
    assert skewed.accuracy(report) == pytest.approx(91 / 500)


def test_strength_measures_the_same_images_at_each_weight() -> None:
    record = adapt_study.strength(seeds=(0, 1), weights=(0.0, 10.0), steps=4)
    frame = record.to_frame()
    assert record.name == adapt_study.STRENGTH
    assert frame["way"].tolist() == ["alone", "0", "10"] * 2
    assert record.result["target_10"] == pytest.approx(frame["target"][[2, 5]].mean())
    for name in ("source_odds", "source_margin", "target_odds", "target_margin"):
        assert frame[name].map(len).tolist() == [10 * adapt_study.SHOWN] * 3 + [0] * 3


def test_what_is_measured_is_accuracy_and_the_judges() -> None:
    source, target = adapt_study.pair(0)
    net = adapt_study.network(0).eval()
    measured, scores = adapt_study._judged(net, source.validation, target.validation)
    for name, split in (("source", source.validation), ("target", target.validation)):
        assert measured[name] == pytest.approx(evaluate.validate(net, split).value)
        first = torch.argmax(split.y.eq(0).int())  # the first zero
        logits = net(split.x[first : first + 1])[0].detach()
        margin = logits[0] - logits[1:].max()
        assert scores[f"{name}_margin"][0] == pytest.approx(margin.item(), abs=0.006)
    distance = adapt_study.a_distance(net, source, target)
    assert measured["told_apart"] == pytest.approx((distance + 2) / 4)


def test_skew_and_few_labels_make_their_records() -> None:
    record = adapt_study.skew(seeds=(0, 1), ratios=(1.0, 0.1), methods=("batchnorm",), steps=4)
    assert record.name == adapt_study.SKEW
    assert set(record.result) == {"batchnorm_1", "batchnorm_0.1"}
    frame = record.to_frame().set_index(["method", "ratio", "seed"])["top1"]
    gaps = [frame["batchnorm", 0.1, s] - frame["source_only", 0.1, s] for s in (0, 1)]
    assert record.result["batchnorm_0.1"] == pytest.approx(np.mean(gaps))
    few = adapt_study.few_labels(seeds=(0, 1), shots=(1,), steps=4)
    assert few.name == adapt_study.FEW_LABELS
    assert set(few.result) == {"source_0", "source_1", "adapted_0", "adapted_1", "scratch_1"}


def test_the_records_are_shipped() -> None:
    names = {adapt_study.COMPARE, adapt_study.LARGER, adapt_study.STRENGTH, adapt_study.SKEW}
    assert names | {adapt_study.FEW_LABELS} <= set(records.names())
