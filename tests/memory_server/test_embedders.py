"""A gateway and commands whose memory has an endpoint for its vectors, which is away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from omni_mcp.cli.root import cli
from omni_mcp.config import ApprovalSettings, Settings, load_settings
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.memory import MemorySettings
from tests.memory_server.world import AGENT, CommandLine, done, remembering


@pytest.fixture
def away() -> Iterator[str]:
    """The URL of an endpoint at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1/embeddings"


def settings_of(url: str) -> Settings:
    memory = MemorySettings(embedder="openai", url=url, model="small", dimensions=16)
    return Settings(approvals=ApprovalSettings(wait_s=0), memory=memory)


async def test_an_answer_that_was_found_by_words_only_says_so_and_nothing_is_lost(tmp_path: Path, away: str) -> None:
    async with remembering(tmp_path, settings=settings_of(away)) as here, here.client(principal=AGENT) as client:
        await done(client, "remember", text="the kettle is made of tin")
        found = await done(client, "recall", query="kettle")
        assert [item["text"] for item in found["items"]] == ["the kettle is made of tin"]
        assert found["words_only"] is True
        assert away not in str(found)

    async with remembering(tmp_path) as here, here.client(principal=AGENT) as client:
        found = await done(client, "recall", query="kettle", explain=True)
        assert found["items"][0]["text"] == "the kettle is made of tin"
        assert "words_only" not in found


async def test_commands_use_the_embedder_of_the_settings_and_say_what_is_wrong_with_it(
    tmp_path: Path, away: str
) -> None:
    command = CommandLine(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o700)
    (home / "omni.toml").write_text(
        f'[memory]\nembedder = "openai"\nurl = "{away}"\nmodel = "small"\ndimensions = 16\nsecret = "token"\n'
        '[secrets]\ntoken = "env:OMNI_TEST_TOKEN_THAT_NOBODY_SETS"\n'
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "the kettle is made of tin"}\n')

    await command.run("memory", "import", str(rows), "--project", "garden")
    recall = ["memory", "recall", "kettle", "--project", "garden"]
    told = await asyncio.to_thread(CliRunner().invoke, cli, recall, env={"OMNI_HOME": str(home)})

    assert "the kettle is made of tin" in told.stdout
    assert "found by words only" in told.stderr
    assert "token" in told.stderr
    assert "the kettle is made of tin" in await command.run("memory", "list")


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ('embedder = "openai"\nurl = "https://a.example/v1"\nmodel = "m"\ndimensions = 16\nsecret = "none"', "secret"),
        ('embedder = "magic"', "embedder"),
        ('url = "http://a.example/v1"', "url"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_with_their_line(tmp_path: Path, lines: str, key: str) -> None:
    file = tmp_path / "omni.toml"
    file.write_text(f"[memory]\n{lines}\n")
    file.chmod(0o600)

    with pytest.raises(ConfigError, match=key):
        load_settings(file)
