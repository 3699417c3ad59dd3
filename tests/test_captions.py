"""Captions say what pictures show, and combinations that are held out stay out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from tlhelpers import captions
from tlhelpers.runtime import Run


@pytest.fixture(scope="module")
def pairs() -> captions.Pairs:
    return captions.draw(400, Run(0).generator(0))


def test_every_glyph_has_an_outline_of_its_own() -> None:
    glyphs = captions.glyphs()
    assert len(glyphs) == 640
    for name in range(40):  # a fact that is not in the picture could not be learnt
        rows = glyphs.facts[:, captions.NAME] == name
        masks, facts = glyphs.masks[rows].flatten(1).float() / 255, glyphs.facts[rows]
        differences = torch.cdist(masks, masks, p=1) / masks.shape[1]
        differ = (facts != facts[:, None]).any(dim=2)
        assert differences[differ].min() > 0.005


def test_a_caption_is_true_of_its_own_picture(pairs: captions.Pairs) -> None:
    assert pairs.true.diagonal().all()
    assert pairs.x.shape == (400, 1, 16, 16)
    for words, claims in zip(pairs.sentences, pairs.claims.tolist(), strict=True):
        said = set(words.replace(",", "").split())
        for fact, value in zip(captions.FACTS, claims, strict=True):
            mentioned = said & set(captions.VALUES[fact])
            assert mentioned == ({captions.VALUES[fact][value]} if value >= 0 else set())


def test_true_of_agrees_with_reading_the_words(pairs: captions.Pairs) -> None:
    every_word = {word for values in captions.VALUES.values() for word in values}
    true = pairs.true
    for i, j in itertools.product(range(0, 400, 57), range(0, 400, 3)):
        shown = {
            captions.VALUES[fact][v]
            for fact, v in zip(captions.FACTS, pairs.facts[i].tolist(), strict=True)
        }
        said = set(pairs.sentences[j].replace(",", "").split()) & every_word
        assert bool(true[i, j]) == (said <= shown)


def test_equal_sentences_are_true_of_the_same_pictures(pairs: captions.Pairs) -> None:
    assert (pairs.true | ~pairs.same).all()  # same implies true, and the pairs differ


@pytest.mark.parametrize("seed", range(4))
def test_held_out_cells_never_occur_in_training(seed: int) -> None:
    out = captions.held_out(seed)
    assert sorted(cell // 4 for cell in out) == [0, 1, 2, 3]
    assert sorted(cell % 4 for cell in out) == [0, 1, 2, 3]
    drawn = captions.draw(500, Run(seed).generator(1), without=out)
    assert not set(captions.cells_of(drawn.facts).tolist()) & set(out)
    data = captions.exam(seed, sizes=(500, 200, 700))
    assert not captions.unseen(data.train.ids + data.validation.ids, out).any()
    hidden = captions.unseen(data.test.ids, out)
    assert 0.15 < hidden.mean() < 0.35
    assert not captions.unseen(data.test.ids, ()).any()


def test_styles_of_an_exam_are_those_of_its_fonts() -> None:
    data = captions.by_style(captions.exam(0, sizes=(500, 50, 50)))
    for name, label in zip(data.ids, data.labels.tolist(), strict=True):
        font = name.split("/")[2]
        bold, italic = "Bold" in font, "Italic" in font or "Oblique" in font
        assert label == bold + 2 * italic


def test_pairs_are_drawn_again_from_the_same_seed() -> None:
    first, second = (captions.draw(20, Run(3).generator(0)) for _ in range(2))
    assert first.sentences == second.sentences
    assert torch.equal(first.x, second.x)


def test_information_is_that_of_a_count(pairs: captions.Pairs) -> None:
    # By hand for the simplest case: nothing is held out, all values are equally frequent.
    name, script, style, family = (math.log(n) for n in (40, 4, 2, 2))
    said = dict(zip(captions.FACTS, captions.MENTIONED, strict=True))
    expected = said["name"] * name + (1 - said["name"]) * said["script"] * script
    expected += (said["weight"] + said["slant"]) * style + said["family"] * family
    assert captions.information() == pytest.approx(expected)
    assert captions.information(captions.held_out(0)) < expected
    assert type(captions.information()) is float  # it prints as one, and goes into records


def test_an_unknown_fact_is_refused() -> None:
    with pytest.raises(ValueError, match="'colour'"):
        captions.sentence("a {name}", colour="red")


def test_stroke_and_lean_of_the_variety_stay_below_the_styles() -> None:
    mean = {
        style: captions.pictures(
            (captions.styles_of(captions.glyphs().facts) == style).nonzero()[:, 0],
            Run(0).generator(2),
        ).mean()
        for style in range(4)
    }
    assert mean[1] > 1.15 * mean[0]  # bold has more ink
    assert mean[3] > 1.15 * mean[2]
    assert np.isclose(mean[2], mean[0], rtol=0.1)  # italic has not
