"""The suite's client scenarios with the gateway's side towards servers as the client under test.

Scenarios of authorization are left out: the gateway is no OAuth client.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conformance.suite import Report, Scenario, SuiteBroken
from tests.node.setup import Node

ROOT = Path(__file__).resolve().parent.parent.parent
REVISIONS = ("2025-11-25", "2026-07-28")
LIMIT_S = 60
NEEDS_OAUTH = "auth/"


def client_scenarios(node: Node, revision: str) -> list[str]:
    """Return the scored client scenarios of *revision* that need no OAuth."""
    file = node.script("conformance-next").parent.parent / "requirements" / f"{revision}.yaml"
    wanted: list[str] = yaml.safe_load(file.read_text())["client"]
    return [name for name in wanted if not name.startswith(NEEDS_OAUTH)]


def run_client_suite(node: Node, revision: str, out: Path) -> Report:
    """Run every scenario of *revision* and judge it by its checks.

    Raises:
        SuiteBroken: one took too long, or left no checks.
    """
    names = client_scenarios(node, revision)
    title = f"conformance 0.2.0-alpha.12, client scenarios {revision} without OAuth, towards servers"
    return Report(title, tuple(_run(node, name, revision, out / name) for name in names))


def _run(node: Node, name: str, revision: str, out: Path) -> Scenario:
    out.mkdir(parents=True)
    client = shlex.join([sys.executable, "-m", "tests.conformance.upstream_leg"])
    command = [
        str(node.binary), str(node.script("conformance-next")), "client", "--command", client,
        "--scenario", name, "--spec-version", revision, "-o", str(out),
    ]  # fmt: skip
    environment = {**node.environment(), "PYTHONPATH": str(ROOT)}
    with (out / "output.txt").open("wb") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise SuiteBroken(f"{name} took longer than {LIMIT_S} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    output = (out / "output.txt").read_text(errors="replace")
    return judged(name, status, output, sorted(out.glob("*/checks.json")))


def judged(name: str, status: int, output: str, files: list[Path]) -> Scenario:
    """Read the checks; a client that failed after passing them has failed too."""
    if len(files) != 1:
        raise SuiteBroken(f"{name} left {len(files)} results\n{output[-2000:]}")
    checks = json.loads(files[0].read_text())
    failures = [f"{one['id']}: {one.get('errorMessage') or one['description']}" for one in checks
                if one["status"] == "FAILURE"]  # fmt: skip
    warnings = [f"{one['id']}: {one.get('errorMessage') or one['description']}" for one in checks
                if one["status"] == "WARNING"]  # fmt: skip
    if status != 0 and not failures:
        failures.append(f"the run ended with {status}: {output[-500:]}")
    return Scenario(
        name=name, passed=sum(one["status"] == "SUCCESS" for one in checks), failed=len(failures), scored=True,
        failures=tuple(failures), warnings=tuple(warnings),
    )  # fmt: skip
