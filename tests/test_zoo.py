"""The zoo: what is declared of its networks is so, and its targets are new to all of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import tlhelpers
from tlhelpers import models, records, zoo
from tlhelpers.characters import ALPHABETS, look_alikes
from tlhelpers.runtime import Run
from tlhelpers.train import Recipe

WEIGHTS = Path(tlhelpers.__file__).parent / "data" / "weights" / "zoo"
SHORT = Recipe(steps=2, batch_size=16, keep="last")


# Sources


@pytest.mark.parametrize("name", zoo.names())
def test_every_network_is_what_is_declared(name: str) -> None:
    source, network = zoo.source(name), zoo.load(name)
    assert network.widths == source.widths
    images = torch.rand(3, 1, 16, 16)
    assert network.features(images).shape == (3, source.widths[-1])
    classes = {"five_letters": 5, "rotation": 4, "letters": 52, "shuffled": 52, "random": 52}
    if name in classes:
        assert network.head.out_features == classes[name]
    assert network(images).isfinite().all()
    fresh = zoo.load(name, 7, seed=1)
    assert fresh(images).shape == (3, 7)
    assert torch.equal(fresh.features(images), zoo.load(name, seed=1).features(images))


def test_the_zoo_is_varied_and_small() -> None:
    assert len(set(zoo.names())) == len(zoo.names()) >= 10
    declared = [dataclasses.replace(one, name="", text="") for one in zoo.SOURCES]
    assert len(set(declared)) == len(declared), "two sources differ in nothing but their name"
    assert {one.objective for one in zoo.SOURCES} == set(zoo.OBJECTIVES)
    files = {path.stem: path.stat().st_size for path in WEIGHTS.glob("*.safetensors")}
    assert set(files) == set(zoo.names()) - {"letters", "random"}
    assert sum(files.values()) < 3_000_000


def test_every_network_but_two_knows_its_task() -> None:
    table = zoo.describe().set_index("source")
    assert list(table.index) == list(zoo.names())
    chance = 1 / table["classes"]
    lost = table.index[table["own_task"] < 2 * chance].tolist()
    assert set(lost) == {"shuffled", "random"}
    assert table.loc["rotation", "own_task"] > 0.5
    assert table.loc["five_letters", "own_task"] > 0.9
    assert table.loc["wide", "parameters"] > 3 * table.loc["letters", "parameters"]
    assert table.loc["narrow", "features"] == 32


def test_unknown_names_get_a_list() -> None:
    with pytest.raises(ValueError, match="no source 'latin'; it has letters, five_letters"):
        zoo.load("latin")
    with pytest.raises(ValueError, match="no target 'mnist'; there are: digits;"):
        zoo.target("mnist")
    with pytest.raises(ValueError, match="one of characters, shuffled labels"):
        zoo.Source(name="x", text="y", objective="clustering")


def test_shuffled_labels_belong_to_other_images() -> None:
    letters = zoo.data(zoo.source("letters"), images=1040)
    shuffled = zoo.data(zoo.source("shuffled"), images=1040)
    assert torch.equal(letters.x, shuffled.x)
    assert torch.equal(letters.labels.bincount(), shuffled.labels.bincount())
    assert (letters.labels == shuffled.labels).double().mean() < 0.1


def test_turned_images_know_their_turn() -> None:
    letters = zoo.data(zoo.source("letters"), images=1040)
    turned = zoo.data(zoo.source("rotation"), images=1040)
    assert turned.classes == zoo.TURNS
    assert turned.labels.unique().tolist() == [0, 1, 2, 3]
    back = torch.stack(
        [x.rot90(-t, (1, 2)) for x, t in zip(turned.x, turned.labels.tolist(), strict=True)]
    )
    assert torch.equal(back, letters.x)


def test_pretraining_starts_from_the_seed_and_goes_on() -> None:
    source = zoo.source("five_letters")
    once = zoo.pretrain(source, Run(), recipe=SHORT, images=500)
    again = zoo.pretrain(source, Run(), recipe=SHORT, images=500)
    assert models.fingerprint(once) == models.fingerprint(again)
    start = models.small_resnet(5)
    assert models.fingerprint(once) != models.fingerprint(start)
    untouched = zoo.pretrain(zoo.source("random"), Run(seed=3), images=500)
    assert models.fingerprint(untouched) == models.fingerprint(zoo.load("random", seed=3))


# Targets


def test_no_source_has_seen_a_printed_character_of_a_target() -> None:
    seen = {
        character
        for source in zoo.SOURCES
        for name in source.alphabets
        for character in ALPHABETS.get(name, (name,))
    }
    new = {
        character
        for name in zoo.TARGETS
        if not name.startswith("digits")
        for character in zoo.target(name).classes
    }
    assert len(new) > 80
    assert not [group for group in look_alikes([*seen, *new]) if {*group} & seen and {*group} & new]


def test_targets_are_the_same_each_time() -> None:
    for name in zoo.TARGETS:
        task, again = zoo.target(name), zoo.target(name)
        assert torch.equal(task.x, again.x)
        assert task.name == name
        assert 0 <= float(task.x.min()) <= float(task.x.max()) <= 1
    digits, inverted = zoo.target("digits"), zoo.target("digits, inverted")
    assert torch.allclose(inverted.x, 1 - digits.x)
    assert digits.ids == inverted.ids


def test_few_leaves_nothing_to_choose_by() -> None:
    task = zoo.target("digits")
    few, other = zoo.few(task, 0), zoo.few(task, 1)
    assert few.train.y.bincount().tolist() == [zoo.K] * 10
    assert len(few.validation) == 0
    assert len(few.test) == len(task.test)
    assert few.train.ids != other.train.ids
    assert zoo.few(task, 0, k=3).train.y.bincount().tolist() == [3] * 10


def test_the_truth_has_a_row_for_each_pair_and_reads_a_test_split_once_a_draw() -> None:
    record = zoo.finetuned(
        Run(), sources=("narrow", "random"), targets=("digits",), k=2, draws=2, recipe=SHORT
    )
    rows = record.to_frame()
    assert rows["source"].tolist() == ["narrow", "random"]
    assert [len(top1) for top1 in rows["top1"]] == [2, 2]
    assert rows["mean"].tolist() == [pytest.approx(np.mean(top1)) for top1 in rows["top1"]]
    assert record.split == "2 labels a class, 2 draws, no validation"
    assert "seconds a fine-tuning" in record.result


def test_fine_tuning_moves_the_whole_network_and_not_the_shipped_weights() -> None:
    before = models.fingerprint(zoo.load("narrow"))
    task = zoo.few(zoo.target("digits"), 0, k=2)
    start = zoo.load("narrow", 10)
    tuned = zoo.finetune("narrow", task, Run(), recipe=SHORT)
    moved = models.diff_state(start, tuned)
    assert moved.count("parameter") == moved.parameters
    assert models.fingerprint(zoo.load("narrow")) == before


def test_the_shipped_truth_is_of_this_zoo() -> None:
    rows = records.load("zoo/finetuned").to_frame()
    pairs = list(zip(rows["target"], rows["source"], strict=True))
    assert pairs == [(target, source) for target in zoo.TARGETS for source in zoo.names()]
    assert len({len(top1) for top1 in rows["top1"]}) == 1
