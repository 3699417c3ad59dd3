"""Pretrain the zoo of chapter 07, and fine-tune every network of it on every target.

    python experiments/zoo.py

Writes the weights, then the records ``zoo/pretrained`` and ``zoo/finetuned``. ``--only weights``
or ``--only records`` does one of the two. About a quarter of an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import tlhelpers as tl
from tlhelpers import zoo
from tlhelpers.runtime import Run

WEIGHTS = Path(tl.__file__).parent / "data" / "weights" / "zoo"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=("weights", "records"), help="by default both")
    arguments = parser.parse_args()
    run = tl.setup(device="cpu")  # weights that can be made again anywhere
    if arguments.only != "records":
        make_weights(run)
    if arguments.only != "weights":
        for record in (zoo.pretrained(run), zoo.finetuned(run)):
            tl.records.save(record)
            print(record)


def make_weights(run: Run) -> None:
    """Train and save every source network that has a file of its own."""
    for source in zoo.SOURCES:
        if source.name == "letters" or source.objective == "nothing":
            continue
        start = time.perf_counter()
        network = zoo.pretrain(source, run)
        path = tl.models.save_small_resnet(
            network,
            WEIGHTS / f"{source.name}.safetensors",
            classes=zoo.data(source, seed=run.seed).classes,
            text=source.text,
            recipe=zoo.PRETRAINING.as_dict(),
            command=zoo.COMMAND,
        )
        seconds, size = time.perf_counter() - start, path.stat().st_size
        print(f"{source.name}: {seconds:.0f} s, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
