"""Federated averaging: one network for several owners of images, whose images stay where they are.

:func:`deal` hands labelled images out to clients, :func:`average` trains one network on all of them
without ever joining their images. :func:`compare` measures, on handwritten digits, what it is worth
to start from letters. It makes the record of chapter 19.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from tlhelpers import combine, datasets, evaluate, models, records
from tlhelpers.evaluate import Estimate
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Split

COMMAND = "python experiments/federated.py"
NAME = "glyphs/federated"
CLIENTS, K = 5, 10
ROUNDS, STEPS = 12, 5  # rounds of averaging; steps of each client in a round
SEEDS = (0, 1, 2, 3)
MOMENTUM = 0.9

STARTS: Mapping[str, str | None] = {"letters": "letters", "scratch": None}
"""The weights that a network starts from, by name."""

DEALS = ("even", "by class")
WAYS = ("pooled", *DEALS, "alone")
"""All images in one place; federated, with either deal; each client for itself, dealt evenly."""

RATES: Mapping[tuple[str, str], float] = {
    ("letters", "pooled"): 0.03,
    ("letters", "even"): 0.03,
    ("letters", "by class"): 0.1,
    ("letters", "alone"): 0.03,
    ("scratch", "pooled"): 0.1,
    ("scratch", "even"): 0.3,
    ("scratch", "by class"): 0.3,
}
"""What :func:`compare` compares, each with the best of two or three rates on validation images,
with a draw of the labels that it does not use itself."""


def deal(images: Split, clients: int = CLIENTS, *, by_class: bool) -> list[Split]:
    """Hand the images out to clients, about equally many to each.

    Args:
        images: all labelled images.
        clients: how many share them.
        by_class: True gives each client classes of its own; False gives each client the same
            number of every class, as far as that goes.

    Returns:
        A split for each client; together they hold every image once.

    Raises:
        ValueError: if there are fewer images than clients, or no client.

    Example:
        >>> import tlhelpers as tl
        >>> images = tl.datasets.digits().few(10).train
        >>> for by_class in (False, True):
        ...     first = tl.federated.deal(images, 5, by_class=by_class)[0]
        ...     print(len(first), first.y.unique().tolist())
        20 [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        20 [0, 1]
    """
    if not 1 <= clients <= len(images):
        raise ValueError(
            f"{len(images)} images can be dealt to 1 to {len(images)} clients, found {clients}."
        )
    order = torch.argsort(images.y, stable=True)
    if by_class:
        return [images.take(rows) for rows in order.tensor_split(clients)]
    return [images.take(order[client::clients]) for client in range(clients)]


def train(network: nn.Module, images: Split, *, lr: float, steps: int) -> nn.Module:
    """Gradient descent with momentum on all images of one client, in place; returns the network.

    Args:
        network: ends in evaluation mode.
        images: every step uses all of them.
        lr: the length of a step.
        steps: how many.

    Example:
        >>> import tlhelpers as tl
        >>> images = tl.datasets.digits().few(5).train
        >>> network = tl.models.small_resnet(10, weights="letters")
        >>> trained = tl.federated.train(network, images, lr=0.03, steps=20)
        >>> trained is network, round(tl.evaluate.validate(trained, images).value, 1)
        (True, 1.0)
    """
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=MOMENTUM)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(images.x), images.y).backward()
        optimizer.step()
    return network.eval()


def average(
    network: nn.Module,
    clients: Sequence[Split],
    *,
    lr: float,
    rounds: int = ROUNDS,
    steps: int = STEPS,
) -> nn.Module:
    """Federated averaging: send the network out, let each client train it, average what returns.

    The average weighs each client by its number of images. It takes in BatchNorm's running
    statistics, which therefore leave the clients too. Only weights travel, no image; that alone is
    no guarantee of privacy.

    Source: McMahan et al. (2017), Communication-efficient learning of deep networks from
    decentralized data; here every client takes part in every round.

    Args:
        network: where to start; it stays as it is.
        clients: the images of each.
        lr: the length of a client's step.
        rounds: how often the weights are averaged.
        steps: of each client in a round.

    Returns:
        A new network, in evaluation mode.

    Raises:
        ValueError: if there is no client.

    Example:
        >>> import tlhelpers as tl
        >>> images = tl.datasets.digits().few(5).train
        >>> clients = tl.federated.deal(images, 2, by_class=False)
        >>> start = tl.models.small_resnet(10, weights="letters")
        >>> shared = tl.federated.average(start, clients, lr=0.03, rounds=1, steps=8)
        >>> [round(tl.evaluate.validate(network, images).value, 1) for network in (start, shared)]
        [0.1, 1.0]
    """
    if not clients:
        raise ValueError("federated averaging needs at least one client, found none.")
    network = copy.deepcopy(network)
    sizes = [len(images) for images in clients]
    for _ in range(rounds):
        states = [
            train(copy.deepcopy(network), images, lr=lr, steps=steps).state_dict()
            for images in clients
        ]
        network.load_state_dict(combine.average_states(states, weights=sizes))
    return network.eval()


def learn(
    start: str,
    way: str,
    images: Split,
    *,
    lr: float,
    rounds: int = ROUNDS,
    steps: int = STEPS,
    seed: int = 0,
) -> list[nn.Module]:
    """The network, or the networks, that one way of learning from the images ends with.

    Every way takes ``rounds * steps`` steps one after the other, in which it sees each image as
    often as every other way does.

    Args:
        start: one of :data:`STARTS`.
        way: one of :data:`WAYS`.
        images: all labelled images.
        lr: the length of a step.
        rounds, steps: as :func:`average` takes them.
        seed: of the weights that start at random.

    Returns:
        One network; for ``"alone"`` one for each client.

    Raises:
        ValueError: if there is no such start or way.

    Example:
        >>> import tlhelpers as tl
        >>> images = tl.datasets.digits().few(5).train
        >>> options = {"lr": 0.03, "rounds": 1, "steps": 1}
        >>> for way in tl.federated.WAYS:
        ...     print(way, len(tl.federated.learn("letters", way, images, **options)))
        pooled 1
        even 1
        by class 1
        alone 5
    """
    if start not in STARTS or way not in WAYS:
        raise ValueError(
            f"a start is one of {', '.join(STARTS)}, a way one of {', '.join(WAYS)}; found "
            f"{start!r} and {way!r}."
        )
    network = models.small_resnet(10, weights=STARTS[start], seed=seed)
    if way == "pooled":
        return [train(network, images, lr=lr, steps=rounds * steps)]
    clients = deal(images, by_class=way == "by class")
    if way == "alone":
        return [
            train(copy.deepcopy(network), client, lr=lr, steps=rounds * steps) for client in clients
        ]
    return [average(network, clients, lr=lr, rounds=rounds, steps=steps)]


def compare(
    run: Run | None = None,
    *,
    digits: Dataset | None = None,
    seeds: Sequence[int] = SEEDS,
    rounds: int = ROUNDS,
) -> Record:
    """Accuracy on handwritten digits of the ways of learning in :data:`RATES`.

    The rates were chosen on validation images beforehand; the test split is read once.

    Args:
        run: unused but for its place in ``records.get``: this runs on the CPU, from its own seeds.
        digits: the task; by default the handwritten digits.
        seeds: each draws the labelled images and the weights.
        rounds: how often the weights are averaged.

    Returns:
        the record ``glyphs/federated``: a row of the curve for each start, way and seed. The
        result has the mean accuracy of each, ``"letters, even"``, and paired differences, such as
        ``"letters minus scratch, even"`` and ``"letters, by class minus pooled"``.
    """
    origin = records.provenance(compare, command=COMMAND)
    start_time = time.perf_counter()
    digits = datasets.digits() if digits is None else digits
    networks: dict[tuple[str, str, int, int], nn.Module] = {}
    for seed in seeds:
        images = digits.few(K, draw=seed).train
        for (start, way), lr in RATES.items():
            learnt = learn(start, way, images, lr=lr, rounds=rounds, seed=seed)
            networks |= {(start, way, seed, i): n for i, n in enumerate(learnt)}
    reports = evaluate.grid(networks, digits.test, name="federated averaging")
    found = pd.DataFrame(
        [(*key[:3], report.top1.value) for key, report in reports.items()],
        columns=["start", "way", "seed", "top1"],
    )
    # The clients that learn alone count by their mean.
    curve = found.groupby(["start", "way", "seed"], sort=False, as_index=False)["top1"].mean()
    return Record(
        name=NAME,
        tier="cpu",
        split=f"{digits.split_name}; {K} labels a class, {len(seeds)} draws",
        input=f"digits, {datasets.GLYPH_SIZE} px; {CLIENTS} clients, {rounds} x {STEPS} steps",
        seeds=tuple(seeds),
        curve=tuple(curve.to_dict("records")),
        **records.figures(_figures(curve)),
        interval_over=f"95 %, t, over {len(seeds)} draws and seeds",
        wall_seconds=time.perf_counter() - start_time,
        **origin,
    )


def _figures(curve: pd.DataFrame) -> dict[str, Estimate]:
    """Each mean over the seeds, and paired differences."""
    top1 = curve.pivot(index="seed", columns=["start", "way"], values="top1")
    made = {f"{start}, {way}": evaluate.mean_interval(top1[start, way]) for start, way in RATES}

    def minus(name: str, first: tuple[str, str], second: tuple[str, str]) -> None:
        gap = top1[first] - top1[second]
        made[name] = evaluate.mean_interval(gap, unit="points")

    for way in WAYS[:-1]:
        minus(f"letters minus scratch, {way}", ("letters", way), ("scratch", way))
    for start in STARTS:
        for way in DEALS:
            minus(f"{start}, {way} minus pooled", (start, way), (start, "pooled"))
    minus("letters, even minus alone", ("letters", "even"), ("letters", "alone"))
    return made
