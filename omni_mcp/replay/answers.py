"""The outside world of an offline replay: what was recorded answers, in order, and nothing else does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.call import Answer, AskRefused, Call, CallerLink, InputRequired, Principal, Result
from omni_mcp.contracts.errors import NotRecorded, OmniError
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.json import JsonObject, JsonValue, digest
from omni_mcp.contracts.policy import ApprovalFacts
from omni_mcp.contracts.tool import CallKind
from omni_mcp.replay.recorded import RecordedCall, Step, error_of

CANCELLED = "cancelled"


class Answers:
    """Port `Executor` for every binding, and where the ids of calls come from.

    A call is the recorded one of the same principal, kind, name and arguments; of several, the first that was not asked
    yet. It gets that one's id, so that errors name the call that they named.
    """

    def __init__(self, calls: Iterable[RecordedCall]) -> None:
        self._waiting: dict[tuple[str, str, str, str], deque[RecordedCall]] = {}
        self._given: dict[str, RecordedCall] = {}
        self.unmatched: list[str] = []  # names of calls that were not recorded
        for call in sorted(calls, key=lambda one: one.gid):
            if call.arguments is not None:
                key = _key(call.principal, call.kind, call.name, call.arguments)
                self._waiting.setdefault(key, deque()).append(call)

    @property
    def given(self) -> int:
        """How many recorded calls were asked again."""
        return len(self._given)

    @property
    def left(self) -> list[RecordedCall]:
        """Recorded calls that nobody asked again."""
        return [call for queue in self._waiting.values() for call in queue]

    def id_of(self, principal: Principal, kind: CallKind, name: str, arguments: JsonObject) -> str:
        """Return the id for a new call."""
        queue = self._waiting.get(_key(principal, kind, name, arguments))
        if not queue:
            self.unmatched.append(name)
            return new_id()
        call = queue.popleft()
        self._given[call.id] = call
        return call.id

    def recorded(self, call: Call) -> RecordedCall:
        """Return what *call* was.

        Raises:
            NotRecorded: it was not made, or not once more.
        """
        found = self._given.get(call.id)
        if found is None:
            raise NotRecorded(
                f"the replay has no recorded answer to this call of {call.name!r}",
                detail="no call with this name and these arguments is left in what is replayed",
            )
        return found

    async def execute(self, call: Call) -> Result:
        """As the port: say what was said, and end as it ended.

        Raises:
            NotRecorded: there is no such call, or its caller answers otherwise than it did.
            OmniError: as recorded.
        """
        step = _step_of(call, self.recorded(call))
        await _say(call.link, step.said)
        if step.requests is not None:
            return InputRequired(requests=step.requests, where="remote")
        if step.result is not None:
            is_error = step.result.get("isError") is True
            return Answer(body=step.result, is_error=is_error, where=step.where, given=True)
        error = error_of(step.error or {})
        if error.code == CANCELLED:
            await asyncio.Event().wait()  # its caller took it back, and will again
        raise error


class RecordedDesk:
    """Port `Desk`: nobody is asked, what people answered then is their answer."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def ask(self, call: Call, question_rules: tuple[str, ...], policy_version: str) -> ApprovalFacts:
        """As the port.

        Raises:
            NotRecorded: nobody was asked then.
            OmniError: as recorded.
        """
        recorded = self._answers.recorded(call)
        decided = recorded.decided
        approval, standing = recorded.approval, decided.get("standing")
        if decided.get("verdict") != "allow" or not (approval or standing):
            last = recorded.steps[-1] if recorded.steps else Step()
            raise error_of(last.error) if last.error else _not_asked(call)
        bound_to = str((recorded.events[0].payload or {}).get("arguments_hmac"))
        if approval:
            return ApprovalFacts(id=str(approval["approval"]), by=str(approval["by"]), arguments_digest=bound_to)
        return ApprovalFacts(id=str(standing), by="standing grant", arguments_digest=bound_to)

    async def open_questions(self, *, project: str | None = None) -> list[Approval]:
        """As the port: there are none."""
        return []


def _key(principal: Principal, kind: str, name: str, arguments: JsonObject) -> tuple[str, str, str, str]:
    try:
        return principal.key, kind, name, digest(arguments)
    except TypeError:  # integers that the canonical form cannot say
        return principal.key, kind, name, repr(sorted(arguments.items()))


def _step_of(call: Call, recorded: RecordedCall) -> Step:
    number = call.round.number if call.round is not None else 1
    if number > len(recorded.steps):
        raise NotRecorded(f"the replay has no recorded answer to this round of {call.name!r}")
    step = recorded.steps[number - 1]
    if step.missing:
        raise NotRecorded(f"what {call.name!r} answered cannot be given again: {step.missing}")
    if call.round is not None and call.round.responses != step.responses:
        raise NotRecorded(f"{call.name!r} is answered otherwise than it was when it was recorded")
    return step


def _not_asked(call: Call) -> OmniError:
    return NotRecorded(f"nobody was asked about {call.name!r} when it was recorded", detail="the policy asks now")


async def _say(link: CallerLink, said: Sequence[list[JsonValue]]) -> None:
    """Tell the caller what it was told, and ask it what it was asked.

    Raises:
        NotRecorded: it answers otherwise.
    """
    asked: dict[int, asyncio.Task[JsonObject]] = {}
    try:
        for what, *note in said:
            if what == "progress":
                await link.progress(*note)
            elif what == "log":
                await link.log(*note)
            elif what == "ask":
                asked[note[0]] = asyncio.create_task(link.ask(note[1], note[2]))
                await asyncio.sleep(0)  # it is on its way before anything else is
            elif what == "refused":
                with suppress(AskRefused):
                    await asked.pop(note[0])
                    raise NotRecorded("a question is answered that was refused when it was recorded")
            elif await _answered(asked.pop(note[0])) != note[1]:
                raise NotRecorded("a question is answered otherwise than it was when it was recorded")
    finally:
        for task in asked.values():
            task.cancel()
        await asyncio.gather(*asked.values(), return_exceptions=True)


async def _answered(question: asyncio.Task[JsonObject]) -> JsonObject | None:
    try:
        return await question
    except AskRefused:
        return None
