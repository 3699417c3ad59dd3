"""From printed to handwritten digits: the measurements behind chapter 13.

:func:`pair` is the task, :func:`network` what learns. Five studies make a record each:

- :func:`compare` runs every method of ``adapt`` with several settings and seeds, and keeps for each
  evaluation what somebody would choose by, and what came of it; :func:`choose` chooses;
- :func:`larger` repeats some of it with a larger network;
- :func:`strength` turns up the weight of one method's domain loss, far beyond its default;
- :func:`skew` changes the shares of the target's classes, which alignment takes for granted;
- :func:`few_labels` takes a few target labels instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tlhelpers import (
    _samples,
    adapt,
    characters,
    datasets,
    discrepancy,
    evaluate,
    models,
    records,
    train,
)
from tlhelpers.adapt import Adapted, Plan
from tlhelpers.evaluate import Estimate, Report
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Split
from tlhelpers.train import Recipe

COMMAND = "python experiments/adaptation.py"
COMPARE, LARGER = "glyphs/adaptation", "glyphs/adaptation_larger"
SKEW, FEW_LABELS = "glyphs/adaptation_skew", "glyphs/adaptation_few"
STRENGTH = "glyphs/adaptation_strength"
SEEDS = (0, 1, 2, 3, 4)
SKEW_SEEDS = tuple(range(5, 15))  # the classes that are rare differ too, hence more of them
STEPS, LR = 120, 1e-2  # of every run in the source, unless a setting says otherwise
STRENGTHS = (0.0, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0)  # the default of "mmd" is 1
SHOWN = 12  # validation images of each class, in each domain, of which strength() keeps the scores
RATIOS = (1.0, 0.1)
SHOTS = (1, 5, 20)
SKEWED = 500  # target examples to adapt to, so many whatever the shares of the classes
SKEW_METHODS = ("batchnorm", "coral", "mmd")

SETTINGS: Mapping[str, tuple[Mapping[str, Any], ...]] = MappingProxyType(
    {
        "source_only": ({"lr": 3e-3}, {"lr": 1e-2}, {"lr": 3e-2}),
        "batchnorm": ({"lr": 3e-3}, {"lr": 1e-2}, {"lr": 3e-2}),
        "coral": ({"weight": 10.0}, {"weight": 100.0}, {"weight": 1000.0}),
        "mmd": ({"weight": 0.1}, {"weight": 1.0}, {"weight": 10.0}),
        "dann": ({"weight": 0.01}, {"weight": 0.1}, {"weight": 1.0}),
        "self_training": ({"threshold": 0.5}, {"threshold": 0.9}, {"threshold": 0.99}),
    }
)
"""Three settings of each method, as many for each, since the best of many is better than the best
of few. The network, the learning rate and the number of steps were settled in trials that looked at
target validation labels; the record was made once."""

ONE_SETTING: Mapping[str, tuple[Mapping[str, Any], ...]] = MappingProxyType(
    {method: ({"lr": 3e-3},) for method in ("source_only", "coral", "mmd", "dann")}
)
"""The defaults of :class:`~tlhelpers.adapt.Plan`, which :func:`larger` takes."""

TUNE = Recipe(steps=60, batch_size=32, lr=3e-3, keep="last", validate_every=60)
FROM_SCRATCH = replace(TUNE, steps=STEPS, lr=LR, validate_every=STEPS)
"""How a network with random weights learns a few target labels; ``TUNE`` is for one that has learnt
in the source. Nothing is chosen by the target's validation split."""


# --- the task -----------------------------------------------------------------------------


def pair(seed: int = 0) -> tuple[Dataset, Dataset]:
    """Printed and handwritten digits.

    Of the printed ones 150 a class are for training and 50 for validation, none for the test. The
    seed draws them, and the split of the handwritten ones.

    Example:
        >>> import tlhelpers as tl
        >>> for data in tl.adapt_study.pair():
        ...     print(data.name, data.train)
        printed train split: 1,500 examples, 10 classes
        handwritten train split: 1,000 examples, 10 classes
    """
    printed = datasets.glyphs(
        "digits_printed", per_class=200, shift=characters.MILD, validation=0.25, test=0.0, seed=seed
    )
    handwritten = datasets.digits(seed=seed)
    return replace(printed, name="printed"), replace(handwritten, name="handwritten")


def network(seed: int = 0, *, classes: int = 10) -> nn.Sequential:
    """Three convolutions and a mean over the image plane, so small that a run takes a second.

    (n, 1, h, w) images to (n, classes) logits; the 64 features are what the last layer sees:
    ``network(0)[:-1](x)``.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network = tl.adapt_study.network()
        >>> network(torch.zeros(2, 1, 16, 16)).shape, network[:-1](torch.zeros(2, 1, 16, 16)).shape
        (torch.Size([2, 10]), torch.Size([2, 64]))
    """

    def layer(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return convolution, nn.BatchNorm2d(outputs), nn.ReLU()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *layer(1, 16, 2), *layer(16, 32, 2), *layer(32, 64, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
        )  # fmt: skip


def plan(method: str = "source_only", *, steps: int = STEPS, **changes: Any) -> Plan:
    """How every run of this chapter is made, but for what ``changes`` says.

    Example:
        >>> import tlhelpers as tl
        >>> plan = tl.adapt_study.plan("dann", weight=0.1)
        >>> plan.steps, plan.lr, plan.weight
        (120, 0.01, 0.1)
    """
    return Plan(**{"method": method, "steps": steps, "lr": LR, "evaluations": 5, **changes})


# --- methods, settings, seeds -------------------------------------------------------------


def compare(
    run: Run | None = None,
    *,
    seeds: Sequence[int] = SEEDS,
    settings: Mapping[str, Sequence[Mapping[str, Any]]] = SETTINGS,
    steps: int = STEPS,
    make: Callable[[int], nn.Sequential] = network,
    name: str = COMPARE,
) -> Record:
    """Every method with every setting, and what each way of choosing among them takes.

    The test split is opened before training, as an oracle: its labels say what each evaluation was
    worth, and :func:`choose` also shows what becomes of a result that is chosen by them. Training
    never sees them.

    Args:
        run: unused but for its place in ``records.get``: this runs on the CPU, from its own seeds.
        seeds: each draws the data, their split, the weights and the batches.
        settings: for each method the fields of :class:`~tlhelpers.adapt.Plan` that differ.
        steps: of each run.
        make: from a seed to the network that is adapted.
        name: of the record.

    Returns:
        a record, by default ``glyphs/adaptation``: a row of the curve for each run. ``step``,
        ``source_validation``, ``source_validation_loss`` and ``target_test`` are lists over its
        evaluations; ``chosen`` is the place among them that source validation took, at which
        ``target_validation`` and ``a_distance`` were measured. The result holds for each method the
        accuracy on the test split by each way of choosing (``mmd_by_source``), what choosing on the
        test split adds (``mmd_optimism``), and the gain over the source alone, each chosen on
        source validation (``mmd_gain``).
    """
    origin, start = records.provenance(compare, command=COMMAND), time.perf_counter()
    runs: list[dict[str, Any]] = []
    splits = ""
    for seed in seeds:
        source, target = pair(seed)
        splits = target.split_name.removesuffix(f"{seed}") + "of the run"
        opened = target.test.open(reason="every run of chapter 13, to choose on it on purpose")
        domains = adapt.domains(source, target, oracle=opened)
        for method, several in settings.items():
            for change in several:
                settled = plan(method, steps=steps, **change)
                adapted = adapt.fit(make(seed), domains, settled, Run(seed=seed))
                runs.append({"method": method, "setting": _words(change), "seed": seed}
                            | _history(adapted, source, target))  # fmt: skip
    result = _by_each_way(pd.DataFrame(runs))
    return Record(
        name=name,
        tier="cpu",
        split=f"printed: random; handwritten: {splits}",
        input=f"16 × 16 images, {steps} steps of {plan().batch_size} images of each domain",
        seeds=tuple(seeds),
        curve=tuple(runs),
        wall_seconds=time.perf_counter() - start,
        **_summary(result, seeds),
        **origin,
    )


def larger(run: Run | None = None, *, seeds: Sequence[int] = SEEDS, steps: int = 200) -> Record:
    """The alignment methods with a network of eight times the arithmetic, and one setting each.

    Returns:
        the record ``glyphs/adaptation_larger``, made by :func:`compare` with :func:`resnet`.
    """
    return compare(run, seeds=seeds, settings=ONE_SETTING, steps=steps, make=resnet, name=LARGER)


def resnet(seed: int = 0) -> nn.Sequential:
    """The small residual network of the other chapters, as a sequence that ends in its head.

    Example:
        >>> import tlhelpers as tl
        >>> large, small = tl.adapt_study.resnet(), tl.adapt_study.network()
        >>> [sum(p.numel() for p in network.parameters()) for network in (large, small)]
        [77754, 24058]
    """
    made = models.small_resnet(10, seed=seed)
    body = (made.stem, made.stage1, made.stage2, made.stage3)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), made.head)


def _words(change: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in change.items())


def _history(adapted: Adapted, source: Dataset, target: Dataset) -> dict[str, Any]:
    """What a run leaves behind, see :func:`compare`."""
    history, chosen = adapted.history, adapted.network
    return {
        "step": history["step"].tolist(),
        "source_validation": history["source_validation_top1"].tolist(),
        "source_validation_loss": history["source_validation_loss"].tolist(),
        "target_test": history["oracle_top1"].tolist(),
        "chosen": adapted.rows["source"],
        "target_validation": evaluate.validate(chosen, target.validation, resamples=2).value,
        "a_distance": a_distance(
            chosen, source, target, own_statistics=adapted.plan.method == "batchnorm"
        ),
    }


def a_distance(
    network: nn.Module, source: Dataset, target: Dataset, *, own_statistics: bool = False
) -> float:
    """The proxy A-distance of features, on validation inputs, which no method has adapted to.

    Args:
        network: the last of its modules is the head.
        source: labels are not looked at.
        target: the same.
        own_statistics: whether the source is seen with BatchNorm statistics of its own, as it is
            when a network was adapted by ``"batchnorm"``.

    Example:
        >>> import tlhelpers as tl
        >>> printed, handwritten = tl.adapt_study.pair()
        >>> untrained = tl.adapt_study.network(seed=2)
        >>> round(tl.adapt_study.a_distance(untrained, printed, handwritten), 1)
        1.4
    """
    seen = adapt.adapt_batchnorm(network, source.train.x) if own_statistics else network
    return discrepancy.proxy_a_distance(
        features(seen, source.validation.x), features(network, target.validation.x)
    )


def features(network: nn.Module, x: Tensor) -> Tensor:
    """(n, 64): what the head of :func:`network` sees, in evaluation mode and without gradients.

    Raises:
        TypeError: if the network is not a sequence of modules, of which the last is its head.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> tl.adapt_study.features(tl.adapt_study.network(), torch.zeros(5, 1, 16, 16)).shape
        torch.Size([5, 64])
    """
    if not isinstance(network, nn.Sequential):
        raise TypeError(f"features needs an nn.Sequential, found {type(network).__name__}.")
    with torch.inference_mode():
        return network[:-1].eval()(x)


WAYS = ("source", "target_validation", "target_test")
"""How :func:`choose` chooses."""


def choose(runs: pd.DataFrame, *, by: str) -> pd.DataFrame:
    """For each method and seed the setting and the step that one would report.

    - ``"source"``: the highest accuracy on source validation, of equals the lowest loss there;
    - ``"target_validation"``: the step as above; among settings, the highest accuracy on the
      target's validation labels;
    - ``"target_test"``: the highest accuracy on the target's test split itself.

    Args:
        runs: the curve of :func:`compare`.
        by: one of :data:`WAYS`.

    Returns:
        a row for each method and seed with ``setting``, ``step`` and ``top1``, the accuracy on the
        test split.

    Raises:
        ValueError: if there is no such way.

    Example:
        >>> import tlhelpers as tl
        >>> runs = tl.records.load("glyphs/adaptation").to_frame()
        >>> for by in ("source", "target_test"):
        ...     chosen = tl.adapt_study.choose(runs, by=by)
        ...     print(by, chosen.groupby("method").top1.mean().round(3)["self_training"])
        source 0.715
        target_test 0.736
    """
    if by not in WAYS:
        raise ValueError(f"by should be one of {', '.join(WAYS)}, found {by!r}.")
    lists = ["step", "source_validation", "source_validation_loss", "target_test"]
    each = runs.assign(row=[range(len(steps)) for steps in runs["step"]])
    each = each.explode([*lists, "row"])
    if by == "target_test":
        order = ["target_test"]
    elif by == "source":
        each["minus_loss"] = -each["source_validation_loss"]
        order = ["source_validation", "minus_loss"]
    else:
        each = each[each["row"] == each["chosen"]]
        order = ["target_validation"]
    # Stable, so that of equals the first setting is taken.
    best = each.sort_values(order, ascending=False, kind="stable").groupby(["method", "seed"])
    taken = best.head(1).rename(columns={"target_test": "top1"}).astype({"top1": float})
    return taken[["method", "seed", "setting", "step", "top1"]].sort_values(["method", "seed"])


def _by_each_way(runs: pd.DataFrame) -> dict[str, Estimate]:
    top1 = {
        way: choose(runs, by=way).pivot(index="seed", columns="method", values="top1")
        for way in WAYS
    }
    result = {}
    for method in dict.fromkeys(runs["method"]):
        for way in WAYS:
            result[f"{method}_by_{way}"] = evaluate.mean_interval(top1[way][method])
        more = top1["target_test"][method] - top1["source"][method]
        result[f"{method}_optimism"] = evaluate.mean_interval(more, unit="points")
        if method != "source_only" and "source_only" in top1["source"]:
            gain = top1["source"][method] - top1["source"]["source_only"]
            result[f"{method}_gain"] = evaluate.mean_interval(gain, unit="points")
    return result


def _summary(result: Mapping[str, Estimate], seeds: Sequence[int]) -> dict[str, Any]:
    return records.figures(result) | {"interval_over": f"95 %, t, over {len(seeds)} seeds"}


def _last(method: str, domains: adapt.Domains, seed: int, steps: int, **changes: Any) -> nn.Module:
    """The last weights of a run, with the method's default settings but for ``changes``."""
    settled = plan(method, steps=steps, evaluations=1, **changes)
    return adapt.fit(network(seed), domains, settled, Run(seed=seed)).networks["last"]


# --- how strongly to align ----------------------------------------------------------------


def strength(
    run: Run | None = None,
    *,
    seeds: Sequence[int] = SEEDS,
    weights: Sequence[float] = STRENGTHS,
    method: str = "mmd",
    steps: int = STEPS,
) -> Record:
    """One method of alignment, with more and more weight on its domain loss.

    The last weights of each run are taken, and everything is measured on validation splits: nothing
    is chosen, and no test split is read. A judge of the domains is a linear one on the features,
    which is asked about images that it has not learnt from, as in
    :func:`~tlhelpers.discrepancy.proxy_a_distance`.

    Args:
        run: unused, as in :func:`compare`.
        seeds: each draws the data, their split, the weights and the batches.
        weights: of the domain loss; with 0 the network sees batches of both domains, but only the
            source's labels teach it.
        method: a method of ``adapt`` that adds a domain loss.
        steps: of each run.

    Returns:
        the record ``glyphs/adaptation_strength``: a row of the curve for each ``way`` and seed. A
        way is ``"alone"``, the source alone in its own batches, or a weight. The row has the
        accuracies ``source`` and ``target``, and ``told_apart``, the share of images whose domain a
        judge names, both domains counting as much. In the rows of the first seed there are lists
        over a dozen images of each class, empty ones elsewhere: ``source_odds`` and
        ``target_odds``, the judge's log odds for "target", and ``source_margin`` and
        ``target_margin``, the logit of the true class minus the largest other one. The
        result holds the means, such as ``target_10``.
    """
    origin, start = records.provenance(strength, command=COMMAND), time.perf_counter()
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        source, target = pair(seed)
        domains = adapt.domains(source, target)
        adapted = {"alone": _last("source_only", domains, seed, steps)} | {
            f"{weight:g}": _last(method, domains, seed, steps, weight=weight) for weight in weights
        }
        for way, net in adapted.items():
            measured, scores = _judged(net, source.validation, target.validation)
            shown = scores if seed == seeds[0] else {name: [] for name in scores}
            rows.append({"way": way, "seed": seed} | measured | shown)
    table = pd.DataFrame(rows).pivot(index="seed", columns="way")
    result = {
        f"{what}_{way}": evaluate.mean_interval(table[what, way])
        for what in ("source", "target", "told_apart")
        for way in adapted
    }
    return Record(
        name=STRENGTH,
        tier="cpu",
        split="as in glyphs/adaptation, validation",
        input=f"16 × 16 images; {method}, {steps} steps",
        seeds=tuple(seeds),
        curve=tuple(rows),
        wall_seconds=time.perf_counter() - start,
        **_summary(result, seeds),
        **origin,
    )


def _judged(
    network: nn.Module, source: Split, target: Split
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """What a row of :func:`strength` holds: of all images, and of some image by image."""
    odds, domain = _samples.domain_scores(
        features(network, source.x), features(network, target.x), 5, 1.0, 0, balanced=True
    )
    named = (odds > 0) == domain
    measured = {"told_apart": float(named[domain].mean() + named[~domain].mean()) / 2}
    scores: dict[str, list[float]] = {}
    for name, split, mine in (("source", source, odds[~domain]), ("target", target, odds[domain])):
        margin = _margin(network, split)
        measured[name] = float((margin > 0).mean())
        some = np.concatenate([np.flatnonzero(split.y == c)[:SHOWN] for c in range(10)])
        scores[f"{name}_odds"] = mine[some].round(2).tolist()
        scores[f"{name}_margin"] = margin[some].round(2).tolist()
    return measured, scores


def _margin(network: nn.Module, split: Split) -> np.ndarray:
    """(n,): the logit of the true class minus the largest other one."""
    with torch.inference_mode():
        logits = network(split.x).double()
    true = nn.functional.one_hot(split.y, logits.shape[1]).bool()
    return (logits[true] - logits.masked_fill(true, -torch.inf).amax(1)).numpy()


# --- other shares of the classes ----------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Skewed:
    """A target in which some classes are rare.

    Attributes:
        target: the training split is skewed; validation and test are as they were.
        shares: (m,) of the classes, in the training split.
    """

    target: Dataset
    shares: np.ndarray

    def __repr__(self) -> str:
        shares = ", ".join(f"{share:.1%}" for share in self.shares)
        return f"{self.target.name}, {len(self.target.train):,} examples with the shares {shares}"

    def accuracy(self, report: Report) -> float:
        """The accuracy on a target with these shares, from a report on the whole test split."""
        true, right = report.outcomes.true, report.outcomes.correct
        recall = np.bincount(true, right) / np.bincount(true)
        return float(recall @ self.shares)


def skewed(target: Dataset, *, ratio: float, seed: int, n: int = SKEWED) -> Skewed:
    """Make half of the classes rarer in the target, and keep the number of examples.

    Args:
        target: with as many training examples of each class.
        ratio: how many examples of a rare class there are for each of a frequent one, in 0..1.
        seed: which classes are rare, and which examples are kept.
        n: about how many training examples are kept.

    Raises:
        ValueError: if the ratio does not lie in 0..1 or leaves a class empty, or a frequent class
            has too few examples.

    Example:
        >>> import tlhelpers as tl
        >>> target = tl.datasets.digits()
        >>> rare = tl.adapt_study.skewed(target, ratio=0.1, seed=0)
        >>> sorted(rare.shares.round(3).tolist())
        [0.018, 0.018, 0.018, 0.018, 0.018, 0.182, 0.182, 0.182, 0.182, 0.182]
    """
    m = len(target.classes)
    frequent = n / (m / 2 * (1 + ratio))
    counts = {True: round(ratio * frequent), False: round(frequent)}
    if not 0 < ratio <= 1 or counts[True] < 1:
        raise ValueError(f"ratio should lie in 0..1 and leave an example, found {ratio}.")
    draw = np.random.default_rng([seed, 13])
    rare = set(draw.permutation(m)[: m // 2].tolist())
    keep = [np.flatnonzero(target.split != "train")]
    shares = np.zeros(m)
    for label, name in enumerate(target.classes):
        rows = np.flatnonzero((target.split == "train") & (target.labels.numpy() == label))
        wanted = counts[label in rare]
        if len(rows) < wanted:
            raise ValueError(
                f"{target.name}: {wanted} examples of {name!r} are wanted, there are {len(rows)}. "
                f"Ask for a smaller n."
            )
        keep.append(draw.permutation(rows)[:wanted])
        shares[label] = wanted
    kept = target.subset(np.sort(np.concatenate(keep)))
    return Skewed(kept, shares / shares.sum())


def skew(
    run: Run | None = None,
    *,
    seeds: Sequence[int] = SKEW_SEEDS,
    ratios: Sequence[float] = RATIOS,
    methods: Sequence[str] = SKEW_METHODS,
    steps: int = STEPS,
) -> Record:
    """Adapt to a target with other shares of the classes than the source.

    Each method has its default settings, and its last weights are taken. The images of each class
    are drawn from the same distribution throughout; what differs is how many there are. Accuracies
    are for the target's shares, so that a method that learns these well is rewarded for it.

    Args:
        run: unused, as in :func:`compare`.
        seeds: each draws the data, the weights, the batches, and which classes are rare.
        ratios: of :func:`skewed`.
        methods: of ``adapt``, beside the source alone.
        steps: of each run.

    Returns:
        the record ``glyphs/adaptation_skew``: a row of the curve for each run (``method``,
        ``ratio``, ``seed``, ``top1``); in the result the gain over the source alone on the same
        target, such as ``mmd_0.1``.
    """
    origin, start = records.provenance(skew, command=COMMAND), time.perf_counter()
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        source, whole = pair(seed)
        targets = {ratio: skewed(whole, ratio=ratio, seed=seed) for ratio in ratios}
        plain = _last("source_only", adapt.domains(source, whole), seed, steps)
        networks: dict[tuple[str, float], nn.Module] = {}
        for ratio, target in targets.items():
            domains = adapt.domains(source, target.target)
            networks["source_only", ratio] = plain
            for method in methods:
                networks[method, ratio] = (
                    adapt.adapt_batchnorm(plain, domains.target.x)
                    if method == "batchnorm"  # which trains as the source alone does
                    else _last(method, domains, seed, steps)
                )
        reports = evaluate.grid(networks, whole.test, name="other shares of classes", resamples=2)
        rows += [
            {"method": method, "ratio": ratio, "seed": seed,
             "top1": targets[ratio].accuracy(reports[method, ratio])}
            for method, ratio in networks
        ]  # fmt: skip
    top1 = pd.DataFrame(rows).pivot(index="seed", columns=["method", "ratio"], values="top1")
    result = {
        f"{method}_{ratio:g}": evaluate.mean_interval(
            top1[method, ratio] - top1["source_only", ratio], unit="points"
        )
        for method in methods
        for ratio in ratios
    }
    return Record(
        name=SKEW,
        tier="cpu",
        split="as in glyphs/adaptation",
        input=f"{SKEWED} target images, half of the classes rarer; {steps} steps",
        seeds=tuple(seeds),
        curve=tuple(rows),
        wall_seconds=time.perf_counter() - start,
        **_summary(result, seeds),
        **origin,
    )


# --- a few target labels ------------------------------------------------------------------


def few_labels(
    run: Run | None = None,
    *,
    seeds: Sequence[int] = SEEDS,
    shots: Sequence[int] = SHOTS,
    method: str = "coral",
    steps: int = STEPS,
) -> Record:
    """What a few target labels are worth, beside and after adaptation without any.

    Nothing is chosen on the way; each test split is read once.

    Args:
        run: unused, as in :func:`compare`.
        seeds: each draws the data, the labelled digits, the weights and the batches.
        shots: target labels a class.
        method: which adaptation, with its default settings.
        steps: of each run in the source.

    Returns:
        the record ``glyphs/adaptation_few``: a row of the curve for each way, number of labels
        ``k`` (0 for none) and seed, with ``top1`` on the test split. The result holds the means,
        such as ``source_5``, and ``adapted_0``.
    """
    origin, start = records.provenance(few_labels, command=COMMAND), time.perf_counter()
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        source, target = pair(seed)
        domains = adapt.domains(source, target)
        starts = {
            "source": _last("source_only", domains, seed, steps),
            "adapted": _last(method, domains, seed, steps),
        }
        networks: dict[tuple[str, int], nn.Module] = {(way, 0): starts[way] for way in starts}
        for k in shots:
            few = target.few(k, draw=seed)
            for way in ("scratch", *starts):
                tuned = network(seed)
                if way in starts:
                    tuned.load_state_dict(starts[way].state_dict())
                train.fit(tuned, few, TUNE if way in starts else FROM_SCRATCH, Run(seed=seed))
                networks[way, k] = tuned
        reports = evaluate.grid(networks, target.test, name="few labels", resamples=2)
        rows += [
            {"way": way, "k": k, "seed": seed, "top1": reports[way, k].top1.value}
            for way, k in networks
        ]
    top1 = pd.DataFrame(rows).pivot(index="seed", columns=["way", "k"], values="top1")
    result = {f"{way}_{k}": evaluate.mean_interval(top1[way, k]) for way, k in top1}
    return Record(
        name=FEW_LABELS,
        tier="cpu",
        split="as in glyphs/adaptation",
        input=f"16 × 16 images; {steps} steps, then {TUNE.steps}; adapted by {method}",
        seeds=tuple(seeds),
        curve=tuple(rows),
        wall_seconds=time.perf_counter() - start,
        **_summary(result, seeds),
        **origin,
    )
