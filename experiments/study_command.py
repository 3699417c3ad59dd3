"""What the scripts share that make records without data of the reader's: an option, and saving.

Not a script itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import tlhelpers as tl
from tlhelpers.records import Record
from tlhelpers.runtime import Run


def save_studies(doc: str | None, studies: Mapping[str, Callable[[Run], Record]]) -> None:
    """Make and save each record, or the one that ``--only`` names; ``doc`` is the script's."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--only", choices=tuple(studies), help="one of the records")
    only = parser.parse_args().only
    run = tl.setup(device="cpu")
    for name, make in studies.items():
        if only in (None, name):
            record = make(run)
            tl.records.save(record)
            print(record, flush=True)
