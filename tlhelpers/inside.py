"""Looking inside a network: what its layers hold, what training changed, what an answer rests on.

Three kinds of questions. :func:`outputs` and :func:`cka` look at representations;
:func:`movement`, :func:`reset` and :func:`randomise` at weights, layer by layer; and
:func:`grad_cam`, :func:`integrated_gradients` and their relatives draw a map of the pixels that
an answer is said to rest on, which :func:`rank_correlation`, :func:`pointing` and
:func:`share_within` put to the test.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from tlhelpers import _inference

_BATCH = 512


# --- representations ----------------------------------------------------------------------


def outputs(
    network: nn.Module, x: Tensor, names: Sequence[str], *, cells: int = 1
) -> dict[str, Tensor]:
    """What inner modules of a network put out, averaged over the image plane or parts of it.

    Args:
        network: is run in evaluation mode, and gets its own modes back.
        x: (n, channels, h, w) images.
        names: of the modules, as in ``network.named_modules()``.
        cells: 1 averages over the whole plane; 2 over each of 2 x 2 cells, and so on, which
            keeps where something is. Outputs without a plane are taken as they are.

    Returns:
        an (n, channels · cells²) tensor for each name, on the CPU.

    Raises:
        ValueError: if the network has no module of a name, or one is not used exactly once.

    >>> from tlhelpers import models
    >>> found = outputs(models.small_resnet(), torch.zeros(2, 1, 16, 16), ["stem", "stage3"])
    >>> {name: tuple(rows.shape) for name, rows in found.items()}
    {'stem': (2, 16), 'stage3': (2, 64)}
    """
    modules = dict(network.named_modules())
    for name in names:
        _module(network, modules, name)
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.ndim == 4:
                output = functional.adaptive_avg_pool2d(output, cells)
            seen[name].append(output.flatten(1).cpu())

        return hook

    parts = x.split(_BATCH)
    hooks = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        with _inference.evaluating(network) as device:
            for part in parts:
                network(part.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    for name, rows in seen.items():
        if len(rows) != len(parts):
            raise ValueError(
                f"the module {name!r} should be used once for each image, but was used "
                f"{len(rows) / len(parts):g} times. Name a module that is used once."
            )
    return {name: torch.cat(rows) for name, rows in seen.items()}


def cka(x: Tensor, y: Tensor) -> float:
    """How alike two representations of the same n examples are: linear CKA, without its bias.

    1 where one is the other up to rotation, scale and shift; about 0 where they have nothing to do
    with each other. The plain estimate of centred kernel alignment (Kornblith et al. 2019) nears 1
    for any two representations with more features than examples; this one takes the unbiased
    estimator of the Hilbert-Schmidt independence criterion instead (Song et al. 2012), and can
    come out a little below 0.

    Args:
        x: (n, d) features, n of 4 or more.
        y: (n, e) features of the same examples.

    Raises:
        ValueError: if the shapes are others.

    >>> x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    >>> round(cka(x, 3 * x.flip(1) + 1), 4)
    1.0
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 4:
        raise ValueError(
            f"cka compares two matrices of features (n, d) and (n, e) with n of 4 or more, found "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    k, m = _gram(x), _gram(y)
    return float(_hsic(k, m) / (_hsic(k, k) * _hsic(m, m)).sqrt())


def _gram(x: Tensor) -> Tensor:
    """(n, n) products of centred features, with an empty diagonal."""
    centred = x.double() - x.double().mean(dim=0)
    return (centred @ centred.T).fill_diagonal_(0)


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """The unbiased estimator, from matrices with empty diagonals."""
    n = len(k)
    sums = k.sum() * m.sum() / ((n - 1) * (n - 2))
    crossed = 2 * (k.sum(dim=0) @ m.sum(dim=0)) / (n - 2)
    return ((k * m).sum() + sums - crossed) / (n * (n - 3))


# --- weights, layer by layer --------------------------------------------------------------


def layers(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """The layers of a network, and the names of what belongs to each in its state.

    A layer is a convolution or a linear map, with the normalisation that is defined after it:
    parameters and statistics.

    Raises:
        ValueError: if something with parameters comes before the first layer.

    >>> from tlhelpers import models
    >>> list(layers(models.small_resnet()))[:3]
    ['stem.0', 'stage1.0.conv1', 'stage1.0.conv2']
    """
    found: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        own = [key for key, _ in module.named_parameters(recurse=False)]
        own += [key for key, _ in module.named_buffers(recurse=False)]
        if not own:
            continue
        if any(p.ndim >= 2 for p in module.parameters(recurse=False)):
            found[name] = []
        elif not found:
            raise ValueError(
                f"the first module with a state should be a convolution or a linear map, found "
                f"{name!r}, {type(module).__name__}."
            )
        last = next(reversed(found))
        found[last] += [f"{name}.{key}" if name else key for key in own]
    return {name: tuple(entries) for name, entries in found.items()}


def movement(before: nn.Module, after: nn.Module) -> pd.DataFrame:
    """How far each layer's parameters went, as a share of the length that they began with.

    Args:
        before: the network as it began.
        after: the same network, trained.

    Returns:
        a row for each of :func:`layers`, from input to output: ``layer``, ``parameters`` (their
        number) and ``moved``, ‖after - before‖ / ‖before‖ over all parameters of the layer.

    Raises:
        ValueError: if the two do not have the same parameters.

    Example:
        >>> import copy
        >>> import tlhelpers as tl
        >>> before = tl.models.small_resnet(10, weights="letters")
        >>> after = copy.deepcopy(before)
        >>> _ = after.stage3[0].conv2.weight.data.mul_(1.5)
        >>> moved = tl.inside.movement(before, after)
        >>> moved[moved.moved > 0]
                    layer  parameters     moved
        7  stage3.0.conv2       36992  0.371724
    """
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    _same_shapes(old, new)
    rows = []
    for layer, entries in layers(after).items():
        names = [name for name in entries if name in new]
        a, b = (torch.cat([p[n].detach().cpu().double().flatten() for n in names])
                for p in (old, new))  # fmt: skip
        rows.append(
            {"layer": layer, "parameters": len(a), "moved": float((b - a).norm() / a.norm())}
        )
    return pd.DataFrame(rows)


def reset(network: nn.Module, start: nn.Module, names: str | Iterable[str]) -> nn.Module:
    """A copy of a network in which some layers are as they were in another.

    Parameters and statistics go back; what stands after a layer stays as it was trained, and so
    do its statistics (Zhang et al. 2022 call this re-initialisation).

    Args:
        network: the trained network, which stays as it is.
        start: where the layers are taken from: the network as it began, or random weights.
        names: one or more of :func:`layers`.

    Raises:
        ValueError: if there is no such layer, or the two networks differ in shape.

    Example:
        >>> import tlhelpers as tl
        >>> trained, random = tl.models.small_resnet(weights="letters"), tl.models.small_resnet(52)
        >>> without = tl.inside.reset(trained, random, ["stage3.0.conv1", "stage3.0.conv2"])
        >>> print(tl.models.diff_state(trained, without))
        6 of 29 parameters and 6 of 27 buffers moved
    """
    known = layers(network)
    chosen = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"the network has no layer {unknown[0]!r}. It has: {', '.join(known)}.")
    new, old = network.state_dict(), start.state_dict()
    _same_shapes(old, new)
    mixed = copy.deepcopy(network)
    mixed.load_state_dict(new | {key: old[key] for name in chosen for key in known[name]})
    return mixed


def randomise(network: nn.Module, random: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The network with ever more of its layers at random, from the output to the input.

    The cascading randomisation of Adebayo et al. (2018): a map that claims to show what a network
    has learnt has to change as what it has learnt is taken away.

    Args:
        network: the trained network, which stays as it is.
        random: the same architecture with random weights.

    Yields:
        the name of the layer that was lost last, and a network that has lost it and all layers
        after it.

    Example:
        >>> import tlhelpers as tl
        >>> trained, random = tl.models.small_resnet(weights="letters"), tl.models.small_resnet(52)
        >>> for lost, network in tl.inside.randomise(trained, random):
        ...     print(f"{lost:24} {tl.models.diff_state(trained, network)}")
        head                     2 of 29 parameters and 0 of 27 buffers moved
        stage3.0.shortcut.0      5 of 29 parameters and 3 of 27 buffers moved
        stage3.0.conv2           8 of 29 parameters and 6 of 27 buffers moved
        stage3.0.conv1           11 of 29 parameters and 9 of 27 buffers moved
        stage2.0.shortcut.0      14 of 29 parameters and 12 of 27 buffers moved
        stage2.0.conv2           17 of 29 parameters and 15 of 27 buffers moved
        stage2.0.conv1           20 of 29 parameters and 18 of 27 buffers moved
        stage1.0.conv2           23 of 29 parameters and 21 of 27 buffers moved
        stage1.0.conv1           26 of 29 parameters and 24 of 27 buffers moved
        stem.0                   29 of 29 parameters and 27 of 27 buffers moved
    """
    lost: list[str] = []
    for name in reversed(layers(network)):
        lost.append(name)
        yield name, reset(network, random, lost)


def _same_shapes(old: dict[str, Any], new: dict[str, Any]) -> None:
    shapes = [{key: tuple(value.shape) for key, value in one.items()} for one in (old, new)]
    if shapes[0] != shapes[1]:
        odd = sorted(key for key, _ in shapes[0].items() ^ shapes[1].items())
        raise ValueError(
            f"both networks should have the same entries of the same shapes, but they differ in "
            f"{odd[0]!r}. Compare networks of one architecture with as many classes."
        )


# --- maps ---------------------------------------------------------------------------------


def gradient(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The derivative of one logit with respect to each pixel (Simonyan et al. 2014).

    Args:
        network: images to (n, m) logits; run in evaluation mode.
        x: (n, channels, h, w) images.
        target: (n,) the class whose logit is asked about, for each image.

    Returns:
        (n, h, w) maps with signs, summed over channels.

    Raises:
        ValueError: if there is not one class for each image, or the output is not (n, m).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import tlhelpers as tl
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> _ = network[1].weight.data.copy_(torch.arange(8.0).reshape(2, 4))
        >>> tl.inside.gradient(network, torch.rand(1, 1, 2, 2), torch.tensor([1]))
        tensor([[[4., 5.],
                 [6., 7.]]])
    """
    return _gradient(network, x, target).sum(dim=1)


def gradient_times_input(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The gradient times the image; arguments and result as :func:`gradient`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import tlhelpers as tl
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> _ = network[1].weight.data.copy_(torch.arange(8.0).reshape(2, 4))
        >>> image = torch.tensor([[[[0.0, 1.0], [0.0, 0.5]]]])
        >>> tl.inside.gradient_times_input(network, image, torch.tensor([1]))
        tensor([[[0.0000, 5.0000],
                 [0.0000, 3.5000]]])
    """
    return (_gradient(network, x, target) * x).sum(dim=1)


def guided_backprop(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The gradient, where each ReLU lets only positive values back (Springenberg et al. 2015).

    Arguments and result as :func:`gradient`. The network's ReLUs have to be modules.

    Raises:
        ValueError: if there is no ``nn.ReLU``, so that the map would be the plain gradient.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import tlhelpers as tl
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = network[1].weight.data.copy_(torch.eye(2))
        >>> _ = network[3].weight.data.copy_(torch.tensor([[1.0, -1.0]]))
        >>> image, target = torch.full((1, 1, 1, 2), 9.0), torch.tensor([0])
        >>> tl.inside.gradient(network, image, target)
        tensor([[[ 1., -1.]]])
        >>> tl.inside.guided_backprop(network, image, target)
        tensor([[[1., 0.]]])
    """
    relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    if not relus:
        raise ValueError(
            f"guided backpropagation changes the way back through nn.ReLU modules, but "
            f"{type(network).__name__} has none. Use gradient."
        )

    def positive(module: nn.Module, back: Any, from_above: Any) -> tuple[Tensor]:
        return (back[0].clamp(min=0),)

    hooks = [module.register_full_backward_hook(positive) for module in relus]
    try:
        return gradient(network, x, target)
    finally:
        for hook in hooks:
            hook.remove()


def integrated_gradients(
    network: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor | None = None,
    steps: int = 32,
) -> Tensor:
    """The gradient averaged from a baseline to the image, times their difference.

    Integrated gradients (Sundararajan et al. 2017). The map sums up to the logit of the image
    minus that of the baseline, up to the error of the sum that stands in for the integral
    (midpoints of equal steps).

    Args:
        network, x, target: as :func:`gradient`.
        baseline: what "nothing" looks like, of the shape of ``x`` or of one image; None for
            zeros, which is blank paper here.
        steps: the number of points on the way.

    Returns:
        (n, h, w) maps with signs, summed over channels.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import tlhelpers as tl
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> image, target = torch.rand(1, 1, 2, 2), torch.tensor([1])
        >>> maps = tl.inside.integrated_gradients(network, image, target)
        >>> with torch.no_grad():
        ...     gained = (network(image) - network(torch.zeros_like(image)))[0, 1]
        >>> torch.allclose(maps.sum(), gained, atol=1e-3)
        True
    """
    if steps < 1:
        raise ValueError(f"the way from the baseline needs 1 step or more, found {steps}.")
    start = torch.zeros_like(x) if baseline is None else baseline.expand_as(x)
    total = torch.zeros_like(x)
    for step in range(steps):
        share = (step + 0.5) / steps
        total += _gradient(network, start + share * (x - start), target)
    return (total / steps * (x - start)).sum(dim=1)


def grad_cam(network: nn.Module, x: Tensor, target: Tensor, *, at: str) -> Tensor:
    """Where a layer speaks for a class: its channels, weighted by their mean gradients.

    Grad-CAM (Selvaraju et al. 2017), with its ReLU: what speaks against the class is 0.

    Args:
        network, x, target: as :func:`gradient`.
        at: the name of a module with a plane, usually the last.

    Returns:
        (n, h, w) maps of 0 or more, interpolated to the size of the images.

    Raises:
        ValueError: if there is no such module, or it has no plane.

    Example:
        >>> import tlhelpers as tl
        >>> network = tl.models.small_resnet(weights="letters").eval()
        >>> images = tl.datasets.digits().train.x[:5]
        >>> answers = network(images).argmax(dim=1)
        >>> maps = tl.inside.grad_cam(network, images, answers, at="stage3")
        >>> maps.shape, float(maps.min()) >= 0
        (torch.Size([5, 16, 16]), True)
    """
    module = _module(network, dict(network.named_modules()), at)
    kept: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        with _inference.evaluating(network) as device, torch.enable_grad():
            images = x.detach().clone().to(device).requires_grad_()
            logit = _logit(network, images, target)
            (slopes,) = torch.autograd.grad(logit.sum(), kept)
    finally:
        hook.remove()
    (maps,) = kept
    if maps.ndim != 4:
        raise ValueError(
            f"Grad-CAM needs the maps of a layer, (n, d, h, w), but {at!r} puts out "
            f"{tuple(maps.shape)}. Name a module before the average over the plane."
        )
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    cam = (weights * maps).sum(dim=1, keepdim=True).relu().detach().cpu()
    size = (x.shape[-2], x.shape[-1])
    return functional.interpolate(cam, size, mode="bilinear", align_corners=False)[:, 0]


def _gradient(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """(n, channels, h, w) derivatives of the target's logits."""
    found = []
    with _inference.evaluating(network) as device, torch.enable_grad():
        for images, wanted in zip(x.split(_BATCH), target.split(_BATCH), strict=True):
            images = images.detach().clone().to(device).requires_grad_()
            # An image's logit depends on that image alone, so the sum has its gradients.
            (slope,) = torch.autograd.grad(_logit(network, images, wanted).sum(), images)
            found.append(slope.cpu())
    return torch.cat(found)


def _logit(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """(n,) the logit of each image's target."""
    logits = network(x)
    if target.shape != (len(x),) or logits.ndim != 2:
        raise ValueError(
            f"a map needs one class for each image, (n,), and a network with logits (n, m); found "
            f"{tuple(target.shape)} for {len(x)} images and an output {tuple(logits.shape)}."
        )
    return logits.gather(1, target.to(logits.device)[:, None])[:, 0]


def _module(network: nn.Module, modules: dict[str, nn.Module], name: str) -> nn.Module:
    if name not in modules or not name:
        children = ", ".join(key for key, _ in network.named_children())
        raise ValueError(
            f"{type(network).__name__} has no module {name!r}. Name one of "
            f"named_modules(), such as {children}."
        )
    return modules[name]


# --- tests of maps ------------------------------------------------------------------------


def rank_correlation(a: Tensor, b: Tensor) -> np.ndarray:
    """Spearman's rank correlation of each pair of maps: (n,) numbers in -1..1.

    Args:
        a, b: (n, h, w) maps; take absolute values first where only size matters. Equal values
            share their mean rank. A map that is the same everywhere orders nothing; its
            correlation with any other is 0.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> maps = torch.arange(4.0).reshape(1, 2, 2)
        >>> [tl.inside.rank_correlation(maps, other).round(2) for other in (maps**3, -maps)]
        [array([1.]), array([-1.])]
    """
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(
            f"rank_correlation compares two (n, h, w) tensors of maps, found {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    ranks = [stats.rankdata(m.flatten(1).double().numpy(), axis=1) for m in (a, b)]
    centred = [r - r.mean(axis=1, keepdims=True) for r in ranks]
    sizes = [np.sqrt(np.square(c).sum(axis=1)) for c in centred]
    product = (centred[0] * centred[1]).sum(axis=1)
    return product / np.where(sizes[0] * sizes[1] > 0, sizes[0] * sizes[1], np.inf)


def pointing(maps: Tensor, places: Tensor, *, reach: int = 1) -> np.ndarray:
    """Does the highest point of each map lie in the right place? (n,) booleans.

    The pointing game of Zhang et al. (2018).

    Args:
        maps: (n, h, w); take absolute values first where only size matters.
        places: (n, h, w) booleans, the right pixels of each image.
        reach: so many pixels beyond the place count as well.

    Raises:
        ValueError: if the shapes differ, or an image has no right place.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> maps = torch.tensor([[[0.0, 1.0, 0.0], [5.0, 0.0, 0.0]]])
        >>> places = torch.tensor([[[False, True, False], [False, False, False]]])
        >>> tl.inside.pointing(maps, places, reach=0), tl.inside.pointing(maps, places, reach=1)
        (array([False]), array([ True]))
    """
    _check_places(maps, places)
    grown = functional.max_pool2d(places[:, None].float(), 2 * reach + 1, 1, reach)[:, 0] > 0
    highest = maps.flatten(1).argmax(dim=1, keepdim=True)
    return grown.flatten(1).gather(1, highest)[:, 0].numpy()


def share_within(maps: Tensor, places: Tensor) -> np.ndarray:
    """The share of each map's absolute values that lies within its place: (n,), in 0..1.

    NaN for a map that is 0 everywhere. Arguments and errors as :func:`pointing`.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> maps = torch.tensor([[[0.0, -1.0], [0.0, 3.0]]])
        >>> tl.inside.share_within(maps, places=maps > 2)
        array([0.75])
    """
    _check_places(maps, places)
    size = maps.abs().double()
    total = size.sum(dim=(1, 2))
    inside = (size * places).sum(dim=(1, 2))
    return torch.where(total > 0, inside / total, float("nan")).numpy()


def _check_places(maps: Tensor, places: Tensor) -> None:
    if maps.shape != places.shape or maps.ndim != 3 or places.dtype != torch.bool:
        raise ValueError(
            f"maps and places should be two (n, h, w) tensors, the second of booleans; found "
            f"{tuple(maps.shape)} and {tuple(places.shape)}, {places.dtype}."
        )
    if not places.flatten(1).any(dim=1).all():
        raise ValueError("some images have no right place; leave them out.")
