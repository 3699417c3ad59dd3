"""Few-shot classification: classifiers on episodes, and what their accuracy is worth.

From a bank of features to a result::

    split = tl.episodes.split_classes(dogs.classes, validation=20, test=30)
    episodes = split.pools(dogs).test.episodes(10_000, ways=5, shots=5, queries=15)
    print(tl.fewshot.measure(tl.fewshot.nearest_centroid, episodes))

A *classifier* is any function of a batch of episodes, support (b, N, K, d) and queries (b, M, d),
to scores (b, M, N): :func:`nearest_centroid`, :func:`cosine`,
:func:`matching`, :func:`nearest_neighbour`, :func:`logistic_regression`, :func:`baseline_plus`, and
:func:`soft_kmeans`, which looks at all queries together. :func:`fit` trains a network on episodes.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers import _newton, _randomness, models, runtime
from tlhelpers.episodes import ClassSplit, Episodes, Pool, embedding
from tlhelpers.evaluate import Estimate, mean_interval
from tlhelpers.runtime import Run
from tlhelpers.train import COLUMNS, Augment, History

Classifier = Callable[[Tensor, Tensor], Tensor]
"""From support (b, N, K, ...) and queries (b, M, ...) to scores (b, M, N), higher is likelier."""

STATISTICS = ("running", "episode")

_LEVEL = 0.95
_DEPENDS = 1e-4  # of the largest score: rounding moves scores by less

# --- classifiers ------------------------------------------------------------------------------


def prototypes(support: Tensor) -> Tensor:
    """The mean of each class: (b, N, K, d) to (b, N, d).

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> support = torch.tensor([[[[0.0, 0.0], [2.0, 0.0]], [[10.0, 0.0], [12.0, 0.0]]]])
        >>> support.shape  # 1 episode, 2 ways, 2 shots, 2 features
        torch.Size([1, 2, 2, 2])
        >>> tl.fewshot.prototypes(support)
        tensor([[[ 1.,  0.],
                 [11.,  0.]]])
    """
    return support.mean(dim=2)


def nearest_centroid(support: Tensor, query: Tensor) -> Tensor:
    r"""Minus the squared distance to each prototype: prototypical networks' classifier.

    :math:`s_c = -\|q - p_c\|^2` with the prototype :math:`p_c`, the mean of the class's support.

    Source: Snell, Swersky and Zemel (2017), Prototypical Networks for Few-shot Learning; on frozen
    features Mensink et al. (2013), Distance-Based Image Classification.

    Args:
        support: (b, N, K, d).
        query: (b, M, d).

    Returns:
        (b, M, N).

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> support = torch.tensor([[[[0.0, 0.0], [2.0, 0.0]], [[10.0, 0.0], [12.0, 0.0]]]])
        >>> tl.fewshot.nearest_centroid(support, torch.tensor([[[4.0, 0.0]]]))
        tensor([[[ -9., -49.]]])
    """
    weight, bias = prototype_layer(support)
    return query @ weight.mT + bias[:, None] - query.square().sum(dim=-1, keepdim=True)


def prototype_layer(support: Tensor) -> tuple[Tensor, Tensor]:
    r"""The linear layer that :func:`nearest_centroid` is.

    :math:`-\|q - p_c\|^2 = 2 p_c \cdot q - \|p_c\|^2 - \|q\|^2`, and the last term is the same
    for all classes: it changes neither the order of the scores nor their softmax.

    Args:
        support: (b, N, K, d).

    Returns:
        weight (b, N, d), :math:`2 p_c`, and bias (b, N), :math:`-\|p_c\|^2`.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> support = torch.tensor([[[[0.0, 0.0], [2.0, 0.0]], [[10.0, 0.0], [12.0, 0.0]]]])
        >>> query = torch.tensor([[[4.0, 0.0]]])
        >>> weight, bias = tl.fewshot.prototype_layer(support)
        >>> query @ weight.mT + bias[:, None] - query.square().sum()
        tensor([[[ -9., -49.]]])
    """
    p = prototypes(support)
    return 2 * p, -p.square().sum(dim=-1)


def cosine(support: Tensor, query: Tensor, *, scale: float = 10.0) -> Tensor:
    """The cosine between a query and each class's mean direction, times ``scale``.

    The mean is that of the support features scaled to length 1.

    Source: Qi, Brown and Lowe (2018), Low-Shot Learning with Imprinted Weights.

    Args:
        support: (b, N, K, d).
        query: (b, M, d).
        scale: what cosines are multiplied with; it matters to the softmax, not to the order.

    Returns:
        (b, M, N).

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> support = torch.tensor([[[[1.0, 0.0]], [[0.0, 9.0]]]])
        >>> query = torch.tensor([[[3.0, 4.0], [0.3, 0.4]]])
        >>> tl.fewshot.cosine(support, query).round(decimals=2)
        tensor([[[6., 8.],
                 [6., 8.]]])
    """
    directions = F.normalize(prototypes(F.normalize(support, dim=-1)), dim=-1)
    return scale * F.normalize(query, dim=-1) @ directions.mT


def matching(support: Tensor, query: Tensor, *, scale: float = 10.0) -> Tensor:
    r"""Attention over the support: matching networks, without their context embeddings.

    Each support example gets the weight :math:`\operatorname{softmax}(\text{scale} \cos(q, x_i))`,
    and a class the sum of the weights of its examples; the scores are logarithms of these sums.

    Source: Vinyals et al. (2016), Matching Networks for One Shot Learning, with a scale of 1.

    Args:
        support: (b, N, K, d).
        query: (b, M, d).
        scale: the larger, the more the nearest examples count.

    Returns:
        (b, M, N) log probabilities.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> support = torch.tensor([[[[1.0, 0.0]], [[0.0, 9.0]]]])
        >>> query = torch.tensor([[[3.0, 4.0]]])
        >>> tl.fewshot.matching(support, query).exp().round(decimals=2)
        tensor([[[0.1200, 0.8800]]])
    """
    ways, shots = support.shape[1:3]
    keys = F.normalize(support, dim=-1).flatten(1, 2)
    attention = (scale * F.normalize(query, dim=-1) @ keys.mT).log_softmax(dim=-1)
    return attention.unflatten(-1, (ways, shots)).logsumexp(dim=-1)


def nearest_neighbour(support: Tensor, query: Tensor) -> Tensor:
    """Minus the squared distance to the nearest support example of each class.

    Source: Cover and Hart (1967), Nearest neighbor pattern classification.

    Args:
        support: (b, N, K, d).
        query: (b, M, d).

    Returns:
        (b, M, N).

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> support = torch.tensor([[[[0.0, 0.0], [2.0, 0.0]], [[10.0, 0.0], [12.0, 0.0]]]])
        >>> tl.fewshot.nearest_neighbour(support, torch.tensor([[[4.0, 0.0]]]))
        tensor([[[ -4., -36.]]])
    """
    ways, shots = support.shape[1:3]
    each = nearest_centroid(support.reshape(len(support), ways * shots, 1, -1), query)
    return each.unflatten(-1, (ways, shots)).amax(dim=-1)


def logistic_regression(support: Tensor, query: Tensor, *, ridge: float = 0.01) -> Tensor:
    """Logits of a logistic regression fitted on each episode's support, see :func:`logistic_layer`.

    Source: Tian et al. (2020), Rethinking Few-Shot Image Classification: a Good Embedding Is All
    You Need?, on features of length 1.

    Args:
        support: (b, N, K, d).
        query: (b, M, d).
        ridge: the ridge weight λ.

    Returns:
        (b, M, N).

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> support = torch.tensor([[[[0.0, 0.0], [2.0, 0.0]], [[10.0, 0.0], [12.0, 0.0]]]])
        >>> query = torch.tensor([[[4.0, 0.0], [6.0, 0.0]]])
        >>> tl.fewshot.logistic_regression(support, query).softmax(dim=-1).round(decimals=1)
        tensor([[[0.9000, 0.1000],
                 [0.5000, 0.5000]]])
    """
    weight, bias = logistic_layer(support, ridge=ridge)
    return query @ weight.mT + bias[:, None]


def logistic_layer(support: Tensor, *, ridge: float = 0.01) -> tuple[Tensor, Tensor]:
    r"""Fit a multinomial logistic regression on every episode's support, all of them at once.

    Minimises the mean cross-entropy plus :math:`\tfrac\lambda2 \|W\|^2`; in scikit-learn
    ``LogisticRegression(C=1 / (λ N K))`` for N > 2, and ``C=2 / (λ N K)`` for N = 2. At the
    minimum the weights are combinations of the support features, :math:`W = A^\top X`, so only the
    N K × N numbers of A are sought, by Newton's method with conjugate gradients; none of its
    matrices is larger than N K × N K, whatever d.

    Args:
        support: (b, N, K, d).
        ridge: the ridge weight λ, above 0: few examples in many dimensions can always be
            separated, and without it the weights would grow for ever.

    Returns:
        weight (b, N, d) and bias (b, N).

    Raises:
        ValueError: if the ridge weight is not above 0.

    Warns:
        RuntimeWarning: if some fits stopped short of their tolerance.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> support = torch.randn(100, 5, 1, 64, generator=torch.Generator().manual_seed(0))
        >>> for ridge in (0.01, 1.0):
        ...     weight, bias = tl.fewshot.logistic_layer(support, ridge=ridge)
        ...     print(weight.shape, round(float(weight.norm(dim=-1).mean()), 1))
        torch.Size([100, 5, 64]) 0.8
        torch.Size([100, 5, 64]) 0.3
    """
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge should be above 0, found {ridge}.")
    x = support.flatten(1, 2)
    centre = x.mean(dim=1, keepdim=True)  # it moves the bias alone, and speeds up the descent
    x = x - centre
    one_hot = torch.eye(support.shape[1]).repeat_interleave(support.shape[2], dim=0)
    a, bias = _newton.fit(x @ x.mT, one_hot.to(x), ridge)
    weight = a.mT @ x
    return weight, bias - (weight * centre).sum(dim=-1)


class CosineHead(nn.Linear):
    """A linear head without bias whose logits are cosines times a scale: Baseline++.

    Trained in place of a network's linear head (``network.head = CosineHead(64, 52)``, then
    ``train.fit``), it draws the features of a class towards one direction.

    Source: Chen et al. (2019), A Closer Look at Few-shot Classification.

    Args:
        features: width of the features, d.
        classes: number of classes, m.
        scale: what cosines are multiplied with.
        seed: of the weights.

    >>> CosineHead(3, 2)(torch.ones(1, 3)).abs().max() <= 10
    tensor(True)
    """

    def __init__(self, features: int, classes: int, *, scale: float = 10.0, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            super().__init__(features, classes, bias=False)
        self.scale = scale
        nn.init.normal_(self.weight, generator=Run(seed).generator(0))

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) features to (n, m) logits."""
        return self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


def baseline_plus(
    support: Tensor, query: Tensor, *, scale: float = 10.0, steps: int = 50, lr: float = 0.05
) -> Tensor:
    """A cosine classifier trained on each episode's support: the second stage of Baseline++.

    Cross-entropy of the scaled cosines, minimised by full-batch Adam, all episodes at once. The
    weights start at the mean directions of :func:`cosine`; the paper starts at random, takes
    batches of 4, and 100 steps of SGD.

    Source: Chen et al. (2019), A Closer Look at Few-shot Classification.

    Args:
        support: (b, N, K, d).
        query: (b, M, d).
        scale: what cosines are multiplied with.
        steps: of Adam; 0 leaves :func:`cosine`.
        lr: the learning rate; weights start with length 1.

    Returns:
        (b, M, N).

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> support = torch.tensor([[[[1.0, 0.0]], [[0.6, 0.8]]]])
        >>> query = torch.tensor([[[0.9, 0.1]]])
        >>> for steps in (0, 50):
        ...     scores = tl.fewshot.baseline_plus(support, query, steps=steps)
        ...     print([round(p, 2) for p in scores.softmax(dim=-1).flatten().tolist()])
        [0.96, 0.04]
        [1.0, 0.0]
    """
    x = F.normalize(support.detach(), dim=-1)
    weight = F.normalize(prototypes(x), dim=-1)
    x = x.flatten(1, 2)
    one_hot = torch.eye(support.shape[1]).repeat_interleave(support.shape[2], dim=0).to(x)
    with torch.enable_grad():
        weight.requires_grad_()
        adam = torch.optim.Adam([weight], lr=lr)
        for _ in range(steps):
            log_p = (scale * x @ F.normalize(weight, dim=-1).mT).log_softmax(dim=-1)
            # A mean within an episode and a sum over episodes, which do not touch one another.
            loss = -(log_p * one_hot).sum() / len(one_hot)
            (weight.grad,) = torch.autograd.grad(loss, [weight])
            adam.step()
    return scale * F.normalize(query, dim=-1) @ F.normalize(weight.detach(), dim=-1).mT


def soft_kmeans(support: Tensor, query: Tensor, *, steps: int = 1) -> Tensor:
    """Prototypes moved by the queries themselves: transductive.

    Each step gives every query to the classes in shares, the softmax of minus its squared
    distances, and takes the mean of support and shares anew. All queries have to be there
    together, so this is another, easier task than to classify them one by one. With as many
    queries of each class as of any other, as episodes have them, it is easier still.

    Source: Ren et al. (2018), Meta-Learning for Semi-Supervised Few-Shot Classification.

    Args:
        support: (b, N, K, d).
        query: (b, M, d).
        steps: refinements; 0 leaves :func:`nearest_centroid`.

    Returns:
        (b, M, N).

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> support = torch.tensor([[[[0.0, 0.0]], [[4.0, 0.0]]]])
        >>> query = torch.tensor([[[2.2, 0.0], [5.5, 0.0], [6.0, 0.0], [6.5, 0.0]]])
        >>> tl.fewshot.soft_kmeans(support, query)[0, 0].argmax()
        tensor(0)
        >>> tl.fewshot.soft_kmeans(support, query[:, :1])[0, 0].argmax()  # the same query alone
        tensor(1)
    """
    shots, centres = support.shape[2], prototypes(support)
    start = centres * shots
    for _ in range(steps):
        shares = nearest_centroid(centres[:, :, None], query).softmax(dim=-1)  # (b, M, N)
        weight = shots + shares.sum(dim=1)[:, :, None]
        centres = (start + shares.mT @ query) / weight
    return nearest_centroid(centres[:, :, None], query)


# --- networks in episodes ---------------------------------------------------------------------


class BatchStatistics(nn.Module):
    """A BatchNorm layer that normalises by the batch at hand in training and evaluation alike.

    It has the weight and bias of the layer it stands for, and keeps no running statistics.

    Args:
        norm: the BatchNorm layer; its weight and bias are shared, not copied.

    Attributes:
        fixed: None, or (mean, variance) to normalise by instead, each with one value a channel.
        keeps: whether to fix the statistics of the next batch, for those that come after it.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> layer = tl.fewshot.BatchStatistics(torch.nn.BatchNorm1d(1)).eval()
        >>> [round(v) for v in layer(torch.tensor([[90.0], [110.0]])).flatten().tolist()]
        [-1, 1]
        >>> [round(v) for v in layer(torch.tensor([[90.0], [70.0]])).flatten().tolist()]
        [1, -1]
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.fixed: tuple[Tensor, Tensor] | None = None
        self.keeps = False

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, ...) to the same shape."""
        if self.fixed is None:
            variance, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)
            if self.keeps:
                self.fixed = mean, variance
        else:
            mean, variance = self.fixed
        factor = (variance + self.eps).rsqrt()
        if self.weight is not None:
            factor = factor * self.weight
        shift = -mean * factor if self.bias is None else self.bias - mean * factor
        shape = (-1, *(1,) * (x.ndim - 2))
        return x * factor.view(shape) + shift.view(shape)


def with_batch_statistics(network: nn.Module) -> nn.Module:
    """A copy of the network whose BatchNorm layers are :class:`BatchStatistics`.

    The copy is in evaluation mode. The names of its parameters are those of the network.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet(weights="letters").eval()
        >>> x = tl.datasets.digits().train.x[:10]
        >>> for one in (network, tl.fewshot.with_batch_statistics(network)):
        ...     print(torch.allclose(one(x)[:5], one(x[:5]), atol=1e-3))
        True
        False
    """
    twin = copy.deepcopy(network)
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(module, name, BatchStatistics(child))
    return twin.eval()


def on_images(
    classifier: Classifier, network: nn.Module, *, statistics: str = "running"
) -> Classifier:
    """A classifier of images: they go through the network, and its features to ``classifier``.

    ``statistics="running"`` is evaluation mode; ``episodes.embedded(network)`` is the same, faster.
    ``statistics="episode"`` is the trap of a network that was left in training mode: BatchNorm
    normalises by all support and query images of the episode together, so each query is
    classified with the help of the others. That is transductive, and :func:`measure` says so.

    Args:
        classifier: of features.
        network: see :meth:`~tlhelpers.episodes.Pool.embedded`; it is left as it is.
        statistics: ``"running"`` or ``"episode"``.

    Raises:
        ValueError: if ``statistics`` is neither.

    Source: Bronskill et al. (2020), TaskNorm: Rethinking Batch Normalization for Meta-Learning.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits().train
        >>> pool = tl.episodes.Pool(digits.x, digits.y, name="digits")
        >>> episodes = pool.episodes(10, ways=5, shots=1, queries=3)
        >>> network = tl.models.small_resnet(weights="letters")
        >>> centroid = tl.fewshot.nearest_centroid
        >>> for statistics in ("running", "episode"):
        ...     classifier = tl.fewshot.on_images(centroid, network, statistics=statistics)
        ...     print(statistics, tl.fewshot.measure(classifier, episodes).transductive)
        running False
        episode True
    """
    if statistics not in STATISTICS:
        raise ValueError(
            f"statistics should be one of {', '.join(STATISTICS)}, found {statistics!r}."
        )
    twin = (
        with_batch_statistics(network) if statistics == "episode" else copy.deepcopy(network).eval()
    )
    features = torch.vmap(embedding(twin))
    device = next((p.device for p in twin.parameters()), None)

    def classify(support: Tensor, query: Tensor) -> Tensor:
        ways, shots = support.shape[1:3]
        embedded = features(torch.cat([support.flatten(1, 2), query], dim=1).to(device))
        few, rest = embedded.split([ways * shots, query.shape[1]], dim=1)
        return classifier(few.unflatten(1, (ways, shots)), rest)

    classify.__name__ = f"{_name(classifier)}, {statistics} statistics"
    return classify


def fit(
    network: nn.Module,
    pool: Pool,
    *,
    ways: int,
    shots: int,
    queries: int,
    classifier: Classifier = nearest_centroid,
    steps: int = 500,
    batch: int = 1,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    augment: Augment | None = None,
    validation: Episodes | None = None,
    validate_every: int | None = None,
    run: Run | None = None,
) -> History:
    """Train a network on episodes, in place: prototypical networks, matching networks.

    A step draws episodes of the pool, embeds their images in one pass, classifies the queries with
    the classifier, and follows the gradient of their mean cross-entropy: AdamW, its rate falling
    to 0 along a cosine. In training BatchNorm normalises by all images of a step, as papers do;
    afterwards the network is in evaluation mode, where it normalises by its running statistics.
    With validation episodes the weights of the best evaluation on them, by accuracy, are restored.
    Everything random comes from ``run.seed``, and the global random state is left as it was.

    Args:
        network: its features are those of :meth:`~tlhelpers.episodes.Pool.embedded`.
        pool: the images of the meta-train classes.
        ways, shots, queries: of the training episodes.
        classifier: differentiable: :func:`nearest_centroid` makes it a prototypical network,
            :func:`matching` a matching network.
        steps: of the optimiser.
        batch: episodes in a step.
        lr: the learning rate at the start.
        weight_decay: see :class:`~tlhelpers.train.Recipe`.
        augment: ``(images, generator) -> images``, on support and queries alike.
        validation: episodes of the meta-validation classes, shaped as those of the test.
        validate_every: steps between two evaluations; None for ten in all.
        run: seed and device; None for seed 0 on the best device.

    Returns:
        a row for each evaluation, see :class:`~tlhelpers.train.History`: its columns on validation
        are of the episodes, and ``epoch`` counts passes' worth of images.

    Raises:
        ValueError: if the pool has too few classes or examples, or shares a class with
            validation.
        FloatingPointError: if the loss becomes NaN or infinite.

    Source: Snell, Swersky and Zemel (2017); Vinyals et al. (2016).

    Example:
        >>> import tlhelpers as tl
        >>> letters = tl.datasets.glyphs(list("ABCDEFGH"), per_class=12).train
        >>> pool = tl.episodes.Pool(letters.x, letters.y, name="letters")
        >>> network = tl.models.small_resnet()
        >>> history = tl.fewshot.fit(
        ...     network, pool, ways=4, shots=1, queries=2, steps=20, validate_every=10
        ... )
        >>> history.step.tolist(), history.train_loss.is_monotonic_decreasing
        ([10, 20], True)
    """
    run = runtime.default(run)
    _require_training(pool, validation, steps, batch)
    drawn = pool.episodes(
        steps * batch, ways=ways, shots=shots, queries=queries, generator=run.generator(0)
    )
    every = validate_every or max(1, -(-steps // 10))
    images = batch * ways * (shots + queries)
    noise = run.generator(1)
    network.to(run.device)
    optimizer = torch.optim.AdamW(models.param_groups(network, lr=lr, weight_decay=weight_decay))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rows: list[dict[str, float]] = []
    recent: list[tuple[float, float]] = []  # loss and accuracy of the steps since the last row
    best, best_top1 = _state(network), -1.0
    start, core_start = time.perf_counter(), time.process_time()
    with _randomness.global_state_kept(run.device), runtime.keep_memory():
        _randomness.seed_dropout(run.seed, run.device)
        for step in range(1, steps + 1):
            rate = float(schedule.get_last_lr()[0])
            part = drawn[(step - 1) * batch : step * batch]
            recent.append(_step(network, classifier, part, optimizer, augment, noise))
            if not math.isfinite(recent[-1][0]):
                network.load_state_dict(best)
                raise FloatingPointError(
                    f"the loss became NaN or infinite at step {step} of {steps}, at a learning "
                    f"rate of {rate:.3g}. The network has the best weights so far. Lower lr, or "
                    f"look for NaN in the images."
                )
            schedule.step()
            if step % every and step < steps:
                continue
            judged = (math.nan, math.nan)
            if validation is not None:
                judged = _validate(classifier, validation.embedded(network))
            passes = -(-step * images // len(pool))
            row = (passes, step, *np.mean(recent, axis=0), *judged, rate)
            spent = time.perf_counter() - start, time.process_time() - core_start
            rows.append(dict(zip(COLUMNS, (*row, *spent), strict=True)))
            recent.clear()
            if not judged[1] <= best_top1:  # without validation the last is the best
                best, best_top1 = _state(network), judged[1]
    network.load_state_dict(best)
    history = History(rows, columns=list(COLUMNS)).astype({"epoch": int, "step": int})
    history.monitor, history.stopped = "top1", f"Ran all {steps:,} steps."
    return history


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def _step(
    network: nn.Module,
    classifier: Classifier,
    part: Episodes,
    optimizer: torch.optim.Optimizer,
    augment: Augment | None,
    noise: torch.Generator,
) -> tuple[float, float]:
    """One step on some episodes, all their images in one pass: the loss and accuracy before it.

    The network is in training mode for the step alone.
    """
    device = next(network.parameters()).device
    images = torch.cat([part.support, part.query], dim=2).to(device)  # (b, N, K + Q, ...)
    flat = images.flatten(0, 2)
    network.train()
    try:
        features = embedding(network)(augment(flat, noise) if augment is not None else flat)
        features = features.unflatten(0, tuple(images.shape[:3]))
        few, rest = features.split([part.shots, part.queries], dim=2)
        scores = classifier(few, rest.flatten(1, 2)).flatten(0, 1)
        labels = part.labels.repeat(len(part)).to(device)
        loss = F.cross_entropy(scores, labels)
        if loss.isfinite():
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    finally:
        network.eval()
    return loss.item(), (scores.argmax(dim=1) == labels).float().mean().item()


def _validate(classifier: Classifier, episodes: Episodes) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    found = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for part in episodes.chunks():
            scores = classifier(part.support, part.query.flatten(1, 2)).flatten(0, 1)
            labels = part.labels.repeat(len(part)).to(scores.device)
            right = (scores.argmax(dim=1) == labels).sum().item()
            found += torch.tensor(
                [F.cross_entropy(scores, labels, reduction="sum").item(), right],
                dtype=torch.float64,
            )
    loss, top1 = (found / (len(episodes) * len(episodes.labels))).tolist()
    return loss, top1


def _require_training(pool: Pool, validation: Episodes | None, steps: int, batch: int) -> None:
    if steps < 1 or batch < 1:
        raise ValueError(f"steps and batch should be 1 or more, found {steps} and {batch}.")
    if validation is None:
        return
    try:  # the check of a class split, with the classes chosen on in the place of the test
        ClassSplit(train=pool.classes, validation=(), test=validation.pool.classes)
    except ValueError as error:
        raise ValueError(
            f"{error} Classes are told apart by name: where a number means another class in the "
            f"other pool, name them with Pool(..., classes=...)."
        ) from None


# --- what accuracy is worth -------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A classifier's accuracy on episodes, made by :func:`measure`.

    Attributes:
        name: of the classifier.
        pool: the name of the pool.
        class_names: m names of the pool's classes.
        shots: labelled examples a class.
        queries: queries a class.
        transductive: whether the scores of a query depend on the other queries.
        correct: (b, N) the share of right queries, for each episode and way.
        classes: (b, N) which class each way is.
        digest: of the episodes; results with the same one can be compared pair by pair.
    """

    name: str
    pool: str
    class_names: tuple[str, ...]
    shots: int
    queries: int
    transductive: bool
    correct: np.ndarray
    classes: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.correct)

    def __repr__(self) -> str:
        setting = "TRANSDUCTIVE" if self.transductive else "inductive"
        return (
            f"{self.name} on {self.pool} ({len(self.class_names)} classes), {self.ways}-way "
            f"{self.shots}-shot, {len(self):,} episodes: {self.accuracy} over episodes, {setting}"
        )

    @property
    def ways(self) -> int:
        """Classes in an episode, N."""
        return self.correct.shape[1]

    @property
    def per_episode(self) -> np.ndarray:
        """(b,) the accuracy of each episode."""
        return self.correct.mean(axis=1)

    @property
    def accuracy(self) -> Estimate:
        """The mean over episodes, with a 95 % interval over episodes.

        It tells how far more episodes *of these classes* would move the mean, and with enough
        episodes it shrinks to nothing. It does not cover the choice of the classes, nor that of
        the examples in the pool, nor the seed of the network: see :attr:`over_classes`.
        """
        return mean_interval(self.per_episode)

    @property
    def over_classes(self) -> Estimate:
        r"""The same mean, with a 95 % interval over the choice of the meta-test classes.

        Episodes share classes, so they are not independent draws from the world of classes: the
        mean over all N-subsets of m classes is a U-statistic of the m classes. With the mean
        :math:`A_{-c}` of the episodes without class c, the jackknife's variance is
        :math:`\frac{m - 1}{m} \sum_c (A_{-c} - \bar A)^2`, too large on average rather than too
        small, and the interval takes Student's t with m - 1 degrees of freedom. Few episodes
        widen it a little more. The classes count as a random draw of such classes.

        Source: Efron and Stein (1981), The Jackknife Estimate of Variance.

        Raises:
            ValueError: if some class stands in every episode, as where N is m.
        """
        return _over_classes(self.per_episode, self.classes, len(self.class_names), "%")

    def to_frame(self) -> pd.DataFrame:
        """A row for each class: in how many episodes it was, and the share of its queries right."""
        m = len(self.class_names)
        count = np.bincount(self.classes.ravel(), minlength=m)
        right = np.bincount(self.classes.ravel(), self.correct.ravel(), minlength=m)
        share = right / np.where(count > 0, count, np.nan)
        return pd.DataFrame({"class": self.class_names, "episodes": count, "accuracy": share})


def measure(classifier: Classifier, episodes: Episodes, *, name: str | None = None) -> Result:
    """The accuracy of a classifier on episodes.

    The classifier gets the queries in one row, (b, N Q, ...), and its highest score counts. Whether
    it is transductive is not taken on trust: for some episodes a query is classified once
    among all the others and once alone, and if its scores differ the result says so.

    Args:
        classifier: a function of (b, N, K, ...) support and (b, M, ...) queries to (b, M, N).
        episodes: two or more; 10,000 or more for a table.
        name: of the result; by default the classifier's.

    Raises:
        ValueError: if scores have another shape, or are NaN.

    Example:
        >>> import tlhelpers as tl
        >>> dogs = tl.features.load("stanford_dogs/mobilenet_v2")
        >>> split = tl.episodes.split_classes(dogs.classes, validation=20, test=30)
        >>> episodes = split.pools(dogs).test.episodes(200, ways=5, shots=1, queries=5)
        >>> result = tl.fewshot.measure(tl.fewshot.nearest_centroid, episodes)
        >>> result.accuracy, result.transductive
        (90.4 % [89.1, 91.6], False)
        >>> result.over_classes
        90.4 % [86.8, 94.0]
    """
    if len(episodes) < 2:
        raise ValueError(f"an interval needs 2 episodes or more, found {len(episodes)}.")
    right = []
    with torch.no_grad(), runtime.keep_memory():
        transductive = is_transductive(classifier, episodes)
        for part in episodes.chunks():
            scores = _checked_scores(classifier, part)
            hit = scores.argmax(dim=-1).cpu() == part.labels
            right.append(hit.view(len(part), part.ways, part.queries).float().mean(dim=2))
    return Result(
        name=_name(classifier) if name is None else name,
        pool=episodes.pool.name,
        class_names=episodes.pool.classes,
        shots=episodes.shots,
        queries=episodes.queries,
        transductive=transductive,
        correct=torch.cat(right).double().numpy(),
        classes=episodes.classes.numpy(),
        digest=episodes.digest,
    )


def is_transductive(classifier: Classifier, episodes: Episodes) -> bool:
    """Whether a query's scores depend on the other queries; found out on a few episodes.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits().train
        >>> pool = tl.episodes.Pool(digits.x.flatten(1), digits.y)
        >>> episodes = pool.episodes(10, ways=5, shots=1, queries=3)
        >>> tl.fewshot.is_transductive(tl.fewshot.nearest_centroid, episodes)
        False
        >>> tl.fewshot.is_transductive(tl.fewshot.soft_kmeans, episodes)
        True
    """
    part = episodes[:8]
    support, query = part.support, part.query.flatten(1, 2)
    with torch.no_grad():
        together = classifier(support, query)[:, :1]
        alone = classifier(support, query[:, :1])
    return bool((together - alone).abs().max() > _DEPENDS * together.abs().max())


def difference(a: Result, b: Result, *, over: str = "episodes") -> Estimate:
    """The accuracy of ``a`` minus that of ``b``, paired on the same episodes.

    What makes an episode hard for both cancels, so the interval is much narrower than those of the
    two results.

    Args:
        a, b: results on the same episodes, of features of any two networks.
        over: ``"episodes"``, see :attr:`Result.accuracy`, or ``"classes"``, see
            :attr:`Result.over_classes`.

    Raises:
        ValueError: if the episodes are not the same, or ``over`` is neither.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits().train
        >>> pool = tl.episodes.Pool(digits.x.flatten(1), digits.y, name="pixels")
        >>> episodes = pool.episodes(200, ways=5, shots=5, queries=5)
        >>> neighbour = tl.fewshot.measure(tl.fewshot.nearest_neighbour, episodes)
        >>> centroid = tl.fewshot.measure(tl.fewshot.nearest_centroid, episodes)
        >>> tl.fewshot.difference(neighbour, centroid)
        +2.0 points [+1.1, +2.8]
    """
    if a.digest != b.digest:
        raise ValueError(
            f"a paired difference needs the same episodes, but {a.name!r} and {b.name!r} were "
            f"measured on others. Draw them once and give them to both; "
            f"episodes.embedded(network) keeps them the same for another network."
        )
    gap = a.per_episode - b.per_episode
    if over == "episodes":
        return mean_interval(gap, unit="points")
    if over == "classes":
        return _over_classes(gap, a.classes, len(a.class_names), "points")
    raise ValueError(f'over should be "episodes" or "classes", found {over!r}.')


def _over_classes(values: np.ndarray, classes: np.ndarray, m: int, unit: str) -> Estimate:
    """The mean of (b,) values with the jackknife's interval over classes (b, N)."""
    ways = classes.shape[1]
    count = np.bincount(classes.ravel(), minlength=m)
    if (count == len(values)).any():
        raise ValueError(
            f"an interval over classes leaves out one class at a time, but some class stands in "
            f"all {len(values):,} episodes ({ways} ways of {m} classes). Hold out more classes, "
            f"or ask for fewer ways."
        )
    within = np.bincount(classes.ravel(), np.repeat(values, ways), minlength=m)
    without = (values.sum() - within) / (len(values) - count)
    error = math.sqrt((m - 1) / m * float(((without - without.mean()) ** 2).sum()))
    half = float(stats.t.ppf((1 + _LEVEL) / 2, m - 1)) * error
    mean = float(values.mean())
    low, high = mean - half, mean + half
    if unit == "%":
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(mean, low, high, unit=unit)


def _checked_scores(classifier: Classifier, part: Episodes) -> Tensor:
    scores = classifier(part.support, part.query.flatten(1, 2))
    expected = (len(part), part.ways * part.queries, part.ways)
    if tuple(scores.shape) != expected:
        raise ValueError(
            f"a classifier should return scores of shape (episodes, queries, ways), here "
            f"{expected}, found {tuple(scores.shape)}."
        )
    if scores.isnan().any():
        raise ValueError(
            f"{_name(classifier)} returned NaN for {int(scores.isnan().any(-1).sum()):,} queries. "
            f"Look at its settings, and at features of length 0."
        )
    return scores


def _name(classifier: Any) -> str:
    if isinstance(classifier, functools.partial):
        settings = ", ".join(f"{key} {value}" for key, value in classifier.keywords.items())
        return f"{_name(classifier.func)} ({settings})" if settings else _name(classifier.func)
    return getattr(classifier, "__name__", type(classifier).__name__)
