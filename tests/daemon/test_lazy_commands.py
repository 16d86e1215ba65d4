"""A command imports what it needs: a list of servers, or the help of a group, none of what runs a gateway."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from omni_mcp.cli.lazy import LazyGroup
from omni_mcp.cli.root import cli

PROGRAM = """
import atexit, sys
from omni_mcp.cli.root import cli
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
cli(sys.argv[1:])
"""
HEAVY = {
    "omni_mcp.daemon.run",
    "omni_mcp.gateway",
    "omni_mcp.running.engines",
    "cedarpy",
    "uvicorn",
    "starlette",
    "uvloop",
}


@pytest.mark.parametrize("words", ["servers list", "servers --help", "runs list", "runs --help", "--help"])
def test_a_small_command_loads_nothing_of_a_gateway(words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words.split()], capture_output=True, text=True, check=False,
        env={"OMNI_HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    loaded = set(done.stderr.split())

    assert "omni_mcp.cli.root" in loaded, done.stderr
    assert not loaded & HEAVY


def groups(group: click.Group, path: str) -> list[tuple[str, LazyGroup]]:
    """Return every group of commands that are imported when they are used, by what a person types."""
    context = click.Context(group)
    found = [(path, group)] if isinstance(group, LazyGroup) else []
    for name in group.list_commands(context):
        inner = group.get_command(context, name)
        if isinstance(inner, click.Group):
            found += groups(inner, f"{path} {name}")
    return found


def test_every_command_that_stands_elsewhere_is_there_by_its_name_and_in_the_help() -> None:
    found = groups(cli, "omni-mcp")
    for path, group in found:
        context = click.Context(group, info_name=path)
        text = group.get_help(context)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None and command.name == name, f"{path} {name}"
            assert f"\n  {name} " in text, f"{path} {name}"

    assert {path for path, _ in found} >= {"omni-mcp", "omni-mcp servers", "omni-mcp runs", "omni-mcp sandbox"}
