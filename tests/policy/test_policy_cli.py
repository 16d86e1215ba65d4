"""The commands around rules, as a person runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from omni_mcp import __version__
from omni_mcp.cli.root import cli
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.events import PolicyDecided, ToolCall, ToolError, draft
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.policy import Decision
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.policy.policy import open_policy
from omni_mcp.engines.runlog.store import open_run_log
from omni_mcp.engines.secrets.masking import SecretMasker
from omni_mcp.paths import bundled, find_home

Run = Callable[..., Result]
MANIFEST = """
id: {name}
version: 1.0.0
title: {name}
description: A tool of this test.
input_schema: {{type: object}}
side_effects: {effects}
labels: {labels}
binding: {{kind: sandbox_job, entry_point: "trial:run"}}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An operator's directory with one tool that reads and one that destroys."""
    manifests = tmp_path / "home" / "manifests" / "mine"
    manifests.mkdir(parents=True, mode=0o700)
    for directory in (manifests, manifests.parent):
        directory.chmod(0o700)
    safe = "{read_only: true, destructive: false, egress: false, reads_private: false, reads_untrusted: false}"
    for name, effects, labels in (("look", "none", safe), ("wipe", "non_idempotent", "{}")):
        file = manifests / f"{name}.yaml"
        file.write_text(MANIFEST.format(name=name, effects=effects, labels=labels))
        file.chmod(0o600)
    (manifests / "trial.py").write_text("def run(arguments, room):\n    return {}\n")
    return tmp_path / "home"


@pytest.fixture
def omni(home: Path) -> Run:
    """Run one command in that home."""

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, list(words), env={"OMNI_HOME": str(home)})

    return run


def as_json(result: Result) -> Any:
    assert result.exit_code in (0, 1), result.output
    return orjson.loads(result.stdout)


def test_allow_writes_one_private_file_that_allows_exactly_that(omni: Run, home: Path) -> None:
    result = omni("allow", "mine__look", "--to", "coder")

    assert result.exit_code == 0, result.output
    files = list((home / "policies").iterdir())
    assert len(files) == 1
    assert files[0].stat().st_mode & 0o777 == 0o600
    assert (
        files[0].read_text().startswith("// agent 'coder' may call 'mine__look'. Written by: omni-mcp allow mine__look")
    )
    verdicts = [
        as_json(omni("policy", "explain", "--principal", who, "--tool", tool, "--json"))["verdict"]
        for who, tool in (
            ("coder", "mine__look"),
            ("other", "mine__look"),
            ("coder", "mine__wipe"),
            ("User::1", "mine__look"),
        )
    ]
    assert verdicts == ["allow", "deny", "deny", "deny"]


def test_allowing_twice_is_the_same_file(omni: Run, home: Path) -> None:
    first, second = (as_json(omni("allow", "mine__look", "--json")) for _ in range(2))

    assert first == second
    assert len(list((home / "policies").iterdir())) == 1


def test_allow_says_when_a_guardrail_will_still_ask(omni: Run) -> None:
    assert as_json(omni("allow", "mine__wipe", "--json"))["still_asked"] == ["mine__wipe"]
    assert as_json(omni("allow", "mine__look", "--json"))["still_asked"] == []
    assert as_json(omni("allow", "mine__*", "--json"))["still_asked"] == ["mine__wipe"]
    text = omni("allow", "mine", "--server", "--to", "coder").output
    assert "a person is still asked" in text
    assert "to stop asking for a time: omni-mcp approvals grant 'mine__*' --to coder --expires 7d" in text
    assert "approvals grant" not in omni("allow", "mine__look").output


def test_allow_knows_the_gateways_own_tools(omni: Run) -> None:
    assert as_json(omni("allow", "runs__*", "--json"))["known_tools"] > 1


def test_one_refused_manifest_leaves_only_what_ships_known_as_it_is_when_a_gateway_starts(
    omni: Run, home: Path
) -> None:
    (home / "manifests" / "mine" / "look.yaml").write_text("{")

    assert as_json(omni("allow", "mine__wipe", "--json"))["known_tools"] == 0
    assert as_json(omni("allow", "tools__*", "--json"))["known_tools"] > 1


def test_allow_of_an_unknown_tool_writes_and_says_what_it_does_not_know(omni: Run) -> None:
    assert "cannot be said" in omni("allow", "elsewhere__tool").output


def test_a_whole_server_as_long_as_it_only_reads(omni: Run) -> None:
    assert omni("allow", "mine__*", "--read-only").exit_code == 0

    verdicts = [
        as_json(omni("policy", "explain", "--principal", "coder", "--tool", tool, "--json"))["verdict"]
        for tool in ("mine__look", "mine__wipe")
    ]
    assert verdicts == ["allow", "deny"]


@pytest.mark.parametrize("name", ["noserver", "__x", "a__", "a__b c", "Bad__tool", "*"])
def test_a_name_that_is_no_public_name_is_a_usage_error_and_writes_nothing(omni: Run, home: Path, name: str) -> None:
    assert omni("allow", name).exit_code == 2
    assert not (home / "policies").exists()


def test_beside_broken_rules_nothing_is_written(omni: Run, home: Path) -> None:
    (home / "policies").mkdir(mode=0o700)
    (home / "policies" / "mine.cedar").write_text("\npermit (")
    (home / "policies" / "mine.cedar").chmod(0o600)

    result = omni("allow", "mine__look")

    assert result.exit_code == 1
    assert "mine.cedar:2: the rule has no end" in result.output
    assert [file.name for file in (home / "policies").iterdir()] == ["mine.cedar"]


def test_a_directory_that_others_can_write_to_gets_no_rule(omni: Run, home: Path) -> None:
    (home / "policies").mkdir()
    (home / "policies").chmod(0o777)

    result = omni("allow", "mine__look")

    assert result.exit_code == 1
    assert "chmod 700" in result.output


def test_check_prints_what_is_in_force(omni: Run) -> None:
    omni("allow", "mine__look")

    assert omni("policy", "check").output.startswith("ok: 1 rules in ")
    found = as_json(omni("policy", "check", "--json"))
    assert found["ok"] is True
    assert {rule["id"] for rule in found["rules"]} > {"guardrail-destructive", "guardrail-new-egress"}


def test_check_of_a_missing_directory_says_how_to_make_it_and_fails(omni: Run) -> None:
    result = omni("policy", "check")

    assert result.exit_code == 1
    assert "mkdir -m 700" in result.output
    assert as_json(omni("policy", "check", "--json"))["ok"] is False


def test_test_runs_the_cases_beside_their_rules(omni: Run, tmp_path: Path) -> None:
    examples = bundled("policies") / "examples"
    rules = tmp_path / "readers"
    rules.mkdir()
    for name in ("readers.cedar", "readers.test.yaml"):
        (rules / name).write_bytes((examples / name).read_bytes())

    assert omni("policy", "test", str(rules / "readers.test.yaml")).output == "3 passed, 0 failed\n"
    (rules / "readers.cedar").write_text((rules / "readers.cedar").read_text().replace("resource.read_only", "true"))
    failed = omni("policy", "test", str(rules / "readers.test.yaml"), "--json")
    assert failed.exit_code == 1
    assert as_json(failed)["failed"][0]["message"] == "expected deny, got allow by readers-own-tools"


def test_test_without_any_cases_says_so(omni: Run) -> None:
    assert omni("policy", "test").exit_code == 1


def test_explain_of_a_request_prints_the_smallest_grant(omni: Run) -> None:
    omni("policy", "check")
    omni("allow", "elsewhere__tool")

    text = omni("policy", "explain", "--principal", 'Agent::"coder"', "--owner", "1000", "--tool", "mine__look").output

    assert text.startswith("deny: denied: no rule matched")
    assert 'principal == Omni::Agent::"coder"' in text
    assert "run: omni-mcp allow mine__look --to coder --user 1000 --project default" in text


def test_explain_of_bad_arguments_is_an_error_with_the_reason(omni: Run) -> None:
    result = omni("policy", "explain", "--principal", "coder", "--tool", "mine__look", "--args", "{")

    assert result.exit_code == 1
    assert "no JSON" in result.output


def _record(home: Path, decisions: list[Decision], **facts: str) -> str:
    """Write one refused call into the run log of *home*; returns its id."""
    places = find_home({"OMNI_HOME": str(home)})
    places.data.mkdir(mode=0o700, exist_ok=True)
    principal = Principal(kind="Agent", id="coder", owner="1000")
    call = new_id()

    async def write() -> None:
        masker = SecretMasker({})
        async with open_run_log(places.log_file, keys=places.secrets, masker=masker, gateway_version="1") as log:
            run = await log.create_run(kind="session", principal=principal, actor=principal.key, client={})
            asked = ToolCall(
                call_kind="tool", name="mine__look\u202e", arguments={}, arguments_hmac="", arguments_bytes=2,
                principal=principal.key, profile="default",
            )  # fmt: skip
            log.append(run, draft(asked, actor=principal.key, call=call))
            for decision in decisions:
                decided = PolicyDecided(
                    verdict=decision.verdict, rules=decision.rules, errors=decision.errors,
                    policy_version=decision.policy_version, gateway_version=__version__,
                    request=decision.request, **{"isolation_demanded": "no-cgroup", **facts},
                )  # fmt: skip
                log.append(run, draft(decided, actor="gateway", call=call))
            error = ToolError(code="policy_denied", message="no", dispatched=False)
            await log.append_outcome(run, draft(error, actor="gateway", call=call)).durable()

    asyncio.run(write())
    return call


def _refused(home: Path) -> Decision:
    policy = open_policy(home / "policies", bundled("policies"))
    return policy.decide(
        action="call_tool",
        principal=Principal(kind="Agent", id="coder", owner="1000"),
        entry=Entry(kind="tool", server="mine", name="look", definition={}),
        name="mine__look",
        run="run",
        arguments_digest="sha256:x",
        arguments_bytes=2,
    )


def test_explain_names_the_reason_and_its_grant_really_changes_the_next_decision(omni: Run, home: Path) -> None:
    omni("allow", "elsewhere__tool")
    call = _record(home, [_refused(home)])

    story = as_json(omni("explain", call, "--json"))

    assert (story["verdict"], story["outcome"], story["isolation_demanded"]) == ("deny", "policy_denied", "no-cgroup")
    command = story["next_step"].removeprefix("run: omni-mcp ").partition(";")[0]
    assert omni(*command.split()).exit_code == 0
    assert _refused(home).verdict == "ask"  # allowed, and unlabelled: the guardrails ask
    for short in (call[:13], "last"):
        assert as_json(omni("explain", short, "--json"))["call"] == call


def test_explain_prints_no_characters_that_turn_a_terminal_around(omni: Run, home: Path) -> None:
    omni("allow", "elsewhere__tool")
    call = _record(home, [_refused(home)])

    text = omni("explain", call).output

    assert "\\u202e" in text and "\u202e" not in text
    assert "isolation demanded: no-cgroup" in text and "outcome: policy_denied" in text


def test_explain_does_not_say_that_a_server_in_a_cell_needed_no_isolation(omni: Run, home: Path) -> None:
    call = _record(home, [_refused(home)], executor="mcp_remote", server="mine", isolation_demanded="none")

    text = omni("explain", call).output

    assert "isolation: that of its server; see: omni-mcp servers test mine" in text and "demanded" not in text


def test_explain_of_a_call_that_was_never_decided_says_so(omni: Run, home: Path) -> None:
    call = _record(home, [])

    assert "ended before it was decided" in omni("explain", call).output


@pytest.mark.parametrize("name", ["nothing", "0" * 36, ""])
def test_explain_of_an_unknown_call_names_the_next_step(omni: Run, home: Path, name: str) -> None:
    _record(home, [])
    _record(home, [])

    result = omni("explain", name)

    assert result.exit_code == 1
    assert "runs list" in result.output or "give more" in result.output
