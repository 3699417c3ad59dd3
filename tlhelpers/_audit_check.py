"""What a check of :mod:`tlhelpers.audit` is, and what checks share.

A check is a function of a :class:`~tlhelpers._audit_setup.Setup` that returns what it found, or
None; :func:`trap` makes it one. It may disturb the set-up: the caller puts everything back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlhelpers._audit_setup import Setup

ERROR = "error"
NOTE = "note"

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Found:
    """What a check saw.

    Attributes:
        what: in a sentence, with its figures.
        evidence: the measurements behind it, by name.
        fix: what to do, where that is not the check's usual advice.
        severity: ``ERROR``, or ``NOTE`` for advice and for what may be on purpose.
    """

    what: str
    evidence: Mapping[str, Any]
    fix: str | None = None
    severity: str = ERROR


@dataclass(frozen=True)
class Check:
    """A trap, and how to look for it.

    Attributes:
        id: a word or two, for people to refer to it.
        sentence: the trap.
        why: why it harms.
        fix: what to do, as a rule.
        look: what was found, or None; raises ``Lacking`` or ``CallableError`` where it cannot tell.
    """

    id: str
    sentence: str
    why: str
    fix: str
    look: Callable[[Setup], Found | None]


def trap(
    id: str, sentence: str, *, why: str, fix: str
) -> Callable[[Callable[[Setup], Found | None]], Check]:
    """Make a function the check for a trap. :mod:`tlhelpers.audit` lists those that it runs."""
    return lambda look: Check(id, sentence, why, fix, look)


def how_many(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def first_few(names: Sequence[str]) -> str:
    """``'a', 'b', 'c' and 3 more``."""
    shown = [repr(name) for name in names[:3]]
    if len(names) > 3:
        return ", ".join(shown) + f" and {len(names) - 3} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
