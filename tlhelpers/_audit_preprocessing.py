"""Checks of :mod:`tlhelpers.audit` on the preprocessing of images, and on the weights it is for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from tlhelpers import models
from tlhelpers._audit_check import IMAGENET_CLASSES, NOTE, Found, first_few, trap
from tlhelpers._audit_memory import seed
from tlhelpers._audit_setup import Lacking, Setup
from tlhelpers._audit_trace import apply

_DRAWS = 32  # repetitions with which randomness is looked for
_IMAGENET_NAMES = ("pretrained=True", "DEFAULT", "imagenet", "IMAGENET1K_V1", "IMAGENET1K_V2")


@dataclass(frozen=True)
class _Pipeline:
    """A preprocessing of the set-up."""

    setup: Setup
    name: str
    function: Callable[[Any], Any]

    def __call__(self, image: Tensor) -> Tensor:
        """What it makes of a (3, h, w) uint8 image."""
        chosen = image[: self.setup.channels]
        return self.setup.call(self.name, lambda: apply(self.function, chosen))

    @property
    def is_random(self) -> bool:
        """Whether it makes different tensors of one image; tried once for a set-up."""
        known = self.setup.is_random
        if self.name not in known:
            h, w = min(_photo_sizes(self.setup))
            image = _noise(min(h, 200), min(w, 260))
            first = self(image)
            again = (self(image) for _ in range(_DRAWS))
            known[self.name] = any(
                t.shape != first.shape or not torch.equal(t, first) for t in again
            )
        return known[self.name]

    @property
    def draws(self) -> int:
        """How often to try it, to take the median: once, unless it is random."""
        return 9 if self.is_random else 1


def _pipelines(setup: Setup) -> list[_Pipeline]:
    given = {"preprocess": setup.preprocess, "preprocess_eval": setup.preprocess_eval}
    found = [_Pipeline(setup, name, f) for name, f in given.items() if f is not None]
    if not found:
        raise Lacking("preprocess")
    return found


def _photo_sizes(setup: Setup) -> list[tuple[int, int]]:
    """Heights and widths to try: those of the data where they are tensors, else of photographs."""
    shape = setup.image_shape
    return [(256, 512), (512, 256), (300, 400)] if shape is None else [(shape[1], shape[2])]


def _noise(h: int, w: int) -> Tensor:
    """(3, h, w) uint8: an image like no other, and unlike its mirror images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)


@trap(
    "resize-without-crop",
    "Photographs of different shapes come out of the preprocessing with different shapes.",
    why="Resize(224) sets the shorter side alone, so that the tensors of a batch do not stack.",
    fix="Cut a square after resizing: Resize(256), CenterCrop(224), as weights.transforms() does.",
)
def resize_without_crop(setup: Setup) -> Found | None:
    sizes = _photo_sizes(setup)
    for pipeline in _pipelines(setup):
        shapes = [pipeline(_noise(h, w)).shape for h, w in sizes]
        if len(set(shapes)) == 1:
            continue
        if shapes == [(3, *size) for size in sizes] and "train" not in setup.parts:
            raise Lacking("data")  # the images may all have one size
        pairs = ", ".join(
            f"{h}×{w} becomes {s[-2]}×{s[-1]}" for (h, w), s in zip(sizes, shapes, strict=True)
        )
        return Found(
            f"{pipeline.name}: {pairs} (height × width).", {"sizes": sizes, "shapes": shapes}
        )
    return None


@trap(
    "squashed",
    "The preprocessing changes the aspect ratio.",
    why="Resize((224, 224)) makes a photograph of 4:3 a square by squeezing it: circles become "
    "ellipses, which the pretrained network has seen rarely.",
    fix="Resize the shorter side alone, then crop: Resize(256), CenterCrop(224).",
)
def squashed(setup: Setup) -> Found | None:
    sizes = _photo_sizes(setup)
    h, w = max(sizes, key=lambda size: abs(math.log(size[1] / size[0])))
    for pipeline in _pipelines(setup):
        stretch = _stretch(pipeline, h, w)
        # A quarter is more than rounding, and less than 4:3.
        if stretch is not None and abs(math.log(stretch)) > math.log(1.25):
            return Found(
                f"{pipeline.name}: an image of {h}×{w} comes out {max(stretch, 1 / stretch):.2f} "
                f"times as {'tall' if stretch > 1 else 'wide'} as it should be.",
                {"size": (h, w), "stretch": stretch},
                severity=NOTE,
            )
    return None


def _stretch(pipeline: _Pipeline, h: int, w: int) -> float | None:
    """Height by width of what was a square; the median where the pipeline is random."""
    slope = 255 / max(h, w)
    across = (torch.arange(w) * slope).expand(h, w)
    down = (torch.arange(h) * slope).unsqueeze(1).expand(h, w)
    found = []
    for draw in range(pipeline.draws):
        slopes = []
        for axis, ramp in ((-1, across), (-2, down)):
            seed(draw)
            out = pipeline(ramp.round().to(torch.uint8).expand(3, h, w))
            slopes.append(_slope(out, axis))
        if min(slopes) > 0:
            found.append(slopes[0] / slopes[1])
    return float(np.median(found)) if found else None


def _slope(out: Tensor, axis: int) -> float:
    """Mean step from pixel to pixel along an axis, in the middle of an image."""
    size = out.shape[axis]
    low, high = int(0.3 * size), int(0.7 * size)
    if high - low < 2:
        return 0.0
    a, b = out.double().select(axis, low), out.double().select(axis, high)
    middle = slice(int(0.3 * a.shape[-1]), max(int(0.7 * a.shape[-1]), 1))
    return abs(float((b - a)[..., middle].mean())) / (high - low)


@trap(
    "wrong-normalisation",
    "The preprocessing gives other values than the pretrained weights were trained on.",
    why="The first layers expect the scale, the mean and the order of channels of their own "
    "training; other values look to them like images of another contrast, brightness or colour.",
    fix="Use the weights' own transforms(), or their mean and std after scaling to 0..1, RGB.",
)
def wrong_normalisation(setup: Setup) -> Found | None:
    mean, std = map(np.array, _expected_values(setup.weights))
    if setup.channels != 3:
        raise Lacking("images in colour")
    for pipeline in _pipelines(setup):
        found = _black_and_white(pipeline)
        if found is None:
            raise Lacking("preprocess that gives (3, h, w)")
        (low, high), order = found, _order(pipeline)
        off = max(np.abs(low + mean / std).max(), np.abs(high - (1 - mean) / std).max())
        slack = 0.5 if pipeline.is_random else 0.1
        if off <= slack and order == (0, 1, 2):
            continue
        spread = np.where(np.abs(high - low) < 1e-6, 1e-6, high - low)
        seen_mean, seen_std = -low / spread, 1 / spread
        if off > slack:
            what = (
                f"{_values_in_words(low, high)}: mean {_triple(seen_mean)} and std "
                f"{_triple(seen_std)} where the weights expect {_triple(mean)} and {_triple(std)}"
            )
        else:
            what = f"gives the channels in the order {_colours(order)}"
        return Found(
            f"{pipeline.name} {what}.",
            {
                "mean": tuple(seen_mean),
                "std": tuple(seen_std),
                "expected_mean": tuple(mean),
                "expected_std": tuple(std),
                "channels": order,
            },
        )
    return None


def _black_and_white(pipeline: _Pipeline) -> tuple[np.ndarray, np.ndarray] | None:
    """What black and white become, for each of three channels; None where there are not three."""
    values = []
    for level in (0, 255):
        image = torch.full((3, 256, 256), level, dtype=torch.uint8)
        drawn = []
        for _ in range(pipeline.draws):
            out = pipeline(image)
            if out.ndim != 3 or out.shape[0] != 3:
                return None
            drawn.append(out.double().flatten(1).median(dim=1).values.numpy())
        values.append(np.median(drawn, axis=0))
    return values[0], values[1]


def _order(pipeline: _Pipeline) -> tuple[int, ...]:
    """The channel that each of red, green and blue lands in."""
    order = []
    for channel in range(3):
        image = torch.zeros(3, 256, 256, dtype=torch.uint8)
        image[channel] = 255
        black = pipeline(torch.zeros_like(image)).double()
        out = pipeline(image).double()
        gain = (out.flatten(1).median(1).values - black.flatten(1).median(1).values).abs()
        # Grey levels, which augmentation makes of some images, tell nothing.
        order.append(channel if float(gain.min()) > 0.5 * float(gain.max()) else int(gain.argmax()))
    return tuple(order)


def _values_in_words(low: np.ndarray, high: np.ndarray) -> str:
    if high.max() > 20:
        return "gives values in 0..255"
    if np.abs(low).max() < 0.01 and np.abs(high - 1).max() < 0.01:
        return "leaves values in 0..1 without normalising"
    return "normalises otherwise"


def _colours(order: tuple[int, ...]) -> str:
    """What the three channels hold, given where red, green and blue go."""
    names = ("red", "green", "blue")
    return ", ".join(
        " and ".join(names[i] for i in range(3) if order[i] == place) or "nothing"
        for place in range(3)
    )


def _triple(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{v + 0.0:.3g}" for v in values) + ")"


@trap(
    "augmented-validation",
    "The preprocessing of validation images is random.",
    why="Validation then measures harder images than the test holds, and another result each time.",
    fix="Leave augmentation to the training images; resize, crop and normalise the others.",
)
def augmented_validation(setup: Setup) -> Found | None:
    if setup.preprocess_eval is None:
        raise Lacking("preprocess_eval")
    if not _Pipeline(setup, "preprocess_eval", setup.preprocess_eval).is_random:
        return None
    return Found("preprocess_eval makes different tensors of one image.", {})


# --- weights ------------------------------------------------------------------------------


@trap(
    "unnamed-weights",
    "The weights are asked for as DEFAULT or pretrained=True, which does not say which.",
    why="DEFAULT is whatever torchvision thinks best today, and pretrained=True is deprecated: the "
    "same code gives other results elsewhere.",
    fix="Write the member's name: weights=ResNet50_Weights.IMAGENET1K_V2.",
)
def unnamed_weights(setup: Setup) -> Found | None:
    given = setup.weights
    if given is None:
        raise Lacking("weights")
    legacy = given is True or given == "pretrained=True"
    if not legacy and not (isinstance(given, str) and given.split(".")[-1] == "DEFAULT"):
        return None
    # Only the text tells: the enum's DEFAULT is the very member that it stands for today.
    member = None if legacy else _member(given)
    enum = _weights_of(setup.network) if member is None else type(member)
    asked = "pretrained=True" if legacy else "DEFAULT"
    if enum is None:
        return Found(f"The weights are {asked}, which names no weights.", {"asked": asked})
    today = enum["IMAGENET1K_V1"] if legacy else enum["DEFAULT"]
    others = [k for k, v in enum.__members__.items() if v is not today]
    return Found(
        f"The weights are {asked}: {'that means' if legacy else 'today'} {enum.__name__}."
        f"{today.name}{f', and not {first_few(others)}' if others else ''}.",
        {"asked": asked, "member": f"{enum.__name__}.{today.name}"},
        fix=f"Write the member's name: weights=torchvision.models.{enum.__name__}.{today.name}.",
    )


def _weights_of(network: nn.Module) -> type[torchvision.models.WeightsEnum] | None:
    """The weights enum of a torchvision network, whose head may have been replaced."""
    home = type(network).__module__
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not home.startswith("torchvision.models.") or not layers:
        return None
    head = layers[-1]
    body = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in head.parameters())
    whole = body + IMAGENET_CLASSES * (head.in_features + 1)  # with ImageNet's head
    for name in torchvision.models.list_models(module=torchvision.models):
        enum = torchvision.models.get_model_weights(name)
        if enum.__module__ == home and enum["DEFAULT"].meta["num_params"] == whole:
            return enum
    return None


def _expected_values(weights: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of what pretrained weights were trained on."""
    if weights is None or weights is False:
        raise Lacking("weights")
    own = getattr(weights, "preprocess", weights)
    if hasattr(own, "mean") and hasattr(own, "std"):
        return own.mean, own.std
    member = _member(weights)
    if member is not None:
        preset = member.transforms()
        if hasattr(preset, "mean"):
            return preset.mean, preset.std
    if weights is True or str(weights).split(".")[-1] in _IMAGENET_NAMES:
        return models.Preprocess.mean, models.Preprocess.std
    raise Lacking("weights of torchvision or a models.Preprocess")


def _member(weights: Any) -> Any:
    """The member of a torchvision weights enum, where a value or a full name is one."""
    if isinstance(weights, torchvision.models.WeightsEnum):
        return weights
    with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):
        if isinstance(weights, str) and "." in weights:
            return torchvision.models.get_weight(weights.removeprefix("torchvision.models."))
    return None
