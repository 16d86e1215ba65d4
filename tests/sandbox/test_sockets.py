"""What waits in the sockets of a cell is added up from the kernel's lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omni_mcp.engines.sandbox.sockets import SocketWatch, are_few, waiting_bytes
from tests.waiting import until

NETLINK = """\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
00000000d2a6ef71 0   0          00000000 1000     0        0     2        0        4
00000000475e032d 4   4294963000 00000000 20000    7        0     2        0        1594
"""
UDP = """\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  130: 0100007F:B3A1 00000000:0000 07 00000000:00000300 00:00000000 00000000     0        0 37684342 2 00000000 0
"""
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:B51D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 37684342 1 0000 100 0 0 10 0
   1: 0100007F:B51D 0100007F:8822 08 00000000:00010000 00:00000000 00000000     0        0 0 1 0000 20 4 0 10 -1
   2: 0100007F:8822 0100007F:B51D 01 00002000:00000010 00:00000000 00000000     0        0 37681861 1 0000 20 0 0 10 -1
"""


UNIX = """\
Num       RefCount Protocol Flags    Type St Inode Path
"""
STREAM = "0000000000000000: 00000003 00000000 00000000 0001 03 39131088\n"
DATAGRAMS = "0000000000000000: 00000002 00000000 00000000 0002 01 39131089 @receiver\n"
PAIR_OF_DATAGRAMS = "0000000000000000: 00000003 00000000 00000000 0002 01 39131090\n"
BUFFER_BYTES = 212_992
UDP_BYTES, TCP_BYTES, NETLINK_BYTES = 0x300, 0x10000 + 0x2000 + 0x10, 1000 + 20000


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with one process, 7, whose network has many sockets."""
    place = tmp_path / "7/net"
    place.mkdir(parents=True)
    (place / "sockstat").write_text("sockets: used 65\nTCP: inuse 3 orphan 0 tw 0 alloc 3 mem 9\nUDP: inuse 1 mem 0\n")
    (place / "sockstat6").write_text("TCP6: inuse 0\nUDP6: inuse 0\n")
    (place / "netlink").write_text(NETLINK)
    (place / "udp").write_text(UDP)
    (place / "tcp").write_text(TCP)
    return tmp_path


def test_in_a_cgroup_only_what_it_does_not_have_is_added(proc: Path) -> None:
    assert waiting_bytes(7, in_cgroup=True, proc=proc) == 1000 + 20000 + 0x300 + 0x10000


def test_without_a_cgroup_connections_are_added_too(proc: Path) -> None:
    assert waiting_bytes(7, in_cgroup=False, proc=proc) == 1000 + 20000 + 0x300 + 0x10000 + 0x2000 + 0x10


def test_few_sockets_are_not_looked_at(proc: Path) -> None:
    assert not are_few(7, proc)
    (proc / "7/net/sockstat").write_text("sockets: used 64\n")

    assert are_few(7, proc)


def test_lists_that_the_kernel_says_to_be_empty_are_not_read(proc: Path) -> None:
    for name, text in (("tcp6", TCP), ("udp6", UDP)):
        (proc / "7/net" / name).write_text(text)
    assert waiting_bytes(7, in_cgroup=False, proc=proc) == NETLINK_BYTES + UDP_BYTES + TCP_BYTES
    (proc / "7/net/sockstat6").write_text("TCP6: inuse 3\nUDP6: inuse 0\n")
    assert waiting_bytes(7, in_cgroup=False, proc=proc) == NETLINK_BYTES + UDP_BYTES + 2 * TCP_BYTES


@pytest.mark.parametrize(("listed", "buffers"), [
    (64 * STREAM, 0), (65 * STREAM, 1), (300 * PAIR_OF_DATAGRAMS, 236), (64 * DATAGRAMS, 640),
    (30 * STREAM + 4 * DATAGRAMS, 10),
])  # fmt: skip
def test_without_a_cgroup_each_unix_socket_beyond_the_first_may_be_full(proc: Path, listed: str, buffers: int) -> None:
    before = waiting_bytes(7, in_cgroup=False, proc=proc)
    (proc / "7/net/unix").write_text(UNIX + listed)

    assert waiting_bytes(7, in_cgroup=False, proc=proc) - before == buffers * BUFFER_BYTES
    assert waiting_bytes(7, in_cgroup=True, proc=proc) == NETLINK_BYTES + UDP_BYTES + 0x10000


def test_a_buffer_is_as_large_as_this_machine_has_them(proc: Path) -> None:
    before = waiting_bytes(7, in_cgroup=False, proc=proc)
    (proc / "7/net/unix").write_text(UNIX + 66 * STREAM)
    (proc / "sys/net/core").mkdir(parents=True)
    (proc / "sys/net/core/wmem_default").write_text("1000\n")

    assert waiting_bytes(7, in_cgroup=False, proc=proc) - before == 2000


async def test_a_look_is_told_once_and_never_made_by_whoever_asks(proc: Path) -> None:
    """The list is a pipe here, so a look goes on until the test lets it: nobody waits for it meanwhile."""
    for name in ("udp", "tcp", "netlink"):
        (proc / "7/net" / name).unlink()
    os.mkfifo(proc / "7/net/netlink")
    watch = SocketWatch(7, in_cgroup=True, proc=proc)
    assert [watch.look() for _ in range(3)] == [0, 0, 0]

    with (proc / "7/net/netlink").open("w") as pipe:  # opens as soon as the one look has it open
        pipe.write(NETLINK)
    found: list[int] = []

    def told() -> bool:
        found.append(watch.look())
        return bool(found[-1])

    (proc / "7/net/sockstat").write_text("sockets: used 64\n")
    await until(told)
    assert (found[-1], watch.look()) == (NETLINK_BYTES, 0)


def test_a_cell_that_has_ended_has_nothing(proc: Path) -> None:
    assert waiting_bytes(8, in_cgroup=False, proc=proc) == 0
