"""The state of a set-up: how :mod:`tlhelpers.audit` remembers it and puts it back."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Memory:
    """The state of a set-up, bit by bit, and how to go back to it.

    Objects stay the same objects: values are copied back into the tensors and dictionaries that
    others may hold.
    """

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer | None, log: list[str] | None
    ) -> None:
        self._undo: list[Callable[[], None]] = []
        self._known: set[int] = set()
        for part in network.modules():
            self._remember_module(part)
        for tensor in [*network.parameters(), *network.buffers()]:
            self._remember_tensor(tensor)
        if optimizer is not None:
            self.remember_optimizer(optimizer)
        if log is not None:
            entries = list(log)
            self._undo.append(lambda: log.__setitem__(slice(None), entries))
        self._remember_generators()

    def restore(self) -> None:
        """Everything as it was when it was remembered; as often as needed."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def _remember_module(self, part: nn.Module) -> None:
        # A shallow copy of its attributes, and of those that are dictionaries: parameters,
        # buffers, children, hooks.
        if isinstance(part, torch.jit.ScriptModule):
            mode = part.training
            self._undo.append(lambda: setattr(part, "training", mode))
            return
        attributes = dict(part.__dict__)
        inner = [(value, dict(value)) for value in attributes.values() if isinstance(value, dict)]

        def undo() -> None:
            _refill(part.__dict__, attributes)
            for value, entries in inner:
                _refill(value, entries)

        self._undo.append(undo)

    def _remember_tensor(self, tensor: Tensor) -> None:
        if id(tensor) in self._known:
            return
        self._known.add(id(tensor))
        storage, value = tensor.data, tensor.detach().clone()
        needs, gradient = tensor.requires_grad, tensor.grad
        slope = None if gradient is None else gradient.detach().clone()

        def undo() -> None:
            if tensor.data_ptr() != storage.data_ptr() or tensor.dtype != storage.dtype:
                tensor.data = storage
            storage.copy_(value)
            if tensor.is_leaf:
                tensor.requires_grad_(needs)
            tensor.grad = gradient
            if gradient is not None and slope is not None:
                gradient.data.copy_(slope)

        self._undo.append(undo)

    def remember_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Its settings, its state and its parameters; nothing if they are known already."""
        if id(optimizer) in self._known:
            return
        self._known.add(id(optimizer))
        attributes = dict(optimizer.__dict__)
        groups = [(group, dict(group), list(group["params"])) for group in optimizer.param_groups]
        held = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in held:
            self._remember_tensor(parameter)
        same = {id(p): p for p in held}

        # The tensors of the state are kept as objects, everything else as a deep copy.
        def copied(entry: Mapping[Any, Any]) -> dict[Any, Any]:
            return {
                key: value if isinstance(value, Tensor) else copy.deepcopy(value, dict(same))
                for key, value in entry.items()
            }

        state = dict(optimizer.state)
        entries = [(entry, copied(entry)) for entry in state.values()]
        tensors = [
            (value, value.detach().clone())
            for entry in state.values()
            for value in entry.values()
            if isinstance(value, Tensor)
        ]

        def undo() -> None:
            _refill(optimizer.__dict__, attributes)
            optimizer.param_groups[:] = [group for group, _, _ in groups]
            for group, settings, parameters in groups:
                _refill(group, settings)
                group["params"][:] = parameters
            _refill(optimizer.state, state)
            for entry, values in entries:
                _refill(entry, copied(values))
            for tensor, value in tensors:
                tensor.data.copy_(value)

        self._undo.append(undo)

    def _remember_generators(self) -> None:
        cpu = torch.random.get_rng_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002

        def undo() -> None:
            torch.random.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state_all(cuda)
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002

        self._undo.append(undo)


def _refill(target: Any, entries: Mapping[Any, Any]) -> None:
    """Give a dictionary these entries, in place."""
    target.clear()
    target.update(entries)


def seed(number: int = 0) -> None:
    """The same random numbers from here on; a :class:`Memory` puts the generators back."""
    # torch.manual_seed would also seed a GPU that is not in use yet, which no memory undoes.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
