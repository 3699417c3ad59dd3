"""The notebooks and pages as files: the conventions of CONTRIBUTING.md, without running a chapter.

A check is a function that yields a sentence for each thing it finds wrong. Every check is a test
of every notebook, and every check is shown to fail on a chapter that was broken on purpose.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.myst_role import myst_role_plugin
from myst_parser.mdit_to_docutils.base import default_slugify
from nbformat.v4 import new_code_cell, new_markdown_cell
from pybtex.database import BibliographyData, parse_file  # type: ignore[import-untyped]

import tlhelpers

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"
PACKAGE = ROOT / "tlhelpers"


def load_tool(name: str) -> ModuleType:
    """A script of ``tools/`` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(ROOT / "tools"))  # where the scripts find one another
template = load_tool("chapter")
costs = template.costs

BOX = (
    "What you will be able to do",
    "What you need",
    "Minutes to read",
    "Minutes to run (CPU / GPU)",
    "Download",
)
CLOSING = ("Traps", "What we measured", "Quiz", "Exercises", "Further reading")
LINES, COLUMNS = 30, 79
EXERCISES = 3
QUESTIONS, CHOICES = range(3, 6), range(3, 5)
REASON = 8  # words that an answer of the quiz has at least

# Verbs with which a title may begin; a new chapter may add its own.
VERBS = re.compile(
    "Adapt|Answer|Apply|Ask|Avoid|Borrow|Build|Choose|Classify|Compare|Decide|Diagnose|Draw|Explain|"
    "Extract|Find|Fine-tune|Freeze|Judge|Know|Learn|Look|Make|Map|Match|Measure|Meet|Move|Name|Pick|"
    "Plan|Prove|Read|Recognise|Reuse|Run|Scale|See|Sort|Spot|Start|Take|Teach|Tell|Test|Train|"
    "Transfer|Trust|Understand|Use|Weigh|Work"
)
FIGURE_LIBRARIES = frozenset({"altair", "bokeh", "matplotlib", "plotly", "pylab", "seaborn"})
FIGURE_METHODS = frozenset({"boxplot", "hist", "imshow", "plot", "savefig", "scatter", "subplots"})

ROLES = frozenset({"cite:p", "cite:t"})
# The table that the build makes stands on one page only, which says so for readers elsewhere.
DIRECTIVES = {"verify.ipynb": frozenset({"{include} ../_build/costs.md"})}

# The one piece of HTML in a notebook: a choice of the quiz, and what there is to say about it.
SUMMARY = r"<summary>((?:[^<>\n]|</?code>)+)</summary>"
DISCLOSURE = re.compile(rf"<details>\n{SUMMARY}\n?|</details>\n?")
CHOICE = re.compile(rf"<details>\n{SUMMARY}\n\n([^<]+?)\n\n</details>")

NOTEBOOK_KEYS = frozenset({"kernelspec", "language_info", "accelerator", "colab"})
CELL_KEYS = frozenset({"tags", "cellView", "mystnb"})

AMERICAN = {
    r"(?!\w*(?:size|prize|seize|maize))\w{3,}iz(?:e[drs]?|ers|ing|able|ations?)": "-ise",
    r"\w*(?:anal|paral|catal)yz(?:e[ds]?|ing)": "-yse",
    r"\w*(?:colo|behavio|neighbo|favo|hono|flavo|endeavo)r(?!ou)\w*": "-our",
    r"(?:label|model|cancel|travel|channel|signal)(?:ed|ing)": "-lled, -lling",
    r"(?:center|fiber|meter)(?:s|ed|ing)?": "-re",
    r"gray\w*": "grey",
    r"artifacts?": "artefact",
    r"catalogs?": "catalogue",
    r"percent": "per cent",
    r"math": "mathematics",
}
PERCENTAGE = re.compile(
    r"\d[\d.,]*\s*(?:%|per\s?cent\b|percentage\s+points?)|"
    r"\b(?:accuracy|F1|score)\s+(?:of\s+|is\s+|was\s+|=\s*)?0?\.\d+"
)
INTERVAL = re.compile(r"\d+\s*%\s+(?:bootstrap\s+|confidence\s+)*(?:intervals?|levels?)\b")
OWN_PATH = re.compile(r"(?<![\w./-])/(?:home|mnt|opt|root|tmp|work|Users)/")


# Documents


@dataclass(frozen=True)
class Document:
    """A notebook, or a Markdown page as a notebook of one cell, with the folder it lies in."""

    name: str
    folder: Path
    notebook: nbformat.NotebookNode

    @classmethod
    def read(cls, path: Path) -> Document:
        if path.suffix == ".ipynb":
            notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        else:
            notebook = nbformat.v4.new_notebook(cells=[new_markdown_cell(path.read_text("utf-8"))])
        return cls(path.name, path.parent, notebook)

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def code(self) -> list[nbformat.NotebookNode]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    @property
    def markdown(self) -> list[nbformat.NotebookNode]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "markdown"]

    @property
    def headings(self) -> list[tuple[int, str]]:
        """Level and text of each heading, in order."""
        return [heading for cell in self.markdown for heading in headings(cell.source)]

    @property
    def slugs(self) -> set[str]:
        """The addresses of the headings that can be linked to, as the build makes them."""
        return {default_slugify(text) for level, text in self.headings if level <= 3}

    def section(self, title: str) -> list[nbformat.NotebookNode]:
        """The cells from the second-level heading ``title`` to the next one."""
        inside, cells = False, []
        for cell in self.notebook.cells:
            if cell.cell_type == "markdown":
                for level, text in headings(cell.source):
                    if level == 2:
                        inside = text == title
            if inside:
                cells.append(cell)
        return cells


@cache
def parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table").use(dollarmath_plugin).use(myst_role_plugin)


def inlines(markdown: str) -> list[list[Token]]:
    """The tokens of each piece of running text: paragraph, heading, table cell."""
    return [token.children or [] for token in parser().parse(markdown) if token.type == "inline"]


def tokens(markdown: str) -> list[Token]:
    """All tokens, of blocks and of the text inside them."""
    blocks = parser().parse(markdown)
    return [*blocks, *(token for block in blocks for token in block.children or [])]


def headings(markdown: str) -> Iterator[tuple[int, str]]:
    blocks = parser().parse(markdown)
    for opening, text in pairwise(blocks):
        if opening.type == "heading_open":
            yield int(opening.tag[1]), text.content.strip()


def prose(markdown: str) -> Iterator[str]:
    """Each piece of running text without code, quotations, and the text of links elsewhere.

    A citation leaves the mark ``‹cite›``; mathematics stays, as numbers hide there too. The
    choices of a quiz, which are HTML, are running text as well.
    """
    for choice in re.findall(SUMMARY, markdown):
        yield re.sub(r"<code>.*?</code>", "‹›", choice)
    for children in inlines(markdown):
        text, outside = "", False
        for token in children:
            if token.type == "link_open":
                outside = str(token.attrs["href"]).startswith("http")
            elif token.type == "link_close":
                outside = False
            elif outside:
                continue
            elif token.type == "text":
                text += token.content
            elif token.type in ("softbreak", "hardbreak"):
                text += " "
            elif token.type == "math_inline":
                text += token.content.replace(r"\%", "%").replace(r"\,", " ").replace("~", " ")
            elif token.type == "myst_role" and token.meta["name"].startswith("cite"):
                text += "‹cite›"
            else:
                text += "‹›"
        yield re.sub(r'“[^”]*”|"[^"]*"', "‹›", text)


def allowed(markdown: str, subject: str) -> bool:
    """Whether a cell says why a check does not apply: ``<!-- allow numbers: reason -->``."""
    return bool(re.search(rf"<!--\s*allow {subject}:\s*\w[^>]{{9,}}-->", markdown))


def tree(source: str) -> ast.Module:
    """The syntax tree of a cell, its magics turned into calls; empty if it is not Python."""
    try:
        return ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError:
        return ast.Module([], [])


def calls(source: str, *names: str) -> Iterator[ast.Call]:
    """The calls of a function under any of these names, in the order of the text."""
    found = [
        node
        for node in ast.walk(tree(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
    ]
    yield from sorted(found, key=lambda node: (node.lineno, node.col_offset))


def claims(source: str) -> Iterator[ast.Call]:
    return calls(source, "tl.records.claim", "records.claim", "claim")


def exercise_checks(source: str) -> Iterator[ast.Call]:
    return calls(source, "tl.check", "tl.exercises.check", "check")


def argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    """An argument of a call, given by position or by name."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if len(call.args) > position else None


def literal(node: ast.expr | None) -> str | None:
    """The string that a node writes out, or None."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def first_line(cell: nbformat.NotebookNode) -> str:
    return repr(cell.source.strip().partition("\n")[0][:60])


# Checks

Check = Callable[[Document], Iterable[str]]
CHAPTER_CHECKS: dict[str, Check] = {}
NOTEBOOK_CHECKS: dict[str, Check] = {}
PAGE_CHECKS: dict[str, Check] = {}


def check(*registers: dict[str, Check]) -> Callable[[Check], Check]:
    """Enter a check under its name: for chapters only, for every notebook, for pages too."""

    def enter(function: Check) -> Check:
        for register in registers:
            register[function.__name__.replace("_", "-")] = function
        return function

    return enter


@check(CHAPTER_CHECKS)
def title(document: Document) -> Iterator[str]:
    cell = document.notebook.cells[0]
    first = cell.source.partition("\n")[0]
    found = re.match(r"# (\d\d) · ([\w-]+)", first)
    if cell.cell_type != "markdown" or not found:
        yield f"the first cell should begin '# {document.number} · Verb …', found {first!r}."
        return
    if found[1] != document.number:
        yield f"the title has number {found[1]}, the file's name {document.number}."
    if not VERBS.fullmatch(found[2]):
        yield f"the title should begin with a verb; {found[2]!r} is not in VERBS: add it if it is."
    if (count := sum(level == 1 for level, _ in document.headings)) != 1:
        yield f"a chapter has one first-level heading, found {count}."


@check(CHAPTER_CHECKS)
def box(document: Document) -> Iterator[str]:
    lines = [line for line in document.notebook.cells[0].source.splitlines() if line[:1] in ">|"]
    found = {}
    for label in BOX:
        pattern = re.compile(
            rf"[>|]\s*(?:[-*]\s+)?\*\*{re.escape(label)}:?\*\*[\s:·|]*(.*?)[\s|]*$"
        )
        matches = [match for line in lines if (match := pattern.match(line))]
        if not matches or not matches[0][1]:
            yield f"the box below the title should have a line '> - **{label}:** …'."
        else:
            found[label] = matches[0][1]
    if list(found) != [label for label in BOX if label in found]:
        yield f"the box should name its fields in the order {', '.join(BOX)}."
    if (minutes := found.get(BOX[2])) and not re.match(r"\d+\b", minutes):
        yield f"{BOX[2]} should be a number, found {minutes!r}."
    if (minutes := found.get(BOX[3])) and not re.match(r"\d+ / (\d+|–)(?!\w)", minutes):
        yield f"{BOX[3]} should read '1 / –' or '1 / 1', found {minutes!r}."
    elif minutes and "–" not in minutes and not costs.wants_gpu(document.notebook):
        yield f"{BOX[3]} reads {minutes!r}: the metadata should have accelerator = GPU, for Colab."


@check(CHAPTER_CHECKS)
def full_costs(document: Document) -> Iterator[str]:
    notebook = document.notebook
    stated, wanted = costs.box(notebook).get(costs.FULL), costs.expected(notebook)
    gpu = costs.wants_gpu(notebook)
    if wanted is not None:
        if stated != wanted:
            yield (
                f"the box should say {costs.FULL}: {wanted}, as its records do; found {stated!r}: "
                f"python tools/chapter.py sync."
            )
        return
    if costs.does_more(notebook) != (stated is not None):
        yield (
            f"the box should have {costs.FULL} where a cell asks for run.profile == 'full', and "
            f"only there; write {costs.UNKNOWN!r} where nobody knows."
        )
    elif stated is not None:
        try:
            full = costs.Full.parse(stated)
        except ValueError as error:
            yield str(error)
            return
        if full.basis == costs.RECORDS:
            yield f"{costs.FULL}: not only the records count here; measured or estimated?"
        if gpu != (costs.NO_USE not in (full.t4, full.large)):
            yield (
                f"{costs.FULL} reads {stated!r}: the metadata should "
                f"{'not ' if gpu else ''}have accelerator = GPU, for Colab."
            )
    elif gpu and "–" in costs.box(notebook).get(costs.QUICK, ""):
        yield "the metadata ask for a GPU, and the box says that one is no use."


@check(CHAPTER_CHECKS, NOTEBOOK_CHECKS)
def setup_cell(document: Document) -> Iterator[str]:
    cell = document.code[0] if document.code else None
    if cell is None or cell.source != template.setup_cell():
        yield "the first code cell should be the set-up cell: python tools/chapter.py sync."
    elif tags(cell) != [template.SETUP_TAG]:
        yield f"the set-up cell should be tagged {template.SETUP_TAG}, found {tags(cell)}."


@check(CHAPTER_CHECKS)
def profile_cell(document: Document) -> Iterator[str]:
    cell = document.code[1] if len(document.code) > 1 else None
    if cell is None or ast.unparse(tree(cell.source)) != "PROFILE = 'quick'":
        yield 'the second code cell should be: PROFILE = "quick".'
    elif tags(cell) != [template.PROFILE_TAG]:
        yield f"the profile cell should be tagged {template.PROFILE_TAG}, found {tags(cell)}."


@check(CHAPTER_CHECKS, NOTEBOOK_CHECKS)
def no_outputs(document: Document) -> Iterator[str]:
    for cell in document.code:
        if cell.outputs or cell.execution_count is not None:
            yield (
                f"the cell {first_line(cell)} has outputs or a count. Remove them: "
                f"nbstripout chapters/{document.name}."
            )
    # nbstripout numbers the cells, so that saving a notebook elsewhere changes no ids.
    if [cell.get("id") for cell in document.notebook.cells] != [
        str(i) for i in range(len(document.notebook.cells))
    ]:
        yield f"cells should be numbered from 0: nbstripout chapters/{document.name}."


@check(CHAPTER_CHECKS, NOTEBOOK_CHECKS)
def metadata(document: Document) -> Iterator[str]:
    notebook = document.notebook
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        yield "a notebook should have format 4.5 or later, in which cells have ids."
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        yield f"the notebook is not valid: {str(error).splitlines()[0]}"
    kernel = notebook.metadata.get("kernelspec", {})
    language = notebook.metadata.get("language_info", {})
    if kernel.get("name") != "python3" or kernel.get("language", "python") != "python":
        yield f"the kernel should be python3, found {dict(kernel)}."
    if language.get("name") != "python":
        yield f"the language should be python, found {dict(language)}."
    if "version" in language:
        yield "the metadata hold a version of Python, which changes with who saves the notebook."
    if unknown := set(notebook.metadata) - NOTEBOOK_KEYS:
        yield f"the notebook's metadata should not hold {', '.join(sorted(unknown))}."
    for cell in notebook.cells:
        if unknown := set(cell.metadata) - CELL_KEYS:
            yield f"the metadata of {first_line(cell)} should not hold {', '.join(unknown)}."


@check(CHAPTER_CHECKS, NOTEBOOK_CHECKS)
def cell_size(document: Document) -> Iterator[str]:
    for cell in document.code:
        lines = cell.source.splitlines()
        if not cell.source.strip():
            yield "there is an empty code cell."
        if len(lines) > LINES:
            yield f"the cell {first_line(cell)} has {len(lines)} lines; {LINES} is the most."
        for line in lines:
            if len(line) > COLUMNS:
                yield f"a line has {len(line)} characters, {COLUMNS} is the most: {line!r}"


@check(CHAPTER_CHECKS, NOTEBOOK_CHECKS)
def magics(document: Document) -> Iterator[str]:
    # An unknown magic passes in nbval, and the rest of its cell is silently not run.
    for cell in document.code:
        if cell.source == template.setup_cell():
            continue
        try:
            code = ast.parse(TransformerManager().transform_cell(cell.source))
        except SyntaxError as error:
            yield f"the cell {first_line(cell)} is not Python: {error.msg}."
            continue
        for node in ast.walk(code):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "get_ipython()":
                yield f"the cell {first_line(cell)} has a magic or a shell command."


@check(CHAPTER_CHECKS, NOTEBOOK_CHECKS)
def figures(document: Document) -> Iterator[str]:
    for cell in document.code:
        for node in ast.walk(tree(cell.source)):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                if module.partition(".")[0] in FIGURE_LIBRARIES:
                    yield f"figures are made through tl.plots, found an import of {module}."
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in FIGURE_METHODS
                and not re.match(r"(tl\.)?plots\b", ast.unparse(node.func))
                # The axes of tl.plots.figure(alt=...) may be drawn on.
                and not list(calls(cell.source, "tl.plots.figure", "plots.figure"))
            ):
                yield f"figures are made through tl.plots, found {ast.unparse(node.func)}(…)."
    for cell in document.markdown:
        for token in tokens(cell.source):
            if token.type == "image" and len(token.content.split()) < 2:
                yield f"an image needs an alt text that says what it shows: {token.attrs['src']!r}."


@check(CHAPTER_CHECKS)
def sections(document: Document) -> Iterator[str]:
    second = [text for level, text in document.headings if level == 2]
    if [text for text in second if text in CLOSING] != list(CLOSING):
        yield f"a chapter has the sections {', '.join(CLOSING)}, each once, in this order."
        return
    if second[-1] != CLOSING[-1]:
        yield f"{CLOSING[-1]} should be the last section, found {second[-1]!r}."
    if not any(cell.cell_type == "code" for cell in document.section("What we measured")):
        yield "What we measured should show the claims: it has no code cell."
    reading = "".join(cell.source for cell in document.section("Further reading"))
    if not any(token.type == "myst_role" for token in tokens(reading)):
        yield "Further reading should cite something: {cite:t}`key`."


@check(CHAPTER_CHECKS)
def quiz(document: Document) -> Iterator[str]:
    questions = document.section("Quiz")[1:]
    if len(questions) not in QUESTIONS:
        yield (
            f"the quiz should have {QUESTIONS[0]} to {QUESTIONS[-1]} questions, a Markdown cell "
            f"each after that of the heading; found {len(questions)}."
        )
    places, longest = set(), []
    for k, cell in enumerate(questions, start=1):
        key = f"{document.number}.{k}"
        if not re.match(rf"\*\*Question {re.escape(key)}\.\*\* \S", cell.source):
            yield f"a question should begin '**Question {key}.** …', found {first_line(cell)}."
        choices = CHOICE.findall(cell.source)
        if "<" in CHOICE.sub("", cell.source) or len(choices) not in CHOICES:
            yield (
                f"question {key} should have {CHOICES[0]} to {CHOICES[-1]} choices in the form of "
                f"the template (tools/chapter.py), blank lines included; found {len(choices)}."
            )
        right = []
        for i, (choice, answer) in enumerate(choices):
            begins = template.RIGHT if answer.startswith(template.RIGHT) else template.WRONG
            if not answer.startswith(begins):
                yield f"question {key}: an answer begins {answer[:20]!r}, not with one of the two."
            elif len(answer.removeprefix(begins).split()) < REASON:
                yield f"question {key}: say more of why about {choice!r}."
            if begins == template.RIGHT:
                right.append(i)
        if len(right) != 1:
            yield f"question {key} should have one right choice, found {len(right)}."
        else:
            places.add(right[0])
            lengths = [len(choice) for choice, _ in choices]
            longest.append(lengths[right[0]] == max(lengths) > min(lengths))
    if len(places) == 1:
        yield "the right choice is at the same place in every question of the quiz."
    if longest and all(longest):
        yield "the right choice is the longest in every question of the quiz."


@check(CHAPTER_CHECKS)
def exercises(document: Document) -> Iterator[str]:
    announced = "".join(
        cell.source for cell in document.section("Exercises") if cell.cell_type == "markdown"
    )
    solved = []
    for cell in document.code:
        if "solution" not in tags(cell):
            continue
        found = list(exercise_checks(cell.source))
        asserted = [
            ast.unparse(node.test)
            for node in ast.walk(tree(cell.source))
            if isinstance(node, ast.Assert)
        ]
        for call in found:
            key = literal(argument(call, 0, "exercise"))
            if key is None:
                yield f"the number of an exercise should be written out in {first_line(cell)}."
                continue
            solved.append(key)
            if not cell.source.startswith(f"# @title Solution {key}\n"):
                yield f"the solution of {key} should begin '# @title Solution {key}', for Colab."
        if len(found) != 1 or ast.unparse(found[0]) not in asserted:
            yield f"the solution {first_line(cell)} should contain one 'assert tl.check(…)'."
        if not set(template.SOLUTION_TAGS) <= set(tags(cell)):
            yield f"the solution {first_line(cell)} should be tagged {template.SOLUTION_TAGS}."
        if cell.metadata.get("cellView") != "form":
            yield f"the solution {first_line(cell)} should have cellView = form, for Colab."
    wanted = [f"{document.number}.{k}" for k in range(1, len(solved) + 1)]
    if solved != wanted or len(solved) < EXERCISES:
        yield (
            f"solutions should be numbered {document.number}.1, {document.number}.2, … in order, "
            f"{EXERCISES} or more; found {', '.join(solved) or 'none'}."
        )
    for key in solved:
        if not re.search(rf"\b{re.escape(key)}\b", announced):
            yield f"the text of the section Exercises should name exercise {key}."
    tried = {
        literal(argument(c, 0, "exercise"))
        for x in document.code
        for c in exercise_checks(x.source)
    }
    for key in sorted(str(key) for key in tried - set(solved)):
        yield f"exercise {key} has no solution cell."


@check(CHAPTER_CHECKS)
def claim_cells(document: Document) -> Iterator[str]:
    cells = [cell for cell in document.code if list(claims(cell.source))]
    if not cells:
        yield "a chapter makes at least one claim: tl.records.claim(…)."
    for cell in cells:
        *others, last = claims(cell.source)
        # A page shows what the last line of a cell returns, and nothing else.
        if others or ast.unparse(tree(cell.source).body[-1]) != ast.unparse(last):
            yield f"a claim should be the last expression of its cell: {first_line(cell)}"
        for call in (*others, last):
            yield from claim_arguments(call, document.number)


def claim_arguments(call: ast.Call, number: str) -> Iterator[str]:
    key = literal(argument(call, 0, "id"))
    if not key or not key.startswith(f"{number}."):
        yield f"a claim's id should be written out, as '{number}.word': {ast.unparse(call)[:60]}"
    text = literal(argument(call, 1, "text"))
    if not text or PERCENTAGE.search(INTERVAL.sub("", text)):
        yield f"claim {key}: the text should be written out, its figures left to 'measured'."
    for position, name in ((2, "holds"), (3, "measured")):
        value = argument(call, position, name)
        if value is None or is_constant(value):
            yield f"claim {key}: {name} should be computed from a measurement."


def is_constant(node: ast.expr) -> bool:
    """Whether an expression has the same truth whatever was measured."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    if not names - set(dir(builtins)):
        return True
    for part in ast.walk(node):
        if isinstance(part, ast.Compare) and ast.dump(part.left) == ast.dump(part.comparators[0]):
            return True
        if isinstance(part, ast.BoolOp) and any(map(is_constant, part.values)):
            return True
    return False


@check(CHAPTER_CHECKS, NOTEBOOK_CHECKS, PAGE_CHECKS)
def numbers(document: Document) -> Iterator[str]:
    for cell in document.markdown:
        if allowed(cell.source, "numbers"):
            continue
        for text in prose(cell.source):
            for sentence in re.split(r"(?<=[.!?])\s+", INTERVAL.sub("", text)):
                if "‹cite›" not in sentence and (found := PERCENTAGE.search(sentence)):
                    yield (
                        f"{found[0]!r} is typed into prose. Let a cell print it; or cite the "
                        f"source in the same sentence; or say <!-- allow numbers: why -->."
                    )


@check(CHAPTER_CHECKS, NOTEBOOK_CHECKS)
def plain_markdown(document: Document) -> Iterator[str]:
    permitted = DIRECTIVES.get(document.name, frozenset())
    for cell in document.markdown:
        for token in tokens(cell.source):
            if token.type == "fence" and token.info.startswith("{") and token.info not in permitted:
                yield f"Colab does not know the directive {token.info}."
            elif token.type == "myst_role" and token.meta["name"] not in ROLES:
                yield f"Colab does not know the role {{{token.meta['name']}}}."
            elif (
                token.type.startswith("html")
                and not token.content.startswith("<!--")
                and not (
                    cell.source.startswith("**Question ") and DISCLOSURE.fullmatch(token.content)
                )
            ):
                yield f"HTML is not plain CommonMark: {token.content.strip()[:50]!r}."
            elif token.type == "text":
                for pattern, what in MYST.items():
                    if found := re.search(pattern, token.content):
                        yield f"{what} is not plain CommonMark: {found[0]!r}."
        # In CommonMark the backslash of \( is an escape, which the parser takes away.
        if found := re.search(r"\\[(\[]", re.sub(r"`[^`]*`|\$[^$]*\$", "", cell.source)):
            yield f"mathematics stands between dollars, found {found[0]!r}."


MYST = {
    r"^:{3,}": "a colon fence",
    r"^\(.+\)=$": "a MyST target",
    r"^%\s": "a MyST comment",
    r"^\+\+\+": "a MyST break",
    r"\[\^[\w-]+\]": "a footnote",
    r"\{[#.][\w-]+\}": "an attribute",
    r"\\begin\{": "an environment outside dollars",
    r"^\$|\$$": "a formula between double dollars inside a paragraph",
}


@check(CHAPTER_CHECKS, NOTEBOOK_CHECKS, PAGE_CHECKS)
def links(document: Document) -> Iterator[str]:
    for cell in document.markdown:
        for token in tokens(cell.source):
            if token.type == "link_open":
                yield from broken_link(document, str(token.attrs["href"]))
            elif token.type == "myst_role" and token.meta["name"] in ROLES:
                for key in token.content.split(","):
                    if key.strip() not in bibliography().entries:
                        yield f"references.bib has no entry {key.strip()!r}."


def broken_link(document: Document, target: str) -> Iterator[str]:
    """A sentence if a link within the repository leads nowhere."""
    if re.match(r"https?://|mailto:", target):
        return
    path, _, fragment = target.partition("#")
    file = document.folder / path
    if path and not file.is_file():
        yield f"the link {target!r} leads to no file."
    elif fragment and fragment not in (Document.read(file) if path else document).slugs:
        yield f"the link {target!r} leads to no heading of {path or 'this page'}."


@check(CHAPTER_CHECKS, NOTEBOOK_CHECKS, PAGE_CHECKS)
def spelling(document: Document) -> Iterator[str]:
    for cell in document.markdown:
        if allowed(cell.source, "spelling"):
            continue
        for text in prose(cell.source):
            for pattern, british in AMERICAN.items():
                for found in re.finditer(rf"\b{pattern}\b", text, re.IGNORECASE):
                    yield f"{found[0]!r} is American spelling; the book writes {british}."


@check(CHAPTER_CHECKS, NOTEBOOK_CHECKS, PAGE_CHECKS)
def own_paths(document: Document) -> Iterator[str]:
    for cell in document.notebook.cells:
        if found := OWN_PATH.search(cell.source):
            yield f"{first_line(cell)} holds a path of somebody's machine: {found[0]!r}."


def duplicate_claims(documents: Iterable[Document]) -> list[str]:
    """The ids that more than one claim of the book has."""
    ids = Counter(
        literal(argument(call, 0, "id"))
        for document in documents
        for cell in document.code
        for call in claims(cell.source)
    )
    return sorted(str(key) for key, count in ids.items() if count > 1)


# The book's own files

NOTEBOOKS = sorted(CHAPTERS.glob("*.ipynb"))
NUMBERED = [path for path in NOTEBOOKS if re.match(r"\d\d-", path.name)]
PAGES = [
    *sorted(CHAPTERS.glob("*.md")),
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")),
]


def cases() -> Iterator[Any]:
    for paths, register in (
        (NUMBERED, CHAPTER_CHECKS),
        ([path for path in NOTEBOOKS if path not in NUMBERED], NOTEBOOK_CHECKS),
        (PAGES, PAGE_CHECKS),
    ):
        for path in paths:
            for name, function in register.items():
                yield pytest.param(function, path, id=f"{path.stem}-{name}")


@pytest.mark.parametrize(("function", "path"), list(cases()))
def test_convention(function: Check, path: Path) -> None:
    findings = list(function(Document.read(path)))
    assert not findings, "\n".join([f"{path.name}:", *findings])


def test_claims_have_ids_of_their_own() -> None:
    assert duplicate_claims(map(Document.read, NUMBERED)) == []


def test_every_exercise_has_a_check_and_every_check_an_exercise() -> None:
    solved = [
        literal(argument(call, 0, "exercise"))
        for path in NUMBERED
        for cell in Document.read(path).code
        if "solution" in tags(cell)
        for call in exercise_checks(cell.source)
    ]
    assert solved == tlhelpers.exercises.ids()


def contents() -> list[Path]:
    """The files that the table of contents names, without the root."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    entries = [entry for part in toc["parts"] for entry in part["chapters"]]
    stems = [ROOT / entry["file"] for entry in entries]
    return [path.with_name(path.name + suffix(path)) for path in stems]


def suffix(stem: Path) -> str:
    return ".ipynb" if stem.with_name(stem.name + ".ipynb").is_file() else ".md"


def test_contents_and_map_name_what_exists() -> None:
    pages = {path for path in CHAPTERS.iterdir() if path.suffix in (".ipynb", ".md")}
    assert {path.relative_to(ROOT) for path in contents()} == {
        path.relative_to(ROOT) for path in pages - {CHAPTERS / "index.md"}
    }
    # The map is made from the contents when the book is built.
    assert "```{include} ../_build/map.md" in (CHAPTERS / "index.md").read_text("utf-8")


def test_colab_links_of_the_landing_page() -> None:
    setting = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]
    project = setting["url"].removeprefix("https://github.com/")
    start = f"https://colab.research.google.com/github/{project}/blob/{setting['branch']}/"
    index = (CHAPTERS / "index.md").read_text("utf-8")
    links = re.findall(r"\((https://colab[^)]+)\)", index)
    wanted = [*NUMBERED, CHAPTERS / "your-own-images.ipynb"]
    assert links == [start + path.relative_to(ROOT).as_posix() for path in wanted]


def test_the_api_page_shows_every_module() -> None:
    page = (CHAPTERS / "api.md").read_text("utf-8")
    shown = re.findall(r"automodule:: tlhelpers\.(\w+)", page)
    assert sorted(shown) == sorted(path.stem for path in PACKAGE.glob("[a-z]*.py"))


def test_glossary_entries_are_whole() -> None:
    text = (CHAPTERS / "glossary.md").read_text("utf-8")
    entries = re.findall(r"^### (.+)\n\n\*\*(.+?)\*\* · ((?:.+\n)+)", text, re.MULTILINE)
    terms = [term for term, _, _ in entries]
    assert len(terms) >= 50
    assert terms == [
        text for level, text in Document.read(CHAPTERS / "glossary.md").headings if level == 3
    ]
    assert len({default_slugify(term) for term in terms}) == len(terms)
    for term, chinese, definition in entries:
        assert re.search(r"[\u4e00-\u9fff]", chinese), f"{term} has no Chinese name"
        assert len(definition) > 20, f"{term} has no definition"


def test_glossary_sections_are_in_alphabetical_order() -> None:
    sections = re.split(r"^## ", (CHAPTERS / "glossary.md").read_text("utf-8"), flags=re.MULTILINE)
    for section in sections[1:]:
        terms = [text for level, text in headings(section) if level == 3]
        assert terms, f"{section[:20]!r} has no terms"
        assert terms == sorted(terms, key=str.casefold)


@cache
def bibliography() -> BibliographyData:
    return parse_file(str(ROOT / "references.bib"))


NEEDED = {
    "article": ("title", "journal", "year"),
    "book": ("title", "publisher", "year"),
    "inproceedings": ("title", "booktitle", "year"),
    "misc": ("title", "year"),
}


def test_references_are_whole() -> None:
    for key, entry in bibliography().entries.items():
        assert re.fullmatch(r"[a-z]+\d{4}", key), f"{key}: not a surname and a year"
        assert entry.persons.get("author"), f"{key}: no author"
        for field in NEEDED[entry.type]:
            assert entry.fields.get(field), f"{key}: no {field}"
        assert key.endswith(entry.fields["year"]), f"{key}: of {entry.fields['year']}"
        if entry.type == "misc":
            assert {"eprint", "howpublished"} & set(entry.fields), f"{key}: where can it be had?"


def test_version_and_repository_are_stated_alike() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == tlhelpers.__version__
    assert f"@v{tlhelpers.__version__}" in template.setup_cell()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["repository-code"] == template.repository()


def four_lines() -> str:
    """The example in the package's own docstring."""
    example = re.search(r"::\n\n((?: {4}.*\n|\n)+)", inspect.cleandoc(tlhelpers.__doc__ or ""))
    assert example is not None
    return textwrap.dedent(example[1]).strip()


@pytest.mark.parametrize("page", ["README.md", "chapters/index.md"])
def test_pages_show_the_four_lines(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert [block.strip() for block in blocks] == [four_lines()]


# The checks themselves: each passes on a fresh chapter and fails on one broken on purpose

Break = Callable[[nbformat.NotebookNode], None]


def fresh() -> nbformat.NotebookNode:
    return template.skeleton("05", "Fine-tune a backbone")


def document(notebook: nbformat.NotebookNode, name: str = "05-fine-tuning.ipynb") -> Document:
    return Document(name, CHAPTERS, notebook)


def cell_with(notebook: nbformat.NotebookNode, text: str) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if text in cell.source)


def edit(old: str, new: str) -> Break:
    """Replace a text in the first cell that has it."""

    def apply(notebook: nbformat.NotebookNode) -> None:
        cell = cell_with(notebook, old)
        cell.source = cell.source.replace(old, new, 1)

    return apply


def drop(text: str) -> Break:
    """Remove the first cell that has a text."""
    return lambda notebook: notebook.cells.remove(cell_with(notebook, text))


def code(source: str) -> Break:
    """Add a code cell to the chapter's body."""
    return lambda notebook: notebook.cells.insert(4, new_code_cell(source))


def prose_cell(source: str) -> Break:
    """Add a Markdown cell to the chapter's body."""
    return lambda notebook: notebook.cells.insert(4, new_markdown_cell(source))


def meta(text: str, **values: Any) -> Break:
    """Change the metadata of the first cell that has a text; None removes a key."""

    def apply(notebook: nbformat.NotebookNode) -> None:
        cell_with(notebook, text).metadata.update(values)
        for key, value in values.items():
            if value is None:
                del cell_with(notebook, text).metadata[key]

    return apply


def notebook_meta(**values: Any) -> Break:
    return lambda notebook: notebook.metadata.update(values)


def code_after(text: str, source: str) -> Break:
    """Add a code cell after the first cell that has a text."""
    return lambda notebook: notebook.cells.insert(
        notebook.cells.index(cell_with(notebook, text)) + 1, new_code_cell(source)
    )


def every_right_choice(is_: str) -> Break:
    """Write the quiz anew, with a sign by which the right choice is known."""
    texts = {"first": ("One.", "Another.", "A third."), "longest": ("By far the longest.", "No.")}

    def apply(notebook: nbformat.NotebookNode) -> None:
        for k in (1, 2, 3):
            right = 0 if is_ == "first" else k % 3
            choices = [texts[is_][0 if i == right else -1] for i in range(3)]
            cell = cell_with(notebook, f"Question 05.{k}")
            cell.source = template.question(f"05.{k}", "…?", choices, right=right)

    return apply


def output(notebook: nbformat.NotebookNode) -> None:
    notebook.cells[3].outputs = [nbformat.v4.new_output("stream", text="hello")]


def count(notebook: nbformat.NotebookNode) -> None:
    notebook.cells[3].execution_count = 1


def old_format(notebook: nbformat.NotebookNode) -> None:
    notebook.nbformat_minor = 4
    for cell in notebook.cells:
        del cell["id"]


def claim(
    holds: str = "accuracy > 0.5",
    *,
    key: str = '"05.x"',
    text: str = "A sentence.",
    measured: str = "accuracy",
) -> Break:
    return code(f'tl.records.claim({key}, "{text}", holds={holds}, measured={measured})')


RECORD = "glyphs/labels"


def in_full(line: str, *, asks: bool = True) -> Break:
    """State what the profile ``full`` costs, and have a cell ask for it."""

    def apply(notebook: nbformat.NotebookNode) -> None:
        edit("1 / –", f"1 / –\n> - **{costs.FULL}:** {line}")(notebook)
        if asks:
            code('if run.profile == "full":\n    1')(notebook)

    return apply


BROKEN: list[tuple[str, Break, str]] = [
    ("title", edit("# 05 · Fine-tune", "# Fine-tune"), "should begin '# 05 · Verb"),
    ("title", edit("# 05 · Fine-tune", "# 06 · Fine-tune"), "number 06"),
    ("title", edit("Fine-tune", "Fine-tuning"), "verb"),
    ("title", prose_cell("# Another title"), "one first-level heading, found 2"),
    ("box", edit("**What you need:** …", "…"), "What you need"),
    ("box", edit("**Download:** none", "**Download:**"), "Download"),
    ("box", edit("**Minutes to read:** 20", "**Minutes to read:** some"), "should be a number"),
    ("box", edit("1 / –", "a minute"), "should read"),
    ("box", edit("1 / –", "1 / 2"), "should have accelerator"),
    ("full-costs", notebook_meta(accelerator="GPU"), "the box says that one is no use"),
    ("full-costs", code('if run.profile == "full":\n    1'), "should have Minutes in `full`"),
    ("full-costs", in_full("not measured", asks=False), "and only there"),
    ("full-costs", code(f'tl.records.get("{RECORD}", live=f)'), "25 / – / –, from its records"),
    ("full-costs", in_full("90 / 15 / 5"), "should read"),
    ("full-costs", in_full("90 / 15 / 5, estimated"), "should have accelerator"),
    ("full-costs", in_full("90 / – / –, from its records"), "not only the records"),
    ("setup-cell", drop("find_spec"), "set-up cell"),
    ("setup-cell", edit("@v", "@main-v"), "set-up cell"),
    ("setup-cell", edit("example-org", "another-org"), "set-up cell"),
    ("setup-cell", meta("find_spec", tags=[]), "tagged hide-input"),
    ("profile-cell", drop("PROFILE ="), "PROFILE"),
    ("profile-cell", edit('"quick"', '"full"'), "PROFILE"),
    ("profile-cell", meta("PROFILE =", tags=["hide-input"]), "tagged parameters"),
    ("no-outputs", output, "has outputs"),
    ("no-outputs", count, "or a count"),
    ("no-outputs", code("x = 1"), "numbered from 0"),
    ("metadata", old_format, "4.5"),
    ("metadata", notebook_meta(kernelspec={"name": "ir", "display_name": "R"}), "python3"),
    ("metadata", notebook_meta(language_info={"name": "R"}), "language"),
    ("metadata", notebook_meta(language_info={"name": "python", "version": "3.13"}), "version"),
    ("metadata", notebook_meta(widgets={}), "should not hold widgets"),
    ("metadata", meta("tl.setup", scrolled=True), "should not hold scrolled"),
    ("cell-size", code("\n".join(["x = 1"] * 31)), "31 lines"),
    ("cell-size", code(f"x = '{'a' * 75}'"), "has 81 characters"),
    ("cell-size", code(" "), "empty"),
    ("magics", code("%matplotlib inline"), "magic"),
    ("magics", code("%%time\nx = 1"), "magic"),
    ("magics", code("!ls"), "magic or a shell"),
    ("magics", code("files = !ls"), "magic or a shell"),
    ("magics", code("%pip install torch"), "magic"),
    ("magics", code("x = = 1"), "not Python"),
    ("figures", code("import matplotlib.pyplot as plt"), "import of matplotlib"),
    ("figures", code("from seaborn import lineplot"), "import of seaborn"),
    ("figures", code("frame.plot()"), r"frame\.plot"),
    ("figures", code("figure, axes = pyplot.subplots()"), r"pyplot\.subplots"),
    ("figures", prose_cell("![](picture.png)"), "alt text"),
    ("figures", prose_cell("![figure](picture.png)"), "alt text"),
    ("sections", edit("## Traps", "### Traps"), "Traps"),
    ("sections", edit("## Traps", "## Further reading"), "in this order"),
    ("sections", lambda n: n.cells.append(new_markdown_cell("## Notes")), "last section"),
    ("sections", drop("tl.records.claim"), "no code cell"),
    ("sections", edit("{cite:t}`pan2010`", ""), "should cite"),
    ("sections", edit("## Quiz", "## Questions"), "Quiz"),
    ("quiz", drop("Question 05.3"), "3 to 5 questions, .* found 2"),
    ("quiz", code_after("Question 05.3", "x = 1"), r"\*\*Question 05\.4\.\*\* …'"),
    ("quiz", edit("Question 05.2", "Question 05.4"), r"'\*\*Question 05\.2\.\*\* …'"),
    ("quiz", edit("**Question 05.2.**", "### Question 05.2"), "should begin"),
    ("quiz", edit("</summary>\n\n", "</summary>\n"), "blank lines included; found 2"),
    ("quiz", edit("<details>", "<details open>"), "form of the template"),
    ("quiz", edit("Not so: say", "Say"), "not with one of the two"),
    ("quiz", edit("Not so: say why it is wrong, and where", "Not so: where"), "say more of why"),
    ("quiz", edit("Say what the chapter measured that shows it.", "It is."), "say more of why"),
    ("quiz", edit("**Right.** Say", "Not so: say"), "one right choice, found 0"),
    ("quiz", edit("Not so: say", "**Right.** Say"), "one right choice, found 2"),
    ("quiz", every_right_choice("first"), "same place in every question"),
    ("quiz", every_right_choice("longest"), "longest in every question"),
    ("exercises", drop("Solution 05.3"), "3 or more; found 05.1, 05.2"),
    ("exercises", edit('assert tl.check("05.2", answer)', "answer"), "assert"),
    ("exercises", edit('assert tl.check("05.2"', 'tl.check("05.2"'), "assert"),
    ("exercises", edit('tl.check("05.2"', "tl.check(number"), "written out"),
    ("exercises", edit("### Exercise 05.2", "### Another"), "name exercise 05.2"),
    ("exercises", edit("# @title Solution 05.2", "# Solution"), "@title Solution 05.2"),
    ("exercises", meta("Solution 05.2", tags=["solution"]), "tagged"),
    ("exercises", meta("Solution 05.2", cellView=None), "cellView"),
    ("exercises", code('tl.check("05.9", 3)'), "05.9 has no solution"),
    ("claim-cells", drop("tl.records.claim"), "at least one claim"),
    ("claim-cells", claim("True"), "05.x: holds"),
    ("claim-cells", claim("not False"), "holds"),
    ("claim-cells", claim("bool(1)"), "holds"),
    ("claim-cells", claim("accuracy >= accuracy"), "holds"),
    ("claim-cells", claim("accuracy > 0.5 or True"), "holds"),
    ("claim-cells", claim(measured='"83 %"'), "measured"),
    ("claim-cells", claim(key='f"{name}"'), "id should be written out"),
    ("claim-cells", claim(key='"04.x"'), "as '05.word'"),
    ("claim-cells", claim(text="It reaches 82 %."), "left to 'measured'"),
    ("claim-cells", code("c = tl.records.claim('05.x', 'A.', a > b, a)"), "last expression"),
    ("claim-cells", code("tl.records.claim('05.x', 'A.', a > b, a)\na"), "last expression"),
    ("numbers", prose_cell("The probe reaches 82.4 % here."), "82.4 %"),
    ("numbers", prose_cell("The probe reaches 82\u202f%."), "typed into prose"),
    ("numbers", prose_cell("It gains 3 percentage points."), "3 percentage points"),
    ("numbers", prose_cell("It gains $3.1\\,\\%$ here."), "3.1 %"),
    ("numbers", prose_cell("An accuracy of 0.82 results."), "accuracy of 0.82"),
    ("numbers", prose_cell("See {cite:p}`pan2010`. It is 82 % here."), "82 %"),
    ("numbers", prose_cell("The [probe](glossary.md#linear-probe) reaches 82 %."), "82 %"),
    ("numbers", prose_cell("| probe |\n| --- |\n| 82 % |"), "82 %"),
    ("numbers", prose_cell("<!-- allow numbers: -->\nIt is 82 %."), "82 %"),
    ("numbers", edit("<summary>One.", "<summary>It gains 3 per cent."), "3 per cent"),
    ("numbers", edit("Not so: say", "Not so: with 82 % say"), "82 %"),
    ("plain-markdown", prose_cell("```{note}\nA note.\n```"), "directive {note}"),
    ("plain-markdown", prose_cell("```{nb-exec-table}\n```"), "directive"),
    ("plain-markdown", prose_cell("{term}`probe`"), "role {term}"),
    ("plain-markdown", prose_cell(":::{note}\nA note.\n:::"), "colon fence"),
    ("plain-markdown", prose_cell("(target)=\n\nText."), "MyST target"),
    ("plain-markdown", prose_cell("% a comment"), "MyST comment"),
    ("plain-markdown", prose_cell("Text.[^1]"), "footnote"),
    ("plain-markdown", prose_cell("<b>bold</b>"), "HTML"),
    ("plain-markdown", prose_cell("<details>\n<summary>More</summary>\n\nText."), "HTML"),
    ("plain-markdown", edit("<summary>One.", "<summary><b>One</b>."), "HTML"),
    ("plain-markdown", prose_cell("\\begin{align}a\\end{align}"), "outside dollars"),
    ("plain-markdown", prose_cell("See \\(x\\)."), "between dollars"),
    ("plain-markdown", prose_cell("See $$x$$ here."), "inside a paragraph"),
    ("links", prose_cell("[probe](glossary.md#linear-prob)"), "no heading of glossary.md"),
    ("links", prose_cell("[probe](#no-such-heading)"), "no heading of this page"),
    ("links", prose_cell("[next](99-nothing.ipynb)"), "no file"),
    ("links", prose_cell("{cite:p}`nobody1900`"), "no entry 'nobody1900'"),
    ("spelling", prose_cell("The color."), "'color'"),
    ("spelling", prose_cell("Nearest neighbors."), "'neighbors'"),
    ("spelling", prose_cell("We optimize and normalize."), "'optimize'"),
    ("spelling", prose_cell("A labeled image."), "'labeled'"),
    ("spelling", prose_cell("We analyze it."), "'analyze'"),
    ("spelling", prose_cell("The center."), "'center'"),
    ("spelling", prose_cell("<!-- allow spelling: -->\nThe color."), "'color'"),
    ("spelling", edit("<summary>One.", "<summary>Its color."), "'color'"),
    ("own-paths", code('path = "/home/somebody/dogs"'), "/home/"),
    ("own-paths", prose_cell("Look into `/tmp/dogs`."), "/tmp/"),
]


@pytest.mark.parametrize(
    ("name", "break_it", "message"), BROKEN, ids=[f"{name}: {what}" for name, _, what in BROKEN]
)
def test_check_finds_what_it_is_for(name: str, break_it: Break, message: str) -> None:
    notebook = fresh()
    break_it(notebook)
    findings = "\n".join(CHAPTER_CHECKS[name](document(notebook)))
    assert re.search(message, findings), findings or "nothing was found"


@pytest.mark.parametrize("name", CHAPTER_CHECKS)
def test_check_passes_on_a_fresh_chapter(name: str) -> None:
    assert list(CHAPTER_CHECKS[name](document(fresh()))) == []


def test_no_check_is_untested() -> None:
    assert {name for name, _, _ in BROKEN} == set(CHAPTER_CHECKS)
    assert set(CHAPTER_CHECKS) > set(NOTEBOOK_CHECKS) > set(PAGE_CHECKS)


FINE: list[tuple[str, str]] = [
    ("numbers", "Somebody reports 85 % {cite:p}`pan2010`."),
    ("numbers", 'Folklore says "85 % against 75 %", and we shall see.'),
    ("numbers", "The band is a 95 % confidence interval, from 1,000 resamples."),
    ("numbers", "Set `quality = 90 %` there."),
    ("numbers", "<!-- allow numbers: a rate of tax, not a measurement -->\nIt is 19 %."),
    ("numbers", "Twenty images of 224 × 224 pixels in 120 breeds."),
    ("spelling", "The size of the prize; resized images; colour; a horizon."),
    ("spelling", "Call `torch.optim.Optimizer` to optimise; `color` in code."),
    ("spelling", "A group named “Center for Color”."),
    ("plain-markdown", "{cite:p}`pan2010` and $a < b$ and `{term}` and [a](glossary.md)."),
    ("plain-markdown", template.question("05.1", "$a$?", ("<code>x = 1</code>.",), right=0)),
    ("spelling", template.question("05.1", "Which?", ("<code>color</code>.",), right=0)),
    ("plain-markdown", "Text:\n\n$$\nx = \\frac{1}{2}\n$$\n\nIt costs \\$5."),
    ("plain-markdown", "| a | b |\n| --- | --- |\n| 1 | $\\\\(x$ |"),
    ("links", "[probe](glossary.md#linear-probe), [traps](#traps), [web](https://example.org)"),
    ("own-paths", "See https://example.org/home/page and and/or."),
]


@pytest.mark.parametrize(("name", "text"), FINE)
def test_check_leaves_what_is_right(name: str, text: str) -> None:
    notebook = fresh()
    prose_cell(text)(notebook)
    assert list(CHAPTER_CHECKS[name](document(notebook))) == []


def test_own_axes_may_be_drawn_on() -> None:
    notebook = fresh()
    code("figure, axes = tl.plots.figure(alt='A curve.')\naxes.plot(x, y)\nfigure")(notebook)
    assert list(CHAPTER_CHECKS["figures"](document(notebook))) == []


def test_duplicate_claims_are_found_across_chapters() -> None:
    assert duplicate_claims([document(fresh())]) == []
    assert duplicate_claims([document(fresh()), document(fresh())]) == ["05.first"]


# tools/chapter.py


def test_new_chapter_is_written_once(tmp_path: Path) -> None:
    path = template.new("05", "fine-tuning", "Fine-tune a backbone", folder=tmp_path)
    assert path.name == "05-fine-tuning.ipynb"
    assert nbformat.read(path, as_version=4) == fresh()
    with pytest.raises(FileExistsError, match="chapter 05 exists: 05-fine-tuning"):
        template.new("05", "another", "Another title", folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("number", "slug", "message"),
    [("5", "fine-tuning", "two digits"), ("05", "Fine tuning", "lower-case words")],
)
def test_new_chapter_refuses_odd_names(
    tmp_path: Path, number: str, slug: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        template.new(number, slug, "Fine-tune a backbone", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_sync_renews_the_setup_cell_and_nothing_else(tmp_path: Path) -> None:
    old, current = fresh(), fresh()
    old.cells[1].source = old.cells[1].source.replace("@v", "@v0.0.")
    template.write(old, tmp_path / "05-old.ipynb")
    template.write(current, tmp_path / "06-current.ipynb")
    assert template.sync(folder=tmp_path) == [tmp_path / "05-old.ipynb"]
    assert nbformat.read(tmp_path / "05-old.ipynb", as_version=4) == fresh()
    assert template.sync(folder=tmp_path) == []


def test_sync_refuses_a_notebook_without_setup_cell(tmp_path: Path) -> None:
    notebook = fresh()
    drop("find_spec")(notebook)
    template.write(notebook, tmp_path / "05-odd.ipynb")
    with pytest.raises(ValueError, match=r"05-odd\.ipynb: the first code cell"):
        template.sync(folder=tmp_path)
