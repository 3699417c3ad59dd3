"""Behaviour of ``tlhelpers.runtime``."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tlhelpers import runtime
from tlhelpers.runtime import Run


def test_setup_seeds_every_generator(capsys: pytest.CaptureFixture[str]) -> None:
    draws = []
    for _ in range(2):
        runtime.setup(seed=7)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
    assert draws[0] == draws[1]
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2, "set-up prints one line each time"
    assert all(word in lines[0] for word in ("torch", "seed 7", "quick", "GiB", "data:"))


def test_setup_is_deterministic_on_request_only() -> None:
    runtime.setup(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    runtime.setup()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"profile": "fast"}, "profile must be one of"), ({"seed": -1}, "seed must be 0 or larger")],
)
def test_setup_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runtime.setup(**arguments)  # type: ignore[arg-type]


def test_no_run_means_seed_zero_quick_best_device() -> None:
    run = runtime.default(None)
    assert (run.seed, run.profile, run.device) == (0, "quick", runtime.best_device())


def test_best_device_is_one_that_computes() -> None:
    assert torch.ones(2, device=runtime.best_device()).sum().item() == 2


def test_streams_of_one_seed_differ_and_repeat() -> None:
    run = runtime.Run(seed=3)
    first, again = (torch.rand(4, generator=run.generator(1)) for _ in range(2))
    other = torch.rand(4, generator=run.generator(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_data_folder_names_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.delenv("TLHELPERS_DATA", raising=False)
    assert runtime.data_folder() is None
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("TLHELPERS_DATA", str(folder))
    assert runtime.data_folder() == folder
    assert str(folder) not in runtime.describe_data(), "a page must not show a machine's path"
    monkeypatch.setenv("TLHELPERS_DATA", str(folder / "absent"))
    with pytest.raises(FileNotFoundError, match="should name a folder with data"):
        runtime.data_folder()


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with runtime.torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_keep_memory_can_be_nested_in_work() -> None:
    with runtime.keep_memory():
        kept = torch.rand(1 << 20).sum().item()
    assert kept > 0
    assert torch.rand(1 << 20).sum().item() > 0, "allocation works after the defaults are back"


def test_the_tier_is_that_of_the_device() -> None:
    assert Run().tier == "cpu"
    assert Run(device=torch.device("cuda")).tier == "gpu"
