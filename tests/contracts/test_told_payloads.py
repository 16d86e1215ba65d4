"""What is recorded of a payload is the same whether its fields are taken as they are or go through its model."""

from __future__ import annotations

from typing import Any

import pytest

from omni_mcp.contracts.artifact import ArtifactRef
from omni_mcp.contracts.events import PinFact, PinsChanged, PolicyDecided, RunClosed, ToolResult, stated, told_by
from omni_mcp.contracts.json import canonical
from omni_mcp.contracts.manifest import Closed

REF = ArtifactRef(sha256="0" * 64, size=3, media_type="text/plain", name="a")
PAYLOADS = [
    RunClosed(reason="idle"),
    ToolResult(is_error=False, result={"a": [1, {"b": None}]}, where="remote", duration_ms=1.5, bytes_out=3),
    ToolResult(is_error=True, result=None, artifact=REF, where="cell", duration_ms=1.5, bytes_out=3),
    ToolResult(is_error=True, result=None, artifacts=(REF, REF), where="cell", duration_ms=1.5, bytes_out=3),
    PinsChanged(now=(PinFact(project="p", item="i", version="1"),)),
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: type(payload).__name__)
def test_a_payload_is_told_as_its_model_would(payload: Closed) -> None:
    assert canonical(told_by(payload)) == canonical(payload.model_dump())


def test_a_payload_that_is_stated_is_the_one_that_its_class_makes() -> None:
    facts: dict[str, Any] = {"result": {"a": 1}, "where": "cell", "artifacts": (REF,), "duration_ms": 1.5}
    made = stated(ToolResult, is_error=True, bytes_out=3, **facts)
    validated = ToolResult(is_error=True, bytes_out=3, **facts)
    assert made == validated
    assert made.model_dump() == validated.model_dump()
    assert canonical(told_by(made)) == canonical(told_by(validated))


def test_what_is_stated_of_one_payload_is_not_in_the_next() -> None:
    first = stated(PolicyDecided, verdict="allow", policy_version="1", gateway_version="1", rules=("a",))
    second = stated(PolicyDecided, verdict="deny", policy_version="1", gateway_version="1")
    assert (first.rules, second.rules) == (("a",), ())


def test_nothing_is_stated_without_a_field_that_is_needed_or_with_one_that_is_not_there() -> None:
    with pytest.raises(TypeError, match="RunClosed"):
        stated(RunClosed)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="RunClosed"):
        stated(RunClosed, reason="idle", colour="red")  # type: ignore[call-arg]
