"""What waits in the sockets of a cell is added up from the kernel's lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_mcp.engines.sandbox.sockets import waiting_bytes

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


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with one process, 7, whose network has many sockets."""
    place = tmp_path / "7/net"
    place.mkdir(parents=True)
    (place / "sockstat").write_text("sockets: used 65\nTCP: inuse 3 orphan 0 tw 0 alloc 3 mem 9\n")
    (place / "netlink").write_text(NETLINK)
    (place / "udp").write_text(UDP)
    (place / "tcp").write_text(TCP)
    return tmp_path


def test_in_a_cgroup_only_what_it_does_not_have_is_added(proc: Path) -> None:
    assert waiting_bytes(7, in_cgroup=True, proc=proc) == 1000 + 20000 + 0x300 + 0x10000


def test_without_a_cgroup_connections_are_added_too(proc: Path) -> None:
    assert waiting_bytes(7, in_cgroup=False, proc=proc) == 1000 + 20000 + 0x300 + 0x10000 + 0x2000 + 0x10


def test_few_sockets_are_not_looked_at(proc: Path) -> None:
    (proc / "7/net/sockstat").write_text("sockets: used 64\n")

    assert waiting_bytes(7, in_cgroup=False, proc=proc) == 0


def test_a_cell_that_has_ended_has_nothing(proc: Path) -> None:
    assert waiting_bytes(8, in_cgroup=False, proc=proc) == 0
