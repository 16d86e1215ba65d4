"""One who knows every id, name and number of another's learns nothing by them: generated over what the gateway offers.

Each tool, template, completion and subscription is tried by bob with a thing of ann's, and by carl, who is alone in his
project and does all else as bob does, with one that never was. Both get the same, and no word of hers. What the gateway
offers tomorrow is tried tomorrow.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from omni_mcp.config import ApprovalSettings, LimitSettings, Settings
from omni_mcp.contracts.call import Answer, Call, Principal
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Labels
from omni_mcp.testing import ALLOW_ALL, ANN, BOB, Canary, LocalGateway, MemoryClient, error_of, local_gateway
from tests.waiting import until

OWN = ("runs", "memory", "messages")
UPDATED = "notifications/resources/updated"
VERSIONS = ("2025-11-25", "2026-07-28")
CARL = Principal(kind="User", id="carl", project="elsewhere")
WORD = "quincetree"  # in every text of ann's
LARGE = f"{WORD} and a pear " * 8000
DESTROYS = Labels(read_only=False, destructive=True, egress=False, reads_private=False, reads_untrusted=False)
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
HEX = re.compile(r"[0-9a-f]{32,64}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
REQUIRED: JsonObject = {  # what a tool must be given besides what is tried, so that it gets as far as it can
    "query": "tree", "text": "a text of bob's", "kind": "user_message", "run": "run", "call": "call", "seq": 2,
    "artifact": "sha256", "id": "item",
}  # fmt: skip
GUESSED = {"seq": (1, 2, 3, 5), "after": (1, 2), "expected_version": (1, 2)}


@dataclass
class Things:
    """What ann has, by kind; and the like of it that nobody has."""

    hers: dict[str, str] = field(default_factory=dict)
    nobodys: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, value: str) -> None:
        self.hers[kind] = value
        named_by_us = HEX.fullmatch(value) or ID.fullmatch(value)
        beside = value[:-1] + ("0" if value[-1] != "0" else "1")  # where a list is cut at it, it is cut alike
        self.nobodys[kind] = beside if named_by_us else value[::-1]

    def pairs(self) -> Iterator[tuple[str, str, str]]:
        for kind, value in self.hers.items():
            yield kind, value, self.nobodys[kind]


@asynccontextmanager
async def gateway(directory: Path) -> AsyncIterator[LocalGateway]:
    canary = Canary(directory / "touched")

    async def large(call: Call) -> Answer:
        return Answer(body={"content": [{"type": "text", "text": LARGE}], "isError": False}, where="remote")

    canary.tool("echo")
    canary.tool("large", large)
    canary.tool("break", labels=DESTROYS)
    settings = Settings(
        approvals=ApprovalSettings(wait_s=0, open_per_principal=10_000, open_in_all=20_000),
        limits=LimitSettings(calls_per_minute=1_000_000),
    )
    async with local_gateway(ALLOW_ALL, settings=settings, canary=canary, directory=directory) as here:
        yield here


async def furnished(here: LocalGateway, ann: MemoryClient) -> Things:
    """Give ann one of everything; returns all that names it."""
    things = Things()
    things.add("run", str(ann.run))
    await ann.call("messages__say", {"kind": "user_message", "text": f"where is the {WORD}?", "author": WORD})
    for scope in ("agent", "user", "run"):
        facts = {"key": f"{WORD}-key", "subject": f"{WORD}-subject", "session": f"{WORD}-session", "tags": [WORD]}
        made = await ann.call("memory__remember", {"text": f"{WORD} in {scope}", "scope": scope, **facts})
        things.add("item" if scope == "agent" else f"{scope} item", made["structuredContent"]["id"])
    for name in ("key", "subject", "session"):
        things.add(name, f"{WORD}-{name}")
    await ann.call("canary__large")
    [event] = [event for event in await here.events() if (event.payload or {}).get("artifact")]
    things.add("sha256", (event.payload or {})["artifact"]["sha256"])
    things.add("call", str(event.call))
    refused = error_of(await ann.call("canary__break", {"word": WORD}))
    things.add("waiting call", refused["call"])
    things.add("approval", refused["data"]["approval"])
    await here.gateway.log.flush_index()
    return things


@asynccontextmanager
async def around(directory: Path, version: str) -> AsyncIterator[tuple[MemoryClient, MemoryClient, Things]]:
    """Open bob and carl, who have runs and items from before and from after ann's; she is still there."""
    async with gateway(directory) as here, AsyncExitStack() as stack:

        async def come(who: Principal, version: str) -> MemoryClient:
            client = await stack.enter_async_context(here.client(version=version, principal=who))
            if who is not ANN:
                await client.call("messages__say", {"kind": "user_message", "text": "a word"})
                await client.call("memory__remember", {"text": "a fact of their own"})
            return client

        for who in (BOB, CARL):
            await come(who, VERSIONS[0])
        things = await furnished(here, await come(ANN, VERSIONS[0]))
        yield await come(BOB, version), await come(CARL, version), things


def tries(tool: JsonObject, things: Things) -> Iterator[tuple[str, JsonObject, JsonObject]]:
    """Yield (what is tried, arguments with ann's, arguments with nobody's) for every place of *tool*."""
    schema = tool["inputSchema"]
    needed = {name: REQUIRED.get(name, "x") for name in schema.get("required") or ()}
    if tool["name"] == "memory__promote":
        needed = {"run": "run", "seq": 2}

    def named(kinds: JsonObject, values: dict[str, str]) -> JsonObject:
        return {name: values.get(str(value), value) for name, value in kinds.items()}

    own = [{}, {"run": "call"}] if "run" in needed else [{}]
    for other in own:
        base = {**needed, **other}
        yield str(base), named(base, things.hers), named(base, things.nobodys)
    for name, facts in schema.get("properties", {}).items():
        kinds = facts.get("type")
        for value in GUESSED.get(name, ()):
            sides = [named({**needed, name: value}, side) for side in (things.hers, things.nobodys)]
            yield f"{name}={value}", sides[0], sides[1]
        for kind, one, other_one in things.pairs():
            values: list[tuple[Any, Any]] = []
            if kinds == "string" or (isinstance(kinds, list) and "string" in kinds):
                values.append((one, other_one))
                if name == "artifact":
                    values.append((f"artifact://{one}", f"artifact://{other_one}"))
            elif kinds == "array" and facts["items"].get("type") == "string":
                values.append(([one], [other_one]))
            for hers, nobodys in values:
                yield (
                    f"{name}={kind}",
                    {**named(needed, things.hers), name: hers},
                    {**named(needed, things.nobodys), name: nobodys},
                )


def bare(reply: JsonObject, values: dict[str, str]) -> str:
    """A reply without what any two replies differ in: who asks, what of, ids, digests, times and numbers."""
    text = orjson.dumps(reply["result"] if "result" in reply else reply["error"]).decode()
    for kind, value in sorted(values.items(), key=lambda pair: -len(pair[1])):
        text = text.replace(value, f"<{kind}>")
    text = TIME.sub("<time>", HEX.sub("<hex>", ID.sub("<id>", text)))
    text = re.sub(r"<[a-z ]+>", "<name>", text.replace(CARL.id, BOB.id).replace(CARL.project, BOB.project))
    return re.sub(r"\d+(\.\d+)?", "<number>", text)


def uris(templates: list[JsonObject], values: dict[str, str]) -> Iterator[str]:
    """Yield every URI that the templates make of ann's names, each in each place."""
    for template in templates:
        text = str(template["uriTemplate"])
        for value in values.values():
            for seq in ("2", "1", value) if "{seq}" in text else ("",):
                yield re.sub(r"\{(?!seq)\w+\}", value, text).replace("{seq}", seq)


@pytest.mark.parametrize("version", [pytest.param(VERSIONS[0], marks=pytest.mark.long), *VERSIONS[1:]])
async def test_every_tool_tells_of_anothers_things_what_it_tells_of_nobodys(version: str, tmp_path: Path) -> None:
    async with around(tmp_path, version) as (bob, carl, things):
        tools = [tool for tool in await bob.listed("tools") if tool["name"].split("__")[0] in (*OWN, "tools")]
        tried = 0
        for tool in tools:
            server = tool["name"].split("__")[0]
            if server == "tools" and "artifact" not in tool["inputSchema"].get("properties", {}):
                continue  # takes no name of anything that is kept here
            for what, hers, nobodys in tries(tool, things):
                replies = [
                    await client.request("tools/call", {"name": tool["name"], "arguments": arguments})
                    for client, arguments in ((bob, hers), (carl, nobodys))
                ]
                told = [bare(reply, side) for reply, side in zip(replies, (things.hers, things.nobodys), strict=True)]
                assert told[0] == told[1], (tool["name"], what)
                assert WORD not in told[0], (tool["name"], what)
                tried += 1
        assert tried > 200
        assert {tool["name"].split("__")[0] for tool in tools} == {*OWN, "tools"}


async def test_the_same_tries_tell_ann_of_her_own_things(tmp_path: Path) -> None:
    """Else the ones above would prove nothing."""
    async with gateway(tmp_path) as here, here.client(version=VERSIONS[0]) as ann:
        things = await furnished(here, ann)
        told = set()
        for tool in await ann.listed("tools"):
            if tool["name"].split("__")[0] not in OWN or tool["name"] in ("memory__forget", "memory__revise"):
                continue
            for _, hers, nobodys in tries(tool, things):
                asked = [{"name": tool["name"], "arguments": arguments} for arguments in (hers, nobodys)]
                answers = [await ann.request("tools/call", one) for one in asked]
                if bare(answers[0], things.hers) != bare(answers[1], things.nobodys):
                    told.add(tool["name"])
                    break
        assert told >= {
            "memory__list", "memory__promote", "memory__recall", "memory__share", "runs__explain", "runs__influence",
            "runs__list", "runs__read", "runs__runtime_query", "runs__search", "runs__why", "runs__why_refused",
        }  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
async def test_no_uri_completion_subscription_or_list_tells_of_anothers_things(version: str, tmp_path: Path) -> None:
    async with around(tmp_path, version) as (bob, carl, things):
        listed = [await bob.listed(what) for what in ("tools", "resources", "resources/templates", "prompts")]
        shown = [await bob.call(f"{name}") for name in ("runs__list", "memory__list", "runs__runtime_query")]
        text = orjson.dumps([listed, shown]).decode()
        assert WORD not in text and not [kind for kind, one in things.hers.items() if one in text]
        templates = await bob.listed("resources/templates")
        assert {str(one["uriTemplate"]).split(":")[0] for one in templates} == {"run", "memory", "artifact"}
        methods = ["resources/read"] + ([] if bob.modern else ["resources/subscribe", "resources/unsubscribe"])
        for method in methods:
            for one, other in zip(uris(templates, things.hers), uris(templates, things.nobodys), strict=True):
                replies = [await client.request(method, {"uri": uri}) for client, uri in ((bob, one), (carl, other))]
                told = [bare(reply, side) for reply, side in zip(replies, (things.hers, things.nobodys), strict=True)]
                assert told[0] == told[1], (method, one)
                assert WORD not in told[0], (method, one)
        for template in templates:
            for name in re.findall(r"\{(\w+)\}", str(template["uriTemplate"])):
                for value in ["", *(value[:4] for value in things.hers.values()), *things.hers.values()]:
                    asked = {
                        "ref": {"type": "ref/resource", "uri": template["uriTemplate"]},
                        "argument": {"name": name, "value": value},
                    }
                    reply = orjson.dumps(await bob.request("completion/complete", asked)).decode()
                    assert not [one for one in things.hers.values() if one in reply and one != value], asked


async def test_nothing_that_another_does_wakes_a_subscriber(tmp_path: Path) -> None:
    """Bob listens for all that he may name, and for each thing of ann's; then she reads, writes and forgets."""
    async with (
        gateway(tmp_path) as here, here.client(version=VERSIONS[0]) as ann,
        here.client(version=VERSIONS[0], principal=BOB) as bob,
        here.client(version=VERSIONS[1], principal=BOB) as modern,
    ):  # fmt: skip
        things = await furnished(here, ann)
        wanted = ["memory://latest", "run://latest", f"run://{bob.run}"]
        wanted += list(uris(await bob.listed("resources/templates"), things.hers))
        for uri in wanted:
            await bob.request("resources/subscribe", {"uri": uri})
            await ann.request("resources/subscribe", {"uri": uri})
        await modern.start("subscriptions/listen", {"notifications": {"resourceSubscriptions": wanted}})
        await until(lambda: modern.notifications)  # the first one says what it listens to from now on
        await bob.call("memory__remember", {"text": "his own"})
        await until(lambda: any(note["method"] == UPDATED for note in modern.notifications))
        before = len(bob.notifications), len(modern.notifications)
        item = things.hers["item"]
        await ann.call("memory__revise", {"id": item, "text": f"{WORD} moved"})
        await ann.call("memory__recall", {"query": WORD})
        assert error_of(await ann.call("memory__forget", {"id": item}))["code"] == "approval_pending"
        here.answer(True)
        assert not (await ann.call("memory__forget", {"id": item}))["isError"]
        await until(lambda: any(note["params"].get("uri") == f"memory://{item}" for note in ann.notifications))
        await bob.call("memory__remember", {"text": "his own again"})  # what was on its way before it has come by now
        heard = [*bob.notifications[before[0] :], *modern.notifications[before[1] :]]
        named = {note["params"].get("uri") for note in heard if note["method"] == UPDATED}
        assert named <= {"memory://latest", "run://latest", f"run://{bob.run}"}
        text = orjson.dumps([*bob.notifications, *modern.notifications]).decode()
        assert not [kind for kind, one in things.hers.items() if one in text]


async def test_the_same_bytes_of_two_principals_are_two_artifacts(tmp_path: Path) -> None:
    """They have one digest and lie on the disk once; neither learns of the other's, and one stays when one goes."""
    async with (
        gateway(tmp_path) as here, here.client(version=VERSIONS[0]) as ann,
        here.client(version=VERSIONS[0], principal=BOB) as bob,
    ):  # fmt: skip
        things = await furnished(here, ann)
        sha256 = things.hers["sha256"]
        before = await bob.call("runs__why", {"artifact": sha256})
        await bob.call("canary__large")
        after = await bob.call("runs__why", {"artifact": sha256})
        text = orjson.dumps(after).decode()
        assert before["isError"] and not after["isError"]
        assert not [kind for kind, one in things.hers.items() if one in text and kind != "sha256"]
        assert things.hers["run"] not in text and ANN.key not in text.replace("\\", "")
