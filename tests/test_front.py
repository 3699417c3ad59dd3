"""Behaviour of ``tools/front.py``: the landing page's figure says what its record says."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import front  # a script's folder, not a package
import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from tlhelpers import plots, records


def test_the_page_holds_the_figure_and_the_records_figures() -> None:
    record, text = records.load(front.RECORD), front.figure()
    (alt,) = re.findall(r'alt="([^"]+)"', text)
    assert "test accuracy" in alt
    assert all(name in alt for name in front.WAYS.values())
    for k in (1, 100):
        gain = record.estimate(f"fine-tuned minus scratch, {k} labels", unit="points")
        assert str(gain) in text


def test_curves_have_every_number_of_labels_and_hold_their_means() -> None:
    found = front.curves(records.load(front.RECORD).to_frame())
    assert found.groupby("network")["k"].nunique().nunique() == 1
    assert ((found["low"] <= found["mean"]) & (found["mean"] <= found["high"])).all()


def notebook(*heights: float, cover: int | None = None) -> nbformat.NotebookNode:
    """The executed cells of a chapter with figures of the given heights in inches."""
    cells = []
    for i, height in enumerate(heights):
        shown, _ = plots.figure(alt="An empty figure.", height=height)
        data = shown._repr_mimebundle_()[0]
        output = new_output("display_data", data=data)
        tags = ["cover"] if i == cover else []
        cells.append(new_code_cell("draw()", outputs=[output], metadata={"tags": tags}))
    return new_notebook(cells=cells)


def shape(address: str | None) -> tuple[int, int]:
    assert address is not None
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size


def test_the_map_links_every_chapter_under_its_part() -> None:
    text = front.chapters(
        {
            "Ideas": [("01-why", "01 · Ask", notebook(4)), ("02-map", "02 · Map", notebook())],
            "Craft": [("04-extract", "04 · Extract", notebook(4))],
        }
    )
    assert re.findall(r"rubric} (\w+)", text) == ["Ideas", "Craft"]
    assert re.findall(r"card} (.+)", text) == ["01 · Ask", "02 · Map", "04 · Extract"]
    assert re.findall(r":link: (.+)", text) == ["01-why", "02-map", "04-extract"]
    assert text.count("<img") == 2, "a chapter without figures has a card without a picture"


def test_the_first_figure_stands_for_a_chapter_unless_one_is_tagged() -> None:
    first, tagged = notebook(2, 6), notebook(2, 6, cover=1)
    wide, high = shape(front.cover(first)), shape(front.cover(tagged))
    assert wide[0] / wide[1] > 2 > high[0] / high[1]
    assert wide[0] <= front.THUMBNAIL[0]
    assert high[1] <= front.THUMBNAIL[1]


def test_of_a_tower_of_panels_the_top_stands_for_a_chapter() -> None:
    assert shape(front.cover(notebook(14))) == (front.THUMBNAIL[1], front.THUMBNAIL[1])


def test_the_picture_for_links_has_the_size_that_sites_ask_for() -> None:
    image = Image.open(io.BytesIO(front.share("A title of the book")))
    assert (image.format, image.size) == ("PNG", front.SHARE)
