"""The policy decides every request by one version of the rules, and whatever goes wrong is a deny."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from cedarpy import Entities, Schema

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import JsonObject, canonical, digest
from omni_mcp.contracts.policy import Action, ApprovalFacts, Decision, StandingFacts
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.policy.files import BusySystem, UnsafePolicies
from omni_mcp.engines.policy.policy_set import PolicySet, Shipped, load_policies, read_shipped
from omni_mcp.engines.policy.request import (
    RESOURCE_TYPE,
    People,
    ResourceFacts,
    context_of,
    entities_of,
    is_plain_id,
    people_of,
    request_of,
    resource_facts,
    standing_of,
    uid,
)
from omni_mcp.engines.policy.slices import Head

BUDGET_MS = 250.0  # a decision at 1,000 rules takes 1 ms; a full garbage collection in the middle of one, tens of ms
ENTITY_CACHE = 8192
LISTS_CACHED = 256  # callers whose lists are kept
ENTRIES_CACHED = 20_000  # entries per caller
_NOT_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)


def no_roles(user: str) -> tuple[str, ...]:
    """Nobody has a role: who approves is known by name only."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """What became of one attempt to read the files again.

    `problems` is empty when the new rules are in force. `denies_all` says that nothing is allowed until it is mended;
    `busy` that the files could not be looked at for want of descriptors or memory, and will be again.
    """

    version: str
    previous: str
    rules: int
    problems: tuple[Problem, ...] = ()
    denies_all: bool = False
    busy: bool = False

    @property
    def changed(self) -> bool:
        """Whether another version is in force now."""
        return self.version != self.previous


@dataclass(frozen=True, slots=True)
class _InForce:
    """One version with the lists that were made by it; replaced as a whole, so no decision mixes two."""

    version: str
    rules: PolicySet | None
    problems: tuple[Problem, ...] = ()
    lists: dict[tuple[Action, Principal], dict[str, bool]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A principal and an entry, as rules see them. `alone` is without people who said yes."""

    principal: Principal
    entry: Entry
    action: Action
    facts: ResourceFacts
    head: Head
    alone: tuple[Entities, list[JsonObject]]
    request: JsonObject


class CedarPolicy:
    """Rules of a directory and the guardrails, behind the port `Policy`.

    Args:
        directory: the operator's policy files.
        shipped: the shipped schema and guardrails.
        budget_ms: processor time after which a decision is a deny. Processor time, not wall time: a busy machine must
            not turn a right answer into a refusal.
        roles_of: the roles of a user who approves, for rules such as `context.approval.by in Omni::Role::"lead"`.
        cpu_ns: this thread's processor time in nanoseconds.
    """

    def __init__(
        self,
        directory: Path,
        shipped: Shipped,
        *,
        budget_ms: float = BUDGET_MS,
        roles_of: Callable[[str], Sequence[str]] = no_roles,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self._directory = directory
        self._shipped = shipped
        self._budget_ns = int(budget_ms * 1_000_000)
        self._roles_of = roles_of
        self._cpu_ns = cpu_ns
        self._schema = Schema.from_str(shipped.schema_text)
        self._entities = lru_cache(maxsize=ENTITY_CACHE)(self._build_entities)
        self._pairs: dict[tuple[int, int], _Pair] = {}  # by the very objects: they never change
        self._reloading = threading.Lock()
        self._in_force = self._load_first()

    @property
    def directory(self) -> Path:
        """The operator's directory."""
        return self._directory

    @property
    def version(self) -> str:
        """sha256 of everything that decides; `deny-all:…` while nothing can be allowed."""
        return self._in_force.version

    @property
    def rules(self) -> PolicySet | None:
        """The rules in force; None while everything is denied."""
        return self._in_force.rules

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Why everything is denied; empty otherwise."""
        return self._in_force.problems

    def decide(
        self,
        *,
        action: Action,
        principal: Principal,
        entry: Entry | None,
        name: str,
        run: str,
        arguments_digest: str,
        arguments_bytes: int,
        egress: Sequence[str] = (),
        approval: ApprovalFacts | None = None,
        standing: StandingFacts | None = None,
    ) -> Decision:
        """Decide one request; see the port. Never raises."""
        now = self._in_force
        try:
            context = context_of(
                project=principal.project,
                run=run,
                name=name,
                arguments_digest=arguments_digest,
                arguments_bytes=arguments_bytes,
                egress=egress,
                approval=approval,
            )
            decision = self._decide(now, action, principal, entry, name, context)
            if standing is not None and decision.verdict == "ask":
                # Only here: a standing grant stands for a person's yes, and a yes allows nothing by itself.
                granted = {**context, "standing": standing_of(standing)}
                under_grant = self._decide(now, action, principal, entry, name, granted)
                if under_grant.verdict == "allow":
                    decision = replace(under_grant, standing=standing.id)
        except BaseException as error:
            # A panic of the extension is no Exception; letting one through would be an answer nobody gave.
            if isinstance(error, _NOT_OURS):
                raise
            return Decision(verdict="deny", policy_version=now.version, errors=(f"{type(error).__name__}: {error}",))
        return decision

    def _in_time(self, decision: Decision, spent_ns: int) -> Decision:
        if spent_ns <= self._budget_ns:
            return decision
        late = f"the decision took {spent_ns / 1e6:.1f} ms, more than its budget"
        return replace(decision, verdict="deny", question=None, standing=None, errors=(*decision.errors, late))

    def _decide(
        self,
        now: _InForce,
        action: Action,
        principal: Principal,
        entry: Entry | None,
        name: str,
        context: JsonObject,
    ) -> Decision:
        pair = self._pair_of(action, principal, entry) if entry is not None else None
        if pair is None:
            request = request_of(principal, action, uid(RESOURCE_TYPE[action], name), context)
            canonical(request)  # what cannot be recorded is an error here, not in the log
            return Decision(verdict="deny", policy_version=now.version, request={**request, "known": False})
        handle, entities = pair.alone
        if people := people_of(context):
            with_roles = tuple((user, tuple(sorted(set(self._roles_of(user))))) for user in people)
            handle, entities = self._entities(principal, pair.facts, with_roles)
        request = {**pair.request, "context": context}
        record = {**request, "entities": entities}
        if now.rules is None:
            errors = tuple(str(problem) for problem in now.problems)
            return Decision(verdict="deny", policy_version=now.version, errors=errors, request=record)
        judgement = now.rules.judge(request, handle, pair.head, cpu_ns=self._cpu_ns)
        decision = Decision(
            verdict=judgement.verdict,
            policy_version=now.version,
            rules=judgement.rules,
            errors=judgement.errors,
            question=judgement.question,
            request=record,
        )
        return self._in_time(decision, judgement.spent_ns)

    def _pair_of(self, action: Action, principal: Principal, entry: Entry) -> _Pair | None:
        """Return what is the same in all requests of *principal* for *entry*; None if there can be none."""
        key = id(principal), id(entry)
        known = self._pairs.get(key)
        if known is not None and known.principal is principal and known.entry is entry and known.action == action:
            return known
        facts = resource_facts(action, entry)
        if facts is None:
            return None
        if len(self._pairs) >= ENTITY_CACHE:
            self._pairs.clear()
        made = self._pairs[key] = _Pair(
            principal=principal, entry=entry, action=action, facts=facts, head=_head(principal, facts),
            alone=self._entities(principal, facts, ()),
            request=request_of(principal, action, uid(facts.type, facts.id), {}),
        )  # fmt: skip
        return made

    def _build_entities(
        self, principal: Principal, facts: ResourceFacts, people: People
    ) -> tuple[Entities, list[JsonObject]]:
        names = [name for user, roles in people for name in (user, *roles)]
        ids = (principal.id, facts.id, facts.server, principal.project, *principal.roles, *names)
        for text in ids:
            if not is_plain_id(text):
                raise ValueError("an id is empty, too long or holds characters that cannot be printed")
        entities = entities_of(principal, facts, people)
        return Entities.from_json_str(canonical(entities).decode(), self._schema), entities

    def visible(self, *, action: Action, principal: Principal, entries: Sequence[Entry]) -> list[bool]:
        """Say which entries could be allowed or asked about; see the port. What cannot be evaluated is hidden."""
        now = self._in_force
        if now.rules is None:
            return [False] * len(entries)
        known = self._list_of(now, action, principal)
        found = [known.get(entry.digest) if entry.state != "quarantined" else False for entry in entries]
        for place, seen in enumerate(found):
            if seen is None:
                found[place] = self._could_allow(now.rules, action, principal, entries[place])
                known[entries[place].digest] = bool(found[place])
        return [bool(seen) for seen in found]

    def _list_of(self, now: _InForce, action: Action, principal: Principal) -> dict[str, bool]:
        key = (action, principal)
        known = now.lists.get(key)
        if known is None or len(known) > ENTRIES_CACHED:
            if len(now.lists) >= LISTS_CACHED:
                now.lists.clear()
            known = now.lists[key] = {}
        return known

    def _could_allow(self, rules: PolicySet, action: Action, principal: Principal, entry: Entry) -> bool:
        try:
            facts = resource_facts(action, entry)
            if facts is None:
                return False
            handle, _ = self._entities(principal, facts, ())
            request = request_of(principal, action, uid(facts.type, facts.id), {})
            return rules.could_allow(request, handle, _head(principal, facts))
        except BaseException as error:  # as in decide: what cannot be evaluated is not shown
            if isinstance(error, _NOT_OURS):
                raise
            return False

    def _load_first(self) -> _InForce:
        try:
            rules = load_policies(self._directory, self._shipped)
        except ConfigError as error:
            return _denying_all(error)
        return _InForce(rules.version, rules)

    def reload(self) -> Reload:
        """Read the files again. Broken ones change nothing; unsafe or missing ones deny everything until mended."""
        with self._reloading:
            before = self._in_force
            problems: tuple[Problem, ...] = ()
            busy = False
            try:
                rules = load_policies(self._directory, self._shipped)
                if rules.version != before.version:
                    self._in_force = _InForce(rules.version, rules)
            except UnsafePolicies as error:
                problems = error.problems
                self._in_force = _denying_all(error)
            except BusySystem as error:
                problems, busy = error.problems, True
            except ConfigError as error:
                problems = error.problems
            now = self._in_force
            count = len(now.rules.rules) if now.rules else 0
            return Reload(
                version=now.version,
                previous=before.version,
                rules=count,
                problems=problems,
                denies_all=now.rules is None,
                busy=busy,
            )


def _head(principal: Principal, facts: ResourceFacts) -> Head:
    return Head((f"Omni::{principal.kind}", principal.id), (facts.type, facts.id), facts.server)


def _denying_all(error: ConfigError) -> _InForce:
    reasons = [str(problem) for problem in error.problems]
    return _InForce("deny-all:" + digest(reasons), None, error.problems)


def open_policy(directory: Path, shipped: Path, *, budget_ms: float = BUDGET_MS) -> CedarPolicy:
    """Open the policy of *directory* with what ships in *shipped* (`paths.bundled("policies")`).

    A broken, missing or unsafe *directory* is no error here: everything is denied, and `problems` says why.

    Raises:
        OSError: the shipped directory is not complete.
    """
    return CedarPolicy(directory, read_shipped(shipped), budget_ms=budget_ms)
