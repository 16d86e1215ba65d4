"""The same wall for a gateway that an ordinary user runs, on an interpreter that this user can reach."""

from __future__ import annotations

import json
import os
import shutil
import site
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import omni_mcp
from omni_mcp.paths import bundled
from tests.sandbox.conftest import HERE, lacking

pytestmark = pytest.mark.sandbox
_NOBODY = 65534


def _interpreter_for_others() -> str | None:
    """Return a Python of our version that everybody can run."""
    for place in ("/usr/bin", "/usr/local/bin"):
        found = shutil.which(f"python{sysconfig.get_python_version()}", path=place)
        if found:
            return found
    return None


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What an ordinary user's jobs could do. Run as that user if we are root, else as ourselves."""
    packages = [str(Path(omni_mcp.__path__[0]).parent), *site.getsitepackages()]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(packages),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    interpreter, who = sys.executable, {}
    if os.geteuid() == 0:
        other = _interpreter_for_others()
        if other is None:
            lacking("ordinary-user", "no interpreter of this version outside a private directory")
            raise AssertionError
        interpreter, who = other, {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
    command = [interpreter, str(HERE / "ordinary_user.py"), str(bundled("sandbox"))]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        usable = subprocess.run(
            [interpreter, "-c", "import omni_mcp.engines.sandbox.cells"],
            env=environment,
            cwd="/",
            capture_output=True,
            check=False,
            **who,
        )  # type: ignore[call-overload]
        if usable.returncode != 0:
            lacking("ordinary-user", f"an ordinary user cannot import the package here: {usable.stderr[-200:]!r}")
        done = subprocess.run(
            [*command, port], env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False, **who
        )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    if result["isolation"]["posture"] == "none":
        lacking("userns", f"no sandbox for an ordinary user: {result['isolation']['missing']}")
    return result


def test_an_ordinary_user_gets_a_sandbox_and_is_told_how_strong(found: dict[str, Any]) -> None:
    assert found["uid"] != 0
    assert found["isolation"]["posture"] in ("full", "no-cgroup")
    assert ("cgroup" in found["isolation"]["missing"]) == (found["isolation"]["posture"] == "no-cgroup")
    assert "own-uid" not in found["isolation"]["layers"]


def test_their_job_runs_under_their_own_uid_and_no_other(found: dict[str, Any]) -> None:
    assert found["user"]["said"].strip() == str(["1000", str(found["uid"]), "1"])


def test_their_files_and_those_of_the_host_are_not_there(found: dict[str, Any]) -> None:
    opened = set(found["secrets"]["said"].replace("opened ", "").split())

    assert found["secrets"]["reason"] == "exit"
    assert opened <= {"/home", "/root"}  # at most an empty directory on the way to the interpreter


def test_their_loopback_is_out_of_reach(found: dict[str, Any]) -> None:
    assert found["network"]["said"].strip() == "refused"


def test_they_make_no_namespace(found: dict[str, Any]) -> None:
    assert found["namespace"]["said"].strip() == "-1"


def test_their_memory_is_limited_alone_and_together(found: dict[str, Any]) -> None:
    assert "got it" not in found["memory"]["said"]
    assert found["family"]["reason"] == "memory"


def test_their_forks_are_limited(found: dict[str, Any]) -> None:
    assert 15 <= int(found["forks"]["said"]) <= 23


@pytest.mark.parametrize(
    ("job", "reason"), [("time", "timeout"), ("cpu", "cpu_time"), ("disk", "disk"), ("flood", "output_limit")]
)
def test_their_limits_end_jobs_by_name(found: dict[str, Any], job: str, reason: str) -> None:
    assert found[job]["reason"] == reason
