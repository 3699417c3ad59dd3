"""Backbones and their preprocessing, a small network of our own, and freezing that means frozen."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from types import MethodType
from typing import Any

import pandas as pd
import torch
import torch.fx
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tlhelpers import runtime

FEATURES = "features"
LOGITS = "logits"
WIDTHS = (16, 32, 64)

_SMALL_FORMAT = "tlhelpers-small-resnet-1"
_LEAST_SIDE = 8  # two strides of 2 leave 2 x 2 positions


@dataclass(frozen=True)
class Preprocess:
    """From a photograph to what a backbone expects: resize, centre crop, scale, normalise.

    Attributes:
        resize: length of the shorter side after resizing, in pixels.
        crop: side of the square that is cut from the centre, in pixels.
        mean: mean of each channel of the training images, on the scale 0..1.
        std: standard deviation of each channel, on the scale 0..1.
        interpolation: how pixels are interpolated; always with antialiasing.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> preprocess = tl.models.Preprocess(resize=256, crop=224)
        >>> black = torch.zeros(2, 3, 300, 400, dtype=torch.uint8)
        >>> images = preprocess(black)
        >>> images.shape
        torch.Size([2, 3, 224, 224])
        >>> images[0, :, 0, 0]
        tensor([-2.1179, -2.0357, -1.8044])
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
        """Resize and crop: (..., 3, h, w) images to (..., 3, crop, crop), of the same dtype.

        Within one grey level of torchvision's preset, whose float kernel rounds otherwise and
        takes several times as long.
        """
        mode = InterpolationMode(self.interpolation)
        resized = F.resize(image, [self.resize], interpolation=mode, antialias=True)
        return F.center_crop(resized, [self.crop])

    def normalise(self, images: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normalise each channel of (..., 3, h, w) uint8 images, or of float ones in 0..1.

        The result has its channels last in memory, which convolutions on a CPU prefer.
        """
        *outer, channels, height, width = images.shape
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        white = 1 if images.is_floating_point() else 255
        # (x / 255 - mean) / std as one multiplication and one addition, over whole rows of
        # pixels: a loop over the three channels innermost would take four times as long.
        # A copy to the device that blocks would have a training loop wait for its last step.
        scale = (1 / (white * std)).repeat(width).to(images.device, non_blocking=True)
        shift = (-mean / std).repeat(width).to(images.device, non_blocking=True)
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
        name: torchvision's name of the architecture, or the one given to :func:`as_backbone`.
        network: (n, 3, h, w) normalised images to (n, dim) features, in eval mode.
        classifier: the network as it came, with its head: images to (n, 1000) logits. Its
            weights are a copy, so fine-tuning ``network`` leaves them as they were.
        dim: the number of features.
        preprocess: what a photograph must go through first; None where float images go in as
            they are.
        fingerprint: sha256 of the weights; features of different weights never mix.
        weights: where the weights come from, in words.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> backbone = tl.models.backbone("squeezenet1_1", weights=None)
        >>> backbone.stages[-3:]
        ('features.10', 'features.11', 'features.12')
        >>> images = backbone.preprocess(torch.zeros(2, 3, 300, 400, dtype=torch.uint8))
        >>> for stage in ("features", "logits", "features.12/2x2"):
        ...     print(f"{stage:16} {tuple(backbone.at(stage)(images).shape)}")
        features         (2, 512)
        logits           (2, 1000)
        features.12/2x2  (2, 2048)
    """

    name: str
    network: nn.Module
    classifier: nn.Module
    dim: int
    preprocess: Preprocess | None
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
                over the image plane, or over the tokens of a transformer. With an ending such as
                ``"/4x4"`` the image plane is cut into a grid of that many rows and columns, and
                the average taken over each field: d channels become 16 d features, which keep
                where in the image they were.

        Raises:
            ValueError: if the network has no such module, or a grid is asked of what has no image
                plane.
        """
        if stage == FEATURES:
            return self.network
        if stage == LOGITS:
            return self.classifier
        stage, grid = _stage_and_grid(stage)
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
        return _AveragedStage(torch.fx.GraphModule(extractor, extractor.graph), grid).eval()


_GRID = re.compile(r"(.+)/([1-9]\d?)x([1-9]\d?)")


def _stage_and_grid(stage: str) -> tuple[str, tuple[int, int]]:
    """The name of a module, and the rows and columns over which it is averaged.

    >>> _stage_and_grid("features.11/4x4")
    ('features.11', (4, 4))
    """
    found = _GRID.fullmatch(stage)
    return (found[1], (int(found[2]), int(found[3]))) if found else (stage, (1, 1))


class _AveragedStage(nn.Module):
    """A stage of a network, with its output averaged to (n, d rows columns)."""

    def __init__(self, stage: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.stage, self.grid = stage, grid

    def forward(self, images: Tensor) -> Tensor:
        return _average(self.stage(images)["out"], self.grid)


@torch.fx.wrap  # a leaf for tracers, which cannot follow a branch on the shape
def _average(out: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (n, d, h, w) averaged over each field of a grid; tokens (n, t, d) over all of them."""
    if out.ndim == 4 and grid != (1, 1):
        return nn.functional.adaptive_avg_pool2d(out, grid).flatten(1)
    if grid != (1, 1):
        raise ValueError(
            f"a grid of {grid[0]}x{grid[1]} needs a stage with an image plane, (n, d, h, w), found "
            f"an output of shape {tuple(out.shape)}. Leave the ending of the stage's name out."
        )
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

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> backbone = tl.models.backbone("squeezenet1_1", weights=None)
        >>> backbone.dim, backbone.preprocess.crop, backbone.weights
        (512, 224, 'random, seed 0')
        >>> backbone.network(torch.zeros(2, 3, 224, 224)).shape
        torch.Size([2, 512])
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
    """sha256 over the names, shapes and float32 values of a module's state.

    Example:
        >>> import tlhelpers as tl
        >>> one, same, other = (tl.models.small_resnet(10, seed=seed) for seed in (0, 0, 1))
        >>> tl.models.fingerprint(one) == tl.models.fingerprint(same)
        True
        >>> tl.models.fingerprint(one) == tl.models.fingerprint(other)
        False
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _without_head(model: nn.Module, name: str) -> tuple[nn.Module, int]:
    """A copy of a classifier that ends before its head, and the number of its features."""
    head = _head_path(model, name)
    layer: Any = model.get_submodule(head)
    network = copy.deepcopy(model)
    network.set_submodule(head, nn.Identity())
    return network, layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def _head_path(model: nn.Module, name: str) -> str:
    """The name of the head of torchvision's classifier."""
    # SqueezeNet's is a 1x1 convolution before the pooling; what follows has no weights.
    return "classifier.1" if name.startswith("squeezenet") else head_name(model)


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


# --- photographs in, classes out ----------------------------------------------------------


class PhotoClassifier(nn.Module):
    """A torchvision network with a fresh head, that takes photographs as they are.

    Make one with :func:`photo_classifier`. It takes (n, 3, h, w) images, uint8 or float in 0..1,
    and returns (n, m) logits. Images of another size than the network's are resized and
    cut by ``preprocess``, those of its size (such as the crops of an augmentation) are not;
    ``net(x) == net.head(net.dropout(net.features(x)))``.

    Three recipes. Train the head alone: ``models.freeze(net.body)``. Train all of it, the
    body slowly: ``Recipe(lr=1e-4, head_lr=1e-3)``. Start all of it from a probe (LP-FT, Kumar et
    al. 2022): ``net.head.load_state_dict(probe.to_linear().state_dict())``, with a probe fitted
    to features of ``as_backbone(net)``.

    Attributes:
        name: torchvision's name of the architecture.
        preprocess: the size of the images, and how their channels are normalised.
        body: torchvision's network without its head and the dropout before it: normalised images
            to (n, d) features.
        dropout: acts on the features in training mode.
        head: (n, d) to (n, m).
    """

    def __init__(
        self, backbone: Backbone, classes: int, *, dropout: float | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"a head needs 1 class or more, found {classes}.")
        if dropout is not None and not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in 0..1, without 1, found {dropout}.")
        if backbone.preprocess is None:
            raise ValueError(f"{backbone.name} has no preprocessing; photographs need one.")
        self.name, self.preprocess = backbone.name, backbone.preprocess
        self.body = copy.deepcopy(backbone.network).requires_grad_(True)
        _without_auxiliary_heads(self.body)
        self._head_path = _head_path(backbone.classifier, backbone.name)
        own = _take_dropout(self.body, self._head_path)
        self.dropout = nn.Dropout(own if dropout is None else dropout)
        self.head = nn.utils.skip_init(nn.Linear, backbone.dim, classes)
        generator = runtime.Run(seed=seed).generator(1)
        bound = backbone.dim**-0.5
        nn.init.uniform_(self.head.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) images to (n, d) features: what the head sees, before dropout."""
        side = self.preprocess.crop
        if images.shape[-2:] != (side, side):
            images = self.preprocess.geometry(images)
        return self.body(self.preprocess.normalise(images))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) images to (n, m) logits."""
        return self.head(self.dropout(self.features(images)))


def photo_classifier(
    name: str,
    classes: int,
    *,
    weights: str | Path | None = "imagenet",
    size: int | None = None,
    preprocess: Preprocess | None = None,
    dropout: float | None = None,
    seed: int = 0,
) -> PhotoClassifier:
    """A torchvision network for photographs, with a head for classes of your own.

    Args:
        name: of the architecture, see :func:`backbone`.
        classes: the number of classes.
        weights: of the body: ``"imagenet"``, a path or None, see :func:`backbone`.
        size: the side of the images in pixels that the network works on, such as 128: faster and
            less exact. None for the weights' own, as a rule 224. Networks with convolutions
            alone take any; most transformers take theirs only.
        preprocess: resizing, cutting and normalising in full, instead of ``size``.
        dropout: the share of features that are dropped in training mode; None for what torchvision
            drops before this network's head, which is nothing for most.
        seed: of the head, and of random weights.

    Raises:
        ValueError: if a name, a number or the weights file is not right.
        FileNotFoundError: if there is no such weights file.

    >>> network = photo_classifier("resnet18", 120, weights=None, size=64)
    >>> network(torch.zeros(2, 3, 80, 100, dtype=torch.uint8)).shape
    torch.Size([2, 120])
    """
    if size is not None and (preprocess is not None or size < 1):
        raise ValueError(
            f"size is a number of pixels, 1 or more, and stands in the place of preprocess; found "
            f"size {size} and preprocess {preprocess}."
        )
    body = backbone(name, weights=weights, seed=seed)
    assert body.preprocess is not None
    if size is not None:
        resize = round(size * body.preprocess.resize / body.preprocess.crop)
        preprocess = replace(body.preprocess, resize=resize, crop=size)
    if preprocess is not None:
        body = replace(body, preprocess=preprocess)
    return PhotoClassifier(body, classes, dropout=dropout, seed=seed).eval()


def _take_dropout(body: nn.Module, head: str) -> float:
    """Take the dropout right before a head out of a network; its probability, or 0."""
    outer, _, last = head.rpartition(".")
    names = [key for key, _ in body.get_submodule(outer).named_children()]
    before = names[names.index(last) - 1]
    path = f"{outer}.{before}" if outer else before
    layer = body.get_submodule(path)
    if names.index(last) == 0 or not isinstance(layer, nn.Dropout):
        return 0.0
    body.set_submodule(path, nn.Identity())
    return layer.p


def _without_auxiliary_heads(body: Any) -> None:
    """Drop the side heads of GoogLeNet and Inception, which speak in training mode only."""
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(body, name):
            setattr(body, name, None)
            body.aux_logits = False


def _photo_backbone(
    network: PhotoClassifier, name: str | None, preprocess: Preprocess | None
) -> Backbone:
    """Copies of a photo classifier's parts, put together as torchvision does it."""
    part = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    classifier: Any = copy.deepcopy(part.body)
    if network.name.startswith("squeezenet"):  # our head comes after its pooling
        classifier.classifier.extend([nn.Flatten(), part.head])
    else:
        classifier.set_submodule(network._head_path, part.head)
    return Backbone(
        network.name if name is None else name,
        part.body,
        classifier,
        part.head.in_features,
        network.preprocess if preprocess is None else preprocess,
        fingerprint(classifier),
        "as given",
    )


# --- the small network --------------------------------------------------------------------


class SmallResNet(nn.Module):
    """A residual network for small grey images; make one with :func:`small_resnet`.

    A stem and three stages of one basic block each (He et al. 2016), the second and third with
    stride 2; the mean over the image plane; dropout; a linear head. With widths of 16, 32
    and 64 and 52 classes it has 80,484 parameters. It takes (n, 1, h, w) floating-point images
    with sides of 8 or more and returns (n, m) logits:
    ``net(x) == net.head(net.dropout(net.features(x)))``.

    Attributes:
        stem: convolution 3 x 3, batch normalisation, ReLU: (n, 1, h, w) to (n, 16, h, w).
        stage1: to (n, 16, h, w).
        stage2: to (n, 32, h / 2, w / 2).
        stage3: to (n, 64, h / 4, w / 4).
        dropout: acts on the features in training mode.
        head: (n, 64) to (n, m).
        about: what a weights file says of itself, such as its ``"classes"``; empty for random
            weights.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        widths: tuple[int, int, int] = WIDTHS,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"a head needs 1 class or more, found {classes}.")
        if len(widths) != 3 or min(widths) < 1:
            raise ValueError(f"widths are three numbers of channels, found {widths}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in 0..1, without 1, found {dropout}.")
        first, second, third = widths
        # torch initialises every layer from its global state, which is not ours to move.
        with torch.random.fork_rng(devices=[]):
            self.stem = nn.Sequential(_convolution(1, first), nn.BatchNorm2d(first), nn.ReLU())
            self.stage1 = nn.Sequential(_Block(first, first, stride=1))
            self.stage2 = nn.Sequential(_Block(first, second, stride=2))
            self.stage3 = nn.Sequential(_Block(second, third, stride=2))
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(third, classes)
        self.about: dict[str, Any] = {}
        self._initialise(seed)
        self.to(memory_format=torch.channels_last)

    @property
    def widths(self) -> tuple[int, int, int]:
        """The number of channels of each stage."""
        one, two, three = (stage[0].conv1.out_channels for stage in self._stages())
        return one, two, three

    def features(self, images: Tensor) -> Tensor:
        """(n, 1, h, w) images to (n, 64) features: what the head sees, before dropout."""
        _check_images(images)
        return self.stage3(self.stage2(self.stage1(self.stem(images)))).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 1, h, w) images to (n, m) logits."""
        return self.head(self.dropout(self.features(images)))

    def _stages(self) -> tuple[Any, Any, Any]:
        return self.stage1, self.stage2, self.stage3

    def _initialise(self, seed: int) -> None:
        """He et al. (2015) for convolutions; body and head draw from streams of their own."""
        body, head = (runtime.Run(seed=seed).generator(stream) for stream in (0, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=body)
        bound = self.head.in_features**-0.5
        nn.init.uniform_(self.head.weight, -bound, bound, generator=head)
        nn.init.zeros_(self.head.bias)


class _Block(nn.Module):
    """Two convolutions and a shortcut around them; a 1 x 1 convolution where shapes differ."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, stride=stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


@torch.fx.wrap  # a leaf for tracers, which cannot follow a branch on the shape
def _check_images(images: Tensor) -> None:
    if (
        images.ndim != 4
        or images.shape[1] != 1
        or min(images.shape[2:]) < _LEAST_SIDE
        or not images.is_floating_point()
    ):
        raise ValueError(
            f"SmallResNet takes grey images as a float tensor (n, 1, h, w) in 0..1 with sides of "
            f"{_LEAST_SIDE} pixels or more, found {str(images.dtype).removeprefix('torch.')} of "
            f"shape {tuple(images.shape)}. Divide uint8 by 255, average colour channels "
            f"with x.mean(dim=1, keepdim=True), and add the axes that are missing."
        )


def small_resnet(
    classes: int | None = None,
    *,
    weights: str | Path | None = None,
    widths: tuple[int, int, int] = WIDTHS,
    dropout: float = 0.0,
    seed: int = 0,
) -> SmallResNet:
    """A small residual network for glyphs and digits, random or pretrained.

    Args:
        classes: the number of classes of the head. None keeps the head of the weights (10
            classes where they are random); a number gives a fresh head, drawn from ``seed``.
        weights: None for random weights from ``seed``; a name of :func:`shipped_weights`, such as
            ``"letters"``; or the path of a file that :func:`save_small_resnet` wrote.
        widths: the channels of the three stages; a weights file brings its own.
        dropout: the share of features that are dropped in training mode, 0..1.
        seed: the seed of what is random.

    Raises:
        FileNotFoundError: if there are no such weights; the sentence lists those that exist.
        ValueError: if the file holds no weights of this network.

    >>> net = small_resnet(52)
    >>> sum(p.numel() for p in net.parameters())
    80484
    >>> net(torch.zeros(2, 1, 16, 16)).shape
    torch.Size([2, 52])
    """
    if weights is None:
        return SmallResNet(
            10 if classes is None else classes, widths=widths, dropout=dropout, seed=seed
        )
    state, about = _read_small_resnet(_weights_path(weights))
    own = len(about["classes"])
    network = SmallResNet(
        own if classes is None else classes,
        widths=tuple(about["widths"]),
        dropout=dropout,
        seed=seed,
    )
    if classes is not None:
        state |= {f"head.{key}": value for key, value in network.head.state_dict().items()}
        about["classes"] = None
    network.load_state_dict(state)
    network.about = about
    return network


def save_small_resnet(
    network: SmallResNet, path: str | Path, *, classes: Sequence[str], **about: Any
) -> Path:
    """Write a network's weights with what there is to say of them, whole or not at all.

    Convolutions and head are stored in half precision, norms and biases in full.

    Args:
        network: the network; its weights must be finite.
        path: ends in ``.safetensors``.
        classes: m names, one for each output of the head.
        **about: more that JSON can hold, such as the recipe; read back as ``network.about``.

    Raises:
        ValueError: if the number of classes, the suffix or a weight is not right.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet(2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.safetensors"
        ...     _ = tl.models.save_small_resnet(network, path, classes=["cat", "dog"], made="by me")
        ...     again = tl.models.small_resnet(weights=path)
        >>> again.about["classes"], again.about["made"]
        (['cat', 'dog'], 'by me')
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a weights file ends in .safetensors, found {path.name!r}.")
    if len(classes) != network.head.out_features:
        raise ValueError(
            f"the head has {network.head.out_features} outputs, but {len(classes)} class names "
            f"were given. Give one name for each output."
        )
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    if bad := [key for key, value in state.items() if not value.isfinite().all()]:
        raise ValueError(
            f"{len(bad)} entries of the network are NaN or infinite ({', '.join(bad[:3])}). Train "
            f"it again with a lower learning rate."
        )
    stored = {key: value.half() if value.ndim > 1 else value for key, value in state.items()}
    about = {"format": _SMALL_FORMAT, "classes": [*classes], "widths": network.widths, **about}
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}
    runtime.write_whole(path, save(stored, metadata))
    return path


def shipped_weights() -> tuple[str, ...]:
    """The names of the weights of :func:`small_resnet` that the package ships.

    Example:
        >>> import tlhelpers as tl
        >>> tl.models.shipped_weights()[:3]
        ('letters', 'negative/joint', 'negative/noise')
        >>> tl.models.small_resnet(weights="letters").about["classes"][:3]
        ['A', 'B', 'C']
    """
    folder = _weights_folder()
    return tuple(
        sorted(
            p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.safetensors")
        )
    )


def _weights_folder() -> Path:
    return Path(str(resources.files("tlhelpers"))) / "data" / "weights"


def _weights_path(weights: str | Path) -> Path:
    path = Path(weights)
    if path.suffix != ".safetensors":
        path = _weights_folder() / f"{weights}.safetensors"
    if not path.is_file():
        names = ", ".join(shipped_weights()) or "none yet"
        raise FileNotFoundError(
            f"there are no weights {str(weights)!r} of a small ResNet. The package ships: {names}; "
            f"a path to a weights file ends in .safetensors; None gives random weights."
        )
    return path


def _read_small_resnet(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state in float32, and what the file says of itself."""
    try:
        with safe_open(path, framework="pt") as file:
            about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name} is not a readable weights file: {error}.") from error
    if about.get("format") != _SMALL_FORMAT:
        raise ValueError(
            f"{path.name} should hold weights of the format {_SMALL_FORMAT!r}, found "
            f"{about.get('format')!r}. Write it with models.save_small_resnet."
        )
    return {key: v.float() if v.is_floating_point() else v for key, v in state.items()}, about


def as_backbone(
    network: nn.Module, *, name: str | None = None, preprocess: Preprocess | None = None
) -> Backbone:
    """A trained classifier as a backbone, for ``features.extract`` and what follows it.

    The backbone holds copies: training the network further leaves it as it is.

    Args:
        network: any classifier whose last linear layer is its head.
        name: what it is called in banks and reports; by default the name of its class, or that of
            a photo classifier's architecture.
        preprocess: what photographs must go through first; None if the network takes the images
            of the data set as they are. A photo classifier brings its own, and
            ``features.extract`` applies it in full: where images are stored in the network's
            size already, give one whose ``resize`` is that size.

    Raises:
        ValueError: if the network has no linear layer.

    Example:
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet(weights="letters")
        >>> backbone = tl.models.as_backbone(network, name="letters")
        >>> backbone.dim, backbone.network(tl.datasets.digits().train.x[:5]).shape
        (64, torch.Size([5, 64]))
    """
    if isinstance(network, PhotoClassifier):
        return _photo_backbone(network, name, preprocess)
    name = type(network).__name__ if name is None else name
    classifier = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    head = head_name(classifier)
    if not head:
        raise ValueError("the network is its own head; a backbone needs layers before it.")
    body = copy.deepcopy(classifier)
    body.set_submodule(head, nn.Identity())
    layer: Any = classifier.get_submodule(head)
    digest = fingerprint(classifier)
    return Backbone(name, body, classifier, layer.in_features, preprocess, digest, "as given")


def head_name(network: nn.Module) -> str:
    """The name of a classifier's head, its last linear layer; empty if it is nothing else.

    Raises:
        ValueError: if the network has no linear layer.

    Example:
        >>> import tlhelpers as tl
        >>> tl.models.head_name(tl.models.small_resnet())
        'head'
        >>> tl.models.head_name(tl.models.backbone("mobilenet_v2", weights=None).classifier)
        'classifier.1'
    """
    names = [key for key, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not names:
        raise ValueError(
            f"{type(network).__name__} has no linear layer that could be its head. Give a "
            f"classifier that ends in nn.Linear."
        )
    return names[-1]


# --- learning rates by depth --------------------------------------------------------------


def param_groups(
    network: nn.Module,
    *,
    lr: float,
    head_lr: float | None = None,
    decay: float = 1.0,
    weight_decay: float = 0.0,
    head: str | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: a learning rate for the head and for each stage.

    The stage next to the head learns at ``lr``, the one before it at ``lr * decay``, the one
    before that at ``lr * decay**2``, and so on down to the input: discriminative learning rates
    (Howard and Ruder 2018, whose decay is 1 / 2.6). Biases and the parameters of norms, all with
    fewer than two axes, get no weight decay. Frozen parameters are in no group, every other one
    is in exactly one.

    Args:
        network: a classifier; ``features`` of torchvision's networks and the layers of their
            transformers count as stages one by one, in other networks each child does.
        lr: the learning rate of the body.
        head_lr: the learning rate of the head; None for ``lr``.
        decay: the factor from one stage to the stage before it, above 0 and up to 1. At 1 the body
            is one group.
        weight_decay: the weight decay of matrices and filters.
        head: the name of the head; by default the last linear layer.

    Returns:
        Dicts with ``params``, ``lr``, ``weight_decay`` and ``name``, from the input to the head;
        with weight decay, a stage's biases and norms make a group of their own, whose name ends
        in ``", no decay"``.

    Raises:
        ValueError: if nothing is trainable, or a rate or the head's name is not right.

    >>> for group in param_groups(small_resnet(), lr=0.1, head_lr=1.0, decay=0.5):
    ...     print(f"{group['name']:8} {group['lr']:.4f}")
    stem     0.0125
    stage1   0.0250
    stage2   0.0500
    stage3   0.1000
    head     1.0000
    """
    head_lr = lr if head_lr is None else head_lr
    if not (lr > 0 and head_lr > 0):
        raise ValueError(
            f"learning rates must be above 0, found lr {lr} and head_lr {head_lr}. To leave the "
            f"body as it is, freeze it with models.freeze."
        )
    if not 0 < decay <= 1:
        raise ValueError(f"decay must lie above 0 and at most at 1, found {decay}.")
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be 0 or larger, found {weight_decay}.")
    body, top = _stages_and_head(network, head)
    if decay == 1:
        body = {"body": [p for stage in body.values() for p in stage]}
    rates = {name: lr * decay**i for i, name in enumerate(reversed(body))}
    groups = []
    for name, parameters in (*body.items(), ("head", top)):
        rate = rates.get(name, head_lr)
        trainable = [p for p in parameters if p.requires_grad]
        matrices = [p for p in trainable if p.ndim >= 2 or not weight_decay]
        others = [p for p in trainable if p.ndim < 2 and weight_decay]
        for suffix, chosen, shrink in (("", matrices, weight_decay), (", no decay", others, 0.0)):
            if chosen:
                group = {"params": chosen, "lr": rate, "weight_decay": shrink}
                groups.append(group | {"name": name + suffix})
    if not groups:
        raise ValueError(
            f"no parameter of {type(network).__name__} is trainable. Call models.unfreeze on what "
            f"should learn: its head, at least."
        )
    return groups


def _stages_and_head(
    network: nn.Module, head: str | None
) -> tuple[dict[str, list[nn.Parameter]], list[nn.Parameter]]:
    """The parameters of each stage, from input to output, and those of the head."""
    modules = dict(network.named_modules())
    if head is None:
        head = head_name(network)
    elif head not in modules:
        raise ValueError(
            f"{type(network).__name__} has no module {head!r}. Name its head, one of: "
            f"{', '.join(name for name, _ in network.named_children())}."
        )
    inside = f"{head}." if head else ""
    outer = "body." if isinstance(network, PhotoClassifier) else ""
    stages: dict[str, list[nn.Parameter]] = {}
    top: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if name.startswith(inside):
            top.append(parameter)
            continue
        unit = outer + _unit(name.removeprefix(outer))
        module = modules.get(unit)
        # A block is a stage, and so is a layer in a plain sequence; a lone norm, a token or the
        # first convolution of a ResNet belongs to its neighbour.
        sequence = isinstance(modules[unit.rpartition(".")[0]], nn.Sequential)
        layer = sequence and parameter.ndim >= 2
        if module is not None and (layer or next(module.children(), None) is not None):
            stage = unit
        else:
            stage = next(reversed(stages), "stem")
        stages.setdefault(stage, []).append(parameter)
    return stages, top


def _unit(parameter: str) -> str:
    """The name of the stage candidate that a parameter lies in: a child, or a child of features."""
    for path in ("features.", "encoder.layers."):
        if parameter.startswith(path):
            return path + parameter.removeprefix(path).split(".")[0]
    if parameter.startswith("encoder."):  # of a transformer, beside its layers
        return ".".join(parameter.split(".")[:2])
    return parameter.split(".")[0]


# --- freezing -----------------------------------------------------------------------------


def freeze(module: nn.Module) -> nn.Module:
    """Freeze a module: no gradients, and no state that moves in training mode.

    ``requires_grad=False`` alone leaves BatchNorm's running statistics drifting and dropout
    drawing at random as soon as somebody calls ``train()``. A module frozen here stays in
    eval mode when ``train()`` is called on it or on a parent. Layers that are attached to it
    later, such as a new head, follow ``train()`` as usual.

    Returns:
        the module itself.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet()
        >>> _ = tl.models.freeze(network.stem)
        >>> before = tl.models.snapshot(network)
        >>> _ = network.train()(torch.rand(8, 1, 16, 16))
        >>> diff = tl.models.diff_state(before, network)
        >>> [move.name for move in diff.moves][:2]
        ['stage1.0.norm1.running_mean', 'stage1.0.norm1.running_var']
    """
    for part in module.modules():
        part.training = False
        part.train = MethodType(_train_children_only, part)  # type: ignore[method-assign]
    return module.requires_grad_(False)


def unfreeze(module: nn.Module) -> nn.Module:
    """Undo :func:`freeze`: gradients on, and the module follows ``train()`` again.

    The mode itself does not change before the next ``train()`` or ``eval()``.

    Example:
        >>> import tlhelpers as tl
        >>> network = tl.models.freeze(tl.models.small_resnet())
        >>> _ = tl.models.unfreeze(network.head)
        >>> [name for name, p in network.named_parameters() if p.requires_grad]
        ['head.weight', 'head.bias']
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
    """How far one entry of a state moved: the norm of the change, absolute and relative.

    Example:
        >>> from torch import nn
        >>> import tlhelpers as tl
        >>> layer = nn.Linear(4, 1)
        >>> _ = layer.weight.data.fill_(1.0)
        >>> before = tl.models.snapshot(layer)
        >>> _ = layer.weight.data.mul_(3)
        >>> tl.models.diff_state(before, layer).moves
        (Move(name='weight', kind='parameter', change=4.0, relative=2.0),)
    """

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
    """Copy a module's parameters and buffers, to compare with later.

    Example:
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet()
        >>> before = tl.models.snapshot(network)
        >>> before
        state of 29 parameters and 27 buffers
        >>> _ = network.head.weight.data.mul_(3)
        >>> print(tl.models.diff_state(before, network))
        1 of 29 parameters and 0 of 27 buffers moved
    """
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
