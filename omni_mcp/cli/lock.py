"""`omni-mcp lock` and `risks`: what is accepted, what waits, and which risks of what was accepted nobody closed yet."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import click
import orjson

from omni_mcp.cli.person import json_option, note_option
from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.lock import Lock, item_name
from omni_mcp.engines.catalog.acceptance import Waiting, close_risk, open_risks, risk_id, waiting_of
from omni_mcp.engines.catalog.difference_text import difference_lines, one_line
from omni_mcp.engines.catalog.lock_listing import KeptListing, listings_dir, load_listings, names_by_server
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.identity.keys import local_user
from omni_mcp.paths import find_home


@dataclass(frozen=True, slots=True)
class _Known:
    """Everything that is accepted, waits, or is accepted and no longer offered."""

    accepted: list[JsonObject]
    waiting: list[Waiting]
    gone: list[JsonObject]


@click.command("lock")
@click.option("--check", is_flag=True, help="Print only what waits; exit 1 if anything but a new resource does.")
@click.option("--strict", is_flag=True, help="With --check: also fail for new resources.")
@click.option("--server", metavar="NAME", help="Only this server.")
@json_option
def lock_command(check: bool, strict: bool, server: str | None, as_json: bool) -> None:
    """Show what of the servers' definitions is accepted and what waits; changes nothing.

    What waits is shown as what it adds to the accepted definition. It compares omni.lock with what the gateway was
    offered last, so no gateway and no server has to run. Accept with: omni-mcp accept NAME

    Servers make and drop resources while they run, so a new one is no change of what was accepted: it stays closed to
    every client until somebody accepts it, and does not fail --check. A changed one does.
    """
    home = find_home()
    lock = LockFile(home.lock_file).read()
    listings = load_listings(listings_dir(home.data))
    if server is not None and server not in listings and server not in lock.servers:
        raise NotFound(f"nothing of a server {server!r} was seen or accepted; see: omni-mcp servers list")
    known = _known(lock, listings, server)
    if as_json:
        click.echo(orjson.dumps(_as_json(known)))
    else:
        for line in _lines(known, check=check, strict=strict):
            click.echo(one_line(line))
    if check and any(strict or not _is_new_resource(one) for one in known.waiting):
        sys.exit(1)


@click.command("risks")
@click.option("--close", "flag", metavar="ID", help="Say that this one was looked at and is meant.")
@note_option
@json_option
def risks_command(flag: str | None, note: str | None, as_json: bool) -> None:
    """List the open risks of what was accepted: writes, reaches out, secrets, chance, instructions, hidden text.

    A risk opens when a definition is accepted that can do what its last version could not.
    """
    lock_file = LockFile(find_home().lock_file)
    if flag is not None:
        by, at = local_user(os.getuid()).id, iso_time(time.time_ns())
        lock = lock_file.edit(lambda now: close_risk(now, flag, by=by, at=at, note=note))
    else:
        lock = lock_file.read()
    found = [
        {
            "id": risk_id(server, item, version, risk), "server": server, "item": item, "version": version,
            "class": risk, "why": list(fact.why),
        }
        for server, item, version, risk, fact in open_risks(lock)
    ]  # fmt: skip
    if as_json:
        click.echo(orjson.dumps(found))
        return
    for one in found:
        why = "; ".join(one["why"])
        click.echo(
            one_line(f"{one['id']}  {one['class']:<14} {one['server']} {one['item']} (version {one['version']}): {why}")
        )
    if not found:
        click.echo("No open risks.")


def _known(lock: Lock, listings: Mapping[str, KeptListing], only: str | None) -> _Known:
    known = _Known([], [], [])
    names = names_by_server(listings)
    for server, listing in listings.items():
        if only in (None, server):
            others = frozenset(name for other, found in names.items() if other != server for name in found)
            known.waiting.extend(waiting_of(lock, server, listing.definitions(), listing.launch, others=others))
    waits = {(one.server, one.item) for one in known.waiting}
    offered = {
        (server, item_name(kind, name))
        for server, listing in listings.items()
        for kind, name, _ in listing.definitions()
    }
    for server, item, version, accepted in lock.versions():
        if only not in (None, server) or version not in lock.in_use(server, item):
            continue
        fact = {
            "server": server, "item": item, "version": version, "digest": accepted.digest,
            "labels": accepted.labels.model_dump(), "accepted_by": accepted.accepted_by,
            "accepted_at": accepted.accepted_at,
        }  # fmt: skip
        if (server, item) not in offered:
            known.gone.append(fact)
        elif (server, item) not in waits:
            known.accepted.append(fact)
    return known


def _lines(known: _Known, *, check: bool, strict: bool) -> Iterator[str]:
    if not check:
        for one in known.accepted:
            yield f"accepted  {one['server']} {one['item']} (version {one['version']}): {_label_words(one['labels'])}"
        for one in known.gone:
            yield f"gone      {one['server']} {one['item']} (version {one['version']}): accepted, not offered any more"
    for waiting in known.waiting:
        if check and not strict and _is_new_resource(waiting):
            continue
        yield f"waits     {waiting.server} {waiting.item}: {waiting.reason.replace('_', ' ')}"
        for line in difference_lines(waiting.difference()):
            yield f"    {line}"
    if check and not strict and (made := Counter(one.server for one in known.waiting if _is_new_resource(one))):
        counts = ", ".join(f"{count} of {server}" for server, count in sorted(made.items()))
        yield f"closed    new resources, which nobody can read until they are accepted: {counts}"
    if not check and not (known.accepted or known.waiting or known.gone):
        yield "Nothing is accepted and nothing waits. Servers are asked for their lists when the gateway runs."


def _is_new_resource(waiting: Waiting) -> bool:
    return waiting.kind == "resource" and waiting.reason == "new"


def _label_words(labels: JsonObject) -> str:
    effect = "read-only" if labels["read_only"] else "may destroy" if labels["destructive"] else "may write"
    names = {"egress": "reaches out", "reads_private": "reads private", "reads_untrusted": "reads untrusted"}
    return ", ".join([effect, *(text for name, text in names.items() if labels[name])])


def _as_json(known: _Known) -> JsonObject:
    waiting = [
        {
            "server": one.server, "item": one.item, "reason": one.reason, "digest": one.digest,
            "difference": one.difference().as_json(),
        }
        for one in known.waiting
    ]  # fmt: skip
    return {"accepted": known.accepted, "waiting": waiting, "gone": known.gone}
