"""What the policy is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from omni_mcp.contracts.call import Question
from omni_mcp.contracts.json import JsonObject

Action = Literal["call_tool", "read_resource", "get_prompt"]
Verdict = Literal["allow", "ask", "deny"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalFacts:
    """An approval as the policy sees it: who gave it and what it is bound to."""

    id: str
    by: str
    arguments_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingFacts:
    """A standing grant as the policy sees it: who gave it. That it covers the call is known already."""

    id: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One verdict of one policy version, with all that is needed to explain it and to decide it again.

    `rules` are the `@id`s of the determining policies: the permits of an allow, the forbids of a deny or ask;
    empty for "no rule matched". `request` is the full Cedar request. `standing` is the id of the standing grant without
    which it would have been an ask.
    """

    verdict: Verdict
    policy_version: str
    rules: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    question: Question | None = None
    standing: str | None = None
    request: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a decision came out as it did, for people.

    `rules` holds `{"id", "effect", "file", "text"}` of each determining rule; `smallest_grant` is Cedar text that
    would turn a deny into an allow, or None where no grant can (a guardrail forbids it).
    """

    verdict: Verdict
    summary: str
    rules: tuple[JsonObject, ...] = ()
    smallest_grant: str | None = None
    next_step: str = ""
