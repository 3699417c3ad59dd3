"""Make the record of chapter 19: federated averaging, from letters and from scratch.

    python experiments/federated.py

About two minutes on one CPU core.
"""

from __future__ import annotations

import tlhelpers as tl
from tlhelpers import federated


def main() -> None:
    record = federated.compare(tl.setup(device="cpu"))
    tl.records.save(record)
    print(record)


if __name__ == "__main__":
    main()
