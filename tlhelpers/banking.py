"""The measurements behind chapter 10 that need the questions' texts, or the encoder.

What the shipped bank of features can say, the chapter measures itself. Here are the rest: word
counts in place of features (:func:`tfidf`), the encoder fine-tuned (:func:`search`,
:func:`finetuned`), and other ways of pooling (:func:`pooling`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tlhelpers import evaluate, features, labels, probe, questions, records, runtime, text, train
from tlhelpers.evaluate import Estimate
from tlhelpers.features import FeatureBank
from tlhelpers.probe import Probe
from tlhelpers.questions import Texts
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.text import Encoder, TextClassifier
from tlhelpers.train import Recipe

BANK = "banking77/all-MiniLM-L6-v2"
NAMES = "banking77/intent_names"
COMMAND = "python experiments/banking.py --data PATH"
BANK_COMMAND = "python experiments/banking_bank.py --data PATH"
SHOTS = (1, 3, 5, 10)
DRAWS = 5
TUNED_DRAWS = 3  # an encoder takes a minute to fine-tune and to read
CHOOSING = 1000  # a draw that chooses settings and is not used again
STEPS: Mapping[int, int] = MappingProxyType({1: 24, 3: 50, 5: 60, 10: 80})
RATES = (1e-4, 3e-4)

Scores = Callable[[Any], np.ndarray]


# --- word counts --------------------------------------------------------------------------

TFIDF: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        f"{analyzer} {low}-{high}, C {C:g}": {"analyzer": analyzer, "ngrams": (low, high), "C": C}
        for analyzer, low, high in (("word", 1, 2), ("char_wb", 2, 4))
        for C in (10.0, 100.0)
    }
)
"""What word counts choose from on validation, by name."""


def fit_tfidf(data: Dataset, setting: str) -> Scores:
    """Logistic regression on TF-IDF weights: nothing in it has seen a text before.

    Args:
        data: texts; vocabulary, weights and classifier come from ``data.train`` alone.
        setting: a name in :data:`TFIDF`.

    Returns:
        a predictor: texts to (n, m) log probabilities.

    Raises:
        ValueError: if there is no such setting.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> import tlhelpers as tl
        >>> asked = ("my card is lost", "is my card here", "top up please", "top up now")
        >>> data = tl.splits.Dataset(
        ...     name="questions",
        ...     classes=("card", "top up"),
        ...     x=tl.questions.Texts(asked),
        ...     labels=torch.tensor([0, 0, 1, 1]),
        ...     split=np.array(["train"] * 4),
        ...     ids=asked,
        ...     split_name="all to learn from",
        ... )
        >>> predict = tl.banking.fit_tfidf(data, "word 1-2, C 10")
        >>> predict(["where is the card", "please top it up"]).argmax(axis=1)
        array([0, 1])
    """
    if setting not in TFIDF:
        raise ValueError(f"setting should be one of {', '.join(TFIDF)}; found {setting!r}.")
    chosen = TFIDF[setting]
    pipeline = make_pipeline(
        TfidfVectorizer(
            analyzer=chosen["analyzer"], ngram_range=chosen["ngrams"], sublinear_tf=True
        ),
        LogisticRegression(C=chosen["C"], max_iter=300, tol=1e-3),
    )
    pipeline.fit(list(data.train.x), data.train.y.numpy())

    def predict(texts: Texts) -> np.ndarray:
        return np.asarray(pipeline.predict_log_proba(list(texts)))

    return predict


def tfidf(run: Run | None = None, *, data: Dataset | None = None) -> Record:
    """TF-IDF and logistic regression at each number of labels, on the draws of the chapter.

    The setting is chosen on the whole validation split, for each number of labels, with a draw that
    is not used again; for all training questions it is that of the largest number.

    Args:
        run: not used, since scikit-learn computes on the CPU.
        data: Banking77; None to look for it, see ``datasets.banking77``.

    Returns:
        the record ``banking/tfidf``: a row of the curve for each number of labels (0 for all) and
        draw; in ``result`` the mean of each number.
    """
    fields = records.provenance(tfidf, command=COMMAND)
    start = time.perf_counter()
    data = questions.banking77() if data is None else data
    chosen, predictors = {}, {}
    for k in SHOTS:
        means = {setting: _validated(data, k, CHOOSING, setting) for setting in TFIDF}
        chosen[k] = max(means, key=lambda setting: means[setting])
        for draw in range(DRAWS):
            predictors[k, draw] = fit_tfidf(data.few(k, draw=draw), chosen[k])
    predictors[0, 0] = fit_tfidf(data, chosen[SHOTS[-1]])
    reports = evaluate.grid(predictors, data.test, name="TF-IDF", resamples=200)
    top1 = {key: report.top1.value for key, report in reports.items()}
    estimates = {
        f"top1_{k}": evaluate.mean_interval([top1[k, d] for d in range(DRAWS)]) for k in SHOTS
    }
    return Record(
        name="banking/tfidf",
        tier="cpu",
        split=data.split_name,
        input="texts as they are",
        seeds=tuple(range(DRAWS)),
        curve=tuple(
            {
                "shots": k,
                "draw": draw,
                "setting": chosen.get(k, chosen[SHOTS[-1]]),
                "top1": value,
                "low": reports[k, draw].top1.low,
                "high": reports[k, draw].top1.high,
            }
            for (k, draw), value in top1.items()
        ),
        interval_over=f"95 %, t, over {DRAWS} draws; in the curve, bootstrap over test questions",
        wall_seconds=time.perf_counter() - start,
        **records.figures(estimates),
        **fields,
    )


def _validated(data: Dataset, k: int, draw: int, setting: str) -> float:
    few = data.few(k, draw=draw)
    return evaluate.validate(fit_tfidf(few, setting), few.validation, resamples=10).value


# --- the encoder, fine-tuned --------------------------------------------------------------


def recipe(shots: int, lr: float) -> Recipe:
    """How an encoder is fine-tuned: AdamW, a short warm-up, and a linear fall of the rate.

    Example:
        >>> import tlhelpers as tl
        >>> recipe = tl.banking.recipe(10, lr=1e-4)
        >>> recipe.steps, recipe.schedule, recipe.lr
        (80, 'linear', 0.0001)
    """
    steps = STEPS[shots]
    return Recipe(
        steps=steps,
        lr=lr,
        batch_size=32,
        schedule="linear",
        warmup=0.1,
        weight_decay=0.01,
        validate_every=steps,
        keep="last",
    )


def finetune(
    tokens: Dataset, encoder: Encoder, head: torch.nn.Linear | None, how: Recipe, run: Run
) -> TextClassifier:
    """The whole encoder with a head, trained on the training part of a tokenised data set."""
    network = text.classifier(encoder, len(tokens.classes), head=head, seed=run.seed)
    train.fit(network, tokens, how, run, mixed=run.dtype != torch.float32)
    return network


def _ground(
    data: Dataset | None, encoder: Encoder | None
) -> tuple[Dataset, Encoder, FeatureBank, Dataset]:
    """The questions, the encoder, the shipped bank, and the questions' tokens."""
    data = questions.banking77() if data is None else data
    encoder = text.encoder() if encoder is None else encoder
    bank = features.load(BANK)
    if bank.ids != data.ids or not torch.equal(bank.labels, data.labels):
        raise ValueError(
            f"the bank {BANK} and the questions should have the same ids and labels, in the same "
            f"order. Make the bank again: {BANK_COMMAND}."
        )
    if bank.provenance is None or bank.provenance.fingerprint != encoder.fingerprint:
        raise ValueError(f"the bank {BANK} comes from other weights than {encoder.weights!r}.")
    return data, encoder, bank, text.tokenise(data, encoder)


def start(bank: FeatureBank, shots: int, draw: int, run: Run) -> Probe:
    """The probe that fine-tuning starts from; its ridge weight is chosen with draw 0.

    Example:
        >>> import tlhelpers as tl
        >>> bank = tl.features.load("banking77/all-MiniLM-L6-v2")
        >>> some = tl.datasets.with_classes(bank, bank.classes[:20])
        >>> probe = tl.banking.start(some, 1, 1, tl.runtime.Run())
        >>> probe.n_train
        20
        >>> tl.evaluate.validate(probe, some.validation)
        76.5 % [71.0, 82.5]
    """
    ridge = probe.fit(bank.few(shots, draw=0), run=run).ridge
    return probe.fit(bank.few(shots, draw=draw), ridge=ridge, run=run)


def search(
    run: Run | None = None,
    *,
    data: Dataset | None = None,
    encoder: Encoder | None = None,
    shots: tuple[int, ...] = (1, 10),
) -> Record:
    """Learning rates for fine-tuning, by validation accuracy, with a draw that is not used again.

    Args:
        run: device and dtype.
        data: Banking77; None to look for it.
        encoder: that of the bank; None to load it.
        shots: the numbers of labels at which rates are compared.

    Returns:
        the record ``banking/rates``: a row of the curve for each number of labels and rate (0 is
        the probe that all start from).
    """
    fields = records.provenance(search, command=COMMAND)
    run = runtime.default(run)
    begin = time.perf_counter()
    data, encoder, bank, tokens = _ground(data, encoder)
    draw = CHOOSING
    rows = []
    for k in shots:
        few = tokens.few(k, draw=draw, validation=1)  # what is kept are the last weights
        fitted = start(bank, k, draw, run)
        rows.append((k, 0.0, evaluate.validate(fitted, bank.validation)))
        for lr in RATES:
            own = dataclasses.replace(run, seed=draw)
            head = fitted.to_linear(through=bank.projection)
            network = finetune(few, encoder, head, recipe(k, lr), own)
            with _precision(run):
                rows.append((k, lr, evaluate.validate(network, tokens.validation)))
    best = {k: max((e.value, lr) for other, lr, e in rows if other == k and lr)[1] for k in shots}
    found = records.figures({f"validation_{k}_{lr:g}": e for k, lr, e in rows})
    return Record(
        name="banking/rates",
        tier=run.tier,
        split=data.split_name,
        input=f"token ids of {encoder.name}",
        seeds=(draw,),
        curve=tuple({"shots": k, "lr": lr, "validation": e.value} for k, lr, e in rows),
        result=found["result"] | {f"best_{k}": lr for k, lr in best.items()},
        interval=found["interval"],
        interval_over="95 %, bootstrap over validation questions",
        wall_seconds=time.perf_counter() - begin,
        **fields,
    )


def _precision(run: Run) -> torch.autocast:
    """Forward passes in the run's dtype."""
    return torch.autocast(run.device.type, dtype=run.dtype, enabled=run.dtype != torch.float32)


def finetuned(
    run: Run | None = None,
    *,
    shots: int,
    lr: float | None = None,
    draws: int = TUNED_DRAWS,
    data: Dataset | None = None,
    encoder: Encoder | None = None,
) -> Record:
    """The whole encoder fine-tuned from the probe, and that probe, on the same draws.

    The test split is read once, by all draws of both together.

    Args:
        run: device and dtype.
        shots: labels an intent, one of ``SHOTS``.
        lr: the learning rate; None for the best of the record ``banking/rates`` at the nearest
            number of labels there.
        draws: repetitions with other labelled questions and another order.
        data: Banking77; None to look for it.
        encoder: that of the bank; None to load it.

    Returns:
        the record ``banking/finetuned_<shots>``: a row of the curve for each draw; in ``result``
        the two accuracies and what fine-tuning gains, over draws and test questions.

    Raises:
        ValueError: if there are no such shots.
    """
    if shots not in STEPS:
        raise ValueError(f"shots should be one of {', '.join(map(str, STEPS))}, found {shots}.")
    fields = records.provenance(finetuned, command=COMMAND)
    run = runtime.default(run)
    begin = time.perf_counter()
    data, encoder, bank, tokens = _ground(data, encoder)
    rate = _chosen_rate(shots) if lr is None else lr
    networks, probes = {}, {}
    for draw in range(draws):
        probes[draw] = start(bank, shots, draw, run)
        own = dataclasses.replace(run, seed=draw)
        head = probes[draw].to_linear(through=bank.projection)
        networks[draw] = finetune(
            tokens.few(shots, draw=draw, validation=1), encoder, head, recipe(shots, rate), own
        )
    seconds = time.perf_counter() - begin
    with _precision(run):
        tuned = evaluate.grid(networks, tokens.test, name=f"fine-tuned, {shots} an intent")
    probed = evaluate.grid(probes, bank.test, name=f"probe, {shots} an intent")
    top1 = {
        "probe": [report.top1.value for report in probed.values()],
        "finetuned": [report.top1.value for report in tuned.values()],
    }
    estimates = {name: evaluate.mean_interval(values) for name, values in top1.items()}
    gain: Estimate = labels.gain(list(tuned.values()), list(probed.values()))
    return Record(
        name=f"banking/finetuned_{shots}",
        tier=run.tier,
        split=data.split_name,
        input=f"token ids of {encoder.name}",
        seeds=tuple(range(draws)),
        curve=tuple(
            {
                "shots": shots,
                "draw": draw,
                "lr": rate,
                "steps": STEPS[shots],
                "probe": top1["probe"][draw],
                "finetuned": top1["finetuned"][draw],
                "seconds": seconds / draws,
            }
            for draw in range(draws)
        ),
        interval_over=(
            f"95 %, t, over {draws} draws; of the gain, bootstrap over draws and test questions"
        ),
        wall_seconds=time.perf_counter() - begin,
        **records.figures(estimates | {"gain": gain}),
        **fields,
    )


def _chosen_rate(shots: int) -> float:
    """The best rate of ``banking/rates``, at the nearest number of labels that is not larger."""
    result = records.load("banking/rates").result
    tried = sorted(int(n.removeprefix("best_")) for n in result if n.startswith("best_"))
    nearest = max((k for k in tried if k <= shots), default=tried[0])
    return float(result[f"best_{nearest}"])


# --- pooling ------------------------------------------------------------------------------


def pooling(
    run: Run | None = None,
    *,
    data: Dataset | None = None,
    encoder: Encoder | None = None,
    shots: int = 10,
    draws: int = 3,
) -> Record:
    """A probe on the mean of the token vectors, and on the vector of the first token.

    Measured on validation, since the choice of the pooling is one of the settings.

    Args:
        run: device and dtype.
        data: Banking77; None to look for it.
        encoder: the encoder; None to load it.
        shots: labels an intent.
        draws: repetitions with other labelled questions.

    Returns:
        the record ``banking/pooling``: a row of the curve for each draw and pooling; in ``result``
        the two means, and the difference of the two, paired by draw.
    """
    fields = records.provenance(pooling, command=BANK_COMMAND)
    run = runtime.default(run)
    begin = time.perf_counter()
    data = questions.banking77() if data is None else data
    encoder = text.encoder() if encoder is None else encoder
    some = data.few(2 * shots, draw=CHOOSING)
    some = some.subset(np.flatnonzero(some.split != "test"))
    top1: dict[str, list[float]] = {}
    for pool in text.POOLS:
        network = text.SentenceNetwork(
            encoder.network.transformer, pad=encoder.network.pad, pool=pool
        )
        bank = text.extract(some, dataclasses.replace(encoder, network=network), run=run)
        top1[pool] = [
            max(c.validation_accuracy for c in probe.fit(bank.few(shots, draw=d), run=run).path)
            for d in range(draws)
        ]
    estimates = {pool: evaluate.mean_interval(values) for pool, values in top1.items()}
    estimates["difference"] = evaluate.mean_interval(
        np.subtract(top1["mean"], top1["first"]), unit="points"
    )
    return Record(
        name="banking/pooling",
        tier=run.tier,
        split=data.split_name,
        input=f"{encoder.dim} features of {encoder.name}, validation",
        seeds=tuple(range(draws)),
        curve=tuple(
            {"pool": pool, "draw": d, "validation": value}
            for pool, values in top1.items()
            for d, value in enumerate(values)
        ),
        interval_over=f"95 %, t, over {draws} draws",
        wall_seconds=time.perf_counter() - begin,
        **records.figures(estimates),
        **fields,
    )


# --- the bank -----------------------------------------------------------------------------


def make_bank(
    data: Dataset, encoder: Encoder, *, dims: int = 128, run: Run | None = None
) -> tuple[FeatureBank, FeatureBank]:
    """The compressed bank of the questions, and one of the intents' names in the same coordinates.

    Args:
        data: Banking77.
        encoder: the encoder.
        dims: how many principal components of the questions are kept.
        run: device and dtype.

    Returns:
        the bank of the questions; and a bank with one row for each intent, its name's.
    """
    small = text.extract(data, encoder, run=run).compress(dims)
    count = len(data.classes)
    named = dataclasses.replace(
        data,
        name=f"{data.name}/names",
        x=Texts(data.classes),
        labels=torch.arange(count),
        split=np.array(["train"] * count),
        ids=data.classes,
        split_name="names",
        log=[],
    )
    full = text.extract(named, encoder, run=run)
    assert small.provenance is not None
    assert full.provenance is not None
    banks = (small, dataclasses.replace(full, name=NAMES, x=small.project(full)))
    return (
        dataclasses.replace(
            banks[0], provenance=dataclasses.replace(small.provenance, command=BANK_COMMAND)
        ),
        dataclasses.replace(
            banks[1],
            provenance=dataclasses.replace(
                full.provenance, command=BANK_COMMAND, at=f"projection of {small.name}"
            ),
        ),
    )
