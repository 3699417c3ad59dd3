"""Behaviour of ``tlhelpers.evidence``: what it reads is what the records hold."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import pytest

from tlhelpers import evidence, records
from tlhelpers.evaluate import Estimate
from tlhelpers.evidence import Evidence

CHAPTERS = Path(__file__).parent.parent / "chapters"


@functools.cache
def shipped() -> tuple[Evidence, ...]:
    return evidence.load()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(records.FOLDER, tmp_path / "records"))


def test_every_quoted_figure_is_the_records_own() -> None:
    multitask = records.load("glyphs/multitask")
    for k in (1, 5, 20):
        (found,) = (
            e
            for e in shipped()
            if (e.record, e.over, e.labels) == ("glyphs/multitask", "scratch", k)
        )
        expected = multitask.estimate(f"then_minus_alone_{k}")
        assert (found.gain.value, found.gain.low, found.gain.high) == (
            expected.value,
            expected.low,
            expected.high,
        )


def test_a_flipped_figure_keeps_its_interval_round_it() -> None:
    record = records.load("dogs/labels_mobilenet_v2_128")
    found = next(e for e in shipped() if e.record == record.name and e.labels == 20)
    other = record.estimate("probe_minus_lp_ft_norms_k20")
    assert (found.method, found.over) == ("fine-tuning", "probe")
    assert found.gain.value == -other.value
    assert (found.gain.low, found.gain.high) == (-other.high, -other.low)


def test_paired_rows_agree_with_the_records_own_mean() -> None:
    """The record holds the same difference with another interval: the means must be one number."""
    record = records.load("glyphs/labels")
    read = evidence.paired(
        {"task": "digits", "way": "fine-tuned"},
        {"task": "digits", "way": "scratch"},
        value="clean",
        by="draw",
    )
    for k in (1, 10, 100):
        own = record.estimate(f"fine-tuned minus scratch, {k} labels")
        assert read(records.load, record.name, k)[0].value == pytest.approx(own.value)


def test_apart_is_never_shorter_than_either_interval_and_exact_where_one_is_a_point() -> None:
    a = Estimate(0.8, 0.7, 0.95)
    for b in (Estimate(0.5, 0.5, 0.5), Estimate(0.5, 0.48, 0.53)):
        known = {"a": a, "b": b}
        record = dataclasses.replace(
            records.load("glyphs/multitask"),
            result={n: e.value for n, e in known.items()},
            interval={n: [e.low, e.high] for n, e in known.items()},
        )
        found, _ = evidence.apart("a", "b")(lambda name, r=record: r, "x", 1)  # type: ignore[misc]
        assert found.value == pytest.approx(0.3)
        assert found.low <= 0.2 + 1e-12
        assert found.high >= 0.45 - 1e-12
        if b.low == b.high:
            assert (found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.45))


def test_every_record_and_claim_that_is_named_exists() -> None:
    known = records.names()
    notebooks = {path.name[:2]: path for path in CHAPTERS.glob("[0-9][0-9]-*.ipynb")}
    for study in evidence.STUDIES:
        assert study.record in known
        cells = json.loads(notebooks[study.chapter].read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells)
        assert study.claims, study.record
        for claim in study.claims:
            chapter = notebooks[claim[:2]].read_text(encoding="utf-8")
            assert f'\\"{claim}\\"' in chapter, f"{claim} is claimed in no cell"
        # A chapter loads its records by name, or by a name put together from its parts.
        parts = [part for part in re.split(r"[/_]", study.record) if len(part) > 3]
        assert any(part in source for part in parts), f"chapter {study.chapter}: {study.record}"


def test_every_setting_and_method_is_known() -> None:
    for found in shipped():
        assert found.distance in evidence.DISTANCES
        assert {found.method, found.over} <= set(evidence.METHODS)
        assert found.gain.low <= found.gain.value <= found.gain.high
        assert found.gain.unit == "points"


def test_the_records_that_nobody_reads_compare_no_methods_that_are_listed() -> None:
    left = evidence.unread()
    assert "dogs/near_duplicates" in left
    assert not {e.record for e in shipped()} & set(left)
    assert "glyphs/distances" not in left


def test_every_comparison_with_a_method_is_seen_from_the_other() -> None:
    found = evidence.against(shipped(), "scratch")
    own = [e for e in shipped() if e.over == "scratch"]
    turned = [e for e in shipped() if e.method == "scratch"]
    assert {e.over for e in found} == {"scratch"}
    assert len(found) == len(own) + len(turned)
    for there in turned:
        (here,) = (e for e in found if e == there.turned())
        assert (here.method, here.gain.value) == (there.over, -there.gain.value)
        assert (here.gain.low, here.gain.high) == (-there.gain.high, -there.gain.low)
        assert here.turned() == there
    with pytest.raises(ValueError, match="a method should be one of"):
        evidence.against(shipped(), "magic")


@pytest.mark.parametrize(
    ("low", "high", "side"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "open"), (0.0, 0.1, "open")],
)
def test_the_side_of_a_comparison(low: float, high: float, side: str) -> None:
    gain = Estimate((low + high) / 2, low, high, unit="points")
    assert dataclasses.replace(shipped()[0], gain=gain).side == side


def test_a_missing_record_is_an_error_not_a_gap(folder: Path) -> None:
    (folder / "glyphs" / "multitask.json").unlink()
    with pytest.raises(FileNotFoundError, match="glyphs/multitask"):
        evidence.load(folder)


def test_a_record_without_the_rows_is_an_error(folder: Path) -> None:
    record = records.load("glyphs/ablation", folder)
    fewer = tuple(r for r in record.curve if r["variant"] != "from scratch")
    records.save(dataclasses.replace(record, curve=fewer), folder)
    with pytest.raises(ValueError, match=r"'glyphs/ablation' should hold .*from scratch"):
        evidence.load(folder)


def test_a_study_of_an_unknown_method_or_distance_is_refused() -> None:
    study = evidence.STUDIES[0]
    for wrong, message in (
        ({"method": "magic"}, "not in METHODS"),
        ({"distance": "nearby"}, "same, near, unclear, far"),
        ({"distance": ("digits", "nothing")}, "glyphs/distances"),
    ):
        with pytest.raises(ValueError, match=message):
            evidence.load(studies=[dataclasses.replace(study, **wrong)])
