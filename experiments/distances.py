"""Make the record of chapter 18: how far each source of the glyph world is from each target.

    python experiments/distances.py

Measured: a minute and a half on one busy CPU core.
"""

from __future__ import annotations

import tlhelpers as tl
from tlhelpers import distances


def main() -> None:
    record = distances.measure(tl.setup(device="cpu"))
    tl.records.save(record)
    print(record)
    frame = record.to_frame()
    print(frame.drop(columns=["gap", "words"]).round(3).to_string())


if __name__ == "__main__":
    main()
