"""What some tests need: the real data, and a browser; see :mod:`gates`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from gates import need


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
