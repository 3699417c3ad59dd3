"""Pretrain the small network on letters: the shipped weights ``"letters"``, and their record.

    python experiments/glyphnet.py

About a minute on two quiet CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tlhelpers as tl
from tlhelpers import pretrain

WEIGHTS = Path(tl.__file__).parent / "data" / "weights" / "letters.safetensors"


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    run = tl.setup(device="cpu")  # weights that can be made again anywhere
    network, record = pretrain.letters(run)
    path = tl.models.save_small_resnet(
        network,
        WEIGHTS,
        classes=tl.datasets.glyphs(per_class=10).classes,
        text="52 Latin letters",
        recipe=pretrain.RECIPE.as_dict(),
        record=record.name,
        command=pretrain.COMMAND,
    )
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
    tl.records.save(record)
    print(record)


if __name__ == "__main__":
    main()
