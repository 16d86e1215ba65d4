"""`omni-mcp memory`: what agents remember, as its operator sees it. Works with and without a running gateway."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import get_args

import click
import orjson

from omni_mcp.cli.memory_forget import Forgotten, forget_items, operator_memory, sweep
from omni_mcp.cli.memory_import import import_command
from omni_mcp.cli.memory_recall import recall_command
from omni_mcp.cli.person import confirm, json_option, printable, printable_lines, yes_option
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.memory import MemoryItem, MemoryScope
from omni_mcp.paths import find_home, write_private
from omni_mcp.serving.memory.items import shown

LINE_CHARS = 100
PAGE = 1000

scope_option = click.option("--scope", type=click.Choice(get_args(MemoryScope)), help="Only of this scope.")


@click.group()
def memory() -> None:
    """List, show, find, import, export and forget what agents remember.

    \b
    omni-mcp memory list                              the newest items
    omni-mcp memory recall "where are the keys" --project default
    omni-mcp memory forget ID                         its text leaves the disk, the log too
    omni-mcp memory sweep                             remove what has expired
    """


memory.add_command(import_command, "import")
memory.add_command(recall_command, "recall")


@memory.command("list")
@click.option("--project", help="Only of this project.")
@scope_option
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, PAGE))
@click.option("--before", metavar="ID", help="The page after this item.")
@json_option
def list_command(project: str | None, scope: MemoryScope | None, limit: int, before: str | None, as_json: bool) -> None:
    """List items of everybody, newest first; expired ones too, until they are swept."""
    items = asyncio.run(_page(project, scope, limit, before))
    if as_json:
        click.echo(orjson.dumps([_told(item) for item in items]))
        return
    for item in items:
        click.echo(_line(item))
    if not items:
        click.echo("nothing is remembered", err=True)


@memory.command()
@click.argument("item")
@json_option
def show(item: str, as_json: bool) -> None:
    """Show ITEM: its text, whose it is, where it came from and what its writer had read."""
    found = asyncio.run(_find(item))
    if as_json:
        click.echo(orjson.dumps(_told(found)))
        return
    for name, value in _told(found).items():
        if name != "text":
            click.echo(f"{name}: {printable(value if isinstance(value, str) else orjson.dumps(value).decode())}")
    click.echo(f"\n{printable_lines(found.text)}")


@memory.command(epilog="There is no way back. Shown first, then asked about; --yes does not ask.")
@click.argument("items", nargs=-1, required=True, metavar="ITEM...")
@yes_option
@json_option
def forget(items: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Forget items, and erase every recorded call that carried their text. The chain of the log still verifies."""
    forget_and_tell(items, yes=yes, as_json=as_json)


def forget_and_tell(items: tuple[str, ...], *, yes: bool, as_json: bool) -> None:
    """Forget *items* after a yes, and say what became of it; also for `omni-mcp erase --memory`."""
    if not yes:
        text = "\n".join(_line(asyncio.run(_find(item))) for item in items)
        confirm(text, "Forget this for good?", look="see: omni-mcp memory show ITEM")
    _tell(asyncio.run(forget_items(find_home(), items)), as_json=as_json)


@memory.command("sweep")
@json_option
def sweep_command(as_json: bool) -> None:
    """Remove expired items, and those of runs that are over, with all recorded calls that carried their texts.

    Nobody finds them any more; this removes their bytes. A gateway does it at its start and every five minutes.
    """
    _tell(asyncio.run(sweep(find_home())), as_json=as_json)


@memory.command(epilog="A file that `memory import` reads: one JSON object a line.")
@click.option("--project", help="Only of this project.")
@scope_option
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file, mode 0600.  [default: stdout]"
)
@click.option("--full", is_flag=True, help="Everything about each item, instead of what `import` takes.")
def export(project: str | None, scope: MemoryScope | None, output: Path | None, full: bool) -> None:
    """Write items as JSON Lines, oldest first, without expired ones."""
    lines = asyncio.run(_exported(project, scope, full=full))
    data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    if output is None:
        sys.stdout.buffer.write(data)
        return
    write_private(output, data)
    click.echo(f"{len(lines)} items written to {printable(str(output))}", err=True)


async def _page(project: str | None, scope: MemoryScope | None, limit: int, before: str | None) -> list[MemoryItem]:
    async with operator_memory(find_home()) as store:
        return await store.all_items(limit=limit, before=before, project=project, scope=scope)


async def _find(item: str) -> MemoryItem:
    async with operator_memory(find_home()) as store:
        return await store.find(item)


async def _exported(project: str | None, scope: MemoryScope | None, *, full: bool) -> list[JsonObject]:
    found: list[MemoryItem] = []
    async with operator_memory(find_home()) as store:
        before: str | None = None
        while page := await store.all_items(limit=PAGE, before=before, project=project, scope=scope):
            found += page
            before = page[-1].id
    now_ns = time.time_ns()
    kept = [item for item in reversed(found) if item.expires_at_ns is None or item.expires_at_ns > now_ns]
    return [_told(item) if full else _row(item) for item in kept]


def _row(item: MemoryItem) -> JsonObject:
    values = {"key": item.key or item.id, "text": item.text, "subject": item.subject, "session": item.session}
    return {name: value for name, value in values.items() if value is not None} | {"at": iso_time(item.at_ns)}


def _told(item: MemoryItem) -> JsonObject:
    now_ns = time.time_ns()
    expired = item.expires_at_ns is not None and item.expires_at_ns <= now_ns
    return {"owner": item.owner, "project": item.project, **shown(item), "expired": expired}


def _line(item: MemoryItem) -> str:
    text = printable(" ".join(item.text.split()))
    short = text if len(text) <= LINE_CHARS else text[: LINE_CHARS - 1] + "…"
    taint = f"  [{', '.join(item.taint)}]" if item.taint else ""
    return f"{item.id}  {iso_time(item.created_at_ns)[:16]}  {item.scope:<7}  {printable(item.owner)}{taint}  {short}"


def _tell(done: Forgotten, *, as_json: bool) -> None:
    if as_json:
        click.echo(orjson.dumps(done.as_json()))
    else:
        click.echo(
            f"forgot {len(done.items)} items, erased {done.calls} calls ({done.events} events), "
            f"{done.artifacts} artifacts"
        )
        for what in done.stays:
            click.echo(f"still on record: {printable(what)}")
    refuse_unfinished(done)


def refuse_unfinished(done: Forgotten) -> None:
    """Raise where texts are left that could not be erased now.

    Raises:
        click.ClickException: says how many, and what to do.
    """
    if done.pending:
        raise click.ClickException(
            f"{done.pending} calls that carry the text are still under way; once they ended: omni-mcp memory sweep"
        )
    if not done.clean:
        raise click.ClickException(
            "old bytes may still be in a write-ahead log that is being read; run: omni-mcp memory sweep"
        )
