"""One tool published in each of the four ways: a client cannot tell them apart, and the record shows the same steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from omni_mcp.contracts.call import Answer, Call, Result
from omni_mcp.testing import ALLOW_ALL, Canary, LocalGateway, local_gateway, write_private
from tests.egress_policy.sandbox_double import grant
from tests.matrix.test_operator import accept_all, listing_of
from tests.openapi.world import Origin, answer, document, operation, settings_in
from tests.upstream.servers.web import Asked, modern, web_server

pytestmark = [pytest.mark.usefixtures("cells"), pytest.mark.sandbox]
SCHEMA = {"type": "object", "properties": {"words": {"type": "integer"}}, "required": ["words"]}
WORDS = {"words": 3}
RESULT: dict[str, Any] = {
    "content": [{"type": "text", "text": '{"words":3}'}], "structuredContent": WORDS, "isError": False,
}  # fmt: skip
MANIFEST = """manifest: 1
id: count
version: 1.0.0
title: Count words
description: Count the words of a text.
input_schema: {type: object}
output_schema: {type: object, properties: {words: {type: integer}}, required: [words]}
binding: {kind: sandbox_job, entry_point: "count:count"}
side_effects: none
labels: {read_only: true, destructive: false, egress: false, reads_private: false, reads_untrusted: false}
"""
NAMES = ["canary__count", "lab__count", "up__count", "shop__count"]


async def in_process(call: Call) -> Result:
    return Answer(body=RESULT)


async def upstream(asked: Asked) -> None:
    await asked.result({**RESULT, "resultType": "complete"})


async def events_of(here: LocalGateway, name: str) -> list[str]:
    events = await here.events()
    [call] = [event.call for event in events if event.kind == "tool_call" and (event.payload or {})["name"] == name]
    return [event.code or event.kind for event in events if event.call == call and event.code != "egress_connection"]


async def test_the_same_tool_in_four_bindings_gives_equal_results_and_equal_events(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "touched", binding="inproc_safe")
    canary.tool("count", in_process, schema={"type": "object"})
    paths = {"/count": {"post": operation(operationId="count")}}
    tools = [{"name": "count", "inputSchema": {"type": "object"}, "outputSchema": SCHEMA}]
    async with (
        Origin(reply=lambda asked: answer(json.dumps(WORDS))).listening() as origin,
        web_server(modern(upstream, tools=tools)) as server,
    ):
        toml = (
            f'[servers.up]\nurl = "{server.url}"\n'
            f'[openapi.shop]\ndocument = "api.json"\nbase_url = "{origin.url}"\nresult = "body"\n'
        )
        settings = settings_in(tmp_path, toml, api=document(paths))
        place = tmp_path / "home" / "manifests" / "lab"
        place.mkdir(mode=0o700)
        write_private(place / "count.yaml", MANIFEST)
        write_private(place / "count.py", f"def count(arguments):\n    return {WORDS}\n")
        async with local_gateway(ALLOW_ALL, settings=settings, canary=canary, directory=tmp_path) as here:
            accept_all(here.home, await listing_of(here.home, "up"))
            await here.gateway.reload_lock()
            await grant(here, "shop__*", "--host", f"127.0.0.1:{origin.port}", "--any-definition")
            async with here.client() as client:
                results = [await client.call(name) for name in NAMES]
            steps = [await events_of(here, name) for name in NAMES]

    for result in results:
        result.pop("_meta", None)
    assert [orjson.dumps(result, option=orjson.OPT_SORT_KEYS) for result in results] == [
        orjson.dumps({**RESULT, "resultType": "complete"}, option=orjson.OPT_SORT_KEYS)
    ] * 4
    assert steps == [["tool_call", "policy_decided", "tool_result"]] * 4
