"""`omni-mcp servers remove`: a server goes, and with it what a later server of that name would find and not deserve."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import click
import orjson

from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.planning import secrets_dir_of
from omni_mcp.cli.servers_rules import for_it_alone, rules_naming
from omni_mcp.clients.plan import remove_secret_files
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.lock import Lock
from omni_mcp.engines.approvals.standing_store import StandingStore
from omni_mcp.engines.catalog.lock_listing import forget_listing, listings_dir
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.identity.keys import local_user
from omni_mcp.engines.state.database import open_state
from omni_mcp.paths import Home, find_home
from omni_mcp.server_definition import Servers
from omni_mcp.servers_file import edit_servers, servers_file_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """What hangs on the name of a server beside its definition."""

    accepted: int
    rules: tuple[str, ...]
    other_rules: tuple[str, ...]
    standing: tuple[str, ...]


@click.command("remove")
@click.argument("name")
@click.option("--keep", is_flag=True, help="Keep what was accepted and allowed: the same server comes back later.")
@json_option
def remove_command(name: str, keep: bool, as_json: bool) -> None:
    """Remove the server NAME, the secrets that were kept for it alone, and what was accepted and allowed of it.

    A later server of that name starts from nothing: acceptances, pins and pauses, the rules that commands wrote for it,
    and standing grants go. Rules that you wrote yourself stay, and are named.
    """
    home = find_home()
    seen: list[Servers] = []

    def change(now: Servers) -> Servers:
        seen.append(now)
        return now.without_server(name)

    left = _left(home, name)  # first: what cannot be read ends it before anything is gone
    after = edit_servers(servers_file_of(home), change)
    [before] = seen
    remove_secret_files(before, after, secrets_dir_of(home))
    forget_listing(listings_dir(home.data), name)
    if not keep:
        _forget(home, name, left)
    if as_json:
        secrets = sorted(before.secrets.keys() - after.secrets.keys())
        click.echo(orjson.dumps({"removed": name, "secrets": secrets, **_as_json(left, keep=keep)}))
        return
    for line in _lines(name, left, keep=keep):
        click.echo(printable(line))


def _left(home: Home, name: str) -> _Left:
    locked = LockFile(home.lock_file).read().servers.get(name)
    with_name = rules_naming(home, name)
    own = for_it_alone(with_name, name)
    return _Left(
        accepted=len(locked.items) if locked is not None else 0,
        rules=tuple(file.name for file in own),
        other_rules=tuple(file.name for file in with_name if file not in own),
        standing=tuple(_standing(home, name)),
    )


def _standing(home: Home, name: str) -> Iterator[str]:
    if not home.state_file.exists():
        return
    now_ns = time.time_ns()
    with closing(open_state(home.state_file)) as connection:
        for one in StandingStore(connection).all():
            if one.grant.server == name and one.grant.stands_at(now_ns):
                yield one.grant.id


def _forget(home: Home, name: str, left: _Left) -> None:
    for file in left.rules:
        (home.policies / file).unlink(missing_ok=True)
    if left.standing:
        with closing(open_state(home.state_file)) as connection:
            store = StandingStore(connection)
            for grant in left.standing:
                store.revoke(grant, by=local_user(os.getuid()).id)
    if home.lock_file.exists():
        LockFile(home.lock_file).edit(lambda now: _without(now, name))


def _without(lock: Lock, name: str) -> Lock:
    def is_of_it(key: str) -> bool:
        return key == name or key.startswith(f"{name}/")

    pins = {
        project: {key: pin for key, pin in found.items() if not is_of_it(key)} for project, found in lock.pins.items()
    }
    return lock.model_copy(
        update={
            "servers": {server: found for server, found in lock.servers.items() if server != name},
            "pins": {project: found for project, found in pins.items() if found},
            "paused": {key: pause for key, pause in lock.paused.items() if not is_of_it(key)},
        }
    )


def _lines(name: str, left: _Left, *, keep: bool) -> Iterator[str]:
    parts = [f"{left.accepted} acceptances"] if left.accepted else []
    parts += [f"rules: {', '.join(left.rules)}"] if left.rules else []
    parts += [f"{len(left.standing)} standing grants"] if left.standing else []
    if parts and keep:
        yield f"kept, and in force for a later server {name}: {'; '.join(parts)}"
    elif parts:
        yield f"gone with {name}: {'; '.join(parts)}"
    if left.other_rules:
        yield f"left in force, since no command wrote them for {name} alone: {', '.join(left.other_rules)}"


def _as_json(left: _Left, *, keep: bool) -> JsonObject:
    return {
        "kept": keep, "accepted": left.accepted, "rules": list(left.rules), "other_rules": list(left.other_rules),
        "standing": list(left.standing),
    }  # fmt: skip
