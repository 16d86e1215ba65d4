"""Every bundled tool passes its golden call, here without a gateway and without a cell."""

from __future__ import annotations

from typing import Any

import pytest

from omni_mcp.contracts.manifest import ToolManifest
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.paths import bundled
from tests.tools.golden_matcher import matches
from tests.tools.tool_rooms import Rooms

ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in ManifestSource(
        [ManifestDirectory(path=bundled("manifests"), bundled=True)], code=bundled("sandbox") / "tools"
    ).load()
}
PROMISED = {
    "files_read", "files_write", "files_list", "files_patch", "python_run", "shell_run", "json_query", "json_validate",
    "text_hash", "text_encode", "sql_query", "kv_get", "kv_set", "artifact_read", "artifact_search", "artifact_query",
    "http_fetch", "http_send",
}  # fmt: skip

NETWORKED = {"http_fetch", "http_send"}  # test_http_tools.py calls them


def manifest_of(name: str) -> ToolManifest:
    manifest = ENTRIES[name].manifest
    assert manifest is not None
    return manifest


def run(rooms: Rooms, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run one call as the gateway would: arguments and result fit the schemas."""
    manifest, schemas = manifest_of(name), JsonSchemas()
    assert schemas.problems(manifest.input_schema, arguments) == []
    binding = manifest.binding
    artifact = arguments[binding.artifact_argument] if binding.artifact_argument else None
    result = rooms.run(binding.entry_point, binding.workspace, arguments, artifact)
    assert manifest.output_schema is not None
    assert schemas.problems(manifest.output_schema, result) == []
    return result


def test_the_promised_tools_are_all_there_and_nothing_else_is() -> None:
    assert set(ENTRIES) == PROMISED


@pytest.mark.parametrize("name", sorted(PROMISED - NETWORKED))
def test_a_tool_passes_its_golden_call(name: str, rooms: Rooms) -> None:
    golden = manifest_of(name).golden
    assert golden is not None
    for step in golden.before:
        run(rooms, step.tool, step.arguments)
    result = run(rooms, name, golden.arguments)
    assert matches(golden.expect, result), result


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_a_tool_runs_in_a_cell_and_carries_no_label_that_it_does_not_need(name: str) -> None:
    entry = ENTRIES[name]
    assert entry.binding == "sandbox_job"
    assert entry.posture == "no-cgroup"
    assert entry.labels.egress == (name in NETWORKED)
    assert entry.definition["inputSchema"]["additionalProperties"] is False


def test_the_matcher_takes_a_part_of_an_object_but_the_whole_of_an_array() -> None:
    assert matches({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2, "c": 3}], "d": 4})
    assert not matches({"a": [1]}, {"a": [1, 2]})
    assert not matches({"a": 1}, {"b": 1})
    assert not matches({"a": 1}, {"a": True})
    assert not matches({"a": {}}, {"a": None})
