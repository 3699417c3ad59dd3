"""The contrastive loss, heads made of words, and what looks inside two towers."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from tlhelpers import captions, contrastive, words_study
from tlhelpers.contrastive import Plan
from tlhelpers.runtime import Run

WORDS = ("a", "bold", "italic", "alpha", "beta")


def logits(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_is_the_mean_of_two_cross_entropies() -> None:
    s = logits()
    by_hand = -(s.log_softmax(1).diagonal() + s.log_softmax(0).diagonal()).mean() / 2
    assert torch.isclose(contrastive.info_nce(s), by_hand)
    assert torch.isclose(contrastive.info_nce(s), contrastive.info_nce(s.T))
    diagonal = torch.eye(6, dtype=torch.bool)
    assert torch.isclose(contrastive.info_nce(s, diagonal), by_hand)


def test_an_even_matrix_costs_the_logarithm_of_the_batch() -> None:
    assert contrastive.info_nce(torch.zeros(7, 7)).item() == pytest.approx(math.log(7))


def test_copies_of_a_sentence_change_nothing_as_positives() -> None:
    u, t = logits(8, 1)[:, :3], logits(8, 2)[:, :3]
    t[1] = t[0]  # one sentence for pictures 0, 1 and 5
    t[5] = t[0]
    same = captions.same_words(["x", "x", "b", "c", "d", "x", "e", "f"])
    found = []
    for positives in (None, same):
        images = u.clone().requires_grad_()
        loss = contrastive.info_nce(images @ t.T, positives)
        found.append((loss, torch.autograd.grad(loss, images)[0]))
    assert torch.allclose(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1])


def test_other_true_sentences_do_change_it() -> None:
    s = logits()
    positives = torch.eye(6, dtype=torch.bool)
    positives[0, 1] = True
    assert not torch.isclose(contrastive.info_nce(s), contrastive.info_nce(s, positives))


def test_the_floor_is_reached_and_never_passed() -> None:
    texts = ["x", "x", "y", "z", "z", "z"]
    same = captions.same_words(texts).double()
    floor = contrastive.loss_floor(texts)
    assert floor == pytest.approx((2 * math.log(2) + 3 * math.log(3)) / 6)
    assert contrastive.info_nce(1000 * same).item() == pytest.approx(floor)
    # Whatever the images: copies of a sentence share a column.
    number = torch.tensor([0, 0, 1, 2, 2, 2])
    for seed in range(20):
        assert contrastive.info_nce(5 * logits(6, seed)[:, number]).item() > floor - 1e-9


@pytest.mark.parametrize(
    ("matrix", "positives", "expected"),
    [
        (torch.zeros(2, 3), None, "square"),
        (torch.zeros(0, 0), None, "square"),
        (torch.zeros(2, 2), torch.ones(2, 2), "booleans"),
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool), "needs a positive"),
    ],
)
def test_a_wrong_matrix_is_refused(
    matrix: torch.Tensor, positives: torch.Tensor | None, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        contrastive.info_nce(matrix, positives)


def test_a_word_encoder_is_a_mean_and_knows_no_order() -> None:
    encoder = contrastive.WordEncoder(WORDS, 4)
    vectors = dict(zip(WORDS, encoder.bag.weight, strict=True))
    found = encoder(["a bold, alpha", "alpha bold a", "beta"])
    assert torch.allclose(found[0], (vectors["a"] + vectors["bold"] + vectors["alpha"]) / 3)
    assert torch.allclose(found[0], found[1])
    assert torch.allclose(encoder(["a tiny beta"])[0], encoder(["a beta"])[0])
    with pytest.raises(ValueError, match="'tiny thing'"):
        encoder(["a", "tiny thing"])
    with pytest.raises(ValueError, match="each once"):
        contrastive.WordEncoder(("a", "a"), 4)


def test_towers_are_made_again_from_their_seed_and_touch_no_global_state() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (contrastive.two_towers(WORDS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c)
    assert first.scale == pytest.approx(1 / 0.07)


@pytest.fixture(scope="module")
def small() -> contrastive.TwoTowers:
    """Two towers after a few steps on digits alone."""
    out = tuple(range(12))  # all cells of the letters
    model = contrastive.two_towers(words_study.words(), dim=16)
    draw = functools.partial(captions.draw, without=out)
    history = contrastive.fit(model, draw, Plan(steps=30, batch_size=64), Run(0))
    assert history["loss"].iloc[-5:].mean() < history["loss"].iloc[:5].mean() - 0.5
    assert not model.training
    return model


def test_a_trained_model_reads_digits(small: contrastive.TwoTowers) -> None:
    fresh = captions.draw(300, Run(1).generator(0), without=tuple(range(12)))
    weight = contrastive.class_embeddings(small.embed_texts, words_study.digits())
    head = contrastive.zero_shot(weight, scale=small.scale)
    right = head(contrastive.embed(small, fresh.x)).argmax(1) == fresh.facts[:, captions.NAME] - 30
    assert right.float().mean() > 0.2  # chance is a tenth


def test_the_bound_is_below_what_can_be_known(small: contrastive.TwoTowers) -> None:
    out = tuple(range(12))
    batches = [captions.draw(64, Run(2).generator(i), without=out) for i in range(6)]
    found = contrastive.information_bound(small, batches)
    assert found.value > 0.2
    assert found.low < captions.information(out)
    assert found.value < math.log(64)


def test_training_is_the_same_from_the_same_seed() -> None:
    losses = []
    for _ in range(2):
        model = contrastive.two_towers(words_study.words(), dim=8, seed=4)
        plan = Plan(steps=3, batch_size=16)
        losses.append(contrastive.fit(model, captions.draw, plan, Run(4))["loss"].tolist())
    assert losses[0] == losses[1]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = contrastive.two_towers(words_study.words(), dim=8)
    with torch.no_grad():
        model.log_scale.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 1"):
        contrastive.fit(model, captions.draw, Plan(steps=2, batch_size=8), Run(0))


def test_the_scale_is_clipped() -> None:
    model = contrastive.two_towers(words_study.words(), dim=8)
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    contrastive.fit(model, captions.draw, Plan(steps=1, batch_size=8), Run(0))
    assert model.scale == pytest.approx(contrastive.LARGEST_SCALE)


def test_a_plan_is_checked() -> None:
    for wrong in ({"steps": 0}, {"batch_size": 1}, {"lr": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match="above 0"):
            Plan(**wrong)  # type: ignore[arg-type]


def test_class_embeddings_are_means_of_their_sentences() -> None:
    encoder = contrastive.two_towers(WORDS, dim=4)
    found = contrastive.class_embeddings(
        encoder.embed_texts, [["alpha", "bold alpha"], ["beta", "bold beta"]]
    )
    each = encoder.embed_texts(["alpha", "bold alpha"]).detach()
    assert torch.allclose(found[0], functional.normalize(each.mean(0), dim=0), atol=1e-6)
    assert torch.allclose(found.norm(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="as many sentences"):
        contrastive.class_embeddings(encoder.embed_texts, [["alpha"], ["beta", "bold"]])


def clouds(n: int = 60, d: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    centre = torch.randn(3, d, generator=generator)
    return centre[y] + torch.randn(n, d, generator=generator), y, centre


def test_with_zeros_as_centre_it_is_logistic_regression() -> None:
    x, y, centre = clouds()
    ours = contrastive.fit_head(x, y, centre=torch.zeros_like(centre), ridge=2.0, scale=1.0)
    theirs = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-8, max_iter=5000)
    theirs.fit(x.numpy(), y.numpy())
    assert np.allclose(ours.weight, theirs.coef_, atol=2e-3)


def test_the_centre_is_where_it_stays_and_labels_outvote_it() -> None:
    x, y, centre = clouds()
    gaps = [
        float(
            (contrastive.fit_head(x, y, centre=centre, ridge=r, scale=1.0).weight - centre).norm()
        )
        for r in (1e6, 10.0, 0.1)
    ]
    assert gaps[0] < 1e-3 < gaps[1] < gaps[2]
    more = contrastive.fit_head(x.repeat(50, 1), y.repeat(50), centre=centre, ridge=10.0, scale=1.0)
    assert float((more.weight - centre).norm()) > gaps[1]


def test_the_best_head_has_the_lowest_loss_on_validation() -> None:
    x, y, centre = clouds()
    train, validation = (x[:20], y[:20]), (x[20:], y[20:])
    best = contrastive.best_head(train, validation, centre=centre, scale=1.0)
    losses = {
        r: float(functional.cross_entropy(
            contrastive.fit_head(*train, centre=centre, ridge=r, scale=1.0)(validation[0]),
            validation[1],
        ))
        for r in contrastive.RIDGES
    }  # fmt: skip
    assert losses[best.ridge] == min(losses.values())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ridge": 0.0}, "above 0"),
        ({"u": torch.zeros(3, 2)}, "embeddings should be"),
        ({"y": torch.tensor([0, 1, 7])}, "0..2"),
    ],
)
def test_a_wrong_call_of_fit_head_is_refused(change: dict[str, object], expected: str) -> None:
    x, y, centre = clouds()
    given = {"u": x[:3], "y": y[:3], "centre": centre, "ridge": 1.0, "scale": 1.0} | change
    with pytest.raises(ValueError, match=expected):
        contrastive.fit_head(given.pop("u"), given.pop("y"), **given)  # type: ignore[arg-type]


def test_a_gap_is_the_distance_of_the_means_and_can_be_closed() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(200, 6, generator=generator)
    push = torch.tensor([3.0, 0, 0, 0, 0, 0])
    u, t = (functional.normalize(shared + sign * push, dim=1) for sign in (1, -1))
    gap = contrastive.modality_gap(u, t)
    assert gap.distance == pytest.approx(float((u.mean(0) - t.mean(0)).norm()), rel=1e-5)
    assert gap.apart > 0.95
    closed = contrastive.modality_gap(*contrastive.closed_gap(u, t, delta=u.mean(0) - t.mean(0)))
    assert closed.distance < 0.2 * gap.distance
    none = contrastive.modality_gap(u, u)
    assert none.distance == 0
    assert none.pair == 0
    with pytest.raises(ValueError, match="pairs"):
        contrastive.modality_gap(u, t[:5])


def test_studies_ask_what_their_names_say() -> None:
    assert words_study.digits()[7] == ["a digit seven"]
    assert words_study.names(words_study.BARE)[10] == ["alpha"]
    assert words_study.styles(named=False)[3] == ["a bold italic character"]
    assert len(words_study.styles()[0]) == 40
    with pytest.raises(ValueError, match="way should be"):
        words_study.train(0, "by magic")


def test_styles_of_facts_are_in_the_order_of_the_classes() -> None:
    """Scores that are sure of bold italic make class 3."""
    sizes = [len(values) for values in captions.VALUES.values()]
    scores = torch.zeros(1, sum(sizes))
    scores[0, sum(sizes[:2]) + 1] = 9  # bold
    tower = torch.nn.Linear(1, sum(sizes))
    with torch.no_grad():
        tower.weight.zero_()
        tower.bias.copy_(scores[0])
    answer = words_study._answers(tower)["style"](torch.zeros(1, 1))
    assert captions.STYLES[int(answer.argmax())].startswith("bold")
    with torch.no_grad():
        tower.bias[sum(sizes[:3]) + 1] = 9  # italic
    answer = words_study._answers(tower)["style"](torch.zeros(1, 1))
    assert captions.STYLES[int(answer.argmax())] == "bold italic"
