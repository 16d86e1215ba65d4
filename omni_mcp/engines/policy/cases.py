"""Policy tests: what rules should say to requests, written as YAML beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from cedarpy import Entities
from pydantic import Field, TypeAdapter, ValidationError

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.json import canonical
from omni_mcp.contracts.manifest import Binding, Closed, Labels, SideEffects
from omni_mcp.contracts.policy import Action, ApprovalFacts, StandingFacts, Verdict
from omni_mcp.contracts.tool import Entry, EntryKind
from omni_mcp.engines.policy.policy_set import Judgement, PolicySet
from omni_mcp.engines.policy.problems import problem_at
from omni_mcp.engines.policy.request import context_of, entities_of, people_of, request_of, resource_facts, uid

MAX_FILE_BYTES = 1024 * 1024
MAX_CASES = 2000
_KIND: dict[Action, EntryKind] = {"call_tool": "tool", "read_resource": "resource", "get_prompt": "prompt"}
_DIGEST = "sha256:" + "0" * 64


class CasePrincipal(Closed):
    """Who asks."""

    kind: Literal["User", "Agent"] = "Agent"
    id: str
    owner: str = ""
    project: str = "default"
    roles: tuple[str, ...] = ()


class CaseResource(Closed):
    """What is asked for. Labels that are left out carry the worst, as everywhere."""

    server: str
    name: str
    version: str = "0.0.0"
    binding: Binding = "inproc_safe"
    side_effects: SideEffects = "non_idempotent"
    labels: Labels = Labels()


class CaseApproval(Closed):
    """An approval of these very arguments unless `digest` says otherwise."""

    by: str
    roles: tuple[str, ...] = ()
    digest: str = _DIGEST


class CaseStanding(Closed):
    """A standing grant that covers the call."""

    by: str
    roles: tuple[str, ...] = ()


class CaseContext(Closed):
    """What else is known of the request."""

    args_bytes: int = 0
    egress_hosts: tuple[str, ...] = ()
    approval: CaseApproval | None = None
    standing: CaseStanding | None = None


class Case(Closed):
    """One request and the verdict that is expected; `by`, where given, names every determining rule."""

    name: str = ""
    principal: CasePrincipal
    action: Action
    resource: CaseResource
    context: CaseContext = CaseContext()
    expect: Verdict
    by: tuple[str, ...] | None = Field(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """How one case went. `message` is empty if it passed."""

    file: str
    name: str
    message: str
    judgement: Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseReport:
    """All results, and the ids of operator's rules that determined no case."""

    results: tuple[CaseResult, ...]
    uncovered: tuple[str, ...] = field(default=())

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        return tuple(result for result in self.results if result.message)


_CASES = TypeAdapter(list[Case])


def read_cases(file: Path) -> list[Case]:
    """Read the cases of one YAML file: a list.

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds something else than cases.
    """
    try:
        data = file.read_bytes()
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError([problem_at(str(file), 0, "", "is larger than 1 MiB")])
        cases = _CASES.validate_python(yaml.safe_load(data) or [])
    except OSError as error:
        raise ConfigError([problem_at(str(file), 0, "", f"cannot be read: {error.strerror}")]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        message = f"no YAML: {getattr(error, 'problem', None) or error}"
        raise ConfigError([problem_at(str(file), mark.line + 1 if mark else 0, "", message)]) from error
    except ValidationError as error:
        faults = [(".".join(str(part) for part in fault["loc"]), fault["msg"]) for fault in error.errors()]
        raise ConfigError([problem_at(str(file), 0, f"$.{path}", message) for path, message in faults]) from error
    if len(cases) > MAX_CASES:
        raise ConfigError([problem_at(str(file), 0, "", f"more than {MAX_CASES} cases; split the file")])
    return cases


def judge_case(case: Case, policies: PolicySet) -> Judgement:
    """Decide the request of one case."""
    who, what = case.principal, case.resource
    principal = Principal(kind=who.kind, id=who.id, owner=who.owner, project=who.project, roles=who.roles)
    entry = Entry(
        kind=_KIND[case.action],
        server=what.server,
        name=what.name,
        definition={},
        version=what.version,
        binding=what.binding,
        side_effects=what.side_effects,
        labels=what.labels,
    )
    facts = resource_facts(case.action, entry)
    if facts is None:
        raise ValueError(f"{case.action} is not for this kind of entry")
    approval, standing = case.context.approval, case.context.standing
    context = context_of(
        project=who.project,
        run="case",
        name=facts.id,
        arguments_digest=_DIGEST,
        arguments_bytes=case.context.args_bytes,
        egress=case.context.egress_hosts,
        approval=ApprovalFacts(id="case", by=approval.by, arguments_digest=approval.digest) if approval else None,
        standing=StandingFacts(id="case", by=standing.by) if standing else None,
    )
    roles = {person.by: person.roles for person in (standing, approval) if person is not None}
    entities = entities_of(principal, facts, tuple((user, roles[user]) for user in people_of(context)))
    handle = Entities.from_json_str(canonical(entities).decode(), policies.schema)
    return policies.judge(request_of(principal, case.action, uid(facts.type, facts.id), context), handle)


def run_cases(cases: Iterable[tuple[str, Case]], policies: PolicySet) -> CaseReport:
    """Run (file, case) pairs and say which rules none of them reached."""
    results: list[CaseResult] = []
    reached: set[str] = set()
    for number, (file, case) in enumerate(cases, start=1):
        judgement = judge_case(case, policies)
        reached.update(judgement.rules)
        message = _difference(case, judgement)
        results.append(CaseResult(file=file, name=case.name or f"case {number}", message=message, judgement=judgement))
    own = [rule.id for rule in policies.rules if not rule.shipped]
    return CaseReport(results=tuple(results), uncovered=tuple(rule for rule in own if rule not in reached))


def _difference(case: Case, judgement: Judgement) -> str:
    if judgement.errors:
        return f"could not be decided: {judgement.errors[0]}"
    if judgement.verdict != case.expect:
        by = ", ".join(judgement.rules) or "no rule"
        return f"expected {case.expect}, got {judgement.verdict} by {by}"
    if case.by is not None and sorted(case.by) != sorted(judgement.rules):
        expected = ", ".join(sorted(case.by)) or "no rule"
        return f"expected to be determined by {expected}, was by {', '.join(judgement.rules) or 'no rule'}"
    return ""
