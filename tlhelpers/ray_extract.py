"""Features by many workers: an engine for ``features.extract`` that runs on Ray Data.

The machinery of a cluster (who is where, who has died, what has to be done again) is Ray's
(Moritz et al. 2018); what the package adds is that a result may come late, twice or in any order.
It needs ``pip install "tlhelpers[cluster]"``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import importlib
import json
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tlhelpers import runtime
from tlhelpers._attempts import Attempts
from tlhelpers.features import Keep, Work

STORE = 100 * 2**20  # bytes of shared memory for blocks: ours hold features, never photographs


@dataclass(frozen=True)
class OnRay:
    """An engine for ``features.extract(..., engine=OnRay())``.

    Each worker is an actor: a process that holds the network and is handed chunks of image
    numbers. It reads its images itself, so that all workers must find them under the same path.
    When a worker dies, Ray starts another one and hands it the chunk again: a chunk is computed
    *at least* once. As a chunk is kept under the number of its first image, twice does no harm.

    Ray Data replaces dead actors and tries again for ever, so that an image which kills whoever
    reads it would keep a cluster busy without end. The workers therefore count how often a chunk
    has been begun, and give up a chunk by an error that names it, when all others are done.

    Attributes:
        workers: how many actors.
        retries: how often a chunk is begun again after the death of its worker, before it is
            given up.
        address: of a cluster that runs already, ``"auto"`` for the one of this machine; None
            takes the cluster that this program is connected to, else the one that the
            environment names (``RAY_ADDRESS``), else starts one on this machine for the time of
            the call.
        gpus: a worker's share of a GPU, such as 1 or 0.25; 0 for workers on the CPU.

    Raises:
        ValueError: if there is no worker, or a number is below 0.

    Example:
        >>> import tlhelpers as tl
        >>> engine = tl.ray_extract.OnRay(workers=4)
        >>> engine
        OnRay(workers=4, retries=3, address=None, gpus=0.0)
        >>> tl.ray_extract.OnRay(workers=0)  # doctest: +NORMALIZE_WHITESPACE
        Traceback (most recent call last):
            ...
        ValueError: OnRay needs 1 worker or more, and 0 or more retries and GPUs, found
        OnRay(workers=0, retries=3, address=None, gpus=0.0).
    """

    workers: int = 2
    retries: int = 3
    address: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.retries < 0 or self.gpus < 0:
            raise ValueError(
                f"OnRay needs 1 worker or more, and 0 or more retries and GPUs, found {self}."
            )

    def __call__(self, work: Work, chunks: Sequence[range], keep: Keep) -> None:
        """Compute all chunks; called by ``features.extract``.

        Raises:
            ImportError: if Ray is not installed.
            RuntimeError: if workers died of a chunk more often than ``retries`` allows.
            ValueError: if the run's device and ``gpus`` do not fit together.
        """
        ray = _ray()
        if (work.device.type == "cuda") != (self.gpus > 0):
            raise ValueError(
                f"the run computes on {work.device.type!r} and each worker has {self.gpus:g} of a "
                f"GPU. Give OnRay(gpus=1), or a run on the CPU."
            )
        work = dataclasses.replace(work, network=copy.deepcopy(work.network).cpu())
        rows = [{"start": chunk.start, "stop": chunk.stop} for chunk in chunks]
        with self._cluster(ray):
            ray.data.DataContext.get_current().enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.WARNING)
            done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                fn_constructor_args=(work, _Begin(ray), self.retries),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=self.workers),
                num_cpus=1,
                num_gpus=self.gpus,
            )
            given_up = []
            for result in done.iter_rows():
                if result["deaths"]:
                    given_up.append(
                        f"{result['deaths']} workers died of images {result['start']} to "
                        f"{result['stop'] - 1}"
                    )
                else:
                    keep(*_unpack(result))
        if given_up:
            raise RuntimeError(
                f"{'; '.join(given_up)}, or of their memory. All others are done and kept. Extract "
                f"without OnRay to see what is wrong with these."
            )

    @contextlib.contextmanager
    def _cluster(self, ray: Any) -> Iterator[None]:
        if ray.is_initialized():
            yield
            return
        quiet: dict[str, Any] = {
            "include_dashboard": False,
            "logging_level": logging.ERROR,
            "log_to_driver": False,
        }
        with contextlib.ExitStack() as stack:
            if self.address is None and "RAY_ADDRESS" not in os.environ:
                # The path of a socket may have about a hundred letters, and Ray's own use most.
                place = "/tmp" if os.path.isdir("/tmp") else None
                # Workers step back behind every other program by default: on a busy machine,
                # for ever.
                os.environ.setdefault("RAY_worker_niceness", "0")
                folder = tempfile.TemporaryDirectory(
                    prefix="ray", dir=place, ignore_cleanup_errors=True
                )
                quiet |= {
                    "_temp_dir": stack.enter_context(folder),
                    "num_cpus": self.workers,
                    "object_store_memory": STORE,
                }
            else:
                quiet = {"address": self.address, "log_to_driver": False}
            ray.init(**quiet)
            stack.callback(ray.shutdown)
            yield


def _ray() -> Any:
    # Read by Ray when it starts: it would report its use to its makers otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        importlib.import_module("ray.data")
    except ImportError as error:
        raise ImportError(
            'OnRay needs Ray Data: pip install "tlhelpers[cluster]", or pip install "ray[data]".'
        ) from error
    return importlib.import_module("ray")


class _Begin:
    """Counts how often each chunk has been begun, in a process of its own that sees all workers."""

    def __init__(self, ray: Any) -> None:
        self.counts = ray.remote(num_cpus=0)(Attempts).remote()

    def __call__(self, start: int) -> int:
        return int(_ray().get(self.counts.begin.remote(start)))


class _Actor:
    """What a worker holds, and what it does with a chunk.

    Args:
        work: what to do.
        begin: counts how often a chunk has been begun, this time included.
        retries: how often it may be begun again.
    """

    def __init__(self, work: Work, begin: Callable[[int], int], retries: int) -> None:
        torch.set_num_threads(1)  # a worker for each core, as on one machine
        self.memory = runtime.keep_memory()
        self.memory.__enter__()  # for as long as the process lives
        self.work = dataclasses.replace(work, network=work.network.to(work.device))
        self.begin, self.retries = begin, retries

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        keys = ("start", "stop", "rows", "unread", "deaths")
        found: dict[str, list[Any]] = {key: [] for key in keys}
        for start, stop in zip(batch["start"].tolist(), batch["stop"].tolist(), strict=True):
            deaths = self.begin(start) - 1
            hopeless = deaths > self.retries
            rows, unread = (
                (torch.zeros(0), {}) if hopeless else self.work.features(range(start, stop))
            )
            values = (start, stop, rows.numpy().tobytes(), json.dumps(unread), deaths * hopeless)
            for key, value in zip(keys, values, strict=True):
                found[key].append(value)
        return found


def _unpack(result: dict[str, Any]) -> tuple[range, Tensor, dict[int, str]]:
    chunk = range(result["start"], result["stop"])
    numbers = np.frombuffer(result["rows"], dtype=np.float32).reshape(len(chunk), -1)
    unread = {int(i): reason for i, reason in json.loads(result["unread"]).items()}
    return chunk, torch.from_numpy(numbers.copy()), unread


# --- a rehearsal --------------------------------------------------------------------------


class KillsOnce:
    """Images, one of which kills the process that asks for it, the first time.

    A failure that has not been rehearsed has not been survived. The process gets ``SIGKILL``,
    which it cannot catch: as when a machine goes, nothing is tidied up.

    Args:
        images: a lazy sequence, such as ``datasets.Images``.
        at: the number of the image that kills.
        marker: a file in a folder that all workers see; it is made by the process that dies.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     marker = Path(folder) / "died"
        ...     _ = marker.write_text("as if the first reader had died")
        ...     images = tl.ray_extract.KillsOnce(torch.zeros(5, 3, 8, 8), 2, marker)
        ...     images[2].shape
        torch.Size([3, 8, 8])
    """

    def __init__(self, images: Any, at: int, marker: Path) -> None:
        self.images, self.at, self.marker = images, at, marker

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        """Image ``i`` as it is, or the end of the process."""
        if i == self.at and not self.marker.exists():
            self.marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images[i]

    def digest(self) -> str:
        """A digest of its own, so that the features are not found in the cache."""
        return hashlib.sha256(f"{self.images.digest()} {self.at}".encode()).hexdigest()
