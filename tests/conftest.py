"""What every test may ask for: an outside world that counts, and a machine on which cells can be had."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from omni_mcp.testing import Canary


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    """An outside world without anything in it yet."""
    return Canary(tmp_path / "touched")


@pytest.fixture(scope="session")
def cells() -> None:
    """The test runs tools in cells: skip where bubblewrap is missing, or fail where it was promised."""
    if shutil.which("bwrap") is None:
        if "bwrap" in os.environ.get("OMNI_REQUIRE", "").split(","):
            pytest.fail("OMNI_REQUIRE names bwrap, and it is not installed")
        pytest.skip("bubblewrap is not installed")
