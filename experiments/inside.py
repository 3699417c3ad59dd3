"""What fine-tuning changes and what maps find of a shortcut: the records of chapter 16.

    python experiments/inside.py

Writes ``inside/finetuned`` and ``inside/shortcuts``; ``--only`` and the second part of a name makes
one of them. About two and a half minutes of one CPU core.
"""

from __future__ import annotations

import argparse

import tlhelpers as tl
from tlhelpers import inside_study

STUDIES = {f.__name__: f for f in (inside_study.finetuned, inside_study.shortcuts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=tuple(STUDIES), help="by default both")
    only = parser.parse_args().only
    run = tl.setup(device="cpu")
    for name, make in STUDIES.items():
        if only in (None, name):
            record = make(run)
            tl.records.save(record)
            print(record, flush=True)


if __name__ == "__main__":
    main()
