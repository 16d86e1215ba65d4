"""LazyGroup: a group of which commands are imported when they are used, and their help stands in a table."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

Elsewhere = Mapping[str, tuple[str, str, str]]  # name -> (module, attribute, one line of help)


class LazyGroup(click.Group):
    """A group whose help imports none of the commands that stand elsewhere."""

    def __init__(self, *args: Any, elsewhere: Elsewhere, **more: Any) -> None:
        super().__init__(*args, **more)
        self._elsewhere = elsewhere

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Those that stand elsewhere come first, in the order of their table."""
        return [*self._elsewhere, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command where it stands."""
        if cmd_name not in self._elsewhere:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = self._elsewhere[cmd_name]
        with _imported_for_good():
            command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line of help for each command."""
        here = [(name, self.commands[name].get_short_help_str(120)) for name in super().list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([*((name, text) for name, (_, _, text) in self._elsewhere.items()), *here])


@contextmanager
def _imported_for_good() -> Iterator[None]:
    """Look for no garbage meanwhile, which takes an eighth of a start, nor ever in what is there afterwards."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
