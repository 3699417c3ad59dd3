"""The measurements of chapter 16: what fine-tuning changes, and what maps find of a shortcut.

The network is the small one pretrained on letters, the target handwritten digits with
``K`` labels a class. :func:`finetuned` looks at representations, weights and confidences
before and after; :func:`shortcuts` plants something that gives the class away, and asks whether
maps show it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlhelpers import (
    _inference,
    confidence,
    datasets,
    evaluate,
    inside,
    labels,
    models,
    records,
    runtime,
    train,
    zoo,
)
from tlhelpers.evaluate import Estimate
from tlhelpers.models import SmallResNet
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.train import Recipe

COMMAND = "python experiments/inside.py"
K = 20  # labels a class
DRAWS = 5
RECIPE: Recipe = zoo.FINE_TUNING
"""How everything is trained here, the recipe of chapter 07, fixed beforehand."""

STAGES = ("stem", "stage1", "stage2", "stage3")
RISK = 0.05
FACTORS = tuple(round(float(f), 3) for f in np.geomspace(0.5, 4, 13))
"""What the logits are divided by, besides the temperature that validation chose."""


def few(draw: int, *, k: int = K) -> Dataset:
    """Digits with k labels a class; validation and test are whole.

    Example:
        >>> import tlhelpers as tl
        >>> tl.inside_study.few(0, k=5)  # doctest: +NORMALIZE_WHITESPACE
        Dataset 'digits': 10 classes; train 50, validation 300, test 497; split '100/30/rest
        per class, seed 0'
    """
    return datasets.digits().few(k, draw=draw)


def finetune(
    data: Dataset, run: Run, *, source: str = "letters", recipe: Recipe = RECIPE
) -> SmallResNet:
    """A source network of the zoo, all of it trained on for digits.

    Args:
        data: digits, such as :func:`few` gives; validation is not looked at.
        run: seed of the head and of the order, and device.
        source: ``"random"`` trains from scratch.
        recipe: how.

    Example:
        >>> import dataclasses
        >>> import tlhelpers as tl
        >>> digits, run = tl.inside_study.few(0), tl.runtime.Run()
        >>> recipe = dataclasses.replace(tl.inside_study.RECIPE, steps=15)
        >>> network = tl.inside_study.finetune(digits, run, recipe=recipe)
        >>> tl.evaluate.validate(network, digits.validation).value > 0.6
        True
    """
    network = zoo.load(source, len(data.classes), seed=run.seed)
    train.fit(network, data.subset(np.flatnonzero(data.split != "validation")), recipe, run)
    return network.cpu().eval()


# --- before and after ---------------------------------------------------------------------


def finetuned(
    run: Run | None = None, *, draws: int = DRAWS, k: int = K, recipe: Recipe = RECIPE
) -> Record:
    """What fine-tuning changes, layer by layer, and what its confidences are worth.

    For each draw of the labels the network pretrained on letters is fine-tuned twice, with two
    heads and orders, and so is one from random weights. Each draw is two readings of the test
    split: the networks with one layer put back, and the confidences on shifted images.

    Args:
        run: device, and the seed to which the draw is added.
        draws: of the labels.
        k: labels a class.
        recipe: how all are trained.

    Returns:
        the record ``inside/finetuned``. A row of its curve is a draw: ``top1`` and ``nll`` of the
        fine-tuned network on test images, and the same with the whole ``body``, all layers but the
        head, put back to its pretrained values; ``stages``, a list with the CKA of each stage's
        outputs on validation images, between ``before`` and after, the two ``seeds``, the two from
        ``scratch``, and fine-tuned and scratch (``across``); ``layers``, a list with what each
        layer ``moved``, and top1 and nll with it alone put back to its pretrained values
        (``pretrained``) or to random ones (``random``); ``shifts``, a list with the test accuracy,
        the NLL and the ECE as trained and at the ``temperature`` fitted on clean validation
        images, the area under the risk-coverage curve, the ``coverage`` and the ``risk`` at a
        threshold for an error of ``RISK`` fitted there too, and the NLL at each of ``FACTORS``.
    """
    run = runtime.default(run)
    origin = records.provenance(finetuned, command=COMMAND)
    start = time.perf_counter()
    rows = [_draw(draw, k, recipe, run) for draw in range(draws)]
    return records.of_draws(
        "inside/finetuned",
        rows,
        {"fine-tuned": evaluate.mean_interval([row["top1"] for row in rows])},
        split=f"{k} labels a class, {draws} draws",
        input=f"digits, {datasets.GLYPH_SIZE} px, {recipe.steps} steps",
        seeds=[run.seed + draw for draw in range(draws)],
        run=run,
        origin=origin,
        start=start,
    )


def _draw(draw: int, k: int, recipe: Recipe, run: Run) -> dict[str, Any]:
    data = few(draw, k=k)
    first, second = (dataclasses.replace(run, seed=run.seed + draw + more) for more in (0, 1000))
    before = zoo.load("letters", len(data.classes), seed=first.seed)
    tuned, again = (finetune(data, one, recipe=recipe) for one in (first, second))
    scratch = [finetune(data, one, source="random", recipe=recipe) for one in (first, second)]
    return {
        "draw": draw,
        **_layers(before, tuned, data, name=f"layers, draw {draw}", seed=second.seed),
        "stages": stages(
            {
                "before": (before, tuned),
                "seeds": (tuned, again),
                "scratch": (scratch[0], scratch[1]),
                "across": (tuned, scratch[0]),
            },
            data.validation.x,
        ),
        "shifts": _shifts(tuned, data, name=f"confidence, draw {draw}"),
    }


def stages(pairs: Mapping[str, tuple[nn.Module, nn.Module]], x: Tensor) -> list[dict[str, Any]]:
    """The CKA of each stage's outputs between the two networks of each pair.

    Example:
        >>> import pandas as pd
        >>> import tlhelpers as tl
        >>> letters, random = (tl.zoo.load(name) for name in ("letters", "random"))
        >>> pairs = {"the same": (letters, letters), "another": (letters, random)}
        >>> rows = tl.inside_study.stages(pairs, tl.datasets.digits().validation.x[:100])
        >>> pd.DataFrame(rows).round(1)
            stage  the same  another
        0    stem       1.0      0.9
        1  stage1       1.0      0.3
        2  stage2       1.0      0.1
        3  stage3       1.0      0.1
    """
    seen = {
        name: [inside.outputs(network, x, STAGES) for network in pair]
        for name, pair in pairs.items()
    }
    return [
        {"stage": stage} | {name: inside.cka(a[stage], b[stage]) for name, (a, b) in seen.items()}
        for stage in STAGES
    ]


def _layers(
    before: SmallResNet, tuned: SmallResNet, data: Dataset, *, name: str, seed: int
) -> dict[str, Any]:
    """What each layer moved, and the test accuracy and NLL without what it learnt."""
    random = models.small_resnet(len(data.classes), seed=seed)
    moved = inside.movement(before, tuned).to_dict("records")
    body = [row["layer"] for row in moved if row["layer"] != "head"]
    networks: dict[tuple[str, str], nn.Module] = {
        ("nothing", "pretrained"): tuned,
        ("body", "pretrained"): inside.reset(tuned, before, body),
    }
    for row in moved:
        networks[row["layer"], "pretrained"] = inside.reset(tuned, before, row["layer"])
        networks[row["layer"], "random"] = inside.reset(tuned, random, row["layer"])
    reports = evaluate.grid(networks, data.test, name=name, resamples=2)
    measured = {key: {"top1": r.top1.value, "nll": r.nll.value} for key, r in reports.items()}
    return {
        "top1": measured["nothing", "pretrained"]["top1"],
        "nll": measured["nothing", "pretrained"]["nll"],
        "body": measured["body", "pretrained"],
        "layers": [
            row | {kind: measured[row["layer"], kind] for kind in ("pretrained", "random")}
            for row in moved
        ],
    }


def shifted_logits(network: nn.Module, data: Dataset, shift: str) -> Dataset:
    """The network's logits as a data set: test images shifted, the others as they are.

    Args:
        network: images to logits.
        data: images with labels.
        shift: one of ``labels.SHIFTED``, of the test images.

    Example:
        >>> import tlhelpers as tl
        >>> digits, network = tl.datasets.digits().few(1), tl.zoo.load("letters", 10)
        >>> tl.inside_study.shifted_logits(network, digits, "blurred").x.shape
        torch.Size([807, 10])
    """
    x = data.x.clone()
    rows = torch.from_numpy(data.split == "test")
    x[rows] = labels.SHIFTED[shift].apply(x[rows], Run().generator(0))
    return dataclasses.replace(data, x=_inference.logits(network, x))


def divided(temperature: float) -> Callable[[Tensor], Tensor]:
    """A predictor that takes logits and divides them.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> logits.softmax(dim=1)
        tensor([[0.8808, 0.1192]])
        >>> tl.inside_study.divided(2.0)(logits).softmax(dim=1)
        tensor([[0.7311, 0.2689]])
    """
    return lambda logits: logits / temperature


def _shifts(tuned: SmallResNet, data: Dataset, *, name: str) -> list[dict[str, Any]]:
    rows = []
    for shift in labels.SHIFTED:
        logits = shifted_logits(tuned, data, shift)
        fitted = confidence.temperature(logits.validation.x, logits.validation.y)
        factors = {"as trained": 1.0, "scaled": fitted} | {f: f for f in FACTORS}
        reports = evaluate.grid(
            {key: divided(factor) for key, factor in factors.items()},
            logits.test, name=f"{name}, {shift}", resamples=2,
        )  # fmt: skip
        plain, scaled = reports["as trained"], reports["scaled"]
        ranked = confidence.risk_coverage(scaled.correct, scaled.confidence, resamples=2)
        promise = confidence.threshold(
            _right(logits.validation.x, logits.validation.y),
            logits.validation.x.div(fitted).softmax(1).amax(1),
            risk=RISK,
        )
        answered = scaled.confidence >= promise.value
        rows.append(
            {
                "shift": shift,
                "temperature": fitted,
                "top1": plain.top1.value,
                "nll": plain.nll.value,
                "nll_scaled": scaled.nll.value,
                "ece": plain.ece.value,
                "ece_scaled": scaled.ece.value,
                "ece_floor": scaled.ece_floor,
                "confidence_scaled": float(scaled.confidence.mean()),
                "area": ranked.area.value,
                "best_area": ranked.best,
                "coverage": float(answered.mean()),
                "risk": float(1 - scaled.correct[answered].mean()) if answered.any() else 0.0,
                "nll_at": [reports[f].nll.value for f in FACTORS],
            }
        )
    return rows


def _right(logits: Tensor, y: Tensor) -> np.ndarray:
    return (logits.argmax(dim=1) == y).numpy()


# --- shortcuts ----------------------------------------------------------------------------

STAMP = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]] * 2)
"""A chequered stamp of 4 x 4 pixels."""

STAMPED = 3
"""The class whose training images bear the stamp."""

PENS = tuple(round(0.3 + 0.07 * i, 2) for i in range(10))
"""Ten strengths of the ink, one for each class; 1 is black."""


def stamp(x: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The stamp in a corner of each image, drawn at random.

    Args:
        x: (n, 1, h, w) images, ink 1 on paper 0.
        seed: of the corners.

    Returns:
        the stamped images, and (n, h, w) booleans: where the stamps are.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> stamped, places = tl.inside_study.stamp(torch.zeros(5, 1, 16, 16))
        >>> stamped.sum(dim=(1, 2, 3)), places.sum(dim=(1, 2))
        (tensor([8., 8., 8., 8., 8.]), tensor([16, 16, 16, 16, 16]))
    """
    stamped, places = x.clone(), torch.zeros(len(x), *x.shape[2:], dtype=torch.bool)
    corners = torch.randint(4, (len(x),), generator=Run(seed).generator(3))
    side = len(STAMP)
    ends = (slice(0, side), slice(-side, None))
    for corner in range(4):
        rows = (corners == corner).nonzero()[:, 0]
        down, right = ends[corner // 2], ends[corner % 2]
        stamped[rows, 0, down, right] = STAMP.to(x)
        places[rows, down, right] = True
    return stamped, places


def with_stamp(data: Dataset, *, everywhere: bool, seed: int = 0) -> tuple[Dataset, Tensor]:
    """Digits with a shortcut that has a place: a stamp.

    Args:
        data: digits.
        everywhere: False: every ``STAMPED`` bears the stamp, and no other digit. True: all do, so
            that it tells nothing.
        seed: of the corners.

    Returns:
        the data, and (n, h, w) booleans: where the stamp is, or would be.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.datasets.digits()
        >>> stamped, places = tl.inside_study.with_stamp(digits, everywhere=False)
        >>> changed = (stamped.x != digits.x).flatten(1).any(dim=1)
        >>> digits.labels[changed].unique()
        tensor([3])
    """
    x, places = stamp(data.x, seed=seed)
    bears = (data.labels == STAMPED) | everywhere
    x = torch.where(bears[:, None, None, None], x, data.x)
    return dataclasses.replace(data, name=f"{data.name}, stamped", x=x), places


def with_pens(data: Dataset, *, lying: bool, seed: int = 0) -> Dataset:
    """Digits with a shortcut that has no place: how dark the pen is.

    Args:
        data: digits.
        lying: False: each class has the pen of ``PENS`` with its number. True: the pen of each
            image is drawn at random.
        seed: of that.

    Example:
        >>> import tlhelpers as tl
        >>> penned = tl.inside_study.with_pens(tl.datasets.digits(), lying=False)
        >>> [round(float(penned.x[penned.labels == c].max()), 2) for c in (0, 1, 9)]
        [0.3, 0.37, 0.93]
    """
    pens = data.labels
    if lying:
        pens = torch.randint(10, (len(data),), generator=Run(seed).generator(4))
    x = data.x * torch.tensor(PENS)[pens].to(data.x)[:, None, None, None]
    return dataclasses.replace(data, name=f"{data.name}, ten pens", x=x)


Map = Callable[[nn.Module, Tensor, Tensor], Tensor]


def _absolute(method: Map) -> Map:
    return lambda network, x, target: method(network, x, target).abs()


MAPS: Mapping[str, Map] = MappingProxyType(
    {
        "gradient": _absolute(inside.gradient),
        "gradient × input": _absolute(inside.gradient_times_input),
        "integrated gradients": _absolute(partial(inside.integrated_gradients, steps=8)),
        "guided backprop": _absolute(inside.guided_backprop),
        "Grad-CAM, stage 2": partial(inside.grad_cam, at="stage2"),
        "Grad-CAM, stage 3": partial(inside.grad_cam, at="stage3"),
    }
)
"""The maps that are compared, all of how much a pixel matters, without a sign."""

TRAINED = ("honest", "stamp", "stamp, pretrained", "pen")
"""The networks, trained on plain digits, on stamped threes from random weights and from those
pretrained on letters, and on digits whose pen tells the class."""


def shortcuts(
    run: Run | None = None,
    *,
    draws: int = DRAWS,
    k: int = K,
    images: int = 100,
    recipe: Recipe = RECIPE,
) -> Record:
    """What maps find of a planted shortcut.

    For each draw the four networks of ``TRAINED`` are trained. Each is tested on plain digits, on
    digits that all bear the stamp, and on digits with any pen: three readings a draw.

    Args:
        run: device, and the seed to which the draw is added.
        draws: of the labels.
        k: labels a class.
        images: how many of the test images get maps.
        recipe: how all are trained.

    Returns:
        the record ``inside/shortcuts``. A row of its curve is one network of one draw: its test
        accuracy on each kind of images (``plain``, ``stamped``, ``penned``), the share of plain
        threes that it knows (``threes_found``), the share of test images of other classes that it
        takes for a three, without and with the stamp (``threes_plain``, ``threes_stamped``), and
        ``maps``, a list with a row for each kind of
        map: the share of maps *for the class three*, on stamped images of other classes, whose
        highest point is at the stamp (``points``); and the mean share of the map of its own
        answer, on plain images, that lies on ink (``on_ink``; ``on_ink_right`` and
        ``on_ink_wrong`` for right and wrong answers, None where there is none).
    """
    run = runtime.default(run)
    origin = records.provenance(shortcuts, command=COMMAND)
    start = time.perf_counter()
    rows = [row for draw in range(draws) for row in _planted(draw, k, images, recipe, run)]
    estimates: dict[str, Estimate] = {}
    for kind in TRAINED:
        mine = [row for row in rows if row["trained"] == kind]
        for what in ("plain", "stamped", "penned", "threes_stamped"):
            key = f"{kind}, {what}"
            estimates[key] = evaluate.mean_interval([row[what] for row in mine])
    return records.of_draws(
        "inside/shortcuts",
        rows,
        estimates,
        split=f"{k} labels a class, {draws} draws; maps of {images} test images",
        input=f"digits, {datasets.GLYPH_SIZE} px, {recipe.steps} steps",
        seeds=[run.seed + draw for draw in range(draws)],
        run=run,
        origin=origin,
        start=start,
    )


def shortcut_networks(
    data: Dataset, run: Run, *, kinds: Sequence[str] = TRAINED, recipe: Recipe = RECIPE
) -> dict[str, SmallResNet]:
    """The networks with and without a shortcut, from random weights where nothing else is said.

    Args:
        data: plain digits.
        run: seed, also of the stamps' corners, and device.
        kinds: among ``TRAINED``.
        recipe: how all are trained.

    Raises:
        ValueError: if a kind is unknown.
    """
    if unknown := [kind for kind in kinds if kind not in TRAINED]:
        raise ValueError(f"kinds are among {', '.join(TRAINED)}, found {unknown[0]!r}.")
    seen = {
        "honest": data,
        "stamp": with_stamp(data, everywhere=False, seed=run.seed)[0],
        "pen": with_pens(data, lying=False, seed=run.seed),
    }
    networks = {}
    for kind in kinds:
        images, _, pretrained = kind.partition(", ")
        source = "letters" if pretrained else "random"
        networks[kind] = finetune(seen[images], run, source=source, recipe=recipe)
    return networks


def _planted(draw: int, k: int, images: int, recipe: Recipe, run: Run) -> list[dict[str, Any]]:
    data = few(draw, k=k)
    seeded = dataclasses.replace(run, seed=run.seed + draw)
    networks = shortcut_networks(data, seeded, recipe=recipe)
    stamped, places = with_stamp(data, everywhere=True, seed=seeded.seed)
    tested = {
        "plain": data,
        "stamped": stamped,
        "penned": with_pens(data, lying=True, seed=seeded.seed),
    }
    reports = {
        kind: evaluate.grid(networks, one.test, name=f"{kind}, draw {draw}", resamples=2)
        for kind, one in tested.items()
    }
    # Reports are in the order of the ids, which is that of the digits.
    other = reports["plain"]["honest"].outcomes.true != STAMPED
    chosen = np.flatnonzero(other)[:images]
    in_test = torch.from_numpy(np.flatnonzero(data.split == "test"))
    rows = []
    for kind, network in networks.items():
        answers = {name: found[kind].outcomes.predicted for name, found in reports.items()}
        rows.append(
            {"draw": draw, "trained": kind}
            | {name: found[kind].top1.value for name, found in reports.items()}
            | {"threes_found": float((answers["plain"][~other] == STAMPED).mean())}
            | {
                f"threes_{name}": float((answers[name][other] == STAMPED).mean())
                for name in ("plain", "stamped")
            }
            | {
                "maps": judged(
                    network,
                    stamped.test.x[chosen],
                    places[in_test][chosen],
                    data.test.x[:images],
                    torch.from_numpy(answers["plain"][:images]),
                    reports["plain"][kind].correct[:images],
                )
            }
        )
    return rows


def judged(
    network: nn.Module,
    stamped: Tensor,
    places: Tensor,
    plain: Tensor,
    answers: Tensor,
    right: np.ndarray,
) -> list[dict[str, Any]]:
    """A row for each kind of map, as in :func:`shortcuts`.

    Args:
        network: images to logits.
        stamped: (n, 1, h, w) stamped images that are no threes.
        places: (n, h, w) booleans, where the stamps are.
        plain: (m, 1, h, w) plain images.
        answers: (m,) what the network says of these.
        right: (m,) booleans, whether rightly.

    Example:
        >>> import pandas as pd
        >>> import tlhelpers as tl
        >>> network, plain = tl.zoo.load("letters", 10).eval(), tl.datasets.digits().train.x[:4]
        >>> stamped, places = tl.inside_study.stamp(plain)
        >>> answers = network(plain).argmax(dim=1)
        >>> right = (answers == 0).numpy()
        >>> rows = tl.inside_study.judged(network, stamped, places, plain, answers, right)
        >>> pd.DataFrame(rows)[["map", "on_ink"]].round(1)
                            map  on_ink
        0              gradient     0.6
        1      gradient × input     0.9
        2  integrated gradients     0.9
        3       guided backprop     0.6
        4     Grad-CAM, stage 2     0.5
        5     Grad-CAM, stage 3     0.6
    """
    rows = []
    strokes = plain[:, 0] > 0.2
    three = torch.full((len(stamped),), STAMPED)
    for name, method in MAPS.items():
        points = inside.pointing(method(network, stamped, three), places)
        on_ink = inside.share_within(method(network, plain, answers), strokes)
        rows.append(
            {
                "map": name,
                "points": float(points.mean()),
                "on_ink": _mean(on_ink),
                "on_ink_right": _mean(on_ink[right]),
                "on_ink_wrong": _mean(on_ink[~right]),
            }
        )
    return rows


def _mean(values: np.ndarray) -> float | None:
    """The mean of those that are numbers; None where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
