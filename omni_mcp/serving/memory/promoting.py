"""The text of an event or of an artifact, word for word, so that an item can be made of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from omni_mcp.contracts.call import Call
from omni_mcp.contracts.errors import InvalidArguments, NotFound
from omni_mcp.contracts.events import CONVERSATION_KINDS, RunEvent
from omni_mcp.contracts.json import JsonObject, JsonValue, canonical
from omni_mcp.contracts.memory import TEXT_LIMIT_CHARS, Taint
from omni_mcp.contracts.ports import Artifacts, RunLog
from omni_mcp.serving.memory.taint import TAINTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A text, the fields of a source that name where it stands, and what it carries by its origin alone."""

    text: str
    source: JsonObject
    taint: frozenset[Taint] = field(default_factory=frozenset)


class Quotes:
    """Finds what a call of `promote` names, among the caller's own."""

    def __init__(self, log: RunLog, artifacts: Artifacts) -> None:
        self._log = log
        self._artifacts = artifacts

    async def find(self, call: Call) -> Quote:
        """Return the text that *call* names.

        An event of the caller's present run carries what that run has read. What another run had read nobody can say
        any more, nor what an artifact was made of: they carry everything.

        Raises:
            NotFound: there is no such thing, its text was erased, or it is not theirs: the same answer.
            InvalidArguments: it holds no text, it is too long, or the quote is not in it.
        """
        arguments = call.arguments
        if "artifact" in arguments:
            _, data = await self._artifacts.get(arguments["artifact"], owner=call.principal.key)
            whole, source = _decoded(data), {"artifact": arguments["artifact"]}
            return Quote(text=_quoted(whole, arguments), source=source, taint=frozenset(TAINTS))
        event = await self._event(arguments["run"], int(arguments["seq"]), call.principal.key)
        taint = frozenset(TAINTS) if event.run != call.run else frozenset()
        source = {"from_run": event.run, "from_seq": event.seq}
        return Quote(text=_quoted(_text_of(event), arguments), source=source, taint=taint)

    async def _event(self, run: str, seq: int, owner: str) -> RunEvent:
        missing = NotFound(f"there is no event {seq} of a run {run!r} of yours, or its text was erased")
        try:
            facts = await self._log.get_run(run)
        except NotFound as error:
            raise missing from error
        if facts.get("principal") != owner:
            raise missing
        found = [event async for event in self._log.read(run, after=seq - 1, limit=1)]
        if not found or found[0].seq != seq or found[0].payload is None:
            raise missing
        return found[0]


def _text_of(event: RunEvent) -> str:
    payload = event.payload or {}
    if event.kind in CONVERSATION_KINDS:
        return str(payload.get("text", ""))
    if event.kind == "tool_call":
        return canonical(payload.get("arguments")).decode()
    if event.kind == "tool_result":
        return _text_of_result(payload.get("result"))
    raise InvalidArguments("only a message, a call or a result can become an item")


def _text_of_result(result: JsonValue) -> str:
    """The texts of a result in their order; what has none, as JSON."""
    if result is None:
        raise InvalidArguments("this result is not kept beside its event; promote its artifact")
    blocks = (result.get("content") or result.get("contents") or []) if isinstance(result, dict) else []
    texts = [block["text"] for block in blocks if isinstance(block, dict) and isinstance(block.get("text"), str)]
    return "\n".join(texts) if texts else canonical(result).decode()


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidArguments("this artifact is no text") from None


def _quoted(whole: str, arguments: JsonObject) -> str:
    quote = arguments.get("quote")
    if quote is not None:
        if quote not in whole:
            raise InvalidArguments("the quote does not stand there word for word")
        return str(quote)
    if not whole.strip():
        raise InvalidArguments("there is no text in it")
    if len(whole) > TEXT_LIMIT_CHARS:
        raise InvalidArguments(f"it has {len(whole)} characters, more than {TEXT_LIMIT_CHARS}: give a quote of it")
    return whole
