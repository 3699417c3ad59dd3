"""What every test stands on: a private cache, no progress bars, and gates for what may be absent.

Some tests need more than the package brings: real data (``TLHELPERS_DATA``), a browser, or one of
the packages that the extras of pyproject.toml name. Where these are absent such a test is skipped
with a reason; where ``TLHELPERS_REQUIRE`` names the capability (as continuous integration does:
``TLHELPERS_REQUIRE="data browser extras"``) it fails instead, so that a broken set-up cannot pass
as a short run.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

REQUIRE_VARIABLE = "TLHELPERS_REQUIRE"
CAPABILITIES = ("data", "browser", "extras")


def required() -> frozenset[str]:
    """The capabilities whose absence is a failure.

    Raises:
        ValueError: if the variable names something that no test asks for.
    """
    names = frozenset(os.environ.get(REQUIRE_VARIABLE, "").split())
    if unknown := names - set(CAPABILITIES):
        raise ValueError(
            f"{REQUIRE_VARIABLE} may name {', '.join(CAPABILITIES)}; "
            f"found {', '.join(sorted(unknown))}."
        )
    return names


def need(capability: str, found: bool, reason: str) -> None:
    """Skip the test when what it needs is absent, or fail it where that is required.

    Args:
        capability: ``"data"``, ``"browser"`` or ``"extras"``.
        found: whether it is there.
        reason: what is missing, and how to provide it.
    """
    if capability not in CAPABILITIES:
        raise ValueError(f"capability must be one of {CAPABILITIES}, found {capability!r}.")
    if found:
        return
    if capability in required():
        pytest.fail(f"{REQUIRE_VARIABLE} asks for {capability!r}: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _quiet_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No progress bars, and a cache that nobody else reads or fills."""
    monkeypatch.setenv("TLHELPERS_QUIET", "1")
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data that ``TLHELPERS_DATA`` names."""
    value = os.environ.get("TLHELPERS_DATA")
    need("data", bool(value), "TLHELPERS_DATA names no folder with the real data.")
    folder = Path(str(value)).expanduser()
    need("data", folder.is_dir(), "TLHELPERS_DATA names something that is not a folder.")
    return folder


@pytest.fixture(scope="session")
def chromium_path() -> Path:
    """The Chromium that the system brings (the Debian package ``chromium``)."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    need("browser", found is not None, "No chromium on the PATH (Debian: apt install chromium).")
    return Path(str(found))
