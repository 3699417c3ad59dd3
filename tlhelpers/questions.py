"""Banking77: what customers ask their bank, as texts with an intent each."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from tlhelpers import runtime
from tlhelpers.download import fetch
from tlhelpers.splits import Dataset

VALIDATION = 10  # questions an intent that are held out of the training file
SPLIT = f"official test, {VALIDATION} an intent of train held out by sha256"
URL = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data/"
FILES = {
    "train.csv": (839_073, "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b"),
    "test.csv": (239_961, "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d"),
}
"""Bytes and sha256 of the two official files."""

Row = tuple[str, str]  # a text and the name of its class


class Texts:
    """A sequence of texts: the ``x`` of a data set of texts.

    It knows no tensor. :func:`tlhelpers.text.tokenise` makes a data set of token ids of it, which
    networks take, and :func:`tlhelpers.text.extract` a bank of features.

    >>> Texts(["My card is gone.", "How do I top up?"]).take([1])[0]
    'How do I top up?'
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = tuple(texts)
        if wrong := [t for t in self._texts if not isinstance(t, str)]:
            raise TypeError(f"texts are strings, found {type(wrong[0]).__name__}.")

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, i: int) -> str:
        return self._texts[i]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __repr__(self) -> str:
        return f"{len(self):,} texts"

    def take(self, indices: Sequence[int]) -> Texts:
        """The texts at ``indices``, in that order."""
        return Texts(self._texts[i] for i in indices)


def banking77(path: Path | str | None = None, *, download: bool = False) -> Dataset:
    """Banking77: 13,083 questions of bank customers, in English, with one of 77 intents each.

    The official test file is the test split. Of the training file, the 10 questions of each intent
    whose text has the lowest sha256 are for validation; the others stay in the file's order, so
    that ``few(k)`` is its first k. Intents are named as in the files, with spaces and in lower
    case, and stand in alphabetical order.

    Args:
        path: a folder with ``train.csv`` and ``test.csv``. By default they are looked for in the
            folder that ``TLHELPERS_DATA`` names, in its subfolder ``banking77``, and where
            ``download=True`` puts them.
        download: where no path is given and the files are not found, fetch them (1.1 MB) into
            the cache folder.

    Returns:
        a data set whose ``x`` is :class:`Texts` and whose ids name file and row, ``"test 0007"``.

    Raises:
        FileNotFoundError: if the files are not there.
        ValueError: if a file is not a table of texts and categories, or the two have not the
            same intents.

    Source: Casanueva et al. (2020), Efficient Intent Detection with Dual Sentence Encoders. The
    data are under CC BY 4.0.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import pandas as pd
        >>> import tlhelpers as tl
        >>> asked = [
        ...     (f"Question {i}?", intent) for intent in ("card_lost", "top_up") for i in range(12)
        ... ]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("train.csv", "test.csv"):
        ...         table = pd.DataFrame(asked, columns=["text", "category"])
        ...         table.to_csv(Path(folder) / name, index=False)
        ...     data = tl.questions.banking77(folder)
        >>> data.classes, len(data.train), len(data.validation), len(data.test)
        (('card lost', 'top up'), 4, 20, 24)
    """
    folder = _locate(path, download=download)
    rows = {name: _read(folder / name) for name in FILES}
    intents = [{intent for _, intent in found} for found in rows.values()]
    if intents[0] != intents[1]:
        odd = sorted(intents[0] ^ intents[1])
        raise ValueError(
            f"train.csv and test.csv in {folder} should have the same intents, but {odd[0]!r} is "
            f"in one of them only. Fetch both again."
        )
    classes = sorted(intents[0])
    number = {intent: label for label, intent in enumerate(classes)}
    held = _held_out(rows["train.csv"])
    both = [*rows["train.csv"], *rows["test.csv"]]
    parts = ["validation" if i in held else "train" for i in range(len(rows["train.csv"]))]
    names = [f"{name[:-4]} {i:04d}" for name, found in rows.items() for i in range(len(found))]
    return Dataset(
        name="banking77",
        classes=tuple(classes),
        x=Texts(text for text, _ in both),
        labels=torch.tensor([number[intent] for _, intent in both]),
        split=np.array(parts + ["test"] * len(rows["test.csv"])),
        ids=tuple(names),
        split_name=SPLIT,
    )


def _held_out(rows: Sequence[Row]) -> set[int]:
    """The numbers of the validation rows: of each class those with the lowest hashes."""
    members: dict[str, list[int]] = {}
    for i, (_, intent) in enumerate(rows):
        members.setdefault(intent, []).append(i)

    def text_hash(i: int) -> str:
        return hashlib.sha256(rows[i][0].encode()).hexdigest()

    return {i for rows_of in members.values() for i in sorted(rows_of, key=text_hash)[:VALIDATION]}


def _read(file: Path) -> list[Row]:
    """The texts and intents of one of the two files."""
    with file.open(newline="", encoding="utf-8") as lines:
        table = csv.DictReader(lines)
        if table.fieldnames != ["text", "category"]:
            raise ValueError(
                f"{file.name} should be a table with the columns text and category, found "
                f"{table.fieldnames}. Fetch it again."
            )
        rows = [(row["text"], row["category"]) for row in table]
    if damaged := [i for i, (text, intent) in enumerate(rows) if not text or not intent]:
        raise ValueError(
            f"row {damaged[0]} of {file.name} has no text or no category: the file is damaged. "
            f"Fetch it again."
        )
    if not rows:
        raise ValueError(f"{file.name} holds no question. Fetch it again.")
    return [(text, _readable(intent)) for text, intent in rows]


def _readable(intent: str) -> str:
    """``reverted_card_payment?`` → ``reverted card payment``."""
    return intent.replace("_", " ").rstrip("?").lower()


def _locate(path: Path | str | None, *, download: bool) -> Path:
    """The folder with both files."""
    if path is not None:
        path = Path(path).expanduser()
        if _has_both(path):
            return path
        raise FileNotFoundError(
            f"path should be a folder with {' and '.join(FILES)} of Banking77; {path} is none."
        )
    data, cache = runtime.data_folder(), runtime.cache_folder() / "banking77"
    for folder in [data, data / "banking77", cache] if data else [cache]:
        if _has_both(folder):
            return folder
    if download:
        for name, (size, sha256) in FILES.items():
            fetch(URL + name, path=cache / name, size=size, sha256=sha256)
        return cache
    looked = f"in {data}, its subfolder banking77, and {cache}" if data else f"in {cache}"
    unset = "" if data else f" ({runtime.DATA_VARIABLE} is not set)"
    raise FileNotFoundError(
        f"no questions of Banking77 found: looked for {' and '.join(FILES)} {looked}{unset}. Pass "
        f"path= if you have them; or put them into the folder that {runtime.DATA_VARIABLE} names; "
        f"or pass download=True to fetch 1.1 MB from GitHub. The bank of features that the package "
        f"ships needs none of this."
    )


def _has_both(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)
