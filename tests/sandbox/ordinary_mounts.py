"""Run by an ordinary user: one job leads a directory of another elsewhere; prints what the other then saw, as JSON."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from omni_mcp.contracts.errors import SandboxUnavailable
from omni_mcp.contracts.sandbox import Job, JobEnd, Mount
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox, open_sandbox
from omni_mcp.engines.sandbox.profiles import Profile, load_profiles
from omni_mcp.engines.sandbox.servers import ServerCells, ServerLaunch, Tail
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home


async def try_all(sandbox: BubblewrapSandbox, place: Path) -> dict[str, Any]:
    (place / "private" / "data").mkdir(parents=True)
    (place / "private" / "data" / "x").write_text("never granted")
    project = place / "project"
    (project / "repo" / "data").mkdir(parents=True)
    (project / "repo" / "data" / "x").write_text("granted")
    (place / "by-the-operator").symlink_to(project / "repo")
    whole = Mount(source=project, inside=str(project), writable=True, as_owner=True)
    part = Mount(source=project / "repo" / "data", inside="/srv/part", as_owner=True)
    linked = Mount(source=place / "by-the-operator" / "data", inside="/srv/part", as_owner=True)

    async def end_of(script: str, mount: Mount) -> JobEnd:
        end = await sandbox.run(Job(profile="shell", argv=("/bin/sh", "-c", script), mounts=(mount,)))
        await sandbox.drop_templates()
        return end

    found: dict[str, Any] = {"isolation": sandbox.isolation().as_json()}
    found["before"] = (await end_of("cat /srv/part/x", part)).stdout.decode()
    found["linked"] = (await end_of("cat /srv/part/x", linked)).stdout.decode()
    found["swap"] = (
        await end_of(f"cd {project} && mv repo old && ln -s ../private repo && echo ok", whole)
    ).stdout.decode()
    after = await end_of("cat /srv/part/x", part)
    found["after"] = [after.reason, after.stdout.decode(), after.message]
    return found


async def refusals(sandbox: BubblewrapSandbox, profiles: dict[str, Profile], place: Path) -> list[str]:
    """Start a server whose directory is behind a link that another one left there before this gateway."""
    project, part = place / "project", place / "project" / "repo" / "data"
    definitions = (
        Mount(source=project, inside=str(project), writable=True, as_owner=True),
        Mount(source=part, inside=str(part), as_owner=True),
    )
    said: list[str] = []
    for known in ((), definitions):
        own = Home(config=place / "config", data=place / "data", runtime=place / "run")
        cells = ServerCells(sandbox, profiles, place / "homes", secrets={}, shown=HostPlaces(own))
        cells.remember(known)
        launch = ServerLaunch(name="two", argv=("/bin/true",), directories=definitions[1:])
        try:
            async with cells.start(launch, tail=Tail()) as served:
                said.append((await served.ended).reason)
        except SandboxUnavailable as error:
            said.append(error.detail)
    return said


async def main(sandbox_dir: Path) -> None:
    place = Path(tempfile.mkdtemp(prefix="omni-mounts-", dir="/var/tmp"))
    try:
        profiles = load_profiles(sandbox_dir / "profiles")
        async with open_sandbox(profiles=profiles, sandbox_dir=sandbox_dir) as sandbox:
            if not sandbox.isolation().at_least("no-cgroup"):
                print(json.dumps({"isolation": sandbox.isolation().as_json()}))
                return
            found = await try_all(sandbox, place)
        async with open_sandbox(profiles=profiles, sandbox_dir=sandbox_dir) as sandbox:
            found["refusals"] = await refusals(sandbox, profiles, place)
        print(json.dumps(found))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
