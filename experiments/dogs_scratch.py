"""Make the records of training from scratch on Stanford Dogs, at full length and at a quarter.

    python experiments/dogs_scratch.py --data PATH

PATH is the folder of experiments/dogs_bank.py. By default resnet18 at 112 px, one seed, 60 epochs
and 15. In bfloat16 they took 194 and 43 minutes of one core of a server's processor, and half as
long on two quiet ones. Sixty epochs are not the end: the two records say what four times the
length brings, and --epochs 240 what four times more would bring. An interrupted run continues.
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
