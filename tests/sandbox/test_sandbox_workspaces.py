"""Workspaces that jobs try to brick or overfill: the next call still works, or is told in words what is wrong."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from omni_mcp.contracts.errors import SandboxKilled
from omni_mcp.contracts.manifest import Limits
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.executor import SandboxExecutor
from omni_mcp.engines.sandbox.growth import Growth
from omni_mcp.engines.sandbox.tree import DEPTH_LIMIT, measure_tree
from omni_mcp.engines.sandbox.workspaces import Workspaces
from tests.sandbox.test_sandbox_executor import Shelf, call_of, number

pytestmark = pytest.mark.sandbox
PLENTY = 1 << 40


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the files of the project are that the calls here belong to."""
    return tmp_path / "w" / "blue" / "files"


@pytest.fixture
def executor(sandbox: BubblewrapSandbox, tmp_path: Path) -> SandboxExecutor:
    return SandboxExecutor(sandbox, Shelf(), Workspaces(tmp_path / "w"))


async def test_paths_longer_than_the_system_takes_do_not_brick_a_workspace(executor: SandboxExecutor) -> None:
    await executor.execute(call_of("nest", {"levels": 30, "name": "d" * 200}, workspace="project"))

    assert [number(await executor.execute(call_of("count_up", workspace="project"))) for _ in range(2)] == [1, 2]


async def test_directories_too_deep_to_be_measured_make_a_workspace_full_and_not_unusable(
    executor: SandboxExecutor,
) -> None:
    deep = call_of("nest", {"levels": DEPTH_LIMIT + 10, "name": "d"}, workspace="project")
    first = await executor.execute(deep)
    listed = await executor.execute(call_of("echo", workspace="project"))
    refused = await executor.execute(call_of("count_up", workspace="project"))

    assert "full now" in first.body["content"][-1]["text"]
    assert not listed.is_error
    assert refused.is_error
    assert refused.body["content"][0]["text"].startswith("The project's workspace is full (")


async def test_directories_that_a_job_closed_are_opened_again_for_the_next(
    executor: SandboxExecutor, place: Path
) -> None:
    closed = await executor.execute(call_of("close_doors", {"bytes": 5_000_000}, workspace="project"))
    assert closed.body["structuredContent"] == {"modes": [0, 0]}

    assert number(await executor.execute(call_of("count_up", workspace="project"))) == 1
    assert measure_tree(place, most_bytes=PLENTY, most_entries=10).held_bytes >= 5_000_000


@pytest.mark.parametrize("pause_s", [0.004, 0], ids=["while it runs", "before anybody can look"])
async def test_a_job_that_writes_more_than_its_disk_into_a_workspace_is_ended_by_name(
    executor: SandboxExecutor, place: Path, pause_s: float
) -> None:
    mib = 2000 if pause_s else 80
    caps = Limits(disk_mib=8, timeout_s=30)
    with pytest.raises(SandboxKilled) as caught:
        await executor.execute(call_of("fill", {"mib": mib, "pause_s": pause_s}, limits=caps, workspace="project"))

    assert caught.value.data["reason"] == "disk"
    assert "limits.disk_mib" in str(caught.value.data["message"])
    assert measure_tree(place, most_bytes=PLENTY, most_entries=PLENTY).held_bytes < 500 << 20


async def test_a_job_that_makes_more_files_than_it_may_is_ended_by_name(executor: SandboxExecutor) -> None:
    caps = Limits(inodes=64, timeout_s=30)
    with pytest.raises(SandboxKilled) as caught:
        await executor.execute(call_of("make_files", {"files": 2000}, limits=caps, workspace="project"))

    assert caught.value.data["reason"] == "disk"


async def test_a_look_that_the_end_of_a_job_cuts_short_hides_nothing_from_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_inodes = iter([1000, *[900] * 2])
    monkeypatch.setattr(
        os, "statvfs", lambda place: SimpleNamespace(f_bfree=1 << 20, f_frsize=1, f_ffree=next(free_inodes))
    )
    growth = Growth(tmp_path, most_bytes=PLENTY, most_entries=64, add_bytes=PLENTY, add_entries=64)
    for index in range(100):
        (tmp_path / f"f{index}").touch()
    look = asyncio.create_task(growth.is_exceeded())
    await asyncio.sleep(0)  # it measures, in a thread
    look.cancel()
    with pytest.raises(asyncio.CancelledError):
        await look

    assert await growth.is_exceeded()


async def test_what_others_remove_meanwhile_does_not_hide_what_a_job_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system is everybody's: its free room is what others do, too."""
    free_inodes = iter([1000, 1400, 1300])
    monkeypatch.setattr(
        os, "statvfs", lambda place: SimpleNamespace(f_bfree=1 << 20, f_frsize=1, f_ffree=next(free_inodes))
    )
    growth = Growth(tmp_path, most_bytes=PLENTY, most_entries=64, add_bytes=PLENTY, add_entries=64)
    assert not await growth.is_exceeded()
    for index in range(100):
        (tmp_path / f"f{index}").touch()

    assert await growth.is_exceeded()


async def test_what_a_job_may_write_it_may_write(executor: SandboxExecutor) -> None:
    """The control."""
    caps = Limits(disk_mib=32, timeout_s=30)
    for _ in range(2):  # the second time it replaces files: what counts is growth
        fill = call_of("fill", {"mib": 20, "pause_s": 0}, limits=caps, workspace="project")
        assert not (await executor.execute(fill)).is_error


async def test_the_call_that_fills_a_workspace_is_told_and_a_full_one_is_still_read(
    sandbox: BubblewrapSandbox, tmp_path: Path, place: Path
) -> None:
    executor = SandboxExecutor(sandbox, Shelf(), Workspaces(tmp_path / "w", quota_bytes=4 << 20))
    filled = await executor.execute(call_of("fill", {"mib": 5, "pause_s": 0}, workspace="project"))
    read = await executor.execute(call_of("echo", {"a": 1}, workspace="project"))
    written = await executor.execute(call_of("count_up", workspace="project"))

    assert not filled.is_error
    assert "full now" in filled.body["content"][-1]["text"]
    assert read.body["structuredContent"]["echo"] == {"a": 1}
    assert [written.is_error, "is full" in written.body["content"][0]["text"]] == [True, True]
    assert not (place / "number").exists()


async def test_callers_at_once_share_one_measuring_and_an_ended_job_asks_for_another(tmp_path: Path) -> None:
    workspaces = Workspaces(tmp_path / "w")
    place = workspaces.directory("blue", "files")
    rooms = await asyncio.gather(*(workspaces.look(place) for _ in range(24)))
    assert len({id(room.fill) for room in rooms}) == 1
    (place / "new").write_bytes(b"x")
    assert (await workspaces.look(place)).fill is rooms[0].fill
    workspaces.job_ended(place)
    assert (await workspaces.look(place)).fill.entries == 1


async def test_a_caller_who_gives_up_takes_nobodys_measuring_along(tmp_path: Path) -> None:
    workspaces = Workspaces(tmp_path / "w")
    place = workspaces.directory("blue", "files")
    first = asyncio.ensure_future(workspaces.look(place))
    second = asyncio.ensure_future(workspaces.look(place))
    await asyncio.sleep(0)
    first.cancel()

    assert not (await second).full
    with pytest.raises(asyncio.CancelledError):
        await first


def test_a_measuring_stops_at_its_cap_and_follows_no_link(tmp_path: Path) -> None:
    for index in range(50):
        (tmp_path / f"f{index}").write_bytes(b"x")
    (tmp_path / "link").symlink_to("/usr")
    os.mkfifo(tmp_path / "fifo")

    whole = measure_tree(tmp_path, most_bytes=PLENTY, most_entries=100)
    assert (whole.entries, whole.whole) == (52, True)
    cut = measure_tree(tmp_path, most_bytes=PLENTY, most_entries=10)
    assert cut.entries == 11
    assert cut.exceeds(PLENTY, 10)


def test_a_place_that_is_gone_or_a_link_is_not_measured_and_counts_as_full(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/usr")
    for name in ("gone", "link"):
        assert measure_tree(tmp_path / name, most_bytes=PLENTY, most_entries=10).exceeds(PLENTY, 10)


def test_a_measuring_leaves_no_descriptor_open(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * (DEPTH_LIMIT + 5))
    deep.mkdir(parents=True)
    before = os.listdir("/proc/self/fd")
    for most_entries in (3, 1000):
        measure_tree(tmp_path, most_bytes=PLENTY, most_entries=most_entries)
    assert os.listdir("/proc/self/fd") == before
