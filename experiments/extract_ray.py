"""Extract a bank of features by several workers on Ray, and rehearse the death of one of them.

    python experiments/extract_ray.py --data PATH --workers 2 --out bank.safetensors

PATH is a folder with a folder of pictures for each class, or Stanford Dogs as
``datasets.stanford_dogs`` takes it. Without a cluster (``RAY_ADDRESS``, or ``--address``) one is
started on this machine for the time of the call. An interrupted call is taken up where it stopped.

``--kill --record`` makes the record ``scaling/extract_ray`` of chapter 17 instead: the bank by one
process, by the workers, and by the workers of which one is killed half-way. With ten breeds
(``--classes 10``) and SqueezeNet it takes two minutes on two cores, most of them for Ray's start.

Needs ``pip install "tlhelpers[cluster]"``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tlhelpers as tl
from tlhelpers import scaling
from tlhelpers.ray_extract import OnRay
from tlhelpers.splits import Dataset


def photographs(path: Path, classes: int | None) -> Dataset:
    """Those of a folder, or of Stanford Dogs; of the first classes, if their number is given."""
    try:
        data = tl.datasets.stanford_dogs(path)
    except FileNotFoundError:
        data = tl.datasets.image_folder(path)
    return data if classes is None else tl.datasets.with_classes(data, data.classes[:classes])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the photographs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0.0, help="a worker's share of a GPU")
    parser.add_argument("--address", help="of a cluster; 'auto' for the one of this machine")
    parser.add_argument("--backbone", default="squeezenet1_1", help="a name in torchvision")
    parser.add_argument("--weights", help="a safetensors file; by default torchvision's")
    parser.add_argument("--classes", type=int, help="only the first so many")
    parser.add_argument("--out", type=Path, help="a .safetensors file for the bank")
    parser.add_argument("--kill", action="store_true", help="also kill a worker half-way")
    parser.add_argument("--record", action="store_true", help="compare, and save the record")
    given = parser.parse_args()
    if not (given.out or given.record):
        parser.error("give --out FILE for a bank, or --record for the comparison")
    run = tl.setup(device=None if given.gpus else "cpu")
    data = photographs(given.data, given.classes)
    backbone = tl.models.backbone(given.backbone, weights=given.weights or "imagenet")
    if given.record:
        record = scaling.rehearse(data, backbone, workers=given.workers, kill=given.kill, run=run)
        tl.records.save(record)
        print(record)
        print(record.to_frame().to_string())
        return
    engine = OnRay(given.workers, address=given.address, gpus=given.gpus)
    bank = tl.features.extract(data, backbone, run=run, engine=engine)
    print(bank.save(given.out))


if __name__ == "__main__":
    main()
