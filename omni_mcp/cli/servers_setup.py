"""The conversation after `omni-mcp add`: what the server offers, what of it is accepted, and what of that may run."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import click

from omni_mcp.cli.accept import READ_ONLY, Outcome, answer_all, ask_all, waiting_in, write_down
from omni_mcp.cli.person import printable
from omni_mcp.cli.policy import write_grant
from omni_mcp.cli.servers_test import trial_lines, try_defined
from omni_mcp.cli.trial import entries_of, somebody, try_call
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.catalog.acceptance import launch_changes
from omni_mcp.engines.catalog.lock_listing import KeptListing, keep_listing, listings_dir
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.policy.grants import GrantSpec
from omni_mcp.engines.policy.policy import open_policy
from omni_mcp.paths import Home, bundled
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.upstreams.definitions import launch_of

Accepts = Literal["ask", "read-only", "all", "none"]
Lets = Literal["ask", "read-only", "all", "none"]

ANSWERS = """\
What your answers mean:
  accept      clients may know it. Rules see it as one that may write, destroy and reach out.
  read-only   the same, and you vouch that it changes nothing: rules for reading fit it.
  skip        nobody can list or call it. Later: omni-mcp accept {name}
A definition that changes waits for a new answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the command line said beforehand. `ask` needs a terminal."""

    accepts: Accepts
    lets: Lets
    accepts_risks: bool

    @classmethod
    def of(cls, accepts: Accepts | None, lets: Lets | None, *, accepts_risks: bool, as_json: bool) -> Answers:
        """Return the answers; what was not said is asked on a terminal, and is no where there is none.

        Raises:
            click.UsageError: it says `ask`, and there is no terminal.
        """
        can_ask = sys.stdin.isatty() and not as_json
        otherwise: Literal["ask", "none"] = "ask" if can_ask else "none"
        if "ask" in (accepts, lets) and not can_ask:
            raise click.UsageError("there is no terminal to ask on; say --accept and --let read-only, all or none")
        return cls(accepts=accepts or otherwise, lets=lets or otherwise, accepts_risks=accepts_risks)


def set_up(home: Home, name: str, answers: Answers) -> JsonObject:
    """Start the server once, have what it offers accepted, and let calls of that through; returns what came of it.

    Raises:
        click.Abort: the person ended the conversation; what was answered before holds.
    """
    if answers.accepts == "none":
        say_next(name)
        return {}
    click.echo(f"{name} is started once, to see what it offers ...", err=True)
    definition, found = try_defined(home, name)
    for line in trial_lines(name, found):
        click.echo(printable(line), err=True)
    if found.listing is None:
        click.echo(f"it stays added, and nothing of it is accepted. Try again: omni-mcp servers test {name}", err=True)
        return {"fault": found.fault}
    for line in _permits(definition):
        click.echo(printable(line), err=True)
    kept = KeptListing.model_validate(
        {"server": name, "seen_at": datetime.now(UTC).isoformat(), "launch": launch_of(definition),
         "items": found.listing.items, "problems": found.listing.problems}
    )  # fmt: skip
    keep_listing(listings_dir(home.data), kept)
    outcome = _accept(home, kept, answers)
    return {
        "accepted": [one.waiting.item for one in outcome.answers],
        "skipped": [one.item for one in outcome.skipped],
        "refused": [one.item for one in outcome.refused],
        "let": _let(home, name, answers) if outcome.answers else None,
    }


def say_next(name: str) -> None:
    """Name the next step of who has added a server."""
    click.echo(f"next: omni-mcp servers test {name}, and with the gateway running: omni-mcp accept {name}", err=True)


def _permits(definition: ServerDefinition) -> Iterator[str]:
    """Yield what the sandbox lets the server do."""
    if definition.url is not None:
        yield f"It runs at {definition.url}: no sandbox of ours holds it, and it learns the arguments of its calls."
        return
    yield f"The sandbox lets it (profile {definition.profile}):"
    for mount in definition.mounts:
        yield f"  {'read and write' if mount.writable else 'read'} {mount.source}"
    yield f"  reach {', '.join(definition.hosts) or 'no host'}" + (
        "" if definition.hosts else " but those of its profile"
    )
    yield "  nothing else of yours: it has a home of its own"


def _accept(home: Home, kept: KeptListing, answers: Answers) -> Outcome:
    lock_file = LockFile(home.lock_file)
    waiting = waiting_in(lock_file, kept, home)
    changed = launch_changes(lock_file.read(), kept.server, kept.launch)
    if answers.accepts == "ask":
        click.echo(ANSWERS.format(name=kept.server), err=True)
        outcome = ask_all(waiting, Labels(), changed)
    else:
        labels = READ_ONLY if answers.accepts == "read-only" else Labels()
        outcome = answer_all(waiting, labels, changed, accept_risks=answers.accepts_risks)
    write_down(outcome, lock_file)
    if outcome.refused:
        names = ", ".join(printable(one.item) for one in outcome.refused)
        click.echo(f"not accepted, for severe findings: {names}; look at them: omni-mcp accept {kept.server}", err=True)
    return outcome


def _let(home: Home, name: str, answers: Answers) -> JsonObject | None:
    """Say what the policy makes of the accepted tools, and write a rule if that is wanted."""
    verdicts = _verdicts(home, name)
    if not verdicts:
        return None
    words = {"allow": "run", "ask": "ask a person each time", "deny": "are refused"}
    said = ", ".join(f"{count} {words[verdict]}" for verdict, count in sorted(Counter(verdicts.values()).items()))
    click.echo(f"With the rules in force, of the tools of {name}: {said}.", err=True)
    wanted = answers.lets
    if wanted == "ask":
        if "deny" not in verdicts.values():
            return None
        wanted = _ask_for_a_rule(name)
    if wanted == "none":
        click.echo(f"later: omni-mcp allow {name} --server, or omni-mcp allow TOOL", err=True)
        return None
    spec = GrantSpec(target=name, kind="server", read_only=wanted == "read-only")
    made = write_grant(home, spec, name, None)
    click.echo(f"{made['file']}\n  {printable(spec.sentence())}", err=True)
    for public in made["still_asked"]:
        click.echo(f"  {printable(public)}: a person is still asked for each call (a guardrail that ships)", err=True)
    return made


def _ask_for_a_rule(name: str) -> Lets:
    click.echo(
        "  read-only   every client may call what you vouched for as read-only\n"
        "  all         every client may call all of it; writes and new hosts still ask a person\n"
        "  none        no rule is written",
        err=True,
    )
    keys: dict[str, Lets] = {"r": "read-only", "a": "all", "n": "none"}
    return keys[
        click.prompt(
            f"Let calls of {name} through? [r]ead-only, [a]ll, [n]one", type=click.Choice(list(keys)), default="n",
            show_choices=False, err=True,
        )
    ]  # fmt: skip


def _verdicts(home: Home, name: str) -> dict[str, str]:
    try:
        policy = open_policy(home.policies, bundled("policies"))
    except ConfigError:
        return {}
    caller = somebody(agent="", user="", project="")
    accepted = [one for one in entries_of(home, "call_tool", name, None) if one.state in ("accepted", "degraded")]
    return {one.name: str(try_call(policy, caller, one).verdict) for one in accepted}
