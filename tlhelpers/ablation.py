"""Fine-tuning, one decision at a time: the measurements behind chapter 05.

A network pretrained on letters is fine-tuned on a few handwritten digits by :data:`BASELINE`, and
by variants of it that differ in one decision each. :func:`rerun` measures some of them, and
:func:`table` says what each is worth; :func:`study`, :func:`depth_study` and :func:`tuning_study`
make the records.

The digits of a draw are ten a class to learn from and five a class to choose by, which is what
somebody with 150 labels might have. What a variant is worth is measured on the 250 validation
digits that neither has seen, so that the test split is left for the end.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from tlhelpers import datasets, evaluate, models, probe, records, runtime, train
from tlhelpers.characters import Shift
from tlhelpers.models import SmallResNet
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, Split
from tlhelpers.train import History, Recipe

COMMAND = "python experiments/finetuning.py"
K = 10  # labels a class to learn from
CHOOSE_BY = 5  # labels a class to choose by
SEEDS = tuple(range(6))
STAGES = ("stem", "stage1", "stage2", "stage3")

BASELINE = Recipe(steps=160, batch_size=32, lr=1e-3, head_lr=1e-2, weight_decay=1e-4, keep="last")
"""AdamW, cosine, all layers, the head ten times as fast as the body, no early stopping."""

VARIETY = train.augmentation(Shift(rotation=10, shear=0.2, scale=(0.9, 1.1), translate=1.0))
"""Each image slightly turned, leant, scaled and moved."""

Prepare = Callable[[SmallResNet, Dataset], None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The baseline with one decision changed.

    Attributes:
        name: what is done instead.
        about: which decision it is.
        change: the fields of the recipe that differ.
        prepare: what is done to the network before it is fine-tuned.
        thaw: for gradual unfreezing, which parts start to learn, one phase after the other.
        weights: what the body starts from; None for random weights.

    Example:
        >>> import tlhelpers as tl
        >>> tl.ablation.Variant(name="slow", about="rates", change={"lr": 1e-4}).weights
        'letters'
        >>> [variant.name for variant in tl.ablation.VARIANTS if variant.about == "regularisation"]
        ['dropout', 'label smoothing', 'strong weight decay']
    """

    name: str
    about: str
    change: Mapping[str, Any] = field(default_factory=dict)
    prepare: Prepare | None = None
    thaw: tuple[str, ...] = ()
    weights: str | None = "letters"


# --- what can be done before the first step -----------------------------------------------


def train_only(*parts: str) -> Prepare:
    """Freeze everything but the head and the parts named.

    Example:
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet(10, weights="letters")
        >>> tl.ablation.train_only("stage3")(network, tl.datasets.digits())
        >>> learning = [name for name, p in network.named_parameters() if p.requires_grad]
        >>> sorted({name.split(".")[0] for name in learning})
        ['head', 'stage3']
    """

    def prepare(network: SmallResNet, data: Dataset) -> None:
        for name in STAGES:
            if name not in parts:
                models.freeze(network.get_submodule(name))

    return prepare


def probe_first(network: SmallResNet, data: Dataset) -> None:
    """Start from the head of a linear probe instead of a random one (LP-FT, Kumar et al. 2022).

    Example:
        >>> import tlhelpers as tl
        >>> few, unseen = tl.ablation.task(seed=0)
        >>> network = tl.models.small_resnet(10, weights="letters")
        >>> tl.ablation.probe_first(network, few)
        >>> tl.evaluate.validate(network, unseen)
        95.2 % [92.4, 97.6]
    """
    with torch.inference_mode():
        features = network.eval().features(data.x)
    fitted = probe.fit(dataclasses.replace(data, x=features), ridge=0.1)
    network.head.load_state_dict(fitted.to_linear().state_dict())


def freeze_norms(network: SmallResNet, data: Dataset) -> None:
    """Keep the statistics and the parameters of batch normalisation as they were pretrained.

    Example:
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet(10, weights="letters")
        >>> tl.ablation.freeze_norms(network, tl.datasets.digits())
        >>> convolution, norm = network.train().stem[:2]
        >>> norm.training, norm.weight.requires_grad, convolution.weight.requires_grad
        (False, False, True)
    """
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            models.freeze(part)


VARIANTS: tuple[Variant, ...] = (
    Variant(name="baseline", about=""),
    Variant(name="from scratch", about="start", weights=None, change={"lr": 3e-3, "head_lr": 3e-3}),
    Variant(name="head only", about="what learns", prepare=train_only()),
    Variant(name="head and stage 3", about="what learns", prepare=train_only("stage3")),
    Variant(
        name="head, stages 2 and 3", about="what learns", prepare=train_only("stage2", "stage3")
    ),
    Variant(name="all but batch norm", about="what learns", prepare=freeze_norms),
    Variant(name="probe first", about="order", prepare=probe_first),
    Variant(name="gradual unfreezing", about="order", thaw=("stage3", "stage2", "stage1", "stem")),
    Variant(name="one rate for all, 0.001", about="rates", change={"head_lr": None}),
    Variant(name="one rate for all, 0.01", about="rates", change={"lr": 1e-2}),
    Variant(name="rate falls with depth", about="rates", change={"decay": 1 / 2.6}),
    Variant(name="constant rate", about="schedule", change={"schedule": "constant"}),
    Variant(name="warm-up", about="schedule", change={"warmup": 0.1}),
    Variant(name="SGD", about="optimiser", change={"optimizer": "sgd", "lr": 1e-2}),
    Variant(name="batches of 8", about="batch", change={"batch_size": 8}),
    Variant(name="batches of 100", about="batch", change={"batch_size": 100}),
    Variant(name="dropout", about="regularisation", change={"dropout": 0.3}),
    Variant(name="label smoothing", about="regularisation", change={"label_smoothing": 0.1}),
    Variant(name="strong weight decay", about="regularisation", change={"weight_decay": 0.1}),
    Variant(name="augmentation", about="data", change={"augment": VARIETY}),
    Variant(name="four times as long", about="length", change={"steps": 640}),
    Variant(
        name="early stopping",
        about="length",
        change={"steps": 640, "keep": "best", "patience": 5},
    ),
)
"""What is compared; one decision each."""

_BY_NAME = MappingProxyType({variant.name: variant for variant in VARIANTS})


# --- one run ------------------------------------------------------------------------------


def task(seed: int, *, k: int = K, validation: int = CHOOSE_BY) -> tuple[Dataset, Split]:
    """A draw of digits to fine-tune on, and the validation digits that it does not contain.

    Args:
        seed: of the draw.
        k: digits of each class in the train split.
        validation: digits of each class in the validation split.

    Example:
        >>> import tlhelpers as tl
        >>> few, unseen = tl.ablation.task(seed=0)
        >>> few.train
        train split: 100 examples, 10 classes
        >>> few.validation
        validation split: 50 examples, 10 classes
        >>> unseen
        validation split: 250 examples, 10 classes
    """
    digits = datasets.digits()
    few = digits.few(k, draw=seed, validation=validation)
    taken = set(few.validation.ids)
    rest = [i for i, name in enumerate(digits.validation.ids) if name not in taken]
    return few, digits.validation.take(rest)


def tune(
    variant: Variant, data: Dataset, run: Run, *, source: str = "letters"
) -> tuple[SmallResNet, History]:
    """Fine-tune a fresh copy of the pretrained network by a variant.

    Args:
        variant: one of :data:`VARIANTS`, or one of your own.
        data: with as many classes as you like.
        run: its seed decides the head's first weights, the order and the augmentation.
        source: the pretrained weights, where the variant starts from any.

    Example:
        >>> import tlhelpers as tl
        >>> few, unseen = tl.ablation.task(seed=0)
        >>> short = tl.ablation.Variant(name="ten steps", about="length", change={"steps": 10})
        >>> network, history = tl.ablation.tune(short, few, tl.runtime.Run())
        >>> history.step.tolist()
        [4, 8, 10]
        >>> round(tl.evaluate.validate(network, unseen).value, 1)
        0.7
    """
    recipe = dataclasses.replace(BASELINE, **variant.change)
    weights = None if variant.weights is None else source
    network = models.small_resnet(len(data.classes), weights=weights, seed=run.seed)
    if variant.prepare is not None:
        variant.prepare(network, data)
    if not variant.thaw:
        return network, train.fit(network, data, recipe, run)
    return network, _gradually(network, data, recipe, variant.thaw, run)


def _gradually(
    network: SmallResNet, data: Dataset, recipe: Recipe, thaw: Sequence[str], run: Run
) -> History:
    """Train the head, then thaw one part after the other (Howard and Ruder 2018)."""
    assert recipe.steps is not None
    phases = ("", *thaw)
    recipe = dataclasses.replace(recipe, steps=recipe.steps // len(phases))
    for name in STAGES:
        models.freeze(network.get_submodule(name))
    for number, part in enumerate(phases):
        if part:
            models.unfreeze(network.get_submodule(part))
        # Another seed for each phase: the same one would repeat the first phase's batches.
        phase = dataclasses.replace(run, seed=1000 * number + run.seed)
        history = train.fit(network, data, recipe, phase)
    return history


def rerun(
    *names: str,
    seeds: Sequence[int] = SEEDS,
    k: int = K,
    run: Run | None = None,
    source: str = "letters",
) -> pd.DataFrame:
    """Fine-tune by some of the variants, and by the baseline, and measure them.

    Args:
        names: of variants, see :data:`VARIANTS`.
        seeds: one run each.
        k: labels a class.
        run: the device; None for the best one.
        source: the pretrained weights.

    Returns:
        A row for each variant and seed: ``variant``, ``about``, ``k``, ``seed``, ``accuracy`` on
        digits that the run has not seen, ``gain`` over the baseline of the same seed,
        ``train_loss`` at the end, ``seconds``.

    Raises:
        ValueError: if there is no such variant.
    """
    if unknown := [name for name in names if name not in _BY_NAME]:
        raise ValueError(f"there is no variant {unknown[0]!r}; there are {', '.join(_BY_NAME)}.")
    run = runtime.default(run)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        few, rest = task(seed, k=k)
        for name in dict.fromkeys(("baseline", *names)):
            start = time.perf_counter()
            network, history = tune(
                _BY_NAME[name], few, dataclasses.replace(run, seed=seed), source=source
            )
            accuracy = evaluate.validate(network, rest, resamples=2).value
            if name == "baseline":
                base = accuracy
            rows.append(
                {
                    "variant": name,
                    "about": _BY_NAME[name].about,
                    "k": k,
                    "seed": seed,
                    "accuracy": accuracy,
                    "gain": accuracy - base,
                    "train_loss": float(history["train_loss"].iloc[-1]),
                    "seconds": time.perf_counter() - start,
                }
            )
    return pd.DataFrame(rows)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`rerun` over seeds, one row a variant.

    Returns:
        Indexed by variant, in the order of the runs: ``about``; ``accuracy``, its mean; ``gain``,
        ``low``, ``high``: the mean gain over the baseline with its 95 % interval (Student's t,
        over seeds; not a number for the baseline itself); and ``call``, which runs it again.

    Example:
        >>> import tlhelpers as tl
        >>> runs = tl.records.load("glyphs/ablation").to_frame()
        >>> table = tl.ablation.table(runs)[["accuracy", "gain"]].round(2)
        >>> table.loc[["baseline", "from scratch", "head only"]]  # doctest: +NORMALIZE_WHITESPACE
                      accuracy  gain
        variant
        baseline          0.95   NaN
        from scratch      0.91 -0.04
        head only         0.95 -0.01
    """
    rows = []
    for name, group in runs.groupby("variant", sort=False):
        estimate = evaluate.mean_interval(group["gain"].to_numpy(), unit="points")
        own = name == "baseline"
        rows.append(
            {
                "variant": name,
                "about": group["about"].iloc[0],
                "accuracy": group["accuracy"].mean(),
                "gain": np.nan if own else estimate.value,
                "low": np.nan if own else estimate.low,
                "high": np.nan if own else estimate.high,
                "call": f'tl.ablation.rerun("{name}")',
            }
        )
    return pd.DataFrame(rows).set_index("variant")


# --- records ------------------------------------------------------------------------------


def study(run: Run | None = None, *, seeds: Sequence[int] = SEEDS) -> Record:
    """The record ``glyphs/ablation``: every variant, with ten labels a class."""
    fields, start = records.provenance(study, command=COMMAND), time.perf_counter()
    runs = rerun(*_BY_NAME, seeds=seeds, run=run)
    baseline = evaluate.mean_interval(runs.loc[runs["variant"] == "baseline", "accuracy"])
    return _record("glyphs/ablation", runs, {"baseline": baseline}, seeds, run, fields, start)


DEPTHS = ("head only", "head and stage 3", "head, stages 2 and 3", "baseline")
DEPTH_LABELS = (2, 10, 50)


def depth_study(run: Run | None = None, *, seeds: Sequence[int] = SEEDS) -> Record:
    """The record ``glyphs/unfreeze``: how much of the network to train with how many labels."""
    fields, start = records.provenance(depth_study, command=COMMAND), time.perf_counter()
    runs = pd.concat([rerun(*DEPTHS, seeds=seeds, k=k, run=run) for k in DEPTH_LABELS])
    gains = {
        f"head only, {k} labels": evaluate.mean_interval(
            runs.loc[(runs["variant"] == "head only") & (runs["k"] == k), "gain"], unit="points"
        )
        for k in DEPTH_LABELS
    }
    return _record("glyphs/unfreeze", runs, gains, seeds, run, fields, start)


RATES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Learning rates of the body that :func:`rates_study` tries; the head keeps its own."""

_WATCH_EVERY = 10  # steps


def rates_study(run: Run | None = None, *, seeds: Sequence[int] = range(5)) -> Record:
    """The record ``glyphs/rates``: each rate of the body with each depth of unfreezing.

    A row of its curve is a run: ``variant``, ``lr``, ``seed``, and over the steps that it was
    looked at ``step``, ``train_loss`` (mean since the look before) and ``accuracy`` on digits that
    the run has not seen, which choose nothing.
    """
    fields, start = records.provenance(rates_study, command=COMMAND), time.perf_counter()
    run = runtime.default(run)
    rows = []
    for seed in seeds:
        watched, here = _watched(seed), dataclasses.replace(run, seed=seed)
        for name in DEPTHS:
            # Where the head alone learns, the body's rate is of no account.
            for lr in RATES if name != "head only" else (BASELINE.lr,):
                change = {"lr": lr, "validate_every": _WATCH_EVERY}
                history = tune(dataclasses.replace(_BY_NAME[name], change=change), watched, here)[1]
                rows.append(
                    {
                        "variant": name,
                        "lr": lr,
                        "seed": seed,
                        "step": history["step"].tolist(),
                        "train_loss": history["train_loss"].round(4).tolist(),
                        "accuracy": history["validation_top1"].round(4).tolist(),
                    }
                )
    runs = pd.DataFrame(rows)
    last = runs.assign(accuracy=[values[-1] for values in runs["accuracy"]])
    wide = last.pivot(index="seed", columns=["variant", "lr"], values="accuracy")
    gains = {
        f"{name} minus head only, rate {lr:g}": evaluate.mean_interval(
            wide[name, lr] - wide["head only", BASELINE.lr], unit="points"
        )
        for name in DEPTHS[1:]
        for lr in RATES
    }
    return _record("glyphs/rates", runs, gains, seeds, run, fields, start)


def _watched(seed: int) -> Dataset:
    """The digits of :func:`task`, with those that no run has seen as the validation split."""
    few, _ = task(seed)
    whole, taken = datasets.digits().few(K, draw=seed), set(few.validation.ids)
    return whole.subset(np.array([name not in taken for name in whole.ids]))


TRIALS = 15


def search(
    data: Dataset, *, trials: int = TRIALS, run: Run | None = None, source: str = "letters"
) -> Any:
    """An Optuna study of the two rates, the falling of the rates, and augmentation.

    A trial fine-tunes by a recipe that the sampler proposes (a tree-structured Parzen estimator,
    Bergstra et al. 2011), and its value is the loss on ``data.validation``. Needs Optuna:
    ``pip install "tlhelpers[tune]"``.

    Returns:
        ``optuna.Study``; each trial carries the ``change`` to the baseline as a user attribute.

    Raises:
        ModuleNotFoundError: if Optuna is not installed.
    """
    optuna = _optuna()
    run = runtime.default(run)

    def objective(trial: Any) -> float:
        change = proposed(trial)
        history = tune(Variant(name="trial", about="", change=change), data, run, source=source)[1]
        return float(history["validation_loss"].iloc[-1])

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=run.seed))
    # The baseline is the first trial: what the search finds is then never worse on validation.
    study.enqueue_trial({"lr": 1e-3, "head_lr": 1e-2, "decay": 1.0, "augment": False})
    study.optimize(objective, n_trials=trials)
    return study


def proposed(trial: Any) -> dict[str, Any]:
    """What a trial changes in the baseline."""
    return {
        "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True),
        "head_lr": trial.suggest_float("head_lr", 1e-3, 1e-1, log=True),
        "decay": trial.suggest_float("decay", 0.3, 1.0),
        "augment": VARIETY if trial.suggest_categorical("augment", [False, True]) else None,
    }


def chosen(study: Any) -> Variant:
    """The best trial of :func:`search` as a variant."""
    return Variant(name="tuned", about="search", change=proposed(_optuna().trial.FixedTrial(
        study.best_params
    )))  # fmt: skip


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the search needs Optuna, which is an extra: pip install "tlhelpers[tune]".',
            name="optuna",
        ) from error
    return optuna


def tuning_study(
    run: Run | None = None, *, seeds: Sequence[int] = SEEDS, trials: int = TRIALS
) -> Record:
    """The record ``glyphs/tuning``: what a search gains, on validation and on unseen digits."""
    fields, start = records.provenance(tuning_study, command=COMMAND), time.perf_counter()
    run = runtime.default(run)
    rows = []
    for seed in seeds:
        few, rest = task(seed)
        here = dataclasses.replace(run, seed=seed)
        found = search(few, trials=trials, run=here)
        values = [trial.value for trial in found.trials]
        for name, variant, on_validation in (
            ("baseline", _BY_NAME["baseline"], values[0]),
            ("tuned", chosen(found), found.best_value),
        ):
            network = tune(variant, few, here)[0]
            loss, accuracy = _loss_and_accuracy(network, rest)
            rows.append(
                {
                    "variant": name,
                    "seed": seed,
                    "validation_loss": on_validation,
                    "loss": loss,
                    "accuracy": accuracy,
                }
            )
    runs = pd.DataFrame(rows)
    wide = runs.pivot(index="seed", columns="variant")
    gains = {
        "gain": (wide["accuracy"]["tuned"] - wide["accuracy"]["baseline"], "points"),
        "validation_loss_saved": (
            wide["validation_loss"]["baseline"] - wide["validation_loss"]["tuned"],
            "nats",
        ),
        "loss_saved": (wide["loss"]["baseline"] - wide["loss"]["tuned"], "nats"),
    }
    estimates = {
        key: evaluate.mean_interval(values.to_numpy(), unit=unit)
        for key, (values, unit) in gains.items()
    }
    return _record("glyphs/tuning", runs, estimates, seeds, run, fields, start)


def _loss_and_accuracy(network: nn.Module, split: Split) -> tuple[float, float]:
    with torch.inference_mode():
        logits = network.eval()(split.x.to(next(network.parameters()).device)).cpu()
    loss = float(nn.functional.cross_entropy(logits, split.y))
    return loss, float((logits.argmax(1) == split.y).double().mean())


def _record(
    name: str,
    runs: pd.DataFrame,
    estimates: Mapping[str, evaluate.Estimate],
    seeds: Sequence[int],
    run: Run | None,
    fields: dict[str, Any],
    start: float,
) -> Record:
    return Record(
        name=name,
        tier=runtime.default(run).tier,
        split=f"digits, {K} + {CHOOSE_BY} labels a class; measured on the rest of validation",
        input="16 × 16, weights 'letters'",
        seeds=tuple(seeds),
        curve=tuple(runs.to_dict("records")),
        **records.figures(estimates),
        interval_over=f"95 %, t, over {len(seeds)} draws and seeds",
        wall_seconds=time.perf_counter() - start,
        **fields,
    )
