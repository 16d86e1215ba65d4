"""What is recorded reads back to the same; what is unknown is refused with its place; what is old still reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.artifact import ArtifactRef
from omni_mcp.contracts.errors import BadRequest, LogCorrupt
from omni_mcp.contracts.events import CODES, CONTRACT_VERSION, PAYLOADS, RunEvent, draft
from omni_mcp.contracts.export import contract_names, export
from omni_mcp.contracts.json import canonical
from omni_mcp.contracts.manifest import Closed, ToolManifest
from omni_mcp.contracts.migrate import upgrade
from omni_mcp.contracts.reading import read_event
from omni_mcp.engines.catalog.schemas import JsonSchemas

GOLDENS = Path(__file__).parent / "goldens"
EVENTS = [(kind, None, model) for kind, model in PAYLOADS.items()] + [
    ("system_event", code, model) for code, model in CODES.items()
]
SCHEMAS = JsonSchemas()
EXPORTED = {name: export(name, cedar_schema="") for name in contract_names()}

texts = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.integers(0, 2**53)
json_objects = st.dictionaries(texts, st.one_of(texts, numbers, st.booleans(), st.none()), max_size=3)


def values_of(schema: dict[str, Any], definitions: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that fit a schema as pydantic writes them; no more of JSON Schema than it uses."""
    if "$ref" in schema:
        return values_of(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    if "anyOf" in schema:
        return st.one_of([values_of(part, definitions) for part in schema["anyOf"]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        required = set(schema.get("required", ()))
        parts = {key: values_of(part, definitions) for key, part in schema["properties"].items()}
        return st.fixed_dictionaries(
            {key: part for key, part in parts.items() if key in required},
            optional={key: part for key, part in parts.items() if key not in required},
        )
    if kind == "string":
        ascii_text = st.characters(codec="ascii")
        return st.from_regex(schema["pattern"], fullmatch=True, alphabet=ascii_text) if "pattern" in schema else texts
    if kind == "array":
        return st.lists(values_of(schema.get("items", {}), definitions), max_size=2)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        "object": json_objects,
        "integer": numbers,
        "number": st.floats(0, 1e6),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return simple.get(kind, json_objects)


def payload_of(model: type[Closed]) -> st.SearchStrategy[dict[str, Any]]:
    schema = model.model_json_schema()
    return values_of(schema, schema.get("$defs", {}))


def envelope(kind: str, code: str | None, payload: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "v": CONTRACT_VERSION,
        "gid": 1,
        "run": "r",
        "seq": 1,
        "at_ns": 1,
        "kind": kind,
        "code": code,
        "actor": "a",
        "payload": payload,
        "salt": "00",
        "payload_digest": "00",
        "body_digest": "00",
        "prev": "00",
        "hash": "00",
    }


@pytest.mark.parametrize(("kind", "code", "model"), EVENTS, ids=lambda part: str(part) if isinstance(part, str) else "")
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_an_event_that_fits_its_contract_reads_and_writes_back_to_the_same(
    kind: str, code: str | None, model: type[Closed], data: st.DataObject
) -> None:
    payload = data.draw(payload_of(model))
    if code is not None:
        payload["code"] = code
    name = f"RunEvent.{kind}" + (f".{code}" if code else "")
    event = envelope(kind, code, payload)
    assert SCHEMAS.problems(EXPORTED[name], event) == []
    assert SCHEMAS.problems(EXPORTED["RunEvent"], event) == []

    read, typed = read_event(event)
    assert isinstance(typed, model)
    again = json.loads(canonical(typed.model_dump(mode="json")))
    assert model.model_validate(again) == typed
    assert read_event({**event, "payload": again}) == (read, typed) or again != payload
    assert SCHEMAS.problems(EXPORTED[name], {**event, "payload": again}) == []


@pytest.mark.parametrize(("kind", "code", "model"), EVENTS, ids=lambda part: str(part) if isinstance(part, str) else "")
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_an_extra_field_is_refused_with_its_path(
    kind: str, code: str | None, model: type[Closed], data: st.DataObject
) -> None:
    payload = {**data.draw(payload_of(model)), **({"code": code} if code else {}), "surprise": 1}
    with pytest.raises(BadRequest, match=r"\$\.payload\.surprise") as caught:
        read_event(envelope(kind, code, payload))
    assert str(caught.value.data["path"]).startswith("$.payload")
    name = f"RunEvent.{kind}" + (f".{code}" if code else "")
    assert SCHEMAS.problems(EXPORTED[name], envelope(kind, code, payload))


MESSAGE = {"text": "hello"}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"kind": "tool_dance"}, "$.kind"),
        ({"surprise": 1}, "$.surprise"),
        ({"seq": "one"}, "$.seq"),
        ({"kind": "system_event", "code": "never_heard_of"}, "$.code"),
        ({"kind": "system_event"}, "$.code"),
        ({"code": "erased"}, "$.code"),
        ({"v": "1"}, "$.v"),
        ({"v": True}, "$.v"),
        ({"v": -1}, "$.v"),
        ({"payload": {}}, "$.payload.text"),
        ({"payload": {"text": 5}}, "$.payload.text"),
        ({"payload": []}, "$.payload"),
        ({"kind": "system_event", "code": "erased", "payload": {"code": "log_read"}}, "$.payload.code"),
    ],
)
def test_what_is_unknown_or_wrong_is_refused_with_its_path(change: dict[str, Any], path: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_event({**envelope("user_message", None, MESSAGE), **change})
    assert caught.value.data["path"] == path
    assert path in caught.value.message


def test_an_erased_event_reads_without_its_payload() -> None:
    event, payload = read_event({**envelope("user_message", None, None), "salt": "", "erased_by": 9})
    assert payload is None
    assert event.erased_by == 9


def test_an_event_of_a_newer_version_is_refused_with_what_to_do() -> None:
    with pytest.raises(LogCorrupt, match="newer version"):
        read_event({**envelope("user_message", None, MESSAGE), "v": CONTRACT_VERSION + 1})


def test_a_run_of_contract_version_0_still_reads() -> None:
    rows = [json.loads(line) for line in (GOLDENS / "run_of_version_0.jsonl").read_text().splitlines()]
    read = [read_event(row) for row in rows]
    assert [event.kind for event, _ in read] == ["run_created", "tool_call", "system_event", "tool_result"]
    assert [event.v for event, _ in read] == [0] * 4  # the header was hashed as version 0
    assert [event.hash for event, _ in read] == [row["hash"] for row in rows]
    assert [event.at_ns for event, _ in read] == [1_760_000_000_000_000_000 + n * 1_250_000 for n in range(4)]
    assert read[2][0].code == "policy_decided"
    assert read[2][1] == CODES["policy_decided"].model_validate(
        {"code": "policy_decided", "verdict": "allow", "policy_version": "sha256:0", "gateway_version": "0.0.1"}
    )
    assert read[1][0].call == "c1"


def test_an_upgrade_does_not_touch_its_input_and_names_what_is_missing() -> None:
    row = json.loads((GOLDENS / "run_of_version_0.jsonl").read_text().splitlines()[2])
    before = canonical(row)
    upgrade(row)
    assert canonical(row) == before
    for field in ("ts", "call_id", "kind"):
        broken = {key: value for key, value in row.items() if key != field}
        with pytest.raises(BadRequest, match=rf"\$\.{field}"):
            upgrade(broken)
    with pytest.raises(BadRequest, match=r"\$\.ts"):
        upgrade({**row, "ts": "yesterday"})


@pytest.mark.parametrize("model", [ToolManifest, ArtifactRef, Approval])
def test_a_frozen_contract_cannot_be_changed(model: type[BaseModel]) -> None:
    assert model.model_config["frozen"]
    assert model.model_config["extra"] == "forbid"


@settings(max_examples=40, deadline=None)
@given(size=numbers, name=st.one_of(st.none(), texts), digest=st.binary(min_size=32, max_size=32))
def test_an_artifact_reference_goes_to_json_and_back(size: int, name: str | None, digest: bytes) -> None:
    reference = ArtifactRef(sha256=digest.hex(), size=size, name=name)
    assert ArtifactRef.model_validate_json(reference.model_dump_json()) == reference
    with pytest.raises(ValidationError):
        ArtifactRef.model_validate({**reference.model_dump(), "path": "/etc"})


def test_a_payload_knows_its_kind() -> None:
    assert draft(CODES["log_read"].model_validate({"reader": "r", "what": "w"}), actor="a").kind == "system_event"
    with pytest.raises(TypeError, match="no payload"):
        draft(ArtifactRef(sha256="0" * 64, size=1), actor="a")
    assert RunEvent.model_fields["v"].default == CONTRACT_VERSION
