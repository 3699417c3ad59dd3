"""The variants of fine-tuning: each changes what it says, and nothing else."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import tlhelpers as tl
from tlhelpers import ablation
from tlhelpers.ablation import VARIANTS, Variant, rerun, table, task, tune
from tlhelpers.models import SmallResNet, diff_state, save_small_resnet, small_resnet, snapshot
from tlhelpers.runtime import Run

CPU = Run(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pretrained weights, here random ones, of a smaller network: what counts is what moves."""
    path = tmp_path_factory.mktemp("weights") / "source.safetensors"
    network = small_resnet(3, widths=(4, 4, 8), seed=7)
    return str(save_small_resnet(network, path, classes="abc"))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataclasses.replace(ablation.BASELINE, steps=10)
    monkeypatch.setattr(ablation, "BASELINE", short)


def variant(name: str) -> Variant:
    return next(v for v in VARIANTS if v.name == name)


def moved(name: str, source: str) -> set[str]:
    """The parts of the network in which anything moved, other than the head."""
    data, _ = task(0, k=2)
    chosen = variant(name)
    first = small_resnet(10, weights=source, seed=0)
    network, _ = tune(chosen, data, CPU, source=source)
    frame = diff_state(snapshot(first), network).to_frame()
    return {entry.split(".")[0] for entry in frame["name"]} - {"head"}


class TestTask:
    def test_measures_on_digits_that_the_draw_does_not_hold(self) -> None:
        data, rest = task(3)
        assert (len(data.train), len(data.validation), len(rest)) == (100, 50, 250)
        assert not set(rest.ids) & (set(data.train.ids) | set(data.validation.ids))

    def test_another_seed_is_another_draw(self) -> None:
        assert task(0)[0].train.ids != task(1)[0].train.ids
        assert task(1)[0].train.ids == task(1)[0].train.ids


class TestVariants:
    def test_names_are_distinct_and_the_first_is_the_baseline(self) -> None:
        names = [v.name for v in VARIANTS]
        assert len(set(names)) == len(names)
        assert VARIANTS[0] == Variant(name="baseline", about="")

    def test_each_makes_a_recipe(self) -> None:
        for chosen in VARIANTS:
            recipe = dataclasses.replace(ablation.BASELINE, **chosen.change)
            assert (recipe != ablation.BASELINE) == bool(chosen.change)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("head only", set()),
            ("head and stage 3", {"stage3"}),
            ("head, stages 2 and 3", {"stage2", "stage3"}),
            ("baseline", {"stem", "stage1", "stage2", "stage3"}),
            ("gradual unfreezing", {"stem", "stage1", "stage2", "stage3"}),
        ],
    )
    def test_what_learns(self, name: str, expected: set[str], source: str) -> None:
        assert moved(name, source) == expected

    def test_all_but_batch_norm_leaves_every_norm_as_it_was(self, source: str) -> None:
        data, _ = task(0, k=2)
        first = small_resnet(10, weights=source, seed=0)
        network, _ = tune(variant("all but batch norm"), data, CPU, source=source)
        before, after = dict(first.named_modules()), dict(network.named_modules())
        norms = [name for name, part in before.items() if isinstance(part, nn.BatchNorm2d)]
        assert norms
        for name in norms:
            assert not diff_state(before[name], after[name]).moves
        assert not torch.equal(before["stem.0"].weight, after["stem.0"].weight)

    def test_probe_first_starts_from_the_probe(self, source: str) -> None:
        data, _ = task(0, k=5)
        network = small_resnet(10, weights=source, seed=0)
        with torch.no_grad():
            features = network.eval().features(data.train.x)
        ablation.probe_first(network, data)
        hits = network.head(features).argmax(1) == data.train.y
        assert hits.double().mean() > 0.25  # a random head has about 0.1

    def test_same_seed_same_bits(self, source: str) -> None:
        data, _ = task(0, k=2)
        a, _ = tune(variant("augmentation"), data, CPU, source=source)
        b, _ = tune(variant("augmentation"), data, CPU, source=source)
        assert not diff_state(a, b).moves


class TestRerun:
    def test_pairs_every_variant_with_the_baseline_of_its_seed(self, source: str) -> None:
        runs = rerun("head only", seeds=(0, 1), k=2, run=CPU, source=source)
        assert list(runs["variant"]) == ["baseline", "head only"] * 2
        wide = runs.pivot(index="seed", columns="variant", values=["accuracy", "gain"])
        expected = wide["accuracy"]["head only"] - wide["accuracy"]["baseline"]
        assert np.allclose(wide["gain"]["head only"], expected)
        assert (wide["gain"]["baseline"] == 0).all()

    def test_unknown_variant_lists_the_known(self) -> None:
        with pytest.raises(ValueError, match=r"no variant 'magic'; there are baseline, from"):
            rerun("magic")

    def test_table_holds_the_call_that_reruns_a_row(self) -> None:
        runs = pd.DataFrame(
            {
                "variant": ["baseline", "warm-up"] * 3,
                "about": ["", "schedule"] * 3,
                "accuracy": [0.9, 0.91, 0.8, 0.83, 0.85, 0.87],
                "gain": [0.0, 0.01, 0.0, 0.03, 0.0, 0.02],
            }
        )
        rows = table(runs)
        assert rows.loc["warm-up", "gain"] == pytest.approx(0.02)
        assert rows.loc["warm-up", "low"] < 0 < rows.loc["warm-up", "high"]
        assert np.isnan(rows.loc["baseline", "gain"])
        assert rows.loc["warm-up", "call"] == 'tl.ablation.rerun("warm-up")'


class TestSearch:
    def test_is_never_worse_than_the_baseline_on_what_judges_it(self, source: str) -> None:
        data, _ = task(0, k=2)
        found = ablation.search(data, trials=3, run=CPU, source=source)
        assert len(found.trials) == 3
        assert found.best_value <= found.trials[0].value
        assert found.trials[0].params["lr"] == pytest.approx(1e-3)
        network, history = tune(ablation.chosen(found), data, CPU, source=source)
        assert isinstance(network, SmallResNet)
        assert history["validation_loss"].iloc[-1] == pytest.approx(found.best_value, rel=1e-5)

    def test_without_optuna_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(ModuleNotFoundError, match=r'pip install "tlhelpers\[tune\]"'):
            ablation.search(task(0)[0])


class TestRecords:
    def test_tuning_study_measures_what_the_search_has_not_seen(
        self, monkeypatch: pytest.MonkeyPatch, source: str
    ) -> None:
        original = ablation.tune
        monkeypatch.setattr(ablation, "tune", lambda v, d, r, **_: original(v, d, r, source=source))
        record = ablation.tuning_study(CPU, seeds=(0, 1), trials=2)
        assert record.name == "glyphs/tuning"
        assert record.result["validation_loss_saved"] >= 0
        assert len(record.curve) == 4

    def test_rates_study_watches_what_no_run_has_seen(self) -> None:
        few, rest = task(3)
        watched = ablation._watched(3)
        assert watched.train.ids == few.train.ids
        assert watched.validation.ids == rest.ids

    def test_rates_study_pairs_every_rate_with_every_depth(
        self, monkeypatch: pytest.MonkeyPatch, source: str
    ) -> None:
        original = ablation.tune
        monkeypatch.setattr(ablation, "tune", lambda v, d, r, **_: original(v, d, r, source=source))
        monkeypatch.setattr(ablation, "RATES", (1e-3, 1e-1))
        record = ablation.rates_study(CPU, seeds=(0, 1))
        assert len(record.curve) == 2 * (1 + 2 * 3)
        assert all(row["step"] == [10] for row in record.curve)
        assert "baseline minus head only, rate 0.1" in record.result

    def test_shipped_records_are_of_the_variants_here(self) -> None:
        runs = tl.records.get("glyphs/ablation").to_frame()
        assert list(dict.fromkeys(runs["variant"])) == [v.name for v in VARIANTS]
        assert set(tl.records.get("glyphs/unfreeze").to_frame()["variant"]) == set(ablation.DEPTHS)
        assert set(runs["seed"]) == set(ablation.SEEDS)

    def test_the_script_exists(self) -> None:
        script = Path(__file__).parent.parent / ablation.COMMAND.split()[1]
        assert script.is_file()
