"""Make the record of near-duplicates in Stanford Dogs.

    python experiments/dogs_duplicates.py --data PATH

PATH is a folder with the photographs. The features are those of the shipped bank. It takes seconds
once the photographs have been decoded (which takes a minute on two CPU cores, and is cached).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import tlhelpers as tl


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the photographs")
    photos = tl.pixels.pixel_cache(tl.datasets.stanford_dogs(parser.parse_args(arguments).data))
    record = tl.duplicates.near_duplicates(photos, tl.features.load("stanford_dogs/mobilenet_v2"))
    tl.records.save(record)
    print(record)


if __name__ == "__main__":
    main()
