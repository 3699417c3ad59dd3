"""The numbers of a training loop, read from the device now and then; ``train.fit`` stands on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tlhelpers._processes import Group


class Meter:
    """Loss and accuracy of the steps since the last evaluation.

    The numbers of the last steps stay on the device until somebody settles: reading them one by
    one would have the program wait for each step.
    """

    def __init__(
        self, losses: list[float] | None = None, sizes: list[int] | None = None, hits: int = 0
    ) -> None:
        self.losses, self.sizes, self.hits = losses or [], sizes or [], hits
        self._pending: list[Tensor] = []
        self._shares: list[int] = []

    def add(self, numbers: Tensor, rows: int, size: int) -> None:
        """A step's loss, penalised loss and hits, of this process's rows of a batch of a size."""
        self._pending.append(numbers)
        self._shares.append(rows)
        self.sizes.append(size)

    def __len__(self) -> int:
        """How many steps are not settled."""
        return len(self._pending)

    def settle(self, group: Group) -> int | None:
        """Read the numbers of all processes.

        Returns:
            which of the steps since the last time was the first without a finite loss, if any.
        """
        if not self._pending:
            return None
        table = torch.stack(self._pending).cpu().double()
        losses, hits, finite = table[:, 0], table[:, 2], table[:, 1].isfinite()
        if group.size > 1:
            shares, sizes = (torch.tensor(n[-len(table) :]) for n in (self._shares, self.sizes))
            table = torch.stack([losses * shares, hits, (~finite).double()])
            losses, hits, infinite = group.total(table).cpu()
            losses, finite = losses / sizes, infinite == 0
        self.losses += losses.tolist()
        self.hits += int(hits.sum())
        self._pending.clear()
        self._shares.clear()
        return None if finite.all() else int(finite.int().argmin())

    def means(self) -> tuple[float, float]:
        """The mean loss and the accuracy over all examples."""
        weights = torch.tensor(self.sizes, dtype=torch.float64)
        mean = (torch.tensor(self.losses, dtype=torch.float64) * weights).sum() / weights.sum()
        return float(mean), self.hits / sum(self.sizes)

    def state(self) -> dict[str, Any]:
        """What makes another meter of these numbers."""
        return {"losses": self.losses, "sizes": self.sizes, "hits": self.hits}
