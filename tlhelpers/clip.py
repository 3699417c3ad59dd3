"""CLIP on photographs: embeddings of images and sentences, with no label, with few, with both.

Needs the package transformers (``pip install "tlhelpers[clip]"``), which is imported when
:func:`load` is called, and weights from its hub or in a folder. Everything after the embeddings is
:mod:`~tlhelpers.contrastive` and ``evaluate``, as for the small towers of chapter 15.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlhelpers import contrastive, datasets, evaluate, features, models, records, runtime
from tlhelpers.contrastive import Head
from tlhelpers.models import Backbone, Preprocess
from tlhelpers.records import Record
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

NAME = "openai/clip-vit-base-patch32"
COMMAND = "in chapter 15, with PROFILE = 'full' and TLHELPERS_DATA=PATH"
PROMPTS = (
    "a photo of a {}, a breed of dog.",
    "a close-up photo of a {}, a breed of dog.",
    "a photo of my dog, a {}.",
    "a {} outdoors.",
    "a portrait of a {}.",
)
"""Sentences for a class of dogs; the first is also asked alone."""

SHOTS = (1, 2, 5, 20)
DRAWS = 5
RIDGES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""The ridges to choose from, larger than for the small towers since the factor on cosines is."""


@dataclass(frozen=True, eq=False, repr=False)
class Clip:
    """A pretrained pair of towers; make one with :func:`load`.

    Attributes:
        backbone: photographs to embeddings of length 1, for ``features.extract``.
        embed_texts: a sequence of n sentences to (n, d) embeddings of length 1.
        scale: the learnt factor on cosines.

    Example:
        >>> import tlhelpers as tl
        >>> towers = tl.contrastive.two_towers(("a", "bold", "alpha", "beta"), dim=8)
        >>> backbone = tl.models.Backbone(
        ...     name="small tower",
        ...     network=towers.image,
        ...     classifier=towers.image,
        ...     dim=8,
        ...     preprocess=None,
        ...     fingerprint=tl.models.fingerprint(towers.image),
        ...     weights="random",
        ... )
        >>> clip = tl.clip.Clip(backbone, towers.embed_texts, towers.scale)
        >>> clip.embed_texts(["a bold alpha"]).shape, round(clip.scale, 1)
        (torch.Size([1, 8]), 14.3)
    """

    backbone: Backbone
    embed_texts: Callable[[Sequence[str]], Tensor]
    scale: float

    def __repr__(self) -> str:
        return f"CLIP {self.backbone!r}, cosines times {self.scale:.1f}"


class _ImageTower(nn.Module):
    """Normalised images to embeddings of length 1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model, self.projection = model.vision_model, model.visual_projection

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.vision_model(pixel_values=images).pooler_output
        return functional.normalize(self.projection(pooled).float(), dim=1)


def load(name: str | Path = NAME, *, revision: str = "main") -> Clip:
    """CLIP with its weights, tokenizer and preprocessing.

    Args:
        name: of a CLIP model on the hub of transformers, or a folder that ``save_pretrained`` wrote
            with model, tokenizer and image processor.
        revision: which version on the hub.

    Raises:
        ImportError: if transformers is not installed, saying how to install it.
        OSError: if there is no such model, or the hub cannot be reached.
    """
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            'CLIP needs the package transformers: pip install "tlhelpers[clip]", and start the '
            "kernel again."
        ) from error
    model, tokenizer, steps = (
        getattr(library, kind).from_pretrained(name, revision=revision)
        for kind in ("CLIPModel", "CLIPTokenizer", "CLIPImageProcessor")
    )
    model.eval().requires_grad_(False)
    tower = _ImageTower(model).eval()
    known_as = Path(name).name if Path(name).is_dir() else str(name)
    backbone = Backbone(
        name=known_as,
        network=tower,
        classifier=tower,
        dim=model.config.projection_dim,
        preprocess=Preprocess(
            resize=steps.size["shortest_edge"],
            crop=steps.crop_size["height"],
            mean=tuple(steps.image_mean),
            std=tuple(steps.image_std),
            interpolation="bicubic",
        ),
        fingerprint=models.fingerprint(tower),
        weights=f"{known_as}, {revision}",
    )
    longest = model.config.text_config.max_position_embeddings

    def embed_texts(sentences: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(sentences), padding=True, return_tensors="pt")
        if (length := tokens["input_ids"].shape[1]) > longest:
            raise ValueError(
                f"a sentence may have {longest} tokens, found one with {length}. Shorten it; cut "
                f"off, it would say something else."
            )
        with torch.no_grad():
            pooled = model.text_model(**tokens).pooler_output
            return functional.normalize(model.text_projection(pooled), dim=1)

    return Clip(backbone, embed_texts, float(model.logit_scale.detach().exp()))


def sentences(classes: Sequence[str], prompts: Sequence[str] = PROMPTS) -> list[list[str]]:
    """One list of sentences for each class.

    >>> sentences(["pug"], PROMPTS[:1])
    [['a photo of a pug, a breed of dog.']]
    """
    return [[prompt.format(name.replace("_", " ")) for prompt in prompts] for name in classes]


def heads(
    clip: Clip,
    bank: Dataset,
    *,
    prompts: Sequence[str] = PROMPTS,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    ridges: Sequence[float] = RIDGES,
) -> dict[tuple[str, int, int], Head]:
    """Every head of :func:`study`, by method, number of labels and draw.

    Args:
        clip: what made the embeddings.
        bank: embeddings of photographs, from ``features.extract(data, clip.backbone)``.
        prompts: the sentences for a class, with ``{}`` for its name.
        shots: labels a class.
        draws: of the labels.
        ridges: the ridge weights among which validation chooses.

    Example:
        >>> import tlhelpers as tl
        >>> exam = tl.captions.exam(sizes=(640, 40, 40))
        >>> pair = tl.datasets.with_classes(exam, ["alpha", "beta"])
        >>> towers = tl.contrastive.two_towers(("a", "alpha", "beta"), dim=8)
        >>> backbone = tl.models.Backbone(
        ...     name="small tower",
        ...     network=towers.image,
        ...     classifier=towers.image,
        ...     dim=8,
        ...     preprocess=None,
        ...     fingerprint=tl.models.fingerprint(towers.image),
        ...     weights="random",
        ... )
        >>> clip = tl.clip.Clip(backbone, towers.embed_texts, towers.scale)
        >>> bank = tl.features.extract(pair, clip.backbone)
        >>> heads = tl.clip.heads(clip, bank, prompts=("a {}",), shots=(1,), draws=1)
        >>> list(heads)
        [('one prompt', 0, 0), ('mean of prompts', 0, 0), ('probe', 1, 0), ('both', 1, 0)]
    """
    one, several = (
        contrastive.class_embeddings(clip.embed_texts, sentences(bank.classes, chosen))
        for chosen in (prompts[:1], prompts)
    )
    found: dict[tuple[str, int, int], Head] = {
        ("one prompt", 0, 0): contrastive.zero_shot(one, scale=clip.scale),
        ("mean of prompts", 0, 0): contrastive.zero_shot(several, scale=clip.scale),
    }
    validation = bank.validation.x, bank.validation.y
    for k in shots:
        for draw in range(draws):
            few = bank.few(k, draw=draw).train
            for method, centre in (("probe", torch.zeros_like(several)), ("both", several)):
                found[method, k, draw] = contrastive.best_head(
                    (few.x, few.y), validation,
                    centre=centre, scale=clip.scale, ridges=ridges, name=method,
                )  # fmt: skip
    return found


def study(
    run: Run | None = None,
    *,
    clip: Clip | None = None,
    data: Dataset | None = None,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
) -> Record:
    """Zero-shot, probe and both on photographs.

    No version of this record is shipped: the weights cannot be had where the book is built.

    Args:
        run: device and dtype of the embeddings.
        clip: None for :func:`load`.
        data: None for ``datasets.stanford_dogs()``.
        shots: labels a class.
        draws: of the labels, two or more.

    Returns:
        the record ``words/clip``: a row for each method, number of labels and draw. The result
        holds the accuracies: for words alone with an interval over test images, else over draws.
    """
    run = runtime.default(run)
    clip = load() if clip is None else clip
    data = datasets.stanford_dogs() if data is None else data
    origin, start = records.provenance(study, command=COMMAND), time.perf_counter()
    bank = features.extract(data, clip.backbone, run=run)
    reports = evaluate.grid(
        heads(clip, bank, shots=shots, draws=draws), bank.test, name="CLIP, words and labels"
    )
    rows: list[dict[str, Any]] = [
        {"method": method, "k": k, "draw": draw, "top1": report.top1.value}
        for (method, k, draw), report in reports.items()
    ]
    found = {method: report.top1 for (method, k, _), report in reports.items() if k == 0}
    gain = evaluate.difference(reports["mean of prompts", 0, 0], reports["one prompt", 0, 0])
    found["mean of prompts minus one"] = gain
    for k in shots:
        top1 = {
            method: [r["top1"] for r in rows if r["method"] == method and r["k"] == k]
            for method in ("probe", "both")
        }
        found |= {f"{m}, {k}": evaluate.mean_interval(values) for m, values in top1.items()}
        paired = [b - p for b, p in zip(top1["both"], top1["probe"], strict=True)]
        found[f"both minus probe, {k}"] = evaluate.mean_interval(paired, unit="points")
    return Record(
        name="words/clip",
        tier=run.tier,
        split=f"{data.name}: {data.split_name}; {draws} draws of the labels",
        input=f"{clip.backbone.name}, {bank.x.shape[1]} dimensions, {run.dtype}",
        seeds=tuple(range(draws)),
        curve=tuple(rows),
        interval_over="95 %: words alone, bootstrap over test images; others, t, over draws",
        wall_seconds=time.perf_counter() - start,
        **records.figures(found),
        **origin,
    )
