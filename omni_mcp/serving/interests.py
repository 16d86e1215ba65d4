"""Interests: what clients ask to hear of, resources by subscription and whatever a modern listen stream names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import Overloaded
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import Catalog
from omni_mcp.contracts.tool import Entry
from omni_mcp.protocol.eras import META_SUBSCRIPTION
from omni_mcp.protocol.methods import URI_LIMIT, string_at
from omni_mcp.protocol.outcome import unknown_target
from omni_mcp.protocol.rpc import INVALID_PARAMS, RpcError
from omni_mcp.serving.calls import Asked
from omni_mcp.serving.changes import Changes, ListKind, Release
from omni_mcp.serving.listen_stream import ListenStream
from omni_mcp.serving.permission import MaySee, Permission
from omni_mcp.serving.session import SUBSCRIPTIONS_LIMIT, Session

Watch = Callable[[Entry, Principal, str], Awaitable[Release]]


async def nobody_reports(entry: Entry, principal: Principal, uri: str) -> Release:
    """For resources whose updates the gateway knows of by itself."""
    return lambda: None


class Interests:
    """Answers `resources/subscribe`, `resources/unsubscribe` and `subscriptions/listen`.

    Args:
        may_see: whether what a URI names is this principal's, asked before a subscription is granted.
        watch: has updates of a resource reported by the server that it is of.
        streams_limit: listen streams of one session.
    """

    def __init__(
        self, catalog: Catalog, permission: Permission, changes: Changes, *, may_see: MaySee, watch: Watch,
        stamp: JsonObject, streams_limit: int,
    ) -> None:  # fmt: skip
        self._catalog = catalog
        self._permission = permission
        self._changes = changes
        self._may_see = may_see
        self._watch = watch
        self._stamp = stamp
        self._streams_limit = streams_limit
        self._streams: dict[asyncio.Event, Session] = {}

    async def subscribe(self, asked: Asked) -> JsonObject:
        """Have a handshake client told of updates of one resource.

        Raises:
            Overloaded: it has too many subscriptions.
            RpcError: the resource is not there, or not for this caller.
        """
        session, uri = asked.session, asked.params["uri"]
        if len(session.subscriptions) >= SUBSCRIPTIONS_LIMIT and uri not in session.subscriptions:
            raise Overloaded(f"one client may subscribe to {SUBSCRIPTIONS_LIMIT} resources")
        if not await self._permission.given(asked, "resource", uri, may_see=self._may_see):
            raise unknown_target("resource", uri, era=asked.era)
        session.subscriptions.add(uri)
        self._changes.join(session)
        release = await self._watched(session, uri)
        self._changes.subscribe(session, uri, release, reader=session.principal)
        return {}

    async def unsubscribe(self, asked: Asked) -> JsonObject:
        """Tell a handshake client of this resource no more."""
        asked.session.subscriptions.discard(asked.params["uri"])
        self._changes.unsubscribe(asked.session, asked.params["uri"])
        return {}

    async def listen(self, asked: Asked) -> JsonObject:
        """Serve one modern subscription until the client cancels it or the gateway stops.

        Raises:
            Overloaded: there are too many on this connection.
            RpcError: the request is not well formed.
        """
        if sum(owner is asked.session for owner in self._streams.values()) >= self._streams_limit:
            raise Overloaded("too many subscriptions on this connection")
        stream = await self._granted_stream(asked)
        self._changes.join(stream)
        self._streams[stream.ended] = asked.session
        try:
            for uri in stream.uris:
                release = await self._watched(asked.session, uri)
                self._changes.subscribe(stream, uri, release, reader=asked.session.principal)
            stream.acknowledge()
            await stream.ended.wait()
        finally:
            self._streams.pop(stream.ended, None)
            self._changes.leave(stream)
        return {"resultType": "complete", "_meta": {**self._stamp, META_SUBSCRIPTION: asked.id}}

    def end_streams(self) -> None:
        """Have every listen stream end: the gateway stops."""
        for ended in list(self._streams):
            ended.set()

    async def _watched(self, session: Session, uri: str) -> Release:
        """Have updates of *uri* reported to us by the server that it is of; returns how to undo that."""
        entry = self._catalog.find(session.profile, "resource", uri, project=session.principal.project)
        return await self._watch(entry, session.principal, uri) if entry is not None else lambda: None

    async def _granted_stream(self, asked: Asked) -> ListenStream:
        wanted = asked.params["notifications"]
        uris = wanted.get("resourceSubscriptions") or []
        if not isinstance(uris, list) or len(uris) > SUBSCRIPTIONS_LIMIT:
            path = {"path": "$.params.notifications.resourceSubscriptions"}
            raise RpcError(INVALID_PARAMS, f"resourceSubscriptions must be at most {SUBSCRIPTIONS_LIMIT} URIs", path)
        granted = []
        for uri in uris:
            string_at(uri, path="params.notifications.resourceSubscriptions", limit=URI_LIMIT)
            if await self._permission.given(asked, "resource", uri, may_see=self._may_see):
                granted.append(uri)
        kinds: tuple[ListKind, ...] = ("tools", "resources", "prompts")
        named = frozenset(kind for kind in kinds if wanted.get(f"{kind}ListChanged") is True)
        profile = asked.session.profile
        return ListenStream(asked.outlet, asked.id, profile=profile, kinds=named, uris=granted)
