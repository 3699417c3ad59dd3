"""Augmentation of photographs: random crops, flips and colours for a whole batch at once.

The parameters and their distribution are torchvision's (``RandomResizedCrop``,
``RandomHorizontalFlip``, ``ColorJitter``); what differs is that a batch goes through in a few
tensor operations, with a generator of its own, on the device where it lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ATTEMPTS = 10  # to find a box that fits, as torchvision has it
COLOURS = ("brightness", "contrast", "saturation", "hue")
LUMA = (0.2989, 0.587, 0.114)  # the weights of red, green and blue in a grey value

_CHUNK = 8  # images that a CPU takes through all steps at a time, so that they stay in its cache

Range = float | tuple[float, float]


@dataclass(frozen=True, eq=False)
class Choices:
    """What is done to each of n images; all tensors lie on the CPU.

    Attributes:
        boxes: (n, 4) int64, what is cut out: top, left, height, width in pixels.
        flip: (n,) bool, whether left and right change places.
        factors: (n, 4) float64, of brightness, contrast, saturation and hue; one that is off has
            the factor that changes nothing (1, and 0 for the hue).
        order: (n, 4) int64, a permutation of the four: 0 for brightness to 3 for the hue.
    """

    boxes: Tensor
    flip: Tensor
    factors: Tensor
    order: Tensor

    def __repr__(self) -> str:
        share = 100 * self.flip.double().mean() if len(self.flip) else math.nan
        return f"choices for {len(self.boxes):,} images, {share:.0f} % of them flipped"


@dataclass(frozen=True, kw_only=True)
class PhotoAugment:
    """Random crops, flips and colours, as what ``train.Recipe`` takes for ``augment``.

    Each image gets a box, a flip, factors and an order of the colour operations of its own, with
    the distribution of ``torchvision.transforms.v2``: ``RandomResizedCrop(size, scale, ratio)``,
    ``RandomHorizontalFlip(flip)``, ``ColorJitter(brightness, contrast, saturation, hue)``, in this
    sequence. (``v2`` given a batch treats all its images alike.) The random numbers are drawn on
    the CPU, always as many for one image: with the same seed, two augmentations that differ in
    their colours alone cut the same boxes.

    A box is resized bilinearly with antialiasing. On a CPU torch's own kernel does it, image by
    image, to the same bytes as ``v2`` on uint8 images, whose result is rounded to whole grey
    levels. On an accelerator two matrices for each image do it, all images in one product, without
    rounding. Between the two lies one grey level at most (1/255). To normalise the result is left
    to the network.

    Attributes:
        size: side of the result in pixels.
        scale: the box's share of the image's area, from least to most.
        ratio: the box's width over its height, from least to most; uniform in its logarithm.
        flip: the probability that left and right change places.
        brightness: a number b means factors in ``max(0, 1 - b)..1 + b``; or give (least, most).
        contrast: likewise.
        saturation: likewise.
        hue: a number h in 0..0.5 means shifts in ``-h..h`` of the colour circle; or (least, most)
            in -0.5..0.5.

    Raises:
        ValueError: if a setting cannot be meant.

    >>> augment = PhotoAugment(size=112, scale=(0.25, 1), hue=0.1)
    >>> augment
    PhotoAugment(size=112, scale=(0.25, 1.0), ratio=(0.75, 1.3333333333333333), flip=0.5, \
brightness=(1.0, 1.0), contrast=(1.0, 1.0), saturation=(1.0, 1.0), hue=(-0.1, 0.1))
    >>> images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    >>> augment(images, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 112, 112])
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: Range = 0.0
    contrast: Range = 0.0
    saturation: Range = 0.0
    hue: Range = 0.0

    def __post_init__(self) -> None:
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        self._require("size", whole and self.size >= 1, "a number of pixels, 1 or larger")
        good = _is_number(self.flip) and 0 <= self.flip <= 1
        self._require("flip", good, "a probability in 0..1")
        object.__setattr__(self, "flip", float(self.flip))
        above_0 = math.ulp(0.0)
        shares = "a pair (least, most) above 0 and at most 1"
        self._keep("scale", self.scale, (above_0, 1.0), shares)
        self._keep("ratio", self.ratio, (above_0, math.inf), "a pair (least, most) above 0")
        for name in COLOURS[:3]:
            expected = "a number 0 or larger, or a pair (least, most) of such numbers"
            self._keep(name, _around(1.0, getattr(self, name), 0.0), (0.0, math.inf), expected)
        expected = "a number in 0..0.5, or a pair (least, most) in -0.5..0.5"
        self._keep("hue", _around(0.0, self.hue, -0.5), (-0.5, 0.5), expected)

    def _require(self, name: str, good: bool, expected: str) -> None:
        if not good:
            found = getattr(self, name)
            raise ValueError(f"PhotoAugment: {name} must be {expected}, found {found!r}.")

    def _keep(self, name: str, given: Any, limits: tuple[float, float], expected: str) -> None:
        """Store a range as a pair of floats, so that equal settings print alike."""
        good = isinstance(given, tuple | list) and len(given) == 2 and all(map(_is_number, given))
        good = good and limits[0] <= given[0] <= given[1] <= limits[1] and given[1] < math.inf
        self._require(name, good, expected)
        object.__setattr__(self, name, (float(given[0]), float(given[1])))

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A new version of each image.

        Args:
            images: (n, 3, h, w), uint8 or floats in 0..1, on any device.
            generator: a CPU generator, where all randomness comes from.

        Returns:
            (n, 3, size, size) float32 in 0..1, channels last in memory, on the images' device.

        Raises:
            TypeError: if the images are not such a tensor.
        """
        _check(images)
        return self.apply(images, self.draw(len(images), *images.shape[2:], generator=generator))

    def draw(self, n: int, height: int, width: int, *, generator: torch.Generator) -> Choices:
        """Draw what happens to n images of one size."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(n, *shape, dtype=torch.float64, generator=generator)

        tries, top, left, flip = uniform(2, ATTEMPTS), uniform(), uniform(), uniform()
        factors, keys = uniform(4), uniform(4)
        h, w = self._sides(tries, height, width)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.int().argmax(dim=1, keepdim=True)  # the first attempt that fits
        h, w = h.gather(1, first).squeeze(1), w.gather(1, first).squeeze(1)
        top, left = (top * (height - h + 1)).floor(), (left * (width - w + 1)).floor()
        boxes = torch.stack([top, left, h, w], dim=1).long()
        boxes[~fits.any(dim=1)] = torch.tensor(self._fallback(height, width))
        ranges = torch.tensor([getattr(self, name) for name in COLOURS], dtype=torch.float64)
        factors = ranges[:, 0] + factors * (ranges[:, 1] - ranges[:, 0])
        return Choices(boxes, flip < self.flip, factors, keys.argsort(dim=1))

    def _sides(self, u: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """(n, attempts) heights and widths of boxes from (n, 2, attempts) numbers in 0..1."""
        area = height * width * (self.scale[0] + u[:, 0] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = (low + u[:, 1] * (high - low)).exp()
        return (area / ratio).sqrt().round(), (area * ratio).sqrt().round()

    def _fallback(self, height: int, width: int) -> list[int]:
        """The largest central box with an allowed ratio, where no attempt fitted."""
        h, w = height, width
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        return [(height - h) // 2, (width - w) // 2, h, w]

    @torch.no_grad()
    def apply(self, images: Tensor, choices: Choices) -> Tensor:
        """What ``choices`` say, done to (n, 3, h, w) images; see ``__call__``."""
        _check(images)
        n, device = len(images), images.device
        crop, size = (_crop_each, _CHUNK) if device.type == "cpu" else (_crop_all, max(n, 1))
        colours = _Colours(choices.factors, choices.order, device)
        out = torch.empty(n, self.size, self.size, 3, device=device).permute(0, 3, 1, 2)

        def fill(start: int) -> None:
            rows = slice(start, start + size)
            done = out[rows]
            # The colours want each channel in one piece, the result its channels last.
            into = torch.empty(done.shape, device=device) if colours.slots else done
            crop(images[rows], choices.boxes[rows], choices.flip[rows], into)
            if images.dtype == torch.uint8:
                into.mul_(1 / 255)
            if colours.slots:
                done.copy_(colours(into, rows))

        with torch.autocast(device.type, enabled=False):  # 8 bits are too few for a grey level
            _on_threads(fill, range(0, n, size))
        return out


def _check(images: Tensor) -> None:
    good = isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3
    if good and (images.dtype == torch.uint8 or images.is_floating_point()):
        return
    found = (
        f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
        if isinstance(images, Tensor)
        else type(images).__name__
    )
    raise TypeError(
        f"PhotoAugment takes a batch of RGB images of shape (n, 3, height, width), uint8 or floats "
        f"in 0..1, found {found}."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _around(centre: float, given: Any, least: float) -> Any:
    """A number as the range around a centre that it stands for; anything else as it is."""
    return (max(centre - given, least), centre + given) if _is_number(given) else given


def _on_threads(work: Callable[[int], None], items: range) -> None:
    """Do the work for each item, on as many threads as torch would take for an operation."""
    threads = min(torch.get_num_threads(), len(items))
    if threads < 2:
        for item in items:
            work(item)
        return
    # torch's number of threads belongs to the thread that sets it.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(work, items):
            pass  # errors surface here


# --- boxes --------------------------------------------------------------------------------


def _crop_each(images: Tensor, boxes: Tensor, flip: Tensor, into: Tensor) -> None:
    """Fill a float tensor, box by box, with torch's kernel for CPUs.

    It skips what an antialiased filter does not touch and computes uint8 in integers, which
    products with dense matrices cannot make up for.
    """
    if images.dtype not in (torch.uint8, torch.float32):
        images = images.float()
    size = into.shape[2:]
    rows = zip(images.split(1), boxes.tolist(), flip.tolist(), into.split(1), strict=True)
    for image, (top, left, height, width), flipped, out in rows:
        box = image[:, :, top : top + height, left : left + width]
        pixels = F.interpolate(box, size, mode="bilinear", antialias=True)
        out.copy_(pixels.flip(3) if flipped else pixels)


def _crop_all(images: Tensor, boxes: Tensor, flip: Tensor, into: Tensor) -> None:
    into.copy_(crop_by_matrices(images, boxes, flip, into.shape[2]))


def crop_by_matrices(images: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut, resize and flip all images by two products with matrices of weights.

    ``A_i @ x_i @ B_i.T`` for image i, where the rows of A hold the triangle filter of a bilinear
    resize with antialiasing along the height, those of B along the width: the values of
    ``v2.functional.resized_crop(..., antialias=True)`` on floats.

    Args:
        images: (n, 3, h, w), uint8 or floats, on any device.
        boxes: (n, 4) top, left, height, width.
        flip: (n,) bool, which boxes are mirrored.
        size: side of the result in pixels.

    Returns:
        (n, 3, size, size) float32 on the scale of the input.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> rows = torch.tensor([0.0, 10.0, 20.0, 30.0])[:, None].expand(1, 3, 4, 4)
        >>> box, flip = torch.tensor([[0, 0, 2, 4]]), torch.tensor([False])
        >>> tl.augment.crop_by_matrices(rows, box, flip, 2)[0, 0]
        tensor([[ 0.,  0.],
                [10., 10.]])
    """
    top, left, height, width = boxes.to(images.device, torch.float32).unbind(1)
    rows = _filters(top, height, images.shape[2], size)
    columns = _filters(left, width, images.shape[3], size)
    flip = flip.to(images.device)[:, None, None]
    columns = torch.where(flip, columns.flip(1), columns)
    return rows[:, None] @ images.float() @ columns.mT[:, None]


def _filters(start: Tensor, length: Tensor, total: int, size: int) -> Tensor:
    """(n, size, total) weights that resize ``length`` pixels from ``start`` on to ``size``."""
    device = start.device
    start, length = start[:, None, None], length[:, None, None]
    step = length / size
    centre = start + step * (torch.arange(size, device=device)[:, None] + 0.5)
    pixel = torch.arange(total, device=device) + 0.5
    weights = (1 - (pixel - centre).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel > start) & (pixel < start + length))
    return weights / weights.sum(dim=2, keepdim=True)


# --- colours ------------------------------------------------------------------------------


class _Colours:
    """The colour operations of a batch, each image with its own factors in its own order.

    With the grey value ``g(x)`` of a pixel x, brightness is ``f x``, saturation
    ``f x + (1 - f) g(x)`` and contrast ``f x + (1 - f) mean(g)``. All three are ``M x + c`` with a
    matrix for each image, so that images in different orders share one product.
    """

    def __init__(self, factors: Tensor, order: Tensor, device: torch.device) -> None:
        n = len(factors)
        neutral = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=factors.dtype)
        on = (factors != neutral).any(dim=0)
        self.slots = int(on.sum())
        kinds = order[on[order]].view(n, self.slots)  # the order of those that are on
        f = factors.gather(1, kinds).float()
        hue = kinds == 3
        scale = torch.where(hue, 1.0, f)[..., None, None] * torch.eye(3)
        grey = torch.where(kinds == 2, 1 - f, 0.0)[..., None, None]
        self.luma = torch.tensor(LUMA)
        self.matrices = (scale + grey * self.luma).to(device)
        self.offsets = torch.where(kinds == 1, 1 - f, 0.0)[..., None].to(device)
        self.hue, self.shifts = hue, f
        self.luma = self.luma.to(device)

    def __call__(self, planes: Tensor, rows: slice) -> Tensor:
        """(n, 3, h, w) contiguous floats in 0..1, the images ``rows`` of the batch."""
        x = planes.flatten(2)
        for slot in range(self.slots):
            mean = x.mean(dim=2) @ self.luma
            offset = (self.offsets[rows, slot] * mean[:, None])[:, :, None]
            x = torch.bmm(self.matrices[rows, slot], x).add_(offset).clamp_(0, 1)
            if len(chosen := self.hue[rows, slot].nonzero().squeeze(1)):
                shift = self.shifts[rows, slot][chosen].to(x.device)
                chosen = chosen.to(x.device)
                x.index_copy_(0, chosen, _shift_hue(x.index_select(0, chosen), shift))
        return x.view_as(planes)


def _shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of (n, 3, pixels) RGB by (n,) shifts, 1 being the whole circle.

    The largest channel, the smallest and their difference, the chroma, stay. With the hue h on a
    circle of 6, red is ``low + chroma * t(h)``, green ``low + chroma * t(h - 2)`` and blue
    ``low + chroma * t(h - 4)``, where t is 1 in -1..1, 0 in 2..4 and linear between. As
    ``t(h + 3) = 1 - t(h)``, the values of red after 0, 1, ..., 5 steps along the circle are r,
    low + high - g, b, low + high - r, g and low + high - b: known without h. For a part f of a step
    between neighbours u and v, two linear pieces at most matter.
    """
    n, _, pixels = x.shape
    red, green, blue = x.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma, both = high - low, high + low
    circle = torch.stack([red, both - green, blue, both - red, green, both - blue], dim=1)
    steps = 6 * shift
    whole = steps.floor()
    part = (steps - whole)[:, None]
    first = whole.long()[:, None] - torch.tensor([0, 2, 4], device=x.device)
    planes = 6 * torch.arange(n, device=x.device)[:, None]
    u, v = (
        circle.view(-1, pixels).index_select(0, (planes + (first + k) % 6).flatten()).view_as(x)
        for k in (0, 1)
    )
    falls = torch.addcmul(low, chroma, part)[:, None].minimum(u).sub_(v).clamp_(min=0)
    rises = v - torch.addcmul(low, chroma, 1 - part)[:, None].maximum(u)
    return u.sub_(falls).add_(rises.clamp_(min=0))
