"""What each chapter costs: the table of *Verify this book*, and a line in the chapters' openings.

A figure is kept in one place only:

- What a chapter takes with the profile ``quick`` is measured by the build (``tools/book.py``).
- What it takes with ``full`` stands in the box at its beginning. Where ``full`` only makes the
  chapter's records anew, ``tools/chapter.py sync`` writes that line, from the times in the records;
  where it does more, somebody has measured or estimated it, or the line says that nobody has.
"""

from __future__ import annotations

import ast
import contextlib
import fnmatch
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent / "tlhelpers"
RECORD_FOLDER = PACKAGE / "data" / "records"

FULL = "Minutes in `full` (CPU / T4 / large GPU)"
QUICK = "Minutes to run (CPU / GPU)"
DOWNLOAD = "Download"

UNKNOWN = "not measured"
NO_USE = "–"
RECORDS = "from its records"
BASES = ("measured", "estimated", RECORDS)

# A field of the box: it may run over several lines, each of them a quotation.
_FIELD = re.compile(r"^> - \*\*(.+?):\*\* (.+(?:\n>   .+)*)", re.MULTILINE)
_MINUTES = rf"(\d+|{NO_USE}|{UNKNOWN})"
_FULL = re.compile(rf"{_MINUTES} / {_MINUTES} / {_MINUTES}, ({'|'.join(BASES)})")


@dataclass(frozen=True)
class Full:
    """Minutes with the profile ``full``, as a chapter's box states them.

    Attributes:
        cpu: on two processor cores: a number, or "not measured".
        t4: on the GPU that Colab lends; a dash where a GPU is no use.
        large: on a large GPU, likewise.
        basis: one of ``BASES``, or None where nothing is known.
    """

    cpu: str
    t4: str
    large: str
    basis: str | None

    @classmethod
    def parse(cls, text: str) -> Full:
        """Read the field of a box.

        Raises:
            ValueError: if it has another form.
        """
        if text == UNKNOWN:
            return cls(UNKNOWN, UNKNOWN, UNKNOWN, None)
        if not (found := _FULL.fullmatch(text)):
            raise ValueError(
                f"'{FULL}' should read '{UNKNOWN}', or like '90 / 15 / {UNKNOWN}, estimated' with "
                f"one of {', '.join(BASES)} at the end; found {text!r}."
            )
        return cls(*found.groups())

    def __str__(self) -> str:
        minutes = f"{self.cpu} / {self.t4} / {self.large}"
        return f"{minutes}, {self.basis}" if self.basis else UNKNOWN

    def cells(self) -> tuple[str, str, str]:
        """The three figures, each with what it rests on."""
        shown = [
            f"{m}, {self.basis}" if m.isdigit() else m for m in (self.cpu, self.t4, self.large)
        ]
        return shown[0], shown[1], shown[2]


@dataclass(frozen=True)
class Measured:
    """What the build found when it ran a chapter; None where that is not known."""

    seconds: float | None
    peak_bytes: int | None
    day: date


def box(notebook: Any) -> dict[str, str]:
    """The fields of the box at the beginning of a chapter."""
    source = notebook.cells[0].source
    return {
        label: " ".join(text.replace("\n>", "").split()) for label, text in _FIELD.findall(source)
    }


# --- what ``full`` does -------------------------------------------------------------------


def made_anew(notebook: Any) -> list[str]:
    """The records that a chapter makes with ``full``, each as often as it makes them.

    Raises:
        ValueError: if the name of a record cannot be read off the code.
    """
    shipped = [path.relative_to(RECORD_FOLDER) for path in sorted(RECORD_FOLDER.rglob("*.json"))]
    found = []
    for call in _calls(notebook):
        if any(argument.arg == "live" for argument in call.keywords):
            pattern = _pattern(call.args[0])
            names = fnmatch.filter([path.with_suffix("").as_posix() for path in shipped], pattern)
            if not names:
                raise ValueError(f"The package ships no record {pattern!r}.")
            found += names
    return found


def seconds(record: str) -> float:
    """What a shipped record took to make."""
    text = (RECORD_FOLDER / f"{record}.json").read_text("utf-8")
    return float(json.loads(text)["wall_seconds"])


def does_more(notebook: Any) -> bool:
    """Whether ``full`` does more than make records: whether a cell asks for it by name."""
    return any(
        isinstance(node, ast.Compare) and ast.unparse(node) == "run.profile == 'full'"
        for node in _nodes(notebook)
    )


def expected(notebook: Any) -> str | None:
    """The line that the records give, None where they are not all of it, or nothing changes."""
    names = made_anew(notebook)
    if not names or does_more(notebook):
        return None
    minutes = int(box(notebook)[QUICK].split()[0]) + sum(map(seconds, names)) / 60
    gpu = UNKNOWN if wants_gpu(notebook) else NO_USE
    return str(Full(str(math.ceil(minutes)), gpu, gpu, RECORDS))


def wants_gpu(notebook: Any) -> bool:
    """Whether the notebook's metadata ask Colab for a GPU."""
    return bool(notebook.metadata.get("accelerator") == "GPU")


def opening(notebook: Any) -> str:
    """The opening of a chapter, with the line that its records give instead of an older one."""
    source, line = str(notebook.cells[0].source), expected(notebook)
    if line is None:
        return source
    field = f"> - **{FULL}:** {line}"
    if FULL in box(notebook):
        return re.sub(rf"^> - \*\*{re.escape(FULL)}:\*\* .*$", field, source, flags=re.MULTILINE)
    return re.sub(
        rf"^(> - \*\*{re.escape(QUICK)}:\*\* .*)$", rf"\1\n{field}", source, flags=re.MULTILINE
    )


def _nodes(notebook: Any) -> Iterator[ast.AST]:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # The set-up cell has a magic, and is no Python; tests refuse any other such cell.
            with contextlib.suppress(SyntaxError):
                yield from ast.walk(ast.parse(cell.source))


def _calls(notebook: Any) -> Iterator[ast.Call]:
    for node in _nodes(notebook):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.records.get":
            yield node


def _pattern(name: ast.expr) -> str:
    """A record's name as the code has it; what a loop fills in may be anything."""
    if isinstance(name, ast.Constant):
        return str(name.value)
    if isinstance(name, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "*" for v in name.values)
    if isinstance(name, ast.Attribute) and isinstance(name.value, ast.Name):
        # Read and not imported: importing the package takes seconds.
        module = ast.parse((PACKAGE / f"{name.value.id}.py").read_text("utf-8"))
        for node in module.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name.attr:
                return str(ast.literal_eval(node.value))
    raise ValueError(
        f"A record's name should be a string, or a constant of the package; found "
        f"{ast.unparse(name)}."
    )


# --- the page -----------------------------------------------------------------------------

HEAD = (
    "chapter",
    "minutes, `quick`",
    "peak memory, `quick`",
    "minutes, `full`: CPU",
    "T4",
    "large GPU",
    "download",
    "run on",
)


def page(chapters: Sequence[tuple[str, str, Any, Measured]], versions: Mapping[str, str]) -> str:
    """The table in Markdown.

    Args:
        chapters: of each chapter its file's name, its title, the notebook and what was measured.
        versions: of what ran them, by name.
    """
    rows = [_row(*chapter) for chapter in chapters]
    known = [m.seconds for *_, m in chapters if m.seconds is not None]
    total = ["all", f"{sum(known) / 60:.0f}", *[""] * (len(HEAD) - 2)]
    table = [HEAD, ["---"] * len(HEAD), *rows, total]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join(
        [*lines, "", "With " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".", ""]
    )


def _row(name: str, title: str, notebook: Any, measured: Measured) -> list[str]:
    fields = box(notebook)
    full = Full.parse(fields[FULL]).cells() if FULL in fields else ("as `quick`",) * 3
    took, peak = measured.seconds, measured.peak_bytes
    return [
        f"[{title}]({name})",
        UNKNOWN if took is None else f"{took / 60:.1f}",
        UNKNOWN if peak is None else f"{peak / 1e9:.1f} GB",
        *full,
        fields.get(DOWNLOAD, "not stated"),
        measured.day.isoformat(),
    ]
