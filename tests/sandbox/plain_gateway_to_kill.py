"""A gateway without namespaces, with one job in it that tells where it works and then holds a fifo open."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from omni_mcp.contracts.sandbox import Job, Mount
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.paths import bundled


async def main(sandbox_dir: Path, given: Path) -> None:
    profiles = load_profiles(bundled("sandbox") / "profiles")
    profiles["plain"] = profiles["shell"].model_copy(update={"posture": "landlock"})
    script = f"exec 5> {given}/fifo; pwd >&5; mkdir -p a/b; (setsid sleep 300 &); sleep 300"
    async with open_sandbox(profiles=profiles, sandbox_dir=sandbox_dir, use_namespaces=False) as sandbox:
        end = await sandbox.run(
            Job(
                profile="plain", posture="landlock", argv=("/bin/sh", "-c", script),
                mounts=(Mount(source=given, inside=str(given), writable=True),),
            )
        )  # fmt: skip
        (given / "fifo").write_text(f"not reached: {end}\n")


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
