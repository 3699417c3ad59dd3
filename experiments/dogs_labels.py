"""Make the records of few labels on Stanford Dogs: a probe, LP-FT, and training from scratch.

    python experiments/dogs_labels.py --data PATH

PATH is the folder of experiments/dogs_bank.py; where it has no weights of a network, torchvision's
are downloaded. By default 5, 20 and 90 labels a breed in one draw: the probe and LP-FT (batch
normalisation frozen) with mobilenet_v2 at 128 px, from scratch resnet18 at 112 px. LP-FT took five
minutes of one core of a server's processor with 5 labels and with 20, from scratch 33 and 46. The
runs with 90 labels of dogs_lp_ft.py and dogs_scratch.py are used again: where they were made at
another commit, the record says that it is not from one clean checkout. An interrupted run
continues.
"""

from __future__ import annotations

from collections.abc import Sequence

import dogs_command as shared

from tlhelpers import dogs

JOBS = [
    shared.Job(dogs.PROBE, "mobilenet_v2", 128),
    shared.Job(dogs.LP_FT_NORMS, "mobilenet_v2", 128),
    shared.Job(dogs.SCRATCH, "resnet18", 112),
]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = shared.parser(__doc__, JOBS)
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[5, 20, 90], metavar="K", help="a breed"
    )
    options = parser.parse_args(arguments)
    data, run = shared.start(options)
    together: dict[tuple[str, int], list[shared.Job]] = {}
    for job in shared.chosen(JOBS, options):
        together.setdefault((job.architecture, job.size), []).append(job)
    for (architecture, size), jobs in together.items():
        if not shared.is_wanted(f"dogs/labels_{architecture}_{size}", run):
            continue
        words = f"--labels {' '.join(map(str, options.labels))}"
        ways = f"--way {' '.join(job.way.name for job in jobs)}"
        record = dogs.label_study(
            data,
            architecture,
            compared=[job.changed_way() for job in jobs],
            weights=dogs.find_weights(options.data, architecture),
            grid=options.labels,
            draws=range(options.seeds),
            run=run,
            command=shared.command(__file__, options, jobs[0], words, ways),
        )
        shared.keep(record)


if __name__ == "__main__":
    main()
