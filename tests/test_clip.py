"""CLIP's whole path, with a tiny model of random weights that is made on the spot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tlhelpers import clip, datasets
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``save_pretrained`` writes it."""
    transformers = pytest.importorskip("transformers", reason="the extra clip is not installed")
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[])
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shared |= {"num_attention_heads": 2, "projection_dim": 16}
    text = {"vocab_size": len(tokens), "max_position_embeddings": 77}
    text |= {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    text |= {"pad_token_id": len(tokens) - 1}
    vision = {"image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=shared | text, vision_config=shared | vision, projection_dim=16
            )
        )
    path = tmp_path_factory.mktemp("clip") / "tiny"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> clip.Clip:
    return clip.load(folder)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three classes of ten pictures, each class of a colour of its own."""
    root = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for c, name in enumerate(("pug", "toy_poodle", "whippet")):
        (root / name).mkdir()
        for i in range(10):
            pixels = generator.integers(0, 90, (40, 48, 3), dtype=np.uint8)
            pixels[..., c] += 150
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return datasets.image_folder(root, train=0.4, validation=0.2)


def test_embeddings_are_those_of_the_library(folder: Path, loaded: clip.Clip) -> None:
    import transformers

    model: Any = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(folder)
    texts = ["a photo of a pug, a breed of dog.", "a cat"]
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    assert loaded.backbone.preprocess is not None
    pixels = loaded.backbone.preprocess(images)
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(pixel_values=pixels, **tokens)
        ours = loaded.backbone.network(pixels)
    assert torch.allclose(ours, theirs.image_embeds, atol=1e-5)
    assert torch.allclose(loaded.embed_texts(texts), theirs.text_embeds, atol=1e-5)
    logits = loaded.scale * ours @ loaded.embed_texts(texts).T
    assert torch.allclose(logits, theirs.logits_per_image, atol=1e-4)


def test_preprocessing_is_that_of_the_library(folder: Path, loaded: clip.Clip) -> None:
    import transformers

    image = torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8)
    steps: Any = transformers.CLIPImageProcessor.from_pretrained(folder)
    theirs = steps(image, return_tensors="pt")["pixel_values"][0]
    assert loaded.backbone.preprocess is not None
    assert torch.allclose(loaded.backbone.preprocess(image), theirs, atol=1e-4)


def test_the_study_runs_from_photographs_to_a_record(
    loaded: clip.Clip, photographs: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path))
    run = Run(device=torch.device("cpu"))
    record = clip.study(run, clip=loaded, data=photographs, shots=(1, 2), draws=2)
    assert record.name == "words/clip"
    assert len(record.curve) == 2 + 2 * 2 * 2
    assert {row["k"] for row in record.curve} == {0, 1, 2}
    for name in ("one prompt", "mean of prompts", "probe, 2", "both minus probe, 1"):
        estimate = record.estimate(name)
        assert estimate.low <= estimate.value <= estimate.high
    assert record.estimate("probe, 2").value > 0.9  # colours are easy, also at random weights
    assert photographs.test.readings == ("CLIP, words and labels",)


def test_names_with_underscores_become_words() -> None:
    found = clip.sentences(["toy_poodle"], ["a {}.", "my {}"])
    assert found == [["a toy poodle.", "my toy poodle"]]


def test_a_sentence_that_is_too_long_is_refused(loaded: clip.Clip) -> None:
    with pytest.raises(ValueError, match="77 tokens"):
        loaded.embed_texts(["dog " * 60])


def test_without_transformers_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"tlhelpers\[clip\]"):
        clip.load("nowhere")
