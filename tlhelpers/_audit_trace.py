"""Networks and functions at work: what :mod:`tlhelpers.audit` sees when it runs them.

Nothing here knows of a set-up, or puts anything back.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class Call:
    """One call of a module with a tensor."""

    module: nn.Module
    input: Tensor | None
    output: Tensor | None
    maps: Tensor | None  # the last (n, d, h, w) output before this call


@dataclass(frozen=True)
class Trace:
    """A forward pass: what came out, or why nothing did."""

    output: Tensor | None
    calls: tuple[Call, ...]
    entered: tuple[tuple[nn.Module, Tensor], ...]  # called, and did not return
    maps: Tensor | None  # the last (n, d, h, w) output
    error: Exception | None


def follow(function: Callable[[Tensor], Any], x: Tensor) -> Trace:
    """Call a function, and note which modules it calls with what."""
    calls: list[Call] = []
    stack: list[tuple[nn.Module, Tensor | None, Tensor | None]] = []  # module, input, maps so far
    maps: Tensor | None = None

    def enter(part: nn.Module, arguments: Any) -> None:
        given = arguments[0] if arguments and isinstance(arguments[0], Tensor) else None
        stack.append((part, given, maps))

    def leave(part: nn.Module, _: Any, out: Any) -> None:
        nonlocal maps
        entries = ((given, seen) for p, given, seen in reversed(stack) if p is part)
        given, seen = next(entries, (None, None))
        while stack and stack.pop()[0] is not part:
            pass
        found = out if isinstance(out, Tensor) else None
        # Only what is looked at later is kept: maps of every layer would fill the memory.
        small = [None if t is None or t.ndim > 2 else t for t in (given, found)]
        calls.append(Call(part, small[0], small[1], seen if small[0] is not None else None))
        if found is not None and found.ndim == 4:
            maps = found

    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave),
    ]
    try:
        output, error = tensor_in(function(x)), None
    except Exception as raised:
        output, error = None, raised
    finally:
        for handle in handles:
            handle.remove()
    entered = tuple((part, given) for part, given, _ in stack if given is not None)
    return Trace(output, tuple(calls), entered, maps, error)


def tensor_in(out: Any) -> Tensor | None:
    """The tensor in what a network returns: itself, its logits, or the first of several."""
    if isinstance(out, np.ndarray):
        return torch.from_numpy(out)
    if isinstance(out, Mapping):
        out = next((out[k] for k in ("logits", "out") if k in out), None)
    elif hasattr(out, "logits"):
        out = out.logits
    elif isinstance(out, (tuple, list)) and out:
        out = out[0]
    return out if isinstance(out, Tensor) else None


@contextlib.contextmanager
def outermost_calls(
    parts: Sequence[nn.Module],
) -> Iterator[list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]]:
    """Collect the calls of these modules that happen outside any other of them."""
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []
    depth = 0

    def enter(part: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            kept = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
            calls.append((part, kept, dict(named)))

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    handles = [p.register_forward_pre_hook(enter, with_kwargs=True) for p in parts]
    handles += [p.register_forward_hook(leave) for p in parts]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def answers_differ(part: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether a module answers the same question differently."""
    first = tensor_in(part(*arguments, **named))
    if first is None:
        return False
    scale = float(first.abs().max()) if first.numel() else 0.0
    for _ in range(2):
        again = tensor_in(part(*arguments, **named))
        if again is None or float((again - first).abs().max()) > 1e-4 * scale:
            return True
    return False


def takes_x(function: Callable[..., Any]) -> bool:
    """Whether a callable needs an argument."""
    if isinstance(function, nn.Module):
        return True
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is p.empty for p in parameters)


# --- kinds of modules ---------------------------------------------------------------------


def is_leaf(part: nn.Module) -> bool:
    return not list(part.children())


def normalises(part: nn.Module) -> bool:
    """Whether a module is a batch norm or of its kin, with running statistics or without."""
    return isinstance(part, nn.modules.batchnorm._NormBase)


def drops(part: nn.Module) -> bool:
    """Whether a module acts at random in training mode."""
    if isinstance(part, nn.modules.dropout._DropoutNd | torchvision.ops.StochasticDepth):
        return bool(part.p)
    inner = getattr(part, "dropout", getattr(part, "drop_rate", None))
    return isinstance(inner, float) and inner > 0


def mode_matters(part: nn.Module) -> bool:
    """Whether a module works otherwise in training mode than in eval mode."""
    if normalises(part):
        return bool(getattr(part, "track_running_stats", False))
    return drops(part)


# --- a pipeline of images -----------------------------------------------------------------


def apply(function: Callable[[Any], Any], image: Tensor) -> Tensor:
    """The tensor that a pipeline makes of a (c, h, w) uint8 image, in the first form it takes.

    Raises:
        Exception: the pipeline's own, if it takes none.
    """
    errors: list[Exception] = []
    for form in _forms(image):
        try:
            out = function(form())
        except Exception as error:
            errors.append(error)
            continue
        if isinstance(out, np.ndarray):
            out = torch.from_numpy(out)
        if isinstance(out, Tensor):
            return out[0] if out.ndim == 4 and len(out) == 1 else out
        errors.append(TypeError(f"returned {type(out).__name__}, not a tensor"))
    raise errors[-1]


def _forms(image: Tensor) -> Iterator[Callable[[], Any]]:
    """An image as a PIL image, as uint8 and as float in 0..1."""
    yield lambda: F.to_pil_image(image)
    yield lambda: image
    yield lambda: image.float() / 255


def apply_to(function: Callable[[Any], Any], image: Any) -> Tensor | None:
    """The same for one of the data's own images; None where the pipeline takes no form of it."""
    with contextlib.suppress(Exception):
        out = function(image)
        if isinstance(out, Tensor):
            return out
    if isinstance(image, Tensor) and image.dtype == torch.uint8:
        with contextlib.suppress(Exception):
            return apply(function, image)
    return None
