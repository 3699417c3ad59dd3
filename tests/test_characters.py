"""Behaviour of glyphs and digits: what is drawn, how it is shifted, and the data sets of it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from fontTools import agl
from matplotlib.path import Path as Outline
from sklearn.datasets import load_digits
from torchvision.transforms import v2

from tlhelpers import characters, plots
from tlhelpers.characters import (
    ALPHABETS,
    CLEAN,
    FONTS,
    GLYPH_SIZE,
    MILD,
    Shift,
    disjoint,
    has,
    look_alikes,
    mask,
    outline,
)
from tlhelpers.datasets import digits, glyphs, shuffled_labels, with_classes

LETTERS = (*ALPHABETS["latin_upper"], *ALPHABETS["latin_lower"])
EVERY = tuple(dict.fromkeys(itertools.chain(*ALPHABETS.values())))
VERSION = f"Matplotlib {matplotlib.__version__}"
# Made with Matplotlib 3.9.4, 3.10.0 and 3.11.2, which agree.
OUTLINES = "eda2cfeba27e569b"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted(images: torch.Tensor, seed: int = 0, **parameters: Any) -> torch.Tensor:
    return Shift(**parameters).apply(images, seeded(seed))


def letters(text: str = "FGRS", size: int = GLYPH_SIZE) -> torch.Tensor:
    """Clean letters in DejaVu Sans, (n, 1, size, size)."""
    masks = torch.stack([mask("DejaVu Sans", c, size) for c in text])
    return masks.unsqueeze(1).float() / 255


def bar(size: int = 32) -> torch.Tensor:
    """A vertical stroke of 4 pixels in the middle, in a square."""
    image = torch.zeros(1, 1, size, size)
    image[..., 4:-4, size // 2 - 2 : size // 2 + 2] = 1
    return image


# --- fonts and outlines ------------------------------------------------------------------------


@pytest.mark.parametrize("font", FONTS)
def test_every_glyph_is_that_of_its_character(font: str) -> None:
    opened = characters._open(font)
    charmap = opened.get_charmap()
    for c in (c for c in EVERY if has(font, c)):
        index = charmap[ord(c)]
        name = opened.get_glyph_name(index)
        assert index != 0, f"{font} draws {c!r} as a missing character ({VERSION})"
        # A glyph's name says what it is: "A", "alpha", "uni0410"; a few are named by number only.
        meant = agl.toUnicode(name)
        assert meant in ("", c) or name in _OTHER_NAMES, (
            f"{font} draws {c!r} (U+{ord(c):04X}) with the glyph {name!r}, {meant!r} ({VERSION})"
        )
        assert 0.01 < mask(font, c).float().mean() / 255 < 0.95


# Names of which Adobe's list says something else, though they are used for these characters.
_OTHER_NAMES = ("Omega",)  # the sign of the ohm


def test_every_character_is_drawn_in_some_font_and_letters_in_all() -> None:
    for c in EVERY:
        assert any(has(font, c) for font in FONTS), f"no font has {c!r} ({VERSION})"
    assert all(has(font, c) for font in FONTS for c in LETTERS)
    assert not has("cmr10", "¡")  # a capital gamma in TeX's encoding
    assert not has("cmmi10", "3")  # old-style


def test_there_are_hundreds_of_classes() -> None:
    assert len(look_alikes(EVERY)) > 400
    for name, alphabet in ALPHABETS.items():
        assert len(set(alphabet)) == len(alphabet) >= 10, name


def test_outlines_and_masks_are_the_same_everywhere() -> None:
    digest = hashlib.sha256()
    for font, alphabet in itertools.product(FONTS, ALPHABETS.values()):
        for c in alphabet:
            if has(font, c):
                vertices, codes = outline(font, c)
                digest.update(vertices.astype("<i8").tobytes() + codes.astype(np.uint8).tobytes())
    if digest.hexdigest()[:16] == OUTLINES:
        return
    # Another version of a font may mend a curve; it may not draw something else.
    for (font, c), expected in _INK.items():
        ink = mask(font, c).float().view(2, 16, 2, 16).mean((1, 3)).flatten() / 255
        np.testing.assert_allclose(
            ink, expected, atol=0.03, err_msg=f"{c!r} in {font} has changed in {VERSION}"
        )


# The ink in the four quarters of some masks.
_INK = {
    ("DejaVu Sans", "R"): (0.421, 0.306, 0.353, 0.288),
    ("DejaVu Serif Bold Italic", "g"): (0.413, 0.526, 0.412, 0.426),
    ("DejaVu Sans Mono", "б"): (0.313, 0.217, 0.267, 0.265),
    ("STIXGeneral", "∀"): (0.282, 0.282, 0.197, 0.197),
    ("cmr10", "K"): (0.366, 0.185, 0.355, 0.331),
    ("cmmi10", "y"): (0.261, 0.210, 0.216, 0.208),
}


@pytest.mark.parametrize(
    ("font", "c"), [("DejaVu Serif", "Q"), ("cmr10", "g"), ("STIXGeneral", "W")]
)
def test_a_mask_fills_its_frame(font: str, c: str) -> None:
    vertices, codes = outline(font, c)
    box = Outline(vertices, codes).get_extents()
    low, high = characters._box(vertices, codes)
    np.testing.assert_allclose([*low, *high], [box.x0, box.y0, box.x1, box.y1], atol=1e-9)
    ink = mask(font, c, 64) > 0
    assert ink.shape == (64, 64)
    spans = [np.flatnonzero(ink.any(axis)) for axis in (0, 1)]  # columns, rows
    width, height = (span[-1] - span[0] + 1 for span in spans)
    assert max(width, height) == 64
    assert width / height == pytest.approx(box.width / box.height, rel=0.06)
    for span in spans:
        assert abs(span[0] + span[-1] - 63) <= 1  # centred


def test_a_mask_is_what_freetype_fills() -> None:
    """The share of ink against another library's rasteriser, at a hundred times the area."""
    from PIL import Image, ImageDraw, ImageFont

    file = matplotlib.get_data_path() + "/fonts/ttf/DejaVuSerif-Bold.ttf"
    font = ImageFont.truetype(file, 400)
    for c in "Rgш":
        wide = Image.new("L", (600, 800))
        ImageDraw.Draw(wide).text((50, 50), c, fill=255, font=font)
        left, top, right, bottom = wide.getbbox() or (0, 0, 0, 0)
        side = max(right - left, bottom - top)
        square = Image.new("L", (side, side))
        glyph = wide.crop((left, top, right, bottom))
        square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
        expected = np.asarray(square.resize((32, 32), Image.Resampling.BOX), float) / 255
        difference = np.abs(mask("DejaVu Serif Bold", c).numpy() / 255 - expected)
        assert difference.mean() < 0.02


def test_unknown_fonts_and_characters_are_named() -> None:
    with pytest.raises(ValueError, match="'Arial' is not among the fonts; they are: DejaVu Sans, "):
        has("Arial", "A")
    with pytest.raises(ValueError, match=r"cmr10 has no 'ש' \(U\+05E9\)"):
        mask("cmr10", "ש")


# --- look-alikes -------------------------------------------------------------------------------


def test_look_alikes_are_found_across_alphabets() -> None:
    groups = {group[0]: group for group in look_alikes(EVERY)}
    assert set("AΑА") == set(groups["A"])
    assert set("CС") == set(groups["C"])
    assert set("HΗН") == set(groups["H"])
    assert set("ΓГ") == set(groups["Γ"])
    assert "т" in groups["m"]  # in italics
    assert {"0", "O", "o", "1", "l", "I", "5", "S"} <= set(groups)
    assert sorted(itertools.chain(*groups.values())) == sorted(EVERY)


def test_within_the_latin_letters_and_digits_nothing_looks_alike() -> None:
    assert look_alikes(LETTERS + ALPHABETS["digits_printed"]) == [
        (c,) for c in LETTERS + ALPHABETS["digits_printed"]
    ]


def test_no_glyph_stands_for_two_classes() -> None:
    groups = look_alikes(EVERY)
    for font in FONTS:
        members = [c for group in groups for c in group[:1] if has(font, c)]
        same = characters._same_glyphs(font, members)
        assert same.sum() == len(members), font


def test_disjoint_leaves_nothing_that_looks_like_the_target() -> None:
    kept = disjoint(ALPHABETS["cyrillic_upper"], ALPHABETS["latin_upper"])
    assert set(kept) == set(ALPHABETS["cyrillic_upper"]) - set("АВЕКМНОРСТХ")
    assert disjoint(LETTERS, ALPHABETS["digits_printed"]) == LETTERS  # O and 0 differ
    assert disjoint("AABB", "") == ("A", "B")


# --- shifts ------------------------------------------------------------------------------------

ONE_BY_ONE: dict[str, Any] = {
    "stroke": 1.0, "scale": (0.7, 1.2), "aspect": (0.7, 1.2), "shear": 0.3, "rotation": 20,
    "translate": 2, "elastic": 1.5, "resolution": 6, "blur": (0.5, 1.5), "contrast": 0.4,
    "invert": 0.5, "noise": 0.1,
}  # fmt: skip


def test_clean_is_exactly_clean() -> None:
    images = letters()
    assert CLEAN.apply(images, seeded()) is images
    assert Shift(stroke=0, scale=1, aspect=1, resolution=None, invert=False) == CLEAN


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_each_parameter_changes_images_and_keeps_their_shape_and_range(name: str) -> None:
    images = letters("FGRS" * 8)
    made = shifted(images, **{name: ONE_BY_ONE[name]})
    assert made.shape == images.shape
    assert made.dtype == images.dtype
    assert 0 <= made.min() <= made.max() <= 1
    assert not torch.equal(made, images)
    assert torch.equal(made, shifted(images, **{name: ONE_BY_ONE[name]}))
    if name not in ("resolution", "contrast"):  # which are the same for every image
        assert not torch.equal(made[:4], made[4:8])


def test_the_names_above_are_all_there_are() -> None:
    assert list(ONE_BY_ONE) == [field.name for field in dataclasses.fields(Shift)]


def test_rotation_is_torchvision_s() -> None:
    image = letters("F", 33)
    expected = v2.functional.rotate(image, 25, v2.InterpolationMode.BILINEAR)
    assert torch.allclose(shifted(image, rotation=(25, 25)), expected, atol=1e-4)


def test_rotating_and_rotating_back_returns_the_image() -> None:
    image = shifted(letters("G", 64), blur=0.5, scale=0.6)
    there = shifted(image, rotation=(30, 30))
    assert (shifted(there, rotation=(-30, -30)) - image).abs().mean() < 0.01
    assert (there - image).abs().mean() > 0.05


def test_rotation_keeps_proportions_where_the_image_is_no_square() -> None:
    image = torch.zeros(1, 1, 32, 64)
    image[..., 14:18, 20:44] = 1  # 24 wide, 4 high
    turned = shifted(image, rotation=(90, 90))[0, 0] > 0.5
    rows, columns = np.flatnonzero(turned.any(1)), np.flatnonzero(turned.any(0))
    assert (len(rows), len(columns)) == (24, 4)


def centre(image: torch.Tensor) -> tuple[float, float]:
    """Right and down, in pixels from the middle."""
    ink = image[0, 0]
    right = torch.arange(ink.shape[1]) - (ink.shape[1] - 1) / 2
    down = torch.arange(ink.shape[0]) - (ink.shape[0] - 1) / 2
    return float((ink.sum(0) * right).sum() / ink.sum()), float(
        (ink.sum(1) * down).sum() / ink.sum()
    )


def test_lengths_are_pixels_of_a_glyph_and_grow_with_the_image() -> None:
    moved = shifted(bar(32), translate=(1, 1))
    assert centre(moved) == pytest.approx((2, 2), abs=0.01)
    width = lambda image: float(image[0, 0, image.shape[-2] // 2].sum())  # noqa: E731
    assert width(bar(32)) == 4
    assert width(shifted(bar(32), stroke=(1, 1))) == pytest.approx(6)
    assert width(shifted(bar(32), stroke=(-1, -1))) == pytest.approx(2)
    assert width(shifted(bar(32), stroke=(0.25, 0.25))) == pytest.approx(4.5)
    assert width(shifted(bar(32), aspect=0.5)) == pytest.approx(2, abs=0.1)


def test_shear_leans_to_the_right() -> None:
    leaning = shifted(bar(32), shear=(0.25, 0.25))
    top, bottom = centre(leaning[:, :, 8:9]), centre(leaning[:, :, 23:24])
    assert top[0] - bottom[0] == pytest.approx(0.25 * 15, abs=0.1)


def test_scale_shrinks_both_ways() -> None:
    half = shifted(torch.ones(1, 1, 32, 32), scale=0.5)
    assert half.sum() == pytest.approx(256, rel=0.05)


def test_blur_is_a_gaussian() -> None:
    image = letters("R", 32)
    expected = v2.functional.gaussian_blur(image[:, :, 4:-4, 4:-4], [13, 13], [2.0, 2.0])
    made = shifted(image, blur=1.0)  # 2 pixels of these 32
    assert torch.allclose(made[:, :, 10:-10, 10:-10], expected[:, :, 6:-6, 6:-6], atol=2e-3)
    assert shifted(torch.ones(1, 1, 8, 8), blur=3).min() == pytest.approx(1)


def test_resolution_averages_blocks() -> None:
    image = letters("S", 32)
    coarse = shifted(image, resolution=8)
    small = torch.nn.functional.avg_pool2d(image, 4)
    expected = torch.nn.functional.interpolate(small, (32, 32), mode="bilinear")
    assert torch.allclose(coarse, expected, atol=1e-6)
    assert torch.equal(shifted(image, resolution=32), image)


def test_contrast_invert_and_noise() -> None:
    image = letters("S")
    assert torch.allclose(shifted(image, contrast=0.5), 0.25 + 0.5 * image)
    assert torch.equal(shifted(image, invert=True), 1 - image)
    grey = torch.full((200, 1, 16, 16), 0.5)
    noisy = shifted(grey, noise=0.1)
    assert noisy.std() == pytest.approx(0.1, rel=0.02)
    many = shifted(torch.zeros(2000, 1, 2, 2), invert=0.25)
    assert many.mean() == pytest.approx(0.25, abs=0.03)


def test_values_are_spread_over_their_range() -> None:
    images = torch.zeros(4000, 1, 2, 2)
    contrast = 1 - 2 * shifted(images, contrast=(0.2, 0.8))[:, 0, 0, 0]
    assert contrast.min() == pytest.approx(0.2, abs=0.01)
    assert contrast.max() == pytest.approx(0.8, abs=0.01)
    assert contrast.mean() == pytest.approx(0.5, abs=0.02)


def test_a_parameter_does_not_disturb_the_others() -> None:
    """With one seed, rotating with and without a later step turns each image by one angle."""
    images = letters("FGRS" * 8)
    turned = shifted(images, rotation=20)
    assert torch.allclose(shifted(images, rotation=20, contrast=0.5), 0.25 + 0.5 * turned)
    both = shifted(images, rotation=20, invert=0.5)
    flipped = (both - (1 - turned)).abs().amax((1, 2, 3)) == 0
    assert torch.equal(both[~flipped], turned[~flipped])
    assert 0 < flipped.sum() < len(images)


def test_half_precision_and_colour_go_through() -> None:
    images = letters("FGRS").expand(4, 3, 16, 16)
    made = MILD.apply(images, seeded())
    assert made.shape == (4, 3, 16, 16)
    assert MILD.apply(images[:0], seeded()).shape == (0, 3, 16, 16)
    half = MILD.apply(images.half(), seeded())
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), made, atol=0.01)


def test_mistakes_in_a_shift_are_explained() -> None:
    with pytest.raises(ValueError, match=r"blur should be .* within 0 to 8, found -1"):
        Shift(blur=-1)
    with pytest.raises(ValueError, match=r"scale should be .* found \(1.2, 0.8\)"):
        Shift(scale=(1.2, 0.8))
    with pytest.raises(ValueError, match=r"rotation should be .* found 'a lot'"):
        Shift(rotation="a lot")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"noise should be .* found nan"):
        Shift(noise=float("nan"))
    with pytest.raises(ValueError, match=r"invert should be a probability"):
        Shift(invert=2)
    with pytest.raises(TypeError, match=r"floats in 0..1 .* found torch.uint8 of shape \(4, 1"):
        MILD.apply(letters().to(torch.uint8), seeded())
    with pytest.raises(TypeError, match="found ndarray"):
        MILD.apply(letters().numpy(), seeded())  # type: ignore[arg-type]


def test_a_shift_prints_what_is_on_and_survives_json() -> None:
    shift = Shift(rotation=10, invert=True)
    assert repr(shift) == "Shift(rotation=10, invert=True)"
    assert repr(CLEAN) == "Shift()"
    listed: dict[str, Any] = json.loads(json.dumps(vars(MILD)))
    assert Shift(**listed) == MILD
    assert hash(Shift(**listed)) == hash(MILD)


# --- data sets ---------------------------------------------------------------------------------


def test_glyphs_have_their_shape_classes_and_counts() -> None:
    data = glyphs(per_class=20, shift=MILD)
    assert data.classes == LETTERS
    assert data.x.shape == (52 * 20, 1, GLYPH_SIZE, GLYPH_SIZE)
    assert data.x.dtype == torch.float32
    assert 0 <= data.x.min() <= data.x.max() <= 1
    for part, k in {"train": 16, "validation": 2, "test": 2}.items():
        counts = torch.bincount(data.labels[torch.from_numpy(data.split == part)])
        assert counts.tolist() == [k] * 52
    c, font, place = data.ids[0].split("/")
    assert (c, place) == ("A", "0")
    assert font in FONTS
    # The first rows of each part hold every class.
    assert sorted(data.test.open(reason="order").y[:52].tolist()) == list(range(52))
    assert data.few(3).train.x.shape[0] == 156


def test_a_clean_glyph_is_its_mask_averaged() -> None:
    data = glyphs("greek_lower", per_class=4, validation=0, test=0)
    for i in (0, 10, 50):
        c, font, _ = data.ids[i].split("/")
        expected = torch.nn.functional.avg_pool2d(mask(font, c)[None, None].float(), 2)[0] / 255
        assert torch.allclose(data.x[i], expected, atol=1e-6)


def test_fonts_take_turns() -> None:
    data = glyphs("latin_upper", per_class=2 * len(FONTS), validation=0, test=0)
    fonts = [i.split("/")[1] for i in data.ids if i.startswith("Q/")]
    assert sorted(fonts) == sorted(2 * FONTS)


def test_glyphs_are_the_seed_s() -> None:
    options: dict[str, Any] = {"per_class": 10, "shift": MILD}
    one, same, other = (glyphs("hebrew", seed=s, **options) for s in (1, 1, 2))
    assert torch.equal(one.x, same.x)
    assert one.ids == same.ids
    assert not torch.equal(one.x, other.x)
    assert other.split_name == "random, seed 2"


def test_sets_that_differ_in_the_shift_are_paired() -> None:
    plain = glyphs("latin_upper", per_class=10, shift=Shift(rotation=30))
    faint = glyphs("latin_upper", per_class=10, shift=Shift(rotation=30, contrast=0.5))
    assert plain.ids == faint.ids
    assert torch.allclose(faint.x, 0.25 + 0.5 * plain.x)


def test_every_image_has_a_shift_of_its_own() -> None:
    # More than are drawn at once: no two batches share their random numbers.
    data = glyphs("digits_printed", per_class=250, fonts=["cmr10"], shift=Shift(rotation=20))
    assert len(data.x) > 2048
    flat = data.x[data.labels == 0].flatten(1)
    assert len(flat.unique(dim=0)) == 250


# The mean ink in the four quarters of each class; the numbers come from CPUs that round otherwise.
_QUARTERS = [
    [0.2672, 0.3584, 0.3261, 0.3881],
    [0.4139, 0.4027, 0.4084, 0.4083],
    [0.3266, 0.3383, 0.3671, 0.3421],
    [0.3342, 0.3711, 0.3583, 0.3484],
    [0.3817, 0.3767, 0.3265, 0.3017],
]


def test_a_small_set_is_the_same_on_every_machine() -> None:
    every_step = Shift(**{**ONE_BY_ONE, "contrast": 0.8, "invert": 0.1})
    data = glyphs(tuple("AgЖ8∀"), per_class=40, shift=every_step, seed=5, validation=0, test=0)
    ink = torch.stack([data.x[data.labels == i].mean((0, 1)) for i in range(5)])
    quarters = ink.view(5, 2, 8, 2, 8).mean((2, 4)).flatten(1)
    np.testing.assert_allclose(
        quarters, _QUARTERS, atol=2e-3, err_msg=f"glyphs have changed with {VERSION}"
    )


def test_fonts_can_be_kept_for_the_test() -> None:
    kept = ("DejaVu Serif", "cmr10")
    data = glyphs("latin_lower", per_class=30, test_fonts=kept)
    fonts = {part: set() for part in ("train", "validation", "test")}  # type: ignore[var-annotated]
    for name, part in zip(data.ids, data.split, strict=True):
        fonts[part].add(name.split("/")[1])
    assert fonts["test"] == set(kept)
    assert fonts["train"] | fonts["validation"] == set(FONTS) - set(kept)
    assert "fonts kept" in data.split_name


def test_look_alikes_are_one_class_of_glyphs() -> None:
    data = glyphs(("cyrillic_upper", "latin_upper"), per_class=5)
    assert "А" in data.classes  # Cyrillic, as it comes first
    assert "A" not in data.classes
    assert len(data.classes) == 32 + 26 - 11
    roman = glyphs(("cyrillic_upper", "latin_upper"), fonts=["cmr10", "STIXGeneral"], per_class=9)
    assert {i.split("/")[1] for i in roman.ids if i.startswith("А/")} == {"cmr10", "STIXGeneral"}


def test_small_and_large_glyphs() -> None:
    small, large = (glyphs("digits_printed", per_class=5, size=size) for size in (8, 32))
    assert small.x.shape[2:] == (8, 8)
    assert large.x.shape[2:] == (32, 32)
    assert torch.nn.functional.avg_pool2d(large.x, 4).sub(small.x).abs().mean() < 0.01


def test_mistakes_in_glyphs_are_explained() -> None:
    with pytest.raises(ValueError, match="no alphabet 'latin'; there are: latin_upper, "):
        glyphs("latin")
    with pytest.raises(ValueError, match="needs an alphabet"):
        glyphs(())
    with pytest.raises(ValueError, match="'Arial' is not among the fonts"):
        glyphs(fonts=["Arial"])
    with pytest.raises(ValueError, match="no font of the train split has 'א'; they are: cmr10"):
        glyphs("hebrew", fonts=["cmr10"])
    with pytest.raises(ValueError, match="no font of the train split has 'A'; they are: none"):
        glyphs(fonts=["cmr10"], test_fonts=["cmr10"])
    with pytest.raises(ValueError, match="per_class=2 should leave each class an image"):
        glyphs(per_class=2)
    with pytest.raises(ValueError, match="shares lie in"):
        glyphs(test=-0.1)
    with pytest.raises(ValueError, match="size is a number of pixels"):
        glyphs(size=0)


def test_digits_are_scikit_learn_s() -> None:
    data = digits()
    assert data.x.shape == (1797, 1, GLYPH_SIZE, GLYPH_SIZE)
    assert data.x.dtype == torch.float32
    assert (data.x.min(), data.x.max()) == (0, 1)
    bunch = load_digits()
    assert torch.equal(digits(size=8).x[:, 0], torch.from_numpy(bunch.images).float() / 16)
    assert data.labels.tolist() == bunch.target.tolist()
    assert data.ids[:2] == ("digit 0000", "digit 0001")
    assert [len(data.train), len(data.validation), len(data.test)] == [1000, 300, 497]
    assert torch.bincount(data.train.y).tolist() == [100] * 10
    # Interpolation keeps the ink where it is.
    block = torch.nn.functional.avg_pool2d(data.x, 2)
    assert np.corrcoef(block.flatten(), digits(size=8).x.flatten())[0, 1] > 0.95


def test_digits_are_split_by_the_seed_and_few_of_them_are_drawn() -> None:
    assert digits(seed=1).train.ids == digits(seed=1).train.ids
    assert digits(seed=1).train.ids != digits(seed=2).train.ids
    few = digits().few(5, draw=3, validation=5)
    assert [len(few.train), len(few.validation), len(few.test)] == [50, 50, 497]
    assert few.train.ids != digits().few(5, draw=4).train.ids


def test_digits_and_glyphs_have_one_scale_and_polarity() -> None:
    written, printed = digits(), glyphs("digits_printed", per_class=100, shift=MILD)
    assert written.x.shape[1:] == printed.x.shape[1:]
    assert float(written.x.mean() - printed.x.mean()) == pytest.approx(0, abs=0.08)
    for images in (written.x, glyphs("digits_printed").x):
        rows = images.amax((0, 1, 3))
        assert rows.min() > 0.9  # top and bottom rows are reached

    # The average written digit looks most like the printed one of its class.
    means = [
        torch.stack([d.x[d.labels == c].mean(0).flatten() for c in range(10)])
        for d in (written, printed)
    ]
    near = torch.corrcoef(torch.cat(means))[:10, 10:].argmax(1)
    assert (near == torch.arange(10)).sum() >= 6  # by chance: 1


# --- data sets made from others ----------------------------------------------------------------


def test_some_classes_alone() -> None:
    data = digits()
    some = with_classes(data, ("7", "2"))
    assert some.classes == ("7", "2")
    assert len(some.train) == 200
    place = data.ids.index(some.ids[0])
    assert data.classes[data.labels[place]] == some.classes[some.labels[0]]
    assert torch.equal(some.x[0], data.x[place])
    some.test.open(reason="shared")
    assert data.test.readings == ("shared",)
    with pytest.raises(ValueError, match="digits has no class 'x'; it has 0, 1, 2 and 7 more"):
        with_classes(data, ["x"])
    with pytest.raises(ValueError, match="named once"):
        with_classes(data, ["1", "1"])


def test_shuffled_labels_keep_counts_and_tell_nothing() -> None:
    data = digits()
    noise = shuffled_labels(data, seed=3)
    assert torch.equal(noise.x, data.x)
    assert torch.equal(noise.labels, shuffled_labels(data, seed=3).labels)
    assert not torch.equal(noise.labels, shuffled_labels(data, seed=4).labels)
    for part in ("train", "validation", "test"):
        rows = torch.from_numpy(data.split == part)
        assert torch.equal(noise.labels[rows].bincount(), data.labels[rows].bincount())
        assert (noise.labels[rows] == data.labels[rows]).float().mean() < 0.2
    assert noise.name == "digits, labels shuffled"


# --- pictures ----------------------------------------------------------------------------------


def test_glyphs_are_shown_in_named_rows() -> None:
    data = digits()
    shown = plots.glyphs({"first": data.x[:10], "blurred": data.x[:4]}, titles=list("0123456789"))
    assert shown.alt == (
        "Images of 16 × 16 pixels in rows: first (10); blurred (4). The columns: "
        "0; 1; 2; 3; 4; 5; 6; 7; 8; 9."
    )
    axes = shown.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "blurred"]
    sheet = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(sheet[:16, 17 : 17 + 16], data.x[1, 0])
    np.testing.assert_allclose(sheet[17:, 51 : 51 + 16], data.x[3, 0])
    assert axes.images[0].cmap.name == "gray_r"  # ink is dark
    assert shown.image().startswith(b"\x89PNG")
    assert plots.glyphs({"one": letters()[:, 0]}).alt.endswith("rows: one (4).")


def test_mistakes_in_rows_of_glyphs_are_explained() -> None:
    with pytest.raises(ValueError, match=r"'a' should hold images of shape .* found \(16, 16\)"):
        plots.glyphs({"a": letters()[0, 0]})
    with pytest.raises(ValueError, match=r"'a' should hold values in 0..1, found 0 to 255"):
        plots.glyphs({"a": 255 * letters()})
    with pytest.raises(ValueError, match=r"images of one size .* sizes \[\(8, 8\), \(16, 16\)\]"):
        plots.glyphs({"a": letters(), "b": letters(size=8)})
    with pytest.raises(ValueError, match="4 columns and 5 titles"):
        plots.glyphs({"a": letters()}, titles=list("FGRST"))
    with pytest.raises(ValueError, match="found 0 rows"):
        plots.glyphs({})
