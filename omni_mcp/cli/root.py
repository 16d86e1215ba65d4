"""The command tree, loaded lazily from `COMMANDS`, and how every error of ours becomes a message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from omni_mcp.cli.commands import COMMANDS
from omni_mcp.cli.lazy import LazyGroup
from omni_mcp.cli.person import printable
from omni_mcp.contracts.errors import ConfigError, OmniError, SandboxUnavailable

EXIT_FAILED, EXIT_NOT_HERE, EXIT_INTERRUPTED = 1, 3, 130


class Root(LazyGroup):
    """The top of the tree."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # also while a command's module is still being imported
            sys.exit(EXIT_INTERRUPTED)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        try:
            return super().main(args, *rest, **extra)
        except OmniError as error:
            lines = map(str, error.problems) if isinstance(error, ConfigError) else [error.message]
            click.echo("omni-mcp: " + "\n".join(map(printable, lines)), err=True)
            if error.detail != error.message and not isinstance(error, ConfigError):
                click.echo(f"  {printable(error.detail)}", err=True)
            sys.exit(EXIT_NOT_HERE if isinstance(error, SandboxUnavailable) else EXIT_FAILED)


@click.group(cls=Root, elsewhere=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="omni-mcp", prog_name="omni-mcp")
def cli() -> None:
    """One MCP endpoint in front of every tool: deny by default, sandboxed, and on record.

    \b
    omni-mcp serve                          run the gateway
    omni-mcp stdio                          what a desktop client starts
    omni-mcp allow tools__files_read        let clients use a tool
    omni-mcp runs list                      what happened
    omni-mcp explain CALL                   why a call was refused

    Exit codes: 0 done, 1 no or failed check, 2 usage, 3 not possible here.
    """
