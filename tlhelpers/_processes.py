"""Processes that train one network together, each on its slice of every batch.

``train.fit`` stands on this module. Gradients are summed by one ``all_reduce`` after the backward
pass, and not by a ``DistributedDataParallel`` around the network: a process without a row of a
short last batch, and one that runs out of memory and halves its slice, then keep in step with the
others, and the caller's network stays as it is.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_FROM_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_made = itertools.count()  # groups: one that follows another must not read its addresses


@dataclass(eq=False)
class Group:
    """The processes that train together; a process alone is a group of one.

    Attributes:
        rank: the number of this process, 0 for the one that writes and speaks.
        size: the number of processes.
        device: where this process computes.
        used: the parameters that get gradients, once the first step has shown them.
    """

    rank: int
    size: int
    device: torch.device
    used: list[nn.Parameter] = field(default_factory=list)

    def mine(self, n: int) -> slice:
        """This process's share of n rows; the first processes take what is left over."""
        each, more = divmod(n, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        if self.size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def add_up(self, network: nn.Module, parameters: Sequence[nn.Parameter], share: float) -> None:
        """Make gradients the sums over all processes, and BatchNorm's running statistics the means.

        Args:
            network: what has just run backward.
            parameters: its trainable ones.
            share: the part of the batch's examples that were this process's.
        """
        if self.size == 1:
            return
        if not self.used:
            # What no forward pass uses has no gradient in any process, and takes no step. A
            # process without an example asks the others.
            has = torch.tensor([float(p.grad is not None) for p in parameters])
            flags = self.total(has).tolist()
            self.used = [p for p, flag in zip(parameters, flags, strict=True) if flag]
        summed = [_gradient(parameter) for parameter in self.used]
        for statistic in _running_statistics(network):
            summed.append(statistic.mul_(share))
        flat = self.total(torch.cat([tensor.reshape(-1) for tensor in summed]))
        parts = flat.split([tensor.numel() for tensor in summed])
        for tensor, part in zip(summed, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return bool(self.total(torch.tensor(int(flag)))) if self.size > 1 else flag

    def tell(self, value: Any) -> Any:
        """The value that the first process gave, in all of them."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        if self.size == 1:
            return
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, 0)
            tensor.detach().copy_(whole)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _running_statistics(network: nn.Module) -> list[Tensor]:
    """Those that a forward pass moves: frozen norms are in evaluation mode."""
    norms = [m for m in network.modules() if isinstance(m, _NormBase) and m.training]
    both = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    return [value for value in both if value is not None]


def own_device(device: torch.device) -> torch.device:
    """The accelerator of this process where a run names none by number."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group of processes that this one belongs to while the block runs.

    It is the group that torch has been given; else, where ``torchrun`` started the process, one
    that is made from its environment and ended with the block; else this process alone.
    """
    if dist.is_available() and dist.is_initialized():
        yield Group(dist.get_rank(), dist.get_world_size(), device)
        return
    by_torchrun = all(name in os.environ for name in _FROM_TORCHRUN)
    if not by_torchrun or int(os.environ["WORLD_SIZE"]) == 1:
        yield Group(0, 1, device)
        return
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"tlhelpers/{next(_made)}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield Group(rank, size, device)
    finally:
        dist.destroy_process_group()
