"""Unix sockets with names: had where no program of the host can be reached by one, and said in the outcome."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.unix_sockets import why_refused
from tests.sandbox.conftest import Opener, in_python, outside, usable

pytestmark = pytest.mark.sandbox
HEADER = "Num       RefCount Protocol Flags    Type St Inode Path\n"
LINE = "0000000000000000: 00000002 00000000 00010000 0001 01 12345 {}\n"
USUAL = Profile(profile=1, description="Says nothing of sockets.")
ASK = """
import socket
talker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
talker.settimeout(30); talker.connect({!r}); talker.send(b"who?"); print("reached")
"""
SERVE = """
import socket
server = socket.socket(socket.AF_UNIX); server.bind("/tmp/served"); server.listen(); print("served")
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host in which somebody serves for everybody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        (tmp_path / "socket").chmod(0o777)
        tmp_path.chmod(0o755)
        yield tmp_path


def bound(place: Path, *names: str) -> Path:
    """Return a list as the kernel writes it, of sockets with *names*."""
    file = place / "unix"
    file.write_text(HEADER + "".join(LINE.format(name) for name in names))
    return file


async def test_a_cell_of_its_own_files_serves_and_says_that_it_may(each_sandbox: BubblewrapSandbox) -> None:
    end = await each_sandbox.run(in_python(SERVE))

    assert (end.stdout, end.limits["unix_sockets"]) == (b"served\n", True), end


async def test_who_serves_in_a_directory_that_a_job_may_only_read_is_not_reached(
    sandbox: BubblewrapSandbox, served: Path
) -> None:
    """A mount that can only be read hinders nobody from connecting: the control does so."""
    assert outside(ASK.format(str(served / "socket"))) == "reached"
    shown = Mount(source=served, inside="/shares/served")
    end = await usable(sandbox).run(in_python(ASK.format("/shares/served/socket"), mounts=(shown,)))

    assert b"reached" not in end.stdout
    assert b"Address family not supported" in end.stderr, end
    assert end.limits["unix_sockets"] is False


def test_a_path_that_the_profile_shows_is_a_reason_against_them(tmp_path: Path) -> None:
    reading = Profile(profile=1, description="Reads it.", read=("/opt/data",))

    assert "/opt/data" in why_refused(reading, (), shown=(), bound=bound(tmp_path))


async def test_without_a_cgroup_only_so_many_connections_wait_to_be_taken(opened: Opener) -> None:
    """Each keeps what was sent through it, and its sender no descriptor."""
    code = """
import socket
server = socket.socket(socket.AF_UNIX); server.bind("\\0waiting"); server.listen(4096)
taken = 0
try:
    while taken < 4096:
        talker = socket.socket(socket.AF_UNIX); talker.setblocking(False); talker.connect("\\0waiting")
        talker.close(); taken += 1
except BlockingIOError: pass
print(taken)
"""
    async with opened(use_cgroups=False) as sandbox:
        end = await usable(sandbox).run(in_python(code))

        assert 1 <= int(end.stdout) <= 64, end


@pytest.mark.parametrize("word", [True, False])
async def test_the_word_of_a_profile_goes_before_the_rule(opened: Opener, word: bool) -> None:
    own = Profile(profile=1, description="With a word of its own.", unix_sockets=word)
    async with opened(profiles={"python": own}, use_cgroups=word) as sandbox:
        end = await usable(sandbox).run(in_python(SERVE))

        assert (end.stdout == b"served\n", end.limits["unix_sockets"]) == (word, word), end


async def test_a_module_of_an_operator_is_a_file_and_no_reason_against_them(
    sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    module = tmp_path / "module.py"
    module.write_text("")
    end = await usable(sandbox).run(
        in_python(SERVE, mounts=(Mount(source=module, inside="/packages/module.py"),), limits=Limits(timeout_s=30))
    )

    assert (end.stdout, end.limits["unix_sockets"]) == (b"served\n", True), end


@pytest.mark.parametrize(("name", "refused"), [
    ("/usr/local/var/service.sock", True), ("/lib/service", True), ("/opt/python/run/a b", True),
    ("run/service", True), ("../service", True), ("/run/two\nlines", True),
    ("/usrlocal/service", False), ("@/usr/abstract", False), ("/run/service", False), ("", False),
])  # fmt: skip
def test_a_service_below_what_every_cell_sees_is_a_reason_against_them(
    tmp_path: Path, name: str, refused: bool
) -> None:
    said = why_refused(USUAL, (), shown=["/opt/python"], bound=bound(tmp_path, "/run/other", name))

    assert bool(said) is refused
    assert name in said or "\n" in name or not refused


def test_the_kernels_own_list_names_a_service_as_the_rule_expects_it(served: Path) -> None:
    assert str(served / "socket") in why_refused(USUAL, (), shown=[str(served)])
    assert not why_refused(USUAL, (), shown=[str(served.parent / "other")])


def test_without_a_list_there_are_none(tmp_path: Path) -> None:
    assert why_refused(USUAL, (), shown=(), bound=tmp_path / "nothing")
    assert not why_refused(USUAL, (), shown=(), bound=bound(tmp_path))


def test_a_copy_for_the_job_is_no_reason_against_them_and_a_directory_that_is_gone_is(tmp_path: Path) -> None:
    copy = Mount(source=tmp_path, inside="/workspace", writable=True, copy=True)
    gone = Mount(source=tmp_path / "gone", inside="/workspace")

    assert not why_refused(USUAL, (copy,), shown=(), bound=bound(tmp_path))
    assert "/workspace" in why_refused(USUAL, (gone,), shown=(), bound=bound(tmp_path))
