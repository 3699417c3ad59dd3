"""What sentences are worth, on made-up pictures and on handwritten digits, for chapter 15.

Each seed draws the combinations that are held out, the weights and the pairs. Three models learn
from the same captions: :data:`WAYS`. :func:`combinations` asks them about combinations that they
have never seen, :func:`prompts` compares wordings, :func:`few_labels` compares words with labels on
handwritten digits, and :func:`inside` looks at the space itself. Each makes a record.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from tlhelpers import (
    captions,
    characters,
    combine,
    contrastive,
    datasets,
    evaluate,
    records,
    runtime,
)
from tlhelpers.contrastive import Head, Plan, TwoTowers
from tlhelpers.evaluate import Estimate
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

COMMAND = "python experiments/words.py"
SEEDS = (0, 1, 2, 3, 4)
"""Of every study."""

PLAN = Plan()
"""How every model is trained. Settled in one trial, on seen combinations of seed 0."""

CONTRASTIVE, EVERY_TRUE, LABELS = "contrastive", "every true sentence", "words as labels"
WAYS = (CONTRASTIVE, EVERY_TRUE, LABELS)
"""InfoNCE with the pairs as positives; with every sentence that is true of a picture; and no text
tower at all, but a classifier for each fact, which learns from what a caption mentions."""

SHOTS = (1, 2, 5, 20)
DRAWS = 4
METHODS = ("zero-shot", "probe", "both", "average")
"""Words alone; labels alone; labels with the words as the centre of the prior; and the average of
the first two heads' weights."""


# --- models -------------------------------------------------------------------------------


@functools.cache
def words() -> tuple[str, ...]:
    """The vocabulary of the captions.

    Example:
        >>> import tlhelpers as tl
        >>> words = tl.words_study.words()
        >>> len(words), words[:3]
        (58, ('Cyrillic', 'D', 'F'))
    """
    return contrastive.vocabulary(captions.draw(4000, Run(0).generator(15, 9)).sentences)


def train(
    seed: int, way: str = CONTRASTIVE, *, plan: Plan = PLAN
) -> tuple[nn.Module, pd.DataFrame]:
    """A model that has not seen ``captions.held_out(seed)``, and its history.

    Args:
        seed: of the combinations held out, the weights and the pairs.
        way: one of :data:`WAYS`.
        plan: how.

    Returns:
        two towers, or for ``"words as labels"`` an image tower with an output for each value of
        each fact.

    Raises:
        ValueError: if there is no such way.
    """
    run, model = Run(seed), _fresh(seed, way)
    draw = functools.partial(captions.draw, without=captions.held_out(seed))
    if not isinstance(model, TwoTowers):
        loss = functools.partial(_facts_loss, model)
        return model, contrastive.minimise(model, loss, draw, plan, run)
    positives = _true if way == EVERY_TRUE else None
    return model, contrastive.fit(model, draw, plan, run, positives=positives)


def _fresh(seed: int, way: str) -> nn.Module:
    """A model with random weights."""
    if way not in WAYS:
        raise ValueError(f"way should be one of {', '.join(WAYS)}, found {way!r}.")
    if way == LABELS:
        return contrastive.image_tower(sum(map(len, captions.VALUES.values())), seed=seed)
    return contrastive.two_towers(words(), seed=seed)


def _true(batch: captions.Pairs) -> Tensor:
    return batch.true


def _facts_loss(tower: nn.Module, batch: captions.Pairs) -> Tensor:
    """Cross-entropy of each fact, over the captions that mention it."""
    total = torch.zeros(())
    for claimed, scores in zip(batch.claims.T, by_fact(tower(batch.x)), strict=True):
        mentioned = claimed >= 0
        if mentioned.any():
            total = total + functional.cross_entropy(scores[mentioned], claimed[mentioned])
    return total


def by_fact(scores: Tensor) -> tuple[Tensor, ...]:
    """(n, 50) scores of ``"words as labels"``, one part for each fact of ``captions.VALUES``.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> [
        ...     part.shape for part in tl.words_study.by_fact(torch.zeros(2, 50))
        ... ]  # doctest: +NORMALIZE_WHITESPACE
        [torch.Size([2, 4]), torch.Size([2, 40]), torch.Size([2, 2]), torch.Size([2, 2]),
        torch.Size([2, 2])]
    """
    return scores.split([len(values) for values in captions.VALUES.values()], dim=1)


@functools.cache
def trained(seed: int, way: str = CONTRASTIVE) -> nn.Module:
    """The model of :func:`train`, kept in the cache folder: a study that stopped goes on there."""
    path = runtime.cache_folder() / "words" / f"{_key(seed, way)}.safetensors"
    if not path.is_file():
        state = {k: v.contiguous() for k, v in train(seed, way)[0].state_dict().items()}
        runtime.write_whole(path, safetensors.torch.save(state))
    model = _fresh(seed, way)
    model.load_state_dict(safetensors.torch.load(path.read_bytes()))
    return model.eval()


def _key(seed: int, way: str) -> str:
    """A hash of all that a trained model depends on."""
    sources = [inspect.getsource(module) for module in (captions, characters, contrastive)]
    parts = [*sources, inspect.getsource(train), repr(PLAN), str(seed), way, torch.__version__]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:32]


# --- questions ----------------------------------------------------------------------------

BARE = ("{name}",)
CAPTION = ("a {script} {name}",)
NEW = ("an image of the {script} sign {name}",)
FOUR = tuple(captions.TEMPLATES)
STYLED = tuple(f"a {style} {{script}} {{name}}" for style in captions.STYLES)
PROMPTS: Mapping[str, tuple[str, ...]] = {
    "name alone": BARE,
    "worded as in training": CAPTION,
    "worded otherwise": NEW,
    "mean of four wordings": FOUR,
    "mean of four styles": STYLED,
}
"""Templates for the name of a character, see :func:`names`."""


def names(templates: Sequence[str] = CAPTION) -> list[list[str]]:
    """One list of sentences for each of the 40 names.

    Example:
        >>> import tlhelpers as tl
        >>> found = tl.words_study.names()
        >>> len(found), found[0]
        (40, ['a Latin D'])
        >>> tl.words_study.names(["{name}", "a bold {name}"])[0]
        ['D', 'a bold D']
    """
    return [
        [captions.sentence(t, script=script, name=name) for t in templates]
        for script, of in captions.SCRIPTS.items()
        for name in of
    ]


def digits(templates: Sequence[str] = CAPTION) -> list[list[str]]:
    """One list of sentences for each of the ten digits.

    Example:
        >>> import tlhelpers as tl
        >>> tl.words_study.digits(["{name}"])[:3]
        [['zero'], ['one'], ['two']]
    """
    first = list(captions.VALUES["name"]).index("zero")
    return names(templates)[first:]


def styles(*, named: bool = True) -> list[list[str]]:
    """One list of sentences for each style: with every name in turn, or with none.

    Example:
        >>> import tlhelpers as tl
        >>> tl.words_study.styles(named=False)  # doctest: +NORMALIZE_WHITESPACE
        [['a regular upright character'], ['a bold upright character'], ['a regular italic
        character'], ['a bold italic character']]
        >>> [len(sentences) for sentences in tl.words_study.styles()]
        [40, 40, 40, 40]
    """
    found = []
    for style in captions.STYLES:
        weight, slant = style.split()
        words = {"weight": weight, "slant": slant}
        template = captions.TEMPLATES[0]
        with_names = [
            captions.sentence(template, script=script, name=name, **words)
            for script, of in captions.SCRIPTS.items()
            for name in of
        ]
        found.append(with_names if named else [captions.sentence(template, **words)])
    return found


def head(model: nn.Module, sentences: Sequence[Sequence[str]]) -> Head:
    """Classes made of sentences, for the embeddings of a model.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.words_study.digits()
        >>> model = tl.contrastive.two_towers(tl.contrastive.vocabulary(sum(digits, [])))
        >>> tl.words_study.head(model, digits)
        zero-shot: 10 classes, from words alone
    """
    assert isinstance(model, TwoTowers)
    weight = contrastive.class_embeddings(model.embed_texts, sentences)
    return contrastive.zero_shot(weight, scale=model.scale)


def embedded(model: nn.Module, data: Dataset) -> Dataset:
    """The same data set with embeddings in the place of pictures, and the same log of readings.

    Example:
        >>> import tlhelpers as tl
        >>> model = tl.contrastive.two_towers(["a", "digit", "zero"])
        >>> data = tl.words_study.embedded(model, tl.datasets.digits().few(1))
        >>> data  # doctest: +NORMALIZE_WHITESPACE
        Dataset 'digits': 10 classes; train 10, validation 300, test 497; split '100/30/rest
        per class, seed 0'
        >>> data.x.shape
        torch.Size([807, 64])
    """
    assert isinstance(model, TwoTowers)
    return dataclasses.replace(data, x=contrastive.embed(model, data.x))


def on_pictures(model: nn.Module, chosen: Head) -> Callable[[Tensor], Tensor]:
    """A head behind its image tower: a predictor of pictures.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.words_study.digits()
        >>> model = tl.contrastive.two_towers(tl.contrastive.vocabulary(sum(digits, [])))
        >>> predict = tl.words_study.on_pictures(model, tl.words_study.head(model, digits))
        >>> predict(tl.datasets.digits().train.x[:5]).shape
        torch.Size([5, 10])
    """
    assert isinstance(model, TwoTowers)
    return lambda x: chosen(contrastive.embed(model, x))


def _answers(model: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """Predictors of the name and of the style."""
    if isinstance(model, TwoTowers):
        asked = {"name": names(), "style": styles()}
        return {question: on_pictures(model, head(model, of)) for question, of in asked.items()}

    def name(x: Tensor) -> Tensor:
        return by_fact(model(x))[captions.NAME]

    def style(x: Tensor) -> Tensor:
        logs = [part.log_softmax(1) for part in by_fact(model(x))]
        both = logs[captions.SLANT][:, :, None] + logs[captions.WEIGHT][:, None, :]
        return both.flatten(1)  # style = weight + 2 * slant

    return {"name": name, "style": style}


# --- combinations never seen --------------------------------------------------------------


def combinations(
    run: Run | None = None, *, seeds: Sequence[int] = SEEDS, ways: Sequence[str] = WAYS
) -> Record:
    """Names and styles of pictures, in combinations that were seen and in those held out.

    The test pictures of a seed are read once, by all models together.

    Args:
        run: unused but for its place in ``records.get``: this runs on the CPU, from its own seeds.
        seeds: see :data:`SEEDS`.
        ways: some of :data:`WAYS`.

    Returns:
        the record ``words/combinations``: a row for each seed and way with the accuracies
        ``name_seen``, ``name_unseen``, ``style_seen``, ``style_unseen`` and ``both_...``, and
        ``characters``, the last by character (unseen minus seen, both right). The result holds
        their means, the paired differences from the contrastive model, and the mean over
        characters.
    """
    origin, start = records.provenance(combinations, command=COMMAND), time.perf_counter()
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        data = captions.exam(seed)
        models = {way: trained(seed, way) for way in ways}
        right = _right(models, data)
        mask = captions.unseen(right["ids"], captions.held_out(seed))
        for way in ways:
            rows.append({"way": way, "seed": seed} | _accuracies(right[way], right["ids"], mask))
    table = pd.DataFrame(rows)
    figures = [c for c in table if c not in ("way", "seed", "characters")]
    wide = table.pivot(index="seed", columns="way", values=figures)
    found = {f"{way}, {c}": evaluate.mean_interval(wide[c][way]) for way in ways for c in figures}
    for way in ways:
        for question in ("name", "style", "both"):
            lost = wide[f"{question}_seen"][way] - wide[f"{question}_unseen"][way]
            found[f"{way}, {question} lost"] = evaluate.mean_interval(lost, unit="points")
        if way != CONTRASTIVE:
            for c in figures:
                gap = wide[c][way] - wide[c][CONTRASTIVE]
                key = f"{way} minus contrastive, {c}"
                found[key] = evaluate.mean_interval(gap, unit="points")
        by_character = np.mean(table[table["way"] == way]["characters"].tolist(), axis=0)
        found[f"{way}, both lost, over characters"] = evaluate.mean_interval(
            -by_character, unit="points"
        )
    return _record("combinations", rows, found, seeds, start, origin)


def _right(models: Mapping[str, nn.Module], data: Dataset) -> dict[str, Any]:
    """Which test pictures each model gets right, by question, and their ids."""
    found: dict[str, Any] = {way: {} for way in models}
    asked = {way: _answers(model) for way, model in models.items()}
    for question, part in (("name", data), ("style", captions.by_style(data))):
        reports = evaluate.grid(
            {way: asked[way][question] for way in models}, part.test, name=question, resamples=2
        )
        for way, report in reports.items():
            found[way][question] = report.correct
            found["ids"] = report.ids
    return found


def _accuracies(
    right: Mapping[str, np.ndarray], ids: Sequence[str], unseen: np.ndarray
) -> dict[str, Any]:
    answers = {**right, "both": right["name"] & right["style"]}
    found: dict[str, Any] = {}
    for question, correct in answers.items():
        found[f"{question}_seen"] = float(correct[~unseen].mean())
        found[f"{question}_unseen"] = float(correct[unseen].mean())
    of = np.array([name.split("/")[1] for name in ids])
    found["characters"] = [
        float(
            answers["both"][unseen & (of == c)].mean() - answers["both"][~unseen & (of == c)].mean()
        )
        for c in captions.VALUES["name"]
    ]
    return found


# --- wordings -----------------------------------------------------------------------------


def prompts(run: Run | None = None, *, seeds: Sequence[int] = SEEDS) -> Record:
    """The contrastive models with several wordings of the same question.

    Args:
        run: unused but for its place in ``records.get``.
        seeds: see :data:`SEEDS`.

    Returns:
        the record ``words/prompts``: a row for each seed and wording in :data:`PROMPTS` with
        ``characters``, the accuracy among the 40 names on test pictures, and ``digits``, among ten
        on handwritten test digits; and for two wordings of styles ``styles``. The result holds
        the paired differences from the first wording.
    """
    origin, start = records.provenance(prompts, command=COMMAND), time.perf_counter()
    handwritten = datasets.digits()
    models = {seed: trained(seed) for seed in seeds}
    heads = {
        (seed, wording): on_pictures(model, head(model, digits(templates)))
        for seed, model in models.items()
        for wording, templates in PROMPTS.items()
    }
    written = evaluate.grid(heads, handwritten.test, name="wordings", resamples=2)
    rows: list[dict[str, Any]] = []
    for seed, model in models.items():
        data = embedded(model, captions.exam(seed))
        printed = evaluate.grid(
            {wording: head(model, names(templates)) for wording, templates in PROMPTS.items()},
            data.test, name="wordings", resamples=2,
        )  # fmt: skip
        of_style = evaluate.grid(
            {named: head(model, styles(named=named)) for named in (False, True)},
            captions.by_style(data).test, name="wordings of styles", resamples=2,
        )  # fmt: skip
        values = {"characters": printed, "digits": {p: written[seed, p] for p in PROMPTS}}
        rows += [
            {"question": question, "wording": p, "seed": seed, "top1": report.top1.value}
            for question, reports in values.items()
            for p, report in reports.items()
        ]
        rows += [
            {
                "question": "styles",
                "wording": "mean over all names" if named else "without a name",
                "seed": seed,
                "top1": report.top1.value,
            }
            for named, report in of_style.items()
        ]
    wide = pd.DataFrame(rows).pivot(index="seed", columns=["question", "wording"], values="top1")
    found: dict[str, Estimate] = {}
    for question in dict.fromkeys(wide.columns.get_level_values(0)):
        first = next(row["wording"] for row in rows if row["question"] == question)
        for wording in wide[question]:
            found[f"{question}, {wording}"] = evaluate.mean_interval(wide[question][wording])
            if wording != first:
                gap = wide[question][wording] - wide[question][first]
                found[f"{question}, {wording}, gain"] = evaluate.mean_interval(gap, unit="points")
    return _record("prompts", rows, found, seeds, start, origin)


# --- words against labels -----------------------------------------------------------------


def few_labels(
    run: Run | None = None,
    *,
    seeds: Sequence[int] = SEEDS,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
) -> Record:
    """Handwritten digits with no label, with few, and with both words and few labels.

    The ridge weights are chosen on the digits' 300 validation labels, for all methods alike. The
    test split is read once, by all heads together.

    Args:
        run: unused but for its place in ``records.get``.
        seeds: see :data:`SEEDS`.
        shots: labels a class.
        draws: of the labels, for each seed; each seed has draws of its own.

    Returns:
        the record ``words/few``: a row for each seed, number of labels, draw and method in
        :data:`METHODS`. The result holds the means, and paired differences over seeds.
    """
    origin, start = records.provenance(few_labels, command=COMMAND), time.perf_counter()
    data = datasets.digits()
    heads: dict[Any, Any] = {}
    ridges: dict[Any, float | None] = {}
    for seed in seeds:
        model = trained(seed)
        for key, chosen in heads_of(model, data, seed=seed, shots=shots, draws=draws).items():
            heads[seed, *key] = on_pictures(model, chosen)
            ridges[seed, *key] = chosen.ridge if np.isfinite(chosen.ridge) else None
    reports = evaluate.grid(heads, data.test, name="words and labels", resamples=2)
    rows = [
        {
            "seed": seed, "k": k, "draw": draw, "method": method,
            "top1": report.top1.value,
            "ridge": ridges[seed, k, draw, method],
        }
        for (seed, k, draw, method), report in reports.items()
    ]  # fmt: skip
    by_seed = pd.DataFrame(rows).groupby(["seed", "k", "method"])["top1"].mean().unstack()
    found: dict[str, Estimate] = {}
    for k in shots:
        wide = by_seed.xs(k, level="k")
        for method in METHODS:
            found[f"{method}, {k}"] = evaluate.mean_interval(wide[method])
        for first, second in (
            ("probe", "zero-shot"),
            ("both", "probe"),
            ("average", "probe"),
            ("both", "average"),
        ):
            gap = wide[first] - wide[second]
            found[f"{first} minus {second}, {k}"] = evaluate.mean_interval(gap, unit="points")
    return _record("few", rows, found, seeds, start, origin)


def heads_of(
    model: nn.Module, data: Dataset, *, seed: int, shots: Sequence[int], draws: int
) -> dict[tuple[int, int, str], Head]:
    """The heads of :data:`METHODS` by number of labels and draw.

    Example:
        >>> import tlhelpers as tl
        >>> digits = tl.words_study.digits()
        >>> model = tl.contrastive.two_towers(tl.contrastive.vocabulary(sum(digits, [])))
        >>> data = tl.datasets.digits()
        >>> heads = tl.words_study.heads_of(model, data, seed=0, shots=(1,), draws=1)
        >>> heads.keys()
        dict_keys([(1, 0, 'zero-shot'), (1, 0, 'probe'), (1, 0, 'both'), (1, 0, 'average')])
    """
    assert isinstance(model, TwoTowers)
    text = contrastive.class_embeddings(model.embed_texts, digits())
    zero = contrastive.zero_shot(text, scale=model.scale)
    validation = contrastive.embed(model, data.validation.x), data.validation.y
    found: dict[tuple[int, int, str], Head] = {}
    for k in shots:
        for draw in range(draws):
            few = data.few(k, draw=draws * seed + draw).train
            train = contrastive.embed(model, few.x), few.y
            probe, both = (
                contrastive.best_head(
                    train, validation, centre=centre, scale=model.scale, name=name
                )
                for name, centre in (("probe", torch.zeros_like(text)), ("both", text))
            )
            average = average_heads(zero, probe)
            for method, head in zip(METHODS, (zero, probe, both, average), strict=True):
                found[k, draw, method] = head
    return found


def average_heads(first: Head, second: Head, *, alpha: float = 0.5) -> Head:
    """(1 − α) of one head's weights and α of another's, as WiSE-FT does with whole networks.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> one, other = (
        ...     tl.contrastive.Head(torch.eye(2) * size, scale=1.0) for size in (1.0, 3.0)
        ... )
        >>> tl.words_study.average_heads(one, other).weight
        tensor([[2., 0.],
                [0., 2.]])
    """
    mixed = combine.interpolate_states(
        {"weight": first.weight}, {"weight": second.weight}, alpha=alpha
    )
    return Head(mixed["weight"], first.scale, name="average")


# --- the space ----------------------------------------------------------------------------


def inside(run: Run | None = None, *, seeds: Sequence[int] = SEEDS) -> Record:
    """What the two contrastive models know, and where their images and sentences lie.

    Args:
        run: unused but for its place in ``records.get``.
        seeds: see :data:`SEEDS`.

    Returns:
        the record ``words/inside``: a row for each seed and way with ``bound`` in nats on fresh
        pairs, ``possible`` (what a caption says of the facts), ``gap``, ``pair`` and ``apart`` of
        :func:`~tlhelpers.contrastive.modality_gap`, and ``closed``, the change of the accuracy on
        validation pictures when the gap is closed. The result holds the means.
    """
    origin, start = records.provenance(inside, command=COMMAND), time.perf_counter()
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        out, generator = captions.held_out(seed), Run(seed).generator(15, 4)
        batches = [captions.draw(256, generator, without=out) for _ in range(8)]
        data = captions.exam(seed).validation
        for way in (CONTRASTIVE, EVERY_TRUE):
            model = trained(seed, way)
            assert isinstance(model, TwoTowers)
            u = contrastive.embed(model, torch.cat([batch.x for batch in batches]))
            with torch.no_grad():
                t = model.embed_texts([text for batch in batches for text in batch.sentences])
            gap = contrastive.modality_gap(u, t)
            before = contrastive.embed(model, data.x), head(model, names()).weight
            after = contrastive.closed_gap(*before, delta=u.mean(0) - t.mean(0))
            right = [
                float(((x @ w.T).argmax(1) == data.y).float().mean()) for x, w in (before, after)
            ]
            rows.append(
                {
                    "seed": seed, "way": way,
                    "bound": contrastive.information_bound(model, batches).value,
                    "possible": captions.information(out),
                    "gap": gap.distance, "pair": gap.pair, "apart": gap.apart,
                    "closed": right[1] - right[0],
                }
            )  # fmt: skip
    table = pd.DataFrame(rows)
    units = {"bound": "nats", "gap": "", "pair": "", "apart": "%", "closed": "points"}
    found = {
        f"{way}, {figure}": evaluate.mean_interval(of[figure], unit=unit)
        for way, of in table.groupby("way")
        for figure, unit in units.items()
    }
    return _record("inside", rows, found, seeds, start, origin)


def _record(
    name: str,
    rows: Sequence[dict[str, Any]],
    estimates: Mapping[str, Estimate],
    seeds: Sequence[int],
    start: float,
    origin: Mapping[str, Any],
) -> Record:
    return Record(
        name=f"words/{name}",
        tier="cpu",
        split="fresh pictures; four combinations of script and style held out in each seed",
        input=f"16 × 16 images, {PLAN.steps} steps of {PLAN.batch_size} pairs",
        seeds=tuple(seeds),
        curve=tuple(rows),
        interval_over=f"95 %, t, over {len(seeds)} seeds, unless it says over characters",
        wall_seconds=time.perf_counter() - start,
        **records.figures(estimates),
        **origin,
    )
