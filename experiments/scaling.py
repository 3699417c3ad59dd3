"""Make the records of chapter 17 that need no photographs.

    python experiments/scaling.py

Makes ``scaling/lora`` and ``scaling/speed``. ``--only lora`` or ``--only speed`` makes one of them.
Each takes two minutes of one CPU core; the second needs a C++ compiler.
``experiments/extract_ray.py`` makes the third record.
"""

from __future__ import annotations

from collections.abc import Callable

import study_command

from tlhelpers import scaling
from tlhelpers.records import Record
from tlhelpers.runtime import Run

RECORDS: dict[str, Callable[[Run], Record]] = {"lora": scaling.lora_study, "speed": scaling.speed}


if __name__ == "__main__":
    study_command.save_studies(__doc__, RECORDS)
