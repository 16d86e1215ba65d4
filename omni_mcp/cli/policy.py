"""`omni-mcp allow`, `policy` and `explain`: write a rule, check rules, and say why a call came out as it did."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click
import orjson

from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.trial import entries_of, parse_target, somebody, try_call
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest, ConfigError, NotFound
from omni_mcp.contracts.events import RunEvent
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.policy import Action, Decision, Explanation
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.names import public_name, server_of
from omni_mcp.engines.policy.cases import CaseReport, read_cases, run_cases
from omni_mcp.engines.policy.explain import explain as explain_decision
from omni_mcp.engines.policy.files import PolicyFile, read_policy_files
from omni_mcp.engines.policy.grants import GrantSpec
from omni_mcp.engines.policy.policy import open_policy
from omni_mcp.engines.policy.policy_set import PolicySet, compile_policies, load_policies, read_shipped
from omni_mcp.engines.policy.request import resource_id
from omni_mcp.engines.runlog.reader import LogReader
from omni_mcp.paths import Home, bundled, find_home, make_private_dir, write_private
from omni_mcp.servers_file import load_servers, servers_file_of

SCAN_EVENTS = 100_000  # how far back a shortened call id is looked for
_PRINCIPAL = re.compile(r'(?:(Agent|User)::)?"?([^"]+)"?')
_ACTION: dict[str, Action] = {"tool": "call_tool", "resource": "read_resource", "prompt": "get_prompt"}


@click.command()
@click.argument("tool")
@click.option("--to", "agent", default="", metavar="AGENT", help="Only this agent; without it, every client.")
@click.option("--user", default="", metavar="USER", help="Only this user, or with --to: only that user's agent.")
@click.option("--project", default="", metavar="PROJECT", help="Only in this project.")
@click.option("--read-only", is_flag=True, help="Only as long as the tool is labelled read-only.")
@click.option("--server", "whole_server", is_flag=True, help="TOOL is a server: everything of it. Same as SERVER__*.")
@click.option("--kind", type=click.Choice(list(_ACTION)), default="tool", show_default=True, help="What TOOL names.")
@json_option
def allow(
    tool: str, agent: str, user: str, project: str, read_only: bool, whole_server: bool, kind: str, as_json: bool
) -> None:
    """Write a small policy file that allows TOOL, such as tools__files_read."""
    server, name = parse_target(tool, whole_server=whole_server)
    spec = GrantSpec(
        target=server if name is None else tool,
        kind="server" if name is None else "entry",
        action=_ACTION[kind],
        agent=agent,
        user=user,
        project=project,
        read_only=read_only,
    )
    result = write_grant(find_home(), spec, server, name)
    if as_json:
        click.echo(orjson.dumps(result))
        return
    asked = result["still_asked"]
    click.echo(f"{result['file']}\n  {printable(spec.sentence())}")
    for public in asked:
        click.echo(f"  {printable(public)}: a person is still asked for each call (a guardrail that ships)")
    if asked and kind == "tool":
        click.echo(f"  to stop asking for a time: {printable(spec.standing_command())}")
    if not result["known_tools"] and kind == "tool":
        click.echo("  no manifest here defines it, so it cannot be said whether a guardrail will still ask")


def write_grant(home: Home, spec: GrantSpec, server: str | None, name: str | None) -> JsonObject:
    """Write the file of a grant; returns what it allows, and which tools of it a person is still asked about.

    Raises:
        ConfigError: with it, the policies would be refused.
    """
    file = policy_dir(home) / spec.file_name
    shipped = read_shipped(bundled("policies"))
    text = f"// {spec.sentence()}. Written by: {spec.command()}\n// Delete this file to take it back.\n{spec.text()}"
    others = [one for one in read_policy_files(home.policies) if one.name != file.name]
    compile_policies([*others, PolicyFile(file.name, text)], shipped)  # refuses what would break the others
    write_private(file, text.encode())
    known = entries_of(home, spec.action, server, name)
    cedar = open_policy(home.policies, bundled("policies"))
    caller = somebody(agent=spec.agent, user=spec.user, project=spec.project)
    verdicts = {_name_for_callers(entry): try_call(cedar, caller, entry, action=spec.action).verdict for entry in known}
    return {
        "file": str(file),
        "rule": spec.id,
        "allows": spec.sentence(),
        "known_tools": len(known),
        "still_asked": sorted(public for public, verdict in verdicts.items() if verdict == "ask"),
    }


def _name_for_callers(entry: Entry) -> str:
    return public_name(entry.server, entry.name) if entry.kind == "tool" else resource_id(entry.server, entry.name)


def policy_dir(home: Home) -> Path:
    try:
        return make_private_dir(home.policies)
    except OSError as error:
        raise BadRequest(f"cannot write rules: {error}") from error


@click.group()
def policy() -> None:
    """Check, test and explain policies."""


@policy.command()
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@json_option
def check(directory: Path | None, as_json: bool) -> None:
    """Check every rule in DIRECTORY (the operator's own without it) together with what ships."""
    place = directory or find_home().policies
    try:
        found = load_policies(place, read_shipped(bundled("policies")))
    except ConfigError as error:
        problems = [str(problem) for problem in error.problems]
        click.echo(
            orjson.dumps({"ok": False, "problems": problems}) if as_json else "\n".join(map(printable, problems)),
            err=not as_json,
        )
        raise SystemExit(1) from None
    warnings = [str(warning) for warning in found.warnings]
    if as_json:
        rules = [{"id": rule.id, "effect": rule.effect, "file": rule.file, "line": rule.line} for rule in found.rules]
        click.echo(orjson.dumps({"ok": True, "version": found.version, "rules": rules, "warnings": warnings}))
        return
    for warning in warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    own = sum(not rule.shipped for rule in found.rules)
    click.echo(f"ok: {own} rules in {place}, {len(found.rules) - own} that ship; version {found.version[:19]}")


@policy.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--policies", "directory", type=click.Path(path_type=Path), help="Rules to test; without it, those beside FILES."
)
@json_option
def test(files: tuple[Path, ...], directory: Path | None, as_json: bool) -> None:
    """Run the cases in FILES (*.test.yaml of the operator's directory without them)."""
    place = directory or (files[0].parent if files else find_home().policies)
    names = list(files) or sorted(place.glob("*.test.yaml"))
    if not names:
        raise NotFound(f"no *.test.yaml in {place}; docs/policy.md shows one")
    policies = compile_policies(read_policy_files(place, in_force=False), read_shipped(bundled("policies")))
    report = run_cases([(str(file), case) for file in names for case in read_cases(file)], policies)
    click.echo(orjson.dumps(_report_json(report)) if as_json else _report_text(report))
    if report.failed or report.uncovered:
        raise SystemExit(1)


def _report_json(report: CaseReport) -> JsonObject:
    return {
        "passed": len(report.results) - len(report.failed),
        "failed": [{"file": one.file, "case": one.name, "message": one.message} for one in report.failed],
        "uncovered": list(report.uncovered),
    }


def _report_text(report: CaseReport) -> str:
    lines = [printable(f"failed: {one.file}: {one.name}: {one.message}") for one in report.failed]
    lines += [f"uncovered: no case is determined by {rule}" for rule in report.uncovered]
    return "\n".join([*lines, f"{len(report.results) - len(report.failed)} passed, {len(report.failed)} failed"])


@policy.command("explain")
@click.option("--principal", "who", required=True, help='Such as coder, Agent::"coder" or User::"1000".')
@click.option("--tool", required=True, help="A public name, such as tools__files_read.")
@click.option("--args", "arguments", default="{}", help="The arguments, as JSON.")
@click.option("--owner", default=lambda: str(os.getuid()), help="The user for whom an agent acts; you without it.")
@click.option("--project", default="default", show_default=True)
@click.option("--role", "roles", multiple=True, help="A role of the principal; may be given several times.")
@json_option
def explain_request(
    who: str, tool: str, arguments: str, owner: str, project: str, roles: Sequence[str], as_json: bool
) -> None:
    """Say what would be decided about a call, by which rules, and what would change it."""
    home = find_home()
    try:
        parsed = orjson.loads(arguments)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"--args is no JSON: {error}") from error
    found = _PRINCIPAL.fullmatch(who)
    if found is None:
        raise click.UsageError(f"{who!r} names no principal; write coder, Agent::coder or User::1000")
    kind, name = found.groups()
    is_user = kind == "User"
    principal = Principal(
        kind="User" if is_user else "Agent",
        id=name,
        owner="" if is_user else owner,
        project=project,
        roles=tuple(roles),
    )
    server, _, short = tool.partition("__")
    entry = next(iter(entries_of(home, "call_tool", server, short)), None)
    cedar = open_policy(home.policies, bundled("policies"))
    decision = try_call(cedar, principal, entry, name=tool, arguments=parsed)
    explanation = explain_decision(decision, cedar.rules)
    click.echo(orjson.dumps(asdict(explanation)) if as_json else _explanation_text(explanation))


@click.command()
@click.argument("call")
@json_option
def explain(call: str, as_json: bool) -> None:
    """Show why CALL (an id, the beginning of one, or `last`) was allowed or refused, and what would allow it."""
    home = find_home()
    with LogReader(home.log_file) as reader:
        events = reader.find_call(_call_id(reader, call))
    if not events:
        raise NotFound(f"there is no call {call!r}; see: omni-mcp runs list")
    cedar = open_policy(home.policies, bundled("policies"))
    story = story_of(events, cedar.rules)
    if story.get("verdict") == "deny" and (server := _disabled_server(home, str(story["name"]))):
        story["next_step"] = f"its server is disabled now: omni-mcp servers enable {server}"
    click.echo(orjson.dumps(story) if as_json else _story_text(story))


def _disabled_server(home: Home, public: str) -> str | None:
    """Return the server that *public* is of, if servers.toml defines it and says that it is not used."""
    with suppress(ConfigError):
        name = server_of(public)
        found = load_servers(servers_file_of(home)).servers.get(name or "")
        return name if found is not None and not found.enabled else None
    return None


def _call_id(reader: LogReader, name: str) -> str:
    if len(name) == 36:
        return name
    newest = reader.last_gid()
    found: dict[str, None] = {}
    for high in range(newest, max(newest - SCAN_EVENTS, 0), -1000):
        for event in reversed(reader.events_since(max(high - 1000, 0), limit=min(1000, high))):
            if event.kind == "tool_call" and event.call and (name == "last" or event.call.startswith(name)):
                if name == "last":
                    return event.call
                found[event.call] = None
    if len(found) > 1:
        raise NotFound(f"{len(found)} calls begin with {name!r}; give more of the id")
    return next(iter(found), name)


def story_of(events: Iterable[RunEvent], policies: PolicySet | None) -> JsonObject:
    """Return what the record says about one call, with its decision explained by the rules in force now."""
    story: JsonObject = {"call": "", "run": "", "name": "", "principal": "", "outcome": None, "approvals": []}
    for event in events:
        payload = event.payload or {}
        story.update(call=event.call or story["call"], run=event.run)
        if event.kind == "tool_call":
            story.update(name=payload.get("name", "(erased)"), principal=payload.get("principal", "(erased)"))
        elif event.kind in ("tool_result", "tool_error"):
            story["outcome"] = payload.get("code") or ("error of the tool" if payload.get("is_error") else "answered")
        elif event.code == "policy_decided":
            story["decision"] = payload  # the last one counts: after an approval it is decided again
        elif event.code in ("approval_requested", "approval_decided", "approval_used"):
            kept = ("code", "approval", "decision", "by", "channel", "note", "expires_at")
            story["approvals"].append({key: payload[key] for key in kept if payload.get(key) is not None})
    decided = story.pop("decision", None)
    if decided:
        story["isolation_demanded"] = decided.get("isolation_demanded")
        story["executor"], story["server"] = decided.get("executor"), decided.get("server")
        story["standing"] = decided.get("standing")
        story["policy_version"] = decided.get("policy_version")
        story.update(asdict(explain_decision(_recorded(decided), policies)))
    return story


def _recorded(payload: JsonObject) -> Decision:
    return Decision(
        verdict=payload["verdict"],
        policy_version=payload["policy_version"],
        rules=tuple(payload.get("rules", ())),
        errors=tuple(payload.get("errors", ())),
        request=payload.get("request", {}),
        standing=payload.get("standing"),
    )


def _explanation_text(found: Explanation) -> str:
    return "\n".join(_verdict_lines(asdict(found)))


def _verdict_lines(story: JsonObject) -> Iterator[str]:
    yield f"{story['verdict']}: {printable(story['summary'])}"
    for rule in story["rules"]:
        yield f"  {rule['id']} ({rule['effect']}, {rule['file']})"
        yield from (f"    {printable(line)}" for line in rule["text"].splitlines())
    if story["smallest_grant"]:
        yield "the smallest grant that would allow it:"
        yield from (f"    {printable(line)}" for line in story["smallest_grant"].splitlines())
    if story["next_step"]:
        yield printable(story["next_step"])


def _isolation_line(story: JsonObject) -> str:
    if story["executor"] == "mcp_remote":
        return f"isolation: that of its server; see: omni-mcp servers test {printable(str(story['server']))}"
    return f"isolation demanded: {story['isolation_demanded'] or 'none'}"


def _story_text(story: JsonObject) -> str:
    lines = [f"call {story['call']} of {printable(story['name'])} by {printable(story['principal'])}"]
    if "verdict" in story:
        lines += _verdict_lines(story)
        lines.append(_isolation_line(story))
    else:
        lines.append("no decision is on record: the call ended before it was decided")
    for step in story["approvals"]:
        words = " ".join(f"{key}={printable(str(value))}" for key, value in step.items() if key != "code")
        lines.append(f"{step['code']}: {words}")
    lines.append(f"outcome: {story['outcome'] or 'none yet'}")
    return "\n".join(lines)
