"""Seeds for a training run, and the global random state kept; ``train.fit`` stands on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch


def epoch_seeds(seed: int, epoch: int, count: int) -> list[int]:
    """So many seeds for an epoch, the same in every process."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(count, np.uint64)
    return (state >> np.uint64(1)).tolist()


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the global state that dropout draws from, on this device alone."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.get_device_module(device).manual_seed(seed)


@contextlib.contextmanager
def global_state_kept(device: torch.device) -> Iterator[None]:
    """Leave the global random state of the CPU and of the device as it was."""
    with torch.random.fork_rng(devices=[]):
        if device.type == "cpu":
            yield
            return
        # Seeding and drawing have to mean the same one of several devices.
        with torch.accelerator.device_index(device.index):
            module = torch.get_device_module(device)
            before = module.get_rng_state()
            try:
                yield
            finally:
                module.set_rng_state(before)
