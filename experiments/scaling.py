"""Make the records of chapter 17 that need no photographs.

    python experiments/scaling.py

Makes ``scaling/lora`` and ``scaling/speed``. ``--only lora`` or ``--only speed`` makes one of them.
Each takes two minutes of one CPU core; the second needs a C++ compiler.
``experiments/extract_ray.py`` makes the third record.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import tlhelpers as tl
from tlhelpers import scaling
from tlhelpers.records import Record
from tlhelpers.runtime import Run

RECORDS: dict[str, Callable[[Run], Record]] = {"lora": scaling.lora_study, "speed": scaling.speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=tuple(RECORDS), help="by default all")
    only = parser.parse_args().only
    run = tl.setup(device="cpu")
    for name, make in RECORDS.items():
        if only in (None, name):
            record = make(run)
            tl.records.save(record)
            print(record, flush=True)


if __name__ == "__main__":
    main()
