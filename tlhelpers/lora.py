"""Low-rank adapters: a frozen network learns through a few small matrices beside its layers.

A layer's weight W stays as it is, and a product of two thin matrices is learnt beside it
(Hu et al. 2022): ``W + scale * B A``, where A has ``rank`` rows and B as many columns. B starts at
zero, so that the network starts as it was; :func:`merge` adds the product to W in the end, so that
the network computes what it always did and no more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tlhelpers import models
from tlhelpers.runtime import Run

RANK = 4


class LoRALayer(nn.Module):
    """A frozen linear or convolutional layer with a low-rank update beside it.

    ``layer(x) + scale * up(down(x))``. Beside a convolution, ``down`` is one with the same
    kernel, stride, padding and dilation to ``rank`` channels, and ``up`` is one of 1 x 1.

    Args:
        layer: what is frozen; an ``nn.Linear``, or an ``nn.Conv2d`` of one group.
        rank: the number of rows of A.
        scale: what the update is multiplied with.
        generator: draws A; None for torch's global one.

    Attributes:
        layer: the frozen layer.
        down: A, (rank, inputs) or (rank, inputs, k, k), uniform as torch draws a layer's weights.
        up: B, (outputs, rank) or (outputs, rank, 1, 1), zero at first.
        scale: as given.

    Raises:
        TypeError: if it is another layer, or one of several groups.
        ValueError: if the rank is not between 1 and the layer's smaller side.

    Example:
        >>> from torch import nn
        >>> import tlhelpers as tl
        >>> layer = tl.lora.LoRALayer(nn.Linear(100, 50), rank=4)
        >>> layer.down.weight.shape, layer.up.weight.shape, layer.update().shape
        (torch.Size([4, 100]), torch.Size([50, 4]), torch.Size([50, 100]))
        >>> sum(p.numel() for p in layer.parameters() if p.requires_grad)
        600
    """

    def __init__(
        self,
        layer: torch.nn.Module,
        rank: int = RANK,
        *,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not can_adapt(layer):
            raise TypeError(
                f"a low-rank update stands beside an nn.Linear or an nn.Conv2d of one group whose "
                f"padding is zeros, found {layer}. Leave this layer frozen."
            )
        weight: Any = layer.weight
        most = min(len(weight), weight[0].numel())
        if not 1 <= rank <= most:
            raise ValueError(f"the rank of {layer} lies in 1..{most}, found {rank}.")
        self.layer: Any = models.freeze(layer)
        self.scale = scale
        self.down: Any
        self.up: Any
        like = {"bias": False, "device": weight.device, "dtype": weight.dtype}
        # torch initialises every layer from its global state, which is not ours to move.
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            if isinstance(layer, nn.Conv2d):
                size: Any = layer.kernel_size
                place: Any = (layer.stride, layer.padding, layer.dilation)
                self.down = nn.Conv2d(layer.in_channels, rank, size, *place, **like)
                self.up = nn.Conv2d(rank, layer.out_channels, 1, **like)
            else:
                self.down = nn.Linear(weight.shape[1], rank, **like)
                self.up = nn.Linear(rank, weight.shape[0], **like)
        bound = weight[0].numel() ** -0.5
        nn.init.uniform_(self.down.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer returns, and the update."""
        return self.layer(x) + self.scale * self.up(self.down(x))

    @torch.no_grad()
    def update(self) -> Tensor:
        """``scale * B A`` in the shape of the layer's weight."""
        product = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return self.scale * product.view_as(self.layer.weight)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A layer of the frozen one's kind with the update in its weight."""
        layer = models.unfreeze(copy.deepcopy(self.layer))
        weight: Any = layer.weight
        weight.add_(self.update())
        return layer


def can_adapt(layer: nn.Module) -> bool:
    """Whether :class:`LoRALayer` takes a layer.

    Example:
        >>> from torch import nn
        >>> import tlhelpers as tl
        >>> [tl.lora.can_adapt(nn.Conv2d(8, 8, 3, groups=groups)) for groups in (1, 8)]
        [True, False]
        >>> tl.lora.can_adapt(nn.Linear(8, 8))
        True
    """
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros"
    return isinstance(layer, nn.Linear)


def insert(
    network: nn.Module,
    rank: int = RANK,
    *,
    scale: float = 1.0,
    seed: int = 0,
    where: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """A copy of a classifier, frozen but for its head, with an update beside each of its layers.

    The copy computes what the classifier does until it is trained. Norms keep their statistics.
    Layers that are smaller than the rank, depthwise convolutions and the head get no update.

    Args:
        network: a classifier whose last linear layer is its head.
        rank: of each update.
        scale: of each update.
        seed: of the matrices A.
        where: ``(name, layer) -> bool``, to choose among the layers that could have one; None
            takes them all.

    Returns:
        the copy, in evaluation mode; ``train.fit`` trains it as any network.

    Raises:
        ValueError: if no layer gets an update.

    >>> net = models.small_resnet(10, weights="letters")
    >>> adapted = insert(net, rank=4)
    >>> images = torch.rand(2, 1, 16, 16)
    >>> bool((adapted(images) == net.eval()(images)).all())
    True
    """
    adapted = models.freeze(copy.deepcopy(network).eval())
    head = models.head_name(adapted)
    generator = Run(seed).generator(17)
    chosen = [
        (name, layer)
        for name, layer in adapted.named_modules()
        if name not in ("", head) and _takes(layer, rank) and (where is None or where(name, layer))
    ]
    if not chosen:
        raise ValueError(
            f"no layer of {type(network).__name__} gets an update of rank {rank}. Lower the rank, "
            f"or let 'where' choose a linear layer or a convolution of one group."
        )
    for name, layer in chosen:
        adapted.set_submodule(name, LoRALayer(layer, rank, scale=scale, generator=generator))
    models.unfreeze(adapted.get_submodule(head) if head else adapted)
    return adapted.eval()


def _takes(layer: nn.Module, rank: int) -> bool:
    if not can_adapt(layer):
        return False
    weight: Any = layer.weight
    return rank <= min(len(weight), weight[0].numel())


def merge(network: nn.Module) -> nn.Module:
    """A copy of an adapted network with each update in its layer's weight: as large as before.

    Raises:
        ValueError: if there is no update in it.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> adapted = tl.lora.insert(tl.models.small_resnet(10, weights="letters"), rank=2)
        >>> _ = adapted.stage1[0].conv1.up.weight.data.normal_()
        >>> merged = tl.lora.merge(adapted)
        >>> images = torch.rand(4, 1, 16, 16)
        >>> torch.allclose(merged(images), adapted(images), atol=1e-4)
        True
        >>> [sum(p.numel() for p in network.parameters()) for network in (adapted, merged)]
        [81708, 77754]
    """
    merged = models.unfreeze(copy.deepcopy(network))
    layers = [(name, m) for name, m in merged.named_modules() if isinstance(m, LoRALayer)]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no low-rank update to merge. lora.insert makes a copy "
            f"that has."
        )
    for name, layer in layers:
        merged.set_submodule(name, layer.merged())
    return merged.eval()


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters by name: all that has to be stored for a task.

    ``network.load_state_dict(state, strict=False)`` puts them into another adapted copy.

    Example:
        >>> import tlhelpers as tl
        >>> adapted = tl.lora.insert(tl.models.small_resnet(10, weights="letters"), rank=2)
        >>> state = tl.lora.trained_state(adapted)
        >>> (
        ...     sum(values.numel() for values in state.values()),
        ...     sum(p.numel() for p in adapted.parameters()),
        ... )
        (4604, 81708)
        >>> other = tl.lora.insert(tl.models.small_resnet(10, weights="letters"), rank=2)
        >>> other.load_state_dict(state, strict=False).unexpected_keys
        []
    """
    return {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
