"""Behaviour of ``tlhelpers.ways``: what a declared way does to a small network on made images."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from tlhelpers import datasets, dogs, evaluate, features, models, probe, records, train, ways
from tlhelpers.augment import PhotoAugment
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.train import Recipe
from tlhelpers.ways import Penalty, Way

SIDE = 32
RUN = Run(device=torch.device("cpu"))
NAME = "squeezenet1_1"
SHORT = Recipe(epochs=2, optimizer="sgd", lr=1e-3, weight_decay=0.0, batch_size=8)
Weights = Callable[[str], Path]
PLAIN = Way(name="plain", recipe=SHORT, size=SIDE, stored=SIDE)


def photos(per_class: int = 8, *, held_out: int = 6, side: int = SIDE, seed: int = 0) -> Dataset:
    """Noisy squares of three classes, each brighter in one colour."""
    parts = ["train"] * per_class + ["validation"] * held_out + ["test"] * held_out
    n = 3 * len(parts)
    labels = torch.arange(n) % 3
    x = torch.randint(0, 120, (n, 3, side, side), generator=torch.Generator().manual_seed(seed))
    x[torch.arange(n), labels] += 60
    return Dataset(
        name="colours",
        classes=("red", "green", "blue"),
        x=x.to(torch.uint8),
        labels=labels,
        split=np.repeat(parts, 3),
        ids=tuple(f"{i:03d}" for i in torch.randperm(n, generator=torch.Generator()).tolist()),
        split_name="made",
    )


def weights_file(folder: Path, name: str) -> Path:
    """Random weights of an architecture in torchvision's form, in a file that is made once."""
    path = folder / f"{name}_imagenet.safetensors"
    if not path.is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            state = get_model(name, weights=None).state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The file of an architecture."""
    return functools.partial(weights_file, tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize(
    "way", [way for way in dogs.WAYS.values() if way.frozen != "norms"], ids=lambda way: way.name
)
def test_each_way_of_the_chapter_learns_and_leaves_the_test_split_alone(
    way: Way, pretrained: Weights
) -> None:
    data = photos()
    small = dataclasses.replace(way, size=SIDE, stored=SIDE, least_steps=0)
    if small.recipe is not None:
        small = small.at(epochs=2)
    learnt = ways.learn(small, data, NAME, weights=pretrained(NAME), run=RUN)
    assert not data.test.readings
    assert learnt.images == len(data.train)
    assert learnt.network(data.test.x[:2]).shape == (2, 3)
    if small.recipe is None:
        assert learnt.history.empty
        assert np.isnan(learnt.images_per_second)
        return
    assert learnt.history.epoch.tolist() == [1, 2]
    assert learnt.images_per_second == pytest.approx(2 * len(data.train) / learnt.seconds)
    assert learnt.peak_bytes is None or learnt.peak_bytes > 1e7
    begun = ways.begin(small, data, NAME, weights=pretrained(NAME), run=RUN)
    assert models.diff_state(begun.head, learnt.network.head).count("parameter") == 2
    moved = models.diff_state(begun.body, learnt.network.body).count("parameter")
    assert moved == 0 if small.frozen == "body" else moved > 0


def test_frozen_norms_keep_parameters_and_statistics(pretrained: Weights) -> None:
    data, path = photos(4), pretrained("mobilenet_v2")
    kept = dataclasses.replace(PLAIN, frozen="norms")
    for way, frozen in ((kept, True), (PLAIN, False)):
        begun = ways.begin(way, data, "mobilenet_v2", weights=path, run=RUN)
        after = ways.learn(way, data, "mobilenet_v2", weights=path, run=RUN).network
        pairs = zip(begun.modules(), after.modules(), strict=True)
        norms = [pair for pair in pairs if isinstance(pair[0], nn.BatchNorm2d)]
        moved = [bool(models.diff_state(old, new).moves) for old, new in norms]
        assert len(moved) > 10
        assert not any(moved) if frozen else all(moved)
    with pytest.raises(ValueError, match="no batch normalisation"):
        ways.begin(kept, data, NAME, weights=pretrained(NAME), run=RUN)


def test_a_head_from_a_probe_begins_with_the_probes_predictions(pretrained: Weights) -> None:
    data, path = photos(), pretrained(NAME)
    way = dataclasses.replace(PLAIN, head="probe", size=24)
    network = ways.begin(way, data, NAME, weights=path, run=RUN)
    backbone = models.backbone(NAME, weights=path)
    preprocess = models.Preprocess(resize=24, crop=24)
    bank = features.extract(data, dataclasses.replace(backbone, preprocess=preprocess), run=RUN)
    fitted = probe.fit(bank, run=RUN).calibrated()
    with torch.no_grad():
        logits = network(data.validation.x)
    torch.testing.assert_close(logits, fitted(bank.validation.x), atol=1e-3, rtol=1e-3)
    # The validation images, which chose the ridge weight, are seen; the test images are not.
    scrambled = dataclasses.replace(data, x=data.x.clone())
    scrambled.x[torch.from_numpy(data.split == "test")] = 0
    again = ways.begin(way, scrambled, NAME, weights=path, run=RUN)
    assert not models.diff_state(network, again).moves


def test_the_network_sees_the_whole_square(pretrained: Weights) -> None:
    way = dataclasses.replace(PLAIN, size=16)
    network = ways.begin(way, photos(), NAME, weights=pretrained(NAME), run=RUN)
    assert (network.preprocess.resize, network.preprocess.crop) == (16, 16)


def test_random_weights_follow_the_seed_and_need_no_file() -> None:
    way = dataclasses.replace(PLAIN, start="random")
    data = photos()
    first, same, other = (
        ways.begin(way, data, NAME, weights="no such file", run=Run(seed)) for seed in (0, 0, 1)
    )
    assert not models.diff_state(first, same).moves
    assert models.diff_state(first, other).moves


def test_the_recipe_takes_its_size_penalty_and_rates_from_the_way(pretrained: Weights) -> None:
    way = dataclasses.replace(
        PLAIN,
        size=16,
        augment=PhotoAugment(size=99),
        spread=0.1,
        penalty=Penalty(kind="l2_sp", alpha=0.5, beta=0.0),
    )
    network = ways.begin(way, photos(), NAME, weights=pretrained(NAME), run=RUN)
    recipe = ways.recipe_for(way, network, 24)
    assert recipe.augment is not None
    images = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    assert recipe.augment(images, torch.Generator()).shape == (2, 3, 16, 16)
    groups = models.param_groups(network, lr=recipe.lr, decay=recipe.decay)
    assert groups[0]["lr"] == pytest.approx(0.1 * recipe.lr)
    assert groups[-2]["lr"] == pytest.approx(recipe.lr)
    assert recipe.regulariser is not None
    with torch.no_grad():
        assert recipe.regulariser(network) == 0
        network.body.features[0].bias += 1
        found = recipe.regulariser(network)
    assert found == pytest.approx(0.25 * network.body.features[0].bias.numel())


def test_few_labels_do_not_make_a_run_shorter_than_its_least_steps(pretrained: Weights) -> None:
    data = photos()
    way = dataclasses.replace(PLAIN, least_steps=7)
    history = ways.learn(way, data.few(1), NAME, weights=pretrained(NAME), run=RUN).history
    assert history.step.iloc[-1] == 7
    network = ways.begin(way, data, NAME, weights=pretrained(NAME), run=RUN)
    assert ways.recipe_for(way, network, 80).total_steps(80) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": "imagenet"}, "start must be one of pretrained, random"),
        ({"head": "old"}, "head must be one of"),
        ({"frozen": "all"}, "frozen must be one of"),
        ({"size": SIDE + 1}, "no more than the 32 of the stored squares"),
        ({"spread": 0.0}, "spread must be above 0"),
        ({"recipe": None}, "a new head that is not trained"),
        ({"recipe": Recipe(decay=0.5)}, "must leave augment, regulariser and decay alone"),
        ({"recipe": Recipe(augment=PhotoAugment())}, "must leave augment"),
    ],
)
def test_a_way_that_cannot_be_meant_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_a_way_at_another_size_or_length_differs_in_that_alone() -> None:
    changed = PLAIN.at(size=16, epochs=5)
    assert (changed.size, changed.recipe and changed.recipe.epochs) == (16, 5)
    assert changed.at(size=SIDE, epochs=2) == PLAIN
    assert dogs.SCRATCH.at(epochs=15).least_steps == dogs.SCRATCH.least_steps / 4
    with pytest.raises(ValueError, match="does not train"):
        dogs.PROBE.at(epochs=3)


# --- continuing ---------------------------------------------------------------------------


def test_a_killed_run_continues_to_the_same_weights_and_remembers_its_past(
    tmp_path: Path, pretrained: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, weights, path = photos(), pretrained(NAME), tmp_path / "run.pt"
    way = dataclasses.replace(PLAIN, augment=PhotoAugment(scale=(0.5, 1.0)))
    whole = ways.learn(way, data, NAME, weights=weights, run=RUN)
    with monkeypatch.context() as patch:
        patch.setattr(train, "_evaluate", _once_and_then_killed(train._evaluate))
        with pytest.raises(KeyboardInterrupt):
            ways.learn(way, data, NAME, weights=weights, run=RUN, checkpoint=path)
    notes = path.with_name("run.pt.json")
    assert not json.loads(notes.read_text())["finished"]
    rest = ways.learn(way, data, NAME, weights=weights, run=RUN, checkpoint=path)
    assert not models.diff_state(whole.network, rest.network).moves
    again = ways.learn(way, data, NAME, weights=weights, run=RUN, checkpoint=path)
    assert not models.diff_state(whole.network, again.network).moves
    assert again.seconds == rest.seconds
    assert again.peak_bytes == rest.peak_bytes
    monkeypatch.setattr(ways, "time", SimpleNamespace(perf_counter=lambda: 0.0))  # no time passes
    again = ways.learn(way, data, NAME, weights=weights, run=RUN, checkpoint=path)
    assert (whole.waited, again.waited) == (0, rest.seconds)


def _once_and_then_killed(evaluate: Callable[..., object]) -> Callable[..., object]:
    calls = []

    def wrapped(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    return wrapped


def test_a_checkpoint_of_other_code_is_not_used_silently(
    tmp_path: Path, pretrained: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = photos(), tmp_path / "run.pt"
    arguments = {"weights": pretrained(NAME), "run": RUN, "checkpoint": path}
    monkeypatch.setattr(records, "_git_state", lambda: ("abc", True))
    first = ways.learn(PLAIN, data, NAME, **arguments)
    assert (first.commit, first.clean) == ("abc", True)
    monkeypatch.setattr(records, "_git_state", lambda: ("def", True))
    with pytest.warns(UserWarning, match="was trained by the code of commit abc, and def runs now"):
        later = ways.learn(PLAIN, data, NAME, **arguments)
    assert (later.commit, later.clean) == ("abc", True), "it says who trained it"
    notes = path.with_name("run.pt.json")
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"finished": False}))
    with pytest.warns(UserWarning, match="was begun by the code of commit abc"):
        mixed = ways.learn(PLAIN, data, NAME, **arguments)
    assert mixed.clean is False, "no one commit made it"
    with (
        pytest.warns(UserWarning, match="commit abc"),
        pytest.raises(ValueError, match="checkpoint of another recipe"),
    ):
        ways.learn(PLAIN.at(epochs=3), data, NAME, **arguments)


# --- what training has changed ------------------------------------------------------------


def test_stages_say_how_far_the_weights_moved_and_how_alike_the_outputs_are(
    pretrained: Weights,
) -> None:
    data = photos()
    before = ways.begin(PLAIN, data, NAME, weights=pretrained(NAME), run=RUN)
    after = ways.begin(PLAIN, data, NAME, weights=pretrained(NAME), run=RUN)
    same = ways.compare(before, after, data.validation)
    assert (same.moved == 0).all()
    assert same.cka.to_numpy() == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        for parameter in after.body.features[3].parameters():
            parameter *= -1
    rows = ways.compare(before, after, data.validation).set_index("stage")
    assert rows.moved["features.3"] == pytest.approx(2)
    assert (rows.moved.drop(["features.3", "features"]) == 0).all()
    assert 0 < rows.moved["features"] < 2
    assert rows.cka["features.0"] == pytest.approx(1, abs=1e-4), "before the change"
    assert rows.cka["features.12"] < 0.9999, "after it"


def test_stages_of_a_resnet_include_a_stem_that_is_no_module(pretrained: Weights) -> None:
    data = photos(4)
    learnt = ways.learn(
        PLAIN.at(epochs=1), data, "resnet18", weights=pretrained("resnet18"), run=RUN
    )
    rows = learnt.stages.set_index("stage")
    assert list(rows.index) == ["stem", "layer1", "layer2", "layer3", "layer4", "features"]
    assert (rows.moved > 0).all()
    assert rows.cka.isna().tolist() == [True] + 5 * [False]


def test_photographs_are_cached_at_the_stored_size_once(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(8):
            pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    data = datasets.image_folder(tmp_path)
    cached = ways.stored(data, 36)
    assert cached.x.shape == (16, 3, 36, 36)
    assert ways.stored(cached, 36) is cached
    shutil.rmtree(tmp_path / "cat")  # nothing is decoded again
    way = dataclasses.replace(PLAIN, start="random", stored=36)
    learnt = ways.learn(way, cached, NAME, run=RUN)
    assert evaluate.validate(learnt.network, cached.validation, resamples=2).value >= 0
