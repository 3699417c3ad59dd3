"""Two tasks on one body: learnt together, or one after the other, at equal compute.

A network with a body and two heads learns letters and handwritten digits. :func:`compare` shows it
the same images of each task the same number of times in two orders, and compares both with a
network that spends all its steps on the digits. It makes the record of chapter 02.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers import datasets, evaluate, models, records
from tlhelpers.characters import MILD
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Split, TestSplit

COMMAND = "python experiments/multitask.py"
NAME = "glyphs/multitask"
# Steps' worth of images of each task: together 300 steps, in whichever order.
LETTERS, DIGITS = 250, 50
BATCH = 60  # divisible by the sum of the two shares, 5 + 1
SHOTS = (1, 5, 20)
SEEDS = (0, 1, 2, 3, 4)
# For a body that starts at random; for a pretrained one and its new head.
LR, BODY_LR, HEAD_LR = 3e-3, 1e-3, 1e-2

WAYS = ("digits alone", "letters, then digits", "together")


class TwoHeads(nn.Module):
    """One body and a linear head for each of two tasks.

    Args:
        first, second: the numbers of classes of the tasks.
        seed: the seed of the weights.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network = tl.multitask.TwoHeads(52, 10)
        >>> letters, digits = network(torch.rand(4, 1, 16, 16))
        >>> letters.shape, digits.shape
        (torch.Size([4, 52]), torch.Size([4, 10]))
    """

    def __init__(self, first: int = 52, second: int = 10, *, seed: int = 0) -> None:
        super().__init__()
        self.body = models.small_resnet(first, seed=seed)  # with the first task's head
        self.second = models.small_resnet(second, seed=seed).head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 1, h, w) images to the logits of both tasks, (n, first) and (n, second)."""
        features = self.body.features(images)
        return self.body.head(features), self.second(features)


def train(
    network: TwoHeads,
    tasks: Sequence[tuple[Split, int]],
    *,
    steps: int,
    lr: float,
    head_lr: float | None = None,
    seed: int = 0,
) -> None:
    """Minimise the mean cross-entropy over batches made of images of both tasks, in place.

    AdamW with a cosine schedule. Each image counts for the head of its own task; the network
    ends in evaluation mode.

    Args:
        network: the network.
        tasks: for each head its training images, and how many of them stand in each batch.
        steps: how many batches.
        lr: the learning rate of the body.
        head_lr: that of the heads; None for ``lr``.
        seed: the seed of the batches.

    Raises:
        ValueError: if there are not two tasks, or the batch is empty.

    Example:
        >>> import tlhelpers as tl
        >>> letters = tl.datasets.glyphs(tuple("ABC"), per_class=20)
        >>> digits = tl.datasets.digits().few(2, draw=0)
        >>> network = tl.multitask.TwoHeads(3, 10)
        >>> shares = [(letters.train, 10), (digits.train, 20)]
        >>> tl.multitask.train(network, shares, steps=30, lr=1e-2)
        >>> answers = network(digits.train.x)[1].argmax(dim=1)
        >>> float((answers == digits.train.y).float().mean()) > 0.9
        True
    """
    if len(tasks) != 2 or sum(count for _, count in tasks) < 1:
        raise ValueError(f"two tasks with a share of the batch each, found {len(tasks)}.")
    heads = [*network.body.head.parameters(), *network.second.parameters()]
    body = [p for name, p in network.body.named_parameters() if not name.startswith("head.")]
    groups = [
        {"params": body, "lr": lr},
        {"params": heads, "lr": lr if head_lr is None else head_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws = [_draws(split, count, seed=seed + i) for i, (split, count) in enumerate(tasks)]
    network.train()
    for _ in range(steps):
        (x1, y1), (x2, y2) = (next(draw) for draw in draws)
        first, second = network(torch.cat([x1, x2]))
        loss = F.cross_entropy(first[: len(y1)], y1, reduction="sum")
        loss = loss + F.cross_entropy(second[len(y1) :], y2, reduction="sum")
        optimizer.zero_grad()
        (loss / (len(y1) + len(y2))).backward()
        optimizer.step()
        schedule.step()
    network.eval()


def _draws(split: Split, count: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches for ever, each a fresh draw with replacement."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(split), (count,), generator=generator)
        yield split.x[rows], split.y[rows]


def compare(
    run: Run | None = None,
    *,
    letters: Dataset | None = None,
    digits: Dataset | None = None,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    steps: tuple[int, int] = (LETTERS, DIGITS),
) -> Record:
    """Digits alone; letters, then digits; both together: accuracy on both tasks.

    All three take ``sum(steps)`` steps of ``BATCH`` images; the last two see the same number of
    images of each task. Nothing is chosen on the way; the two test splits are read once each.

    Args:
        run: unused but for its place in ``records.get``: this runs on the CPU, from its own seeds.
        letters, digits: the tasks; by default glyphs with a mild shift, and handwritten digits.
        shots: labels a class of the digits.
        seeds: each draws the labelled digits, the weights and the batches.
        steps: how many batches' worth of letters and of digits.

    Returns:
        the record ``glyphs/multitask``: a row of the curve for each way and number of labels, with
        the accuracy on digits (``mean``, ``low``, ``high``) and on letters (``letters``). In the
        result, ``together_minus_then_<k>`` are paired differences on the digits.
    """
    origin = records.provenance(compare, command=COMMAND)
    start = time.perf_counter()
    if letters is None:
        letters = datasets.glyphs(per_class=400, shift=MILD, validation=0.0, test=0.1)
    digits = datasets.digits() if digits is None else digits
    networks: dict[tuple[str, int, int], TwoHeads] = {}
    for seed in seeds:
        networks |= _three_ways(letters, digits, shots, seed, steps)
    on_digits = _accuracies(networks, digits.test, 1)
    on_letters = _accuracies(networks, letters.test, 0)
    curve: list[dict[str, Any]] = []
    for way in WAYS:
        for k in shots:
            mean = evaluate.mean_interval([on_digits[way, k, seed] for seed in seeds])
            kept = evaluate.mean_interval([on_letters[way, k, seed] for seed in seeds])
            row = {"way": way, "k": k, "mean": mean.value, "low": mean.low, "high": mean.high}
            row |= {"letters": kept.value, "letters_low": kept.low, "letters_high": kept.high}
            curve.append(row)
    result, interval = {}, {}
    for k in shots:
        pairs = {
            f"together_minus_then_{k}": ("together", "letters, then digits"),
            f"then_minus_alone_{k}": ("letters, then digits", "digits alone"),
        }
        for name, (a, b) in pairs.items():
            gaps = [on_digits[a, k, seed] - on_digits[b, k, seed] for seed in seeds]
            gap = evaluate.mean_interval(gaps, unit="points")
            result[name], interval[name] = gap.value, [gap.low, gap.high]
    return Record(
        name=NAME,
        tier="cpu",
        split=f"digits: {digits.split_name}; letters: {letters.split_name}",
        input=f"{tuple(digits.train.x.shape[1:])} images, {sum(steps)} steps of {BATCH}",
        seeds=tuple(seeds),
        curve=tuple(curve),
        result=result,
        interval=interval,
        interval_over=f"95 %, t, over {len(seeds)} seeds",
        wall_seconds=time.perf_counter() - start,
        **origin,
    )


def _three_ways(
    letters: Dataset, digits: Dataset, shots: Sequence[int], seed: int, steps: tuple[int, int]
) -> dict[tuple[str, int, int], TwoHeads]:
    """The networks of one seed."""
    total = sum(steps)
    share = BATCH * steps[1] // total
    networks = {}
    pretrained = TwoHeads(len(letters.classes), len(digits.classes), seed=seed)
    tasks = [(letters.train, BATCH), (digits.train, 0)]
    train(pretrained, tasks, steps=steps[0], lr=LR, seed=seed)
    for k in shots:
        few = digits.few(k, draw=seed).train
        for way in WAYS:
            network = TwoHeads(len(letters.classes), len(digits.classes), seed=seed)
            if way == "digits alone":
                train(network, [(letters.train, 0), (few, BATCH)], steps=total, lr=LR, seed=seed)
            elif way == "together":
                tasks = [(letters.train, BATCH - share), (few, share)]
                train(network, tasks, steps=total, lr=LR, seed=seed)
            else:
                network.load_state_dict(pretrained.state_dict())
                tasks = [(letters.train, 0), (few, BATCH)]
                rates = {"lr": BODY_LR, "head_lr": HEAD_LR}
                train(network, tasks, steps=steps[1], seed=seed, **rates)
            networks[way, k, seed] = network
    return networks


def _accuracies(
    networks: dict[tuple[str, int, int], TwoHeads], test: TestSplit, head: int
) -> dict[tuple[str, int, int], float]:
    """The top-1 of each network on one of its tasks; one reading of the test split."""
    reports = evaluate.grid(
        {key: _one_head(network, head) for key, network in networks.items()},
        test,
        name="two tasks, three ways",
        resamples=2,  # the intervals are over seeds
    )
    return {key: report.top1.value for key, report in reports.items()}


def _one_head(network: TwoHeads, head: int) -> Any:
    def logits(x: Tensor) -> Tensor:
        network.eval()
        with torch.inference_mode():
            return network(x)[head]

    return logits
