"""An item and the words of a call: arguments become items, and items become what a client reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from omni_mcp.contracts.errors import InvalidArguments
from omni_mcp.contracts.ids import iso_time, new_id
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.memory import MemoryItem, MemoryScope, MemorySource, Taint
from omni_mcp.contracts.ports import Masker

URI = "memory://"
_NS_PER_S = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FACTS = ("kind", "subject", "session", "importance")


class ItemMaker:
    """Makes items of checked arguments. What is a registered secret is masked: it is not kept in clear here either."""

    def __init__(self, masker: Masker, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._masker = masker
        self._now_ns = now_ns

    def new(
        self, arguments: JsonObject, text: str, *, scope: MemoryScope, owner: str, project: str,
        taint: tuple[Taint, ...], source: MemorySource,
    ) -> MemoryItem:  # fmt: skip
        """Return the item that *arguments* describe.

        Raises:
            InvalidArguments: a time cannot be understood, or is over.
        """
        now_ns = self._now_ns()
        facts = {"at_ns": now_ns, "key": arguments.get("key"), **self._facts(arguments, now_ns)}
        return self._item(
            {
                "id": new_id(), "scope": scope, "owner": owner, "project": project, "text": text, "taint": taint,
                "source": source, "created_at_ns": now_ns, **facts,
            }
        )  # fmt: skip

    def revised(
        self, item: MemoryItem, arguments: JsonObject, *, taint: tuple[Taint, ...], source: MemorySource
    ) -> MemoryItem:
        """Return the next version of *item*: what *arguments* do not name stays, and taint never comes off.

        Raises:
            InvalidArguments: as `new`.
        """
        now_ns = self._now_ns()
        kept = {name: getattr(item, name) for name in MemoryItem.model_fields}
        made_of = item.source.model_copy(update={"run": source.run, "seq": source.seq, "call": source.call})
        changes = {
            "text": arguments.get("text", item.text),
            "taint": tuple(sorted({*item.taint, *taint})),
            "source": made_of,
            "revised_at_ns": now_ns,
        }
        return self._item({**kept, **changes, **self._facts(arguments, now_ns)})

    def _facts(self, arguments: JsonObject, now_ns: int) -> JsonObject:
        found: JsonObject = {name: arguments[name] for name in _FACTS if name in arguments}
        if "tags" in arguments:
            found["tags"] = tuple(arguments["tags"])
        if "at" in arguments:
            found["at_ns"] = _time(arguments["at"], "at")
        if "expires_at" in arguments and "expires_in_s" in arguments:
            raise InvalidArguments("give either expires_at or expires_in_s")
        if "expires_in_s" in arguments:
            found["expires_at_ns"] = now_ns + int(arguments["expires_in_s"]) * _NS_PER_S
        elif "expires_at" in arguments:
            text = arguments["expires_at"]
            found["expires_at_ns"] = None if text is None else _time(text, "expires_at")
            if text is not None and found["expires_at_ns"] <= now_ns:
                raise InvalidArguments("expires_at is over already, so there is nothing to keep")
        return found

    def _item(self, facts: Mapping[str, Any]) -> MemoryItem:
        named = ("text", "key", "subject", "session")
        masked = {name: self._masker.mask_text(facts[name]) for name in named if facts.get(name)}
        tags = tuple(self._masker.mask_text(tag) for tag in facts.get("tags", ()))
        try:
            return MemoryItem(**{**facts, **masked, "tags": tags})
        except ValidationError as error:
            places = ", ".join(".".join(map(str, one["loc"])) for one in error.errors())
            raise InvalidArguments(f"the item cannot be kept as it is: {places}") from error


def shown(item: MemoryItem) -> JsonObject:
    """Return *item* as a client reads it."""
    found: JsonObject = {
        **facts_of(item),
        "text": item.text,
        "key": item.key,
        "subject": item.subject,
        "session": item.session,
        "tags": list(item.tags),
        "importance": item.importance,
        "at": iso_time(item.at_ns),
        "created_at": iso_time(item.created_at_ns),
        "revised_at": iso_time(item.revised_at_ns) if item.revised_at_ns is not None else None,
    }
    return {name: value for name, value in found.items() if value not in (None, [])} | {"taint": list(item.taint)}


def facts_of(item: MemoryItem) -> JsonObject:
    """Return what names an item and says where it came from, without anything that its writer wrote."""
    return {
        "id": item.id,
        "uri": URI + item.id,
        "kind": item.kind,
        "scope": item.scope,
        "version": item.version,
        "taint": list(item.taint),
        "source": item.source.model_dump(exclude_none=True),
        "expires_at": iso_time(item.expires_at_ns) if item.expires_at_ns is not None else None,
    }


def _time(text: str, name: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise InvalidArguments(f"$.{name}: must be ISO 8601 with a time zone, such as 2026-05-04T09:30:00Z")
    try:
        since = found - _EPOCH
    except OverflowError:
        raise InvalidArguments(f"$.{name}: is out of range") from None
    return (since.days * 86_400 + since.seconds) * _NS_PER_S + since.microseconds * 1000
