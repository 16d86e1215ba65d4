"""What a plugin's tools are given of other packages belongs to what was accepted: another byte of it waits again."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from omni_mcp.assembly import open_gateway
from omni_mcp.cli.root import cli
from omni_mcp.config import load_settings
from omni_mcp.testing import ALLOW_ALL, LocalGateway, error_of, home_in, write_private
from tests.plugins.package import SHOUT, install

NEEDS_WORDS = SHOUT.replace("posture: landlock}", "posture: landlock, packages: [acme-words]}")
SETTINGS = '[surface]\nmode = "full"\n[plugins]\ntools = ["acme"]\n'


def install_words(place: Path, text: str, version: str = "1.0") -> Path:
    """Lay out the distribution acme-words as an installer does; returns its module."""
    for old in place.glob("acme_words-*.dist-info"):
        shutil.rmtree(old)
    (place / "acme_words").mkdir(exist_ok=True)
    module = place / "acme_words" / "__init__.py"
    module.write_text(text)
    info = place / f"acme_words-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-words\nVersion: {version}\n")
    (info / "RECORD").write_text(f"acme_words/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    return module


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a plugin is installed whose tool is given another package; both stand on the path."""
    place = install(tmp_path, changes={"acme_tools/manifests/shout.yaml": NEEDS_WORDS})
    monkeypatch.syspath_prepend(str(place))
    install_words(place, "WORD = 1\n")
    importlib.invalidate_caches()
    return place


@asynccontextmanager
async def gateway(directory: Path) -> AsyncIterator[LocalGateway]:
    """Open a gateway in which the plugin is on."""
    home = home_in(directory)
    write_private(home.policies / "test.cedar", ALLOW_ALL)
    write_private(home.settings_file, SETTINGS)
    async with open_gateway(load_settings(home.settings_file), home) as opened:
        yield LocalGateway(opened, home)


def runs(directory: Path, *words: str) -> Any:
    done = CliRunner(env={"OMNI_HOME": str(directory / "home")}).invoke(cli, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if done.stdout.strip() else None


def state(here: LocalGateway) -> str:
    return str(here.gateway.catalog.get("tool", "acme", "shout").state)  # type: ignore[union-attr]


async def accepted(directory: Path) -> None:
    """Accept the plugin as it is now."""
    async with gateway(directory) as here:
        runs(directory, "accept", "acme", "--all", "--read-only", "--yes")
        await here.gateway.reload_lock()
        assert state(here) == "accepted"


async def test_one_changed_byte_of_a_package_that_a_tool_is_given_is_quarantined_with_the_difference(
    site: Path, tmp_path: Path
) -> None:
    await accepted(tmp_path)
    async with gateway(tmp_path) as here:
        unchanged = state(here)
    (site / "acme_words" / "__init__.py").write_text("WORD = 2\n")
    async with gateway(tmp_path) as here:
        changed = state(here)
        event = await here.until("definition_quarantined", count=2)
        [waiting] = runs(tmp_path, "lock")["waiting"]

    assert (unchanged, changed) == ("accepted", "quarantined")
    assert event.payload is not None and event.payload["reason"] == "changed"
    assert "packages" in json.dumps(waiting) and "files" in json.dumps(waiting)


async def test_a_new_module_in_such_a_package_or_another_version_of_it_is_quarantined_too(
    site: Path, tmp_path: Path
) -> None:
    await accepted(tmp_path)
    more = site / "acme_words" / "inner" / "more.py"
    more.parent.mkdir()
    more.write_text("")
    async with gateway(tmp_path) as here:
        with_more = state(here)
    more.unlink()
    more.parent.rmdir()
    (site / "acme_words" / "__pycache__").mkdir()
    (site / "acme_words" / "__pycache__" / "made.pyc").write_bytes(b"by an interpreter")
    async with gateway(tmp_path) as here:
        as_before = state(here)
    install_words(site, "WORD = 1\n", version="1.1")
    async with gateway(tmp_path) as here:
        newer = state(here)

    assert (with_more, as_before, newer) == ("quarantined", "accepted", "quarantined")


@pytest.mark.usefixtures("cells")
async def test_a_package_that_is_installed_anew_while_the_gateway_runs_is_not_run_before_somebody_accepts_it(
    site: Path, tmp_path: Path
) -> None:
    await accepted(tmp_path)
    async with gateway(tmp_path) as here, here.client() as client:
        before = await client.call("acme__shout", {"text": "x"})
        install_words(site, "WORD = 3\n")
        after = await client.call("acme__shout", {"text": "x"})
        event = await here.end_of(error_of(after)["call"])

    assert before["structuredContent"] == {"text": "X"}
    assert error_of(after)["code"] == "quarantined"
    assert event.payload is not None and not event.payload["dispatched"] and "start again" in event.payload["detail"]


async def test_a_plugin_whose_tool_needs_a_package_that_is_not_installed_is_named_with_it(
    site: Path, tmp_path: Path
) -> None:
    shutil.rmtree(site / "acme_words-1.0.dist-info")
    async with gateway(tmp_path) as here:
        [row] = [row for row in here.gateway.status()["plugins"] if row["name"] == "acme"]

    assert row["state"] == "failed" and "acme-words" in row["errors"][0]
