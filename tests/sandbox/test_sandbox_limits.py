"""Jobs that take too much: each limit ends its job, and the end names the limit."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from omni_mcp.contracts.sandbox import Job, JobEnd, Mount
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from tests.sandbox.conftest import Opener, in_python, in_shell, limits, usable

pytestmark = pytest.mark.sandbox


async def test_a_gigabyte_is_not_to_be_had_under_256_mib(each_sandbox: BubblewrapSandbox) -> None:
    """Where a cgroup counts, the kernel kills; where none does, the allocation is refused."""
    end = await each_sandbox.run(
        in_python("block = bytearray(1 << 30); print('got it')", limits=limits(memory_mib=256))
    )

    assert b"got it" not in end.stdout
    if each_sandbox.isolation().posture == "full":
        assert end.reason == "memory"
    else:
        assert (end.reason, end.exit_code) == ("exit", 1)
        assert b"MemoryError" in end.stderr


async def test_memory_of_several_children_is_counted_together(each_sandbox: BubblewrapSandbox) -> None:
    """RLIMIT_DATA alone would let each of them have the whole limit."""
    code = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        block = bytearray(40 << 20); block[::4096] = b"x" * len(block[::4096]); time.sleep(60)
time.sleep(60)
"""
    end = await each_sandbox.run(in_python(code, limits=limits(memory_mib=128)))

    assert end.reason == "memory"


async def test_shared_memory_is_counted(each_sandbox: BubblewrapSandbox) -> None:
    code = """
import mmap, os, time
for number in range(4):
    if os.fork() == 0:
        file = os.open(f"/dev/shm/{number}", os.O_RDWR | os.O_CREAT)
        os.truncate(file, 60 << 20)
        block = mmap.mmap(file, 60 << 20)
        for place in range(0, len(block), 4096): block[place] = 1
        time.sleep(60)
time.sleep(60)
"""
    end = await each_sandbox.run(in_python(code, limits=limits(memory_mib=128, disk_mib=256)))

    assert end.reason == "memory"


SHARED_BY_NOBODY = """
import mmap, os
def got(*how, **flags):
    try: block = mmap.mmap(*how, **flags)
    except OSError as error: return error.strerror
    for place in range(0, len(block), 1 << 20):
        block[place:place + (1 << 20)] = b"x" * (1 << 20)
        block.madvise(mmap.MADV_DONTNEED, place, 1 << 20)
    return "kept" if block[0] == ord("x") else "forgotten"
def opened(how):
    try: return os.open("/dev/zero", how)
    except OSError as error: return error.strerror
zero = opened(os.O_RDWR)
print(got(-1, SIZE), got(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), sep="|")
print(got(zero, SIZE) if isinstance(zero, int) else zero)
print(os.read(opened(os.O_RDONLY), 4), got(opened(os.O_RDONLY), SIZE, flags=mmap.MAP_PRIVATE))
"""


async def test_memory_that_stays_without_being_anybodys_is_counted_or_refused(each_sandbox: BubblewrapSandbox) -> None:
    """What a process has of it is forgotten page by page, so no look at its processes finds it."""
    small = await each_sandbox.run(in_python(SHARED_BY_NOBODY.replace("SIZE", "2 << 20"), limits=limits(memory_mib=64)))
    large = await each_sandbox.run(
        in_python(SHARED_BY_NOBODY.replace("SIZE", "200 << 20"), limits=limits(memory_mib=64))
    )

    shared, zero, read = small.stdout.decode().splitlines()
    assert read == "b'\\x00\\x00\\x00\\x00' forgotten"
    if each_sandbox.isolation().posture == "full":
        assert (shared, zero, large.reason) == ("kept|forgotten", "kept", "memory")
    else:
        assert (shared, zero) == ("Cannot allocate memory|forgotten", "Permission denied")
        assert b"kept" not in large.stdout


async def test_a_kernel_without_landlock_gives_zeros_that_cannot_be_mapped(
    opened: Opener, sandbox_dir: Path, tmp_path: Path
) -> None:
    far_side = tmp_path / "sandbox"
    shutil.copytree(sandbox_dir, far_side)
    wall = far_side / "wall.py"
    newer = wall.read_text().replace("_OLDEST_LANDLOCK = 2", "_OLDEST_LANDLOCK = 99")
    wall.write_text(newer)
    async with opened(sandbox_dir=far_side, use_cgroups=False) as sandbox:
        end = await usable(sandbox).run(in_python(SHARED_BY_NOBODY.replace("SIZE", "2 << 20")))

    assert not [layer for layer in end.isolation.layers if layer.startswith("landlock")]
    assert end.stdout.decode().splitlines() == [
        "Cannot allocate memory|forgotten", "No such device", "b'\\x00\\x00\\x00\\x00' No such device",
    ]  # fmt: skip


async def test_what_stays_under_the_limit_runs(each_sandbox: BubblewrapSandbox) -> None:
    """The control."""
    end = await each_sandbox.run(
        in_python("block = bytearray(64 << 20); print(len(block))", limits=limits(memory_mib=256))
    )

    assert (end.reason, end.exit_code, end.stdout) == ("exit", 0, b"67108864\n")
    assert end.usage["memory_peak_bytes"] > 64 << 20


async def test_a_fork_bomb_stops_at_the_limit_and_dies_with_the_job(each_sandbox: BubblewrapSandbox) -> None:
    code = """
import os, time
made = 0
try:
    while made < 500:
        if os.fork() == 0: time.sleep(60); os._exit(0)
        made += 1
except OSError as error: print(type(error).__name__)
print(made)
raise SystemExit(1)
"""
    end = await each_sandbox.run(in_python(code, limits=limits(processes=20)))

    assert end.stdout.split() == [b"BlockingIOError", b"19"]
    assert (end.reason, end.exit_code, end.usage["limits_reached"]) == ("processes", 1, ["processes"])


async def test_as_many_processes_as_allowed_run_and_fewer_are_no_limit_met(each_sandbox: BubblewrapSandbox) -> None:
    """The control."""
    script = "for n in 1 2 3; do sleep 60 & done; kill $!; exit 1"
    most = await each_sandbox.run(in_shell(script, limits=limits(processes=4)))
    fewer = await each_sandbox.run(in_shell(script, limits=limits(processes=5)))
    alone = await each_sandbox.run(in_shell("exit 1", limits=limits(processes=1)))

    assert [end.stderr for end in (most, fewer, alone)] == [b""] * 3
    assert [(end.reason, end.exit_code) for end in (fewer, alone)] == [("exit", 1)] * 2
    assert "limits_reached" not in fewer.usage and "limits_reached" not in alone.usage


async def test_spinning_ends_at_the_cpu_limit(each_sandbox: BubblewrapSandbox) -> None:
    end = await each_sandbox.run(in_python("while True: pass", limits=limits(cpu_s=0.5)))

    assert end.reason == "cpu_time"
    assert end.usage["cpu_ms"] >= 400


async def test_children_spin_on_the_same_cpu_account(each_sandbox: BubblewrapSandbox) -> None:
    code = "import os\nos.fork(); os.fork()\nwhile True: pass"
    end = await each_sandbox.run(in_python(code, limits=limits(cpu_s=1)))

    assert end.reason == "cpu_time"


SPIN = """
import os, signal, time
def spin(seconds):
    while time.process_time() < seconds: pass
    os._exit(0)
"""
ORPHANS = """
for _ in range(80):
    reader, writer = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0: spin(0.02)
        os._exit(0)
    os.wait(); os.close(writer); os.read(reader, 1); os.close(reader)
time.sleep(60)
"""
UNWANTED = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(12):
    if os.fork() == 0: spin(0.3)
    try: os.wait()
    except ChildProcessError: pass
"""


@pytest.mark.parametrize("script", [ORPHANS, UNWANTED], ids=["orphans", "unwanted"])
async def test_time_of_children_that_nobody_waits_for_is_on_the_account(
    each_sandbox: BubblewrapSandbox, script: str
) -> None:
    end = await each_sandbox.run(in_python(SPIN + script, limits=limits(cpu_s=1)))

    assert end.reason == "cpu_time"
    assert end.usage["cpu_ms"] >= 1000


async def test_what_a_job_took_is_told_also_if_it_was_ended(each_sandbox: BubblewrapSandbox) -> None:
    code = "block = bytearray(30 << 20)\nwhile True: pass"
    timed_out = await each_sandbox.run(in_python(code, limits=limits(timeout_s=2)))
    flooding = await each_sandbox.run(in_shell("exec yes", limits=limits(output_limit_bytes=1 << 20)))

    assert (timed_out.reason, flooding.reason) == ("timeout", "output_limit")
    assert timed_out.usage["cpu_ms"] > 0 and timed_out.usage["memory_peak_bytes"] > 30 << 20
    assert flooding.usage["memory_peak_bytes"] > 0


async def test_a_job_that_fills_its_disk_meets_its_end_there(each_sandbox: BubblewrapSandbox) -> None:
    end = await each_sandbox.run(in_shell("cat /dev/zero > fill", limits=limits(disk_mib=8)))

    assert end.reason == "disk"
    assert b"No space left" in end.stderr
    assert end.usage["limits_reached"] == ["disk"]


async def test_shared_memory_files_and_tmp_are_limited_too(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(
        in_shell(
            "cat /dev/zero > /tmp/a; cat /dev/zero > /dev/shm/a; stat -c %s /tmp/a /dev/shm/a",
            limits=limits(disk_mib=8),
        )
    )

    assert end.stdout.split() == [str(8 << 20).encode()] * 2


async def test_inodes_are_limited(sandbox: BubblewrapSandbox) -> None:
    """bubblewrap cannot limit them; an endless row of empty files would take the host's memory."""
    end = await sandbox.run(
        in_shell(
            "i=0; while touch f$i 2>/dev/null; do i=$((i+1)); [ $i -gt 300 ] && exit 0; done; echo $i; exit 1",
            limits=limits(inodes=32),
        )
    )

    assert end.reason == "disk"
    assert int(end.stdout) < 32


async def test_a_file_over_its_size_ends_the_job(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(in_shell("exec cat /dev/zero > big", limits=limits(file_size_mib=1)))

    assert (end.reason, end.signal) == ("file_size", 25)


async def test_open_files_are_limited(sandbox: BubblewrapSandbox) -> None:
    code = "import os\ntry:\n    while True: last = os.dup(0)\nexcept OSError: print(last)"
    end = await sandbox.run(in_python(code, limits=limits(open_files=32)))

    assert end.stdout == b"31\n"


@pytest.mark.parametrize("stream", [1, 2])
async def test_a_flood_of_output_ends_the_job_and_keeps_what_fits(sandbox: BubblewrapSandbox, stream: int) -> None:
    end = await sandbox.run(in_shell(f"cat /dev/zero >&{stream}", limits=limits(output_limit_bytes=4096)))

    assert end.reason == "output_limit"
    assert len(end.stdout) + len(end.stderr) == 4096


async def test_output_is_limited_on_both_streams_together(sandbox: BubblewrapSandbox) -> None:
    script = "head -c 3000 /dev/zero; head -c 3000 /dev/zero >&2"
    end = await sandbox.run(in_shell(script, limits=limits(output_limit_bytes=4096)))

    assert end.reason == "output_limit"
    assert len(end.stdout) + len(end.stderr) == 4096


async def test_output_right_at_the_limit_is_no_flood(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(in_shell("head -c 4096 /dev/zero", limits=limits(output_limit_bytes=4096)))

    assert (end.reason, len(end.stdout)) == ("exit", 4096)


async def test_the_wall_clock_ends_a_job_that_sleeps(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(in_shell("echo before; sleep 60", limits=limits(timeout_s=0.3)))

    assert (end.reason, end.stdout, end.exit_code) == ("timeout", b"before\n", None)
    assert end.usage["wall_ms"] >= 300


@pytest.mark.parametrize(
    "code",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import signal, time\nfor n in signal.valid_signals():\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\ntime.sleep(60)",
        "import os, time\nfor _ in range(5): os.fork() or os.setsid()\ntime.sleep(60)",
    ],
    ids=["stops itself", "ignores every signal", "makes sessions of its own"],
)
async def test_no_trick_outlives_the_wall_clock(sandbox: BubblewrapSandbox, code: str) -> None:
    end = await sandbox.run(in_python(code, limits=limits(timeout_s=0.5)))

    assert end.reason == "timeout"


async def test_a_daemon_that_holds_the_output_does_not_hold_the_call(sandbox: BubblewrapSandbox) -> None:
    """It is a double fork in a session of its own; it is dead when the job's own process has ended."""
    end = await sandbox.run(in_shell("setsid sh -c 'sleep 60; echo late' & echo done", limits=limits(timeout_s=30)))

    assert (end.reason, end.stdout) == ("exit", b"done\n")
    assert end.usage["wall_ms"] < 20_000


async def test_input_that_nobody_reads_does_not_block(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(in_shell("exit 3", stdin=b"x" * (1 << 20)))

    assert (end.reason, end.exit_code) == ("exit", 3)


async def test_input_arrives_whole_and_cannot_be_written(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(
        in_shell("wc -c; echo more 2>/dev/null >> /proc/self/fd/0 && echo wrote", stdin=b"x" * 300_000)
    )

    assert end.stdout.split() == [b"300000"]


async def test_more_jobs_than_slots_wait_their_turn(sandbox: BubblewrapSandbox) -> None:
    ends = await asyncio.gather(*(sandbox.run(in_shell(f"echo {n}")) for n in range(2 * (os.cpu_count() or 1) + 3)))

    assert [end.stdout for end in ends] == [f"{n}\n".encode() for n in range(len(ends))]


@pytest.mark.parametrize(
    ("job", "word"),
    [
        (Job(profile="nosuch", argv=("true",)), "profile"),
        (Job(profile="job"), "either a command or a function"),
        (Job(profile="job", argv=("true",), function="a:b"), "either a command or a function"),
        (Job(profile="job", argv=("a\0b",)), "NUL"),
        (Job(profile="job", argv=("true",), files={"../up": b""}), "not a path inside"),
        (Job(profile="job", argv=("true",), files={"/abs": b""}), "not a path inside"),
        (Job(profile="job", argv=("true",), files={"big": b"x" * (2 << 20)}, limits=limits(disk_mib=1)), "larger than"),
        (Job(profile="job", argv=("true",), environment={"A=B": "c"}), "environment variable"),
        (Job(profile="job", function="a:b", arguments={"x": object()}), "JSON"),
        (Job(profile="job", argv=("/nowhere/program",)), "there is no command '/nowhere/program' in the cell"),
        (Job(profile="job", argv=("nowhere",)), "there is no command 'nowhere' in the cell"),
        (Job(profile="job", argv=("/etc/passwd",)), "the command '/etc/passwd' may not be executed in the cell"),
        (Job(profile="job", argv=("/workspace",)), "the command '/workspace' may not be executed in the cell"),
    ],
)
async def test_a_job_that_cannot_be_started_says_why(sandbox: BubblewrapSandbox, job: Job, word: str) -> None:
    end = await sandbox.run(job)

    assert end.reason == "start_failed"
    assert word in end.message


async def test_the_end_carries_what_was_in_force_and_what_was_used(sandbox: BubblewrapSandbox) -> None:
    end: JobEnd = await sandbox.run(in_shell("echo hello", limits=limits(memory_mib=99)))

    assert end.isolation == sandbox.isolation()
    assert end.limits["memory_mib"] == 99
    assert end.usage["bytes_out"] == 6
    assert end.usage["temperature"] in ("hot", "cold")
    assert end.usage["wall_ms"] > 0


async def test_a_directory_that_is_nobodys_of_ours_is_not_given_writable(
    sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    """A root gateway would otherwise have to run the job as that directory's owner: root."""
    if os.geteuid() != 0:
        pytest.skip("an ordinary user gives what is their own")
    end = await sandbox.run(in_shell("true", mounts=(Mount(source=tmp_path, inside="/workspace", writable=True),)))

    assert end.reason == "start_failed"
    assert "uid" in end.message


@pytest.mark.parametrize(
    "inside", ["/", "/usr", "/etc/x", "/proc", "/sandbox", "/workspace/../usr", "workspace", "/tmp", "/lib64/x", "//x"]
)
async def test_a_directory_cannot_be_put_over_the_cells_own(
    sandbox: BubblewrapSandbox, workspace: Path, inside: str
) -> None:
    end = await sandbox.run(in_shell("true", mounts=(Mount(source=workspace, inside=inside),)))

    assert end.reason == "start_failed"


async def test_a_directory_given_to_read_cannot_be_written(sandbox: BubblewrapSandbox, workspace: Path) -> None:
    (workspace / "note").write_text("hello")
    (workspace / "note").chmod(0o666)
    mount = Mount(source=workspace, inside="/workspace")
    end = await sandbox.run(
        in_shell("cat note; echo more >> note; mount -o remount,rw /workspace; echo more >> note", mounts=(mount,))
    )

    assert end.stdout == b"hello"
    assert (workspace / "note").read_text() == "hello"
