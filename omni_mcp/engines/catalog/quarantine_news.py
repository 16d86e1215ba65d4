"""QuarantineNews: what is quarantined goes on record once, an event a server and a reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence

from omni_mcp.contracts.events import DefinitionQuarantined, QuarantinedDefinition
from omni_mcp.engines.catalog.acceptance import Waiting
from omni_mcp.turns import Work

NAMED_IN_EVENT = 200
ANALYSED_IN_EVENT = 8  # a look takes a few milliseconds
EVENTS_PER_SERVER = 64  # until the lock changes: a server that changes its list for ever must not fill the log
KEPT_EVENTS = 256  # while nobody listens

Key = tuple[str, str, str]


class QuarantineNews:
    """Remembers what was said of each server, and says what is new."""

    def __init__(self) -> None:
        self._said: dict[str, Mapping[Key, tuple[str, str]]] = {}
        self._events: dict[str, tuple[int, int]] = {}
        self._unheard: deque[DefinitionQuarantined] = deque(maxlen=KEPT_EVENTS)
        self._listener: Callable[[DefinitionQuarantined], object] | None = None

    def listen(self, listener: Callable[[DefinitionQuarantined], object]) -> None:
        """Have *listener* told, also of what came before anybody listened."""
        self._listener = listener
        while self._unheard:
            listener(self._unheard.popleft())

    def of(self, server: str, facts: Mapping[Key, tuple[str, str]], *, revision: int) -> frozenset[Key]:
        """Return what is to be told of, where *facts* are (digest, reason) of all that is quarantined of a server now:
        what was not, or for another reason, when this was asked last.

        Args:
            revision: of the lock; the limit of events begins anew with it.
        """
        before = self._said.get(server, {})
        self._said[server] = facts
        news = frozenset(key for key, fact in facts.items() if before.get(key) != fact)
        return news if news and self._may_tell(server, revision) else frozenset()

    def forget_all_but(self, servers: Container[str]) -> None:
        """Forget what was said of servers that offer nothing any more."""
        self._said = {server: said for server, said in self._said.items() if server in servers}

    def _may_tell(self, server: str, revision: int) -> bool:
        last, count = self._events.get(server, (revision, 0))
        count = count + 1 if last == revision else 1
        self._events[server] = revision, count
        return count <= EVENTS_PER_SERVER

    def tell(self, server: str, news: Sequence[Waiting]) -> Work[None]:
        """Tell of *news*, in turns."""
        for reason in dict.fromkeys(one.reason for one in news):
            of_reason = [one for one in news if one.reason == reason]
            named: list[QuarantinedDefinition] = []
            for number, one in enumerate(of_reason[:NAMED_IN_EVENT]):
                named.append(_named(one, looked_at=number < ANALYSED_IN_EVENT))
                yield
            self._pass_on(
                DefinitionQuarantined(
                    server=server, reason=reason, definitions=tuple(named),
                    more=max(0, len(of_reason) - NAMED_IN_EVENT),
                )
            )  # fmt: skip

    def _pass_on(self, event: DefinitionQuarantined) -> None:
        if self._listener is None:
            self._unheard.append(event)
        else:
            self._listener(event)


def _named(one: Waiting, *, looked_at: bool) -> QuarantinedDefinition:
    """Rules, places and kinds of change: never a text of the server, which would act on whoever reads the log."""
    if not looked_at:
        return QuarantinedDefinition(item=one.item, digest=one.digest)
    found = one.difference()
    return QuarantinedDefinition(
        item=one.item,
        digest=one.digest,
        severity=found.severity,
        findings=tuple(dict.fromkeys(finding.rule for finding in found.findings)),
        changes=tuple(dict.fromkeys(change.kind for change in found.changes)),
    )
