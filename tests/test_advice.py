"""Behaviour of ``tlhelpers.advice``: what it says follows from the records alone."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlhelpers import advice, evidence, records
from tlhelpers.advice import Advice
from tlhelpers.evaluate import Estimate
from tlhelpers.evidence import Evidence

CHAPTERS = Path(__file__).parent.parent / "chapters"


@functools.cache
def shipped() -> tuple[Evidence, ...]:
    return evidence.load()


def ask(rows: Any = None, **asked: Any) -> Advice:
    setting = {"labels_per_class": 10, "classes": 10, "distance": "near", **asked}
    return advice.recommend(rows=shipped() if rows is None else rows, **setting)


def row(method: str, over: str, value: float, half: float = 0.01, **more: Any) -> Evidence:
    """A comparison that nobody made."""
    fields: dict[str, Any] = {
        "record": "planted/one",
        "chapter": "99",
        "claims": (),
        "task": "t",
        "source": "s",
        "distance": "near",
        "classes": 10,
        "labels": 10,
        "repetitions": 5,
        "world": "planted images",
        "how": "",
    }
    gain = Estimate(value, value - half, value + half, unit="points")
    return Evidence(**{**fields, "method": method, "over": over, "gain": gain, **more})


# --- planted records ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(records.FOLDER, tmp_path / "records"))


def edit(folder: Path, name: str, key: str, value: float, low: float, high: float) -> None:
    record = records.load(name, folder)
    result, interval = dict(record.result), dict(record.interval)
    result[key], interval[key] = value, [low, high]
    records.save(dataclasses.replace(record, result=result, interval=interval), folder)


def test_a_changed_record_changes_the_advice(folder: Path) -> None:
    asked = {"methods": ("scratch", "fine-tuning"), "labels_per_class": 1}
    assert ask(**asked).method == "fine-tuning"
    rest = [s for s in evidence.STUDIES if s.record == "glyphs/multitask" and s.over == "scratch"]
    edit(folder, "glyphs/multitask", "then_minus_alone_1", -0.2, -0.3, -0.1)
    turned = ask(evidence.load(folder, studies=rest), **asked)
    assert turned.method == "scratch"
    assert turned.gain is not None
    assert turned.gain.low == pytest.approx(0.1)


def test_a_contradicting_record_weakens_the_advice(folder: Path) -> None:
    asked = {"methods": ("scratch", "fine-tuning"), "labels_per_class": 1}
    before = ask(**asked)
    edit(folder, "glyphs/multitask", "then_minus_alone_1", -0.2, -0.3, -0.1)
    after = ask(evidence.load(folder), **asked)
    assert (before.agreement, after.agreement) == ("undisputed", "disputed")
    assert before.gain is not None
    assert after.gain is not None
    assert after.gain.low < 0 < before.gain.low
    assert any("disputed" in sentence for sentence in after.unknown)


def test_a_new_chapter_adds_a_line(folder: Path) -> None:
    planted = dataclasses.replace(
        records.load("glyphs/multitask", folder),
        name="xrays/probe",
        result={"gain_5": 0.1},
        interval={"gain_5": [0.05, 0.15]},
    )
    records.save(planted, folder)
    study = dataclasses.replace(
        evidence.STUDIES[0],
        record="xrays/probe",
        distance="far",
        labels=(5,),
        method="probe",
        over="scratch",
        read=evidence.quoted("gain_{k}"),
    )
    (found,) = evidence.load(folder, studies=[study])
    assert ask([found], distance="far", labels_per_class=5).method == "probe"


# --- properties of the advice --------------------------------------------------------------


def settings() -> list[dict[str, Any]]:
    return [
        {"labels_per_class": k, "distance": word, "compute": compute}
        for k in (0, 1, 2, 3, 5, 8, 10, 14, 20, 30, 50, 90, 100, 150, 200, 1000)
        for word in evidence.DISTANCES
        for compute in evidence.COMPUTE
    ]


def nearest(rows: tuple[Evidence, ...], method: str, other: str, **asked: Any) -> list[Evidence]:
    """What there is on two methods at exactly this number of labels, seen from the first."""
    seen = [*rows, *(e.turned() for e in rows)]
    return [
        e
        for e in seen
        if (e.method, e.over) == (method, other)
        and e.labels == asked["labels_per_class"]
        and e.distance == asked["distance"]
    ]


@pytest.mark.parametrize("asked", settings(), ids=str)
def test_no_advice_is_against_the_evidence(asked: dict[str, Any]) -> None:
    found = ask(**asked)
    if found.method is None:
        assert found.gain is None
        assert "not measured" in repr(found)
        return
    assert evidence.COMPUTE.index(evidence.METHODS[found.method].compute) <= evidence.COMPUTE.index(
        asked["compute"]
    )
    for other in evidence.METHODS:
        if (
            evidence.METHODS[other].compute
            in evidence.COMPUTE[: evidence.COMPUTE.index(asked["compute"]) + 1]
        ):
            there = nearest(shipped(), found.method, other, **asked)
            shown_worse = [e for e in there if e.gain.high < 0]
            assert not shown_worse or any(e.gain.low > 0 for e in there), shown_worse
    assert found.evidence
    assert {e.method for e in found.evidence} == {found.method}
    known = {(e.record, abs(e.gain.value)) for e in shipped()}
    assert {(e.record, abs(e.gain.value)) for e in found.evidence} <= known
    if found.agreement == "disputed":
        sides = {(e.over, e.gain.low > 0) for e in found.evidence if e.gain.low > 0}
        assert any(e.gain.high < 0 and (e.over, True) in sides for e in found.evidence)


@pytest.mark.parametrize("asked", settings(), ids=str)
def test_the_interval_of_the_gain_holds_those_of_its_studies(asked: dict[str, Any]) -> None:
    found = ask(**asked)
    if found.gain is None:
        return
    against = [e for e in found.evidence if e.over == found.over]
    k = asked["labels_per_class"]
    away = [max(e.labels / k, k / e.labels) if k else e.labels for e in against]
    own = [e.gain for e, far in zip(against, away, strict=True) if far == min(away)]
    assert own
    assert found.gain.low == min(g.low for g in own)
    assert found.gain.high == max(g.high for g in own)
    assert found.gain.value == pytest.approx(np.mean([g.value for g in own]))


def test_the_order_of_the_evidence_does_not_matter() -> None:
    shuffled = [shipped()[i] for i in np.random.default_rng(0).permutation(len(shipped()))]
    for asked in settings():
        a, b = ask(**asked), ask(shuffled, **asked)
        assert (a.method, a.over, a.agreement) == (b.method, b.over, b.agreement)


def test_a_method_that_is_shown_worse_is_out_however_cheap() -> None:
    rows = [row("fine-tuning", "probe", 0.05), row("probe", "scratch", 0.2)]
    assert ask(rows).method == "fine-tuning"
    assert ask(rows, compute="frozen").method is None  # the probe has no rival left
    assert ask(rows, methods=["probe", "scratch"]).method == "probe"


def test_the_cheaper_of_two_that_cannot_be_told_apart() -> None:
    rows = [
        row("fine-tuning", "probe", 0.002, half=0.005),
        row("fine-tuning", "scratch", 0.2),
        row("probe", "scratch", 0.2),
    ]
    assert ask(rows).method == "probe"
    assert ask(rows, margin=0.001).method == "fine-tuning"


def test_wide_doubt_is_not_equality() -> None:
    """An interval that holds 0 and a large loss is no reason to take the cheaper one."""
    rows = [row("fine-tuning", "probe", 0.05, half=0.08), row("fine-tuning", "scratch", 0.2)]
    found = ask(rows)
    assert found.method == "fine-tuning"
    assert any(s.startswith("probe: not shown") for s in found.alternatives)


def test_studies_out_of_reach_do_not_count() -> None:
    rows = [row("fine-tuning", "scratch", 0.2, labels=10)]
    assert ask(rows, labels_per_class=20).method == "fine-tuning"
    silent = ask(rows, labels_per_class=21)
    assert silent.method is None
    assert silent.evidence == tuple(rows)
    assert "near, 10 labels a class" in silent.why
    assert ask(rows, labels_per_class=0).method is None
    assert ask(rows, distance="far").method is None


def test_no_evidence_at_all() -> None:
    found = ask([])
    assert found.method is None
    assert found.evidence == ()
    assert "has not measured" in found.why


def test_a_circle_of_contradictions_is_no_advice() -> None:
    rows = [
        row("fine-tuning", "probe", 0.1),
        row("probe", "scratch", 0.1),
        row("scratch", "fine-tuning", 0.1),
    ]
    assert ask(rows).method is None
    assert "circle" in ask(rows).why


def test_what_is_not_known_is_said() -> None:
    rows = [row("fine-tuning", "scratch", 0.2, repetitions=1, labels=8)]
    said = " ".join(ask(rows, classes=200).unknown)
    for part in ("8 labels a class, not at 10", "10 classes, not with 200", "One seed", "planted"):
        assert part in said
    assert "probe" in said
    both = [*rows, row("fine-tuning", "probe", 0.1, world="other images", labels=10)]
    assert not any("All of it" in sentence for sentence in ask(both).unknown)


def test_dogs_are_one_seed_and_the_advice_says_so() -> None:
    found = ask(distance="same", labels_per_class=90, classes=120)
    assert any("One seed only" in sentence for sentence in found.unknown)


def test_a_better_method_beyond_the_means_is_mentioned() -> None:
    rows = [row("fine-tuning", "probe", 0.1), row("probe", "pixels", 0.1)]
    found = ask(rows, compute="frozen")
    assert found.method == "probe"
    assert any(s.startswith("fine-tuning, if you can afford it") for s in found.alternatives)


def test_the_advice_prints_as_one_line_and_gives_its_evidence() -> None:
    found = ask()
    assert "\n" not in repr(found)
    assert str(found.gain) in repr(found)
    frame = found.to_frame()
    assert len(frame) == len(found.evidence)
    assert set(frame["record"]) == {e.record for e in found.evidence}
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.method = "scratch"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"labels_per_class": -1}, ValueError, "0 or more"),
        ({"labels_per_class": 2.5}, TypeError, "integer"),
        ({"labels_per_class": True}, TypeError, "integer"),
        ({"classes": 1}, ValueError, "2 or more"),
        ({"distance": "nearby"}, ValueError, "same, near, unclear, far"),
        ({"compute": "gpu"}, ValueError, "frozen, training, pretraining"),
        ({"methods": ["magic"]}, ValueError, "one of own head"),
        ({"margin": -0.1}, ValueError, "0 or more"),
        ({"margin": float("nan")}, ValueError, "0 or more"),
    ],
)
def test_bad_questions_are_refused(
    asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(**asked)


# --- the chart, and leaving one out ----------------------------------------------------------


def test_the_chart_holds_the_advice() -> None:
    chart = advice.chart(shipped(), labels=(1, 10, 1000))
    assert list(chart.columns) == [1, 10, 1000]
    assert set(chart[1000]) == {"–"}
    for (word, compute), cells in chart.iterrows():
        found = ask(distance=word, compute=compute)
        assert cells[10].removesuffix("?").removesuffix(" (open)") == (found.method or "–")


def test_leave_one_out_sees_agreement_contradiction_and_silence() -> None:
    def planted(value: float, record: str) -> Evidence:
        return row("fine-tuning", "scratch", value, record=record)

    agree = advice.leave_one_out([planted(0.1, "a/a"), planted(0.2, "b/b")])
    assert set(agree["outcome"]) == {"confirmed"}
    against = advice.leave_one_out([planted(0.1, "a/a"), planted(-0.2, "b/b")])
    assert set(against["outcome"]) == {"contradicted"}
    doubt = advice.leave_one_out([planted(0.1, "a/a"), planted(0.0, "b/b")])
    assert list(doubt["outcome"]) == ["confirmed", "open"]
    alone = advice.leave_one_out([planted(0.1, "a/a")])
    assert set(alone["outcome"]) == {"no advice"}


# --- the distance ---------------------------------------------------------------------------


def data(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 6)), np.arange(n) % 3


def test_informative_features_are_near_and_spoilt_ones_far() -> None:
    noise, y = data()
    useful = noise + 3 * np.eye(6)[y]
    assert advice.distance(useful, noise, y).word == "near"
    assert advice.distance(noise, useful, y).word == "far"
    assert advice.distance(useful, useful, y).word == "unclear"


def test_the_distance_turns_its_sign_with_its_arguments() -> None:
    noise, y = data()
    a, b = noise + np.eye(6)[y], noise
    there, back = advice.distance(a, b, y).gap, advice.distance(b, a, y).gap
    assert (there.value, there.low, there.high) == pytest.approx(
        (-back.value, -back.high, -back.low)
    )


def test_a_measured_distance_can_be_passed_on() -> None:
    noise, y = data()
    found = advice.distance(noise + 3 * np.eye(6)[y], noise, y)
    assert ask(distance=found).method == ask(distance="near").method
    assert found.to_frame().loc[0, "word"] == "near"
    assert repr(found).startswith("near: ")


def test_the_distance_refuses_what_it_cannot_judge() -> None:
    x, y = data()
    with pytest.raises(ValueError, match="same n images"):
        advice.distance(x[:-1], x, y)
    with pytest.raises(ValueError, match="finite"):
        advice.distance(np.full_like(x, np.nan), x, y)
    with pytest.raises(ValueError, match="two classes"):
        advice.distance(x, x, np.zeros(len(y), dtype=int))
    with pytest.raises(ValueError, match="two or more"):
        advice.distance(x, x, y, folds=30)
