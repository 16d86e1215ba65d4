"""A policy set is all the rules in force at one time: immutable, checked as a whole, named by one hash."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cedarpy
from cedarpy import Decision as CedarDecision
from cedarpy import Entities, Schema

from omni_mcp.contracts.call import Question
from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.contracts.policy import Verdict
from omni_mcp.engines.policy.files import PolicyFile, read_policy_files
from omni_mcp.engines.policy.problems import problem_at
from omni_mcp.engines.policy.request import uid_text
from omni_mcp.engines.policy.rules import Rule, duplicates, parse_rules
from omni_mcp.engines.policy.slices import Head, Slices

SCHEMA_FILE = "omni.cedarschema"
MAX_RULES = 1000  # 0.8 ms a decision; beyond it the budget of a decision is in danger
JUDGEMENTS_KEPT = 4096
_OF_ONE_CALL = "args_digest"  # a rule that looks at it is asked anew for each call


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the rules say to one request. `spent_ns` is the processor time of asking them: none where it was known."""

    verdict: Verdict
    rules: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    question: Question | None = None
    spent_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """What comes with the package: the schema, and the rules that are always in force."""

    schema_text: str
    guardrails: tuple[PolicyFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySet:
    """Rules that were checked together. `version` is the sha256 of their texts and of the schema."""

    version: str
    rules: tuple[Rule, ...]
    warnings: tuple[Problem, ...]
    files: tuple[PolicyFile, ...]
    shipped: Shipped
    schema: Schema = field(repr=False)
    slices: Slices = field(repr=False)
    by_id: dict[str, Rule] = field(repr=False)
    known: dict[Hashable, Judgement] = field(repr=False, compare=False, default_factory=dict)

    def judge(
        self, request: JsonObject, entities: Entities, head: Head | None = None, *,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
    ) -> Judgement:  # fmt: skip
        """Decide one request by all the rules.

        Any evaluation error is a deny: Cedar leaves out a rule that fails, and a forbid left out would be an allow.
        A deny becomes an ask only if every forbid that stands is an approval rule, and the call would be allowed
        without the approval rules: nobody is asked about a call that a yes would not let through.

        What the rules looked at once they are not asked about again: a judgement follows from that alone.

        Args:
            head: whom and what the request is about, to leave out rules that cannot match; None looks at all.
            cpu_ns: this thread's processor time in nanoseconds.
        """
        key = None if head is None else self._key_of(request, entities, head)
        known = self.known.get(key) if key is not None else None
        if known is not None:
            return known
        started = cpu_ns()
        fresh = self._judge(request, entities, head)
        if key is not None and not fresh.errors:
            if len(self.known) >= JUDGEMENTS_KEPT:
                self.known.clear()
            self.known[key] = fresh
        return replace(fresh, spent_ns=cpu_ns() - started)

    def _key_of(self, request: JsonObject, entities: Entities, head: Head) -> Hashable:
        """Return all that the judgement follows from; None where that is different for each call.

        Raises:
            TypeError: the context holds something that JSON cannot say.
        """
        context = request["context"]
        canonical(context)  # also where no rule looks at it: what Cedar would refuse is not let through
        present = frozenset(context)
        seen = self.slices.of(head).seen(present)
        if seen is None or _OF_ONE_CALL in seen:
            return None
        shown = canonical({name: context[name] for name in seen & present})
        return head, request["action"]["id"], entities, present, shown

    def _judge(self, request: JsonObject, entities: Entities, head: Head | None) -> Judgement:
        handles = self.slices.whole if head is None else self.slices.of(head)
        answer = cedarpy.is_authorized(request, handles.everything, entities, self.schema)
        diagnostics = answer.diagnostics
        reasons = tuple(sorted(diagnostics.reasons))
        if diagnostics.errors:
            return Judgement("deny", reasons, tuple(diagnostics.errors))
        if answer.decision is CedarDecision.Allow:
            return Judgement("allow", reasons)
        if answer.decision is not CedarDecision.Deny:
            return Judgement("deny", (), ("the request could not be evaluated",))
        if not reasons or not all(self.by_id[rule].asks for rule in reasons):
            return Judgement("deny", reasons)
        beside = cedarpy.is_authorized(request, handles.without_approvals, entities, self.schema)
        if beside.diagnostics.errors:
            return Judgement("deny", reasons, tuple(beside.diagnostics.errors))
        if beside.decision is not CedarDecision.Allow:
            return Judgement("deny", reasons)
        return Judgement("ask", reasons, (), self._question(reasons))

    def _question(self, reasons: tuple[str, ...]) -> Question:
        rules = [self.by_id[rule] for rule in reasons]
        approvers = tuple(dict.fromkeys(name for rule in rules for name in rule.approvers))
        return Question(
            rules=reasons,
            approvers=approvers,
            policy_version=self.version,
            ttl_s=min(rule.ttl_s for rule in rules),
        )

    def could_allow(self, request: JsonObject, entities: Entities, head: Head) -> bool:
        """Say whether some context could let the request through, or bring it before a person.

        Approval rules are left out: only a call that the others allow can be asked about.
        """
        words = {key: uid_text(request[key]) for key in ("principal", "action", "resource")}
        answer = cedarpy.is_authorized_partial(words, self.slices.of(head).without_approvals, entities, self.schema)
        if answer.diagnostics.errors or answer.decision is CedarDecision.Deny:
            return False
        return answer.decision is CedarDecision.Allow or bool(answer.residuals)

    def with_rule(self, text: str) -> PolicySet:
        """Return this set and one more file with *text*.

        Raises:
            ConfigError: together they are no valid set.
        """
        return compile_policies([*self.files, PolicyFile("(added)", text)], self.shipped)


def read_shipped(directory: Path) -> Shipped:
    """Read the schema and the guardrails of the shipped *directory*.

    Raises:
        OSError: the package is not complete.
    """
    names = sorted((directory / "guardrails").glob("*.cedar"))
    if not names:
        raise FileNotFoundError(f"no guardrails in {directory}")
    guardrails = tuple(PolicyFile(f"guardrails/{path.name}", path.read_text("utf-8")) for path in names)
    return Shipped(schema_text=(directory / SCHEMA_FILE).read_text("utf-8"), guardrails=guardrails)


def load_policies(directory: Path, shipped: Shipped) -> PolicySet:
    """Read and check everything that would be in force with *directory*.

    Raises:
        UnsafePolicies: the directory is missing or others can write to it.
        ConfigError: a file is refused; every problem found is in it.
    """
    return compile_policies(read_policy_files(directory), shipped)


def compile_policies(files: Sequence[PolicyFile], shipped: Shipped) -> PolicySet:
    """Check *files* together with what ships and prepare them for deciding.

    Raises:
        ConfigError: every problem found: syntax, schema, ids, approvals that could not work.
    """
    schema = Schema.from_str(shipped.schema_text, release_gil=True)
    rules: list[Rule] = []
    problems: list[Problem] = []
    for group, is_shipped in ((shipped.guardrails, True), (files, False)):
        for file in group:
            found, faults = parse_rules(file.name, file.text, shipped=is_shipped)
            rules += found
            problems += faults
    problems += duplicates(rules)
    if len(rules) > MAX_RULES:
        problems.append(problem_at("policies", 0, "", f"{len(rules)} rules; at most {MAX_RULES} can be in force"))
    if not problems:
        problems = _schema_faults(rules, schema)
    if problems:
        raise ConfigError(problems)
    return PolicySet(
        version=_version(files, shipped),
        rules=tuple(rules),
        warnings=tuple(_warnings(rules)),
        files=tuple(files),
        shipped=shipped,
        schema=schema,
        slices=Slices(rules),
        by_id={rule.id: rule for rule in rules},
    )


def _schema_faults(rules: Sequence[Rule], schema: Schema) -> list[Problem]:
    """Check all rules against the schema: unknown types, actions and attributes, optional ones without `has`."""
    checked = cedarpy.validate_policies("\n".join(rule.text for rule in rules), schema, release_gil=True)
    problems = []
    for error in checked.errors:
        # Cedar names a rule by its place in the text: `policy0`, `policy1`, …
        place = error.policy_id.removeprefix("policy")
        rule = rules[int(place)] if place.isdigit() and int(place) < len(rules) else None
        message = error.error.removeprefix(f"for policy `{error.policy_id}`, ")
        problems.append(
            problem_at(rule.file if rule else "policies", rule.line if rule else 0, rule.id if rule else "", message)
        )
    if not checked.validation_passed and not problems:
        problems.append(problem_at("policies", 0, "", "the rules do not fit the schema"))
    return problems


def _warnings(rules: Iterable[Rule]) -> Iterable[Problem]:
    for rule in rules:
        if not rule.annotations.get("id"):
            yield problem_at(
                rule.file, rule.line, "@id", f"has no @id; it is recorded as {rule.id!r}, which moves with the file"
            )


def _version(files: Iterable[PolicyFile], shipped: Shipped) -> str:
    texts = {
        "schema": shipped.schema_text,
        "shipped": sorted((file.name, file.text) for file in shipped.guardrails),
        "files": sorted((file.name, file.text) for file in files),
    }
    return "sha256:" + hashlib.sha256(canonical(texts)).hexdigest()
