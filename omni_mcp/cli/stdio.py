"""`omni-mcp stdio --embedded`, and the help of `omni-mcp stdio`; without `--embedded` the shim takes over."""

from __future__ import annotations

import sys

import click

from omni_mcp.cli import shim
from omni_mcp.config import load_settings
from omni_mcp.daemon.run import run_embedded
from omni_mcp.logs import LineSink
from omni_mcp.paths import find_home


@click.command("stdio")
@click.option("--agent", metavar="NAME", help="Call as this agent of yours; without it, as you.")
@click.option("--profile", metavar="NAME", help="Show the tools of this profile.")
@click.option("--server", metavar="NAME", help="Show the tools of this one server, under their own names.")
@click.option("--embedded", is_flag=True, help="Run the whole gateway in this process: for CI and containers.")
def stdio_command(agent: str | None, profile: str | None, server: str | None, embedded: bool) -> None:
    """Connect a client that speaks MCP over standard input and output.

    Starts the gateway if none runs; every client of yours shares that one. It ends ten minutes after its last client.
    """
    if profile and server:
        raise click.UsageError("--profile and --server exclude each other")
    if not embedded:
        named = (("--agent", agent), ("--profile", profile), ("--server", server))
        sys.exit(shim.main([part for option, value in named if value for part in (option, value)]))
    home = find_home()
    sink = LineSink()
    try:
        code = run_embedded(load_settings(home.settings_file), home, agent=agent, profile=profile or server, sink=sink)
    finally:
        sink.close()
    sys.exit(code)
