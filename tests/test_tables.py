"""The tables of chapter 19 that ship as files: sources of tools, and references put right."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from pybtex.database import parse_file  # type: ignore[import-untyped]

import tlhelpers

ROOT = Path(__file__).resolve().parent.parent
TABLES = Path(tlhelpers.__file__).parent / "data" / "tables"


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(TABLES / f"{name}.csv", dtype=str, keep_default_na=False)


def test_every_tool_has_every_field_and_a_source() -> None:
    tools = table("tools")
    assert tools["tool"].is_unique
    assert (tools != "").all(axis=None)
    assert tools["source"].str.match(r"https://[\w.-]+/").all()


def test_every_reference_put_right_is_in_the_bibliography_with_its_number() -> None:
    entries = parse_file(str(ROOT / "references.bib")).entries
    for row in table("citations").itertuples():
        number = entries[row.key].fields.get("eprint", "")
        assert row.arxiv in ("", number), f"{row.key}: arXiv {number}, the table has {row.arxiv}"
        assert row.arxiv == "" or re.fullmatch(r"\d{4}\.\d{4,5}", row.arxiv)
