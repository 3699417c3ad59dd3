"""Start a chapter, or renew what is the same in all: ``python tools/chapter.py --help``.

The set-up cell is the same in every notebook. Its one template is here; the repository comes
from ``_config.yml`` and the tag from ``tlhelpers.__version__``. The line in a chapter's box that
says what its records take follows from the records (``tools/costs.py``). So a release, and a record
made anew, need::

    python tools/chapter.py sync

and the tests fail until that was done.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import costs
import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"

# What the set-up cell installs. With the extra for Optuna, which chapter 05 runs and Colab lacks.
REQUIREMENT = "tlhelpers[tune]"

# Lines of a cell stay under 80 characters, hence the address in a variable of its own.
SETUP = """\
# Installs the book's helpers on Colab; does nothing where they are installed.
import importlib.util

if importlib.util.find_spec("tlhelpers") is None:
    source = "git+{repository}@v{version}"
    %pip install -q "{requirement} @ {{source}}"

import tlhelpers as tl"""
SETUP_TAG = "hide-input"  # folded in the book, where it is of no interest; open in Colab

PROFILE = 'PROFILE = "quick"  # or "full"'
PROFILE_TAG = "parameters"

SOLUTION_TAGS = ("hide-input", "solution")

# Markdown inside <details> needs the blank lines; so written it works without script in the
# book, in Jupyter, in Colab and on GitHub.
QUIZ = "Choose in your head, then open the choices: each says why it is right or wrong."
CHOICE = "<details>\n<summary>{choice}</summary>\n\n{answer}\n\n</details>"
RIGHT, WRONG = "**Right.** ", "Not so: "

# Colab reads `accelerator`; a chapter has it only where a GPU helps.
METADATA: dict[str, Any] = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def repository(config: Path = ROOT / "_config.yml") -> str:
    """The address of the repository, from the book's configuration."""
    return str(yaml.safe_load(config.read_text("utf-8"))["repository"]["url"]).rstrip("/")


def version(package: Path = ROOT / "tlhelpers" / "__init__.py") -> str:
    """``tlhelpers.__version__``, read without importing anything.

    Raises:
        ValueError: if the file assigns no such name.
    """
    for node in ast.parse(package.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise ValueError(f"{package.name} should assign __version__, but does not.")


def setup_cell() -> str:
    """The source of the set-up cell of this edition."""
    return SETUP.format(repository=repository(), version=version(), requirement=REQUIREMENT)


def question(key: str, text: str, choices: Sequence[str], *, right: int) -> str:
    """The source of a cell with one question of the quiz.

    Args:
        key: its number, such as ``"05.1"``.
        text: what is asked.
        choices: what can be answered.
        right: the place of the right choice, from 0.
    """
    answers = [
        CHOICE.format(
            choice=choice,
            answer=(RIGHT + "Say what the chapter measured that shows it.")
            if i == right
            else (WRONG + "say why it is wrong, and where the chapter shows that."),
        )
        for i, choice in enumerate(choices)
    ]
    return "\n\n".join([f"**Question {key}.** {text}", *answers])


def skeleton(number: str, title: str) -> nbformat.NotebookNode:
    """A chapter with everything that the conventions ask for, and nothing to teach yet.

    Args:
        number: two digits, such as ``"05"``.
        title: the chapter's title, beginning with a verb.
    """
    opening = (
        f"# {number} · {title}\n\n"
        "> - **What you will be able to do:** …\n"
        "> - **What you need:** …\n"
        "> - **Minutes to read:** 20\n"
        "> - **Minutes to run (CPU / GPU):** 1 / –\n"
        "> - **Download:** none"
    )
    claim = (
        "tl.records.claim(\n"
        f'    "{number}.first",\n'
        '    "What this chapter claims, in a sentence.",\n'
        "    holds=run.seed == 0,\n"
        '    measured=f"seed {run.seed}",\n'
        ")"
    )
    quiz = [
        question(f"{number}.{k}", "…?", ("One.", "Another.", "A third."), right=k % 3)
        for k in (1, 2, 3)
    ]
    exercises = [
        cell
        for k in (1, 2, 3)
        for cell in (
            new_markdown_cell(f"### Exercise {number}.{k}\n\n…"),
            new_code_cell(
                f"# @title Solution {number}.{k}\n"
                "answer = ...\n"
                f'assert tl.check("{number}.{k}", answer)',
                metadata={"tags": list(SOLUTION_TAGS), "cellView": "form"},
            ),
        )
    ]
    cells = [
        new_markdown_cell(opening),
        new_code_cell(setup_cell(), metadata={"tags": [SETUP_TAG]}),
        new_code_cell(PROFILE, metadata={"tags": [PROFILE_TAG]}),
        new_code_cell("run = tl.setup(profile=PROFILE)"),
        new_markdown_cell("## One idea\n\nWhy, before a plot; what we see, after it."),
        new_markdown_cell("## Traps\n\n…"),
        new_markdown_cell("## What we measured\n\n…"),
        new_code_cell(claim),
        new_markdown_cell(f"## Quiz\n\n{QUIZ}"),
        *map(new_markdown_cell, quiz),
        new_markdown_cell("## Exercises\n\n…"),
        *exercises,
        new_markdown_cell("## Further reading\n\n{cite:t}`pan2010` …"),
    ]
    for i, cell in enumerate(cells):
        cell["id"] = str(i)  # nbformat's own are random: the same call gives the same file
    return new_notebook(cells=cells, metadata=METADATA)


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook through a temporary file: a failure leaves the old one untouched."""
    part = path.with_name(path.name + ".part")
    part.write_text(nbformat.writes(notebook) + "\n", "utf-8")
    part.replace(path)


def new(number: str, slug: str, title: str, *, folder: Path = CHAPTERS) -> Path:
    """Write the skeleton of a chapter and return its path.

    Raises:
        ValueError: if the number or the slug has another form.
        FileExistsError: if the folder has a chapter of that number.
    """
    if not re.fullmatch(r"\d\d", number):
        raise ValueError(f"a chapter's number has two digits, such as 05; found {number!r}.")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise ValueError(f"a slug is lower-case words joined by hyphens; found {slug!r}.")
    if present := sorted(folder.glob(f"{number}-*.ipynb")):
        raise FileExistsError(f"chapter {number} exists: {present[0].name}. Choose another number.")
    path = folder / f"{number}-{slug}.ipynb"
    write(skeleton(number, title), path)
    return path


def sync(*, folder: Path = CHAPTERS) -> list[Path]:
    """Renew the set-up cell and the costs of every notebook; return those that changed.

    Raises:
        ValueError: if a notebook's first code cell is something else.
    """
    changed = []
    for path in sorted(folder.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if not code or "find_spec" not in code[0].source:
            raise ValueError(f"{path.name}: the first code cell should be the set-up cell.")
        wanted = setup_cell(), costs.opening(notebook)
        if (code[0].source, notebook.cells[0].source) != wanted:
            code[0].source, notebook.cells[0].source = wanted
            write(notebook, path)
            changed.append(path)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("new", help="write the skeleton of a chapter")
    start.add_argument("number", help="two digits, such as 05")
    start.add_argument("slug", help="such as fine-tuning, for chapters/05-fine-tuning.ipynb")
    start.add_argument("title", help='beginning with a verb, such as "Fine-tune a backbone"')
    commands.add_parser("sync", help="renew set-up cells, and what records cost")
    given = parser.parse_args(arguments)
    try:
        if given.command == "new":
            path = new(given.number, given.slug, given.title)
            print(f"Wrote {path.relative_to(ROOT)}. Add it to _toc.yml and to chapters/index.md.")
        else:
            changed = sync()
            print(f"Notebooks renewed: {', '.join(p.name for p in changed) or 'none needed it'}.")
    except (ValueError, FileExistsError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
