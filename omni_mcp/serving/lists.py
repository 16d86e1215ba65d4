"""Lists: what a principal may see, in pages that are encoded once and sent many times."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from omni_mcp.contracts.call import Era, Principal
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.policy import Action
from omni_mcp.contracts.ports import Catalog, Policy
from omni_mcp.contracts.tool import Entry
from omni_mcp.protocol.headers import fault_of_header_schema
from omni_mcp.protocol.rpc import INVALID_PARAMS, RpcError
from omni_mcp.serving.surface import FULL, Surface, Surfaces

LIST_TTL_MS = 30_000
PAGE_SIZE = 250
CACHED_LISTS = 256
CACHED_ITEMS_BYTES = 16 * 1024 * 1024
SLICE = 64  # entries asked of the policy before other clients get a turn; 0.65 ms each when nothing is cached


@dataclass(frozen=True, slots=True)
class Listing:
    """One kind of list: its method, the member that holds the items, the member that names one, the policy's action."""

    kind: str
    member: str
    key: str
    action: Action


LISTINGS = {
    "tools/list": Listing("tool", "tools", "name", "call_tool"),
    "resources/list": Listing("resource", "resources", "uri", "read_resource"),
    "resources/templates/list": Listing("resource_template", "resourceTemplates", "uriTemplate", "read_resource"),
    "prompts/list": Listing("prompt", "prompts", "name", "get_prompt"),
}


class Lists:
    """Answers the four list methods."""

    def __init__(
        self, catalog: Catalog, policy: Policy, surfaces: Surfaces, *, key: bytes, stamp: JsonObject,
        page_size: int = PAGE_SIZE,
    ) -> None:  # fmt: skip
        self._catalog = catalog
        self._policy = policy
        self._surfaces = surfaces
        self._key = key
        self._page_size = page_size
        self._tail = b',"resultType":"complete","ttlMs":%d,"cacheScope":"private","_meta":%s' % (
            LIST_TTL_MS,
            orjson.dumps(stamp),
        )
        self._pages: OrderedDict[tuple[str, ...], list[bytes]] = OrderedDict()
        self._items: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._items_bytes = 0

    async def page(
        self, method: str, principal: Principal, profile: str, era: Era, cursor: str | None, surface: Surface = FULL
    ) -> bytes:
        """Return one encoded page of *method* for *principal*; *surface* is of tools.

        Raises:
            RpcError: -32602, the cursor is not ours, another's, or of a list that has changed since.
        """
        key = self._cache_key(method, principal, profile, era, surface)
        number = 0 if cursor is None else self._open_cursor(cursor, key)
        pages = self._pages.get(key)
        if pages is None:
            pages = await self._build(LISTINGS[method], principal, profile, era, surface, key)
            self._pages[key] = pages
            while len(self._pages) > CACHED_LISTS:
                self._pages.popitem(last=False)
        else:
            self._pages.move_to_end(key)
        if number >= len(pages):
            raise _stale()
        return pages[number]

    def _cache_key(
        self, method: str, principal: Principal, profile: str, era: Era, surface: Surface
    ) -> tuple[str, ...]:
        """Everything that decides what a list says."""
        versions = (self._catalog.version, self._policy.version)
        return (method, principal.key, *sorted(principal.roles), profile, era, surface.key, *versions)

    async def _build(
        self, listing: Listing, principal: Principal, profile: str, era: Era, surface: Surface, key: tuple[str, ...]
    ) -> list[bytes]:
        shown: Sequence[tuple[str, Entry]] = await self._seen(listing, principal, profile, era)
        if listing.kind == "tool":
            shown = await self._surfaces.shown(surface, principal, shown)
        items: list[bytes] = []
        for start in range(0, len(shown), SLICE):
            part = shown[start : start + SLICE]
            items.extend(self._encoded(listing.key, name, entry) for name, entry in part)
            if start + SLICE < len(shown):
                await asyncio.sleep(0)
        tail = self._tail if era == "modern" else b""
        count = max(1, -(-len(items) // self._page_size))
        return [self._encode(listing, items, number, count, key, tail) for number in range(count)]

    def _encoded(self, key: str, name: str, entry: Entry) -> bytes:
        """Return an item as it is sent; encoded again only once it is another definition."""
        known = self._items.get((name, entry.digest))
        if known is None:
            known = self._items[name, entry.digest] = orjson.dumps({**entry.definition, key: name})
            self._items_bytes += len(known)
            while self._items_bytes > CACHED_ITEMS_BYTES:
                self._items_bytes -= len(self._items.popitem(last=False)[1])
        return known

    async def _seen(self, listing: Listing, principal: Principal, profile: str, era: Era) -> list[tuple[str, Entry]]:
        named = self._catalog.entries(profile, listing.kind, project=principal.project)
        found: list[tuple[str, Entry]] = []
        for start in range(0, len(named), SLICE):
            part = named[start : start + SLICE]
            seen = self._policy.visible(
                action=listing.action, principal=principal, entries=[entry for _, entry in part]
            )
            found += [pair for pair, visible in zip(part, seen, strict=True) if visible and _fit_for(pair[1], era)]
            if start + SLICE < len(named):
                await asyncio.sleep(0)
        return found

    def _encode(
        self, listing: Listing, items: list[bytes], number: int, count: int, key: tuple[str, ...], tail: bytes
    ) -> bytes:
        part = items[number * self._page_size : (number + 1) * self._page_size]
        more = b',"nextCursor":%s' % orjson.dumps(self._cursor(number + 1, key)) if number + 1 < count else b""
        return b'{"%s":[%s]%s%s}' % (listing.member.encode(), b",".join(part), more, tail)

    def _cursor(self, number: int, key: tuple[str, ...]) -> str:
        return base64.urlsafe_b64encode(number.to_bytes(4, "big") + self._mac(number, key)).decode().rstrip("=")

    def _open_cursor(self, cursor: str, key: tuple[str, ...]) -> int:
        try:
            raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except (binascii.Error, ValueError):
            raise _stale() from None
        number = int.from_bytes(raw[:4], "big")
        if not hmac.compare_digest(raw[4:], self._mac(number, key)):
            raise _stale()
        return number

    def _mac(self, number: int, key: tuple[str, ...]) -> bytes:
        return hmac.new(self._key, canonical([number, *key]), hashlib.sha256).digest()[:16]


def _fit_for(entry: Entry, era: Era) -> bool:
    """A modern client must drop a tool whose header annotations are faulty; it is not sent one."""
    if era == "handshake" or entry.kind != "tool":
        return True
    return fault_of_header_schema(entry.definition.get("inputSchema")) is None


def _stale() -> RpcError:
    return RpcError(INVALID_PARAMS, "the cursor is not valid, or the list has changed; list again from the start")
