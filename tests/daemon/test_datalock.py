"""One gateway per data directory, whatever happens to the one that held it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omni_mcp.contracts.errors import AlreadyRunning, ConfigError
from omni_mcp.datalock import DataLock, boot_id, read_note

HOLDER = """
import sys
from pathlib import Path
from omni_mcp.datalock import DataLock
with DataLock(Path(sys.argv[1])) as lock:
    lock.note({"socket": "/somewhere"})
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(file: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def close(process: subprocess.Popen[str]) -> None:
    process.communicate()
    assert process.returncode is not None


def test_the_second_gateway_is_refused_and_told_the_process(tmp_path: Path) -> None:
    file = tmp_path / "gateway.lock"
    first = holder(file)
    with pytest.raises(AlreadyRunning, match=f"process {first.pid}") as caught, DataLock(file):
        pass
    assert caught.value.data == {"pid": first.pid}
    close(first)
    with DataLock(file):
        pass


def test_the_note_says_process_and_boot_while_the_lock_is_held_and_nothing_after(tmp_path: Path) -> None:
    file = tmp_path / "gateway.lock"
    first = holder(file)
    assert read_note(file) == {"pid": first.pid, "boot_id": boot_id(), "socket": "/somewhere"}
    close(first)
    assert read_note(file) is None


def test_a_killed_holder_leaves_neither_lock_nor_note(tmp_path: Path) -> None:
    file = tmp_path / "gateway.lock"
    first = holder(file)
    first.send_signal(signal.SIGKILL)
    close(first)
    assert file.read_bytes()  # its words are still there, and nobody believes them
    assert read_note(file) is None
    with DataLock(file):
        assert (read_note(file) or {})["pid"] == os.getpid()


def test_a_waiting_gateway_gets_the_lock_when_the_first_ends(tmp_path: Path) -> None:
    file = tmp_path / "gateway.lock"
    first = holder(file)
    second = subprocess.Popen(
        [sys.executable, "-c", HOLDER.replace("argv[1])", "argv[1]), wait_s=30"), str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    close(first)
    assert second.stdout is not None and second.stdout.readline() == "held\n"
    close(second)


def test_readers_of_the_note_do_not_keep_a_gateway_from_starting(tmp_path: Path) -> None:
    file = tmp_path / "gateway.lock"
    loop = "import sys\nfrom pathlib import Path\nfrom omni_mcp.datalock import read_note\nprint('on', flush=True)\n"
    loop += "for _ in range(100000):\n    read_note(Path(sys.argv[1]))\n"
    reader = subprocess.Popen([sys.executable, "-c", loop, str(file)], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None and reader.stdout.readline() == "on\n"
    try:
        for _ in range(20):
            with DataLock(file):
                pass
    finally:
        reader.kill()
        reader.communicate()


def test_a_link_in_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gateway.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError), DataLock(tmp_path / "gateway.lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff" * 100])
def test_a_note_that_cannot_be_understood_is_an_empty_one(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "gateway.lock"
    first = holder(file)
    file.write_bytes(text)
    assert read_note(file) == {}
    close(first)
