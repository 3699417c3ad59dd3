"""Where a training loop's batches come from: a tensor on its device, or a thread that reads ahead.

``train.fit`` stands on this module. Which of the two it is changes nothing in a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from tlhelpers import splits
from tlhelpers.splits import Split

SHARE = 0.25  # of an accelerator's free memory, for the images of one split
_AHEAD = 2  # batches that wait while a step runs
_CHUNK = 256  # images that are read at a time on their way to the device

Batch = tuple[Tensor, Tensor]


class Held:
    """A split in the memory of the device.

    Attributes:
        index_device: where the positions of a batch must be.
    """

    def __init__(self, x: Tensor, y: Tensor, device: torch.device) -> None:
        x = x.to(device)
        # Bytes stay in their order: the copy would take as much memory as the images.
        if x.ndim == 4 and x.dtype != torch.uint8:
            x = x.contiguous(memory_format=torch.channels_last)
        self.inputs, self.labels = x, y.to(device)
        self.index_device = self.labels.device

    def __len__(self) -> int:
        return len(self.labels)

    def numbers(self) -> int:
        """How many numbers an example has."""
        return self.inputs[0].numel()

    def batches(self, wanted: Iterable[Tensor | slice]) -> Generator[Batch, None, None]:
        """The inputs and labels at each of the positions, or of each stretch, that are wanted."""
        for rows in wanted:
            yield self.inputs[rows], self.labels[rows]


class Streamed:
    """A split that is read when it is needed, two batches ahead of the step that needs them."""

    def __init__(self, x: splits.Rows, y: Tensor, device: torch.device) -> None:
        self.x, self.y, self.device = x, y, device
        self.index_device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.y)

    def numbers(self) -> int:
        """How many numbers an example has."""
        return read(self.x, torch.zeros(1, dtype=torch.int64)).numel()

    def batches(self, wanted: Iterable[Tensor | slice]) -> Generator[Batch, None, None]:
        """See :meth:`Held.batches`; what goes wrong in the thread is raised here."""
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            try:
                for rows in wanted:
                    waiting.append(thread.submit(self._load, rows))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for batch in waiting:
                    batch.cancel()

    def _load(self, rows: Tensor | slice) -> Batch:
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        batch = read(self.x, rows), self.y[rows]
        if self.device.type == "cuda":  # from pinned memory the copy waits for nobody
            batch = batch[0].pin_memory(), batch[1].pin_memory()
        x, y = (part.to(self.device, non_blocking=True) for part in batch)
        return x, y


def source(split: Split, device: torch.device) -> Held | Streamed:
    """Where the batches of a split come from.

    A tensor is held on the device; images (uint8, or a lazy sequence) on an accelerator only
    where they fit into a quarter of its free memory. A lazy sequence on a CPU is read ahead.
    """
    x = split.x
    if isinstance(x, Tensor) and (device.type == "cpu" or x.dtype != torch.uint8):
        return Held(x, split.y, device)
    if device.type == "cpu" or not len(x):
        return Streamed(x, split.y, device)
    first, free = read(x, torch.zeros(1, dtype=torch.int64)), _free_bytes(device)
    if free is None or first.nbytes * len(x) > SHARE * free:
        return Streamed(x, split.y, device)
    images = first.new_empty((len(x), *first.shape[1:]), device=device)
    for rows in torch.arange(len(x)).split(_CHUNK):
        images[rows[0] : rows[-1] + 1] = read(x, rows).to(device)
    return Held(images, split.y, device)


def read(x: splits.Rows, rows: Tensor) -> Tensor:
    """The examples at the positions, (k, ...), on the CPU where they are lazy."""
    if isinstance(x, Tensor):
        return x.index_select(0, rows)
    if hasattr(x, "rows"):
        return x.rows(rows.tolist())
    return x.take(rows.tolist()).stack()


def _free_bytes(device: torch.device) -> int | None:
    """The free memory of an accelerator; None where torch does not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
