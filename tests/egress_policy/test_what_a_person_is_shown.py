"""A person who is asked sees where the call would go."""

from __future__ import annotations

from pathlib import Path

from tests.egress_policy.sandbox_double import SandboxDouble, a_gateway, fetch, person


async def test_a_person_is_shown_the_hosts_of_a_question(tmp_path: Path) -> None:
    async with a_gateway(SandboxDouble(), tmp_path) as here, here.client() as client:
        assert await fetch(client, "https://a.org/") == "approval_pending"
        (asked,) = await person(here, "approvals", "list")
        assert asked["hosts"] == ["a.org:443"]
