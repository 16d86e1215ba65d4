"""A requestState is good for exactly what it was made for."""

from __future__ import annotations

import base64
import random
from dataclasses import replace

import pytest

from omni_mcp.protocol.state import BadState, Bound, Seal, Sealed

BOUND = Bound(principal="ann", profile="default", method="tools/call", name="t", arguments_digest="sha256:1",
              policy_version="p1")  # fmt: skip
INSIDE = Sealed(bound=BOUND, call="c", run="r", round=2, intent_seq=3, expires_at_ns=100, nonce="n",
                requests=("k",), carry={"a": 1}, state={"s": [1, None]})  # fmt: skip


def test_what_is_closed_opens_again_for_the_same_request() -> None:
    seal = Seal(b"1" * 32)
    assert seal.open(seal.close(INSIDE), bound=BOUND, now_ns=100) == INSIDE


def test_nothing_of_it_can_be_read_without_the_key() -> None:
    text = Seal(b"1" * 32).close(replace(INSIDE, state="very secret state"))
    assert b"secret" not in base64.urlsafe_b64decode(text + "==")


@pytest.mark.parametrize("name", ["principal", "profile", "method", "name", "arguments_digest", "policy_version"])
def test_it_opens_for_no_other_request(name: str) -> None:
    seal = Seal(b"1" * 32)
    with pytest.raises(BadState, match=name):
        seal.open(seal.close(INSIDE), bound=replace(BOUND, **{name: "other"}), now_ns=0)


def test_it_expires() -> None:
    seal = Seal(b"1" * 32)
    with pytest.raises(BadState, match="expired"):
        seal.open(seal.close(INSIDE), bound=BOUND, now_ns=101)


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(BadState):
        Seal(b"2" * 32).open(Seal(b"1" * 32).close(INSIDE), bound=BOUND, now_ns=0)


def test_no_flipped_bit_goes_unnoticed() -> None:
    """A thousand flips, spread over the whole text."""
    seal = Seal(b"1" * 32)
    raw = bytearray(base64.urlsafe_b64decode(seal.close(INSIDE) + "=="))
    picks = random.Random(7)
    for _ in range(1000):
        place, bit = picks.randrange(len(raw)), 1 << picks.randrange(8)
        raw[place] ^= bit
        with pytest.raises(BadState):
            seal.open(base64.urlsafe_b64encode(bytes(raw)).decode(), bound=BOUND, now_ns=0)
        raw[place] ^= bit


@pytest.mark.parametrize("text", ["", "x", "eyJhcHByb3ZlZCI6dHJ1ZX0", "ä", "=" * 50, "A" * 600_000, "\x00"])
def test_what_was_never_ours_is_refused(text: str) -> None:
    with pytest.raises(BadState):
        Seal(b"1" * 32).open(text, bound=BOUND, now_ns=0)


def test_a_state_that_is_too_large_is_not_made() -> None:
    with pytest.raises(ValueError, match="too large"):
        Seal(b"1" * 32).close(replace(INSIDE, state="x" * 300_000))


def test_a_seal_needs_a_whole_key() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Seal(b"short")
