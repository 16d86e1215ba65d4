"""The JSON API without an outside: calls get the answers and the ids that they had, and nothing is started for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from omni_mcp.config import Settings
from omni_mcp.contracts.call import Answer, Call
from omni_mcp.engines.identity.keys import KeyRing
from omni_mcp.replay.offline import offline_gateway
from omni_mcp.replay.recorded import read_run
from omni_mcp.testing import ALLOW_ALL, ANN, Canary, local_gateway

ADDRESS = "http://127.0.0.1:6464"
WATCHED = """
import sys, threading
def tell(event, arguments):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system"):
        print("STARTED", event, arguments, file=sys.stderr, flush=True)
sys.addaudithook(tell)
import asyncio
from pathlib import Path
from omni_mcp.config import Settings
from omni_mcp.paths import Home
from omni_mcp.replay.offline import offline_gateway
from omni_mcp.replay.recorded import read_run
async def main(root, run, scratch):
    home = Home(config=root / "home", data=root / "home" / "data", runtime=root / "run")
    prepared = offline_gateway(Settings(), home, [read_run(home, run)], scratch=scratch)
    async with prepared.opener(prepared.settings, prepared.home) as gateway:
        print(gateway.version)
asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
"""


def counting() -> Any:
    """A tool that says each time something else, so that only the record can say it again."""
    numbers = iter(range(1, 100))

    async def count(call: Call) -> Answer:
        return Answer(body={"content": [{"type": "text", "text": f"number {next(numbers)}"}]}, where="remote")

    return count


def canary_in(directory: Path) -> Canary:
    canary = Canary(directory / "touched")
    canary.tool("count", counting())
    return canary


async def asked(http: httpx2.AsyncClient, *words: str) -> list[dict[str, Any]]:
    found = []
    for word in words:
        answer = await http.post("/api/calls", json={"name": "canary__count", "arguments": {"word": word}})
        found.append(answer.json())
    return found


async def test_calls_of_the_api_come_back_with_their_answers_and_ids(tmp_path: Path) -> None:
    canary = canary_in(tmp_path)
    async with local_gateway(ALLOW_ALL, canary=canary, directory=tmp_path, cells=False) as here:
        token = KeyRing(here.home.keys_file).create("key", ANN)
        headers = {"Authorization": f"Bearer {token}"}
        over = httpx2.ASGITransport(app=here.gateway.http_app)
        async with httpx2.AsyncClient(transport=over, base_url=ADDRESS, headers=headers) as http:
            recorded = await asked(http, "one", "two", "one")
    touched = canary.touched
    recording = read_run(here.home, recorded[0]["run"])
    (tmp_path / "scratch").mkdir()
    prepared = offline_gateway(Settings(), here.home, [recording], scratch=tmp_path / "scratch", sources=[canary])
    async with prepared.opener(prepared.settings, prepared.home) as gateway:
        over = httpx2.ASGITransport(app=gateway.http_app)
        async with httpx2.AsyncClient(transport=over, base_url=ADDRESS, headers=headers) as http:
            again = await asked(http, "one", "two", "one")
            [once_more] = await asked(http, "two")

    def same(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value for name, value in answer.items() if name != "run"} for answer in answers]

    assert same(again) == same(recorded)
    assert [one["result"]["content"][0]["text"] for one in again] == ["number 1", "number 2", "number 3"]
    assert once_more["code"] == "not_recorded"
    assert prepared.answers.given == 3 and prepared.answers.left == []
    assert canary.touched == touched, "nobody outside was asked"


async def test_an_offline_replay_starts_no_process(tmp_path: Path) -> None:
    async with local_gateway(ALLOW_ALL, canary=canary_in(tmp_path), directory=tmp_path, cells=False) as here:
        async with here.client() as client:
            await client.call("canary__count", {"word": "one"})
        [run] = [run["id"] for run in await here.gateway.log.runs() if run["kind"] == "session"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = [sys.executable, "-c", WATCHED, str(tmp_path), run, str(scratch)]
    ended = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "STARTED" not in ended.stderr
