"""`contracts` prints the JSON Schemas of what is recorded and read, `errors` the failure catalogue."""

from __future__ import annotations

import json

import click

from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.export import contract_names, describe, export, export_errors
from omni_mcp.paths import bundled

CEDAR_SCHEMA = "omni.cedarschema"


@click.group()
def contracts() -> None:
    """Print the JSON Schemas of what is recorded and read."""


@contracts.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of text.")
def list_contracts(as_json: bool) -> None:
    """List the contracts by name."""
    rows = [{"name": name, "description": describe(name)} for name in contract_names()]
    if as_json:
        click.echo(json.dumps(rows))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['description']}")


@contracts.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="On one line.")
def show_contract(name: str, as_json: bool) -> None:
    """Print the JSON Schema (2020-12) of one contract, such as RunEvent.tool_call."""
    schema = export(name, cedar_schema=_cedar_schema() if name == "Policy" else "")
    click.echo(json.dumps(schema, indent=None if as_json else 2, ensure_ascii=False))


def _cedar_schema() -> str:
    file = bundled("policies") / CEDAR_SCHEMA
    if not file.is_file():
        raise NotFound(f"the Cedar schema is missing: {file}; install omni-mcp again")
    return file.read_text(encoding="utf-8")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of text.")
def errors(as_json: bool) -> None:
    """Print every code with which a request can fail: what it means and what to do next."""
    rows = export_errors()
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        click.echo(f"{row['code']}  ({row['category']}, retry: {row['retry']}, HTTP {row['http_status']})")
        click.echo(f"    {row['meaning']}\n    Next: {row['recovery']}")
