"""Make the record of chapter 01: what pretraining on letters is worth on handwritten digits.

    python experiments/labels.py

About a quarter of an hour on two CPU cores. Needs no data: everything is drawn or shipped.
"""

from __future__ import annotations

import argparse

import tlhelpers as tl
from tlhelpers import labels


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.parse_args()
    record = labels.study(tl.setup(device="cpu"))
    tl.records.save(record)
    print(record)


if __name__ == "__main__":
    main()
