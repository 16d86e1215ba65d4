"""A call reaches the host that its URL names, after a person said yes to that host, and no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.chain.execute import Execute, Freeze
from omni_mcp.chain.retry import Retries
from omni_mcp.contracts.call import Call, ClientFacts, Grant, grant_digest
from omni_mcp.contracts.errors import NotAllowed
from omni_mcp.testing import ANN, LocalGateway
from tests.egress_policy.sandbox_double import SandboxDouble, a_gateway, fetch, grant, person

ODD_URLS = [
    "", "example.org", "ftp://example.org/", "file:///etc/passwd", "//example.org/", "https:///x", "https://user@a.org/",
    "https://a.org@b.org/", "https://a.org:0/", "https://a.org:65536/", "https://a.org:x/", "https://a.org./",
    "https://a..org/", "https://a b.org/", "https://exämple.org/", "https://a.org\\@b.org/", "https://a.org/\n",
    "https://a.org/ü", "http://0177.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f.0.0.1/", "http://0.0.0.0/",
    "http://[::ffff:127.0.0.1]/", "http://[0:0::1]/", "http://[fe80::1%25eth0]/", "http://224.0.0.1/", "https://-a.org/",
    "https://\u212aelvin.org/", "http\u017f://a.org/", "https://a.org:443:443/", "https://*.a.org/",
]  # fmt: skip


async def last_decision(here: LocalGateway) -> dict[str, Any]:
    decided = [event.payload or {} for event in await here.events() if event.code == "policy_decided"]
    return decided[-1]


async def test_a_new_host_is_asked_about_and_a_yes_reaches_that_host_only(tmp_path: Path) -> None:
    sandbox = SandboxDouble()
    async with a_gateway(sandbox, tmp_path) as here, here.client() as client:
        assert await fetch(client, "https://Example.ORG/data?x=1") == "approval_pending"
        decision = await last_decision(here)
        assert decision["rules"] == ["guardrail-new-egress"]
        assert decision["request"]["context"]["egress_hosts"] == ["example.org:443"]

        here.answer(True)
        assert await fetch(client, "https://Example.ORG/data?x=1") is None
        assert await fetch(client, "https://other.org/data?x=1") == "approval_pending"

    assert [job.egress for job in sandbox.jobs] == [("example.org:443",)]
    assert sandbox.jobs[0].bundled


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a.org", "a.org:80"), ("HTTPS://A.org?x", "a.org:443"), ("https://a.org:8443/", "a.org:8443"),
        ("http://127.0.0.1:8080/", "127.0.0.1:8080"), ("http://[::1]:8080/x", "[::1]:8080"),
        ("http://a.org#@b.org/", "a.org:80"), ("http://a.org/@b.org/", "a.org:80"),
    ],
)  # fmt: skip
async def test_what_is_decided_on_is_the_host_in_its_one_spelling(tmp_path: Path, url: str, host: str) -> None:
    async with a_gateway(SandboxDouble(), tmp_path) as here, here.client() as client:
        assert await fetch(client, url) == "approval_pending"
        assert (await last_decision(here))["request"]["context"]["egress_hosts"] == [host]


async def test_an_odd_url_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    sandbox = SandboxDouble()
    async with a_gateway(sandbox, tmp_path) as here, here.client() as client:
        refused = {url: await fetch(client, url) for url in ODD_URLS}
        assert refused == dict.fromkeys(ODD_URLS, "invalid_arguments")
        assert await fetch(client, ["https://a.org/"]) == "invalid_arguments"
        assert not [event for event in await here.events() if event.code == "approval_requested"]
        decision = await last_decision(here)
        assert decision["request"]["context"]["egress_hosts"] == ["invalid:0"]
    assert sandbox.jobs == []


async def test_who_may_not_call_learns_nothing_of_the_url(tmp_path: Path) -> None:
    async with a_gateway(SandboxDouble(), tmp_path, rules="") as here, here.client() as client:
        assert {await fetch(client, url) for url in ("nonsense", "https://a.org/")} == {"policy_denied"}


async def test_a_rule_can_forbid_a_host_whatever_a_person_says(tmp_path: Path) -> None:
    rules = """@id("all") permit (principal, action, resource);
    @id("not-there") forbid (principal, action, resource) when { context.egress_hosts.contains("bad.org:443") };"""
    async with a_gateway(SandboxDouble(), tmp_path, rules=rules) as here, here.client() as client:
        assert await fetch(client, "https://BAD.org/") == "policy_denied"
        assert await fetch(client, "https://good.org/") == "approval_pending"


async def test_http_send_is_asked_about_as_what_it_is(tmp_path: Path) -> None:
    sandbox = SandboxDouble()
    async with a_gateway(sandbox, tmp_path) as here, here.client() as client:
        await client.call("tools__http_send", {"url": "https://a.org/", "method": "DELETE"})
        asked = {"guardrail-destructive", "guardrail-external-write", "guardrail-new-egress"}
        assert set((await last_decision(here))["rules"]) == asked
    assert sandbox.jobs == []


async def test_a_standing_grant_without_hosts_opens_no_host(tmp_path: Path) -> None:
    sandbox = SandboxDouble()
    async with a_gateway(sandbox, tmp_path) as here, here.client() as client:
        await grant(here, "tools__http_fetch")
        await grant(here, "tools__*", "--any-definition")
        assert await fetch(client, "https://a.org/") == "approval_pending"
    assert sandbox.jobs == []


async def test_a_standing_grant_opens_the_hosts_it_names_and_says_so_on_record(tmp_path: Path) -> None:
    sandbox = SandboxDouble()
    async with a_gateway(sandbox, tmp_path) as here, here.client() as client:
        given = await grant(here, "tools__http_fetch", "--host", "a.org:443", "--host", "*.b.org:80")

        assert await fetch(client, "https://a.org/x") is None
        assert (await last_decision(here))["standing"] == given
        assert await fetch(client, "http://www.b.org/") is None
        not_named = ["http://a.org/", "https://a.org:8443/", "https://www.a.org/", "http://b.org/", "http://xb.org/",
                     "https://a.org.evil.org/", "http://127.0.0.1/"]  # fmt: skip
        assert {await fetch(client, url) for url in not_named} == {"approval_pending"}

        event = await here.until("standing_granted")
        assert (event.payload or {})["hosts"] == ["a.org:443", "*.b.org:80"]
        (listed,) = await person(here, "approvals", "grants")
        assert listed["hosts"] == ["a.org:443", "*.b.org:80"]
    assert [job.egress for job in sandbox.jobs] == [("a.org:443",), ("www.b.org:80",)]


async def test_the_command_that_is_offered_for_a_question_ends_the_asking_for_that_host(tmp_path: Path) -> None:
    async with a_gateway(SandboxDouble(), tmp_path) as here, here.client() as client:
        assert await fetch(client, "https://a.org/") == "approval_pending"
        story = await person(here, "explain", "last")
        command = story["next_step"].partition("for a time: ")[2].split()
        assert command[:3] == ["omni-mcp", "approvals", "grant"] and "--host" in command

        await grant(here, *[word for word in command[3:] if word not in ("--expires", "7d")])

        assert await fetch(client, "https://a.org/") is None


async def test_what_a_call_would_be_is_said_with_its_hosts(tmp_path: Path) -> None:
    async with a_gateway(SandboxDouble(), tmp_path) as here:
        asked = ("policy", "explain", "--principal", "coder", "--tool", "tools__http_fetch", "--args")
        assert (await person(here, *asked, '{"url": "https://a.org/"}'))["verdict"] == "ask"
        found = await person(here, *asked, '{"url": "https://user@a.org/"}')
        assert found["verdict"] == "ask" and "nobody will be asked" in found["next_step"]


async def test_a_grant_for_other_hosts_is_not_dispatched(tmp_path: Path) -> None:
    """A stage that changed the hosts of a grant on its way would be refused at the end of the chain."""

    async with a_gateway(SandboxDouble(), tmp_path) as here:
        tool = here.gateway.catalog.get("tool", "tools", "http_fetch")
        assert tool is not None
        call = Call(
            id="c", run="r", principal=ANN, client=ClientFacts(), kind="tool", name="tools__http_fetch",
            arguments={"url": "https://a.org/"}, profile="default", tool=tool,
        )  # fmt: skip
        decisions: Any = type("Holds", (), {"renewed": lambda self, call: call})()

        class Never:
            async def execute(self, call: Call) -> Any:
                raise AssertionError("dispatched")

        retries = Retries(here.gateway.log)
        execute = Execute({"sandbox_job": Never()}, {}, here.gateway.catalog, decisions, Freeze(), retries=retries)
        for hosts in ((), ("b.org:443",), ("a.org:443", "b.org:443"), ("invalid:0",)):
            wrong = replace(call, grant=Grant(digest=grant_digest(call, tool), policy_version="p", egress=hosts))
            with pytest.raises(NotAllowed) as refused:
                await execute(wrong)
            assert "hosts are not those" in refused.value.detail
        right = replace(call, grant=Grant(digest=grant_digest(call, tool), policy_version="p", egress=("a.org:443",)))
        with pytest.raises(AssertionError, match="dispatched"):
            await execute(right)
