"""The page on servers in cells says what the presets are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from omni_mcp.engines.sandbox.profiles import Profile
from tests.servers.world import presets

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "servers-sandbox.md").read_text()


def row(title: str) -> list[str]:
    """Return the cells of the row that begins so."""
    found = re.search(rf"^\| {re.escape(title)} \|(.*)\|$", PAGE, re.MULTILINE)
    assert found is not None
    return [cell.strip() for cell in found[1].split("|")]


@pytest.mark.parametrize(("column", "name"), list(enumerate(("server", "npx", "uvx"))))
def test_the_table_of_presets_is_true(column: int, name: str) -> None:
    profile = presets()[name]
    memory = profile.limits.memory_mib
    size = f"{memory // 1024} GiB" if memory % 1024 == 0 else f"{memory} MiB"

    assert row("memory, processes")[column] == f"{size}, {profile.limits.processes}"
    assert row("processors")[column] == f"{profile.cpus:g}"
    assert row("CA certificates of the host")[column] == ("yes" if profile.certificates else "no")
    assert (row("kept between starts")[column] == "nothing") is (not profile.caches)
    assert row("home (`/home/cell`)")[column] == "empty at each start" and profile.home == "fresh"


def test_the_profile_on_the_page_is_one() -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    profile, shipped = Profile.model_validate(tomllib.loads(example)), presets()["uvx"]

    assert (profile.limits, profile.caches, profile.cpus) == (shipped.limits, shipped.caches, shipped.cpus)
