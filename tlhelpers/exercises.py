"""Checks for the exercises of the book: right, or a hint.

``tl.check("04.1", answer)`` runs what a reader wrote on examples made on the spot and says
what goes wrong with it. A check computes what is right as it needs it and never prints it.
The text of an exercise is the docstring of its check, see :func:`text`. The checks of chapter NN
stand in ``_exercises_NN.py`` and are imported when they are first asked for.
"""

from __future__ import annotations

import html
import importlib
import inspect
import math
import numbers
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tlhelpers

Check = Callable[[Any], None]


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check found; true where the answer is right.

    Attributes:
        id: the exercise, such as ``"04.1"``.
        passed: whether the answer is right.
        message: what the answer has shown, or a hint.
    """

    id: str
    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.id} {self.message}"

    def _repr_html_(self) -> str:
        # A paragraph breaks its lines where the page ends; plain output is cut off there.
        return f'<p class="tl-verdict">{html.escape(repr(self))}</p>'


class Hint(Exception):
    """Raised by a check to tell the reader what is wrong."""


@dataclass(frozen=True)
class _Exercise:
    check: Check
    praise: str
    text: str


_MODULE = "_exercises_"
_exercises: dict[str, _Exercise] = {}


def check(id: str, answer: Any) -> Verdict:
    """Check an answer to an exercise; display the verdict as the last line of a cell.

    Whatever an answer does to torch's random state is undone.

    Args:
        id: the exercise's number, such as ``"04.1"``.
        answer: what the exercise asks for, usually a function.

    Raises:
        KeyError: if there is no such exercise; the known ones are listed.

    >>> check("04.1", lambda d, m: "a head")
    ✗ 04.1 head(8, 3) should return a torch module, but it returned a value of type str.
    """
    exercise = _find(id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            exercise.check(answer)
        except Hint as hint:
            return Verdict(id, False, str(hint))
    return Verdict(id, True, exercise.praise)


def text(id: str) -> str:
    """What the exercise asks for, in Markdown.

    Example:
        >>> import tlhelpers as tl
        >>> print(tl.exercises.text("04.1").splitlines()[0])
        Write a function `head(d, m)` that returns the head of a linear probe as a torch module.
    """
    return _find(id).text


def ids() -> list[str]:
    """The numbers of the exercises that have a check, sorted.

    Example:
        >>> import tlhelpers as tl
        >>> [id for id in tl.exercises.ids() if id.startswith("04")]
        ['04.1', '04.2', '04.3']
    """
    for module in pkgutil.iter_modules(tlhelpers.__path__):
        if module.name.startswith(_MODULE):
            importlib.import_module(f"tlhelpers.{module.name}")
    return sorted(_exercises)


def exercise(id: str, praise: str) -> Callable[[Check], Check]:
    """Register a check: a function that raises :class:`Hint` unless the answer is right.

    Args:
        id: the chapter and the number of the exercise, such as ``"04.1"``.
        praise: what a right answer has shown, one sentence.

    Example:
        >>> import tlhelpers as tl
        >>> @tl.exercises.exercise("99.1", praise="Right.")
        ... def check_double(answer):
        ...     if answer(2) != 4:
        ...         raise tl.exercises.Hint("double(2) should be 4.")
        Traceback (most recent call last):
            ...
        ValueError: the check of exercise 99.1 needs a docstring: the exercise's text.
    """

    def register(function: Check) -> Check:
        if id in _exercises:
            raise ValueError(f"exercise {id} has a check already: {_exercises[id].check.__name__}.")
        if not function.__doc__:
            raise ValueError(f"the check of exercise {id} needs a docstring: the exercise's text.")
        _exercises[id] = _Exercise(function, praise, inspect.cleandoc(function.__doc__))
        return function

    return register


def _find(id: str) -> _Exercise:
    if id not in _exercises:
        ids()  # imports the checks of all chapters
    if id not in _exercises:
        raise KeyError(f"there is no exercise {id!r}; there are {', '.join(ids())}.")
    return _exercises[id]


def ask(function: Any, *arguments: Any, call: str) -> Any:
    """What the reader's function returns; an exception in it becomes a hint.

    Example:
        >>> import tlhelpers as tl
        >>> tl.exercises.ask(lambda a, b: a - b, 5, 2, call="gain(5, 2)")
        3
        >>> tl.exercises.ask(lambda a: a / 0, 5, call="gain(5)")
        Traceback (most recent call last):
            ...
        tlhelpers.exercises.Hint: gain(5) raised ZeroDivisionError: division by zero
    """
    try:
        return function(*arguments)
    except Exception as error:
        raise Hint(f"{call} raised {type(error).__name__}: {error}") from error


def expect_function(answer: Any, signature: str) -> None:
    """A hint unless the answer is a function; ``signature`` is how the exercise writes it.

    Example:
        >>> import tlhelpers as tl
        >>> tl.exercises.expect_function(0.5, "accuracy(logits, y)")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        tlhelpers.exercises.Hint: the answer should be the function accuracy(logits, y) itself, ...
    """
    if isinstance(answer, nn.Module) or not callable(answer):
        raise Hint(
            f"the answer should be the function {signature} itself, not what it returns; "
            f"found {describe(answer)}."
        )


def differing(
    found: Mapping[str, Any], right: Mapping[str, Tensor], call: str, *, source: str, atol: float
) -> Iterator[str]:
    """The entries of an answered state of a network whose numbers are not the right ones.

    A hint where an entry has another shape, or where a count of batches is not as it was in
    ``source``: counts are not averaged.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> right = {"weight": torch.ones(2), "bias": torch.zeros(2)}
        >>> found = {"weight": torch.ones(2), "bias": torch.ones(2)}
        >>> list(tl.exercises.differing(found, right, "average(a, b)", source="a", atol=1e-6))
        ['bias']
    """
    for key, value in right.items():
        entry = found[key]
        if not isinstance(entry, Tensor) or entry.shape != value.shape:
            raise Hint(f"{call} should give {key!r} as a tensor of shape {tuple(value.shape)}.")
        if not value.is_floating_point():
            if entry.is_floating_point() or not torch.equal(entry, value):
                raise Hint(f"{call} should take {key!r} from {source}: it counts whole batches.")
        elif not torch.allclose(entry, value, atol=atol):
            yield key


def describe(value: Any) -> str:
    """What kind of thing the value is, for the end of a sentence.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> tl.exercises.describe(torch.zeros(2)), tl.exercises.describe(None)
        ('a value of type Tensor', 'None')
    """
    return "None" if value is None else f"a value of type {type(value).__name__}"


def number(value: Any, call: str) -> float:
    """The value as a float; a hint if it is anything but one finite number.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> tl.exercises.number(torch.tensor(0.5), "loss(x)")
        0.5
        >>> tl.exercises.number(torch.tensor([0.5, 0.7]), "loss(x)")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        tlhelpers.exercises.Hint: loss(x) should return one number, but it returned a value of ...
    """
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise Hint(f"{call} should return one number, but it returned {describe(value)}.")
    if not math.isfinite(value):
        raise Hint(f"{call} should return a finite number, but it returned {value}.")
    return float(value)
