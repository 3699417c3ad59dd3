"""Episodes a second of our batched episodes, of a plain loop, and of easyfsl, in one run.

All draw 5-way 5-shot episodes with 15 queries a class from the same cached features (30 breeds of
the shipped bank of Stanford Dogs, 128 numbers an image) and classify the queries:

* **ours**: ``pool.episodes`` and ``fewshot.measure`` with ``nearest_centroid``, everything
  included: drawing, gathering, scores, the check for transduction, and the interval;
* **loop**: one episode after the other in torch, as one writes it by hand: ``randperm``, indexing,
  ``mean``, ``cdist``;
* **easyfsl**: its ``TaskSampler`` in a ``DataLoader``, and ``PrototypicalNetworks``;
* **ours, logistic** and **loop, scikit-learn**: the same with a logistic regression fitted in each
  episode, batched and one by one.

Slow peers take fewer episodes; rates are compared. The rounds go through all of them by turns, so
that a busy moment of the machine hits everybody; medians over rounds are printed, of the rates and
of the ratios within a round. The accuracies printed beside them should agree.

    python benchmarks/episodes.py [--episodes 10000] [--json PATH]

easyfsl is measured where it is installed: ``pip install --no-deps "easyfsl>=1.5"``.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import tlhelpers as tl
from tlhelpers.episodes import Pool
from tlhelpers.fewshot import Classifier

WAYS, SHOTS, QUERIES = 5, 5, 15
RIDGE = 0.01
BANK = "stanford_dogs/mobilenet_v2"
ADVICE = 'pip install --no-deps "easyfsl>=1.5"'

Contestant = Callable[[Pool, int, int], float]  # pool, episodes, seed -> accuracy
Fitted = Callable[[Tensor, Tensor, Tensor], Tensor]  # support, labels, query -> classes


def batched(classifier: Classifier, pool: Pool, count: int, seed: int) -> float:
    """All episodes at once."""
    episodes = pool.episodes(count, ways=WAYS, shots=SHOTS, queries=QUERIES, generator=seed)
    return tl.fewshot.measure(classifier, episodes).accuracy.value


def loop(predict: Fitted, pool: Pool, count: int, seed: int) -> float:
    """One episode after the other."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.nonzero(pool.labels == c).flatten() for c in range(len(pool.classes))]
    support_labels = torch.arange(WAYS).repeat_interleave(SHOTS)
    query_labels = torch.arange(WAYS).repeat_interleave(QUERIES)
    right = 0.0
    for _ in range(count):
        support, query = [], []
        for c in torch.randperm(len(rows), generator=generator)[:WAYS].tolist():
            order = torch.randperm(len(rows[c]), generator=generator)[: SHOTS + QUERIES]
            drawn = pool.x[rows[c][order]]
            support.append(drawn[:SHOTS])
            query.append(drawn[SHOTS:])
        found = predict(torch.cat(support), support_labels, torch.cat(query))
        right += float((found == query_labels).float().mean())
    return right / count


def by_centroid(support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """The class of the nearest mean."""
    means = torch.stack([support[labels == c].mean(dim=0) for c in range(WAYS)])
    return torch.cdist(query, means).argmin(dim=1)


def by_scikit_learn(support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """The class that scikit-learn's logistic regression says."""
    strength = 1 / (RIDGE * len(labels))
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(support.numpy(), labels.numpy())
    return torch.from_numpy(np.asarray(fitted.predict(query.numpy())))


def easyfsl(pool: Pool, count: int, seed: int) -> float:
    """Its sampler, loader and prototypical network, the features passing through."""
    datasets: Any = importlib.import_module("easyfsl.datasets")
    methods: Any = importlib.import_module("easyfsl.methods")
    samplers: Any = importlib.import_module("easyfsl.samplers")
    random.seed(seed)  # it draws from the global state
    data = datasets.FeaturesDataset(pool.labels.tolist(), pool.x, list(pool.classes))
    # easyfsl 1.5 hands its base class an argument that newer versions of torch no longer take.
    with mock.patch.object(torch.utils.data.Sampler, "__init__", return_value=None):
        sampler = samplers.TaskSampler(
            data, n_way=WAYS, n_shot=SHOTS, n_query=QUERIES, n_tasks=count
        )
    loader: Any = torch.utils.data.DataLoader(
        data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn
    )
    network = methods.PrototypicalNetworks(torch.nn.Identity())
    right = 0.0
    with torch.no_grad():
        for support, support_labels, query, query_labels, _ in loader:
            network.process_support_set(support, support_labels)
            right += float((network(query).argmax(dim=1) == query_labels).float().mean())
    return right / count


def contestants(episodes: int, few: int) -> dict[str, tuple[Contestant, int]]:
    """Who takes part, and with how many episodes a round."""
    logistic = functools.partial(tl.fewshot.logistic_regression, ridge=RIDGE)
    found: dict[str, tuple[Contestant, int]] = {
        "ours": (functools.partial(batched, tl.fewshot.nearest_centroid), episodes),
        "loop": (functools.partial(loop, by_centroid), few),
    }
    if importlib.util.find_spec("easyfsl") is None:
        print(f"easyfsl is not installed and is left out; to measure it too: {ADVICE}")
    else:
        found["easyfsl"] = (easyfsl, few)
    found["ours, logistic"] = (functools.partial(batched, logistic), episodes)
    found["loop, scikit-learn"] = (functools.partial(loop, by_scikit_learn), few // 5)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--episodes", type=int, default=10_000, help="of ours in each round")
    parser.add_argument("--few", type=int, default=500, help="of the plain loop and of easyfsl")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.few < 5 or arguments.episodes < 2 or arguments.rounds < 1:
        parser.error("--few is 5 or more, --episodes 2 or more, --rounds 1 or more")
    print(tl.runtime.Run())
    bank = tl.features.load(BANK)
    pool = tl.episodes.split_classes(bank.classes, test=30).pools(bank).test
    print(pool)
    field = contestants(arguments.episodes, arguments.few)
    rates: dict[str, list[float]] = {name: [] for name in field}
    accuracies: dict[str, list[float]] = {name: [] for name in field}
    for seed in range(arguments.rounds):
        for name, (contestant, count) in field.items():
            start = time.perf_counter()
            accuracies[name].append(contestant(pool, count, seed))
            rates[name].append(count / (time.perf_counter() - start))
    print(
        f"\n{WAYS}-way {SHOTS}-shot, {QUERIES} queries a class, median of {arguments.rounds} "
        f"rounds, {torch.get_num_threads()} threads"
    )
    figures = {}
    for name in field:
        rate = statistics.median(rates[name])
        peer = "ours, logistic" if name in ("ours, logistic", "loop, scikit-learn") else "ours"
        ratio = statistics.median(a / b for a, b in zip(rates[peer], rates[name], strict=True))
        accuracy = statistics.mean(accuracies[name])
        figures[name] = {"episodes per second": rate, "ours times": ratio, "accuracy": accuracy}
        print(
            f"{name:20}{rate:10,.0f} episodes/s {10_000 / rate:9.2f} s for 10,000"
            f"{ratio:9.1f} x as fast is {peer}; accuracy {accuracy:.1%}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
