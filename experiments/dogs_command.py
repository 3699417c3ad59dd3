"""What the scripts that train on Stanford Dogs share: options, data, and saving the records.

Not a script itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tlhelpers as tl
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.ways import Way


@dataclass(frozen=True)
class Job:
    """A network to train in a way, on images of a size; ``epochs`` where not the way's own."""

    way: Way
    architecture: str
    size: int
    epochs: int | None = None

    def changed_way(self) -> Way:
        """The way at this size and length."""
        return self.way.at(size=self.size, epochs=self.epochs if self.way.recipe else None)


def parser(doc: str | None, jobs: Sequence[Job]) -> argparse.ArgumentParser:
    """The options that all of these scripts have."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ways = list(dict.fromkeys(job.way.name for job in jobs))
    made.add_argument("--data", type=Path, required=True, help="folder with dogs and weights")
    made.add_argument("--way", nargs="+", choices=ways, default=ways, help="default: all of them")
    made.add_argument("--architecture", nargs="+", help="torchvision's names; default: see above")
    made.add_argument("--size", type=int, help="side of the images in pixels; default: see above")
    made.add_argument("--epochs", type=int, help="another length than that above")
    made.add_argument("--seeds", type=int, default=1, metavar="N", help="runs, of seeds 0 to N - 1")
    return made


def chosen(jobs: Sequence[Job], options: argparse.Namespace) -> list[Job]:
    """The default jobs, or what the options make of them.

    With ``--architecture``, each way at each of its lengths is taken for each of the names.
    """
    found: dict[Job, None] = {}
    for job in jobs:
        if job.way.name not in options.way:
            continue
        for architecture in options.architecture or [job.architecture]:
            if job.way.frozen == "norms" and not tl.ways.has_norms(architecture):
                print(f"{architecture} has no norms to freeze: {job.way.name} is left out.")
                continue
            size, epochs = options.size or job.size, options.epochs or job.epochs
            found[Job(job.way, architecture, size, epochs)] = None
    return list(found)


def start(options: argparse.Namespace) -> tuple[Dataset, Run]:
    """The photographs, decoded and cached, and the best device."""
    run = tl.setup()
    dogs = tl.pixels.pixel_cache(tl.datasets.stanford_dogs(options.data))
    print(dogs)
    print(f"checkpoints: {tl.dogs.checkpoints(dogs)}")
    return dogs, run


def command(script: str, options: argparse.Namespace, job: Job, *more: str) -> str:
    """What makes one record alone."""
    words = ["python", f"experiments/{Path(script).name}", "--data PATH", *more]
    words += [f"--architecture {job.architecture}", f"--size {job.size}"]
    words += [f"--epochs {job.epochs}"] if job.epochs else []
    return " ".join([*words, f"--seeds {options.seeds}"])


def is_wanted(name: str, run: Run) -> bool:
    """False, with a sentence, where a CPU would replace the record of a GPU.

    The other way round is fine: the tiers share a name only where they do the same, and the GPU
    does it with more seeds.
    """
    on_cpu = run.device.type == "cpu"
    if on_cpu and name in tl.records.names() and tl.records.load(name).tier == "gpu":
        print(f"{name} is left out: there is one from a GPU.", file=sys.stderr)
        return False
    return True


def keep(record: Record) -> None:
    """Save a record and print it."""
    tl.records.save(record)
    print(record)


def train_all(script: str, jobs: Sequence[Job], options: argparse.Namespace) -> None:
    """A record for each job."""
    dogs, run = start(options)
    for job in chosen(jobs, options):
        way = job.changed_way()
        if not is_wanted(tl.dogs.record_name(way, job.architecture), run):
            continue
        # One way at one length a command; the default lengths of a script are several.
        length = way.recipe.epochs if way.recipe else None
        alone = dataclasses.replace(job, epochs=length)
        record = tl.dogs.study(
            way,
            dogs,
            job.architecture,
            weights=tl.dogs.find_weights(options.data, job.architecture),
            seeds=range(options.seeds),
            run=run,
            command=command(script, options, alone, f"--way {way.name}"),
        )
        keep(record)
