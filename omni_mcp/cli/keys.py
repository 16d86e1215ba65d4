"""`omni-mcp keys`: make, list and revoke the tokens of clients."""

from __future__ import annotations

import os
import time

import click
import orjson

from omni_mcp.contracts.call import OPERATOR, Principal
from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.identity.keys import Key, KeyRing, local_user, parse_span_s
from omni_mcp.paths import find_home


@click.group()
def keys() -> None:
    """Create, list and revoke client tokens."""


@keys.command()
@click.argument("name")
@click.option("--agent", metavar="AGENT", help="The token stands for this agent of yours; without it, for you.")
@click.option("--project", default="default", show_default=True, help="The project that its calls belong to.")
@click.option("--expires", metavar="SPAN", help="When it stops working: 30d, 12h, 90m. Without it: never.")
@click.option("--operator", is_flag=True, help="It may also read /metrics and the whole of /api/status.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def create(name: str, agent: str | None, project: str, expires: str | None, operator: bool, as_json: bool) -> None:
    """Create a token called NAME and print it, this once."""
    uid = os.getuid()
    roles = (OPERATOR,) if operator else ()
    principal = (
        Principal(kind="Agent", id=agent, owner=str(uid), project=project, roles=roles)
        if agent
        else local_user(uid, project=project, roles=roles)
    )
    expires_at_ns = time.time_ns() + parse_span_s(expires) * 1_000_000_000 if expires else None
    token = KeyRing(find_home().keys_file).create(name, principal, expires_at_ns=expires_at_ns)
    if as_json:
        click.echo(
            orjson.dumps({"name": name, "token": token, "principal": principal.key, "expires_at": _time(expires_at_ns)})
        )
        return
    click.echo(token)
    click.echo(f"This is shown once. It stands for {principal.key}. Send it as: Authorization: Bearer TOKEN", err=True)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of text.")
def list_keys(as_json: bool) -> None:
    """List the tokens by name; the tokens themselves are kept nowhere."""
    found = KeyRing(find_home().keys_file).keys()
    if as_json:
        click.echo(orjson.dumps([_as_json(key) for key in found]))
        return
    for key in found:
        click.echo(
            f"{key.name:<24} {_state(key):<8} {key.principal.key:<40} {_time(key.expires_at_ns) or 'never expires'}"
        )
    if not found:
        click.echo("No tokens yet. The first start of `omni-mcp serve` makes one; so does `omni-mcp keys create NAME`.")


@keys.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def revoke(name: str, as_json: bool) -> None:
    """Revoke the token called NAME; the next request that carries it is refused."""
    key = KeyRing(find_home().keys_file).revoke(name)
    if as_json:
        click.echo(orjson.dumps(_as_json(key)))


def _state(key: Key) -> str:
    if key.revoked_at_ns is not None:
        return "revoked"
    return "valid" if key.holds_at(time.time_ns()) else "expired"


def _as_json(key: Key) -> JsonObject:
    return {
        "name": key.name, "state": _state(key), "principal": key.principal.key, "project": key.project,
        "operator": key.principal.is_operator,
        "created_at": _time(key.created_at_ns), "expires_at": _time(key.expires_at_ns),
        "revoked_at": _time(key.revoked_at_ns),
    }  # fmt: skip


def _time(at_ns: int | None) -> str | None:
    return None if at_ns is None else iso_time(at_ns)
