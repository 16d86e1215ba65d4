"""Runs `omni-mcp sandbox run` as whoever runs this, and prints what came of it as one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def run(*words: str) -> list[object]:
    command = [sys.executable, "-P", "-m", "omni_mcp.cli.main", "sandbox", "run", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    return [done.returncode, done.stdout, done.stderr]


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.environ["OMNI_HOME"] = str(Path(place, "home"))
        workspace = Path(place, "given")
        workspace.mkdir()
        (workspace / "in.txt").write_text("given\n")
        closed = Path(place, "closed")
        closed.mkdir()
        script = "cat in.txt; echo made > out.txt; rm in.txt"
        print(
            json.dumps(
                {
                    "plain": run("--", "sh", "-c", "cat; exit 3"),
                    "workspace": run("--workspace", str(workspace), "--", "sh", "-c", script),
                    "files": {file.name: file.read_text() for file in sorted(workspace.iterdir())},
                    "owners": sorted({file.stat().st_uid == os.getuid() for file in workspace.iterdir()}),
                    "closing": run("--workspace", str(closed), "--", "sh", "-c", "echo made > made; chmod 0 ."),
                    "closed": run("--workspace", str(closed), "--", "cat", "made"),
                    "above": run("--workspace", place, "--", "true"),
                    "foreign": run("--workspace", "/opt", "--", "true"),
                    "memory": run("--memory", "64", "--", "python3", "-c", "x = bytearray(300 << 20)"),
                }
            )
        )


main()
