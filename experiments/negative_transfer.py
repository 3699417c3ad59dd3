"""Pretrain the four sources of chapter 14 that the zoo has not, and make its records.

    python experiments/negative_transfer.py

Writes the weights of the sources ``negative.OWN``, then the records ``negative/finetuned``,
``negative/several``, ``negative/remedies`` and ``negative/freezing``. ``--only weights``, the name
of a source, or the second part of a record's name, makes one of these. About six minutes of one
CPU core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tlhelpers as tl
from tlhelpers import negative, zoo
from tlhelpers.runtime import Run

WEIGHTS = Path(tl.__file__).parent / "data" / "weights" / "negative"
STUDIES = (negative.finetuned, negative.several, negative.remedies, negative.freezing)
RECORDS = {f.__name__: f for f in STUDIES}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only", choices=("weights", *negative.OWN, *RECORDS), help="by default all"
    )
    only = parser.parse_args().only
    run = tl.setup(device="cpu")
    for name in negative.OWN:
        if only in (None, "weights", name):
            make_weights(name, run)
    for name, make in RECORDS.items():
        if only in (None, name):
            record = make(run)
            tl.records.save(record)
            print(record, flush=True)


def make_weights(name: str, run: Run) -> None:
    """Train and save a source network."""
    path = tl.models.save_small_resnet(
        negative.pretrain(name, run),
        WEIGHTS / f"{name}.safetensors",
        classes=negative.data(name, seed=run.seed).classes,
        recipe=zoo.PRETRAINING.as_dict(),
        command=negative.COMMAND,
    )
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
