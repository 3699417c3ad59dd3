"""Behaviour of ``train.fit`` in several processes: two, by gloo on the CPU, against one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tlhelpers import _processes, models, train
from tlhelpers.runtime import Run
from tlhelpers.splits import Dataset
from tlhelpers.train import Recipe

RUN = Run()
SIDE = 6

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without gloo."
)


def dataset(n: int = 25) -> Dataset:
    """25 training examples: in batches of 8 the last has one, of which one process has none."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n + 12) % 3
    x = torch.randn(len(labels), 1, SIDE, SIDE, generator=generator) + labels[:, None, None, None]
    return Dataset(
        name="numbers",
        classes=("a", "b", "c"),
        x=x,
        labels=labels,
        split=np.repeat(["train", "validation", "test"], [n, 11, 1]),
        ids=tuple(map(str, range(len(labels)))),
        split_name="made",
    )


class Net(nn.Module):
    """A network with a part that no forward pass uses, and with BatchNorm where it is asked for."""

    def __init__(self, seed: int = 0, *, norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 8))
            self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
            self.spare = nn.Linear(8, 8)
            self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)).relu())


class Hungry(Net):
    """Runs out of memory with more than three examples, in the second process alone."""

    refusals = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 3 and dist.is_initialized() and dist.get_rank() == 1:
            self.refusals += 1
            raise torch.OutOfMemoryError("made")
        return super().forward(x)


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    return images + 0.1 * torch.randn(images.shape, generator=generator)


class Interrupt(Exception):
    """Both processes are interrupted at the same step."""


class Until:
    """Noise, and an interruption after so many steps."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise Interrupt
        return noise(images, generator)

    def __repr__(self) -> str:
        return "noise"


BASE = Recipe(epochs=3, batch_size=8, lr=0.05, optimizer="sgd", clip=1.0, validate_every=3)
CASES: dict[str, tuple[type[Net], Recipe]] = {
    "plain": (Net, BASE),
    "augmented": (Net, dataclasses.replace(BASE, augment=noise)),
    "adam": (Net, dataclasses.replace(BASE, optimizer="adamw", lr=0.01, monitor="top1")),
    "patient": (Net, dataclasses.replace(BASE, epochs=40, patience=2)),
    "hungry": (Hungry, BASE),
}


def trained(case: str) -> tuple[Net, train.History]:
    kind, recipe = CASES[case]
    network = kind()
    penalty = train.l2_sp(network, alpha=0.1, beta=0.1)
    return network, train.fit(
        network, dataset(), dataclasses.replace(recipe, regulariser=penalty), RUN
    )


def in_each_process(folder: Path) -> None:
    """What a process under torchrun does: every case, one after the other."""
    rank = int(sys.argv[2])
    for case in CASES:
        network, history = trained(case)
        assert not dist.is_initialized(), "the group ends with the call that made it"
        keep(folder / f"{case}{rank}", network, history)
        if isinstance(network, Hungry):
            assert network.refusals == rank, "once, in the second process"
    other = Net(seed=rank)  # the first process's weights are everybody's
    keep(folder / f"seeds{rank}", other, train.fit(other, dataset(), BASE, RUN))

    train._LOOK = 2  # steps between two that all processes look at, and save
    recipe = dataclasses.replace(BASE, augment=Until(5))
    path = folder / "run.pt"
    try:
        train.fit(Net(), dataset(), recipe, RUN, checkpoint=path, checkpoint_every=0)
    except Interrupt:
        network = Net()
        recipe = dataclasses.replace(BASE, augment=Until(7))  # it had come to step 5 of 12
        history = train.fit(network, dataset(), recipe, RUN, checkpoint=path)
        keep(folder / f"resumed{rank}", network, history)

    # BatchNorm, in a group that the caller made.
    dist.init_process_group("gloo")
    norm = Net(norm=True)
    models.freeze(norm.body)
    history = train.fit(norm, dataset(24), BASE, RUN)
    assert dist.is_initialized(), "a group of the caller's stays"
    keep(folder / f"norm{rank}", norm, history)
    diverged = ""
    try:
        train.fit(Net(), dataset(), dataclasses.replace(BASE, lr=1e30, clip=None), RUN)
    except train.Diverged as error:
        diverged = str(error)
    (folder / f"diverged{rank}.json").write_text(json.dumps(diverged))
    dist.destroy_process_group()


def keep(path: Path, network: nn.Module, history: train.History) -> None:
    torch.save(network.state_dict(), path.with_suffix(".pt"))
    columns = history.drop(columns=["seconds", "core_seconds"]).to_dict("list")
    path.with_suffix(".json").write_text(json.dumps([columns, history.stopped]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    script.write_text(
        f"import os, sys, warnings\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"sys.argv[2:] = [os.environ['RANK']]\n"
        f"import test_train_distributed as tests\n"
        f"warnings.simplefilter('ignore')\n"
        f"tests.in_each_process(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


def read(folder: Path, name: str) -> tuple[dict[str, Tensor], pd.DataFrame, str]:
    columns, stopped = json.loads((folder / f"{name}.json").read_text())
    return torch.load(folder / f"{name}.pt", weights_only=True), pd.DataFrame(columns), stopped


def assert_close(
    found: tuple[dict[str, Tensor], pd.DataFrame, str], network: nn.Module, history: train.History
) -> None:
    weights, rows, stopped = found
    for key, value in network.state_dict().items():
        torch.testing.assert_close(weights[key], value, atol=1e-5, rtol=1e-5)
    plain = pd.DataFrame(history.drop(columns=["seconds", "core_seconds"]))
    pd.testing.assert_frame_equal(rows, plain, rtol=1e-5, check_dtype=False)
    assert stopped == history.stopped


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(case: str, folder: Path) -> None:
    network, history = trained(case)
    assert history.train_loss.iloc[-1] < history.train_loss[0]
    for rank in (0, 1):
        assert_close(read(folder, f"{case}{rank}"), network, history)
    assert_identical(folder, case)


def assert_identical(folder: Path, case: str) -> None:
    """Both processes end with the same bits."""
    (first, rows, _), (second, others, _) = (read(folder, f"{case}{rank}") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    pd.testing.assert_frame_equal(rows, others, check_exact=True)


def test_the_first_process_decides_where_it_starts(folder: Path) -> None:
    network = Net(seed=0)
    history = train.fit(network, dataset(), BASE, RUN)
    assert_close(read(folder, "seeds1"), network, history)


def test_an_interrupted_run_of_two_processes_is_taken_up(folder: Path) -> None:
    network = Net()
    history = train.fit(network, dataset(), dataclasses.replace(BASE, augment=noise), RUN)
    assert_close(read(folder, "resumed1"), network, history)
    assert_identical(folder, "resumed")
    assert not list(folder.glob("*.part"))


def test_batch_norm_normalises_by_process_and_ends_the_same(folder: Path) -> None:
    weights, rows, _ = read(folder, "norm0")
    assert_identical(folder, "norm")
    start = Net(norm=True)
    assert all(torch.equal(weights[k], v) for k, v in start.state_dict().items() if "body" in k)
    assert rows.train_loss.iloc[-1] < rows.train_loss.iloc[0]
    # The mean over both halves is that of the whole batch: here the two runs agree, and only here.
    models.freeze(start.body)
    train.fit(start, dataset(24), BASE, RUN)
    torch.testing.assert_close(weights["norm.running_mean"], start.norm.running_mean)
    assert not torch.allclose(weights["norm.running_var"], start.norm.running_var, rtol=1e-3)
    assert weights["norm.num_batches_tracked"] == start.norm.num_batches_tracked


def test_a_loss_that_is_no_number_stops_both(folder: Path) -> None:
    first, second = (json.loads((folder / f"diverged{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert "became NaN or infinite at step" in first


def test_slices_of_a_batch_are_all_of_it() -> None:
    device = torch.device("cpu")
    for n in range(12):
        for size in (1, 2, 3, 5):
            slices = [_processes.Group(rank, size, device).mine(n) for rank in range(size)]
            rows = [i for part in slices for i in range(n)[part]]
            assert rows == list(range(n))
            lengths = [part.stop - part.start for part in slices]
            assert max(lengths) - min(lengths) <= 1
            assert lengths == sorted(lengths, reverse=True), "the first process has always some"


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _processes._FROM_TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    device = torch.device("cpu")
    with _processes.joined(device) as group:
        assert (group.rank, group.size) == (0, 1)
    values: dict[str, Any] = dict(zip(_processes._FROM_TORCHRUN, "01", strict=False))
    for name, value in (values | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    with _processes.joined(device) as group:
        assert group.size == 1
        assert not dist.is_initialized()
