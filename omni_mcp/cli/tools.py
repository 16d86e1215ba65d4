"""`tools` lists and shows every tool that is known here, lints manifests, and has a gateway find and call."""

from __future__ import annotations

import json
from pathlib import Path

import click

from omni_mcp.cli.person import printable, printable_lines
from omni_mcp.cli.tools_cost import cost
from omni_mcp.cli.tools_try import search, try_tool
from omni_mcp.cli.trial import offered_entries
from omni_mcp.contracts.errors import NotFound, Problem
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestReader, ManifestSource
from omni_mcp.engines.catalog.names import public_name
from omni_mcp.paths import bundled, find_home

EXIT_FAILED = 1
TITLE_CHARACTERS = 80


@click.group()
def tools() -> None:
    """List, show, lint, search and try tools, and say what they cost."""


tools.add_command(cost)
tools.add_command(search)
tools.add_command(try_tool)


@tools.command("list")
@click.option("--server", metavar="NAME", help="Only those of this server.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of text.")
def list_tools(server: str | None, as_json: bool) -> None:
    """List the tools that are known here: of manifests, of the gateway itself, of servers and documents behind it.

    Needs no gateway: of a server it is what was offered last. Nobody can call what is not accepted.
    """
    rows = [_row(entry) for entry in _entries() if server in (None, entry.server)]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        marks = ", ".join(label for label, on in row["labels"].items() if on) or "no labels"
        state = "" if row["state"] == "accepted" else f"  {row['state']}: omni-mcp accept {row['server']}"
        title = row["title"][:TITLE_CHARACTERS]
        click.echo(printable(f"{row['name']:<{width}}  {row['version']:<8}  {title}  ({marks}){state}"))
    if not rows and server is not None:
        raise NotFound(f"no tool of a server {server!r} is known; see: omni-mcp servers list")


@tools.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def show_tool(name: str, as_json: bool) -> None:
    """Print one tool in full, by its public name or its own (tools__files_read, files_read, files_read@1.0.0)."""
    name, _, version = name.partition("@")
    found = [
        entry
        for entry in _entries(older=True)
        if name in (entry.name, public_name(entry.server, entry.name))
        and (entry.version == version if version not in ("", "latest") else entry.state != "superseded")
    ]
    if not found:
        raise NotFound(f"no tool {name!r} is known here; see: omni-mcp tools list")
    if len(found) > 1:
        names = ", ".join(public_name(entry.server, entry.name) for entry in found)
        raise NotFound(f"{name!r} means several tools; choose one of: {names}")
    full = _row(found[0]) | {
        "digest": found[0].digest,
        "definition": found[0].definition,
        "limits": found[0].limits.model_dump(),
        "manifest": found[0].manifest.model_dump(mode="json") if found[0].manifest else None,
    }
    if as_json:
        click.echo(json.dumps(full, ensure_ascii=False))
        return
    _print_tool(full)


def _print_tool(full: JsonObject) -> None:
    click.echo(printable(f"{full['name']} {full['version']}: {full['title']}") + "\n")
    for line in full["definition"].get("description", "").split("\n"):
        click.echo(printable(f"  | {line}".rstrip()))
    click.echo()
    for title in ("server", "state", "binding", "side_effects", "digest"):
        click.echo(f"{title}: {full[title]}")
    for title in ("labels", "limits"):
        click.echo(f"{title}: " + ", ".join(f"{key}={json.dumps(value)}" for key, value in full[title].items()))
    for title in ("inputSchema", "outputSchema"):
        if title in full["definition"]:
            text = json.dumps(full["definition"][title], indent=2, ensure_ascii=False)
            click.echo(f"{title}: {printable_lines(text)}")


@tools.command("lint")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON array of problems instead of text.")
def lint(files: tuple[Path, ...], as_json: bool) -> None:
    """Check manifests; prints file:line: path: fault for each, and exits 1 if there is any."""
    reader = ManifestReader(code=_code())
    problems: list[Problem] = []
    for file in files:
        reader.read(file, trusted=True, problems=problems)
    if as_json:
        rows = [{"file": one.file, "line": one.line, "path": one.path, "message": one.message} for one in problems]
        click.echo(json.dumps(rows, ensure_ascii=False))
    else:
        for problem in problems:
            click.echo(str(problem), err=True)
    if problems:
        raise click.exceptions.Exit(EXIT_FAILED)


def _code() -> Path:
    return bundled("sandbox") / "tools"


def _entries(*, older: bool = False) -> list[Entry]:
    directories = [
        ManifestDirectory(path=bundled("manifests"), bundled=True), ManifestDirectory(path=find_home().manifests),
    ]  # fmt: skip
    found = [*ManifestSource(directories, code=_code()).load(), *offered_entries(find_home())]
    return [entry for entry in found if entry.kind == "tool" and (older or entry.state != "superseded")]


def _row(entry: Entry) -> JsonObject:
    return {
        "name": public_name(entry.server, entry.name),
        "server": entry.server,
        "version": entry.version,
        "state": entry.state,
        "title": str(entry.definition.get("title", entry.name)),
        "binding": entry.binding,
        "side_effects": entry.side_effects,
        "labels": entry.labels.model_dump(),
    }
