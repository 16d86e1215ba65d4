"""The kernel says who is on the other end of a socket; other users are refused."""

from __future__ import annotations

import os
import socket

import pytest

from omni_mcp.contracts.errors import BadRequest, Unauthenticated
from omni_mcp.engines.identity.peer import Peer, peer_of, principal_of_peer


def test_the_peer_of_a_socket_pair_is_this_process() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_of(ours.fileno()) == Peer(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())
        theirs.send(b"x")  # asking has not closed it
        assert ours.recv(1) == b"x"


def test_a_peer_of_the_gateways_own_user_is_that_user() -> None:
    principal = principal_of_peer(Peer(pid=1, uid=1000, gid=1000), own_uid=1000)
    assert (principal.kind, principal.id, principal.key) == ("User", "1000", 'User::"1000"@default')


def test_an_agent_is_owned_by_the_user_who_started_it() -> None:
    principal = principal_of_peer(Peer(pid=1, uid=1000, gid=1000), own_uid=1000, agent="coder")
    assert (principal.kind, principal.id, principal.owner) == ("Agent", "coder", "1000")


def test_root_is_let_in_as_root_and_not_as_the_owner() -> None:
    assert principal_of_peer(Peer(pid=1, uid=0, gid=0), own_uid=1000).id == "0"


@pytest.mark.parametrize("uid", [1001, 65534, 4294967295])
def test_another_user_is_refused_also_by_a_gateway_of_root(uid: int) -> None:
    for own_uid in (0, 1000):
        with pytest.raises(Unauthenticated) as caught:
            principal_of_peer(Peer(pid=1, uid=uid, gid=uid), own_uid=own_uid, agent="coder")
        assert str(uid) not in caught.value.message


@pytest.mark.parametrize("agent", ["", 'a"b', "a\nb", "x" * 65, "é", "../x", " a"])
def test_an_agents_name_that_is_no_name_is_refused(agent: str) -> None:
    with pytest.raises(BadRequest):
        principal_of_peer(Peer(pid=1, uid=1000, gid=1000), own_uid=1000, agent=agent)
