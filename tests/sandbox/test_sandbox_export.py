"""Files come out of a cell by descriptor: regular ones, with one name, within the caps, and no others."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from omni_mcp.engines.sandbox import export
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.export import Exported, export_files
from tests.sandbox.conftest import in_python, in_shell, limits


@pytest.fixture
def out(tmp_path: Path) -> Path:
    place = tmp_path / "out"
    place.mkdir()
    (place / "good.txt").write_text("good")
    return place


def exported_from(place: Path) -> Exported:
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return export_files(descriptor)
    finally:
        os.close(descriptor)


def test_regular_files_come_out_with_their_paths(out: Path) -> None:
    (out / "sub" / "deeper").mkdir(parents=True)
    (out / "sub" / "deeper" / "data").write_bytes(b"\x00\xff")

    found = exported_from(out)

    assert {file.name: file.data for file in found.files} == {
        "out/good.txt": b"good",
        "out/sub/deeper/data": b"\x00\xff",
    }
    assert found.rejected == []


@pytest.mark.parametrize("kind", ["symlink", "directory symlink", "hardlink", "fifo", "socket"])
def test_whatever_is_no_plain_file_stays(out: Path, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    bad = out / "bad"
    if kind == "symlink":
        bad.symlink_to(secret)
    elif kind == "directory symlink":
        bad.symlink_to(tmp_path)
    elif kind == "hardlink":
        os.link(secret, bad)
    elif kind == "fifo":
        os.mkfifo(bad)
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(bad))

    found = exported_from(out)

    assert [file.name for file in found.files] == ["out/good.txt"]
    assert [line.partition(":")[0] for line in found.rejected] == ["out/bad"]


def test_more_bytes_than_the_cap_stay(out: Path) -> None:
    """A file with a hole says little on disk and reads as much."""
    with (out / "hole").open("wb") as file:
        file.truncate(export.MAX_BYTES + 1)

    found = exported_from(out)

    assert [file.name for file in found.files] == ["out/good.txt"]
    assert "bytes in all" in found.rejected[0]


def test_more_files_than_the_cap_stay(out: Path) -> None:
    for number in range(export.MAX_FILES + 40):
        (out / f"f{number}").touch()

    found = exported_from(out)

    assert len(found.files) == export.MAX_FILES
    assert 0 < len(found.rejected) <= 32


def test_what_is_too_deep_stays(out: Path) -> None:
    deep = out.joinpath(*["d"] * export.MAX_DEPTH)
    deep.mkdir(parents=True)
    (deep / "file").touch()

    found = exported_from(out)

    assert [file.name for file in found.files] == ["out/good.txt"]
    assert "deeper" in found.rejected[0]


@pytest.mark.parametrize("name", [b"line\nbreak", b"\xff\xfe", "turned\u202etxt.exe".encode(), b"\x1b[2J"])
def test_a_name_that_would_fool_a_reader_stays(out: Path, name: bytes) -> None:
    (out / os.fsdecode(name)).touch()

    found = exported_from(out)

    assert [file.name for file in found.files] == ["out/good.txt"]
    assert all(line.isprintable() for line in found.rejected)


def test_an_endless_directory_is_not_walked_to_its_end(out: Path) -> None:
    for number in range(export.MAX_ENTRIES + 10):
        os.symlink("nowhere", out / f"l{number}")

    found = exported_from(out)

    assert found.entries_seen == export.MAX_ENTRIES + 1


@pytest.mark.sandbox
async def test_a_job_gets_back_what_it_left_in_out(each_sandbox: BubblewrapSandbox) -> None:
    script = "mkdir -p out/sub; echo one > out/one; echo two > out/sub/two; echo no > not-out"
    end = await each_sandbox.run(in_shell(script, exports=True))

    assert {file.name: file.data for file in end.files} == {"out/one": b"one\n", "out/sub/two": b"two\n"}


@pytest.mark.sandbox
async def test_files_that_nobody_asked_for_stay(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(in_shell("mkdir out; echo one > out/one"))

    assert end.files == ()


@pytest.mark.sandbox
@pytest.mark.parametrize("target", ["/", "/etc", "/proc/1/root", "/workspace"])
async def test_an_out_that_is_a_link_is_not_followed(sandbox: BubblewrapSandbox, target: str) -> None:
    end = await sandbox.run(in_shell(f"ln -s {target} out", exports=True))

    assert (end.reason, end.files) == ("exit", ())


@pytest.mark.sandbox
async def test_links_inside_out_bring_nothing_of_the_host_or_the_cell(sandbox: BubblewrapSandbox) -> None:
    script = (
        "mkdir out; cd out; ln -s /etc/hostname a; ln -s /etc/passwd b; ln -s / c; echo x > ../x; ln ../x d; mkfifo e"
    )
    end = await sandbox.run(in_shell(script, exports=True))

    assert end.files == ()
    assert len(end.usage["not_exported"]) == 5


@pytest.mark.sandbox
async def test_a_job_that_was_killed_exports_nothing(sandbox: BubblewrapSandbox) -> None:
    end = await sandbox.run(in_shell("mkdir out; echo x > out/x; sleep 60", exports=True, limits=limits(timeout_s=0.3)))

    assert (end.reason, end.files) == ("timeout", ())


@pytest.mark.sandbox
async def test_input_files_are_there_before_the_job_starts(sandbox: BubblewrapSandbox) -> None:
    big = os.urandom(300_000)
    code = "import hashlib; print(hashlib.sha256(open('in/deep/big', 'rb').read()).hexdigest(), open('note').read())"
    end = await sandbox.run(in_python(code, files={"in/deep/big": big, "note": b"hello"}))

    assert end.stdout.decode().split() == [hashlib.sha256(big).hexdigest(), "hello"]
