"""Writes a large run log quickly: valid chains, heads, lists and search index, as the gateway would have left them.

Sixteen sessions are open at a time and take turns, so that the events of a run lie as far apart as they do in a log
that many clients write. Nothing is synced before the end: a crash means starting again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.events import RunCreated, ToolCall, ToolResult
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import canonical
from omni_mcp.engines.runlog.anchor import AnchorKeeper
from omni_mcp.engines.runlog.heads import GlobalHead, Head, roll, save_heads
from omni_mcp.engines.runlog.projections import Fact, project, values_of
from omni_mcp.engines.runlog.rows import event_statements, in_portions, sealed_row
from omni_mcp.engines.runlog.search_index import index_payloads
from omni_mcp.engines.runlog.store import open_ledger

GROUP = 16_384  # events of one transaction
OPEN_RUNS = 16
RUN_EVENTS = 2_001  # its beginning, and a thousand calls that all have their outcome
ANN = Principal(kind="User", id="ann")
OTHERS = tuple(Principal(kind="User", id=f"user{number}") for number in range(3))

NOW_AND_THEN = "quincewort"  # one event in 20,000, of everybody, to the end
LONG_AGO = "medlarium"  # thirty events, all of the first twentieth
OF_OTHERS = "loquatine"  # one event in 50 of others, and thirty of ann's, all long ago
TEXT = "Read the notes of the last meeting and list every decision with its owner and the day it is due"

_CALL, _WORD = "00000000-call", "wordwordword"


@dataclass(slots=True)
class _Run:
    head: Head
    principal: Principal
    call: str = ""
    asked: int = 0


class _Filler:
    """Makes events in order."""

    def __init__(self, events: int) -> None:
        self._events = events
        self._gid = 0
        self._run_key = 0
        self._calls = 0
        self._open: list[_Run] = []
        self._told = {"ago": 0, "hers": 0}
        self.total = GlobalHead()
        self._asked = {one.key: _asked(one) for one in (ANN, *OTHERS)}
        self._answered = _answered()

    def group(self) -> Iterator[tuple[_Run, tuple[object, ...], Fact, str]]:
        """Yield (run, row, fact, id of a new run) for the events of one transaction."""
        for _ in range(min(GROUP, self._events - self._gid)):
            at = self._gid % OPEN_RUNS
            if at >= len(self._open) or self._open[at].head.count >= RUN_EVENTS:
                yield self._begun(at)
            else:
                yield self._next(self._open[at])

    def _begun(self, at: int) -> tuple[_Run, tuple[object, ...], Fact, str]:
        self._run_key += 1
        principal = ANN if self._run_key % 2 else OTHERS[self._run_key % len(OTHERS)]
        run = _Run(Head(self._run_key, new_id()), principal)
        self._open[at : at + 1] = [run]
        payload = RunCreated(
            run_kind="session", project=principal.project, principal=principal.key, gateway_version="bench"
        ).model_dump()
        values = values_of("run_created", payload)
        row, fact = self._sealed(run, "run_created", None, canonical(payload), values)
        return run, row, fact, run.head.run

    def _next(self, run: _Run) -> tuple[_Run, tuple[object, ...], Fact, str]:
        if not run.call:
            run.call, run.asked = new_id(), run.head.count + 1
            word = self._word(run.principal).encode()
            payload = (
                self._asked[run.principal.key].replace(_WORD.encode(), word).replace(_CALL.encode(), run.call.encode())
            )
            row, fact = self._sealed(run, "tool_call", run.call, payload, ())
        else:
            payload = self._answered.replace(_CALL.encode(), run.call.encode())
            row, fact = self._sealed(run, "tool_result", run.call, payload, ())
            run.call = ""
        return run, row, fact, ""

    def _word(self, principal: Principal) -> str:
        self._calls = number = self._calls + 1
        early = self._gid < self._events // 20
        if number % 9_973 == 0:
            return NOW_AND_THEN
        if early and number % 97 == 0 and self._told["ago"] < 30:
            self._told["ago"] += 1
            return LONG_AGO
        if principal is ANN and early and number % 89 == 0 and self._told["hers"] < 30:
            self._told["hers"] += 1
            return OF_OTHERS
        if principal is not ANN and number % 23 == 0:
            return OF_OTHERS
        return "nothing"

    def _sealed(
        self, run: _Run, kind: str, call: str | None, payload: bytes, values: tuple[object, ...]
    ) -> tuple[tuple[object, ...], Fact]:
        head = run.head
        self._gid += 1
        at_ns = 1_700_000_000_000_000_000 + self._gid * 1_000_000
        parent = run.asked if kind == "tool_result" else None
        row = sealed_row(
            run_key=head.run_key, run=head.run, seq=head.count + 1, gid=self._gid, at_ns=at_ns, kind=kind, code=None,
            actor=run.principal.key, call=call, parent=parent, privacy=(), payload=payload, prev=head.hash,
        )  # fmt: skip
        head.count, head.hash = head.count + 1, row[-2]
        self.total.count, self.total.hash = self._gid, roll(self.total.hash, row[-2])
        return row, Fact(head.run_key, head.count, at_ns, kind, None, call, values)


def fill(file: Path, keys: Path, events: int, *, said: Callable[[str], None] = lambda text: None) -> float:
    """Make a log of *events* in *file*, which is not there yet; returns how many seconds it took."""
    began = time.perf_counter()
    opened = open_ledger(file, keys, events_per_run=10 * RUN_EVENTS)
    connection = opened.ledger.connection
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -262144")
    filler = _Filler(events)
    while filler.total.count < events:
        connection.execute("BEGIN IMMEDIATE")
        made = list(filler.group())
        rows = [row for _, row, _, _ in made]
        new = [(run.head.run_key, name) for run, _, _, name in made if name]
        statements = in_portions("INSERT INTO run_keys (run, id) VALUES {rows}", "(?, ?)", new)
        for statement, values in statements + event_statements(rows):
            connection.execute(statement, values)
        project(connection, [fact for _, _, fact, _ in made])
        heads = {id(run): run.head for run, _, _, _ in made}
        save_heads(connection, opened.keys, list(heads.values()), filler.total)
        index_payloads(connection, [(row[2], row[-1][16:]) for row in rows], filler.total.count)  # type: ignore[misc,index]
        connection.execute("COMMIT")
        if filler.total.count % (64 * GROUP) == 0:
            rate = filler.total.count / (time.perf_counter() - began)
            said(f"{filler.total.count:,} events, {rate:,.0f}/s")
    connection.execute("PRAGMA journal_mode = WAL")
    AnchorKeeper(keys, opened.keys, kept=0).keep(filler.total)
    connection.close()
    return time.perf_counter() - began


def _asked(principal: Principal) -> bytes:
    payload = ToolCall(
        call_kind="tool", name="tools__files_read",
        arguments={"path": f"notes/{_WORD}.txt", "question": f"{TEXT} {_CALL}"},
        arguments_hmac="hmac-sha256:" + "ab" * 32, arguments_bytes=180, principal=principal.key, profile="default",
        client={"name": "bench", "version": "1.0", "transport": "stdio"},
    )  # fmt: skip
    return canonical(payload.model_dump())


def _answered() -> bytes:
    payload = ToolResult(
        is_error=False, result={"content": [{"type": "text", "text": f"{TEXT} {_CALL} {TEXT}"}]}, where="cell",
        isolation={"namespaces": True, "landlock": True, "seccomp": True}, usage={"wall_ms": 12.5, "cpu_ms": 3.25},
        duration_ms=13.0, bytes_out=260,
    )  # fmt: skip
    found = canonical(payload.model_dump())
    assert orjson.loads(found)
    return found
