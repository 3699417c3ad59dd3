"""A network in evaluation mode for a while; what asks networks for answers stands on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_BATCH = 512


@contextmanager
def evaluating(network: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode, without gradients, while the block runs; yields the network's device.

    Afterwards each part of the network gets its own mode back: a frozen part stays frozen.
    """
    tensor = next(itertools.chain(network.parameters(), network.buffers()), None)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield torch.device("cpu") if tensor is None else tensor.device
    finally:
        for module, training in modes:
            module.training = training


def logits(network: nn.Module, x: Tensor) -> Tensor:
    """(n, m) in evaluation mode, in batches."""
    with evaluating(network) as device:
        return torch.cat([network(part.to(device)) for part in x.split(_BATCH)])
