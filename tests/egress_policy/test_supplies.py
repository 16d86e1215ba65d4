"""What the operator gives to jobs: ranges, credentials, secrets and directories reach the tools they are meant for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.config import Settings, load_settings, read_secrets
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.sandbox import Credential
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.sandbox.supplies import Supplies
from omni_mcp.host_places import HostPlaces
from omni_mcp.opening.supplies import supplies_of
from omni_mcp.paths import Home, bundled
from omni_mcp.testing import error_of, home_in, local_gateway, write_private
from tests.egress_policy.sandbox_double import SandboxDouble, a_gateway, fetch, grant

TOKEN = "token-of-the-operator"
FILE = """[approvals]
wait_s = 0.02

[secrets]
api = "env:API_TOKEN"

[shares]
papers = "/srv/papers"

[egress]
networks = ["10.1.0.0/16", "fd00::/8"]

[[egress.credentials]]
host = "a.org:443"
secret = "api"
prefix = "Bearer "
tools = ["tools__http_fetch"]

[[egress.credentials]]
host = "b.org:443"
header = "X-Key"
secret = "api"
tools = ["tools__http_send"]
"""
MANIFEST = """manifest: 1
id: words
version: 1.0.0
title: Words
description: Counts.
input_schema: {type: object}
binding: {kind: sandbox_job, entry_point: "words:words", shares: [papers]}
secrets: [api_key]
side_effects: none
labels: {read_only: true, destructive: false, egress: false, reads_private: false, reads_untrusted: false}
"""


def settings_of(tmp_path: Path, text: str = FILE) -> Settings:
    return load_settings(write_private(tmp_path / "omni.toml", text))


def supplied(tmp_path: Path, home: Home, text: str = FILE, token: str = TOKEN) -> Supplies:
    settings = settings_of(tmp_path, text)
    return supplies_of(settings, read_secrets(settings, {"API_TOKEN": token}), home)


async def test_a_credential_goes_with_the_tool_and_host_it_was_given_for_and_nowhere_else(tmp_path: Path) -> None:
    home, sandbox = home_in(tmp_path), SandboxDouble()
    supplies = supplied(tmp_path, home)
    async with a_gateway(sandbox, tmp_path, supplies=supplies) as here, here.client() as client:
        await grant(here, "tools__*", *(f"--host={name}.org:443" for name in "abc"))
        assert [await fetch(client, f"https://{name}.org/") for name in "abc"] == [None] * 3
        sent = {"url": "https://a.org/", "method": "POST"}
        assert error_of(await client.call("tools__http_send", sent)) == {}
        said = str([event.payload for event in await here.events()])

    assert [job.credentials for job in sandbox.jobs] == [
        (Credential(host="a.org:443", header="Authorization", value=f"Bearer {TOKEN}"),), (), (), (),
    ]  # fmt: skip
    assert {job.networks for job in sandbox.jobs} == {("10.1.0.0/16", "fd00::/8")}
    assert all(job.environment == {} and TOKEN not in str(job.arguments) for job in sandbox.jobs)
    assert TOKEN not in said and TOKEN not in repr(sandbox.jobs) and TOKEN not in repr(supplies)


async def test_a_manifest_of_the_operator_gets_the_secret_and_the_directory_it_names(tmp_path: Path) -> None:
    home, sandbox = home_in(tmp_path), SandboxDouble()
    write_private(home.manifests / "words.yaml", MANIFEST)
    write_private(home.manifests / "words.py", "def words(arguments):\n    return {}\n")
    shared = tmp_path / "papers"
    shared.mkdir()
    supplies = Supplies(secrets={"api_key": TOKEN, "other": "not asked for"}, shares={"papers": shared})
    async with a_gateway(sandbox, tmp_path, supplies=supplies) as here, here.client() as client:
        assert error_of(await client.call("tools__words")) == {}
        await client.call("tools__text_hash", {"text": "x"})
        assert TOKEN not in str([event.payload for event in await here.events()])

    words, other = sandbox.jobs
    assert words.environment == {"API_KEY": TOKEN} and other.environment == {}
    mounts = {mount.inside: mount for mount in words.mounts}
    assert mounts["/shares/papers"].source == shared and not mounts["/shares/papers"].writable
    assert not any(mount.inside.startswith("/shares") for mount in other.mounts)
    assert not words.bundled and other.bundled


@pytest.mark.parametrize("lack", ["secret", "share", "directory"])
async def test_what_a_manifest_needs_and_the_operator_has_not_is_said_to_the_operator_only(
    tmp_path: Path, lack: str
) -> None:
    home, sandbox = home_in(tmp_path), SandboxDouble()
    write_private(home.manifests / "words.yaml", MANIFEST)
    write_private(home.manifests / "words.py", "def words(arguments):\n    return {}\n")
    (tmp_path / "there").mkdir()
    shares = {} if lack == "share" else {"papers": tmp_path / ("gone" if lack == "directory" else "there")}
    supplies = Supplies(secrets={} if lack == "secret" else {"api_key": TOKEN}, shares=shares)
    async with a_gateway(sandbox, tmp_path, supplies=supplies) as here, here.client() as client:
        result = await client.call("tools__words")
        assert error_of(result)["code"] == "sandbox_unavailable"
        assert "papers" not in str(result) and "api_key" not in str(result)
        outcome = (await here.until("tool_error")).payload or {}
    assert ("api_key" if lack == "secret" else "papers") in outcome["detail"]
    assert not outcome["dispatched"] and sandbox.jobs == []


async def test_a_share_that_leads_to_the_gateways_own_later_is_refused_at_the_next_call(tmp_path: Path) -> None:
    home, sandbox = home_in(tmp_path), SandboxDouble()
    write_private(home.manifests / "words.yaml", MANIFEST)
    write_private(home.manifests / "words.py", "def words(arguments):\n    return {}\n")
    (tmp_path / "real").mkdir()
    link = tmp_path / "papers"
    link.symlink_to("real")
    supplies = Supplies(secrets={"api_key": TOKEN}, shares={"papers": link}, shown=HostPlaces(home))
    async with a_gateway(sandbox, tmp_path, supplies=supplies) as here, here.client() as client:
        before = await client.call("tools__words")
        link.unlink()
        link.symlink_to(home.data)
        after = await client.call("tools__words")
        outcome = (await here.until("tool_error")).payload or {}

    assert (error_of(before), error_of(after)["code"]) == ({}, "sandbox_unavailable")
    assert "where the gateway keeps its" in outcome["detail"] and len(sandbox.jobs) == 1


def test_no_shipped_manifest_names_a_secret_or_a_share() -> None:
    shipped = ManifestDirectory(path=bundled("manifests"), bundled=True)
    for entry in ManifestSource([shipped], code=bundled("sandbox") / "tools").load():
        assert entry.manifest is not None
        assert (entry.manifest.secrets, entry.manifest.binding.shares) == ((), ())


def test_the_settings_that_the_page_shows_are_taken(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text("utf-8")
    (shown,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    settings = settings_of(tmp_path, shown)
    supplies = supplies_of(settings, read_secrets(settings, {"EXAMPLE_API_TOKEN": TOKEN}), home_in(tmp_path))
    assert [one.credential.value for one in supplies.credentials] == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize(
    ("changed", "line", "path"),
    [
        (('prefix = "Bearer "\n', 'prefix = "Bearer "\nsecret = "x"\n'), 17, ""),
        (('host = "a.org:443"\nsecret = "api"', 'host = "a.org:443"\nsecret = "nobody"'), 15, "credentials.0.secret"),
        (('header = "X-Key"\nsecret = "api"', 'header = "X-Key"\nsecret = "nobody"'), 22, "credentials.1.secret"),
        (('"a.org:443"', '"*.org:443"'), 14, "credentials.0.host"),
        (('"b.org:443"', '"b.org"'), 20, "credentials.1.host"),
        (('"X-Key"', '"Host"'), 21, "credentials.1.header"),
        (('"X-Key"', '"X Key"'), 21, "credentials.1.header"),
        (('"Bearer "', '"Bearer\\r\\nX: "'), 16, "credentials.0.prefix"),
        (('"tools__http_send"', '"http_send"'), 23, "credentials.1.tools"),
        (('"10.1.0.0/16"', '"0.0.0.0/0"'), 11, "networks"),
        (('"10.1.0.0/16"', '"10.1.0.1/16"'), 11, "networks"),
        (('"/srv/papers"', '"srv/papers"'), 8, "shares.papers"),
        (('"/srv/papers"', '"/"'), 8, "shares.papers"),
        (('"/srv/papers"', '"/proc/1"'), 8, "shares.papers"),
        (('"/srv/papers"', '"/srv/../proc"'), 8, "shares.papers"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_with_its_line(
    tmp_path: Path, changed: tuple[str, str], line: int, path: str
) -> None:
    assert settings_of(tmp_path)
    text = FILE.replace(*changed)
    assert text != FILE
    with pytest.raises(ConfigError) as refused:
        settings_of(tmp_path, text)
    (problem,) = refused.value.problems
    assert (problem.line, path in problem.path) == (line, True), str(problem)


@pytest.mark.parametrize("token", ["", "two\nlines", "ünprintable"])
def test_a_secret_that_cannot_stand_in_a_header_is_refused_without_showing_it(tmp_path: Path, token: str) -> None:
    with pytest.raises(ConfigError) as refused:
        supplied(tmp_path, home_in(tmp_path), token=token)
    assert "'api'" in str(refused.value)
    assert not token or token not in str(refused.value)


@pytest.mark.parametrize("place", ["", "home", "home/data", "home/data/secrets", "link"])
def test_a_directory_with_files_of_the_gateways_own_is_not_shared(tmp_path: Path, place: str) -> None:
    home = home_in(tmp_path)
    (tmp_path / "link").symlink_to(home.config)
    text = FILE.replace("/srv/papers", str(tmp_path / place))
    with pytest.raises(ConfigError, match="where the gateway keeps"):
        supplied(tmp_path, home, text)


async def test_a_gateway_with_a_share_of_its_own_secrets_does_not_start(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    settings: Any = Settings(shares={"all": str(home.data)})
    with pytest.raises(ConfigError, match="where the gateway keeps"):
        async with local_gateway(settings=settings, directory=tmp_path, cells=False):
            pass
