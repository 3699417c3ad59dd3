"""Behaviour of ``tlhelpers.evaluate``: known answers, scikit-learn as reference, intervals."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)
from torch import Tensor, nn

from tlhelpers import evaluate, probe
from tlhelpers.evaluate import Estimate, Report
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, TestSplit


def make(scores: Tensor, labels: Tensor, *, split: Sequence[str] | None = None) -> Dataset:
    """A data set whose features are the scores, so that a predictor can hand them through.

    One example a class is put before the given ones as training part.
    """
    n, m = scores.shape
    return Dataset(
        name="toy",
        classes=tuple(f"class {c}" for c in range(m)),
        x=torch.cat([torch.eye(m, dtype=scores.dtype), scores]),
        labels=torch.cat([torch.arange(m), labels]),
        split=np.array(["train"] * m + list(split or ["test"] * n)),
        ids=tuple(f"row {i}" for i in range(n + m)),
        split_name="toy split",
    )


def draw(n: int, m: int, *, seed: int = 0, signal: float = 2.0) -> tuple[Tensor, Tensor]:
    """Scores that are calibrated by construction, and labels: each is drawn from the softmax."""
    generator = torch.Generator().manual_seed(seed)
    scores = signal * torch.randn(n, m, generator=generator, dtype=torch.float64)
    return scores, torch.multinomial(scores.softmax(1), 1, generator=generator).squeeze(1)


def identity(x: Tensor) -> Tensor:
    return x


def report(scores: Tensor, labels: Tensor, **options: Any) -> Report:
    return evaluate.report(identity, make(scores, labels).test, name="trial", **options)


@pytest.fixture(scope="module")
def trial() -> Report:
    return report(*draw(600, 8))


class TestKnownAnswers:
    def test_a_perfect_predictor(self) -> None:
        labels = torch.arange(120) % 6
        r = report(100.0 * torch.eye(6)[labels], labels)
        for estimate in (r.top1, r.top5, r.macro_f1):
            assert estimate is not None
            assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)
        assert r.nll.value == pytest.approx(0, abs=1e-9)
        assert r.ece.value == pytest.approx(0, abs=1e-9)
        assert r.confused().empty

    def test_a_constant_predictor(self) -> None:
        labels = torch.arange(120) % 6
        r = report(torch.zeros(120, 6), labels)
        assert r.top1.value == pytest.approx(1 / 6)
        assert r.top5 is not None
        assert r.top5.value == pytest.approx(5 / 6)
        assert r.nll.value == pytest.approx(np.log(6))
        assert r.ece.value == pytest.approx(0, abs=1e-9)
        assert set(r.outcomes.predicted) == {0}
        # One class has recall 1 and precision 1/6, the others have F1 0.
        assert r.macro_f1.value == pytest.approx(2 / 7 / 6)

    def test_a_predictor_that_is_always_wrong_and_sure(self) -> None:
        labels = torch.arange(60) % 6
        r = report(100.0 * torch.eye(6)[(labels + 1) % 6], labels)
        assert r.top1.value == 0
        assert r.ece.value == pytest.approx(1)
        # e^-100 counts as the smallest step above a probability of 0.
        assert r.nll.value == pytest.approx(-np.log(np.finfo(float).eps))

    @pytest.mark.parametrize("m", [2, 3, 8])
    def test_every_metric_is_scikit_learn_s(self, m: int) -> None:
        scores, labels = draw(400, m)
        r = report(scores, labels)
        probabilities = scores.softmax(1).numpy()
        predicted = probabilities.argmax(1)
        assert r.top1.value == pytest.approx((predicted == labels.numpy()).mean())
        assert r.macro_f1.value == pytest.approx(f1_score(labels, predicted, average="macro"))
        assert r.nll.value == pytest.approx(log_loss(labels, probabilities, labels=range(m)))
        balanced = balanced_accuracy_score(labels, predicted)
        assert r.balanced_accuracy.value == pytest.approx(balanced)
        if m == 2:
            assert r.auc is not None
            assert r.auc.value == pytest.approx(roc_auc_score(labels, probabilities[:, 1]))
            assert f"AUC {r.auc}" in repr(r)
        else:
            assert r.auc is None
        if m == 8:
            assert r.top5 is not None
            expected = top_k_accuracy_score(labels, probabilities, k=5)
            assert r.top5.value == pytest.approx(expected)
        else:
            assert r.top5 is None

    def test_macro_f1_leaves_out_classes_that_neither_occur_nor_are_predicted(self) -> None:
        labels = torch.tensor([0, 0, 1, 1, 2, 2])
        scores = 9.0 * torch.eye(6)[torch.tensor([0, 1, 1, 1, 2, 3])]
        expected = f1_score(labels, scores.argmax(1), average="macro", zero_division=0)
        assert report(scores, labels).macro_f1.value == pytest.approx(expected)

    def test_the_calibration_error_by_hand(self) -> None:
        # Four images at confidence 0.9, two right; four at 0.6, all right.
        confidence = torch.tensor([0.9] * 4 + [0.6] * 4)
        scores = torch.stack([confidence, 1 - confidence], dim=1).log()
        labels = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0])
        assert report(scores, labels).ece.value == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)

    def test_of_equal_scores_the_first_is_the_highest(self) -> None:
        scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
        r = report(scores, torch.tensor([0, 1]))
        assert r.outcomes.rank.tolist() == [0, 1]
        assert r.outcomes.predicted.tolist() == [0, 0]


class TestCalibration:
    def test_a_calibrated_predictor_is_at_the_floor(self) -> None:
        ratios = []
        for n in (500, 20_000):
            r = report(*draw(n, 5, seed=1), resamples=200)
            assert r.ece.low == 0
            ratios.append(r.ece.value / r.ece_floor)
            assert 0.5 < ratios[-1] < 2
        assert r.ece.value < 0.02
        assert r.ece.high < 0.02

    def test_overconfidence_is_seen(self) -> None:
        scores, labels = draw(2000, 5)
        r = report(3 * scores, labels)
        assert r.ece.low > 0.05 > r.ece_floor
        table = r.reliability()
        filled = table[table["count"] > 20]
        assert (filled["confidence"] > filled["accuracy"]).all()

    def test_the_reliability_table_adds_up_to_the_ece(self, trial: Report) -> None:
        table = trial.reliability()
        assert len(table) == 15
        assert table["count"].sum() == 600
        gaps = (table["accuracy"] - table["confidence"]).abs().fillna(0)
        assert (gaps * table["count"]).sum() / 600 == pytest.approx(trial.ece.value)
        inside = table.dropna()
        assert (inside["confidence"] > inside["low"]).all()
        assert (inside["confidence"] <= inside["high"] + 1e-12).all()
        assert (inside["accuracy_low"] < inside["accuracy"] + 1e-12).all()
        assert (inside["accuracy_high"] > inside["accuracy"] - 1e-12).all()
        assert table["accuracy_low"].isna().equals(table["count"] == 0)
        assert list(trial.reliability(4)["high"]) == [0.25, 0.5, 0.75, 1]
        with pytest.raises(ValueError, match="1 bin or more, found 0"):
            trial.reliability(0)


class TestIntervals:
    def test_they_hold_their_value(self, trial: Report) -> None:
        frame = trial.to_frame()
        assert (frame["low"] <= frame["value"]).all()
        assert (frame["value"] <= frame["high"]).all()
        assert (frame["low"] < frame["high"]).all()

    def test_accuracy_agrees_with_the_binomial(self, trial: Report) -> None:
        p, n = trial.top1.value, len(trial)
        half = 1.96 * np.sqrt(p * (1 - p) / n)
        assert trial.top1.low == pytest.approx(p - half, abs=0.15 * half)
        assert trial.top1.high == pytest.approx(p + half, abs=0.15 * half)

    def test_resamples_are_what_they_claim(self, trial: Report) -> None:
        """Weighted sums equal the metrics of the resampled images, written out."""
        counts = evaluate._counts(600, 1000, 0)
        assert (counts.sum(axis=0, dtype=int) == 600).all()
        wanted = ("top1", "nll", "macro_f1", "balanced_accuracy")
        drawn = evaluate._replicates(trial.outcomes, 1000, 0, wanted)
        o = trial.outcomes
        for column in (0, 1, 999):
            rows = np.repeat(np.arange(600), counts[:, column])
            assert drawn["top1"][column] == pytest.approx(o.correct[rows].mean(), rel=1e-5)
            assert drawn["nll"][column] == pytest.approx(o.loss[rows].mean(), rel=1e-5)
            f1 = f1_score(o.true[rows], o.predicted[rows], average="macro")
            assert drawn["macro_f1"][column] == pytest.approx(f1, rel=1e-5)
            balanced = balanced_accuracy_score(o.true[rows], o.predicted[rows])
            assert drawn["balanced_accuracy"][column] == pytest.approx(balanced, rel=1e-5)

    def test_resamples_of_the_auc_are_scikit_learn_s(self) -> None:
        scores, labels = draw(80, 2)
        o = report(scores.round(decimals=1), labels).outcomes  # with ties
        drawn = evaluate._replicates(o, 300, 0, ["auc"])["auc"]
        counts = evaluate._counts(80, 300, 0)
        for column in (0, 1, 299):
            rows = np.repeat(np.arange(80), counts[:, column])
            expected = roc_auc_score(o.true[rows], o.margin[rows])
            assert drawn[column] == pytest.approx(expected)

    @pytest.mark.parametrize("metric", ["top1", "balanced_accuracy", "macro_f1", "nll", "ece"])
    def test_they_cover_the_truth_about_as_often_as_they_say(self, metric: str) -> None:
        """The truth is read off a large sample of the same, miscalibrated, predictor."""
        scores, labels = draw(200_000, 6, seed=9)
        truth = getattr(report(1.7 * scores, labels, resamples=2), metric).value
        hits = 0
        for seed in range(200):
            scores, labels = draw(250, 6, seed=seed)
            estimate = getattr(report(1.7 * scores, labels, resamples=300), metric)
            hits += estimate.low <= truth <= estimate.high
        assert 0.88 <= hits / 200 <= 0.99

    def test_that_of_the_auc_covers_the_truth_too(self) -> None:
        scores, labels = draw(200_000, 2, seed=9)
        truth = roc_auc_score(labels, scores[:, 1] - scores[:, 0])
        reports = [report(*draw(150, 2, seed=seed), resamples=300) for seed in range(200)]
        found = [r.auc for r in reports if r.auc is not None]
        assert 0.88 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.99

    def test_the_auc_of_a_resample_without_a_class_is_left_out(self) -> None:
        scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        r = report(scores, torch.tensor([0, 1, 1]))  # a third of the resamples lack class 0
        assert r.auc is not None
        assert (r.auc.value, r.auc.low, r.auc.high) == (1, 1, 1)
        assert report(scores, torch.tensor([1, 1, 1])).auc is None

    def test_the_interval_of_a_calibrated_predictor_s_ece_holds_zero(self) -> None:
        lows = [report(*draw(250, 6, seed=seed), resamples=300).ece.low for seed in range(100)]
        assert np.mean(np.array(lows) == 0) > 0.9

    def test_more_images_narrow_them(self) -> None:
        widths = []
        for n in (200, 3200):
            top1 = report(*draw(n, 8)).top1
            widths.append(top1.high - top1.low)
        assert widths[0] / widths[1] == pytest.approx(4, rel=0.2)

    def test_the_order_of_the_images_does_not_matter(self, trial: Report) -> None:
        data = make(*draw(600, 8))
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
        shuffled = dataclasses.replace(
            data,
            x=data.x[order],
            labels=data.labels[order],
            split=data.split[order.numpy()],
            ids=tuple(data.ids[i] for i in order),
        )
        other = evaluate.report(identity, shuffled.test, name="trial")
        assert other.to_frame().equals(trial.to_frame())
        assert other.per_class().equals(trial.per_class())
        assert evaluate.difference(trial, other).value == 0

    def test_a_seed_moves_the_interval_and_not_the_value(self, trial: Report) -> None:
        again = report(*draw(600, 8))
        other = report(*draw(600, 8), seed=1)
        assert again.to_frame().equals(trial.to_frame())
        assert other.nll.value == trial.nll.value
        assert other.nll.low != trial.nll.low


class TestReadings:
    def test_a_report_is_one_reading_and_says_which(self) -> None:
        test = make(*draw(50, 3)).test
        first = evaluate.report(identity, test, name="first try")
        second = evaluate.report(identity, test, name="second try")
        assert test.readings == second.readings == ("first try", "second try")
        assert first.readings == ("first try",)
        assert str(first).endswith("reading 1 of the test split")
        assert str(second).endswith("reading 2 of the test split, after 'first try'")

    def test_many_readings_are_counted(self) -> None:
        test = make(*draw(50, 3)).test
        for i in range(6):
            r = evaluate.report(identity, test, name=f"try {i}")
        assert "reading 6 of the test split, after 'try 0', 'try 1', 'try 2', 2 more" in str(r)

    def test_a_grid_is_one_reading(self) -> None:
        test = make(*draw(50, 3)).test
        predictors: dict[int, Callable[[Tensor], Tensor]] = {1: identity, 5: lambda x: -x}
        found = evaluate.grid(predictors, test, name="learning curve")
        assert test.readings == ("learning curve",)
        assert list(found) == [1, 5]
        assert found[5].name == "learning curve: 5"
        assert found[1].readings == found[5].readings == ("learning curve",)
        alone = evaluate.report(identity, test, name="alone")
        assert alone.to_frame().equals(found[1].to_frame())

    def test_validate_reads_no_test_split(self) -> None:
        data = make(*draw(90, 3), split=["validation"] * 40 + ["test"] * 50)
        estimate = evaluate.validate(identity, data.validation)
        right = data.validation.x.argmax(1) == data.validation.y
        assert estimate.value == pytest.approx(float(right.double().mean()))
        assert estimate.low < estimate.value < estimate.high
        assert estimate.unit == "%"
        assert data.test.readings == ()

    @pytest.mark.parametrize("metric", ["balanced_accuracy", "auc", "nll"])
    def test_validate_has_the_other_metrics_of_a_report(self, metric: str) -> None:
        scores, labels = draw(80, 2)
        data = make(scores, labels, split=["validation"] * 80)
        found = evaluate.validate(identity, data.validation, metric=metric)
        reported = getattr(report(scores, labels), metric)
        assert found.to_frame().equals(reported.to_frame())

    def test_validate_says_which_metrics_there_are(self) -> None:
        data = make(*draw(40, 3), split=["validation"] * 40)
        with pytest.raises(ValueError, match=r"auc is not defined .* 3 classes, of which 3 occur"):
            evaluate.validate(identity, data.validation, metric="auc")
        with pytest.raises(ValueError, match="metric must be one of top1"):
            evaluate.validate(identity, data.validation, metric="accuracy")

    def test_a_predictor_that_fails_costs_no_reading(self) -> None:
        test = make(*draw(50, 3)).test

        def broken(x: Tensor) -> Tensor:
            raise RuntimeError("no luck")

        with pytest.raises(RuntimeError, match="no luck"):
            evaluate.report(broken, test, name="broken")
        with pytest.raises(ValueError, match="NaN"):
            evaluate.grid({1: identity, 2: lambda x: x * torch.nan}, test, name="half broken")
        assert test.readings == ()


class TestPredictors:
    def test_a_network_is_called_in_eval_mode_without_gradients_and_restored(self) -> None:
        seen: list[tuple[bool, bool, int]] = []

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.frozen = nn.BatchNorm1d(3).eval()
                self.dropout = nn.Dropout(0.9)
                self.head = nn.Linear(3, 3)

            def forward(self, x: Tensor) -> Tensor:
                seen.append((self.training, torch.is_grad_enabled(), len(x)))
                return self.head(self.dropout(self.frozen(x.flatten(1))))

        net = Net()
        test = make(*draw(150, 3)).test
        images = TestSplit(
            test.x.float().reshape(150, 3, 1, 1),
            torch.zeros(150, dtype=torch.int64),
            test.ids,
            classes=test.classes,
            split_name="toy",
            log=[],
        )
        a = evaluate.report(net, images, name="a")
        assert (net.training, net.frozen.training, net.dropout.training) == (True, False, True)
        assert {(training, grad) for training, grad, _ in seen} == {(False, False)}
        assert sum(size for *_, size in seen) == 150
        assert max(size for *_, size in seen) == 64
        assert evaluate.report(net, images, name="b").nll == a.nll

    def test_a_network_that_fails_is_restored_too(self) -> None:
        net = nn.Sequential(nn.Dropout(), nn.Linear(99, 3))
        with pytest.raises(RuntimeError):
            evaluate.report(net, make(*draw(50, 3)).test, name="fails")
        assert net.training

    def test_lazy_images_are_decoded_in_batches(self) -> None:
        class Images:
            def __init__(self, rows: Tensor) -> None:
                self.rows = rows

            def __len__(self) -> int:
                return len(self.rows)

            def take(self, indices: Sequence[int]) -> Images:
                return Images(self.rows[torch.as_tensor(indices)])

            def stack(self) -> Tensor:
                decoded.append(len(self))
                return self.rows

        decoded: list[int] = []
        scores, labels = draw(150, 3)
        data = make(scores, labels)
        lazy = dataclasses.replace(data, x=Images(data.x))
        r = evaluate.report(identity, lazy.test, name="lazy")
        assert decoded == [64, 64, 22]
        assert r.to_frame().equals(report(scores, labels).to_frame())
        with pytest.raises(TypeError, match=r"DummyClassifier takes features.*extract"):
            evaluate.report(DummyClassifier().fit([[0]], [0]), lazy.test, name="no")

    def test_half_precision_and_arrays_are_taken(self) -> None:
        test = make(*draw(50, 3)).test
        a = evaluate.report(lambda x: x.half(), test, name="half")
        b = evaluate.report(lambda x: x.numpy(), test, name="array")
        assert a.nll.value == pytest.approx(b.nll.value, abs=1e-3)

    def test_a_scikit_learn_classifier(self) -> None:
        data = make(*draw(300, 4), split=["train"] * 200 + ["test"] * 100)
        classifier = LogisticRegression().fit(data.train.x, data.train.y)
        r = evaluate.report(classifier, data.test, name="sklearn")
        opened = data.test.open(reason="to compare")
        expected = log_loss(opened.y, classifier.predict_proba(opened.x))
        assert r.nll.value == pytest.approx(expected)
        assert r.top1.value == pytest.approx(classifier.score(opened.x, opened.y))

    def test_a_classifier_that_never_met_a_class_gives_it_probability_zero(self) -> None:
        data = make(*draw(300, 4), split=["train"] * 200 + ["test"] * 100)
        known = data.train.y != 2
        classifier = LogisticRegression().fit(data.train.x[known], data.train.y[known])
        r = evaluate.report(classifier, data.test, name="three of four")
        table = r.per_class()
        assert table["recall"][2] == 0
        assert (table["recall"][[0, 1, 3]] > 0.2).all()
        assert 2 not in r.outcomes.predicted
        assert r.outcomes.loss.max() == pytest.approx(-np.log(np.finfo(float).eps))

    def test_a_classifier_of_names_is_refused(self) -> None:
        data = make(*draw(60, 3))
        named = DummyClassifier().fit(data.train.x, ["cat", "dog", "fox"])
        with pytest.raises(ValueError, match=r"classes \['cat'.*Fit it on split.y"):
            evaluate.report(named, data.test, name="names")
        beyond = DummyClassifier().fit(data.train.x, [1, 2, 3])
        with pytest.raises(ValueError, match=r"numbers 0\.\.2"):
            evaluate.report(beyond, data.test, name="beyond")

    def test_a_probe_with_its_bank(self) -> None:
        data = make(*draw(400, 4), split=["train"] * 250 + ["validation"] * 50 + ["test"] * 100)
        p = probe.fit(data, run=Run())
        assert evaluate.report(p, data.test, name="probe").top1.low > 0.4
        predictors: dict[str, evaluate.Predictor] = {"probe": p, "layer": p.to_linear().double()}
        found = evaluate.grid(predictors, data.test, name="the same twice")
        assert found["layer"].top1.value == found["probe"].top1.value


class TestTables:
    def test_per_class_is_scikit_learn_s(self, trial: Report) -> None:
        o = trial.outcomes
        precision, recall, f1, n = precision_recall_fscore_support(o.true, o.predicted)
        table = trial.per_class()
        assert list(table["class"]) == [f"class {c}" for c in range(8)]
        assert table["n"].tolist() == n.tolist()
        for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
            np.testing.assert_allclose(table[name], expected)
            assert (table[f"{name}_low"] <= table[name]).all()
            assert (table[name] <= table[f"{name}_high"]).all()
        assert table["f1"].mean() == pytest.approx(trial.macro_f1.value)

    def test_per_class_of_absent_classes_is_nan(self) -> None:
        labels = torch.tensor([0, 0, 1, 1] * 10)
        scores = 9.0 * torch.eye(4)[torch.tensor([0, 2, 1, 1] * 10)]
        table = report(scores, labels).per_class()
        assert table["n"].tolist() == [20, 20, 0, 0]
        assert table["recall"][:2].tolist() == [0.5, 1]
        assert table["recall"][2:].isna().all()
        assert table["precision"][2] == 0
        assert table[["recall", "precision", "f1", "f1_low", "f1_high"]].iloc[3].isna().all()

    def test_confused_counts_pairs(self) -> None:
        # a -> b three times, b -> a once, c -> a twice, the rest right.
        true = torch.tensor([0] * 6 + [1] * 4 + [2] * 4)
        predicted = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 2, 2])
        r = report(9.0 * torch.eye(3)[predicted], true)
        rows = r.confused().to_numpy().tolist()
        assert rows == [
            ["class 0", "class 1", 3, 0.5],
            ["class 2", "class 0", 2, 0.5],
            ["class 1", "class 0", 1, 0.25],
        ]
        pairs = r.confused(symmetric=True)
        assert list(pairs.columns) == ["first", "second", "count", "share"]
        assert pairs.to_numpy().tolist() == [
            ["class 0", "class 1", 4, 0.4],
            ["class 0", "class 2", 2, 0.2],
        ]
        assert len(r.confused(1)) == 1

    def test_every_confusion_is_an_error(self, trial: Report) -> None:
        assert trial.confused(None)["count"].sum() == (~trial.correct).sum()
        assert trial.confused(None, symmetric=True)["count"].sum() == (~trial.correct).sum()

    def test_the_frame_and_the_line(self, trial: Report) -> None:
        frame = trial.to_frame()
        metrics = ["top1", "top5", "balanced_accuracy", "macro_f1", "nll", "ece"]
        assert frame["metric"].tolist() == metrics
        assert frame["value"][4] == trial.nll.value
        line = str(trial)
        assert line.startswith("trial (split 'toy split', 600 test images): top-1 ")
        assert str(trial.top1) in line
        assert "\n" not in line
        assert repr(trial) == line

    def test_outcomes_belong_to_the_ids(self, trial: Report) -> None:
        scores, labels = draw(600, 8)
        frame = trial.outcomes.to_frame().set_index("id")
        assert trial.ids == tuple(sorted(trial.ids))
        for i in (0, 17, 599):
            row = frame.loc[f"row {i + 8}"]  # 8 training rows come first
            assert row["true"] == labels[i]
            assert row["confidence"] == pytest.approx(float(scores[i].softmax(0).max()))
            assert row["loss"] == pytest.approx(-float(scores[i].log_softmax(0)[labels[i]]))


@pytest.fixture(scope="module")
def pair() -> dict[str, Report]:
    scores, labels = draw(800, 6)
    noise = torch.randn(800, 6, generator=torch.Generator().manual_seed(5))
    test = make(scores, labels).test
    return evaluate.grid({"good": identity, "noisy": lambda x: x + 0.7 * noise}, test, name="pair")


class TestDifference:
    @pytest.mark.parametrize("metric", evaluate.METRICS)
    def test_is_the_difference_of_the_values(self, pair: dict[str, Report], metric: str) -> None:
        a, b = pair["good"], pair["noisy"]
        if metric == "auc":
            scores, labels = draw(300, 2)
            weaker = scores + torch.randn(300, 2, generator=torch.Generator().manual_seed(5))
            a, b = report(scores, labels), report(weaker, labels)
        d = evaluate.difference(a, b, metric)
        assert d.value == pytest.approx(getattr(a, metric).value - getattr(b, metric).value)
        assert d.low < d.value < d.high
        back = evaluate.difference(b, a, metric)
        assert (back.low, back.high) == pytest.approx((-d.high, -d.low))

    def test_pairing_narrows_the_interval(self, pair: dict[str, Report]) -> None:
        a, b = pair["good"], pair["noisy"]
        d = evaluate.difference(a, b, "nll")
        unpaired = np.hypot(a.nll.high - a.nll.low, b.nll.high - b.nll.low)
        assert d.high - d.low < 0.8 * unpaired
        assert d.high < 0

    def test_of_a_report_with_itself_is_nothing(self, pair: dict[str, Report]) -> None:
        d = evaluate.difference(pair["good"], pair["good"])
        assert (d.value, d.low, d.high) == (0, 0, 0)
        assert str(d) == "+0.0 points [+0.0, +0.0]"

    def test_agrees_with_the_textbook_s_paired_interval(self, pair: dict[str, Report]) -> None:
        a, b = pair["good"], pair["noisy"]
        gaps = a.outcomes.loss - b.outcomes.loss
        half = 1.96 * gaps.std() / np.sqrt(800)
        d = evaluate.difference(a, b, "nll")
        assert d.high - d.low == pytest.approx(2 * half, rel=0.1)

    def test_refuses_what_cannot_be_paired(self, pair: dict[str, Report]) -> None:
        a = pair["good"]
        with pytest.raises(ValueError, match=r"same test images: .* 800, .* 700, .* share 700"):
            evaluate.difference(a, report(*draw(700, 6)))
        scores, labels = draw(800, 6)
        with pytest.raises(ValueError, match="same test images with different labels"):
            evaluate.difference(a, report(scores, (labels + 1) % 6))
        with pytest.raises(ValueError, match=r"same resamples: .* with seed 0, .* with seed 3"):
            evaluate.difference(a, report(scores, labels, seed=3))
        with pytest.raises(ValueError, match=r"metric must be one of top1, .* found 'f1'"):
            evaluate.difference(a, a, "f1")
        few = report(*draw(50, 3))
        with pytest.raises(ValueError, match="hold no top5, since there are 3 classes"):
            evaluate.difference(few, few, "top5")


class TestMeanInterval:
    def test_is_student_s(self) -> None:
        values = np.random.default_rng(0).normal(0.8, 0.02, 10)
        e = evaluate.mean_interval(values)
        low, high = stats.t.interval(0.95, 9, values.mean(), stats.sem(values))
        assert (e.value, e.low, e.high) == pytest.approx((values.mean(), low, high))
        assert evaluate.mean_interval(values, level=0.99).low < e.low

    def test_of_equal_values_has_no_width(self) -> None:
        e = evaluate.mean_interval([0.5, 0.5, 0.5])
        assert (e.value, e.low, e.high) == (0.5, 0.5, 0.5)

    def test_refuses_what_it_cannot_use(self) -> None:
        with pytest.raises(ValueError, match="2 values or more, found 1"):
            evaluate.mean_interval([0.5])
        with pytest.raises(ValueError, match="1 of 3 values are not finite"):
            evaluate.mean_interval([0.5, float("nan"), 0.6])
        with pytest.raises(ValueError, match=r"lie in 0\.\.1, found values from 80 to 82"):
            evaluate.mean_interval([80, 82])
        with pytest.raises(ValueError, match="level must lie between 0 and 1"):
            evaluate.mean_interval([0.5, 0.6], level=95)


class TestEstimate:
    def test_prints_with_its_unit(self) -> None:
        assert str(Estimate(0.8237, 0.814, 0.834)) == "82.4 % [81.4, 83.4]"
        assert str(Estimate(0.012, -0.003, 0.021, unit="points")) == "+1.2 points [-0.3, +2.1]"
        assert str(Estimate(0.6244, 0.6, 0.65, unit="nats")) == "0.624 [0.600, 0.650]"

    def test_has_a_frame(self) -> None:
        frame = Estimate(0.5, 0.4, 0.6).to_frame()
        assert frame[["value", "low", "high"]].to_numpy().tolist() == [[0.5, 0.4, 0.6]]


class TestBadInput:
    @pytest.fixture
    def test(self) -> Iterator[TestSplit]:
        """A test split that nothing in here may open."""
        split = make(*draw(20, 3)).test
        yield split
        assert split.readings == ()

    @pytest.mark.parametrize(
        ("predictor", "kind", "message"),
        [
            (lambda x: x[:, 0], ValueError, r"shape \(20, 3\) for 20 examples, found \(20,\)"),
            (lambda x: x[:5], ValueError, r"shape \(20, 3\) for 20 examples, found \(5, 3\)"),
            (lambda x: torch.zeros(20, 1000), ValueError, "1000 classes, but the test split has 3"),
            (lambda x: x.softmax(1), ValueError, "returned probabilities .* Return the logits"),
            (lambda x: x.tolist(), TypeError, r"array of scores \(n, m\), found list"),
            (lambda x: x / 0, ValueError, "infinite scores for 20 of 20 examples"),
            ("probe", TypeError, "a predictor is a callable .* found str"),
        ],
    )
    def test_a_predictor_s_mistakes(
        self, test: TestSplit, predictor: Any, kind: type[Exception], message: str
    ) -> None:
        with pytest.raises(kind, match=message):
            evaluate.report(predictor, test, name="mistake")

    def test_nan_scores_are_counted_and_named(self, test: TestSplit) -> None:
        def gaps(x: Tensor) -> Tensor:
            x = x.clone()
            x[[2, 5], 1] = torch.nan
            return x

        with pytest.raises(ValueError, match=r"2 of 20 examples \(first: row 5, row 8\)"):
            evaluate.report(gaps, test, name="gaps")

    def test_minus_infinity_is_a_probability_of_zero(self) -> None:
        scores = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
        assert report(scores, torch.tensor([0, 1])).nll.value == 0

    def test_splits_that_do_not_fit(self, test: TestSplit) -> None:
        data = make(*draw(20, 3))
        with pytest.raises(TypeError, match=r"needs the test split .* found Split"):
            evaluate.report(identity, data.train, name="train")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"train and validation splits; .* evaluate\.report"):
            evaluate.validate(identity, test)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="validation split is empty"):
            evaluate.validate(identity, data.validation)
        none = make(*draw(20, 3), split=["validation"] * 20)
        with pytest.raises(ValueError, match="test split is empty"):
            evaluate.report(identity, none.test, name="none")
        with pytest.raises(ValueError, match="2 classes, but the train split has labels up to 2"):
            evaluate.validate(lambda x: x[:, :2] - 1, data.train)

    def test_other_arguments(self, test: TestSplit) -> None:
        with pytest.raises(ValueError, match="needs a name"):
            evaluate.report(identity, test, name=" ")
        with pytest.raises(ValueError, match="at least one predictor"):
            evaluate.grid({}, test, name="nothing")
        with pytest.raises(ValueError, match="2 resamples or more, found 1"):
            evaluate.report(identity, test, name="once", resamples=1)


def test_a_report_of_the_book_s_size_takes_well_under_a_second() -> None:
    scores, labels = draw(5760, 120, signal=3.0)
    test = make(scores.float(), labels).test
    evaluate.report(identity, test, name="warm-up")
    began = time.process_time()
    evaluate.report(identity, test, name="timed")
    assert time.process_time() - began < 2


# --- groups ---------------------------------------------------------------------------------


def grouped(size: int, *, groups: int = 60) -> tuple[Any, Any, dict[str, str]]:
    """A data set whose test images come in groups of a size, each right or wrong as a whole."""
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(groups) < 0.7, size)
    n = len(right)
    labels = torch.arange(n + 2) % 2
    data = Dataset(
        "grouped", ("a", "b"), torch.zeros(n + 2, 1), labels,
        np.array(["train"] * 2 + ["test"] * n), tuple(f"{i:05}" for i in range(n + 2)), "given",
    )  # fmt: skip
    answers = torch.where(torch.from_numpy(right), labels[2:], 1 - labels[2:])
    scores = torch.nn.functional.one_hot(answers, 2).float() * 3 - 1
    names = {i: f"group {g}" for i, g in zip(data.test.ids, np.arange(n) // size, strict=True)}
    return data, (lambda _: scores), names


def test_groups_of_one_image_are_images() -> None:
    data, predictor, groups = grouped(1)
    plain = evaluate.report(predictor, data.test, name="plain")
    by_group = evaluate.report(predictor, data.test, name="by group", groups=groups)
    assert by_group.top1.value == plain.top1.value
    width, other = (r.top1.high - r.top1.low for r in (plain, by_group))
    assert other == pytest.approx(width, rel=0.15)


def test_an_interval_over_groups_is_as_wide_as_the_groups_are_few() -> None:
    data, predictor, groups = grouped(9)
    plain = evaluate.report(predictor, data.test, name="plain")
    by_group = evaluate.report(predictor, data.test, name="by group", groups=groups)
    ratio = (by_group.top1.high - by_group.top1.low) / (plain.top1.high - plain.top1.low)
    assert ratio == pytest.approx(3, rel=0.2)  # the root of 9 equal images
    assert "540 test images in 60 groups" in repr(by_group)
    with pytest.raises(ValueError, match="different groups"):
        evaluate.difference(plain, by_group)
    assert evaluate.difference(by_group, by_group).high == 0
    recall = by_group.per_class()
    wider = (recall["recall_high"] - recall["recall_low"]).mean()
    recall = plain.per_class()
    assert wider > 2 * (recall["recall_high"] - recall["recall_low"]).mean()


def test_groups_must_be_whole_and_more_than_one() -> None:
    data, predictor, groups = grouped(3)
    with pytest.raises(ValueError, match="1 of 180 have none"):
        evaluate.report(predictor, data.test, name="x", groups=dict(list(groups.items())[1:]))
    with pytest.raises(ValueError, match="all 180 test images are of one group"):
        evaluate.report(predictor, data.test, name="x", groups=dict.fromkeys(groups, "one"))
    assert data.test.readings == ()
