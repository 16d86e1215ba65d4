"""`omni-mcp approvals grant`, `grants` and `revoke`: a person's yes in advance, and taking it back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import orjson

from omni_mcp.cli.person import confirm, json_option, note_option, printable, yes_option
from omni_mcp.cli.trial import entries_of, parse_target, seen_by, somebody, try_call
from omni_mcp.contracts.approval import StandingGrant
from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import BadRequest, NotFound
from omni_mcp.contracts.hosts import check_host
from omni_mcp.contracts.ids import iso_time, new_id
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.policy import StandingFacts
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.approvals.standing_store import MAX_DEFINITIONS, StandingStore, StoredGrant
from omni_mcp.engines.approvals.store import MAX_LISTED, ApprovalStore
from omni_mcp.engines.identity.keys import local_user, parse_span_s
from omni_mcp.engines.policy.policy import CedarPolicy, open_policy
from omni_mcp.engines.policy.request import resource_id
from omni_mcp.engines.state.database import open_state
from omni_mcp.paths import Home, bundled, find_home, make_private_dir


@dataclass(frozen=True, slots=True)
class _Covered:
    """One definition that a grant covers, as a person is shown it."""

    name: str
    digest: str
    labels: JsonObject
    effect: str
    hosts: tuple[str, ...] = ()
    names_hosts: bool = False  # whether its arguments name further ones


@click.command()
@click.argument("tool")
@click.option("--to", "agent", default="", metavar="AGENT", help="Only this agent: yours, or with --user that user's.")
@click.option("--user", default="", metavar="USER", help="Only this user, or with --to: only that user's agent.")
@click.option("--project", default="default", show_default=True, help="Only calls in this project.")
@click.option("--expires", metavar="SPAN", required=True, help="When it ends, at most 90d: 30m, 12h, 7d.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST:PORT",
    help="A host that its calls may name, or *.SUFFIX:PORT; several times. Without it only those of the manifest.",
)
@click.option("--any-definition", is_flag=True, help="Also for what the tool becomes when its definition changes.")
@note_option
@yes_option
@json_option
def grant(
    tool: str, agent: str, user: str, project: str, expires: str, hosts: tuple[str, ...], any_definition: bool,
    note: str | None, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Let calls of TOOL, or of SERVER__*, run without asking a person each time, until it expires.

    It allows nothing by itself: a call that no rule allows stays refused. It is good for the definitions as they are
    now; a tool that changes is asked about again. A call that names a host runs unasked only if --host covers it.
    Without --to and --user it is for everyone of the project.
    """
    server, name = parse_target(tool)
    open_to = _hosts(hosts)
    span_s = parse_span_s(expires)
    caller = _caller(agent, user, project)
    home = find_home()
    covered = _covered(home, server, name, caller, project, open_to)
    if not covered and not any_definition:
        raise NotFound(
            f"no manifest defines {tool} and no call of it was asked about, so its definition is not known here; "
            "call it once, or add --any-definition"
        )
    now_ns = time.time_ns()
    given = StandingGrant(
        id=new_id(),
        principal=caller.key if caller is not None else None,
        project=project,
        server=server,
        tool=name,
        definitions=None if any_definition else tuple(sorted({one.digest for one in covered})),
        hosts=open_to or None,
        given_by=local_user(os.getuid()).id,
        given_at_ns=now_ns,
        expires_at_ns=now_ns + span_s * 1_000_000_000,
        note=note,
    )
    text = "\n".join(map(printable, [_line(given), *_effects(covered, open_to, any_definition)]))
    if not yes:
        confirm(text, "Let these calls run unasked?", look="look at it with `omni-mcp policy explain`")
    with closing(open_state(_state_file(home))) as connection:
        StandingStore(connection).give(given)
    click.echo(orjson.dumps(_as_json(StoredGrant(given, False))) if as_json else text)


@click.command()
@click.option("--all", "everything", is_flag=True, help="Expired and revoked ones too.")
@json_option
def grants(everything: bool, as_json: bool) -> None:
    """List what may run without asking a person, newest first."""
    now_ns = time.time_ns()
    with _stored() as store:
        found = [one for one in (store.all() if store else []) if everything or one.grant.stands_at(now_ns)]
    if as_json:
        click.echo(orjson.dumps([_as_json(one) for one in found]))
        return
    for one in found:
        click.echo(printable(f"{_line(one.grant)}  [{one.state_at(now_ns)}]"))
    if not found:
        click.echo("No standing grants: every guarded call is asked about.")


@click.command()
@click.argument("grant_id", metavar="GRANT")
@json_option
def revoke(grant_id: str, as_json: bool) -> None:
    """Take back GRANT (an id or the beginning of one): a running gateway asks again within 200 ms."""
    with _stored() as store:
        if store is None:
            raise NotFound(f"there is no standing grant {grant_id!r}: none was ever given here")
        gone = store.revoke(grant_id, by=local_user(os.getuid()).id)
    click.echo(orjson.dumps(_as_json(StoredGrant(gone, True))) if as_json else f"revoked: {printable(_line(gone))}")


def _caller(agent: str, user: str, project: str) -> Principal | None:
    """Return for whom it is; None for everyone of the project. An agent of nobody said is one of ours."""
    if not agent and not user:
        return None
    return somebody(agent=agent, user=user or str(os.getuid()), project=project)


def _hosts(given: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(check_host(host) for host in given))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--host") from error


def _covered(
    home: Home, server: str, name: str | None, caller: Principal | None, project: str, hosts: Sequence[str]
) -> list[_Covered]:
    """Return the definitions that stand now: of the manifests, else those that questions were asked about."""
    policy = open_policy(home.policies, bundled("policies"))
    found = [
        _Covered(
            resource_id(entry.server, entry.name),
            entry.digest,
            {**entry.labels.model_dump(), "side_effects": entry.side_effects},
            _effect(policy, caller, project, entry, hosts),
            entry.hosts_for({}),
            entry.manifest is not None and entry.manifest.binding.egress_argument is not None,
        )
        for entry in seen_by(project, entries_of(home, "call_tool", server, name), home)
    ]
    return found or _asked_about(home, server, name)


def _effect(policy: CedarPolicy, caller: Principal | None, project: str, entry: Entry, hosts: Sequence[str]) -> str:
    """Say what a grant would change for *caller*, or for an agent that nobody knows by name."""
    who = caller or somebody(project=project)
    decision = try_call(policy, who, entry, hosts=hosts)
    rules = ", ".join(decision.rules)
    if decision.verdict == "deny" and caller is None:
        return "no rule allows it to everyone; those whom a rule allows it are not asked about"
    if decision.verdict == "deny":
        return "has no effect until a rule allows the call; see: omni-mcp allow"
    if decision.verdict == "allow":
        return "has no effect now: nothing asks about this call"
    by = StandingFacts(id="trial", by=local_user(os.getuid()).id)
    waived = try_call(policy, who, entry, hosts=hosts, standing=by).verdict == "allow"
    return f"waives {rules}" if waived else f"has no effect: {rules} takes no standing grant"


def _asked_about(home: Home, server: str, name: str | None) -> list[_Covered]:
    """Tools of servers without manifests: a question holds the definition that its call was of. The newest counts."""
    if not home.state_file.exists():
        return []
    with closing(ApprovalStore(open_state(home.state_file))) as store:
        asked = store.recent(limit=MAX_LISTED)
    newest: dict[str, _Covered] = {}
    for one in asked:
        if one.server == server and name in (None, one.tool):
            public = resource_id(one.server, one.tool)
            newest.setdefault(
                public, _Covered(public, one.definition_digest, one.labels, f"waives {', '.join(one.rules)}")
            )
    return list(newest.values())


def _effects(covered: Sequence[_Covered], hosts: Sequence[str], any_definition: bool) -> Iterator[str]:
    for one in covered[:MAX_DEFINITIONS]:
        labels = ", ".join(f"{label}={value}" for label, value in one.labels.items())
        yield f"  {one.name}: {one.effect}\n    {labels}\n    definition {one.digest}"
        if one.hosts:
            yield f"    its manifest names {', '.join(one.hosts)}"
        if one.names_hosts and not hosts:
            yield "    a call that names a host is still asked about; to cover it: --host HOST:PORT"
    if any_definition:
        yield "  whatever the definition becomes, its labels and hosts included"


def _state_file(home: Home) -> Path:
    try:
        make_private_dir(home.data)
    except OSError as error:
        raise BadRequest(f"cannot keep a grant: {error}") from error
    return home.state_file


@contextmanager
def _stored() -> Iterator[StandingStore | None]:
    """Open the grants of this home; None where there is no state yet."""
    file = find_home().state_file
    if not file.exists():
        yield None
        return
    with closing(open_state(file)) as connection:
        yield StandingStore(connection)


def _line(given: StandingGrant) -> str:
    who = given.principal or f"everyone of project {given.project}"
    what = resource_id(given.server, given.tool or "*")
    hosts = f"  reaching {', '.join(given.hosts)}" if given.hosts else ""
    return f"{given.id}  until {iso_time(given.expires_at_ns)}  {who}  {what}{hosts}"


def _as_json(stored: StoredGrant) -> JsonObject:
    body: JsonObject = stored.grant.model_dump(mode="json")
    for name in ("given_at", "expires_at", "revoked_at"):
        at_ns = body.pop(f"{name}_ns")
        body[name] = iso_time(at_ns) if at_ns is not None else None
    return {**body, "state": stored.state_at(time.time_ns())}
