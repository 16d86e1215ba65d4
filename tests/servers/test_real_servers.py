"""Four servers of other people, fetched and run in the cells of their presets: each does its work and no more."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from omni_mcp.contracts.sandbox import Connection
from omni_mcp.engines.sandbox.server_child import ServerEnded
from omni_mcp.engines.sandbox.servers import ServerLaunch
from tests.sandbox.conftest import NOBODY, run_as_ordinary_user
from tests.servers.launches import from_pypi, npx, offline, to_json
from tests.servers.sources import Source, npm_source, npx_path, npx_prefix, pypi_source, uv_mounts, uv_read
from tests.servers.world import World, given, owned, repository

pytestmark = [pytest.mark.sandbox, pytest.mark.node, pytest.mark.slow, pytest.mark.long]

CANARY = "the canary of the host"


def hosts_of(tried: Iterable[Connection]) -> set[str]:
    return {f"{one.host}:{one.port}" for one in tried}


def half_named(source: Source) -> ServerLaunch:
    """A launch that may reach the index and not the host of its files, with an empty cache."""
    index = source.environment["UV_DEFAULT_INDEX"].split("/")[2]
    hosts = tuple(host for host in source.hosts if host.startswith(f"{index}:"))
    return replace(from_pypi("time", source=source), name="half", hosts=hosts)


@pytest.fixture
def host_file(tmp_path: Path) -> Path:
    """A file of the host that everybody could read if they saw it."""
    place = tmp_path / "beside"
    place.mkdir(mode=0o755)
    file = place / "secret.txt"
    file.write_text(CANARY)
    return file


async def test_the_filesystem_server_sees_its_directory_and_nothing_else_of_the_host(
    world: World, tmp_path: Path, host_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to serve the whole file system, so what stops it is the cell."""
    source = npm_source()
    monkeypatch.setenv("OMNI_TEST_SECRET", CANARY)
    place = tmp_path / "given"
    place.mkdir()
    (place / "note.txt").write_text("hello from the directory")
    launch = npx("filesystem", "/", source=source, directories=(given(owned(place)),))

    async with world.start(launch) as first:
        assert await first.talk.greet() == "secure-filesystem-server"
        assert await first.talk.call("read_text_file", path=str(place / "note.txt")) == (
            False, "hello from the directory",
        )  # fmt: skip
        assert not (await first.talk.call("write_file", path=str(place / "new.txt"), content="made"))[0]
        assert hosts_of(first.tried) <= set(source.hosts)
    async with world.start(offline(launch)) as second:
        await second.talk.greet()
        _, own = await second.talk.call("read_text_file", path="/proc/self/environ")
        for closed in (host_file, Path("/etc/shadow"), Path("/proc/1/environ"), Path(__file__)):
            failed, said = await second.talk.call("read_text_file", path=str(closed))
            assert failed and CANARY not in said, closed
        assert (await second.talk.call("write_file", path="/usr/new.txt", content="x"))[0]
        assert second.tried == []

    assert (place / "new.txt").read_text() == "made"
    assert (place / "new.txt").stat().st_uid == place.stat().st_uid
    assert "npm_config_offline" in own and CANARY not in own and "OMNI_TEST_SECRET" not in own


async def test_the_memory_server_remembers_over_its_end_and_writes_nowhere_else(world: World, host_file: Path) -> None:
    source = npm_source()
    ada = [{"name": "Ada", "entityType": "person", "observations": ["wrote the first program"]}]
    place = {"MEMORY_FILE_PATH": "/home/cell/.npm/memory.jsonl"}
    launch = npx("memory", source=source, environment=place)

    async with world.start(launch) as first:
        await first.talk.greet()
        assert not (await first.talk.call("create_entities", entities=ada))[0]
        assert hosts_of(first.tried) <= set(source.hosts)
    async with world.start(offline(launch)) as second:
        await second.talk.greet()
        assert "wrote the first program" in (await second.talk.call("read_graph"))[1]
    elsewhere = replace(offline(launch), environment={"MEMORY_FILE_PATH": str(host_file)})
    async with world.start(elsewhere) as third:
        await third.talk.greet()
        _, said = await third.talk.call("create_entities", entities=ada)
        assert CANARY not in said

    assert host_file.read_text() == CANARY


async def test_the_time_server_starts_again_without_a_network_and_tried_only_the_index(world: World) -> None:
    source = pypi_source()
    launch = from_pypi("time", source=source)

    async with world.start(launch) as first:
        await first.talk.greet()
        _, said = await first.talk.call("get_current_time", timezone="Asia/Tokyo")
        assert json.loads(said)["timezone"] == "Asia/Tokyo"
        assert hosts_of(first.tried) <= set(source.hosts)
    async with world.start(offline(launch)) as second:
        await second.talk.greet()
        _, said = await second.talk.call(
            "convert_time", source_timezone="UTC", target_timezone="Asia/Tokyo", time="12:00"
        )
        assert "21:00" in said
        assert second.tried == []


async def test_the_git_server_works_on_its_repository_and_sees_no_other(world: World, tmp_path: Path) -> None:
    source = pypi_source()
    mine, other = owned(repository(tmp_path / "mine")), repository(tmp_path / "other")
    launch = from_pypi("git", "--repository", str(mine), source=source, directories=(given(mine),))

    async with world.start(launch) as first:
        await first.talk.greet()
        failed, said = await first.talk.call("git_log", repo_path=str(mine))
        assert (failed, "a commit in mine" in said) == (False, True), said
        assert not (await first.talk.call("git_create_branch", repo_path=str(mine), branch_name="new"))[0]
        assert hosts_of(first.tried) <= set(source.hosts)
    without_guard = offline(replace(launch, argv=launch.argv[:2]))  # its own check of the path is off
    only_read = replace(without_guard, directories=(*uv_mounts(), given(mine, writable=False)))
    async with world.start(only_read) as second:
        await second.talk.greet()
        failed, said = await second.talk.call("git_log", repo_path=str(mine))
        assert (failed, "a commit in mine" in said) == (False, True), said
        failed, said = await second.talk.call("git_log", repo_path=str(other))
        assert (failed, "a commit in other" in said) == (True, False)
        assert (await second.talk.call("git_create_branch", repo_path=str(mine), branch_name="newer"))[0]

    branches = {file.name for file in (mine / ".git" / "refs" / "heads").iterdir()}
    assert branches == {"main", "new"}


async def test_an_ordinary_user_gets_the_same(world: World) -> None:
    """With copies of the caches that the tests above filled; only what they did not fetch is fetched here."""
    npm, pypi = npm_source(), pypi_source()
    for launch in (
        npx("filesystem", "/", source=npm), npx("memory", source=npm), from_pypi("time", source=pypi),
        from_pypi("git", source=pypi),
    ):  # fmt: skip
        if not (world.homes / launch.name).exists():
            async with world.start(launch) as running:
                await running.talk.greet()
    place = Path(tempfile.mkdtemp(prefix="omni-ordinary-"))
    try:
        shutil.copytree(world.homes, place / "homes", symlinks=True)
        work = place / "work"
        work.mkdir()
        (work / "note.txt").write_text("hello from the directory")
        mine, beside = repository(place / "mine"), repository(place / "beside")
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(place)], check=True)
        (place / "homes").chmod(0o700)
        launches = [
            npx("filesystem", "/", source=npm, directories=(given(work),)),
            npx("memory", source=npm),
            from_pypi("time", source=pypi),
            from_pypi("git", source=pypi, directories=(given(mine),)),
        ]
        order = {
            "uvx_read": uv_read(), "place": str(place),
            "npx_read": npx_prefix(), "npx_path": npx_path(),
            "launches": {launch.name: to_json(offline(launch)) for launch in launches},
            "half": to_json(half_named(pypi)), "all_hosts": list(pypi.hosts), "beside": str(beside),
        }  # fmt: skip

        script = Path(__file__).with_name("ordinary_servers.py")
        found = await asyncio.to_thread(run_as_ordinary_user, script, json.dumps(order))
        made = (work / "new.txt").stat()
    finally:
        shutil.rmtree(place, ignore_errors=True)

    assert found["filesystem"] == [[False, "hello from the directory"], False, True]
    assert found["memory"] is False
    assert json.loads(found["time"])["timezone"] == "Asia/Tokyo"
    assert found["git"] == [[False, True], [True, False]]
    assert "it was kept from" in found["half"] or "one host" in found["half"]
    assert made.st_uid == (NOBODY if os.geteuid() == 0 else os.geteuid())


@pytest.mark.parametrize("kind", ["npx", "uvx"])
async def test_a_package_that_was_never_fetched_leads_the_operator_to_hosts(world: World, kind: str) -> None:
    source = npm_source() if kind == "npx" else pypi_source()
    launch = (npx if kind == "npx" else from_pypi)("time", source=source)
    launch = offline(replace(launch, name=f"never-{kind}"))

    async with world.start(launch) as running:
        with pytest.raises(ServerEnded) as ended:
            await running.talk.greet()

    assert "it may reach no host" in str(ended.value) and "servers set NAME --packages" in str(ended.value)


async def test_a_host_that_was_not_named_stands_in_the_reason(world: World) -> None:
    """The index is named, and where its files are is not."""
    launch = half_named(pypi_source())
    left_out = set(pypi_source().hosts) - set(launch.hosts)
    if not left_out:
        pytest.skip("this index keeps its files on its own host")

    async with world.start(launch) as running:
        with pytest.raises(ServerEnded) as ended:
            await running.talk.greet()

    assert f"it was kept from {left_out.pop()}" in str(ended.value)
    assert {one.verdict for one in running.tried if f"{one.host}:{one.port}" not in launch.hosts} == {"refused"}


async def test_a_package_source_at_a_special_address_is_named_with_what_to_do(world: World) -> None:
    npm_source()
    launch = ServerLaunch(
        name="own-source", argv=("npx", "-y", "not-a-package"), profile="npx", hosts=("localhost:9",),
        environment={"npm_config_registry": "http://localhost:9/", "npm_config_fetch_retries": "0"},
    )  # fmt: skip

    async with world.start(launch) as running:
        with pytest.raises(ServerEnded) as ended:
            await running.talk.greet()

    assert "localhost:9 is in a special address range" in str(ended.value) and "egress.networks" in str(ended.value)


async def test_programs_of_a_preset_find_the_way_out_by_themselves(world: World) -> None:
    """Python's own client asks the proxy; a program that does not finds no network at all."""
    source = pypi_source()
    code = (
        "import socket, sys, urllib.request\n"
        "print(urllib.request.urlopen(sys.argv[1], timeout=30).status)\n"
        "try: socket.create_connection((sys.argv[2], 443), 5); print('reached')\n"
        "except OSError: print('no way')\n"
        "try: urllib.request.urlopen('https://not-named.example/', timeout=30); print('reached')\n"
        "except OSError as error: print('403' in str(error))\n"
    )
    if not source.environment["UV_DEFAULT_INDEX"].startswith("https:"):
        pytest.skip("the index is no https site")
    address = source.networks[0].partition("/")[0]
    url = source.environment["UV_DEFAULT_INDEX"].rstrip("/") + "/mcp-server-time/"
    launch = replace(
        from_pypi("time", source=source), name="bare", argv=("python3", "-u", "-c", code, url, address),
        environment={"SSL_CERT_DIR": os.environ.get("SSL_CERT_DIR", "/etc/ssl/certs")},
    )  # fmt: skip

    said = b""
    async with world.start(launch) as running:
        while more := await running.child.read():
            said += more

    assert said.split(b"\n")[:3] == [b"200", b"no way", b"True"], running.tail.text()
