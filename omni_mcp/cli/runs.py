"""`omni-mcp runs`: list, show, follow, search and compare what was recorded. No gateway is needed."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
import orjson

from omni_mcp.cli.lazy import LazyGroup
from omni_mcp.contracts.errors import OmniError
from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.runlog.call_versions import calls_of
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.paths import find_home

LINE_CHARS = 160  # of a payload, in text for people
PAGE_EVENTS = 1000

json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@click.group(
    cls=LazyGroup,
    elsewhere={
        "diff": ("omni_mcp.cli.runs_diff", "diff", "Say where one run first differs from another."),
        "golden": ("omni_mcp.cli.runs_diff", "golden", "Keep what a run did, and hold later runs against it."),
        "failed": ("omni_mcp.cli.runs_failed", "failed", "List runs with calls that failed for good, and what to do."),
        "rerun": ("omni_mcp.cli.runs_rerun", "rerun", "Make the failed calls of a run again, in a run of their own."),
        "replay": ("omni_mcp.cli.runs_replay", "replay", "Make the calls of a run again, and compare."),
    },
)
def runs() -> None:
    """List, show, follow, search and compare recorded runs.

    RUN is an id, the beginning of one, or `last`.
    """


@runs.command("list")
@click.option("--principal", help="Only runs of this principal.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@click.option("--before", help="The page after this run.")
@json_option
def list_runs(principal: str | None, limit: int, before: str | None, as_json: bool) -> None:
    """List runs, newest first."""
    with _reader() as log:
        found = log.runs(principal=principal, limit=limit, before=before and log.run_id(before))
    if as_json:
        print_json(found)
        return
    for run in found:
        click.echo(_line_of_run(run))
    if not found:
        click.echo("no runs yet", err=True)


@runs.command()
@click.argument("run")
@json_option
def show(run: str, as_json: bool) -> None:
    """Show what happened in RUN, in order."""
    with answered_as(as_json=as_json), _reader() as log:
        facts = log.get_run(log.run_id(run))
        if as_json:
            events = list(all_events(log, facts["id"]))
            shown = [event.model_dump() for event in events]
            print_json({"run": facts, "calls": calls_of(events), "events": shown})
            return
        click.echo(_line_of_run(facts))
        for event in all_events(log, facts["id"]):
            click.echo(line_of_event(event))


@runs.command()
@click.argument("run", required=False)
@json_option
def tail(run: str | None, as_json: bool) -> None:
    """Print events as they are recorded, of RUN or of all runs, until interrupted."""
    stop = threading.Event()
    with _reader() as log:
        wanted = log.run_id(run) if run else None
        try:
            for event in log.tail(wanted, stop=stop):
                click.echo(
                    orjson.dumps(event.model_dump()) if as_json else line_of_event(event, with_run=wanted is None)
                )
        except KeyboardInterrupt:
            stop.set()


@runs.command()
@click.argument("query")
@click.option("--run", help="Only in this run.")
@click.option("--principal", help="Only in runs of this principal.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@json_option
def search(query: str, run: str | None, principal: str | None, limit: int, as_json: bool) -> None:
    """Print events that contain every word of QUERY, newest first."""
    with _reader() as log:
        wanted = log.run_id(run) if run else None
        found = log.search(query, run=wanted, principal=principal, limit=limit)
    if as_json:
        print_json([event.model_dump() for event in found])
        return
    for event in found:
        click.echo(line_of_event(event, with_run=True))


@contextmanager
def answered_as(*, as_json: bool) -> Iterator[None]:
    """With *as_json*, turn a failure of the block into one JSON object on stdout and exit code 1."""
    try:
        yield
    except (OmniError, OSError) as error:
        if not as_json:
            if isinstance(error, OmniError):
                raise
            raise click.ClickException(str(error)) from error
        code, detail = (error.code, error.detail) if isinstance(error, OmniError) else ("internal", str(error))
        message = error.message if isinstance(error, OmniError) else "a file could not be read or written"
        print_json({"ok": False, "error": {"code": code, "message": message, "detail": detail}})
        raise SystemExit(1) from error


def print_json(value: object) -> None:
    """Print *value* as one JSON text."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def printable(text: str) -> str:
    """Return *text* in one line with nothing in it that a terminal obeys: such characters are spelt out."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char == " " or not _is_unsafe(char) else _spelt(char) for char in text)


def _is_unsafe(char: str) -> bool:
    return unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _spelt(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def line_of_event(event: RunEvent, *, with_run: bool = False) -> str:
    """Return one line for people: when, what, and what matters of it."""
    place = f"{event.run[:13]} " if with_run else ""
    when = iso_time(event.at_ns)[11:23]
    what = event.code or event.kind
    call = f"  call {event.call}" if event.call and event.kind == "tool_call" else ""
    story = (
        f"(erased by event {event.erased_by})" if event.payload is None else _STORIES.get(what, _story)(event.payload)
    )
    masked = f"  [masked: {', '.join(event.privacy)}]" if event.privacy else ""
    return printable(f"{place}{event.seq:>5}  {when}  {what:<18} {_short(story)}{call}{masked}")


def all_events(log: LogReader, run: str) -> Iterator[RunEvent]:
    """Yield the events of a run in order."""
    after = 0
    while events := log.events(run, after=after, limit=PAGE_EVENTS):
        yield from events
        after = events[-1].seq


def _line_of_run(run: JsonObject) -> str:
    state = "open" if run["open"] else "closed"
    parts = [
        run["id"], run["created_at"][:19], f"{run['kind'] or '(erased)':<8}", state, f"{run['last_seq']} events",
        f"{run['calls']} calls", run["principal"] or "", run["title"] or "",
    ]  # fmt: skip
    if run["erased"]:
        parts.append(f"({run['erased']} erased)")
    return printable("  ".join(str(part) for part in parts if part))


@contextmanager
def _reader() -> Iterator[LogReader]:
    with LogReader(find_home().log_file) as log:
        yield log


def _short(text: str) -> str:
    return text if len(text) <= LINE_CHARS else text[: LINE_CHARS - 1] + "…"


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _story(payload: JsonObject) -> str:
    return _json({name: value for name, value in payload.items() if name != "code" and value not in (None, "", [], {})})


def _asked(payload: JsonObject) -> str:
    return f"{payload.get('name')} {_json(payload.get('arguments'))}"


def _answered(payload: JsonObject) -> str:
    verdict = "the tool reports an error" if payload.get("is_error") else "ok"
    return f"{verdict} in {payload.get('duration_ms')} ms ({payload.get('where')}) {_json(payload.get('result'))}"


def _failed(payload: JsonObject) -> str:
    ran = "may have taken effect" if payload.get("dispatched") else "nothing ran"
    return f"{payload.get('code')}: {payload.get('message')} ({ran}) {payload.get('detail')}"


def _tried(payload: JsonObject) -> str:
    tried, delay_s = f"{payload.get('attempt')}, {payload.get('error')}", payload.get("delay_s")
    return f"{tried}; the next in {delay_s} s: {payload.get('detail')}"


def _made_again(payload: JsonObject) -> str:
    return f"call {payload.get('target_call')} of run {payload.get('target_run')}, as {payload.get('call')}"


def _decided(payload: JsonObject) -> str:
    rules: Sequence[str] = payload.get("rules") or ()
    verdict, tool = str(payload.get("verdict")).upper(), payload.get("tool") or "unknown tool"
    return f"{verdict} by {', '.join(rules) or 'no rule'} ({tool})"


def _shared(payload: JsonObject) -> str:
    return f"what the next decisions about {payload.get('server')}/{payload.get('tool')} rest on"


def _said(payload: JsonObject) -> str:
    return str(payload.get("text"))


_STORIES: dict[str, Callable[[JsonObject], str]] = {
    "tool_call": _asked,
    "tool_result": _answered,
    "tool_error": _failed,
    "policy_decided": _decided,
    "decision_premises": _shared,
    "attempt_failed": _tried,
    "call_made_again": _made_again,
    "user_message": _said,
    "assistant_message": _said,
    "assistant_message_delta": _said,
}
