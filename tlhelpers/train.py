"""The one training loop: a recipe in, a history out, the best validation weights kept.

:func:`fit` reads the train and validation splits and nothing else. What it does follows from
the network, the data, the :class:`Recipe` and the run's seed, to the same bits on one CPU.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers import models, runtime
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Split

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "linear")
MONITORS = ("loss", "top1")
COLUMNS = (
    "epoch", "step", "train_loss", "train_top1", "validation_loss", "validation_top1", "lr",
    "seconds",
)  # fmt: skip

_FORMAT = "tlhelpers-checkpoint-1"
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
        augment: ``(images, generator) -> images``, applied to training batches only.
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
    """A shift as what :class:`Recipe` takes for ``augment``."""

    shift: Shift

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.shift.apply(images, generator)


def augmentation(shift: Shift) -> Augmentation:
    """Change every training image anew at each step, by ``shift.apply(images, generator)``.

    Raises:
        TypeError: if the shift has no ``apply``.
    """
    if not callable(getattr(shift, "apply", None)):
        raise TypeError(
            f"augmentation needs something with apply(images, generator), such as a "
            f"datasets.Shift, found {type(shift).__name__}."
        )
    return Augmentation(shift)


# --- regularisers -------------------------------------------------------------------------


class L2SP:
    """A penalty on the way that weights go from where they started; see :func:`l2_sp`."""

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
    """
    name = models.head_name(network) if head is None else head
    return L2SP(dict(network.named_parameters()), alpha, beta, f"{name}." if name else "")


def l2(network: nn.Module, *, alpha: float, beta: float = 0.0, head: str | None = None) -> L2SP:
    """The usual L2 penalty, written like :func:`l2_sp`: towards 0 instead of the start.

    ``alpha / 2 * ||w||**2 + beta / 2 * ||v||**2``.
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
    validation split), ``lr`` (the body's rate at the last step), ``seconds`` (since the start).
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
    checkpoint: str | Path | None = None,
) -> History:
    """Train a classifier in place; the weights of its best evaluation are restored at the end.

    Cross-entropy on ``data.train``; evaluations, early stopping and the best weights by
    ``data.validation``; ``data.test`` is never touched. What ``models.freeze`` froze stays as it
    is. Everything random (the order, augmentation, dropout) comes from ``run.seed``, and the
    global random state is left as it was found. On an accelerator the forward pass runs in mixed
    precision where ``run.dtype`` says so; on a CPU in float32, since a small network gains
    nothing there. The network ends in evaluation mode, on the run's device.

    Args:
        network: (n, ...) inputs to (n, m) logits.
        data: its ``x`` is a tensor; it is held in memory, on the device.
        recipe: what to do; None for ``Recipe()``.
        run: seed, device and dtype; None for seed 0 on the best device.
        checkpoint: a file that is written at each evaluation and removed by nobody. If it is
            there, training continues from it, on one CPU to the same bits as without the
            interruption; a finished one gives the weights and the history back. With a
            checkpoint, an interrupted call also puts the network's first weights back, so that
            the same call can be made again.

    Returns:
        one row for each evaluation, see :class:`History`.

    Raises:
        Diverged: if a loss becomes NaN or infinite; the network has its best weights so far.
        TypeError: if the data is not held in a tensor.
        ValueError: if nothing is trainable, the network's output does not fit the classes, or
            the checkpoint is of another recipe, network, data set or seed.
    """
    recipe = Recipe() if recipe is None else recipe
    run = runtime.default(run)
    _check_data(data, recipe)
    network.to(run.device)
    if any(p.ndim == 4 for p in network.parameters()):
        network.to(memory_format=torch.channels_last)
    _check_output(network, data, run.device)
    loop = _Loop(network, data, recipe, run)
    file = None if checkpoint is None else _Checkpoint(Path(checkpoint), loop, data)
    # A step frees and takes the same blocks of memory again and again.
    keep = runtime.keep_memory() if run.device.type == "cpu" else contextlib.nullcontext()
    with keep, _global_state_kept(run.device), _dropout(network, recipe.dropout):
        try:
            if file is not None:
                file.read()
            _train(loop, file)
        except Diverged:
            raise
        except BaseException:
            if file is not None:
                network.load_state_dict(loop.first)
            raise
        finally:
            network.eval()
    if recipe.keep == "best":
        network.load_state_dict(loop.best)
    return loop.history()


class _Loop:
    """A training run: all that has to be kept to go on after an evaluation."""

    def __init__(self, network: nn.Module, data: Dataset, recipe: Recipe, run: Run) -> None:
        self.network, self.recipe, self.run = network, recipe, run
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
        self.autocast = run.device.type != "cpu" and run.dtype != torch.float32
        # Only float16 needs its gradients scaled; elsewhere the scaler lets everything through.
        self.scaler = torch.amp.GradScaler(
            run.device.type, enabled=self.autocast and run.dtype == torch.float16
        )
        self.train = _on_device(data.train, run.device)
        self.validation = _on_device(data.validation, run.device)
        n = len(data.train)
        self.per_epoch = -(-n // recipe.batch_size)
        self.total = recipe.total_steps(n)
        self.every = recipe.validate_every or self.per_epoch
        if recipe.steps is not None and recipe.validate_every is None:
            self.every = max(self.per_epoch, -(-self.total // _ROWS))
        self.step = 0
        self.rows: list[dict[str, float]] = []
        self.first = self.best = _copy(network)
        self.best_value = math.inf
        self.since_best = 0
        self.stopped = ""

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast:
            return torch.autocast(self.run.device.type, dtype=self.run.dtype)
        return contextlib.nullcontext()

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


def _train(loop: _Loop, file: _Checkpoint | None) -> None:
    """Steps and evaluations by turns, until the recipe has had enough."""
    start = time.perf_counter() - (loop.rows[-1]["seconds"] if loop.rows else 0.0)
    with runtime.progress(total=loop.total, initial=loop.step, desc="fit", unit="step") as bar:
        while not loop.stopped:
            count = min(loop.every, loop.total - loop.step)
            train_loss, train_top1 = _take_steps(loop, count)
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
                    "seconds": time.perf_counter() - start,
                }
            )
            _judge(loop)
            bar.update(count)
            if file is not None:
                file.write()


def _take_steps(loop: _Loop, count: int) -> tuple[float, float]:
    """Some optimiser steps; the mean loss and the accuracy over their examples."""
    recipe, network, optimizer, scaler = loop.recipe, loop.network, loop.optimizer, loop.scaler
    inputs, labels = loop.train
    generator = torch.Generator()
    losses: list[Tensor] = []
    totals: list[Tensor] = []
    sizes: list[int] = []
    hits = torch.zeros((), dtype=torch.int64, device=labels.device)
    network.train()
    for i in range(count):
        epoch, batch = divmod(loop.step, loop.per_epoch)
        if batch == 0 or i == 0:
            # Each epoch's order and each step's noise have seeds of their own, so that a run
            # that is taken up again needs no generator's state.
            shuffle, *noise = _seeds(loop.run.seed, epoch, 2 * loop.per_epoch + 1)
            order = torch.randperm(len(labels), generator=generator.manual_seed(shuffle))
            order = order.to(labels.device)
        chosen = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
        x, y = inputs[chosen], labels[chosen]
        _seed_dropout(noise[2 * batch], labels.device)
        if recipe.augment is not None:
            x = recipe.augment(x, generator.manual_seed(noise[2 * batch + 1]))
        factor = recipe.factor(loop.step, loop.total)
        for group, rate in zip(optimizer.param_groups, loop.rates, strict=True):
            group["lr"] = rate * factor
        with loop.precision():
            logits = network(x)
            loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        total = loss if recipe.regulariser is None else loss + recipe.regulariser(network)
        optimizer.zero_grad()
        scaler.scale(total).backward()
        if recipe.clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(loop.parameters, recipe.clip)
        scaler.step(optimizer)
        scaler.update()
        loop.step += 1
        # Nothing here waits for the device; the numbers are read when they are needed.
        losses.append(loss.detach())
        totals.append(total.detach())
        sizes.append(len(y))
        hits += (logits.detach().argmax(dim=1) == y).sum()
        if len(totals) == _LOOK or i == count - 1:
            finite = torch.stack(totals).isfinite()
            if not finite.all():
                first = loop.step - len(totals) + int(finite.int().argmin()) + 1
                raise loop.diverged("training loss", first)
            totals.clear()
    weights = torch.tensor(sizes, dtype=torch.float64)
    mean = (torch.stack(losses).double().cpu() * weights).sum() / weights.sum()
    return float(mean), int(hits) / sum(sizes)


def _evaluate(loop: _Loop) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on validation; NaN where there is none."""
    inputs, labels = loop.validation
    n = len(labels)
    if n == 0:
        return math.nan, math.nan
    size = max(64, _NUMBERS // max(inputs[0].numel(), 1))
    losses, hits = [], []
    loop.network.eval()
    with torch.inference_mode(), loop.precision():
        for x, y in zip(inputs.split(size), labels.split(size), strict=True):
            logits = loop.network(x)
            losses.append(F.cross_entropy(logits, y, reduction="sum"))
            hits.append((logits.argmax(dim=1) == y).sum())
    loss = float(torch.stack(losses).cpu().double().sum()) / n
    if not math.isfinite(loss):
        raise loop.diverged("validation loss", loop.step)
    return loss, int(torch.stack(hits).sum()) / n


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


def _on_device(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    x = split.x.to(device)
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, split.y.to(device)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def _seeds(seed: int, epoch: int, count: int) -> list[int]:
    state = np.random.SeedSequence([seed, epoch]).generate_state(count, np.uint64)
    return (state >> np.uint64(1)).tolist()


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the global state that dropout draws from, on this device alone."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.get_device_module(device).manual_seed(seed)


@contextlib.contextmanager
def _global_state_kept(device: torch.device) -> Iterator[None]:
    """Leave the global random state of the CPU and of the device as it was."""
    with torch.random.fork_rng(devices=[]):
        if device.type == "cpu":
            yield
            return
        # Seeding and drawing have to mean the same one of several devices.
        with torch.accelerator.device_index(device.index):
            module = torch.get_device_module(device)
            before = module.get_rng_state()
            try:
                yield
            finally:
                module.set_rng_state(before)


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
    if not isinstance(data.train.x, Tensor):
        raise TypeError(
            f"fit trains on a tensor held in memory, but {data.name} holds "
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
    with torch.inference_mode():
        out = network(data.train.x[:2].to(device))
    expected = (len(data.train.x[:2]), len(data.classes))
    found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if found != expected:
        raise ValueError(
            f"the network should return logits of shape {expected} for {expected[0]} examples of "
            f"the {len(data.classes)} classes of {data.name}, found {found}. Give it a head of "
            f"{len(data.classes)} outputs."
        )


# --- checkpoints --------------------------------------------------------------------------


class _Checkpoint:
    """A file that a training run can be taken up from."""

    def __init__(self, path: Path, loop: _Loop, data: Dataset) -> None:
        self.path, self.loop = path, loop
        self.identity = {
            "recipe": {k: repr(v) for k, v in loop.recipe.as_dict().items()},
            "network": {
                "first weights": models.fingerprint(loop.network),
                "trainable": ", ".join(
                    name for name, p in loop.network.named_parameters() if p.requires_grad
                ),
            },
            "data": {"examples": _digest(data)},
            "run": {"seed": str(loop.run.seed), "dtype": str(loop.run.dtype)},
        }

    def read(self) -> None:
        """Bring the loop to where the file left it, if there is one."""
        if not self.path.is_file():
            return
        loop = self.loop
        try:
            content = io.BytesIO(self.path.read_bytes())
            stored = torch.load(content, map_location=loop.run.device, weights_only=True)
            known = isinstance(stored, dict) and stored.get("format") == _FORMAT
        except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
            raise ValueError(
                f"{self.path.name} is not a readable checkpoint: {error}. Delete it, or name "
                f"another file."
            ) from error
        if not known:
            raise ValueError(
                f"{self.path.name} should be a checkpoint of the format {_FORMAT!r}. Name another "
                f"file."
            )
        self._compare(stored["identity"])
        loop.network.load_state_dict(stored["network"])
        loop.optimizer.load_state_dict(stored["optimizer"])
        loop.scaler.load_state_dict(stored["scaler"])
        loop.best = stored["best"]
        for name in ("step", "rows", "best_value", "since_best", "stopped"):
            setattr(loop, name, stored[name])

    def _compare(self, stored: Mapping[str, Mapping[str, str]]) -> None:
        for part, now in self.identity.items():
            then = stored.get(part, {})
            other = [k for k in now if then.get(k) != now[k]]
            if not other:
                continue
            details = ", ".join(
                f"{k} {then.get(k)} there, {now[k]} now" if part in ("recipe", "run") else k
                for k in other
            )
            hint = " (make it anew, from the same seed or weights)" if part == "network" else ""
            raise ValueError(
                f"{self.path.name} is a checkpoint of another {part}: {details}{hint}. Call fit "
                f"with what it was made for, name another file, or delete this one."
            )

    def write(self) -> None:
        """Write the state, whole or not at all."""
        loop = self.loop
        buffer = io.BytesIO()
        state: dict[str, Any] = {
            "format": _FORMAT,
            "identity": self.identity,
            "network": loop.network.state_dict(),
            "best": loop.best,
            "optimizer": loop.optimizer.state_dict(),
            "scaler": loop.scaler.state_dict(),
        }
        for name in ("step", "rows", "best_value", "since_best", "stopped"):
            state[name] = getattr(loop, name)
        torch.save(state, buffer)
        runtime.write_whole(self.path, buffer.getvalue())


def _digest(data: Dataset) -> str:
    """sha256 of what training and selection see."""
    digest = hashlib.sha256(repr(data.classes).encode())
    for split in (data.train, data.validation):
        digest.update(f"{split.name}{tuple(split.x.shape)}{split.x.dtype}".encode())
        digest.update(split.x.detach().cpu().contiguous().numpy().tobytes())
        digest.update(split.y.cpu().numpy().tobytes())
    return digest.hexdigest()
