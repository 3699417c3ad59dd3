"""Helpers of the book *Transfer learning with few labels*.

Four lines from a shipped bank of features to an honest result::

    import tlhelpers as tl

    dogs = tl.features.load("stanford_dogs/mobilenet_v2")
    print(tl.evaluate.report(tl.probe.fit(dogs), dogs.test, name="probe"))

Importing the package loads neither torch nor matplotlib: each module is imported
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "ablation",
    "adapt",
    "adapt_study",
    "advice",
    "audit",
    "augment",
    "banking",
    "captions",
    "characters",
    "check",
    "clip",
    "combine",
    "confidence",
    "contrastive",
    "datasets",
    "decide",
    "discrepancy",
    "distances",
    "dogs",
    "download",
    "duplicates",
    "episodes",
    "evaluate",
    "evidence",
    "exercises",
    "features",
    "federated",
    "fewshot",
    "folders",
    "inside",
    "inside_study",
    "labels",
    "lora",
    "meta",
    "meta_study",
    "models",
    "multitask",
    "negative",
    "pixels",
    "plots",
    "pretrain",
    "probe",
    "questions",
    "ray_extract",
    "records",
    "reporting",
    "reweight",
    "runtime",
    "scaling",
    "setup",
    "shards",
    "splits",
    "studies",
    "text",
    "train",
    "transferability",
    "trial",
    "unseen",
    "ways",
    "widgets",
    "words_study",
    "xrays",
    "zoo",
]

# The two verbs that chapters call most, lifted from their modules to the top.
_LIFTED = {"check": "exercises", "setup": "runtime"}

if TYPE_CHECKING:
    from tlhelpers import (
        ablation,
        adapt,
        adapt_study,
        advice,
        audit,
        augment,
        banking,
        captions,
        characters,
        clip,
        combine,
        confidence,
        contrastive,
        datasets,
        decide,
        discrepancy,
        distances,
        dogs,
        download,
        duplicates,
        episodes,
        evaluate,
        evidence,
        exercises,
        features,
        federated,
        fewshot,
        folders,
        inside,
        inside_study,
        labels,
        lora,
        meta,
        meta_study,
        models,
        multitask,
        negative,
        pixels,
        plots,
        pretrain,
        probe,
        questions,
        ray_extract,
        records,
        reporting,
        reweight,
        runtime,
        scaling,
        shards,
        splits,
        studies,
        text,
        train,
        transferability,
        trial,
        unseen,
        ways,
        widgets,
        words_study,
        xrays,
        zoo,
    )
    from tlhelpers.exercises import check
    from tlhelpers.runtime import setup


def __getattr__(name: str) -> Any:
    """Import a module of the package when it is first named (PEP 562)."""
    if name in _LIFTED:
        return getattr(importlib.import_module(f"{__name__}.{_LIFTED[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"tlhelpers has no {name!r}. It has: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
