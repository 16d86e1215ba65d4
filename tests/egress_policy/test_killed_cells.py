"""A job whose cell failed is tried again where its tool reads; one that its own limits ended is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.sandbox import EndReason, Job, JobEnd
from omni_mcp.testing import error_of
from tests.egress_policy.sandbox_double import SandboxDouble, a_gateway, grant


class Failing(SandboxDouble):
    """Every job ends alike."""

    def __init__(self, reason: EndReason, *, passing: bool) -> None:
        super().__init__()
        self._end = JobEnd(reason=reason, message="so it ended", isolation=self.isolation(), passing=passing)

    async def run(self, job: Job, **_: Any) -> JobEnd:
        self.jobs.append(job)
        return self._end


@pytest.mark.parametrize(
    ("reason", "passing", "code", "jobs"),
    [
        ("killed", True, "sandbox_killed", 3),
        ("start_failed", True, "sandbox_killed", 3),
        ("start_failed", False, "sandbox_killed", 1),
        ("memory", False, "sandbox_killed", 1),
        ("timeout", False, "timeout", 1),
        ("overloaded", False, "rate_limited", 1),
    ],
)
async def test_a_reading_tool_is_tried_again_where_its_cell_was_at_fault(
    reason: EndReason, passing: bool, code: str, jobs: int, tmp_path: Path
) -> None:
    sandbox = Failing(reason, passing=passing)
    async with a_gateway(sandbox, tmp_path) as here, here.client() as client:
        result = await client.call("tools__text_hash", {"text": "x"})
        noted = [event for event in await here.events() if event.code == "attempt_failed"]

    assert error_of(result)["code"] == code and len(sandbox.jobs) == jobs and len(noted) == jobs - 1


async def test_a_tool_that_changes_something_is_not(tmp_path: Path) -> None:
    sandbox = Failing("killed", passing=True)
    async with a_gateway(sandbox, tmp_path) as here, here.client() as client:
        await grant(here, "tools__kv_set")
        result = await client.call("tools__kv_set", {"key": "a", "value": 1})

    assert error_of(result)["code"] == "sandbox_killed" and len(sandbox.jobs) == 1
