"""An honest report on a folder that is made here: what it says, and what it refuses to say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlhelpers import evaluate, folders, reporting
from tlhelpers.folders import Pictures
from tlhelpers.reporting import Protocol, Result
from tlhelpers.train import Recipe

SENTENCES = {
    "question": "Are strokes told apart by their slope?",
    "expected": "Nearly always, as they differ much.",
    "origin": "Drawn here, so no network has met them.",
    "example": "One sheet with a stroke on it.",
}
QUICK = {"small": Recipe(steps=4, lr=1e-3)}


def protocol(**changes: object) -> Protocol:
    settings = {"network": "small_resnet", "weights": "letters", "size": 16, "ks": (1, 3, 50)}
    quick = {"draws": 3, "recipes": QUICK, "scratch": QUICK}
    return Protocol(**SENTENCES | settings | quick | changes)  # type: ignore[arg-type]


def stroke(kind: str, rng: np.random.Generator) -> Image.Image:
    """A dark stroke on noisy paper, upright or level."""
    sheet = rng.normal(210, 25, (32, 32))
    at = int(rng.integers(6, 24))
    band = (slice(None), slice(at, at + 3)) if kind == "upright" else (slice(at, at + 3),)
    sheet[band] = rng.normal(60, 25, sheet[band].shape)
    return Image.fromarray(sheet.clip(0, 255).astype(np.uint8))


def make(home: Path, *, sheets: int = 24) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("level", "upright"):
        (home / kind).mkdir(parents=True)
        for i in range(sheets):
            stroke(kind, rng).save(home / kind / f"sheet {i // 2} of {i % 2}.png")
    return home


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    home = make(tmp_path_factory.mktemp("own") / "strokes")
    return folders.read(home, groups=lambda i: " ".join(i.split("/")[-1].split()[:2]))


@pytest.fixture(scope="module")
def result(pictures: Pictures) -> Result:
    return reporting.measure(pictures, protocol())


def test_the_test_is_read_once(result: Result) -> None:
    assert result.pictures.data.test.readings == ("report on strokes",)
    assert result.final.readings == ("report on strokes",)
    assert "was read once" in result.sentence


def test_every_way_is_there_with_its_interval(result: Result) -> None:
    table = result.baselines().set_index("way")
    assert list(table.index) == [
        "largest class", "file facts", "random weights", "from scratch", "linear probe",
        "fine-tuned",
    ]  # fmt: skip
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert table.loc["largest class", "value"] == 0.5
    assert table.loc["linear probe", "value"] > 0.8
    # All files are alike, so that they tell nothing.
    assert table.loc["file facts", "value"] == 0.5


def test_intervals_are_over_groups(result: Result) -> None:
    groups = result.final.groups
    assert groups is not None
    assert len(set(groups.tolist())) == len(
        {result.pictures.groups[i] for i in result.pictures.data.test.ids}
    )
    assert f"in {len(set(groups.tolist()))} groups" in result.sentence
    gain = result.gains()["largest class"]
    again = evaluate.difference(result.reports[result.chosen], result.reports["largest class"])
    assert str(gain) == str(again)


def test_validation_chooses(result: Result) -> None:
    table = result.selection
    assert table["chosen"].sum() == table["way"].nunique()
    rivals = table[table["way"].isin(["linear probe", "fine-tuned"])]
    assert rivals.loc[rivals["nll"].idxmin(), "way"] == result.chosen
    assert result.final is result.reports[f"{result.chosen}, calibrated"]


def test_calibration_changes_no_answer(result: Result) -> None:
    raw = result.reports[result.chosen]
    assert (raw.outcomes.predicted == result.final.outcomes.predicted).all()
    assert result.calibration()["value"].between(0, 1).all()


def test_the_curve_leaves_out_what_draws_would_share(result: Result) -> None:
    assert result.curve["k"].tolist() == [1, 3]  # of 14 pictures a class, 50 cannot be drawn
    assert (result.curve["low"] <= result.curve["mean"]).all()


def test_it_prints_as_the_sentence_that_may_be_quoted(result: Result) -> None:
    text = repr(result)
    assert "\n" not in text
    for part in ("On strokes (2 classes", "small_resnet", "chosen on validation", "95 %", "groups"):
        assert part in text


def test_the_report_has_the_sections_of_the_template(result: Result) -> None:
    text = result.to_markdown()
    found = re.findall(r"^## \d\. (.+)$", text, re.MULTILINE)
    page = (Path(__file__).parents[1] / "chapters" / "instructors.md").read_text("utf-8")
    template = page.split("### The report")[1].split("### The marks")[0]
    asked = [
        name.rstrip(".") for name in re.findall(r"^\d\. \*\*(.+?)\*\*", template, re.MULTILINE)
    ]
    assert found == list(reporting.HEADINGS) == asked
    for sentence in SENTENCES.values():
        assert sentence in text
    assert "nan" not in text.lower().split()


def test_doubts_are_said(result: Result) -> None:
    told = " ".join(result.warnings())
    assert "groups; from so few" in told  # fewer than a dozen in the test


def test_a_folder_whose_files_give_the_class_away(tmp_path: Path) -> None:
    home = make(tmp_path / "sizes", sheets=30)
    for path in (home / "level").iterdir():
        Image.open(path).resize((48, 32)).save(path)
    told = reporting.measure(folders.read(home), protocol(scratch={})).warnings()
    assert any("format of the files alone" in sentence for sentence in told)


def test_equal_classes_are_not_made_into_a_result(tmp_path: Path) -> None:
    home = make(tmp_path / "blind", sheets=30)
    rng = np.random.default_rng(1)
    for path in home.rglob("*.png"):
        noise = rng.normal(128, 40, (32, 32)).clip(0, 255)
        Image.fromarray(noise.astype(np.uint8)).save(path)
    found = reporting.measure(folders.read(home), protocol(scratch={}))
    assert found.gains()["largest class"].low <= 0
    assert any("no evidence of transfer" in sentence for sentence in found.warnings())


def test_photographs_take_the_other_road(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    load = reporting.models.backbone

    def without_download(name: str, *, weights: object, seed: int = 0) -> object:
        seen.append(weights)
        return load(name, weights=None, seed=seed)

    monkeypatch.setattr(reporting.models, "backbone", without_download)
    plan = protocol(network="squeezenet1_1", weights="imagenet", size=32, ks=(1,), scratch=None)
    found = reporting.measure(pictures, plan)
    assert seen == ["imagenet", None]
    assert "from scratch" not in found.reports
    assert "squeezenet1_1 (weights imagenet)" in found.sentence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": ""}, "question should be a sentence .* What should a measurement answer?"),
        ({"example": "todo"}, "example should be a sentence"),
        ({"metric": "accuracy"}, "metric should be one of top1"),
        ({"ks": (5, 1)}, "rising"),
        ({"draws": 1}, "2 draws or more"),
        ({"size": 4}, "8 pixels"),
    ],
)
def test_a_protocol_that_says_nothing_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocol(**changes)


def test_a_curve_that_cannot_begin_is_refused(pictures: Pictures) -> None:
    with pytest.raises(ValueError, match="begin at 20 labels a class, but the smallest class"):
        reporting.measure(pictures, protocol(ks=(20,)))
