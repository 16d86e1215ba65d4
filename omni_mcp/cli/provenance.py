"""`omni-mcp why` and `omni-mcp influence`: where something came from, and what it went into."""

from __future__ import annotations

import re

import click

from omni_mcp.cli.runs import answered_as, json_option, print_json, printable
from omni_mcp.contracts.errors import NotFound
from omni_mcp.engines.runlog.provenance import Node, Place, Story
from omni_mcp.engines.runlog.provenance_influence import influence as influence_of
from omni_mcp.engines.runlog.provenance_why import why as why_of
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.paths import find_home

_EVENT = re.compile(r"(?:run://)?([0-9a-zA-Z-]+)[/:#](\d{1,12})")
_SHORT = 16


@click.command()
@click.argument("artifact")
@json_option
def why(artifact: str, as_json: bool) -> None:
    """Show where ARTIFACT (a sha256, or artifact://SHA256) came from: each path, with the events that say so.

    `exact` is on record; `possible` was only seen before by whoever asked.
    """
    sha256 = artifact.removeprefix("artifact://").lower()
    with answered_as(as_json=as_json), LogReader(find_home().log_file) as log:
        try:
            found = why_of(log, sha256)
        except NotFound as error:
            raise NotFound(f"{error.message}; it is named by its whole sha256") from error
    _print(found, as_json=as_json)


@click.command()
@click.argument("event")
@json_option
def influence(event: str, as_json: bool) -> None:
    """Show what EVENT (RUN/SEQ, or run://RUN/SEQ) went into: artifacts, memory, later calls."""
    found = _EVENT.fullmatch(event)
    if found is None:
        raise click.BadParameter(f"{event!r} is no event; write RUN/SEQ", param_hint="EVENT")
    with answered_as(as_json=as_json), LogReader(find_home().log_file) as log:
        story = influence_of(log, Place(log.run_id(found[1]), int(found[2])))
    _print(story, as_json=as_json)


def _print(story: Story, *, as_json: bool) -> None:
    if as_json:
        print_json(story.as_json())
        return
    click.echo(_line(story.root))
    _print_steps(story.root, "")
    if not story.root.steps:
        click.echo("nothing on record")
    if story.left_out:
        click.echo("… and more: the answer was cut")


def _print_steps(node: Node, indent: str) -> None:
    for at, step in enumerate(node.steps):
        last = at == len(node.steps) - 1
        click.echo(f"{indent}{'└─ ' if last else '├─ '}{_line(step)}")
        _print_steps(step, indent + ("   " if last else "│  "))


def _line(node: Node) -> str:
    what = node.id if node.kind not in ("artifact", "request") else node.id[:_SHORT] + "…"
    if node.kind == "request":
        what = str(node.facts.get("principal"))
    facts = [str(node.facts[name]) for name in ("name", "outcome", "what") if node.facts.get(name)]
    places = " ".join(f"{place.run}/{place.seq}" for place in node.events) if node.kind != "event" else ""
    parts = [
        f"({node.certainty})" if node.how else "", node.how, node.kind if node.kind != "request" else "", what,
        *facts, f"[{places}]" if places else "", f"({node.note})" if node.note else "",
    ]  # fmt: skip
    return printable(" ".join(part for part in parts if part))
