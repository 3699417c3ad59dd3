"""Records of runs that are too long for a build, and claims that a chapter asserts.

A **record** is a JSON file with a curve, a result, its spread, and where it came from. A
script in ``experiments/`` writes it; a chapter shows it with :func:`get`, which runs the
experiment live instead where the reader sets the profile ``"full"``.

A **claim** is a sentence of the book that a measurement has to bear out: :func:`claim` stops
the chapter if it does not, and displays itself if it does. :func:`claims_in` collects the
claims from an executed notebook.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import html
import inspect
import json
import math
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import tlhelpers
from tlhelpers import runtime
from tlhelpers.evaluate import Estimate

FOLDER = Path(__file__).parent / "data" / "records"
TIERS = ("cpu", "gpu")
CLAIM_KEY = "tlhelpers.claim"

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*)*")
_CLAIM_ID = re.compile(r"\d\d\.[a-z0-9]+([_-][a-z0-9]+)*")
_DISTRIBUTIONS = ("torch", "torchvision", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True, kw_only=True, repr=False)
class Record:
    """What a long run gave, and everything needed to judge it and to run it again.

    Numbers are kept as plain Python numbers; NumPy's and torch's scalars are converted.

    Attributes:
        name: ``"dogs/untrained_head"``: lower-case words, a folder if you like.
        tier: ``"cpu"`` or ``"gpu"``: what the run needs to end in reasonable time.
        split: the name of the split, see ``Dataset.split_name``.
        input: which variant of the input: crop, size, feature layer, dtype.
        seeds: the seeds of the repetitions; empty where nothing in the run is random.
        curve: rows, each a dict with the same keys; empty where there is no curve.
        result: the figures that the chapter quotes, by name, each with its unit in the name
            unless it is a proportion in 0..1.
        interval: ``[low, high]`` for some or all of the names in ``result``.
        interval_over: what the intervals are over, such as "95 %, bootstrap over test images"
            or "95 %, t, over 5 seeds"; empty where there is no interval.
        command: the shell command that makes the record again; the reader's folder of data is
            written ``--data PATH``.
        commit: the git commit of the code; None where it ran outside a checkout.
        clean: whether that checkout had no uncommitted changes; None outside one.
        source_hash: sha256 of the source file(s) of the functions that made it.
        hardware: ``{"cpu": ..., "cores": ..., "gpu": ...}``.
        versions: version of Python and of each package that the numbers depend on.
        date: when the run began, ISO 8601 in UTC.
        wall_seconds: how long it took; features that lay in the cache folder already were read
            and not extracted again.

    Raises:
        TypeError, ValueError: naming the field that is not as described.

    Example:
        >>> import tlhelpers as tl
        >>> record = tl.records.get("glyphs/letters")
        >>> record.tier, record.seeds, record.command
        ('cpu', (0,), 'python experiments/glyphnet.py')
        >>> record.to_frame().columns[:4].tolist()
        ['epoch', 'step', 'train_loss', 'train_top1']
    """

    name: str
    tier: str
    split: str
    input: str
    seeds: tuple[int, ...]
    curve: tuple[dict[str, Any], ...]
    result: dict[str, Any]
    interval: dict[str, list[float]]
    interval_over: str
    command: str
    commit: str | None
    clean: bool | None
    source_hash: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    date: str
    wall_seconds: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name), field.name))
        # JSON knows lists only; the two sequences are tuples on either side of a file.
        for field_name in ("seeds", "curve"):
            value = getattr(self, field_name)
            _require(field_name, isinstance(value, list), "a sequence", value)
            object.__setattr__(self, field_name, tuple(value))
        _check_provenance(self)
        _check_numbers(self)

    def __repr__(self) -> str:
        where = self.hardware.get("gpu") if self.tier == "gpu" else None
        parts = [
            f"Record {self.name!r} ({self.tier})",
            ", ".join(f"{key} {self._show(key)}" for key in self.result),
            f"run on {self.date[:10]}",
            str(where or self.hardware.get("cpu", "unknown hardware")),
            f"{self.wall_seconds:,.0f} s",
        ]
        return " · ".join(parts)

    def _repr_html_(self) -> str:
        # A paragraph breaks its lines where the page ends; plain output is cut off there.
        return f'<p class="tl-record">{html.escape(repr(self))}</p>'

    def _show(self, key: str) -> str:
        value = self.result[key]
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        if key in self.interval:
            low, high = self.interval[key]
            text += f" [{low:.4g}, {high:.4g}]"
        return text

    def estimate(self, key: str, *, unit: str = "%") -> Estimate:
        """One of the figures in ``result`` with its interval.

        Args:
            key: its name.
            unit: that of :class:`~tlhelpers.evaluate.Estimate`, in which it is printed.

        Raises:
            KeyError: if there is no such figure, or it has no interval.
        """
        if key not in self.interval:
            raise KeyError(
                f"the record {self.name!r} has no figure {key!r} with an interval; "
                f"it has {', '.join(self.interval) or 'none'}."
            )
        low, high = self.interval[key]
        return Estimate(self.result[key], low, high, unit=unit)

    def to_frame(self) -> pd.DataFrame:
        """The curve, one row a point."""
        return pd.DataFrame(list(self.curve))


def get(
    name: str,
    *,
    live: Callable[[runtime.Run], Record] | None = None,
    run: runtime.Run | None = None,
) -> Record:
    """The shipped record, or a live run where the reader asked for the profile ``"full"``.

    Args:
        name: one of :func:`names`.
        live: the function that makes this record; called as ``live(run)``.
        run: None means the profile ``"quick"``.

    Raises:
        FileNotFoundError: if the package ships no record of that name.
        ValueError: if its file is malformed, or ``live`` made a record of another name.
        TypeError: if ``live`` did not return a record.

    Example:
        >>> import tlhelpers as tl
        >>> frame = tl.records.get("glyphs/labels").to_frame()
        >>> frame = frame[(frame.task == "digits") & (frame.k == 1)]
        >>> frame.groupby("way").clean.mean().round(1)
        way
        fine-tuned                  0.8
        frozen                      0.8
        pixels                      0.6
        scratch                     0.5
        scratch, no augmentation    0.5
        Name: clean, dtype: float64
    """
    if live is None or run is None or run.profile != "full":
        return load(name)
    record = live(run)
    if not isinstance(record, Record):
        raise TypeError(
            f"live should return a Record named {name!r}, but it returned "
            f"{type(record).__name__}. End it with `return records.Record(...)`."
        )
    if record.name != name:
        raise ValueError(
            f"live should make the record {name!r}, but the one it made is named "
            f"{record.name!r}. Ask for that name, or pass the function that makes {name!r}."
        )
    return record


def load(name: str, folder: Path | None = None) -> Record:
    """Read a record from its file, by default one that the package ships.

    Raises:
        FileNotFoundError: if there is none of that name; near names are listed.
        ValueError: if the file is not JSON, or its fields are not those of a record.

    Example:
        >>> import tlhelpers as tl
        >>> tl.records.load("zoo/fine_tuned")  # doctest: +NORMALIZE_WHITESPACE
        Traceback (most recent call last):
            ...
        FileNotFoundError: There is no record 'zoo/fine_tuned'. Near it: zoo/finetuned,
        inside/finetuned, negative/finetuned. The scripts in experiments/ write them.
    """
    folder = FOLDER if folder is None else folder
    path = _path(name, folder)
    if not path.is_file():
        known = names(folder)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise FileNotFoundError(
            f"There is no record {name!r}. "
            + (f"Near it: {', '.join(near)}." if near else "There are no records at all yet.")
            + " The scripts in experiments/ write them."
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"The record {name!r} should be JSON, but it is damaged: {error}. Run its script "
            f"in experiments/ again, or restore the file."
        ) from error
    record = _from_fields(fields, name)
    if record.name != name:
        raise ValueError(
            f"The file of the record {name!r} holds one named {record.name!r}. Rename one of them."
        )
    return record


def names(folder: Path | None = None) -> list[str]:
    """The names of the records, sorted; by default of those that the package ships.

    Example:
        >>> import tlhelpers as tl
        >>> [name for name in tl.records.names() if name.startswith("zoo/")]
        ['zoo/finetuned', 'zoo/pretrained']
    """
    folder = FOLDER if folder is None else folder
    paths = folder.rglob("*.json")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in paths)


def save(record: Record, folder: Path | None = None) -> Path:
    """Write a record to ``folder/<name>.json`` (by default the package's own) and return the path.

    The file appears whole or not at all.

    Raises:
        TypeError: if it is no record.
        ValueError: if its name is not made of lower-case words.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import tlhelpers as tl
        >>> record = tl.records.get("glyphs/letters")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = tl.records.save(record, Path(folder))
        ...     path.relative_to(folder).as_posix()
        ...     tl.records.load("glyphs/letters", Path(folder)) == record
        'glyphs/letters.json'
        True
    """
    if not isinstance(record, Record):
        raise TypeError(f"save takes a Record, found {type(record).__name__}.")
    path = _path(record.name, FOLDER if folder is None else folder)
    text = json.dumps(dataclasses.asdict(record), indent=1, ensure_ascii=False, allow_nan=False)
    runtime.write_whole(path, f"{text}\n".encode())
    return path


def provenance(*functions: Callable[..., Any], command: str) -> dict[str, Any]:
    """The fields of a record that say where it comes from; call it before the run starts.

    Args:
        functions: what makes the record; ``source_hash`` is the sha256 of the files that define
            them, one after the other (of the functions' own text where they are defined in a
            notebook).
        command: the command that runs it again, with ``--data PATH`` for the reader's folder.

    Returns:
        ``command``, ``commit``, ``clean``, ``source_hash``, ``hardware``, ``versions``, ``date``.
        Banks and records themselves do not count against ``clean``: a run that writes several would
        otherwise soil the tree for its later ones.

    Raises:
        ValueError: if no function is given, or the source of one cannot be read.

    Example:
        >>> import tlhelpers as tl
        >>> origin = tl.records.provenance(
        ...     tl.evaluate.mean_interval, command="python mine.py --data PATH"
        ... )
        >>> list(origin)
        ['command', 'commit', 'clean', 'source_hash', 'hardware', 'versions', 'date']
        >>> origin["command"], len(origin["source_hash"])
        ('python mine.py --data PATH', 64)
    """
    if not functions:
        raise ValueError("provenance needs the function that makes the record, found none.")
    commit, clean = _git_state()
    return {
        "command": command,
        "commit": commit,
        "clean": clean,
        "source_hash": _source_hash(functions),
        "hardware": _hardware(),
        "versions": _versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def of_draws(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    estimates: Mapping[str, Estimate],
    *,
    split: str,
    input: str,
    seeds: Sequence[int],
    run: runtime.Run,
    origin: Mapping[str, Any],
    start: float,
) -> Record:
    """The record of a study that was repeated over draws of the labels and ends now.

    Args:
        name, split, input: as in :class:`Record`.
        rows: the curve, a row for each draw or several.
        estimates: figures with Student's intervals over the draws.
        seeds: one for each draw.
        run: on whose device it ran.
        origin: what :func:`provenance` said before the run.
        start: ``time.perf_counter()`` at that moment.

    Example:
        >>> import time
        >>> import tlhelpers as tl
        >>> run, start = tl.runtime.Run(), time.perf_counter()
        >>> origin = tl.records.provenance(tl.evaluate.mean_interval, command="python mine.py")
        >>> rows = [{"draw": draw, "top1": top1} for draw, top1 in enumerate([0.8, 0.82, 0.81])]
        >>> estimate = tl.evaluate.mean_interval([row["top1"] for row in rows])
        >>> record = tl.records.of_draws(
        ...     "mine/probe",
        ...     rows,
        ...     {"probe": estimate},
        ...     split="5 labels a class",
        ...     input="pixels",
        ...     seeds=range(3),
        ...     run=run,
        ...     origin=origin,
        ...     start=start,
        ... )
        >>> record.estimate("probe"), record.interval_over
        (81.0 % [78.5, 83.5], '95 %, t, over 3 draws')
    """
    return Record(
        name=name,
        tier=run.tier,
        split=split,
        input=input,
        seeds=tuple(seeds),
        curve=tuple(dict(row) for row in rows),
        interval_over=f"95 %, t, over {len(seeds)} draws",
        wall_seconds=time.perf_counter() - start,
        **figures(estimates),
        **origin,
    )


def figures(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """The fields ``result`` and ``interval`` of a record, from estimates by name.

    Example:
        >>> import tlhelpers as tl
        >>> tl.records.figures({"probe": tl.evaluate.Estimate(0.82, 0.8, 0.84)})
        {'result': {'probe': 0.82}, 'interval': {'probe': [0.8, 0.84]}}
    """
    return {
        "result": {name: e.value for name, e in estimates.items()},
        "interval": {name: [e.low, e.high] for name, e in estimates.items()},
    }


@dataclass(frozen=True)
class Folklore:
    """What is commonly said about the matter of a claim, and how the measurement bears on it.

    Attributes:
        text: the common saying, one sentence.
        source: the key of the source in ``references.bib``; empty where nobody in particular
            says it.
        agrees: True, False, or None where the measurement leaves it open.

    Example:
        >>> import tlhelpers as tl
        >>> print(tl.records.Folklore("The lower layers should be frozen.", agrees=False))
        “The lower layers should be frozen.”: the measurement contradicts it
    """

    text: str
    source: str = ""
    agrees: bool | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("folklore needs a text, found an empty one.")
        if self.agrees is not None:
            _require_bool("Folklore.agrees", self.agrees)
            object.__setattr__(self, "agrees", bool(self.agrees))

    @property
    def verdict(self) -> str:
        """``"agrees"``, ``"contradicts"`` or ``"leaves open"``: what the measurement does."""
        if self.agrees is None:
            return "leaves open"
        return "agrees" if self.agrees else "contradicts"

    def __str__(self) -> str:
        said = f"“{self.text}”" + (f" ({self.source})" if self.source else "")
        ending = {
            "agrees": "the measurement agrees",
            "contradicts": "the measurement contradicts it",
            "leaves open": "the measurement leaves it open",
        }
        return f"{said}: {ending[self.verdict]}"


@dataclass(frozen=True, repr=False)
class Claim:
    """A sentence that a measurement has borne out; make it with :func:`claim`.

    Attributes:
        id: the chapter and a word, ``"08.leakage"``.
        text: the sentence.
        measured: what was measured, with unit and interval.
        folklore: what is commonly said, if anything.
    """

    id: str
    text: str
    measured: str
    folklore: Folklore | None = None

    def __repr__(self) -> str:
        lines = [f"Claim {self.id}: {self.text}", f"Measured: {self.measured}"]
        if self.folklore is not None:
            lines.append(f"Folklore: {self.folklore}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain fields: id, text, measured, folklore (None or a dict) and verdict."""
        return {**dataclasses.asdict(self), "verdict": self.folklore and self.folklore.verdict}

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, str], dict[str, Any]]:
        # The machine-readable form rides in the output's metadata: a MIME type of our own
        # is a warning in myst-nb for each claim, and the book treats warnings as errors.
        data = {"text/plain": repr(self), "text/html": self._html()}
        return data, {CLAIM_KEY: self.to_dict()}

    def _html(self) -> str:
        rows = [f"<strong>{html.escape(self.text)}</strong>"]
        rows.append(f"Measured: {html.escape(self.measured)}")
        if self.folklore is not None:
            rows.append(f"Folklore: {html.escape(str(self.folklore))}")
        # The border is set here too, since Colab has no style sheet of ours.
        return (
            f'<div class="tl-claim" id="claim-{self.id}" '
            f'style="border-left: 4px solid #0173b2; padding: 0.3em 0.9em; margin: 0.5em 0;">'
            f"{'<br>'.join(rows)}</div>"
        )


_claimed: dict[str, str] = {}


def claim(
    id: str,
    text: str,
    holds: bool | np.bool_,
    measured: Any,
    *,
    folklore: Folklore | None = None,
) -> Claim:
    """Assert a sentence of the book, and return it for display: the last line of a cell.

    Args:
        id: the chapter's number, a full stop, a word: ``"08.leakage"``.
        text: the sentence; figures belong into ``measured``, so that it stays the same.
        holds: the comparison that the sentence stands for.
        measured: what was measured, in words with its unit, or an ``evaluate.Estimate``.
        folklore: what is commonly said, and whether the measurement agrees.

    Raises:
        AssertionError: if ``holds`` is false.
        TypeError: if ``holds`` is not a bool (an array or a string would count as true), or
            ``measured`` is a bare number.
        ValueError: if the id is malformed, or was used for another sentence.

    >>> claim("03.sum", "Two and two are four.", 2 + 2 == 4, "4")
    Claim 03.sum: Two and two are four.
    Measured: 4
    """
    if not _CLAIM_ID.fullmatch(id):
        raise ValueError(
            f"a claim's id is the chapter's number, a full stop and a lower-case word, such as "
            f"'08.leakage'; found {id!r}."
        )
    _require_bool(f"claim {id}: holds", holds)
    shown = _describe(id, text, measured)
    if folklore is not None and not isinstance(folklore, Folklore):
        raise TypeError(
            f"claim {id}: folklore should be records.Folklore(text, source, agrees), "
            f"found {type(folklore).__name__}."
        )
    if _claimed.get(id, text) != text:
        raise ValueError(
            f"claim {id} was already made with another sentence: {_claimed[id]!r}. Give one of "
            f"the two another id (or restart the kernel if you have edited the sentence)."
        )
    if not holds:
        raise AssertionError(f"Claim {id} does not hold: {text} Measured: {shown}")
    _claimed[id] = text
    return Claim(id, text, shown, folklore)


def claims_in(notebook: Path | str | Mapping[str, Any]) -> tuple[Claim, ...]:
    """The claims that an executed notebook displays, in its order.

    Args:
        notebook: its file, or its content as nbformat or ``json.load`` gives it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a notebook, was not executed, or shows two claims of one id.

    Example:
        >>> import tlhelpers as tl
        >>> claim = tl.records.claim("03.product", "Two times three is six.", 2 * 3 == 6, "6")
        >>> data, metadata = claim._repr_mimebundle_()
        >>> output = {"output_type": "display_data", "data": data, "metadata": metadata}
        >>> cell = {
        ...     "cell_type": "code",
        ...     "source": "claim",
        ...     "execution_count": 1,
        ...     "outputs": [output],
        ... }
        >>> tl.records.claims_in({"cells": [cell]})
        (Claim 03.product: Two times three is six.
        Measured: 6,)
    """
    name, content = "the notebook", notebook
    try:
        if not isinstance(content, Mapping):
            path = Path(content)
            name, content = path.name, json.loads(path.read_text(encoding="utf-8"))
        cells = content["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code" and cell["source"]]
        outputs = [output for cell in code for output in cell["outputs"]]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{name} should be a Jupyter notebook, but it cannot be read as one "
            f"({type(error).__name__}: {error})."
        ) from error
    if code and all(cell.get("execution_count") is None for cell in code):
        raise ValueError(f"{name} holds no outputs: execute it before collecting its claims.")
    found: dict[str, Claim] = {}
    for output in outputs:
        fields = output.get("metadata", {}).get(CLAIM_KEY)
        if fields is None:
            continue
        if fields["id"] in found:
            raise ValueError(f"{name} shows claim {fields['id']} twice; show it once.")
        said = fields["folklore"] and Folklore(**fields["folklore"])
        found[fields["id"]] = Claim(fields["id"], fields["text"], fields["measured"], said)
    return tuple(found.values())


def _describe(id: str, text: str, measured: Any) -> str:
    if isinstance(measured, bool | int | float | np.generic):
        raise TypeError(
            f"claim {id}: a bare number has no unit; give text such as '82.4 % of the test "
            f"images' or an Estimate, found {measured!r}."
        )
    shown = str(measured).strip()
    if not text.strip() or not shown:
        raise ValueError(f"claim {id}: the sentence and what was measured must not be empty.")
    return shown


def _require_bool(what: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(
            f"{what} should be True or False, found {type(value).__name__}. Write the comparison "
            f"out, with bool(...) or .all() around arrays and tensors."
        )


def _path(name: str, folder: Path) -> Path:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a record's name is made of lower-case words, such as 'dogs/untrained_head'; "
            f"found {name!r}."
        )
    return folder / f"{name}.json"


def _from_fields(fields: Any, name: str) -> Record:
    if not isinstance(fields, dict):
        raise ValueError(  # noqa: TRY004 -- the file's content is at fault, not an argument
            f"The record {name!r} should be a JSON object, found {type(fields).__name__}."
        )
    expected = {field.name for field in dataclasses.fields(Record)}
    missing, extra = sorted(expected - set(fields)), sorted(set(fields) - expected)
    if missing or extra:
        raise ValueError(
            f"The record {name!r} does not have a record's fields"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; unknown: {', '.join(extra)}" if extra else "")
            + ". Run its script in experiments/ again."
        )
    try:
        return Record(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The record {name!r} is malformed: {error}") from error


def _plain(value: Any, where: str) -> Any:
    """``value`` in terms of what JSON knows, so that a record equals itself read back."""
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # NumPy or torch scalar
        return _plain(value.item(), where)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} should hold finite numbers, found {value}.")
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{where} should have text as keys, found {list(value)!r}.")
        return {key: _plain(item, where) for key, item in value.items()}
    raise TypeError(
        f"{where} should hold numbers, text, lists and dicts, found {type(value).__name__}."
    )


def _require(field: str, good: bool, expected: str, found: Any) -> None:
    if not good:
        raise ValueError(f"a record's {field} should be {expected}, found {found!r}.")


def _check_provenance(record: Record) -> None:
    name = record.name
    _require(
        "name", isinstance(name, str) and bool(_NAME.fullmatch(name)), "lower-case words", name
    )
    _require("tier", record.tier in TIERS, f"one of {TIERS}", record.tier)
    for field in ("split", "input", "command", "source_hash"):
        value = getattr(record, field)
        _require(field, isinstance(value, str) and bool(value.strip()), "text", value)
    data = re.search(r"--data[= ]+(\S+)", record.command)
    if data and data[1] != "PATH":
        raise ValueError(
            f"a record's command should say `--data PATH`, since each reader has another folder; "
            f"found {data[0]!r}."
        )
    _require("commit", isinstance(record.commit, str | None), "text or None", record.commit)
    _require("clean", isinstance(record.clean, bool | None), "True, False or None", record.clean)
    for field in ("hardware", "versions", "result", "interval"):
        value = getattr(record, field)
        _require(field, isinstance(value, dict), "a dict", value)
    try:
        zone = datetime.fromisoformat(record.date).utcoffset()
    except (TypeError, ValueError):
        zone = None
    _require("date", zone is not None, "ISO 8601 with its offset from UTC", record.date)


def _check_numbers(record: Record) -> None:
    integers = all(type(seed) is int for seed in record.seeds)
    _require("seeds", integers, "a sequence of integers", record.seeds)
    rows = all(
        isinstance(row, dict) and row.keys() == record.curve[0].keys() for row in record.curve
    )
    _require("curve", rows, "rows with the same keys", record.curve)
    _require("result", bool(record.result), "at least one figure", record.result)
    for key, value in record.interval.items():
        _require("interval", key in record.result, "named after figures in result", key)
        pair = isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
        _require("interval", pair and value[0] <= value[1], "[low, high]", value)
    over = record.interval_over
    stated = isinstance(over, str) and bool(over.strip()) == bool(record.interval)
    _require("interval_over", stated, "text, where and only where there are intervals", over)
    seconds = record.wall_seconds
    _require("wall_seconds", _is_number(seconds) and seconds >= 0, "0 or more", seconds)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _git_state() -> tuple[str | None, bool | None]:
    """The commit of the checkout that this package runs from, and whether it is clean."""
    package = Path(tlhelpers.__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside somebody else's checkout, whose commit says nothing.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    status = git("status", "--porcelain", "--", ":/", ":(exclude,top)tlhelpers/data")
    return git("rev-parse", "HEAD"), None if status is None else not status


def _source_hash(functions: tuple[Callable[..., Any], ...]) -> str:
    sources: dict[str, bytes] = {}
    for function in functions:
        while isinstance(function, functools.partial):
            function = function.func
        function = inspect.unwrap(function)
        try:
            path = Path(inspect.getsourcefile(function) or "")
            if path.is_file():
                sources[str(path)] = path.read_bytes()
            else:
                sources[f"{path}:{function.__qualname__}"] = inspect.getsource(function).encode()
        except (TypeError, OSError) as error:
            raise ValueError(
                f"the source of {function!r} cannot be read, so a record cannot say what made it. "
                f"Pass the Python function that makes the record."
            ) from error
    return hashlib.sha256(b"".join(sources.values())).hexdigest()


def _hardware() -> dict[str, Any]:
    device = runtime.best_device()
    return {
        "cpu": _cpu_model(),
        "cores": runtime.cores(),
        "gpu": None if device.type == "cpu" else runtime.describe_device(device),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "tlhelpers": tlhelpers.__version__}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
