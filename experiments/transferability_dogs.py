"""Make the records of chapter 07 on photographs: LEEP and NCE of the two ImageNet backbones.

    python experiments/transferability_dogs.py --data PATH

PATH is the folder of ``experiments/dogs_bank.py``. About three minutes on two CPU cores the first
time; logits are cached, so a second run takes seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tlhelpers as tl
from tlhelpers import transferability

BACKBONES = ("mobilenet_v2", "squeezenet1_1")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with dogs and weights")
    arguments = parser.parse_args()
    run = tl.setup()
    dogs = tl.datasets.stanford_dogs(arguments.data)
    for name in BACKBONES:
        backbone = tl.models.backbone(name, weights=arguments.data / f"{name}_imagenet.safetensors")
        record = transferability.imagenet_head(dogs, backbone, run=run)
        tl.records.save(record)
        print(record)


if __name__ == "__main__":
    main()
