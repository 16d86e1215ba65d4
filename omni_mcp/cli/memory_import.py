"""`omni-mcp memory import`: rows of a file become items of a project, all of them or none."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Annotated

import click
import orjson
from pydantic import BeforeValidator, Field, ValidationError

from omni_mcp.cli.memory_embedder import embedder_at
from omni_mcp.cli.memory_forget import operator
from omni_mcp.cli.person import json_option
from omni_mcp.cli.runs import answered_as, print_json
from omni_mcp.config import load_settings
from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.events import MemoryWritten
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import json_path
from omni_mcp.contracts.manifest import Closed
from omni_mcp.contracts.memory import TEXT_LIMIT_CHARS, MemoryItem, Name
from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.memory.rows import Limits
from omni_mcp.engines.memory.store import open_memory
from omni_mcp.engines.runlog.erase import Eraser
from omni_mcp.engines.runlog.store import open_ledger
from omni_mcp.paths import Home, find_home, make_private_dir

PROBLEMS_SHOWN = 20
_NO_QUOTA = 2**62  # what the command line appends is never refused for a run's length


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Label = Annotated[Name, BeforeValidator(_number_as_text)]


class Row(Closed):
    """One line of the file. `at` is a time in ISO 8601 (UTC where it names no zone), or seconds since the epoch."""

    text: Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT_CHARS)]
    key: Label | None = None
    subject: Label | None = None
    session: Label | None = None
    at: str | Annotated[float, Field(strict=True)] | None = None


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--project", required=True, help="Whose items they become: everyone in it may recall them.")
@json_option
def import_command(file: IO[bytes], project: str, as_json: bool) -> None:
    """Import FILE, `-` for standard input: one JSON object a line, all of them in one step or none.

    \b
    {"key": "d1:3", "text": "Ann: we moved to Oslo", "subject": "Ann", "session": "d1", "at": "2026-05-08T13:56:00Z"}

    All but `text` may be missing. An item whose key is there already is replaced, so that the same file may be imported
    again. Rows without a time get one each, in the order of the file.
    """
    with answered_as(as_json=as_json):
        items = _items(file, project)
        home = find_home()
        make_private_dir(home.data)
        with _record(home) as note:
            count = asyncio.run(_put(home, items))
            note(MemoryWritten(change="imported", scope="project", owner=project, count=count))
    if as_json:
        print_json({"project": project, "items": count})
    else:
        click.echo(f"{count} items imported into project {project}")


def _items(file: IO[bytes], project: str) -> list[MemoryItem]:
    """Read every row.

    Raises:
        ConfigError: rows are refused; it names each line.
    """
    now = time.time_ns()
    items: list[MemoryItem] = []
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = Row.model_validate(orjson.loads(line))
            if row.key is not None and lines.setdefault(row.key, number) != number:
                raise ValueError(f"line {lines[row.key]} has the same key")
            items.append(_item(row, project, now + number * 1000))
        except ValidationError as error:
            problems += [
                Problem(file=file.name, line=number, path=json_path(fault["loc"]), message=fault["msg"])
                for fault in error.errors(include_url=False)
            ]
        except ValueError as error:
            problems.append(Problem(file=file.name, line=number, path="", message=str(error)))
        if len(problems) >= PROBLEMS_SHOWN:
            break
    if problems:
        raise ConfigError(problems[:PROBLEMS_SHOWN])
    return items


def _item(row: Row, project: str, written_ns: int) -> MemoryItem:
    return MemoryItem(
        id=new_id(), kind="episodic", scope="project", owner=project, project=project, text=row.text, key=row.key,
        subject=row.subject, session=row.session, at_ns=written_ns if row.at is None else _time_ns(row.at),
        created_at_ns=written_ns,
    )  # fmt: skip


def _time_ns(at: str | float) -> int:
    try:
        if isinstance(at, str):
            time_ = datetime.fromisoformat(at)
            at = (time_ if time_.tzinfo else time_.replace(tzinfo=UTC)).timestamp()
        else:
            datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"$.at: {at!r} is no time; write 2026-05-08T13:56:00Z or seconds since 1970") from error
    return round(at * 1e6) * 1000


async def _put(home: Home, items: list[MemoryItem]) -> int:
    limits = Limits.of(load_settings(home.settings_file).memory)
    async with open_memory(home.memory_file, embedder=embedder_at(home), limits=limits) as memory:
        progress = _progress(len(items)) if sys.stderr.isatty() else None
        try:
            return await memory.put_many(items, on_progress=progress)
        finally:
            if progress:
                click.echo("\r\x1b[K", nl=False, err=True)


def _progress(total: int) -> Callable[[int], None]:
    return lambda done: click.echo(f"\r{done} of {total} items read", nl=False, err=True)


@contextmanager
def _record(home: Home) -> Iterator[Callable[[Closed], None]]:
    """Give a way to write to the log, which is made if there is none: nothing is imported that cannot be recorded."""
    ledger = open_ledger(home.log_file, home.secrets, events_per_run=_NO_QUOTA).ledger
    try:
        ledger.probe()
        blobs = BlobStore(home.artifacts)
        try:
            yield Eraser(ledger, home.log_file, blobs, by=operator()).note
        finally:
            blobs.close()
    finally:
        ledger.connection.close()
