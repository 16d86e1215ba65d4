"""Changes: who wants to hear that lists or resources changed, and telling them.

Handshake sessions hear of every list and of the resources that they subscribed to; modern listen streams of what
they named. A listener that does not read is dropped; nothing here waits for one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import Overloaded
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.ports import RunLog

ListKind = Literal["tools", "resources", "prompts"]
LISTS: tuple[ListKind, ...] = ("tools", "resources", "prompts")
LISTENERS_LIMIT = 4096
RUN_SCHEME = "run://"
SETTLE_S = 0.05  # commits of one run within this time are one notice


class Listener(Protocol):
    """Somebody who wants to hear. `profile` names the lists that it reads."""

    @property
    def profile(self) -> str: ...

    def wants(self, kind: ListKind) -> bool:
        """Whether changes of this list are told."""
        ...

    def tell(self, method: str, params: JsonObject) -> bool:
        """Pass on one notification; False if the listener is gone and can be forgotten."""
        ...


Release = Callable[[], None]


def _nothing() -> None:
    pass


class Changes:
    """Fans changes out to listeners."""

    def __init__(self, *, noticed: Callable[[], None] | None = None) -> None:
        self._noticed = noticed
        self._listeners: dict[Listener, dict[str, Release]] = {}
        self._readers: dict[Listener, Principal] = {}
        self._by_uri: dict[str, set[Listener]] = {}
        self._by_run: dict[str, set[str]] = {}  # run id -> subscribed URIs below it
        self._touched_runs: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    def join(self, listener: Listener) -> None:
        """Add a listener.

        Raises:
            Overloaded: there are too many.
        """
        if len(self._listeners) >= LISTENERS_LIMIT:
            raise Overloaded("too many listeners; try again later")
        self._listeners.setdefault(listener, {})

    def leave(self, listener: Listener) -> None:
        """Forget a listener and its subscriptions."""
        self._readers.pop(listener, None)
        for uri, release in self._listeners.pop(listener, {}).items():
            self._forget(listener, uri)
            release()

    def subscribe(
        self, listener: Listener, uri: str, release: Release = lambda: None, *, reader: Principal | None = None
    ) -> None:
        """Tell *listener* about updates of *uri*; it must have joined, else nothing happens.

        *release* is called once it is to be told no more. *reader* is whom it listens for: a URI under which each finds
        its own is told only to those whose own has changed.
        """
        if listener not in self._listeners:
            release()
            return
        self._listeners[listener].pop(uri, _nothing)()
        self._listeners[listener][uri] = release
        self._by_uri.setdefault(uri, set()).add(listener)
        if reader is not None:
            self._readers[listener] = reader
        if (run := _run_in(uri)) is not None:
            self._by_run.setdefault(run, set()).add(uri)

    def unsubscribe(self, listener: Listener, uri: str) -> None:
        """Stop telling *listener* about *uri*."""
        if uri in self._listeners.get(listener, {}):
            release = self._listeners[listener].pop(uri)
            self._forget(listener, uri)
            release()

    def _forget(self, listener: Listener, uri: str) -> None:
        members = self._by_uri.get(uri, set())
        members.discard(listener)
        if members:
            return
        self._by_uri.pop(uri, None)
        run = _run_in(uri)
        if run is not None and run in self._by_run:
            self._by_run[run].discard(uri)
            if not self._by_run[run]:
                del self._by_run[run]

    def lists_changed(
        self, kinds: Iterable[ListKind] = LISTS, *, concerns: Callable[[str, ListKind], bool] = lambda *_: True
    ) -> None:
        """Tell everybody who wants to know that these lists may say something else now.

        *concerns* says of which profile a list may; of all, if it is not given.
        """
        for kind in kinds:
            for listener in list(self._listeners):
                if not listener.wants(kind) or not concerns(listener.profile, kind):
                    continue
                if not listener.tell(f"notifications/{kind}/list_changed", {}):
                    self.leave(listener)

    def resource_updated(self, uri: str, *, may_hear: Callable[[Principal], bool] | None = None) -> None:
        """Tell the subscribers of *uri*, or those of them who *may_hear* it."""
        for listener in list(self._by_uri.get(uri, ())):
            if may_hear is not None and ((reader := self._readers.get(listener)) is None or not may_hear(reader)):
                continue
            if not listener.tell("notifications/resources/updated", {"uri": uri}):
                self.leave(listener)

    async def follow(self, log: RunLog) -> None:
        """Turn commits of the run log into updates of `run://…`, until cancelled. Quiet events never notify."""
        async for run, _, _ in log.subscribe(self._hears):
            self._touched_runs.add(run)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(SETTLE_S, self._tell_runs)

    def _hears(self, run: str, quiet: bool) -> bool:
        """Whether somebody may listen to *run*. Each commit counts as told."""
        if self._noticed is not None:
            self._noticed()
        return not quiet and run in self._by_run

    def _tell_runs(self) -> None:
        self._timer = None
        runs, self._touched_runs = self._touched_runs, set()
        for run in runs:
            for uri in list(self._by_run.get(run, ())):
                self.resource_updated(uri)

    def close(self) -> None:
        """Forget everybody."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._listeners.clear()
        self._readers.clear()
        self._by_uri.clear()
        self._by_run.clear()


def _run_in(uri: str) -> str | None:
    """Return the run that a `run://RUN/…` URI is about."""
    if not uri.startswith(RUN_SCHEME):
        return None
    return uri[len(RUN_SCHEME) :].partition("/")[0].partition("?")[0] or None
