"""The hosts of a standing grant: what they cover, what older grants cover, and how they are given."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.contracts.approval import StandingGrant
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest
from omni_mcp.contracts.manifest import BindingSpec, ToolManifest
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.approvals.standing_store import MAX_HOSTS, StandingStore

CODER = Principal(kind="Agent", id="coder", owner="1000")
MANIFEST = ToolManifest(
    id="get", version="1.0.0", title="Get", description="Gets.", hosts=("base.org:443",),
    input_schema={"type": "object", "properties": {"url": {"type": "string"}}},
    binding=BindingSpec(kind="sandbox_job", entry_point="a:b", egress_argument="url"),
)  # fmt: skip
GET = Entry(kind="tool", server="tools", name="get", definition={}, manifest=MANIFEST)


def a_grant(**changes: Any) -> StandingGrant:
    facts: dict[str, Any] = {
        "id": "g", "principal": None, "project": "default", "server": "tools", "tool": None, "definitions": None,
        "given_by": "1", "given_at_ns": 1, "expires_at_ns": 10,
    }  # fmt: skip
    return StandingGrant(**{**facts, **changes})


@pytest.mark.parametrize(
    ("hosts", "url", "covered"),
    [
        (None, None, True), (None, "https://base.org/", True), (None, "https://a.org/", False),
        ((), "https://a.org/", False), (("a.org:443",), "https://a.org/", True), (("a.org:443",), None, True),
        (("a.org:443",), "http://a.org/", False), (("*.a.org:443",), "https://a.org/", False),
        (("*.a.org:443",), "https://b.a.org/", True), (("*.org:443",), "https://user@a.org/", False),
        (("*.org:443",), "nonsense", False), (("*.org:443",), 7, False),
    ],
)  # fmt: skip
def test_a_call_is_covered_if_every_host_of_it_is(hosts: Any, url: Any, covered: bool) -> None:
    arguments = {} if url is None else {"url": url}
    reached = GET.hosts_for(arguments)
    assert reached[0] == "base.org:443"
    assert a_grant(hosts=hosts).covers(CODER, GET, reached) is covered


def test_a_grant_that_was_stored_before_there_were_hosts_opens_none() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    store = StandingStore(connection, now_ns=lambda: 2)
    store.give(a_grant())
    old = a_grant().model_dump(mode="json")
    del old["hosts"]
    connection.execute("UPDATE standing_grants SET body = ?", (orjson.dumps(old).decode(),))

    (found,) = store.all()

    assert found.grant.hosts is None
    assert found.grant.covers(CODER, GET, ("base.org:443",))
    assert not found.grant.covers(CODER, GET, ("base.org:443", "a.org:443"))


def test_a_definition_without_the_later_fields_is_the_definition_that_it_was() -> None:
    """An update of the gateway must not make every tool a changed one: standing grants are bound to digests."""
    plain = MANIFEST.model_copy(update={"binding": BindingSpec(kind="sandbox_job", entry_point="a:b")})
    digests = {
        Entry(kind="tool", server="tools", name="get", definition={}, manifest=one).digest for one in (plain, MANIFEST)
    }
    assert len(digests) == 2
    assert Entry(kind="tool", server="tools", name="get", definition={}, manifest=plain).digest == (
        "sha256:7ee6028732f62033fa82f1c1f7b97d19b7cfb6f383803c4af67da15b9c12356d"
    )


def test_too_many_hosts_are_refused() -> None:
    store = StandingStore(sqlite3.connect(":memory:", isolation_level=None), now_ns=lambda: 2)
    store.give(a_grant(hosts=tuple(f"a{number}.org:443" for number in range(MAX_HOSTS))))
    with pytest.raises(BadRequest, match="hosts"):
        store.give(a_grant(id="h", hosts=tuple(f"a{number}.org:443" for number in range(MAX_HOSTS + 1))))


@pytest.mark.parametrize("host", ["a.org", "https://a.org", "A.org:443", "*:443", "127.1:80", "invalid:0"])
def test_a_host_that_cannot_be_meant_is_refused_and_nothing_is_given(tmp_path: Path, host: str) -> None:
    words = ["approvals", "grant", "tools__http_fetch", "--expires", "7d", "--yes", "--host", host]
    result = CliRunner().invoke(cli, words, env={"OMNI_HOME": str(tmp_path)})
    assert result.exit_code == 2 and "--host" in result.output
    listed = CliRunner().invoke(cli, ["approvals", "grants", "--json"], env={"OMNI_HOME": str(tmp_path)})
    assert orjson.loads(listed.stdout) == []


def test_a_person_is_shown_what_the_hosts_waive_and_what_stays_closed(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir(mode=0o700)
    (tmp_path / "policies" / "all.cedar").touch(mode=0o600)
    (tmp_path / "policies" / "all.cedar").write_text('@id("all") permit (principal, action, resource);')
    words = ["approvals", "grant", "tools__http_fetch", "--expires", "7d", "--yes"]
    environment = {"OMNI_HOME": str(tmp_path)}

    with_host = CliRunner().invoke(cli, [*words, "--host", "a.org:443"], env=environment).stdout
    without = CliRunner().invoke(cli, words, env=environment).stdout

    assert "reaching a.org:443" in with_host and "waives guardrail-new-egress" in with_host
    assert "still asked about" in without and "has no effect now" in without
    listed = CliRunner().invoke(cli, ["approvals", "grants"], env=environment).stdout
    assert listed.count("reaching a.org:443") == 1
