"""The table of methods covers every method that the SDK knows of any version."""

from __future__ import annotations

import warnings

import pytest

from omni_mcp.protocol.eras import ASKS, HANDSHAKE_VERSIONS, KNOWN_VERSIONS, MODERN_VERSIONS, era_of, negotiate
from omni_mcp.protocol.methods import METHODS, check_params
from omni_mcp.protocol.rpc import RpcError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mcp_types import methods as sdk
    from mcp_types import version as sdk_version


def test_the_versions_are_those_of_the_sdk() -> None:
    assert KNOWN_VERSIONS == sdk_version.KNOWN_PROTOCOL_VERSIONS
    assert HANDSHAKE_VERSIONS == sdk_version.HANDSHAKE_PROTOCOL_VERSIONS
    assert MODERN_VERSIONS == sdk_version.MODERN_PROTOCOL_VERSIONS


@pytest.mark.parametrize(("method", "version"), sorted({*sdk.CLIENT_REQUESTS, *sdk.CLIENT_NOTIFICATIONS}))
def test_every_method_of_every_version_is_served_in_its_era(method: str, version: str) -> None:
    era = "modern" if version in MODERN_VERSIONS else "handshake"
    assert era in METHODS[method].eras
    assert METHODS[method].handler is not None


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_method_is_served_in_an_era_that_does_not_have_it(name: str) -> None:
    method = METHODS[name]
    known = {*sdk.CLIENT_REQUESTS, *sdk.CLIENT_NOTIFICATIONS}
    for era, versions in (("handshake", HANDSHAKE_VERSIONS), ("modern", MODERN_VERSIONS)):
        if era in method.eras and method.handler is not None and not name.startswith("notifications/tasks"):
            assert any((name, version) in known for version in versions)


def test_whatever_reaches_a_target_names_the_action_that_the_policy_is_asked() -> None:
    targets = {"tools/call", "resources/read", "prompts/get", "resources/subscribe", "completion/complete",
               "subscriptions/listen"}  # fmt: skip
    assert {name for name, method in METHODS.items() if method.action} == targets
    assert all(METHODS[name].recorded != "counted" for name in targets)


def test_the_questions_to_clients_are_those_of_the_sdk() -> None:
    asked = {method for method, _ in sdk.SERVER_REQUESTS} - {"ping"}
    assert asked == set(ASKS)


@pytest.mark.parametrize(
    ("method", "params", "path"),
    [
        ("tools/call", {}, "$.params.name"),
        ("tools/call", {"name": 1}, "$.params.name"),
        ("tools/call", {"name": "x" * 513}, "$.params.name"),
        ("tools/call", {"name": "x", "arguments": []}, "$.params.arguments"),
        ("resources/read", {"uri": None}, "$.params.uri"),
        ("tools/list", {"cursor": 5}, "$.params.cursor"),
        ("initialize", {}, "$.params.protocolVersion"),
        ("subscriptions/listen", {"notifications": []}, "$.params.notifications"),
    ],
)
def test_a_wrong_parameter_is_refused_with_its_path(method: str, params: dict[str, object], path: str) -> None:
    with pytest.raises(RpcError) as refused:
        check_params(METHODS[method], params)
    assert refused.value.code == -32602 and refused.value.data == {"path": path}


def test_an_unknown_version_is_answered_with_the_newest_of_the_handshake() -> None:
    assert [negotiate(v) for v in ("2024-11-05", "1999-01-01", "2026-07-28", 5)] == [
        "2024-11-05", "2025-11-25", "2025-11-25", "2025-11-25",
    ]  # fmt: skip


def test_a_request_tells_its_own_era() -> None:
    assert era_of("tools/list", {}) == "handshake"
    assert era_of("tools/list", {"_meta": {"progressToken": 1}}) == "handshake"
    assert era_of("tools/list", {"_meta": {"io.modelcontextprotocol/protocolVersion": "x"}}) == "modern"
    assert era_of("server/discover", {}) == "modern"
