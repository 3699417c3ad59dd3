"""Images and sentences in one space: two towers, a contrastive loss, and heads made of words.

- :func:`two_towers` makes the networks, :func:`fit` trains them on pairs with :func:`info_nce`;
- :func:`class_embeddings` and :func:`zero_shot` make a classifier out of sentences;
- :func:`fit_head` fits a linear head to a few labelled embeddings, near a head of words or near
  nothing;
- :func:`information_bound`, :func:`loss_floor` and :func:`modality_gap` look into the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from scipy import optimize, special
from torch import Tensor, nn
from torch.nn import functional

from tlhelpers import _inference, evaluate, runtime
from tlhelpers.evaluate import Estimate
from tlhelpers.runtime import Run

LARGEST_SCALE = 100.0
"""The largest factor on cosines that :func:`fit` lets a model learn, as in CLIP."""


# --- towers -------------------------------------------------------------------------------


class WordEncoder(nn.Module):
    """The mean of a sentence's word vectors: it knows the words and not their order.

    Args:
        words: the vocabulary. Words are what blanks and commas separate; case counts.
        dim: length of the vectors.
        seed: of the vectors.

    Raises:
        ValueError: if there is no word, or one is there twice.

    >>> encoder = WordEncoder(("a", "bold", "alpha"), 8)
    >>> encoder(["a bold alpha", "alpha"]).shape
    torch.Size([2, 8])
    >>> encoder.unknown(["a tiny alpha"])
    ('tiny',)
    """

    def __init__(self, words: Sequence[str], dim: int, *, seed: int = 0) -> None:
        super().__init__()
        if not words or len(set(words)) < len(words):
            raise ValueError(f"a vocabulary has one word or more, each once; found {list(words)}.")
        self.words = tuple(words)
        self._number = {word: i for i, word in enumerate(words)}
        with torch.random.fork_rng(devices=[]):
            self.bag = nn.EmbeddingBag(len(words), dim, mode="mean")
        nn.init.normal_(self.bag.weight, std=dim**-0.5, generator=Run(seed).generator(15, 1))

    def forward(self, sentences: Sequence[str]) -> Tensor:
        """(n, dim) mean word vectors, not normalised; words that are unknown are passed over.

        Raises:
            ValueError: if no word of a sentence is known.
        """
        rows = [[i for w in split(s) if (i := self._number.get(w)) is not None] for s in sentences]
        if empty := [s for s, row in zip(sentences, rows, strict=True) if not row]:
            raise ValueError(
                f"no word of {empty[0]!r} is in the vocabulary of {len(self.words)} words. Use "
                f"words of the training sentences, such as {', '.join(self.words[:5])}."
            )
        device = self.bag.weight.device
        starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
        tokens = torch.tensor([i for row in rows for i in row], device=device)
        return self.bag(tokens, torch.as_tensor(starts, device=device))

    def unknown(self, sentences: Iterable[str]) -> tuple[str, ...]:
        """The words that are not in the vocabulary, sorted."""
        return tuple(sorted({w for s in sentences for w in split(s)} - set(self.words)))


def split(sentence: str) -> list[str]:
    """The words of a sentence, without its commas.

    Example:
        >>> import tlhelpers as tl
        >>> tl.contrastive.split("a bold, italic alpha")
        ['a', 'bold', 'italic', 'alpha']
    """
    return sentence.replace(",", " ").split()


def vocabulary(sentences: Iterable[str]) -> tuple[str, ...]:
    """All words of these sentences, sorted.

    Example:
        >>> import tlhelpers as tl
        >>> tl.contrastive.vocabulary(["a bold alpha", "an alpha, leaning"])
        ('a', 'alpha', 'an', 'bold', 'leaning')
    """
    return tuple(sorted({word for sentence in sentences for word in split(sentence)}))


def image_tower(dim: int, *, widths: Sequence[int] = (32, 64, 96), seed: int = 0) -> nn.Sequential:
    """Three convolutions, a mean over the image plane, and a linear map: (n, 1, h, w) to (n, dim).

    An eighth of the arithmetic of ``models.small_resnet``, so that a chapter can train it.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> tower = tl.contrastive.image_tower(64)
        >>> tower(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 64])
    """
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inputs, outputs, stride in zip((1, *widths), widths, (2, 2, 1), strict=False):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], dim))
        return nn.Sequential(*layers, *head)


class TwoTowers(nn.Module):
    """An image tower and a text tower that end in one space, and a learnt scale.

    Attributes:
        image: (n, ...) images to (n, d).
        text: a sequence of n sentences to (n, d).
        log_scale: the logarithm of the factor on cosines, 1 over the temperature.
    """

    def __init__(self, image: nn.Module, text: nn.Module, *, temperature: float = 0.07) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def scale(self) -> float:
        """The factor on cosines."""
        return float(self.log_scale.detach().exp())

    def embed_images(self, x: Tensor) -> Tensor:
        """(n, d) vectors of length 1."""
        return functional.normalize(self.image(x), dim=1)

    def embed_texts(self, sentences: Sequence[str]) -> Tensor:
        """(n, d) vectors of length 1."""
        return functional.normalize(self.text(sentences), dim=1)

    def forward(self, x: Tensor, sentences: Sequence[str]) -> Tensor:
        """(n, m) scaled cosines of n images with m sentences."""
        return self.log_scale.exp() * self.embed_images(x) @ self.embed_texts(sentences).T

    def __repr__(self) -> str:
        sizes = [sum(p.numel() for p in part.parameters()) for part in (self.image, self.text)]
        return (
            f"TwoTowers: {sizes[0]:,} parameters for images, {sizes[1]:,} for text, "
            f"cosines times {self.scale:.1f}"
        )


def two_towers(words: Sequence[str], *, dim: int = 64, seed: int = 0) -> TwoTowers:
    """An :func:`image_tower` and a :class:`WordEncoder` with random weights.

    Args:
        words: the vocabulary.
        dim: of the space that both end in.
        seed: of both.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> model = tl.contrastive.two_towers(("bold", "alpha"), dim=8)
        >>> model
        TwoTowers: 77,480 parameters for images, 16 for text, cosines times 14.3
        >>> model(torch.zeros(3, 1, 16, 16), ["alpha", "bold alpha"]).shape
        torch.Size([3, 2])
    """
    return TwoTowers(image_tower(dim, seed=seed), WordEncoder(words, dim, seed=seed))


# --- the loss -----------------------------------------------------------------------------


def info_nce(logits: Tensor, positives: Tensor | None = None) -> Tensor:
    """The symmetric contrastive loss: cross-entropy along the rows and along the columns.

    With several positives in a row, its target is spread evenly over them. Positives whose
    sentences are word for word the same change nothing: their logits are equal, so that an even
    target and a single one give the same loss.

    Source: van den Oord et al. (2018), Representation Learning with Contrastive Predictive Coding;
    Radford et al. (2021), Learning Transferable Visual Models From Natural Language Supervision.

    Args:
        logits: (n, n), image i with sentence j; the pairs are on the diagonal.
        positives: (n, n) booleans, which sentences belong to which images; None for the diagonal.

    Returns:
        a scalar, in nats.

    Raises:
        ValueError: if the logits are not square, the positives have another shape, or a row or a
            column has none.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> tl.contrastive.info_nce(torch.zeros(4, 4))
        tensor(1.3863)
        >>> tl.contrastive.info_nce(5 * torch.eye(4))
        tensor(0.0200)
    """
    n = len(logits)
    if logits.shape != (n, n) or n == 0:
        raise ValueError(f"logits should be square, (n, n), found {tuple(logits.shape)}.")
    if positives is None:
        target = torch.arange(n, device=logits.device)
        rows = functional.cross_entropy(logits, target)
        return (rows + functional.cross_entropy(logits.T, target)) / 2
    if positives.shape != (n, n) or positives.dtype != torch.bool:
        raise ValueError(
            f"positives should be ({n}, {n}) booleans, found {tuple(positives.shape)} of "
            f"{positives.dtype}."
        )
    shares = positives.to(logits)
    counts = shares.sum(1), shares.sum(0)
    if not (counts[0].all() and counts[1].all()):
        raise ValueError("each row and each column needs a positive; is the diagonal among them?")
    rows = functional.cross_entropy(logits, shares / counts[0][:, None])
    return (rows + functional.cross_entropy(logits.T, (shares / counts[1]).T)) / 2


def loss_floor(sentences: Sequence[str]) -> float:
    """The least that :func:`info_nce` can be on a batch in which sentences occur more than once.

    A sentence that stands there g times shares its probability with its copies, so that neither
    direction of its pair's loss falls below log g.

    Example:
        >>> import tlhelpers as tl
        >>> round(tl.contrastive.loss_floor(["alpha", "alpha", "beta"]), 3)
        0.462
    """
    counts = pd.Series(list(sentences)).value_counts()
    return float((counts * np.log(counts)).sum() / counts.sum())


class PairBatch(Protocol):
    """What :func:`fit` trains on, such as ``captions.Pairs``."""

    @property
    def x(self) -> Tensor: ...
    @property
    def sentences(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Plan:
    """How two towers are trained; see :func:`fit`.

    Attributes:
        steps: batches.
        batch_size: pairs in a batch; each is compared with all others.
        lr: the highest learning rate of AdamW, reached after a tenth of the steps and then lowered
            to 0 along a cosine.
        weight_decay: for the matrices; none for biases, norms and the scale.

    Example:
        >>> import tlhelpers as tl
        >>> tl.contrastive.Plan(steps=40)
        Plan(steps=40, batch_size=256, lr=0.01, weight_decay=0.01)
        >>> tl.contrastive.Plan(batch_size=1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: steps and lr are above 0, a batch has 2 pairs or more; found Plan(...
    """

    steps: int = 160
    batch_size: int = 256
    lr: float = 1e-2
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or not self.lr > 0 or self.weight_decay < 0:
            raise ValueError(
                f"steps and lr are above 0, a batch has 2 pairs or more; found {self}."
            )


def fit(
    model: TwoTowers,
    draw: Callable[[int, torch.Generator], Any],
    plan: Plan,
    run: Run | None = None,
    *,
    positives: Callable[[Any], Tensor | None] | None = None,
) -> pd.DataFrame:
    """Train two towers, in place, on fresh pairs.

    Args:
        model: is in evaluation mode afterwards.
        draw: from a number of pairs and a generator to a :class:`PairBatch`.
        plan: how.
        run: seed of the pairs, and device.
        positives: from a batch to (n, n) booleans; None for the diagonal alone.

    Returns:
        a row for each step: ``step``, ``loss`` in nats, ``scale``.

    Raises:
        FloatingPointError: if the loss is not finite.

    Example:
        >>> import tlhelpers as tl
        >>> pairs = tl.captions.draw(64, tl.runtime.Run().generator())
        >>> model = tl.contrastive.two_towers(tl.contrastive.vocabulary(pairs.sentences), dim=16)
        >>> plan = tl.contrastive.Plan(steps=20)
        >>> history = tl.contrastive.fit(model, lambda n, generator: pairs, plan)
        >>> history.loss.iloc[[0, -1]].round().tolist()  # chance is log 64 = 4.2
        [8.0, 3.0]
    """
    run = runtime.default(run)

    def loss(batch: Any) -> Tensor:
        belongs = positives(batch) if positives is not None else None
        logits = model(batch.x.to(run.device), batch.sentences)
        with torch.no_grad():
            scales.append(model.scale)
        return info_nce(logits, None if belongs is None else belongs.to(run.device))

    def limit() -> None:
        with torch.no_grad():
            model.log_scale.clamp_(max=math.log(LARGEST_SCALE))

    scales: list[float] = []
    history = minimise(model, loss, draw, plan, run, after=limit)
    return history.assign(scale=scales)


def minimise(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    draw: Callable[[int, torch.Generator], Any],
    plan: Plan,
    run: Run | None = None,
    *,
    after: Callable[[], None] | None = None,
) -> pd.DataFrame:
    """Descend on the loss of fresh batches; the loop of :func:`fit`, for other losses too.

    Args:
        model: is trained in place, and is in evaluation mode afterwards.
        loss: from a batch to a scalar.
        draw: from a size and a generator to a batch.
        plan: how.
        run: seed of the batches, and device.
        after: called after each step.

    Returns:
        a row for each step: ``step`` and ``loss``.

    Raises:
        FloatingPointError: if the loss is not finite.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> def noisy_line(n, generator):
        ...     x = torch.randn(n, 1, generator=generator)
        ...     return x, 3 * x + 0.1 * torch.randn(n, 1, generator=generator)
        >>> def squared_error(batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        >>> model = torch.nn.Linear(1, 1)
        >>> plan = tl.contrastive.Plan(steps=100, lr=0.2, weight_decay=0.0)
        >>> cpu = tl.runtime.Run()
        >>> history = tl.contrastive.minimise(model, squared_error, noisy_line, plan, cpu)
        >>> len(history), round(model.weight.item())
        (100, 3)
    """
    run = runtime.default(run)
    model.to(run.device).train()
    generator = run.generator(15, 2)
    optimiser = torch.optim.AdamW(_groups(model, plan.weight_decay), lr=plan.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: _share(i, plan.steps))
    rows = []
    for step in runtime.progress(range(plan.steps)):
        value = loss(draw(plan.batch_size, generator))
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"the loss is {float(value.detach())} at step {step + 1}. Lower the learning rate."
            )
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        if after is not None:
            after()
        rows.append((step + 1, float(value.detach())))
    model.eval()
    return pd.DataFrame(rows, columns=["step", "loss"])


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        parts[parameter.ndim > 1].append(parameter)
    return [
        {"params": parts[True], "weight_decay": weight_decay},
        {"params": parts[False], "weight_decay": 0.0},
    ]


def _share(step: int, steps: int) -> float:
    """The share of the highest learning rate at a step, counted from 0."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


# --- embeddings ---------------------------------------------------------------------------


def embed(model: TwoTowers, x: Tensor, *, batch_size: int = 512) -> Tensor:
    """(n, d) embeddings of images, of length 1, in evaluation mode and on the CPU.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> model = tl.contrastive.two_towers(("alpha",), dim=8)
        >>> u = tl.contrastive.embed(model, torch.rand(100, 1, 16, 16))
        >>> u.shape, u.norm(dim=1).round(decimals=3).unique()
        (torch.Size([100, 8]), tensor([1.]))
    """
    with _inference.evaluating(model) as device:
        parts = [model.embed_images(part.to(device)).cpu() for part in x.split(batch_size)]
    return torch.cat(parts)


def class_embeddings(
    embed_texts: Callable[[Sequence[str]], Tensor], classes: Sequence[Sequence[str]]
) -> Tensor:
    """(m, d): for each class the mean of its sentences' embeddings, of length 1 again.

    Args:
        embed_texts: such as ``model.embed_texts``.
        classes: one or more sentences for each of m classes, as many for each.

    Raises:
        ValueError: if a class has no sentence, or not as many as the others.

    Example:
        >>> import tlhelpers as tl
        >>> embed = tl.contrastive.two_towers(("a", "bold", "alpha", "beta")).embed_texts
        >>> named = [["alpha", "a bold alpha"], ["beta", "a beta"]]
        >>> weight = tl.contrastive.class_embeddings(embed, named)
        >>> weight.shape, weight.norm(dim=1).round(decimals=3)
        (torch.Size([2, 64]), tensor([1., 1.]))
        >>> tl.contrastive.class_embeddings(embed, [["alpha"], []])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: each class should have as many sentences as the others, 1 or more; ...
    """
    counts = {len(sentences) for sentences in classes}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"each class should have as many sentences as the others, 1 or more; found "
            f"{sorted(counts)}. One string is not a list of sentences."
        )
    with torch.no_grad():
        each = embed_texts([text for sentences in classes for text in sentences]).float().cpu()
    mean = each.view(len(classes), counts.pop(), -1).mean(dim=1)
    return functional.normalize(mean, dim=1)


@dataclass(frozen=True, eq=False, repr=False)
class Head:
    """A linear classifier of embeddings; a predictor for ``evaluate``.

    Attributes:
        weight: (m, d).
        scale: the factor on the products.
        name: what it is called.
        ridge: how strongly it was held near its centre; infinite where nothing was fitted.
    """

    weight: Tensor
    scale: float
    name: str = "head"
    ridge: float = math.inf

    def __call__(self, u: Tensor) -> Tensor:
        """(n, d) embeddings to (n, m) logits."""
        return self.scale * u @ self.weight.T

    def __repr__(self) -> str:
        fitted = "from words alone" if math.isinf(self.ridge) else f"ridge {self.ridge:.2g}"
        return f"{self.name}: {len(self.weight)} classes, {fitted}"


def zero_shot(weight: Tensor, *, scale: float) -> Head:
    """A classifier out of class embeddings: the class whose words are nearest.

    Args:
        weight: (m, d), see :func:`class_embeddings`.
        scale: the model's factor on cosines.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> head = tl.contrastive.zero_shot(torch.eye(2), scale=10.0)
        >>> head
        zero-shot: 2 classes, from words alone
        >>> head(torch.tensor([[0.8, 0.6]])).softmax(dim=1).round(decimals=2)
        tensor([[0.8800, 0.1200]])
    """
    return Head(weight, scale, name="zero-shot")


def fit_head(
    u: Tensor,
    y: Tensor,
    *,
    centre: Tensor,
    ridge: float,
    scale: float,
    name: str = "head",
) -> Head:
    r"""The most probable head after a few labels, if weights lie around a centre beforehand.

    Minimises the sum over examples of the cross-entropy plus ``ridge / 2 * ‖W - centre‖²``. It is
    convex, with one minimum. With class embeddings as the centre it starts from words and leaves
    them as labels ask; with zeros it is a linear probe.

    Args:
        u: (n, d) embeddings.
        y: (n,) labels.
        centre: (m, d).
        ridge: above 0. It does not depend on n: more labels outvote it.
        scale: the factor on the products.
        name: what it is called.

    Raises:
        ValueError: if the ridge is not above 0, or the shapes do not fit.

    >>> centre = torch.eye(2)
    >>> head = fit_head(torch.eye(2), torch.tensor([1, 0]), centre=centre, ridge=1e6, scale=1.0)
    >>> torch.allclose(head.weight, centre, atol=1e-5)  # held tight
    True
    """
    m, d = centre.shape
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge should be a number above 0, found {ridge}.")
    if u.ndim != 2 or u.shape[1] != d or y.shape != (len(u),) or not len(u):
        raise ValueError(
            f"embeddings should be (n, {d}) with n labels, found {tuple(u.shape)} and "
            f"{tuple(y.shape)}."
        )
    if not 0 <= int(y.min()) <= int(y.max()) < m:
        raise ValueError(f"labels should lie in 0..{m - 1}, found up to {int(y.max())}.")
    x, start = scale * u.double().numpy(), centre.double().numpy()
    target = np.eye(m)[y.numpy()]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        moved = flat.reshape(m, d)
        logits = x @ (start + moved).T
        logs = logits - special.logsumexp(logits, axis=1, keepdims=True)
        gradient = (np.exp(logs) - target).T @ x + ridge * moved
        return -(target * logs).sum() + ridge / 2 * np.square(moved).sum(), gradient.ravel()

    found = optimize.minimize(
        objective, np.zeros(m * d), jac=True, method="L-BFGS-B", options={"maxiter": 500}
    )
    weight = torch.from_numpy(start + found.x.reshape(m, d)).to(centre)
    return Head(weight, scale, name=name, ridge=ridge)


RIDGES = tuple(10.0 ** (k / 2) for k in range(-4, 7))
"""The ridge weights that :func:`best_head` tries."""


def best_head(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    *,
    centre: Tensor,
    scale: float,
    ridges: Sequence[float] = RIDGES,
    name: str = "head",
) -> Head:
    """:func:`fit_head` with the ridge weight that has the lowest loss on validation.

    Args:
        train: embeddings and labels.
        validation: embeddings and labels.
        centre, scale, name: as for :func:`fit_head`.
        ridges: what is tried.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> words = torch.eye(2)
        >>> u = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(20, 1)
        >>> y = torch.tensor([0, 1]).repeat(20)
        >>> head = tl.contrastive.best_head((u[:2], y[:2]), (u, y), centre=words, scale=1.0)
        >>> head
        head: 2 classes, ridge 0.01
        >>> head(u).argmax(dim=1).eq(y).float().mean()
        tensor(1.)
    """
    u, y = validation
    heads = [
        fit_head(*train, centre=centre, ridge=ridge, scale=scale, name=name) for ridge in ridges
    ]
    return min(heads, key=lambda head: float(functional.cross_entropy(head(u), y)))


# --- looking inside -----------------------------------------------------------------------


def information_bound(model: TwoTowers, batches: Iterable[PairBatch]) -> Estimate:
    """At least so many nats do images and sentences say of each other: log n minus the loss.

    The bound holds in expectation, for pairs that are drawn independently of each other and that
    the model was not trained on; it cannot exceed log n. Batches are seen in evaluation mode,
    since a model that looks at the others in its batch is no fixed critic.

    Source: van den Oord et al. (2018), Representation Learning with Contrastive Predictive Coding.

    Args:
        model: the critic.
        batches: fresh ones, all with the same number of pairs.

    Returns:
        the mean over batches, with Student's t interval.

    Example:
        >>> import tlhelpers as tl
        >>> generator = tl.runtime.Run().generator()
        >>> batches = [tl.captions.draw(32, generator) for _ in range(3)]
        >>> words = tl.contrastive.vocabulary(text for pairs in batches for text in pairs.sentences)
        >>> untrained = tl.contrastive.two_towers(words, dim=16)
        >>> bound = tl.contrastive.information_bound(untrained, batches)
        >>> round(bound.value, 1)  # below 0, it says nothing
        -2.1
    """
    found = []
    for batch in batches:
        with _inference.evaluating(model) as device:
            loss = info_nce(model(batch.x.to(device), batch.sentences))
        found.append(math.log(len(batch.sentences)) - float(loss))
    return evaluate.mean_interval(found, unit="nats")


@dataclass(frozen=True)
class Gap:
    """How far images and sentences lie from each other as two clouds; see :func:`modality_gap`.

    Attributes:
        distance: between the two means.
        pair: mean distance of an image and its own sentence.
        apart: share of embeddings that a linear classifier, fitted to half of them, gives to the
            right modality.
    """

    distance: float
    pair: float
    apart: float

    def __str__(self) -> str:
        return (
            f"means {self.distance:.2f} apart, pairs {self.pair:.2f}; "
            f"{self.apart:.0%} told apart by a linear classifier"
        )

    __repr__ = __str__


def modality_gap(images: Tensor, texts: Tensor) -> Gap:
    """The distance of the mean image from the mean sentence, and what it is to be compared with.

    Source: Liang et al. (2022), Mind the Gap: Understanding the Modality Gap in Multi-modal
    Contrastive Representation Learning.

    Args:
        images: (n, d) embeddings of length 1.
        texts: (n, d) those of their sentences.

    Raises:
        ValueError: if the shapes differ, or n is below 4.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> import tlhelpers as tl
        >>> noise = torch.randn(2, 100, 2, generator=torch.Generator().manual_seed(0))
        >>> images = normalize(torch.tensor([1.0, 0.0]) + 0.1 * noise[0], dim=1)
        >>> texts = normalize(torch.tensor([0.0, 1.0]) + 0.1 * noise[1], dim=1)
        >>> tl.contrastive.modality_gap(images, texts)
        means 1.40 apart, pairs 1.40; 100% told apart by a linear classifier
    """
    from sklearn.linear_model import LogisticRegression

    if images.shape != texts.shape or images.ndim != 2 or len(images) < 4:
        raise ValueError(
            f"images and texts should be pairs, both (n, d) with n of 4 or more, found "
            f"{tuple(images.shape)} and {tuple(texts.shape)}."
        )
    both = torch.stack([images, texts]).double().numpy()
    half = len(images) // 2
    judge = LogisticRegression(max_iter=1000)
    judge.fit(np.concatenate(both[:, :half]), np.repeat([0, 1], half))
    rest = len(images) - half
    right = judge.predict(np.concatenate(both[:, half:])) == np.repeat([0, 1], rest)
    return Gap(
        distance=float(np.linalg.norm(both[0].mean(0) - both[1].mean(0))),
        pair=float(np.linalg.norm(both[0] - both[1], axis=1).mean()),
        apart=float(right.mean()),
    )


def closed_gap(images: Tensor, texts: Tensor, *, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Both kinds of embeddings, moved towards each other by half of ``delta``, of length 1 again.

    Args:
        images: (n, d).
        texts: (m, d).
        delta: (d,) mean image minus mean sentence, taken from other pairs.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> images, texts = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> tl.contrastive.closed_gap(images, texts, delta=torch.tensor([1.0, -1.0]))
        (tensor([[0.7071, 0.7071]]), tensor([[0.7071, 0.7071]]))
    """
    return (
        functional.normalize(images - delta / 2, dim=1),
        functional.normalize(texts + delta / 2, dim=1),
    )
