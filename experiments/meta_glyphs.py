"""Make the record of chapter 12: learning to learn against frozen features, on glyphs.

    python experiments/meta_glyphs.py --seeds 3

About 80 seconds of one CPU core a seed, measured. Needs no data.
"""

from __future__ import annotations

import argparse

import tlhelpers as tl
from tlhelpers import meta_study


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=len(meta_study.SEEDS), help="how many")
    seeds = tuple(range(parser.parse_args().seeds))
    record = meta_study.compare(tl.setup(device="cpu"), seeds=seeds)
    tl.records.save(record)
    print(record)
    print(record.to_frame().round(3).to_string())


if __name__ == "__main__":
    main()
