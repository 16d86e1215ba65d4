"""Packages that are hostile or broken while plugins are looked for and opened: the gateway serves all the same."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.plugins.test_plugins import TOOLS, gateway, states

ENGINES = '[plugins.executors.bundled]\n[plugins.executors.leaves]\n[plugins.select]\nsandbox_job = "bundled"\n'
LEAVES = "raise SystemExit(3)\n"
BUNDLED = "from acme_engine import plugin\n"


@pytest.mark.usefixtures("acme")
async def test_unreadable_metadata_an_exit_at_import_and_a_name_of_ours_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    points = {
        "junk-1.dist-info": b"[omni_mcp.tools]\nno equals sign\n",
        "bytes-1.dist-info": b"\xff\xfe[x]\n",
        "mine-1.dist-info": b"[omni_mcp.executors]\nbundled = claims_bundled:plugin\nleaves = leaves:plugin\n",
    }
    for name, data in points.items():
        (site / name).mkdir(parents=True)
        (site / name / "entry_points.txt").write_bytes(data)
        (site / name / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.split('-')[0]}\nVersion: 1\n")
    (site / "claims_bundled.py").write_text(BUNDLED)
    (site / "leaves.py").write_text(LEAVES)
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    async with gateway(tmp_path, TOOLS + ENGINES) as here:
        status = here.gateway.status()
        async with here.client() as client:
            found = await client.call("tools__search_tools", {"query": "hash"})

    assert not found.get("isError")
    shown = states(status["plugins"])
    assert (shown["acme"], shown["bundled"], shown["leaves"]) == ("on", "failed", "failed")
    assert {one["key"]: one["winner"] for one in status["executors"]}["sandbox_job"] == "bundled"
