"""What each test and each example of a docstring has: no progress bars, and a private cache."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _quiet_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No progress bars, and a cache that nobody else reads or fills."""
    monkeypatch.setenv("TLHELPERS_QUIET", "1")
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path / "cache"))
