"""The set-up that :mod:`tlhelpers.audit` examines, and what can be measured on it.

:class:`Setup` holds what the reader handed in. Its properties try it out: a forward pass, a
training step, an evaluation; each runs once, whatever number of checks ask for it, and leaves
everything as it was. Where something is missing for that, they raise :class:`Lacking`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tlhelpers import models
from tlhelpers._audit_memory import Memory, seed
from tlhelpers._audit_trace import (
    Trace,
    answers_differ,
    apply_to,
    drops,
    follow,
    is_leaf,
    normalises,
    outermost_calls,
    takes_x,
)
from tlhelpers.splits import PARTS, take

_ROWS = 8  # examples in a trial batch: enough that what is looked for shows, few for a CPU


class Lacking(Exception):
    """A check cannot run: the message is what it would need."""


class CallableError(Exception):
    """One of the reader's callables raised: the message is which one."""


@dataclass(frozen=True)
class Part:
    """One split of the data, as far as it can be seen."""

    x: Any
    y: Tensor | None
    ids: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class TrainingPass:
    """What frozen parts do in a forward pass after ``train()``.

    Attributes:
        moved: frozen modules whose buffers moved, with the names of those buffers.
        random: frozen modules that answer twice differently.
        buffers: how many buffers the frozen parts have.
    """

    moved: Mapping[nn.Module, tuple[str, ...]]
    random: tuple[nn.Module, ...]
    buffers: int


@dataclass(frozen=True)
class Steps:
    """What the reader's step does.

    Attributes:
        moved: names of the parameters that one step moves.
        leak: size of the part of a second step's gradients that stems from the first,
            relative to those gradients; None where nothing moved, or no gradient was left.
        noise: the same between two runs of one step, which draws from a generator of its own.
    """

    moved: frozenset[str]
    leak: float | None
    noise: float


@dataclass(frozen=True)
class Evaluation:
    """What the reader's evaluation does.

    Attributes:
        training: modules that ran in training mode.
        buffers: names of buffers that moved.
    """

    training: frozenset[nn.Module]
    buffers: tuple[str, ...]


@dataclass
class Setup:
    """What the reader handed to :func:`tlhelpers.audit.check`, and what trying it out shows.

    The first fields are its arguments. ``failures`` collects which callables raised what;
    ``explained`` names those for which a check has found the cause; ``is_random`` remembers
    which pipelines are.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer | None
    data: Any
    loss: Callable[[Tensor, Tensor], Tensor] | None
    class_names: int | Sequence[str] | None
    frozen: Any
    step: Callable[[Tensor, Tensor], Any] | None
    evaluate: Callable[..., Any] | None
    preprocess: Callable[[Any], Any] | None
    preprocess_eval: Callable[[Any], Any] | None
    weights: Any
    loader_loss: Callable[[list[tuple[Tensor, Tensor]]], Any] | None
    features: Callable[[Tensor], Any] | None
    readings: Sequence[str] | None
    chosen_on: Any
    metric: str
    failures: dict[str, Exception] = field(default_factory=dict)
    explained: set[str] = field(default_factory=set)
    is_random: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = {part: name for name, part in self.network.named_modules()}
        self.parts = self._find_parts()
        self.frozen_parts = self._find_frozen()
        log = getattr(self.data, "log", None)
        self.memory = Memory(self.network, self.optimizer, log if isinstance(log, list) else None)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Whatever happens inside, everything is as before when it ends."""
        try:
            with warnings.catch_warnings(), torch.set_grad_enabled(True):
                warnings.simplefilter("ignore")
                yield
        finally:
            self.memory.restore()

    def call(self, who: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The answer of one of the reader's callables; one that raised is not called again.

        Raises:
            CallableError: if it raised.
        """
        if who in self.failures:
            raise CallableError(who) from self.failures[who]
        try:
            return function(*arguments)
        except Exception as error:
            raise self._failed(who, error) from error

    def _failed(self, who: str, error: Exception) -> CallableError:
        self.failures[who] = error
        return CallableError(who)

    def name(self, part: nn.Module) -> str:
        """The name of a module in the network; its type, where it is none of it."""
        return self.names.get(part, "") or type(part).__name__

    def named(self, parts: Iterable[nn.Module]) -> list[str]:
        return [self.name(part) for part in parts]

    # --- data -----------------------------------------------------------------------------

    def _find_parts(self) -> dict[str, Part]:
        if self.data is None:
            return {}
        if self.is_batch:
            return {"train": _part_of(self.data, "data")}
        found = {
            name: _part_of(getattr(self.data, name), f"data.{name}")
            for name in PARTS
            if getattr(self.data, name, None) is not None
        }
        if "train" not in found:
            raise TypeError(
                f"data should be a splits.Dataset, an object with train and validation, or a batch "
                f"(x, y) of tensors; found {type(self.data).__name__}. From a DataLoader, hand in "
                f"one batch: next(iter(loader))."
            )
        return found

    @property
    def is_batch(self) -> bool:
        """Whether the data are one batch, as the loop feeds it."""
        return isinstance(self.data, (tuple, list))

    def part(self, name: str) -> Part:
        if name not in self.parts:
            raise Lacking("data" if name == "train" else f"data with a {name} split")
        return self.parts[name]

    @cached_property
    def m(self) -> int:
        """The number of classes."""
        names = self.class_names
        if names is None:
            names = getattr(self.data, "classes", None)
        if names is None:
            raise Lacking("classes")
        return names if isinstance(names, int) else len(names)

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor | None]:
        """At most :data:`_ROWS` training examples of as many classes as possible."""
        train = self.part("train")
        n = len(train)
        if self.is_batch or train.y is None or train.y.ndim != 1:
            rows = list(range(min(n, _ROWS)))
        else:
            rows = _spread(train.y, _ROWS)
        x, y = self._inputs(train.x, rows), None if train.y is None else train.y[rows]
        if len(x) == 1:  # batch norm needs two in training mode
            x, y = x.repeat(2, *[1] * (x.ndim - 1)), None if y is None else y.repeat(2)
        device = next((t.device for t in _tensors(self.network)), torch.device("cpu"))
        return x.to(device), None if y is None else y.to(device)

    def _inputs(self, x: Any, rows: list[int]) -> Tensor:
        """The rows as the network gets them."""
        chosen = take(x, rows)
        if self.is_batch:
            return chosen
        is_tokens = isinstance(chosen, Tensor) and chosen.ndim < 3
        pipeline = self.preprocess or self.preprocess_eval
        if pipeline is not None and not is_tokens:
            results = [apply_to(pipeline, chosen[i]) for i in range(len(rows))]
            tensors = [r for r in results if r is not None]
            if len(tensors) < len(rows) or len({t.shape for t in tensors}) > 1:
                raise Lacking("a batch (x, y) as the loop feeds it")
            return torch.stack(tensors)
        if is_tokens or (isinstance(chosen, Tensor) and chosen.is_floating_point()):
            return chosen
        raise Lacking("preprocess")

    @property
    def labelled(self) -> tuple[Tensor, Tensor]:
        """The batch, with labels."""
        x, y = self.batch
        if y is None:
            raise Lacking("data with labels")
        return x, y

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of the images; None where they differ, or are unknown."""
        train = self.parts.get("train")
        if train is None or self.is_batch or not isinstance(train.x, Tensor) or train.x.ndim != 4:
            return None
        channels, height, width = train.x.shape[1:]
        return channels, height, width

    @property
    def channels(self) -> int:
        return 3 if self.image_shape is None else self.image_shape[0]

    # --- frozen parts, and what trains ------------------------------------------------------

    def _find_frozen(self) -> dict[str, nn.Module]:
        if self.frozen is not None:
            given = self.frozen if isinstance(self.frozen, (list, tuple, set)) else [self.frozen]
            return {
                name: part for item in given for name, part in _resolve(self.network, item).items()
            }
        if not any(p.requires_grad for p in self.network.parameters()):
            return {}  # nothing trains, and nobody will call train()
        return dict(_topmost(self.network, _is_frozen))

    @cached_property
    def frozen_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the frozen parts, by their name in the network."""
        inside = {id(p) for part in self.frozen_parts.values() for p in part.parameters()}
        return {n: p for n, p in self.network.named_parameters() if id(p) in inside}

    @cached_property
    def frozen_modules(self) -> tuple[nn.Module, ...]:
        return tuple(
            dict.fromkeys(m for part in self.frozen_parts.values() for m in part.modules())
        )

    @cached_property
    def trainable(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.network.named_parameters() if p.requires_grad}

    @cached_property
    def held(self) -> list[nn.Parameter]:
        """The parameters that the optimiser holds; none where there is no optimiser."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        return [p for group in groups for p in group["params"]]

    @cached_property
    def training_pass(self) -> TrainingPass:
        with self.untouched(), torch.no_grad():
            try:
                x = self.batch[0]
            except Lacking:
                return _look_at_modules(self.network, self.frozen_modules)
            if self.trace.error is not None:
                raise Lacking("a network that runs on the data")
            return self._training_pass(x)

    def _training_pass(self, x: Tensor) -> TrainingPass:
        self.network.train()
        before = {m: _buffers(m) for m in self.frozen_modules}
        with outermost_calls(self.frozen_modules) as calls:
            self.call("network in training mode", self.network, x)
        moved = {m: names for m, old in before.items() if (names := _moved(m, old))}
        random_parts: dict[nn.Module, None] = {}
        for part, arguments, named in calls:
            if answers_differ(part, arguments, named):
                droppers = [m for m in part.modules() if m.training and drops(m)]
                random_parts.update(dict.fromkeys(droppers or [part]))
        count = sum(len(old) for old in before.values())
        return TrainingPass(moved, tuple(random_parts), count)

    # --- the forward pass -------------------------------------------------------------------

    @cached_property
    def trace(self) -> Trace:
        """A forward pass in eval mode."""
        with self.untouched(), torch.no_grad():
            self.network.eval()
            return follow(self.network, self.batch[0])

    @property
    def output(self) -> Tensor:
        """What the network says in eval mode: scores (n, m) if all is well."""
        if self.trace.error is not None:
            raise self._failed("network", self.trace.error) from self.trace.error
        if self.trace.output is None:
            raise Lacking("a network that returns a tensor")
        return self.trace.output

    @property
    def scores(self) -> Tensor:
        """The output, which has the shape (n, m)."""
        if self.output.ndim != 2:
            raise Lacking("a network that returns scores (n, m)")
        return self.output

    @cached_property
    def head(self) -> nn.Module | None:
        """The last layer with weights: the one that is called last, where that is known."""
        try:
            called = [call.module for call in self.trace.calls]
        except Lacking:
            called = []
        parts = [m for m in (called or list(self.network.modules())) if m in self.names]
        layers = [m for m in parts if is_leaf(m) and list(m.parameters())]
        return layers[-1] if layers else None

    @cached_property
    def probed(self) -> Trace:
        """The reader's features of the batch, in eval mode."""
        if self.features is None:
            raise Lacking("features")
        x = self.batch[0]
        with self.untouched(), torch.no_grad():
            self.network.eval()
            trace = follow(self.features, x)
        if trace.error is not None:
            raise self._failed("features", trace.error) from trace.error
        if trace.output is None:
            raise Lacking("features that return a tensor")
        return trace

    # --- the reader's step and evaluation ---------------------------------------------------

    @cached_property
    def steps(self) -> Steps:
        if self.step is None:
            raise Lacking("step")
        x, y = self.labelled
        if self.trace.error is not None:
            raise Lacking("a network that runs on the data")
        half = len(x) // 2
        if half >= 2:
            first, second = (x[:half], y[:half]), (x[half:], y[half:])
        else:
            first, second = (x, y), (x / 2 if x.is_floating_point() else x.flip(0), y)
        with self.untouched():
            alone, _, _ = self._one_step(second, {})
            again, _, _ = self._one_step(second, {})
            _, left, moved = self._one_step(first, {})
            after, _, _ = self._one_step(second, left)
        # Without a step of an optimiser, gradients may well be summed on purpose.
        leak = _leak(alone, after) if moved else None
        return Steps(frozenset(moved), leak, _leak(alone, again) or 0.0)

    def _one_step(
        self, batch: tuple[Tensor, Tensor], gradients: Mapping[nn.Parameter, Tensor]
    ) -> tuple[dict[nn.Parameter, Tensor], dict[nn.Parameter, Tensor], set[str]]:
        """One step from the start, with these gradients left over from before.

        Returns:
            the gradients that the optimiser saw (where there is none, those that are left),
            those that are left, and the names of the parameters that moved.
        """
        assert self.step is not None
        self.memory.restore()
        seed()
        self.network.train()
        everything = list(dict.fromkeys([*self.network.parameters(), *self.held]))
        for parameter in everything:
            old = gradients.get(parameter)
            parameter.grad = None if old is None else old.clone()
        before = {n: p.detach().clone() for n, p in self.network.named_parameters()}
        seen: dict[nn.Parameter, Tensor] = {}
        stepped = False

        def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            nonlocal stepped
            # Remembered before it changes anything; its moments belong to the reader.
            self.memory.remember_optimizer(optimizer)
            stepped = True
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        seen.setdefault(p, p.grad.detach().clone())

        handle = register_optimizer_step_pre_hook(look)
        try:
            with torch.enable_grad():
                self.call("step", self.step, *batch)
        finally:
            handle.remove()
        left = {p: p.grad.detach().clone() for p in everything if p.grad is not None}
        moved = {n for n, p in self.network.named_parameters() if not torch.equal(before[n], p)}
        return (seen if stepped else left), left, moved

    @cached_property
    def evaluation(self) -> Evaluation:
        if self.evaluate is None:
            raise Lacking("evaluate")
        training: set[nn.Module] = set()
        called = False

        def look(module: nn.Module, _: Any) -> None:
            nonlocal called
            called = called or module in self.names
            if module.training:
                training.add(module)

        with self.untouched():
            self.network.train()  # as it is at the end of an epoch
            before = models.snapshot(self.network)
            arguments = (self.batch[0],) if takes_x(self.evaluate) else ()
            handle = hooks.register_module_forward_pre_hook(look)
            try:
                self.call("evaluate", self.evaluate, *arguments)
            finally:
                handle.remove()
            moved = tuple(
                n for n, b in self.network.named_buffers() if not torch.equal(b, before.buffers[n])
            )
        if not called:
            raise Lacking("an evaluate that calls network")
        return Evaluation(frozenset(training & self.names.keys()), moved)


def _part_of(part: Any, what: str) -> Part:
    if isinstance(part, (tuple, list)) and len(part) == 2:
        x, y, ids = part[0], part[1], None
    elif hasattr(part, "x"):
        x, y, ids = part.x, getattr(part, "y", None), getattr(part, "ids", None)
    else:
        raise TypeError(
            f"{what} should be a pair (x, y) or have x and y, found {type(part).__name__}. From a "
            f"DataLoader, hand in one batch: next(iter(loader))."
        )
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    if y is not None and not isinstance(y, Tensor):
        y = torch.as_tensor(np.asarray(y))
    if not isinstance(x, Tensor) and not hasattr(x, "take"):
        raise TypeError(
            f"{what} should hold a tensor or a lazy sequence of images, found {type(x).__name__}."
        )
    if len(x) == 0:
        raise ValueError(f"{what} is empty. Hand in at least one example.")
    if y is not None and len(y) != len(x):
        raise ValueError(
            f"{what} should hold as many labels as examples, found {len(y)} and {len(x)}."
        )
    return Part(x, y, None if ids is None else tuple(map(str, ids)))


def _spread(y: Tensor, count: int) -> list[int]:
    """Rows of as many classes as possible: the first of each, then the second of each, …"""
    met: dict[Any, int] = {}
    turns = []
    for row, label in enumerate(y.tolist()):
        met[label] = met.get(label, -1) + 1
        turns.append((met[label], row))
    return sorted(row for _, row in sorted(turns)[:count])


def _resolve(network: nn.Module, item: Any) -> dict[str, nn.Module]:
    """The modules that one entry of ``frozen`` means."""
    parts = dict(network.named_modules())
    if isinstance(item, nn.Module):
        found = {name: part for name, part in parts.items() if part is item}
        what = f"a {type(item).__name__}"
    elif isinstance(item, str):
        stem = item.rstrip(".")
        found = {stem: parts[stem]} if stem in parts else {}
        if not found:
            found = dict(_topmost(network, lambda n, _: n.startswith(item)))
        what = repr(item)
    else:
        raise TypeError(f"frozen should name or be modules, found {type(item).__name__}.")
    if not found:
        children = ", ".join(name for name, _ in network.named_children())
        raise ValueError(
            f"frozen should be part of the network, which {what} is not. It has: {children}."
        )
    return found


def _topmost(
    network: nn.Module, accept: Callable[[str, nn.Module], bool]
) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are accepted, without those inside another one."""
    chosen: set[nn.Module] = set()
    for name, part in network.named_modules():
        if part not in chosen and accept(name, part):
            chosen.update(part.modules())
            yield name, part


def _is_frozen(_: str, part: nn.Module) -> bool:
    parameters = list(part.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(network.parameters(), network.buffers())


def _buffers(part: nn.Module) -> dict[str, Tensor]:
    return {n: b.clone() for n, b in part.named_buffers(recurse=False)}


def _moved(part: nn.Module, before: Mapping[str, Tensor]) -> tuple[str, ...]:
    now = dict(part.named_buffers(recurse=False))
    return tuple(n for n, b in before.items() if not torch.equal(now[n], b))


def _look_at_modules(network: nn.Module, frozen: Sequence[nn.Module]) -> TrainingPass:
    """The training pass without data: batch norms and dropouts one by one."""
    network.train()
    moved, random_parts = {}, []
    for part in frozen:
        if normalises(part):
            before = _buffers(part)
            if part.training and getattr(part, "track_running_stats", False):
                _run_norm(part)
            if names := _moved(part, before):
                moved[part] = names
        elif part.training and drops(part):
            random_parts.append(part)
    return TrainingPass(moved, tuple(random_parts), sum(len(_buffers(m)) for m in frozen))


def _run_norm(part: nn.Module) -> None:
    """Feed random maps to a batch norm, with as many axes as the name of its class says."""
    axes = {"1": 0, "2": 2, "3": 3}.get(re.sub(r"\D", "", type(part).__name__)[:1], 2)
    like, width = next(_tensors(part)), getattr(part, "num_features", 0)
    with contextlib.suppress(Exception):  # a norm of its own kind, which takes another shape
        part(torch.randn(4, width, *[2] * axes, dtype=like.dtype, device=like.device))


def _leak(
    alone: Mapping[nn.Parameter, Tensor], after: Mapping[nn.Parameter, Tensor]
) -> float | None:
    """How far the second gradients are from what they are without a first step, relatively."""
    both = [p for p in alone if p in after]
    size = math.sqrt(sum(float(alone[p].double().square().sum()) for p in both))
    if not both or size == 0 or not math.isfinite(size):
        return None
    apart = sum(float((after[p].double() - alone[p].double()).square().sum()) for p in both)
    return math.sqrt(apart) / size
