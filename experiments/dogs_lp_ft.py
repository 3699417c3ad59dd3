"""Make the records of fine-tuning on Stanford Dogs: LP-FT and a new head, L2 and L2-SP.

    python experiments/dogs_lp_ft.py --data PATH

PATH is the folder of experiments/dogs_bank.py; where it has no weights of a network, torchvision's
are downloaded. By default at 128 px, one seed: a probe of each network; LP-FT with mobilenet_v2,
its batch normalisation frozen or learning; LP-FT and a new head, each with L2 and L2-SP, with
squeezenet1_1. One of mobilenet_v2 took 22 minutes of one core of a server's processor, and one of
squeezenet1_1 five to six. An interrupted run continues.
"""

from __future__ import annotations

from collections.abc import Sequence

import dogs_command as shared

from tlhelpers import dogs

JOBS = [
    *(shared.Job(dogs.PROBE, name, 128) for name in ("mobilenet_v2", "squeezenet1_1")),
    *(shared.Job(way, "mobilenet_v2", 128) for way in (dogs.LP_FT_NORMS, dogs.LP_FT)),
    *(
        shared.Job(way, "squeezenet1_1", 128)
        for way in (dogs.LP_FT, dogs.FULL, dogs.LP_FT_SP, dogs.FULL_SP)
    ),
]


def main(arguments: Sequence[str] | None = None) -> None:
    shared.train_all(__file__, JOBS, shared.parser(__doc__, JOBS).parse_args(arguments))


if __name__ == "__main__":
    main()
