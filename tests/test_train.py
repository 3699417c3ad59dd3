"""Behaviour of ``tlhelpers.train``: what the loop promises, on data made for each promise."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers import models, train
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset, TestSplit
from tlhelpers.train import Recipe

RUN = Run()
CLASSES = 3


def dataset(n: int = 30, validation: int = 21, *, noise: float = 0.3, seed: int = 0) -> Dataset:
    """Noisy copies of one picture a class, 8 x 8, and a test split as large as validation."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(n + 2 * validation) % CLASSES
    noisy = torch.randn(len(labels), 1, 8, 8, generator=generator)
    split = np.repeat(["train", "validation", "test"], [n, validation, validation])
    return Dataset(
        name="pictures",
        classes=("a", "b", "c"),
        x=pictures[labels] + noise * noisy,
        labels=labels,
        split=split,
        ids=tuple(map(str, range(len(labels)))),
        split_name="made",
    )


class Flat(nn.Module):
    """A network that takes little time: 64 pixels, 8 hidden units, dropout, 3 classes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            linear = nn.Linear(64, 8, bias=False)
            self.body = nn.Sequential(nn.Flatten(), linear, nn.BatchNorm1d(8), nn.ReLU())
            self.dropout = nn.Dropout(0.0)
            self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.body(x)))


def state(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def assert_equal_states(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def assert_equal_histories(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        a.drop(columns=["seconds", "core_seconds"]), b.drop(columns=["seconds", "core_seconds"])
    )


# --- what it learns -----------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", train.OPTIMIZERS)
def test_it_learns(optimizer: str) -> None:
    network = models.small_resnet(CLASSES)
    lr = 0.1 if optimizer == "sgd" else 0.01
    history = train.fit(network, dataset(), Recipe(epochs=8, optimizer=optimizer, lr=lr), RUN)
    assert history.best.validation_top1 == 1
    assert list(history.columns) == list(train.COLUMNS)
    assert history.epoch.tolist() == history.step.tolist() == list(range(1, 9))
    assert not network.training


def test_each_optimizer_takes_the_step_of_torch() -> None:
    data = dataset(12)
    for name, kind, options in (
        ("sgd", torch.optim.SGD, {"momentum": 0.8}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.999)}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.999)}),
    ):
        network, plain = Flat(), Flat()
        recipe = Recipe(
            steps=3, batch_size=12, optimizer=name, lr=0.01, head_lr=0.1, momentum=0.8,
            weight_decay=0.1, schedule="constant", keep="last",
        )  # fmt: skip
        train.fit(network, data, recipe, RUN)
        groups = models.param_groups(plain, lr=0.01, head_lr=0.1, weight_decay=0.1)
        optimizer = kind(groups, **options)
        plain.train()
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(plain(data.train.x), data.train.y).backward()
            optimizer.step()
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(network.state_dict()[key], value, atol=2e-5, rtol=1e-4)


def test_features_of_a_bank_train_a_lone_head() -> None:
    data = dataset()
    flat = dataclasses.replace(data, x=data.x.flatten(1))
    history = train.fit(nn.Linear(64, CLASSES), flat, Recipe(epochs=20, lr=0.05), RUN)
    assert history.best.validation_top1 == 1


def test_the_seed_decides_and_the_global_state_stays() -> None:
    recipe = Recipe(epochs=2, batch_size=8, dropout=0.5)
    networks = [Flat(), Flat(), Flat()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    histories = [train.fit(networks[0], dataset(), recipe, RUN)]
    assert torch.equal(torch.rand(2), expected)
    torch.manual_seed(4)
    histories.append(train.fit(networks[1], dataset(), recipe, RUN))
    histories.append(train.fit(networks[2], dataset(), recipe, Run(seed=1)))
    assert_equal_states(state(networks[0]), state(networks[1]))
    assert_equal_histories(histories[0], histories[1])
    assert histories[0].train_loss.tolist() != histories[2].train_loss.tolist()


# --- the numbers of the history -----------------------------------------------------------


def test_losses_are_means_over_examples_not_over_batches() -> None:
    data = dataset(10, 9)
    seen: list[Tensor] = []

    def watch(images: Tensor, _: torch.Generator) -> Tensor:
        seen.append(images)
        return images

    network = Flat()
    start = copy.deepcopy(network)
    # A rate so small that the weights stand still: batches of 4, 4 and 2.
    recipe = Recipe(epochs=1, batch_size=4, lr=1e-12, augment=watch, label_smoothing=0.1)
    history = train.fit(network, data, recipe, RUN)
    assert [len(x) for x in seen] == [4, 4, 2]
    label = {
        tuple(x.flatten().tolist()): y for x, y in zip(data.train.x, data.train.y, strict=True)
    }
    start.train()
    losses, hits = [], 0
    for x in seen:
        y = torch.stack([label[tuple(image.flatten().tolist())] for image in x])
        with torch.no_grad():
            logits = start(x)
        losses.append(float(F.cross_entropy(logits, y, label_smoothing=0.1)))
        hits += int((logits.argmax(1) == y).sum())
    assert len(label) == 10
    by_hand = (4 * losses[0] + 4 * losses[1] + 2 * losses[2]) / 10
    assert history.train_loss[0] == pytest.approx(by_hand, rel=1e-5)
    assert abs(by_hand - np.mean(losses)) > 1e-3  # the other mean is another number
    assert history.train_top1[0] == hits / 10
    network.eval()
    with torch.no_grad():
        logits = network(data.validation.x)
    expected = float(F.cross_entropy(logits, data.validation.y))  # without label smoothing
    assert history.validation_loss[0] == pytest.approx(expected, rel=1e-5)


def test_validation_in_several_batches_is_one_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(epochs=1)
    whole = train.fit(Flat(), dataset(30, 99), recipe, RUN)
    monkeypatch.setattr(train, "_NUMBERS", 1)  # 64 and 35 examples
    parts = train.fit(Flat(), dataset(30, 99), recipe, RUN)
    assert parts.validation_loss[0] == pytest.approx(whole.validation_loss[0], rel=1e-5)
    assert parts.validation_top1[0] == whole.validation_top1[0]


def test_a_history_counts_core_seconds_over_all_calls(tmp_path: Path) -> None:
    def run() -> train.History:
        recipe = Recipe(epochs=40, lr=0.02)
        return train.fit(Flat(), dataset(300), recipe, RUN, checkpoint=tmp_path / "a.pt")

    first, again = run(), run()
    assert (first.core_seconds.diff()[1:] >= 0).all()
    assert first.core_seconds.iloc[-1] > 0
    # No more than all cores could have given.
    assert first.core_seconds.iloc[-1] <= 1.1 * first.seconds.iloc[-1] * (os.cpu_count() or 1)
    assert again.core_seconds.tolist() == first.core_seconds.tolist()


def test_history_is_a_frame_that_survives_slicing() -> None:
    history = train.fit(Flat(), dataset(), Recipe(epochs=4, lr=0.02), RUN)
    assert isinstance(history, pd.DataFrame)
    assert "Ran all 4 steps." in history.summary()
    for part in (history[1:], history[["step", "lr"]], history[history.epoch > 2], history.copy()):
        assert isinstance(part, train.History)
        assert part.stopped == history.stopped
        assert repr(part)
    assert history[:2].best.epoch <= 2
    assert isinstance(history.lr, pd.Series)
    with pytest.raises(ValueError, match="the best row is chosen by 'validation_loss'"):
        _ = history[["step"]].best
    assert "no evaluation" in history[:0].summary()
    melted = history.melt(id_vars="epoch", value_vars=["train_loss", "validation_loss"])
    assert len(melted) == 8


def test_steps_to_an_accuracy() -> None:
    rows = {"step": [5, 10, 15], "validation_top1": [0.5, 0.9, 0.8]}
    history = train.History(rows)
    assert history.steps_to(0.4) == 5
    assert history.steps_to(0.9) == 10
    assert history.steps_to(0.95) is None
    with pytest.raises(ValueError, match=r"a proportion in .* found 90"):
        history.steps_to(90)


# --- steps, schedules, rates --------------------------------------------------------------


def test_length_in_steps_does_not_depend_on_the_data() -> None:
    recipe = Recipe(steps=50, batch_size=10, lr=1e-4)
    small = train.fit(Flat(), dataset(6), recipe, RUN)
    assert small.step.iloc[-1] == 50
    assert small.epoch.iloc[-1] == 50
    assert len(small) == 17  # every third step: about twenty rows, not fifty
    large = train.fit(Flat(), dataset(60), recipe, RUN)
    assert large.step.tolist() == [6, 12, 18, 24, 30, 36, 42, 48, 50]
    often = train.fit(Flat(), dataset(60), dataclasses.replace(recipe, validate_every=4), RUN)
    assert often.step.tolist() == [*range(4, 50, 4), 50]
    # How often somebody looks changes nothing of what is learnt.
    assert often.validation_loss.iloc[-1] == large.validation_loss.iloc[-1]


def test_schedules() -> None:
    for schedule, middle, end in (("constant", 1, 1), ("cosine", 0.5, 0), ("linear", 0.5, 0)):
        recipe = Recipe(schedule=schedule, warmup=0.2)
        factors = [recipe.factor(step, 1000) for step in range(1000)]
        assert factors[:200] == [pytest.approx((i + 1) / 200) for i in range(200)]
        assert max(factors) == factors[200] == 1
        assert factors[600] == pytest.approx(middle)
        assert factors[-1] == pytest.approx(end, abs=2e-3)
        assert min(factors) > 0  # no step is wasted
    torch_cosine = [
        torch.optim.lr_scheduler.CosineAnnealingLR(
            torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0), 10
        ).eta_min,
        Recipe().factor(10, 10),
    ]
    assert torch_cosine == [0, 0]


def test_the_learning_rate_of_each_row_is_the_one_used() -> None:
    recipe = Recipe(epochs=4, lr=0.5, schedule="linear", optimizer="sgd", momentum=0)
    history = train.fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), dataset(), recipe, RUN)
    assert history.lr.tolist() == pytest.approx([0.5, 0.375, 0.25, 0.125])


def test_rates_of_head_and_body() -> None:
    network, before = Flat(), state(Flat())
    recipe = Recipe(steps=1, lr=1e-9, head_lr=0.1, optimizer="adamw", weight_decay=0, keep="last")
    train.fit(network, dataset(), recipe, RUN)
    moved = {k: float((v - before[k]).abs().max()) for k, v in network.state_dict().items()}
    assert moved["body.1.weight"] < 1e-8
    assert moved["head.weight"] == pytest.approx(0.1, rel=1e-3)  # Adam's first step is the rate


# --- what stays as it is ------------------------------------------------------------------


def test_frozen_means_frozen() -> None:
    network = models.small_resnet(CLASSES, dropout=0.5)
    for part in (network.stem, network.stage1, network.stage2, network.stage3):
        models.freeze(part)
    before = models.snapshot(network)
    train.fit(network, dataset(), Recipe(epochs=2, weight_decay=0.1, lr=0.01), RUN)
    moved = models.diff_state(before, network)
    assert {move.name for move in moved.moves} == {"head.weight", "head.bias"}


def test_frozen_first_layers_and_trained_rest() -> None:
    network = models.small_resnet(CLASSES)
    models.freeze(network.stem)
    before = models.snapshot(network)
    train.fit(network, dataset(), Recipe(epochs=2, keep="last"), RUN)
    moved = {move.name for move in models.diff_state(before, network).moves}
    assert not any(name.startswith("stem.") for name in moved)
    rest = {key for key in network.state_dict() if not key.startswith("stem.")}
    assert moved == rest


def test_nothing_to_train_is_an_error() -> None:
    network = models.freeze(Flat())
    with pytest.raises(
        ValueError, match=r"no parameter of Flat is trainable. Call models.unfreeze"
    ):
        train.fit(network, dataset(), Recipe(epochs=1), RUN)


def test_the_test_split_is_never_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the test split was touched")

    class Sealed(Dataset):
        test = property(refuse)  # type: ignore[assignment]

    data = dataset()
    sealed = Sealed(**{f.name: getattr(data, f.name) for f in dataclasses.fields(data)})
    monkeypatch.setattr(TestSplit, "__init__", refuse)
    expected = train.fit(Flat(), data, Recipe(epochs=2), RUN)
    # What the test images and labels are makes no difference.
    rows = torch.from_numpy(sealed.split == "test")
    sealed.x[rows] = math.nan
    sealed.labels[rows] = 0
    found = train.fit(
        Flat(), sealed, Recipe(epochs=2, patience=1), RUN, checkpoint=tmp_path / "c.pt"
    )
    assert_equal_histories(found, expected)
    assert data.log == []


# --- selection ----------------------------------------------------------------------------


def noisy_labels(data: Dataset) -> Dataset:
    """Half of the training labels are wrong: learning them by heart hurts validation."""
    labels = data.labels.clone()
    rows = np.flatnonzero(data.split == "train")[::2]
    labels[rows] = (labels[rows] + 1) % CLASSES
    return dataclasses.replace(data, labels=labels)


@pytest.mark.parametrize("monitor", train.MONITORS)
def test_the_best_weights_come_back(monitor: str) -> None:
    data = noisy_labels(dataset(60, 60, noise=1.0))
    recipe = Recipe(epochs=25, lr=0.05, monitor=monitor, schedule="constant")
    network, last = Flat(), Flat()
    history = train.fit(network, data, recipe, RUN)
    assert history.best_epoch < 25
    values = history[f"validation_{monitor}"]
    assert history.best[f"validation_{monitor}"] == (
        values.min() if monitor == "loss" else values.max()
    )
    with torch.no_grad():
        logits = network(data.validation.x)
    loss = float(F.cross_entropy(logits, data.validation.y))
    assert loss == pytest.approx(history.best.validation_loss, rel=1e-5)
    # The same run, ended at its best epoch and left there: the same weights, and the same buffers.
    short = dataclasses.replace(recipe, epochs=history.best_epoch, keep="last")
    train.fit(last, data, short, RUN)
    assert_equal_states(state(network), state(last))


def test_patience() -> None:
    data = noisy_labels(dataset(60, 60, noise=1.0))
    recipe = Recipe(epochs=200, lr=0.05, schedule="constant", patience=3)
    history = train.fit(Flat(), data, recipe, RUN)
    assert len(history) == history.best_epoch + 3 < 200
    assert "no better validation loss in 3 evaluations" in history.stopped


def test_without_validation_the_last_weights_stay() -> None:
    data = dataset(30, 0)
    network, other = Flat(), Flat()
    history = train.fit(network, data, Recipe(epochs=2), RUN)
    train.fit(other, data, Recipe(epochs=2, keep="last"), RUN)
    assert_equal_states(state(network), state(other))
    assert history.validation_loss.isna().all()
    assert history.best_epoch == 2
    assert "no validation split" in history.summary()
    with pytest.raises(ValueError, match="patience needs a validation split"):
        train.fit(Flat(), data, Recipe(patience=1), RUN)


# --- what goes wrong ----------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    network = Flat()
    before = state(network)
    recipe = Recipe(steps=40, batch_size=8, optimizer="sgd", lr=1e25, schedule="constant")
    with pytest.raises(train.Diverged, match=r"NaN or infinite at step \d+ of 40") as caught:
        train.fit(network, dataset(), recipe, RUN)
    assert "at a learning rate of 1e+25" in str(caught.value)
    assert "Lower lr" in str(caught.value)
    assert_equal_states(state(network), before)
    assert caught.value.history.empty


def test_the_step_that_diverged_is_named_and_the_best_weights_stay() -> None:
    network, good = Flat(), Flat()
    data, steps = dataset(24), iter(range(1, 100))

    def spoil(images: Tensor, _: torch.Generator) -> Tensor:
        return images * math.nan if next(steps) == 8 else images  # in the third epoch

    recipe = Recipe(epochs=5, batch_size=8, schedule="constant")
    with pytest.raises(train.Diverged, match="at step 8 of 15") as caught:
        train.fit(network, data, dataclasses.replace(recipe, augment=spoil), RUN)
    train.fit(good, data, dataclasses.replace(recipe, epochs=2), RUN)
    assert_equal_states(state(network), state(good))
    assert len(caught.value.history) == 2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) .* found \(2, 52\)"):
        train.fit(models.small_resnet(52), dataset(), None, RUN)
    lazy = dataclasses.replace(dataset(), x=Images(72))
    with pytest.raises(TypeError, match=r"holds Images\. Extract features first"):
        train.fit(Flat(), lazy, None, RUN)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match=r"dropout is 0\.5, but Sequential has no dropout layer"):
        train.fit(network, dataset(), Recipe(dropout=0.5), RUN)


class Images:
    """Photographs that are decoded when asked for."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def take(self, indices: list[int]) -> Images:
        return Images(len(indices))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adam, adamw, found 'lion'"),
        ({"schedule": "step"}, "schedule must be one of constant, cosine, linear"),
        ({"monitor": "test"}, "monitor must be one of loss, top1"),
        ({"keep": "first"}, "keep must be one of best, last"),
        ({"epochs": 0}, "epochs must be a whole number, 1 or larger, found 0"),
        ({"epochs": 2.5}, "epochs must be a whole number"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"steps": 0}, "steps must be a whole number, 1 or larger or None"),
        ({"batch_size": None}, "batch_size must be a whole number, 1 or larger, found None"),
        ({"patience": -1}, "patience must be"),
        ({"validate_every": 0}, "validate_every must be"),
        ({"lr": 0}, r"lr must be above 0 \(models.freeze"),
        ({"lr": "1e-3"}, "lr must be above 0"),
        ({"head_lr": math.nan}, "head_lr must be above 0 or None"),
        ({"clip": -1}, "clip must be above 0 or None, found -1"),
        ({"decay": 2.6}, "decay must be above 0 and at most 1, found 2.6"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or larger"),
        ({"momentum": 1}, "momentum must be a share"),
        ({"warmup": 1.5}, "warmup must be a share"),
        ({"label_smoothing": -0.1}, "label_smoothing must be a share"),
        ({"dropout": 1.0}, "dropout must be a share"),
        ({"augment": "flip"}, "augment must be a callable or None"),
        ({"regulariser": 0.1}, "regulariser must be a callable or None"),
    ],
)
def test_a_recipe_checks_itself(setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"Recipe: {sentence}"):
        Recipe(**setting)


def test_a_recipe_as_plain_values() -> None:
    recipe = Recipe(augment=train.augmentation(Flip()), regulariser=math.fsum)
    values = recipe.as_dict()
    assert values["lr"] == 1e-3
    assert values["augment"] == "Augmentation(shift=Flip())"
    assert values["regulariser"] == "math.fsum"


# --- augmentation, dropout, clipping ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Flip:
    """Images from right to left, each with probability one half."""

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(images), generator=generator) < 0.5
        return torch.where(chosen[:, None, None, None], images.flip(3), images)


def found_in(images: Tensor, among: Tensor) -> Tensor:
    """(n,) bool: is each image among the others, bit by bit?"""
    return (images[:, None] == among[None]).flatten(2).all(dim=2).any(dim=1)


def test_augmentation_changes_training_images_alone_and_anew() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(x.clone())
            else:
                assert found_in(x, data.x).all()
            return self.head(x.flatten(1))

    data = dataset(24)
    recipe = Recipe(epochs=3, batch_size=24, augment=train.augmentation(Flip()))
    train.fit(Watch(), data, recipe, RUN)
    kept = [found_in(data.train.x, x) for x in seen]
    assert len(kept) == 3
    assert all(0 < int(found.sum()) < 24 for found in kept)
    assert not torch.equal(kept[0], kept[1])


def test_augmentation_needs_something_to_apply() -> None:
    with pytest.raises(TypeError, match=r"needs something with apply\(images, generator\).* int"):
        train.augmentation(3)  # type: ignore[arg-type]


def test_dropout_holds_for_the_run() -> None:
    network, plain = Flat(), Flat()
    dropped = train.fit(network, dataset(), Recipe(epochs=1, dropout=0.9), RUN)
    kept = train.fit(plain, dataset(), Recipe(epochs=1), RUN)
    assert network.dropout.p == 0.0
    assert dropped.train_loss[0] != kept.train_loss[0]


def test_clipping_bounds_the_step() -> None:
    moved = {}
    for clip in (None, 0.01):
        network, before = Flat(), state(Flat())
        recipe = Recipe(
            steps=1, optimizer="sgd", momentum=0, lr=1.0, weight_decay=0, clip=clip, keep="last"
        )
        train.fit(network, dataset(), recipe, RUN)
        parameters = dict(network.named_parameters())
        change = [(p.detach() - before[k]).flatten() for k, p in parameters.items()]
        moved[clip] = float(torch.cat(change).norm())
    assert moved[0.01] == pytest.approx(0.01, rel=1e-3)
    assert moved[None] > 0.02


# --- regularisers -------------------------------------------------------------------------


def test_l2_sp_is_its_formula() -> None:
    network = Flat()
    penalty = train.l2_sp(network, alpha=0.3, beta=0.7)
    assert penalty(network).item() == pytest.approx(
        0.35 * sum(p.square().sum().item() for p in network.head.parameters()), rel=1e-5
    )
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    way = sum(
        (p - start[name]).square().sum().item()
        for name, p in network.named_parameters()
        if not name.startswith("head.")
    )
    head = sum(p.square().sum().item() for p in network.head.parameters())
    value = penalty(network)
    assert value.item() == pytest.approx(0.15 * way + 0.35 * head, rel=1e-5)
    value.backward()
    torch.testing.assert_close(
        network.body[1].weight.grad, 0.3 * (network.body[1].weight - start["body.1.weight"])
    )
    torch.testing.assert_close(network.head.weight.grad, 0.7 * network.head.weight)
    ordinary = train.l2(network, alpha=0.3, beta=0.7)(network)
    body = sum(
        p.square().sum().item() for n, p in network.named_parameters() if not n.startswith("head.")
    )
    assert ordinary.item() == pytest.approx(0.15 * body + 0.35 * head, rel=1e-5)


def test_l2_sp_of_channels_last_weights_and_a_named_head() -> None:
    network = models.small_resnet(CLASSES)
    whole = sum(p.square().sum().item() for p in network.parameters())
    head = sum(p.square().sum().item() for p in network.head.parameters())
    assert train.l2(network, alpha=2, beta=0, head="head")(network).item() == pytest.approx(
        whole - head, rel=1e-4
    )
    models.freeze(network.stage3)
    assert train.l2(network, alpha=2)(network).item() < whole - head
    with pytest.raises(ValueError, match="alpha must be 0 or larger"):
        train.l2_sp(network, alpha=-1)
    with pytest.raises(ValueError, match=r"made for a network without 'stem\.0\.weight'"):
        train.l2_sp(Flat(), alpha=1)(models.small_resnet(CLASSES))


def test_l2_sp_holds_the_body() -> None:
    ways = []
    for alpha in (0.0, 1.0):
        network, start = Flat(), state(Flat())
        penalty = train.l2_sp(network, alpha=alpha)
        recipe = Recipe(
            steps=60, optimizer="sgd", lr=0.1, weight_decay=0, regulariser=penalty, keep="last"
        )
        history = train.fit(network, dataset(), recipe, RUN)
        ways.append((network.body[1].weight - start["body.1.weight"]).norm().item())
        assert history.train_loss.iloc[-1] < history.train_loss.iloc[0]
    assert ways[1] < 0.5 * ways[0]


# --- checkpoints --------------------------------------------------------------------------


class Interrupt(Exception):
    """Somebody pulls the plug."""


def augment_until(last: int | None) -> Any:
    """Noise on the images; the plug is pulled after ``last`` steps."""
    taken = 0

    def noise(images: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal taken
        taken += 1
        if last is not None and taken > last:
            raise Interrupt
        return images + 0.1 * torch.randn(images.shape, generator=generator)

    return noise


@pytest.mark.parametrize("optimizer", train.OPTIMIZERS)
@pytest.mark.parametrize("every", [None, 3])
def test_a_resumed_run_ends_with_the_same_bits(
    optimizer: str, every: int | None, tmp_path: Path
) -> None:
    data = noisy_labels(dataset(28, 30))
    settings: dict[str, Any] = {
        "epochs": 6, "batch_size": 8, "dropout": 0.3, "optimizer": optimizer, "lr": 0.02,
        "decay": 0.5, "weight_decay": 0.01, "warmup": 0.2, "validate_every": every, "patience": 20,
    }  # fmt: skip
    whole = models.small_resnet(CLASSES)
    expected = train.fit(whole, data, Recipe(augment=augment_until(None), **settings), RUN)
    assert len(expected) == (6 if every is None else 8)

    path = tmp_path / "run.pt"
    network = models.small_resnet(CLASSES)
    first = state(network)
    recipe = Recipe(augment=augment_until(14), **settings)
    with pytest.raises(Interrupt):
        train.fit(network, data, recipe, RUN, checkpoint=path)
    assert_equal_states(state(network), first)  # ready for the same call once more
    again = Recipe(augment=augment_until(None), **settings)
    torch.rand(5)  # the global state does not matter
    history = train.fit(network, data, again, RUN, checkpoint=path)
    assert_equal_states(state(network), state(whole))
    assert_equal_histories(history, expected)
    assert history.stopped == expected.stopped

    # A finished run is given back without a step.
    done = models.small_resnet(CLASSES)
    none_left = Recipe(augment=augment_until(0), **settings)
    assert_equal_histories(train.fit(done, data, none_left, RUN, checkpoint=path), expected)
    assert_equal_states(state(done), state(whole))
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path, data, recipe = tmp_path / "run.pt", dataset(), Recipe(epochs=2)
    train.fit(Flat(), data, recipe, RUN, checkpoint=path)
    kept = path.read_bytes()
    for sentence, network, other, what, run in (
        (r"another recipe: lr 0.001 there, 0.01 now", Flat(), data, Recipe(epochs=2, lr=0.01), RUN),
        (r"another network: first weights \(make it anew", Flat(1), data, recipe, RUN),
        (r"another data", Flat(), dataset(seed=1), recipe, RUN),
        (r"another run: seed 0 there, 1 now", Flat(), data, recipe, Run(seed=1)),
    ):
        before = state(network)
        with pytest.raises(ValueError, match=f"run.pt is a checkpoint of {sentence}"):
            train.fit(network, other, what, run, checkpoint=path)
        assert_equal_states(state(network), before)
    frozen = Flat()
    models.freeze(frozen.body)
    with pytest.raises(ValueError, match="another network: trainable"):
        train.fit(frozen, data, recipe, RUN, checkpoint=path)
    assert path.read_bytes() == kept
    path.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match=r"run.pt is not a readable checkpoint"):
        train.fit(Flat(), data, recipe, RUN, checkpoint=path)
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match="should be a checkpoint of the format"):
        train.fit(Flat(), data, recipe, RUN, checkpoint=path)
