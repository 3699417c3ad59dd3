"""The landing page's figure and map of the chapters, and a picture for links to the book.

``tools/book.py`` calls these functions between executing the chapters and writing the pages;
``chapters/index.md`` includes what :func:`figure` and :func:`chapters` return.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from PIL import Image

from tlhelpers import evaluate, plots, records

RECORD = "glyphs/labels"
# The figure that stands for a chapter is that of the cell with this tag, else its first.
COVER = "cover"
THUMBNAIL = (360, 225)  # pixels: enough for a third of the page
SHARE = (1200, 630)  # pixels, as social sites ask for
SHARE_DPI = plots.CSS_PIXELS * plots.SHARPNESS
_FIGURE = re.compile(r'class="tl-figure"[^>]*src="data:image/\w+;base64,([^"]+)"')

WAYS = {"fine-tuned": "pretrained on letters", "scratch": "from scratch"}


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """Mean test accuracy and its interval over draws, for each way and number of labels."""
    digits = table[table["task"] == "digits"]
    rows = []
    for way, name in WAYS.items():
        for k, found in digits[digits["way"] == way].groupby("k")["clean"]:
            e = evaluate.mean_interval(found)
            rows.append({"network": name, "k": k, "mean": e.value, "low": e.low, "high": e.high})
    return pd.DataFrame(rows)


def drawn(record: records.Record) -> plots.Figure:
    """The book's central figure: what pretraining is worth, and where it stops being worth it."""
    return plots.learning_curve(
        curves(record.to_frame()),
        x="k",
        hue="network",
        xlabel="labelled digits a class",
        ylabel="test accuracy",
    )


def figure() -> str:
    """The figure and what it shows, in Markdown; the numbers in it are those of the record."""
    record = records.load(RECORD)
    image = drawn(record)._repr_mimebundle_()[0]["text/html"]
    few, many = (
        record.estimate(f"fine-tuned minus scratch, {k} labels", unit="points") for k in (1, 100)
    )
    return (
        f"{image}\n\n"
        f"The same small network learns to read handwritten digits, once from nothing and once "
        f"from weights that have learnt printed letters. With one label a class the letters are "
        f"worth {few}, with a hundred {many}: means over {len(record.seeds)} draws of the labels, "
        f"with 95 % intervals. [Chapter 01](01-why-transfer.ipynb) takes this figure apart.\n"
    )


def share(title: str) -> bytes:
    """The figure under the book's title, as a PNG of the size at which links are shown."""
    shown = drawn(records.load(RECORD))
    width, height = SHARE
    shown.set_size_inches(width / SHARE_DPI, height / SHARE_DPI)
    shown.suptitle(title, fontsize=17, fontweight="bold")
    return shown.image()


def chapters(parts: Mapping[str, Sequence[tuple[str, str, Any]]]) -> str:
    """A card for each chapter: its title, a picture from its page, and the link, in MyST.

    Args:
        parts: by the name of each part of the book its chapters, each as the name of its file
            without the ending, its title, and its executed cells.
    """
    lines: list[str] = []
    for part, found in parts.items():
        # A rubric and not a heading: the page's own contents would grow too long.
        lines += [f"```{{rubric}} {part}", "```", "", "::::{grid} 1 2 3 3", ":gutter: 2", ""]
        for name, title, notebook in found:
            lines += [f":::{{grid-item-card}} {title}", f":link: {name}", ":link-type: doc", ""]
            if picture := cover(notebook):
                # The title says what the card is for; the figure's own text is in the chapter.
                lines += [f'<img class="tl-cover" alt="A figure of this chapter." src="{picture}">']
            lines += [":::", ""]
        lines += ["::::", ""]
    return "\n".join(lines)


def cover(notebook: Any) -> str | None:
    """The figure that stands for a chapter, small, as the address of an image."""
    figures = list(_figures(notebook))
    tagged = [image for image, tags in figures if COVER in tags]
    if not figures:
        return None
    image = Image.open(io.BytesIO(base64.b64decode((tagged or [figures[0][0]])[0])))
    # Of a tower of panels the uppermost: all of them would be too small to tell apart.
    small = image.convert("RGB").crop((0, 0, image.width, min(image.height, image.width)))
    small.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _figures(notebook: Any) -> Iterator[tuple[str, Sequence[str]]]:
    """Each figure of the book's look that a notebook shows, with the tags of its cell."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for image in _FIGURE.findall(output.get("data", {}).get("text/html", "")):
                yield image, cell.metadata.get("tags", [])
