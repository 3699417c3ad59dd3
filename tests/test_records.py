"""Records keep what a run gave and where it came from; claims stop a chapter that is wrong."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

import tlhelpers
from tlhelpers import records, runtime
from tlhelpers.evaluate import Estimate
from tlhelpers.records import Claim, Folklore, Record
from tlhelpers.runtime import Run

FIELDS: dict[str, Any] = {
    "name": "dogs/untrained_head",
    "tier": "cpu",
    "split": "90/10/48 by hash",
    "input": "crop to the box, 224 px, squashed",
    "seeds": (0, 1),
    "curve": ({"k": 1, "mean": 0.4}, {"k": 2, "mean": 0.5}),
    "result": {"top1": 0.839, "images": 5760},
    "interval": {"top1": [0.829, 0.848]},
    "interval_over": "95 %, bootstrap over test images",
    "command": "python experiments/dogs_bank.py --data PATH",
    "commit": "0" * 40,
    "clean": True,
    "source_hash": "ab" * 32,
    "hardware": {"cpu": "A processor", "cores": 2, "gpu": None},
    "versions": {"python": "3.13.0", "torch": "2.11.0"},
    "date": "2026-11-21T10:00:00+00:00",
    "wall_seconds": 81.5,
}


def record(**changes: Any) -> Record:
    return Record(**{**FIELDS, **changes})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of the one in the package."""
    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    return tmp_path / "records"


@pytest.fixture(autouse=True)
def _no_claims_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_claimed", {})


class TestRecord:
    def test_comes_back_from_disk_as_it_was(self, folder: Path) -> None:
        path = records.save(record())
        assert path == folder / "dogs" / "untrained_head.json"
        assert records.get("dogs/untrained_head") == record()

    def test_numpy_and_torch_scalars_become_numbers(self, folder: Path) -> None:
        given = record(
            result={"top1": np.float32(0.5), "images": np.int64(3)},
            interval={"top1": (torch.tensor(0.25), np.float64(0.75))},
            seeds=[np.int64(4)],
        )
        records.save(given)
        loaded = records.get(given.name)
        assert loaded == given
        assert loaded.result == {"top1": 0.5, "images": 3}
        assert loaded.interval == {"top1": [0.25, 0.75]}
        assert loaded.seeds == (4,)

    def test_is_one_line_that_says_what_it_is(self) -> None:
        line = repr(record())
        assert line.startswith("Record 'dogs/untrained_head' (cpu)")
        assert "top1 0.839 [0.829, 0.848]" in line
        assert "2026-11-21" in line
        assert "A processor" in line
        assert "\n" not in line

    def test_is_a_paragraph_in_a_page(self) -> None:
        html = record(hardware={"cpu": "A <fast> processor"})._repr_html_()
        assert html.startswith('<p class="tl-record">Record')
        assert "A &lt;fast&gt; processor" in html

    def test_names_the_gpu_where_it_needed_one(self) -> None:
        hardware = {"cpu": "A processor", "cores": 2, "gpu": "A GPU, 80 GiB"}
        assert "A GPU, 80 GiB" in repr(record(tier="gpu", hardware=hardware))
        assert "A GPU" not in repr(record(tier="cpu", hardware=hardware))

    def test_hands_out_a_figure_with_its_interval(self) -> None:
        found = record().estimate("top1")
        assert (found.value, found.low, found.high) == (0.839, 0.829, 0.848)
        assert str(found) == "83.9 % [82.9, 84.8]"
        assert str(record().estimate("top1", unit="nats")) == "0.839 [0.829, 0.848]"
        with pytest.raises(KeyError, match="no figure 'images' with an interval; it has top1"):
            record().estimate("images")

    def test_frame_is_the_curve(self) -> None:
        frame = record().to_frame()
        assert frame["k"].tolist() == [1, 2]
        assert frame["mean"].tolist() == [0.4, 0.5]
        assert record(curve=()).to_frame().empty

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": "../escape"}, "name should be lower-case words"),
            ({"tier": "tpu"}, "tier should be one of"),
            ({"split": " "}, "split should be text"),
            ({"seeds": 3}, "seeds should be a sequence"),
            ({"seeds": (1.5,)}, "seeds should be a sequence of integers"),
            ({"curve": ({"k": 1}, {"m": 1})}, "rows with the same keys"),
            ({"result": {}}, "result should be at least one figure"),
            ({"result": {"top1": float("nan")}}, "result should hold finite numbers"),
            ({"interval": {"top5": [0, 1]}}, "named after figures in result"),
            ({"interval": {"top1": [0.9, 0.1]}}, "interval should be .low, high."),
            ({"interval": {"top1": 0.1}}, "interval should be .low, high."),
            ({"interval_over": ""}, "interval_over should be text"),
            ({"interval": {}}, "interval_over should be text, where and only where"),
            ({"command": "run.py --data ~/dogs"}, "--data PATH.*found '--data ~/dogs'"),
            ({"clean": "yes"}, "clean should be True, False or None"),
            ({"hardware": "a laptop"}, "hardware should be a dict"),
            ({"date": "2026-11-21"}, "date should be ISO 8601 with its offset"),
            ({"wall_seconds": -1.0}, "wall_seconds should be 0 or more"),
        ],
    )
    def test_refuses_fields_that_are_not_as_described(
        self, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            record(**changes)

    def test_refuses_what_json_does_not_know(self) -> None:
        with pytest.raises(TypeError, match=r"result should hold numbers.*found set"):
            record(result={"top1": {1, 2}})
        with pytest.raises(TypeError, match="curve should have text as keys"):
            record(curve=({1: 2},))


class TestFiles:
    def test_names_are_sorted_and_include_folders(self, folder: Path) -> None:
        assert records.names() == []
        for name in ("glyphs", "dogs/b", "dogs/a"):
            records.save(record(name=name))
        assert records.names() == ["dogs/a", "dogs/b", "glyphs"]

    def test_missing_one_names_its_neighbours(self, folder: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no records at all yet"):
            records.get("dogs/untrained_head")
        records.save(record())
        records.save(record(name="chest/xray"))
        with pytest.raises(FileNotFoundError, match="Near it: dogs/untrained_head"):
            records.get("dogs/untrained_haed")

    def test_name_cannot_leave_the_folder(self, folder: Path) -> None:
        for name in ("../secret", "/etc/passwd", "dogs/../../x", ""):
            with pytest.raises(ValueError, match="made of lower-case words"):
                records.get(name)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "should be JSON, but it is damaged"),
            ("[1]", "should be a JSON object, found list"),
            (json.dumps({**FIELDS, "extra": 1}), "unknown: extra"),
            (json.dumps({k: v for k, v in FIELDS.items() if k != "seeds"}), "missing: seeds"),
            (json.dumps({**FIELDS, "tier": "tpu"}), "malformed: a record's tier"),
            (json.dumps({**FIELDS, "result": {"top1": float("inf")}}), "malformed.*finite"),
            (json.dumps({**FIELDS, "name": "dogs/other"}), "holds one named 'dogs/other'"),
        ],
    )
    def test_malformed_file_is_a_sentence(self, folder: Path, content: str, message: str) -> None:
        (folder / "dogs").mkdir(parents=True)
        (folder / "dogs" / "untrained_head.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            records.get("dogs/untrained_head")

    def test_failed_save_leaves_the_old_file_and_nothing_else(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = records.save(record())

        def full_disk(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(runtime.os, "replace", full_disk)
        with pytest.raises(OSError, match="no room to write"):
            records.save(record(wall_seconds=1.0))
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        assert records.get(FIELDS["name"]).wall_seconds == FIELDS["wall_seconds"]

    def test_every_shipped_record_can_be_read(self) -> None:
        for name in records.names():
            shipped = records.get(name)
            _, _, path = shipped.command.partition("--data")
            assert "/" not in path, name  # the reader's folder, not that of one machine


class TestLive:
    def test_shows_the_record_unless_the_profile_is_full(self, folder: Path) -> None:
        def live(run: Run) -> Record:
            raise AssertionError("must not run")

        records.save(record())
        for run in (None, Run(profile="quick")):
            assert records.get(FIELDS["name"], live=live, run=run) == record()
        assert records.get(FIELDS["name"], run=Run(profile="full")) == record()

    def test_runs_live_in_the_full_profile(self, folder: Path) -> None:
        seen: list[Run] = []

        def live(run: Run) -> Record:
            seen.append(run)
            return record(wall_seconds=1.0)

        run = Run(seed=3, profile="full")
        assert records.get(FIELDS["name"], live=live, run=run).wall_seconds == 1.0
        assert seen == [run]

    def test_refuses_another_record_or_none_at_all(self, folder: Path) -> None:
        run = Run(profile="full")
        with pytest.raises(ValueError, match="the one it made is named 'glyphs'"):
            records.get("dogs/x", live=lambda _: record(name="glyphs"), run=run)
        with pytest.raises(TypeError, match="it returned dict"):
            records.get("dogs/x", live=lambda _: {}, run=run)  # type: ignore[arg-type, return-value]


class TestProvenance:
    def test_fills_the_fields_of_a_record(self) -> None:
        found = records.provenance(records.claim, command="python run.py --data PATH")
        assert record(**found).command == "python run.py --data PATH"
        assert found["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
        assert found["hardware"]["cores"] >= 1
        assert found["date"].endswith("+00:00")

    def test_hash_is_that_of_the_functions_file(self) -> None:
        expected = hashlib.sha256(Path(records.__file__).read_bytes()).hexdigest()
        plain = records.provenance(records.claim, command="x")
        bound = records.provenance(functools.partial(records.get, "a"), records.save, command="x")
        other = records.provenance(tlhelpers.splits.take, command="x")
        assert plain["source_hash"] == bound["source_hash"] == expected
        assert other["source_hash"] != expected

    def test_refuses_a_function_without_source(self) -> None:
        with pytest.raises(ValueError, match=r"source of .* cannot be read"):
            records.provenance(len, command="x")
        with pytest.raises(ValueError, match="needs the function"):
            records.provenance(command="x")

    def test_knows_commit_and_cleanness(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "tlhelpers"
        (package / "data" / "records").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        monkeypatch.setattr(tlhelpers, "__file__", str(package / "__init__.py"))

        def git(*arguments: str) -> str:
            who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
            command = ["git", "-C", str(tmp_path), *who, *arguments]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        def state() -> tuple[Any, Any]:
            found = records.provenance(records.claim, command="x")
            return found["commit"], found["clean"]

        assert state() == (None, None)
        git("init", "-q")
        assert state() == (None, None)  # installed inside a checkout that does not hold it
        git("add", ".")
        git("commit", "-qm", "first")
        commit = git("rev-parse", "HEAD").strip()
        assert state() == (commit, True)
        (package / "data" / "records" / "new.json").write_text("{}")
        assert state() == (commit, True)
        (tmp_path / "script.py").write_text("1")
        assert state() == (commit, False)


class TestClaim:
    def test_holds_and_displays_itself(self) -> None:
        made = records.claim("08.leakage", "The head knows them.", np.bool_(True), "83.9 %")
        assert made == Claim("08.leakage", "The head knows them.", "83.9 %")
        assert repr(made) == "Claim 08.leakage: The head knows them.\nMeasured: 83.9 %"

    def test_stops_the_chapter_if_it_does_not_hold(self) -> None:
        with pytest.raises(AssertionError, match=r"08\.more does not hold: More helps\. .*12 %"):
            records.claim("08.more", "More helps.", False, "12 % [10, 14]")
        records.claim("08.more", "More helps a little.", True, "12 %")  # a failure keeps no id

    @pytest.mark.parametrize(
        "holds", [np.array([True]), "no", 1, None, torch.tensor(True), np.float64(1.0)]
    )
    def test_refuses_what_only_looks_true(self, holds: Any) -> None:
        with pytest.raises(TypeError, match="holds should be True or False, found"):
            records.claim("08.truth", "It holds.", holds, "1 point")

    def test_one_id_is_one_sentence(self) -> None:
        first = records.claim("08.same", "It holds.", True, "1 point")
        assert records.claim("08.same", "It holds.", True, "1 point") == first
        with pytest.raises(ValueError, match=r"already made with another sentence: 'It holds\.'"):
            records.claim("08.same", "Something else holds.", True, "1 point")

    @pytest.mark.parametrize("id", ["leakage", "8.leakage", "08.", "08.Leak age", "08.a__b"])
    def test_refuses_malformed_ids(self, id: str) -> None:
        with pytest.raises(ValueError, match=r"such as '08\.leakage'"):
            records.claim(id, "It holds.", True, "1 point")

    @pytest.mark.parametrize("measured", [0.839, 3, True, np.float32(1)])
    def test_refuses_numbers_without_a_unit(self, measured: Any) -> None:
        with pytest.raises(TypeError, match="a bare number has no unit"):
            records.claim("08.unit", "It holds.", True, measured)

    def test_refuses_empty_texts_and_loose_folklore(self) -> None:
        with pytest.raises(ValueError, match="must not be empty"):
            records.claim("08.empty", " ", True, "1 point")
        with pytest.raises(ValueError, match="must not be empty"):
            records.claim("08.empty", "It holds.", True, "")
        with pytest.raises(TypeError, match=r"should be records\.Folklore"):
            records.claim("08.empty", "It holds.", True, "1", folklore="they say")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("agrees", "ending"),
        [
            (True, "the measurement agrees"),
            (False, "the measurement contradicts it"),
            (None, "the measurement leaves it open"),
        ],
    )
    def test_says_what_it_does_to_folklore(self, agrees: bool | None, ending: str) -> None:
        said = Folklore("Freeze it.", "yosinski2014", agrees)
        made = records.claim("08.said", "Freezing helps.", True, "1 point", folklore=said)
        assert repr(made).endswith(f"Folklore: “Freeze it.” (yosinski2014): {ending}")
        assert ending in made._repr_mimebundle_()[0]["text/html"]

    def test_folklore_refuses_what_only_looks_true(self) -> None:
        with pytest.raises(TypeError, match=r"Folklore\.agrees should be True or False"):
            Folklore("Freeze it.", agrees="yes")  # type: ignore[arg-type]

    def test_page_shows_text_as_text(self) -> None:
        made = records.claim("08.html", "a < b & c", True, "<b>1</b> point")
        html = made._repr_mimebundle_()[0]["text/html"]
        assert 'class="tl-claim"' in html
        assert "a &lt; b &amp; c" in html
        assert "<b>" not in html


SOURCES = [
    "from tlhelpers import records\nfrom tlhelpers.records import Folklore",
    'records.claim("08.one", "One holds.", True, "1 point")',
    "print('nothing claimed here')",
    'records.claim("08.two", "Two < holds.", 2 < 3, "2 points",\n'
    '              folklore=Folklore("Not so.", "key", False))',
]


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in SOURCES])


class TestLedger:
    def test_collects_the_claims_of_an_executed_notebook(
        self, notebook: nbformat.NotebookNode, tmp_path: Path
    ) -> None:
        NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
        path = tmp_path / "chapter.ipynb"
        nbformat.write(notebook, path)
        assert records.claims_in(path) == (
            Claim("08.one", "One holds.", "1 point"),
            Claim("08.two", "Two < holds.", "2 points", Folklore("Not so.", "key", False)),
        )

    def test_refuses_a_notebook_without_outputs(
        self, notebook: nbformat.NotebookNode, tmp_path: Path
    ) -> None:
        path = tmp_path / "chapter.ipynb"
        nbformat.write(notebook, path)
        with pytest.raises(ValueError, match=r"chapter\.ipynb holds no outputs: execute it"):
            records.claims_in(path)

    def test_refuses_one_claim_shown_twice(
        self, notebook: nbformat.NotebookNode, tmp_path: Path
    ) -> None:
        made = Claim("08.one", "One holds.", "1 point")
        data, metadata = made._repr_mimebundle_()
        for cell in notebook.cells[:2]:
            cell.execution_count = 1
            cell.outputs = [nbformat.v4.new_output("display_data", data, metadata=metadata)]
        path = tmp_path / "chapter.ipynb"
        nbformat.write(notebook, path)
        with pytest.raises(ValueError, match=r"shows claim 08\.one twice"):
            records.claims_in(path)

    @pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"cells": [{"cell_type": "code"}]}'])
    def test_refuses_what_is_not_a_notebook(self, content: str, tmp_path: Path) -> None:
        path = tmp_path / "chapter.ipynb"
        path.write_text(content)
        with pytest.raises(ValueError, match="should be a Jupyter notebook"):
            records.claims_in(path)


def test_fields_are_those_of_the_design() -> None:
    """The names are those of files that lie about, so they stay."""
    assert [field.name for field in dataclasses.fields(Record)] == list(FIELDS)


def test_figures_are_values_and_ends_by_name() -> None:
    found = records.figures({"gain": Estimate(0.1, -0.2, 0.3, unit="points")})
    assert found == {"result": {"gain": 0.1}, "interval": {"gain": [-0.2, 0.3]}}


def test_a_study_over_draws_says_so_and_where_it_comes_from() -> None:
    origin = records.provenance(records.figures, command="python experiments/none.py")
    made = records.of_draws(
        "glyphs/none",
        [{"draw": 0, "top1": 0.5}],
        {"top1": Estimate(0.5, 0.4, 0.6)},
        split="a split",
        input="an input",
        seeds=range(3),
        run=Run(),
        origin=origin,
        start=time.perf_counter() - 2,
    )
    assert made.seeds == (0, 1, 2)
    assert made.interval_over == "95 %, t, over 3 draws"
    assert made.estimate("top1").high == 0.6
    assert made.source_hash == origin["source_hash"]
    assert 2 <= made.wall_seconds < 60
