"""A decision on record has no name that is somebody else's word, so nothing in it is masked for its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from omni_mcp.contracts.events import PolicyDecided, ToolCall, draft
from omni_mcp.contracts.policy import ApprovalFacts, StandingFacts
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.policy.policy import CedarPolicy
from omni_mcp.engines.secrets.key_names import is_secret_name

EVERYTHING = '@id("all") permit (principal, action, resource);'
APPROVED = ApprovalFacts(id="A1", by="1001", arguments_digest="sha256:these")
GIVEN = StandingFacts(id="G1", by="1000")
WORD = "their_password"  # would be masked, were it the name of anything


def names_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from names_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from names_in(inner)


@pytest.mark.parametrize("standing", [None, GIVEN])
@pytest.mark.parametrize("approval", [None, APPROVED])
@pytest.mark.parametrize("known", [True, False])
def test_no_word_of_a_caller_a_tool_or_an_operator_is_a_name_in_a_decision(
    policy_of: Callable[[str], CedarPolicy], decide: Any, known: bool, approval: Any, standing: Any
) -> None:
    tool = Entry(kind="tool", server=WORD, name=WORD, definition={WORD: WORD}) if known else None

    decision = decide(
        policy_of(EVERYTHING), tool, name=WORD, run=WORD, egress=(WORD,), approval=approval, standing=standing
    )

    names = {*names_in(decision.request), *PolicyDecided.model_fields}
    assert WORD in str(decision.request)
    assert [name for name in names if is_secret_name(name)] == []


def test_what_holds_other_peoples_names_is_not_taken_for_such_a_decision() -> None:
    asked = ToolCall(
        call_kind="tool", name="t__echo", arguments={WORD: "x"}, arguments_hmac="", arguments_bytes=0, principal="p",
        profile="default",
    )  # fmt: skip
    assert not draft(asked, actor="p").names_are_ours
