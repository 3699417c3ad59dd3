"""Behaviour of ``tlhelpers.negative``: the family of sources, and the studies of chapter 14."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tlhelpers import datasets, evaluate, models, negative, records, runtime, zoo

QUICK = dataclasses.replace(zoo.FINE_TUNING, steps=2)
RUN = runtime.Run(device=torch.device("cpu"))


@pytest.mark.parametrize("name", [*negative.NAMES, "joint"])
def test_every_network_of_the_family_loads_with_its_own_head_or_a_fresh_one(name: str) -> None:
    own, fresh = negative.load(name), negative.load(name, 7, seed=1)
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert fresh.eval()(images).shape == (2, 7)
    if name != negative.SCRATCH:
        assert torch.equal(own.eval().features(images), fresh.features(images))


def test_shuffled_pixels_are_the_letters_in_one_other_order() -> None:
    letters = negative.data("letters", images=520)
    pixels = negative.data("pixels", images=520)
    assert torch.equal(pixels.labels, letters.labels)
    a, b = letters.x.flatten(1), pixels.x.flatten(1)
    assert not torch.equal(a, b)
    assert torch.equal(a.sort(dim=1).values, b.sort(dim=1).values)
    # One order for all: a pixel's values over all images are those of some other pixel.
    assert torch.equal(a.sum(dim=0).sort().values, b.sum(dim=0).sort().values)


def test_letters_on_their_side_come_back_with_three_more_turns() -> None:
    letters = negative.data("letters", images=520)
    sideways = negative.data("sideways", images=520)
    assert torch.equal(sideways.labels, letters.labels)
    assert not torch.equal(sideways.x, letters.x)
    assert torch.equal(sideways.x.rot90(3, (2, 3)), letters.x)


def test_noise_is_white_and_new_with_every_seed() -> None:
    noise, other = (negative.data("noise", images=5200, seed=seed) for seed in (0, 1))
    assert torch.equal(noise.x, negative.data("noise", images=5200).x)
    assert not torch.equal(noise.x, other.x)
    pixels = noise.x.flatten(1)
    pairs = pixels.T.corrcoef() - torch.eye(pixels.shape[1])
    assert pairs.abs().max() < 0.1, "no pixel says anything of another"
    means = torch.stack([pixels[noise.labels == c].mean() for c in noise.labels.unique()])
    assert torch.allclose(means, torch.tensor(0.5), atol=0.02), "nor of the label"


def test_the_joint_source_has_the_characters_of_the_five() -> None:
    joint = set(negative.data("joint", images=2000).classes)
    for name in ("greek", "signs"):
        own = set(negative.data(name, images=1040).classes)
        assert len(own & joint) > len(own) / 2, "all but the look-alikes of Latin letters"
    assert negative.load("joint").head.out_features == len(joint)


def test_hits_are_those_of_the_accuracy_and_survive_packing() -> None:
    digits, network = datasets.digits(), negative.load("greek", 10)
    right = negative.hits(network, digits.validation)
    assert right.mean() == pytest.approx(
        evaluate.validate(network, digits.validation, resamples=2).value
    )
    assert np.array_equal(negative.unpack(negative.pack(right), len(right)), right)
    with pytest.raises(ValueError, match="packed in 2 bytes"):
        negative.unpack(negative.pack(right), 9)
    with pytest.raises(ValueError, match=r"use evaluate\.report"):
        negative.hits(network, digits.test.open(reason="a test of the refusal"))


def test_a_penalty_holds_the_body() -> None:
    few = zoo.few(datasets.digits(), 0, k=1)
    start = negative.load("letters", 10)

    def way(alpha: float | None) -> float:
        recipe = dataclasses.replace(QUICK, steps=20)
        tuned = negative.finetune("letters", few, RUN, recipe=recipe, l2_sp=alpha)
        pairs = zip(start.stage3.parameters(), tuned.stage3.parameters(), strict=True)
        return sum(float((a - b).detach().square().sum()) for a, b in pairs)

    assert way(100.0) < way(None)


def test_frozen_stages_stay_and_the_others_move() -> None:
    few = zoo.few(datasets.digits(), 0, k=1)
    start = negative.load("letters", 10)
    for frozen in range(len(negative.STAGES) + 1):
        tuned = negative.finetune("letters", few, RUN, recipe=QUICK, frozen=frozen)
        moved = [
            models.fingerprint(start.get_submodule(stage))
            != models.fingerprint(tuned.get_submodule(stage))
            for stage in (*negative.STAGES, "head")
        ]
        assert moved == [i >= frozen for i in range(len(moved))]
    with pytest.raises(ValueError, match="0 to 4 stages"):
        negative.finetune("letters", few, RUN, recipe=QUICK, frozen=5)


def test_the_probed_network_answers_as_its_probe_and_is_where_the_ingredients_start() -> None:
    digits = datasets.digits()
    few = zoo.few(digits, 0, k=5)
    start = negative.probed("letters", few, RUN)
    assert negative.hits(start, digits.validation).mean() > 0.8
    before = models.fingerprint(start)
    one, same, other = negative.ingredients(
        start, few, RUN, settings=((1e-3, 0), (1e-3, 0), (4e-3, 1)), recipe=QUICK
    )
    assert models.fingerprint(one) == models.fingerprint(same) != models.fingerprint(other)
    assert models.fingerprint(start) == before

    made = negative.together(start, [one, other], few)
    x = digits.validation.x[:20]
    with torch.inference_mode():
        assert torch.allclose(made["alpha 0"](x), start(x), atol=1e-5)
        assert torch.allclose(made["alpha 1"](x), other(x), atol=1e-5)
        mean = (one(x).softmax(1) + other(x).softmax(1)) / 2
        assert torch.allclose(made["ensemble"](x).exp(), mean, atol=1e-5)


def test_finetuned_makes_its_record_with_one_reading_for_each_number_of_labels() -> None:
    record = negative.finetuned(
        RUN, sources=("letters", "random"), shots=(1, 2), draws=2, recipe=QUICK
    )
    frame = record.to_frame()
    assert len(frame) == 2 * 2 * 2
    top1 = frame.pivot(index=["k", "draw"], columns="source", values="top1")
    gap = (top1["letters"] - top1["random"]).loc[1].mean()
    assert record.result["letters minus random, 1 labels"] == pytest.approx(gap)
    assert all(len(negative.unpack(text, 300)) == 300 for text in frame["hits"])


def test_remedies_freezing_and_several_make_their_records() -> None:
    record = negative.remedies(RUN, sources=("letters",), ways=("L2-SP 1",), k=1, draws=2)
    assert set(record.result) == {"letters, L2-SP 1"}

    ways = ("nothing", "stage3")
    record = negative.freezing(RUN, sources=("letters",), ways=ways, k=1, draws=2)
    assert record.name == "negative/freezing"
    assert set(record.result) == {"letters, nothing", "letters, stage3"}

    record = negative.several(RUN, k=1, draws=2, settings=((1e-3, 0),), recipe=QUICK)
    frame = record.to_frame()
    assert set(frame.columns) == {"way", "draw", "validation", *negative.SHIFTED}
    for draw in range(2):
        rows = frame[frame["draw"] == draw].set_index("way")[list(negative.SHIFTED)]
        # Of a single network every combination is that network again.
        for way in ("ensemble", "soup, averaged statistics", "alpha 1"):
            assert rows.loc[way].to_list() == pytest.approx(rows.loc["tuned 0"].to_list())


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no source 'klingon'"):
        negative.load("klingon")
    with pytest.raises(ValueError, match="pixels, noise, joint are pretrained here"):
        negative.pretrain("letters", RUN)


@pytest.mark.parametrize("name", ["finetuned", "freezing", "remedies", "several"])
def test_the_records_are_shipped(name: str) -> None:
    assert f"negative/{name}" in records.names()
