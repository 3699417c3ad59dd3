"""Behaviour of ``tlhelpers.confidence``: temperature, risk and coverage, thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tlhelpers import confidence


def sample(n: int, scale: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels such that the logits divided by ``scale`` are the truth."""
    generator = torch.Generator().manual_seed(seed)
    truth = 2 * torch.randn(n, 5, generator=generator)
    labels = torch.multinomial(truth.softmax(1), 1, generator=generator)[:, 0]
    return scale * truth, labels


class TestTemperature:
    @pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
    def test_finds_how_the_logits_were_stretched(self, scale: float) -> None:
        logits, labels = sample(20_000, scale)
        assert confidence.temperature(logits, labels) == pytest.approx(scale, rel=0.05)

    def test_at_the_optimum_the_mean_logit_is_the_expected_one(self) -> None:
        logits, labels = sample(500, 3.0)
        p = (logits / confidence.temperature(logits, labels)).softmax(1)
        expected = (p * logits).sum(1).mean()
        found = logits.gather(1, labels[:, None]).mean()
        assert float(expected) == pytest.approx(float(found), abs=0.01)

    def test_logits_that_say_nothing_have_none(self) -> None:
        assert confidence.temperature(torch.zeros(3, 2), torch.tensor([0, 1, 0])) == 1
        with pytest.raises(ValueError, match="n of 1 or more"):
            confidence.temperature(torch.zeros(0, 2), torch.zeros(0).long())


class TestRiskCoverage:
    def test_by_hand(self) -> None:
        found = confidence.risk_coverage(
            [True, False, True, True], [0.9, 0.8, 0.7, 0.6], resamples=50
        )
        assert found.risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
        assert found.area.value == pytest.approx(np.mean([0, 1 / 2, 1 / 3, 1 / 4]))
        assert found.best == pytest.approx(0.25 / 4)
        assert found.error == 0.25
        assert found.at(0.5) == 0.5
        assert found.at(1) == 0.25
        assert "4 examples" in repr(found)
        assert list(found.to_frame().columns) == ["coverage", "risk"]
        with pytest.raises(ValueError, match=r"found 0\.1"):
            found.at(0.1)

    def test_equal_scores_give_the_error_and_order_matters_only(self) -> None:
        generator = np.random.default_rng(0)
        right = generator.random(300) < 0.7
        flat = confidence.risk_coverage(right, np.ones(300), resamples=10)
        assert flat.risk == pytest.approx(np.full(300, flat.error))
        score = generator.random(300) + right
        found = confidence.risk_coverage(right, score, resamples=10)
        assert confidence.risk_coverage(right, np.exp(score), resamples=10).risk == pytest.approx(
            found.risk
        )
        assert found.best <= found.area.value < found.error
        assert found.area.low <= found.area.value <= found.area.high

    def test_refuses_what_it_cannot_read(self) -> None:
        with pytest.raises(ValueError, match="booleans"):
            confidence.risk_coverage([1, 0], [0.5, 0.5])
        with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
            confidence.risk_coverage([True, False], [0.5, math.nan])


class TestThreshold:
    def test_the_bound_is_clopper_and_pearsons(self) -> None:
        right = np.r_[np.ones(90, dtype=bool), np.zeros(10, dtype=bool)]
        found = confidence.threshold(right, np.linspace(1, 0, 100), risk=0.2, steps=1)
        exact = stats.binomtest(10, 100, alternative="less").proportion_ci(0.95).high
        assert found.coverage == 1
        assert found.bound == pytest.approx(exact)
        tighter = confidence.threshold(right, np.linspace(1, 0, 100), risk=0.1)
        assert tighter.coverage < 1
        assert tighter.bound <= 0.1

    def test_the_promise_is_kept_as_often_as_it_says(self) -> None:
        generator = np.random.default_rng(0)
        broken, naive = 0, 0
        for _ in range(300):
            score = generator.random(400)
            right = generator.random(400) < 0.6 + 0.4 * score
            found = confidence.threshold(right, score, risk=0.1)
            # Scores are uniform, so the error above t is 1 - (0.6 + 0.4 (1 + t) / 2).
            broken += found.coverage > 0 and 0.4 - 0.2 * (1 + found.value) > 0.1
            order = np.argsort(-score)
            risk = np.cumsum(~right[order]) / np.arange(1, 401)
            last = np.flatnonzero(risk <= 0.1).max(initial=0)
            naive += 0.4 - 0.2 * (1 + score[order[last]]) > 0.1
        assert broken <= 0.05 * 300
        assert naive > 0.25 * 300, "without a bound it is broken often"

    def test_says_when_there_is_none(self) -> None:
        never = confidence.threshold(np.zeros(50, dtype=bool), np.arange(50.0), risk=0.1)
        assert never.value == math.inf
        assert "no threshold" in repr(never)
        with pytest.raises(ValueError, match="between 0 and 1"):
            confidence.threshold([True], [0.5], risk=0)
