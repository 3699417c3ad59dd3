"""Each check passes a right answer, and answers each plausible mistake with its own hint."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from answers import accepted, hint
from torch import Tensor, nn

import tlhelpers as tl
from tlhelpers import _exercises_04, exercises


class TestFramework:
    def test_unknown_exercise_lists_the_known(self) -> None:
        with pytest.raises(KeyError, match=r"no exercise '99\.1'; there are .*04\.1, 04\.2"):
            tl.check("99.1", None)

    def test_texts_are_complete_markdown(self) -> None:
        assert {"04.1", "04.2", "04.3", "08.1", "08.2", "08.3"} <= set(exercises.ids())
        for id in exercises.ids():
            assert exercises.text(id).startswith("Write a function `")
            assert "    " not in exercises.text(id)
            assert exercises.text(id).count("$") % 2 == 0

    def test_verdict_is_a_paragraph_in_a_page(self) -> None:
        def broken(d: int, m: int) -> None:
            raise ValueError("a < b")

        html = tl.check("04.1", broken)._repr_html_()
        assert html.startswith('<p class="tl-verdict">✗ 04.1 head(8, 3) raised ValueError')
        assert "a &lt; b" in html

    def test_the_instructors_page_shows_a_check_that_works(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exercises, "_exercises", dict(exercises._exercises))
        page = Path(tl.__file__).parents[1] / "chapters" / "instructors.md"
        (code,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
        exec(code, {})
        accepted("C1.1", lambda a, b: np.mean(a) - np.mean(b))
        assert hint("C1.1", lambda a, b: np.mean(b) - np.mean(a)) == "gain took b minus a."
        assert "differ on one image of three" in hint("C1.1", lambda a, b: 0.5)

    def test_one_check_for_each_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exercises, "_exercises", dict(exercises._exercises))
        with pytest.raises(ValueError, match=r"exercise 04\.1 has a check already"):
            exercises.exercise("04.1", "well done.")(lambda answer: None)
        with pytest.raises(ValueError, match="needs a docstring"):
            exercises.exercise("99.1", "well done.")(lambda answer: None)

    @pytest.mark.parametrize("id", exercises.ids())
    @pytest.mark.parametrize("answer", [None, 3, "nn.Linear", nn.Linear(2, 3)])
    def test_anything_but_a_function_gets_a_hint_about_the_type(self, id: str, answer: Any) -> None:
        assert "the answer should be the function" in hint(id, answer)

    @pytest.mark.parametrize("id", exercises.ids())
    def test_exception_in_an_answer_becomes_a_hint(self, id: str) -> None:
        def broken(*_: Any) -> None:
            raise ZeroDivisionError("by nought.")

        assert "raised ZeroDivisionError: by nought." in hint(id, broken)

    @pytest.mark.parametrize("id", exercises.ids())
    @pytest.mark.parametrize("value", [None, "five", [], {}, object(), float("nan"), (1, 2, 3)])
    def test_odd_return_values_get_a_hint(self, id: str, value: Any) -> None:
        hint(id, lambda *_: value)

    def test_random_state_of_the_reader_is_left_alone(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        for id in exercises.ids():
            tl.check(id, lambda *_: torch.rand(3))
        assert torch.equal(torch.rand(2), expected)

    def test_an_interrupt_goes_through(self) -> None:
        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tl.check("04.1", interrupted)


class Bend(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * x**2


class TestHeadShape:
    def test_right(self) -> None:
        accepted("04.1", nn.Linear)
        accepted("04.1", lambda d, m: nn.Sequential(nn.Flatten(), nn.Linear(d, m)))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda d, m: nn.Linear(m, d), "raised RuntimeError"),
            (lambda d, m: nn.Linear(8, 3), "raised RuntimeError"),
            (lambda d, m: nn.Linear(d, d), "one logit for each of the 3 classes"),
            (lambda d, m: nn.Linear(d, 1), "one logit for each of the 3 classes"),
            (lambda d, m: nn.Sequential(nn.Linear(d, m), nn.Softmax(1)), "probabilities"),
            (lambda d, m: nn.Sequential(nn.Linear(d, m), nn.LogSoftmax(1)), "probabilities"),
            (lambda d, m: nn.Sequential(nn.Linear(d, m), nn.ReLU()), "ever negative"),
            (lambda d, m: nn.Sequential(nn.Dropout(), nn.Linear(d, m)), "what is random"),
            (lambda d, m: nn.Linear(d, m, bias=False), "fewer than .* left out"),
            (lambda d, m: nn.Sequential(nn.Linear(d, 9), nn.Linear(9, m)), "a layer too many"),
            (lambda d, m: nn.Sequential(nn.Linear(d, m), Bend()), "bends"),
            (lambda d, m: torch.zeros(m, d), "should return a torch module, .* of type Tensor"),
            (lambda d: nn.Linear(d, 3), "raised TypeError"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("04.1", answer))


class Frozen(nn.Module):
    """A wrapper that stays in evaluation mode, whatever it is told."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def pinned(model: nn.Module) -> nn.Module:
    """The model itself, with a train() that does nothing."""
    model.requires_grad_(False).eval()
    model.train = lambda mode=True: model  # type: ignore[assignment, method-assign]
    return model


def without(kind: type[nn.Module], model: nn.Module) -> nn.Module:
    for name, layer in model.named_children():
        if isinstance(layer, kind):
            setattr(model, name, nn.Identity())
    return model


def with_layers(change: Callable[[nn.Module], Any], model: nn.Module) -> nn.Module:
    model.requires_grad_(False)
    model.apply(change)
    return model


def still_norm(layer: nn.Module) -> None:
    """Keeps the statistics, but goes on to normalise with those of the batch."""
    if isinstance(layer, nn.BatchNorm2d):
        layer.track_running_stats = False
    if isinstance(layer, nn.Dropout):
        layer.p = 0.0


class TestFreezeHonestly:
    def test_right(self) -> None:
        accepted("04.2", Frozen)
        accepted("04.2", pinned)
        accepted("04.2", lambda model: pinned(copy.deepcopy(model)))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda m: m, "4 of 4 parameter tensors still require a gradient"),
            (lambda m: m.eval(), "still require a gradient"),
            (lambda m: m[0].requires_grad_(False) and m, "2 of 4 parameter tensors"),
            (lambda m: m.requires_grad_(False), "changed 1.running_mean, 1.running_var"),
            (lambda m: m.requires_grad_(False).eval(), "which layer keeps them"),
            (lambda m: m.requires_grad_(False) and None, "it returned None"),
            (
                lambda m: with_layers(lambda a: setattr(a, "momentum", 0.0), m),
                "changed 1.num_batches_tracked",
            ),
            (lambda m: Frozen(without(nn.BatchNorm2d, m)), "weights the ones it came with"),
            (lambda m: Frozen(_exercises_04._small_network()), "weights the ones it came with"),
            (lambda m: with_layers(still_norm, m), "Which statistics does it normalise with"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert expected in hint("04.2", answer)

    def test_names_dropout_where_only_that_is_left(self) -> None:
        def frozen(model: nn.Module) -> nn.Module:
            model.requires_grad_(False)
            norm = model[1]  # type: ignore[index]
            norm.eval()
            norm.train = lambda mode=True: norm
            return model

        assert "random in training mode still is" in hint("04.2", frozen)
        accepted("04.2", lambda model: without(nn.Dropout, frozen(model)))


class TestPrototypesAsHead:
    def test_right(self) -> None:
        accepted("04.3", lambda p: (2 * p, -p.square().sum(1)))
        # The same number added to every class changes nothing that matters.
        accepted("04.3", lambda p: (2 * p - p.mean(0), 5 - (p**2).sum(1)))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda p: (p, -p.square().sum(1) / 2), "compare their scale"),
            (lambda p: (2 * p, torch.zeros(len(p))), "differ from class to class"),
            (lambda p: (2 * p, -p.norm(dim=1)), "differ from class to class"),
            (lambda p: (p, -p.square().sum(1)), "differ from class to class"),
            (lambda p: (-2 * p, p.square().sum(1)), "the smallest logit"),
            (lambda p: (2 * p.T, -p.square().sum(1)), "weight should have shape"),
            (lambda p: (2 * p, -p.square().sum()), "bias should have shape"),
            (
                lambda p: 2 * p,
                "should return .weight, bias., but it returned a value of type Tensor",
            ),
            (lambda p: (2 * p.numpy(), -p.square().sum(1)), "weight should be a torch tensor"),
            (lambda p: (2 * p, p.square().sum(1) * torch.nan), "bias holds NaN"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("04.3", answer))


def smallest(column: str, frame: pd.DataFrame, target: float) -> Any:
    return min(frame["k"][frame[column] >= target], default=None)


class TestLabelsForATarget:
    def test_right(self) -> None:
        accepted("08.1", lambda f, t: smallest("low", f, t))

        def loop(frame: pd.DataFrame, target: float) -> Any:
            for row in frame.sort_values("k").itertuples():
                if row.low >= target:
                    return row.k
            return None

        accepted("08.1", loop)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda f, t: smallest("mean", f, t), "it is the column 'mean' that reaches it"),
            (lambda f, t: smallest("high", f, t), "column 'mean'|column 'high'"),
            (lambda f, t: min(f["k"][f["low"] > t], default=None), "Reaching includes being equal"),
            (
                lambda f, t: next(iter(f["k"][f["low"] >= t]), None),
                "on a curve whose rows .* any order",
            ),
            (
                lambda f, t: dict(enumerate(sorted(f["k"]))).get(
                    int(np.searchsorted(np.sort(f["low"]), t))
                ),
                "falls? again",
            ),
            (lambda f, t: f["k"][f["low"] >= t].min(), "None is for the case"),
            (lambda f, t: smallest("low", f, t) or -1, "returned -1.* None is for the case"),
            (lambda f, t: smallest("low", f, t) or 50, "reaches the target nowhere.* returned 50"),
            (lambda f, t: f["k"][f["low"] >= t], "should return one number.* of type Series"),
            (lambda f, t: 7, "not in the column k"),
            (lambda f, t: None, "returned None"),
            (lambda f, t: True, "should return one number, but it returned a value of type bool"),
            (lambda f, t: f.loc[f["low"] >= t, "K"].min(), "raised KeyError"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("08.1", answer))


class TestUntrainedHead:
    def test_right(self) -> None:
        def top1(logits: Tensor, labels: Tensor, columns: Tensor) -> Any:
            return (logits[:, columns].argmax(1) == labels).float().mean()

        accepted("08.2", top1)
        accepted("08.2", lambda *given: float(top1(*given)))

        def masked(logits: Tensor, labels: Tensor, columns: Tensor) -> float:
            mask = torch.full((1000,), -torch.inf)
            mask[columns] = 0
            return ((logits + mask).argmax(1) == columns[labels]).double().mean().item()

        accepted("08.2", masked)

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda x, y, c: (x.argmax(1) == c[y]).float().mean(), "nothing is restricted"),
            (lambda x, y, c: (x.argmax(1) == y).float().mean(), "hardly any image"),
            (
                lambda x, y, c: (c[x[:, c].argmax(1)] == y).float().mean(),
                "the data set's 0 to m − 1 or ImageNet's 0 to 999",
            ),
            (
                lambda x, y, c: (x[:, c.sort().values].argmax(1) == y).float().mean(),
                "the order of columns matters",
            ),
            (
                lambda x, y, c: 100 * (x[:, c].argmax(1) == y).float().mean(),
                "Is it a count, or in per cent",
            ),
            (lambda x, y, c: (x[:, c].argmax(1) == y).sum(), "Is it a count, or in per cent"),
            (lambda x, y, c: x[:, c].argmax(1) == y, "should return one number"),
            (
                lambda x, y, c: (x[:, c].argmax(1) == y)[torch.isin(x.argmax(1), c)].float().mean(),
                "higher than it should be",
            ),
            (
                lambda x, y, c: (
                    (x[:, torch.cat([c, torch.arange(99)])].argmax(1) == y).float().mean()
                ),
                "lower than it should be",
            ),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert expected in hint("08.2", answer)


def thresholds(
    good: Callable[[Tensor, Tensor, float], bool],
) -> Callable[[Tensor, Tensor, float], Any]:
    """The smallest confidence at which ``good(accepted, wrong, error)``."""

    def accept(probabilities: Tensor, labels: Tensor, error: float) -> Any:
        confidence, predicted = probabilities.max(1)
        wrong = (predicted != labels).double()
        fine = [t for t in confidence.tolist() if good(confidence >= t, wrong, error)]
        return min(fine, default=None)

    return accept


def right(accepted: Tensor, wrong: Tensor, error: float) -> bool:
    return bool(wrong[accepted].mean() <= error)


def scan(probabilities: Tensor, labels: Tensor, error: float) -> Any:
    """Goes down from the top and stops at the first failure: one of the common mistakes."""
    confidence, predicted = probabilities.max(1)
    best = None
    for t in confidence.sort(descending=True).values.tolist():
        if (predicted != labels)[confidence >= t].float().mean() > error:
            break
        best = t
    return best


def running(probabilities: Tensor, labels: Tensor, error: float, *, ties: bool) -> Any:
    """One pass over the sorted predictions, with or without an eye on equal confidences."""
    confidence, predicted = probabilities.double().max(1)
    order = confidence.argsort(descending=True, stable=True)
    confidence, wrong = confidence[order], (predicted != labels)[order].double()
    rate = wrong.cumsum(0) / torch.arange(1, len(wrong) + 1)
    last = torch.ones(len(wrong), dtype=torch.bool)
    if ties:
        last[:-1] = confidence[1:] < confidence[:-1]
    fine = confidence[(rate <= error) & last]
    return fine.min().item() if len(fine) else None


class TestConfidenceThreshold:
    def test_right(self) -> None:
        accepted("08.3", thresholds(right))
        accepted("08.3", lambda *given: running(*given, ties=True))

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (scan, "None is for the case|and return"),
            (lambda *given: running(*given, ties=False), "equal confidences"),
            (thresholds(lambda a, w, e: bool(w[a].sum() / len(w) <= e)), "all, or those accepted"),
            (thresholds(lambda a, w, e: bool(w[a].mean() < e)), "equals the target|of 0"),
            (
                thresholds(lambda a, w, e: bool(a.double().mean() <= e)),
                "None is for the case|not the smallest|how many are accepted",
            ),
            (lambda p, y, e: 1 - e, "on 300 images"),
            (lambda p, y, e: float(p.max(1).values.quantile(e)), "above|not the smallest"),
            (lambda p, y, e: thresholds(right)(p, y, e) or 1.0, "all wrong, accept returned 1.0"),
            (lambda p, y, e: 2.0, "accepts no image at all"),
            (lambda p, y, e: p.max(1).values, "should return one number, .* of type Tensor"),
        ],
    )
    def test_wrong(self, answer: Callable[..., Any], expected: str) -> None:
        assert re.search(expected, hint("08.3", answer))

    def test_excluding_the_threshold_itself_has_its_own_hint(self) -> None:
        def exclusive(probabilities: Tensor, labels: Tensor, error: float) -> Any:
            confidence, predicted = probabilities.max(1)
            wrong = (predicted != labels).double()
            fine = [
                t
                for t in confidence.tolist()
                if (confidence > t).any() and wrong[confidence > t].mean() <= error
            ]
            return min(fine, default=None)

        assert "equals the threshold is accepted too" in hint("08.3", exclusive)
