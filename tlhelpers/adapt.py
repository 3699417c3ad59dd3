"""Domain adaptation: labels in the source, none in the target, and the same classes in both.

- :func:`domains` joins a labelled source and a target whose labels stay out of reach;
- :func:`coral` moves features;
- :func:`fit` trains a network by any of :data:`METHODS`; their parts are here too:
  :func:`adapt_batchnorm`, :func:`reverse_gradient` with its :func:`ramp`, :func:`pseudo_labels`,
  and from ``discrepancy`` the losses ``mmd_squared`` and ``coral_distance``.

How far apart the domains are is measured by ``discrepancy``; ``reweight`` is for a target with
other shares of the same examples or classes. Chapter 13 derives the methods and measures them.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from tlhelpers import _inference, _randomness, _samples, models, runtime
from tlhelpers._samples import ArrayLike
from tlhelpers.discrepancy import FACTORS
from tlhelpers.discrepancy import coral_distance as coral_distance  # both are offered here too
from tlhelpers.discrepancy import mmd_squared as mmd_squared
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Split, TestSplit

METHODS = ("source_only", "batchnorm", "coral", "mmd", "dann", "self_training")
"""What :func:`fit` trains by."""

CHOICES = ("source", "oracle", "last")
"""The ways to choose among the weights of a run, see :class:`Adapted`."""

# What a method's own loss weighs at its height, chosen without target labels. CORAL's has 1 / 4 d²
# in it and is small: with this weight, on printed and handwritten digits, it is about as large as
# the source's loss at the end of training, as Sun and Saenko (2016) ask.
_WEIGHTS = {"coral": 100.0, "mmd": 1.0, "dann": 1.0, "self_training": 1.0}


# --- a source with labels, a target without -----------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Unlabelled:
    """Examples whose labels are not at hand: asking for ``y`` is an error.

    Attributes:
        name: what they are called.
        x: (n, ...) tensor.
        ids: n names, one for each example.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits()
        >>> target = tl.adapt.domains(digits, digits).target
        >>> target
        digits: 1,000 examples without labels
        >>> target.y  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        AttributeError: the labels of digits are out of reach: an adaptation method sees the ...
    """

    name: str
    x: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{self.name}: {len(self):,} examples without labels"

    @property
    def y(self) -> NoReturn:
        """Refused.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(
            f"the labels of {self.name} are out of reach: an adaptation method sees the target's "
            f"inputs alone. Use the source's labels, or pseudo_labels(network, target.x); results "
            f"are for evaluate.report(network, domains.test)."
        )


@dataclass(frozen=True, eq=False, repr=False)
class Domains:
    """A source and a target with the same classes; make one with :func:`domains`.

    Attributes:
        source: the source with its labels; methods learn from its train split, and the honest
            choice of the weights is made on its validation split.
        target: the target's training inputs, without labels.
        oracle: labelled target examples that only the choice "oracle" looks at: what somebody
            with no target label could not do.
        test: the target's test split.
    """

    source: Dataset
    target: Unlabelled
    oracle: Split
    test: TestSplit

    def __post_init__(self) -> None:
        if not isinstance(self.target, Unlabelled):
            raise TypeError(
                f"the target must come without labels, found {type(self.target).__name__}. Make "
                f"the pair with adapt.domains(source, target), which puts the labels away."
            )
        if not isinstance(self.test, TestSplit):
            raise TypeError(
                f"test must be the target's test split, found {type(self.test).__name__}."
            )
        if self.source.classes != self.test.classes:
            raise ValueError(
                f"source and target must have the same classes in the same order, found "
                f"{_some(self.source.classes)} and {_some(self.test.classes)}. "
                f"datasets.with_classes brings them into one order."
            )
        if len(self.source.classes) < 2:
            raise ValueError(
                f"a classifier needs 2 classes or more, {self.source.name} has "
                f"{len(self.source.classes)}: with one there is nothing to carry over."
            )
        parts = {
            f"{self.source.name}, train": self.source.train.x,
            f"{self.source.name}, validation": self.source.validation.x,
            self.target.name: self.target.x,
            f"{self.target.name}, oracle": self.oracle.x,
        }
        for name, x in parts.items():
            _samples.check_inputs(x, name)
        shapes = {name: tuple(x.shape[1:]) for name, x in parts.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"all examples must have one shape, found {shapes}.")

    def __repr__(self) -> str:
        return (
            f"{self.source.name} ({len(self.source.train):,} labelled) → {self.target.name} "
            f"({len(self.target):,} without labels; test {len(self.test):,}), "
            f"{len(self.source.classes)} classes"
        )


def domains(source: Dataset, target: Dataset, *, oracle: Split | None = None) -> Domains:
    """Join a labelled source and a target, and put the target's labels away.

    Args:
        source: its train and validation splits are used, with labels.
        target: its train split is used without labels; its test split is for results.
        oracle: the labelled target examples by which the choice "oracle" is made; by default the
            target's validation split. Many published tables took the test split: to show what
            that does, give ``target.test.open(reason=...)``, which is logged.

    Raises:
        TypeError: if examples are no floating-point tensors.
        ValueError: if the classes or shapes of source and target differ, there are fewer than two
            classes, a split is empty, or an input is not finite.

    Example:
        >>> import tlhelpers as tl
        >>> printed = tl.datasets.glyphs("digits_printed", per_class=20)
        >>> tl.adapt.domains(printed, tl.datasets.digits())
        glyphs (160 labelled) → digits (1,000 without labels; test 497), 10 classes
    """
    unlabelled = Unlabelled(target.name, target.train.x, target.train.ids)
    return Domains(source, unlabelled, target.validation if oracle is None else oracle, target.test)


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


# --- a remedy on features -----------------------------------------------------------------


def coral(source: ArrayLike, target: ArrayLike, *, ridge: float = 0.01) -> Tensor:
    r"""Move source features so that their mean and covariance are the target's.

    .. math:: h \mapsto (C_T + \lambda I)^{1/2} (C_S + \lambda I)^{-1/2} (h - \mu_S) + \mu_T

    Where :math:`C_S` has an inverse, the covariance of the result goes to :math:`C_T` as λ goes
    to 0. A classifier learns from the result with the source's labels. The paper standardises both
    domains first, which puts both means at 0, and takes λ = 1; here the means are moved too.

    Source: Sun, Feng and Saenko (2016), Return of Frustratingly Easy Domain Adaptation.

    Args:
        source: (n, d).
        target: (m, d), without labels.
        ridge: λ, in the units of a variance of the features; above 0, for with few examples a
            covariance has no inverse.

    Returns:
        (n, d) moved source features.

    Raises:
        TypeError, ValueError: as :func:`~tlhelpers.discrepancy.mmd_squared`, or if the ridge is
            not above 0.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> source = torch.tensor([[-1.0], [1.0]]).repeat(50, 1)
        >>> target = torch.tensor([[7.0], [13.0]]).repeat(50, 1)
        >>> moved = tl.adapt.coral(source, target, ridge=1e-6)
        >>> [round(x, 2) for x in moved.unique().tolist()]
        [7.0, 13.0]
    """
    a, b = _samples.pair(source, target)
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge should be a number above 0, found {ridge}.")
    x, y = a.cpu().double(), b.cpu().double()
    whiten = _power(_samples.covariance(x), -0.5, ridge)
    colour = _power(_samples.covariance(y), 0.5, ridge)
    return ((x - x.mean(dim=0)) @ whiten @ colour + y.mean(dim=0)).to(a)


def _power(covariance: Tensor, exponent: float, ridge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * (values.clamp(min=0) + ridge) ** exponent @ vectors.T


# --- the parts of methods on networks -----------------------------------------------------


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    """The same numbers; on the way back, the gradient times −strength.

    Between features and a domain classifier it makes the classifier learn to tell the domains
    apart, and the features to prevent it, in one backward pass.

    Source: Ganin et al. (2016), Domain-Adversarial Training of Neural Networks.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> (3 * reverse_gradient(x, strength=0.5)).sum().backward()
    >>> x.grad
    tensor([-1.5000, -1.5000])
    """
    return _ReverseGradient.apply(x, strength)


def ramp(progress: float, *, gamma: float = 10.0) -> float:
    """How strongly the domain's part counts in the course of training: 2 / (1 + exp(−γ p)) − 1.

    Source: Ganin et al. (2016), who take γ = 10.

    Args:
        progress: p, the share of the training that is done, in 0..1.
        gamma: how steeply it rises.

    >>> [round(ramp(p), 2) for p in (0, 0.1, 0.25, 0.5, 1)]
    [0.0, 0.46, 0.85, 0.99, 1.0]
    """
    return 2 / (1 + math.exp(-gamma * progress)) - 1


def adapt_batchnorm(network: nn.Module, x: Tensor, *, batch_size: int = 256) -> nn.Module:
    """A copy of a network whose BatchNorm layers have the statistics of other examples.

    All weights stay; means and variances become the averages over batches of ``x``, each layer
    normalising by the batch on the way. With the inputs of a target this is adaptation without
    any training; after weights were averaged it is a repair, see
    :func:`~tlhelpers.combine.with_state`.

    Source: Li et al. (2017), Revisiting Batch Normalization For Practical Domain Adaptation.

    Args:
        network: a network with BatchNorm layers; it stays as it is.
        x: (n, ...) inputs, without labels.
        batch_size: about how many examples are normalised together.

    Returns:
        the copy, in evaluation mode.

    Raises:
        TypeError: if x is given with labels, or is no floating-point tensor.
        ValueError: if the network has no BatchNorm layer with running statistics, there are fewer
            than two examples, or one is not finite.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network = torch.nn.BatchNorm1d(1)
        >>> x = torch.tensor([[90.0], [110.0]])
        >>> adapted = tl.adapt.adapt_batchnorm(network, x)
        >>> adapted.running_mean, adapted.running_var
        (tensor([100.]), tensor([200.]))
        >>> network.running_mean, network.running_var
        (tensor([0.]), tensor([1.]))
    """
    _samples.refuse_labels(x, "x")
    _samples.check_inputs(x, "x")
    if batch_size < 2 or len(x) < 2:
        raise ValueError(
            f"statistics need batches of 2 examples or more, found {len(x)} examples and "
            f"batch_size {batch_size}."
        )
    adapted = copy.deepcopy(network).eval()
    layers = [part for part in adapted.modules() if isinstance(part, _BatchNorm)]
    layers = [layer for layer in layers if layer.track_running_stats]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no BatchNorm layer with running statistics, so there is "
            f"nothing to adapt in this way."
        )
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's way to ask for the plain average over batches
        layer.training = True  # this layer alone: dropout stays off
    device = next(iter(adapted.state_dict().values())).device
    with torch.no_grad():
        # Equal parts: a small last batch would count as much as the others. Of one example there
        # is no variance.
        for part in x.tensor_split(min(-(-len(x) // batch_size), len(x) // 2)):
            adapted(part.to(device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum, layer.training = momentum, False
    return adapted


def pseudo_labels(
    network: nn.Module, x: Tensor, *, threshold: float = 0.9
) -> tuple[Tensor, Tensor]:
    """What a network says of unlabelled examples, where it is sure.

    Source: Lee (2013), Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for
    Deep Neural Networks.

    Args:
        network: (n, ...) inputs to (n, m) logits.
        x: (n, ...) inputs, without labels.
        threshold: the least probability of the predicted class.

    Returns:
        the positions of the sure examples (k,), and their predicted classes (k,), int64; k may
        be 0.

    Raises:
        TypeError: if x is given with labels.
        ValueError: if the threshold does not lie in 0..1.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> logits = torch.tensor([[5.0, 0.0], [0.1, 0.0], [0.0, 4.0]])
        >>> tl.adapt.pseudo_labels(torch.nn.Identity(), logits, threshold=0.9)
        (tensor([0, 2]), tensor([0, 1]))
    """
    _samples.refuse_labels(x, "x")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a probability in 0..1, found {threshold}.")
    confidence, labels = _inference.logits(network, x).softmax(dim=1).max(dim=1)
    rows = torch.nonzero(confidence >= threshold).flatten()
    return rows, labels[rows]


# --- training -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How :func:`fit` adapts a network.

    Attributes:
        method: one of :data:`METHODS`.
        steps: optimiser steps, all rounds together.
        batch_size: examples of each domain in a step.
        lr: the learning rate of AdamW, which falls to 0 along a cosine.
        weight_decay: of matrices and filters.
        weight: the weight of the domain's part at its height; None for the method's own default.
        gamma: how steeply that weight rises for "coral", "mmd" and "dann", see :func:`ramp`.
        hidden: the width of the hidden layer of DANN's domain classifier.
        threshold: of :func:`pseudo_labels`, for "self_training".
        rounds: how often pseudo-labels are given, for "self_training". The steps are shared
            equally by a first stage on the source alone and the rounds, each with a cosine of its
            own.
        evaluations: how many rows the history has, at most.

    Raises:
        ValueError: if a setting cannot be meant.

    Example:
        >>> import tlhelpers as tl
        >>> plan = tl.adapt.Plan(method="mmd", steps=100)
        >>> plan.lr, plan.batch_size
        (0.003, 64)
        >>> tl.adapt.Plan(method="cmd")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: Plan: method must be one of source_only, batchnorm, ..., found 'cmd'.
    """

    method: str = "source_only"
    steps: int = 300
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-4
    weight: float | None = None
    gamma: float = 10.0
    hidden: int = 64
    threshold: float = 0.9
    rounds: int = 3
    evaluations: int = 20

    def __post_init__(self) -> None:
        self._require("method", self.method in METHODS, f"one of {', '.join(METHODS)}")
        for name, least in (
            ("steps", 1),
            ("batch_size", 2),
            ("hidden", 1),
            ("rounds", 1),
            ("evaluations", 1),
        ):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            self._require(name, whole and value >= least, f"a whole number, {least} or larger")
        for name in ("lr", "gamma"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0")
        self._require("weight_decay", 0 <= self.weight_decay < math.inf, "0 or larger")
        good = self.weight is None or (self.method in _WEIGHTS and 0 <= self.weight < math.inf)
        self._require("weight", good, "0 or larger, or None; None for a method that adds no loss")
        self._require("threshold", 0 <= self.threshold <= 1, "a probability in 0..1")
        if self.method == "self_training":
            enough = self.steps > self.rounds
            self._require("steps", enough, f"more than the number of rounds, {self.rounds}")

    def _require(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise ValueError(f"Plan: {name} must be {expected}, found {getattr(self, name)!r}.")

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for records."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False, repr=False)
class Adapted:
    """A run of :func:`fit`, with the weights that each way of choosing takes from it.

    - ``"source"`` takes those with the highest accuracy on source validation, of equals the
      lowest loss there: all that can be done without target labels;
    - ``"oracle"`` takes those with the highest accuracy on labelled target examples, as many
      published tables did: what it gains beside "source" is not the method's merit;
    - ``"last"`` takes those of the last step.

    What the choice is worth is measured by Gulrajani and Lopez-Paz (2021), In Search of Lost Domain
    Generalization, and Musgrave et al. (2021), Unsupervised Domain Adaptation: A Reality Check.

    Attributes:
        networks: a network for each of :data:`CHOICES`, in evaluation mode.
        history: a row for each evaluation. ``source_loss`` and ``domain_loss`` are means over the
            steps since the row before; the latter is what the method adds, before its weight: the
            penalty of CORAL or MMD, the cross-entropy of DANN's domain classifier in nats (log 2
            where it can tell nothing), that of the pseudo-labels over the steps that have any; NaN
            where there is none.
            ``weight`` is the domain's weight at the last step; ``pseudo_labelled`` is the share of
            the target with a pseudo-label. ``oracle_top1`` is measured with target labels and used
            by the choice "oracle" alone.
        rows: the row of the history that each choice took.
        plan: how the network was trained.
        pair: the domains, in words.
        seed: of the run.
    """

    networks: Mapping[str, nn.Module]
    history: pd.DataFrame
    rows: Mapping[str, int]
    plan: Plan
    pair: str
    seed: int

    @property
    def network(self) -> nn.Module:
        """The network chosen on source validation."""
        return self.networks["source"]

    def choices(self) -> pd.DataFrame:
        """A row for each choice: its step, and the accuracies there."""
        columns = ["step", "source_validation_top1", "oracle_top1"]
        table = self.history.loc[[self.rows[choice] for choice in CHOICES], columns]
        return table.assign(choice=list(CHOICES)).set_index("choice")

    def __repr__(self) -> str:
        table = self.choices()
        found = "; ".join(
            f"{choice}: step {int(row.step)}, target {row.oracle_top1:.1%}"
            for choice, row in table.iterrows()
        )
        return f"{self.plan.method} on {self.pair}. Chosen by {found} (oracle examples)"


def fit(
    network: nn.Module, domains: Domains, plan: Plan | None = None, run: Run | None = None
) -> Adapted:
    """Train a network on a labelled source so that it works on an unlabelled target.

    Each step takes a batch of the source, with replacement, and its mean cross-entropy. The
    methods add to it:

    - ``"source_only"``: nothing; the target is not looked at.
    - ``"batchnorm"``: nothing; before each evaluation on the target, and in the networks
      returned, :func:`adapt_batchnorm` takes the target's statistics. Source validation is judged
      with the source's.
    - ``"coral"`` (Sun and Saenko 2016): :func:`~tlhelpers.discrepancy.coral_distance` between the
      features of the source batch and of a target batch; features are what the head sees.
    - ``"mmd"`` (Long et al. 2015): the biased :func:`~tlhelpers.discrepancy.mmd_squared` between
      them, with the median heuristic in each step.
    - ``"dann"`` (Ganin et al. 2016): a domain classifier with one hidden layer, behind
      :func:`reverse_gradient`. The classifier learns at the full rate; the weight acts on the
      reversed gradient alone.
    - ``"self_training"`` (Lee 2013): in rounds, the cross-entropy of a batch with
      :func:`pseudo_labels`, which are given anew at the start of each round.

    Where a method takes a target batch, both batches go through the network as one, so BatchNorm
    sees the mixture. Everything random comes from ``run.seed``, to the same bits on one CPU; the
    global random state is left as it was found.

    Args:
        network: (n, ...) inputs to (n, m) logits, whose last linear layer is its head; it stays
            as it is.
        domains: the pair.
        plan: the method and its settings; None for ``Plan()``.
        run: seed and device; None for seed 0 on the best device.

    Raises:
        FloatingPointError: if a loss becomes NaN or infinite.
        TypeError: if ``domains`` is something else.
        ValueError: if the network's output does not fit the classes, the network is nothing but a
            head, or it has no BatchNorm to adapt.

    Example:
        >>> import tlhelpers as tl
        >>> printed = tl.datasets.glyphs("digits_printed", per_class=20)
        >>> pair = tl.adapt.domains(printed, tl.datasets.digits())
        >>> plan = tl.adapt.Plan(method="coral", steps=10, evaluations=2)
        >>> adapted = tl.adapt.fit(tl.adapt_study.network(), pair, plan)
        >>> adapted.history.step.tolist()
        [5, 10]
        >>> adapted.choices().index.tolist()
        ['source', 'oracle', 'last']
        >>> adapted.choices().columns.tolist()
        ['step', 'source_validation_top1', 'oracle_top1']
    """
    plan = Plan() if plan is None else plan
    run = runtime.default(run)
    if not isinstance(domains, Domains):
        raise TypeError(
            f"fit takes a pair made by adapt.domains(source, target), which puts the target's "
            f"labels away; found {type(domains).__name__}."
        )
    keep = runtime.keep_memory() if run.device.type == "cpu" else contextlib.nullcontext()
    with keep, _randomness.global_state_kept(run.device):
        loop = _Loop(copy.deepcopy(network).to(run.device), domains, plan, run)
        with runtime.progress(total=plan.steps, desc=plan.method, unit="step") as bar:
            for stage, steps in enumerate(_stages(plan)):
                loop.begin(stage, steps)
                for _ in range(steps):
                    loop.take_step()
                    bar.update()
    return loop.result()


def _stages(plan: Plan) -> list[int]:
    """The steps of each stage; all methods but self-training have one."""
    if plan.method != "self_training":
        return [plan.steps]
    count = plan.rounds + 1
    return [plan.steps // count + (i < plan.steps % count) for i in range(count)]


class _Loop:
    """A run of :func:`fit`: what has to be kept from step to step."""

    def __init__(self, network: nn.Module, domains: Domains, plan: Plan, run: Run) -> None:
        self.network, self.domains, self.plan, self.run = network, domains, plan, run
        train = domains.source.train
        self.source_x, self.target_x = (_held(x, run.device) for x in (train.x, domains.target.x))
        self.source_y = train.y.to(run.device)
        self.draw = run.generator(0)
        # The critic's weights and dropout draw from the global state, which `fit` restores.
        seed = _randomness.epoch_seeds(run.seed, 0, 1)[0]
        for device in {torch.device("cpu"), run.device}:
            _randomness.seed_dropout(seed, device)
        _check_output(network, self.source_x, domains.source)
        if plan.method == "batchnorm":
            adapt_batchnorm(network, self.target_x[:2])  # fails now, if at all
        name = models.head_name(network)
        if plan.method in ("coral", "mmd", "dann") and not name:
            raise ValueError(
                f"{plan.method} changes the layers before the head, but the network is nothing but "
                f"a head. Give it a hidden layer, or move the features with adapt.coral."
            )
        self.head = network.get_submodule(name)
        learners = [network]
        if plan.method == "dann":
            assert isinstance(self.head, nn.Linear)
            self.critic = nn.Sequential(
                nn.Linear(self.head.in_features, plan.hidden), nn.ReLU(), nn.Linear(plan.hidden, 1)
            ).to(run.device)
            learners.append(self.critic)
        groups = [
            group
            for learner in learners
            for group in models.param_groups(learner, lr=plan.lr, weight_decay=plan.weight_decay)
        ]
        self.optimizer = torch.optim.AdamW(groups, fused=run.device.type in ("cpu", "cuda"))
        self.full_weight = plan.weight if plan.weight is not None else _WEIGHTS.get(plan.method, 0)
        self.weight = 0.0
        none = torch.empty(0, dtype=torch.int64, device=run.device)
        self.pseudo_rows, self.pseudo_y = none, none
        self.step, self.start = 0, time.perf_counter()
        self.source_losses: list[Tensor] = []
        self.domain_losses: list[Tensor] = []
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, tuple[float, ...]] = {}
        self.chosen: dict[str, tuple[int, nn.Module]] = {}
        every = -(-plan.steps // plan.evaluations)
        self.evaluate_at = {*range(every, plan.steps, every), plan.steps}

    def begin(self, stage: int, steps: int) -> None:
        """Start a stage: a schedule of its own, and for self-training new pseudo-labels."""
        self.stage_start, self.stage_steps = self.step, steps
        if stage > 0:
            self.pseudo_rows, self.pseudo_y = pseudo_labels(
                self.network, self.target_x, threshold=self.plan.threshold
            )
        self.network.train()

    def take_step(self) -> None:
        self.weight = self._weight()
        total, domain_loss = self._losses()
        self.source_losses.append(total.detach())
        if domain_loss is not None:
            self.domain_losses.append(domain_loss.detach())
            # DANN's weight is in the reversed gradient.
            total = total + (1.0 if self.plan.method == "dann" else self.weight) * domain_loss
        share = (self.step - self.stage_start) / self.stage_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr * (1 + math.cos(math.pi * share)) / 2
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.step += 1
        if self.step in self.evaluate_at:
            self._evaluate()
            self.network.train()

    def _weight(self) -> float:
        if self.plan.method == "self_training":
            return self.full_weight if len(self.pseudo_rows) else 0.0
        return self.full_weight * ramp(self.step / self.plan.steps, gamma=self.plan.gamma)

    def _losses(self) -> tuple[Tensor, Tensor | None]:
        """The source's cross-entropy, and what the method adds to it, before its weight."""
        rows = self._rows(len(self.source_x))
        x, y, n = self.source_x[rows], self.source_y[rows], self.plan.batch_size
        if self.plan.method in ("coral", "mmd", "dann"):
            new = self.target_x[self._rows(len(self.target_x))]
            logits, features = _forward(self.network, self.head, torch.cat([x, new]))
            return F.cross_entropy(logits[:n], y), self._domain_loss(features, n)
        if len(self.pseudo_rows):
            picked = self._rows(len(self.pseudo_rows))
            logits = self.network(torch.cat([x, self.target_x[self.pseudo_rows[picked]]]))
            pseudo_loss = F.cross_entropy(logits[n:], self.pseudo_y[picked])
            return F.cross_entropy(logits[:n], y), pseudo_loss
        return F.cross_entropy(self.network(x), y), None

    def _domain_loss(self, features: Tensor, n: int) -> Tensor:
        source, target = features[:n], features[n:]
        if self.plan.method == "coral":
            return _samples.coral_distance(source, target)
        if self.plan.method == "mmd":
            # Features that have all become equal have no distance to speak of.
            median = _samples.median_distance(_samples.squared_distances(features.detach()))
            widths = [factor * max(median, 1e-6) for factor in FACTORS]
            return _samples.mmd_squared(source, target, widths, unbiased=False)
        scores = self.critic(reverse_gradient(features, self.weight)).squeeze(1)
        domain = torch.arange(2 * n, device=scores.device) >= n
        return F.binary_cross_entropy_with_logits(scores, domain.to(scores))

    def _rows(self, count: int) -> Tensor:
        rows = torch.randint(count, (self.plan.batch_size,), generator=self.draw)
        return rows.to(self.run.device)

    def _evaluate(self) -> None:
        logits, y = self._scores(self.network, self.domains.source.validation)
        loss, top1 = F.cross_entropy(logits, y), _accuracy(logits, y)
        if not torch.stack([*self.source_losses, *self.domain_losses, loss]).isfinite().all():
            raise FloatingPointError(
                f"a loss became NaN or infinite by step {self.step} of {self.plan.steps}, with "
                f"{self.plan.method} at a learning rate of {self.plan.lr:.3g}. Lower lr or weight."
            )
        adapted = self.network.eval()
        if self.plan.method == "batchnorm":
            adapted = adapt_batchnorm(self.network, self.target_x)
        oracle = _accuracy(*self._scores(adapted, self.domains.oracle))
        self._keep(
            adapted, {"source": (top1, -float(loss)), "oracle": (oracle,), "last": (self.step,)}
        )
        self.rows.append(
            {
                "step": self.step,
                "source_loss": _mean(self.source_losses),
                "domain_loss": _mean(self.domain_losses),
                "weight": self.weight,
                "source_validation_loss": float(loss),
                "source_validation_top1": top1,
                "oracle_top1": oracle,
                "pseudo_labelled": len(self.pseudo_rows) / len(self.target_x),
                "seconds": time.perf_counter() - self.start,
            }
        )
        self.source_losses, self.domain_losses = [], []

    def _scores(self, network: nn.Module, split: Split) -> tuple[Tensor, Tensor]:
        return _inference.logits(network, split.x), split.y.to(self.run.device)

    def _keep(self, network: nn.Module, values: Mapping[str, tuple[float, ...]]) -> None:
        """Copy the weights for every choice to which they are the best so far."""
        better = [choice for choice in CHOICES if values[choice] > self.best.get(choice, ())]
        for choice in better:
            self.best[choice] = values[choice]
            self.chosen[choice] = len(self.rows), copy.deepcopy(network).eval()

    def result(self) -> Adapted:
        return Adapted(
            networks={choice: self.chosen[choice][1] for choice in CHOICES},
            history=pd.DataFrame(self.rows),
            rows={choice: self.chosen[choice][0] for choice in CHOICES},
            plan=self.plan,
            pair=repr(self.domains),
            seed=self.run.seed,
        )


def _mean(losses: list[Tensor]) -> float:
    return float(torch.stack(losses).mean()) if losses else math.nan


def _forward(network: nn.Module, head: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and the features that the head was given."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        return network(x), seen[-1]
    finally:
        handle.remove()


def _held(x: Tensor, device: torch.device) -> Tensor:
    x = x.to(device)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(dim=1) == y).float().mean())


def _check_output(network: nn.Module, x: Tensor, data: Dataset) -> None:
    out = _inference.logits(network, x[:2])
    expected = (len(x[:2]), len(data.classes))
    if tuple(out.shape) != expected:
        raise ValueError(
            f"the network should return logits of shape {expected} for {expected[0]} examples of "
            f"the {expected[1]} classes of {data.name}, found {tuple(out.shape)}. Give it a head "
            f"of {expected[1]} outputs."
        )
