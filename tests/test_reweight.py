"""Importance weights and label shift: density ratios and class shares that are known."""

from __future__ import annotations

import math

import pytest
import torch
from test_discrepancy import sample
from torch import Tensor
from torch.nn import functional as F

from tlhelpers import reweight


def test_importance_weights_are_the_density_ratio() -> None:
    source, target = sample(3000, 1), sample(1500, 1, mean=1, seed=1)
    weights = reweight.importance_weights(source, target)
    known = (source[:, 0] - 0.5).exp()  # of two normal distributions with variance 1
    assert weights.values.numpy() == pytest.approx(known.numpy(), rel=0.25)
    mean = float((weights.values * source[:, 0]).sum() / weights.values.sum())
    assert mean == pytest.approx(1, abs=0.15)
    assert weights.told_apart == pytest.approx(0.76, abs=0.03)  # Φ(1 / √2)
    assert weights.effective < 0.6 * len(source)
    assert weights.flattened(0).effective == pytest.approx(len(source))
    assert "do the work of" in repr(weights)
    with pytest.raises(ValueError, match=r"alpha should lie in 0\.\.1"):
        weights.flattened(2)


def shifted_labels(n: int, shares: list[float], seed: int) -> tuple[Tensor, Tensor]:
    """Three overlapping classes with given shares; logits of the best rule for equal shares."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor(shares), n, replacement=True, generator=generator)
    means = 1.5 * torch.tensor([[0.0, 1.0], [0.87, -0.5], [-0.87, -0.5]])
    x = means[y] + torch.randn(n, 2, generator=generator)
    return -torch.cdist(x, means).square() / 2, y


def test_label_shift_is_found_and_corrected() -> None:
    source_logits, source_y = shifted_labels(6000, [1 / 3] * 3, seed=0)
    target_logits, target_y = shifted_labels(6000, [0.8, 0.15, 0.05], seed=1)
    shift = reweight.label_shift(source_logits, source_y, target_logits)
    assert shift.target_shares.numpy() == pytest.approx([0.8, 0.15, 0.05], abs=0.03)
    assert shift.weights.numpy() == pytest.approx([2.4, 0.45, 0.15], abs=0.1)
    assert float(shift.target_shares.sum()) == pytest.approx(1)
    before = float((target_logits.argmax(dim=1) == target_y).float().mean())
    corrected = shift.correct(target_logits)
    after = float((corrected.argmax(dim=1) == target_y).float().mean())
    known = target_logits + torch.tensor([0.8, 0.15, 0.05]).log()  # the best rule there is
    best = float((known.argmax(dim=1) == target_y).float().mean())
    assert after > before + 0.04
    assert after == pytest.approx(best, abs=0.005)
    assert repr(shift).startswith("estimated target shares: ")


def test_label_shift_is_exact_for_a_known_confusion_matrix() -> None:
    """Predictions that are right in 3 of 4 cases; the target has class 0 alone."""
    y = torch.arange(2).repeat_interleave(4)
    predicted = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
    shift = reweight.label_shift(F.one_hot(predicted), y, F.one_hot(torch.tensor([0, 0, 1, 0])))
    assert shift.weights.numpy() == pytest.approx([2, 0], abs=1e-9)
    assert shift.correct(torch.zeros(1, 2)).isfinite().all()
    with pytest.raises(ValueError, match=r"shape \(n, 2\), found \(1, 3\)"):
        shift.correct(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source_labels": torch.zeros(6, dtype=torch.int64)}, r"\[1, 2\] have none"),
        ({"source_labels": torch.zeros(6)}, "6 integers"),
        ({"source_labels": torch.arange(6)}, r"lie in 0\.\.2, found 0 to 5"),
        ({"source_logits": torch.ones(6, 3)}, "predicts some classes alike"),
        ({"target_logits": torch.full((4, 3), math.nan)}, "target logits should be finite"),
        ({"source_logits": torch.ones(6, 1), "target_logits": torch.ones(4, 1)}, "2 classes"),
    ],
)
def test_label_shift_that_cannot_be_estimated(change: dict[str, Tensor], sentence: str) -> None:
    y = torch.arange(6) % 3
    given = {"source_logits": torch.eye(3)[y], "source_labels": y, "target_logits": torch.eye(3)}
    with pytest.raises(ValueError, match=sentence):
        reweight.label_shift(**(given | change))
