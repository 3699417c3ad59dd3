"""From a folder of pictures to an honest report: protocol, baselines, result, and what it hides.

Write a :class:`Protocol` before the first result, read the folder (:func:`tlhelpers.folders.read`),
and call :func:`measure`. It fits everything on the training pictures, chooses on validation, writes
all answers to the test pictures down, and only then reads the test labels, once. What comes back
is a :class:`Result`: tables for the figures of the report, a sentence that may be quoted, and the
report itself as text, with gaps where only its author can write.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.v2 import functional as F

from tlhelpers import (
    _inference,
    audit,
    confidence,
    datasets,
    evaluate,
    features,
    models,
    probe,
    runtime,
    train,
)
from tlhelpers.audit import Audit
from tlhelpers.evaluate import Estimate, Report
from tlhelpers.folders import Pictures
from tlhelpers.models import Backbone, Preprocess
from tlhelpers.probe import Probe
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.train import Recipe

SMALL = "small_resnet"
"""The network that the package ships, for small pictures of signs; all others are torchvision's."""

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        f"lr {lr:g}": Recipe(epochs=10, lr=lr, head_lr=10 * lr, warmup=0.1, patience=3)
        for lr in (3e-5, 1e-4)
    }
)
"""What fine-tuning of a network for photographs chooses from."""

SMALL_RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {f"lr {lr:g}": Recipe(steps=150, lr=lr, warmup=0.1) for lr in (1e-3, 3e-3)}
)
"""What fine-tuning of the small network chooses from."""

SMALL_SCRATCH: Mapping[str, Recipe] = MappingProxyType(
    {f"lr {lr:g}": Recipe(steps=300, lr=lr, warmup=0.1) for lr in (3e-3, 1e-2)}
)
"""What training of the small network from random weights chooses from."""

MAJORITY, FACTS, UNTRAINED = "largest class", "file facts", "random weights"
PROBE, TUNED, SCRATCH = "linear probe", "fine-tuned", "from scratch"
FEW_GROUPS = 12  # with so many or fewer, an interval over groups is too narrow
FEW_PICTURES = 20  # of a class in the test, fewer of which tell next to nothing of the class

HEADINGS = (
    "Question",
    "Protocol",
    "Baselines",
    "Result",
    "What the figure does not say",
    "What did not work",
)
"""The sections of a report, in their order."""

_METRICS = MappingProxyType(
    {"top1": "accuracy", "balanced_accuracy": "mean recall over classes", "macro_f1": "macro-F1"}
)
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is written down before the first result.

    The first four are sentences that nobody but the author can write. The others are the settings
    of :func:`measure`.

    Attributes:
        question: one sentence that a measurement can answer.
        expected: what you expect, and why.
        origin: where the pictures come from, and whether the backbone may have met them.
        example: what one example is, and which examples belong together.
        network: a name in ``torchvision.models``, or ``"small_resnet"``.
        weights: of torchvision's networks: ``"imagenet"``, or a file, see
            :func:`tlhelpers.models.backbone`; of the small one: the name of shipped weights, such
            as ``"letters"``, or a file.
        size: side in pixels of the squares that the network works on.
        metric: the one figure that decides: ``"top1"``, ``"balanced_accuracy"`` or
            ``"macro_f1"``.
        ks: labels a class of the learning curve.
        draws: how often the labels of each point are drawn.
        recipes: what fine-tuning chooses from, by name; None for :data:`RECIPES`, or
            :data:`SMALL_RECIPES`.
        scratch: what training from random weights chooses from, nothing for no such training;
            None for :data:`SMALL_SCRATCH` with the small network, where it is cheap, and for
            nothing with any other.

    Raises:
        ValueError: if a sentence is missing, or a setting cannot be meant.

    Example:
        >>> import tlhelpers as tl
        >>> protocol = tl.reporting.Protocol(
        ...     question="Can the shelter's cats be told apart by their coats?",
        ...     expected="Mostly, as few coats are alike.",
        ...     origin="Photographs of one shelter; no network has met them.",
        ...     example="A photograph; those of one cat belong together.",
        ... )
        >>> protocol.network, protocol.metric, protocol.draws
        ('mobilenet_v2', 'top1', 10)
    """

    question: str
    expected: str
    origin: str
    example: str
    network: str = "mobilenet_v2"
    weights: str | Path = "imagenet"
    size: int = 224
    metric: str = "top1"
    ks: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    draws: int = 10
    recipes: Mapping[str, Recipe] | None = None
    scratch: Mapping[str, Recipe] | None = None

    def __post_init__(self) -> None:
        for name in ("question", "expected", "origin", "example"):
            if len(str(getattr(self, name)).split()) < 3:
                raise ValueError(
                    f"Protocol: {name} should be a sentence that is written before the first "
                    f"result, found {getattr(self, name)!r}. {_ASKS[name]}"
                )
        if self.metric not in _METRICS:
            raise ValueError(
                f"Protocol: metric should be one of {', '.join(_METRICS)}, found {self.metric!r}."
            )
        ks = self.ks
        if not ks or min(ks) < 1 or any(a >= b for a, b in itertools.pairwise(ks)):
            raise ValueError(f"Protocol: ks should be rising numbers from 1 on, found {ks}.")
        if self.draws < 2:
            raise ValueError(
                f"Protocol: an interval over draws needs 2 draws or more, found {self.draws}."
            )
        if self.size < 8:
            raise ValueError(f"Protocol: size is 8 pixels or more, found {self.size}.")

    def __repr__(self) -> str:
        return (
            f"Protocol: {self.network} (weights {Path(self.weights).name}) at {self.size} px; "
            f"{_METRICS[self.metric]} decides; learning curve at {', '.join(map(str, self.ks))} "
            f"labels a class, {self.draws} draws each"
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each decision: ``decision`` and ``what``."""
        rows = {
            **{name: getattr(self, name) for name in _ASKS},
            "network": f"{self.network}, weights {Path(self.weights).name}, {self.size} px",
            "figure that decides": _METRICS[self.metric],
            "learning curve": f"{', '.join(map(str, self.ks))} labels a class, {self.draws} draws",
            "chosen on validation": "ridge weight, settings and epoch of every training, "
            "temperature, probe or fine-tuning",
        }
        return pd.DataFrame(rows.items(), columns=["decision", "what"])


_ASKS = {
    "question": "What should a measurement answer?",
    "expected": "What do you expect, and why?",
    "origin": "Where do the pictures come from, and may the network have met them?",
    "example": "What is one example, and which of them belong together?",
}


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What :func:`measure` found; prints as the sentence that may be quoted.

    Attributes:
        pictures: the folder.
        protocol: what was decided beforehand.
        reports: everything that was read on the test, by name; all in one reading.
        chosen: ``"linear probe"`` or ``"fine-tuned"``: the one that validation prefers.
        selection: a row for each candidate: ``way``, ``setting``, ``nll`` and ``accuracy`` on
            validation, and whether it was ``chosen`` within its way.
        curve: a row for each number of labels a class: ``k``, ``mean``, ``low``, ``high``, the
            interval over draws.
        preflight: the audit of the set-up.
        seconds: of each part of the work, by name.
        run: seed and device.
    """

    pictures: Pictures
    protocol: Protocol
    reports: Mapping[str, Report]
    chosen: str
    selection: pd.DataFrame
    curve: pd.DataFrame
    preflight: Audit
    seconds: Mapping[str, float]
    run: Run

    @property
    def final(self) -> Report:
        """The report of the chosen way, its probabilities calibrated on validation."""
        return self.reports[f"{self.chosen}, calibrated"]

    @property
    def over(self) -> str:
        """What the intervals are over."""
        return "groups of test pictures" if self.final.groups is not None else "test pictures"

    def _value(self, report: Report) -> Estimate:
        found = getattr(report, self.protocol.metric)
        assert isinstance(found, Estimate)
        return found

    def baselines(self) -> pd.DataFrame:
        """A row for each way, baselines first: ``way``, ``value``, ``low``, ``high``."""
        names = [name for name in (*_BASELINES, PROBE, TUNED) if name in self.reports]
        found = [(name, self._value(self.reports[name])) for name in names]
        rows = [(name, e.value, e.low, e.high) for name, e in found]
        return pd.DataFrame(rows, columns=["way", "value", "low", "high"])

    def gains(self) -> Mapping[str, Estimate]:
        """What the chosen way has more than each other one, paired picture by picture."""
        names = [name for name in (*_BASELINES, PROBE, TUNED) if name in self.reports]
        return {
            name: evaluate.difference(
                self.reports[self.chosen], self.reports[name], self.protocol.metric
            )
            for name in names
            if name != self.chosen
        }

    def calibration(self) -> pd.DataFrame:
        """The calibration error before and after: ``probabilities``, ``value``, ``low``, ``high``.

        ``floor`` is what a perfectly calibrated predictor shows on average on so few pictures.
        """
        rows = [
            (kind, r.ece.value, r.ece.low, r.ece.high, r.ece_floor)
            for kind, r in (("as fitted", self.reports[self.chosen]), ("calibrated", self.final))
        ]
        return pd.DataFrame(rows, columns=["probabilities", "value", "low", "high", "floor"])

    def warnings(self) -> list[str]:
        """What a reader of the figures has to know; a sentence each, none if there is nothing."""
        found = [str(finding) for finding in self.preflight.findings]
        found += _doubts(self)
        return found

    @property
    def sentence(self) -> str:
        """The result as it may be quoted, with interval, data, split, choice and baseline."""
        data, value = self.pictures.data, self._value(self.final)
        floor = self._value(self.reports[MAJORITY])
        together = f" in {_groups(self.final):,} groups" if self.final.groups is not None else ""
        what = "a linear probe on the frozen" if self.chosen == PROBE else "the fine-tuned"
        other = TUNED if self.chosen == PROBE else PROBE
        return (
            f"On {data.name} ({len(data.classes)} classes, {len(data.train):,} training pictures, "
            f"split {data.split_name!r}), {what} {self.protocol.network} (weights "
            f"{Path(self.protocol.weights).name}), chosen on validation over its rival "
            f"({other}), has {_article(_METRICS[self.protocol.metric])} of {value} on "
            f"{len(self.final):,} test pictures{together} (95 % bootstrap interval over "
            f"{self.over}; the test was read {_times(len(self.final.readings))}); always answering "
            f"the largest class has {100 * floor.value:.1f} %."
        )

    def __repr__(self) -> str:
        return self.sentence

    def to_markdown(self) -> str:
        """The report in the sections of :data:`HEADINGS`; write where it says *Write:*."""
        return _markdown(self)


_BASELINES = (MAJORITY, FACTS, UNTRAINED, SCRATCH)


def measure(pictures: Pictures, protocol: Protocol, *, run: Run | None = None) -> Result:
    """Do what the protocol says, and read the test once.

    *Learnt on the training pictures:* the largest class; a linear classifier of facts about the
    files (:meth:`~tlhelpers.folders.Pictures.facts`); a linear probe on the features of the
    network with random weights, and with its pretrained ones; the network trained from random
    weights, where the protocol asks for it; the pretrained network fine-tuned, beginning with the
    probe as its head (Kumar et al. 2022); and the probe again for each point of the learning
    curve.

    *Chosen on validation:* ridge weights, settings, epochs, temperatures, and whether probe or
    fine-tuning is the answer. All these choices go by the negative log-likelihood after each
    candidate's own temperature, which moves less by luck than the accuracy. The learning curve
    chooses the ridge weight of each point with its first draw, on the whole of validation.

    *Read on the test, once:* all of these, with 95 % intervals, over groups of pictures where the
    folder has groups. The interval of a point of the curve is over the draws, and its groups do
    not enter: k labels may be of one group.

    Points of the curve with more labels than half of the smallest class are left out: draws would
    share most of their pictures and look alike.

    Args:
        pictures: the folder.
        protocol: what was decided.
        run: seed, device and dtype; None for seed 0 on the best device.

    Raises:
        ValueError: if a name of a network or of weights is not right, or the smallest class has
            too few training pictures for any point of the curve.
    """
    run = runtime.default(run)
    clock = _Clock()
    ks = _possible(protocol.ks, pictures.data)
    squares = datasets.pixel_cache(pictures.data, size=protocol.size)
    m = len(squares.classes)
    network = _network(protocol, m, pretrained=True, seed=run.seed)
    preflight = audit.check(network, data=squares, chosen_on="validation")
    clock.end("reading and audit")

    bank = features.extract(squares, _backbone(network), run=run)
    raw = _network(protocol, m, pretrained=False, seed=run.seed)
    random_bank = features.extract(squares, _backbone(raw), run=run)
    fitted = probe.fit(bank, run=run)
    written = {
        MAJORITY: _majority(squares),
        FACTS: _on_bank(probe.fit(pictures.facts(), run=run), pictures.facts()),
        UNTRAINED: _on_bank(probe.fit(random_bank, run=run), random_bank),
        PROBE: _on_bank(fitted, bank),
    }
    clock.end("features and probes")
    points = _points(bank, ks, protocol.draws, run)
    clock.end("learning curve")

    rows = [_row(PROBE, f"ridge {fitted.ridge:.2g}", written[PROBE], squares)]
    _head(network).load_state_dict(fitted.calibrated().to_linear().state_dict())
    recipes = protocol.recipes or (SMALL_RECIPES if protocol.network == SMALL else RECIPES)
    written[TUNED] = _best_of(TUNED, network, recipes, squares, run, rows)
    clock.end("fine-tuning")
    scratch = protocol.scratch
    if scratch is None and protocol.network == SMALL:
        scratch = SMALL_SCRATCH
    if scratch:
        written[SCRATCH] = _best_of(SCRATCH, raw, scratch, squares, run, rows)
        clock.end("training from scratch")

    selection = pd.DataFrame(rows)
    kept = selection.groupby("way")["nll"].idxmin()
    selection["chosen"] = selection.index.isin(kept)
    rivals = selection[selection["way"].isin((PROBE, TUNED))]
    chosen = str(rivals.loc[rivals["nll"].idxmin(), "way"])  # the probe where both are equal
    written[f"{chosen}, calibrated"] = written[chosen].calibrated(squares)
    drawn = {point: _Answers.of(one, bank) for point, one in points.items()}
    reports = _read({**written, **drawn}, pictures)
    clock.end("the one reading")
    curve = []
    for k in ks:
        values = [_metric(reports[k, d], protocol) for d in range(protocol.draws)]
        curve.append((k, evaluate.mean_interval(values)))
    return Result(
        pictures=pictures,
        protocol=protocol,
        reports={name: reports[name] for name in written},
        chosen=chosen,
        selection=selection,
        curve=pd.DataFrame(
            [(k, e.value, max(0.0, e.low), min(1.0, e.high)) for k, e in curve],
            columns=["k", "mean", "low", "high"],
        ),
        preflight=preflight,
        seconds=clock.seconds,
        run=run,
    )


# --- the network --------------------------------------------------------------------------


class _OnPhotographs(nn.Module):
    """The small network, fed with photographs: averaged to grey, ink 1 on paper 0."""

    def __init__(self, network: models.SmallResNet, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.size, self.size):
            images = F.resize(images, [self.size, self.size], antialias=True)
        white = 1 if images.is_floating_point() else 255
        grey = images.mean(dim=1, keepdim=True, dtype=_floating(images.dtype)) / white
        return self.network(1 - grey)


def _floating(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.float32


def _network(protocol: Protocol, classes: int, *, pretrained: bool, seed: int) -> nn.Module:
    """The protocol's network with a fresh head; takes (n, 3, h, w) uint8 images."""
    if protocol.network == SMALL:
        weights = protocol.weights if pretrained else None
        return _OnPhotographs(
            models.small_resnet(classes, weights=weights, seed=seed), protocol.size
        ).eval()
    found = models.backbone(
        protocol.network, weights=protocol.weights if pretrained else None, seed=seed
    )
    assert found.preprocess is not None
    own = dataclasses.replace(found.preprocess, resize=protocol.size, crop=protocol.size)
    found = dataclasses.replace(found, preprocess=own)
    return models.PhotoClassifier(found, classes, seed=seed).eval()


def _backbone(network: nn.Module) -> Backbone:
    if isinstance(network, _OnPhotographs):
        plain = Preprocess(network.size, network.size, mean=(0.0,) * 3, std=(1.0,) * 3)
        return models.as_backbone(network, name=SMALL, preprocess=plain)
    return models.as_backbone(network)


def _head(network: nn.Module) -> nn.Module:
    return network.get_submodule(models.head_name(network))


# --- answers, written down before the labels are read -------------------------------------


@dataclass(frozen=True, eq=False)
class _Answers:
    """(n, m) logits for the validation and the test pictures, in the order of the data set."""

    validation: Tensor
    test: Tensor

    @classmethod
    def of(cls, fitted: Probe, bank: Dataset) -> _Answers:
        return cls(fitted(bank.validation.x), fitted(bank.test.x))

    def calibrated(self, data: Dataset) -> _Answers:
        """Divided by the temperature that fits validation best; unchanged where all is right.

        Without an error, no temperature is too low, and every confidence would become 1.
        """
        if bool((self.validation.argmax(dim=1) == data.validation.y).all()):
            return self
        found = confidence.temperature(self.validation, data.validation.y)
        return _Answers(self.validation / found, self.test / found)


_on_bank = _Answers.of


def _majority(data: Dataset) -> _Answers:
    counts = torch.bincount(data.train.y, minlength=len(data.classes)).double()
    row = (counts / counts.sum()).log()
    return _Answers(row.expand(len(data.validation), -1), row.expand(len(data.test), -1))


@torch.inference_mode()
def _by_network(network: nn.Module, data: Dataset) -> _Answers:
    with _inference.evaluating(network) as device:
        found = [
            torch.cat(
                [network(part.x.rows(rows).to(device)).float().cpu() for rows in _chunks(len(part))]
            )
            for part in (data.validation, data.test)
        ]
    return _Answers(*found)


def _chunks(n: int) -> Sequence[range]:
    return [range(start, min(start + _BATCH, n)) for start in range(0, n, _BATCH)]


def _row(way: str, setting: str, answers: _Answers, data: Dataset) -> dict[str, object]:
    """What validation says of a candidate."""
    y = data.validation.y
    scaled = answers.calibrated(data).validation
    return {
        "way": way,
        "setting": setting,
        "nll": float(cross_entropy(scaled, y)),
        "accuracy": float((scaled.argmax(dim=1) == y).double().mean()),
    }


def _best_of(
    way: str,
    begun: nn.Module,
    recipes: Mapping[str, Recipe],
    data: Dataset,
    run: Run,
    rows: list[dict[str, object]],
) -> _Answers:
    """Train a network by each recipe from the same start; the answers that validation prefers."""
    first = {name: value.clone() for name, value in begun.state_dict().items()}
    best: tuple[float, _Answers] | None = None
    for name, recipe in recipes.items():
        begun.load_state_dict(first)
        history = train.fit(begun, data, recipe, run)
        answers = _by_network(begun, data)
        row = _row(way, f"{name}, epoch {history.best_epoch}", answers, data)
        rows.append(row)
        nll = float(str(row["nll"]))
        if best is None or nll < best[0]:
            best = nll, answers
    if best is None:
        raise ValueError(f"{way}: the protocol names no recipe to choose from.")
    return best[1]


def _possible(ks: Sequence[int], data: Dataset) -> list[int]:
    smallest = int(torch.bincount(data.train.y, minlength=len(data.classes)).min())
    chosen = [k for k in ks if k <= max(1, smallest // 2)]
    if not chosen:
        raise ValueError(
            f"the learning curve is to begin at {min(ks)} labels a class, but the smallest class "
            f"has {smallest} training pictures, and draws of more than half of them would look "
            f"alike. Give the protocol smaller ks, or add pictures."
        )
    return chosen


def _points(bank: Dataset, ks: Sequence[int], draws: int, run: Run) -> dict[tuple[int, int], Probe]:
    """A probe for each point of the curve and each draw; the first draw chooses the ridge."""

    def fit(job: tuple[int, int, float | None]) -> Probe:
        k, draw, ridge = job
        return probe.fit(bank.few(k, draw=draw), ridge=ridge, run=run)

    # Small problems: a core for each instead of all cores for one after another.
    with runtime.torch_threads(1), ThreadPoolExecutor(runtime.cores()) as pool:
        firsts = dict(zip(ks, pool.map(fit, [(k, 0, None) for k in ks]), strict=True))
        jobs = [(k, d, firsts[k].ridge) for k in ks for d in range(1, draws)]
        others = dict(zip([job[:2] for job in jobs], pool.map(fit, jobs), strict=True))
    return {(k, 0): fitted for k, fitted in firsts.items()} | others


def _read(answers: Mapping[Any, _Answers], pictures: Pictures) -> dict[Any, Report]:
    """One reading of everything that was written down."""
    data = pictures.data
    sheet = dataclasses.replace(data, x=torch.zeros(len(data), 1))  # the answers need no pictures

    predictors = {key: functools.partial(_say, one.test) for key, one in answers.items()}
    groups = pictures.groups if pictures.grouped else None
    return evaluate.grid(predictors, sheet.test, name=f"report on {data.name}", groups=groups)


def _say(scores: Tensor, _: Tensor) -> Tensor:
    return scores


def _metric(report: Report, protocol: Protocol) -> float:
    return float(getattr(report, protocol.metric).value)


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.since = now - self.since, now


# --- what a reader has to know, and the report as text ------------------------------------


def _doubts(result: Result) -> list[str]:
    pictures, reports = result.pictures, result.reports
    found = []
    n, right = len(result.final), int(result.final.correct.sum())
    if right == n:
        found.append(
            f"All {n:,} test pictures are right, so the bootstrap sees no error. An accuracy of "
            f"{100 * 0.025 ** (1 / n):.1f} % would still give that once in forty times, were the "
            f"pictures independent."
        )
    facts = evaluate.difference(reports[FACTS], reports[MAJORITY], result.protocol.metric)
    if facts.low > 0:
        found.append(
            f"Size, shape and format of the files alone tell classes apart ({facts} above the "
            f"largest class): look at what differs between the files of the classes."
        )
    untrained = evaluate.difference(reports[PROBE], reports[UNTRAINED], result.protocol.metric)
    if untrained.low <= 0:
        found.append(
            f"The pretrained features are not clearly better than those of random weights "
            f"({untrained}): this is no evidence of transfer."
        )
    gains = result.gains()
    if SCRATCH in gains and gains[SCRATCH].low <= 0:
        found.append(
            f"The result is not clearly better than the same network trained from random weights "
            f"({gains[SCRATCH]}): with all these labels, this is no evidence of transfer."
        )
    gain = gains[TUNED if result.chosen == PROBE else PROBE]
    if gain.low <= 0 <= gain.high:
        found.append(
            f"The test cannot tell {PROBE} and {TUNED} apart (paired difference {gain}): do not "
            f"write that one is better."
        )
    if result.final.groups is not None and _groups(result.final) <= FEW_GROUPS:
        found.append(
            f"The test has {_groups(result.final)} groups; from so few the interval over groups is "
            f"too narrow."
        )
    sizes = pd.Series(result.final.outcomes.true).value_counts()
    if sizes.min() < FEW_PICTURES:
        found.append(
            f"The smallest class has {sizes.min()} test pictures: figures of single classes say "
            f"next to nothing."
        )
    crossing = pictures.left_out["reason"].str.contains("which is in").sum()
    if crossing:
        found.append(
            f"The folder's own division leaks: {crossing:,} training or validation pictures had a "
            f"copy, or another picture of their group, in a part after theirs, and were left out."
        )
    classes = (pictures.copies["first_class"] != pictures.copies["second_class"]).sum()
    if classes:
        found.append(
            f"{classes:,} pairs of copies have two different classes: labels are wrong, in the "
            f"test too, perhaps."
        )
    return found


def _groups(report: Report) -> int:
    return 0 if report.groups is None else int(report.groups.max()) + 1


def _article(metric: str) -> str:
    return f"an {metric}" if metric[0] in "aeiou" else f"a {metric}"


def _counted(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _markdown(result: Result) -> str:
    protocol, pictures = result.protocol, result.pictures
    told = result.warnings()
    listed = "\n".join(f"- {sentence}" for sentence in told) or "- nothing was found"
    gains = "\n".join(f"- minus {name}: {gain}" for name, gain in result.gains().items())
    before, after = (
        f"{100 * row.value:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}], noise floor "
        f"{100 * row.floor:.1f} %"
        for row in result.calibration().itertuples()
    )
    confused = result.final.confused(5)
    lost = result.final.per_class().sort_values("recall").head(5)
    versions = ", ".join(
        [f"Python {platform.python_version()}"]
        + [f"{name} {version(name)}" for name in ("tlhelpers", "torch", "torchvision")]
    )
    spent = sum(result.seconds.values())
    body = (
        f"*Before any result.*\n\n{protocol.question}\n\nExpected: {protocol.expected}",
        f"*Before any result.*\n\n{protocol.origin}\n\n{protocol.example}\n\n{pictures}.\n\n"
        f"{_table(pictures.to_frame().reset_index())}\n\n{protocol}. Left out: "
        f"{_counted(len(pictures.left_out), 'picture')}; copies: "
        f"{_counted(len(pictures.copies), 'pair')}; both are "
        f"listed in `pictures.left_out` and `pictures.copies`. On validation are chosen: ridge "
        f"weight, settings and epoch of every training, temperature, and probe or fine-tuning.",
        f"{_METRICS[protocol.metric].capitalize()}, 95 % intervals over {result.over}.\n\n"
        f"{_table(result.baselines(), percent=('value', 'low', 'high'))}",
        f"{result.sentence}\n\nPaired differences of {result.chosen}, intervals over "
        f"{result.over}:\n\n{gains}\n\nLearning curve of the probe, intervals over "
        f"{protocol.draws} draws of the labels:\n\n"
        f"{_table(result.curve, percent=('mean', 'low', 'high'))}",
        f"{listed}\n\nMost frequent confusions:\n\n{_table(confused, percent=('share',))}\n\n"
        f"Classes that are found least:\n\n"
        f"{_table(lost[['class', 'n', 'recall', 'recall_low', 'recall_high']], percent=_RECALL)}"
        f"\n\nCalibration error as fitted: {before}; after a temperature from validation: "
        f"{after}.\n\nReadings of the test: {len(result.final.readings)} "
        f"({'; '.join(result.final.readings)}).\n\n"
        f"*Write: on which groups is it worse? What would have changed your mind?*",
        f"*Write: what you tried and gave up, with its figures. The one command that makes all of "
        f"this again.*\n\nCandidates on validation:\n\n"
        f"{_table(result.selection, percent=('accuracy',))}\n\nSeed {result.run.seed}, device "
        f"{result.run.device}, {versions}; {spent:.0f} s.",
    )
    parts = [
        f"## {i}. {heading}\n\n{text}"
        for i, (heading, text) in enumerate(zip(HEADINGS, body, strict=True), start=1)
    ]
    return "\n\n".join([f"# A report on {pictures.data.name}", *parts]) + "\n"


_RECALL = ("recall", "recall_low", "recall_high")


def _table(frame: pd.DataFrame, *, percent: Sequence[str] = ()) -> str:
    """A table of Markdown; proportions as per cents."""
    if frame.empty:
        return "(none)"

    def cell(name: str, value: object) -> str:
        if name in percent and isinstance(value, float):
            return "–" if np.isnan(value) else f"{100 * value:.1f} %"
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|")

    head = [str(column) for column in frame.columns]
    rows = [[cell(n, v) for n, v in zip(head, row, strict=True)] for row in frame.to_numpy(object)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
