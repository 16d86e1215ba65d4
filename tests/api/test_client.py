"""The Python client against a gateway that serves: what the page shows, typed answers, streams that come back."""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import orjson
import pytest

from omni_mcp.client.client import Client
from omni_mcp.client.errors import ApiError, StreamEnded, Unreachable
from omni_mcp.config import ApprovalSettings, Settings
from omni_mcp.contracts.api import EventShown
from omni_mcp.engines.identity.keys import KeyRing
from omni_mcp.paths import find_home
from omni_mcp.serving.web_server import serve_http
from omni_mcp.testing import ALLOW_ALL, ANN, Canary, LocalGateway, local_gateway, write_private

T = TypeVar("T")
PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "api.md"


@asynccontextmanager
async def a_client(directory: Path) -> AsyncIterator[tuple[LocalGateway, Client]]:
    canary = Canary(directory / "touched")
    canary.tool("echo")
    at_once = Settings(approvals=ApprovalSettings(wait_s=0))
    async with (
        local_gateway(ALLOW_ALL, canary=canary, settings=at_once, cells=False) as here,
        here.http(ANN) as (base, (token,)),
    ):
        yield here, Client(base, token)


async def apart(work: Callable[[], T]) -> T:
    """The client is synchronous; the gateway that it asks runs in this loop."""
    return await asyncio.to_thread(work)


@pytest.mark.usefixtures("cells")
async def test_the_example_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source: docs/api.md. It finds the gateway as a user's program does: by what the daemon writes down."""
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    printed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="omni-") as short:
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        async with local_gateway(ALLOW_ALL) as here, here.http(ANN) as (base, (token,)):
            monkeypatch.setenv("OMNI_HOME", str(here.home.config))
            write_private(find_home().token_file, token)
            find_home().runtime.mkdir()
            note = {"host": "127.0.0.1", "port": int(base.rpartition(":")[2])}
            find_home().runtime_file.write_bytes(orjson.dumps(note))
            scope = {"print": lambda *said: printed.append(" ".join(map(str, said)))}
            await apart(lambda: exec(compile(example, "docs/api.md", "exec"), scope))
    assert printed == [
        "1 run_created", "2 user_message", "3 tool_call", "4 system_event", "5 tool_result", "6 assistant_message",
        "7 system_event",
    ]  # fmt: skip


async def test_a_run_is_begun_filled_and_ended(tmp_path: Path) -> None:
    async with a_client(tmp_path) as (_, client):

        def work() -> list[EventShown]:
            thread = client.new_thread("talk")
            with client.begin("one", thread=thread.id) as run:
                assert run.say("user_message", "hello") == 2
                done = run.call("canary__echo", {"x": 1})
                assert not done.is_error and done.run == run.id
                stored = run.upload(b"bytes", name="b.bin")
                assert client.artifact(stored.sha256) == b"bytes"
                assert client.explain(done.call).state == "answered"
            assert [one.id for one in client.thread_runs(thread.id)] == [run.id]
            assert client.run(run.id).open is False
            assert client.search("hello").items[0].seq == 2
            return list(client.events(run.id))

        kinds = [event.code or event.kind for event in await apart(work)]
    assert kinds == [
        "run_created", "user_message", "tool_call", "policy_decided", "tool_result", "artifact_ref", "run_closed"
    ]  # fmt: skip


async def test_lists_are_read_to_their_end_over_pages(tmp_path: Path) -> None:
    async with a_client(tmp_path) as (_, client):

        def work() -> tuple[set[str], list[str]]:
            made = {client.begin(str(number)).id for number in range(60)}
            return made, [run.id for run in client.runs()]

        made, listed = await apart(work)
    assert len(listed) == 60 and set(listed) == made


async def test_an_error_says_its_code_and_its_call(tmp_path: Path) -> None:
    async with a_client(tmp_path) as (_, client):
        with pytest.raises(ApiError) as refused:
            await apart(lambda: client.call("canary__nothing"))
        assert (refused.value.status, refused.value.code) == (403, "policy_denied") and refused.value.call
        with pytest.raises(ApiError, match="no such run"):
            await apart(lambda: client.run("01a1fef5-34cf-71a7-bc4f-d6125575a242"))


@pytest.mark.parametrize("name", ["../status", "a/b", "a?b=c", "%2e%2e", "é", "a b", "#"])
async def test_a_name_is_one_part_of_a_path_whatever_is_in_it(name: str, tmp_path: Path) -> None:
    async with a_client(tmp_path) as (_, client):
        with pytest.raises(ApiError) as refused:
            await apart(lambda: client.run(name))
        assert refused.value.status == 404


async def test_nobody_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        Client("http://127.0.0.1:1", "token").status()
    for address in ("ftp://x", "http://", "http://h/path", "127.0.0.1:6464"):
        with pytest.raises(ValueError, match="is no address"):
            Client(address, "token")


async def test_a_stream_goes_on_after_the_server_went_away_and_came_back(tmp_path: Path) -> None:
    """The port closes in the middle of a stream and opens again; every event comes once."""
    async with local_gateway(ALLOW_ALL, cells=False) as here:
        ring = KeyRing(here.home.keys_file)
        token = ring.create("one", ANN)
        got: list[int] = []
        seen = threading.Semaphore(0)

        def listen(run: str, client: Client) -> None:
            for streamed in client.stream(run):
                got.append(streamed.event.seq)
                seen.release()

        async with serve_http(here.gateway.http_app, "127.0.0.1", 0) as port:
            client = Client(f"http://127.0.0.1:{port}", token)
            run = await apart(client.begin)
            listening = asyncio.create_task(apart(lambda: listen(run.id, client)))
            await apart(lambda: run.say("user_message", "one"))
            for _ in range(2):
                assert await apart(lambda: seen.acquire(timeout=30))
        async with serve_http(here.gateway.http_app, "127.0.0.1", port):
            await apart(lambda: run.say("user_message", "two"))
            await apart(run.end)
            await asyncio.wait_for(listening, 30)
    assert got == [1, 2, 3, 4]


async def test_a_stream_that_may_not_be_read_any_more_says_why(tmp_path: Path) -> None:
    async with a_client(tmp_path) as (here, client):
        run = await apart(client.begin)
        stream = client.stream(run.id)
        assert (await apart(lambda: next(stream))).event.kind == "run_created"
        here.write_policy('@id("no") forbid (principal, action, resource in Omni::Server::"runs");', "no.cedar")
        await here.gateway.reload()
        await apart(lambda: run.say("user_message", "x"))
        with pytest.raises(StreamEnded, match="access_refused"):
            await apart(lambda: next(stream))


async def test_the_memory_is_there_under_the_names_of_its_tools(tmp_path: Path) -> None:
    async with a_client(tmp_path) as (_, client):

        def work() -> None:
            kept = client.memory.remember("The quince is in the pantry.", subject="quince")
            found = client.memory.recall("where is the quince?")
            assert "pantry" in orjson.dumps(found).decode()
            assert client.memory.get(kept["id"])
            assert kept["id"] in orjson.dumps(client.memory.list()).decode()
            client.memory.revise(kept["id"], text="The quince is gone.")
            assert "gone" in orjson.dumps(client.memory.get(kept["id"])).decode()
            with pytest.raises(ApiError) as asked:
                client.memory.forget(kept["id"])
            assert asked.value.code == "approval_pending", "what cannot be undone is asked of a person"

        await apart(work)
