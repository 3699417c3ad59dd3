"""Behaviour of ``tlhelpers.augment``: torchvision's distribution and torchvision's pixels."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tlhelpers import augment, runtime, train
from tlhelpers.augment import Choices, PhotoAugment

COLOURS = {"brightness": 0.4, "contrast": (0.2, 1.7), "saturation": 0.9, "hue": 0.3}
ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
NEUTRAL = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
DRAWS = 5000
ALARM = 1e-3  # a p-value below it says that two samples differ


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(n: int = 6, height: int = 60, width: int = 80) -> Tensor:
    """Coloured noise with whole areas of black, white and grey, channels last."""
    x = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=seeded(1))
    x[:, :10, :10], x[:, :10, 10:20], x[:, :10, 20:30] = 0, 255, 130
    return x.permute(0, 3, 1, 2)


def chosen(boxes: list[list[int]], flip: bool = False, factors: Tensor = NEUTRAL) -> Choices:
    n = len(boxes)
    order = torch.arange(4).repeat(n, 1)
    return Choices(torch.tensor(boxes), torch.full((n,), flip), factors.repeat(n, 1), order)


BOXES = [
    [0, 0, 60, 80],  # the whole image
    [0, 0, 13, 9],  # enlarged, in a corner
    [47, 71, 13, 9],  # in the opposite one
    [5, 0, 32, 80],  # one side as it is, the other reduced
    [20, 30, 1, 1],
    [3, 7, 50, 20],
]


# --- the distribution -----------------------------------------------------------------------


def torchvision_boxes(scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    transform = v2.RandomResizedCrop(32, scale=scale, ratio=ratio)
    image = torch.zeros(3, 180, 300)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [transform.make_params([image]) for _ in range(DRAWS)]
    return torch.tensor([[d[k] for k in ("top", "left", "height", "width")] for d in drawn])


def p_values(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Two-sample Kolmogorov-Smirnov tests of boxes in an image of 180 x 300."""

    def quantities(boxes: Tensor) -> dict[str, Tensor]:
        top, left, height, width = boxes.double().unbind(1)
        return {
            "scale": height * width / (180 * 300),
            "ratio": width / height,
            "top": top / (181 - height),
            "left": left / (301 - width),
        }

    a, b = quantities(found), quantities(expected)
    return {k: stats.ks_2samp(a[k].numpy(), b[k].numpy(), method="asymp").pvalue for k in a}


SETTINGS = [
    ((0.08, 1.0), (3 / 4, 4 / 3)),
    ((0.5, 0.9), (0.2, 0.5)),  # most attempts do not fit, many a box is the fallback
    ((0.3, 0.3), (2.0, 6.0)),
    ((1.0, 1.0), (1.0, 1.7)),  # mostly the whole image
]


@pytest.mark.parametrize(("scale", "ratio"), SETTINGS)
def test_boxes_are_distributed_as_torchvisions(
    scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    drawn = PhotoAugment(scale=scale, ratio=ratio).draw(DRAWS, 180, 300, generator=seeded())
    values = p_values(drawn.boxes, torchvision_boxes(scale, ratio))
    assert min(values.values()) > ALARM, values


class UniformRatio(PhotoAugment):
    def _sides(self, u: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        area = height * width * (self.scale[0] + u[:, 0] * (self.scale[1] - self.scale[0]))
        ratio = self.ratio[0] + u[:, 1] * (self.ratio[1] - self.ratio[0])
        return (area / ratio).sqrt().round(), (area * ratio).sqrt().round()


class ScaleOfTheSide(PhotoAugment):
    def _sides(self, u: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        return super()._sides(torch.stack([u[:, 0].square(), u[:, 1]], dim=1), height, width)


class NoSecondAttempt(PhotoAugment):
    def _sides(self, u: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        h, w = super()._sides(u, height, width)
        return h.clamp(max=height), w.clamp(max=width)


@pytest.mark.parametrize(
    ("wrong", "setting"), [(UniformRatio, 0), (ScaleOfTheSide, 0), (NoSecondAttempt, 1)]
)
def test_a_wrong_distribution_is_noticed(wrong: type[PhotoAugment], setting: int) -> None:
    scale, ratio = SETTINGS[setting]
    drawn = wrong(scale=scale, ratio=ratio).draw(DRAWS, 180, 300, generator=seeded())
    assert min(p_values(drawn.boxes, torchvision_boxes(scale, ratio)).values()) < ALARM


def test_where_no_box_fits_the_fallback_is_torchvisions() -> None:
    for ratio in ((0.1, 0.1), (9.0, 9.0)):
        drawn = PhotoAugment(scale=(1, 1), ratio=ratio).draw(3, 180, 300, generator=seeded())
        transform = v2.RandomResizedCrop(32, scale=(1, 1), ratio=ratio)
        expected = list(transform.make_params([torch.zeros(3, 180, 300)]).values())
        assert drawn.boxes.tolist() == [expected] * 3


def test_flips_factors_and_orders_are_distributed_as_torchvisions() -> None:
    drawn = PhotoAugment(flip=0.3, **COLOURS).draw(DRAWS, 50, 50, generator=seeded())
    assert stats.binomtest(int(drawn.flip.sum()), DRAWS, 0.3).pvalue > ALARM
    transform = v2.ColorJitter(**COLOURS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [transform.make_params([]) for _ in range(DRAWS)]
    for k, name in enumerate(COLOURS):
        expected = [p[f"{name}_factor"] for p in params]
        assert stats.ks_2samp(drawn.factors[:, k].numpy(), expected).pvalue > ALARM, name
    # All 24 orders, equally often, in both.
    digits = torch.tensor([64, 16, 4, 1])
    for orders in (drawn.order, torch.stack([p["fn_idx"] for p in params])):
        counts = torch.bincount((orders * digits).sum(1), minlength=256)
        assert (counts > 0).sum() == 24
        assert stats.chisquare(counts[counts > 0].numpy()).pvalue > ALARM


def test_what_is_drawn_for_one_image_is_independent_of_the_next() -> None:
    drawn = PhotoAugment(**COLOURS).draw(DRAWS, 50, 50, generator=seeded())
    for values in (drawn.boxes[:, 2].double(), drawn.factors[:, 0], drawn.flip.double()):
        assert stats.pearsonr(values[:-1].numpy(), values[1:].numpy()).pvalue > ALARM


# --- the pixels -----------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [24, 32, 90])
def test_boxes_are_resized_as_torchvision_does(
    size: int, flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, choices = photos(), chosen(BOXES, flip)

    def reference(x: Tensor) -> Tensor:
        pairs = zip(x, BOXES, strict=True)
        done = [F.resized_crop(i, *box, size=[size, size], antialias=True) for i, box in pairs]
        return torch.stack([F.horizontal_flip(i) if flip else i for i in done])

    exact = reference(images.float() / 255)
    floats = PhotoAugment(size=size).apply(images.float() / 255, choices)
    torch.testing.assert_close(floats, exact, atol=1e-5, rtol=0)
    matrices = augment.crop_by_matrices(images, choices.boxes, choices.flip, size)
    torch.testing.assert_close(matrices / 255, exact, atol=1e-5, rtol=0)
    # torchvision rounds uint8 to whole levels, and so does torch's kernel for it.
    levels = PhotoAugment(size=size).apply(images, choices) * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert (levels - reference(images).float()).abs().max() < 1.01
    assert (levels - 255 * exact).abs().mean() < 0.4
    # What an accelerator does.
    monkeypatch.setattr(augment, "_crop_each", augment._crop_all)
    smooth = PhotoAugment(size=size).apply(images, choices)
    torch.testing.assert_close(smooth, exact, atol=1e-5, rtol=0)


def v2_colours(images: Tensor, choices: Choices) -> Tensor:
    done = []
    for image, factors, order in zip(images, choices.factors, choices.order, strict=True):
        for k in order.tolist():
            image = ADJUST[k](image, float(factors[k]))
        done.append(image)
    return torch.stack(done)


@pytest.mark.parametrize(
    ("k", "factor"),
    [(k, factor) for k in range(3) for factor in (0.0, 0.7, 1.0, 2.5)]
    + [(3, hue / 12) for hue in range(-6, 7)],
)
def test_each_colour_operation_is_torchvisions(k: int, factor: float) -> None:
    images = photos().float() / 255
    factors = NEUTRAL.clone()
    factors[k] = factor
    choices = chosen([[0, 0, 60, 80]] * 6, factors=factors)
    got = PhotoAugment(size=64).apply(images, choices)
    plain = PhotoAugment(size=64).apply(images, chosen([[0, 0, 60, 80]] * 6))
    torch.testing.assert_close(got, v2_colours(plain, choices), atol=1e-5, rtol=0)
    assert torch.equal(got, plain) == (factors[k] == NEUTRAL[k])


@pytest.mark.parametrize("colours", [COLOURS, {"contrast": 0.5}, {"saturation": 0.5, "hue": 0.5}])
def test_colours_are_torchvisions_in_each_images_own_order(colours: dict[str, Any]) -> None:
    images = photos(n=30)
    choices = PhotoAugment(**colours).draw(30, 60, 80, generator=seeded())
    assert len(choices.order.unique(dim=0)) > 10
    got = PhotoAugment(size=32).apply(images, choices)
    off = Choices(choices.boxes, choices.flip, NEUTRAL.repeat(30, 1), choices.order)
    plain = PhotoAugment(size=32).apply(images, off)
    torch.testing.assert_close(got, v2_colours(plain, choices), atol=1e-5, rtol=0)
    assert 0 <= got.min() <= got.max() <= 1


# --- what training relies on ----------------------------------------------------------------


def test_a_seed_decides_and_threads_do_not() -> None:
    images, change = photos(n=40), PhotoAugment(size=32, **COLOURS)
    before = images.clone()
    global_state = torch.get_rng_state()
    with runtime.torch_threads(1):
        first = change(images, seeded(3))
    with runtime.torch_threads(3):
        assert torch.equal(change(images, seeded(3)), first)
    assert not torch.equal(change(images, seeded(4)), first)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert first.shape == (40, 3, 32, 32)
    assert first.dtype == torch.float32
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_colours_leave_boxes_and_flips_as_they_are() -> None:
    plain = PhotoAugment().draw(9, 60, 80, generator=seeded())
    colourful = PhotoAugment(**COLOURS).draw(9, 60, 80, generator=seeded())
    assert torch.equal(plain.boxes, colourful.boxes)
    assert torch.equal(plain.flip, colourful.flip)
    assert torch.equal(plain.factors, NEUTRAL.repeat(9, 1))


@pytest.mark.parametrize("n", [0, 1, 8, 9])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
def test_any_number_of_images_and_any_layout(n: int, dtype: torch.dtype) -> None:
    images = photos(n)
    images = images if dtype == torch.uint8 else (images.float() / 255).to(dtype)
    change = PhotoAugment(size=16, **COLOURS)
    got = change(images, seeded())
    assert got.shape == (n, 3, 16, 16)
    assert got.dtype == torch.float32
    torch.testing.assert_close(change(images.contiguous(), seeded()), got, atol=5e-3, rtol=0)


def test_a_recipe_takes_and_names_it() -> None:
    change = PhotoAugment(size=112, scale=[0.25, 1], brightness=1, hue=(0, 0.1))  # type: ignore[arg-type]
    assert change == PhotoAugment(
        size=112, scale=(0.25, 1.0), brightness=(0.0, 2.0), hue=(0.0, 0.1)
    )
    described = train.Recipe(augment=change).as_dict()["augment"]
    assert described == repr(change)
    assert eval(described) == change
    assert re.findall(r"(\w+)=", described) == [
        "size", "scale", "ratio", "flip", "brightness", "contrast", "saturation", "hue",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": 0}, "size must be a number of pixels"),
        ({"size": (224, 224)}, "size must be a number of pixels"),
        ({"scale": (0, 1)}, "scale must be a pair"),
        ({"scale": (0.5, 1.1)}, "scale must be a pair"),
        ({"scale": 0.5}, "scale must be a pair"),
        ({"ratio": (4 / 3, 3 / 4)}, "ratio must be a pair"),
        ({"ratio": (1, float("inf"))}, "ratio must be a pair"),
        ({"flip": 1.5}, "flip must be a probability"),
        ({"flip": True}, "flip must be a probability"),
        ({"brightness": -0.1}, "brightness must be a number 0 or larger"),
        ({"contrast": (1.2, 0.8)}, "contrast must be"),
        ({"saturation": "0.4"}, "saturation must be"),
        ({"hue": 0.6}, r"hue must be a number in 0\.\.0\.5"),
        ({"hue": (-0.6, 0.1)}, r"in -0\.5\.\.0\.5"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhotoAugment(**setting)


def test_other_things_than_batches_of_rgb_are_refused() -> None:
    for images in (torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8).long()):
        with pytest.raises(
            TypeError, match=r"batch of RGB images .* found (float32|int64) of shape"
        ):
            PhotoAugment()(images, seeded())
    with pytest.raises(TypeError, match="found list"):
        PhotoAugment()([], seeded())  # type: ignore[arg-type]
