"""The ten lines of chapter 08 for a reader's own folder, run on a folder that is made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tlhelpers as tl

CHAPTER = Path(__file__).parents[1] / "chapters" / "08-stanford-dogs.ipynb"


@pytest.fixture
def analyse() -> Any:
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    (source,) = [s for s in sources if s.startswith("def analyse(")]
    body = [line for line in source.splitlines()[1:] if line.strip()]
    assert len(body) <= 11, "the text says ten lines"
    names: dict[str, Any] = {"tl": tl, "pd": pd}
    exec(source, names)
    return names["analyse"]


def picture(shade: int, rng: np.random.Generator) -> Image.Image:
    """Noise on one of three shades: no network could miss the difference."""
    pixels = np.clip(rng.normal(shade, 25, (64, 80, 3)), 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def test_ten_lines_analyse_a_folder(analyse: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind, shade in (("bright", 220), ("dark", 30), ("grey", 120)):
        home = tmp_path / "shades" / kind
        home.mkdir(parents=True)
        for i in range(20):
            picture(shade, rng).save(home / f"{i:02}.png")
    Image.open(home / "07.png").save(home / "again.jpg", quality=80)
    backbone = tl.models.backbone("squeezenet1_1", weights=None)
    table, pairs = analyse(tmp_path / "shades", backbone, ks=(1, 4))
    assert table["labels a class"].tolist() == [1, 4, "all"]
    assert table["top-1"].iloc[-1].value > 0.9
    assert len(pairs) == 5
    assert {"first", "second", "similarity"} <= set(pairs.columns)
    assert (pairs["first_class"] == pairs["second_class"]).all()


def test_a_folder_without_classes_is_refused(analyse: Any, tmp_path: Path) -> None:
    picture(100, np.random.default_rng(0)).save(tmp_path / "alone.png")
    with pytest.raises(ValueError, match="class"):
        analyse(tmp_path, tl.models.backbone("squeezenet1_1", weights=None))
