"""Learning to learn on glyphs, against frozen features, on the same episodes of new alphabets.

One small network, trained in six ways on the characters of some alphabets, meets 5-way episodes of
alphabets that none of them has seen. :func:`compare` makes the record of chapter 12.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers import datasets, episodes, evaluate, fewshot, meta, records, train
from tlhelpers.characters import GLYPH_SIZE, MILD
from tlhelpers.episodes import Episodes, Pools
from tlhelpers.evaluate import Estimate
from tlhelpers.fewshot import Classifier, Result
from tlhelpers.meta import Inner, Sampler
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

COMMAND = "python experiments/meta_glyphs.py"
NAME = "glyphs/meta"

TRAIN = (
    "latin_upper", "latin_lower", "greek_upper", "greek_lower", "cyrillic_upper",
    "cyrillic_lower", "hebrew",
)  # fmt: skip
VALIDATION = ("arabic", "georgian_capitals")
TEST = ("armenian_upper", "armenian_lower", "georgian")
PER_CLASS = 30

WAYS, SHOTS, QUERIES = 5, (1, 5), 10  # of the test; meta-training is with one shot
SEEDS = (0, 1, 2)
EPISODES = 300

WIDTHS = (128, 64)
STEPS, TASKS, TRAIN_QUERIES = 500, 4, 5
NORM_STEPS = 200  # of the two networks with BatchNorm, which are about the trap alone
BATCH_SIZE = 120  # of the plain classifier: as many images as stand in the tasks of a step
LR = 3e-3

MAML, FIRST, REPTILE = "MAML", "first-order MAML", "Reptile"
RANDOM = "random start, fine-tuned"
CENTROID = "classifier, nearest class mean"
COSINE = "classifier, cosine to class means"
LOGISTIC = "classifier, logistic regression"
TUNED = "classifier, fine-tuned"
PROTO = "prototypical network"
INSIDE = "MAML's features, cosine to class means"
PAIRS = (
    *((start, frozen) for start in (MAML, FIRST, REPTILE) for frozen in (COSINE, PROTO)),
    (MAML, FIRST),
    (MAML, REPTILE),
    (INSIDE, MAML),
    (TUNED, COSINE),
    (PROTO, TUNED),
)

# Settled on the validation alphabets, with seed 0: the inner loops in training, and at test.
INNER = {
    MAML: Inner(steps=3, rate=0.4),
    FIRST: Inner(steps=3, rate=0.4),
    REPTILE: Inner(steps=8, rate=0.5),
}
AT_TEST = {
    MAML: Inner(steps=10, rate=0.4),
    FIRST: Inner(steps=10, rate=0.4),
    REPTILE: Inner(steps=20, rate=0.5),
}
OUTER_RATE, BATCH = 1.0, 10  # of Reptile
FINE_TUNING = Inner(steps=20, rate=0.01)  # of a classifier with a new head
SHOWN = 30  # inner steps in the record, beyond those of training and test


Watch = Callable[[nn.Module, int], None]
"""Is called with a network in training, and how many steps it has taken."""


class SmallNet(nn.Module):
    """Two hidden layers with ReLU and a linear head, for images of 16 x 16; 41,477 weights for 5.

    Without convolutions, as copies of a network with weights of their own, one a task, are then
    batches of matrix products, which a CPU computes several times faster. Without BatchNorm unless
    it is asked for, so that an inner loop has nothing to decide.

    Args:
        classes: outputs of the head.
        norm: whether a BatchNorm follows each hidden layer.
        seed: of the weights.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network = tl.meta_study.SmallNet(5)
        >>> network(torch.zeros(2, 1, 16, 16)).shape, sum(p.numel() for p in network.parameters())
        (torch.Size([2, 5]), 41477)
    """

    def __init__(self, classes: int, *, norm: bool = False, seed: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for inputs, outputs in itertools.pairwise((GLYPH_SIZE**2, *WIDTHS)):
                layers.append(nn.Linear(inputs, outputs))
                layers += [nn.BatchNorm1d(outputs)] if norm else []
                layers.append(nn.ReLU())
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(WIDTHS[-1], classes)

    def features(self, images: Tensor) -> Tensor:
        """(n, 1, 16, 16) images to (n, 64) features."""
        out: Tensor = self.body(images)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """(n, 1, 16, 16) images to (n, classes) logits."""
        out: Tensor = self.head(self.features(images))
        return out


def alphabets(*, per_class: int = PER_CLASS) -> tuple[Dataset, Pools]:
    """The characters, and pools of them in which no alphabet stands twice.

    Returns:
        the data set of the characters to learn, all of it training; and the pools.

    Example:
        >>> import tlhelpers as tl
        >>> data, pools = tl.meta_study.alphabets(per_class=2)
        >>> data
        Dataset 'glyphs': 143 classes; train 286, validation 0, test 0; split 'random, seed 0'
        >>> pools.test
        glyphs, meta-test: 218 examples of 109 classes, 2 to 2 a class
    """
    split = episodes.split_alphabets(train=TRAIN, validation=VALIDATION, test=TEST)
    names = (*split.train, *split.validation, *split.test)
    data = datasets.glyphs(names, per_class=per_class, shift=MILD, validation=0.0, test=0.0)
    return datasets.with_classes(data, split.train), split.pools(data)


def learn(
    way: str, pools: Pools, run: Run, *, steps: int = STEPS, watch: Watch | None = None
) -> SmallNet:
    """A network from one of the three ways of learning to learn, on one-shot tasks.

    Args:
        way: ``"MAML"``, ``"first-order MAML"`` or ``"Reptile"``.
        pools: of which the training pool is used.
        run: the seed decides the weights and the tasks.
        steps: of the outer loop.
        watch: is shown the network six times on the way, the first time before any step.
    """
    network = SmallNet(WAYS, seed=run.seed)
    sampler = meta.episode_tasks(pools.train, ways=WAYS, shots=1, queries=TRAIN_QUERIES)
    if watch is not None:
        sampler = _watched(sampler, network, watch, every=-(-steps // 6))
    _learn(way, network, sampler, INNER[way], steps=steps, run=run)
    return network


def _learn(
    way: str, network: nn.Module, sampler: Sampler, inner: Inner, *, steps: int, run: Run
) -> None:
    settings: dict[str, Any] = {"steps": steps, "tasks": TASKS, "run": run}
    if way == REPTILE:
        meta.reptile(network, sampler, inner, outer_rate=OUTER_RATE, batch=BATCH, **settings)
    else:
        meta.maml(network, sampler, inner, order=2 if way == MAML else 1, lr=LR, **settings)


def _watched(sampler: Sampler, network: nn.Module, watch: Watch, *, every: int) -> Sampler:
    """The sampler, which every so many steps shows the network as it then is."""
    step = 0

    def sample(count: int, generator: torch.Generator) -> meta.Tasks:
        nonlocal step
        if step % every == 0:
            watch(network, step)
        step += 1
        return sampler(count, generator)

    return sample


def classifier(data: Dataset, run: Run, *, steps: int = STEPS) -> SmallNet:
    """A network trained on all characters at once, as any classifier is."""
    network = SmallNet(len(data.classes), seed=run.seed)
    recipe = train.Recipe(steps=steps, batch_size=BATCH_SIZE, lr=LR, keep="last")
    train.fit(network, data, recipe, run)
    return network


def prototypical(pools: Pools, run: Run, *, steps: int = STEPS) -> SmallNet:
    """A prototypical network of the same body, on as many tasks as the other ways."""
    network = SmallNet(WAYS, seed=run.seed)  # its head is never asked
    fewshot.fit(
        network, pools.train, ways=WAYS, shots=1, queries=TRAIN_QUERIES, steps=steps,
        batch=TASKS, lr=LR, run=run,
    )  # fmt: skip
    return network


def with_new_head(network: SmallNet, ways: int = WAYS) -> SmallNet:
    """A copy with a head of zeros: it says of every class the same, whatever their order.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network = tl.meta_study.with_new_head(tl.meta_study.SmallNet(200), ways=3)
        >>> with torch.inference_mode():
        ...     network(torch.rand(1, 1, 16, 16))
        tensor([[0., 0., 0.]])
    """
    twin = copy.deepcopy(network)
    twin.head = nn.Linear(network.head.in_features, ways)
    nn.init.zeros_(twin.head.weight)
    nn.init.zeros_(twin.head.bias)
    return twin


def _logistic_on_directions(support: Tensor, query: Tensor) -> Tensor:
    """A logistic regression on features of length 1, as Tian et al. (2020) do."""
    return fewshot.logistic_regression(F.normalize(support, dim=-1), F.normalize(query, dim=-1))


def one_class_at_a_time(classify: Classifier, ways: int = WAYS) -> Classifier:
    """The classifier, asked for the queries of one class, then for those of the next.

    To an inductive classifier it is all the same which queries come together.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> pool = tl.episodes.Pool(torch.randn(60, 8), torch.arange(60) % 6, name="noise")
        >>> episodes = pool.episodes(10, ways=5, shots=1, queries=3)
        >>> query = episodes.query.flatten(1, 2)
        >>> for classify in (tl.fewshot.nearest_centroid, tl.fewshot.soft_kmeans):
        ...     alone = tl.meta_study.one_class_at_a_time(classify)(episodes.support, query)
        ...     print(
        ...         classify.__name__,
        ...         torch.allclose(alone, classify(episodes.support, query), atol=1e-4),
        ...     )
        nearest_centroid True
        soft_kmeans False
    """

    def asked(support: Tensor, query: Tensor) -> Tensor:
        size = max(1, query.shape[1] // ways)
        return torch.cat([classify(support, part) for part in query.split(size, dim=1)], dim=1)

    return asked


# --- the record -------------------------------------------------------------------------------


def compare(
    run: Run | None = None,
    *,
    seeds: Sequence[int] = SEEDS,
    count: int = EPISODES,
    steps: int = STEPS,
    norm_steps: int = NORM_STEPS,
    per_class: int = PER_CLASS,
) -> Record:
    """MAML, first-order MAML and Reptile against frozen features, on the same new episodes.

    Every seed draws the weights and the training tasks of all networks; images and test episodes
    are the same for all. Nothing is chosen on the test alphabets.

    Args:
        run: unused but for its place in ``records.get``: this runs on the CPU, from its own seeds.
        seeds: of the networks.
        count: test episodes for each number of shots.
        steps: of training, for every network.
        norm_steps: of the networks with BatchNorm.
        per_class: images of each character.

    Returns:
        the record ``glyphs/meta``. Its curve has rows of four kinds, told apart by ``what``:

        - ``"test"``: the accuracy of a ``way`` with ``shots`` on the test episodes;
        - ``"training"``: accuracy on validation episodes after ``step`` steps of training, which
          took so many ``seconds`` of one core;
        - ``"inner"``: accuracy on test episodes with one shot after ``step`` gradient steps;
        - ``"norm"``: first-order MAML with BatchNorm; ``way`` says by which statistics it was
          trained and tested.

        In the result, ``"<a> minus <b>, <k> shot"`` is the difference of the mean over seeds on the
        same episodes; its interval is over the test characters.
    """
    origin = records.provenance(compare, command=f"{COMMAND} --seeds {len(seeds)}")
    start = time.perf_counter()
    data, pools = alphabets(per_class=per_class)
    tests = {
        k: pools.test.episodes(count, ways=WAYS, shots=k, queries=QUERIES, generator=k)
        for k in SHOTS
    }
    rows: list[dict[str, Any]] = []
    found: dict[tuple[str, int], list[Result]] = {}
    for seed in seeds:
        one = _One(data, pools, tests, Run(seed), steps, norm_steps)
        for key, each in one.results().items():
            found.setdefault(key, []).append(each)
        rows += one.rows
    means = {key: _mean(some) for key, some in found.items()}
    return Record(
        name=NAME,
        tier="cpu",
        split=f"meta-test: {', '.join(TEST)}; {len(pools.test.classes)} characters",
        input=f"{tuple(data.x.shape[1:])} images, {count} {WAYS}-way episodes, {steps} steps",
        seeds=tuple(seeds),
        curve=tuple(rows),
        interval_over=f"95 %, jackknife over {len(pools.test.classes)} test characters",
        wall_seconds=time.perf_counter() - start,
        **records.figures(_differences(means)),
        **origin,
    )


class _One:
    """The networks of one seed, and what they do on the test episodes."""

    def __init__(
        self,
        data: Dataset,
        pools: Pools,
        tests: Mapping[int, Episodes],
        run: Run,
        steps: int,
        norm_steps: int,
    ) -> None:
        self.data, self.pools, self.tests, self.run = data, pools, tests, run
        self.steps, self.norm_steps = steps, norm_steps
        self.rows: list[dict[str, Any]] = []
        assert pools.validation is not None
        self.validation = pools.validation.episodes(
            100, ways=WAYS, shots=1, queries=QUERIES, generator=0
        )

    def results(self) -> dict[tuple[str, int], Result]:
        """For each way and number of shots its result on the test episodes."""
        learnt = {way: self._learn(way) for way in INNER}
        plain = classifier(self.data, self.run, steps=self.steps)
        proto = prototypical(self.pools, self.run, steps=self.steps)
        fine = meta.fine_tuned
        ways: dict[str, tuple[Classifier, nn.Module | None]] = {
            RANDOM: (fine(SmallNet(WAYS, seed=self.run.seed), AT_TEST[MAML]), None),
            **{way: (fine(network, AT_TEST[way]), None) for way, network in learnt.items()},
            CENTROID: (fewshot.nearest_centroid, plain),
            COSINE: (fewshot.cosine, plain),
            LOGISTIC: (_logistic_on_directions, plain),
            TUNED: (fine(with_new_head(plain), FINE_TUNING), None),
            PROTO: (fewshot.nearest_centroid, proto),
            INSIDE: (fewshot.cosine, learnt[MAML]),
        }
        found = {}
        for way, (classify, network) in ways.items():
            for k, drawn in self.tests.items():
                seen = drawn if network is None else drawn.embedded(network)
                found[way, k] = result = fewshot.measure(classify, seen, name=way)
                self._row("test", way, result.accuracy, shots=k)
        for way, network in learnt.items():
            self._inner_steps(way, network)
        self._norm()
        return found

    def _learn(self, way: str) -> SmallNet:
        spent, last = 0.0, time.process_time()

        def watch(network: nn.Module, step: int) -> None:
            nonlocal spent, last
            spent += time.process_time() - last  # looking is not part of the cost
            result = fewshot.measure(meta.fine_tuned(network, AT_TEST[way]), self.validation)
            self._row("training", way, result.accuracy, shots=1, step=step, seconds=spent)
            last = time.process_time()

        network = learn(way, self.pools, self.run, steps=self.steps, watch=watch)
        watch(network, self.steps)
        return network

    def _inner_steps(self, way: str, network: nn.Module) -> None:
        """Accuracy after each inner step, on the one-shot test episodes."""
        inner = dataclasses.replace(AT_TEST[way], steps=SHOWN)
        episodes_ = self.tests[1]
        drawn = meta.Tasks(
            episodes_.support.flatten(1, 2),
            torch.arange(WAYS).expand(len(episodes_), -1),
            episodes_.query.flatten(1, 2),
            episodes_.labels.expand(len(episodes_), -1),
        )
        said = meta.outputs(network, drawn, inner).argmax(dim=-1)
        for step, hits in enumerate((said == drawn.query_y).double().mean(dim=2).numpy()):
            self._row("inner", way, evaluate.mean_interval(hits), shots=1, step=step)

    def _norm(self) -> None:
        """First-order MAML with BatchNorm: what it normalises by, in training and at test."""
        drawn = self.tests[1]
        for trained in ("batch", "support"):
            inner = dataclasses.replace(AT_TEST[FIRST], statistics=trained)
            network = SmallNet(WAYS, norm=True, seed=self.run.seed)
            sampler = meta.episode_tasks(
                self.pools.train, ways=WAYS, shots=1, queries=TRAIN_QUERIES
            )
            start = dataclasses.replace(INNER[FIRST], statistics=trained)
            _learn(FIRST, network, sampler, start, steps=self.norm_steps, run=self.run)
            classify = meta.fine_tuned(network, inner)
            self._norm_row(f"{trained}, all queries together", classify, drawn)
            if trained == "batch":
                alone = one_class_at_a_time(classify)
                self._norm_row("batch, the queries of one class together", alone, drawn)
                honest = dataclasses.replace(inner, statistics="support")
                asked = meta.fine_tuned(network, honest)
                self._norm_row("batch, tested by the support's", asked, drawn)

    def _norm_row(self, way: str, classify: Classifier, drawn: Episodes) -> None:
        result = fewshot.measure(classify, drawn)
        self._row("norm", way, result.accuracy, shots=1, transductive=result.transductive)

    def _row(
        self,
        what: str,
        way: str,
        accuracy: Estimate,
        *,
        shots: int,
        step: int | None = None,
        seconds: float | None = None,
        transductive: bool = False,
    ) -> None:
        self.rows.append(
            {
                "what": what,
                "way": way,
                "seed": self.run.seed,
                "shots": shots,
                "step": step,
                "seconds": seconds,
                "mean": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
                "transductive": transductive,
            }
        )


def _mean(results: Sequence[Result]) -> Result:
    """The mean over seeds, on the same episodes."""
    if len({result.digest for result in results}) != 1:
        raise ValueError("the seeds should be judged on the same episodes, found different ones.")
    correct = np.mean([result.correct for result in results], axis=0)
    return dataclasses.replace(results[0], correct=correct)


def _differences(found: Mapping[tuple[str, int], Result]) -> dict[str, Estimate]:
    """Every way's accuracy, and each learnt start less each frozen embedding."""
    estimates = {f"{way}, {k} shot": result.over_classes for (way, k), result in found.items()}
    for a, b in PAIRS:
        for k in sorted({k for _, k in found}):
            gap = fewshot.difference(found[a, k], found[b, k], over="classes")
            estimates[f"{a} minus {b}, {k} shot"] = gap
    return estimates
