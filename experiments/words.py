"""Write the records of chapter 15: images and words.

    python experiments/words.py

trains three models on made-up pictures and captions for each of five seeds, in about three minutes
on one CPU core, and saves ``words/combinations``, ``words/prompts``, ``words/few`` and
``words/inside``. Models are kept in the cache folder: a run that was stopped goes on where it was.
Run it from a clean checkout.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from tlhelpers import records, words_study
from tlhelpers.records import Record

STUDIES: tuple[Callable[..., Record], ...] = (
    words_study.combinations,
    words_study.prompts,
    words_study.few_labels,
    words_study.inside,
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    for study in STUDIES:
        record = study()
        print(records.save(record).name, record, sep="\n", flush=True)


if __name__ == "__main__":
    main()
