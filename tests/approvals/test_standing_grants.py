"""Standing grants: what they cover, how long they count, and that only what is on record counts at all."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_mcp.contracts.approval import StandingGrant
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest, Conflict, LogUnavailable, NotFound
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.approvals.desk import IDLE_POLL_S, POLL_S, ApprovalDesk
from omni_mcp.engines.approvals.standing import StandingBook
from omni_mcp.engines.approvals.standing_store import MAX_DEFINITIONS, MAX_SPAN_NS, MAX_STANDING, StandingStore
from omni_mcp.engines.approvals.store_thread import StoreThread
from omni_mcp.engines.runlog.store import SqliteRunLog
from omni_mcp.engines.state.database import open_state
from tests.waiting import until

Make = Callable[..., StandingGrant]
OpenDesk = Callable[..., Any]
CODER = Principal(kind="Agent", id="coder", owner="1000")
WRITE = Entry(kind="tool", server="tools", name="write", definition={})
SECOND_NS = 1_000_000_000
DAY_S = 86400
WAIT_S = 30


@pytest.fixture
def grants(state_file: Path, clock: Any) -> StandingStore:
    """The file as the command line has it open."""
    return StandingStore(open_state(state_file), now_ns=clock)


@pytest.fixture
def make(clock: Any) -> Make:
    """Make a grant for the coder and one tool that differs from others only in what is said."""

    def make_one(**changes: Any) -> StandingGrant:
        facts: dict[str, Any] = {
            "id": new_id(),
            "principal": CODER.key,
            "project": "default",
            "server": "tools",
            "tool": "write",
            "definitions": (WRITE.digest,),
            "given_by": "2000",
            "given_at_ns": clock.now_ns,
            "expires_at_ns": clock.now_ns + DAY_S * SECOND_NS,
        }
        return StandingGrant(**{**facts, **changes})

    return make_one


def counts(desk: ApprovalDesk, principal: Principal = CODER, entry: Entry = WRITE) -> bool:
    return desk.standing.find(principal, entry) is not None


async def story(log: SqliteRunLog, run: str) -> list[tuple[str | None, str, Any]]:
    """Return (code, actor, grant) of the events about standing grants."""
    events = [event async for event in log.read(run)]
    return [
        (event.code, event.actor, (event.payload or {}).get("grant"))
        for event in events
        if (event.code or "").startswith("standing_")
    ]


def test_a_grant_is_kept_and_found_by_the_beginning_of_its_id(grants: StandingStore, make: Make) -> None:
    one = make(note="for the release", tool=None, principal=None, definitions=None)
    grants.give(one)

    assert grants.find(one.id[:20]).grant == one
    assert [stored.grant for stored in grants.all()] == [one]
    with pytest.raises(NotFound, match="grants --all"):
        grants.find("nothing")
    with pytest.raises(NotFound):
        grants.find("")


@pytest.mark.parametrize(
    "changes",
    [
        {"expires_at_ns": 0},
        {"expires_at_ns": "now"},
        {"expires_at_ns": "too late"},
        {"definitions": ()},
        {"definitions": ("sha256:x",) * (MAX_DEFINITIONS + 1)},
        {"note": "x" * 2001},
    ],
)
def test_a_grant_without_an_end_within_90_days_or_with_a_senseless_scope_is_refused(
    grants: StandingStore, make: Make, clock: Any, changes: dict[str, Any]
) -> None:
    times = {"now": clock.now_ns, "too late": clock.now_ns + MAX_SPAN_NS + 1}
    refused = make(
        **{name: times.get(value, value) if isinstance(value, str) else value for name, value in changes.items()}
    )

    with pytest.raises(BadRequest):
        grants.give(refused)

    assert grants.all() == []
    grants.give(make(expires_at_ns=clock.now_ns + MAX_SPAN_NS))


def test_standing_grants_are_capped_and_ended_ones_make_room(grants: StandingStore, make: Make, clock: Any) -> None:
    for _ in range(MAX_STANDING):
        grants.give(make(expires_at_ns=clock.now_ns + SECOND_NS))
    with pytest.raises(Conflict, match="revoke"):
        grants.give(make())

    clock.pass_s(1)

    grants.give(make())


def test_two_processes_revoke_at_once_and_one_wins(
    grants: StandingStore, make: Make, state_file: Path, clock: Any
) -> None:
    one = make()
    grants.give(one)
    other = StandingStore(open_state(state_file), now_ns=clock)

    assert other.revoke(one.id[:30], by="1000").revoked_by == "1000"

    with pytest.raises(Conflict, match="is revoked already"):
        grants.revoke(one.id, by="2000")


def test_what_has_expired_cannot_be_revoked(grants: StandingStore, make: Make, clock: Any) -> None:
    one = make()
    grants.give(one)
    clock.pass_s(DAY_S)

    with pytest.raises(Conflict, match="is expired already"):
        grants.revoke(one.id, by="2000")


def test_what_ended_long_ago_is_forgotten_and_what_is_not_on_record_is_not(
    grants: StandingStore, make: Make, clock: Any
) -> None:
    recorded, unrecorded = make(), make()
    for one in (recorded, unrecorded):
        grants.give(one)
    grants.mark_recorded(recorded.id, "given")
    clock.pass_s(31 * DAY_S)
    assert grants.purge() == 0
    clock.pass_s(DAY_S)

    assert grants.purge() == 1
    assert [stored.grant.id for stored in grants.all()] == [unrecorded.id]


STEPS = st.lists(
    st.tuples(st.sampled_from(["give", "record", "revoke", "pass"]), st.integers(0, 5), st.integers(1, 50)),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_only_what_is_on_record_not_revoked_and_not_expired_ever_counts(steps: list[tuple[str, int, int]]) -> None:
    now = [10**18]
    store = StandingStore(sqlite3.connect(":memory:", isolation_level=None), now_ns=lambda: now[0])
    model: list[dict[str, Any]] = []
    for step, which, span in steps:
        if step == "give":
            ends = now[0] + span
            one = StandingGrant(
                id=new_id(), principal=None, project="default", server="s", tool=None, definitions=None,
                given_by="1", given_at_ns=now[0], expires_at_ns=ends,
            )  # fmt: skip
            store.give(one)
            model.append({"id": one.id, "ends": ends, "recorded": False, "revoked": False})
        elif step == "record":
            for what, grant in store.unrecorded():
                store.mark_recorded(grant.id, what)
            for known in model:
                known["recorded"] = True
            assert store.unrecorded() == []
        elif step == "revoke" and model:
            known = model[which % len(model)]
            if not known["revoked"] and now[0] < known["ends"]:
                store.revoke(known["id"], by="2")
                known["revoked"] = True
            else:
                with pytest.raises(Conflict):
                    store.revoke(known["id"], by="2")
        else:
            now[0] += span

        expected = {k["id"] for k in model if k["recorded"] and not k["revoked"] and now[0] < k["ends"]}
        assert {grant.id for grant in store.standing()} == expected


@pytest.mark.parametrize(
    ("principal", "entry"),
    [
        (replace(CODER, id="other"), WRITE),
        (replace(CODER, owner="1001"), WRITE),
        (replace(CODER, project="other"), WRITE),
        (Principal(kind="User", id="coder"), WRITE),
        (CODER, Entry(kind="tool", server="tools", name="read", definition={})),
        (CODER, Entry(kind="tool", server="files", name="write", definition={})),
        (CODER, Entry(kind="tool", server="tools", name="write", definition={"description": "changed"})),
        (CODER, Entry(kind="tool", server="tools", name="write", definition={}, version="9.9.9")),
        (CODER, Entry(kind="resource", server="tools", name="write", definition={})),
    ],
)
def test_another_caller_another_tool_and_a_changed_definition_are_not_covered(
    make: Make, principal: Principal, entry: Entry
) -> None:
    assert make().covers(CODER, WRITE)
    assert not make().covers(principal, entry)


def test_a_grant_for_any_definition_is_still_for_one_tool_and_for_tools_only(make: Make) -> None:
    wide = make(definitions=None)

    assert wide.covers(CODER, Entry(kind="tool", server="tools", name="write", definition={"description": "changed"}))
    assert not wide.covers(CODER, Entry(kind="tool", server="tools", name="read", definition={}))
    assert not wide.covers(CODER, Entry(kind="resource", server="tools", name="write", definition={}))
    assert not wide.covers(CODER, Entry(kind="tool", server="files", name="write", definition={}))


def test_a_whole_server_for_everyone_of_a_project_is_just_that(make: Make) -> None:
    read = Entry(kind="tool", server="tools", name="read", definition={})
    newcomer = Entry(kind="tool", server="tools", name="newcomer", definition={})
    wide = make(principal=None, tool=None, definitions=(WRITE.digest, read.digest))

    assert wide.covers(CODER, WRITE) and wide.covers(Principal(kind="User", id="7"), read)
    assert not wide.covers(CODER, newcomer)  # what came later, nobody has seen
    assert not wide.covers(replace(CODER, project="other"), WRITE)
    assert make(tool=None, definitions=None).covers(CODER, newcomer)


async def test_a_grant_counts_once_it_is_on_record_and_no_more_when_it_is_revoked(
    open_desk: OpenDesk, grants: StandingStore, make: Make, log: SqliteRunLog, gateway_run: str
) -> None:
    one = make(note="go on")
    async with open_desk() as desk:
        assert not counts(desk)
        grants.give(one)
        await until(lambda: counts(desk))
        assert await story(log, gateway_run) == [("standing_granted", 'User::"2000"', one.id)]
        found = desk.standing.find(CODER, WRITE)
        assert found is not None and (found.id, found.by) == (one.id, "2000")

        grants.revoke(one.id, by="3000")
        await until(lambda: not counts(desk))
        await until(lambda: grants.unrecorded() == [])

    assert await story(log, gateway_run) == [
        ("standing_granted", 'User::"2000"', one.id), ("standing_revoked", 'User::"3000"', one.id),
    ]  # fmt: skip
    payload = [event async for event in log.read(gateway_run)][1].payload or {}
    assert payload["definitions"] == [WRITE.digest]
    assert (payload["principal"], payload["server"], payload["tool"], payload["note"]) == (
        CODER.key, "tools", "write", "go on",
    )  # fmt: skip


async def test_a_grant_ends_with_its_time_without_anybody_looking(
    open_desk: OpenDesk, grants: StandingStore, make: Make, clock: Any
) -> None:
    grants.give(make())
    async with open_desk() as desk:
        assert counts(desk)
        clock.pass_s(DAY_S - 1)
        assert counts(desk)
        clock.pass_s(1)
        assert not counts(desk)


async def test_what_was_given_and_revoked_while_no_gateway_ran_is_on_record_at_the_start_and_never_counts(
    open_desk: OpenDesk, grants: StandingStore, make: Make, log: SqliteRunLog, gateway_run: str
) -> None:
    one = make()
    grants.give(one)
    grants.revoke(one.id, by="2000")

    async with open_desk() as desk:
        assert not counts(desk)

    assert [code for code, _, _ in await story(log, gateway_run)] == ["standing_granted", "standing_revoked"]


async def test_a_crash_between_the_record_and_its_mark_records_nothing_twice(
    open_desk: OpenDesk, grants: StandingStore, make: Make, log: SqliteRunLog, gateway_run: str, state_file: Path
) -> None:
    stays, gone = make(), make()
    for one in (stays, gone):
        grants.give(one)
    grants.revoke(gone.id, by="2000")
    async with open_desk():
        pass
    before = await story(log, gateway_run)
    open_state(state_file).execute("UPDATE standing_grants SET recorded = 0")  # as if the marks had been lost

    async with open_desk() as desk:
        assert counts(desk)

    assert await story(log, gateway_run) == before
    assert len(before) == 3 and grants.unrecorded() == []


async def test_a_closed_desk_and_a_book_that_nobody_keeps_current_know_of_no_grant(
    open_desk: OpenDesk, grants: StandingStore, make: Make, log: SqliteRunLog, gateway_run: str, clock: Any
) -> None:
    grants.give(make())
    async with open_desk() as desk:
        assert counts(desk)
    assert not counts(desk)

    thread = StoreThread()
    stale = StandingBook(grants, thread, log, run=gateway_run, now_ns=clock, max_age_s=-1)
    await stale.open()
    assert len(stale) == 1 and stale.find(CODER, WRITE) is None
    thread.close()


async def test_a_grant_goes_on_counting_while_the_desk_looks_and_finds_nothing_new(
    open_desk: OpenDesk, grants: StandingStore, make: Make
) -> None:
    grants.give(make())
    async with open_desk(max_age_s=0.2) as desk:
        end_s = asyncio.get_running_loop().time() + 0.3
        while asyncio.get_running_loop().time() < end_s:
            await desk.open_questions()

        await until(lambda: counts(desk))  # by many looks that found nothing; by one alone it would be too old


class BrokenLog:
    """The run log on a disk that is full."""

    def __init__(self, log: SqliteRunLog) -> None:
        self._log = log
        self.full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, run: str, draft: Any, **rest: Any) -> Any:
        return self if self.full else self._log.append(run, draft, **rest)

    async def durable(self) -> int:
        raise LogUnavailable("the disk is full")


async def test_while_the_log_cannot_be_written_a_grant_does_not_count_and_a_revocation_does(
    open_desk: OpenDesk, grants: StandingStore, make: Make, log: SqliteRunLog
) -> None:
    broken = BrokenLog(log)
    old, new = make(), make(principal=replace(CODER, id="new").key)
    grants.give(old)
    async with open_desk(log=broken) as desk:
        assert counts(desk)
        broken.full = True
        grants.give(new)
        grants.revoke(old.id, by="2000")

        await until(lambda: not counts(desk))
        for _ in range(20):  # many looks later
            await desk.open_questions()
        assert not counts(desk, replace(CODER, id="new"))

        broken.full = False
        await until(lambda: counts(desk, replace(CODER, id="new")))
        assert not counts(desk)


async def test_while_the_database_cannot_be_asked_no_grant_counts(
    open_desk: OpenDesk, grants: StandingStore, make: Make, state_file: Path
) -> None:
    grants.give(make())
    other = open_state(state_file)
    async with open_desk(max_age_s=600) as desk:
        assert counts(desk)
        other.execute("ALTER TABLE standing_grants RENAME TO elsewhere")

        await until(lambda: not counts(desk))

        other.execute("ALTER TABLE elsewhere RENAME TO standing_grants")
        await until(lambda: counts(desk))


def test_the_pauses_keep_the_promised_times() -> None:
    assert POLL_S < 0.2
    assert IDLE_POLL_S <= 0.5
