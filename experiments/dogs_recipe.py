"""Make the records of the quoted recipe on Stanford Dogs, and of a probe on the same features.

    python experiments/dogs_recipe.py --data PATH

PATH is the folder of experiments/dogs_bank.py; where it has no weights of a network, torchvision's
are downloaded. By default mobilenet_v2 and squeezenet1_1 at 224 px, one seed. Only forward passes
go through the body: on two CPU cores that compute in bfloat16 an epoch took about 55 and 34
seconds, with its validation. There are 20 epochs at most. An interrupted run continues.
"""

from __future__ import annotations

from collections.abc import Sequence

import dogs_command as shared

from tlhelpers import dogs

JOBS = [
    shared.Job(way, architecture, 224)
    for architecture in ("mobilenet_v2", "squeezenet1_1")
    for way in (dogs.PROBE, dogs.RECIPE)
]


def main(arguments: Sequence[str] | None = None) -> None:
    shared.train_all(__file__, JOBS, shared.parser(__doc__, JOBS).parse_args(arguments))


if __name__ == "__main__":
    main()
