"""A requestState is good for what it was made for, once; the same round of a call has the same text again."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from omni_mcp.serving.states import SHARE_BYTES, STATE_LIMIT_BYTES, BadState, Bound, Kept, NoRoom, States

KEY = b"1" * 32
BOUND = Bound(principal="ann", profile="default", method="tools/call", name="t", arguments_digest="sha256:1",
              policy_version="p1")  # fmt: skip
KEPT = Kept(bound=BOUND, call="c", run="r", round=2, intent_seq=3, expires_at_ns=100, requests=("k",), carry={"a": 1},
            state={"s": [1, None]})  # fmt: skip


def test_what_was_kept_comes_back_for_the_same_request_and_only_once() -> None:
    states = States(KEY)
    text = states.put(KEPT, now_ns=0)

    assert states.take(text, bound=BOUND, now_ns=100) == KEPT
    with pytest.raises(BadState, match="used before"):
        states.take(text, bound=BOUND, now_ns=100)


def test_the_same_round_of_the_same_call_has_the_same_text_under_the_same_key_whatever_else_differs() -> None:
    then = States(KEY).put(KEPT, now_ns=0)

    assert States(KEY).put(replace(KEPT, run="other", intent_seq=9, expires_at_ns=7), now_ns=5) == then
    assert States(KEY).put(replace(KEPT, round=3), now_ns=0) != then
    assert States(KEY).put(replace(KEPT, call="d"), now_ns=0) != then
    assert States(b"2" * 32).put(KEPT, now_ns=0) != then


def test_nothing_of_it_can_be_read() -> None:
    text = States(KEY).put(replace(KEPT, state="very secret state"), now_ns=0)
    assert len(base64.urlsafe_b64decode(text + "=")) == 32


@pytest.mark.parametrize("name", ["principal", "profile", "method", "name", "arguments_digest", "policy_version"])
def test_another_request_gets_nothing_and_takes_nothing_away(name: str) -> None:
    states = States(KEY)
    text = states.put(KEPT, now_ns=0)

    with pytest.raises(BadState, match=name):
        states.take(text, bound=replace(BOUND, **{name: "other"}), now_ns=0)
    assert states.take(text, bound=BOUND, now_ns=0) == KEPT


def test_it_expires() -> None:
    states = States(KEY)
    text = states.put(KEPT, now_ns=0)
    with pytest.raises(BadState, match="expired"):
        states.take(text, bound=BOUND, now_ns=101)


def test_who_knows_the_key_and_the_call_of_another_process_has_nothing_here() -> None:
    """After a restart every round is over; and a replay's text is of no use to a gateway that did not give it out."""
    text = States(KEY).put(KEPT, now_ns=0)
    with pytest.raises(BadState):
        States(KEY).take(text, bound=BOUND, now_ns=0)


def test_no_other_text_stands_for_it() -> None:
    states = States(KEY)
    text = states.put(KEPT, now_ns=0)
    for place, letter in enumerate(text):
        for other in "AQgw_-" if letter not in "AQgw_-" else "BRhx":
            with pytest.raises(BadState):
                states.take(text[:place] + other + text[place + 1 :], bound=BOUND, now_ns=0)
    for other in (text + "=", text[:-1], text.upper(), " " + text):
        with pytest.raises(BadState):
            states.take(other, bound=BOUND, now_ns=0)
    assert states.take(text, bound=BOUND, now_ns=0) == KEPT


@pytest.mark.parametrize("text", ["", "x", "eyJhcHByb3ZlZCI6dHJ1ZX0", "ä", "=" * 50, "A" * 600_000, "\x00", "\ud800"])
def test_what_was_never_ours_is_refused(text: str) -> None:
    with pytest.raises(BadState):
        States(KEY).take(text, bound=BOUND, now_ns=0)


def test_a_state_that_is_too_large_is_not_kept() -> None:
    with pytest.raises(ValueError, match="too large"):
        States(KEY).put(replace(KEPT, state="x" * STATE_LIMIT_BYTES), now_ns=0)


def test_one_principal_fills_its_share_and_nobody_elses_and_gets_it_back() -> None:
    states = States(KEY)
    large = replace(KEPT, state="x" * (STATE_LIMIT_BYTES - 1024))
    fitting = SHARE_BYTES // (STATE_LIMIT_BYTES - 512)
    texts = [states.put(replace(large, call=str(number)), now_ns=0) for number in range(fitting)]

    with pytest.raises(NoRoom):
        states.put(replace(large, call="more"), now_ns=0)
    states.put(replace(large, bound=replace(BOUND, principal="bob")), now_ns=0)

    states.take(texts[0], bound=BOUND, now_ns=0)
    states.put(replace(large, call="again"), now_ns=0)


def test_what_nobody_came_back_for_makes_room() -> None:
    states = States(KEY)
    large = replace(KEPT, state="x" * (STATE_LIMIT_BYTES - 1024))
    for number in range(1000):
        states.put(replace(large, call=str(number), expires_at_ns=number * 10), now_ns=number * 10 - 50)


def test_a_key_is_whole() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        States(b"short")
