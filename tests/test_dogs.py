"""Behaviour of ``tlhelpers.dogs`` and its scripts: small studies on made images."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
import subprocess
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from test_ways import NAME, RUN, SIDE, Weights, photos, weights_file

from tlhelpers import dogs, evaluate, records, train, ways
from tlhelpers.evaluate import Report
from tlhelpers.records import Record
from tlhelpers.splits import Dataset
from tlhelpers.ways import Way

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"
SCRIPTS = ("dogs_recipe", "dogs_lp_ft", "dogs_scratch", "dogs_labels", "dogs_ablation")
COMMAND = "python experiments/dogs_lp_ft.py --data PATH"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The file of an architecture."""
    return functools.partial(weights_file, tmp_path_factory.mktemp("weights"))


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """All reports that a study makes."""
    made: list[Report] = []
    original = evaluate.report

    def noted(*arguments: Any, **options: Any) -> Report:
        made.append(original(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(evaluate, "report", noted)
    return made


def small(way: Way, epochs: int = 2) -> Way:
    way = dataclasses.replace(way, size=SIDE, stored=SIDE, least_steps=0)
    return way if way.recipe is None else way.at(epochs=epochs)


def lp_ft(data: Dataset, weights: Path, **options: Any) -> Record:
    return dogs.study(
        small(dogs.LP_FT), data, NAME, weights=weights, run=RUN, command=COMMAND, **options
    )


def test_a_record_holds_its_runs_and_comes_back_from_its_file(
    pretrained: Weights, reports: list[Report], tmp_path: Path
) -> None:
    data = photos()
    record = lp_ft(data, pretrained(NAME), seeds=(0, 3))
    assert record.name == f"dogs/lp_ft_squeezenet1_1_{SIDE}_2epochs"
    assert (record.tier, record.seeds, record.split) == ("cpu", (0, 3), "made")
    assert data.test.readings == tuple(f"{record.name}, seed {seed}" for seed in (0, 3))
    records.save(record, tmp_path)
    back = records.load(record.name, tmp_path)
    assert back == record
    assert dogs.runs(back).seed.tolist() == [0, 3]
    for seed, report in zip((0, 3), reports, strict=True):
        found = dogs.correct(back, seed=seed)
        np.testing.assert_array_equal(found.values, report.correct[None])
    assert dogs.correct(back).values.shape == (2, len(data.test))
    curve = dogs.history(back)
    assert list(curve.columns) == ["way", "k", "seed", *train.COLUMNS]
    assert curve.epoch.tolist() == [1, 2, 1, 2]
    stages = dogs.stages(back)
    assert stages.stage.iloc[-1] == "features"
    assert (stages.moved > 0).all()


def test_figures_are_means_over_seeds_and_say_what_their_interval_is_over(
    pretrained: Weights,
) -> None:
    data = photos()
    two = lp_ft(data, pretrained(NAME), seeds=(0, 1))
    rows = dogs.runs(two)
    for key in two.result:
        assert two.result[key] == pytest.approx(rows[key].mean()), key
    assert two.interval_over == "95 %, bootstrap over test images and 2 seeds"
    low, high = two.interval["test_top1"]
    assert low <= two.result["test_top1"] <= high
    one = lp_ft(data, pretrained(NAME))
    assert one.interval_over == dogs.OVER_IMAGES
    assert one.result["epochs"] == 2
    assert one.result["images_per_second"] > 0
    assert two.curve[0]["test_correct"] == one.curve[0]["test_correct"], "from its checkpoint"
    with pytest.raises(ValueError, match="one or more different numbers"):
        lp_ft(data, pretrained(NAME), seeds=(1, 1))


def test_a_probe_is_a_record_without_a_history(pretrained: Weights) -> None:
    way = small(dogs.PROBE)
    record = dogs.study(way, photos(), NAME, weights=pretrained(NAME), run=RUN, command=COMMAND)
    assert record.name == f"dogs/probe_squeezenet1_1_{SIDE}"
    assert set(record.result) == {"test_top1", "test_nll", "test_ece", "validation_top1"}
    assert dogs.history(record).empty
    assert dogs.stages(record).empty


def test_a_killed_study_continues_and_gives_the_same_record(
    pretrained: Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def study() -> Record:
        return lp_ft(photos(), pretrained(NAME), seeds=(0, 1))

    whole = study()
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path / "another"))
    steps = _count_steps(monkeypatch, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        study()
    steps.clear()
    again = study()
    assert len(steps) == 1, "two evaluations of the first run and one of the second were kept"
    same = ("way", "seed", "test_correct", "test_nll", "validation_top1", "best_epoch")
    for row, other in zip(whole.curve, again.curve, strict=True):
        assert [row[key] for key in same] == [other[key] for key in same]
    steps.clear()
    study()
    assert not steps, "what is finished is not trained again"


def _count_steps(monkeypatch: pytest.MonkeyPatch, *, stop_after: int) -> list[int]:
    """Note each evaluation of ``fit``; kill the first call that goes beyond so many of them."""
    calls: list[int] = []
    killed: list[int] = []
    original: Callable[..., Any] = train._evaluate

    def wrapped(*arguments: Any) -> Any:
        if len(calls) == stop_after and not killed:
            killed.append(1)
            raise KeyboardInterrupt
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(train, "_evaluate", wrapped)
    return calls


def test_the_commit_of_a_record_is_that_of_its_training(
    pretrained: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photos()
    monkeypatch.setattr(records, "_git_state", lambda: ("abc", True))
    lp_ft(data, pretrained(NAME))
    monkeypatch.setattr(records, "_git_state", lambda: ("def", True))
    with pytest.warns(UserWarning, match="commit abc"):
        old = lp_ft(data, pretrained(NAME))
    assert (old.commit, old.clean) == ("abc", True)
    with pytest.warns(UserWarning, match="commit abc"):
        mixed = lp_ft(data, pretrained(NAME), seeds=(0, 1))
    assert (mixed.commit, mixed.clean) == ("def", False)


# --- few labels and single decisions ------------------------------------------------------


def test_the_study_of_labels_compares_the_ways_draw_by_draw(
    pretrained: Weights, reports: list[Report]
) -> None:
    data = photos()
    compared = [small(way, epochs=1) for way in (dogs.PROBE, dogs.LP_FT, dogs.SCRATCH)]
    record = dogs.label_study(
        data, NAME, compared=compared, weights=pretrained(NAME), grid=(1, 8), draws=(0, 1),
        run=RUN, command=COMMAND,
    )  # fmt: skip
    assert record.name == f"dogs/labels_squeezenet1_1_{SIDE}_1epochs"
    rows = dogs.runs(record)
    assert len(rows) == len(reports) == len(data.test.readings) == 2 * 3 * 2
    assert rows.groupby("k").size().to_dict() == {1: 6, 8: 6}
    means = rows.groupby(["way", "k"]).test_top1.mean()
    assert record.result["lp_ft_top1_k1"] == pytest.approx(means["lp_ft", 1])
    gain = means["lp_ft", 8] - means["scratch", 8]
    assert record.result["lp_ft_minus_scratch_k8"] == pytest.approx(gain)
    assert set(record.interval) == set(record.result)
    probes = dogs.correct(record, way="probe", k=8).values
    np.testing.assert_array_equal(probes[0], probes[1], "all labels: one draw is like another")


def test_a_study_of_labels_uses_the_run_with_all_labels_again(
    pretrained: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lp_ft(photos(), pretrained(NAME))
    steps = _count_steps(monkeypatch, stop_after=-1)
    record = dogs.label_study(
        photos(), NAME, compared=[small(dogs.LP_FT)], weights=pretrained(NAME), grid=(8,),
        run=RUN, command=COMMAND,
    )  # fmt: skip
    assert not steps
    assert record.curve[0]["test_correct"] == whole.curve[0]["test_correct"]
    assert record.wall_seconds >= 60 * whole.result["train_minutes"]


def test_labels_of_one_size_only_are_compared() -> None:
    ways_of_two = [dogs.PROBE, dogs.LP_FT.at(size=96)]
    with pytest.raises(ValueError, match="images of one size"):
        dogs.label_name(ways_of_two, NAME)


def test_each_decision_changes_one_thing() -> None:
    base = dogs.LP_FT.at(size=128)
    found = dogs.decisions(base)
    assert found["baseline"] is base
    assert {way.size for way in found.values()} == set(dogs.SIZES)
    for label, way in found.items():
        fields = [f.name for f in dataclasses.fields(Way)]
        changed = [name for name in fields if getattr(way, name) != getattr(base, name)]
        assert len(changed) == (label != "baseline"), label
        assert way.recipe is not None
    assert "norms frozen" not in dogs.decisions(base, norms=False)


def test_ablation_measures_against_the_baseline_and_stops_on_test_in_the_open(
    pretrained: Weights,
) -> None:
    data = photos(held_out=10)
    base = dataclasses.replace(small(dogs.LP_FT, epochs=3), penalty=None)
    record = dogs.ablation_study(
        data, NAME, base=base, only=["dropout 0", dogs.STOPPED_ON_TEST], weights=pretrained(NAME),
        run=RUN, command=COMMAND,
    )  # fmt: skip
    rows = {row["way"]: row for row in record.curve}
    assert list(rows) == ["baseline", "dropout 0", dogs.STOPPED_ON_TEST]
    opened = [reading for reading in data.test.readings if "on purpose" in reading]
    assert len(opened) == 1
    assert len(data.test.readings) == 4
    for row in rows.values():
        gain = row["test_top1"] - rows["baseline"]["test_top1"]
        if row["way"] != "baseline":
            assert record.result[f"{row['way']} minus baseline"] == pytest.approx(gain)
    honest, mistaken = rows["baseline"], rows[dogs.STOPPED_ON_TEST]
    same = [[step["train_loss"] for step in row["history"]] for row in (honest, mistaken)]
    assert same[0] == same[1], "the same weights epoch by epoch"
    on_test = [step["validation_top1"] for step in mistaken["history"]]
    assert mistaken["test_top1"] == pytest.approx(max(on_test), abs=1e-6)
    assert on_test[honest["best_epoch"] - 1] == pytest.approx(honest["test_top1"], abs=1e-6)
    added = record.result["flattered by stopping on test"]
    assert added == pytest.approx(mistaken["test_top1"] - honest["test_top1"], abs=1e-6)


def test_ablation_refuses_a_decision_that_the_network_does_not_allow(pretrained: Weights) -> None:
    with pytest.raises(ValueError, match="no decision 'norms frozen' about squeezenet1_1"):
        dogs.ablation_study(
            photos(), NAME, only=["norms frozen"], weights=pretrained(NAME), run=RUN,
            command=COMMAND,
        )  # fmt: skip


# --- comparing ----------------------------------------------------------------------------


def report_of(right: np.ndarray, data: Dataset) -> Report:
    """A report in which these images, in the order of the test split, are right."""
    truth = data.labels[torch.from_numpy(data.split == "test")]
    answers = torch.where(torch.from_numpy(right), truth, (truth + 1) % 3)
    logits = 3 * torch.nn.functional.one_hot(answers, 3).float()
    rows = iter(logits.split(evaluate._IMAGE_BATCH))
    return evaluate.report(lambda images: next(rows), data.test, name="made")


def test_a_paired_difference_is_that_of_the_reports() -> None:
    data = photos(held_out=150)
    generator = np.random.default_rng(0)
    hard = generator.random(450)
    a, b = (report_of(hard < chance, data) for chance in (0.8, 0.7))
    ours, reference = dogs.difference(a, b, resamples=4000), evaluate.difference(a, b)
    assert ours.value == pytest.approx(reference.value)
    assert ours.low == pytest.approx(reference.low, abs=0.004)
    assert ours.high == pytest.approx(reference.high, abs=0.004)
    assert dogs.difference(a, a).high == 0


def test_a_difference_between_seeds_is_wider_where_seeds_differ() -> None:
    data = photos(held_out=150)
    generator = np.random.default_rng(0)
    hard = generator.random(450)
    other = report_of(hard < 0.6, data)
    alike = [report_of(hard < 0.7, data) for _ in range(3)]
    apart = [report_of(hard < chance, data) for chance in (0.6, 0.7, 0.8)]
    narrow, wide = (dogs.difference(side, other) for side in (alike, apart))
    assert narrow.value == pytest.approx(wide.value, abs=0.02)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    single = dogs.difference(alike[0], other)
    assert (narrow.low, narrow.high) == pytest.approx((single.low, single.high))


def test_a_record_compares_with_a_report_on_the_same_images_only(pretrained: Weights) -> None:
    data = photos()
    record = lp_ft(data, pretrained(NAME))
    everything = report_of(np.ones(len(data.test), dtype=bool), data)
    found = dogs.difference(record, everything)
    assert found.value == pytest.approx(record.result["test_top1"] - 1)
    elsewhere = dataclasses.replace(data, ids=tuple(f"x{i}" for i in data.ids))
    other = report_of(np.ones(len(data.test), dtype=bool), elsewhere)
    with pytest.raises(ValueError, match="needs the same test images"):
        dogs.difference(record, other)
    with pytest.raises(ValueError, match=r"packed outcomes of a run \(seed=9\)"):
        dogs.correct(record, seed=9)


def test_nothing_of_the_test_split_is_packed_in_the_order_of_its_rows(
    pretrained: Weights, reports: list[Report]
) -> None:
    data = photos()
    assert list(data.test.ids) != sorted(data.test.ids)
    record = lp_ft(data, pretrained(NAME))
    shuffled = data.subset(np.random.default_rng(1).permutation(len(data)))
    learnt = ways.learn(small(dogs.LP_FT), data, NAME, weights=pretrained(NAME), run=RUN)
    again = evaluate.report(learnt.network, shuffled.test, name="another order")
    assert dogs.difference(record, again).high == 0


# --- scripts ------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_says_what_it_takes_and_its_docstring_gives_the_command(
    name: str, script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    module = script(name)
    assert f"python experiments/{name}.py --data PATH" in (module.__doc__ or "")
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--data", "--architecture", "--seeds", "--size", "--epochs", "--way"):
        assert option in shown


def test_results_are_the_kept_studies_the_best_first() -> None:
    shown = dogs.results()
    assert shown["mean"].is_monotonic_decreasing
    assert ((shown["low"] <= shown["mean"]) & (shown["mean"] <= shown["high"])).all()
    assert not shown["record"].str.contains("labels|ablation").any()
    row = shown.set_index("record").loc["dogs/recipe_mobilenet_v2_224"]
    record = records.load("dogs/recipe_mobilenet_v2_224")
    assert (row["way"], row["architecture"], row["size"]) == ("recipe", "mobilenet_v2", 224)
    assert row["mean"] == record.result["test_top1"]
    assert row["epochs"] == record.result["epochs"]
    assert np.isnan(shown.loc[shown["way"] == "probe", "epochs"]).all()


def options_of(shared: ModuleType, module: ModuleType, *words: str) -> Namespace:
    return shared.parser("", module.JOBS).parse_args(["--data", "x", *words])


def test_the_options_take_a_part_of_the_plan_or_another(
    script: Callable[[str], ModuleType],
) -> None:
    shared, lp, scratch = (script(n) for n in ("dogs_command", "dogs_lp_ft", "dogs_scratch"))
    assert shared.chosen(lp.JOBS, options_of(shared, lp)) == lp.JOBS
    words = ("--way", "full", "lp_ft", "--size", "96")
    some = shared.chosen(lp.JOBS, options_of(shared, lp, *words))
    assert [(job.way.name, job.architecture, job.size) for job in some] == [
        ("lp_ft", "mobilenet_v2", 96),
        ("lp_ft", "squeezenet1_1", 96),
        ("full", "squeezenet1_1", 96),
    ]
    other = shared.chosen(lp.JOBS, options_of(shared, lp, "--architecture", "resnet18"))
    all_ways = ["probe", "lp_ft_norms", "lp_ft", "full", "lp_ft_sp", "full_sp"]
    assert [job.way.name for job in other] == all_ways
    none = shared.chosen(lp.JOBS, options_of(shared, lp, "--architecture", "squeezenet1_0"))
    assert [job.way.name for job in none] == [n for n in all_ways if n != "lp_ft_norms"]
    both = shared.chosen(scratch.JOBS, options_of(shared, scratch, "--architecture", "vgg11"))
    assert [dogs.record_name(job.changed_way(), job.architecture) for job in both] == [
        "dogs/scratch_vgg11_112", "dogs/scratch_vgg11_112_15epochs",
    ]  # fmt: skip
    once = shared.chosen(scratch.JOBS, options_of(shared, scratch, "--epochs", "240"))
    assert [job.epochs for job in once] == [240]


def test_a_script_makes_its_record_and_leaves_that_of_a_gpu(
    script: Callable[[str], ModuleType],
    pretrained: Weights,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shared, module = script("dogs_command"), script("dogs_lp_ft")
    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    monkeypatch.setattr(shared, "start", lambda options: (photos(), RUN))
    jobs = [shared.Job(small(dogs.LP_FT), NAME, SIDE)]
    monkeypatch.setattr(module, "JOBS", jobs)
    folder = pretrained(NAME).parent
    module.main(["--data", str(folder), "--epochs", "1"])
    name = f"dogs/lp_ft_squeezenet1_1_{SIDE}_1epochs"
    record = records.load(name)
    assert record.command == (
        "python experiments/dogs_lp_ft.py --data PATH --way lp_ft --architecture squeezenet1_1 "
        f"--size {SIDE} --epochs 1 --seeds 1"
    )
    assert f"{NAME}_imagenet.safetensors" in record.input
    assert str(folder) not in record.input
    records.save(dataclasses.replace(record, tier="gpu"))
    capsys.readouterr()
    module.main(["--data", str(folder), "--epochs", "1"])
    assert "there is one from a GPU" in capsys.readouterr().err
    assert records.load(name).tier == "gpu"


def test_the_gpu_script_runs_what_there_is_with_options_that_exist(
    script: Callable[[str], ModuleType],
) -> None:
    path = EXPERIMENTS / "dogs_gpu.sh"
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    used = set(re.findall(r"^experiment (\w+)", path.read_text(), flags=re.MULTILINE))
    assert {f"dogs_{name}" for name in used} == set(SCRIPTS)
    for name in SCRIPTS:
        assert script(name).main
    refused = subprocess.run(["bash", str(path)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "usage" in refused.stderr


def test_weights_come_from_the_folder_or_from_torchvision(tmp_path: Path) -> None:
    weights_file(tmp_path, NAME)
    assert dogs.find_weights(tmp_path, NAME) == tmp_path / f"{NAME}_imagenet.safetensors"
    assert dogs.find_weights(tmp_path, "resnet18") == "imagenet"
