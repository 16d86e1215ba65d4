"""The pages are true: links lead somewhere, data blocks parse, every command that a page names is there."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from omni_mcp.cli.root import cli

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_link_leads_to_a_file(file: Path) -> None:
    text = BLOCK.sub("", file.read_text())
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (file.parent / target).exists(), target


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_data_block_parses(file: Path) -> None:
    for language, body in BLOCK.findall(file.read_text()):
        if language == "json":
            json.loads(body)
        elif language == "toml":
            tomllib.loads(body)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_command_that_a_page_shows_is_there(file: Path) -> None:
    shown = [
        line for language, body in BLOCK.findall(file.read_text()) if language == "sh" for line in body.splitlines()
    ]
    for line in shown:
        words = shlex.split(line.split("#")[0], posix=True)
        if words[:1] == ["omni-mcp"] and len(words) > 1 and not words[1].startswith("-"):
            assert find(words[1:]) is not None, line


def find(words: list[str]) -> click.Command | None:
    """Return the command that *words* begin with, however deep."""
    command: click.Command | None = cli
    for word in words:
        if not isinstance(command, click.Group):
            return command
        if word.startswith("-"):
            return None
        command = command.get_command(click.Context(command), word)
        if command is None:
            return None
    return command
