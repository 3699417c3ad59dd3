"""Make the records of fine-tuning on Stanford Dogs: LP-FT and a new head, L2 and L2-SP.

    python experiments/dogs_lp_ft.py --data PATH

PATH is the folder of experiments/dogs_bank.py; where it has no weights of a network, torchvision's
are downloaded. By default at 128 px, one seed: LP-FT with mobilenet_v2, its batch normalisation
learning or frozen, and LP-FT and a new head, each with L2 and L2-SP, with squeezenet1_1. Planned
for two CPU cores, not yet run: 9 minutes each at 140 images a second, and 2 minutes each at 600. An
interrupted run continues.
"""

from __future__ import annotations

from collections.abc import Sequence

import dogs_command as shared

from tlhelpers import dogs

JOBS = [
    *(shared.Job(way, "mobilenet_v2", 128) for way in (dogs.LP_FT, dogs.LP_FT_NORMS)),
    *(
        shared.Job(way, "squeezenet1_1", 128)
        for way in (dogs.LP_FT, dogs.LP_FT_SP, dogs.FULL, dogs.FULL_SP)
    ),
]


def main(arguments: Sequence[str] | None = None) -> None:
    shared.train_all(__file__, JOBS, shared.parser(__doc__, JOBS).parse_args(arguments))


if __name__ == "__main__":
    main()
