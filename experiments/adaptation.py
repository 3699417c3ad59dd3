"""Make the records of chapter 13: from printed to handwritten digits, without target labels.

    python experiments/adaptation.py

About six minutes of one CPU core: two for the comparison, three and a half for the larger network.
"""

from __future__ import annotations

import argparse

import tlhelpers as tl
from tlhelpers import adapt_study

STUDIES = {
    "compare": adapt_study.compare,
    "larger": adapt_study.larger,
    "skew": adapt_study.skew,
    "few_labels": adapt_study.few_labels,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=STUDIES, help="one of the records")
    only = parser.parse_args().only
    run = tl.setup(device="cpu")
    for name, study in STUDIES.items():
        if only in (None, name):
            record = study(run)
            tl.records.save(record)
            print(record)


if __name__ == "__main__":
    main()
