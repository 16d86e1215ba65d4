"""`tools cost` prints what a list of tools costs a model: the bill of each server and tool that this person may see."""

from __future__ import annotations

from dataclasses import dataclass

import click
import orjson

from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.person_client import agent_option, person_client, profile_option
from omni_mcp.config import load_settings
from omni_mcp.contracts.json import JsonObject
from omni_mcp.engines.catalog.catalog import BUILTIN_PROFILES
from omni_mcp.engines.catalog.cost import tool_tokens
from omni_mcp.engines.catalog.names import server_of
from omni_mcp.paths import find_home
from omni_mcp.serving.search_server import OWN
from omni_mcp.serving.surface import OWN_CLIENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What each tool costs, by server; the dearest first."""

    servers: dict[str, dict[str, int]]

    @property
    def tokens(self) -> int:
        """What the whole list costs."""
        return sum(sum(tools.values()) for tools in self.servers.values())

    @property
    def tools(self) -> int:
        """How many tools there are."""
        return sum(map(len, self.servers.values()))


@click.command("cost")
@profile_option
@agent_option
@click.option("--client", default="", help="Say what a client gets that calls itself so, such as claude-code.")
@json_option
def cost(profile: str, agent: str | None, client: str, as_json: bool) -> None:
    """Print what the list of tools costs a model, in tokens, by server and tool.

    The list is the one that you, or your agent, get from the running gateway. The numbers are estimates of what
    clients show to a model (name, description and input schema): half of them are within 2 %, 95 of 100 within 5 %.
    """
    with person_client(agent=agent, profile=profile, name=OWN_CLIENT) as gateway:
        bill = bill_of(gateway.tools(), only_server=only_server_of(profile))
        served = gateway.tools(name=client)
    shown = {tool["name"] for tool in served}
    surface = "search" if shown and shown <= OWN.keys() else "full"
    tokens = sum(tool_tokens(tool["name"], tool) for tool in served)
    if as_json:
        click.echo(orjson.dumps(_as_json(bill, surface, tokens)))
        return
    _print(bill)
    if surface == "search":
        click.echo(f"clients get search and call in its place: {tokens:,} tokens")


def bill_of(tools: list[JsonObject], *, only_server: str | None = None) -> Bill:
    """Return the bill of listed tools, whose names say their server unless there is an *only_server*."""
    servers: dict[str, dict[str, int]] = {}
    for tool in tools:
        name = tool["name"]
        server = only_server or server_of(name) or "?"
        servers.setdefault(server, {})[name] = tool_tokens(name, tool)
    ranked = sorted(servers.items(), key=lambda pair: (-sum(pair[1].values()), pair[0]))
    return Bill(
        servers={name: dict(sorted(costs.items(), key=lambda one: (-one[1], one[0]))) for name, costs in ranked}
    )


def only_server_of(profile: str) -> str | None:
    """Return the server of a profile with identity names; None for one whose names say their server.

    A name that is no profile's is a server's.
    """
    spec = load_settings(find_home().settings_file).profiles.get(profile) or BUILTIN_PROFILES.get(profile)
    if spec is None:
        return profile
    return spec.servers[0] if spec.names == "identity" else None


def _as_json(bill: Bill, surface: str, served_tokens: int) -> JsonObject:
    servers = [{"server": name, "tokens": sum(tools.values()), "tools": tools} for name, tools in bill.servers.items()]
    return {
        "tokens": bill.tokens,
        "tools": bill.tools,
        "servers": servers,
        "served": {"surface": surface, "tokens": served_tokens},
    }


def _print(bill: Bill) -> None:
    for server, tools in bill.servers.items():
        click.echo(f"{sum(tools.values()):>9,}  {printable(server)}  ({len(tools)} tools)")
        for name, tokens in tools.items():
            click.echo(f"{tokens:>9,}    {printable(name)}")
    click.echo(f"{bill.tokens:>9,}  in all, for {bill.tools} tools")
