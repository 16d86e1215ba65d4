"""E06, E12: all that is derived can be dropped and comes back byte for byte, whatever happened and was erased."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omni_mcp.engines.artifacts.blobs import BlobStore
from omni_mcp.engines.runlog.erase import Eraser
from omni_mcp.engines.runlog.search_index import shards
from omni_mcp.engines.runlog.store import open_ledger, open_run_log
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.paths import Home
from omni_mcp.testing import home_in
from tests.evidence.conftest import Evidence
from tests.runlog.conftest import answered, asked, decided, failed, new_run, said

WORDS = ("quince", "medlar", "ümlaut", "c++", "a-b", "🍐", '"quoted"', "0b10")


def _shown(evidence: Evidence, runs: Sequence[str]) -> list[bytes]:
    """What the commands print: the list, every run, and a search for every word."""
    commands = [
        ("runs", "list"),
        *(("runs", "show", run) for run in runs),
        *(("runs", "search", word) for word in WORDS),
    ]
    return [evidence.omni(*words, "--json").stdout_bytes for words in commands]


def _drop_everything_derived(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for table in shards(connection):
            connection.execute(f"DROP TABLE {table}")
        for table in ("runs", "open_calls", "search_state"):
            connection.execute(f"DELETE FROM {table}")
        connection.execute("INSERT INTO search_state (id, gid) VALUES (1, 0)")


def _comes_back(evidence: Evidence, runs: Sequence[str]) -> None:
    before = _shown(evidence, runs)
    _drop_everything_derived(evidence.home.log_file)
    assert _shown(evidence, runs) != before, "something was derived"
    assert evidence.omni("db", "rebuild").exit_code == 0
    assert _shown(evidence, runs) == before
    assert evidence.json("audit", "verify")["ok"]


async def test_what_a_gateway_left_comes_back_and_again_after_an_erasure(evidence: Evidence) -> None:
    runs = [evidence.ann, evidence.bob]
    _comes_back(evidence, runs)
    [call] = [event.call for event in evidence.events(evidence.ann) if event.kind == "tool_call"][:1]
    assert evidence.omni("erase", "--run", evidence.ann, "--call", str(call), "--yes").exit_code == 0
    _comes_back(evidence, runs)
    assert evidence.omni("erase", "--run", evidence.bob, "--yes").exit_code == 0
    _comes_back(evidence, runs)


STEP = st.tuples(
    st.sampled_from(["said", "called", "open", "failed", "erase run", "erase call", "restart"]),
    st.integers(0, 2),
    st.sampled_from(WORDS),
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=1, max_size=14))
def test_any_history_comes_back(steps: list[tuple[str, int, str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = home_in(Path(directory))
        home.data.mkdir()
        runs = asyncio.run(_lived(home, steps))
        _comes_back(Evidence(home, "", ""), runs)


async def _lived(home: Home, steps: Sequence[tuple[str, int, str]]) -> list[str]:
    """Let a history happen: three runs, each step in one of them."""
    runs: list[str] = []
    calls: list[tuple[str, str]] = []
    for at, part in enumerate(_lives(steps)):
        async with open_run_log(
            home.log_file, keys=home.secrets, masker=SecretMasker({}), gateway_version="test"
        ) as log:
            if at == 0:
                runs = [await new_run(log, title=word) for word in WORDS[:3]]
            else:
                await log.recover_orphans()
            for number, (what, which, word) in enumerate(part):
                run, call = runs[which], f"call-{at}-{number}"
                if what == "said":
                    await log.append(run, said(f"{word} and {word} again")).durable()
                elif what in ("called", "open", "failed"):
                    log.append(run, asked(call, path=word))
                    await log.append(run, decided(call)).durable()
                    calls.append((run, call))
                    if what != "open":
                        ended = answered(call, word) if what == "called" else failed(call)
                        await log.append_outcome(run, ended).durable()
                else:
                    _erase(home, calls[which % len(calls)] if what == "erase call" and calls else (run, None))
    return runs


def _lives(steps: Sequence[tuple[str, int, str]]) -> list[list[tuple[str, int, str]]]:
    lives: list[list[tuple[str, int, str]]] = [[]]
    for step in steps:
        if step[0] == "restart":
            lives.append([])
        else:
            lives[-1].append(step)
    return lives


def _erase(home: Home, place: tuple[str, str | None]) -> None:
    opened = open_ledger(home.log_file, home.secrets, events_per_run=10**6)
    blobs = BlobStore(home.artifacts)
    try:
        eraser = Eraser(opened.ledger, home.log_file, blobs, by="operator:test")
        eraser.erase(place[0], call=place[1], reason="test")
    finally:
        blobs.close()
        opened.ledger.connection.close()
