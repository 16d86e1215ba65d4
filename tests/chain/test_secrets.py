"""A registered secret is in no answer and in no file of the gateway, whichever way it came and however written."""

from __future__ import annotations

import base64
import json
import os
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import orjson

from omni_mcp.config import Settings
from omni_mcp.contracts.call import Answer, Call, InputRequired, Result
from omni_mcp.contracts.errors import UpstreamProtocol
from omni_mcp.contracts.manifest import Limits
from omni_mcp.engines.identity.keys import mint_first_token
from omni_mcp.paths import make_private_dir
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway, error_of, home_in, local_gateway

SECRET = 'S3cr3t "value"/with+odd&chars?é-4711'
RAW = SECRET.encode()
FORMS = {
    "as it is": SECRET,
    "base64": base64.b64encode(RAW).decode(),
    "base64 for URLs": base64.urlsafe_b64encode(RAW).decode(),
    "base64 of a header": base64.b64encode(b"user:" + RAW).decode(),
    "hex": RAW.hex(),
    "HEX": RAW.hex().upper(),
    "for a URL": urllib.parse.quote(SECRET, safe=""),
    "for a form": urllib.parse.quote_plus(SECRET),
    "in JSON": json.dumps(SECRET)[1:-1],
}
# What to look for: the forms, without the edges that base64 shares with its neighbours.
NEEDLES = [form[8:-4] if name.startswith("base64") else form for name, form in FORMS.items()]
TOOLS = ("echo", "structured", "reports", "raises", "breaks", "asks", "large", "talks")


def given(call: Call) -> str:
    return str(call.arguments.get("form", ""))


async def echo(call: Call) -> Result:
    return Answer(body={"content": [{"type": "text", "text": f"<{given(call)}>"}]}, where="remote")


async def structured(call: Call) -> Result:
    nested = {"list": [{given(call): given(call)}], "_x": given(call)}
    return Answer(body={"content": [], "structuredContent": nested, "_meta": {"note": given(call)}}, where="remote")


async def reports(call: Call) -> Result:
    body = {"content": [{"type": "text", "text": f"failed with {given(call)}"}], "isError": True}
    return Answer(body=body, is_error=True, where="remote", usage={"said": given(call)})


async def raises(call: Call) -> Result:
    raise UpstreamProtocol(f"it said {given(call)}", detail=f"and more: {given(call)}", data={"line": given(call)})


async def breaks(call: Call) -> Result:
    raise RuntimeError(f"a fault with {given(call)}")


async def asks(call: Call) -> Result:
    question = {"mode": "form", "message": f"{given(call)}?", "requestedSchema": {"type": "object", "properties": {}}}
    return InputRequired(requests={"sure": {"method": "elicitation/create", "params": question}})


async def large(call: Call) -> Result:
    text = f"{given(call)} " * 4000
    return Answer(body={"content": [{"type": "text", "text": text}]}, where="remote")


async def talks(call: Call) -> Result:
    await call.link.progress(1, 2, f"at {given(call)}")
    await call.link.log("error", {"said": given(call)}, given(call))
    return Answer(body={"content": []}, where="remote")


@dataclass(slots=True)
class Guarded:
    """A gateway that may or may not know the secret, and everything that was said to clients."""

    here: LocalGateway
    said: list[Any]


@asynccontextmanager
async def guarded(directory: Path, *, registered: bool) -> AsyncIterator[Guarded]:
    """Send the secret in each form to each tool, in arguments that do not fit, in names, URIs, headers and messages."""
    canary = Canary(directory / "touched")
    for tool, behaviour in zip(TOOLS, (echo, structured, reports, raises, breaks, asks, large, talks), strict=True):
        canary.tool(tool, behaviour, limits=Limits(output_limit_bytes=32 * 1024))
    canary.tool("typed", schema={"type": "object", "properties": {"form": {"type": "integer"}}})
    place = directory / "secret.txt"
    place.write_text(SECRET)
    settings = Settings(secrets={"token": f"file:{place}"} if registered else {})
    async with local_gateway(ALLOW_ALL, canary=canary, settings=settings, directory=directory, cells=False) as here:
        found = Guarded(here, [])
        for form in FORMS.values() if registered else [SECRET, FORMS["HEX"]]:
            await say(found, form)
        yield found


async def say(found: Guarded, form: str) -> None:
    """Say one form in every place, over lines and over HTTP."""
    async with (
        found.here.client(version="2025-11-25", capabilities={"elicitation": {}}, answer=found_answer) as old,
        found.here.client(capabilities={"elicitation": {}}) as new,
    ):
        for client in (old, new):
            for tool in (*TOOLS, "typed"):
                params = {"name": f"canary__{tool}", "arguments": {"form": form}, "_meta": {"progressToken": 1}}
                found.said.append(await client.request("tools/call", params))
            found.said.append(await client.request("resources/read", {"uri": f"note://{form}"}))
        found.said += old.notifications
    async with (
        found.here.http() as (base, _),
        httpx2.AsyncClient(base_url=base) as http,
    ):
        quoted = urllib.parse.quote(form)
        for headers in ({"Authorization": f"Bearer {quoted}"}, {"X-API-Key": quoted}, {"X-Note": quoted}):
            answer = await http.post(f"/mcp?token={quoted}", json={"id": quoted}, headers=headers)
            found.said.append(answer.text)


def found_answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"action": "decline"}


def leaks(text: str) -> list[str]:
    """Return which forms stand in *text*, or in a string of it if it is JSON."""
    return sorted(needle for needle in NEEDLES if needle in text)


def strings_of(value: Any) -> str:
    """Every key and string of a JSON value, so that JSON's own escapes hide nothing."""
    if isinstance(value, dict):
        return "\n".join(strings_of(part) for item in value.items() for part in item)
    if isinstance(value, list):
        return "\n".join(strings_of(item) for item in value)
    return str(value)


async def test_a_registered_secret_is_in_no_answer_and_in_no_file(tmp_path: Path) -> None:
    async with guarded(tmp_path, registered=True) as found:
        assert len(found.said) > 150
        for said in found.said:
            shown = said
            if isinstance(said, dict) and error_of(said).get("code") in ("invalid_arguments", "policy_denied"):
                continue  # refused before anything ran: these repeat what the caller itself just sent
            assert leaks(strings_of(shown)) == [], said
            assert leaks(orjson.dumps(shown).decode()) == [], said
    assert files_with_leaks(found.here.home.data) == []


async def test_the_search_finds_a_secret_that_nobody_registered(tmp_path: Path) -> None:
    async with guarded(tmp_path, registered=False) as found:
        assert len([said for said in found.said if leaks(strings_of(said))]) >= 30
    assert any("runlog.db" in name for name in files_with_leaks(found.here.home.data))


async def test_the_gateways_own_token_is_masked_like_any_secret(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    make_private_dir(home.data)
    assert mint_first_token(home.keys_file, home.token_file, uid=os.getuid())
    token = home.token_file.read_text().strip()
    canary = Canary(tmp_path / "touched")
    canary.tool("echo", echo)
    async with (
        local_gateway(ALLOW_ALL, canary=canary, directory=tmp_path, cells=False) as here,
        here.client() as client,
    ):
        answers = [
            await client.call("canary__echo", {"form": form}) for form in (f"it is {token}!", token.encode().hex())
        ]
    said = [answer["content"][0]["text"] for answer in answers]
    assert said == ["<it is [masked:omni-mcp token]!>", "<[masked:omni-mcp token]>"]
    left = [file for file in home.data.rglob("*") if file.is_file() and token.encode() in file.read_bytes()]
    assert left == [home.token_file]


def files_with_leaks(directory: Path) -> list[str]:
    """Return the files below *directory* in whose bytes a form of the secret stands."""
    needles = [needle.encode() for needle in NEEDLES] + [json.dumps(SECRET, ensure_ascii=False)[1:-1].encode()]
    return [
        str(file.relative_to(directory))
        for file in sorted(directory.rglob("*"))
        if file.is_file() and any(needle in file.read_bytes() for needle in needles)
    ]
