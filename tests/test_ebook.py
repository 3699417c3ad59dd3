"""Behaviour of ``tools/ebook.py`` and ``tools/mathml.py``, without building the book."""

from __future__ import annotations

import re
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
    (fault,) = ebook.faults(source)
    assert fault.startswith("page.xhtml is not well-formed: mismatched tag")
    ebook.repack(source, target)
    assert ebook.faults(target) == ["page.xhtml leads to a.png, which is not in the book."]
    with zipfile.ZipFile(target) as archive:
        first, *others = archive.infolist()
        assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
        assert {other.filename for other in others} == {"page.xhtml", "picture.png"}
        assert archive.read("picture.png") == b"\x89PNG"
    assert not list(tmp_path.glob("*.part"))


def test_what_epub_refuses_is_said_in_another_way() -> None:
    body = (
        "<style scoped>td {}</style>"
        '<details><summary><p>Show</p><p class="expanded">Hide</p></summary>x</details>'
        "<p><p>two</p><ul><li>things</li></ul></p>"
        '<table border="1"><tr><td valign="top">a</td></tr></table>'
        '<math><mfrac displaystyle="true" scriptlevel="0"><mn>1</mn><mn>2</mn></mfrac></math>'
    )
    head = (
        '<link rel="stylesheet" href="../_static/gone.css"/><link rel="stylesheet" href="b.css"/>'
    )
    page = f"<html><head>{head}</head><body>{body}</body></html>"
    found = ebook.well_formed(page, name="in/a.xhtml", names=["in/a.xhtml", "in/b.css"])
    assert "td {}" not in found
    assert "pre-wrap" in found.partition("</head>")[0]
    assert "<summary><span>Show</span></summary>" in found
    assert "<div><p>two</p><ul><li>things</li></ul></div>" in found
    assert "<table><tr><td>a</td></tr></table>" in found
    fraction = "<mfrac><mn>1</mn><mn>2</mn></mfrac>"
    assert f'<mstyle displaystyle="true" scriptlevel="0">{fraction}</mstyle>' in found
    assert "b.css" in found
    assert "gone.css" not in found


def test_pages_with_formulas_are_declared() -> None:
    manifest = '<item id="a" href="a.xhtml"/><item id="b" href="b.xhtml" media-type="x"/>'
    assert ebook.declared(manifest, {"b.xhtml"}) == (
        '<item id="a" href="a.xhtml"/>'
        '<item id="b" href="b.xhtml" properties="mathml" media-type="x"/>'
    )


MANIFEST = """<package xmlns="http://www.idpf.org/2007/opf"><manifest>{}</manifest></package>"""
LINKS = '<p id="here"><a href="#here">up</a><a href="https://example.org/">out</a></p>'


def test_what_keeps_an_epub_from_being_read_is_found(tmp_path: Path) -> None:
    def faults(body: str, *, manifest: tuple[str, ...] = ("a.xhtml", "in/b.png")) -> list[str]:
        path = tmp_path / "book.epub"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mimetype", "application/epub+zip")
            archive.writestr("META-INF/container.xml", "<container/>")
            items = "".join(f'<item href="{name}"/>' for name in manifest)
            archive.writestr("content.opf", MANIFEST.format(items))
            archive.writestr("a.xhtml", f"{HEAD}{LINKS}{body}</body></html>")
            archive.writestr("in/b.png", b"\x89PNG")
        return ebook.faults(path)

    assert faults('<img src="in/b.png" alt=""/><img src="data:image/png;base64,AA" alt=""/>') == []
    remote = "https://example.org/c.png"
    assert faults(f'<img src="{remote}" alt=""/>') == [
        f"a.xhtml needs {remote}, which is not in the book."
    ]
    for address in ("in/c.png", "#nowhere", "b.xhtml#here"):
        assert faults(f'<a href="{address}">x</a>') == [
            f"a.xhtml leads to {address}, which is not in the book."
        ]
    assert faults("", manifest=("a.xhtml",)) == ["in/b.png is not in the manifest."]
    assert faults("", manifest=("a.xhtml", "in/b.png", "c.xhtml")) == [
        "c.xhtml is in the manifest, and not in the book."
    ]


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


BOOK = """<!DOCTYPE html><html><head><title>Small</title><script>
window.MathJax = {startup: {promise: Promise.resolve()}};
</script></head><body>
<a href="chapters/index.html#document-b">to b</a> <a href="chapters/gone.html">gone</a>
<a href="https://example.org/there">there</a>
<span id="document-a"></span><section><h2>A</h2>
<details class="hide"><summary>Show code</summary><pre>folded</pre></details></section>
<span id="document-b"></span><section><h2>B</h2></section>
</body></html>"""


def test_a_book_is_printed_with_its_links_inside_and_a_page_a_chapter(
    tmp_path: Path, chromium_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    (tmp_path / "all.html").write_text(BOOK, encoding="utf-8")
    target = tmp_path / "small.pdf"
    with sync_playwright() as playwright:
        browsers = playwright.chromium
        ebook.print_page(
            browsers, str(chromium_path), tmp_path / "all.html", target, "<strong>T</strong>"
        )
    printed = target.read_bytes()
    assert printed.startswith(b"%PDF")
    # The title, what stands before the first chapter, and the two chapters.
    assert len(re.findall(rb"/Type */Page\b", printed)) == 4
    assert b"127.0.0.1" not in printed
    assert b"https://example.org/there" in printed
    assert b"/Outlines" in printed
