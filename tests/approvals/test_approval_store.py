"""Rows and their steps: exactly one winner, whoever comes at once and from wherever."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.errors import BadRequest, Conflict, NotFound, RateLimited
from omni_mcp.engines.approvals.store import ApprovalStore
from omni_mcp.engines.state.database import open_state

Make = Callable[..., Approval]
OpenStore = Callable[..., ApprovalStore]


def test_a_second_answer_is_a_conflict_that_names_the_first(store: ApprovalStore, question: Make) -> None:
    asked = store.claim(question()).approval
    store.decide(asked.id, by="1000", approve=True, note="fine")

    with pytest.raises(Conflict) as conflict:
        store.decide(asked.id, by="1001", approve=False)

    assert conflict.value.data == {"state": "approved"}
    found = store.get(asked.id)
    assert (found.state, found.decided_by, found.note) == ("approved", "1000", "fine")


def test_deny_then_approve_is_a_conflict(store: ApprovalStore, question: Make) -> None:
    asked = store.claim(question()).approval
    store.decide(asked.id, by="1000", approve=False)

    with pytest.raises(Conflict):
        store.decide(asked.id, by="1000", approve=True)


def test_after_its_time_a_question_cannot_be_answered(store: ApprovalStore, question: Make, clock: Any) -> None:
    asked = store.claim(question()).approval
    clock.pass_s(900)

    with pytest.raises(Conflict) as conflict:
        store.decide(asked.id, by="1000", approve=True)

    assert conflict.value.data == {"state": "expired"}
    assert store.open_questions() == []


def test_fifty_answers_at_once_have_exactly_one_winner(open_store: OpenStore, question: Make, clock: Any) -> None:
    """Five connections, as five processes would have them; approvals, denials, withdrawals and the clock together."""
    stores = [open_store() for _ in range(5)]
    for _ in range(3):
        asked = stores[0].claim(question(call="one")).approval

        def answer(number: int, store: ApprovalStore, asked: Approval = asked) -> int:
            if number % 5 == 4:
                return len(store.withdraw([asked.id], note="changed"))
            try:
                store.decide(asked.id, by=str(number), approve=number % 2 == 0)
            except Conflict:
                return 0
            return 1

        def answers(lane: int, answer: Callable[..., int] = answer) -> int:
            return sum(answer(number, stores[lane]) for number in range(lane, 50, 5))

        with ThreadPoolExecutor(5) as pool:
            won = sum(pool.map(answers, range(5)))

        assert won == 1
        assert len([one for one in stores[0].unrecorded() if one.approval.id == asked.id]) == 1
        if stores[0].get(asked.id).state == "approved":
            assert stores[1].use(asked.id, "one") is True


def test_one_approval_is_taken_once_by_many_claims_at_once(open_store: OpenStore, question: Make) -> None:
    stores = [open_store() for _ in range(5)]
    asked = stores[0].claim(question()).approval
    stores[1].decide(asked.id, by="1000", approve=True)

    with ThreadPoolExecutor(5) as pool:
        outcomes = list(pool.map(lambda store: [store.claim(question()).outcome for _ in range(4)], stores))

    flat = sorted(outcome for lane in outcomes for outcome in lane)
    assert flat == ["joined"] * 18 + ["opened", "taken"]


def test_an_approval_that_expired_is_not_taken(store: ApprovalStore, question: Make, clock: Any) -> None:
    asked = store.claim(question()).approval
    store.decide(asked.id, by="1000", approve=True)
    clock.pass_s(900)

    assert store.claim(question()).outcome == "opened"
    assert store.use(asked.id, "call") is False
    assert store.get(asked.id).state == "expired"
    assert store.unrecorded()[0].decision == "approved"  # what the person said stays what they said


@pytest.mark.parametrize(
    "change",
    [
        {"arguments_digest": "sha256:thesf"},
        {"definition_digest": "sha256:other"},
        {"principal": 'Agent::"coder"/1001@default'},
        {"policy_version": "sha256:newer"},
        {"server": "other"},
        {"tool": "other"},
        {"name": "file:///other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_approval_is_good_for_nothing_that_differs_in_one_thing(
    store: ApprovalStore, question: Make, change: dict[str, str]
) -> None:
    asked = store.claim(question()).approval
    store.decide(asked.id, by="1000", approve=True)

    assert store.claim(question(**change)).outcome == "opened"
    assert store.claim(question(run="another run", call="another")).outcome == "taken"


def test_parts_of_a_binding_cannot_be_shifted_into_each_other(store: ApprovalStore, question: Make) -> None:
    asked = store.claim(question(server="a", tool="bc")).approval
    store.decide(asked.id, by="1000", approve=True)

    assert store.claim(question(server="ab", tool="c")).outcome == "opened"


def test_a_denied_question_is_asked_anew(store: ApprovalStore, question: Make) -> None:
    store.decide(store.claim(question()).approval.id, by="1000", approve=False)

    assert store.claim(question()).outcome == "opened"


def test_only_the_same_call_in_a_later_round_goes_on_with_a_used_approval(store: ApprovalStore, question: Make) -> None:
    asked = store.claim(question(call="one")).approval
    store.decide(asked.id, by="1000", approve=True)
    assert store.claim(question(call="one")).outcome == "taken"

    assert store.claim(question(call="one"), again=True).outcome == "taken"
    assert store.claim(question(call="one", arguments_digest="sha256:x"), again=True).outcome == "opened"
    assert store.claim(question(call="two"), again=True).outcome == "opened"


def test_open_questions_are_capped_per_principal_and_in_all(open_store: OpenStore, question: Make) -> None:
    store = open_store(max_open_per_principal=3, max_open=5)
    for number in range(3):
        store.claim(question(arguments_digest=str(number)))

    with pytest.raises(RateLimited):
        store.claim(question(arguments_digest="more"))
    assert store.claim(question(arguments_digest="0")).outcome == "joined"
    for number in range(2):
        store.claim(question(principal="other", arguments_digest=str(number)))
    with pytest.raises(RateLimited):
        store.claim(question(principal="third"))


def test_closing_a_question_makes_room(open_store: OpenStore, question: Make) -> None:
    store = open_store(max_open_per_principal=1)
    asked = store.claim(question()).approval
    store.decide(asked.id, by="1000", approve=False)

    assert store.claim(question()).outcome == "opened"


def test_questions_are_found_by_the_beginning_of_their_id(store: ApprovalStore, question: Make) -> None:
    first, second = question(id="0199-aaaa"), question(id="0199-bbbb", arguments_digest="x")
    store.claim(first)
    store.claim(second)

    assert store.find("0199-b").id == second.id
    with pytest.raises(Conflict):
        store.find("0199")
    for missing in ("", "7", "0199-b%", "0199-aaaa-and-more"):
        with pytest.raises((NotFound, Conflict)):
            store.find(missing)
    with pytest.raises(NotFound):
        store.decide("nothing", by="1000", approve=True)


def test_a_note_has_a_length(store: ApprovalStore, question: Make) -> None:
    asked = store.claim(question()).approval

    with pytest.raises(BadRequest):
        store.decide(asked.id, by="1000", approve=True, note="x" * 2001)

    assert store.get(asked.id).state == "pending"


def test_another_process_answers_and_this_one_sees_it(store: ApprovalStore, question: Make, state_file: Path) -> None:
    asked = store.claim(question()).approval
    before = store.data_version()
    code = (
        "import sys; from pathlib import Path; from omni_mcp.engines.approvals.store import ApprovalStore; "
        "from omni_mcp.engines.state.database import open_state; "
        f"s = ApprovalStore(open_state(Path(sys.argv[1])), now_ns=lambda: {asked.asked_at_ns}); "
        "s.decide(sys.argv[2], by='2000', approve=True); s.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(state_file), asked.id], check=True, timeout=60)

    assert store.data_version() != before
    assert (store.get(asked.id).state, store.get(asked.id).decided_by) == ("approved", "2000")


def test_erasing_a_run_leaves_no_byte_of_its_arguments(store: ApprovalStore, question: Make, state_file: Path) -> None:
    store.claim(question(run="mine", arguments={"text": "a very private sentence"}))
    store.claim(question(run="other", arguments_digest="x"))

    assert store.erase_run("mine"), "the write-ahead log was cut"

    found = b"".join(file.read_bytes() for file in state_file.parent.iterdir() if file.is_file())
    assert b"private sentence" not in found
    assert b"notes.txt" in found


def test_closed_and_recorded_questions_are_forgotten_after_a_month(
    store: ApprovalStore, question: Make, clock: Any
) -> None:
    old = store.claim(question()).approval
    store.decide(old.id, by="1000", approve=False)
    unrecorded = store.claim(question(arguments_digest="x")).approval
    store.decide(unrecorded.id, by="1000", approve=False)
    store.mark_recorded(old.id)
    clock.pass_s(31 * 86400)

    assert store.purge() == 1
    assert [one.id for one in store.recent()] == [unrecorded.id]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "approve", "deny", "use", "withdraw", "pass", "again"]),
        st.integers(0, 2),
        st.integers(0, 9),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_the_order_of_steps_no_approval_lets_two_calls_through(
    steps: list[tuple[str, int, int]], question: Make, clock: Any
) -> None:
    """A model of one desk: each pass must be paid for by an approval of the same binding that nothing else used."""
    store = ApprovalStore(sqlite3.connect(":memory:", isolation_level=None), now_ns=clock)
    approved: set[str] = set()
    passed: list[str] = []
    ids: list[str] = []
    for number, (step, which, target) in enumerate(steps):
        chosen = ids[target % len(ids)] if ids else "none"
        if step in ("claim", "again"):
            asked = question(arguments_digest=str(which), call=f"call {number}", id=f"id {number:03}")
            claim = store.claim(asked, again=step == "again")
            if claim.outcome == "taken":
                assert claim.approval.arguments_digest == str(which)
                passed.append(claim.approval.id)
            elif claim.outcome == "opened":
                ids.append(asked.id)
        elif step in ("approve", "deny"):
            try:
                store.decide(chosen, by="1000", approve=step == "approve")
            except (Conflict, NotFound):
                continue
            if step == "approve":
                approved.add(chosen)
        elif step == "use" and store.use(chosen, f"call {number}"):
            passed.append(chosen)
        elif step == "withdraw":
            store.withdraw([chosen], note="changed")
        elif step == "pass":
            clock.pass_s(300)
    store.close()

    assert len(passed) == len(set(passed))
    assert set(passed) <= approved


def test_the_state_file_is_private_and_durable(state_file: Path) -> None:
    connection = open_state(state_file)

    assert state_file.stat().st_mode & 0o777 == 0o600
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    connection.close()


def _loose(file: Path) -> None:
    file.touch(0o600)
    file.chmod(0o640)


def _linked(file: Path) -> None:
    (file.parent / "elsewhere").touch(0o600)
    file.symlink_to(file.parent / "elsewhere")


def _newer(file: Path) -> None:
    connection = open_state(file)
    connection.execute("PRAGMA user_version=99")
    connection.close()


@pytest.mark.parametrize(
    ("harm", "words"), [(_loose, "chmod 600"), (_linked, "must be a file of yours"), (_newer, "newer")]
)
def test_a_state_file_that_cannot_be_trusted_is_refused(
    state_file: Path, harm: Callable[[Path], None], words: str
) -> None:
    harm(state_file)

    with pytest.raises(Exception, match=words):
        open_state(state_file)
