"""`omni-mcp components`: which provider serves what, which others could, and in which tier each of them lost."""

from __future__ import annotations

from typing import Any, get_args

import click
import orjson

from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.status import find_status
from omni_mcp.config import Settings, load_settings
from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Binding
from omni_mcp.contracts.plugins import EXECUTORS_GROUP
from omni_mcp.engines.catalog.resolver import TIERS, Candidate, Resolver
from omni_mcp.paths import Home, find_home
from omni_mcp.plugins.executors import BUNDLED, DOMAIN
from omni_mcp.plugins.found import find_plugins

NOT_RUNNING = "no gateway runs: this is what omni.toml says; what a plugin opens, and for what, a running gateway knows"


@click.group("components", invoke_without_command=True)
@click.pass_context
def components(context: click.Context) -> None:
    """Show which provider serves each key of a domain. Without a command: list them."""
    if context.invoked_subcommand is None:
        context.invoke(list_components)


@components.command("list")
@json_option
def list_components(as_json: bool = False) -> None:
    """List every domain and key with the provider that serves it."""
    source, rows = _known(find_home())
    if as_json:
        click.echo(orjson.dumps({"source": source, "components": rows}, option=orjson.OPT_INDENT_2))
        return
    for row in rows:
        behind = ", ".join(one["provider"] for one in row["losers"])
        click.echo(
            printable(f"{row['domain']} {row['key']:<14} {row['winner']}{f'  before {behind}' if behind else ''}")
        )
    _say_where_from(source)


@components.command("explain")
@click.argument("domain")
@click.argument("key")
@click.option("--selection", metavar="PROVIDER", help="As if this provider were selected in omni.toml.")
@json_option
def explain(domain: str, key: str, selection: str | None, as_json: bool) -> None:
    """Say who serves KEY of DOMAIN, who lost, and in which tier: selection, capability, stack, priority, registration.

    Exit code 1 if there is no such domain, key or provider.

    \b
    omni-mcp components explain executor sandbox_job
    """
    source, rows = _known(find_home())
    row = _with_selection(_found(rows, domain, key), selection)
    if as_json:
        click.echo(orjson.dumps({"source": source, **row, "tiers": TIERS}, option=orjson.OPT_INDENT_2))
        return
    click.echo(printable(f"{domain} {key}: {row['winner']}, {_why(row)}"))
    for one in row["losers"]:
        click.echo(printable(f"  {one['provider']} lost in the tier {one['lost_in']}"))
    _say_where_from(source)


def _why(row: JsonObject) -> str:
    return f"decided in the tier {row['decided_in']}" if row["decided_in"] else "the only one"


def _say_where_from(source: str) -> None:
    if source != "gateway":
        click.echo(NOT_RUNNING, err=True)


def _found(rows: list[JsonObject], domain: str, key: str) -> JsonObject:
    """Return the row of a key.

    Raises:
        NotFound: there is none; says what there is.
    """
    of_domain = [row for row in rows if row["domain"] == domain]
    if not of_domain:
        raise NotFound(f"there is no domain {domain!r}; there are: {_names(row['domain'] for row in rows)}")
    row = next((row for row in of_domain if row["key"] == key), None)
    if row is None:
        raise NotFound(f"nothing provides {domain} {key!r}; there are: {_names(row['key'] for row in of_domain)}")
    return row


def _with_selection(row: JsonObject, selection: str | None) -> JsonObject:
    """Return *row* as it would be with another provider selected; selection is the first tier, so it decides all.

    Raises:
        NotFound: that provider does not provide the key.
    """
    losers = row["losers"]
    if selection is None:
        return {**row, "decided_in": losers[0]["lost_in"] if losers else None}
    providers = [row["winner"], *(one["provider"] for one in losers)]
    if selection not in providers:
        text = f"{selection!r} does not provide {row['domain']} {row['key']!r}; choose one of: {', '.join(providers)}"
        raise NotFound(text)
    behind = [{"provider": name, "lost_in": "selection"} for name in providers if name != selection]
    return {**row, "winner": selection, "losers": behind, "decided_in": "selection" if behind else None}


def _names(names: Any) -> str:
    return ", ".join(sorted(set(names))) or "none"


def _known(home: Home) -> tuple[str, list[JsonObject]]:
    """Return where it is known from, `gateway` or `settings`, and a row for each key."""
    told = find_status(home).get("executors")
    if isinstance(told, list):
        return "gateway", told
    return "settings", _from_settings(load_settings(home.settings_file))


def _from_settings(settings: Settings) -> list[JsonObject]:
    """Which binding a plugin serves is in its code, which nothing is run of here; a selection names both."""
    installed = {found.name for found in find_plugins() if found.group == EXECUTORS_GROUP}
    resolver: Resolver[None] = Resolver()
    for binding in get_args(Binding):
        resolver.register(DOMAIN, binding, Candidate(provider=BUNDLED, value=None))
    selected = {str(binding): name for binding, name in settings.plugins.select.items()}
    for binding, name in selected.items():
        if name != BUNDLED and name in installed and name in settings.plugins.executors:
            resolver.register(DOMAIN, binding, Candidate(provider=name, value=None, stack=1))
    rows: list[JsonObject] = []
    for domain, binding in resolver.keys():  # noqa: SIM118 (a list of pairs, not a mapping)
        try:
            rows.append(resolver.explain(domain, binding, selection=selected.get(binding)).as_json())
        except NotFound:  # what is selected is not there: the gateway's own serves, never another's
            rows.append(resolver.explain(domain, binding, selection=BUNDLED).as_json())
    return rows
