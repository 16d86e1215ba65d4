"""Whether a cgroup is over its limit: what the kernel would drop by itself is not what a job has taken."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.cgroup_v1 import GroupV1
from omni_mcp.engines.sandbox.cgroup_v2 import GroupV2
from omni_mcp.engines.sandbox.group import KERNEL_MEMORY_MIB
from omni_mcp.engines.sandbox.uids import DEFAULT_RANGE, owners_part
from tests.sandbox.conftest import Opener, in_python, lacking, limits, usable

pytestmark = pytest.mark.sandbox
MIB = 1 << 20
LIMIT_MIB = 100
FULL = (LIMIT_MIB + KERNEL_MEMORY_MIB) * MIB
LIMITS = Limits(memory_mib=LIMIT_MIB)
Over = Callable[..., bool]


def written(place: Path, files: dict[str, str]) -> Path:
    place.mkdir()
    for name, text in files.items():
        (place / name).write_text(text)
    return place


def stat(*, active: int, inactive: int, before: str = "") -> str:
    return f"{before}active_file {active}\n{before}inactive_file {inactive}\nshmem {FULL}\n"


class FakeV1(GroupV1):
    """A cgroup of version 1 whose files are plain ones."""

    def make(self) -> None:
        for name in ("memory.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes"):
            self._open[name] = os.open(f"{self._memory}/{name}", os.O_RDONLY)


def over_v1(place: Path, *, used: int, tcp: int, more: int, active: int, inactive: int) -> bool:
    """Whether such a group is over its limit. What is below it counts too, and is told after its own."""
    files = {
        "memory.limit_in_bytes": "", "memory.usage_in_bytes": f"{used}\n", "memory.kmem.tcp.usage_in_bytes": f"{tcp}\n",
        "memory.stat": stat(active=0, inactive=0) + stat(active=active, inactive=inactive, before="total_"),
        "pids.max": "",
    }  # fmt: skip
    written(place, files)
    group = FakeV1({"memory": str(place), "pids": str(place)})
    group.make()
    group.limit(LIMITS, 1)
    return group.over_memory(more)


def over_v2(place: Path, *, used: int, tcp: int, more: int, active: int, inactive: int) -> bool:
    """Whether such a group is over its limit. Its memory has the buffers of TCP in it."""
    files = {
        "memory.max": f"{FULL}\n", "memory.current": f"{used + tcp}\n",
        "memory.stat": stat(active=active, inactive=inactive),
    }  # fmt: skip
    return GroupV2(str(written(place, files)), counts_cpu=False).over_memory(more)


@pytest.mark.parametrize("over", [over_v1, over_v2])
@pytest.mark.parametrize(("used_mib", "tcp_mib", "more_mib", "active_mib", "inactive_mib", "expected"), [
    (116, 2, 0, 60, 40, False),  # full of copies of files, and one busy connection
    (114, 0, 9, 0, 100, False),
    (116, 2, 2, 0, 1, True),
    (100, 10, 10, 2, 1, True),
    (100, 10, 6, 0, 0, False),
    (116, 0, 0, 0, 0, False),  # that is the kernel's own affair
])  # fmt: skip
def test_copies_of_files_are_not_what_a_job_has_taken(
    tmp_path: Path, over: Over, used_mib: int, tcp_mib: int, more_mib: int, active_mib: int, inactive_mib: int,
    expected: bool,
) -> None:  # fmt: skip
    assert over(
        tmp_path / "group", used=used_mib * MIB, tcp=tcp_mib * MIB, more=more_mib * MIB, active=active_mib * MIB,
        inactive=inactive_mib * MIB,
    ) is expected  # fmt: skip


READ_WITH_A_BUSY_CONNECTION = """
import os, socket, time
server = socket.create_server(("127.0.0.1", 0))
sender = socket.create_connection(server.getsockname()); receiver, _ = server.accept()
sender.setblocking(False)
try:
    while True: sender.send(bytes(60000))
except BlockingIOError: pass
for _ in range(3):
    for number in range(3):
        with open(f"file{number}", "rb") as file:
            while file.read(1 << 20): pass
    time.sleep(0.3)  # three looks
print("well")
"""


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A directory for a job, not in memory as those of other tests, with files that are larger than its limit."""
    uid = owners_part(DEFAULT_RANGE)[7] if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="omni-read-") as name:
        place = Path(name)
        for number in range(3):
            file = place / f"file{number}"
            file.touch()
            os.truncate(file, 50 * MIB)
            os.chown(file, uid, uid if os.geteuid() == 0 else -1)
        os.chown(place, uid, -1)
        yield place


async def test_a_job_that_reads_more_than_its_memory_ends_by_itself(opened: Opener, on_disk: Path) -> None:
    """Copies of the files fill its group, and what its connection holds is in another account."""
    async with opened(use_cgroups=True) as found:
        if usable(found).isolation().posture != "full":
            lacking("cgroup", f"posture full cannot be had here: {found.isolation().missing}")
        mount = Mount(source=on_disk, inside="/workspace", writable=True)
        job = in_python(READ_WITH_A_BUSY_CONNECTION, limits=limits(memory_mib=64, timeout_s=60), mounts=(mount,))
        end = await found.run(job)

    assert (end.reason, end.stdout) == ("exit", b"well\n"), end
    if end.usage["memory_peak_bytes"] < 64 * MIB:
        lacking("disk", "the kernel keeps no copies of the files in /var/tmp")
