"""Jobs of an ordinary user as plain process trees; prints what they saw as one JSON object."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from omni_mcp.contracts.sandbox import Job
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.paths import bundled


async def main() -> dict[str, Any]:
    profiles = load_profiles(bundled("sandbox") / "profiles")
    profiles["plain"] = profiles["shell"].model_copy(update={"posture": "landlock"})
    secret = Path(f"/tmp/omni-secret-{os.getpid()}")
    secret.write_text("hidden")
    try:
        async with open_sandbox(profiles=profiles, sandbox_dir=bundled("sandbox"), use_namespaces=False) as sandbox:
            script = (
                f"id -u; pwd; kill -0 {os.getpid()} || echo no; cat {secret} || echo no; (setsid sleep 300 &);"
                "mkdir -p a/b; chmod 0 a/b a"
            )
            job = Job(profile="plain", posture="landlock", argv=("/bin/sh", "-c", script))
            ends = await asyncio.gather(sandbox.run(job), sandbox.run(job))
            isolation = sandbox.isolation()
    finally:
        secret.unlink()
    said = [end.stdout.decode().split() for end in ends]
    return {
        "posture": isolation.posture,
        "layers": isolation.layers,
        "missing": isolation.missing,
        "said": said,
        "uid": os.getuid(),
        "reasons": [end.reason for end in ends],
        "left": [place for _, place, *_ in said if os.path.lexists(os.path.dirname(place))],
    }


print(json.dumps(asyncio.run(main())))
