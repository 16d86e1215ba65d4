"""`omni-mcp memory recall`: what a project's memory finds, for one query or for a file of them."""

from __future__ import annotations

import asyncio
import sys
from typing import IO

import click
import orjson
from pydantic import ValidationError

from omni_mcp.cli.memory_forget import operator_memory
from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.runs import answered_as, print_json
from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject, json_path
from omni_mcp.contracts.manifest import Closed
from omni_mcp.contracts.memory import Hit, Hits, Readers, Recall
from omni_mcp.paths import find_home


class Query(Closed):
    """One line of a batch. Any text is a valid query."""

    id: str | int
    query: str
    project: str | None = None


@click.command("recall")
@click.argument("query", required=False)
@click.option("--project", help="In whose memory.")
@click.option("--k", "limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="Hits at most.")
@click.option("--budget", type=click.IntRange(0), metavar="CHARS", help="Characters of all texts together at most.")
@click.option("--explain", is_flag=True, help="What each score is made of.")
@click.option("--batch", type=click.File("rb"), metavar="QUERIES.jsonl", help='Lines of {"id", "query", "project"}.')
@json_option
def recall_command(
    query: str | None, project: str | None, limit: int, budget: int | None, explain: bool, batch: IO[bytes] | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Print what the memory of a project finds for QUERY, best first.

    With --batch, one line of JSON for each query: {"id", "hits": [{"key", "score"}]}. An item without a key gives its
    id there.
    """
    if (query is None) == (batch is None):
        raise click.UsageError("give either a QUERY or --batch QUERIES.jsonl")
    with answered_as(as_json=as_json):
        if batch is not None:
            asyncio.run(_answer(_queries(batch, project), limit, budget, explain=explain))
            return
        if project is None:
            raise click.UsageError("say in whose memory: --project PROJECT")
        hits = asyncio.run(_found(_recall(query or "", project, limit, budget)))
    if as_json:
        print_json([_shown(hit) for hit in hits])
    else:
        _print(hits, explain=explain)


def _queries(batch: IO[bytes], project: str | None) -> list[Query]:
    """Read every query; *project* stands in for those that name none.

    Raises:
        ConfigError: lines are refused; it names the first.
    """
    queries = []
    for number, line in enumerate(batch, 1):
        if not line.strip():
            continue
        try:
            query = Query.model_validate(orjson.loads(line))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            problem = Problem(file=batch.name, line=number, path=json_path(fault["loc"]), message=fault["msg"])
            raise ConfigError([problem]) from error
        except ValueError as error:
            raise ConfigError([Problem(file=batch.name, line=number, path="", message=str(error))]) from error
        if query.project is None and project is None:
            message = "it names no project, and there is no --project"
            raise ConfigError([Problem(file=batch.name, line=number, path="$.project", message=message)])
        queries.append(query.model_copy(update={"project": query.project or project}))
    return queries


async def _answer(queries: list[Query], limit: int, budget: int | None, *, explain: bool) -> None:
    async with operator_memory(find_home()) as memory:
        told = False
        for query in queries:
            hits = await memory.recall(_recall(query.query, query.project or "", limit, budget))
            told = told or _say_words_only(hits)
            found = [_scored(hit, explain=explain) for hit in hits]
            sys.stdout.buffer.write(orjson.dumps({"id": query.id, "hits": found}) + b"\n")
    sys.stdout.buffer.flush()


async def _found(wanted: Recall) -> Hits:
    async with operator_memory(find_home()) as memory:
        hits = await memory.recall(wanted)
    _say_words_only(hits)
    return hits


def _say_words_only(hits: Hits) -> bool:
    """Say it if nothing could be found by its meaning; returns whether it was said."""
    if hits.words_only is not None:
        click.echo(f"found by words only: {hits.words_only}", err=True)
    return hits.words_only is not None


def _recall(query: str, project: str, limit: int, budget: int | None) -> Recall:
    readers = Readers(places=(("project", project),), project=project)
    return Recall(query=query, readers=readers, k=limit, budget_chars=budget)


def _scored(hit: Hit, *, explain: bool) -> JsonObject:
    found: JsonObject = {"key": hit.item.key or hit.item.id, "score": round(hit.score, 6)}
    if explain:
        found["parts"] = {name: round(part, 6) for name, part in hit.parts.items()}
    return found


def _shown(hit: Hit) -> JsonObject:
    return {"score": hit.score, "parts": dict(hit.parts), "item": hit.item.model_dump()}


def _print(hits: list[Hit], *, explain: bool) -> None:
    for hit in hits:
        item = hit.item
        about = " ".join(part for part in (iso_time(item.at_ns)[:19], item.subject, item.key or item.id) if part)
        click.echo(f"{hit.score:.3f}  {printable(about)}")
        click.echo(f"       {printable(' '.join(item.text.split()))}")
        if explain:
            click.echo("       " + " + ".join(f"{name} {part:.3f}" for name, part in hit.parts.items() if part))
    if not hits:
        click.echo("nothing found", err=True)
