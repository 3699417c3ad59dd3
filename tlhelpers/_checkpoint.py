"""A file that a training run can be taken up from; ``train.fit`` stands on this module."""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from tlhelpers import runtime
from tlhelpers.splits import Dataset

_FORMAT = "tlhelpers-checkpoint-2"
_CHUNK = 1024  # examples that are hashed at a time

Identity = Mapping[str, Mapping[str, str]]


class Checkpoint:
    """The file of one run.

    Args:
        path: the file.
        identity: what the run is of, by part (recipe, network, data, run): each a dict of words.
        every: seconds after which the file is due to be written again.
    """

    def __init__(self, path: Path, identity: Identity, every: float) -> None:
        self.path, self.identity, self.every = path, identity, every
        self.written = time.monotonic()

    def due(self) -> bool:
        """Is it time to write the file again?"""
        return time.monotonic() - self.written >= self.every

    def read(self) -> bytes | None:
        """The file's content, of this run for sure; None if there is no file.

        Raises:
            ValueError: if the file is no checkpoint, or one of something else.
        """
        unfinished = re.compile(re.escape(self.path.name) + r"\.\d+\.part")
        for part in self.path.parent.glob("*.part"):
            if unfinished.fullmatch(part.name):  # of a run that was killed while it wrote
                part.unlink(missing_ok=True)
        if not self.path.is_file():
            return None
        try:
            content = self.path.read_bytes()
            stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
            raise ValueError(
                f"{self.path.name} is not a readable checkpoint: {error}. Delete it, or name "
                f"another file."
            ) from error
        if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
            raise ValueError(
                f"{self.path.name} should be a checkpoint of the format {_FORMAT!r}. Name another "
                f"file."
            )
        self._compare(stored["identity"])
        return content

    def _compare(self, stored: Identity) -> None:
        for part, now in self.identity.items():
            then = stored.get(part, {})
            other = [k for k in now if then.get(k) != now[k]]
            if not other:
                continue
            details = ", ".join(
                f"{k} {then.get(k)} there, {now[k]} now" if part in ("recipe", "run") else k
                for k in other
            )
            hint = " (make it anew, from the same seed or weights)" if part == "network" else ""
            raise ValueError(
                f"{self.path.name} is a checkpoint of another {part}: {details}{hint}. Call fit "
                f"with what it was made for, name another file, or delete this one."
            )

    def write(self, state: Mapping[str, Any]) -> None:
        """Write the state, whole or not at all."""
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "identity": self.identity, **state}, buffer)
        runtime.write_whole(self.path, buffer.getvalue())
        self.written = time.monotonic()


def unpack(content: bytes, device: torch.device) -> dict[str, Any]:
    """The state in a checkpoint's content, its tensors on the device."""
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)


def digest(data: Dataset) -> str:
    """sha256 of what training and selection see."""
    whole = hashlib.sha256(repr(data.classes).encode())
    for split in (data.train, data.validation):
        if isinstance(split.x, Tensor):
            whole.update(f"{split.name}{tuple(split.x.shape)}{split.x.dtype}".encode())
            for part in split.x.detach().split(_CHUNK):
                whole.update(part.cpu().contiguous().numpy().data)
        elif hasattr(split.x, "digest"):
            whole.update(f"{split.name}{len(split)}{split.x.digest()}".encode())
        else:
            raise TypeError(
                f"a checkpoint says which images it is of, so a lazy sequence needs digest(), but "
                f"{type(split.x).__name__} of {data.name} has none."
            )
        whole.update(split.y.cpu().numpy().tobytes())
    return whole.hexdigest()
