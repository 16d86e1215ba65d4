"""A person's home directory with clients in it, and our commands run in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from omni_mcp.cli.root import cli
from omni_mcp.clients.places import Surroundings
from omni_mcp.engines.catalog.lock_listing import KeptListing, keep_listing, listings_dir
from omni_mcp.servers_file import load_servers
from omni_mcp.upstreams.definitions import launch_of

SAMPLES = Path(__file__).parent / "samples"
REGISTRY, INDEX = "https://npm.example.org/", "https://python.example.org/simple"  # of this person's npm and uv
TOKEN = "ghp_Sample0Sample1Sample2Sample3Sample456"
FILES = {
    "claude-desktop": (".config/Claude/claude_desktop_config.json", "claude_desktop.json"),
    "claude-code": (".claude.json", "claude_code.json"),
    "cursor": (".cursor/mcp.json", "cursor.json"),
    "vscode": (".config/Code/User/mcp.json", "vscode.json"),
    "codex": (".codex/config.toml", "codex.toml"),
}
# Whatever the machine has set must not lead a test to a real file.
_UNSET = dict.fromkeys(
    ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "APPDATA", "CLAUDE_CONFIG_DIR", "CODEX_HOME", "USERPROFILE")
)


class Person:
    """One person's home, and commands run there."""

    def __init__(self, top: Path) -> None:
        self.home = top / "ann"
        self.omni_home = top / "omni"
        self.home.mkdir(mode=0o700)
        self.programs = top / "bin"
        self.programs.mkdir()
        self.has_program("npm", f"printf 'registry={REGISTRY}\\n@none:registry=undefined\\n'")
        self.variables: dict[str, str] = {
            "PATH": f"{self.programs}:/usr/bin:/bin", "UV_DEFAULT_INDEX": INDEX,
        }  # fmt: skip

    @property
    def around(self) -> Surroundings:
        return Surroundings(platform="linux", home=self.home, environment=self.variables)

    @property
    def environment(self) -> dict[str, str]:
        """What a command in a process of its own gets."""
        return {**self.variables, "HOME": str(self.home), "OMNI_HOME": str(self.omni_home)}

    @property
    def servers_file(self) -> Path:
        return self.omni_home / "servers.toml"

    @property
    def secrets(self) -> dict[str, str]:
        directory = self.omni_home / "data" / "secrets" / "servers"
        return {file.name: file.read_text() for file in directory.iterdir()} if directory.exists() else {}

    def has(self, client: str, text: str | bytes | None = None) -> Path:
        """Give the person *client*, with its sample or *text* as its file."""
        place, sample = FILES[client]
        file = self.home / place
        file.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            text = (SAMPLES / sample).read_text().replace("{{HOME}}", str(self.home))
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        file.chmod(0o600)
        return file

    def has_program(self, name: str, script: str, directory: Path | None = None) -> Path:
        """Give the person a program; what of it we ask is said by a line of shell."""
        file = (directory or self.programs) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    def accepts_all(self) -> None:
        """Accept one tool of every server of servers.toml, as if a gateway had seen it."""
        tool = {"name": "look", "inputSchema": {"type": "object"}}
        for name, definition in load_servers(self.servers_file).servers.items():
            kept = KeptListing(server=name, seen_at="", launch=launch_of(definition), items={"tool": [tool]})
            keep_listing(listings_dir(self.omni_home / "data"), kept)
            if definition.enabled:
                assert self.run("accept", name, "--all", "--yes").exit_code == 0

    def run(self, *words: str, stdin: str | None = None) -> Result:
        env = {**_UNSET, "HOME": str(self.home), "OMNI_HOME": str(self.omni_home), **self.variables}
        return CliRunner().invoke(cli, list(words), env=env, input=stdin)

    def json(self, *words: str, code: int = 0) -> Any:
        result = self.run(*words, "--json")
        assert result.exit_code == code, result.output
        return orjson.loads(result.stdout)


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """A person without any client yet."""
    return Person(tmp_path)


@pytest.fixture
def sample() -> Callable[[str], str]:
    """The text of a client's sample file."""
    return lambda client: (SAMPLES / FILES[client][1]).read_text()
