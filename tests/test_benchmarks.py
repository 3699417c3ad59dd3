"""The benchmarks of training: their arithmetic on made-up numbers, and tiny runs."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tlhelpers import datasets, models, records, runtime
from tlhelpers.splits import Dataset
from tlhelpers.train import COLUMNS, History

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SIDE = 32
# Images a second in two rounds; the second was a busy moment for everybody.
RATES = {
    ("limit", "bfloat16"): [100.0, 50.0],
    ("limit", "float32"): [60.0, 40.0],
    ("ours", "bfloat16"): [90.0, 40.0],
    ("ours", "float32"): [48.0, 36.0],
    ("tutorial", "bfloat16"): [30.0, 16.0],
    ("tutorial", "float32"): [20.0, 10.0],
    ("lightning", "float32"): [50.0, 38.0],
}


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    """The scripts as modules, found as when one of them is run."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        names = ("epoch", "extract", "time_to_accuracy", "train_small")
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def epoch(scripts: dict[str, Any]) -> Any:
    return scripts["epoch"]


@pytest.fixture(scope="module")
def minutes(scripts: dict[str, Any]) -> Any:
    return scripts["time_to_accuracy"]


@pytest.fixture(scope="module")
def dogs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three breeds of noise in the layout of Stanford Dogs."""
    folder = tmp_path_factory.mktemp("dogs")
    noise = np.random.default_rng(0)
    for breed in ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02086910-Papillon"):
        (folder / "Images" / breed).mkdir(parents=True)
        for i in range(101):
            pixels = noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "Images" / breed / f"{breed[:9]}_{i}.jpg")
    return folder


def bank(*, signal: float, examples: int = 256) -> Dataset:
    """Features of two classes; the signal moves their first feature apart."""
    labels = torch.arange(2 * examples) % 2
    x = torch.randn(2 * examples, 8, generator=torch.Generator().manual_seed(0))
    x[:, 0] += signal * (2 * labels - 1)
    return Dataset(
        name="made",
        classes=("a", "b"),
        x=x,
        labels=labels,
        split=np.repeat(["train", "validation"], examples),
        ids=tuple(map(str, range(2 * examples))),
        split_name="made",
    )


# The command line


@pytest.mark.parametrize("name", ["epoch", "extract", "time_to_accuracy", "train_small"])
def test_help_says_what_it_is(
    scripts: dict[str, Any],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        scripts[name].main()
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert " ".join(scripts[name].__doc__.split("\n")[0].split()) in text
    assert "--json" in text
    assert "--no-fastai" in text


@pytest.mark.parametrize("name", ["epoch", "time_to_accuracy"])
def test_a_peer_that_is_not_installed_is_named_before_anything_runs(
    scripts: dict[str, Any],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda peer: None)
    with pytest.raises(SystemExit):
        scripts[name].main(["--data", "nowhere", "--no-fastai"])
    assert "lightning is not installed" in (said := capsys.readouterr().err)
    assert "--no-lightning" in said
    with pytest.raises(FileNotFoundError, match="nowhere"):  # on to the data
        scripts[name].main(["--data", "nowhere", "--no-fastai", "--no-lightning"])


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many"])
def test_a_count_starts_at_1(epoch: Any, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 on"):
        epoch.positive(text)


# The table of an epoch


def test_ratios_are_medians_over_rounds(epoch: Any) -> None:
    table = epoch.compare(RATES, images=100, cache_seconds=1.0).set_index(["method", "precision"])
    assert table.of_limit["limit", "bfloat16"] == 1
    assert table.images_per_second["ours", "bfloat16"] == 65
    # The median of 90 / 100 and 40 / 50, not 65 / 75.
    assert table.of_limit["ours", "bfloat16"] == pytest.approx(0.85)
    assert table.of_limit["lightning", "float32"] == pytest.approx((50 / 60 + 38 / 40) / 2)
    assert table.ours_times["tutorial", "float32"] == pytest.approx((90 / 20 + 40 / 10) / 2)
    assert table.same_precision_times["tutorial", "float32"] == pytest.approx((2.4 + 3.6) / 2)


def test_the_summary_takes_the_best_peer_in_any_precision(epoch: Any) -> None:
    table = epoch.compare(RATES, images=100, cache_seconds=1.0)
    summary = epoch.summarise(table, RATES)
    assert summary["precision"] == "bfloat16"
    assert (summary["best_peer"], summary["best_peer_precision"]) == ("lightning", "float32")
    assert summary["best_peer_times"] == pytest.approx((90 / 50 + 40 / 38) / 2)
    assert summary["tutorial_times"] == pytest.approx(4.25)
    said = epoch.describe(summary, "cpu")
    assert "0.85 (aim: 0.9)" in said
    assert "1.43 (aim: 2.0)" in said
    assert "4.25 (aim: 4.0)" in epoch.describe(summary, "cuda")


def test_ours_is_judged_in_the_precision_in_which_it_is_faster(epoch: Any) -> None:
    swapped = RATES | {("ours", "float32"): [95.0, 45.0]}
    summary = epoch.summarise(epoch.compare(swapped, images=1, cache_seconds=0.0), swapped)
    assert summary["precision"] == "float32"
    assert summary["of_limit"] == pytest.approx((95 / 60 + 45 / 40) / 2)


@pytest.mark.parametrize("cache", [0.0, 0.5, 2.0, 7.3])
def test_a_cache_pays_off_after_the_first_epoch_that_makes_good_for_it(
    epoch: Any, cache: float
) -> None:
    peer, own, images = 20.0, 50.0, 100
    n = epoch.break_even(peer, own, images=images, cache_seconds=cache)
    behind = [cache + k * images / own >= k * images / peer for k in range(n + 1)]
    assert behind == [True] * n + [False]


def test_a_cache_never_pays_off_against_a_faster_peer(epoch: Any) -> None:
    assert epoch.break_even(50.0, 50.0, images=100, cache_seconds=1.0) == math.inf
    slow = RATES | {("lightning", "float32"): [70.0, 70.0]}
    table = epoch.compare(slow, images=100, cache_seconds=1.0)
    assert "never" in epoch.show(table)
    found = epoch.figures(table, slow, cache_seconds=1.0, setting={})
    written = json.loads(epoch.as_json(found))
    rows = {(row["method"], row["precision"]): row for row in written["rows"]}
    assert rows["lightning", "float32"]["break_even_epochs"] is None
    assert rows["tutorial", "float32"]["break_even_epochs"] == 1


def test_fastai_in_bfloat16_is_a_row_on_cuda_alone(epoch: Any) -> None:
    def methods(device: str) -> set[tuple[str, str]]:
        return set(epoch.rows(torch.bfloat16, torch.device(device), ["tutorial", "fastai"]))

    assert methods("cuda") - methods("cpu") == {("fastai", "bfloat16")}
    assert ("tutorial", "bfloat16") in methods("cpu")


def test_a_record_has_the_lowest_and_the_highest_of_the_rounds(epoch: Any) -> None:
    table = epoch.compare(RATES, images=100, cache_seconds=1.0)
    found = epoch.figures(table, RATES, cache_seconds=1.0, setting={"images": 100})
    result, interval = epoch.figures_of_record(found, RATES)
    assert result["cache_ms_an_image"] == 10
    assert interval["of_limit"] == [pytest.approx(0.8), pytest.approx(0.9)]
    assert interval["best_peer_times"] == [pytest.approx(40 / 38), pytest.approx(90 / 50)]
    assert interval["tutorial_times"] == [pytest.approx(4.0), pytest.approx(4.5)]
    for name, (low, high) in interval.items():
        assert low <= result[name] <= high


# What is trained on


def test_photographs_are_chosen_class_by_class_in_whole_batches(
    epoch: Any, dogs_folder: Path
) -> None:
    dogs = datasets.stanford_dogs(dogs_folder)
    chosen = epoch.choose(dogs, 5, 4)
    assert len(chosen) == 8
    assert chosen.labels.bincount().tolist() == [3, 3, 2]
    assert set(chosen.ids) <= set(dogs.train.ids)
    assert len(epoch.choose(dogs, 10**6, 64)) == len(dogs.train) // 64 * 64
    assert epoch.choose(dogs, 1, 1).classes == dogs.classes[:1]
    with pytest.raises(ValueError, match="fewer than one batch of 500"):
        epoch.choose(dogs, 5, 500)


def test_the_cache_is_empty_for_a_block_and_comes_back(epoch: Any) -> None:
    before = runtime.cache_folder()
    with epoch.empty_cache() as folder:
        assert folder in runtime.cache_folder().parents
        assert not any(runtime.cache_folder().iterdir())
    assert runtime.cache_folder() == before
    assert not folder.exists()


@pytest.mark.parametrize("method", ["limit", "ours", "tutorial", "lightning", "fastai"])
def test_a_row_trains_a_copy(epoch: Any, dogs_folder: Path, tmp_path: Path, method: str) -> None:
    if method in ("lightning", "fastai"):
        pytest.importorskip(method)
    photos = epoch.choose(datasets.stanford_dogs(dogs_folder), 8, 4)
    network = models.photo_classifier("squeezenet1_1", 3, weights=None, size=SIDE)
    before = models.fingerprint(network)
    device = torch.device("cpu")
    task, seconds = epoch.prepare(
        photos, network, tmp_path / "files", square=SIDE, batch=4, device=device
    )
    assert seconds > 0
    assert task.steps == 2
    assert epoch.METHODS[method](task, torch.float32) > 0
    assert models.fingerprint(network) == before


# Tiny runs


@pytest.fixture
def record_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    return tmp_path / "records"


def test_a_tiny_epoch_ends_in_a_table_json_and_a_record(
    epoch: Any,
    dogs_folder: Path,
    tmp_path: Path,
    record_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "found.json"
    options = (
        f"--data {dogs_folder} --architecture squeezenet1_1 --weights none --size {SIDE} --square "
        f"{SIDE} --images 7 --batch 1 --rounds 1 --no-fastai --no-lightning --json {file} --record"
    )
    epoch.main(options.split())
    printed = capsys.readouterr().out
    assert "of limit" in printed
    assert "share of the limit" in printed
    found = json.loads(file.read_text())
    assert found["setting"]["images"] == 7
    assert found["cache_seconds"] > 0
    assert {row["method"] for row in found["rows"]} == {"limit", "ours", "tutorial"}
    assert all(row["images_per_second"] == row["rounds"][0] > 0 for row in found["rows"])
    for field in {*found, *found["summary"], *found["rows"][0]}:
        assert f"``{field}``" in epoch.__doc__, field
    record = records.load(f"speed/epoch_squeezenet1_1_{SIDE}_cpu", record_folder)
    assert record.command == (
        f"python benchmarks/epoch.py --data PATH --weights none --size {SIDE} --batch 1 "
        f"--no-fastai --no-lightning --record --architecture squeezenet1_1 --images 7 "
        f"--square {SIDE} --rounds 1"
    )
    assert list(record.curve) == found["rows"]
    assert record.result["of_limit"] == found["summary"]["of_limit"]
    assert record.wall_seconds > found["cache_seconds"]


def test_a_tiny_time_to_accuracy_ends_in_a_table_json_and_a_record(
    minutes: Any,
    dogs_folder: Path,
    tmp_path: Path,
    record_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "found.json"
    options = (
        f"--data {dogs_folder} --weights none --size {SIDE} --images 64 --epochs 1 --target 0.1 "
        f"--no-fastai --no-lightning --json {file} --record"
    )
    minutes.main(options.split())
    assert "minutes from files to 10% validation accuracy" in capsys.readouterr().out
    found = json.loads(file.read_text())
    kinds = {row["method"]: row["kind"] for row in found["rows"]}
    assert kinds == {"probe": "measured", "fine-tuning": "measured", "LP-FT": "measured"} | {
        "tutorial": "estimated"
    }
    assert all(row["reached"] for row in found["rows"])
    own = found["parts"]
    probe, tuned, both, tutorial = (60 * row["minutes"] for row in found["rows"])
    assert probe == pytest.approx(own["features"] + own["probe"])
    assert own["cache"] < tuned < own["cache"] + own["fine-tuning"]
    assert own["cache"] + probe < both < own["cache"] + probe + own["LP-FT"]
    assert tutorial == pytest.approx(270 / found["rates"]["tutorial"])  # one epoch
    for field in {*found, *found["rows"][0]}:
        assert f"``{field}``" in minutes.__doc__, field
    record = records.load(f"speed/time_to_accuracy_mobilenet_v2_{SIDE}_cpu", record_folder)
    assert list(record.curve) == found["rows"]
    assert record.result["target"] == 0.1
    assert record.result["LP-FT_seconds"] == own["LP-FT"]


# Minutes


def history(accuracies: list[float]) -> History:
    """Evaluations at 10, 20, ... seconds, 100 steps apart."""
    n = len(accuracies)
    columns = dict.fromkeys(COLUMNS, np.zeros(n))
    numbers = np.arange(1, n + 1)
    columns |= {"epoch": numbers, "step": 100 * numbers, "seconds": 10.0 * numbers}
    return History(columns | {"validation_top1": np.array(accuracies)})


def test_fine_tuning_takes_until_the_first_evaluation_that_reaches_the_target(
    minutes: Any,
) -> None:
    rows = history([0.5, 0.81, 0.79])
    # 5 s of preparation, 2 s that the history does not count, 20 s to the second evaluation.
    row = minutes.fine_tuned("it", rows, before=5.0, spent=32.0, target=0.8)
    assert row.reached
    assert row.minutes == pytest.approx(27 / 60)
    assert row.accuracy == 0.81
    assert "200 steps" in row.how
    missed = minutes.fine_tuned("it", rows, before=5.0, spent=32.0, target=0.9)
    assert not missed.reached
    assert missed.minutes == pytest.approx(37 / 60)


def test_minutes_are_compared_with_the_quickest_of_ours_that_reached_the_target(
    minutes: Any,
) -> None:
    def row(method: str, spent: float, reached: bool) -> Any:
        return minutes.Row(method, spent, reached, "measured", 0.8, "")

    rows = [row("probe", 1.0, False), row("LP-FT", 2.0, True), row("tutorial", 9.0, False)]
    assert minutes.times_ours(rows) == [0.5, 1.0, 4.5]
    text = minutes.show(rows, 0.8).splitlines()
    assert "80%" in text[0]
    assert "> 1.00" in text[1]
    assert "> 9.00" in text[3]
    assert ">" not in text[2]
    assert "4.5 x" in text[3]
    assert minutes.times_ours(rows[:1]) == [None]
    assert " x " not in minutes.show(rows[:1], 0.8)


def test_an_estimate_is_passes_over_images(minutes: Any) -> None:
    assert minutes.estimate(3, images=1200, rate=20.0) == pytest.approx(3.0)


@pytest.mark.parametrize("peer", ["tutorial", "lightning", "fastai"])
def test_a_head_learns_where_features_tell_all(minutes: Any, peer: str) -> None:
    epochs, accuracy = minutes.epochs_needed(peer, bank(signal=4.0), 0.95)
    assert accuracy >= 0.95
    assert 1 <= epochs < minutes.MOST_EPOCHS[peer]


def test_a_head_that_cannot_learn_says_how_long_it_tried(minutes: Any) -> None:
    epochs, accuracy = minutes.epochs_needed("lightning", bank(signal=0.0), 0.95)
    assert epochs == minutes.MOST_EPOCHS["lightning"]
    assert accuracy < 0.95


@pytest.mark.parametrize(
    ("peer", "norms_train", "in_training_mode"),
    [("tutorial", False, True), ("lightning", False, False), ("fastai", True, True)],
)
def test_bodies_are_frozen_as_the_peers_do_it(
    minutes: Any, peer: str, norms_train: bool, in_training_mode: bool
) -> None:
    network = models.photo_classifier("mobilenet_v2", 2, weights=None, size=SIDE)
    body = minutes.frozen(network, peer).train().body
    norms = [part for part in body.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    trainable = {id(p) for p in body.parameters() if p.requires_grad}
    assert trainable == ({id(p) for n in norms for p in n.parameters()} if norms_train else set())
    assert {norm.training for norm in norms} == {in_training_mode}
    assert all(p.requires_grad for p in network.parameters())
