"""Chapter 11's networks: the same number of images each, and alphabets that never meet."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image, ImageDraw

from tlhelpers import characters, fewshot, models, records, unseen
from tlhelpers.episodes import ClassSplit, Pool, Pools
from tlhelpers.runtime import Run

RUN = Run(seed=1)


def patterns(classes: int, *, first: int, seed: int) -> Pool:
    """Noisy images of random patterns, twelve of each class."""
    generator = torch.Generator().manual_seed(seed)
    clean = (torch.rand(classes, 1, 8, 8, generator=generator) > 0.5).float()
    labels = torch.arange(25 * classes) % classes
    noise = torch.rand(len(labels), 1, 8, 8, generator=generator)
    names = tuple(f"pattern {first + c}" for c in range(classes))
    return Pool((clean[labels] + noise) / 2, labels, names, "patterns")


@pytest.fixture(scope="module")
def small() -> Pools:
    return Pools(patterns(24, first=0, seed=0), None, patterns(22, first=24, seed=1))


def test_no_unseen_character_looks_like_a_learnt_one() -> None:
    pools = unseen.glyphs(per_class=1)
    assert characters.disjoint(pools.train.classes, pools.test.classes) == pools.train.classes
    assert {"ש", "ع", "ა"} <= set(pools.test.classes)
    assert {"Q", "ж", "λ", "7"} <= set(pools.train.classes)


def test_no_two_glyphs_are_copies() -> None:
    x = unseen.glyphs(per_class=3).test.x
    assert len(x.flatten(1).unique(dim=0)) == len(x)


def test_every_way_of_training_sees_as_many_images_a_step() -> None:
    assert {shape.images for shape in unseen.SHAPES.values()} == {unseen.IMAGES}


def test_networks_of_one_seed_start_alike(small: Pools) -> None:
    one = unseen.train_on_labels(small.train, steps=1, lr=1e-12, run=RUN)
    shape = unseen.Shape(ways=4, shots=1, queries=1, batch=1)
    two = unseen.train_on_episodes(small.train, shape, steps=1, lr=1e-12, run=RUN)
    same = {
        key: torch.allclose(value, two.state_dict()[key], atol=1e-6)
        for key, value in one.named_parameters()
        if not key.startswith("head.")
    }
    assert all(same.values())


def test_a_cosine_head_takes_the_place_of_the_linear_one(small: Pools) -> None:
    network = unseen.train_on_labels(small.train, cosine=True, steps=2, run=RUN)
    assert isinstance(network.head, fewshot.CosineHead)
    assert not network.training
    plain = unseen.train_on_labels(small.train, steps=2, run=RUN)
    assert models.fingerprint(network) != models.fingerprint(plain)


def test_the_record_compares_pairs_of_a_seed(small: Pools) -> None:
    record = unseen.compare(RUN, pools=small, name="test/unseen", seeds=(0, 1), steps=2, count=20)
    frame = record.to_frame()
    assert len(frame) == (1 + len(unseen.SHAPES)) * len(unseen.TESTS)
    assert record.seeds == (0, 1)
    by_way = frame.set_index(["trained", "test"])["top1"]
    gaps = [
        a - b
        for a, b in zip(
            by_way["20-way 5-shot", "5-way 1-shot"], by_way["labels", "5-way 1-shot"], strict=True
        )
    ]
    key = "20-way 5-shot minus labels, 5-way 1-shot"
    assert record.result[key] == pytest.approx(sum(gaps) / 2)
    assert (frame["low"] <= frame["mean"]).all()


def test_the_shipped_record_is_of_this_comparison() -> None:
    record = records.load(unseen.NAME)
    assert record.clean
    assert record.seeds == unseen.SEEDS
    assert record.command == unseen.COMMAND
    assert set(record.to_frame()["trained"]) == {"labels", *unseen.SHAPES}


def drawn_omniglot(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A tiny data set in Omniglot's own layout, archives and all; how many characters it has."""
    alphabets = {
        "images_background": {"Latin": 2, "Greek": 3},
        "images_evaluation": {"Tengwar": 2, "Keble": 2},
    }
    sums = {}
    for part, names in alphabets.items():
        for alphabet, count in names.items():
            for c in range(count):
                folder = root / "omniglot-py" / part / alphabet / f"character{c + 1:02d}"
                folder.mkdir(parents=True)
                for i in range(3):
                    page = Image.new("1", (105, 105), 1)
                    ImageDraw.Draw(page).line((10 + 20 * c, 5, 10 + 5 * i, 95), fill=0, width=5)
                    page.save(folder / f"{c:04d}_{i + 1:02d}.png")
        archive = root / "omniglot-py" / f"{part}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("readme", part)
        sums[part] = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(torchvision.datasets.Omniglot, "zips_md5", sums)
    return {part: sum(names.values()) for part, names in alphabets.items()}


def test_omniglot_keeps_its_alphabets_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = drawn_omniglot(tmp_path, monkeypatch)
    pools = unseen.omniglot(tmp_path, size=16)
    assert len(pools.train.classes) == counts["images_background"]
    assert pools.train.classes[0] == "Greek/character01"
    assert {name.partition("/")[0] for name in pools.test.classes} == {"Tengwar", "Keble"}
    ClassSplit(train=pools.train.classes, validation=(), test=pools.test.classes)
    assert pools.test.x.shape == (12, 1, 16, 16)
    assert pools.train.sizes.tolist() == [3] * 5
    # Ink is 1 on paper 0, as everywhere in the book, and there is less ink than paper.
    assert pools.test.x.min() == 0
    assert 0.5 < pools.test.x.max() <= 1
    assert pools.test.x.mean() < 0.3
    episodes = pools.test.episodes(4, ways=3, shots=1, queries=2)
    assert fewshot.measure(fewshot.nearest_centroid, episodes.embedded(torch.nn.Flatten()))


def test_omniglot_that_is_not_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="download=True"):
        unseen.omniglot(tmp_path)
