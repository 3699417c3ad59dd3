"""Make the record of chapter 11: five ways to train a network for alphabets never seen.

    python experiments/unseen.py

Planned: about four minutes on two quiet CPU cores; on a busy machine it took fourteen.
"""

from __future__ import annotations

import tlhelpers as tl
from tlhelpers import unseen


def main() -> None:
    record = unseen.compare(tl.setup(device="cpu"))
    tl.records.save(record)
    print(record)
    print(record.to_frame().drop(columns="top1").round(3).to_string())


if __name__ == "__main__":
    main()
