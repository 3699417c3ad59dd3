"""Preflight checks: the classic traps of transfer learning, looked for in a reader's own set-up.

:func:`check` takes the network in the state in which training would begin, and whatever else
there is: the optimiser, the data, a training step, an evaluation, the preprocessing. It looks
at what these *do* (it runs the network, the step, the evaluation a few times) and not at how
they are written, and puts everything back as it was::

    audit = tl.audit.check(network, optimizer=optimizer, data=data, step=step)
    print(audit)  # a line if clean, else a sentence for each finding: what it is, what to do

:data:`CHECKS` lists the checks. What cannot be seen from outside is not guessed: what is meant
to be frozen (only ``frozen`` says so), whether weights are pretrained (only ``weights``),
on what data a choice was made (only ``chosen_on``), whether a plain stack of layers is meant to
flatten its maps, whether images were augmented before they were split. Check with images of
the size that you train on: at 32 pixels the maps of most networks are 1×1, and pooled or not is
the same.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import html
import inspect
import io
import math
import random
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision.transforms.v2 import functional as F

from tlhelpers import models
from tlhelpers.splits import PARTS, take

ERROR = "error"
NOTE = "note"

# Sizes of the experiments: large enough that what is looked for shows, small enough for a CPU.
_ROWS = 8  # examples in a trial batch
_FEW = 2  # examples that are looked at outside their batch
_DRAWS = 32  # repetitions with which randomness is looked for
_READ = 20_000  # images of a split whose bytes are compared
_DECODED = 2_000  # images of a split that are decoded to compare what they show
_SIMILAR = 16  # side of the thumbnail on which near-duplicates are sought
# Distances of unit vectors below which two examples may be copies, if they are also far below
# what is usual: where all are alike, as small digits are, none is a copy. On photographs of
# dogs, such pairs were the same photograph, cut or scaled otherwise, with few exceptions.
_SAME_FEATURES = 0.2
_SAME_THUMBNAILS = 0.07
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Finding:
    """One trap that a set-up falls into.

    Attributes:
        id: a key of :data:`CHECKS`.
        what: what was found in this set-up, with its figures.
        why: why that harms.
        fix: what to do.
        evidence: the measurements behind ``what``, by name.
        severity: ``"error"``, or ``"note"`` for advice and for what may be on purpose.
    """

    id: str
    what: str
    why: str
    fix: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    severity: str = ERROR

    def __str__(self) -> str:
        mark = "" if self.severity == ERROR else f" ({self.severity})"
        return f"{self.id}{mark}: {self.what} {self.fix}"


class AuditError(ValueError):
    """Raised by :meth:`Audit.raise_if_any`; the message is the audit's text."""


@dataclass(frozen=True)
class Audit:
    """What :func:`check` found; true where it found nothing.

    Attributes:
        findings: errors first, then notes; within each in the order of :data:`CHECKS`.
        passed: ids of the checks that ran and found nothing.
        skipped: id to what the check would have needed.
    """

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    skipped: Mapping[str, str]

    def __bool__(self) -> bool:
        return not self.findings

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the findings."""
        return tuple(finding.id for finding in self.findings)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are more than advice."""
        return tuple(f for f in self.findings if f.severity == ERROR)

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The findings that are advice, or may be on purpose."""
        return tuple(f for f in self.findings if f.severity == NOTE)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.findings), self._summary()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<li><strong>{html.escape(f.id)}</strong>{' (note)' if f.severity == NOTE else ''}: "
            f"{html.escape(f.what)} <em>{html.escape(f.fix)}</em></li>"
            for f in self.findings
        )
        body = f"<ul>{rows}</ul>" if rows else ""
        return f'<div class="tl-audit">{body}<p>{html.escape(self._summary())}</p></div>'

    def _summary(self) -> str:
        """``Audit: clean; 12 checks passed; 14 skipped for lack of data, step.``"""
        counts = [
            f"{len(found)} {word}{'s' if len(found) > 1 else ''}"
            for word, found in ((ERROR, self.errors), (NOTE, self.notes))
            if found
        ]
        line = f"Audit: {' and '.join(counts) or 'clean'}; {len(self.passed)} checks passed"
        if self.skipped:
            lacking = list(dict.fromkeys(self.skipped.values()))
            line += f"; {len(self.skipped)} skipped for lack of {', '.join(lacking)}"
        return line + "."

    def to_frame(self) -> pd.DataFrame:
        """A row for each check that there is: id, outcome, what, why, fix.

        The outcome is ``error``, ``note``, ``passed`` or ``skipped``; for a skipped check,
        ``what`` says what it would have needed.
        """
        found = {f.id: f for f in self.findings}
        rows = []
        for name in CHECKS:
            if name in found:
                f = found[name]
                rows.append((name, f.severity, f.what, f.why, f.fix))
            elif name in self.skipped:
                rows.append((name, "skipped", f"needs {self.skipped[name]}", "", ""))
            else:
                rows.append((name, "passed", "", "", ""))
        return pd.DataFrame(rows, columns=["id", "outcome", "what", "why", "fix"])

    def raise_if_any(self, *, notes: bool = False) -> Audit:
        """The audit itself, or an :class:`AuditError` if it holds an error.

        Args:
            notes: raise for notes too.
        """
        if self.errors or (notes and self.notes):
            raise AuditError(str(self))
        return self


def check(
    network: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    data: Any = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    classes: int | Sequence[str] | None = None,
    frozen: Any = None,
    step: Callable[[Tensor, Tensor], Any] | None = None,
    evaluate: Callable[..., Any] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    preprocess_eval: Callable[[Any], Any] | None = None,
    weights: Any = None,
    loader_loss: Callable[[list[tuple[Tensor, Tensor]]], Any] | None = None,
    features: Callable[[Tensor], Any] | None = None,
    readings: Sequence[str] | None = None,
    chosen_on: Any = None,
    metric: str = "accuracy",
) -> Audit:
    """Look for the classic traps in a set-up, before it trains.

    Everything but the network is optional; a check that lacks what it needs is skipped, and
    the audit says so. The network, the optimiser, modes, gradients, random number generators
    and the log of the test split are as before when this returns, also where one of the
    callables raises. What only the callables know, such as a scheduler, a generator or a
    counter of their own, cannot be put back: hand in a step without them.

    Args:
        network: the whole model, head included, in the state in which training would begin.
            Loops call ``train()`` at the top of each epoch, and so do the checks.
        optimizer: as it will be used.
        data: a :class:`~tlhelpers.splits.Dataset`; or any object whose ``train``,
            ``validation`` and ``test`` (those that it has) hold ``x``, ``y`` and perhaps ``ids``,
            or are pairs (x, y); or one batch (x, y) of training data as the loop feeds it.
        loss: ``loss(logits, y)``, a scalar, as in training.
        classes: their number m, or their names; by default ``data.classes``.
        frozen: what is meant to be frozen: a module of ``network``, the beginning of names
            (``"layer1"``), or a list of these. Without it, the checks on frozen parts take
            those modules whose parameters all have ``requires_grad=False``.
        step: ``step(x, y)``, one training step on ``network``: forward, backward, optimiser.
        evaluate: the evaluation of ``network``: without arguments, or ``evaluate(x)``. It is called
            as at the end of an epoch, with the network in training mode.
        preprocess: from one image to a tensor, as in training. It is tried on PIL images, on
            uint8 tensors and on float tensors in 0..1.
        preprocess_eval: the same for validation.
        weights: what the pretrained weights are: a member of a torchvision weights enum, its
            name, ``True`` for ``pretrained=True``, a :class:`~tlhelpers.models.Preprocess`, or
            anything with one as ``preprocess``.
        loader_loss: ``loader_loss(batches)``, the loss as it is averaged over an epoch.
        features: from x to the features that a probe gets.
        readings: the reasons of the readings of the test split so far; by default
            ``data.test.readings``.
        chosen_on: what epochs or settings are chosen on: ``"validation"``, a split, ids, or row
            numbers of ``data``.
        metric: what is reported.

    Raises:
        TypeError: if ``network`` is no module, or ``data`` has none of the forms above.
        ValueError: if ``frozen`` names nothing in the network, or a lazy layer has no shape yet.

    >>> network = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))
    >>> audit = check(network, data=(torch.randn(8, 4), torch.arange(8) % 3))
    >>> audit.ids
    ('softmax-before-loss',)
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network should be an nn.Module, found {type(network).__name__}.")
    tensors = [*network.named_parameters(), *network.named_buffers()]
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise ValueError(
            f"{lazy[0]} has no shape yet: a lazy layer gets it from its first batch. Run the "
            f"network on one batch before the optimiser is built, then check it."
        )
    setup = _Setup(
        network=network,
        optimizer=optimizer,
        data=data,
        loss=loss,
        class_names=classes,
        frozen=frozen,
        step=step,
        evaluate=evaluate,
        preprocess=preprocess,
        preprocess_eval=preprocess_eval,
        weights=weights,
        loader_loss=loader_loss,
        features=features,
        readings=readings,
        chosen_on=chosen_on,
        metric=metric,
    )
    return _run(setup)


# --- the register of checks ---------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """What a check saw; the register adds the id, the reason and the usual fix."""

    what: str
    evidence: Mapping[str, Any]
    fix: str | None = None
    severity: str = ERROR


@dataclass(frozen=True)
class _Check:
    id: str
    why: str
    fix: str
    look: Callable[[_Setup], _Found | None]


class _Lacking(Exception):
    """A check cannot run: the message is what it would need."""


class _CallableError(Exception):
    """One of the reader's callables raised."""

    def __init__(self, who: str, error: Exception) -> None:
        super().__init__(who)
        self.who, self.error = who, error


_REGISTER: list[_Check] = []
_SENTENCES: dict[str, str] = {}

CHECKS: Mapping[str, str] = MappingProxyType(_SENTENCES)
"""Each check's id and the trap that it looks for, in a sentence."""


def _check(
    name: str, sentence: str, *, why: str, fix: str
) -> Callable[[Callable[[_Setup], _Found | None]], Callable[[_Setup], _Found | None]]:
    def register(look: Callable[[_Setup], _Found | None]) -> Callable[[_Setup], _Found | None]:
        _REGISTER.append(_Check(name, why, fix, look))
        _SENTENCES[name] = sentence
        return look

    return register


def _run(setup: _Setup) -> Audit:
    findings: list[Finding] = []
    passed: list[str] = []
    skipped: dict[str, str] = {}
    for entry in _REGISTER:
        try:
            with setup.untouched():
                found = entry.look(setup)
        except _Lacking as lacking:
            skipped[entry.id] = str(lacking)
        except _CallableError as failed:
            skipped[entry.id] = f"{failed.who} without an exception"
        else:
            if found is None:
                passed.append(entry.id)
                continue
            findings.append(
                Finding(
                    entry.id,
                    found.what,
                    entry.why,
                    found.fix or entry.fix,
                    found.evidence,
                    found.severity,
                )
            )
    findings.sort(key=lambda f: f.severity != ERROR)  # stable: the order of CHECKS within each
    return Audit(tuple(findings), tuple(passed), skipped)


# --- putting everything back --------------------------------------------------------------


class _Memory:
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
        if id(optimizer) in self._known:
            return
        self._known.add(id(optimizer))
        attributes = dict(optimizer.__dict__)
        groups = [(group, dict(group), list(group["params"])) for group in optimizer.param_groups]
        held = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in held:
            self._remember_tensor(parameter)
        same = {id(p): p for p in held}
        state = dict(optimizer.state)
        # The tensors of the state are kept as objects, everything else as a deep copy.
        tensors = [
            (value, value.detach().clone())
            for entry in state.values()
            for value in entry.values()
            if isinstance(value, Tensor)
        ]
        entries = [
            (
                entry,
                {
                    key: value if isinstance(value, Tensor) else copy.deepcopy(value, dict(same))
                    for key, value in entry.items()
                },
            )
            for entry in state.values()
        ]

        def undo() -> None:
            _refill(optimizer.__dict__, attributes)
            optimizer.param_groups[:] = [group for group, _, _ in groups]
            for group, settings, parameters in groups:
                _refill(group, settings)
                group["params"][:] = parameters
            _refill(optimizer.state, state)
            for entry, values in entries:
                _refill(entry, {k: copy.deepcopy(v, _keep_tensors(v)) for k, v in values.items()})
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


def _keep_tensors(value: Any) -> dict[int, Any]:
    """A memo that has ``copy.deepcopy`` hand a tensor through as it is."""
    return {id(value): value} if isinstance(value, Tensor) else {}


def _seed() -> None:
    """The same random numbers from here on; the memory puts the generators back."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


# --- the set-up, and what is measured on it -----------------------------------------------


@dataclass(frozen=True)
class _Part:
    """One split of the data, as far as it can be seen."""

    x: Any
    y: Tensor | None
    ids: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class _Call:
    """One call of a module with a tensor."""

    module: nn.Module
    input: Tensor | None
    output: Tensor | None
    maps: Tensor | None  # the last (n, d, h, w) output before this call


@dataclass(frozen=True)
class _Trace:
    """A forward pass: what came out, or why nothing did."""

    output: Tensor | None
    calls: tuple[_Call, ...]
    entered: tuple[tuple[nn.Module, Tensor], ...]  # called, and did not return
    maps: Tensor | None  # the last (n, d, h, w) output
    error: Exception | None


@dataclass(frozen=True)
class _TrainingPass:
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
class _Steps:
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
class _Evaluation:
    """What the reader's evaluation does.

    Attributes:
        training: modules that ran in training mode.
        buffers: names of buffers that moved.
    """

    training: frozenset[nn.Module]
    buffers: tuple[str, ...]


@dataclass
class _Setup:
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
        self.memory = _Memory(self.network, self.optimizer, log if isinstance(log, list) else None)

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
        """The answer of one of the reader's callables.

        Raises:
            _CallableError: if it raised.
        """
        if who in self.failures:
            raise _CallableError(who, self.failures[who])
        try:
            return function(*arguments)
        except Exception as error:
            self.failures[who] = error
            raise _CallableError(who, error) from error

    # --- data -----------------------------------------------------------------------------

    def _find_parts(self) -> dict[str, _Part]:
        if self.data is None:
            return {}
        if isinstance(self.data, (tuple, list)):
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

    def part(self, name: str) -> _Part:
        if name not in self.parts:
            raise _Lacking("data" if name == "train" else f"data with a {name} split")
        return self.parts[name]

    @cached_property
    def m(self) -> int:
        """The number of classes."""
        names = self.class_names
        if names is None:
            names = getattr(self.data, "classes", None)
        if names is None:
            raise _Lacking("classes")
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
        pipeline = self.preprocess or self.preprocess_eval
        if pipeline is not None and not (isinstance(chosen, Tensor) and chosen.ndim < 3):
            results = [_apply_to(pipeline, chosen[i]) for i in range(len(rows))]
            tensors = [r for r in results if r is not None]
            if len(tensors) < len(rows) or len({t.shape for t in tensors}) > 1:
                raise _Lacking("a batch (x, y) as the loop feeds it")
            return torch.stack(tensors)
        if isinstance(chosen, Tensor) and chosen.is_floating_point():
            return chosen
        if isinstance(chosen, Tensor) and chosen.ndim < 3:
            return chosen  # tokens
        raise _Lacking("preprocess")

    @property
    def labelled(self) -> tuple[Tensor, Tensor]:
        x, y = self.batch
        if y is None:
            raise _Lacking("data with labels")
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

    # --- frozen parts -----------------------------------------------------------------------

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
        """The parameters that the optimiser holds."""
        if self.optimizer is None:
            raise _Lacking("optimizer")
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @cached_property
    def training_pass(self) -> _TrainingPass:
        with self.untouched(), torch.no_grad():
            try:
                x = self.batch[0]
            except _Lacking:
                return _look_at_modules(self.network, self.frozen_modules)
            if self.trace.error is not None:
                raise _Lacking("a network that runs on the data")
            return self._training_pass(x)

    def _training_pass(self, x: Tensor) -> _TrainingPass:
        self.network.train()
        before = {m: _buffers(m) for m in self.frozen_modules}
        with _outermost_calls(self.frozen_modules) as calls:
            self.call("network in training mode", self.network, x)
        moved = {m: names for m, old in before.items() if (names := _moved(m, old))}
        random_parts: dict[nn.Module, None] = {}
        for part, arguments, named in calls:
            if _answers_differ(part, arguments, named):
                droppers = [m for m in part.modules() if m.training and _drops(m)]
                random_parts.update(dict.fromkeys(droppers or [part]))
        count = sum(len(old) for old in before.values())
        return _TrainingPass(moved, tuple(random_parts), count)

    # --- the forward pass -------------------------------------------------------------------

    @cached_property
    def trace(self) -> _Trace:
        """A forward pass in eval mode."""
        with self.untouched(), torch.no_grad():
            self.network.eval()
            return _follow(self.network, self.batch[0])

    @property
    def output(self) -> Tensor:
        """What the network says in eval mode: scores (n, m) if all is well."""
        if self.trace.error is not None:
            self.failures["network"] = self.trace.error
            raise _CallableError("network", self.trace.error)
        if self.trace.output is None:
            raise _Lacking("a network that returns a tensor")
        return self.trace.output

    @property
    def scores(self) -> Tensor:
        if self.output.ndim != 2:
            raise _Lacking("a network that returns scores (n, m)")
        return self.output

    @cached_property
    def head(self) -> nn.Module | None:
        """The last layer with weights: the one that is called last, where that is known."""
        try:
            called = [call.module for call in self.trace.calls]
        except _Lacking:
            called = []
        parts = [m for m in (called or list(self.network.modules())) if m in self.names]
        layers = [m for m in parts if not _children(m) and any(True for _ in m.parameters())]
        return layers[-1] if layers else None

    @cached_property
    def probed(self) -> _Trace:
        """The reader's features of the batch, in eval mode."""
        if self.features is None:
            raise _Lacking("features")
        x = self.batch[0]
        with self.untouched(), torch.no_grad():
            self.network.eval()
            trace = _follow(self.features, x)
        if trace.error is not None:
            self.failures["features"] = trace.error
            raise _CallableError("features", trace.error)
        if trace.output is None:
            raise _Lacking("features that return a tensor")
        return trace

    # --- the reader's step and evaluation -----------------------------------------------------

    @cached_property
    def steps(self) -> _Steps:
        if self.step is None:
            raise _Lacking("step")
        x, y = self.labelled
        if self.trace.error is not None:
            raise _Lacking("a network that runs on the data")
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
        return _Steps(frozenset(moved), leak, _leak(alone, again) or 0.0)

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
        _seed()
        self.network.train()
        everything = list(dict.fromkeys([*self.network.parameters(), *self._optimised()]))
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

    def _optimised(self) -> list[nn.Parameter]:
        return [] if self.optimizer is None else self.held

    @cached_property
    def evaluation(self) -> _Evaluation:
        if self.evaluate is None:
            raise _Lacking("evaluate")
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
            arguments = (self.batch[0],) if _takes_x(self.evaluate) else ()
            handle = hooks.register_module_forward_pre_hook(look)
            try:
                self.call("evaluate", self.evaluate, *arguments)
            finally:
                handle.remove()
            moved = tuple(
                n for n, b in self.network.named_buffers() if not torch.equal(b, before.buffers[n])
            )
        if not called:
            raise _Lacking("an evaluate that calls network")
        return _Evaluation(frozenset(training & self.names.keys()), moved)

    def name(self, part: nn.Module) -> str:
        return self.names.get(part, "") or type(part).__name__


def _part_of(part: Any, what: str) -> _Part:
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
    return _Part(x, y, None if ids is None else tuple(map(str, ids)))


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
        found = {name: part for name, part in parts.items() if name == stem}
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


def _children(part: nn.Module) -> list[nn.Module]:
    return list(part.children())


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _buffers(part: nn.Module) -> dict[str, Tensor]:
    return {n: b.clone() for n, b in part.named_buffers(recurse=False)}


def _moved(part: nn.Module, before: Mapping[str, Tensor]) -> tuple[str, ...]:
    now = dict(part.named_buffers(recurse=False))
    return tuple(n for n, b in before.items() if not torch.equal(now[n], b))


def _normalises(part: nn.Module) -> bool:
    """Whether a module keeps running statistics, or would without any: batch norm and its kin."""
    return isinstance(part, (nn.modules.batchnorm._NormBase))


def _drops(part: nn.Module) -> bool:
    """Whether a module acts at random in training mode."""
    rate = getattr(part, "p", None)
    if isinstance(part, nn.modules.dropout._DropoutNd | torchvision.ops.StochasticDepth):
        return bool(rate)
    inner = getattr(part, "dropout", getattr(part, "drop_rate", None))
    return isinstance(inner, float) and inner > 0


def _mode_matters(part: nn.Module) -> bool:
    if _normalises(part):
        return bool(getattr(part, "track_running_stats", False))
    return _drops(part)


def _answers_differ(part: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether a module answers the same question differently."""
    first = _tensor(part(*arguments, **named))
    if first is None:
        return False
    scale = float(first.abs().max()) if first.numel() else 0.0
    for _ in range(2):
        again = _tensor(part(*arguments, **named))
        if again is None or float((again - first).abs().max()) > 1e-4 * scale:
            return True
    return False


def _look_at_modules(network: nn.Module, frozen: Sequence[nn.Module]) -> _TrainingPass:
    """The training pass without data: batch norms and dropouts one by one."""
    network.train()
    moved, random_parts = {}, []
    buffers = sum(len(_buffers(m)) for m in frozen)
    for part in frozen:
        if _normalises(part):
            before = _buffers(part)
            dims = {"1": 0, "2": 2, "3": 3}.get(re.sub(r"\D", "", type(part).__name__)[:1], 2)
            width = getattr(part, "num_features", 0)
            if width and part.training and getattr(part, "track_running_stats", False):
                like = next(_tensors(part))
                with contextlib.suppress(Exception):
                    part(torch.randn(4, width, *[2] * dims, dtype=like.dtype, device=like.device))
            if names := _moved(part, before):
                moved[part] = names
        elif part.training and _drops(part):
            random_parts.append(part)
    return _TrainingPass(moved, tuple(random_parts), buffers)


@contextlib.contextmanager
def _outermost_calls(
    parts: Sequence[nn.Module],
) -> Iterator[list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]]:
    """Collect the calls of these modules that happen outside any other of them."""
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []
    depth = 0

    def enter(part: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            kept = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
            calls.append((part, kept, dict(named)))

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    handles = [p.register_forward_pre_hook(enter, with_kwargs=True) for p in parts]
    handles += [p.register_forward_hook(leave) for p in parts]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _tensor(out: Any) -> Tensor | None:
    """The tensor in what a network returns: itself, its logits, or the first of several."""
    if isinstance(out, np.ndarray):
        return torch.from_numpy(out)
    if isinstance(out, Mapping):
        out = next((out[k] for k in ("logits", "out") if k in out), None)
    elif hasattr(out, "logits"):
        out = out.logits
    elif isinstance(out, (tuple, list)) and out:
        out = out[0]
    return out if isinstance(out, Tensor) else None


def _follow(function: Callable[[Tensor], Any], x: Tensor) -> _Trace:
    """Call a function, and note which modules it calls with what."""
    calls: list[_Call] = []
    stack: list[tuple[nn.Module, Any]] = []
    maps: Tensor | None = None

    def enter(part: nn.Module, arguments: Any) -> None:
        given = arguments[0] if arguments and isinstance(arguments[0], Tensor) else None
        stack.append((part, (given, maps)))

    def leave(part: nn.Module, _: Any, out: Any) -> None:
        nonlocal maps
        given, seen = next((kept for p, kept in reversed(stack) if p is part), (None, None))
        while stack and stack.pop()[0] is not part:
            pass
        found = out if isinstance(out, Tensor) else None
        small = [None if t is None or t.ndim > 2 else t for t in (given, found)]
        # Only what is looked at later is kept: maps of every layer would fill the memory.
        calls.append(_Call(part, small[0], small[1], seen if small[0] is not None else None))
        if found is not None and found.ndim == 4:
            maps = found

    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave),
    ]
    try:
        output, error = _tensor(function(x)), None
    except Exception as raised:
        output, error = None, raised
    finally:
        for handle in handles:
            handle.remove()
    entered = tuple((part, kept[0]) for part, kept in stack if isinstance(kept[0], Tensor))
    return _Trace(output, tuple(calls), entered, maps, error)


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


def _takes_x(function: Callable[..., Any]) -> bool:
    """Whether a callable needs an argument."""
    if isinstance(function, nn.Module):
        return True
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is p.empty for p in parameters)


# --- freezing -----------------------------------------------------------------------------


@_check(
    "batchnorm-drift",
    "Statistics of batch norm (or other buffers) in a frozen part move in training mode.",
    why="requires_grad=False stops gradients, but batch norm updates its running mean and variance "
    "in every forward pass in training mode, so the frozen part becomes another one.",
    fix="Keep the frozen part in eval mode while the rest trains: tl.models.freeze(part), or "
    "part.eval() after every network.train().",
)
def _batchnorm_drift(setup: _Setup) -> _Found | None:
    drifting = {m: names for m, names in setup.training_pass.moved.items() if m.training}
    if not drifting:
        return None
    count = sum(map(len, drifting.values()))
    return _Found(
        f"{count} of {setup.training_pass.buffers} buffers of the frozen part move in one forward "
        f"pass in training mode, the first in {setup.name(next(iter(drifting)))!r}.",
        {
            "moved": count,
            "buffers": setup.training_pass.buffers,
            "modules": _named(setup, drifting),
        },
    )


@_check(
    "eval-undone",
    "A frozen part is in eval mode now, but the next train() switches it back.",
    why="network.train() at the top of each epoch sets every child to training mode: batch norm "
    "moves again, dropout draws again.",
    fix="Use tl.models.freeze(part), whose train() leaves it in eval mode, or call part.eval() "
    "after every network.train().",
)
def _eval_undone(setup: _Setup) -> _Found | None:
    seen = setup.training_pass
    back = [m for m in dict.fromkeys([*seen.moved, *seen.random]) if not m.training]
    if not back:
        return None
    count = sum(len(seen.moved.get(m, ())) for m in back)
    return _Found(
        f"In eval mode now and in training mode after network.train(): "
        f"{_count(len(back), 'layer')} of the frozen part (first: {setup.name(back[0])!r}); "
        f"{_count(count, 'buffer')} would move.",
        {"modules": _named(setup, back), "moved": count},
    )


@_check(
    "dropout-in-frozen",
    "A frozen part answers the same input differently each time: its dropout is active.",
    why="Dropout draws at random in training mode, frozen or not, so the head learns from "
    "features that never occur in evaluation.",
    fix="Keep the frozen part in eval mode while the rest trains: tl.models.freeze(part).",
)
def _dropout_in_frozen(setup: _Setup) -> _Found | None:
    active = [m for m in setup.training_pass.random if m.training]
    if not active:
        return None
    names = _named(setup, active)
    return _Found(
        f"{_and(names)} in the frozen part {'draw' if len(names) > 1 else 'draws'} at random in "
        f"training mode: two passes of one batch give different features.",
        {"modules": names},
    )


@_check(
    "nothing-trains",
    "No parameter is trainable, or the head is frozen along with the rest.",
    why="Without requires_grad a parameter gets no gradient, so the loss cannot fall through it.",
    fix="Freeze the body first and attach the head afterwards, or call head.requires_grad_(True).",
)
def _nothing_trains(setup: _Setup) -> _Found | None:
    if setup.optimizer is None and setup.step is None and setup.loss is None:
        raise _Lacking("optimizer or step")
    total = len(list(setup.network.parameters()))
    if not setup.trainable:
        return _Found(
            f"None of the {total} parameters of the network is trainable.", {"trainable": 0}
        )
    head = setup.head
    if head is None or any(p.requires_grad for p in head.parameters()):
        return None
    if setup.frozen is not None and head in setup.frozen_modules:
        return None  # as the reader says
    return _Found(
        f"The head {setup.name(head)!r} is frozen, while {len(setup.trainable)} of {total} "
        f"parameters before it train.",
        {"trainable": len(setup.trainable), "head": setup.name(head)},
        fix="Call requires_grad_(True) on the head, or name it in frozen if it is meant to stay.",
    )


@_check(
    "frozen-but-trained",
    "Parts that are said to be frozen have parameters that train.",
    why="Text and comments freeze nothing: a parameter stays as it is only without requires_grad, "
    "or outside the optimiser. Results are then those of fine-tuning under another name.",
    fix="Call tl.models.freeze(part) before the optimiser is built, and give the optimiser the "
    "trainable parameters alone.",
)
def _frozen_but_trained(setup: _Setup) -> _Found | None:
    if setup.frozen is None:
        raise _Lacking("frozen")
    claimed = {n: p for n, p in setup.frozen_parameters.items() if p.requires_grad}
    moved: set[str] | None = None
    with contextlib.suppress(_Lacking, _CallableError):
        moved = claimed.keys() & setup.steps.moved
    if moved is None and setup.optimizer is None:
        raise _Lacking("optimizer or step")
    held = {id(p) for p in setup._optimised()}
    loose = [n for n, p in claimed.items() if id(p) in held or (moved and n in moved)]
    if not loose:
        return None
    total = len(setup.frozen_parameters)
    proof = f"one step moves {len(moved)} of them" if moved else "the optimiser holds them"
    return _Found(
        f"{len(loose)} of {total} parameters that are said to be frozen require gradients, and "
        f"{proof} (first: {loose[0]!r}).",
        {"trainable": len(loose), "parameters": total, "moved": sorted(moved or ())},
    )


# --- the optimiser and the step -----------------------------------------------------------


@_check(
    "optimizer-misses",
    "Trainable parameters that no group of the optimiser holds.",
    why="An optimiser keeps the list that it was built with. What was unfrozen or replaced "
    "afterwards gets gradients and never moves.",
    fix="Build the optimiser after the last change to the network, or add_param_group the missing "
    "ones; what is not meant to train should be frozen.",
)
def _optimizer_misses(setup: _Setup) -> _Found | None:
    held = {id(p) for p in setup.held}
    missed = [n for n, p in setup.trainable.items() if id(p) not in held]
    if setup.frozen is not None:
        missed = [n for n in missed if n not in setup.frozen_parameters]
    if not missed:
        return None
    strangers = len(_strangers(setup))
    also = f" It holds {strangers} of another network or head instead." if strangers else ""
    return _Found(
        f"The optimiser misses {len(missed)} of {len(setup.trainable)} trainable parameters "
        f"({_and(missed)}).{also}",
        {"missed": missed, "strangers": strangers},
    )


@_check(
    "optimizer-holds-frozen",
    "The optimiser holds frozen parameters, or those of another network.",
    why="A parameter without a gradient is passed over, but one with a gradient left from before "
    "goes on moving by momentum and weight decay, frozen or not.",
    fix="Give the optimiser the trainable parameters of this network alone: "
    "[p for p in network.parameters() if p.requires_grad], or tl.models.param_groups.",
)
def _optimizer_holds_frozen(setup: _Setup) -> _Found | None:
    frozen = [p for p in setup.held if not p.requires_grad]
    strangers = _strangers(setup)
    own = {id(p) for p in setup.held}
    if any(id(p) not in own for p in setup.trainable.values()):
        strangers = []  # one cause, one finding: optimizer-misses
    idle = list({id(p): p for p in [*frozen, *strangers]}.values())
    if not idle:
        return None
    moved = _moved_by_optimizer(setup, frozen)
    kinds = [f"{len(frozen)} frozen parameters"] if frozen else []
    kinds += [f"{len(strangers)} parameters that are not the network's"] if strangers else []
    effect = (
        f"its next step moves {moved} of the frozen ones"
        if moved
        else "none of them moves as things are"
    )
    return _Found(
        f"The optimiser holds {' and '.join(kinds)}; {effect}.",
        {"frozen": len(frozen), "strangers": len(strangers), "moved": moved},
        severity=ERROR if moved else NOTE,
    )


def _strangers(setup: _Setup) -> list[nn.Parameter]:
    own = {id(p) for p in setup.network.parameters()}
    return [p for p in setup.held if id(p) not in own]


def _moved_by_optimizer(setup: _Setup, frozen: Sequence[nn.Parameter]) -> int:
    """How many frozen parameters a step moves with the gradients that lie there now."""
    if setup.optimizer is None or all(p.grad is None for p in frozen):
        return 0
    before = [p.detach().clone() for p in frozen]
    with setup.untouched():
        with contextlib.suppress(Exception):  # such as LBFGS, which needs a closure
            setup.optimizer.step()
        return sum(not torch.equal(a, b) for a, b in zip(before, frozen, strict=True))


@_check(
    "missing-zero-grad",
    "Gradients of one step are still there in the next.",
    why="backward() adds to the gradients that it finds, so that each step follows the sum of all "
    "batches so far.",
    fix="Call optimizer.zero_grad() in every step before loss.backward().",
)
def _missing_zero_grad(setup: _Setup) -> _Found | None:
    leak, noise = setup.steps.leak, setup.steps.noise
    if leak is None or leak <= 0.002:
        return None
    if leak <= 5 * noise:
        raise _Lacking("a step that gives the same gradients twice")
    return _Found(
        f"The gradients of a second step differ by {leak:.0%} of their size from what they are "
        f"without a first step.",
        {"leak": leak},
    )


@_check(
    "one-rate",
    "A pretrained body and a fresh head share one high learning rate.",
    why="A rate that a random head needs moves pretrained weights far from where they were useful, "
    "most of all in the first steps, when the head's gradients are arbitrary.",
    fix="Give the body about a tenth of the head's rate: "
    "tl.models.param_groups(network, lr=1e-4, head_lr=1e-3).",
)
def _one_rate(setup: _Setup) -> _Found | None:
    held = setup.held
    if setup.weights is None or setup.weights is False:
        raise _Lacking("weights")
    head = setup.head
    if head is None or setup.optimizer is None:
        return None
    own, body = {id(p) for p in head.parameters()}, set()
    for name, p in setup.trainable.items():
        if id(p) not in own and name not in (
            setup.frozen_parameters if setup.frozen is not None else ()
        ):
            body.add(id(p))
    rates: dict[str, set[float]] = {"head": set(), "body": set()}
    for group in setup.optimizer.param_groups:
        for p in group["params"]:
            if id(p) in own:
                rates["head"].add(float(group["lr"]))
            elif id(p) in body:
                rates["body"].add(float(group["lr"]))
    sgd = isinstance(setup.optimizer, torch.optim.SGD)
    high = 0.05 if sgd else 1e-3
    if len(held) == 0 or not rates["head"] or rates["body"] != rates["head"]:
        return None
    lr = max(rates["head"])
    if lr < high:
        return None
    return _Found(
        f"{type(setup.optimizer).__name__} moves the pretrained body and the head at the same "
        f"rate, {lr:g}.",
        {"lr": lr, "high": high},
        severity=NOTE,
    )


# --- from maps to scores ------------------------------------------------------------------


@_check(
    "missing-flatten",
    "The network fails at its head, or answers with maps instead of scores (n, m).",
    why="Sequential(*children()[:-1], Linear) leaves out what a network's forward() does between "
    "its layers: the pooling and the flattening before the head.",
    fix="Replace the head by name (network.fc = nn.Linear(...)), or put nn.AdaptiveAvgPool2d(1), "
    "nn.Flatten() before the new layer.",
)
def _missing_flatten(setup: _Setup) -> _Found | None:
    trace = setup.trace
    if trace.error is not None:
        linear = [(m, x) for m, x in trace.entered if isinstance(m, nn.Linear) and x.ndim > 2]
        if not linear:
            _ = setup.output  # raises: another error, for step-fails
            return None
        layer, given = linear[-1]
        setup.explained.add("network")
        return _Found(
            f"The layer {setup.name(layer)!r} takes {layer.in_features} features and gets maps of "
            f"shape {tuple(given.shape)}.",
            {"input": tuple(given.shape), "in_features": layer.in_features},
        )
    out = setup.output
    dense = setup.batch[1] is not None and setup.batch[1].ndim > 2
    if out.ndim == 2 or dense:
        return None
    if out.ndim < 2 or setup.batch[0].ndim < 4:  # one score an example; sequences
        raise _Lacking("a network that returns scores (n, m)")
    return _Found(
        f"The output has shape {tuple(out.shape)} where scores (n, m) are due.",
        {"output": tuple(out.shape)},
    )


@_check(
    "unpooled-features",
    "Maps are flattened instead of averaged, so that a feature stands for one place.",
    why="children()[:-1] of MobileNetV2 or DenseNet ends before the average over the image, which "
    "is in forward(): 49 times as many features, most of them about where something is.",
    fix="Average over the image plane before flattening: nn.AdaptiveAvgPool2d(1), nn.Flatten(); or "
    "use tl.models.backbone, which ends after the pooling.",
)
def _unpooled_features(setup: _Setup) -> _Found | None:
    looked = False
    with contextlib.suppress(_Lacking):
        if (found := _flat_into_error(setup)) is not None:
            return found
    if setup.features is not None:
        looked = True
        maps = _unpooled(setup.probed)
        if maps is not None and not _takes_flat_maps(setup, maps):
            return _flat("features(x) gives", maps)
    with contextlib.suppress(_Lacking):
        if setup.trace.error is None and isinstance(setup.head, nn.Linear):
            looked = True
            maps = _unpooled_input(setup)
            if maps is not None:
                return _flat(f"The head {setup.name(setup.head)!r} gets", maps)
    if not looked:
        raise _Lacking("features")
    return None


def _flat(what: str, maps: Tensor) -> _Found:
    _, d, h, w = maps.shape
    return _Found(
        f"{what} {d:,} maps of {h}×{w}, flattened: {d * h * w:,} numbers instead of {d:,}.",
        {"maps": (d, h, w), "features": d * h * w},
    )


def _flat_into_error(setup: _Setup) -> _Found | None:
    """A network that fails because its head gets flat maps where it expects their averages."""
    maps = setup.trace.maps
    for layer, given in setup.trace.entered:
        if not isinstance(layer, nn.Linear) or maps is None or not _is_flat(given, maps):
            continue
        if layer.in_features == maps.shape[1]:
            setup.explained.add("network")
            return _flat(f"The layer {setup.name(layer)!r} gets", maps)
    return None


def _unpooled(trace: _Trace) -> Tensor | None:
    """The maps that a result is, or is the flattened form of."""
    out = trace.output
    maps = out if out is not None and out.ndim == 4 else trace.maps
    if out is None or maps is None or maps[0, 0].numel() < 2:
        return None
    return maps if out is maps or _is_flat(out, maps) else None


def _is_flat(flat: Tensor, maps: Tensor) -> bool:
    if flat.ndim != 2 or flat.shape != (len(maps), maps[0].numel()):
        return False
    # The sums agree in whatever order the flattening goes.
    return torch.allclose(flat.double().sum(1), maps.double().flatten(1).sum(1), rtol=1e-4)


def _takes_flat_maps(setup: _Setup, maps: Tensor) -> bool:
    """Whether the network's own first layer after the maps takes them flat, as in VGG."""
    layers = [m for m in setup.network.modules() if isinstance(m, nn.Linear)]
    return bool(layers) and layers[0].in_features == maps[0].numel()


def _unpooled_input(setup: _Setup) -> Tensor | None:
    """The maps that the head of a network with a pooled design gets flat.

    A plain stack of convolutions may be meant so. Networks of torchvision, but for VGG and
    AlexNet, and those of this package are not.
    """
    kinds = {type(m) for m in setup.network.modules()}
    homes = ("torchvision.models.", "tlhelpers.models")
    pooled = any(kind.__module__.startswith(homes) for kind in kinds)
    if not pooled or {kind.__name__ for kind in kinds} & {"VGG", "AlexNet"}:
        return None
    call = next((c for c in reversed(setup.trace.calls) if c.module is setup.head), None)
    if call is None or call.input is None or call.maps is None:
        return None
    maps = call.maps
    return maps if maps[0, 0].numel() > 1 and _is_flat(call.input, maps) else None


@_check(
    "logits-as-features",
    "What a probe gets as features are the scores of the pretrained head.",
    why="The head has already thrown away what does not help to tell its own classes apart.",
    fix="Take what the head gets, not what it says: tl.models.backbone(...).network, or replace "
    "the head by nn.Identity().",
)
def _logits_as_features(setup: _Setup) -> _Found | None:
    found = setup.probed.output
    if found is None or found.ndim != 2:
        return None
    width = found.shape[1]
    layers = [
        c.module
        for c in setup.probed.calls
        if c.output is not None and c.output.shape == found.shape and torch.equal(c.output, found)
    ]
    scored = any(isinstance(m, nn.Linear) or _ends_in_linear(m) for m in layers)
    if width == _IMAGENET_CLASSES:
        what = "as many as ImageNet has classes"
    elif scored and width == setup.m:
        what = "the output of a network's head, one for each class"
    else:
        return None
    return _Found(f"features(x) gives {width:,} numbers, {what}.", {"features": width})


def _ends_in_linear(part: nn.Module) -> bool:
    leaves = [m for m in part.modules() if not _children(m)]
    return bool(leaves) and isinstance(leaves[-1], nn.Linear)


@_check(
    "head-shape",
    "The network has another number of outputs than there are classes.",
    why="Too few outputs leave labels without a score. Too many, such as ImageNet's 1,000 or one "
    "for each training example, compete for probability and can be predicted.",
    fix="Give the head as many outputs as there are classes: nn.Linear(in_features, m).",
)
def _head_shape(setup: _Setup) -> _Found | None:
    m, width = setup.m, setup.scores.shape[1]
    if _is_probed_whole(setup):
        raise _Lacking("a network with a head")
    if width == m or (width == 1 and m == 2):
        return None
    hint = ""
    if width == _IMAGENET_CLASSES:
        hint = ": ImageNet's head is still on"
    elif width > m and width % m == 0:
        hint = f", {width // m} for each class"
    return _Found(
        f"The network has {width:,} outputs for {m:,} classes{hint}.",
        {"outputs": width, "classes": m},
        fix=f"Give the head one output a class: nn.Linear(in_features, {m}).",
    )


def _is_probed_whole(setup: _Setup) -> bool:
    """Whether the probe's features are all that the network says: then it has no head."""
    with contextlib.suppress(_Lacking, _CallableError):
        found = setup.probed.output
        return found is not None and torch.equal(found, setup.scores)
    return False


@_check(
    "softmax-before-loss",
    "The network ends in a softmax, and the loss takes another one.",
    why="cross_entropy applies log_softmax itself. Of probabilities, which lie in 0..1, it makes "
    "nearly equal probabilities again: the loss stays high and gradients vanish.",
    fix="Return the scores themselves, without a softmax; apply it where probabilities are shown.",
)
def _softmax_before_loss(setup: _Setup) -> _Found | None:
    out = setup.scores
    if out.shape[1] < 2:
        return None
    ones = torch.ones(len(out), device=out.device, dtype=out.dtype)
    if bool((out >= 0).all()) and torch.allclose(out.sum(1), ones, atol=1e-4):
        if setup.loss is not None and not _normalises_scores(setup):
            return None  # such as nll_loss(log(p)), which takes probabilities
        return _Found(
            f"Every row of the output lies in 0..1 and adds up to 1; the largest of the "
            f"{out.shape[1]} outputs is {float(out.max()):.3f}.",
            {"largest": float(out.max())},
        )
    logs = bool((out <= 1e-6).all()) and torch.allclose(out.exp().sum(1), ones, atol=1e-4)
    if logs and setup.loss is not None and _normalises_scores(setup):
        return _Found(
            "The output is a log_softmax, and the loss takes another one; of the same numbers, "
            "so this changes nothing but the time.",
            {"log_softmax": True},
            fix="Return the scores themselves, or use nll_loss.",
            severity=NOTE,
        )
    return None


def _normalises_scores(setup: _Setup) -> bool:
    """Whether the loss applies a softmax: then it is blind to a shift of all scores."""
    assert setup.loss is not None
    y, out = setup.labelled[1], setup.scores
    here = torch.as_tensor(setup.call("loss", setup.loss, out, y)).double()
    there = torch.as_tensor(setup.call("loss", setup.loss, out + 0.7, y)).double()
    return bool(torch.allclose(here, there, rtol=1e-3, atol=1e-5))


# --- evaluation ---------------------------------------------------------------------------


@_check(
    "evaluates-in-train-mode",
    "The evaluation runs the network in training mode.",
    why="Dropout draws at random and batch norm uses the statistics of the batch, and learns from "
    "validation images: the figure is of another network than the one that is kept.",
    fix="Call network.eval() before evaluating and network.train() afterwards.",
)
def _evaluates_in_train_mode(setup: _Setup) -> _Found | None:
    seen = setup.evaluation
    active = [m for m in setup.network.modules() if m in seen.training and _mode_matters(m)]
    if setup.evaluate is not None and _takes_x(setup.evaluate) and _mixes_rows(setup, active):
        # One cause, one finding: test-time-batch-statistics says it of batch norms.
        active = [m for m in active if not _normalises(m)]
    if not active:
        return None
    moved = f"; {_count(len(seen.buffers), 'buffer')} moved" if seen.buffers else ""
    return _Found(
        f"In training mode during the evaluation: {_count(len(active), 'layer')} for which that "
        f"makes a difference (first: {setup.name(active[0])!r}){moved}.",
        {"modules": _named(setup, active), "moved": len(seen.buffers)},
    )


@_check(
    "test-time-batch-statistics",
    "The prediction for one example depends on the other examples of its batch.",
    why="Batch norm in training mode normalises by the batch at hand: in few-shot tests it reads "
    "the statistics of all queries, and the result changes with the size and mix of the batch.",
    fix="Evaluate in eval mode, with running statistics (track_running_stats=True).",
)
def _test_time_batch_statistics(setup: _Setup) -> _Found | None:
    active: list[nn.Module] = []
    if setup.evaluate is not None and _takes_x(setup.evaluate):
        active = [m for m in setup.evaluation.training if _normalises(m)]
    if setup.trace.error is not None:
        raise _Lacking("a network that runs on the data")
    change = _mixes_rows(setup, active)
    if not change:
        return None
    return _Found(
        f"The scores of {_FEW} examples change by {change:.0%} of their spread when they come "
        f"alone instead of in a batch of {len(setup.batch[0])}.",
        {"change": change, "in_training_mode": _named(setup, active)},
    )


def _mixes_rows(setup: _Setup, training: Iterable[nn.Module]) -> float:
    """How far two examples are answered differently from the same rows in the whole batch.

    Relative to the spread of the scores; 0 where the difference is no more than rounding.
    """
    x = setup.batch[0]
    with setup.untouched(), torch.no_grad():
        setup.network.eval()
        for part in training:
            part.training = True
        whole = _tensor(setup.call("network", setup.network, x))
        few = _tensor(setup.call("network", setup.network, x[:_FEW]))
    if whole is None or few is None or len(whole) != len(x):
        return 0.0
    apart = (whole[:_FEW].double() - few.double()).abs().mean()
    change = float(apart / whole.double().std().clamp_min(1e-12))
    return change if change > 0.01 else 0.0


@_check(
    "batch-averaged-loss",
    "The loss of an epoch is the mean over batches, not over examples.",
    why="The last batch is smaller, so each of its examples counts more than the others.",
    fix="Weight each batch by its number of examples: sum(loss * len(y)) / sum(len(y)).",
)
def _batch_averaged_loss(setup: _Setup) -> _Found | None:
    loader_loss = setup.loader_loss
    if loader_loss is None:
        raise _Lacking("loader_loss")
    x, y = setup.labelled
    n, small = len(x), min(2, len(x) - 1)
    batches = [(x[: n - small], y[: n - small]), (x[n - small :], y[n - small :])]

    def average(chosen: list[tuple[Tensor, Tensor]]) -> float:
        with setup.untouched():
            _seed()
            return float(setup.call("loader_loss", loader_loss, chosen))

    large, little = average(batches[:1]), average(batches[1:])
    found = average(batches)
    exact = ((n - small) * large + small * little) / n
    naive = (large + little) / 2
    slack = 0.02 * abs(naive - exact) + 1e-6 * abs(exact)
    if abs(found - exact) <= slack or n == 2 * small:
        return None
    if abs(found - naive) > slack:
        raise _Lacking("a loader_loss that is a mean")
    return _Found(
        f"On batches of {n - small} and {small} examples the loss is {found:.4f}, the mean of the "
        f"two batches; the mean of the {n} examples is {exact:.4f}.",
        {"found": found, "expected": exact, "sizes": (n - small, small)},
    )


# --- images -------------------------------------------------------------------------------


@_check(
    "resize-without-crop",
    "Photographs of different shapes come out of the preprocessing with different shapes.",
    why="Resize(224) sets the shorter side alone, so that the tensors of a batch do not stack.",
    fix="Cut a square after resizing: Resize(256), CenterCrop(224), as weights.transforms() does.",
)
def _resize_without_crop(setup: _Setup) -> _Found | None:
    sizes = _photo_sizes(setup)
    for name, function in _pipelines(setup):
        shapes = [_see(setup, name, function, _noise(h, w)).shape for h, w in sizes]
        if len(set(shapes)) == 1:
            continue
        if shapes == [(3, *size) for size in sizes] and "train" not in setup.parts:
            raise _Lacking("data")  # the images may all have one size
        pairs = ", ".join(
            f"{h}×{w} becomes {s[-2]}×{s[-1]}" for (h, w), s in zip(sizes, shapes, strict=True)
        )
        return _Found(f"{name}: {pairs} (height × width).", {"sizes": sizes, "shapes": shapes})
    return None


@_check(
    "squashed",
    "The preprocessing changes the aspect ratio.",
    why="Resize((224, 224)) makes a photograph of 4:3 a square by squeezing it: circles become "
    "ellipses, which the pretrained network has seen rarely.",
    fix="Resize the shorter side alone, then crop: Resize(256), CenterCrop(224).",
)
def _squashed(setup: _Setup) -> _Found | None:
    sizes = _photo_sizes(setup)
    h, w = max(sizes, key=lambda size: abs(math.log(size[1] / size[0])))
    for name, function in _pipelines(setup):
        stretch = _stretch(setup, name, function, h, w)
        # A quarter is more than rounding, and less than 4:3.
        if stretch is not None and abs(math.log(stretch)) > math.log(1.25):
            return _Found(
                f"{name}: an image of {h}×{w} comes out {max(stretch, 1 / stretch):.2f} times as "
                f"{'tall' if stretch > 1 else 'wide'} as it should be.",
                {"size": (h, w), "stretch": stretch},
                severity=NOTE,
            )
    return None


def _stretch(
    setup: _Setup, name: str, function: Callable[[Any], Any], h: int, w: int
) -> float | None:
    """Height by width of what was a square; the median where the pipeline is random."""
    slope = 255 / max(h, w)
    across = (torch.arange(w) * slope).expand(h, w)
    down = (torch.arange(h) * slope).unsqueeze(1).expand(h, w)
    draws = 9 if _is_random(setup, name, function) else 1
    found = []
    for draw in range(draws):
        slopes = []
        for axis, ramp in ((-1, across), (-2, down)):
            _seed_with(draw)
            out = _see(setup, name, function, ramp.round().to(torch.uint8).expand(3, h, w))
            slopes.append(_slope(out, axis))
        if min(slopes) > 0:
            found.append(slopes[0] / slopes[1])
    return float(np.median(found)) if found else None


def _slope(out: Tensor, axis: int) -> float:
    """Mean step from pixel to pixel along an axis, in the middle of an image."""
    size = out.shape[axis]
    low, high = int(0.3 * size), int(0.7 * size)
    if high - low < 2:
        return 0.0
    a, b = out.double().select(axis, low), out.double().select(axis, high)
    middle = slice(int(0.3 * a.shape[-1]), max(int(0.7 * a.shape[-1]), 1))
    return abs(float((b - a)[..., middle].mean())) / (high - low)


@_check(
    "wrong-normalisation",
    "The preprocessing gives other values than the pretrained weights were trained on.",
    why="The first layers expect the scale, the mean and the order of channels of their own "
    "training; other values look to them like images of another contrast, brightness or colour.",
    fix="Use the weights' own transforms(), or their mean and std after scaling to 0..1, RGB.",
)
def _wrong_normalisation(setup: _Setup) -> _Found | None:
    expected = _expected_values(setup.weights)
    if setup.channels != 3:
        raise _Lacking("images in colour")
    for name, function in _pipelines(setup):
        found = _affine(setup, name, function)
        if found is None:
            raise _Lacking("preprocess that gives (3, h, w)")
        (low, high), order = found, _order(setup, name, function)
        mean, std = np.array(expected[0]), np.array(expected[1])
        off = max(np.abs(low + mean / std).max(), np.abs(high - (1 - mean) / std).max())
        slack = 0.5 if _is_random(setup, name, function) else 0.1
        if off <= slack and order == (0, 1, 2):
            continue
        spread = np.where(np.abs(high - low) < 1e-6, 1e-6, high - low)
        seen_std, seen_mean = 1 / spread, -low / spread
        stated = (
            f"mean {_triple(seen_mean)} and std {_triple(seen_std)} where the weights expect "
            f"{_triple(mean)} and {_triple(std)}"
        )
        return _Found(
            f"{name} {_values_in_words(low, high)}: {stated}."
            if off > slack
            else f"{name} gives the channels in the order {_colours(order)}.",
            {
                "mean": tuple(seen_mean),
                "std": tuple(seen_std),
                "expected_mean": tuple(mean),
                "expected_std": tuple(std),
                "channels": order,
            },
        )
    return None


def _affine(
    setup: _Setup, name: str, function: Callable[[Any], Any]
) -> tuple[np.ndarray, np.ndarray] | None:
    """What black and white become, for each channel."""
    values = []
    for level in (0, 255):
        image = torch.full((3, 256, 256), level, dtype=torch.uint8)
        drawn = []
        for _ in range(9 if _is_random(setup, name, function) else 1):
            out = _see(setup, name, function, image)
            if out.ndim != 3 or out.shape[0] != 3:
                return None
            drawn.append(out.double().flatten(1).median(dim=1).values.numpy())
        values.append(np.median(drawn, axis=0))
    return values[0], values[1]


def _order(setup: _Setup, name: str, function: Callable[[Any], Any]) -> tuple[int, ...]:
    """The channel that each of red, green and blue lands in."""
    order = []
    for channel in range(3):
        image = torch.zeros(3, 256, 256, dtype=torch.uint8)
        image[channel] = 255
        black = _see(setup, name, function, torch.zeros_like(image)).double()
        out = _see(setup, name, function, image).double()
        gain = (out.flatten(1).median(1).values - black.flatten(1).median(1).values).abs()
        # Grey levels, which augmentation makes of some images, tell nothing.
        order.append(channel if float(gain.min()) > 0.5 * float(gain.max()) else int(gain.argmax()))
    return tuple(order)


def _values_in_words(low: np.ndarray, high: np.ndarray) -> str:
    if high.max() > 20:
        return "gives values in 0..255"
    if np.abs(low).max() < 0.01 and np.abs(high - 1).max() < 0.01:
        return "leaves values in 0..1 without normalising"
    return "normalises otherwise"


def _colours(order: tuple[int, ...]) -> str:
    """What the three channels hold, given where red, green and blue go."""
    names = ("red", "green", "blue")
    return ", ".join(
        " and ".join(names[i] for i in range(3) if order[i] == place) or "nothing"
        for place in range(3)
    )


def _triple(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{v + 0.0:.3g}" for v in values) + ")"


def _expected_values(weights: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of what pretrained weights were trained on."""
    if weights is None or weights is False:
        raise _Lacking("weights")
    own = getattr(weights, "preprocess", weights)
    if hasattr(own, "mean") and hasattr(own, "std"):
        return own.mean, own.std
    member = _member(weights)
    if member is not None:
        preset = member.transforms()
        if hasattr(preset, "mean"):
            return preset.mean, preset.std
    if weights is True or str(weights).split(".")[-1] in _IMAGENET_NAMES:
        return models.Preprocess.mean, models.Preprocess.std
    raise _Lacking("weights of torchvision or a models.Preprocess")


_IMAGENET_NAMES = ("pretrained=True", "DEFAULT", "imagenet", "IMAGENET1K_V1", "IMAGENET1K_V2")


def _member(weights: Any) -> Any:
    """The member of a torchvision weights enum, where a value or a full name is one."""
    if isinstance(weights, torchvision.models.WeightsEnum):
        return weights
    with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):
        if isinstance(weights, str) and "." in weights:
            return torchvision.models.get_weight(weights.removeprefix("torchvision.models."))
    return None


@_check(
    "augmented-validation",
    "The preprocessing of validation images is random.",
    why="Validation then measures harder images than the test holds, and another result each time.",
    fix="Leave augmentation to the training images; resize, crop and normalise the others.",
)
def _augmented_validation(setup: _Setup) -> _Found | None:
    if setup.preprocess_eval is None:
        raise _Lacking("preprocess_eval")
    if not _is_random(setup, "preprocess_eval", setup.preprocess_eval):
        return None
    return _Found("preprocess_eval makes different tensors of one image.", {})


def _pipelines(setup: _Setup) -> list[tuple[str, Callable[[Any], Any]]]:
    given = {"preprocess": setup.preprocess, "preprocess_eval": setup.preprocess_eval}
    found = [(name, function) for name, function in given.items() if function is not None]
    if not found:
        raise _Lacking("preprocess")
    return found


def _photo_sizes(setup: _Setup) -> list[tuple[int, int]]:
    """Heights and widths to try: those of the data where they are tensors, else of photographs."""
    shape = setup.image_shape
    return [(256, 512), (512, 256), (300, 400)] if shape is None else [(shape[1], shape[2])]


def _noise(h: int, w: int) -> Tensor:
    """(3, h, w) uint8: an image like no other, and unlike its mirror images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)


def _see(setup: _Setup, name: str, function: Callable[[Any], Any], image: Tensor) -> Tensor:
    """What a pipeline makes of a (3, h, w) uint8 image."""
    return setup.call(name, lambda: _apply(function, image[: setup.channels]))


def _forms(image: Tensor) -> Iterator[Callable[[], Any]]:
    """An image as a PIL image, as uint8 and as float in 0..1."""
    yield lambda: F.to_pil_image(image)
    yield lambda: image
    yield lambda: image.float() / 255


def _apply(function: Callable[[Any], Any], image: Tensor) -> Tensor:
    """The tensor that a pipeline makes of a uint8 image, in the first form that it takes.

    Raises:
        Exception: the pipeline's own, if it takes none.
    """
    errors: list[Exception] = []
    for form in _forms(image):
        try:
            out = function(form())
        except Exception as error:
            errors.append(error)
            continue
        if isinstance(out, np.ndarray):
            out = torch.from_numpy(out)
        if isinstance(out, Tensor):
            return out[0] if out.ndim == 4 and len(out) == 1 else out
        errors.append(TypeError(f"returned {type(out).__name__}, not a tensor"))
    raise errors[-1]


def _apply_to(function: Callable[[Any], Any], image: Any) -> Tensor | None:
    """The same for one of the data's own images; None where it takes no form of it."""
    with contextlib.suppress(Exception):
        out = function(image)
        if isinstance(out, Tensor):
            return out
    if isinstance(image, Tensor) and image.dtype == torch.uint8:
        with contextlib.suppress(Exception):
            return _apply(function, image)
    return None


def _is_random(setup: _Setup, name: str, function: Callable[[Any], Any]) -> bool:
    """Whether a pipeline makes different tensors of one image."""
    if name not in setup.is_random:
        h, w = min(_photo_sizes(setup))
        image = _noise(min(h, 200), min(w, 260))
        first = _see(setup, name, function, image)
        again = (_see(setup, name, function, image) for _ in range(_DRAWS))
        setup.is_random[name] = any(
            t.shape != first.shape or not torch.equal(t, first) for t in again
        )
    return setup.is_random[name]


def _seed_with(number: int) -> None:
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002


# --- data ---------------------------------------------------------------------------------


@_check(
    "labels",
    "Labels that the loss cannot use: out of range, of another type, or all of one class.",
    why="cross_entropy takes int64 labels from 0 to m - 1 and reads the score at that position.",
    fix="Number the classes from 0 to m - 1, as int64.",
)
def _labels(setup: _Setup) -> _Found | None:
    y = setup.part("train").y
    if y is None:
        raise _Lacking("data with labels")
    if y.ndim != 1:
        return None  # several labels or a distribution for each example
    if y.is_floating_point():
        with contextlib.suppress(_Lacking, _CallableError):
            if setup.output.ndim == 1 or setup.output.shape[1] == 1:
                return None  # one score, as binary_cross_entropy takes them
        return _Found(
            f"The labels are {y.dtype}, where classes are due as int64.",
            {"dtype": str(y.dtype)},
            fix="Call y.long(), after a look at whether they are class numbers.",
        )
    if y.dtype not in (torch.int64, torch.uint8):
        return _Found(
            f"The labels are {y.dtype}, which cross_entropy does not take.",
            {"dtype": str(y.dtype)},
            fix="Call y.long().",
        )
    kept = y[y != -100]  # cross_entropy's ignore_index
    low, high = int(kept.min()), int(kept.max())
    with contextlib.suppress(_Lacking):
        m = setup.m
        if low < 0 or high >= m:
            hint = " They seem to count from 1." if (low, high) == (1, m) else ""
            return _Found(
                f"The labels run from {low} to {high}, where 0 to {m - 1} are due.{hint}",
                {"min": low, "max": high, "classes": m},
            )
    if low < 0:
        return _Found(f"The smallest label is {low}.", {"min": low, "max": high})
    if low == high and not setup.is_batch:
        return _Found(
            f"All {len(y):,} training examples are of class {low}.",
            {"min": low, "max": high},
            fix="Look at how the split was made: sorted files need shuffling first.",
        )
    return None


@_check(
    "imbalanced-accuracy",
    "Accuracy is reported, and one class makes up most of the data.",
    why="A constant answer then has a high accuracy, and a poor model can look like a good one.",
    fix="Report macro-F1 or the mean recall over classes as well, and the constant answer's "
    "accuracy beside it.",
)
def _imbalanced_accuracy(setup: _Setup) -> _Found | None:
    name = "validation" if "validation" in setup.parts else "train"
    y = setup.part(name).y
    if y is None or y.ndim != 1 or y.is_floating_point():
        raise _Lacking("data with labels")
    if setup.is_batch and len(y) < 64:
        raise _Lacking("data")  # the mix of one small batch is chance
    if setup.metric.lower().replace("-", "") not in ("accuracy", "acc", "top1"):
        return None
    counts = y.unique(return_counts=True)[1]
    if len(counts) < 2:
        return None  # see labels
    m, share = len(counts), float(counts.max()) / len(y)
    if share < 1 / m + 0.25:
        return None
    return _Found(
        f"{share:.1%} of the {name} examples belong to one of {m} classes; always to answer that "
        f"class is as accurate.",
        {"share": share, "classes": m, "split": name},
    )


@_check(
    "selected-on-test",
    "Epochs or settings are chosen on test data, or the test split was read more than once.",
    why="The best of many readings is the one that luck favoured: the figure flatters.",
    fix="Choose on the validation split; read the test split once, at the end.",
)
def _selected_on_test(setup: _Setup) -> _Found | None:
    test = getattr(setup.data, "test", None)
    readings = setup.readings if setup.readings is not None else getattr(test, "readings", None)
    if setup.chosen_on is None and readings is None:
        raise _Lacking("chosen_on")
    if setup.chosen_on is not None and (chosen := _chosen_from_test(setup)):
        return _Found(f"Epochs or settings are chosen on {chosen}.", {"chosen_on_test": True})
    if readings is not None and len(readings) > 1:
        return _Found(
            f"The test split has been read {len(readings)} times ({_and(list(readings))}).",
            {"readings": tuple(readings)},
            fix="Report all of these results, or choose on the validation split from here on.",
            severity=NOTE,
        )
    return None


def _chosen_from_test(setup: _Setup) -> str:
    """What of the test split serves for a choice; empty for nothing."""
    chosen = setup.chosen_on
    name = chosen if isinstance(chosen, str) else getattr(chosen, "name", None)
    if name == "test":
        return "the test split"
    ids = getattr(chosen, "ids", chosen)
    if isinstance(ids, str):
        return ""
    if isinstance(ids, (Tensor, np.ndarray)):
        ids = ids.tolist()
    if all(isinstance(i, int) for i in ids):
        split = getattr(setup.data, "split", None)
        if split is None:
            raise _Lacking("data with a split")
        common = sum(str(split[i]) == "test" for i in ids)
    else:
        test = setup.part("test")
        if test.ids is None:
            raise _Lacking("data with ids")
        common = len(set(map(str, ids)) & set(test.ids))
    return f"{len(ids):,} examples, of which {common:,} are test examples" if common else ""


@_check(
    "duplicates",
    "The same example stands on both sides of a split.",
    why="What was learned by heart counts as understood.",
    fix="Put all copies of an image into one part; leave them out of validation and test.",
)
def _duplicates(setup: _Setup) -> _Found | None:
    present = [name for name in PARTS if name in setup.parts]
    if len(present) < 2:
        raise _Lacking("data with validation or test")
    pairs = [(a, b) for i, a in enumerate(present) for b in present[i + 1 :]]
    digests = {name: _digests(setup.parts[name].x) for name in present}
    exact = {(a, b): _equal(digests[a], digests[b]) for a, b in pairs}
    sketches = _sketches(setup, present)
    same = _SAME_THUMBNAILS if _shows_images(setup.part("train").x) else _SAME_FEATURES
    near = {}
    for a, b in pairs:
        if a in sketches and b in sketches:
            found = _close(sketches[a], sketches[b], min(same, _usual(sketches[a]) / 4))
            near[a, b] = {i: j for i, j in found.items() if i not in exact[a, b]}
    told = [_twins(setup, a, b, rows, "equal to") for (a, b), rows in exact.items() if rows]
    told += [_twins(setup, a, b, rows, "almost equal to") for (a, b), rows in near.items() if rows]
    if not told:
        return None
    equal = any(exact.values())
    partly = [name for name, sketch in sketches.items() if len(sketch) < len(setup.parts[name])]
    limit = (
        f" Only the first {_DECODED:,} images of {_and(partly)} were compared." if partly else ""
    )
    return _Found(
        "; ".join(told) + "." + limit,
        {
            "equal": {f"{a}/{b}": len(rows) for (a, b), rows in exact.items()},
            "almost": {f"{a}/{b}": len(rows) for (a, b), rows in near.items()},
            "looked_at": {name: len(sketch) for name, sketch in sketches.items()},
        },
        fix=None
        if equal
        else "Look at these pairs: copies belong into one part, mere siblings may stay.",
        severity=ERROR if equal else NOTE,
    )


def _twins(setup: _Setup, a: str, b: str, rows: Mapping[int, int], how: str) -> str:
    def name(part: str, row: int) -> str:
        ids = setup.parts[part].ids
        return f"row {row}" if ids is None else repr(ids[row])

    first = next(iter(rows))
    share = f"{len(rows):,} of {len(setup.parts[b]):,} {b} examples"
    return (
        f"{share} {'are' if len(rows) > 1 else 'is'} {how} one in {a} "
        f"(first: {name(b, first)} and {name(a, rows[first])})"
    )


def _equal(a: Sequence[bytes], b: Sequence[bytes]) -> dict[int, int]:
    """Rows of ``b`` that are in ``a`` too, each with its place there."""
    known = {digest: row for row, digest in enumerate(a)}
    return {row: known[digest] for row, digest in enumerate(b) if digest in known}


def _digests(x: Any) -> list[bytes]:
    """A digest of each example: of a tensor's values, or of the file of an image."""
    if isinstance(x, Tensor):
        rows: Iterable[bytes] = (
            r.tobytes() for r in x.detach().cpu().flatten(1).contiguous().numpy()
        )
        if x[0].numel() < 8:
            return []  # a few small numbers are equal by chance
    elif hasattr(x, "read"):
        rows = (x.read(i) for i in range(min(len(x), _READ)))
    else:
        rows = (x.take([i]).stack().numpy().tobytes() for i in range(min(len(x), _DECODED)))
    return [hashlib.blake2b(row, digest_size=16).digest() for row in rows]


def _shows_images(x: Any) -> bool:
    return not isinstance(x, Tensor) or x.ndim == 4


def _sketches(setup: _Setup, names: Sequence[str]) -> dict[str, Tensor]:
    """(n, d) rows of unit length for each part, whose products tell how alike examples are."""
    found: dict[str, Tensor] = {}
    centre: Tensor | None = None
    for name in names:
        x = setup.parts[name].x
        if isinstance(x, Tensor) and x.ndim == 2 and x.shape[1] >= 8 and x.is_floating_point():
            centre = x.mean(0) if centre is None else centre
            found[name] = nn.functional.normalize(x.float() - centre, dim=1)
        elif isinstance(x, Tensor) and x.ndim == 4:
            found[name] = torch.cat([_thumbnails(part) for part in x.split(1024)])
        elif not isinstance(x, Tensor):
            with contextlib.suppress(Exception):  # unreadable images are not for this check
                images = (_glance(x, i) for i in range(min(len(x), _DECODED)))
                found[name] = torch.cat([_thumbnails(image) for image in images])
    return found


def _glance(x: Any, i: int) -> Tensor:
    """(1, c, h, w) uint8: one image of a lazy sequence, coarse where that is faster."""
    if not hasattr(x, "read"):
        return x.take([i]).stack()
    with Image.open(io.BytesIO(x.read(i))) as image:
        image.draft("L", (4 * _SIMILAR, 4 * _SIMILAR))  # a JPEG is decoded at an eighth of its size
        return F.pil_to_tensor(image.convert("L")).unsqueeze(0)


def _thumbnails(images: Tensor) -> Tensor:
    """Small grey images (n, d) of mean 0 and length 1; zeros for images without contrast."""
    grey = images.float().mean(1, keepdim=True)
    if images.dtype == torch.uint8:
        grey = grey / 255
    small = F.resize(grey, [_SIMILAR, _SIMILAR], antialias=True).flatten(1)
    small = small - small.mean(1, keepdim=True)
    plain = small.std(1, keepdim=True) < 0.02
    return nn.functional.normalize(small.masked_fill(plain, 0), dim=1)


def _usual(a: Tensor) -> float:
    """The median distance of an example from the nearest other one of its part."""
    rows = torch.arange(0, len(a), max(1, len(a) // 1000))
    products = a[rows] @ a.T
    products[torch.arange(len(rows)), rows] = -1  # not from itself
    return float((2 - 2 * products.amax(1)).clamp_min(0).sqrt().median())


def _close(a: Tensor, b: Tensor, limit: float) -> dict[int, int]:
    """Rows of ``b`` less than this far from a row of ``a``, each with its place there."""
    nearest = [(part @ a.T).max(dim=1) for part in b.split(1024)]
    product, row = torch.cat([n.values for n in nearest]), torch.cat([n.indices for n in nearest])
    close = (2 - 2 * product).clamp_min(0).sqrt() < limit
    return {i: int(row[i]) for i in close.nonzero().flatten().tolist()}


@_check(
    "unnamed-weights",
    "The weights are asked for as DEFAULT or pretrained=True, which does not say which.",
    why="DEFAULT is whatever torchvision thinks best today, and pretrained=True is deprecated: the "
    "same code gives other results elsewhere.",
    fix="Write the member's name: weights=ResNet50_Weights.IMAGENET1K_V2.",
)
def _unnamed_weights(setup: _Setup) -> _Found | None:
    given = setup.weights
    if given is None:
        raise _Lacking("weights")
    legacy = given is True or given == "pretrained=True"
    if not legacy and not (isinstance(given, str) and given.split(".")[-1] == "DEFAULT"):
        return None
    # Only the text tells: the enum's DEFAULT is the very member that it stands for today.
    member = None if legacy else _member(given)
    enum = _weights_of(setup.network) if member is None else type(member)
    asked = "pretrained=True" if legacy else "DEFAULT"
    if enum is None:
        return _Found(f"The weights are {asked}, which names no weights.", {"asked": asked})
    today = enum["IMAGENET1K_V1"] if legacy else enum["DEFAULT"]
    others = [k for k, v in enum.__members__.items() if v is not today]
    return _Found(
        f"The weights are {asked}: {'that means' if legacy else 'today'} {enum.__name__}."
        f"{today.name}{f', and not {_and(others)}' if others else ''}.",
        {"asked": asked, "member": f"{enum.__name__}.{today.name}"},
        fix=f"Write the member's name: weights=torchvision.models.{enum.__name__}.{today.name}.",
    )


def _weights_of(network: nn.Module) -> type[torchvision.models.WeightsEnum] | None:
    """The weights enum of a torchvision network, whose head may have been replaced."""
    home = type(network).__module__
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not home.startswith("torchvision.models.") or not layers:
        return None
    head = layers[-1]
    body = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in head.parameters())
    whole = body + _IMAGENET_CLASSES * (head.in_features + 1)  # with ImageNet's head
    for name in torchvision.models.list_models(module=torchvision.models):
        enum = torchvision.models.get_model_weights(name)
        if enum.__module__ == home and enum["DEFAULT"].meta["num_params"] == whole:
            return enum
    return None


@_check(
    "step-fails",
    "The network, or another callable of the set-up, raises an exception.",
    why="What depends on it could not be checked.",
    fix="Run it on one batch by itself, and repair it first.",
)
def _step_fails(setup: _Setup) -> _Found | None:
    failed = {w: e for w, e in setup.failures.items() if w not in setup.explained}
    if not failed:
        return None
    told = [f"{who} raises {type(e).__name__}: {_first_line(e)}" for who, e in failed.items()]
    return _Found(
        "; ".join(told) + ".", {who: f"{type(e).__name__}: {e}" for who, e in failed.items()}
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _named(setup: _Setup, parts: Iterable[nn.Module]) -> list[str]:
    return [setup.name(part) for part in parts]


def _and(names: Sequence[str]) -> str:
    """``'a', 'b' and 3 more``."""
    shown = [repr(name) for name in names[:3]]
    if len(names) > 3:
        return ", ".join(shown) + f" and {len(names) - 3} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
