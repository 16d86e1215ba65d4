"""Run by an ordinary user on their own interpreter: tries the wall from inside and prints what it found as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import Job
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox, open_sandbox
from omni_mcp.engines.sandbox.launcher import base_interpreter
from omni_mcp.engines.sandbox.profiles import load_profiles

JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "user": ("print(open('/proc/self/uid_map').read().split())", {}),
    "secrets": (
        "import glob, os\nfor name in ('/etc/shadow', '/home', '/root', '/proc/1/environ', '/proc/1/mem', {mine!r}):\n"
        "    try: os.close(os.open(name, 0)); print('opened', name)\n    except OSError: pass",
        {},
    ),
    "network": (
        "import socket\ntry: socket.create_connection(('127.0.0.1', {port}), 5); print('reached')\n"
        "except OSError: print('refused')",
        {},
    ),
    "namespace": ("import ctypes; print(ctypes.CDLL(None).unshare(0x10000000))", {}),
    "memory": ("block = bytearray(1 << 30); print('got it')", {"memory_mib": 256}),
    "family": (
        "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n"
        "        b = bytearray(40 << 20); b[::4096] = b'x' * len(b[::4096])\n"
        "        time.sleep(60)\ntime.sleep(60)",
        {"memory_mib": 128},
    ),
    "forks": (
        "import os, time\nn = 0\ntry:\n    while n < 300:\n"
        "        if os.fork() == 0: time.sleep(60); os._exit(0)\n        n += 1\n"
        "except OSError: pass\nprint(n)",
        {"processes": 20},
    ),
    "time": ("import time; time.sleep(60)", {"timeout_s": 0.5}),
    "cpu": ("while True: pass", {"cpu_s": 1}),
    "disk": ("open('fill', 'wb').write(bytes(20 << 20))", {"disk_mib": 8}),
    "flood": ("import os\nwhile True: os.write(1, bytes(65536))", {"output_limit_bytes": 4096}),
}


async def try_all(sandbox: BubblewrapSandbox, port: int) -> dict[str, Any]:
    found: dict[str, Any] = {"isolation": sandbox.isolation().as_json(), "uid": os.getuid()}
    for name, (code, caps) in JOBS.items():
        code = code.replace("{port}", str(port)).replace("{mine!r}", repr(__file__))
        job = Job(
            profile="python",
            argv=(base_interpreter().binary, "-I", "-S", "-c", code),
            limits=Limits(**{"timeout_s": 20, **caps}),
        )
        end = await sandbox.run(job)
        found[name] = {"reason": end.reason, "said": end.stdout[:200].decode(), "erred": end.stderr[-200:].decode()}
    return found


async def main(sandbox_dir: Path, port: int) -> None:
    async with open_sandbox(profiles=load_profiles(sandbox_dir / "profiles"), sandbox_dir=sandbox_dir) as sandbox:
        if sandbox.isolation().posture == "none":
            print(json.dumps({"isolation": sandbox.isolation().as_json()}))
        else:
            print(json.dumps(await try_all(sandbox, port)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
