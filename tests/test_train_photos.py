"""Behaviour of ``train.fit`` on photographs: bytes and lazy sequences, precision, memory, kills."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tlhelpers import _batches, datasets, models, runtime, train
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.train import Recipe

RUN = Run()
BFLOAT16 = Run(dtype=torch.bfloat16)
SIDE = 12


class Nameless:
    """Images that are read when asked for, and the threads that asked."""

    def __init__(self, pixels: Tensor, threads: set[str] | None = None) -> None:
        self.pixels = pixels
        self.threads: set[str] = set() if threads is None else threads

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: Sequence[int]) -> Nameless:
        return type(self)(self.pixels[list(indices)], self.threads)

    def stack(self) -> Tensor:
        self.threads.add(threading.current_thread().name.partition("_")[0])
        return self.pixels.clone()


class Album(Nameless):
    """Images that say what they are of, as a cache of pixels does it."""

    def digest(self) -> str:
        return hashlib.sha256(self.pixels.numpy().tobytes()).hexdigest()


class FastAlbum(Album):
    """An album that gives rows without a selection in between."""

    def rows(self, indices: Sequence[int]) -> Tensor:
        assert all(type(i) is int for i in indices)
        return self.pixels[list(indices)]

    def stack(self) -> Tensor:
        raise AssertionError("rows() was there to be used")


def pixels(n: int = 61, seed: int = 0) -> Tensor:
    """Noisy colours: image i is of class i % 3, whose channel is the brightest."""
    noise = torch.randint(0, 100, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    noise[torch.arange(n), torch.arange(n) % 3] += 60
    return noise.to(torch.uint8)


def dataset(x: Any, *, train_examples: int = 29) -> Dataset:
    n = len(x)
    others = n - train_examples - 2
    return Dataset(
        name="colours",
        classes=("red", "green", "blue"),
        x=x,
        labels=torch.arange(n) % 3,
        split=np.repeat(["train", "validation", "test"], [train_examples, others, 2]),
        ids=tuple(map(str, range(n))),
        split_name="made",
    )


class Small(nn.Module):
    """A network that takes bytes: two convolutions with or without BatchNorm, dropout, a head."""

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.conv1 = nn.Conv2d(3, 8, 3, stride=2)
            self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
            self.conv2 = nn.Conv2d(8, 8, 3)
            self.dropout = nn.Dropout(0.0)
            self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float() / 255
        hidden = self.norm(self.conv1(images)).relu()
        return self.head(self.dropout(self.conv2(hidden).relu().mean(dim=(2, 3))))


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """What an augmentation does: bytes in, floats in 0..1 of another size out."""
    assert images.dtype == torch.uint8
    drawn = torch.rand(len(images), 3, 1, 1, generator=generator)
    return images[:, :, 1:-1, 1:-1] / 255 * (0.5 + drawn)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def assert_same_bits(a: nn.Module, b: nn.Module) -> None:
    for (key, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), key


def assert_equal_histories(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        pd.DataFrame(a.drop(columns=["seconds", "core_seconds"])),
        pd.DataFrame(b.drop(columns=["seconds", "core_seconds"])),
        check_exact=True,
    )


# --- where the images come from -----------------------------------------------------------


def as_files(folder: Path) -> datasets.Images:
    for i, image in enumerate(pixels()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return datasets.Images(datasets.Folder(folder))


@pytest.mark.parametrize("augment", [None, noise])
def test_bytes_albums_and_files_train_the_same_network(augment: Any, tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, batch_size=8, lr=0.02, dropout=0.2, augment=augment)
    held = Small()
    expected = train.fit(held, dataset(pixels()), recipe, RUN)
    assert expected.train_loss.iloc[-1] < expected.train_loss[0]
    lazy = Album(pixels())
    for x in (lazy, FastAlbum(pixels()), as_files(tmp_path)):
        network = Small()
        history = train.fit(network, dataset(x), recipe, RUN)
        assert_same_bits(network, held)
        assert_equal_histories(history, expected)
    assert "batches" in lazy.threads, "a thread of its own reads ahead"
    assert not any(t.name.startswith("batches") for t in threading.enumerate())


def test_bytes_that_stay_with_the_cpu_are_streamed_to_the_device_unchanged() -> None:
    whole = dataset(pixels()).train
    held = _batches.source(whole, RUN.device)
    streamed = _batches.Streamed(whole.x, whole.y, RUN.device)
    wanted = [torch.tensor([3, 1]), slice(5, 9), torch.tensor([0]), slice(28, 29), slice(2, 2)]
    for (x, y), (x0, y0) in zip(streamed.batches(wanted), held.batches(wanted), strict=True):
        assert torch.equal(x, x0)
        assert torch.equal(y, y0)
    assert streamed.numbers() == held.numbers() == 3 * SIDE * SIDE


@pytest.mark.parametrize("kind", [Tensor, Album])
def test_images_are_held_where_they_fit(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = pixels() if kind is Tensor else Album(pixels())
    split = dataset(x).train
    device = torch.device("meta")  # stands for an accelerator: it computes nothing
    size = len(split) * 3 * SIDE * SIDE
    for free, held in ((4 * size, True), (4 * size - 1, False), (None, False)):
        monkeypatch.setattr(_batches, "_free_bytes", lambda _, free=free: free)
        source = _batches.source(split, device)
        assert isinstance(source, _batches.Held if held else _batches.Streamed)
        if isinstance(source, _batches.Held):
            assert source.inputs.shape == (len(split), 3, SIDE, SIDE)
            assert source.inputs.device == source.labels.device == device
    floats = dataclasses.replace(split, x=pixels(len(split)) / 255)
    assert isinstance(_batches.source(floats, device), _batches.Held), "as it was asked for"


class Damaged(Album):
    """One image cannot be read."""

    def stack(self) -> Tensor:
        if (self.pixels[:, 0, 0, 0] == 255).any():
            raise ValueError("017.jpg is unreadable: the file ends early.")
        return super().stack()


def test_an_unreadable_image_ends_the_run_with_its_own_sentence(tmp_path: Path) -> None:
    images = pixels()
    images[17, 0, 0, 0] = 255
    network, data = Small(), dataset(Damaged(images))
    before, recipe = state(network), Recipe(epochs=1, batch_size=4)
    with pytest.raises(ValueError, match=r"017\.jpg is unreadable: the file ends early"):
        train.fit(network, data, recipe, RUN, checkpoint=tmp_path / "c.pt")
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(t.name.startswith("batches") for t in threading.enumerate())


# --- networks of torchvision --------------------------------------------------------------


def test_the_classic_recipe_trains_the_head_alone() -> None:
    network = models.photo_classifier("squeezenet1_1", 3, weights=None, size=32, dropout=0.5)
    models.freeze(network.body)
    before = models.snapshot(network)
    recipe = Recipe(
        steps=30, batch_size=29, optimizer="adam", lr=1e-3, weight_decay=0, schedule="constant"
    )
    history = train.fit(network, dataset(Album(pixels())), recipe, RUN)
    moved = models.diff_state(before, network)
    assert {move.name for move in moved.moves} == {"head.weight", "head.bias"}
    assert history.train_loss.iloc[-1] < history.train_loss[0]


def test_all_of_a_torchvision_network_learns_from_photographs() -> None:
    network = models.photo_classifier("resnet18", 3, weights=None, size=32)
    penalty = train.l2_sp(network, alpha=0.01, beta=0.01)
    before = models.snapshot(network)
    recipe = Recipe(
        steps=12, batch_size=15, lr=3e-4, head_lr=3e-3, decay=0.7, regulariser=penalty, keep="last",
        augment=noise, weight_decay=0,
    )  # fmt: skip
    history = train.fit(network, dataset(pixels()), recipe, BFLOAT16, mixed=True)
    assert history.train_top1.iloc[-1] > 0.9 > history.train_top1[0]
    assert models.diff_state(before, network).count("parameter") == 62
    assert all(p.dtype == torch.float32 for p in network.parameters())


# --- precision and compilation ------------------------------------------------------------


def dtypes_inside(network: Small) -> set[torch.dtype]:
    found: set[torch.dtype] = set()
    network.conv2.register_forward_hook(lambda *arguments: found.add(arguments[2].dtype))
    return found


def test_mixed_precision_is_a_choice_on_the_cpu(tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, batch_size=8, lr=0.01)
    losses = {}
    for mixed, dtype in ((None, torch.float32), (False, torch.float32), (True, torch.bfloat16)):
        network = Small()
        found = dtypes_inside(network)
        path = tmp_path / f"{mixed}.pt"
        history = train.fit(
            network, dataset(pixels()), recipe, BFLOAT16, mixed=mixed, checkpoint=path
        )
        assert dtype in found
        assert all(value.dtype != torch.bfloat16 for value in network.state_dict().values())
        losses[mixed] = history.validation_loss.iloc[-1]
    assert losses[None] == losses[False] != losses[True]
    assert losses[True] == pytest.approx(losses[False], rel=0.03)
    with pytest.raises(ValueError, match=r"another run: dtype torch.bfloat16 there, torch.float32"):
        train.fit(Small(), dataset(pixels()), recipe, BFLOAT16, checkpoint=tmp_path / "True.pt")
    half = Run(dtype=torch.float16)
    network = Small()
    found = dtypes_inside(network)
    history = train.fit(network, dataset(pixels()), recipe, half, mixed=True)
    assert torch.float16 in found
    assert history.validation_loss.iloc[-1] == pytest.approx(losses[False], rel=0.03)


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler on a CPU.",
)
def test_a_compiled_run_leaves_the_network_as_it_is() -> None:
    # One kind of batch, to compile once.
    data = dataset(pixels(34), train_examples=32)
    network = nn.Sequential(nn.Flatten(), Scale(), nn.Linear(3 * SIDE**2, 3))
    plain = copy.deepcopy(network)
    recipe = Recipe(epochs=2, batch_size=16, lr=1e-3, optimizer="sgd")
    keys = [*network.state_dict()]
    train.fit(network, data, recipe, RUN, compile=True)
    train.fit(plain, data, recipe, RUN)
    assert [*network.state_dict()] == keys
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], value)


class Scale(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 255


# --- out of memory ------------------------------------------------------------------------


class Hungry(Small):
    """Runs out of memory with more than so many images at a time, in training or always."""

    def __init__(self, most: int, *, norm: bool = False, always: bool = False) -> None:
        super().__init__(norm=norm)
        self.most, self.always = most, always
        self.taken: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if len(images) > self.most and (self.training or self.always):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
        if self.training:
            self.taken.append(len(images))
        return logits


@pytest.mark.parametrize("augment", [None, noise])
def test_a_batch_that_is_too_large_runs_in_parts(augment: Any) -> None:
    data = dataset(pixels())
    network, plenty = Hungry(5), Small(norm=False)
    settings: dict[str, Any] = {
        "epochs": 2, "batch_size": 16, "lr": 0.1, "optimizer": "sgd", "augment": augment,
        "clip": 1.0, "label_smoothing": 0.1,
    }  # fmt: skip
    expected = train.fit(
        plenty, data, Recipe(regulariser=train.l2(plenty, alpha=0.1), **settings), RUN
    )
    recipe = Recipe(regulariser=train.l2(network, alpha=0.1), **settings)
    with pytest.warns(RuntimeWarning, match="out of memory") as caught:
        history = train.fit(network, data, recipe, RUN)
    said = [str(w.message) for w in caught if "out of memory" in str(w.message)]
    assert len(said) == 2, "16 at a time, then 8; from then on 4 do"
    assert "with 8 examples at a time" in said[1]
    assert "no more than 4 are taken" in said[1]
    assert "a step still learns from 16" in said[1]
    assert network.taken == [4, 4, 4, 4, 4, 3, 3, 3] * 2
    for key, value in plenty.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], value, atol=1e-6, rtol=1e-5)
    pd.testing.assert_frame_equal(
        pd.DataFrame(history.drop(columns=["seconds", "core_seconds"])),
        pd.DataFrame(expected.drop(columns=["seconds", "core_seconds"])),
        rtol=1e-5,
    )


@pytest.mark.filterwarnings("ignore:out of memory:RuntimeWarning")
def test_batch_norm_and_dropout_run_in_parts_too_and_validation(tmp_path: Path) -> None:
    network = Hungry(7, norm=True, always=True)
    recipe = Recipe(epochs=3, batch_size=16, lr=0.02, dropout=0.2)
    history = train.fit(network, dataset(pixels(100)), recipe, RUN)
    assert history.train_loss.iloc[-1] < history.train_loss[0]
    assert history.validation_top1.notna().all()
    # The same seed draws the same noise, in parts as well.
    again = Hungry(7, norm=True, always=True)
    train.fit(again, dataset(pixels(100)), recipe, RUN)
    assert_same_bits(network, again)


@pytest.mark.filterwarnings("ignore:out of memory:RuntimeWarning")
def test_one_image_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    network = Hungry(0)
    before = state(network)
    with pytest.raises(torch.OutOfMemoryError, match=r"single example \(CUDA .* 2 GiB\)\. Use"):
        train.fit(network, dataset(pixels()), Recipe(epochs=1), RUN, checkpoint=tmp_path / "c.pt")
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


# --- checkpoints --------------------------------------------------------------------------


class Interrupt(Exception):
    """Somebody pulls the plug."""


class Until:
    """Noise on the images; after so many steps something happens."""

    def __init__(self, last: int, happens: Any) -> None:
        self.last, self.happens, self.taken = last, happens, 0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        self.taken += 1
        if self.taken == self.last + 1:
            self.happens()
        return noise(images, generator)

    def __repr__(self) -> str:
        return "noise"


def plug() -> None:
    raise Interrupt


def test_a_run_is_taken_up_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    path, data = tmp_path / "run.pt", dataset(Album(pixels()))
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 4, "lr": 0.02, "dropout": 0.3}
    whole = Small()
    expected = train.fit(whole, data, Recipe(augment=Until(99, plug), **settings), RUN)
    steps = 0
    for last in (3, 9, 5):  # an epoch has eight steps
        recipe = Recipe(augment=Until(last, plug), **settings)
        with pytest.raises(Interrupt):
            train.fit(Small(), data, recipe, RUN, checkpoint=path, checkpoint_every=0)
        steps += last
        kept = torch.load(path, weights_only=True)
        assert kept["step"] == steps
        assert len(kept["meter"]["losses"]) == steps % 8
    rest = Until(99, plug)
    network = Small()
    recipe = Recipe(augment=rest, **settings)
    history = train.fit(network, data, recipe, RUN, checkpoint=path, checkpoint_every=0)
    assert rest.taken == 32 - steps
    assert_same_bits(network, whole)
    assert_equal_histories(history, expected)
    assert history.seconds.is_monotonic_increasing


def test_between_evaluations_nothing_is_written_before_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(runtime, "write_whole", lambda path, _: written.append(path))
    recipe = Recipe(epochs=2, batch_size=4)
    for every, count in ((0, 16), (3600, 2), (float("inf"), 2)):
        written.clear()
        train.fit(
            Small(), dataset(pixels()), recipe, RUN,
            checkpoint=tmp_path / "c.pt", checkpoint_every=every,
        )  # fmt: skip
        assert len(written) == count
    with pytest.raises(ValueError, match="checkpoint_every is in seconds, 0 or more, found -1"):
        train.fit(Small(), dataset(pixels()), recipe, RUN, checkpoint_every=-1)


def test_another_list_of_images_is_refused(tmp_path: Path) -> None:
    path, recipe = tmp_path / "run.pt", Recipe(epochs=1)
    train.fit(Small(), dataset(Album(pixels())), recipe, RUN, checkpoint=path)
    mine, others = tmp_path / "run.pt.12.part", tmp_path / "run.pt.x.12.part"
    for unfinished in (mine, others):
        unfinished.write_bytes(b"half")
    other = pixels()
    other[[3, 6]] = other[[6, 3]]  # the same images in another order
    with pytest.raises(ValueError, match=r"run\.pt is a checkpoint of another data: examples"):
        train.fit(Small(), dataset(Album(other)), recipe, RUN, checkpoint=path)
    with pytest.raises(TypeError, match=r"needs digest\(\), but Nameless of colours has none"):
        train.fit(Small(), dataset(Nameless(pixels())), recipe, RUN, checkpoint=path)
    assert sorted(tmp_path.iterdir()) == [path, others], "its own half-written file goes"


@pytest.fixture
def full_disk() -> Iterator[Any]:
    """A function that has the system refuse files of more than a kilobyte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))

    def empty() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    fill.empty = empty  # type: ignore[attr-defined]
    yield fill
    empty()


def test_a_full_disk_costs_the_steps_since_the_last_checkpoint(
    tmp_path: Path, full_disk: Any
) -> None:
    path, data = tmp_path / "run.pt", dataset(pixels())
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.02}
    whole = Small()
    expected = train.fit(whole, data, Recipe(augment=Until(99, plug), **settings), RUN)
    network = Small()
    recipe = Recipe(augment=Until(6, full_disk), **settings)  # in the second epoch
    try:
        with pytest.raises(OSError, match=r"no room to write run\.pt .* free some space"):
            train.fit(network, data, recipe, RUN, checkpoint=path)
    finally:
        full_disk.empty()
    assert list(tmp_path.iterdir()) == [path]
    rest = Until(99, plug)
    history = train.fit(network, data, Recipe(augment=rest, **settings), RUN, checkpoint=path)
    assert rest.taken == 8
    assert_same_bits(network, whole)
    assert_equal_histories(history, expected)


KILLED = '''
"""Train with a checkpoint in children that are killed at random moments; print what was seen."""
import json, os, random, signal, sys, time
from pathlib import Path

import torch

sys.path.insert(0, sys.argv[1])
import test_train_photos as tests
from tlhelpers import models, train

torch.set_num_threads(1)
folder = Path(sys.argv[2])


def write_slowly(path, content):
    """As a slow disk does it: half of the file is there for a while."""
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(0.004)
        file.write(content[len(content) // 2 :])


def run(checkpoint, result):
    network = tests.Small()
    history = train.fit(
        network, tests.dataset(tests.Album(tests.pixels())),
        train.Recipe(epochs=12, batch_size=4, lr=0.02, dropout=0.3, augment=tests.noise),
        tests.RUN, checkpoint=checkpoint, checkpoint_every=0.01,
    )
    losses = history.drop(columns=["seconds", "core_seconds"]).to_dict("list")
    result.write_text(json.dumps([models.fingerprint(network), losses]))


def child(checkpoint, result, seconds):
    """Start a run, kill it after so many seconds; whether it ended by itself before."""
    pid = os.fork()
    if pid == 0:
        Path.write_bytes = write_slowly
        try:
            run(checkpoint, result)
        except BaseException as error:
            result.with_suffix(".error").write_text(repr(error))
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, result.with_suffix(".error").read_text()
            return True
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


assert child(None, folder / "whole.json", 300)
whole = (folder / "whole.json").read_text()
draw = random.Random(0)
killed = halves = resumed = ended = 0
runs = folder / "runs"
runs.mkdir()
while killed < 20:
    name = runs / f"run{ended}.pt"
    resumed += name.exists()
    if child(name, folder / "killed.json", draw.uniform(0.02, 0.3)):
        assert (folder / "killed.json").read_text() == whole
        ended += 1
        continue
    killed += 1
    halves += any(runs.glob("*.part"))
name = runs / f"run{ended}.pt"
assert child(name, folder / "killed.json", 300)
assert (folder / "killed.json").read_text() == whole
expected = {f"run{i}.pt" for i in range(ended + 1)}
left = {path.name for path in runs.iterdir()} - expected
print(json.dumps({"halves": halves, "resumed": resumed, "ended": ended, "left": sorted(left)}))
'''


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["halves"] >= 1, "no kill fell into a write"
    assert seen["resumed"] >= 10
    assert seen["left"] == []
