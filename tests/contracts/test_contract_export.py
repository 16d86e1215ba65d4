"""The exported contracts: what is printed stays as it is, is closed, and says the same as the code that records.

After a wanted change of a contract, run these tests once with OMNI_UPDATE_GOLDENS=1 and look at the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from click.testing import CliRunner

from omni_mcp.cli.contracts import contracts as contracts_command
from omni_mcp.cli.contracts import errors as errors_command
from omni_mcp.contracts.errors import CATALOGUE, NotFound, classes_by_code
from omni_mcp.contracts.events import CODES, PAYLOADS, Kind
from omni_mcp.contracts.export import contract_names, describe, export, export_errors
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.paths import bundled

GOLDENS = Path(__file__).parent / "goldens"
CEDAR = "entity User;"


@pytest.mark.parametrize("name", contract_names())
def test_a_contract_is_what_it_was(name: str) -> None:
    text = json.dumps(export(name, cedar_schema=CEDAR), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    golden = GOLDENS / f"{name}.json"
    if os.environ.get("OMNI_UPDATE_GOLDENS") == "1":
        golden.write_text(text, encoding="utf-8")
    assert golden.read_text(encoding="utf-8") == text


def test_no_golden_is_left_of_a_contract_that_is_gone() -> None:
    assert {file.stem for file in GOLDENS.glob("*.json")} == set(contract_names())


@pytest.mark.parametrize("name", contract_names())
def test_a_contract_is_valid_json_schema_and_passes_our_own_limits(name: str) -> None:
    schema = export(name, cedar_schema=CEDAR)
    assert jsonschema_rs.meta.is_valid(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"].endswith(f":{name}")
    assert JsonSchemas().refusals(schema) == []
    assert describe(name).endswith(".")


def _objects(schema: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    todo = [schema]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            if item.get("type") == "object" and "properties" in item:
                found.append(item)
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return found


@pytest.mark.parametrize("name", [name for name in contract_names() if name != "Policy"])
def test_every_object_of_a_contract_is_closed(name: str) -> None:
    objects = _objects(export(name, cedar_schema=CEDAR))
    assert objects
    assert all(one["additionalProperties"] is False for one in objects)


def test_every_kind_and_every_code_has_a_contract() -> None:
    kinds = set(Kind.__args__)  # type: ignore[attr-defined]  # a Literal knows its members
    assert kinds == {*PAYLOADS, "system_event"}
    assert {f"RunEvent.{kind}" for kind in PAYLOADS} | {f"RunEvent.system_event.{code}" for code in CODES} <= set(
        contract_names()
    )


def test_an_unknown_contract_is_not_found() -> None:
    with pytest.raises(NotFound, match="contracts list"):
        export("RunEvent.system_event", cedar_schema=CEDAR)


def test_the_policy_contract_carries_the_shipped_cedar_schema() -> None:
    result = CliRunner().invoke(contracts_command, ["show", "Policy", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output)["x-cedar-schema"] == (bundled("policies") / "omni.cedarschema").read_text()


def test_the_commands_print_what_the_functions_return() -> None:
    run = CliRunner().invoke
    assert [row["name"] for row in json.loads(run(contracts_command, ["list", "--json"]).output)] == contract_names()
    shown = json.loads(run(contracts_command, ["show", "RunEvent.tool_call"]).output)
    assert shown == export("RunEvent.tool_call", cedar_schema="")
    assert json.loads(run(errors_command, ["--json"]).output) == export_errors()
    text = run(errors_command, []).output
    assert all(f"\n{code}  (" in f"\n{text}" for code in CATALOGUE)


def test_every_error_class_is_in_the_catalogue_and_the_other_way_round() -> None:
    assert set(CATALOGUE) - {"config_invalid"} <= set(classes_by_code())
    assert set(classes_by_code()) <= set(CATALOGUE)
    assert all(entry.recovery.strip() and entry.meaning.strip() for entry in CATALOGUE.values())
