"""`omni-mcp doctor` finds what is wrong, says where, and how to mend it; exit code 1 only when something fails."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.cli.doctor import first_closed_directory
from omni_mcp.paths import make_private_dir
from tests.daemon.gateway_world import World, a_world, serving


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
