"""PlainLauncher: writes what starts a job as a plain process tree, where no namespaces can be had.

What then holds is `sandbox/plain.py`'s affair; what a plain process tree cannot give is said by `plain_fault`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import Job
from omni_mcp.engines.sandbox.launcher import CERTIFICATES, Interpreter, search_path
from omni_mcp.engines.sandbox.plan import Plan
from omni_mcp.engines.sandbox.profiles import Profile


def plain_fault(job: Job) -> str:
    """Return what *job* wants that a plain process tree cannot have; nothing if it can be tried."""
    if job.egress:
        return "a plain process has no network, so it has no way to granted hosts"
    for mount in job.mounts:
        if mount.inside != str(mount.source):
            return f"a plain process sees directories at their own places only, and not one at {mount.inside!r}"
    return ""


class PlainLauncher:
    """Writes spawn requests and setups. One per sandbox; the counterpart of `Launcher`."""

    sets_environment = False
    ended_by = (signal.SIGTERM, signal.SIGKILL)  # the supervisor ends its tree, and cannot once it is killed

    def __init__(self, *, interpreter: Interpreter, sandbox_dir: Path, stage: bool) -> None:
        self._interpreter = interpreter
        self._bundle = os.path.realpath(sandbox_dir)
        self._stage = stage

    def request(self, plan: Plan) -> dict[str, Any]:
        """Return the message that makes the spawner start one supervisor."""
        setup = self.setup(plan)
        reached = [*self._interpreter.prefixes, self._bundle, str(plan.workspace), *setup["read"], *setup["write"]]
        return {
            "op": "spawn", "id": plan.number, "bwrap": None, "uid": plan.uid, "stage": self._stage,
            "cgroups": [],
            "sources": [path for path in reached if os.path.exists(path)],
            "command": [self._interpreter.binary, "-I", "-S", "-B", f"{self._bundle}/plain.py"],
        }  # fmt: skip

    def setup(self, plan: Plan) -> JsonObject:
        """Return the first frame that the supervisor gets."""
        profile = plan.profile
        read = [*profile.read, *(CERTIFICATES if profile.certificates else ())]
        read += [str(mount.source) for mount in plan.mounts if not mount.writable]
        write = [str(mount.source) for mount in plan.mounts if mount.writable]
        return {
            "workspace": str(plan.workspace), "read": read, "write": write, "execute": [*read, *write],
            "alone": plan.alone,
        }  # fmt: skip

    def environment(self, profile: Profile) -> dict[str, str]:
        """Return what every job of *profile* finds in its environment, besides HOME and TMPDIR: its workspace."""
        return {"PATH": search_path(self._interpreter), "USER": "cell", "LOGNAME": "cell", "SHELL": "/bin/sh"}
