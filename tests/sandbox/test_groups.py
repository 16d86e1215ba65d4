"""One cgroup serves one cell after another: what a job leaves in it, the next one does not notice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from omni_mcp.contracts.sandbox import Job
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.cgroup import find_hierarchy
from omni_mcp.engines.sandbox.cgroup_files import removed
from omni_mcp.engines.sandbox.cgroup_v1 import HierarchyV1
from omni_mcp.engines.sandbox.group import Group
from omni_mcp.engines.sandbox.groups import SPARE_GROUPS, Groups
from omni_mcp.engines.sandbox.launcher import Launcher, base_interpreter
from omni_mcp.engines.sandbox.pool import Pool
from omni_mcp.engines.sandbox.probe import Missing, find_bwrap, probe
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.uids import DEFAULT_RANGE, running_as_root
from omni_mcp.paths import bundled
from tests.sandbox.conftest import (
    PYTHON,
    Opener,
    cgroups_of,
    children_of,
    in_python,
    in_shell,
    lacking,
    limits,
    templates_of,
    usable,
)

pytestmark = pytest.mark.sandbox
ENOUGH_S = 30.0
TRUE = in_shell("true")
BUSY = "import os, time\nended = time.process_time() + 0.035\nwhile time.process_time() < ended: pass\nos._exit(0)"


@pytest.fixture
def version_1() -> HierarchyV1:
    found = find_hierarchy()
    if not isinstance(found, HierarchyV1):
        pytest.skip("no cgroups of version 1 here")
    return found


@pytest_asyncio.fixture(loop_scope="module")
async def counting(
    opened: Opener, profiles: dict[str, Profile], version_1: HierarchyV1
) -> AsyncIterator[BubblewrapSandbox]:
    """A sandbox that makes each cell when it is wanted: so few cgroups go round."""
    cold = {name: profile.model_copy(update={"warm": 0}) for name, profile in profiles.items()}
    async with opened(profiles=cold) as found:
        if usable(found).isolation().posture != "full":
            lacking("cgroup", f"posture full cannot be had here: {found.isolation().missing}")
        yield found


@pytest.fixture
def group(version_1: HierarchyV1) -> Iterator[Group]:
    made = version_1.create(1)
    made.limit(limits(memory_mib=64), 0.5)
    yield made
    made.kill()
    until(made.remove)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENOUGH_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def inside(group: Group, script: str) -> subprocess.Popen[bytes]:
    """Start *script*, which joins *group* before anything else."""
    join = "".join(f"open({door!r}, 'w').write('0')\n" for door in group.doors)
    return subprocess.Popen([PYTHON, "-I", "-S", "-c", join + script], stdin=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def directory(group: Group, controller: str) -> Path:
    return next(Path(door).parent for door in group.doors if f"/{controller}" in door)


async def test_the_same_few_cgroups_serve_many_cells(counting: BubblewrapSandbox) -> None:
    seen: set[str] = set()
    for _ in range(30):
        assert (await counting.run(TRUE)).exit_code == 0
        seen |= {Path(place).name for place in cgroups_of(os.getpid())}

    assert len(seen) <= 6  # one is the template's; the end of a cell and the start of the next overlap


async def next_ones(sandbox: BubblewrapSandbox, job: Job) -> list[dict[str, Any]]:
    """Run *job* three times after each other, so that one of them gets what the last job had; return their usage."""
    ends = [await sandbox.run(job) for _ in range(3)]
    assert {(end.reason, end.exit_code) for end in ends} == {("exit", 0)}, ends
    return [end.usage for end in ends]


async def test_no_account_of_a_job_is_continued_by_the_next(counting: BubblewrapSandbox) -> None:
    greedy = in_python(
        "import time\nblock = bytearray(60 << 20); block[::4096] = b'x' * len(block[::4096])\n"
        "while time.process_time() < 0.6: pass"
    )
    for _ in range(2):
        end = await counting.run(greedy)
        assert end.usage["memory_peak_bytes"] > 60 << 20 and end.usage["cpu_ms"] > 500  # the control
        for usage in await next_ones(counting, TRUE):
            assert usage["memory_peak_bytes"] < 30 << 20
            assert usage["cpu_ms"] < 500


async def test_who_was_killed_for_memory_is_not_mistaken_for_the_next(counting: BubblewrapSandbox) -> None:
    for _ in range(2):
        end = await counting.run(
            in_shell("head -c 300000000 /dev/zero | tail > /dev/null", limits=limits(memory_mib=64))
        )
        assert end.reason == "memory"
        await next_ones(counting, TRUE)


async def test_each_job_has_its_own_limits_whatever_the_last_one_had(counting: BubblewrapSandbox) -> None:
    def asks(mib: int, memory_mib: int) -> Job:
        code = f"block = bytearray({mib} << 20); block[::4096] = b'x' * len(block[::4096])"
        return in_python(code, limits=limits(memory_mib=memory_mib))

    for _ in range(3):
        for job in (asks(8, 64), asks(8, 64), asks(150, 256), asks(150, 256)):
            assert (await counting.run(job)).exit_code == 0
        assert (await counting.run(asks(150, 64))).reason == "memory"


async def test_files_that_the_last_job_read_are_not_charged_to_the_next(
    counting: BubblewrapSandbox, workspace: Path
) -> None:
    """Pages of files of the host stay in memory, and charged, when their reader has gone."""
    reader = in_shell("find /usr -type f -size +500k 2>/dev/null | head -n 40 | xargs cat > /dev/null")
    for _ in range(2):
        assert (await counting.run(reader)).exit_code == 0
        for usage in await next_ones(counting, TRUE):
            assert usage["memory_peak_bytes"] < 12 << 20


async def test_ready_cells_are_in_cgroups_of_their_own_and_hold_no_way_into_another(
    opened: Opener, version_1: HierarchyV1
) -> None:
    async with opened() as sandbox:
        if usable(sandbox).isolation().posture != "full":
            lacking("cgroup", "posture full cannot be had here")
        await asyncio.gather(*(sandbox.run(TRUE) for _ in range(3)))
        async with asyncio.timeout(ENOUGH_S):
            while (found := homes_and_files_of(sandbox, len(version_1.controllers))) is None:
                await asyncio.sleep(0.01)
        homes, files = found

        assert len(set(homes)) == len(homes)
        assert not [file for file in files if "cgroup" in file or file.endswith(("tasks", "procs"))]


def homes_and_files_of(sandbox: BubblewrapSandbox, controllers: int) -> tuple[list[str], list[str]] | None:
    """Return the cgroups of two or more ready cells, and what their processes 1 have open; None while one comes.

    One that has ended is in no cgroup of ours any more.
    """
    ready = sandbox.held()["cells"]
    cells = [cell for template in templates_of(sandbox) for cell in children_of(template)]
    try:
        homes = [Path(f"/proc/{cell}/cgroup").read_text() for cell in cells]
        files = [os.readlink(place) for cell in cells for place in Path(f"/proc/{cell}/fd").iterdir()]
    except OSError:
        return None
    counted = [home for home in homes if home.count("/omni-cell-") == controllers]
    return (homes, files) if len(counted) == len(cells) == ready == sandbox.held()["cells"] >= 2 else None


def test_a_cgroup_with_a_process_in_it_is_not_used_again(group: Group) -> None:
    process = inside(group, "import time; time.sleep(60)")
    until(lambda: not group.renew())
    end(process)

    until(group.renew)


def test_a_cgroup_that_still_pays_for_memory_is_not_used_again(group: Group) -> None:
    """Memory without a process: a file in a tmpfs is charged to whoever wrote it until it is removed."""
    left = Path(f"/dev/shm/omni-test-{os.getpid()}")
    try:
        inside(group, f"open({str(left)!r}, 'wb').write(bytes(8 << 20))").communicate()
        assert not group.renew()
    finally:
        left.unlink()

    until(group.renew)


def test_a_cgroup_whose_process_was_killed_for_memory_is_not_used_again(group: Group) -> None:
    process = inside(group, "block = bytearray(300 << 20); block[::4096] = b'x' * len(block[::4096])")

    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert group.out_of_memory() and not group.renew()


def test_a_cgroup_that_had_refused_forks_is_not_used_again(version_1: HierarchyV1) -> None:
    group = version_1.create(2)
    try:
        group.limit(limits(processes=1), 1.0)
        process = inside(
            group, "import os\ntry:\n  for _ in range(9): os.fork() or os.read(0, 1)\nexcept OSError: pass"
        )
        until(group.forks_refused)
        group.kill()
        process.communicate()
        until(lambda: (directory(group, "pids/") / "pids.current").read_text() == "0\n")
        assert not group.renew()
    finally:
        group.kill()
        until(group.remove)


def test_the_next_process_has_its_whole_share_of_the_processor(group: Group) -> None:
    """A cgroup that has used up its time is stopped until the period ends: the next one would wait for the last.

    Each uses 35 ms of the 50 that it may in a period of 100 ms.
    """
    for _ in range(10):
        until(group.renew)
        inside(group, BUSY).communicate()
    words = (directory(group, "cpu/") / "cpu.stat").read_text().split()

    assert words[words.index("nr_throttled") + 1] == "0"


def test_the_start_of_a_cell_is_not_as_slow_as_the_last_job_had_to_be(group: Group) -> None:
    quota = directory(group, "cpu/") / "cpu.cfs_quota_us"
    group.limit(limits(), 0.01)
    assert quota.read_text() == "1000\n"
    until(group.renew)
    assert quota.read_text() == "50000\n"
    group.limit(limits(), 0.01)

    assert quota.read_text() == "1000\n"


async def test_a_process_that_does_not_die_in_one_cgroup_is_no_matter_of_the_next_cell(
    counting: BubblewrapSandbox,
) -> None:
    """Here it is one in a directory beneath, where nobody looks for it."""
    assert (await counting.run(TRUE)).exit_code == 0
    beneath = [Path(place) / "beneath" for place in cgroups_of(os.getpid()) if "/pids/" in place]
    process = subprocess.Popen(["sleep", "60"])
    try:
        for place in beneath:
            place.mkdir()
        ends = []
        for place in beneath:
            (place / "cgroup.procs").write_text(str(process.pid))
            ends += [await counting.run(TRUE) for _ in range(2)]
    finally:
        end(process)
        for place in beneath:
            until(partial(removed, str(place)))

    assert {(run.reason, run.exit_code) for run in ends} == {("exit", 0)}


class Shed:
    """A group on no kernel: counts how often it was renewed, and is gone once removed."""

    def __init__(self, *, fit: bool = True) -> None:
        self.fit, self.gone, self.renewed = fit, False, 0

    def renew(self) -> bool:
        self.renewed += 1
        return self.fit

    def kill(self) -> None: ...

    def remove(self) -> bool:
        self.gone = True
        return True


class Sheds:
    """A hierarchy of them."""

    def __init__(self, *, renews: bool = True) -> None:
        self.controllers = frozenset[str]()
        self.renews = renews
        self.made: list[Shed] = []
        self.prefixes: list[str] = []

    def create(self, number: int) -> Group:
        self.made.append(Shed())
        return cast(Group, self.made[-1])

    def sweep(self) -> None: ...


async def taken(groups: Groups, count: int) -> list[Group]:
    found = [await groups.take(number) for number in range(count)]
    return [group for group in found if group is not None]


async def test_only_so_many_are_kept_and_none_after_the_end() -> None:
    sheds = Sheds()
    groups = Groups(sheds)
    used = await taken(groups, SPARE_GROUPS + 3)
    for group in used[:-1]:
        await groups.give_back(group)
    assert [shed.gone for shed in sheds.made] == [False] * SPARE_GROUPS + [True, True, False]
    await groups.close()
    await groups.give_back(used[-1])

    assert all(shed.gone for shed in sheds.made)


async def test_one_that_is_not_fit_any_more_is_removed_and_another_taken() -> None:
    sheds = Sheds()
    groups = Groups(sheds)
    for group in await taken(groups, 3):
        await groups.give_back(group)
    sheds.made[0].fit = sheds.made[1].fit = False
    found = await groups.take(9)
    await groups.drop()

    assert found is cast(Group, sheds.made[2])
    assert [shed.gone for shed in sheds.made] == [True, True, False]


async def test_where_accounts_cannot_begin_anew_each_cell_has_a_new_one() -> None:
    sheds = Sheds(renews=False)
    groups = Groups(sheds)
    for _ in range(3):
        for group in await taken(groups, 1):
            await groups.give_back(group)

    assert [(shed.gone, shed.renewed) for shed in sheds.made] == [(True, 0)] * 3


def test_a_group_keeps_its_doors_open_for_one_cell_after_the_other_and_closes_them_when_it_goes(
    version_1: HierarchyV1,
) -> None:
    before = os.listdir("/proc/self/fd")
    made = version_1.create(1)
    entrances = list(made.entrances())

    assert [os.readlink(f"/proc/self/fd/{entrance}") for entrance in entrances] == made.doors
    assert made.entrances() == entrances
    until(made.remove)
    assert os.listdir("/proc/self/fd") == before


class Unjoinable:
    """A group whose door cannot be written to."""

    def __init__(self, real: Group, door: int) -> None:
        self._real, self._door = real, door

    def entrances(self) -> list[int]:
        return [self._door]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Barred(HierarchyV1):
    """Its first group can be joined, and no later one: a template stands, and its cells do not."""

    def __init__(self, places: dict[str, Path], door: int) -> None:
        super().__init__(places)
        self._door = door

    def create(self, number: int) -> Group:
        real = super().create(number)
        return cast(Group, Unjoinable(real, self._door)) if number > 1 else real


async def test_a_cell_that_cannot_join_its_cgroup_never_counts_as_one(version_1: HierarchyV1) -> None:
    """It ends before it is ready, and the posture says that there are no cgroups, and why."""
    bwrap, sandbox_dir, uids = find_bwrap(), bundled("sandbox"), DEFAULT_RANGE if running_as_root() else None
    if isinstance(bwrap, Missing):
        lacking("bwrap", bwrap.reason)
        return
    launcher = Launcher(bwrap=bwrap, interpreter=base_interpreter(), sandbox_dir=sandbox_dir, stage=uids is not None)
    with open("/dev/full", "wb", buffering=0) as door:
        barred = Barred(version_1.places, door.fileno())
        pool = Pool(launcher=launcher, sandbox_dir=sandbox_dir, hierarchy=barred, uids=uids)
        try:
            isolation = await probe(pool, None)
        finally:
            await pool.close()

    assert isolation.posture == "no-cgroup"
    assert "No space left" in isolation.missing["cgroup"]
