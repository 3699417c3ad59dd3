"""Make the record of chapter 02: letters and digits learnt together, or one after the other.

    python experiments/multitask.py

About five minutes on two CPU cores.
"""

from __future__ import annotations

import tlhelpers as tl
from tlhelpers import multitask


def main() -> None:
    record = multitask.compare(tl.setup(device="cpu"))
    tl.records.save(record)
    print(record)
    print(record.to_frame().round(3).to_string())


if __name__ == "__main__":
    main()
