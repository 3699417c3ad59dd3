"""Behaviour of ``tools/ebook.py`` and ``tools/mathml.py``, without building the book."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from docutils.utils.math import MathError

from tlhelpers import plots, widgets

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import ebook  # scripts' folder, not a package
import mathml

HEAD = '<?xml version="1.0"?>\n<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml"><body>'
PAGES = {
    "an open image": '<p>a<img src="a.png" alt="x"></p>',
    "a break": "<p>one<br>two<hr></p>",
    "an entity": "<p>a&nbsp;b &amp; c</p>",
    "an attribute without value": "<details open><summary>s</summary><div hidden>x</div></details>",
    "an attribute without quotes": "<table border=0><tr><td colspan=2>x</td></tr></table>",
    "a bare sign": "<p>p < 0.05 & more</p>",
    "a script": "<script>if (a < b && c) { d(); }</script><p>after</p>",
}


@pytest.mark.parametrize("body", PAGES.values(), ids=PAGES)
def test_a_page_becomes_xml_with_its_text(body: str) -> None:
    found = ElementTree.fromstring(ebook.well_formed(f"{HEAD}{body}</body></html>"))
    text = "".join(found.itertext())
    assert "d();" not in text
    for word in ("one", "two", "b & c", "0.05 & more", "after"):
        assert word not in body.replace("&nbsp;", " ").replace("&amp;", "&") or word in text


def test_a_figure_with_controls_becomes_a_figure() -> None:
    def draw(shots: int = 5, method: str = "probe") -> tuple[plots.Figure, pd.DataFrame]:
        figure, axes = plots.figure(alt=f"A line for {shots} shots by {method}.")
        axes.plot([0, shots])
        return figure, pd.DataFrame({"shots": [shots]})

    explorer = widgets.explore(draw, shots=[1, 5], method=["k-NN", "probe"])
    page = ebook.well_formed(f"{HEAD}{explorer.html()}</body></html>")
    found = ElementTree.fromstring(page)
    tag = "{http://www.w3.org/1999/xhtml}"
    assert [e.get("alt") for e in found.iter(f"{tag}img")] == ["A line for 5 shots by probe."]
    assert not list(found.iter(f"{tag}input"))
    assert [" ".join("".join(e.itertext()).split()) for e in found.iter(f"{tag}label")] == [
        "shots: 5",
        "probe",
    ]
    assert len(list(found.iter(f"{tag}tr"))) == 1 + 4


def test_a_repacked_book_is_whole_and_its_pages_are_xml(tmp_path: Path) -> None:
    source, target = tmp_path / "in.epub", tmp_path / "out.epub"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("page.xhtml", f"{HEAD}{PAGES['an open image']}</body></html>")
        archive.writestr("picture.png", b"\x89PNG")
    assert list(ebook.malformed(source)) == ["page.xhtml"]
    ebook.repack(source, target)
    assert ebook.malformed(target) == {}
    with zipfile.ZipFile(target) as archive:
        first, *others = archive.infolist()
        assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
        assert {other.filename for other in others} == {"page.xhtml", "picture.png"}
        assert archive.read("picture.png") == b"\x89PNG"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "tex",
    [
        r"a_1, \dots, a_n",
        r"\binom{m}{N} \Big/ \binom{m - 1}{N}",
        r"\begin{split}\begin{aligned} a &= b \\ &= c \end{aligned}\end{split}",
        r"\lVert w \rVert_2^2 + \tfrac{1}{2} \mathbb{E}[x]",
    ],
)
def test_formulas_become_mathml(tex: str) -> None:
    found = mathml.mathml(tex, block=True)
    assert ElementTree.fromstring(found).tag.endswith("math")


def test_a_formula_that_cannot_be_translated_is_an_error() -> None:
    with pytest.raises(MathError):
        mathml.mathml(r"\unheardof{x}", block=False)


def test_a_book_that_was_not_built_is_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ebook.book, "read_state", dict)
    with pytest.raises(SystemExit, match="make book"):
        ebook.build("epub", [], lambda config: None)
