"""Directories for the tools' tests; what is called in them is in tool_rooms.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.tool_rooms import Rooms


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    return Rooms(tmp_path)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """An empty workspace that is the working directory, with a neighbour that no tool may reach."""
    (tmp_path / "outside.txt").write_text("not yours")
    room = tmp_path / "workspace"
    room.mkdir()
    with contextlib.chdir(room):
        yield room
