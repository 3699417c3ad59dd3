"""Backbones with their preprocessing, and freezing that means frozen."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import pandas as pd
import torch
import torch.fx
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

FEATURES = "features"
LOGITS = "logits"


@dataclass(frozen=True)
class Preprocess:
    """From a photograph to what a backbone expects: resize, centre crop, scale, normalise.

    Attributes:
        resize: length of the shorter side after resizing, in pixels.
        crop: side of the square that is cut from the centre, in pixels.
        mean: mean of each channel of the training images, on the scale 0..1.
        std: standard deviation of each channel, on the scale 0..1.
        interpolation: how pixels are interpolated; always with antialiasing.
    """

    resize: int = 224
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    @classmethod
    def from_torchvision(cls, preset: Any) -> Preprocess:
        """The same steps as a weights enum's ``transforms()``."""
        return cls(
            resize=preset.resize_size[0],
            crop=preset.crop_size[0],
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
        )

    def geometry(self, image: Tensor) -> Tensor:
        """Resize and crop: (..., 3, h, w) uint8 to (..., 3, crop, crop) uint8.

        Within one grey level of torchvision's preset, whose float kernel rounds otherwise and
        takes several times as long.
        """
        mode = InterpolationMode(self.interpolation)
        resized = F.resize(image, [self.resize], interpolation=mode, antialias=True)
        return F.center_crop(resized, [self.crop])

    def normalise(self, images: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scale (..., 3, h, w) uint8 to 0..1 and normalise each channel.

        The result has its channels last in memory, which convolutions on a CPU prefer.
        """
        *outer, channels, height, width = images.shape
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        # (x / 255 - mean) / std as one multiplication and one addition, over whole rows of
        # pixels: a loop over the three channels innermost would take four times as long.
        scale = (1 / (255 * std)).repeat(width).to(images.device)
        shift = (-mean / std).repeat(width).to(images.device)
        rows = images.movedim(-3, -1).reshape(*outer, height, width * channels).float()
        normalised = torch.addcmul(shift, rows, scale).to(dtype)
        return normalised.view(*outer, height, width, channels).movedim(-1, -3)

    def __call__(self, images: Tensor) -> Tensor:
        """Both steps, for one image or a batch of one size."""
        return self.normalise(self.geometry(images))

    def as_dict(self) -> dict[str, Any]:
        """The settings, for provenance and cache keys."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A pretrained network without its head, and what belongs to it.

    Attributes:
        name: torchvision's name of the architecture.
        network: (n, 3, h, w) normalised images to (n, dim) features, in eval mode.
        classifier: the network as it came, with its head: images to (n, 1000) logits. Its
            weights are a copy, so fine-tuning ``network`` leaves them as they were.
        dim: the number of features.
        preprocess: what an image must go through first.
        fingerprint: sha256 of the weights; features of different weights never mix.
        weights: where the weights come from, in words.
    """

    name: str
    network: nn.Module
    classifier: nn.Module
    dim: int
    preprocess: Preprocess
    fingerprint: str
    weights: str

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.network.parameters())
        return (
            f"Backbone {self.name!r}: {self.dim} features, {parameters:,} parameters, "
            f"weights {self.weights}, fingerprint {self.fingerprint[:12]}"
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the inner stages that :meth:`at` can tap, from input to output."""
        for path in ("features", "encoder.layers"):  # most networks; vision transformers
            if path in dict(self.classifier.named_modules()):
                inner = self.classifier.get_submodule(path).named_children()
                return tuple(f"{path}.{name}" for name, _ in inner)
        children = self.classifier.named_children()
        return tuple(name for name, child in children if isinstance(child, nn.Sequential))

    def at(self, stage: str = FEATURES) -> nn.Module:
        """A module from normalised images to an (n, d) output of the chosen stage.

        Args:
            stage: ``"features"`` (what the head sees), ``"logits"`` (what the head says), or the
                name of an inner module, such as those in :attr:`stages`: its output averaged
                over the image plane, or over the tokens of a transformer.

        Raises:
            ValueError: if the network has no such module.
        """
        if stage == FEATURES:
            return self.network
        if stage == LOGITS:
            return self.classifier
        if stage not in dict(self.classifier.named_modules()):
            raise ValueError(
                f"{self.name} has no stage {stage!r}. Expected 'features', 'logits', or the name "
                f"of a module, such as {', '.join(self.stages)}."
            )
        if self.name.startswith("swin"):
            # Swin keeps channels last inside, so the average below would mix up the axes.
            raise ValueError(f"Inner stages of {self.name} are not supported; use 'features'.")
        extractor = create_feature_extractor(self.classifier, {stage: "out"})
        # torchvision's extractor switches graphs with the mode, and a copy of it wakes up in
        # training mode; a plain graph module keeps the mode it is in.
        return _AveragedStage(torch.fx.GraphModule(extractor, extractor.graph)).eval()


class _AveragedStage(nn.Module):
    """A stage of a network, with its output averaged to (n, d)."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, images: Tensor) -> Tensor:
        return _average(self.stage(images)["out"])


@torch.fx.wrap  # a leaf for tracers, which cannot follow a branch on the shape
def _average(out: Tensor) -> Tensor:
    """Maps (n, d, h, w), or tokens (n, t, d), averaged to (n, d)."""
    if out.ndim == 4:
        return out.mean(dim=(2, 3))
    return out.mean(dim=1) if out.ndim == 3 else out


def backbone(name: str, *, weights: str | Path | None = "imagenet", seed: int = 0) -> Backbone:
    """A torchvision classifier without its head.

    Args:
        name: any name in ``torchvision.models.list_models(module=torchvision.models)``.
        weights: ``"imagenet"``: torchvision's ``IMAGENET1K_V1`` with its own ``transforms()``,
            downloaded on first use (version 1 by name, because ``DEFAULT`` changes over time);
            the name of another member of the model's weights enum; the path of a safetensors
            file with torchvision's parameter names (images are then resized to 224 on the
            shorter side and cropped to 224 in the centre); None: random weights.
        seed: the seed of random weights.

    Raises:
        ValueError: if the name, or the architecture of the weights file, is not right.
        FileNotFoundError: if there is no such weights file.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}. It has: {', '.join(known)}.")
    enum = torchvision.models.get_model_weights(name)
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = torchvision.models.get_model(name, weights=None)
        preprocess, source = Preprocess(), f"random, seed {seed}"
    elif (chosen := "IMAGENET1K_V1" if weights == "imagenet" else str(weights)) in enum.__members__:
        with _weights_only():
            model = torchvision.models.get_model(name, weights=enum[chosen])
        preprocess = Preprocess.from_torchvision(enum[chosen].transforms())
        source = f"{enum.__name__}.{chosen}"
    else:
        model = torchvision.models.get_model(name, weights=None)
        _load_weights(model, Path(chosen), name, tuple(enum.__members__))
        preprocess, source = Preprocess(), Path(chosen).name
    model.eval().requires_grad_(False)
    network, dim = _without_head(model, name)
    return Backbone(name, network, model, dim, preprocess, fingerprint(model), source)


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Have torch unpickle tensors only: a checkpoint from a server must not run code here."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def fingerprint(module: nn.Module) -> str:
    """sha256 over the names, shapes and float32 values of a module's state."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _without_head(model: nn.Module, name: str) -> tuple[nn.Module, int]:
    """A copy of a classifier that ends before its head, and the number of its features."""
    if name.startswith("squeezenet"):
        # Its head is a 1x1 convolution before the pooling; what follows has no weights.
        head = "classifier.1"
    else:
        head = [key for key, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
    layer: Any = model.get_submodule(head)
    network = copy.deepcopy(model)
    network.set_submodule(head, nn.Identity())
    return network, layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def _load_weights(model: nn.Module, path: Path, name: str, enum_members: tuple[str, ...]) -> None:
    """Load a safetensors file whose parameter names and shapes are the model's own."""
    if not path.is_file():
        raise FileNotFoundError(
            f"weights should be 'imagenet', one of {', '.join(enum_members)}, None, or the path "
            f"of a safetensors file; {str(path)!r} is none of these."
        )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a readable safetensors file: {error}.") from error
    expected = model.state_dict()
    # A counter that no forward pass in eval mode reads; exported files often leave it out.
    required = {key for key in expected if not key.endswith("num_batches_tracked")}
    missing, unknown = sorted(required - state.keys()), sorted(state.keys() - expected.keys())
    other = sorted(k for k in required & state.keys() if state[k].shape != expected[k].shape)
    if missing or unknown or other:
        details = [
            f"{len(keys)} {what} ({keys[0]}, ...)"
            for what, keys in (
                ("missing", missing),
                ("unknown", unknown),
                ("of other shape", other),
            )
            if keys
        ]
        raise ValueError(
            f"{path.name} does not hold weights of {name}: of the {len(required)} entries that "
            f"{name} needs, it has {', '.join(details)}. Name the architecture it was made for."
        )
    model.load_state_dict(state, strict=False)


# --- freezing -----------------------------------------------------------------------------


def freeze(module: nn.Module) -> nn.Module:
    """Freeze a module: no gradients, and no state that moves in training mode.

    ``requires_grad=False`` alone leaves BatchNorm's running statistics drifting and dropout
    drawing at random as soon as somebody calls ``train()``. A module frozen here stays in
    eval mode when ``train()`` is called on it or on a parent. Layers that are attached to it
    later, such as a new head, follow ``train()`` as usual.

    Returns:
        the module itself.
    """
    for part in module.modules():
        part.training = False
        part.train = MethodType(_train_children_only, part)  # type: ignore[method-assign]
    return module.requires_grad_(False)


def unfreeze(module: nn.Module) -> nn.Module:
    """Undo :func:`freeze`: gradients on, and the module follows ``train()`` again.

    The mode itself does not change before the next ``train()`` or ``eval()``.
    """
    for part in module.modules():
        part.__dict__.pop("train", None)
    return module.requires_grad_(True)


def _train_children_only(module: nn.Module, mode: bool = True) -> nn.Module:
    """``train()`` of a frozen module: it stays in eval mode, children decide for themselves."""
    for child in module.children():
        child.train(mode)
    return module


# --- what moved? --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class State:
    """A copy of a module's parameters and buffers at one moment."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    def __repr__(self) -> str:
        return f"state of {len(self.parameters)} parameters and {len(self.buffers)} buffers"


@dataclass(frozen=True)
class Move:
    """How far one entry of a state moved: the norm of the change, absolute and relative."""

    name: str
    kind: str
    change: float
    relative: float


@dataclass(frozen=True)
class StateDiff:
    """What differs between two states; prints a summary, see :func:`diff_state`."""

    moves: tuple[Move, ...]
    parameters: int
    buffers: int

    def count(self, kind: str) -> int:
        """How many entries of a kind (``"parameter"`` or ``"buffer"``) moved."""
        return sum(move.kind == kind for move in self.moves)

    def to_frame(self) -> pd.DataFrame:
        """A row for each entry that moved: name, kind, change, relative."""
        return pd.DataFrame(
            [asdict(m) for m in self.moves], columns=["name", "kind", "change", "relative"]
        )

    def __str__(self) -> str:
        return (
            f"{self.count('parameter')} of {self.parameters} parameters and "
            f"{self.count('buffer')} of {self.buffers} buffers moved"
        )


def snapshot(module: nn.Module) -> State:
    """Copy a module's parameters and buffers, to compare with later."""
    return State(
        {name: p.detach().clone() for name, p in module.named_parameters()},
        {name: b.detach().clone() for name, b in module.named_buffers()},
    )


def diff_state(before: State | nn.Module, after: State | nn.Module) -> StateDiff:
    """What moved between two states of one network.

    Args:
        before: a :func:`snapshot`, or a module as it is now.
        after: the same.

    Raises:
        ValueError: if the two do not have the same entries.

    >>> layer = nn.BatchNorm1d(2)
    >>> before = snapshot(layer)
    >>> _ = layer(torch.randn(8, 2))
    >>> print(diff_state(before, layer))
    0 of 2 parameters and 3 of 3 buffers moved
    """
    old = before if isinstance(before, State) else snapshot(before)
    new = after if isinstance(after, State) else snapshot(after)
    moves: list[Move] = []
    for kind, a, b in (
        ("parameter", old.parameters, new.parameters),
        ("buffer", old.buffers, new.buffers),
    ):
        if a.keys() != b.keys():
            odd = sorted(a.keys() ^ b.keys())
            raise ValueError(
                f"the two states should have the same {kind}s, but {len(odd)} are in one only "
                f"({odd[0]}, ...). Compare states of the same network."
            )
        moves += [_move(name, kind, a[name], b[name]) for name in a if not a[name].equal(b[name])]
    return StateDiff(tuple(moves), len(old.parameters), len(old.buffers))


def _move(name: str, kind: str, before: Tensor, after: Tensor) -> Move:
    change = float((after.double().cpu() - before.double().cpu()).norm())
    size = float(before.double().norm())
    return Move(name, kind, change, change / size if size else float("inf"))
