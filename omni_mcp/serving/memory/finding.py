"""What a caller finds: hits, lists, pairs and single items, each noted as carried by the call before it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from omni_mcp.contracts.call import Answer, Call
from omni_mcp.contracts.errors import NotFound
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.memory import Hit, MemoryItem, Recall, Taint
from omni_mcp.contracts.ports import MemoryStore, Policy, RunLog
from omni_mcp.serving.memory.entries import BUDGET_CHARS, LATEST
from omni_mcp.serving.memory.items import URI, shown
from omni_mcp.serving.memory.places import readers_of
from omni_mcp.serving.memory.taint import Readings, kept_out

ANSWER_BYTES = 256 * 1024  # an answer over the output limit would be kept as an artifact that other calls may read
LATEST_ITEMS = 20
T = TypeVar("T")


class Finding:
    """Answers the calls that only read."""

    def __init__(self, store: MemoryStore, log: RunLog, policy: Policy, readings: Readings) -> None:
        self._store = store
        self._log = log
        self._policy = policy
        self._readings = readings

    async def recall(self, call: Call) -> JsonObject:
        arguments = call.arguments
        without = self._without(call)
        hits = await self._store.recall(
            Recall(
                query=arguments["query"],
                readers=readers_of(call.principal, call.run, arguments.get("scopes", ())),
                k=int(arguments.get("k", 10)),  # 10.0 is an integer in JSON Schema
                budget_chars=int(arguments.get("budget_chars", BUDGET_CHARS)),
                kinds=tuple(arguments.get("kinds", ())),
                tags=tuple(arguments.get("tags", ())),
                subject=arguments.get("subject"),
                session=arguments.get("session"),
                without_taint=without,
            )
        )
        explain = arguments.get("explain", False)
        found = await self._given(call, hits, lambda hit: hit.item, lambda hit: _shown_hit(hit, explain=explain))
        answer: JsonObject = {"items": found, "more": len(found) < len(hits), "without_taint": list(without)}
        return answer if hits.words_only is None else {**answer, "words_only": True}

    async def page(self, call: Call) -> JsonObject:
        arguments = call.arguments
        without, limit, before = self._without(call), int(arguments.get("limit", 20)), arguments.get("before")
        readers = readers_of(call.principal, call.run, arguments.get("scopes", ()))
        items = await self._store.list_items(
            readers=readers, limit=limit + 1, before=before, kinds=arguments.get("kinds", ()),
            tags=arguments.get("tags", ()), subject=arguments.get("subject"), session=arguments.get("session"),
            without_taint=without,
        )  # fmt: skip
        found = await self._given(call, items[:limit], lambda item: item, shown)
        return {"items": found, "more": len(found) < len(items), "without_taint": list(without)}

    async def pairs(self, call: Call) -> JsonObject:
        without = set(self._without(call))
        pairs = await self._store.duplicates(
            readers=readers_of(call.principal, call.run), limit=int(call.arguments.get("limit", 20))
        )
        found: list[JsonObject] = []
        for first, second, alike in pairs:
            if without & {*first.taint, *second.taint}:
                continue
            both = await self._given(call, [first, second], lambda item: item, shown)
            if len(both) == 2:
                found.append({"first": both[0], "second": both[1], "alike": round(alike, 4)})
            if len(canonical(found)) > ANSWER_BYTES:
                break
        return {"pairs": found, "without_taint": sorted(without)}

    async def resource(self, call: Call) -> Answer:
        without = set(kept_out(self._policy, self._log, call))
        readers = readers_of(call.principal, call.run)
        if call.name == LATEST:
            items = await self._store.list_items(
                readers=readers, limit=LATEST_ITEMS, without_taint=tuple(sorted(without))
            )
            found: JsonObject = {"items": await self._given(call, items, lambda item: item, shown)}
        else:
            try:
                item = await self._store.get(call.name.removeprefix(URI), readers=readers)
            except NotFound as error:
                raise NotFound("there is no such resource", data={"uri": call.name}) from error
            given = [] if without & set(item.taint) else await self._given(call, [item], lambda item: item, shown)
            if not given:
                raise NotFound("there is no such resource", data={"uri": call.name})
            found = given[0]
        text = canonical(found).decode()
        return Answer(body={"contents": [{"uri": call.name, "mimeType": "application/json", "text": text}]})

    def _without(self, call: Call) -> tuple[Taint, ...]:
        """What the caller, or the policy, leaves out."""
        wanted: Iterable[Taint] = call.arguments.get("without_taint", ())
        return tuple(sorted({*wanted, *kept_out(self._policy, self._log, call)}))

    async def _given(
        self, call: Call, found: Sequence[T], item_of: Callable[[T], MemoryItem], show: Callable[[T], JsonObject]
    ) -> list[JsonObject]:
        """Return what is handed out of *found*, from the first on as far as there is room.

        Before it leaves, each item knows that this call carries its text, and the run carries the item's taint. What
        was forgotten meanwhile is left out.
        """
        fitting: list[tuple[MemoryItem, JsonObject]] = []
        room = ANSWER_BYTES
        for one in found:
            told = show(one)
            room -= len(canonical(told))
            if room < 0 and fitting:
                break
            fitting.append((item_of(one), told))
        ids = [item.id for item, _ in fitting]
        gone = set(await self._store.touched(ids, run=call.run, call=call.id)) if ids else set()
        self._readings.note(call.run, {taint for item, _ in fitting for taint in item.taint if item.id not in gone})
        return [told for item, told in fitting if item.id not in gone]


def _shown_hit(hit: Hit, *, explain: bool) -> JsonObject:
    told = {**shown(hit.item), "score": round(hit.score, 6)}
    return {**told, "parts": {name: round(part, 6) for name, part in hit.parts.items()}} if explain else told
