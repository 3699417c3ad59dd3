"""Where a run happens: seed, device, precision, profile, and the folders it reads and fills.

Everything else in the package stands on this module; it imports none of the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import random
import sys
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, wait
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pooch
import torch
from tqdm.auto import tqdm

import tlhelpers

PROFILES = ("quick", "full")
DATA_VARIABLE = "TLHELPERS_DATA"
CACHE_VARIABLE = "TLHELPERS_CACHE"
QUIET_VARIABLE = "TLHELPERS_QUIET"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """The circumstances of a run; every function that needs them takes one as ``run=``.

    ``run=None`` means seed 0, profile ``"quick"``, the best device: see :func:`default`.

    Attributes:
        seed: the seed of everything random in the run.
        profile: ``"quick"`` (minutes on two CPU cores, offline) or ``"full"``.
        device: where tensors are computed.
        dtype: the dtype in which forward passes are computed on ``device``.
        deterministic: whether torch was told to use deterministic algorithms only.
    """

    seed: int = 0
    profile: str = "quick"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    deterministic: bool = False

    @property
    def tier(self) -> str:
        """``"cpu"`` or ``"gpu"``: the tier of a record of this run."""
        return "cpu" if self.device.type == "cpu" else "gpu"

    def generator(self, *stream: int) -> torch.Generator:
        """A fresh CPU generator; give integers to get independent streams of one seed.

        >>> run = Run(seed=1)
        >>> bool(
        ...     (
        ...         torch.rand(3, generator=run.generator(2))
        ...         == torch.rand(3, generator=run.generator(2))
        ...     ).all()
        ... )
        True
        """
        entropy = np.random.SeedSequence([self.seed, *stream]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(entropy) >> 1)

    def __str__(self) -> str:
        return (
            f"tlhelpers {tlhelpers.__version__} · Python {platform.python_version()} · "
            f"torch {torch.__version__} · {describe_device(self.device)} · "
            f"{str(self.dtype).removeprefix('torch.')} · profile {self.profile} · "
            f"seed {self.seed} · data: {describe_data()}"
        )


def setup(
    seed: int = 0,
    profile: str = "quick",
    *,
    device: str | torch.device | None = None,
    deterministic: bool = False,
) -> Run:
    """Seed Python, NumPy and torch, choose a device, print one status line.

    Args:
        seed: any integer from 0 on.
        profile: ``"quick"`` or ``"full"``.
        device: a torch device; by default the accelerator if there is one, else the CPU.
        deterministic: also ask torch for deterministic algorithms (slower on a GPU).

    Raises:
        ValueError: if the profile or the seed is not one of those.

    Example:
        >>> import tlhelpers as tl
        >>> run = tl.runtime.setup(seed=1, device="cpu")  # doctest: +ELLIPSIS
        tlhelpers ... · CPU, ... · profile quick · seed 1 · data: the shipped banks...
        >>> run.seed, run.tier
        (1, 'cpu')
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {PROFILES}, found {profile!r}.")
    if seed < 0:
        raise ValueError(f"seed must be 0 or larger, found {seed}.")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- libraries that readers call use this state
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(deterministic)
    chosen = torch.device(device) if device is not None else best_device()
    run = Run(seed, profile, chosen, fast_dtype(chosen), deterministic)
    print(run)
    return run


def default(run: Run | None) -> Run:
    """``run`` itself, or seed 0, quick, best device if it is None.

    Example:
        >>> import tlhelpers as tl
        >>> run = tl.runtime.default(None)
        >>> run.seed, run.profile
        (0, 'quick')
        >>> tl.runtime.default(tl.runtime.Run(seed=7)).seed
        7
    """
    if run is not None:
        return run
    device = best_device()
    return Run(device=device, dtype=fast_dtype(device))


def best_device() -> torch.device:
    """The accelerator that torch can use now, or the CPU.

    A CUDA build of torch names ``cuda`` as its accelerator on a machine without a GPU
    too, hence ``check_available``.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> device = tl.runtime.best_device()
        >>> network = tl.models.small_resnet().to(device)
        >>> network(torch.zeros(2, 1, 16, 16, device=device)).shape
        torch.Size([2, 10])
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def fast_dtype(device: torch.device) -> torch.dtype:
    """The fastest dtype for forward passes that leaves a probe's accuracy as it is.

    bfloat16 where the processor computes in it; float16 on older GPUs and on Apple's;
    float32 elsewhere (an emulated bfloat16 is slower than float32). The 8 bits of bfloat16 move
    single features by some per cent, see ``benchmarks/extract.py --precision``; where that
    matters, use ``dataclasses.replace(run, dtype=torch.float32)``.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> tl.runtime.fast_dtype(torch.device("mps"))
        torch.float16
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if device.type == "mps":
        return torch.float16
    # Older versions of torch do not tell; float32 is then the safe answer.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    has_bfloat16 = any(capabilities.get(key) for key in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if has_bfloat16 else torch.float32


def cores() -> int:
    """The number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes(device: torch.device) -> int | None:
    """Total memory of the device in bytes; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def describe_device(device: torch.device) -> str:
    """One phrase: what computes, and how much memory it has.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> tl.runtime.describe_device(torch.device("cpu"))  # doctest: +ELLIPSIS
        'CPU, ... cores...'
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    parts = [name if device.type != "cpu" else f"CPU, {cores()} cores"]
    if (total := memory_bytes(device)) is not None:
        parts.append(f"{total / 2**30:.0f} GiB")
    return ", ".join(parts)


def data_folder() -> Path | None:
    """The folder that ``TLHELPERS_DATA`` names, or None if it is not set.

    Raises:
        FileNotFoundError: if the variable names something that is not a folder.

    Example:
        >>> import os
        >>> import tempfile
        >>> from unittest import mock
        >>> import tlhelpers as tl
        >>> with (
        ...     tempfile.TemporaryDirectory() as folder,
        ...     mock.patch.dict(os.environ, TLHELPERS_DATA=folder),
        ... ):
        ...     tl.runtime.data_folder().is_dir()
        True
        >>> with mock.patch.dict(
        ...     os.environ, TLHELPERS_DATA="nowhere"
        ... ):  # doctest: +NORMALIZE_WHITESPACE
        ...     tl.runtime.data_folder()
        Traceback (most recent call last):
            ...
        FileNotFoundError: TLHELPERS_DATA should name a folder with data, but 'nowhere' is not
        a folder. Correct the variable, or unset it to use the banks that the package ships.
    """
    value = os.environ.get(DATA_VARIABLE)
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{DATA_VARIABLE} should name a folder with data, but {value!r} is not a folder. "
            f"Correct the variable, or unset it to use the banks that the package ships."
        )
    return folder


def describe_data() -> str:
    """What ``TLHELPERS_DATA`` offers, in a phrase that holds no path.

    Example:
        >>> import os
        >>> import tempfile
        >>> from unittest import mock
        >>> import tlhelpers as tl
        >>> with (
        ...     tempfile.TemporaryDirectory() as folder,
        ...     mock.patch.dict(os.environ, TLHELPERS_DATA=folder),
        ... ):
        ...     tl.runtime.describe_data()
        'the shipped banks and 0 entries in TLHELPERS_DATA'
    """
    folder = data_folder()
    if folder is None:
        return "the shipped banks"
    return f"the shipped banks and {sum(1 for _ in folder.iterdir())} entries in {DATA_VARIABLE}"


def cache_folder() -> Path:
    """Where downloads and extracted features are kept; ``TLHELPERS_CACHE`` overrides it.

    Example:
        >>> import os
        >>> import tempfile
        >>> from pathlib import Path
        >>> from unittest import mock
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with mock.patch.dict(os.environ, TLHELPERS_CACHE=f"{folder}/mine"):
        ...         tl.runtime.cache_folder().relative_to(folder).as_posix()
        'mine'
    """
    folder = Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("tlhelpers"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def progress(iterable: Iterable[T] | None = None, **options: Any) -> Any:
    """A progress bar that vanishes when done; none at all where ``TLHELPERS_QUIET`` is set.

    In a built page a bar is an empty box, so builds and tests set the variable.

    Example:
        >>> import tlhelpers as tl
        >>> sum(i * i for i in tl.runtime.progress(range(4), desc="squares"))
        14
    """
    return tqdm(iterable, disable=bool(os.environ.get(QUIET_VARIABLE)), leave=False, **options)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all; its folder is made.

    Raises:
        OSError: if it cannot be written; a full disk gets a sentence that says what to do.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import tlhelpers as tl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tl.runtime.write_whole(Path(folder) / "results" / "a.json", b"{}")
        ...     [path.name for path in (Path(folder) / "results").iterdir()]
        ['a.json']
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        if error.errno in NO_SPACE:
            raise OSError(
                error.errno,
                f"no room to write {path.name} ({len(content) / 2**20:.1f} MiB) in {path.parent}. "
                f"What was finished before is kept: free some space, or name a folder with more "
                f"of it (the cache's is set by {CACHE_VARIABLE}), and call again",
            ) from error
        raise


@contextlib.contextmanager
def keep_memory() -> Iterator[None]:
    """Have glibc's malloc keep freed memory while the block runs; elsewhere do nothing.

    A forward pass allocates and frees the same large blocks again and again. By default
    glibc maps each from the kernel anew, and clearing the pages can cost more than the
    arithmetic (``benchmarks/extract.py`` prints both rates). The environment
    variables for this are read before Python starts, so a running kernel has to call
    ``mallopt``. Leaving the block restores the defaults and gives the memory back.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> network, images = tl.models.small_resnet().eval(), torch.zeros(64, 1, 16, 16)
        >>> with tl.runtime.keep_memory(), torch.inference_mode():
        ...     logits = torch.cat([network(images) for _ in range(3)])
        >>> logits.shape
        torch.Size([192, 10])
    """
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    # A large threshold keeps the top of the heap; no block is mapped on its own.
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
    try:
        yield
    finally:
        mallopt(mmap_max, 65536)
        mallopt(mmap_threshold, 128 * 1024)
        mallopt(trim_threshold, 128 * 1024)
        ctypes.CDLL(None).malloc_trim(0)


@cache
def _mallopt() -> Any | None:
    """glibc's ``mallopt``, or None where the C library is another one."""
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None).mallopt


def finish(pool: Executor, jobs: Collection[Future[Any]]) -> None:
    """Wait for all jobs of a pool; after the first that fails, or an interrupt, start no other.

    Raises:
        Exception: what a job raised, once those that were running have ended.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> import tlhelpers as tl
        >>> pool = ThreadPoolExecutor(max_workers=1)
        >>> jobs = [pool.submit(int, text) for text in ("1", "two", "3")]
        >>> tl.runtime.finish(pool, jobs)
        Traceback (most recent call last):
            ...
        ValueError: invalid literal for int() with base 10: 'two'
    """
    try:
        wait(jobs, return_when=FIRST_EXCEPTION)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    for job in jobs:
        if not job.cancelled():
            job.result()


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set torch's number of threads while the block runs, and restore it afterwards.

    Example:
        >>> import torch
        >>> import tlhelpers as tl
        >>> before = torch.get_num_threads()
        >>> with tl.runtime.torch_threads(1):
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
