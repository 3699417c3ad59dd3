"""Behaviour of ``tools/ledger.py``: the page of all claims."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tlhelpers.records import Claim, Folklore

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import ledger  # a script's folder, not a package

CHAPTERS = {
    "01-a.ipynb": (
        "01 · Why",
        [
            Claim("01.one", "A *star* costs $5 & <b>_x_</b>.", "`3 %` [1, 5]\n| c |", None),
            Claim("01.two", "Two.", "4", Folklore("It is so.", "guo2017", agrees=False)),
        ],
    ),
    "02-b.ipynb": ("02 · Map", []),
    "03-c.ipynb": ("03 · More", [Claim("03.one", "Three.", "9", Folklore("Said.", agrees=True))]),
}


def test_the_ledger_counts_and_names_all_claims() -> None:
    text = ledger.page(CHAPTERS)
    assert "makes 3 claims. Beside 2 of them" in text
    assert "1 times it agrees, 1 times it contradicts it, 0 times it leaves it open." in text
    assert "## [03 · More](03-c.ipynb)" in text
    assert "02" not in text, "a chapter without claims is left out"
    assert "“It is so.” {cite:p}`guo2017` The measurement **contradicts it**." in text
    assert "“Said.” The measurement **agrees**." in text


@pytest.mark.parametrize("text", ["A *star* costs $5 & <b>_x_</b>.", "`3 %` [1, 5] | c | # ~~a~~"])
def test_a_claim_is_shown_letter_by_letter(text: str) -> None:
    (paragraph,) = MarkdownIt("commonmark").enable("strikethrough").parse(ledger.plain(text))[1:2]
    assert [child.type for child in paragraph.children or []] == ["text"]
    assert paragraph.children[0].content == text  # type: ignore[index]


def test_an_entry_stays_on_its_lines() -> None:
    for line in ledger.page(CHAPTERS).splitlines():
        assert not line.startswith("| c |")
