"""`tool@1.2.0`, `tool@latest`, tags, deprecation and pins of the tools of manifests."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from omni_mcp.cli.root import cli
from omni_mcp.contracts.call import Principal
from omni_mcp.engines.catalog.versions import precedence
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway, home_in, local_gateway, write_private

PINNED = Principal(kind="User", id="ann", project="old")
MANIFEST = """\
manifest: 1
id: echo
version: {version}
title: Echo {version}
description: Return the text.
tags: [{tags}]
{more}
input_schema: {{type: object, additionalProperties: true}}
binding: {{kind: sandbox_job, entry_point: "text:text_hash"}}
side_effects: none
labels: {{read_only: true, destructive: false, egress: false, reads_private: false, reads_untrusted: false}}
"""


def write(home: Path, version: str, *, tags: str = "", more: str = "") -> Path:
    name = hashlib.sha256(version.encode()).hexdigest()[:8]
    return write_private(home / "manifests" / f"{name}.yaml", MANIFEST.format(version=version, tags=tags, more=more))


@asynccontextmanager
async def here(canary: Canary, directory: Path) -> AsyncIterator[LocalGateway]:
    """A gateway on the manifests in *directory*; what runs is counted by the canary."""
    async with local_gateway(ALLOW_ALL, executors={"sandbox_job": canary}, directory=directory, cells=False) as gateway:
        yield gateway


async def ran(canary: Canary, gateway: LocalGateway, name: str, who: Principal | None = None) -> str | None:
    """Return the version that a call of *name* runs, None if it is refused."""
    before = len(canary.calls)
    async with gateway.client(**({"principal": who} if who else {})) as client:
        result = await client.call(name, {})
    assert bool(result.get("isError")) == (len(canary.calls) == before)
    tool = canary.calls[-1].tool if len(canary.calls) > before else None
    return tool.version if tool else None


async def test_names_with_a_version_a_tag_or_latest_mean_what_the_page_says(canary: Canary, tmp_path: Path) -> None:
    home = home_in(tmp_path).config
    write(home, "1.2.0", tags="stable")
    write(home, "1.10.0", tags="stable")
    write(home, "1.11.0", more="deprecated: Use 1.10.0.")
    write(home, "2.0.0-rc.1", tags="next")
    async with here(canary, tmp_path) as gateway:
        meant = {
            name: await ran(canary, gateway, f"tools__echo{name}")
            for name in (
                "",
                "@latest",
                "@1.2.0",
                "@1.11.0",
                "@2.0.0-rc.1",
                "@stable",
                "@next",
                "@9.9.9",
                "@",
                "@@1.2.0",
            )
        }
        async with gateway.client() as client:
            listed = [one["title"] for one in await client.listed("tools") if one["name"] == "tools__echo"]

    assert meant == {
        "": "1.10.0", "@latest": "1.10.0", "@1.2.0": "1.2.0", "@1.11.0": "1.11.0", "@2.0.0-rc.1": "2.0.0-rc.1",
        "@stable": "1.10.0", "@next": "2.0.0-rc.1", "@9.9.9": None, "@": None, "@@1.2.0": None,
    }  # fmt: skip
    assert listed == ["Echo 1.10.0"]


async def test_a_pinned_project_keeps_its_version_of_a_manifest_and_fails_when_the_file_goes(
    canary: Canary, tmp_path: Path
) -> None:
    home = home_in(tmp_path).config
    first = write(home, "1.0.0")
    async with here(canary, tmp_path) as gateway:
        person = CliRunner(env={"OMNI_HOME": str(home)})
        assert person.invoke(cli, ["pins", "set", "old", "tools__echo", "1.0.0"]).exit_code == 0
        await gateway.gateway.reload_lock()
        write(home, "2.0.0")
        await gateway.gateway.reload()
        pinned = await ran(canary, gateway, "tools__echo", PINNED)
        other = await ran(canary, gateway, "tools__echo")
        elsewhere = await ran(canary, gateway, "tools__echo@2.0.0", PINNED)
        first.unlink()
        await gateway.gateway.reload()
        gone = await ran(canary, gateway, "tools__echo", PINNED)
        outcomes = sorted(word for words in (await gateway.outcomes()).values() for word in words)

    assert (pinned, other, elsewhere, gone) == ("1.0.0", "2.0.0", None, None)
    assert outcomes == ["tool_error:pin_missing", "tool_error:policy_denied", "tool_result", "tool_result"]


async def test_the_same_version_twice_and_a_version_of_a_bundled_tool_are_refused(
    canary: Canary, tmp_path: Path
) -> None:
    home = home_in(tmp_path).config
    write(home, "1.0.0")
    async with here(canary, tmp_path) as gateway:
        for text in (
            MANIFEST.format(version="1.0.0", tags="", more=""),
            MANIFEST.format(version="99.0.0", tags="", more="").replace("id: echo", "id: text_hash"),
        ):
            file = write_private(home / "manifests" / "other.yaml", text)
            with pytest.raises(Exception, match="is defined already in"):
                await gateway.gateway.reload()
            file.unlink()
        assert await ran(canary, gateway, "tools__echo") == "1.0.0"


ORDER = ["0.9.0", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
         "1.0.0-rc.1", "1.0.0", "1.2.0", "1.10.0", "10.0.0"]  # fmt: skip


@given(st.permutations(ORDER))
def test_versions_are_ordered_as_semantic_versions_are(mixed: list[str]) -> None:
    """Source: Semantic Versioning 2.0.0, section 11."""
    assert sorted(mixed, key=precedence) == ORDER
