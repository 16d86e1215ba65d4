"""The conversation after `omni-mcp add`: what the server offers, what of it is accepted, and what of that may run."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import click

from omni_mcp.cli.accept import READ_ONLY, Outcome, answer_all, ask_all, waiting_in, write_down
from omni_mcp.cli.look import look_at
from omni_mcp.cli.packages import profiles_hosts
from omni_mcp.cli.person import printable
from omni_mcp.cli.policy import write_grant
from omni_mcp.cli.servers_rules import rules_naming
from omni_mcp.cli.servers_test import trial_lines
from omni_mcp.cli.trial import entries_of, somebody, try_call
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.lock import LockedServer
from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.catalog.acceptance import launch_changes
from omni_mcp.engines.catalog.lock_listing import KeptListing
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.policy.grants import GrantSpec
from omni_mcp.engines.policy.policy import open_policy
from omni_mcp.paths import Home, bundled
from omni_mcp.server_definition import ServerDefinition

Accepts = Literal["ask", "read-only", "all", "none"]
Lets = Literal["ask", "read-only", "all", "none"]

ANSWERS = """\
What your answers mean:
  accept      clients may know it. Rules see it as one that may write, destroy and reach out.
  read-only   the same, and you vouch that it changes nothing: rules for reading fit it.
  skip        nobody can list or call it. Later: omni-mcp accept {name}
A definition that changes waits for a new answer."""
NAMED = 5  # tools in one line

accept_option = click.option(
    "--accept", "accepts", type=click.Choice(["ask", "read-only", "all", "none"]),
    help="Start it once and accept what it offers: each after a look, all as read-only, all, or nothing.  "
    "[default: ask on a terminal, else none]",
)  # fmt: skip
accept_risks_option = click.option(
    "--accept-risks", is_flag=True, help="With --accept read-only or all: also what has severe findings."
)
let_option = click.option(
    "--let", "lets", type=click.Choice(["ask", "read-only", "all", "none"]),
    help="Write a rule that lets every client call what was accepted of it.  [default: ask on a terminal, else none]",
)  # fmt: skip


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
    definition, found, kept = look_at(home, name)
    for line in trial_lines(name, found):
        click.echo(printable(line), err=True)
    if kept is None:
        click.echo(f"it stays added, and nothing of it is accepted. Try again: omni-mcp servers test {name}", err=True)
        return {"fault": found.fault}
    for line in _permits(home, definition):
        click.echo(printable(line), err=True)
    for line in _rules_already(home, name):
        click.echo(printable(line), err=True)
    outcome = _accept(home, kept, answers)
    return {
        "accepted": [one.waiting.item for one in outcome.answers],
        "skipped": [one.item for one in outcome.skipped],
        "refused": [one.item for one in outcome.refused],
        "let": _let(home, name, answers) if outcome.answers else None,
    }


def set_up_or_say(home: Home, name: str, answers: Answers) -> JsonObject:
    """As `set_up`; whoever breaks it off is told what is there now.

    Raises:
        click.Abort: the person ended the conversation.
    """
    try:
        return set_up(home, name, answers)
    except (click.Abort, KeyboardInterrupt):
        accepted = len(LockFile(home.lock_file).read().servers.get(name, LockedServer()).items)
        click.echo(
            f"\nBroken off. {name} stays added, {accepted or 'nothing'} of it accepted, and no rule was written now. "
            f"Go on: omni-mcp accept {name}. Undo: omni-mcp servers remove {name}",
            err=True,
        )
        raise click.Abort from None


def go_on(home: Home, names: Sequence[str], answers: Answers) -> list[str]:
    """Set up servers that were imported, one after the other; returns those that did not start.

    Raises:
        click.Abort: the person ended the conversation.
    """
    question = f"Start {', '.join(names)} once now, and say what of that clients may call?"
    wanted = answers.accepts != "none" and bool(names)
    if wanted and answers.accepts == "ask":
        wanted = click.confirm(question, default=False, err=True)
    if not wanted:
        for name in names if answers.accepts == "ask" else ():
            say_next(name)
        return []
    return [name for name in names if set_up_or_say(home, name, answers).get("fault")]


def say_next(name: str) -> None:
    """Name the next step of who has added a server."""
    click.echo(f"next: omni-mcp servers test {name}, then: omni-mcp accept {name}", err=True)


def _permits(home: Home, definition: ServerDefinition) -> Iterator[str]:
    """Yield what the sandbox lets the server do."""
    if definition.url is not None:
        yield f"It runs at {definition.url}: no sandbox of ours holds it, and it learns the arguments of its calls."
        return
    yield f"The sandbox lets it (profile {definition.profile}):"
    own = profiles_hosts(home).get(definition.profile, ())
    for mount in definition.mounts:
        yield f"  {'read and write' if mount.writable else 'read'} {mount.source}"
    yield f"  reach {', '.join((*definition.hosts, *own)) or 'no host'}"
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
    if outcome.broken_off:
        raise click.Abort
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
    if asked := made["still_asked"]:
        click.echo(
            f"  of {len(asked)} of its {made['known_tools']} tools each call is still asked about, since nobody vouched"
            f" that they only read (a guardrail that ships): {printable(_some(asked))}\n"
            f"  to vouch for one: omni-mcp accept {name} TOOL --read-only; "
            f"to stop asking for a time: {printable(spec.standing_command())}",
            err=True,
        )  # fmt: skip
    return made


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _rules_already(home: Home, name: str) -> Iterator[str]:
    """Yield the files of rules that name the server: they hold for this one too, whoever they were written for."""
    try:
        files = rules_naming(home, name)
    except ConfigError as error:
        yield f"The rules cannot be read, so it is not known which of them name {name}: {error}"
        return
    if files:
        yield f"Rules that name {name} are in force already, and hold for it: {', '.join(file.name for file in files)}"
        yield f"  in {files[0].parent}; if they were meant for another server, delete them"


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
