"""What is recorded of a payload is the same whether its fields are taken as they are or written by its model."""

from __future__ import annotations

import pytest

from omni_mcp.contracts.artifact import ArtifactRef
from omni_mcp.contracts.events import PinFact, PinsChanged, RunClosed, ToolResult, told_by
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
