"""A count that several processes share; apart, so that the one that holds it loads no torch."""

from __future__ import annotations

from collections import Counter


class Attempts:
    """How often each piece of work has been begun."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def begin(self, piece: int) -> int:
        """Count a beginning; returns how often it has been begun, this time included."""
        self.begun[piece] += 1
        return self.begun[piece]
