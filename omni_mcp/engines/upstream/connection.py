"""Connection: one server, connected when it is needed, by one task that owns everything about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from omni_mcp.contracts.call import Era
from omni_mcp.contracts.errors import OmniError, SandboxUnavailable, UpstreamUnavailable
from omni_mcp.contracts.json import JsonObject
from omni_mcp.endings import to_its_end
from omni_mcp.engines.upstream.envelope import ClientInfo
from omni_mcp.engines.upstream.faults import PASSING_STATUSES, DiedOnProbe, GreetingFailed
from omni_mcp.engines.upstream.greeting import GREETING_S, PROBE_S, greet
from omni_mcp.engines.upstream.health import Health, Patience
from omni_mcp.engines.upstream.news import Reports, Watched
from omni_mcp.engines.upstream.roots import Roots, given
from omni_mcp.engines.upstream.talk import Listener, Talk
from omni_mcp.engines.upstream.wire.seam import Wire, WireFault

State = Literal["idle", "connecting", "ready", "waiting", "closed"]
OpenWire = Callable[[], Awaitable[Wire]]
WAITERS_LIMIT = 1024
REASON_LIMIT = 2000
UNREACHABLE = "the server behind it cannot be reached"
NOT_THIS_TRANSPORT = (400, 404, 405, 406, 415, 501)  # of an initialize: perhaps the server speaks an older one


class Eras:
    """Which era each server definition turned out to speak. Kept by definition, so a changed one is probed again."""

    def __init__(self, known: dict[str, Era] | None = None) -> None:
        self._known: dict[str, Era] = dict(known or {})

    def find(self, definition: str) -> Era | None:
        """Return what is remembered."""
        return self._known.get(definition)

    def remember(self, definition: str, era: Era) -> None:
        """Remember the era of a server that was greeted."""
        self._known[definition] = era

    def forget(self, definition: str) -> None:
        """Probe again the next time."""
        self._known.pop(definition, None)

    def all(self) -> dict[str, Era]:
        """What is remembered, to be kept across restarts."""
        return dict(self._known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a connection waits for what."""

    probe_s: float = PROBE_S
    greeting_s: float = GREETING_S
    ready_s: float = 35.0  # how long a call waits for a connection
    watch_s: float = 5.0  # how long a subscription waits until the server was asked
    idle_s: float | None = 600.0  # without a call; None: stay
    roots_s: float = 2.0  # how long a server that takes its directories from its client has to ask for them
    list_settle_s: float = 0.2  # list changes within this time are one
    list_pause_s: float = 2.0  # between two listings of one server, however often it changes
    list_retry_s: float = 30.0  # after a listing that failed; doubles up to `list_retry_limit_s`
    list_retry_limit_s: float = 600.0
    patience: Patience = field(default_factory=Patience)


class Connection:
    """One server. `run` is the owner task; everybody else asks for a `talk`.

    Args:
        server: its name, for the record.
        definition: digest of what defines it.
        wires: ways to open it, the likeliest first.
        keep: stay connected without calls and connect again when it breaks (it reports changes).
        on_state: told of each change, with a reason.
        on_health: told after each call whether the server answered, where that may be news.
    """

    def __init__(
        self, server: str, *, definition: str, wires: Sequence[OpenWire], info: ClientInfo, listener: Listener,
        eras: Eras, timing: Timing | None = None, keep: bool = False, roots: Roots = (),
        on_state: Callable[[State, str], None] = lambda state, reason: None,
        on_health: Callable[[str], None] = lambda reason: None,
    ) -> None:  # fmt: skip
        self.server = server
        self.watched = Watched()
        self._definition = definition
        self._wires = list(wires)
        self._roots = roots
        self._info = info
        self._listener = listener
        self._eras = eras
        self._timing = timing or Timing()
        self._keep = keep
        self._on_state = on_state
        self._on_health = on_health
        self.health = Health(server, self._timing.patience)
        self.state: State = "idle"
        self._talk: Talk | None = None
        self._waiters: list[asyncio.Future[Talk]] = []
        self._wanted = asyncio.Event()
        self._nudge = asyncio.Event()
        self._changed_uris: list[str] = []
        self._stopping = False
        self._now_s = asyncio.get_running_loop().time
        self._used_s = 0.0
        self._held = 0
        self._free = asyncio.Event()
        self._free.set()
        self._watchers: list[asyncio.Future[None]] = []
        if keep:
            self._wanted.set()

    @property
    def busy(self) -> bool:
        """Whether calls are under way."""
        return self._held > 0 or (self._talk is not None and self._talk.pending > 0)

    def open_talk(self) -> Talk | None:
        """Return the talk that is open; None if there is none.

        Raises:
            UpstreamUnavailable: the server does not answer now; nothing was sent.
        """
        self._used_s = self._now_s()
        if self._talk is None or self._talk.ended.is_set():
            return None
        if self._talk.wire.outlives_its_server:
            self.health.admit()
        return self._talk

    async def talk(self) -> Talk:
        """Return an open talk, connecting first where there is none.

        Raises:
            UpstreamUnavailable: the server cannot be had now; nothing was sent.
        """
        if (found := self.open_talk()) is not None:
            return found
        if self._stopping:
            raise UpstreamUnavailable("the server behind it was stopped", detail=f"{self.server} is closed")
        self.health.admit()
        if len(self._waiters) >= WAITERS_LIMIT:
            raise UpstreamUnavailable("too many calls wait for the server behind it", data={"retry_after_s": 1.0})
        waiter: asyncio.Future[Talk] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wanted.set()
        try:
            async with asyncio.timeout(self._timing.ready_s):
                return await waiter
        except TimeoutError:
            late = f"{self.server}: not ready within {self._timing.ready_s:g} s; {self.health.last_fault}"
            raise _lasting("the server behind it did not get ready in time", detail=late) from None
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def hold(self) -> Callable[[], None]:
        """Keep the connection from being stopped as idle; returns what lets go."""
        self._held += 1
        self._free.clear()
        loosed = False

        def let_go() -> None:
            nonlocal loosed
            if not loosed:
                loosed = True
                self._held -= 1
                self._used_s = self._now_s()
                if not self._held:
                    self._free.set()

        return let_go

    def answered(self, latency_ms: float) -> None:
        """A call was answered, be it with an error of the server's own."""
        if self.health.answered(latency_ms):
            self._on_health("it answers again")

    def call_failed(self, reason: str) -> None:
        """A call could not be brought to the server, or got no answer."""
        self.health.call_failed(reason)
        self._on_health(reason)

    async def unused(self) -> None:
        """Wait until nobody holds it."""
        while self._held:
            await self._free.wait()

    async def watch(self, uri: str) -> None:
        """Have updates of a resource reported (the server's own URI); returns when the server was asked for that.

        A server that cannot be reached now, or takes long, is asked once it can be.

        Raises:
            Overloaded: too many are watched.
        """
        if not self.watched.add(uri):
            return
        self._changed_uris.append(uri)
        self._wanted.set()
        self._nudge.set()
        asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.append(asked)
        try:
            async with asyncio.timeout(self._timing.watch_s):
                await asked
        except TimeoutError:
            return
        finally:
            if asked in self._watchers:
                self._watchers.remove(asked)

    def take_over(self, watched: Watched) -> None:
        """Report what another connection to the same server was asked to report."""
        self.watched = watched
        if len(watched):
            self._wanted.set()

    def unwatch(self, uri: str) -> None:
        """Undo one `watch`."""
        if self.watched.remove(uri):
            self._changed_uris.append(uri)
            self._nudge.set()

    def facts(self) -> JsonObject:
        """What a person wants to know of it."""
        talk, health = self._talk, self.health
        return {
            "state": self.state,
            "era": talk.peer.era if talk else self._eras.find(self._definition),
            "version": talk.peer.version if talk else "",
            "server_info": talk.peer.info if talk else {},
            "calls": health.calls,
            "failed_calls": health.failed_calls,
            "latency_ms": None if health.latency_ms is None else round(health.latency_ms, 3),
            "breaker_open": health.is_open,
            "last_fault": health.last_fault,
            "pending": talk.pending if talk else 0,
            "oddities": dict(talk.oddities) if talk else {},
        }

    def stop(self) -> None:
        """Ask the owner task to end; await that task to know that everything is gone."""
        self._stopping = True
        self._wanted.set()
        self._nudge.set()

    async def run(self) -> None:
        """Own the connection until `stop` or cancellation."""
        try:
            while await self._is_wanted():
                if not await self._pause():
                    await self._guarded_life()
        finally:
            self._stopping = True
            self._become("closed", "stopped")
            self._fail_waiters(UpstreamUnavailable(UNREACHABLE, detail="it was stopped"))

    async def _is_wanted(self) -> bool:
        """Wait until somebody wants the server; False once it is to stop."""
        await self._wanted.wait()
        return not self._stopping

    async def _pause(self) -> bool:
        """Wait out the backoff; True if something changed meanwhile."""
        delay_s = self.health.delay_s()
        if delay_s <= 0:
            return False
        self._become("waiting", self.health.last_fault)
        self._nudge.clear()
        try:
            async with asyncio.timeout(delay_s):
                await self._nudge.wait()
        except TimeoutError:
            return False
        return True

    async def _guarded_life(self) -> None:
        """Whatever goes wrong with one connection, the next one can be tried."""
        try:
            await self._one_life()
        except Exception as error:
            self._not_connected(UpstreamUnavailable(UNREACHABLE, detail=f"{type(error).__name__}: {error}"))

    async def _one_life(self) -> None:
        self._become("connecting", "")
        self.health.connecting()
        try:
            talk = await self._connect()
        except WireFault as fault:
            self._not_connected(UpstreamUnavailable(UNREACHABLE, detail=fault.reason))
            return
        except GreetingFailed as fault:
            kind = UpstreamUnavailable if fault.status in PASSING_STATUSES else _lasting
            self._not_connected(kind(UNREACHABLE, detail=fault.reason))
            return
        except TimeoutError:
            self._not_connected(_lasting(UNREACHABLE, detail=f"no greeting within {self._timing.greeting_s:g} s"))
            return
        except OmniError as error:
            self._not_connected(error)
            return
        reports = Reports(talk, self.watched)
        try:
            await self._live(talk, reports)
        finally:
            self._talk = None
            await to_its_end(_close(talk, reports))

    async def _live(self, talk: Talk, reports: Reports) -> None:
        self._talk = talk
        self.health.connected()
        self._eras.remember(self._definition, talk.peer.era)
        self._used_s = self._now_s()
        self._changed_uris.clear()
        self._become("ready", f"{talk.peer.era} {talk.peer.version}")
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(talk)
        await reports.begin()
        while not talk.ended.is_set() and not self._stopping:
            while self._changed_uris:
                await reports.changed(self._changed_uris.pop(0))
            self._tell_watchers()
            if self._is_idle():
                self._wanted.clear()
                self._become("idle", "nobody used it")
                return
            await self._something(talk)
        if talk.ended.is_set():
            reason = talk.fault.reason if talk.fault else "it went away"
            if talk.session_lost:
                self.health.last_fault = reason
            else:
                self.health.disconnected(reason)
            self._become("waiting" if self._cared_for() else "idle", reason)
            if not self._cared_for():
                self._wanted.clear()

    async def _something(self, talk: Talk) -> None:
        """Wait until the wire is gone, something is to be done, or it is time to look whether anybody uses it."""
        self._nudge.clear()
        idle_s = self._timing.idle_s
        waits = {asyncio.ensure_future(talk.ended.wait()), asyncio.ensure_future(self._nudge.wait())}
        try:
            await asyncio.wait(waits, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _is_idle(self) -> bool:
        idle_s = self._timing.idle_s
        if idle_s is None or self.busy or self.watched or self._keep:
            return False
        return self._now_s() - self._used_s >= idle_s

    def _cared_for(self) -> bool:
        return bool(self._keep or len(self.watched) or self._waiters)

    async def _connect(self) -> Talk:
        """Try the ways to reach the server in turn; the one that works goes first from then on."""
        for number, open_wire in enumerate(self._wires):
            try:
                talk = await self._greeted(open_wire)
            except GreetingFailed as fault:
                if fault.status not in NOT_THIS_TRANSPORT or number + 1 == len(self._wires):
                    self._eras.forget(self._definition)
                    raise
                continue
            self._wires.insert(0, self._wires.pop(number))
            return talk
        raise GreetingFailed("there is no way to reach it")

    async def _greeted(self, open_wire: OpenWire) -> Talk:
        remembered = self._eras.find(self._definition)
        try:
            return await self._attempt(open_wire, remembered)
        except DiedOnProbe:
            self.health.connecting()
            return await self._attempt(open_wire, "handshake")

    async def _attempt(self, open_wire: OpenWire, remembered: Era | None) -> Talk:
        talk = Talk(await open_wire(), self._listener, info=self._info, roots=self._roots)
        try:
            await talk.wire.open(talk)
            await greet(
                talk, info=self._info, remembered=remembered, probe_s=self._timing.probe_s,
                timeout_s=self._timing.greeting_s,
            )  # fmt: skip
            if self._roots:
                await given(talk, wait_s=self._timing.roots_s)
        except BaseException:
            await to_its_end(talk.close())
            raise
        return talk

    def _not_connected(self, error: OmniError) -> None:
        reason = error.detail[:REASON_LIMIT]
        self.health.failed(reason)
        self._fail_waiters(error)
        if not self._cared_for():
            self._wanted.clear()
        self._become("waiting" if self._cared_for() else "idle", reason)

    def _tell_watchers(self) -> None:
        """What is watched was asked for, or cannot be now."""
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _fail_waiters(self, error: OmniError) -> None:
        self._tell_watchers()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                kind = SandboxUnavailable if isinstance(error, SandboxUnavailable) else UpstreamUnavailable
                detail = f"{self.server}: {error.detail}"[:REASON_LIMIT]
                told = kind(error.message, detail=detail, data=error.data)
                told.passing = error.passing
                waiter.set_exception(told)

    def _become(self, state: State, reason: str) -> None:
        if state != self.state:
            self.state = state
            self._on_state(state, reason)


def _lasting(message: str, *, detail: str) -> UpstreamUnavailable:
    """Return the error for what another attempt at once would meet again."""
    error = UpstreamUnavailable(message, detail=detail)
    error.passing = False
    return error


async def _close(talk: Talk, reports: Reports) -> None:
    await reports.end()
    await talk.close()
