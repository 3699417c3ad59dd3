"""Characters as small images: the alphabets, the fonts that draw them, and how they vary.

The glyphs come from the fonts that Matplotlib ships, so every installation draws the same ones
without a download. An outline is read in font units, unhinted, and filled once into a *mask*, a
small grey picture that fills its frame; batches of masks are then turned, blurred, thinned and so
on with tensor operations, see :class:`Shift`. ``datasets.glyphs`` makes data sets of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

GLYPH_SIZE = 16
"""The side in pixels of glyphs and digits, unless one asks for another."""

MASK_SCALE = 2  # pixels of a mask to one of the image: it is warped first, and then averaged down


def _span(*ranges: str) -> tuple[str, ...]:
    """``"az"`` → all characters from a to z; several ranges one after the other."""
    return tuple(chr(c) for ends in ranges for c in range(ord(ends[0]), ord(ends[1]) + 1))


ALPHABETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "latin_upper": _span("AZ"),
        "latin_lower": _span("az"),
        "digits_printed": _span("09"),
        "greek_upper": _span("ΑΡ", "ΣΩ"),
        "greek_lower": _span("αω"),
        "cyrillic_upper": _span("АЯ"),
        "cyrillic_lower": _span("ая"),
        "armenian_upper": _span("ԱՖ"),
        "armenian_lower": _span("աֆ"),
        "georgian": _span("აჰ"),
        "georgian_capitals": _span("ႠჅ"),
        "hebrew": _span("את"),
        "arabic": _span("ءغ", "في"),
        "maths": tuple("∀∂∃∄∅∇∈∉∋∏∐∑∓∔∗√∝∞∟∠∧∨∩∪∫∬∮∴∵∶∼≀≃≅≈≜≠≡≤≥≪≫≺≻⊂⊃⊄⊆⊇⊎⊏⊐⊓⊔⊕⊖⊗⊘⊙⊛⊞⊠⊢⊣⊤⊥⊨⋈⋔⋮"),
        "arrows": tuple("←↑→↓↔↕↖↗↘↙↚↛↜↝↞↟↠↡↢↣↤↥↦↧↩↪↫↬↭↰↱↶↷↺↻↼↽⇀⇁⇄⇆⇋⇐⇑⇒⇓⇔⇕⇚⇛"),
    }
)
"""The characters of each alphabet; Arabic letters are drawn in their isolated forms."""

_FILES: Mapping[str, str] = MappingProxyType(
    {
        "DejaVu Sans": "DejaVuSans.ttf",
        "DejaVu Sans Bold": "DejaVuSans-Bold.ttf",
        "DejaVu Sans Oblique": "DejaVuSans-Oblique.ttf",
        "DejaVu Sans Bold Oblique": "DejaVuSans-BoldOblique.ttf",
        "DejaVu Serif": "DejaVuSerif.ttf",
        "DejaVu Serif Bold": "DejaVuSerif-Bold.ttf",
        "DejaVu Serif Italic": "DejaVuSerif-Italic.ttf",
        "DejaVu Serif Bold Italic": "DejaVuSerif-BoldItalic.ttf",
        "DejaVu Sans Mono": "DejaVuSansMono.ttf",
        "DejaVu Sans Mono Bold": "DejaVuSansMono-Bold.ttf",
        "DejaVu Sans Mono Oblique": "DejaVuSansMono-Oblique.ttf",
        "DejaVu Sans Mono Bold Oblique": "DejaVuSansMono-BoldOblique.ttf",
        "STIXGeneral": "STIXGeneral.ttf",
        "STIXGeneral Bold": "STIXGeneralBol.ttf",
        "STIXGeneral Italic": "STIXGeneralItalic.ttf",
        "STIXGeneral Bold Italic": "STIXGeneralBolIta.ttf",
        "cmr10": "cmr10.ttf",
        "cmb10": "cmb10.ttf",
        "cmss10": "cmss10.ttf",
        "cmtt10": "cmtt10.ttf",
        "cmmi10": "cmmi10.ttf",
    }
)
FONTS: tuple[str, ...] = tuple(_FILES)
"""The fonts, from Matplotlib 3.9 on. Left out are those that put other signs in the letters' places
(cmex10, cmsy10), STIX's fonts of large signs, the font of last resort, which has a placeholder
for every character, and cmti10, which came with Matplotlib 3.11 only."""

_LETTERS = frozenset(ALPHABETS["latin_upper"] + ALPHABETS["latin_lower"])
# Computer Modern keeps TeX's own codes beyond these; cmmi10's digits are old-style.
_COVERAGE: Mapping[str, frozenset[str]] = {
    name: _LETTERS if name == "cmmi10" else _LETTERS | frozenset(ALPHABETS["digits_printed"])
    for name in FONTS
    if name.startswith("cm")
}


# --- outlines and masks ------------------------------------------------------------------------


@functools.cache
def _open(font: str) -> Any:
    import matplotlib  # here, so that photographs alone do not wait for it
    from matplotlib import ft2font

    if font not in _FILES:
        raise ValueError(f"{font!r} is not among the fonts; they are: {', '.join(FONTS)}.")
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", _FILES[font])
    return ft2font.FT2Font(str(path))


@functools.cache
def _characters(font: str) -> frozenset[str]:
    found = frozenset(map(chr, _open(font).get_charmap()))
    return found & _COVERAGE.get(font, found)


def has(font: str, character: str) -> bool:
    """Whether the font has a glyph of its own for the character.

    >>> [font for font in FONTS if has(font, "ש")][:2]
    ['DejaVu Sans', 'DejaVu Sans Bold']

    Raises:
        ValueError: if there is no such font.
    """
    return character in _characters(font)


def outline(font: str, character: str) -> tuple[np.ndarray, np.ndarray]:
    """The outline of a glyph, unhinted, in whole font units: the same for all versions of FreeType.

    Returns:
        (v, 2) int64 vertices and (v,) uint8 codes, as ``matplotlib.path.Path`` takes them.

    Raises:
        ValueError: if there is no such font, or it has no such character.

    Example:
        >>> import tlhelpers as tl
        >>> vertices, codes = tl.characters.outline("DejaVu Sans", "I")
        >>> vertices.tolist()
        [[201, 1493], [403, 1493], [403, 0], [201, 0], [201, 1493], [0, 0]]
    """
    from matplotlib import ft2font

    if not has(font, character):
        raise ValueError(f"{font} has no {character!r} (U+{ord(character):04X}).")
    module: Any = ft2font
    if hasattr(module, "LoadFlags"):
        unscaled = module.LoadFlags.NO_SCALE | module.LoadFlags.IGNORE_TRANSFORM
    else:  # Matplotlib 3.9
        unscaled = module.LOAD_NO_SCALE | module.LOAD_IGNORE_TRANSFORM
    opened = _open(font)
    opened.load_char(ord(character), flags=unscaled)
    vertices, codes = opened.get_path()
    return np.rint(64 * vertices).astype(np.int64), codes  # FreeType counts in 64ths


@functools.cache
def mask(font: str, character: str, side: int = MASK_SCALE * GLYPH_SIZE) -> Tensor:
    """A glyph as a picture: (side, side) uint8, the share of each pixel that is ink in 255ths.

    The glyph is scaled, keeping its proportions, until it fills the frame's height or width, and
    centred: handwritten digits come to scikit-learn's data in the same way. Masks are kept in
    memory, so take a copy before you change one.

    Raises:
        ValueError: if there is no such font, or it has no such character.

    Example:
        >>> import tlhelpers as tl
        >>> for row in tl.characters.mask("DejaVu Sans", "R", side=9):
        ...     print("".join("#" if ink > 99 else "." for ink in row))
        .#####...
        .#...##..
        .#...##..
        .#...##..
        .#####...
        .#..##...
        .#...##..
        .#....#..
        .#....##.
    """
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.path import Path as Outline
    from matplotlib.transforms import Affine2D

    vertices, codes = outline(font, character)
    low, high = _box(vertices, codes)
    renderer = RendererAgg(side, side, 72)
    place = Affine2D().translate(*(-(low + high) / 2)).scale(side / (high - low).max())
    place.translate(side / 2, side / 2)
    pen = renderer.new_gc()
    pen.set_linewidth(0)
    pen.set_antialiased(True)
    pen.set_snap(False)
    renderer.draw_path(pen, Outline(vertices, codes), place, (0.0, 0.0, 0.0))
    return torch.from_numpy(np.array(renderer.buffer_rgba())[:, :, 3])


def _box(vertices: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest x and y of an outline made of lines and quadratic curves.

    ``Path.get_extents`` gives the same, forty times slower.
    """
    from matplotlib.path import Path as Outline

    is_curve = codes == Outline.CURVE3  # control and end point of each curve in turn
    middle = np.flatnonzero(is_curve)[::2]
    start, control, end = (vertices[middle + i].astype(float) for i in (-1, 0, 1))
    bend = start - 2 * control + end
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num(((start - control) / bend).clip(0, 1))
    extremes = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    on_curve = codes != Outline.CLOSEPOLY  # its vertex means nothing
    on_curve[middle] = False
    points = np.concatenate([vertices[on_curve], extremes])
    return points.min(0), points.max(0)


# --- shifts ------------------------------------------------------------------------------------

Range = float | tuple[float, float]


@dataclass(frozen=True, repr=False)
class Shift:
    """How images differ from clean ones; drawn anew for each image, all off by default.

    Each parameter is a pair ``(low, high)`` between which a value is drawn, or one number: where
    values have a sign (marked ±) the number ``a`` stands for ``(-a, a)``, elsewhere for itself.
    Lengths are pixels of an image of 16 × 16 (:data:`GLYPH_SIZE`); in larger images they grow.
    The steps are taken in the order of the attributes.

    Attributes:
        stroke: ± pixels added to the width of strokes.
        scale: size as a factor.
        aspect: width as a further factor.
        shear: ± how far the image leans to the right: the tangent of the angle.
        rotation: ± degrees, counter-clockwise.
        translate: ± pixels to the right, and, drawn on its own, ± pixels down.
        elastic: ± pixels by which 4 × 4 points are displaced, between which the image bends.
        resolution: side in pixels, whatever the image's, to which it is averaged down before it
            is interpolated back; None leaves it.
        blur: standard deviation of a Gaussian, in pixels.
        contrast: factor on the distance from mid-grey; 1 leaves it.
        invert: probability that ink and paper change places; True for always.
        noise: standard deviation of Gaussian noise on grey values in 0..1, which are cut to
            0..1 afterwards.

    Raises:
        ValueError: if a value is out of its range, naming it.

    >>> strong = dataclasses.replace(CLEAN, rotation=30, blur=(0.5, 1.0))
    >>> strong
    Shift(rotation=30, blur=(0.5, 1.0))
    >>> strong.apply(torch.rand(2, 1, 16, 16), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 16, 16])
    """

    stroke: Range = 0.0
    scale: Range = 1.0
    aspect: Range = 1.0
    shear: Range = 0.0
    rotation: Range = 0.0
    translate: Range = 0.0
    elastic: Range = 0.0
    resolution: Range | None = None
    blur: Range = 0.0
    contrast: Range = 1.0
    invert: float = 0.0
    noise: Range = 0.0

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if value is None and name == "resolution":
                continue
            if isinstance(value, list):  # as JSON has it
                object.__setattr__(self, name, tuple(value))
            try:
                low, high = self._range(name)
                is_fine = least <= low <= high <= most
            except (TypeError, ValueError):
                is_fine = False
            if not is_fine:
                raise ValueError(
                    f"{name} should be a number or a pair (low, high) within {least:g} to "
                    f"{most:g}, found {value!r}."
                )
        if not isinstance(self.invert, int | float) or not 0 <= self.invert <= 1:
            raise ValueError(f"invert should be a probability in 0..1, found {self.invert!r}.")

    def __repr__(self) -> str:
        """Only what is on."""
        pairs = [(f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self)]
        return f"Shift({', '.join(f'{k}={v!r}' for k, v, off in pairs if v != off)})"

    def apply(self, images: Tensor, generator: torch.Generator, *, average: int = 1) -> Tensor:
        """The images, each shifted by values of its own; ``CLEAN`` returns them as they are.

        The generator is drawn from in a fixed order, so with the same seed two shifts that differ
        in the blur alone turn each image by the same angle. Tensors of 16-bit floats are shifted
        in 32 bits.

        Args:
            images: (n, channels, h, w), floats in 0..1, ink 1, on any device.
            generator: where the randomness comes from.
            average: how many pixels, along each axis, become one after the warp: images of twice
                the size, averaged by 2, look better warped than small ones do.

        Returns:
            a tensor of the same dtype, in 0..1, and of the same shape where ``average`` is 1.

        Raises:
            TypeError: if the images are not a float tensor of that shape.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            found = (
                f"{images.dtype} of shape {tuple(images.shape)}"
                if isinstance(images, Tensor)
                else type(images).__name__
            )
            raise TypeError(
                f"images should be a tensor of floats in 0..1 of shape (n, channels, height, "
                f"width), found {found}. Photographs: images.float() / 255."
            )
        if not len(images) or self == CLEAN:
            return functional.avg_pool2d(images, average) if average > 1 else images
        if images.dtype in (torch.float16, torch.bfloat16):
            return self.apply(images.float(), generator, average=average).to(images.dtype)
        # One column for each parameter, used or not, so that the others keep theirs.
        shares = torch.rand(
            len(images), len(_COLUMNS), generator=generator, device=generator.device
        ).to(images)

        def draw(name: str) -> Tensor | None:
            """A value for each image, (n,); None where the parameter is off."""
            parameter = "translate" if name in ("right", "down") else name
            if getattr(self, parameter) == _OFF[parameter]:
                return None
            low, high = self._range(parameter)
            return low + (high - low) * shares[:, _COLUMNS.index(name)]

        if (stroke := draw("stroke")) is not None:
            images = _embolden(images, stroke * images.shape[-1] / GLYPH_SIZE / 2)
        bend = self._bend(len(images), generator).to(images) if self.elastic != 0 else None
        warp = {k: draw(k) for k in ("scale", "aspect", "shear", "rotation", "right", "down")}
        if bend is not None or any(value is not None for value in warp.values()):
            images = _warp(images, **warp, bend=bend)
        if average > 1:
            images = functional.avg_pool2d(images, average)
        if (resolution := draw("resolution")) is not None:
            images = _coarsen(images, resolution)
        if (blur := draw("blur")) is not None:
            images = _blur(images, blur * images.shape[-1] / GLYPH_SIZE)
        if (contrast := draw("contrast")) is not None:
            images = (0.5 + contrast.view(-1, 1, 1, 1) * (images - 0.5)).clamp(0, 1)
        if self.invert:
            turned = shares[:, _COLUMNS.index("invert")] < self.invert
            images = torch.where(turned.view(-1, 1, 1, 1), 1 - images, images)
        if (deviation := draw("noise")) is not None:
            noise = torch.randn(images.shape, generator=generator, device=generator.device)
            images = images + deviation.view(-1, 1, 1, 1) * noise.to(images)
        return images.clamp(0, 1)  # interpolation rounds to a little more than 1, too

    def _range(self, name: str) -> tuple[float, float]:
        value = getattr(self, name)
        if isinstance(value, tuple):
            low, high = value
            return low, high
        return (-value, value) if name in _SIGNED else (value, value)

    def _bend(self, n: int, generator: torch.Generator) -> Tensor:
        low, high = self._range("elastic")
        drawn = torch.rand(n, 2, 4, 4, generator=generator, device=generator.device)
        return low + (high - low) * drawn


_OFF: Mapping[str, Any] = {f.name: f.default for f in dataclasses.fields(Shift)}
_SIGNED = ("stroke", "shear", "rotation", "translate", "elastic")
_LIMITS = {
    "stroke": (-4.0, 4.0),
    "scale": (0.05, 20.0),
    "aspect": (0.05, 20.0),
    "shear": (-4.0, 4.0),
    "rotation": (-360.0, 360.0),
    "translate": (-16.0, 16.0),
    "elastic": (-4.0, 4.0),
    "resolution": (1.0, 1024.0),
    "blur": (0.0, 8.0),
    "contrast": (0.0, 10.0),
    "noise": (0.0, 10.0),
}
_COLUMNS = (
    "stroke", "scale", "aspect", "shear", "rotation", "right", "down", "resolution", "blur",
    "contrast", "invert", "noise",
)  # fmt: skip

CLEAN = Shift()
"""The shift that leaves images as they are, with every parameter off."""

MILD = Shift(
    stroke=(-0.4, 1.2), scale=(0.85, 1.05), aspect=(0.6, 1.1), shear=0.3, rotation=12,
    translate=0.8, elastic=1.5, resolution=(8, 16), blur=(0.0, 0.6),
)  # fmt: skip
"""Variety about as large as that of handwriting; for pretraining.

Bent, coarse, and without noise, as the handwritten :func:`~tlhelpers.datasets.digits` are. It was
settled with an eye on their train and validation splits (of seed 0).
"""


def _embolden(images: Tensor, radius: Tensor) -> Tensor:
    """Move the edges of the ink outwards by ``radius`` pixels (n,), inwards where negative."""
    for sign in (1, -1):  # eroding ink is dilating paper
        rest = sign * radius
        for _ in range(math.ceil(max(float(rest.max()), 0.0))):
            share = rest.clamp(0, 1)[:, None, None, None]
            images = images + share * (sign * _dilate(sign * images) - images)
            rest = rest - 1
    return images


def _dilate(images: Tensor) -> Tensor:
    """The largest value of each pixel and its eight neighbours."""
    for axis in (-1, -2):
        size = images.shape[axis] - 1
        first, last = images.narrow(axis, 0, 1), images.narrow(axis, size, 1)
        before = torch.cat([first, images.narrow(axis, 0, size)], axis)
        after = torch.cat([images.narrow(axis, 1, size), last], axis)
        images = torch.maximum(torch.maximum(images, before), after)
    return images


def _warp(
    images: Tensor,
    *,
    scale: Tensor | None,
    aspect: Tensor | None,
    shear: Tensor | None,
    rotation: Tensor | None,
    right: Tensor | None,
    down: Tensor | None,
    bend: Tensor | None,
) -> Tensor:
    """Warp each image about its middle; what comes in from outside is paper (0)."""
    n, _, h, w = images.shape
    zero, one = images.new_zeros(n), images.new_ones(n)
    angle = torch.deg2rad(rotation) if rotation is not None else zero
    lean = shear if shear is not None else zero
    size = scale if scale is not None else one
    width = aspect if aspect is not None else one
    # Sampling asks where a pixel of the result comes from, hence the inverse of
    # translation · rotation · shear · scale, for a y axis that points down.
    cos, sin = torch.cos(angle), torch.sin(angle)
    across, up = 1 / (size * width), 1 / size
    xx, xy = across * (cos + lean * sin), across * (lean * cos - sin)
    yx, yy = up * sin, up * cos
    # Coordinates run from -1 to 1 along each axis, also where the image is no square.
    matrix = torch.stack([xx, xy * (h / w), yx * (w / h), yy], 1).view(n, 2, 2)
    ys = (torch.arange(h, dtype=images.dtype, device=images.device) * 2 + 1) / h - 1
    xs = (torch.arange(w, dtype=images.dtype, device=images.device) * 2 + 1) / w - 1
    grid = torch.stack([xs.expand(h, w), ys[:, None].expand(h, w)]).view(2, h * w)
    offset = torch.stack(
        [right if right is not None else zero, down if down is not None else zero], 1
    )
    places = matrix @ (grid - 2 * offset[:, :, None] / GLYPH_SIZE)
    if bend is not None:
        smooth = functional.interpolate(
            2 * bend / GLYPH_SIZE, (h, w), mode="bilinear", align_corners=True
        )
        places = places + smooth.view(n, 2, h * w)
    return functional.grid_sample(
        images, places.view(n, 2, h, w).permute(0, 2, 3, 1), align_corners=False
    )


def _coarsen(images: Tensor, side: Tensor) -> Tensor:
    """Average each image down to about ``side`` × ``side`` (n,) and interpolate it back."""
    h, w = images.shape[-2:]
    coarse = images.clone()
    whole = side.round().int()
    for r in whole.unique().tolist():
        if r < max(h, w):
            rows = whole == r
            small = functional.adaptive_avg_pool2d(images[rows], (min(r, h), min(r, w)))
            coarse[rows] = functional.interpolate(small, (h, w), mode="bilinear")
    return coarse


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Convolve each image with a Gaussian of its own sigma (n,) in pixels."""
    reach = max(1, math.ceil(3 * float(sigma.max())))
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (steps / sigma.clamp(min=1e-3)[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    for axis, pad in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        size = images.shape[axis]
        padded = functional.pad(images, pad, mode="replicate")
        total = torch.zeros_like(images)
        for i, weight in enumerate(weights.unbind(1)):
            total = total + weight[:, None, None, None] * padded.narrow(axis, i, size)
        images = total
    return images


# --- classes -----------------------------------------------------------------------------------

# Mean difference of two masks below which they show the same glyph: copies differ by 0 to 0.003,
# the nearest of different glyphs (Arabic letters with and without a dot) by 0.007.
_SAME = 0.005


def look_alikes(characters: Iterable[str]) -> list[tuple[str, ...]]:
    """Group the characters that some font draws with one glyph: they are one class.

    Nearly all such pairs share their outline in every font (A in Latin, Greek and Cyrillic), some
    in a few (in italics, Cyrillic т is written like m); one font is enough here, so that no
    picture can stand for two classes. Case is no such matter: O and o, scaled to the frame, differ
    in the width of their strokes and stay two classes.

    Returns:
        the groups, most of them with one member, in the order of the characters.

    >>> look_alikes("AoOАО")  # the last two are Cyrillic
    [('A', 'А'), ('o',), ('O', 'О')]
    """
    return list(_grouped(tuple(dict.fromkeys(characters))))


@functools.lru_cache(maxsize=64)
def _grouped(order: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The connected groups among distinct characters."""
    alike = _alike(order)
    groups: list[tuple[str, ...]] = []
    done: set[int] = set()
    for first in range(len(order)):
        if first in done:
            continue
        group, edge = {first}, [first]
        while edge:
            near = set(np.flatnonzero(alike[edge.pop()]).tolist()) - group
            group |= near
            edge.extend(near)
        done |= group
        groups.append(tuple(order[i] for i in sorted(group)))
    return tuple(groups)


def disjoint(source: Iterable[str], target: Iterable[str]) -> tuple[str, ...]:
    """The characters of ``source`` that no font draws like one of ``target``.

    Pretrain on these where ``target`` is to be new. Merely similar characters stay: letter O and
    digit 0 have outlines of their own.

    >>> disjoint("ABГ", "ΑБ")  # Latin A, B and Cyrillic Г against Greek Α and Cyrillic Б
    ('B', 'Г')
    """
    first, second = list(dict.fromkeys(source)), list(dict.fromkeys(target))
    order = list(dict.fromkeys([*first, *second]))
    columns = [order.index(c) for c in second]
    taken = np.flatnonzero(_alike(order)[:, columns].any(1))
    return tuple(c for c in first if order.index(c) not in taken)


def _alike(characters: Sequence[str]) -> np.ndarray:
    """(m, m): which pairs of characters some font draws with one glyph."""
    alike = np.eye(len(characters), dtype=bool)
    for font in FONTS:
        rows = [i for i, c in enumerate(characters) if has(font, c)]
        if rows:
            alike[np.ix_(rows, rows)] |= _same_glyphs(font, [characters[i] for i in rows])
    return alike


def _same_glyphs(font: str, characters: Sequence[str]) -> np.ndarray:
    """(m, m): which pairs of characters the font draws with one glyph."""
    masks = torch.stack([mask(font, c) for c in characters]).float() / 255
    side = masks.shape[-1]
    blurred = functional.avg_pool2d(masks, side // 8).flatten(1)
    # Averages differ by no more than the pixels do, so that only near pairs need the whole masks.
    first, second = torch.nonzero(torch.cdist(blurred, blurred, p=1) < 64 * _SAME).unbind(1)
    difference = (masks[first] - masks[second]).abs().mean((1, 2))
    same = np.zeros((len(characters),) * 2, bool)
    same[first[difference < _SAME].numpy(), second[difference < _SAME].numpy()] = True
    return same
