"""Artifacts: a file goes in whole or not at all, within its owner's quota, and comes out as the bytes that it was."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from omni_mcp.config import LimitSettings, Settings
from omni_mcp.contracts.api import UPLOAD_LIMIT_BYTES
from omni_mcp.serving.api.artifacts import FILES_PER_PRINCIPAL
from omni_mcp.testing import ANN, WAIT_S
from tests.api.world import FILE, FILE_END, FILE_TYPE, Api, a_file, api_world
from tests.streams.listening import eraser


async def put(world: Api, body: Any, *, who: httpx2.AsyncClient | None = None, **more: Any) -> httpx2.Response:
    return await (who or world.ann).post("/api/artifacts", content=body, headers=FILE_TYPE, **more)


async def in_pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def in_two(data: bytes, cut: int) -> AsyncIterator[bytes]:
    yield data[:cut]
    yield data[cut:]


def kept_files(world: Api) -> list[str]:
    place = world.here.home.artifacts
    return sorted(file.name for file in place.rglob("*") if file.is_file() and "artifacts.db" not in file.name)


async def test_a_file_of_25_mib_goes_in_and_comes_out_again(world: Api) -> None:
    """Source: row T08. As it comes in pieces, without a length."""
    data = os.urandom(UPLOAD_LIMIT_BYTES)
    answer = await put(world, in_pieces(a_file(data), 100_000))
    assert answer.status_code == 201, answer.text
    shown = answer.json()
    assert shown["sha256"] == hashlib.sha256(data).hexdigest() and shown["size"] == len(data)
    assert (shown["name"], shown["media_type"]) == ("a.txt", "text/plain")
    got = await world.ann.get(f"/api/artifacts/{shown['sha256']}")
    assert got.content == data and got.headers["content-disposition"].startswith("attachment")
    assert got.headers["x-content-type-options"] == "nosniff"
    events = [e for e in await world.here.events() if e.kind == "artifact_ref" and e.run == shown["run"]]
    assert (events[-1].payload or {})["sha256"] == shown["sha256"] and (events[-1].payload or {})["origin"] == "upload"


@pytest.mark.parametrize("sized", [True, False])
async def test_a_file_that_is_too_large_leaves_nothing(sized: bool, world: Api) -> None:
    before = kept_files(world)
    body = a_file(b"x" * (UPLOAD_LIMIT_BYTES + 1))
    answer = await put(world, body if sized else in_pieces(body, 1_000_000))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert kept_files(world) == before
    assert len((await world.ann.get("/api/artifacts")).json()["items"]) == 1, "the furniture's"


async def test_the_quota_is_looked_at_before_the_bytes_and_after_them(tmp_path: Path) -> None:
    settings = Settings(limits=LimitSettings(artifact_bytes_per_principal=1 << 20))
    async with api_world(tmp_path, settings=settings) as world:
        body = a_file(b"x" * (1 << 20))
        for sent in (body, in_pieces(body, 65_536)):
            answer = await put(world, sent)
            assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
        assert (await put(world, a_file(b"small"))).status_code == 201
        assert (await put(world, a_file(b"x" * 900_000), who=world.bob)).status_code == 201, "another's is another's"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
async def test_a_boundary_may_be_cut_anywhere(size: int, shared: Api) -> None:
    data = b"\r\n--\r\n--b\r\n--bb--\r\n" * 3 if size < 64 else b"\r\n--a" * 20_000
    data = data.replace(b"\r\n--b", b"\r\n-b")
    answer = await put(shared, in_pieces(a_file(data), size))
    assert answer.status_code == 201, answer.text
    assert (await shared.ann.get(f"/api/artifacts/{answer.json()['sha256']}")).content == data


@pytest.mark.asyncio(loop_scope="module")
async def test_the_end_of_a_large_file_may_come_in_two_pieces(shared: Api) -> None:
    """Pieces are passed on before the end is seen: none of them may hold the beginning of the boundary."""
    data = os.urandom(300_000)
    body = a_file(data)
    for cut in range(len(FILE) + len(data), len(body)):
        answer = await put(shared, in_two(body, cut))
        assert (answer.status_code, answer.json()["size"]) == (201, len(data)), cut


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "multipart/form-data; boundary=b"),
        (b"hello", "multipart/form-data; boundary=b"),
        (FILE + b"hello", "multipart/form-data; boundary=b"),
        (FILE + b"hello\r\n--b", "multipart/form-data; boundary=b"),
        (FILE + b"hello\r\n--b\r\n", "multipart/form-data; boundary=b"),
        (FILE + b"one\r\n" + FILE + b"two" + FILE_END, "multipart/form-data; boundary=b"),
        (a_file() + b"more", "multipart/form-data; boundary=b"),
        (b"x" + a_file(), "multipart/form-data; boundary=b"),
        (a_file().replace(b'name="file"', b'name="other"'), "multipart/form-data; boundary=b"),
        (a_file().replace(b"form-data", b"attachment"), "multipart/form-data; boundary=b"),
        (a_file().replace(b"Content-Type", b"Content-Disposition"), "multipart/form-data; boundary=b"),
        (a_file().replace(b"text/plain", b"t" * 10_000), "multipart/form-data; boundary=b"),
        (a_file().replace(b"a.txt", b"\xff"), "multipart/form-data; boundary=b"),
        (a_file(), "multipart/form-data"),
        (a_file(), "multipart/form-data; boundary="),
        (a_file(), "multipart/form-data; boundary=" + "b" * 71),
        (a_file(), "multipart/form-data; boundary=b; boundary=c"),
        (a_file(), "multipart/mixed; boundary=b"),
        (a_file(), "application/json"),
    ],
)
async def test_a_body_that_is_no_single_file_is_refused_and_leaves_nothing(body: bytes, kind: str, shared: Api) -> None:
    before = (await shared.ann.get("/api/artifacts")).json()
    answer = await shared.ann.post("/api/artifacts", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text
    assert (await shared.ann.get("/api/artifacts")).json() == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("name", "shown"),
    [("../../etc/passwd", "passwd"), ("C:\\\\x\\\\y.txt", "y.txt"), ("a\tb", "ab"), ("/", None), ("", None),
     ("n" * 300, "n" * 255), ("\u202egpj.exe", "gpj.exe"), ("ü.txt", "ü.txt")],
)  # fmt: skip
async def test_a_file_name_is_a_label_and_never_a_path(name: str, shown: str | None, shared: Api) -> None:
    body = a_file(os.urandom(8)).replace(b"a.txt", name.encode())
    answer = await put(shared, body)
    assert answer.status_code == 201 and answer.json()["name"] == shown
    got = await shared.ann.get(f"/api/artifacts/{answer.json()['sha256']}")
    assert "\n" not in got.headers["content-disposition"] and ".." not in got.headers["content-disposition"]


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing(world: Api) -> None:
    before = kept_files(world), len(await world.here.gateway.log.runs(limit=1000))
    ring_token = world.ann.headers["authorization"]
    async with world.here.http(ANN) as (base, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rpartition(":")[2]))
        head = (
            f"POST /api/artifacts HTTP/1.1\r\nHost: {base[7:]}\r\nAuthorization: {ring_token}\r\n"
            f"Content-Type: {FILE_TYPE['Content-Type']}\r\nContent-Length: 1000000\r\n\r\n"
        )
        writer.write(head.encode() + FILE + b"x" * 500_000)
        await writer.drain()
        writer.transport.abort()
        assert (await put(world, a_file(b"the next one"))).status_code == 201
    names = [one["name"] for one in (await world.ann.get("/api/artifacts")).json()["items"]]
    assert names == ["a.txt", "a.txt"] and kept_files(world) == before[0]
    assert reader is not None


async def test_a_list_of_artifacts_comes_in_pages_newest_first(world: Api) -> None:
    made = [(await put(world, a_file(b"%d" % number))).json()["sha256"] for number in range(5)]
    got: list[str] = []
    params: dict[str, str] = {"limit": "2"}
    while True:
        page = (await world.ann.get("/api/artifacts", params=params)).json()
        got += [one["sha256"] for one in page["items"]]
        if page["next"] is None:
            break
        params["cursor"] = page["next"]
    assert got == [*reversed(made), world.things["sha256"]]


async def test_erasing_the_run_takes_the_file_that_was_reported_in_it(world: Api) -> None:
    with eraser(world.here) as erasing:
        await asyncio.to_thread(lambda: erasing.erase(world.things["run"], reason="test"))
    assert (await world.ann.get(f"/api/artifacts/{world.things['sha256']}")).status_code == 404


async def test_one_caller_takes_only_so_many_files_at_once_however_slowly_it_reads(world: Api) -> None:
    """Each answer is held in memory until its client has taken it."""
    sha256 = world.things["sha256"]
    go_on, reading = asyncio.Event(), [asyncio.Event() for _ in range(FILES_PER_PRINCIPAL)]
    statuses: list[int] = []

    async def slow(number: int) -> None:
        async def receive() -> dict[str, Any]:
            await go_on.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                return
            reading[number].set()
            await go_on.wait()

        headers = [(b"host", b"127.0.0.1:6464"), (b"authorization", world.ann.headers["Authorization"].encode())]
        scope = {"type": "http", "method": "GET", "path": f"/api/artifacts/{sha256}", "query_string": b"",
                 "headers": headers, "server": ("127.0.0.1", 6464)}  # fmt: skip
        await world.here.gateway.http_app(scope, receive, send)

    readers = [asyncio.create_task(slow(number)) for number in range(FILES_PER_PRINCIPAL)]
    try:
        for one in reading:
            await asyncio.wait_for(one.wait(), WAIT_S)
        refused = await world.ann.get(f"/api/artifacts/{sha256}")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert (await world.bob.get(f"/api/artifacts/{sha256}")).status_code == 404, "another is not kept waiting"
    finally:
        go_on.set()
        await asyncio.gather(*readers, return_exceptions=True)
    assert statuses == [200] * FILES_PER_PRINCIPAL
    assert (await world.ann.get(f"/api/artifacts/{sha256}")).status_code == 200
