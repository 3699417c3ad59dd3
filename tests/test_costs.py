"""What chapters cost: read from one place, and marked by what it rests on."""

from __future__ import annotations

import datetime
import math
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import book  # scripts' folder, not a package
import chapter
import costs

ROOT = Path(__file__).resolve().parent.parent
TODAY = datetime.date(2026, 11, 22)
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9]*.ipynb"))


def notebook(*cells: str, full: str | None = None) -> nbformat.NotebookNode:
    opening = chapter.skeleton("05", "Fine-tune a backbone").cells[0].source
    if full:
        opening = opening.replace("1 / –", f"1 / –\n> - **{costs.FULL}:** {full}")
    return new_notebook(cells=[new_markdown_cell(opening), *map(new_code_cell, cells)])


@pytest.mark.parametrize(
    "line", ["not measured", "90 / 15 / 5, estimated", "24 / – / not measured, from its records"]
)
def test_a_line_of_a_box_reads_as_it_is_written(line: str) -> None:
    full = costs.Full.parse(line)
    assert str(full) == line
    for cell in full.cells():  # a figure never stands alone
        assert cell in (costs.UNKNOWN, costs.NO_USE) or cell.endswith(f", {full.basis}")


@pytest.mark.parametrize("line", ["90 / 15 / 5", "90, estimated", "1 / 2 / 3, guessed", "90 / 15"])
def test_a_figure_without_its_basis_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"should read 'not measured', or like .*; found"):
        costs.Full.parse(line)


def test_a_box_is_read_over_several_lines() -> None:
    for path in CHAPTERS:
        found = costs.box(nbformat.read(path, as_version=4))
        assert {costs.QUICK, costs.DOWNLOAD} <= set(found), path.name
        assert "\n" not in "".join(found.values())
    assert found["What you need"].endswith("when you want to know how it was measured")


def test_the_records_of_a_chapter_are_found_in_every_way_that_they_are_named() -> None:
    found = notebook(
        'tl.records.get("glyphs/labels", live=f, run=run)',
        'tl.records.get("glyphs/meta")',
        'x = {n: tl.records.get(f"dogs/transferability_{n}", live=f(n)) for n in names}',
        "%pip is no Python, and is passed over",
        "tl.records.get(unseen.NAME, live=f if same else None, run=run)",
    )
    transferability = ["mobilenet_v2", "squeezenet1_1"]
    assert costs.made_anew(found) == [
        "glyphs/labels",
        *(f"dogs/transferability_{name}" for name in transferability),
        "glyphs/unseen",
    ]
    with pytest.raises(ValueError, match="ships no record 'glyphs/unheard'"):
        costs.made_anew(notebook('tl.records.get("glyphs/unheard", live=f)'))
    with pytest.raises(ValueError, match="should be a string, or a constant of the package"):
        costs.made_anew(notebook("tl.records.get(name, live=f)"))


def test_what_records_take_is_the_time_in_them() -> None:
    once = notebook('tl.records.get("glyphs/labels", live=f)')
    twice = notebook(*['tl.records.get("glyphs/labels", live=f)'] * 2)
    seconds = costs.seconds("glyphs/labels")
    for found, times in ((once, 1), (twice, 2)):
        minutes = math.ceil(1 + times * seconds / 60)
        assert costs.expected(found) == f"{minutes} / – / –, from its records"
        found.metadata["accelerator"] = "GPU"
        assert costs.expected(found).startswith(f"{minutes} / not measured / not measured,")
    assert costs.expected(notebook("x = 1")) is None
    asks = notebook(
        'tl.records.get("glyphs/labels", live=f)', 'if run.profile == "full":\n    go()'
    )
    assert costs.expected(asks) is None  # the records are not all of it


def test_a_line_that_follows_from_records_is_renewed_and_others_are_kept() -> None:
    code = 'tl.records.get("glyphs/labels", live=f)'
    fresh = notebook(code)
    written = costs.opening(fresh)
    assert f"> - **{costs.FULL}:** {costs.expected(fresh)}\n> - **Download:**" in written
    old = notebook(code, full="3 / – / –, from its records")
    assert costs.opening(old) == written
    by_hand = notebook('if run.profile == "full":\n    go()', full="90 / 15 / 5, estimated")
    assert costs.opening(by_hand) == by_hand.cells[0].source


def test_the_page_says_what_is_known_and_what_is_not() -> None:
    full, unknown, plain = notebook(full="90 / 15 / 5, estimated"), notebook(), notebook()
    unknown.cells[0].source = notebook(full="not measured").cells[0].source
    text = costs.page(
        [
            ("05-a.ipynb", "05 · A", full, costs.Measured(78.0, 1_340_000_000, TODAY)),
            ("06-b.ipynb", "06 · B", unknown, costs.Measured(None, None, TODAY)),
            ("07-c.ipynb", "07 · C", plain, costs.Measured(42.0, None, TODAY)),
        ],
        {"Python": "3.13.1", "torch": "2.15.0"},
    )
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:5]]
    a, b, c = rows
    assert a[:3] == ["[05 · A](05-a.ipynb)", "1.3", "1.3 GB"]
    assert a[3:6] == ["90, estimated", "15, estimated", "5, estimated"]
    assert b[1:6] == ["not measured"] * 5
    assert c[3:6] == ["as `quick`"] * 3
    assert a[6:] == ["none", "2026-11-22"]
    assert "| all | 2 |" in text
    assert "With Python 3.13.1, torch 2.15.0." in text
    assert len({row.count("|") for row in text.splitlines() if row.startswith("|")}) == 1


def test_chapter_08_says_in_its_text_what_its_box_says() -> None:
    (path,) = (ROOT / "chapters").glob("08-*.ipynb")
    found = nbformat.read(path, as_version=4)
    text = " ".join(" ".join(cell.source.split()) for cell in found.cells[1:])
    said = re.search(r"(\d+) on two processor cores, (\d+) on a T4, (\d+) on a large", text)
    assert said, "The text gives no minutes any more: this test can go."
    full = costs.Full.parse(costs.box(found)[costs.FULL])
    assert said.groups() == (full.cpu, full.t4, full.large)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: Linux only")
def test_peak_memory_is_the_most_that_was_held_and_not_what_is_left() -> None:
    before = book.peak_memory(os.getpid())
    assert before is not None
    block = bytearray(b"x" * 200_000_000)
    del block
    after = book.peak_memory(os.getpid())
    assert after is not None
    assert after > 150_000_000
    assert before <= after < before + 1_000_000_000


def test_the_memory_of_a_process_that_is_gone_is_unknown() -> None:
    assert book.peak_memory(2**31 - 1) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: Linux only")
def test_running_a_notebook_measures_its_own_kernel(tmp_path: Path) -> None:
    def run(name: str, source: str) -> dict[str, float] | None:
        path = tmp_path / f"{name}.ipynb"
        found = new_notebook(cells=[new_code_cell(source)])
        nbformat.write(found, path)
        return book.execute(found, path, 1)

    small, large = run("small", "1"), run("large", "len(bytearray(b'x' * 300_000_000))")
    assert small is not None
    assert large is not None
    assert large["peak_bytes"] - small["peak_bytes"] > 250_000_000
    assert 0 < small["execution_seconds"] < 60
    assert run("broken", "1 / 0") is None
