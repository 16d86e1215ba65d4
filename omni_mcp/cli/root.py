"""The command tree, loaded lazily from `COMMANDS`, and how every error of ours becomes a message and an exit code."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from omni_mcp.cli.commands import COMMANDS
from omni_mcp.contracts.errors import ConfigError, OmniError, SandboxUnavailable

EXIT_FAILED, EXIT_NOT_HERE, EXIT_INTERRUPTED = 1, 3, 130


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        with _no_collection():
            command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # also while a command's module is still being imported
            sys.exit(EXIT_INTERRUPTED)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        try:
            return super().main(args, *rest, **extra)
        except OmniError as error:
            click.echo(f"omni-mcp: {error.message}", err=True)
            if error.detail != error.message and not isinstance(error, ConfigError):
                click.echo(f"  {error.detail}", err=True)
            sys.exit(EXIT_NOT_HERE if isinstance(error, SandboxUnavailable) else EXIT_FAILED)


@contextmanager
def _no_collection() -> Iterator[None]:
    """What is imported stays: to look for garbage in it again and again takes an eighth of a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
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
