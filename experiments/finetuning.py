"""Make the records of chapter 05: what each decision in fine-tuning is worth.

    python experiments/finetuning.py

About eight minutes on two CPU cores. Needs no data, but Optuna: ``pip install "tlhelpers[tune]"``.
"""

from __future__ import annotations

import argparse

import tlhelpers as tl
from tlhelpers import ablation

STUDIES = {
    "ablation": ablation.study,
    "unfreeze": ablation.depth_study,
    "tuning": ablation.tuning_study,
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
