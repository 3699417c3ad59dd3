"""Make the shipped banks of chest X-ray films behind chapter 09.

    python experiments/xrays_bank.py --data PATH

PATH is a folder with ``pneumoniamnist_reduced.npz`` (or, with ``--official``, the official
``pneumoniamnist.npz``) and ``mobilenet_v2_imagenet.safetensors``. About half a minute of one CPU
core for each of four stages.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import tlhelpers as tl
from tlhelpers import xrays

# As many components as fit into one megabyte together.
DIMS = {"stage 6": 16, "stage 11": 32, "stage 11, 4x4": 32, "last layer": 32}
BANKS = Path(tl.__file__).parent / "data" / "banks" / "pneumonia"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with films and weights")
    parser.add_argument("--official", action="store_true", help="use the official file")
    options = parser.parse_args()
    run = tl.setup(device="cpu")
    films = options.data if options.official else options.data / "pneumoniamnist_reduced.npz"
    data = tl.datasets.pneumonia_mnist(films)
    source = xrays.backbone(options.data / f"{xrays.BACKBONE}_imagenet.safetensors")
    for way, dims in DIMS.items():
        bank = tl.features.extract(data, source, at=xrays.STAGES[way], run=run).compress(dims)
        assert bank.provenance is not None
        provenance = dataclasses.replace(bank.provenance, command=xrays.BANK_COMMAND)
        path = BANKS / f"{xrays.bank_name(way)}.safetensors"
        dataclasses.replace(bank, provenance=provenance).save(path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
