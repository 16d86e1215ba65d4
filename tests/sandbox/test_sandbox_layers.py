"""What a cell has in force is looked at for each launch, and its record says nothing that is not so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from omni_mcp.contracts.manifest import Limits
from omni_mcp.engines.sandbox.cells import open_sandbox
from omni_mcp.engines.sandbox.profiles import Profile
from tests.sandbox.conftest import in_shell, usable

pytestmark = pytest.mark.sandbox


async def test_a_cell_that_lacks_a_layer_which_the_probe_saw_runs_nothing(
    profiles: dict[str, Profile], sandbox_dir: Path
) -> None:
    wall = sandbox_dir / "wall.py"
    whole = wall.read_text()
    async with open_sandbox(profiles=profiles, sandbox_dir=sandbox_dir) as sandbox:
        before = await usable(sandbox).run(in_shell("true"))
        await sandbox.drop_templates()
        wall.write_text(
            whole.replace("    kernel.carry_out([prepared.filter])\n", "").replace('            "seccomp",\n', "")
        )
        try:
            after = await sandbox.run(in_shell("true"))
        finally:
            wall.write_text(whole)

    assert before.reason == "exit"
    assert (after.reason, after.exit_code) == ("start_failed", None)
    assert "seccomp" in after.message


@pytest.mark.long
async def test_more_profiles_than_templates_at_once_disturb_no_job(
    profiles: dict[str, Profile], sandbox_dir: Path
) -> None:
    """Sizes are part of what makes a template: here there are twice as many as may be kept."""
    async with open_sandbox(profiles=profiles, sandbox_dir=sandbox_dir, max_jobs=8) as sandbox:
        jobs = [in_shell("true", limits=Limits(disk_mib=8 + number % 32)) for number in range(96)]
        ends = await asyncio.gather(*(usable(sandbox).run(job) for job in jobs))

    assert {end.reason for end in ends} == {"exit"}
