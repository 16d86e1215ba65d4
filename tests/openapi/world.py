"""A server of the tests on loopback, documents that name it, and a gateway that has their operations as tools."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni_mcp.config import Settings, load_settings
from omni_mcp.contracts.errors import Problem
from omni_mcp.contracts.openapi import OpenApiSettings
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.schemas import JsonSchemas
from omni_mcp.engines.openapi.source import OpenApiSource
from omni_mcp.paths import bundled
from omni_mcp.testing import ALLOW_ALL, LocalGateway, MemoryClient, home_in, local_gateway, write_private
from tests.egress_policy.sandbox_double import grant

DOCUMENTS = Path(__file__).parent / "documents"
PETSTORE = (DOCUMENTS / "petstore.yaml").read_text("utf-8")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as it arrived. Header names are in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def target(self) -> str:
        return self.line.split()[1]


def answer(body: bytes | str = b"", *, status: int = 200, kind: str = "application/json", **headers: str) -> bytes:
    """Return a whole response."""
    data = body.encode() if isinstance(body, str) else body
    fields = {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Some\r\n{lines}Content-Length: {len(data)}\r\n\r\n".encode("latin-1") + data


@dataclass
class Origin:
    """Answers each request as `reply` says and keeps what it was asked.

    It never answers while it is `silent`, and closes no connection by itself while it `stalls`.
    """

    reply: Callable[[Asked], bytes] = lambda asked: answer("{}")
    asked: list[Asked] = field(default_factory=list)
    port: int = 0
    silent: bool = False
    stalls: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Origin]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in fields)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.asked.append(Asked(line=line, headers=headers, body=body))
        if self.silent:
            await reader.read()  # until the other side has enough
        writer.write(self.reply(self.asked[-1]))
        await writer.drain()
        if self.stalls:
            await reader.read()
        writer.close()


def document(paths: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a document of version 3.1 with these *paths*."""
    return {
        "openapi": "3.1.0", "info": {"title": "Odd", "version": "1.0.0"}, "servers": [{"url": "https://odd.example/v1"}],
        "paths": paths, **more,
    }  # fmt: skip


def operation(*parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return an operation with these *parameters*."""
    return {"parameters": list(parameters), "responses": {"200": {"description": "Well."}}, **more}


def source_of(
    place: Path,
    text: str | dict[str, Any],
    *,
    left_out: list[Problem] | None = None,
    name: str = "api.yaml",
    **settings: Any,
) -> OpenApiSource:
    """Return the source of a document that is written to *place*."""
    file = write_private(place / name, text if isinstance(text, str) else json.dumps(text))
    return OpenApiSource(
        "shop", OpenApiSettings(document=str(file), **settings), file=file, code=bundled("sandbox") / "tools",
        refusals=JsonSchemas().refusals, left_out=(left_out if left_out is not None else []).extend,
    )  # fmt: skip


def tools_of(place: Path, text: str | dict[str, Any], **more: Any) -> dict[str, Entry]:
    """Return the tools of a document, by name."""
    return {entry.name: entry for entry in source_of(place, text, **more).load()}


def settings_in(place: Path, text: str, **documents: str | dict[str, Any]) -> Settings:
    """Write omni.toml and documents beside it; returns the settings."""
    home = home_in(place)
    for name, document_text in documents.items():
        written = document_text if isinstance(document_text, str) else json.dumps(document_text)
        write_private(home.config / f"{name}.{'yaml' if isinstance(document_text, str) else 'json'}", written)
    return load_settings(write_private(home.settings_file, text))


@asynccontextmanager
async def a_shop(
    place: Path,
    text: str | dict[str, Any] = PETSTORE,
    *,
    toml: str = "",
    prefix: str = "/v2",
    origin: Origin | None = None,
) -> AsyncIterator[tuple[LocalGateway, MemoryClient, Origin]]:
    """Open a gateway whose server `shop` has the operations of a document, all granted, at a server of the tests."""
    kind = "yaml" if isinstance(text, str) else "json"
    async with (origin or Origin()).listening() as listening:
        words = f'[openapi.shop]\ndocument = "api.{kind}"\nbase_url = "{listening.url}{prefix}"\n'
        words = f"[approvals]\nwait_s = 0.02\n{words}"
        settings = settings_in(place, words + toml, api=text)
        async with local_gateway(ALLOW_ALL, settings=settings, directory=place) as here, here.client() as client:
            await grant(here, "shop__*", "--host", f"127.0.0.1:{listening.port}", "--any-definition")
            yield here, client, listening
