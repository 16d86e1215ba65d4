"""A replay takes no answer that a person gave to another call, and an offline one starts nothing."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.config import ApprovalSettings, Settings
from omni_mcp.contracts.manifest import Labels
from omni_mcp.replay.offline import offline_gateway
from omni_mcp.replay.recorded import read_run
from omni_mcp.replay.rerun import Options, rerun
from omni_mcp.testing import ALLOW_ALL, Canary
from tests.replay.conftest import home_of, newest, recording

READS = Labels(read_only=True, destructive=False, egress=False, reads_private=False, reads_untrusted=False)
ASKS = ALLOW_ALL + '@id("ask") @approval("required") forbid (principal, action, resource) unless '
ASKS += "{ context has approval };"
AT_ONCE = Settings(approvals=ApprovalSettings(wait_s=0))


async def test_a_replay_leaves_an_approval_to_the_call_that_it_was_given_to(canary: Canary, tmp_path: Path) -> None:
    """The caller was told to send its call again; a person has said yes meanwhile; then somebody replays the run."""
    canary.tool("look", labels=READS)
    async with recording(canary, tmp_path, rules=ASKS, settings=AT_ONCE) as here:
        async with here.client() as client:
            await client.call("canary__look", {"n": 1})
            asked = await here.until("approval_requested")
            here.answer(True)
            run = read_run(here.home, asked.run)
            report = await rerun(here.gateway, run, Options(by="operator:test"))
            assert canary.touched == [], "nobody said yes to the replay"
            assert report.calls[0].call is not None
            words = await here.words(report.calls[0].call)
            assert "approval_requested" in words and "approval_used" not in words
            await client.call("canary__look", {"n": 1})
    assert canary.touched == ["tool canary__look"]


async def test_an_offline_replay_starts_no_process(
    canary: Canary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary.tool("look", labels=READS)
    async with recording(canary, tmp_path) as here, here.client() as client:
        await client.call("canary__look")
    started: list[Any] = []

    async def watched(*command: Any, **_: Any) -> Any:
        started.append(command)
        raise AssertionError("a process was started")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)
    monkeypatch.setattr("subprocess.Popen.__init__", lambda self, *command, **_: started.append(command))
    with tempfile.TemporaryDirectory(prefix="omni-r-") as scratch:
        run = newest(tmp_path)
        prepared = offline_gateway(Settings(), home_of(tmp_path), [run], scratch=Path(scratch), sources=[canary])
        async with prepared.opener(prepared.settings, prepared.home) as gateway:
            held = gateway.status()
    assert started == [] and held["isolation"]["posture"] == "none" and held["cells"] == {"templates": 0, "cells": 0}
