"""`omni-mcp plugins`: what installed packages could add, what is on, and what is wrong with it."""

from __future__ import annotations

import click
import orjson

from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.status import find_status
from omni_mcp.config import Settings, load_settings
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.plugins import EXECUTORS_GROUP, TOOLS_GROUP
from omni_mcp.paths import Home, bundled, find_home
from omni_mcp.plugins.found import find_plugins
from omni_mcp.plugins.state import Plugins, merged
from omni_mcp.plugins.tools import PluginTools
from omni_mcp.server_definition import RESERVED_NAMES
from omni_mcp.servers_file import load_servers, servers_file_of

_HOW = {TOOLS_GROUP: '[plugins] tools = ["NAME"]', EXECUTORS_GROUP: "[plugins.executors.NAME]"}


@click.command("plugins")
@json_option
def plugins_command(as_json: bool) -> None:
    """List the plugins of installed packages by group: off, on, failed with the reason, or enabled and missing.

    Runs nothing of them. What an executor said when it was opened is known of a running gateway.
    """
    home = find_home()
    rows = merged(known_plugins(load_settings(home.settings_file), home).facts(), find_status(home).get("plugins", ()))
    if as_json:
        click.echo(orjson.dumps(rows))
        return
    for group, how in _HOW.items():
        mine = [row for row in rows if row["group"] == group]
        click.echo(f"{group}  (on with {how} in omni.toml)")
        for row in mine:
            for line in _lines(row):
                click.echo(printable(line))
        if not mine:
            click.echo("  none")


def _lines(row: JsonObject) -> list[str]:
    package = f"{row['package']} {row['version']}" if row["package"] else "not installed"
    lines = [f"  {row['name']:<24} {row['state']:<8} {package}"]
    lines += [f"      {error}" for error in row["errors"]]
    if row["tools"]:
        lines.append(f"      {', '.join(row['tools'])}; accept them with: omni-mcp accept {row['name']}")
    return lines


def known_plugins(settings: Settings, home: Home) -> Plugins:
    """Return what is installed and enabled; no executor is opened.

    Raises:
        ConfigError: servers.toml is broken.
    """
    found = find_plugins()
    taken = RESERVED_NAMES | settings.servers.keys() | settings.openapi.keys()
    taken |= load_servers(servers_file_of(home)).servers.keys()
    return Plugins(
        found=found, enabled_tools=settings.plugins.tools, enabled_executors=list(settings.plugins.executors),
        tools=PluginTools(found, settings.plugins.tools, code=bundled("sandbox") / "tools", taken=frozenset(taken)),
    )  # fmt: skip
