"""The gallery shows every plot that there is, and says of each what it is and is not for."""

from __future__ import annotations

import inspect
import re

import pytest
from test_chapters import CHAPTERS, Document, calls

from tlhelpers import plots

PAGE = Document.read(CHAPTERS / "gallery.ipynb")
PLOTS = sorted(
    name
    for name, found in inspect.getmembers(plots, inspect.isfunction)
    if found.__module__ == plots.__name__ and not name.startswith("_")
)
SECTIONS = [text for level, text in PAGE.headings if level == 2]


def test_there_is_something_to_show() -> None:
    assert {"learning_curve", "glyphs", "style"} <= set(PLOTS)


@pytest.mark.parametrize("name", [f"plots.{name}" for name in PLOTS] + ["widgets.explore"])
def test_every_plot_is_drawn(name: str) -> None:
    drawn = [call for cell in PAGE.code for call in calls(cell.source, f"tl.{name}")]
    assert drawn, f"chapters/gallery.ipynb should show tl.{name}: add a section."


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_says_what_for_and_what_not_for(section: str) -> None:
    text, *rest = PAGE.section(section)
    assert text.source.count("**Answers:**") == 1
    assert "**Not for**" in text.source
    assert rest
    assert all(cell.cell_type == "code" for cell in rest)
    if section != "widgets.explore":  # which no chapter needs
        assert re.search(r"\]\(\d\d-[\w-]+\.ipynb", text.source), "link a chapter that uses it"
