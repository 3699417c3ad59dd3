"""Behaviour of ``tools/release.py``: what it asks for, and what it notices."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import release  # a script's folder, not a package


def test_every_requirement_of_the_package_has_an_oldest_version() -> None:
    for requirement in release.requirements(*release.TESTED):
        pin = Requirement(release.oldest_pin(requirement))
        assert pin.name == requirement.name
        lowest = next(p.version for p in requirement.specifier if p.operator == ">=")
        assert pin.specifier.contains(lowest)


def test_a_requirement_without_a_lower_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="numpy<3 should have one lower bound"):
        release.oldest_pin(Requirement("numpy<3"))


# What of a test's text tells that it needs more than the package with its extras for tests.
OF_THE_BOOK = ('/ "tools"', "from test_chapters import", "import mdit_py_plugins", "from pybtex")


def test_only_the_packages_own_tests_run_with_other_versions() -> None:
    files = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    left_out = set(release.NOT_OF_THE_PACKAGE)
    assert left_out <= files
    for name in files - left_out:
        text = (Path(__file__).parent / name).read_text("utf-8")
        found = [needed for needed in OF_THE_BOOK if needed in text]
        assert not found, f"{name} needs the book's tools ({found}): add it to the list."


def test_a_chapter_that_does_not_exist_is_named() -> None:
    assert [path.stem for path in release.chosen(["08"])] == ["08-stanford-dogs"]
    assert len(release.chosen([])) == 19
    with pytest.raises(SystemExit, match="no chapter 77: 01, 02"):
        release.chosen(["08", "77"])


@pytest.mark.parametrize("line", ["colab --again 08 11", "colab 08 11 --again"])
def test_a_piece_of_a_check_is_asked_for_in_any_order(
    monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    asked = []
    monkeypatch.setattr(release, "colab", lambda part, **how: asked.append((part, how)) or 0)
    assert release.main(line.split()) == 0
    assert asked == [(["08", "11"], {"again": True, "here": False})]


def test_an_environment_that_is_not_there_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(release, "BUILD", tmp_path / "_build")
    with pytest.raises(SystemExit, match="No environment in _build/env-oldest yet"):
        release.interpreter("oldest", again=True)


@pytest.mark.parametrize("after", ["2.11.0", "2.15.0"])
def test_a_package_that_moves_torch_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: str
) -> None:
    there = {"torch": "2.11.0", "numpy": "2.1.3", "pandas": "2.2.3"}
    found = iter([there, there | {"torch": after, "simplejpeg": "1.9"}])
    monkeypatch.setattr(release, "versions", lambda python: next(found))
    monkeypatch.setattr(release, "wheel", lambda: Path("/a/tlhelpers.whl"))
    monkeypatch.setattr(release, "pip", lambda python, *arguments: None)
    stayed = release.install_package(Path("python"))
    printed = capsys.readouterr()
    assert stayed == (after == "2.11.0")
    if stayed:
        assert "numpy 2.1.3, pandas 2.2.3, torch 2.11.0 and 0 more" in printed.out
        assert "added simplejpeg 1.9" in printed.out
    else:
        assert "moved torch from 2.11.0 to 2.15.0" in printed.err


def test_what_moved_is_what_changed_or_went_and_not_what_came() -> None:
    before = {"torch": "2.11.0", "numpy": "2.1.3", "pandas": "2.2.3"}
    after = {"torch": "2.15.0", "numpy": "2.1.3", "simplejpeg": "1.9"}
    assert release.moved(before, after) == {
        "torch": ("2.11.0", "2.15.0"),
        "pandas": ("2.2.3", "nothing"),
    }
    assert release.moved(before, before | {"simplejpeg": "1.9"}) == {}


def test_versions_are_those_of_the_interpreter() -> None:
    found = release.versions(Path(sys.executable))
    assert found["torch"].startswith("2.")
    assert "scikit-learn" in found


def test_a_run_elsewhere_inherits_nothing_of_this_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "here")
    monkeypatch.setenv("TLHELPERS_DATA", "here")
    kept = release.clean({"TLHELPERS_CACHE": "there"})
    assert "here" not in kept.values()
    assert kept["TLHELPERS_CACHE"] == "there"


def test_a_chapter_that_fails_is_told_with_its_error(tmp_path: Path) -> None:
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    for name, code in (("works", "1 + 1"), ("breaks", "raise ValueError('not today')")):
        folder = tmp_path / name
        folder.mkdir()
        source = tmp_path / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell(code)]), source)
        _, error = release.run_chapter(Path(sys.executable), source, folder)
        assert (error is None) == (name == "works")
        assert name == "works" or (error is not None and "not today" in error)
