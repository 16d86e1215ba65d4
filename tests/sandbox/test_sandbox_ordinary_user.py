"""The same wall for a gateway that an ordinary user runs, on an interpreter that this user can reach."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from omni_mcp.paths import bundled
from tests.sandbox.conftest import HERE, lacking, run_as_ordinary_user

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What an ordinary user's jobs could do. Run as that user if we are root, else as ourselves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        result = run_as_ordinary_user(HERE / "ordinary_user.py", str(bundled("sandbox")), port)
    if result["isolation"]["posture"] == "none":
        lacking("userns", f"no sandbox for an ordinary user: {result['isolation']['missing']}")
    return result


def test_an_ordinary_user_gets_a_sandbox_and_is_told_how_strong(found: dict[str, Any]) -> None:
    assert found["uid"] != 0
    assert found["isolation"]["posture"] in ("full", "no-cgroup")
    assert ("cgroup" in found["isolation"]["missing"]) == (found["isolation"]["posture"] == "no-cgroup")
    assert "own-uid" not in found["isolation"]["layers"]


def test_their_job_runs_under_one_uid_that_is_mapped_to_theirs(found: dict[str, Any]) -> None:
    assert found["user"]["said"].strip() == str(["1000", "1000", "1"])  # of the template's user, which is theirs


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
