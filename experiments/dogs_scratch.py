"""Make the records of training from scratch on Stanford Dogs, at full length and at a quarter.

    python experiments/dogs_scratch.py --data PATH

PATH is the folder of experiments/dogs_bank.py. By default resnet18 at 112 px, one seed, 60 epochs
and 15. On two quiet cores of a server, in bfloat16, a step of 128 images took a second, which makes
85 minutes and 21. Sixty epochs are not the end: the two records say what four times the length
brings, and --epochs 240 what four times more would bring. An interrupted run continues.
"""

from __future__ import annotations

from collections.abc import Sequence

import dogs_command as shared

from tlhelpers import dogs

JOBS = [
    shared.Job(dogs.SCRATCH, "resnet18", 112),
    shared.Job(dogs.SCRATCH, "resnet18", 112, epochs=15),
]


def main(arguments: Sequence[str] | None = None) -> None:
    shared.train_all(__file__, JOBS, shared.parser(__doc__, JOBS).parse_args(arguments))


if __name__ == "__main__":
    main()
