"""A copy of a call that knows more is what `dataclasses.replace` makes, and nothing else can be known of a call."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from omni_mcp.contracts.call import Call, ClientFacts, Principal

CALL = Call(
    id="c", run="r", principal=Principal(kind="User", id="ann"), client=ClientFacts(), kind="tool", name="t__echo",
    arguments={"text": "x"}, profile="default",
)  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(Call)])
def test_a_copy_differs_in_what_it_knows_only(name: str) -> None:
    changed: dict[str, Any] = {name: object()}
    copy = CALL.but(**changed)
    assert copy == replace(CALL, **changed) and copy is not CALL
    assert [field.name for field in fields(Call) if getattr(copy, field.name) is not getattr(CALL, field.name)] == [
        name
    ]


def test_nothing_can_be_known_that_a_call_has_no_field_for() -> None:
    with pytest.raises(TypeError, match="granted"):
        CALL.but(granted=True)


def test_a_copy_cannot_be_changed_either() -> None:
    with pytest.raises(FrozenInstanceError):
        CALL.but(run="s").run = "t"  # type: ignore[misc]


def test_a_call_of_which_only_this_is_known_is_as_the_constructor_makes_it() -> None:
    known = {field.name: getattr(CALL, field.name) for field in fields(Call) if field.name not in ("link", "trail")}
    made = Call.of(**known)
    assert replace(made, link=CALL.link) == CALL
    assert made.trail is not Call.of(**known).trail, "each call leaves its own"


def test_a_call_is_not_made_of_other_fields() -> None:
    known = {field.name: getattr(CALL, field.name) for field in fields(Call)}
    with pytest.raises(TypeError, match="granted"):
        Call.of(**known, granted=True)
    del known["profile"]
    with pytest.raises(TypeError, match="not the fields"):
        Call.of(**known)
