"""Behaviour of ``tlhelpers.probe``: scikit-learn as reference, and what validation chooses."""

from __future__ import annotations

import dataclasses
import time
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tlhelpers import evaluate, probe
from tlhelpers.probe import Probe
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

CPU = Run()


def make(
    n: int = 200,
    d: int = 10,
    m: int = 4,
    *,
    noise: float = 1.0,
    validation: int = 80,
    test: int = 100,
    seed: int = 0,
    **changes: Any,
) -> Dataset:
    """Gaussian classes whose features have different means and scales."""
    generator = torch.Generator().manual_seed(seed)
    total = n + validation + test
    labels = torch.arange(total) % m
    centres = torch.randn(m, d, generator=generator)
    x = centres[labels] + noise * torch.randn(total, d, generator=generator)
    x = 5 + x * torch.logspace(-1, 1, d)
    fields: dict[str, Any] = {
        "name": "toy bank",
        "classes": tuple(f"class {c}" for c in range(m)),
        "x": x,
        "labels": labels,
        "split": np.repeat(["train", "validation", "test"], [n, validation, test]),
        "ids": tuple(f"row {i}" for i in range(total)),
        "split_name": "toy split",
    }
    return Dataset(**(fields | changes))


def with_x(bank: Dataset, x: Any) -> Dataset:
    return dataclasses.replace(bank, x=x)


@pytest.fixture(scope="module")
def bank() -> Dataset:
    return make()


@pytest.fixture(scope="module")
def fitted(bank: Dataset) -> Probe:
    return probe.fit(bank, run=CPU)


@pytest.mark.parametrize(
    ("n", "d", "m", "ridge"),
    [
        (300, 10, 4, 1e-2),
        (300, 10, 2, 1e-4),
        (300, 10, 5, 10.0),
        (30, 80, 3, 1e-2),
        (30, 80, 3, 1.0),
        (40, 120, 10, 1e-4),
        (900, 60, 20, 1e-3),
    ],
)
def test_the_probabilities_are_those_of_scikit_learn(n: int, d: int, m: int, ridge: float) -> None:
    bank = make(n, d, m, noise=1.5)
    ours = probe.fit(bank, ridge=ridge, run=CPU).predict_proba(bank.test.x).numpy()
    scaler = StandardScaler().fit(bank.train.x.double().numpy())
    # For two classes scikit-learn penalises one vector w, which stands for -w/2 and w/2.
    c = (2 if m == 2 else 1) / (ridge * n)
    reference = LogisticRegression(C=c, tol=1e-10, max_iter=20_000)
    reference.fit(scaler.transform(bank.train.x.double().numpy()), bank.train.y.numpy())
    theirs = reference.predict_proba(scaler.transform(bank.test.x.double().numpy()))
    assert ours.shape == (100, m)
    assert np.abs(ours - theirs).max() < 1e-3


def test_the_common_scale_keeps_the_proportions_of_the_features() -> None:
    bank = make(300, 10, 4)
    x = bank.train.x.double().numpy()
    one_scale = np.sqrt(x.var(axis=0).mean())
    reference = LogisticRegression(C=1 / (1e-2 * 300), tol=1e-10, max_iter=20_000)
    reference.fit((x - x.mean(axis=0)) / one_scale, bank.train.y.numpy())
    theirs = reference.predict_proba((bank.test.x.double().numpy() - x.mean(axis=0)) / one_scale)
    ours = probe.fit(bank, ridge=1e-2, scale="common", run=CPU)
    assert np.abs(ours.predict_proba(bank.test.x).numpy() - theirs).max() < 1e-3


def test_a_projected_bank_gets_the_common_scale_and_any_other_its_own(bank: Dataset) -> None:
    class Projected(Dataset):
        projection = object()

    fields = {f.name: getattr(bank, f.name) for f in dataclasses.fields(bank)}
    common = probe.fit(Projected(**fields), ridge=0.1, run=CPU)
    assert len(common.std.unique()) == 1
    assert len(probe.fit(bank, ridge=0.1, run=CPU).std.unique()) == 10
    each = probe.fit(Projected(**fields), ridge=0.1, scale="each", run=CPU)
    assert len(each.std.unique()) == 10


class TestStandardising:
    def test_uses_training_statistics_only(self, bank: Dataset) -> None:
        moved = bank.x.clone()
        moved[torch.from_numpy(bank.split != "train")] *= 7
        a = probe.fit(bank, ridge=0.1, run=CPU)
        b = probe.fit(with_x(bank, moved), ridge=0.1, run=CPU)
        torch.testing.assert_close(a.mean, bank.train.x.mean(dim=0))
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.std, b.std)
        assert torch.equal(a.weight, b.weight)

    def test_makes_the_probe_indifferent_to_units(self, bank: Dataset) -> None:
        a = probe.fit(bank, ridge=0.1, run=CPU)
        rescaled = bank.x * torch.logspace(-3, 3, 10) - 2
        b = probe.fit(with_x(bank, rescaled), ridge=0.1, run=CPU)
        difference = a.predict_proba(bank.x) - b.predict_proba(rescaled)
        assert float(difference.abs().max()) < 1e-3

    @pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
    def test_a_constant_feature_changes_nothing(self, bank: Dataset, value: float) -> None:
        wider = torch.cat([bank.x, torch.full((len(bank), 1), value)], dim=1)
        p = probe.fit(with_x(bank, wider), ridge=0.1, run=CPU)
        assert float(p.std[-1]) == 1
        assert not p.weight[:, -1].any()
        torch.testing.assert_close(p(wider), probe.fit(bank, ridge=0.1, run=CPU)(bank.x))


class TestChoosing:
    def test_the_choice_has_the_lowest_calibrated_nll_of_the_path(self, fitted: Probe) -> None:
        lowest = min(c.calibrated_nll for c in fitted.path)
        assert fitted.chosen.ridge == fitted.ridge
        assert fitted.chosen.calibrated_nll <= lowest + 1e-3
        assert len(fitted.path) >= 7

    def test_the_path_goes_from_strong_to_weak(self, fitted: Probe) -> None:
        ridges = [c.ridge for c in fitted.path]
        assert ridges == sorted(ridges, reverse=True)
        strongest, weakest = fitted.path[0], fitted.path[-1]
        assert strongest.train_accuracy <= weakest.train_accuracy
        assert all(c.calibrated_nll <= c.validation_nll + 1e-6 for c in fitted.path)

    def test_the_rows_describe_fits_at_their_ridge(self, bank: Dataset) -> None:
        path = probe.fit(bank, run=CPU).path
        for candidate in path:
            alone = probe.fit(bank, ridge=candidate.ridge, run=CPU).chosen
            assert candidate.validation_nll == pytest.approx(alone.validation_nll, rel=0.02)
            assert candidate.temperature == pytest.approx(alone.temperature, rel=0.05)

    def test_the_chosen_row_is_what_validate_finds(self, bank: Dataset, fitted: Probe) -> None:
        found = evaluate.validate(fitted, bank.validation)
        assert fitted.chosen.validation_accuracy == pytest.approx(found.value)
        logits = fitted(bank.validation.x)
        nll = torch.nn.functional.cross_entropy(logits, bank.validation.y)
        assert fitted.chosen.validation_nll == pytest.approx(float(nll), abs=1e-5)

    def test_the_test_split_plays_no_part(self, bank: Dataset, fitted: Probe) -> None:
        changed = bank.x.clone()
        changed[torch.from_numpy(bank.split == "test")] = float("nan")
        again = probe.fit(with_x(bank, changed), run=CPU)
        assert torch.equal(again.weight, fitted.weight)
        assert again.path == fitted.path
        assert bank.test.readings == ()

    def test_noise_asks_for_a_stronger_ridge(self) -> None:
        ridges = [probe.fit(make(60, 40, 3, noise=s), run=CPU).ridge for s in (1.0, 3.0, 9.0)]
        assert 10 * ridges[0] < min(ridges[1:])

    def test_where_every_candidate_is_perfect_the_confident_one_is_taken(self) -> None:
        easy = make(60, 40, 3, noise=0.1)
        p = probe.fit(easy, run=CPU)
        assert p.chosen.validation_accuracy == 1
        assert p.chosen.validation_nll == min(c.validation_nll for c in p.path) < 0.05
        assert len(p.path) == 7

    def test_the_grid_is_extended_where_the_best_lies_at_its_end(self) -> None:
        # Many weak features and few examples: the stronger, the better.
        bank = make(40, 200, 4, noise=8.0, validation=400)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            p = probe.fit(bank, run=CPU)
        assert max(c.ridge for c in p.path) > 1
        assert max(c.ridge for c in p.path) <= 1000

    def test_a_given_grid_is_kept_and_warns_at_its_end(self) -> None:
        bank = make(40, 200, 4, noise=8.0, validation=400)
        with pytest.warns(UserWarning, match="is the largest of the grid; a larger one"):
            p = probe.fit(bank, ridge=[1e-4, 1e-3], run=CPU)
        assert [c.ridge for c in p.path] == [1e-3, 1e-4]

    def test_features_that_say_nothing_leave_the_frequencies(self) -> None:
        bank = make(n=100, m=3)
        blank = with_x(bank, torch.ones_like(bank.x))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            p = probe.fit(blank, run=CPU)
        frequencies = torch.tensor([0.34, 0.33, 0.33]).expand(len(bank), 3)
        torch.testing.assert_close(p.predict_proba(blank.x), frequencies, rtol=0, atol=1e-4)

    def test_a_number_is_used_as_it_is_and_needs_no_validation(self) -> None:
        p = probe.fit(make(validation=0), ridge=0.1, run=CPU)
        assert p.ridge == 0.1
        assert len(p.path) == 1
        assert np.isnan(p.chosen.validation_accuracy)
        assert p.chosen.train_accuracy > 0.5


class TestCalibrated:
    def test_keeps_the_order_and_lowers_the_validation_nll(self, bank: Dataset) -> None:
        shrunken = probe.fit(bank, ridge=3.0, run=CPU)
        assert shrunken.chosen.temperature < 1
        warm = shrunken.calibrated()
        x, y = bank.validation.x, bank.validation.y
        assert torch.equal(warm(x).argmax(dim=1), shrunken(x).argmax(dim=1))
        nll = float(torch.nn.functional.cross_entropy(warm(x), y))
        assert nll == pytest.approx(shrunken.chosen.calibrated_nll, abs=1e-4)
        assert "temperature 0." in str(warm)
        torch.testing.assert_close(warm.calibrated().weight, warm.weight)
        for factor in (0.8, 1.25):
            assert nll < float(torch.nn.functional.cross_entropy(warm(x) * factor, y))

    def test_needs_validation(self) -> None:
        p = probe.fit(make(validation=0), ridge=0.1, run=CPU)
        with pytest.raises(ValueError, match="toy bank has no validation example"):
            p.calibrated()


class TestToLinear:
    def test_equals_the_probe_on_features_as_they_are(self, bank: Dataset, fitted: Probe) -> None:
        layer = fitted.to_linear()
        assert (layer.in_features, layer.out_features) == (10, 4)
        torch.testing.assert_close(layer(bank.test.x), fitted(bank.test.x), rtol=1e-4, atol=1e-4)
        assert layer.weight.requires_grad

    def test_through_a_projection_it_takes_raw_features(self) -> None:
        raw = make(200, 30, 4)
        mean = raw.train.x.mean(dim=0)
        components = torch.linalg.svd(raw.train.x - mean, full_matrices=False)[2][:8]
        small = with_x(raw, (raw.x - mean) @ components.T)
        p = probe.fit(small, run=CPU)
        projection = SimpleNamespace(mean=mean, components=components)
        layer = p.to_linear(through=projection)
        assert layer.in_features == 30
        torch.testing.assert_close(layer(raw.x), p(small.x), rtol=1e-3, atol=1e-3)

    def test_refuses_another_projection(self, fitted: Probe) -> None:
        projection = SimpleNamespace(mean=torch.zeros(30), components=torch.zeros(8, 30))
        with pytest.raises(ValueError, match=r"takes 10 features, but .* shape \(8, 30\)"):
            fitted.to_linear(through=projection)


class TestPrinting:
    def test_one_useful_line(self, fitted: Probe) -> None:
        line = str(fitted)
        assert "\n" not in line
        assert "toy bank" in line
        assert "10 features → 4 classes" in line
        assert "200 training examples" in line
        assert f"ridge {fitted.ridge:.2g}" in line
        assert "\n" not in str(fitted.chosen)

    def test_the_frame_is_the_path(self, fitted: Probe) -> None:
        frame = fitted.to_frame()
        assert list(frame["ridge"]) == [c.ridge for c in fitted.path]
        assert {"validation_accuracy", "validation_nll", "temperature"} <= set(frame.columns)

    def test_it_is_frozen(self, fitted: Probe) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            fitted.ridge = 1.0  # type: ignore[misc]


class TestBadInput:
    def test_features_that_are_not_finite_are_counted_and_named(self, bank: Dataset) -> None:
        x = bank.x.clone()
        x[3, 0], x[7, 2], x[9] = float("nan"), float("inf"), float("nan")
        with pytest.raises(ValueError, match=r"3 of 200 train .*first: row 3, row 7, row 9"):
            probe.fit(with_x(bank, x), run=CPU)
        x = bank.x.clone()
        x[201] = float("nan")
        with pytest.raises(ValueError, match=r"1 of 80 validation .*first: row 201"):
            probe.fit(with_x(bank, x), run=CPU)

    def test_images_are_sent_to_extract(self, bank: Dataset) -> None:
        class Pictures(list[int]):
            def take(self, indices: Any) -> Pictures:
                return Pictures(self[i] for i in indices)

            def stack(self) -> torch.Tensor:
                raise AssertionError("no image should be decoded")

        with pytest.raises(TypeError, match=r"Pictures.*features\.extract"):
            probe.fit(with_x(bank, Pictures(range(len(bank)))), run=CPU)
        with pytest.raises(ValueError, match=r"shape \(n, d\).*\(380, 3, 8, 8\)"):
            probe.fit(with_x(bank, torch.zeros(380, 3, 8, 8)), run=CPU)

    def test_no_validation_to_choose_on(self) -> None:
        with pytest.raises(ValueError, match="chosen on validation, but toy bank has no"):
            probe.fit(make(validation=0), run=CPU)
        with pytest.raises(ValueError, match="chosen on validation"):
            probe.fit(make(validation=0), ridge=[0.1, 1], run=CPU)

    @pytest.mark.parametrize("ridge", [0, -1.0, float("nan"), [1.0, 0.0], float("inf")])
    def test_ridge_weights_are_positive(self, bank: Dataset, ridge: Any) -> None:
        with pytest.raises(ValueError, match="must be positive and finite"):
            probe.fit(bank, ridge=ridge, run=CPU)

    def test_other_arguments(self, bank: Dataset) -> None:
        with pytest.raises(ValueError, match="grid of ridge weights is empty"):
            probe.fit(bank, ridge=[], run=CPU)
        with pytest.raises(ValueError, match=r"scale must be .* found 'both'"):
            probe.fit(bank, scale="both", run=CPU)
        with pytest.raises(ValueError, match="2 classes or more, toy bank has 1"):
            probe.fit(make(m=1), run=CPU)

    def test_features_of_another_width(self, fitted: Probe) -> None:
        with pytest.raises(ValueError, match=r"shape \(n, 10\), found \(5, 12\)"):
            fitted(torch.zeros(5, 12))
        with pytest.raises(ValueError, match=r"shape \(n, 10\), found \(10,\)"):
            fitted(torch.zeros(10))

    def test_a_fit_that_stops_short_says_so(
        self, bank: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(probe, "_PATH_EVALUATIONS", 3)
        monkeypatch.setattr(probe, "_FINAL_EVALUATIONS", 3)
        monkeypatch.setattr(probe, "_FINAL_RESIDUAL", 1e-12)
        with pytest.warns(RuntimeWarning, match=r"stopped after \d+ steps with residual"):
            probe.fit(bank, ridge=1e-5, run=CPU)


def test_the_dtype_of_the_features_does_not_matter(bank: Dataset, fitted: Probe) -> None:
    double = probe.fit(with_x(bank, bank.x.double()), run=CPU)
    torch.testing.assert_close(double.weight, fitted.weight, rtol=1e-3, atol=1e-4)
    assert double(bank.test.x.double()).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_probe(bank: Dataset, fitted: Probe) -> None:
    on_gpu = probe.fit(bank, run=Run(device=torch.device("cuda")))
    difference = on_gpu.predict_proba(bank.test.x) - fitted.predict_proba(bank.test.x)
    assert float(difference.abs().max()) < 1e-3
    assert on_gpu(bank.test.x.cuda()).device.type == "cuda"


def test_a_bank_of_the_book_s_size_takes_seconds() -> None:
    bank = make(10_800, 128, 120, noise=2.0, validation=1_200)
    began = time.process_time()
    p = probe.fit(bank, run=CPU)
    # Seconds of processor time on all cores; generous, since others may use the machine.
    assert time.process_time() - began < 60
    assert p.chosen.validation_accuracy > 0.5
