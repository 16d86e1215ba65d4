"""Servers take values and names of secrets, which are filled in when a connection is made, and not before."""

from __future__ import annotations

import pytest

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.pool import open_upstreams
from omni_mcp.server_definition import ServerDefinition
from tests.upstream.world import Children


def test_secrets_are_named_and_filled_in_only_when_they_are_used() -> None:
    definition = ServerDefinition(command="x", env={"PLAIN": "p"}, secrets={"TOKEN": "a"})

    assert definition.secret_names == {"a"}
    assert definition.environment({"a": "secret:a"}) == {"PLAIN": "p", "TOKEN": "secret:a"}


async def test_a_secret_that_is_not_there_stops_the_start_and_names_the_server() -> None:
    definition = ServerDefinition(url="http://localhost/mcp", headers={"Authorization": "Bearer secret:gone"})
    with pytest.raises(ConfigError) as refused:
        async with open_upstreams({"up": definition}, launch=Children().launch, secrets={}, info=ClientInfo()):
            raise AssertionError("it opened")

    assert "$.servers.up" in str(refused.value) and "gone" in str(refused.value)


def test_a_definition_changes_with_what_is_reached_and_not_with_how_long_it_may_take() -> None:
    first = ServerDefinition(command="x", args=("a",))

    assert first.definition == ServerDefinition(command="x", args=("a",), timeout_s=5, description="y").definition
    assert first.definition != ServerDefinition(command="x", args=("b",)).definition
