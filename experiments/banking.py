"""Make the records of chapter 10: word counts, and the encoder fine-tuned.

    python experiments/banking.py --data PATH

PATH is as in ``banking_bank.py``, which makes the bank that this script starts from. ``--only``
makes one record (``tfidf``, ``rates``, or ``finetuned_10`` and so on); ``rates`` comes before the
last. About ten minutes of one CPU core.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import tlhelpers as tl
from tlhelpers import banking
from tlhelpers.records import Record


def main() -> None:
    studies: dict[str, Callable[..., Record]] = {"tfidf": banking.tfidf, "rates": banking.search}
    for k in banking.SHOTS:
        studies[f"finetuned_{k}"] = functools.partial(banking.finetuned, shots=k)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the questions")
    parser.add_argument("--download", action="store_true", help="fetch the encoder from the hub")
    parser.add_argument("--only", choices=tuple(studies), help="by default all")
    arguments = parser.parse_args()
    run = tl.setup(device="cpu")
    inner = arguments.data / "banking77"
    data = tl.datasets.banking77(inner if inner.is_dir() else arguments.data)
    for name, make in studies.items():
        if arguments.only not in (None, name):
            continue
        options = {}
        if name != "tfidf":
            options["encoder"] = tl.text.encoder(download=arguments.download)
        record = make(run, data=data, **options)
        tl.records.save(record)
        print(record, flush=True)


if __name__ == "__main__":
    main()
