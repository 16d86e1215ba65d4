"""`omni-mcp accept`: a person looks at what a server offers, and says what of it may be used, and as what."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import click
import orjson

from omni_mcp.cli.in_force import wait_for_acceptance
from omni_mcp.cli.look import look_at
from omni_mcp.cli.person import json_option, yes_option
from omni_mcp.cli.plugins import known_plugins
from omni_mcp.cli.relabel import change_line, changes_as_json, changes_of, vouch_anew
from omni_mcp.config import load_settings
from omni_mcp.contracts.errors import BadRequest, NotFound
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.catalog.acceptance import Answer, Waiting, accept, answer_to, launch_changes, waiting_of
from omni_mcp.engines.catalog.difference import Difference
from omni_mcp.engines.catalog.difference_text import definition_lines, difference_lines, one_line
from omni_mcp.engines.catalog.lock_listing import (
    KeptListing,
    get_listing,
    keep_listing,
    listings_dir,
    load_listings,
    names_by_server,
)
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.catalog.relabelling import Relabelled
from omni_mcp.engines.identity.keys import local_user
from omni_mcp.paths import Home, find_home
from omni_mcp.servers_file import load_servers, names_in_settings, servers_file_of
from omni_mcp.upstreams.definitions import launch_of

READ_ONLY = Labels(read_only=True, destructive=False)
_REASONS = {
    "new": "new",
    "changed": "changed since it was accepted",
    "launch_changed": "the same as accepted, but what starts the server is not",
}
_WORDS = {"true": True, "yes": True, "false": False, "no": False}

Word = Literal["accept", "read_only", "skip", "quit"]


@dataclass(slots=True)
class Outcome:
    """What became of each definition that was looked at."""

    answers: list[Answer] = field(default_factory=list)
    skipped: list[Waiting] = field(default_factory=list)
    refused: list[Waiting] = field(default_factory=list)
    broken_off: bool = False  # nobody answered the last question


@click.command("accept")
@click.argument("server", metavar="NAME")
@click.argument("names", metavar="[TOOL]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Everything that waits; also prompts and resources.")
@click.option("--again", is_flag=True, help="With --all: also what is accepted already, with the labels given here.")
@click.option("--read-only", is_flag=True, help="Vouch that it changes nothing.")
@click.option(
    "--labels", "words", metavar="LABEL=yes|no,…",
    help="What you vouch for: read_only, destructive, egress, reads_private, reads_untrusted. Unset is the worst.",
)  # fmt: skip
@yes_option
@click.option("--accept-risks", is_flag=True, help="With --yes: also what holds severe findings.")
@json_option
def accept_command(
    server: str, names: tuple[str, ...], everything: bool, again: bool, read_only: bool, words: str | None, yes: bool,
    accept_risks: bool, as_json: bool,
) -> None:  # fmt: skip
    """Accept what the server NAME offers: all of it, or only TOOL.

    Shows each definition that is new or changed, what is different, and what stands out, and asks. What was never
    accepted is not listed and cannot be called. TOOL is a name, or prompt/NAME, resource/URI, resource_template/URI.
    A server that no gateway has seen yet is started once.

    Labels say what you vouch for, whatever the server says of itself; policies decide by them. A TOOL that is accepted
    already gets the labels that you give now.
    """
    labels = labels_of(words, read_only)
    home = find_home()
    lock_file = LockFile(home.lock_file)
    listing = _listing_of(home, server)
    lock = lock_file.read()
    waiting = _wanted(waiting_in(lock_file, listing, home), listing, names, everything)
    changed = launch_changes(lock, server, listing.launch)
    said = read_only or words is not None
    other = changes_of(lock_file, listing, names, labels) if said and (names or (everything and again)) else ()
    anew = vouch_anew(lock_file, other, yes=yes) if other else ()
    if not waiting:
        wait_for_acceptance(home, server)
        _report(server, Outcome(), anew, as_json=as_json)
        if not other and not as_json:
            click.echo(f"Nothing of {server} waits for you.{_about_labels(server, said)}")
        return
    if yes:
        if not names and not everything:
            raise click.UsageError("--yes needs --all, or the names of what to accept")
        outcome = answer_all(waiting, labels, changed, accept_risks=accept_risks)
    elif not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on; look at it with `omni-mcp lock` and add --yes")
    else:
        _show_launch(server, changed)
        outcome = ask_all(waiting, labels, changed)
    write_down(outcome, lock_file)
    wait_for_acceptance(home, server)
    _report(server, outcome, anew, as_json=as_json, changed=changed)
    if outcome.broken_off:
        raise click.Abort


def _listing_of(home: Home, server: str) -> KeptListing:
    """Return what is known of the server's lists; one of servers.toml that was not seen as it is now is started."""
    known = load_servers(servers_file_of(home)).servers
    if (of_plugin := _listing_of_plugin(home, server)) is not None:
        return of_plugin
    try:
        kept = get_listing(listings_dir(home.data), server)
        if server not in known or not known[server].enabled or kept.launch == launch_of(known[server]):
            return kept
    except NotFound:
        if server not in known and server not in names_in_settings(home.settings_file, "servers"):
            text = f"there is no server {server!r}; see: omni-mcp servers list, omni-mcp plugins"
            raise NotFound(text) from None
        if server in known and not known[server].enabled:
            raise NotFound(f"{server} is disabled; first: omni-mcp servers enable {server}") from None
    _, found, listing = look_at(home, server)
    if listing is None:
        why = one_line(found.fault)
        raise NotFound(f"what {server!r} offers is not known: {why}; see: omni-mcp servers test {server}")
    return listing


def _listing_of_plugin(home: Home, name: str) -> KeptListing | None:
    """Return what the plugin *name* brings as it is installed now, and keep it as a gateway that starts would."""
    settings = load_settings(home.settings_file)
    if name not in settings.plugins.tools:
        return None
    brought = known_plugins(settings, home).tools
    if name not in brought.names:
        return None
    found = brought.listing(name)
    keep_listing(listings_dir(home.data), found)
    return found


def _about_labels(server: str, said: bool) -> str:
    if not said:
        return ""
    return f" To change the labels of all that is accepted: omni-mcp accept {server} --all --again, with the labels"


def write_down(outcome: Outcome, lock_file: LockFile) -> None:
    """Put what was accepted into omni.lock.

    Raises:
        ConfigError: it is refused, or cannot be written.
    """
    if outcome.answers:
        at = iso_time(time.time_ns())
        lock_file.edit(lambda now: accept(now, outcome.answers, by=local_user(os.getuid()).id, at=at))


def waiting_in(lock_file: LockFile, listing: KeptListing, home: Home) -> list[Waiting]:
    """Return what of a listing is not accepted."""
    names = names_by_server(load_listings(listings_dir(home.data)))
    others = frozenset(name for other, found in names.items() if other != listing.server for name in found)
    return waiting_of(lock_file.read(), listing.server, listing.definitions(), listing.launch, others=others)


def _wanted(
    waiting: Sequence[Waiting], listing: KeptListing, names: Sequence[str], everything: bool
) -> Sequence[Waiting]:
    if everything and names:
        raise click.UsageError("give either names or --all")
    if not names:
        return waiting
    offered = {name for kind, own, _ in listing.definitions() for name in (own, f"{kind}/{own}")}
    if missing := [name for name in names if name not in offered]:
        raise NotFound(f"{listing.server} offers no {', '.join(map(one_line, missing))}; see: omni-mcp lock")
    return [one for one in waiting if one.item in names or (one.kind == "tool" and one.name in names)]


def labels_of(words: str | None, read_only: bool) -> Labels:
    """Read `--labels`; to vouch for reading only is to vouch for destroying nothing."""
    if words is None:
        return READ_ONLY if read_only else Labels()
    if read_only:
        raise click.UsageError("give either --read-only or --labels")
    said: dict[str, bool] = {}
    for word in filter(None, (part.strip() for part in words.split(","))):
        name, _, value = word.partition("=")
        if name not in Labels.model_fields or (value or "yes") not in _WORDS:
            raise click.UsageError(f"--labels: {word!r} is none of {', '.join(Labels.model_fields)}, =yes or =no")
        said[name] = _WORDS[value or "yes"]
    if said.get("read_only"):
        said.setdefault("destructive", False)
    if said.get("read_only") and said["destructive"]:
        raise BadRequest("what only reads destroys nothing: read_only cannot go with destructive")
    return Labels(**said)


def answer_all(waiting: Iterable[Waiting], labels: Labels, changed: Sequence[str], *, accept_risks: bool) -> Outcome:
    """Answer without a person: what has severe findings, or a changed launch, needs more than a yes."""
    outcome = Outcome()
    for one in waiting:
        found = one.difference()
        if (found.severity == "severe" or changed) and not accept_risks:
            outcome.refused.append(one)
        else:
            outcome.answers.append(answer_to(one, found, labels, launch_changed=changed))
    return outcome


def ask_all(waiting: Sequence[Waiting], labels: Labels, changed: Sequence[str]) -> Outcome:
    """Show each definition on the terminal and ask."""
    outcome = Outcome()
    for number, one in enumerate(waiting):
        found = one.difference()
        click.echo(f"\n({number + 1} of {len(waiting)}) {_full_text(one, found)}", err=True)
        try:
            word = _ask(one, found)
        except click.Abort:
            outcome.broken_off, word = True, "quit"
        if word == "quit":
            outcome.skipped += waiting[number:]
            break
        if word == "skip":
            outcome.skipped.append(one)
        else:
            outcome.answers.append(
                answer_to(one, found, READ_ONLY if word == "read_only" else labels, launch_changed=changed)
            )
    return outcome


def _ask(one: Waiting, found: Difference) -> Word:
    keys: dict[str, Word] = {"a": "accept", "r": "read_only", "s": "skip", "q": "quit"}
    word = keys[
        click.prompt(
            "[a]ccept, accept as [r]ead-only, [s]kip, [q]uit", type=click.Choice(list(keys)), default="s",
            show_choices=False, err=True,
        )
    ]  # fmt: skip
    if word in ("accept", "read_only") and found.severity == "severe":
        question = f"{one_line(one.name)} has severe findings. Use it all the same?"
        return word if click.confirm(question, default=False, err=True) else "skip"
    return word


def _show_launch(server: str, changed: Sequence[str]) -> None:
    if changed:
        text = (
            f"What starts {server} is not what it was: {', '.join(changed)} changed. See: omni-mcp servers get {server}"
        )
        click.echo(text, err=True)


def _full_text(one: Waiting, found: Difference) -> str:
    lines = [f"{one.item}: {_REASONS[one.reason]}"]
    if one.accepted is None:
        lines += ["    " + line for line in definition_lines(found)]
    lines += difference_lines(found)
    return "\n".join(map(one_line, lines))


def _report(
    server: str, outcome: Outcome, anew: Sequence[Relabelled], *, as_json: bool, changed: Sequence[str] = ()
) -> None:
    if as_json:
        click.echo(orjson.dumps(_as_json(outcome) | {"relabelled": changes_as_json(anew)}))
    else:
        for one in anew:
            click.echo(f"vouched for anew: {server} {change_line(one)}")
        for answer in outcome.answers:
            click.echo(one_line(f"accepted: {server} {answer.waiting.item}"))
    if outcome.refused:
        severe = [one_line(one.item) for one in outcome.refused if one.difference().severity == "severe"]
        others = [one_line(one.item) for one in outcome.refused if one.difference().severity != "severe"]
        if severe:
            click.echo(f"omni-mcp: not accepted for severe findings: {', '.join(severe)}", err=True)
        if others:
            text = f"not accepted, since what starts {server} is not what it was ({', '.join(changed)})"
            click.echo(f"omni-mcp: {text}: {', '.join(others)}", err=True)
        click.echo(
            f"Look at them with `omni-mcp lock --server {server}`; --accept-risks accepts them all the same", err=True
        )
        sys.exit(1)


def _as_json(outcome: Outcome) -> JsonObject:
    return {
        "accepted": [
            {
                "server": answer.waiting.server, "item": answer.waiting.item, "digest": answer.waiting.digest,
                "labels": answer.labels.model_dump(), "risks": {risk: list(why) for risk, why in answer.risks.items()},
            }
            for answer in outcome.answers
        ],
        "skipped": [one.item for one in outcome.skipped],
        "refused": [one.item for one in outcome.refused],
    }  # fmt: skip
