"""`omni-mcp doctor` finds what is wrong, says where, and how to mend it; exit code 1 only when something fails."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.cli.doctor.machine import first_closed_directory
from omni_mcp.paths import make_private_dir, write_private
from tests.daemon.gateway_world import World, a_world, serving, until

ONE_TOOL = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    version = asked.get("params", {}).get("protocolVersion")
    result = {
        "initialize": {
            "protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"},
        },
        "tools/list": {"tools": [{"name": "it", "inputSchema": {"type": "object"}}]},
    }.get(asked.get("method"), {})
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        made.write_settings("[server]\nport = 0\n")
        yield made


def doctor(world: World) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Run it; returns the exit code and the findings by name."""
    done = world.omni("doctor", "--json", check=False)
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        found.setdefault(finding["name"], []).append(finding)
    return done.returncode, found


def levels(found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    return {name: findings[0]["level"] for name, findings in found.items()}


async def test_a_fresh_home_has_nothing_that_fails_but_what_the_machine_lacks(world: World) -> None:
    _, found = doctor(world)
    failing = {name for name, level in levels(found).items() if level == "fail"}
    assert failing <= {"bubblewrap", "isolation"}
    assert levels(found)["policy"] == "warn" and "omni-mcp allow" in found["policy"][0]["next"]
    assert levels(found)["tokens"] == "warn"


async def test_every_finding_that_is_not_ok_says_what_to_do(world: World) -> None:
    make_private_dir(world.home.policies)
    world.home.policies.chmod(0o777)
    _, found = doctor(world)
    for findings in found.values():
        for finding in findings:
            assert finding["level"] == "ok" or finding["next"], finding


@pytest.mark.parametrize("name", ["policies", "manifests", "data", "home", "runtime"])
async def test_a_directory_that_others_can_write_to_fails(world: World, name: str) -> None:
    home = world.home
    path = {"policies": home.policies, "manifests": home.manifests, "data": home.data, "home": home.config}.get(name)
    place = make_private_dir(path or home.runtime)
    place.chmod(0o770)
    code, found = doctor(world)
    place.chmod(0o700)
    assert code == 1 and found[f"{name} directory"][0]["level"] == "fail"
    assert f"chmod go-w {place}" in found[f"{name} directory"][0]["next"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
async def test_a_token_that_others_can_read_fails(world: World, mode: int) -> None:
    make_private_dir(world.home.data)
    world.home.token_file.write_text("omni_x")
    world.home.token_file.chmod(mode)
    code, found = doctor(world)
    assert code == 1 and "chmod 600" in found["token file"][0]["text"]


async def test_faults_of_files_are_named_with_their_place(world: World) -> None:
    world.write_settings("[server]\nport = 0\nprot = 1\n")
    make_private_dir(world.home.policies)
    policy = world.home.policies / "mine.cedar"
    policy.write_text("\n\npermit (principal, action, resource\n")
    policy.chmod(0o600)
    make_private_dir(world.home.manifests)
    manifest = world.home.manifests / "mine.yaml"
    manifest.write_text("manifest: 1\nid: nonsense\n")
    manifest.chmod(0o600)
    code, found = doctor(world)
    assert code == 1
    assert "omni.toml:3" in found["settings"][0]["text"]
    assert "mine.cedar" in found["policy"][0]["text"]
    assert "mine.yaml" in found["manifests"][0]["text"]


async def test_a_port_that_somebody_else_has_fails(world: World) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        world.write_settings(f"[server]\nport = {other.getsockname()[1]}\n")
        code, found = doctor(world)
    assert code == 1 and found["port"][0]["level"] == "fail"


async def test_a_running_gateway_is_named_and_its_own_view_of_isolation_is_shown(world: World) -> None:
    async with serving(world) as gateway:
        _, found = doctor(world)
        assert f"process {gateway.pid}" in found["gateway"][0]["text"]
        assert found["isolation"][0]["text"].startswith(world.status()["isolation"]["posture"])
        assert "port" not in found
        assert levels(found)["tokens"] == "ok"


def define(world: World, text: str) -> None:
    """Write servers.toml, as `omni-mcp add` would."""
    world.home.config.mkdir(mode=0o700, exist_ok=True)
    write_private(world.home.config / "servers.toml", text.encode())


async def test_servers_that_do_nothing_wrong_are_counted(world: World) -> None:
    define(world, '[servers.one]\ncommand = "cat"\n[servers.off]\ncommand = "not-there"\nenabled = false\n')
    _, found = doctor(world)
    assert [finding["text"] for finding in found["servers"]] == ["1 used, 2 defined"]


async def test_a_server_whose_command_is_not_installed_fails(world: World) -> None:
    define(world, '[servers.one]\ncommand = "not-there"\n')
    code, found = doctor(world)
    assert code == 1 and found["servers"][0]["level"] == "fail"
    assert "'not-there'" in found["servers"][0]["text"] and "servers disable one" in found["servers"][0]["next"]


async def test_a_server_that_lacks_a_secret_fails_and_the_secret_is_named(world: World) -> None:
    define(world, '[servers.one]\ncommand = "cat"\nsecrets = { KEY = "nowhere" }\n')
    code, found = doctor(world)
    assert code == 1 and "secret nowhere" in found["servers"][0]["text"]


async def test_a_faulty_servers_file_and_a_faulty_lock_are_named_with_their_place(world: World) -> None:
    define(world, "[servers.one]\ncomand = 1\n")
    world.home.lock_file.write_text("{")
    world.home.lock_file.chmod(0o600)
    code, found = doctor(world)
    assert code == 1 and "servers.toml:2" in found["servers"][0]["text"]
    assert "omni.lock" in found["omni.lock"][0]["text"]


async def test_a_server_that_fails_behind_a_running_gateway_is_named_with_what_it_wrote(world: World) -> None:
    script = "import sys; print('no licence here', file=sys.stderr); sys.exit(3)"
    define(world, f'[servers.one]\ncommand = "python3"\nargs = ["-c", {json.dumps(script)}]\n')
    async with serving(world):
        await until(lambda: world.status()["servers"]["one"]["status"] in ("degraded", "offline"))
        code, found = doctor(world)
    assert code == 1 and "no licence here" in found["servers"][0]["text"]
    assert found["servers"][0]["next"] == "omni-mcp servers test one"


async def test_what_waits_to_be_accepted_is_counted(world: World) -> None:
    define(world, f'[servers.one]\ncommand = "python3"\nargs = ["-c", {json.dumps(ONE_TOOL)}]\n')
    async with serving(world):
        await until(lambda: world.status()["catalog"]["waiting"])
        _, found = doctor(world)
    assert "1 definitions" in found["acceptance"][0]["text"] and "omni-mcp accept" in found["acceptance"][0]["next"]


async def test_clients_are_shown_that_come_through_the_gateway_or_past_it(world: World) -> None:
    person = world.root / "person"
    (person / ".cursor").mkdir(parents=True)
    world.environment["HOME"] = str(person)
    file = person / ".cursor" / "mcp.json"
    past = {"notes": {"command": "npx", "args": ["-y", "notes"]}}
    file.write_text(json.dumps({"mcpServers": past}))
    assert "omni-mcp connect cursor" in doctor(world)[1]["cursor"][0]["text"]
    world.omni("connect", "cursor")
    _, found = doctor(world)
    assert found["cursor"][0]["level"] == "warn" and "notes" in found["cursor"][0]["text"]
    file.write_text(json.dumps({"mcpServers": {"omni": {"command": "/gone/omni-mcp", "args": ["stdio"]}}}))
    code, found = doctor(world)
    assert code == 1 and "/gone/omni-mcp" in found["cursor"][0]["text"]


async def test_the_text_form_names_each_level(world: World) -> None:
    done = world.omni("doctor", check=False)
    assert "ok    python" in done.stdout and "warn  policy" in done.stdout and " -> " in done.stdout


def test_the_first_directory_that_others_cannot_pass_is_found(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert first_closed_directory(Path("/usr")) is None
    (tmp_path / "a").chmod(0o700)
    closed = first_closed_directory(inner)
    assert closed is not None and closed in (tmp_path / "a", *tmp_path.parents, tmp_path)
