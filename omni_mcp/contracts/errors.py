"""Every way in which a call can end without the tool's answer, and every error a client or a person can see.

The tree has two branches for calls: `Refused` (nothing was dispatched) and `Failed` (something was, or may have been).
Each class has a stable code; `CATALOGUE` says for each code whether a retry can help and what to do next.
An error has two readers: the message is for the client and gives nothing away, `detail` is for the run log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Category = Literal["refused", "failed", "unknown", "request", "operator"]
Retry = Literal["no", "same", "after_change", "later"]

DRAINING_RETRY_S = 5.0  # by then another gateway has taken over, or this one has started again


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """What a code means to whoever meets it; `docs/reference/errors.md` is made from these."""

    code: str
    category: Category
    retry: Retry
    http_status: int
    meaning: str
    recovery: str


class OmniError(Exception):
    """Base of all errors of this package.

    Args:
        message: for the client; names nothing that the client did not send.
        detail: for the run log and operators.
        data: for the client, structured (a JSON path, an approval id, seconds to wait).
    """

    code: ClassVar[str] = "internal"
    passing: bool | None = None  # whether the same call may do better in a moment; None: as the catalogue says
    ends_s: float | None = None  # loop time at which the call's own time is over, where who ran it knows

    def __init__(self, message: str, *, detail: str = "", data: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail or message
        self.data = data or {}


class Refused(OmniError):
    """The call was not dispatched."""


class Failed(OmniError):
    """The call was dispatched, or may have been, and no answer of the tool can be given."""


class NotAllowed(Refused):
    """No rule allows the call, or there is no such tool: one answer, so a refusal maps out nothing."""

    code = "policy_denied"

    def __init__(self, name: str, *, detail: str) -> None:
        super().__init__(f"{name!r} is not available to you", detail=detail)


class ApprovalPending(Refused):
    """The wait for a person is over, the question is still open: ask again later with the same arguments."""

    code = "approval_pending"


class ApprovalDenied(Refused):
    """A person said no."""

    code = "approval_denied"


class ApprovalExpired(Refused):
    """Nobody answered in time."""

    code = "approval_expired"


class InvalidArguments(Refused):
    """The arguments do not fit the tool's input schema."""

    code = "invalid_arguments"


class Quarantined(Refused):
    """The definition is new or changed and nobody accepted it."""

    code = "quarantined"


class RateLimited(Refused):
    """Too many calls in a span of time, or too many waiting ones."""

    code = "rate_limited"


class QuotaExceeded(Refused):
    """The run has as many events as it may have, or the principal as many bytes of artifacts."""

    code = "quota_exceeded"


class BudgetExceeded(Refused):
    """The budget of the project or agent is spent."""

    code = "budget_exceeded"


class PinMissing(Refused):
    """The project is pinned to a version that is not there."""

    code = "pin_missing"


class Paused(Refused):
    """An operator paused the tool or its server."""

    code = "paused"


class Draining(Refused):
    """The gateway takes no new calls; those under way go on."""

    code = "draining"

    def __init__(self) -> None:
        super().__init__("the gateway is draining and takes no new calls", data={"retry_after_s": DRAINING_RETRY_S})


class Frozen(Refused):
    """An operator froze the project."""

    code = "frozen"


class SandboxUnavailable(Refused):
    """The isolation that the tool demands cannot be had here."""

    code = "sandbox_unavailable"


class LogUnavailable(Refused):
    """The run log cannot be written, so nothing may run."""

    code = "log_unavailable"


class InvalidResult(Failed):
    """The tool answered with something that its output schema, or the protocol, does not allow."""

    code = "invalid_result"


class TimedOut(Failed):
    """The deadline has passed; the tool was stopped."""

    code = "timeout"


class Cancelled(Failed):
    """The caller cancelled; the tool was stopped and may have taken effect."""

    code = "cancelled"


class SandboxKilled(Failed):
    """The tool was ended by a limit of its sandbox, or could not be started in it."""

    code = "sandbox_killed"


class UpstreamUnavailable(Failed):
    """The server behind the tool cannot be reached."""

    code = "upstream_unavailable"


class UpstreamProtocol(Failed):
    """The server behind the tool broke the protocol."""

    code = "upstream_protocol"


class UpstreamRefused(Failed):
    """The server behind it refused the request in words that the protocol has; `data` holds them."""

    code = "upstream_refused"


class CapabilityMissing(Failed):
    """The server behind it needs something of the client that it never declared; `data` names it."""

    code = "capability_missing"


class OutcomeUnknown(Failed):
    """The call may or may not have taken effect."""

    code = "outcome_unknown"


class MemoryUnavailable(Failed):
    """The memory cannot be read or written."""

    code = "memory_unavailable"


class NotRecorded(Failed):
    """A replay without the outside world has no recorded answer to this call, or to this round of it."""

    code = "not_recorded"


class Internal(Failed):
    """A fault of this package."""

    code = "internal"


class AccessRefused(OmniError):
    """A request other than a call (completion, subscription, another principal's run) is not allowed."""

    code = "access_refused"


class NotFound(OmniError):
    """There is no such thing, or none that the asker may see."""

    code = "not_found"


class Conflict(OmniError):
    """Somebody else was first: already decided, already used, already running."""

    code = "conflict"


class BadRequest(OmniError):
    """The request cannot be understood; `data` holds the place."""

    code = "invalid_request"


class Unauthenticated(OmniError):
    """No valid credential came with the request."""

    code = "unauthenticated"


class NotForClients(OmniError):
    """Only the gateway itself, or a person, does this."""

    code = "forbidden"


class TooLarge(OmniError):
    """A body, line or header is over its limit."""

    code = "too_large"


class Overloaded(OmniError):
    """A bounded queue is full or the process is draining."""

    code = "overloaded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One fault in a file that a person wrote.

    `path` is a JSON path such as `$.binding.kind`; `line` counts from 1, 0 where the whole file is meant.
    """

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class ConfigError(OmniError):
    """Files that a person wrote (settings, policies, manifests, profiles) are refused as a whole."""

    code = "config_invalid"

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class LogCorrupt(OmniError):
    """The run log on disk does not verify or cannot be opened."""

    code = "log_corrupt"


class AlreadyRunning(OmniError):
    """Another gateway holds the data directory."""

    code = "already_running"


def _entry(
    code: str, category: Category, retry: Retry, http_status: int, meaning: str, recovery: str
) -> tuple[str, CatalogueEntry]:
    return code, CatalogueEntry(
        code=code, category=category, retry=retry, http_status=http_status, meaning=meaning, recovery=recovery
    )


CATALOGUE: dict[str, CatalogueEntry] = dict(
    [
        _entry(
            "policy_denied",
            "refused",
            "after_change",
            403,
            "No rule allows this call, or there is no such tool.",
            "Run `omni-mcp explain CALL`: it names the rule and prints the smallest grant that would allow the call.",
        ),
        _entry(
            "approval_pending",
            "refused",
            "same",
            202,
            "A person has to answer first; the question is still open.",
            "Answer with `omni-mcp approvals approve ID`, then send the same call again.",
        ),
        _entry(
            "approval_denied",
            "refused",
            "no",
            403,
            "A person said no to this call.",
            "Ask the person who decided; other arguments are another question.",
        ),
        _entry(
            "approval_expired",
            "refused",
            "same",
            403,
            "Nobody answered in time.",
            "Send the call again to ask again; `omni-mcp approvals list` shows what waits.",
        ),
        _entry(
            "invalid_arguments",
            "refused",
            "after_change",
            422,
            "The arguments do not fit the tool's input schema.",
            "Mend the argument at the given path; `omni-mcp tools show TOOL` prints the schema.",
        ),
        _entry(
            "quarantined",
            "refused",
            "after_change",
            403,
            "The definition is new or changed and not accepted.",
            "Look at the change and accept it: `omni-mcp accept SERVER`.",
        ),
        _entry(
            "rate_limited",
            "refused",
            "later",
            429,
            "Too many calls in a short time, or too many waiting.",
            "Wait for the seconds given in `retry_after_s`, then send the call again.",
        ),
        _entry(
            "quota_exceeded",
            "refused",
            "no",
            429,
            "The run has reached its number of events, or the principal its bytes of artifacts.",
            "Start a new run, or raise `limits.events_per_run` in omni.toml. For artifacts: erase runs, or raise "
            "`limits.artifact_bytes_per_principal`.",
        ),
        _entry(
            "budget_exceeded",
            "refused",
            "no",
            402,
            "The budget is spent.",
            "Raise the budget or wait for the next period.",
        ),
        _entry(
            "pin_missing",
            "refused",
            "after_change",
            409,
            "The pinned version of the tool is not there.",
            "Install that version again or change the pin.",
        ),
        _entry("paused", "refused", "later", 503, "An operator paused the tool.", "See the note in `omni-mcp status`."),
        _entry(
            "draining",
            "refused",
            "later",
            503,
            "The gateway takes no new calls now; those under way go on.",
            "Send the call again in `retry_after_s` seconds, or at another gateway. The operator sees with "
            "`omni-mcp status` what it waits for; `omni-mcp undrain` takes calls again.",
        ),
        _entry(
            "frozen", "refused", "later", 503, "An operator froze the project.", "`omni-mcp unfreeze PROJECT` ends it."
        ),
        _entry(
            "not_recorded",
            "failed",
            "no",
            409,
            "This is a replay, and no recorded call has this name and these arguments.",
            "Send what was sent in the run that is replayed: `omni-mcp runs show RUN` lists its calls.",
        ),
        _entry(
            "sandbox_unavailable",
            "refused",
            "after_change",
            503,
            "The isolation that the tool demands cannot be had here.",
            "Run `omni-mcp doctor`: it says which layer is missing and how to get it.",
        ),
        _entry(
            "log_unavailable",
            "refused",
            "later",
            503,
            "The run log cannot be written, so nothing runs.",
            "Free the disk or the lock on the data directory; calls are served again without a restart.",
        ),
        _entry(
            "invalid_result",
            "failed",
            "no",
            502,
            "The tool's answer does not fit its output schema.",
            "Report it to the tool's author; `omni-mcp runs show RUN` holds the path.",
        ),
        _entry(
            "timeout",
            "failed",
            "later",
            504,
            "The deadline passed and the tool was stopped; it may have taken effect.",
            "Check the effect before sending it again. The limit is `limits.timeout_s` of a manifest; a server has its "
            "own: `omni-mcp servers set SERVER --timeout SECONDS`.",
        ),
        _entry(
            "cancelled",
            "failed",
            "same",
            499,
            "The caller cancelled; the tool was stopped and may have taken effect.",
            "Check the effect before sending it again.",
        ),
        _entry(
            "sandbox_killed",
            "failed",
            "after_change",
            502,
            "A limit of the sandbox ended the tool, or it could not be started.",
            "The record names the limit; change the arguments, or the manifest's limits.",
        ),
        _entry(
            "upstream_unavailable",
            "failed",
            "later",
            502,
            "The server behind the tool cannot be reached.",
            "Run `omni-mcp doctor`: it shows which servers fail and the last lines they wrote.",
        ),
        _entry(
            "upstream_protocol",
            "failed",
            "no",
            502,
            "The server behind the tool broke the protocol.",
            "Report it to the server's author; the record holds what came.",
        ),
        _entry(
            "upstream_refused",
            "failed",
            "after_change",
            400,
            "The server behind it refused the request as one that it does not know or cannot take.",
            "Mend the arguments; the server's own words are in `upstream_error`.",
        ),
        _entry(
            "capability_missing",
            "failed",
            "no",
            400,
            "The server behind it needs a capability that the client did not declare.",
            "Use a client that has it, or a tool that needs none.",
        ),
        _entry(
            "outcome_unknown",
            "unknown",
            "no",
            502,
            "The call may or may not have taken effect.",
            "Look at the effect itself before doing anything again.",
        ),
        _entry(
            "memory_unavailable",
            "failed",
            "later",
            503,
            "The memory cannot be read or written now; nothing of it was changed.",
            "Free the disk or the lock on `memory.db`; if the record calls it damaged, restore it from a backup.",
        ),
        _entry(
            "internal",
            "failed",
            "later",
            500,
            "A fault of the gateway.",
            "Report it with the call id; `omni-mcp runs show RUN` holds the detail.",
        ),
        _entry(
            "access_refused",
            "request",
            "after_change",
            403,
            "This request is not allowed to you.",
            "Ask the operator for a grant.",
        ),
        _entry("not_found", "request", "no", 404, "There is no such thing, or none that you may see.", "Check the id."),
        _entry("conflict", "request", "no", 409, "It is already decided, used or running.", "Look at its state first."),
        _entry(
            "invalid_request",
            "request",
            "after_change",
            400,
            "The request cannot be understood.",
            "Mend the place named.",
        ),
        _entry(
            "unauthenticated",
            "request",
            "after_change",
            401,
            "No valid credential came with the request.",
            "Send `Authorization: Bearer TOKEN`; `omni-mcp keys create NAME` makes one.",
        ),
        _entry(
            "forbidden",
            "request",
            "no",
            403,
            "Only the gateway or a person does this.",
            "Use the command line as the operator.",
        ),
        _entry(
            "too_large",
            "request",
            "after_change",
            413,
            "The message is over its size limit.",
            "Send less, or an artifact.",
        ),
        _entry(
            "overloaded",
            "request",
            "later",
            503,
            "A queue is full or the gateway is draining.",
            "Wait, then try again.",
        ),
        _entry(
            "config_invalid",
            "operator",
            "after_change",
            500,
            "A file that a person wrote is refused.",
            "Mend the file at the line named; the last good one stays in force.",
        ),
        _entry(
            "log_corrupt",
            "operator",
            "no",
            500,
            "The run log does not open or verify.",
            "Run `omni-mcp audit verify`; restore from a backup, never delete the file.",
        ),
        _entry(
            "already_running",
            "operator",
            "no",
            409,
            "Another gateway holds the data directory.",
            "Use it, or stop it first: `omni-mcp status`.",
        ),
    ]
)


def classes_by_code() -> dict[str, type[OmniError]]:
    """Return the error class of each code."""
    found: dict[str, type[OmniError]] = {}
    todo = list(OmniError.__subclasses__())
    while todo:
        cls = todo.pop()
        todo.extend(cls.__subclasses__())
        if "code" in cls.__dict__:
            found[cls.code] = cls
    return found
