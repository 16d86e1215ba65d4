"""A slice is the rules that can matter to one principal and one resource; deciding by it says what all rules would say.

Cedar looks at every rule of a set, 0.75 us each. A rule whose head names another principal, tool or server cannot
match, and its conditions are never evaluated, so leaving it out changes neither verdict, rules nor errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

from cedarpy import PolicySet as CedarSet
from cedarpy import pst

from omni_mcp.engines.policy.rules import Rule
from omni_mcp.engines.policy.sight import seen_by

PAIRS_CACHED = 16_384  # (principal, resource) pairs
HANDLES_CACHED = 1024  # most pairs share the same few rules
SIGHTS_CACHED = 4  # of one slice: a context has two optional fields


class Head(NamedTuple):
    """Whom and what a request is about. `resource_in` is the server's id."""

    principal: tuple[str, str]
    resource: tuple[str, str]
    resource_in: str


@dataclass(frozen=True, slots=True)
class Handles:
    """Rules as Cedar holds them: all of them, and those that no approval can lift."""

    everything: CedarSet
    without_approvals: CedarSet
    seen: Callable[[frozenset[str]], frozenset[str] | None]  # as `seen_by`, of everything


class Slices:
    """Slices of one set of rules, made when they are needed and kept."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._handles = lru_cache(maxsize=HANDLES_CACHED)(self._build)
        self._relevant = lru_cache(maxsize=PAIRS_CACHED)(self._find)
        self.whole = handles_of(self._rules)

    def of(self, head: Head) -> Handles:
        """Return the rules that can matter to *head*."""
        return self._handles(self._relevant(head))

    def _find(self, head: Head) -> tuple[int, ...]:
        return tuple(
            number
            for number, rule in enumerate(self._rules)
            if _may_match_principal(rule.node.principal, head.principal)
            and _may_match_resource(rule.node.resource, head.resource, head.resource_in)
        )

    def _build(self, numbers: tuple[int, ...]) -> Handles:
        if len(numbers) == len(self._rules):
            return self.whole
        return handles_of([self._rules[number] for number in numbers])


def handles_of(rules: Sequence[Rule]) -> Handles:
    """Build Cedar's own sets of *rules*."""
    seen = lru_cache(SIGHTS_CACHED)(partial(seen_by, [rule.node for rule in rules]))
    return Handles(_handle(rules), _handle(rule for rule in rules if not rule.asks), seen)


def _handle(rules: Iterable[Rule]) -> CedarSet:
    """Build a set with each rule under our id: what Cedar reports back is then what we record."""
    nodes = {rule.id: replace(rule.node, id=rule.id) for rule in rules}
    whole = pst.PolicySet(templates=pst.FrozenMap(), static_policies=pst.FrozenMap(nodes), template_links=())
    return CedarSet.from_pst(whole)


def _may_match_principal(scope: pst.PrincipalOrResourceConstraint, principal: tuple[str, str]) -> bool:
    """Groups of a principal are left to Cedar: only its own name and type are compared."""
    if isinstance(scope, pst.ScopeEq):
        return _uid(scope.entity) == principal
    if isinstance(scope, pst.ScopeIs | pst.ScopeIsIn):
        return str(scope.entity_type) == principal[0]
    return True


def _may_match_resource(scope: pst.PrincipalOrResourceConstraint, resource: tuple[str, str], server: str) -> bool:
    if isinstance(scope, pst.ScopeEq):
        return _uid(scope.entity) == resource
    if isinstance(scope, pst.ScopeIs | pst.ScopeIsIn) and str(scope.entity_type) != resource[0]:
        return False
    if isinstance(scope, pst.ScopeIn | pst.ScopeIsIn):
        return _uid(scope.entity) in (resource, ("Omni::Server", server))
    return True


def _uid(entity: pst.EntityOrSlot) -> tuple[str, str]:
    """Slots are refused when a rule is read; one here would match nothing."""
    return (str(entity.type), entity.id) if isinstance(entity, pst.EntityUid) else ("", "")
