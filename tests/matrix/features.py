"""The features of the protocol, each as what a client does and sees through the gateway; a failure is an exception."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.matrix.caller import LIMIT_S, Caller, Refused
from tests.matrix.client import META
from tests.matrix.pairs import Pair

STATIC, WATCHED = "test://static", "test://watched"
_NUMBERS = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Cell:
    """One client, connected, and one server that it reaches."""

    pair: Pair
    client: Caller
    watch: Callable[[str], Awaitable[None]] = field(repr=False)

    def tool(self, name: str) -> str:
        """Return a tool's public name."""
        return f"{self.pair.server.name}__{name}"

    async def uri(self, uri: str) -> str:
        """Return a resource's public URI: its own, unless another server has one of that name too."""
        marked = f"omni+{self.pair.server.name}+"
        listed = {one["uri"] for one in await self.client.listed("resources")}
        return marked + uri if marked + STATIC in listed else uri

    async def text(self, tool: str, arguments: Any = None, **meta: Any) -> str:
        """Call a tool and return the text that it answers."""
        result = await self.client.call(self.tool(tool), arguments, **meta)
        return str(result["content"][0]["text"])


async def tool_call(cell: Cell) -> None:
    """A call is answered, with its arguments."""
    mark = f"mark {next(_NUMBERS)}"
    result = await cell.client.call(cell.tool("echo"), {"text": mark})
    assert result["content"][0]["text"] == mark and not result.get("isError"), result


async def tool_error(cell: Cell) -> None:
    """A tool's own failure is a result that says so."""
    result = await cell.client.call(cell.tool("fail"))
    assert result["isError"] is True and result["content"][0]["text"] == "fail", result


async def server_error(cell: Cell) -> None:
    """A server's JSON-RPC error reaches the model, with its code."""
    result = await cell.client.call(cell.tool("refuse"))
    assert result["isError"] is True and "-32050" in result["content"][0]["text"], result


async def progress(cell: Cell) -> None:
    """Three steps come in order, under the client's own token, before the answer."""
    token = f"token-{next(_NUMBERS)}"
    await cell.text("progress", progressToken=token)
    found = [told for told in cell.client.heard("notifications/progress") if told["progressToken"] == token]
    assert [told["progress"] for told in found] == [1, 2, 3] and found[0]["total"] == 3, found


async def log(cell: Cell) -> None:
    """A message that a server logs during a call comes before the call's answer."""
    cell.client.notes.clear()
    meta = {META + "logLevel": "debug"} if cell.client.modern else {}
    await cell.text("log", **meta)
    [told] = cell.client.heard("notifications/message")
    assert told["data"] == {"said": "hello"} and told["level"] == "info" and told["logger"] == "matrix", told


async def cancel(cell: Cell) -> None:
    """The server hears that nobody waits for its answer any more."""
    mark, token = f"cancel-{next(_NUMBERS)}", f"token-{next(_NUMBERS)}"
    begun = await cell.client.begin(cell.tool("hang"), {"mark": mark}, progressToken=token)
    await cell.client.until(
        lambda: any(told["progressToken"] == token for told in cell.client.heard("notifications/progress"))
    )
    await cell.client.cancel(begun)
    async with asyncio.timeout(LIMIT_S):
        while mark not in await cell.text("cancelled"):
            pass


def _elicitation(action: str) -> Callable[[Cell], Awaitable[None]]:
    async def elicitation(cell: Cell) -> None:
        content = {"content": {"name": "Ada"}} if action == "accept" else {}
        cell.client.answers["elicitation/create"] = {"action": action, **content}
        said = await cell.text("ask")
        assert said == ("accept Ada" if action == "accept" else action), said

    return elicitation


async def sampling(cell: Cell) -> None:
    """What the client's model says reaches the tool that asked."""
    content = {"type": "text", "text": "a word of the model"}
    cell.client.answers["sampling/createMessage"] = {"role": "assistant", "model": "m", "content": content}
    said = await cell.text("sample")
    assert said == content["text"], said


async def roots(cell: Cell) -> None:
    """The client's roots reach the tool that asked."""
    cell.client.answers["roots/list"] = {"roots": [{"uri": "file:///of/the/client"}]}
    said = await cell.text("roots")
    assert said == "file:///of/the/client", said


async def resource_read(cell: Cell) -> None:
    """A resource and one that a template makes are read; one that is not there is refused."""
    for uri in (STATIC, "test://item/7"):
        [found] = (await cell.client.request("resources/read", {"uri": await cell.uri(uri)}))["contents"]
        assert found["text"] == f"content of {uri}", found
    try:
        await cell.client.request("resources/read", {"uri": await cell.uri("test://nothing/here")})
    except Refused as refused:
        assert refused.code == cell.client.not_found, refused
    else:
        raise AssertionError("what is not there was read")


async def subscribe(cell: Cell) -> None:
    """A subscriber hears of an update, under the URI that it subscribed to."""
    uri = await cell.uri(WATCHED)
    cell.client.notes.clear()
    await cell.watch(WATCHED)
    await cell.client.subscribe(uri)
    async with asyncio.timeout(LIMIT_S):
        while not any(told["uri"] == uri for told in cell.client.heard("notifications/resources/updated")):
            await cell.text("touch")  # the gateway asks the server after it answered the client
    await cell.client.unsubscribe(uri)


async def prompt(cell: Cell) -> None:
    """A prompt is listed and filled in."""
    name = cell.tool("greet")
    assert name in {one["name"] for one in await cell.client.listed("prompts")}
    found = await cell.client.request("prompts/get", {"name": name, "arguments": {"word": "you"}})
    assert found["messages"][0]["content"]["text"] == "hello you", found


async def completion(cell: Cell) -> None:
    """A prompt's argument is completed by its server."""
    ref = {"type": "ref/prompt", "name": cell.tool("greet")}
    asked = {"ref": ref, "argument": {"name": "word", "value": "pa"}}
    found = (await cell.client.request("completion/complete", asked))["completion"]
    assert found["values"] == ["paone", "patwo"], found


async def list_change(cell: Cell) -> None:
    """A client hears that the list changed, and then finds the new tool in it."""
    if cell.client.modern:
        await cell.client.subscribe(await cell.uri(WATCHED))
    number = next(_NUMBERS)
    cell.client.notes.clear()
    await cell.text("change", {"number": number})
    async with asyncio.timeout(LIMIT_S):
        while True:
            await cell.client.until(lambda: cell.client.heard("notifications/tools/list_changed"))
            cell.client.notes.clear()
            if cell.tool(f"extra{number}") in {tool["name"] for tool in await cell.client.listed("tools")}:
                break
    if cell.client.modern:
        await cell.client.unsubscribe(await cell.uri(WATCHED))


FEATURES: dict[str, Callable[[Cell], Awaitable[None]]] = {
    "tool call": tool_call,
    "tool error": tool_error,
    "server error": server_error,
    "progress": progress,
    "log": log,
    "cancel": cancel,
    "elicitation accept": _elicitation("accept"),
    "elicitation decline": _elicitation("decline"),
    "elicitation cancel": _elicitation("cancel"),
    "sampling": sampling,
    "roots": roots,
    "resource read": resource_read,
    "subscribe": subscribe,
    "prompt": prompt,
    "completion": completion,
    "list change": list_change,
}
