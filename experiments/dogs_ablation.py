"""Make the records of LP-FT on Stanford Dogs with one decision changed at a time.

    python experiments/dogs_ablation.py --data PATH

PATH is the folder of experiments/dogs_bank.py; where it has no weights of a network, torchvision's
are downloaded. By default squeezenet1_1 at 128 px, 4 epochs, one seed: 63 minutes on one core of a
server's processor, nearly half of it at 224 px. It has no batch normalisation; what freezing that
does is in the records of dogs_lp_ft.py. --only takes some of the decisions, by name, and makes a
record of these alone. An interrupted run continues.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import dogs_command as shared

from tlhelpers import dogs

JOBS = [shared.Job(dogs.LP_FT, "squeezenet1_1", 128, epochs=4)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = shared.parser(__doc__, JOBS)
    parser.add_argument("--only", nargs="+", metavar="DECISION", help="such as '160 px'")
    options = parser.parse_args(arguments)
    data, run = shared.start(options)
    for job in shared.chosen(JOBS, options):
        base = job.changed_way()
        if not shared.is_wanted(dogs.ablation_name(base, job.architecture), run):
            continue
        words = [f"--only {shlex.join(options.only)}"] if options.only else []
        record = dogs.ablation_study(
            data,
            job.architecture,
            base=base,
            only=options.only,
            weights=dogs.find_weights(options.data, job.architecture),
            seeds=range(options.seeds),
            run=run,
            command=shared.command(__file__, options, job, *words),
        )
        shared.keep(record)


if __name__ == "__main__":
    main()
