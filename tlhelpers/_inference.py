"""A network's answers in evaluation mode; ``adapt`` and ``combine`` stand on it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

_BATCH = 512


def logits(network: nn.Module, x: Tensor) -> Tensor:
    """(n, m) in evaluation mode, in batches; every part of the network gets its mode back."""
    tensor = next(itertools.chain(network.parameters(), network.buffers()), x)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            return torch.cat([network(part.to(tensor.device)) for part in x.split(_BATCH)])
    finally:
        for module, training in modes:
            module.training = training
