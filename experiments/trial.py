"""Make the record of chapter 18: two tasks on which its advice is put to the test.

    python experiments/trial.py

Measured: three minutes on one busy CPU core, which gave it about one of its own.
"""

from __future__ import annotations

import tlhelpers as tl
from tlhelpers import trial


def main() -> None:
    record = trial.run_trial(tl.setup(device="cpu"))
    tl.records.save(record)
    print(record)
    print(record.to_frame().groupby(["task", "way"])["top1"].agg(["mean", "std"]).round(3))


if __name__ == "__main__":
    main()
