"""What each run has read: the labels of the tools whose answers it saw, and of the memory that it was given.

An item carries them as taint. They are kept for as long as the process lives, because no run outlives it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from typing import get_args

from omni_mcp.chain.decide import ACTIONS
from omni_mcp.contracts.call import Call, Handler, Result
from omni_mcp.contracts.json import canonical
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.memory import SERVER, Taint
from omni_mcp.contracts.ports import Policy, RunLog

TAINTS: tuple[Taint, ...] = get_args(Taint)
RUNS_KEPT = 20_000


class Readings:
    """The stage that notes what runs read. A call counts from its dispatch on: a tool may talk before it answers.

    The memory itself is left out: what is in it carries its own taint, and says so when it is read.
    """

    def __init__(self, *, keep: int = RUNS_KEPT) -> None:
        self._keep = keep
        self._read: OrderedDict[str, frozenset[Taint]] = OrderedDict()
        self._under_way: dict[str, list[tuple[Call, frozenset[Taint]]]] = {}
        self._forgotten_up_to = ""

    def __call__(self, call: Call, proceed: Handler) -> Awaitable[Result]:
        if call.tool is None or call.tool.server == SERVER or not (labels := taints_of(call.tool.labels)):
            return proceed(call)
        return self._noted(call, proceed, labels)

    async def _noted(self, call: Call, proceed: Handler, labels: frozenset[Taint]) -> Result:
        run, mine = call.asked_in or call.run, (call, labels)
        self._under_way.setdefault(run, []).append(mine)
        try:
            return await proceed(call)
        finally:
            self._leave(run, mine)
            if call.trail.dispatched:
                self.note(run, labels)

    def note(self, run: str, labels: Iterable[Taint]) -> None:
        """Note that *run* read something that carries *labels*."""
        if not (fresh := frozenset(labels)):
            return
        self._read[run] = fresh | frozenset(self.of(run))
        self._read.move_to_end(run)
        while len(self._read) > self._keep:
            oldest, _ = self._read.popitem(last=False)
            self._forgotten_up_to = max(self._forgotten_up_to, oldest)

    def of(self, run: str) -> tuple[Taint, ...]:
        """Return what *run* has read. Of a run that nobody remembers any more, the worst is assumed."""
        if run not in self._read and run <= self._forgotten_up_to:  # ids of runs grow with time
            return TAINTS
        found = set(self._read.get(run, ()))
        for call, labels in self._under_way.get(run, ()):
            found |= labels if call.trail.dispatched else frozenset()
        return tuple(sorted(found))

    def _leave(self, run: str, mine: tuple[Call, frozenset[Taint]]) -> None:
        here = self._under_way[run]
        here.remove(mine)
        if not here:
            del self._under_way[run]


def taints_of(labels: Labels) -> frozenset[Taint]:
    """Return the labels that taint whoever reads."""
    return frozenset(taint for taint in TAINTS if getattr(labels, taint))


def kept_out(policy: Policy, log: RunLog, call: Call) -> tuple[Taint, ...]:
    """Return which tainted items the policy keeps from this call.

    The policy is asked once more, as if the memory carried the label: where that changes the answer, items that carry
    it are left out. So a rule about `resource.reads_untrusted` holds for what is remembered, too.
    """
    assert call.tool is not None
    plain = call.tool

    def asked(labels: Labels) -> tuple[str, frozenset[str]]:
        decision = policy.decide(
            action=ACTIONS[call.kind],
            principal=call.principal,
            entry=replace(plain, labels=labels),
            name=call.name,
            run=call.run,
            arguments_digest=log.arguments_hmac(call.arguments),
            arguments_bytes=len(canonical(call.arguments)),
        )
        return decision.verdict, frozenset(decision.rules if decision.verdict != "allow" else ())

    answers = {taint: plain.labels.model_copy(update={taint: True}) for taint in TAINTS}
    wanted = [taint for taint in TAINTS if answers[taint] != plain.labels]
    now = asked(plain.labels) if wanted else None
    return tuple(taint for taint in wanted if asked(answers[taint]) != now)
