"""A gateway in a process of its own, for tests that kill it: runs one job until it is killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from omni_mcp.contracts.sandbox import Job, Mount
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.engines.sandbox.profiles import load_profiles

HOLD = "exec 9> fifo; (setsid sleep 100 &) ; echo started >&9; sleep 100"


async def main(sandbox_dir: Path, workspace: Path) -> None:
    async with open_sandbox(profiles=load_profiles(sandbox_dir / "profiles"), sandbox_dir=sandbox_dir) as sandbox:
        mount = Mount(source=workspace, inside="/workspace", writable=True)
        await sandbox.run(Job(profile="shell", argv=("/bin/sh", "-c", HOLD), mounts=(mount,)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
