"""Gates for what may be absent: real data, a browser, extras.

Some tests need more than the package brings: real data (``TLHELPERS_DATA``), a browser, or one of
the packages that the extras of pyproject.toml name. Where these are absent such a test is skipped
with a reason; where ``TLHELPERS_REQUIRE`` names the capability (as continuous integration does:
``TLHELPERS_REQUIRE="data browser extras"``) it fails instead, so that a broken set-up cannot pass
as a short run.
"""

from __future__ import annotations

import os

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
