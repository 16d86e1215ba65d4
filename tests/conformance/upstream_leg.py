"""What the suite's client scenarios start: a gateway in front of the suite's server, and one client that uses it all.

    python -m tests.conformance.upstream_leg http://localhost:PORT/mcp

The suite judges what reaches its server, which is the gateway's side towards servers. The client is one of the tests'
own: it calls each tool once, gets each prompt and reads each resource, and answers questions with their defaults.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from omni_mcp.config import Settings
from omni_mcp.server_definition import ServerDefinition
from omni_mcp.testing import ALLOW_ALL, home_in, write_private
from tests.matrix.caller import Json, Refused
from tests.matrix.client import MODERN, Client
from tests.matrix.front import in_front_of
from tests.matrix.roads import LinesRoad

SERVER = "suite"
PREFIX = f"{SERVER}__"
SAMPLES: dict[str, Any] = {"number": 2, "integer": 2, "string": "text", "boolean": True, "array": [], "object": {}}


async def use_everything(client: Client, given: list[Json]) -> None:
    """Use everything that the server offers. A refusal is an answer like any other: the suite judges.

    One scenario gives null for an argument that its schema says is a boolean, and judges it like one that is left out.
    The gateway lets no call through that does not fit its schema, so it is left out.
    """
    calls = {call["name"]: call["arguments"] for call in given}
    for tool in await client.listed("tools"):
        if tool["name"].startswith(PREFIX):
            arguments = calls.get(tool["name"].removeprefix(PREFIX), sample_of(tool["inputSchema"]))
            arguments = {name: value for name, value in arguments.items() if value is not None}
            with suppress(Refused):
                await client.call(tool["name"], arguments)
    for prompt in await client.listed("prompts"):
        with suppress(Refused):
            await client.request("prompts/get", {"name": prompt["name"]})
    for resource in await client.listed("resources"):
        with suppress(Refused):
            await client.request("resources/read", {"uri": resource["uri"]})


def sample_of(schema: Json) -> Json:
    """Return arguments that fit the required members of a simple schema."""
    properties = schema.get("properties", {})
    return {name: SAMPLES.get(properties[name].get("type"), "text") for name in schema.get("required", ())}


def consent(params: Json) -> Json:
    """Accept a form: each field with its default, or with a sample."""
    fields = params["requestedSchema"].get("properties", {})
    content = {name: field.get("default", SAMPLES.get(field.get("type"), "text")) for name, field in fields.items()}
    return {"action": "accept", "content": content}


async def run(url: str) -> None:
    """Open the gateway, let the client loose, and leave."""
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    version = os.environ.get("MCP_CONFORMANCE_PROTOCOL_VERSION", MODERN)
    with tempfile.TemporaryDirectory(prefix="omni-l-") as place:
        home = home_in(Path(place))
        write_private(home.policies / "test.cedar", ALLOW_ALL)
        servers = {SERVER: ServerDefinition(url=url)}
        async with in_front_of(servers, Settings(), home) as (gateway, _):
            client = Client(version, LinesRoad(gateway))
            client.answers["elicitation/create"] = consent
            await client.open()
            try:
                await use_everything(client, context.get("toolCalls", []))
            finally:
                await client.close()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[-1]))
