"""Make the shipped banks of Stanford Dogs, and the records behind chapters 04 and 08.

    python experiments/dogs_bank.py --data PATH

PATH is a folder with the photographs (the official archives, or one that holds ``Images/``) and
``mobilenet_v2_imagenet.safetensors`` and ``squeezenet1_1_imagenet.safetensors``. About five minutes
on two CPU cores the first time; features are cached, so a second run takes one.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import tlhelpers as tl
from tlhelpers.records import Record
from tlhelpers.studies import DOGS_COMMAND

# As many components as fit the package: 2.3 MB and 1.2 MB of codes.
DIMS = {"mobilenet_v2": 128, "squeezenet1_1": 64}
BANKS = Path(tl.__file__).parent / "data" / "banks"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with dogs and weights")
    arguments = parser.parse_args()
    run = tl.setup()
    dogs = tl.datasets.stanford_dogs(arguments.data)
    print(dogs)
    for name, dims in DIMS.items():
        backbone = tl.models.backbone(name, weights=arguments.data / f"{name}_imagenet.safetensors")
        print(backbone)
        untrained = keep(tl.studies.untrained_head(dogs, backbone, run=run))
        full = tl.features.extract(dogs, backbone, run=run)
        small = full.compress(dims)
        assert small.provenance is not None
        provenance = dataclasses.replace(
            small.provenance,
            command=DOGS_COMMAND,
            scores={f"untrained_top1_{key}": value for key, value in untrained.result.items()},
        )
        path = dataclasses.replace(small, provenance=provenance).save(
            BANKS / dogs.name / f"{name}.safetensors"
        )
        print(f"{dogs.name}/{path.name}: {path.stat().st_size / 1e6:.2f} MB")
        keep(tl.studies.compression(full))
        if name == "mobilenet_v2":
            keep(tl.studies.views(dogs, backbone, run=run))


def keep(record: Record) -> Record:
    """Save a record and print it."""
    tl.records.save(record)
    print(record)
    return record


if __name__ == "__main__":
    main()
