"""The one training loop: a recipe in, a history out, the best validation weights kept.

:func:`fit` reads the train and validation splits and nothing else. What it does follows from
the network, the data, the :class:`Recipe` and the run's seed, to the same bits on one CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from tlhelpers import _batches, _checkpoint, _processes, _randomness, models, runtime
from tlhelpers._meter import Meter
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Lazy

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "linear")
MONITORS = ("loss", "top1")
COLUMNS = (
    "epoch", "step", "train_loss", "train_top1", "validation_loss", "validation_top1", "lr",
    "seconds", "core_seconds",
)  # fmt: skip

_ROWS = 20  # of a history whose length is given in steps
_LOOK = 100  # steps between two looks at the loss: each look waits for the device
_NUMBERS = 2**18  # in the inputs of a validation batch

Augment = Callable[[Tensor, torch.Generator], Tensor]
Regulariser = Callable[[nn.Module], Tensor]


# --- the recipe ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run beside the network, the data and the seed.

    Attributes:
        epochs: passes over the training split.
        steps: the number of optimiser steps, instead of ``epochs``: fair where training splits
            differ in size.
        optimizer: ``"sgd"`` (with momentum), ``"adam"`` (weight decay as an L2 penalty) or
            ``"adamw"`` (decoupled weight decay).
        lr: the learning rate of the body, before the schedule.
        head_lr: the learning rate of the head; None for ``lr``.
        decay: the factor from one stage's rate to that of the stage before it, see
            :func:`~tlhelpers.models.param_groups`.
        momentum: of SGD; the first beta of Adam.
        weight_decay: of matrices and filters; biases and norms get none.
        schedule: ``"constant"``, ``"cosine"`` or ``"linear"``, the last two down to 0.
        warmup: the share of all steps in which the rates rise linearly to their full height.
        batch_size: examples in a step; the last batch of an epoch may be smaller.
        label_smoothing: the share of the target's probability spread over all classes.
        dropout: the probability that the network's dropout layers take during the run; None leaves
            them as they are.
        augment: ``(images, generator) -> images``, applied to training batches only: these come on
            the device as the data holds them (bytes as bytes), and go to the network as it
            returns them.
        regulariser: ``network -> scalar tensor``, added to the training loss.
        clip: the largest norm of the gradient of all parameters together; None for no limit.
        patience: stop after so many evaluations without a better one; None never stops early.
        monitor: what "better" means: ``"loss"`` or ``"top1"``, on validation.
        validate_every: steps between two evaluations; None for one each epoch, or, where ``steps``
            is given, for about twenty in all and at most one each epoch.
        keep: ``"best"`` restores the weights of the best evaluation, ``"last"`` keeps the last.

    Raises:
        ValueError: if a setting cannot be meant.
    """

    epochs: int = 20
    steps: int | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    head_lr: float | None = None
    decay: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: float = 0.0
    batch_size: int = 32
    label_smoothing: float = 0.0
    dropout: float | None = None
    augment: Augment | None = None
    regulariser: Regulariser | None = None
    clip: float | None = None
    patience: int | None = None
    monitor: str = "loss"
    validate_every: int | None = None
    keep: str = "best"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("monitor", MONITORS),
            ("keep", ("best", "last")),
        ):
            self._require(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        for name in ("epochs", "steps", "batch_size", "patience", "validate_every"):
            value = getattr(self, name)
            optional = name not in ("epochs", "batch_size")
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            good = (optional and value is None) or (whole and value >= 1)
            self._require(name, good, "a whole number, 1 or larger" + " or None" * optional)
        for name in ("lr", "head_lr", "clip"):
            value = getattr(self, name)
            optional = name != "lr"
            good = (optional and value is None) or (_is_number(value) and 0 < value < math.inf)
            hint = " (models.freeze keeps a part as it is)" if name != "clip" else ""
            self._require(name, good, f"above 0{' or None' * optional}{hint}")
        good = _is_number(self.decay) and 0 < self.decay <= 1
        self._require("decay", good, "above 0 and at most 1")
        good = _is_number(self.weight_decay) and 0 <= self.weight_decay < math.inf
        self._require("weight_decay", good, "0 or larger")
        for name in ("momentum", "warmup", "label_smoothing", "dropout"):
            value = getattr(self, name)
            good = (name == "dropout" and value is None) or (_is_number(value) and 0 <= value < 1)
            self._require(name, good, "a share: 0 or larger and below 1")
        for name in ("augment", "regulariser"):
            value = getattr(self, name)
            self._require(name, value is None or callable(value), "a callable or None")

    def _require(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise ValueError(f"Recipe: {name} must be {expected}, found {getattr(self, name)!r}.")

    def factor(self, step: int, total: int) -> float:
        """What the schedule multiplies every learning rate with at a step.

        Args:
            step: 0 for the first step.
            total: the number of steps of the whole run.

        >>> recipe = Recipe(schedule="linear", warmup=0.25)
        >>> [round(recipe.factor(step, 8), 2) for step in range(8)]
        [0.5, 1.0, 1.0, 0.83, 0.67, 0.5, 0.33, 0.17]
        """
        rising = round(self.warmup * total)
        if step < rising:
            return (step + 1) / rising
        share = (step - rising) / max(total - rising, 1)
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * share)) / 2
        return 1 - share if self.schedule == "linear" else 1.0

    def total_steps(self, examples: int) -> int:
        """The number of steps of the whole run on so many training examples."""
        return self.steps or self.epochs * -(-examples // self.batch_size)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for records; functions by their description."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: _describe(v) if callable(v) else v for k, v in values.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _describe(function: Callable[..., Any]) -> str:
    """A name for a function that is the same in every process."""
    if isinstance(function, functools.partial):
        return f"partial({_describe(function.func)}, {function.args}, {function.keywords})"
    if hasattr(function, "__qualname__"):
        return f"{function.__module__}.{function.__qualname__}"
    plain = type(function).__repr__ is object.__repr__
    return type(function).__qualname__ if plain else repr(function)


class Shift(Protocol):
    """What changes images at random, such as ``datasets.Shift``."""

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(n, 1, h, w) images, each changed in its own way."""


@dataclass(frozen=True)
class Augmentation:
    """A shift as what :class:`Recipe` takes for ``augment``.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> augment = tl.train.augmentation(tl.characters.Shift(rotation=10))
        >>> augment
        Augmentation(shift=Shift(rotation=10))
        >>> augment(torch.rand(4, 1, 16, 16), torch.Generator().manual_seed(0)).shape
        torch.Size([4, 1, 16, 16])
    """

    shift: Shift

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.shift.apply(images, generator)


def augmentation(shift: Shift) -> Augmentation:
    """Change every training image anew at each step, by ``shift.apply(images, generator)``.

    Raises:
        TypeError: if the shift has no ``apply``.

    Example:
        >>> import tlhelpers as tl
        >>> shift = tl.characters.Shift(rotation=10, translate=1.0)
        >>> tl.train.Recipe(steps=200, augment=tl.train.augmentation(shift)).as_dict()["augment"]
        'Augmentation(shift=Shift(rotation=10, translate=1.0))'
    """
    if not callable(getattr(shift, "apply", None)):
        raise TypeError(
            f"augmentation needs something with apply(images, generator), such as a "
            f"datasets.Shift, found {type(shift).__name__}."
        )
    return Augmentation(shift)


# --- regularisers -------------------------------------------------------------------------


class L2SP:
    """A penalty on the way that weights go from where they started; see :func:`l2_sp`.

    Example:
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet(10, weights="letters")
        >>> penalty = tl.train.l2_sp(network, alpha=0.1, beta=0.01)
        >>> recipe = tl.train.Recipe(weight_decay=0, regulariser=penalty)
        >>> penalty.head, penalty.alpha, len(penalty.start)
        ('head.', 0.1, 29)
    """

    def __init__(self, start: Mapping[str, Tensor], alpha: float, beta: float, head: str) -> None:
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not (_is_number(value) and 0 <= value < math.inf):
                raise ValueError(f"{name} must be 0 or larger, found {value!r}.")
        self.alpha, self.beta, self.head = alpha, beta, head
        self.start = {name: value.detach().clone() for name, value in start.items()}

    def __repr__(self) -> str:
        digest = hashlib.sha256()
        for value in self.start.values():
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return f"L2SP(alpha={self.alpha}, beta={self.beta}, start={digest.hexdigest()[:12]})"

    def __call__(self, network: nn.Module) -> Tensor:
        """The penalty, a scalar; frozen parameters add nothing."""
        body, start, head = [], [], []
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.startswith(self.head):
                head.append(parameter.reshape(-1))
            elif name in self.start:
                body.append(parameter.reshape(-1))
                start.append(self._start(name, parameter).reshape(-1))
            else:
                raise ValueError(
                    f"the penalty was made for a network without {name!r}. Make it with "
                    f"train.l2_sp from the network that is trained."
                )
        penalty = next(network.parameters()).new_zeros(())
        if body and self.alpha:
            penalty = penalty + self.alpha / 2 * (torch.cat(body) - torch.cat(start)).square().sum()
        if head and self.beta:
            penalty = penalty + self.beta / 2 * torch.cat(head).square().sum()
        return penalty

    def _start(self, name: str, parameter: nn.Parameter) -> Tensor:
        if self.start[name].device != parameter.device:  # once, when the network has moved
            self.start[name] = self.start[name].to(parameter.device)
        return self.start[name]


def l2_sp(network: nn.Module, *, alpha: float, beta: float = 0.0, head: str | None = None) -> L2SP:
    """A penalty that holds the body near the weights it starts from (L2-SP).

    ``alpha / 2 * ||w - w0||**2 + beta / 2 * ||v||**2`` with the body's parameters w, their values
    w0 when this is called, and the head's parameters v (Li, Grandvalet and Davoine 2018). It
    takes the place of weight decay: set ``Recipe(weight_decay=0)`` beside it.

    Args:
        network: the network before training, with its pretrained body.
        alpha: the weight of the body's term.
        beta: the weight of the head's term.
        head: the name of the head; by default the last linear layer.

    Raises:
        ValueError: if a weight is negative, or the network has no linear layer.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet(10, weights="letters")
        >>> penalty = tl.train.l2_sp(network, alpha=2.0)
        >>> with torch.no_grad():
        ...     at_first = float(penalty(network))
        ...     _ = network.stem[1].bias.add_(0.5)
        ...     later = float(penalty(network))
        >>> at_first, later
        (0.0, 4.0)
    """
    name = models.head_name(network) if head is None else head
    return L2SP(dict(network.named_parameters()), alpha, beta, f"{name}." if name else "")


def l2(network: nn.Module, *, alpha: float, beta: float = 0.0, head: str | None = None) -> L2SP:
    """The usual L2 penalty, written like :func:`l2_sp`: towards 0 instead of the start.

    ``alpha / 2 * ||w||**2 + beta / 2 * ||v||**2``.

    Example:
        >>> from torch import nn
        >>> import tlhelpers as tl
        >>> network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> _ = network[0].weight.data.fill_(1.0)
        >>> [make(network, alpha=2.0)(network).item() for make in (tl.train.l2, tl.train.l2_sp)]
        [4.0, 0.0]
    """
    penalty = l2_sp(network, alpha=alpha, beta=beta, head=head)
    penalty.start = {name: torch.zeros_like(value) for name, value in penalty.start.items()}
    return penalty


# --- the history --------------------------------------------------------------------------


class History(pd.DataFrame):
    """What happened in a training run: one row for each evaluation, usually each epoch.

    Columns: ``epoch`` (1 for the first), ``step`` (optimiser steps so far), ``train_loss`` and
    ``train_top1`` (means over the examples since the row before, as they were met: in training
    mode, augmented, with label smoothing, without the regulariser), ``validation_loss`` (mean
    cross-entropy in nats, without label smoothing) and ``validation_top1`` (NaN without a
    validation split), ``lr`` (the body's rate at the last step), ``seconds`` (since the start) and
    ``core_seconds`` (those of this process on the processor's cores, all threads together: a
    measure of cost that other programs on the machine disturb less).

    Example:
        >>> import tlhelpers as tl
        >>> history = tl.train.History(
        ...     {
        ...         "epoch": [1, 2, 3],
        ...         "step": [10, 20, 30],
        ...         "validation_loss": [0.9, 0.5, 0.6],
        ...         "validation_top1": [0.7, 0.8, 0.85],
        ...     }
        ... )
        >>> history.best_epoch, history.steps_to(0.8), history.steps_to(0.9)
        (2, 20, None)
    """

    _metadata: ClassVar[list[str]] = ["stopped", "monitor"]  # pandas carries these along

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stopped = ""
        self.monitor = "loss"

    @property
    def _constructor(self) -> type[History]:
        return History

    @property
    def best(self) -> pd.Series:
        """The row of the best evaluation, the first of equals; the last row without validation.

        Raises:
            ValueError: if there is no row, or the column that decides was left out.
        """
        column = f"validation_{self.monitor}"
        if column not in self.columns or self.empty:
            raise ValueError(
                f"the best row is chosen by {column!r}; this history has {len(self)} rows and the "
                f"columns {', '.join(map(str, self.columns))}."
            )
        values = self[column].to_numpy(dtype=float)
        if np.isnan(values).all():
            return self.iloc[-1]
        return self.iloc[int(np.nanargmin(values if self.monitor == "loss" else -values))]

    @property
    def best_epoch(self) -> int:
        """The epoch of the best row."""
        return int(self.best["epoch"])

    def steps_to(self, accuracy: float, *, column: str = "validation_top1") -> int | None:
        """The step of the first row in which an accuracy is reached; None if in none.

        As fine as the rows are: see ``Recipe(validate_every=...)``.

        Args:
            accuracy: a proportion in 0..1.
            column: the column that has to reach it.
        """
        if not 0 <= accuracy <= 1:
            raise ValueError(f"an accuracy is a proportion in 0..1, found {accuracy}.")
        reached = self.loc[self[column] >= accuracy, "step"]
        return int(reached.iloc[0]) if len(reached) else None

    def summary(self) -> str:
        """One line: how long it ran, the best row, and why it stopped."""
        if self.empty:
            return f"no evaluation. {self.stopped}"
        last, best = self.iloc[-1], self.best
        line = f"{int(last.epoch)} epochs, {int(last.step):,} steps in {last.seconds:.1f} s; "
        if np.isnan(best.validation_loss):
            line += f"no validation split; train loss {last.train_loss:.3f}"
        else:
            line += (
                f"best after step {int(best.step):,} (epoch {int(best.epoch)}): validation loss "
                f"{best.validation_loss:.3f}, top-1 {100 * best.validation_top1:.1f} %"
            )
        return f"{line}. {self.stopped}"


class Diverged(FloatingPointError):
    """A loss became NaN or infinite; ``history`` holds the rows before it."""

    def __init__(self, sentence: str, history: History) -> None:
        super().__init__(sentence)
        self.history = history


# --- the loop -----------------------------------------------------------------------------


def fit(
    network: nn.Module,
    data: Dataset,
    recipe: Recipe | None = None,
    run: Run | None = None,
    *,
    mixed: bool | None = None,
    compile: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 120.0,
) -> History:
    """Train a classifier in place; the weights of its best evaluation are restored at the end.

    Cross-entropy on ``data.train``; evaluations, early stopping and the best weights by
    ``data.validation``; ``data.test`` is never touched. What ``models.freeze`` froze stays as it
    is. Everything random (the order, augmentation, dropout) comes from ``run.seed``, and the
    global random state is left as it was found. The network ends in evaluation mode, on the run's
    device.

    *Memory.* A float tensor is held on the device. Images in bytes (a uint8 tensor, or a lazy
    sequence) are held there where they fit into a quarter of an accelerator's free memory; else
    a thread reads the next batches ahead. The batches are the same either way. If a batch is more
    than the device's memory can take, it runs in parts from then on, with a warning; the gradients
    of the parts add up to the batch's. Only BatchNorm, which sees the parts one by one, and
    dropout, which draws other noise, tell the difference.

    *Several processes.* Under ``torchrun``, where every process makes the same call, each takes
    its slice of every batch, and the result is that of one process up to rounding. Only dropout's
    noise and the statistics by which BatchNorm normalises in training are each process's own (its
    running statistics are averaged; ``SyncBatchNorm`` works on GPUs only). Every process augments
    the whole batch and keeps its slice, so that the noise is the same. The first process writes
    checkpoints and shows progress. A process group that is there is used; otherwise one is made,
    and ended with the call. With ``torchrun --max-restarts``, a restart may fail or hang at the
    rendezvous store that PyTorch's processes share; the environment variable
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` has each start make its own (PyTorch issue 135712).

    Args:
        network: (n, ...) inputs to (n, m) logits.
        data: its ``x`` is a tensor or a lazy sequence of images of one size.
        recipe: what to do; None for ``Recipe()``.
        run: seed, device and dtype; None for seed 0 on the best device.
        mixed: whether forward passes run in ``run.dtype`` by autocast, with weights and loss in
            float32. None means on accelerators only: on a CPU a small network gains nothing, but
            a ResNet trains about twice as fast where the processor computes in bfloat16.
        compile: whether steps run through ``torch.compile``, which needs a C++ compiler and up to
            minutes at the first steps. The network itself stays as it is.
        checkpoint: a file that is written at each evaluation and removed by nobody. If it is
            there, training continues from it, on one CPU to the same bits as without the
            interruption; a finished one gives the weights and the history back. With a
            checkpoint, an interrupted call also puts the network's first weights back, so that
            the same call can be made again.
        checkpoint_every: seconds after which the checkpoint is written between evaluations too;
            ``math.inf`` for never. Several processes agree on it every hundred steps.

    Returns:
        one row for each evaluation, see :class:`History`.

    Raises:
        Diverged: if a loss becomes NaN or infinite; the network has its best weights so far.
        OSError: if the checkpoint cannot be written; the one before is still there.
        torch.OutOfMemoryError: if a single example is more than the device's memory can take.
        TypeError: if the data is neither a tensor nor a lazy sequence.
        ValueError: if nothing is trainable, the network's output does not fit the classes, or
            the checkpoint is of another recipe, network, data set, precision or seed.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits().few(5, draw=0)
        >>> network = tl.models.small_resnet(10, weights="letters")
        >>> recipe = tl.train.Recipe(steps=40, lr=2e-3, head_lr=1e-2, validate_every=20)
        >>> history = tl.train.fit(network, digits, recipe)
        >>> history[["epoch", "step"]]
           epoch  step
        0     10    20
        1     20    40
        >>> bool(history.best.validation_top1 > 0.9), history.stopped
        (True, 'Ran all 40 steps.')
    """
    recipe = Recipe() if recipe is None else recipe
    run = runtime.default(run)
    run = dataclasses.replace(run, device=_processes.own_device(run.device))
    _check_data(data, recipe)
    if not checkpoint_every >= 0:
        raise ValueError(f"checkpoint_every is in seconds, 0 or more, found {checkpoint_every}.")
    network.to(run.device)
    if any(p.ndim == 4 for p in network.parameters()):
        network.to(memory_format=torch.channels_last)
    _check_output(network, data, run.device)
    with contextlib.ExitStack() as stack:
        if run.device.type == "cpu":
            # A step frees and takes the same blocks of memory again and again.
            stack.enter_context(runtime.keep_memory())
        stack.enter_context(_randomness.global_state_kept(run.device))
        group = stack.enter_context(_processes.joined(run.device))
        stack.enter_context(_dropout(network, recipe.dropout))
        group.align(network.state_dict().values())
        loop = _Loop(network, data, recipe, run, group, mixed, compile)
        try:
            file = None
            if checkpoint is not None:
                file = _take_up(loop, data, Path(checkpoint), checkpoint_every)
            _train(loop, file)
        except Diverged:
            raise
        except BaseException:
            if checkpoint is not None:
                network.load_state_dict(loop.first)
            raise
        finally:
            network.eval()
        if recipe.keep == "best":
            network.load_state_dict(loop.best)
        group.align(network.state_dict().values())
    return loop.history()


class _Loop:
    """A training run: all that has to be kept to go on from a step."""

    _KEPT = (
        "step", "rows", "best_value", "since_best", "stopped", "limit", "seconds", "core_seconds",
    )  # fmt: skip

    def __init__(
        self,
        network: nn.Module,
        data: Dataset,
        recipe: Recipe,
        run: Run,
        group: _processes.Group,
        mixed: bool | None,
        compile: bool,
    ) -> None:
        self.network, self.recipe, self.run, self.group = network, recipe, run, group
        self.forward = torch.compile(network) if compile else network
        groups = models.param_groups(
            network,
            lr=recipe.lr,
            head_lr=recipe.head_lr,
            decay=recipe.decay,
            weight_decay=recipe.weight_decay,
        )
        self.parameters = [p for group in groups for p in group["params"]]
        self.rates = [group["lr"] for group in groups]
        self.optimizer = _optimizer(groups, recipe, run.device)
        wanted = run.device.type != "cpu" if mixed is None else mixed
        self.dtype = run.dtype if wanted else torch.float32
        # Only float16 needs its gradients scaled; elsewhere the scaler lets everything through.
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=self.dtype == torch.float16)
        self.train = _batches.source(data.train, run.device)
        self.validation = _batches.source(data.validation, run.device)
        n = len(data.train)
        self.per_epoch = -(-n // recipe.batch_size)
        self.total = recipe.total_steps(n)
        self.every = recipe.validate_every or self.per_epoch
        if recipe.steps is not None and recipe.validate_every is None:
            self.every = max(self.per_epoch, -(-self.total // _ROWS))
        self.step = 0
        self.meter = Meter()
        self.rows: list[dict[str, float]] = []
        self.first = self.best = _copy(network)
        self.best_value = math.inf
        self.since_best = 0
        self.stopped = ""
        self.limit: int | None = None  # examples in a forward pass, once memory ran out
        self.seconds = self.core_seconds = 0.0
        self.start_clock()

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype != torch.float32:
            return torch.autocast(self.run.device.type, dtype=self.dtype)
        return contextlib.nullcontext()

    def start_clock(self) -> None:
        """Count from here on."""
        self.since, self.core_since = time.perf_counter(), time.process_time()

    def clock(self) -> dict[str, float]:
        """The seconds that the run has taken so far, in all of its calls."""
        since, core_since = self.since, self.core_since
        self.start_clock()
        self.seconds += self.since - since
        self.core_seconds += self.core_since - core_since
        return {"seconds": self.seconds, "core_seconds": self.core_seconds}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        self.clock()
        return {
            "network": self.network.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meter": self.meter.state(),
            **{name: getattr(self, name) for name in self._KEPT},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where another loop was."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        self.meter = Meter(**state["meter"])
        for name in self._KEPT:
            setattr(self, name, state[name])

    def history(self) -> History:
        history = History(self.rows, columns=list(COLUMNS)).astype({"epoch": int, "step": int})
        history.stopped, history.monitor = self.stopped, self.recipe.monitor
        return history

    def diverged(self, what: str, step: int) -> Diverged:
        """The network gets its best weights so far back, and the reader a sentence."""
        self.network.load_state_dict(self.best)
        rate = self.recipe.lr * self.recipe.factor(step - 1, self.total)
        kept = "the best weights so far" if self.rows else "the weights it started with"
        self.stopped = f"The {what} became NaN or infinite at step {step}."
        return Diverged(
            f"the {what} became NaN or infinite at step {step} of {self.total}, at a learning rate "
            f"of {rate:.3g}. The network has {kept}. Lower lr, add a warm-up (warmup=0.1) or clip "
            f"gradients (clip=1.0); if it happens at step 1, look for NaN in the data.",
            self.history(),
        )

    def halve(self, rows: int, error: torch.OutOfMemoryError) -> None:
        """Let forward passes have half as many examples as the one that ran out of memory.

        Raises:
            torch.OutOfMemoryError: if that was a single one.
        """
        tried = rows if self.limit is None else min(rows, self.limit)
        if tried <= 1:
            raise torch.OutOfMemoryError(
                f"the memory of {self.run.device} does not take a single example "
                f"({_first_line(error)}). Use smaller images, a smaller network, or freeze a part."
            ) from error
        self.limit = -(-tried // 2)
        warnings.warn(
            f"out of memory with {tried} examples at a time. From here on no more than "
            f"{self.limit} are taken at a time, and gradients are added up, so that a step still "
            f"learns from {self.recipe.batch_size}; BatchNorm sees the parts one by one.",
            RuntimeWarning,
            stacklevel=2,
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


def _take_up(loop: _Loop, data: Dataset, path: Path, every: float) -> _checkpoint.Checkpoint | None:
    """Bring the loop to where the file left it; the file, in the process that writes it."""
    file, content = None, None
    if loop.group.rank == 0:
        file = _checkpoint.Checkpoint(path, _identity(loop, data), every)
        content = file.read()
    content = loop.group.tell(content)
    if content is not None:
        loop.restore(_checkpoint.unpack(content, loop.run.device))
    return file


def _identity(loop: _Loop, data: Dataset) -> dict[str, dict[str, str]]:
    """What a checkpoint is of."""
    trainable = [name for name, p in loop.network.named_parameters() if p.requires_grad]
    return {
        "recipe": {k: repr(v) for k, v in loop.recipe.as_dict().items()},
        "network": {
            "first weights": models.fingerprint(loop.network),
            "trainable": ", ".join(trainable),
        },
        "data": {"examples": _checkpoint.digest(data)},
        "run": {"seed": str(loop.run.seed), "dtype": str(loop.dtype)},
    }


def _train(loop: _Loop, file: _checkpoint.Checkpoint | None) -> None:
    """Steps and evaluations by turns, until the recipe has had enough."""
    loop.start_clock()  # what came before, such as a digest of the data, is not it
    with _progress(loop) as bar:
        while not loop.stopped:
            _take_steps(loop, file, bar)
            train_loss, train_top1 = loop.meter.means()
            loop.meter = Meter()
            validation_loss, validation_top1 = _evaluate(loop)
            loop.rows.append(
                {
                    "epoch": -(-loop.step // loop.per_epoch),
                    "step": loop.step,
                    "train_loss": train_loss,
                    "train_top1": train_top1,
                    "validation_loss": validation_loss,
                    "validation_top1": validation_top1,
                    "lr": loop.recipe.lr * loop.recipe.factor(loop.step - 1, loop.total),
                    **loop.clock(),
                }
            )
            _judge(loop)
            if file is not None:
                file.write(loop.state())


def _progress(loop: _Loop) -> Any:
    if loop.group.rank > 0:
        return tqdm(disable=True)
    return runtime.progress(total=loop.total, initial=loop.step, desc="fit", unit="step")


@dataclass(frozen=True)
class _Step:
    """What a step has to know beside the weights.

    Attributes:
        load: the positions of the examples that this process reads.
        mine: those of the batch that are its own.
        size: the number of examples in the batch, those of all processes.
        dropout: the seed of dropout.
        noise: the seed of the augmentation.
    """

    load: Tensor
    mine: slice
    size: int
    dropout: int
    noise: int


def _plan(loop: _Loop, end: int) -> Iterator[_Step]:
    """The steps from here to an end; each is the same wherever the plan begins."""
    size, n, order = loop.recipe.batch_size, len(loop.train), None
    for step in range(loop.step, end):
        epoch, batch = divmod(step, loop.per_epoch)
        if order is None or batch == 0:
            # Each epoch's order and each step's noise have seeds of their own, so that a run
            # that is taken up again needs no generator's state.
            shuffle, *noise = _randomness.epoch_seeds(loop.run.seed, epoch, 2 * loop.per_epoch + 1)
            order = torch.randperm(n, generator=torch.Generator().manual_seed(shuffle))
            order = order.to(loop.train.index_device)
        rows = order[batch * size : (batch + 1) * size]
        mine = loop.group.mine(len(rows))
        # The noise of an augmentation is that of the whole batch, in whichever process.
        load = rows[mine] if loop.recipe.augment is None else rows
        dropout = noise[2 * batch] + loop.group.rank
        yield _Step(load, mine, len(rows), dropout, noise[2 * batch + 1])


def _take_steps(loop: _Loop, file: _checkpoint.Checkpoint | None, bar: Any) -> None:
    """Optimiser steps up to the next evaluation."""
    recipe, optimizer = loop.recipe, loop.optimizer
    end = min((loop.step // loop.every + 1) * loop.every, loop.total)
    generator = torch.Generator()
    loop.network.train()
    plan, ahead = itertools.tee(_plan(loop, end))
    with contextlib.closing(loop.train.batches(step.load for step in ahead)) as batches:
        for step, (x, y) in zip(plan, batches, strict=True):
            _randomness.seed_dropout(step.dropout, loop.run.device)
            if recipe.augment is not None:
                x = recipe.augment(x, generator.manual_seed(step.noise))
                if loop.group.size > 1:
                    x, y = x[step.mine], y[step.mine]
            factor = recipe.factor(loop.step, loop.total)
            for group, rate in zip(optimizer.param_groups, loop.rates, strict=True):
                group["lr"] = rate * factor
            numbers = _backward(loop, x, y, step)
            loop.group.add_up(loop.network, loop.parameters, len(y) / step.size)
            if recipe.clip is not None:
                loop.scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(loop.parameters, recipe.clip)
            loop.scaler.step(optimizer)
            loop.scaler.update()
            loop.step += 1
            loop.meter.add(numbers, len(y), step.size)
            bar.update()
            _settle_and_save(loop, file, end)


def _settle_and_save(loop: _Loop, file: _checkpoint.Checkpoint | None, end: int) -> None:
    """Read the losses now and then, and write the checkpoint when it is due.

    Raises:
        Diverged: if one of the losses is not finite.
    """
    look = len(loop.meter) == _LOOK or loop.step == end
    due = file is not None and file.due()
    if loop.group.size > 1:  # processes can only look, and so save, together
        due = look and loop.group.any(due)
    if not (look or due):
        return
    unsettled = len(loop.meter)
    bad = loop.meter.settle(loop.group)
    if bad is not None:
        raise loop.diverged("training loss", loop.step - unsettled + bad + 1)
    if due and file is not None and loop.step < end:
        file.write(loop.state())


def _backward(loop: _Loop, x: Tensor, y: Tensor, step: _Step) -> Tensor:
    """The gradients of a batch's mean loss, in parts where memory asks for it.

    Returns:
        the mean loss of these examples, the same with its penalty, and the hits among them.
    """
    while True:
        loop.optimizer.zero_grad()
        try:
            return _backward_in_parts(loop, x, y, step.size)
        except torch.OutOfMemoryError as error:
            loop.halve(len(y), error)
        _free_memory(loop.run.device)
        _randomness.seed_dropout(step.dropout, loop.run.device)


def _backward_in_parts(loop: _Loop, x: Tensor, y: Tensor, size: int) -> Tensor:
    recipe, n = loop.recipe, len(y)
    numbers = torch.zeros(3, device=y.device)
    if n == 0:  # a process for which a short batch has no example
        return numbers
    parts = 1 if loop.limit is None else -(-n // loop.limit)
    for inputs, labels in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
        with loop.precision():
            logits = loop.forward(inputs)
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        total = loss if recipe.regulariser is None else loss + recipe.regulariser(loop.network)
        share = len(labels) / size
        loop.scaler.scale(total if share == 1 else total * share).backward()
        hits = (logits.detach().argmax(dim=1) == labels).sum()
        weight = len(labels) / n
        found = torch.stack([loss.detach() * weight, total.detach() * weight, hits])
        numbers = numbers + found
    return numbers


def _free_memory(device: torch.device) -> None:
    """Call it outside the ``except``, whose traceback holds what the failed pass had made."""
    if device.type != "cpu":
        torch.accelerator.memory.empty_cache()


def _evaluate(loop: _Loop) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on validation; NaN where there is none."""
    n = len(loop.validation)
    if n == 0:
        return math.nan, math.nan
    loop.network.eval()
    size = max(64, _NUMBERS // max(loop.validation.numbers(), 1))
    while True:
        try:
            loss, hits = loop.group.total(_score(loop, size)).tolist()
            break
        except torch.OutOfMemoryError as error:
            loop.halve(size, error)
        _free_memory(loop.run.device)
    if not math.isfinite(loss):
        raise loop.diverged("validation loss", loop.step)
    return loss / n, int(hits) / n


def _score(loop: _Loop, size: int) -> Tensor:
    """The sums of losses and hits over this process's part of the validation split."""
    size = size if loop.limit is None else min(size, loop.limit)
    mine = loop.group.mine(len(loop.validation))
    stretches = (
        slice(start, min(start + size, mine.stop)) for start in range(mine.start, mine.stop, size)
    )
    losses, hits = [], []
    batches = loop.validation.batches(stretches)
    with contextlib.closing(batches), torch.inference_mode(), loop.precision():
        for x, y in batches:
            logits = loop.forward(x)
            losses.append(F.cross_entropy(logits, y, reduction="sum"))
            hits.append((logits.argmax(dim=1) == y).sum())
    if not losses:  # more processes than examples
        return torch.zeros(2, dtype=torch.float64)
    sums = (torch.stack(values).cpu().double().sum() for values in (losses, hits))
    return torch.stack(tuple(sums))


def _judge(loop: _Loop) -> None:
    """Is the last evaluation the best one, and is it time to stop?"""
    recipe, row = loop.recipe, loop.rows[-1]
    value = row["validation_loss"] if recipe.monitor == "loss" else -row["validation_top1"]
    if value < loop.best_value or math.isnan(value):  # without validation the last is the best
        loop.best, loop.best_value, loop.since_best = _copy(loop.network), value, 0
    else:
        loop.since_best += 1
    if loop.step >= loop.total:
        loop.stopped = f"Ran all {loop.total:,} steps."
    elif recipe.patience is not None and loop.since_best >= recipe.patience:
        loop.stopped = (
            f"Stopped at step {loop.step:,} of {loop.total:,}: no better validation "
            f"{recipe.monitor} in {recipe.patience} evaluations."
        )


def _optimizer(
    groups: list[dict[str, Any]], recipe: Recipe, device: torch.device
) -> torch.optim.Optimizer:
    # One kernel for all parameters: with small networks the many small ones are what takes time.
    fused = device.type in ("cpu", "cuda")
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=recipe.momentum, fused=fused)
    adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return adam(groups, betas=(recipe.momentum, 0.999), fused=fused)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


@contextlib.contextmanager
def _dropout(network: nn.Module, p: float | None) -> Iterator[None]:
    """Have the network's dropout layers drop with probability ``p`` while the block runs."""
    layers = [part for part in network.modules() if isinstance(part, nn.Dropout)]
    if p is not None and not layers:
        raise ValueError(
            f"Recipe: dropout is {p}, but {type(network).__name__} has no dropout layer. Add "
            f"nn.Dropout before its head, or leave dropout out of the recipe."
        )
    before = [layer.p for layer in layers]
    for layer in layers:
        layer.p = layer.p if p is None else p
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.p = old


def _check_data(data: Dataset, recipe: Recipe) -> None:
    if not isinstance(data.train.x, Tensor | Lazy):
        raise TypeError(
            f"fit trains on a tensor or on a lazy sequence of images, but {data.name} holds "
            f"{type(data.train.x).__name__}. Extract features first (features.extract), or make a "
            f"data set whose x is the images as one tensor."
        )
    if recipe.patience is not None and len(data.validation) == 0:
        raise ValueError(
            f"patience needs a validation split to judge by, but {data.name} has none. Leave out "
            f"patience, or keep some examples for validation."
        )


def _check_output(network: nn.Module, data: Dataset, device: torch.device) -> None:
    network.eval()
    first = torch.arange(min(2, len(data.train)))
    with torch.inference_mode():
        out = network(_batches.read(data.train.x, first).to(device))
    expected = (len(first), len(data.classes))
    found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if found != expected:
        raise ValueError(
            f"the network should return logits of shape {expected} for {expected[0]} examples of "
            f"the {len(data.classes)} classes of {data.name}, found {found}. Give it a head of "
            f"{len(data.classes)} outputs."
        )
