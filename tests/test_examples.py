"""Every public function and class in the API reference shows an example, which runs as a doctest.

``pytest --doctest-modules tlhelpers`` runs the examples; here we see to it that none is missing.
A class that a function with an example returns needs none of its own, nor does an exception or a
protocol. What cannot be shown in a moment stands in :data:`EXCEPTIONS` with the reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TRAINS = "trains networks for minutes; its record is shipped"
SECONDS = "trains for longer than an example should take"
PHOTOGRAPHS = "trains on photographs, which are not shipped; its record is"
QUESTIONS = "needs the questions' texts, which are not shipped; its record is"
ENCODER = "needs a sentence encoder, which is not shipped"
OPTUNA = "needs Optuna, an extra"
SENTENCES = "needs transformers, an extra, and a sentence encoder's weights"
MACHINE = "what it gives is the machine's own"
WEIGHTS = "needs photographs and a backbone's weights"
FILMS = "needs films and weights, which are not shipped"

EXCEPTIONS = {
    "ablation.rerun": TRAINS,
    "ablation.study": TRAINS,
    "ablation.depth_study": TRAINS,
    "ablation.rates_study": TRAINS,
    "ablation.tuning_study": TRAINS,
    "ablation.search": OPTUNA,
    "ablation.proposed": OPTUNA,
    "ablation.chosen": OPTUNA,
    "adapt_study.compare": TRAINS,
    "adapt_study.larger": TRAINS,
    "adapt_study.skew": TRAINS,
    "adapt_study.few_labels": TRAINS,
    "adapt_study.strength": TRAINS,
    "banking.tfidf": QUESTIONS,
    "banking.finetune": ENCODER,
    "banking.search": QUESTIONS,
    "banking.finetuned": QUESTIONS,
    "banking.pooling": QUESTIONS,
    "banking.make_bank": ENCODER,
    "clip.load": "needs transformers, an extra, and weights from its hub",
    "clip.study": "needs photographs, and weights from a hub",
    "dogs.study": PHOTOGRAPHS,
    "dogs.label_study": PHOTOGRAPHS,
    "dogs.ablation_study": PHOTOGRAPHS,
    "federated.compare": TRAINS,
    "inside_study.finetuned": TRAINS,
    "inside_study.shortcut_networks": SECONDS,
    "inside_study.shortcuts": TRAINS,
    "labels.study": TRAINS,
    "meta_study.classifier": SECONDS,
    "meta_study.compare": TRAINS,
    "meta_study.learn": SECONDS,
    "meta_study.prototypical": SECONDS,
    "multitask.compare": TRAINS,
    "negative.finetuned": TRAINS,
    "negative.freezing": TRAINS,
    "negative.pretrain": SECONDS,
    "negative.remedies": TRAINS,
    "negative.several": TRAINS,
    "pretrain.letters": SECONDS,
    "reporting.measure": SECONDS,
    "runtime.cores": MACHINE,
    "runtime.memory_bytes": MACHINE,
    "scaling.has_compiler": MACHINE,
    "scaling.lora_study": TRAINS,
    "scaling.rehearse": "needs Ray, an extra, and photographs",
    "scaling.speed": "times training steps for minutes; its record is shipped",
    "scaling.training_step": "a step to be timed; it returns nothing to show",
    "scaling.tune": SECONDS,
    "studies.compression": "needs a bank that is not compressed, which is not shipped",
    "studies.untrained_head": WEIGHTS,
    "studies.views": WEIGHTS,
    "text.Encoder": SENTENCES,
    "text.SentenceNetwork": SENTENCES,
    "text.TextClassifier": SENTENCES,
    "text.classifier": SENTENCES,
    "text.encoder": SENTENCES,
    "text.extract": SENTENCES,
    "text.tokenise": SENTENCES,
    "transferability.imagenet_head": WEIGHTS,
    "trial.run_trial": TRAINS,
    "unseen.compare": TRAINS,
    "unseen.omniglot": "downloads Omniglot",
    "words_study.combinations": TRAINS,
    "words_study.few_labels": TRAINS,
    "words_study.inside": TRAINS,
    "words_study.prompts": TRAINS,
    "words_study.train": SECONDS,
    "words_study.trained": SECONDS,
    "xrays.backbone": "needs weights from torchvision's server",
    "xrays.finetune": FILMS,
    "xrays.labels": FILMS,
    "xrays.layers": FILMS,
    "xrays.scratch": SECONDS,
    "zoo.finetuned": TRAINS,
    "zoo.pretrain": SECONDS,
    "zoo.pretrained": SECONDS,
}
"""What shows no example, and why."""

NEED_NONE = ("Error", "Exception", "Warning", "Protocol", "TypedDict")  # in the names of bases

Public = ast.FunctionDef | ast.ClassDef


def modules() -> list[str]:
    """The modules of the API reference."""
    text = (ROOT / "chapters/api.md").read_text(encoding="utf-8")
    return re.findall(r"automodule:: tlhelpers\.(\w+)", text)


def public(source: str) -> list[Public]:
    """The public functions and classes that a module defines."""
    return [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


def functions(node: Public) -> Iterator[ast.FunctionDef]:
    """The function itself, or the methods of a class."""
    if isinstance(node, ast.FunctionDef):
        yield node
    else:
        yield from (part for part in node.body if isinstance(part, ast.FunctionDef))


def has_example(node: Public) -> bool:
    """Whether the docstring shows an example; of a class, its own or that of a method."""
    return any(">>>" in (ast.get_docstring(part) or "") for part in (node, *functions(node)))


def returned(node: Public) -> set[str]:
    """The names in the annotations of what is returned."""
    annotations = [part.returns for part in functions(node) if part.returns is not None]
    parts = [part for annotation in annotations for part in ast.walk(annotation)]
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    return names | {part.attr for part in parts if isinstance(part, ast.Attribute)}


def needs_example(node: Public) -> bool:
    """Whether the rule asks for one at all: not of exceptions, nor of what only names a shape."""
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    return not any(word in ast.unparse(base) for base in bases for word in NEED_NONE)


def without_example(sources: dict[str, str]) -> list[str]:
    """``module.name`` of all that should show an example and does not.

    Args:
        sources: the text of each module, by name.
    """
    found = {f"{m}.{node.name}": node for m, source in sources.items() for node in public(source)}
    shown = {name for node in found.values() if has_example(node) for name in returned(node)}
    return [
        name
        for name, node in found.items()
        if needs_example(node)
        and not has_example(node)
        and not (isinstance(node, ast.ClassDef) and node.name in shown)
    ]


@pytest.fixture(scope="module")
def missing() -> list[str]:
    texts = {m: (ROOT / f"tlhelpers/{m}.py").read_text(encoding="utf-8") for m in modules()}
    return without_example(texts)


def test_every_public_name_shows_an_example(missing: list[str]) -> None:
    names = [name for name in missing if name not in EXCEPTIONS]
    assert not names, (
        f"{', '.join(names)}: write two to six lines that teach the name, as an 'Example:' at the "
        f"end of its docstring; or, if its shortest honest call takes more than three seconds, say "
        f"so in EXCEPTIONS of tests/test_examples.py."
    )


def test_every_exception_is_still_one(missing: list[str]) -> None:
    names = [name for name in EXCEPTIONS if name not in missing]
    assert not names, (
        f"{', '.join(names)}: take it out of EXCEPTIONS in tests/test_examples.py; it is gone, or "
        f"has an example by now."
    )


EXAMPLE = '"""What it is.\n\n    >>> 1\n    1\n    """'
MADE = {
    "shown": f"def make() -> Made:\n    {EXAMPLE}\nclass Made: ...",
    "a method's": f"class Made:\n    def half(self) -> Half:\n        {EXAMPLE}\nclass Half: ...",
    "among others": f"def all() -> dict[str, list[one.Made]]:\n    {EXAMPLE}\nclass Made: ...",
    "private": "def _make(): ...",
    "an error": "class Wrong(ValueError): ...\nclass Shape(Protocol): ...",
}
BARE = {
    "a function": "def made(): ...",
    "a class": "class made: ...",
    "only taken": f"def use(it: made) -> int:\n    {EXAMPLE}\nclass made: ...",
    "returned by a function without": "def _make() -> made: ...\nclass made: ...",
    "a function is no result": f"def use() -> made:\n    {EXAMPLE}\ndef made(): ...",
    "in a comment": "def made():\n    # >>> 1\n    ...",
}


@pytest.mark.parametrize("source", MADE.values(), ids=MADE)
def test_the_rule_is_content(source: str) -> None:
    assert without_example({"module": source}) == []


@pytest.mark.parametrize("source", BARE.values(), ids=BARE)
def test_the_rule_finds_what_lacks_one(source: str) -> None:
    assert without_example({"module": source}) == ["module.made"]


def test_a_class_may_be_returned_in_another_module() -> None:
    one = f"def make() -> two.Made:\n    {EXAMPLE}"
    assert without_example({"one": one, "two": "class Made: ..."}) == []
