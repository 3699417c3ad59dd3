"""Learning to learn: MAML, its first-order form, and Reptile.

A *task* has a support set, on which a network takes a few steps of gradient descent (the *inner*
loop), and queries, on which the result is judged. All three methods look for a start from which a
few steps on a new task go far:

- :func:`maml` follows the gradient of the queries' loss *after* the inner loop, through the inner
  loop (second order), or as if the inner loop only moved the weights (first order);
- :func:`reptile` walks from the start towards where the inner loops end.

A *sampler* draws batches of tasks: :func:`sine_tasks`, :func:`episode_tasks`, or any function
``(count, generator) -> Tasks``. :func:`outputs` shows what a start is worth on tasks, and
:func:`fine_tuned` makes it a classifier for ``fewshot.measure``.
"""

from __future__ import annotations

import copy
import functools
import math
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tlhelpers import runtime
from tlhelpers.episodes import Pool
from tlhelpers.fewshot import BatchStatistics, Classifier, with_batch_statistics
from tlhelpers.runtime import Run

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets of a task to their mean loss, a scalar."""

Parameters = dict[str, Tensor]

STATISTICS = ("running", "batch", "support")

_WEIGHTS = 2**20  # in the copies of a network that are adapted at a time, when nothing is learnt
_ROWS = 20  # of a history


# --- tasks ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tasks:
    """A batch of tasks.

    Attributes:
        support_x: (b, n, ...) what the inner loop learns from.
        support_y: (b, n, ...) its targets, or (b, n) class numbers.
        query_x: (b, m, ...) what the result is judged on.
        query_y: (b, m, ...) its targets.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> tasks = tl.meta.sine_tasks(shots=5)(3, torch.Generator().manual_seed(0))
        >>> tasks.support_x.shape, tasks.query_y.shape
        (torch.Size([3, 5, 1]), torch.Size([3, 10, 1]))
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __len__(self) -> int:
        return len(self.support_x)

    def __repr__(self) -> str:
        return (
            f"{len(self):,} tasks with {self.support_x.shape[1]} examples to adapt to and "
            f"{self.query_x.shape[1]} queries"
        )

    def to(self, device: torch.device) -> Tasks:
        """The same tasks on a device."""
        parts = (self.support_x, self.support_y, self.query_x, self.query_y)
        return Tasks(*(part.to(device) for part in parts))


Sampler = Callable[[int, torch.Generator], Tasks]
"""From a number of tasks and a CPU generator to a batch of tasks."""


def sine_tasks(
    *,
    shots: int = 10,
    queries: int = 10,
    amplitude: tuple[float, float] = (0.1, 5.0),
    phase: tuple[float, float] = (0.0, math.pi),
    x: tuple[float, float] = (-5.0, 5.0),
) -> Sampler:
    r"""Sine waves, :math:`y = A \sin(x - \varphi)`, each task with an A and a φ of its own.

    Everything is uniform between the ends given; the defaults are the paper's.

    Source: Finn, Abbeel and Levine (2017), Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks, section 5.1.

    Args:
        shots: points to adapt to.
        queries: points to be judged on.
        amplitude: the range of A.
        phase: the range of φ, in radians.
        x: the range of x.

    >>> sine_tasks(shots=5)(100, torch.Generator().manual_seed(0))
    100 tasks with 5 examples to adapt to and 10 queries
    """

    def sample(count: int, generator: torch.Generator) -> Tasks:
        def between(ends: tuple[float, float], *shape: int) -> Tensor:
            return ends[0] + (ends[1] - ends[0]) * torch.rand(*shape, generator=generator)

        a, shift = between(amplitude, count, 1, 1), between(phase, count, 1, 1)
        points = between(x, count, shots + queries, 1)
        values = a * torch.sin(points - shift)
        return Tasks(points[:, :shots], values[:, :shots], points[:, shots:], values[:, shots:])

    return sample


def sine_network(*, hidden: int = 40, seed: int = 0) -> nn.Sequential:
    """The paper's network for :func:`sine_tasks`: two hidden layers with ReLU, (n, 1) to (n, 1).

    Args:
        hidden: units in each hidden layer.
        seed: of the weights.

    Source: Finn, Abbeel and Levine (2017), section 5.1.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network = tl.meta.sine_network(hidden=40)
        >>> network(torch.zeros(7, 1)).shape, sum(p.numel() for p in network.parameters())
        (torch.Size([7, 1]), 1761)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, 1),
        )  # fmt: skip


def episode_tasks(pool: Pool, *, ways: int, shots: int, queries: int) -> Sampler:
    """Episodes of a pool as tasks: ways are numbered in the random order in which they are drawn.

    Raises:
        ValueError: as :meth:`~tlhelpers.episodes.Pool.episodes`, when tasks are drawn.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits().train
        >>> pool = tl.episodes.Pool(digits.x, digits.y, name="digits")
        >>> sampler = tl.meta.episode_tasks(pool, ways=3, shots=2, queries=5)
        >>> tasks = sampler(10, torch.Generator().manual_seed(0))
        >>> tasks
        10 tasks with 6 examples to adapt to and 15 queries
        >>> tasks.support_y[0]
        tensor([0, 0, 1, 1, 2, 2])
    """

    def sample(count: int, generator: torch.Generator) -> Tasks:
        drawn = pool.episodes(count, ways=ways, shots=shots, queries=queries, generator=generator)
        support_y = torch.arange(ways).repeat_interleave(shots).expand(count, -1)
        query_y = drawn.labels.expand(count, -1)
        return Tasks(drawn.support.flatten(1, 2), support_y, drawn.query.flatten(1, 2), query_y)

    return sample


# --- the inner loop ---------------------------------------------------------------------------


def adapt(
    objective: Callable[[Parameters], Tensor],
    parameters: Parameters,
    *,
    steps: int,
    rate: float,
    order: int = 1,
    names: Collection[str] | None = None,
) -> Parameters:
    r"""The inner loop: some steps of gradient descent, as a function of where they start.

    .. math:: \theta_{i + 1} = \theta_i - \alpha \nabla L(\theta_i)

    It changes nothing in place, so it can be differentiated with respect to the parameters, and
    batched over tasks by ``torch.vmap``.

    Args:
        objective: from parameters to the loss L on the support, a scalar.
        parameters: where to start, by name.
        steps: how many.
        rate: the inner rate α.
        order: 2 keeps :math:`\nabla L` as a function of θ, so that derivatives of the result hold
            :math:`I - \alpha \nabla^2 L`; 1 takes it for a constant, and they hold I.
        names: the parameters that are changed; None for all.

    Returns:
        the parameters after the steps.

    >>> adapt(lambda p: p["w"] ** 2 / 2, {"w": torch.tensor(1.0)}, steps=2, rate=0.5)["w"]
    tensor(0.2500)
    """
    for _ in range(steps):
        parameters, _loss = _descend(objective, parameters, rate=rate, order=order, names=names)
    return parameters


def _descend(
    objective: Callable[[Parameters], Tensor],
    parameters: Parameters,
    *,
    rate: float,
    order: int,
    names: Collection[str] | None,
) -> tuple[Parameters, Tensor]:
    """The parameters after a step, and the loss before it."""
    moving = {k: v for k, v in parameters.items() if names is None or k in names}
    slopes, loss = torch.func.grad_and_value(lambda p: objective({**parameters, **p}))(moving)
    if order == 1:
        slopes = {name: slope.detach() for name, slope in slopes.items()}
    moved = {name: value - rate * slopes[name] for name, value in moving.items()}
    return {**parameters, **moved}, loss


@dataclass(frozen=True, kw_only=True)
class Inner:
    """How a network adapts to a task.

    **BatchNorm has to be decided on.** In an inner loop there is no obvious batch to normalise by,
    and the choice decides whether a result is transductive. A network with BatchNorm therefore
    needs one of these, to be kept from training to test:

    - ``"running"``: by the running statistics that the network has, which nothing here changes. In
      a network that was never trained they are 0 and 1 and normalise nothing.
    - ``"batch"``: the support by its own statistics, the queries by theirs. Published code did
      so; each query is then classified with the help of the others, which is transductive.
    - ``"support"``: the support by its own statistics, and each query by the support's as well:
      inductive. It costs one more forward pass (Bronskill et al. 2020).

    Dropout is off throughout.

    Attributes:
        steps: gradient steps on the support.
        rate: the inner rate α.
        loss: of outputs and targets; cross-entropy by default.
        part: only parameters whose name starts with it adapt; ``"head."`` for the head alone (ANIL;
            Raghu et al. 2020). Frozen parameters never do.
        statistics: as above; None for a network without BatchNorm.

    Raises:
        ValueError: if a setting cannot be meant.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits().train
        >>> pool = tl.episodes.Pool(digits.x, digits.y, name="digits")
        >>> tasks = tl.meta.episode_tasks(pool, ways=3, shots=1, queries=5)(4, torch.Generator())
        >>> inner = tl.meta.Inner(steps=2, rate=0.1, part="head.", statistics="support")
        >>> tl.meta.outputs(tl.models.small_resnet(3, weights="letters"), tasks, inner).shape
        torch.Size([3, 4, 15, 3])
    """

    steps: int = 1
    rate: float = 0.01
    loss: Loss = field(default_factory=lambda: F.cross_entropy)  # no attribute of the class
    part: str = ""
    statistics: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 < self.rate < math.inf:
            raise ValueError(
                f"the inner loop needs 0 steps or more and a rate above 0, found {self.steps} and "
                f"{self.rate}."
            )
        if self.statistics not in (None, *STATISTICS):
            raise ValueError(
                f"statistics should be None or one of {', '.join(STATISTICS)}, found "
                f"{self.statistics!r}."
            )


class _Function:
    """A network as a function of its parameters, with its BatchNorm decided on."""

    def __init__(self, network: nn.Module, inner: Inner) -> None:
        self.inner = inner
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms and inner.statistics is None:
            raise ValueError(
                f"{type(network).__name__} has {len(norms)} BatchNorm layers, and it has to be "
                f"decided by what they normalise: statistics={', '.join(map(repr, STATISTICS))}. "
                f"See meta.Inner, or take a network without BatchNorm."
            )
        if norms and inner.statistics != "running":
            self.network = with_batch_statistics(network)
        else:
            self.network = copy.deepcopy(network).eval()
        self.norms = [m for m in self.network.modules() if isinstance(m, BatchStatistics)]
        self.names = frozenset(
            name
            for name, p in network.named_parameters()
            if name.startswith(inner.part) and p.requires_grad
        )
        if not self.names:
            raise ValueError(
                f"nothing would adapt: no trainable parameter's name starts with {inner.part!r}."
            )

    def __call__(self, parameters: Parameters, x: Tensor) -> Tensor:
        return functional_call(self.network, parameters, (x,))

    def adapt(
        self, parameters: Parameters, x: Tensor, y: Tensor, *, steps: int, order: int = 1
    ) -> Parameters:
        """The parameters after some steps on one task's support."""
        return adapt(
            lambda p: self.inner.loss(self(p, x), y),
            parameters,
            steps=steps,
            rate=self.inner.rate,
            order=order,
            names=self.names,
        )

    def query(self, parameters: Parameters, support_x: Tensor, query_x: Tensor) -> Tensor:
        """The outputs for one task's queries."""
        if self.inner.statistics != "support":
            return self(parameters, query_x)
        try:
            for norm in self.norms:
                norm.keeps = True
            self(parameters, support_x)
            return self(parameters, query_x)
        finally:
            for norm in self.norms:
                norm.keeps, norm.fixed = False, None


def _together(network: nn.Module) -> int:
    """How many tasks are adapted at a time: many of a small network, some of a large one."""
    return max(8, _WEIGHTS // sum(p.numel() for p in network.parameters()))


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def outputs(network: nn.Module, tasks: Tasks, inner: Inner) -> Tensor:
    """What a network says to the queries before the inner loop and after each of its steps.

    Args:
        network: where the inner loop starts; it is left as it is.
        tasks: b of them, with m queries each.
        inner: how it adapts.

    Returns:
        (steps + 1, b, m, ...), on the CPU.

    Example:
        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> import tlhelpers as tl
        >>> tasks = tl.meta.sine_tasks()(100, torch.Generator().manual_seed(0))
        >>> inner = tl.meta.Inner(steps=5, rate=0.01, loss=mse_loss)
        >>> tl.meta.outputs(tl.meta.sine_network(), tasks, inner).shape
        torch.Size([6, 100, 10, 1])
    """
    function = _Function(network, inner)
    tasks = tasks.to(_device(network))
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def one(x: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
        here, said = parameters, [function.query(parameters, x, query_x)]
        for _ in range(inner.steps):
            here = function.adapt(here, x, y, steps=1)
            said.append(function.query(here, x, query_x))
        return torch.stack(said)

    together = torch.vmap(one, out_dims=1, chunk_size=_together(network))
    with torch.no_grad(), runtime.keep_memory():
        return together(tasks.support_x, tasks.support_y, tasks.query_x).cpu()


def losses(network: nn.Module, tasks: Tasks, inner: Inner) -> np.ndarray:
    """The loss on each task's queries before the inner loop and after each of its steps.

    Returns:
        (steps + 1, b).

    Example:
        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> import tlhelpers as tl
        >>> tasks = tl.meta.sine_tasks()(100, torch.Generator().manual_seed(0))
        >>> inner = tl.meta.Inner(steps=2, rate=0.02, loss=mse_loss)
        >>> tl.meta.losses(tl.meta.sine_network(), tasks, inner).mean(axis=1).round(1)
        array([4.2, 4. , 3.9])
    """
    each = torch.vmap(torch.vmap(inner.loss), in_dims=(0, None))
    return each(outputs(network, tasks, inner), tasks.query_y.cpu()).double().numpy()


def fine_tuned(network: nn.Module, inner: Inner) -> Classifier:
    """The network as a classifier of episodes: adapted to each support, asked for the queries.

    For :func:`tlhelpers.fewshot.measure`, beside the classifiers of that module and on the same
    episodes. The network's outputs are the ways, so there have to be N of them.

    Args:
        network: where the inner loop starts; it is copied now.
        inner: how it adapts.

    Raises:
        ValueError: if nothing would adapt, or BatchNorm is not decided on; and, when it classifies,
            if the network has another number of outputs than there are ways.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits().train
        >>> pool = tl.episodes.Pool(digits.x, digits.y, name="digits")
        >>> network = tl.models.small_resnet(5, weights="letters")
        >>> inner = tl.meta.Inner(steps=5, rate=0.1, part="head.", statistics="support")
        >>> episodes = pool.episodes(20, ways=5, shots=1, queries=2)
        >>> found = tl.fewshot.measure(tl.meta.fine_tuned(network, inner), episodes)
        >>> round(found.accuracy.value, 1), found.transductive
        (0.8, False)
    """
    function, device = _Function(network, inner), _device(network)
    parameters = {name: p.detach().clone() for name, p in network.named_parameters()}

    def one(x: Tensor, y: Tensor, query_x: Tensor) -> Tensor:
        return function.query(function.adapt(parameters, x, y, steps=inner.steps), x, query_x)

    together = torch.vmap(one, chunk_size=_together(network))

    def classify(support: Tensor, query: Tensor) -> Tensor:
        ways, shots = support.shape[1:3]
        y = torch.arange(ways, device=device).repeat_interleave(shots)
        x = support.flatten(1, 2).to(device)
        with torch.no_grad():
            found = function(parameters, x[0]).shape[-1]
        if found != ways:
            raise ValueError(
                f"to classify {ways}-way episodes a network needs {ways} outputs, found {found}. "
                f"Give it a head of {ways} classes, or draw {found}-way episodes."
            )
        return together(x, y.expand(len(support), -1), query.to(device))

    classify.__name__ = f"{inner.steps} gradient steps"
    return classify


def peak_memory(function: Callable[[], Any]) -> int:
    """The most bytes that tensors made by a function took at any one time.

    It follows every tensor that an operation makes until it is freed, on any device; memory that
    an operation takes within itself is not seen. What the second order costs beside time::

        peak_memory(lambda: meta_gradient(network, tasks, inner, order=2))

    Args:
        function: is called once, without arguments.

    >>> peak_memory(lambda: torch.zeros(1000) + torch.ones(1000))  # three float32 tensors
    12000
    """
    with _Living() as living:
        function()
    return living.most


class _Living(TorchDispatchMode):
    """Counts the bytes of the storages that operations return and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs)):  # what was there before is not ours
            if isinstance(tensor, Tensor):
                self._known.add(tensor.untyped_storage())
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


# --- the outer loop ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Passes of a task's support or queries through the network, summed over tasks.

    Attributes:
        forward: forward passes.
        backward: backward passes.
        curvature: products with the loss's Hessian, each about a forward and a backward pass more;
            what the second order costs.

    >>> Cost(4, 4, 2) + Cost(1, 1, 0)
    Cost(forward=5, backward=5, curvature=2)
    """

    forward: int = 0
    backward: int = 0
    curvature: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forward + other.forward,
            self.backward + other.backward,
            self.curvature + other.curvature,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(self.forward * times, self.backward * times, self.curvature * times)


@dataclass(frozen=True, eq=False, repr=False)
class Learnt:
    """How meta-training went.

    Attributes:
        method: ``"MAML"``, ``"first-order MAML"`` or ``"Reptile"``.
        table: about twenty rows with ``step``, ``loss`` (mean since the row before: MAML's on
            the queries after the inner loop; Reptile's on the minibatches of the inner loop),
            ``seconds`` since the start, and ``forward``, ``backward`` and ``curvature``, see
            :class:`Cost`, since the start.
        tasks: in each step.
        cost: of the whole run.
    """

    method: str
    table: pd.DataFrame
    tasks: int
    cost: Cost

    def __repr__(self) -> str:
        last = self.table.iloc[-1]
        return (
            f"{self.method}: {int(last.step):,} steps of {self.tasks} tasks in {last.seconds:.1f} "
            f"s, loss {self.table.loss.iloc[0]:.3f} at first and {last.loss:.3f} at last; "
            f"{self.cost.forward:,} forward and {self.cost.backward:,} backward passes, "
            f"{self.cost.curvature:,} products with the Hessian"
        )

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table


def meta_gradient(
    network: nn.Module, tasks: Tasks, inner: Inner, *, order: int = 2
) -> tuple[Tensor, Parameters]:
    r"""MAML's objective and its gradient with respect to the start.

    The objective is the mean over tasks of :math:`L_q(\theta_s(\theta))`, the queries' loss after
    s inner steps. With one step its gradient is :math:`(I - \alpha \nabla^2 L_s(\theta))
    \nabla L_q(\theta_1)`; the first order leaves the second derivative out.

    Args:
        network: the start, θ.
        tasks: what the mean is taken over.
        inner: how it adapts.
        order: 2, or 1 for first-order MAML.

    Returns:
        the objective, and the gradient by name, of parameters with ``requires_grad``.

    Raises:
        ValueError: if the order is neither.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.nn.functional import mse_loss
        >>> import tlhelpers as tl
        >>> network = nn.Linear(1, 1, bias=False)
        >>> _ = network.weight.data.fill_(1.0)
        >>> x, y = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
        >>> tasks = tl.meta.Tasks(x, y, x, y)
        >>> inner = tl.meta.Inner(steps=1, rate=0.25, loss=mse_loss)
        >>> for order in (2, 1):
        ...     print(tl.meta.meta_gradient(network, tasks, inner, order=order)[1]["weight"])
        tensor([[0.5000]])
        tensor([[1.]])
    """
    return _meta_gradient(_Function(network, inner), network, tasks.to(_device(network)), order)


def _meta_gradient(
    function: _Function, network: nn.Module, tasks: Tasks, order: int
) -> tuple[Tensor, Parameters]:
    if order not in (1, 2):
        raise ValueError(f"order should be 1 or 2, found {order}.")
    start: Parameters = dict(network.named_parameters())
    inner = function.inner

    def one(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        adapted = function.adapt(start, x, y, steps=inner.steps, order=order)
        return inner.loss(function.query(adapted, x, query_x), query_y)

    each = torch.vmap(one)(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
    objective = each.mean()
    learnt = {name: p for name, p in start.items() if p.requires_grad}
    slopes = torch.autograd.grad(objective, list(learnt.values()), allow_unused=True)
    return objective.detach(), {
        name: torch.zeros_like(p) if slope is None else slope
        for (name, p), slope in zip(learnt.items(), slopes, strict=True)
    }


def maml(
    network: nn.Module,
    sampler: Sampler,
    inner: Inner,
    *,
    order: int = 2,
    steps: int = 1000,
    tasks: int = 4,
    lr: float = 1e-3,
    run: Run | None = None,
) -> Learnt:
    """Look for a start from which the inner loop goes far, in place: MAML.

    Adam follows :func:`meta_gradient` on fresh tasks at each step; all tasks of a step are one
    batch. The network ends in evaluation mode, on the run's device.

    Args:
        network: the start, trained in place.
        sampler: of the tasks.
        inner: how it adapts; use the same at test, or more steps.
        order: 2; or 1, first-order MAML, which needs no second derivatives.
        steps: of Adam.
        tasks: in each step.
        lr: Adam's learning rate.
        run: seed and device; None for seed 0 on the best device.

    Raises:
        ValueError: if a setting cannot be meant.
        FloatingPointError: if the loss becomes NaN or infinite.

    Source: Finn, Abbeel and Levine (2017), Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks.

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> import tlhelpers as tl
        >>> network, run = tl.meta.sine_network(), tl.runtime.Run()
        >>> inner = tl.meta.Inner(steps=1, rate=0.01, loss=mse_loss)
        >>> learnt = tl.meta.maml(network, tl.meta.sine_tasks(), inner, steps=20, tasks=4, run=run)
        >>> learnt.method, learnt.cost
        ('MAML', Cost(forward=160, backward=160, curvature=80))
    """
    run = runtime.default(run)
    _require(steps, tasks)
    network.to(run.device)
    function = _Function(network, inner)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=lr)
    passes = inner.steps + 1
    again = inner.statistics == "support"  # the support once more, for its statistics
    curved = inner.steps if order == 2 else 0
    each = Cost(passes + again, passes, curved) * tasks
    parameters = dict(network.named_parameters())

    def step(drawn: Tasks, _: float) -> Tensor:
        objective, slopes = _meta_gradient(function, network, drawn, order)
        for name, slope in slopes.items():
            parameters[name].grad = slope
        optimizer.step()
        optimizer.zero_grad()
        return objective

    method = "MAML" if order == 2 else "first-order MAML"
    return _outer(method, network, sampler, step, each, steps=steps, tasks=tasks, run=run)


def reptile(
    network: nn.Module,
    sampler: Sampler,
    inner: Inner,
    *,
    outer_rate: float = 0.1,
    batch: int | None = None,
    steps: int = 1000,
    tasks: int = 4,
    run: Run | None = None,
) -> Learnt:
    r"""Look for a start near the solutions of all tasks, in place: Reptile.

    .. math:: \theta \leftarrow \theta + \varepsilon \cdot \text{mean}_t (\theta^t_s - \theta)

    with :math:`\theta^t_s` after s inner steps on task t, on its support and queries alike: unlike
    MAML it needs no queries. The outer rate ε falls linearly to 0. Reptile needs more than one
    inner step: with one it follows the gradient of the tasks' mean loss, as joint training does.
    Parameters that do not adapt are not learnt.

    Args:
        network: the start, trained in place.
        sampler: of the tasks.
        inner: how it adapts. ``statistics="support"`` is the same as ``"batch"`` here.
        outer_rate: ε at first.
        batch: examples in an inner step, drawn without replacement until all were used; None for
            all. The paper's analysis wants minibatches.
        steps: of the outer loop.
        tasks: in each step.
        run: seed and device; None for seed 0 on the best device.

    Raises:
        ValueError: if a setting cannot be meant.
        FloatingPointError: if the loss becomes NaN or infinite.

    Source: Nichol, Achiam and Schulman (2018), On First-Order Meta-Learning Algorithms.

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> import tlhelpers as tl
        >>> network, run = tl.meta.sine_network(), tl.runtime.Run()
        >>> inner = tl.meta.Inner(steps=3, rate=0.01, loss=mse_loss)
        >>> learnt = tl.meta.reptile(
        ...     network, tl.meta.sine_tasks(), inner, steps=20, tasks=4, run=run
        ... )
        >>> learnt.method, learnt.cost
        ('Reptile', Cost(forward=240, backward=240, curvature=0))
    """
    run = runtime.default(run)
    _require(steps, tasks)
    if not 0 < outer_rate <= 1 or inner.steps < 1 or (batch is not None and batch < 1):
        raise ValueError(
            f"Reptile needs an outer rate above 0 and at most 1, 1 inner step or more, and batches "
            f"of 1 or more; found {outer_rate}, {inner.steps} and {batch}."
        )
    network.to(run.device)
    function = _Function(network, inner)
    order = run.generator(1)
    parameters: Parameters = dict(network.named_parameters())

    def one(start: Parameters, x: Tensor, y: Tensor) -> tuple[Parameters, Tensor]:
        """From the start over (s, batch, ...) minibatches to the end, and the mean loss."""
        here, seen = start, []
        for rows_x, rows_y in zip(x, y, strict=True):

            def objective(p: Parameters, x: Tensor = rows_x, y: Tensor = rows_y) -> Tensor:
                return inner.loss(function(p, x), y)

            here, loss = _descend(objective, here, rate=inner.rate, order=1, names=function.names)
            seen.append(loss)
        return {name: here[name] for name in function.names}, torch.stack(seen).mean()

    def step(drawn: Tasks, done: float) -> Tensor:
        x = torch.cat([drawn.support_x, drawn.query_x], dim=1)
        y = torch.cat([drawn.support_y, drawn.query_y], dim=1)
        rows = _minibatches(len(x), x.shape[1], inner.steps, batch, order).to(x.device)
        which = torch.arange(len(x), device=x.device)[:, None, None]
        start = {name: p.detach() for name, p in parameters.items()}
        with torch.no_grad():
            ends, seen = torch.vmap(functools.partial(one, start))(x[which, rows], y[which, rows])
            for name in ends:
                p = parameters[name]
                p.lerp_(ends[name].mean(dim=0), outer_rate * (1 - done))
        return seen.mean()

    each = Cost(inner.steps, inner.steps) * tasks
    return _outer("Reptile", network, sampler, step, each, steps=steps, tasks=tasks, run=run)


def _minibatches(
    tasks: int, examples: int, steps: int, batch: int | None, generator: torch.Generator
) -> Tensor:
    """(tasks, steps, batch) rows; every example is used before one is used again."""
    if batch is None or batch >= examples:
        return torch.arange(examples).expand(tasks, steps, -1)
    rounds = -(-steps * batch // examples)
    order = torch.rand(tasks, rounds, examples, generator=generator).argsort(dim=-1)
    return order.flatten(1)[:, : steps * batch].unflatten(1, (steps, batch))


def _require(steps: int, tasks: int) -> None:
    if steps < 1 or tasks < 1:
        raise ValueError(f"steps and tasks should be 1 or more, found {steps} and {tasks}.")


def _outer(
    method: str,
    network: nn.Module,
    sampler: Sampler,
    step: Callable[[Tasks, float], Tensor],
    each: Cost,
    *,
    steps: int,
    tasks: int,
    run: Run,
) -> Learnt:
    """Tasks, steps on them, and a row now and then."""
    generator, start = run.generator(0), time.perf_counter()
    rows: list[Mapping[str, Any]] = []
    total, count = 0.0, 0
    network.eval()
    with runtime.keep_memory():
        for done in range(steps):
            loss = float(step(sampler(tasks, generator).to(run.device), done / steps))
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss became NaN or infinite at step {done + 1} of {steps}. Lower the "
                    f"inner rate, or take fewer inner steps; then lower the outer rate."
                )
            total, count = total + loss, count + 1
            if (done + 1) % max(1, steps // _ROWS) == 0 or done + 1 == steps:
                cost = each * (done + 1)
                rows.append(
                    {
                        "step": done + 1,
                        "loss": total / count,
                        "seconds": time.perf_counter() - start,
                        "forward": cost.forward,
                        "backward": cost.backward,
                        "curvature": cost.curvature,
                    }
                )
                total, count = 0.0, 0
    return Learnt(method, pd.DataFrame(rows), tasks, each * steps)
