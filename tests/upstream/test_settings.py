"""`[servers.NAME]` takes values and references, never secrets, and refuses what it does not understand."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.pool import open_upstreams
from omni_mcp.engines.upstream.settings import UpstreamSettings, filled
from tests.upstream.world import Children


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"command": "x", "url": "http://localhost/mcp"},
        {"command": "x", "headers": {"Authorization": "Bearer ${secret:k}"}},
        {"url": "http://localhost/mcp", "args": ["y"]},
        {"url": "ftp://localhost/mcp"},
        {"url": "http://user:pass@localhost/mcp"},
        {"url": "http://localhost/m cp"},
        {"url": "http://localhost/mcp", "headers": {"X-Key": "a\r\nb"}},
        {"url": "http://localhost/mcp", "headers": {"Host": "${secret:k}"}},
        {"url": "http://localhost/mcp", "headers": {"mcp-session-id": "${secret:k}"}},
        {"url": "http://localhost/mcp", "headers": {"Mcp-Param-X": "${secret:k}"}},
        {"url": "http://localhost/mcp", "headers": {"X:Y": "${secret:k}"}},
        {"command": "x", "mounts": [{"path": "relative"}]},
        {"command": "x", "timeout_s": 0},
        {"command": "x", "unknown": 1},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        UpstreamSettings.model_validate(wrong)


def test_secrets_are_named_and_filled_in_only_when_they_are_used() -> None:
    settings = UpstreamSettings(command="x", env={"TOKEN": "${secret:a}", "BOTH": "${secret:a}:${secret:b.c}"})

    assert settings.secrets == ("a", "b.c")
    assert filled(settings.env["BOTH"], {"a": "1", "b.c": "${secret:a}"}) == "1:${secret:a}"


async def test_a_secret_that_is_not_there_stops_the_start_and_names_the_server() -> None:
    settings = UpstreamSettings(url="http://localhost/mcp", headers={"Authorization": "Bearer ${secret:gone}"})
    with pytest.raises(ConfigError) as refused:
        async with open_upstreams({"up": settings}, launch=Children().launch, secrets={}, info=ClientInfo()):
            raise AssertionError("it opened")

    assert "$.servers.up" in str(refused.value) and "gone" in str(refused.value)


def test_a_definition_changes_with_what_is_reached_and_not_with_how_long_it_may_take() -> None:
    first = UpstreamSettings(command="x", args=("a",))

    assert first.definition == UpstreamSettings(command="x", args=("a",), timeout_s=5).definition
    assert first.definition != UpstreamSettings(command="x", args=("b",)).definition
