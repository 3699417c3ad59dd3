"""Make the records of chapter 09: chest X-ray films with few labels.

    python experiments/xrays.py --data PATH

PATH is the folder of experiments/xrays_bank.py, with ``squeezenet1_1_imagenet.safetensors`` too.
Writes ``xrays/labels`` and ``xrays/layers``; ``--only`` makes one. Nine minutes of one CPU core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tlhelpers as tl
from tlhelpers import xrays

WEIGHTS = {"labels": xrays.BACKBONE, "layers": "squeezenet1_1"}
STUDIES = {"labels": xrays.labels, "layers": xrays.layers}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with films and weights")
    parser.add_argument("--official", action="store_true", help="use the official file")
    parser.add_argument("--only", choices=STUDIES, help="by default all")
    options = parser.parse_args()
    run = tl.setup(device="cpu")
    films = options.data if options.official else options.data / "pneumoniamnist_reduced.npz"
    data = tl.datasets.pneumonia_mnist(films)
    for name, make in STUDIES.items():
        if options.only in (None, name):
            weights = options.data / f"{WEIGHTS[name]}_imagenet.safetensors"
            record = make(run, data=data, weights=weights)
            tl.records.save(record)
            print(f"{record.name}: {record.wall_seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
