"""A person at a terminal: what is shown to one, and how one says yes."""

from __future__ import annotations

import sys

import click

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value instead of text.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask on the terminal.")
note_option = click.option("--note", help="Why; it goes on record.")


def confirm(text: str, question: str, *, look: str) -> None:
    """Show *text* and ask *question*; docs/approvals.md says what this does not stop.

    Args:
        look: how to see what is asked about without a terminal.

    Raises:
        click.UsageError: there is no terminal.
        click.Abort: anything but a yes.
    """
    if not sys.stdin.isatty():
        raise click.UsageError(f"there is no terminal to ask on; {look} and add --yes")
    click.echo(text, err=True)
    if not click.confirm(question, default=False, err=True):
        raise click.Abort


def printable(text: str) -> str:
    """Escape what a terminal would act on or not show, such as text that turns around, and line ends: it is one line.

    Whatever others wrote goes through this before a person sees it, or it could say things in our name.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_lines(text: str) -> str:
    """As `printable`, for a text whose line ends are ours."""
    return "\n".join(map(printable, text.split("\n")))
