"""Checks of :mod:`tlhelpers.audit` on the network: from maps to features, from those to scores."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from tlhelpers._audit_check import IMAGENET_CLASSES, NOTE, Found, trap
from tlhelpers._audit_setup import CallableError, Lacking, Setup
from tlhelpers._audit_trace import Trace, is_leaf


@trap(
    "missing-flatten",
    "The network fails at its head, or answers with maps instead of scores (n, m).",
    why="Sequential(*children()[:-1], Linear) leaves out what a network's forward() does between "
    "its layers: the pooling and the flattening before the head.",
    fix="Replace the head by name (network.fc = nn.Linear(...)), or put nn.AdaptiveAvgPool2d(1), "
    "nn.Flatten() before the new layer.",
)
def missing_flatten(setup: Setup) -> Found | None:
    trace = setup.trace
    linear = [(m, x) for m, x in trace.entered if isinstance(m, nn.Linear) and x.ndim > 2]
    if trace.error is not None and linear:
        layer, given = linear[-1]
        setup.explained.add("network")
        return Found(
            f"The layer {setup.name(layer)!r} takes {layer.in_features} features and gets maps of "
            f"shape {tuple(given.shape)}.",
            {"input": tuple(given.shape), "in_features": layer.in_features},
        )
    out = setup.output
    dense = setup.batch[1] is not None and setup.batch[1].ndim > 2
    if out.ndim == 2 or dense:
        return None
    if out.ndim < 2 or setup.batch[0].ndim < 4:  # one score an example; sequences
        raise Lacking("a network that returns scores (n, m)")
    return Found(
        f"The output has shape {tuple(out.shape)} where scores (n, m) are due.",
        {"output": tuple(out.shape)},
    )


@trap(
    "unpooled-features",
    "Maps are flattened instead of averaged, so that a feature stands for one place.",
    why="children()[:-1] of MobileNetV2 or DenseNet ends before the average over the image, which "
    "is in forward(): 49 times as many features, most of them about where something is.",
    fix="Average over the image plane before flattening: nn.AdaptiveAvgPool2d(1), nn.Flatten(); or "
    "use tl.models.backbone, which ends after the pooling.",
)
def unpooled_features(setup: Setup) -> Found | None:
    looked = False
    with contextlib.suppress(Lacking):
        if (found := _flat_into_error(setup)) is not None:
            return found
    if setup.features is not None:
        looked = True
        maps = _unpooled(setup.probed)
        if maps is not None and not _takes_flat_maps(setup, maps):
            return _flat("features(x) gives", maps)
    with contextlib.suppress(Lacking):
        if setup.trace.error is None and isinstance(setup.head, nn.Linear):
            looked = True
            maps = _unpooled_input(setup)
            if maps is not None:
                return _flat(f"The head {setup.name(setup.head)!r} gets", maps)
    if not looked:
        raise Lacking("features")
    return None


def _flat(what: str, maps: Tensor) -> Found:
    _, d, h, w = maps.shape
    return Found(
        f"{what} {d:,} maps of {h}×{w}, flattened: {d * h * w:,} numbers instead of {d:,}.",
        {"maps": (d, h, w), "features": d * h * w},
    )


def _flat_into_error(setup: Setup) -> Found | None:
    """A network that fails because its head gets flat maps where it expects their averages."""
    maps = setup.trace.maps
    for layer, given in setup.trace.entered:
        if not isinstance(layer, nn.Linear) or maps is None or not _is_flat(given, maps):
            continue
        if layer.in_features == maps.shape[1]:
            setup.explained.add("network")
            return _flat(f"The layer {setup.name(layer)!r} gets", maps)
    return None


def _unpooled(trace: Trace) -> Tensor | None:
    """The maps that a result is, or is the flattened form of."""
    out = trace.output
    maps = out if out is not None and out.ndim == 4 else trace.maps
    if out is None or maps is None or maps[0, 0].numel() < 2:
        return None
    return maps if out is maps or _is_flat(out, maps) else None


def _is_flat(flat: Tensor, maps: Tensor) -> bool:
    if flat.ndim != 2 or flat.shape != (len(maps), maps[0].numel()):
        return False
    # The sums agree in whatever order the flattening goes.
    return torch.allclose(flat.double().sum(1), maps.double().flatten(1).sum(1), rtol=1e-4)


def _takes_flat_maps(setup: Setup, maps: Tensor) -> bool:
    """Whether the network's own first layer after the maps takes them flat, as in VGG."""
    layers = [m for m in setup.network.modules() if isinstance(m, nn.Linear)]
    return bool(layers) and layers[0].in_features == maps[0].numel()


def _unpooled_input(setup: Setup) -> Tensor | None:
    """The maps that the head of a network with a pooled design gets flat.

    A plain stack of convolutions may be meant so. Networks of torchvision, but for VGG and
    AlexNet, and those of this package are not.
    """
    kinds = {type(m) for m in setup.network.modules()}
    homes = ("torchvision.models.", "tlhelpers.models")
    pooled = any(kind.__module__.startswith(homes) for kind in kinds)
    if not pooled or {kind.__name__ for kind in kinds} & {"VGG", "AlexNet"}:
        return None
    call = next((c for c in reversed(setup.trace.calls) if c.module is setup.head), None)
    if call is None or call.input is None or call.maps is None:
        return None
    maps = call.maps
    return maps if maps[0, 0].numel() > 1 and _is_flat(call.input, maps) else None


@trap(
    "logits-as-features",
    "What a probe gets as features are the scores of the pretrained head.",
    why="The head has already thrown away what does not help to tell its own classes apart.",
    fix="Take what the head gets, not what it says: tl.models.backbone(...).network, or replace "
    "the head by nn.Identity().",
)
def logits_as_features(setup: Setup) -> Found | None:
    found = setup.probed.output
    if found is None or found.ndim != 2:
        return None
    width = found.shape[1]
    layers = [
        c.module
        for c in setup.probed.calls
        if c.output is not None and c.output.shape == found.shape and torch.equal(c.output, found)
    ]
    scored = any(isinstance(m, nn.Linear) or _ends_in_linear(m) for m in layers)
    if width == IMAGENET_CLASSES:
        what = "as many as ImageNet has classes"
    elif scored and width == setup.m:
        what = "the output of a network's head, one for each class"
    else:
        return None
    return Found(f"features(x) gives {width:,} numbers, {what}.", {"features": width})


def _ends_in_linear(part: nn.Module) -> bool:
    leaves = [m for m in part.modules() if is_leaf(m)]
    return bool(leaves) and isinstance(leaves[-1], nn.Linear)


@trap(
    "head-shape",
    "The network has another number of outputs than there are classes.",
    why="Too few outputs leave labels without a score. Too many, such as ImageNet's 1,000 or one "
    "for each training example, compete for probability and can be predicted.",
    fix="Give the head as many outputs as there are classes: nn.Linear(in_features, m).",
)
def head_shape(setup: Setup) -> Found | None:
    m, width = setup.m, setup.scores.shape[1]
    if _is_probed_whole(setup):
        raise Lacking("a network with a head")
    if width == m or (width == 1 and m == 2):
        return None
    hint = ""
    if width == IMAGENET_CLASSES:
        hint = ": ImageNet's head is still on"
    elif width > m and width % m == 0:
        hint = f", {width // m} for each class"
    return Found(
        f"The network has {width:,} outputs for {m:,} classes{hint}.",
        {"outputs": width, "classes": m},
        fix=f"Give the head one output a class: nn.Linear(in_features, {m}).",
    )


def _is_probed_whole(setup: Setup) -> bool:
    """Whether the probe's features are all that the network says: then it has no head."""
    with contextlib.suppress(Lacking, CallableError):
        found = setup.probed.output
        return found is not None and torch.equal(found, setup.scores)
    return False


@trap(
    "softmax-before-loss",
    "The network ends in a softmax, and the loss takes another one.",
    why="cross_entropy applies log_softmax itself. Of probabilities, which lie in 0..1, it makes "
    "nearly equal probabilities again: the loss stays high and gradients vanish.",
    fix="Return the scores themselves, without a softmax; apply it where probabilities are shown.",
)
def softmax_before_loss(setup: Setup) -> Found | None:
    out = setup.scores
    if out.shape[1] < 2:
        return None
    ones = torch.ones(len(out), device=out.device, dtype=out.dtype)
    if bool((out >= 0).all()) and torch.allclose(out.sum(1), ones, atol=1e-4):
        if setup.loss is not None and not _normalises_scores(setup):
            return None  # such as nll_loss(log(p)), which takes probabilities
        return Found(
            f"Every row of the output lies in 0..1 and adds up to 1; the largest of the "
            f"{out.shape[1]} outputs is {float(out.max()):.3f}.",
            {"largest": float(out.max())},
        )
    logs = bool((out <= 1e-6).all()) and torch.allclose(out.exp().sum(1), ones, atol=1e-4)
    if logs and setup.loss is not None and _normalises_scores(setup):
        return Found(
            "The output is a log_softmax, and the loss takes another one; of the same numbers, "
            "so this changes nothing but the time.",
            {"log_softmax": True},
            fix="Return the scores themselves, or use nll_loss.",
            severity=NOTE,
        )
    return None


def _normalises_scores(setup: Setup) -> bool:
    """Whether the loss applies a softmax: then it is blind to a shift of all scores."""
    assert setup.loss is not None
    y, out = setup.labelled[1], setup.scores
    here = torch.as_tensor(setup.call("loss", setup.loss, out, y)).double()
    there = torch.as_tensor(setup.call("loss", setup.loss, out + 0.7, y)).double()
    return bool(torch.allclose(here, there, rtol=1e-3, atol=1e-5))
