"""Behaviour of ``tlhelpers.studies``: each measurement on a case small enough to check by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_features import FLOAT, SlowPictures, bank, pictures, small_backbone

from tlhelpers import features, studies
from tlhelpers.splits import Dataset


def of_imagenet() -> Dataset:
    return dataclasses.replace(pictures(), name="dogs", imagenet=(5, 7, 9))


def test_the_untrained_head_is_judged_twice_on_each_part() -> None:
    data, backbone = of_imagenet(), small_backbone()
    record = studies.untrained_head(data, backbone, run=FLOAT)
    logits = features.extract(data, backbone, at="logits", run=FLOAT).features
    columns = torch.tensor(data.imagenet)
    test = torch.from_numpy(data.split == "test")
    restricted = logits[test][:, columns].argmax(1) == data.labels[test]
    assert record.result["test_of_3"] == pytest.approx(restricted.double().mean().item())
    whole = logits[test].argmax(1) == columns[data.labels[test]]
    assert record.result["test_of_1000"] == pytest.approx(whole.double().mean().item())
    assert record.result["test_of_1000"] <= record.result["test_of_3"]
    assert set(record.interval) == set(record.result)
    assert data.test.readings == ("untrained head of mobilenet_v2",)


def test_the_untrained_head_needs_to_know_the_classes() -> None:
    with pytest.raises(ValueError, match="does not say which of ImageNet's classes"):
        studies.untrained_head(pictures(), small_backbone(), run=FLOAT)


def test_compression_is_one_reading_and_ends_with_the_full_bank() -> None:
    full = dataclasses.replace(
        bank(),
        provenance=features.extract(pictures(), small_backbone(), run=FLOAT).provenance,
    )
    record = studies.compression(full, dims=(1, 4, 50))
    frame = record.to_frame()
    assert frame.dims.tolist() == [1, 4, 20], "dimensions that the bank lacks are left out"
    assert frame.variance.is_monotonic_increasing
    assert frame.variance.iloc[-1] == 1
    assert (frame.low <= frame["mean"]).all()
    assert len(full.test.readings) == 1


@pytest.mark.filterwarnings("ignore:the probe on pictures")  # 24 images need no exact fit
def test_views_add_training_images_and_leave_the_test_images_alone() -> None:
    data, backbone = pictures(), small_backbone()
    lazy = dataclasses.replace(data, x=SlowPictures(data.x))
    record = studies.views(lazy, backbone, dims=8, shots=(2, 4), run=FLOAT)
    assert record.to_frame()[["k", "views"]].to_numpy().tolist() == [
        [2, 1], [2, 2], [2, 4], [4, 1], [4, 2], [4, 4],
    ]  # fmt: skip
    assert set(record.result) >= {"k2_views1", "k4_views4", "k2_gain", "k4_gain"}
    gain = record.result["k4_views4"] - record.result["k4_views1"]
    assert record.result["k4_gain"] == pytest.approx(gain, abs=1e-6)
    assert data.test.readings == ("probes on several views",), "one reading for the whole grid"


def test_a_view_repeats_and_a_mirror_undoes_itself() -> None:
    image = pictures().x[0]
    mirror = studies.View(mirror=True)
    assert mirror(mirror(image, 0), 0).equal(image)
    crop = studies.View(seed=1)
    assert crop(image, 3).equal(crop(image, 3))
    assert not crop(image, 3).equal(crop(image, 4)), "each image has a stream of its own"
    assert crop(image, 3).shape == image.shape
