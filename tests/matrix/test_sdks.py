"""Clients and servers of the SDKs, as their users have them, get and give every feature across the eras."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix.pairs import End, Pair
from tests.matrix.running import fill
from tests.matrix.sdks import CLIENTS, SERVERS, ClientMade, ServerMade
from tests.matrix.world import open_world
from tests.node.presence import needed_node
from tests.node.setup import find_node

pytestmark = pytest.mark.long  # the whole matrix, which `make conformance` fills, has these cells and all others

OLDEST, NEWEST = End("2024-11-05", "sse"), End("2026-07-28", "http")
QUESTIONS = 3  # that the oldest version cannot ask, or answer


def needs(made: ClientMade | ServerMade) -> list[pytest.MarkDecorator]:
    return [] if made.made == "python" else [pytest.mark.node]


@pytest.mark.parametrize("made", [pytest.param(one, marks=needs(one), id=one.end.name) for one in CLIENTS])
async def test_a_client_of_an_sdk_has_every_feature_of_the_oldest_and_the_newest_server(
    made: ClientMade, tmp_path: Path
) -> None:
    node = find_node() if made.made == "python" else needed_node()
    async with open_world([OLDEST, NEWEST]) as world:
        client = made.connect(world, node, tmp_path)
        await world.join(made.end, client)
        tally = await fill(world, [Pair(made.end, OLDEST), Pair(made.end, NEWEST)])

    assert tally.failed == []
    assert (tally.impossible, client.modern) == (QUESTIONS, made.end.modern)


@pytest.mark.parametrize("made", [pytest.param(one, marks=needs(one), id=one.end.name) for one in SERVERS])
async def test_a_server_on_an_sdk_gives_every_feature_to_the_oldest_and_the_newest_client(
    made: ServerMade, tmp_path: Path
) -> None:
    node = find_node() if made.made == "python" else needed_node()
    async with made.serve(node, tmp_path) as server:
        async with open_world([], others={made.end.name: server}, eras=made.eras) as world:
            tally = await fill(world, [Pair(OLDEST, made.end), Pair(NEWEST, made.end)])
            spoken = world.pool.facts()[made.end.name]["connections"]["shared"]["version"]

    assert tally.failed == []
    assert (tally.impossible, spoken) == (QUESTIONS, made.version)
