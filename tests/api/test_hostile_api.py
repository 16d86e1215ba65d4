"""What somebody with a token tries on the JSON API: to learn of others, to go round an operator, to leave a secret."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.config import ApprovalSettings, Settings
from omni_mcp.testing import ALLOW_ALL, ANN
from tests.api.world import FILE_TYPE, Api, a_file, api_world

SECRET = "correct-horse-battery"


def files_with(directory: Path, text: str) -> list[str]:
    """Files that hold *text*, apart from those of keys."""
    files = [file for file in directory.rglob("*") if file.is_file() and "secrets" not in file.parts]
    return [file.name for file in files if text.encode() in file.read_bytes()]


async def test_cursors_of_artifacts_do_not_count_what_others_keep(world: Api) -> None:
    cursors = []
    for others in (0, 5):
        for _ in range(others):
            await world.bob.post("/api/artifacts", content=a_file(os.urandom(8)), headers=FILE_TYPE)
        await world.ann.post("/api/artifacts", content=a_file(os.urandom(8)), headers=FILE_TYPE)
        cursors.append((await world.ann.get("/api/artifacts", params={"limit": 1})).json()["next"])
    assert not any(cursor.isdigit() for cursor in cursors)
    assert len({len(cursor) for cursor in cursors}) == 1
    page = await world.ann.get("/api/artifacts", params={"limit": 1, "cursor": cursors[1]})
    assert len(page.json()["items"]) == 1
    for who, cursor in ((world.bob, cursors[1]), (world.ann, "3"), (world.ann, cursors[1][:-4] + "AAA=")):
        refused = await who.get("/api/artifacts", params={"cursor": cursor})
        assert (refused.status_code, refused.json()["detail"]) == (400, "the cursor is not valid")


async def test_a_frozen_project_is_frozen_on_these_routes_too(world: Api) -> None:
    run = world.things["run"]
    said = {"events": [{"kind": "user_message", "text": "while frozen"}]}
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", f"/api/runs/{run}/events", {"json": said}),
        ("POST", "/api/artifacts", {"content": a_file(b"while frozen"), "headers": FILE_TYPE}),
        ("POST", "/api/threads", {"json": {"title": "while frozen"}}),
        ("POST", "/api/calls", {"json": {"name": "canary__echo"}}),
        ("GET", f"/api/runs/{run}/events", {}),
        ("GET", f"/api/artifacts/{world.things['sha256']}", {}),
        ("GET", f"/api/runs/{run}/stream", {}),
    ]
    world.here.gateway.freeze.set(frozenset({ANN.project}))
    for method, path, more in asked:
        answer = await world.ann.request(method, path, **more)
        assert (answer.status_code, answer.json()["code"]) == (503, "frozen"), path
    world.here.gateway.freeze.set(frozenset())
    assert "while frozen" not in (await world.ann.get(f"/api/runs/{run}/events")).text


@pytest.mark.parametrize("media_type", ["text/html\r\nSet-Cookie: a=b", "text/\x00", "té/xt", "text/\u2028"])
async def test_a_media_type_is_any_text_and_never_a_header_of_its_own(world: Api, media_type: str) -> None:
    """Servers and tools say it; it goes into a header of ours."""
    store = world.here.gateway._engines.artifacts
    ref = await store.put(b"data", media_type=media_type, owner=ANN.key, run=world.things["run"])
    async with world.here.http(ANN) as (base, _):
        got = await world.ann.get(f"{base}/api/artifacts/{ref.sha256}")
    assert got.headers["content-type"] == "application/octet-stream" and got.content == b"data"
    assert "set-cookie" not in got.headers


async def test_a_registered_secret_is_in_no_file_whatever_field_it_came_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", SECRET)
    settings = Settings(approvals=ApprovalSettings(wait_s=0), secrets={"s": "env:A_SECRET"})
    async with api_world(tmp_path, ALLOW_ALL, settings=settings, keep=tmp_path) as world:
        post, data = world.ann.post, world.here.home.data
        thread = (await post("/api/threads", json={"title": SECRET})).json()["id"]
        run = (await post("/api/runs", json={"title": SECRET, "thread": thread})).json()["id"]
        said = {"kind": "user_message", "text": SECRET, "author": SECRET, "model": {SECRET: SECRET}}
        await post(f"/api/runs/{run}/events", json={"events": [said]})
        body = a_file(SECRET.encode()).replace(b"a.txt", SECRET.encode()).replace(b"plain", SECRET.encode())
        await post("/api/artifacts", params={"run": run}, content=body, headers=FILE_TYPE)
        model = {"io.omni-mcp/model": {"id": SECRET}, SECRET: SECRET}
        for name in ("canary__echo", "canary__break", f"nobody__{SECRET}", f"note://{SECRET}"):
            wanted = {"name": name, "kind": "resource" if ":" in name else "tool", "run": run, "meta": model}
            await post("/api/calls", json=wanted if ":" in name else {**wanted, "arguments": {SECRET: SECRET * 5000}})
        await post("/api/memory", json={"text": SECRET, "tags": [SECRET], "subject": SECRET})
        await post("/api/memory/recall", json={"query": SECRET})
        for path in ("runs", "artifacts", "calls", "memory", "threads"):
            await world.ann.get(f"/api/{path}/{SECRET}")
        await world.ann.get("/api/events", params={"query": SECRET, "run": SECRET})
        assert files_with(data, SECRET) == []
    assert files_with(data, SECRET) == []


async def test_the_title_of_a_thread_goes_with_it(tmp_path: Path) -> None:
    async with api_world(tmp_path, ALLOW_ALL, keep=tmp_path) as world:
        thread = (await world.ann.post("/api/threads", json={"title": "my diagnosis"})).json()["id"]
        assert files_with(world.here.home.data, "my diagnosis")
        assert (await world.ann.delete(f"/api/threads/{thread}")).status_code == 204
        assert files_with(world.here.home.data, "my diagnosis") == []
