"""Which of several providers serves a key: selection, then capability, stack, priority, registration.

The first tier in which two candidates differ decides between them. The order of registration never ties, so there is
always exactly one winner.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from omni_mcp.contracts.errors import Conflict, NotFound
from omni_mcp.contracts.json import JsonObject

T = TypeVar("T")
Tier = Literal["selection", "capability", "stack", "priority", "registration"]
TIERS: tuple[Tier, ...] = ("selection", "capability", "stack", "priority", "registration")
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Generic[T]):
    """One provider for a key.

    `capabilities` are what it says it can do; `stack` is the layer that brought it (0 bundled, 1 plugin, 2 the
    operator's own), higher wins; so does a higher `priority`.
    """

    provider: str
    value: T
    capabilities: frozenset[str] = NOTHING
    stack: int = 0
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One candidate's place in the order. `lost_in` is the tier that put it behind the winner; None for the winner."""

    provider: str
    lost_in: Tier | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Why the winner won: the whole order, best first."""

    domain: str
    key: str
    order: tuple[Standing, ...]

    @property
    def winner(self) -> str:
        return self.order[0].provider

    def as_json(self) -> JsonObject:
        """Return it as the command line prints it."""
        losers = [{"provider": one.provider, "lost_in": one.lost_in} for one in self.order[1:]]
        return {"domain": self.domain, "key": self.key, "winner": self.winner, "losers": losers}


_Rank = tuple[bool, int, int, int, int]


class Resolver(Generic[T]):
    """Candidates by (domain, key), such as (`executor`, `sandbox_job`)."""

    def __init__(self) -> None:
        self._candidates: dict[tuple[str, str], list[Candidate[T]]] = {}

    def register(self, domain: str, key: str, candidate: Candidate[T]) -> None:
        """Add a candidate; the earlier of two that are equal in all else wins.

        Raises:
            Conflict: that provider is registered for the key already.
        """
        known = self._candidates.get((domain, key), [])
        if any(one.provider == candidate.provider for one in known):
            raise Conflict(f"{candidate.provider!r} already provides {domain} {key!r}")
        self._candidates[domain, key] = [*known, candidate]

    def resolve(self, domain: str, key: str, *, selection: str | None = None, needs: Iterable[str] = NOTHING) -> T:
        """Return the winner's value.

        Args:
            selection: the provider that the operator chose by name.
            needs: capabilities; who has more of them goes before who has fewer.

        Raises:
            NotFound: nobody provides the key, or not the selected provider.
        """
        candidates = self._get(domain, key, selection)
        if len(candidates) == 1:
            return candidates[0].value
        needed = frozenset(needs)
        best = min(range(len(candidates)), key=lambda index: _rank(candidates[index], index, selection, needed))
        return candidates[best].value

    def explain(
        self, domain: str, key: str, *, selection: str | None = None, needs: Iterable[str] = NOTHING
    ) -> Ranking:
        """Return the order of all candidates and, for each loser, the tier that decided.

        Raises:
            NotFound: as in `resolve`.
        """
        candidates = self._get(domain, key, selection)
        needed = frozenset(needs)
        ranked = sorted((_rank(one, index, selection, needed), one.provider) for index, one in enumerate(candidates))
        best = ranked[0][0]
        order = tuple(Standing(provider=provider, lost_in=_deciding(best, rank)) for rank, provider in ranked)
        return Ranking(domain=domain, key=key, order=order)

    def keys(self) -> list[tuple[str, str]]:
        """Return every (domain, key) that has a candidate, sorted."""
        return sorted(self._candidates)

    def _get(self, domain: str, key: str, selection: str | None) -> list[Candidate[T]]:
        candidates = self._candidates.get((domain, key))
        if not candidates:
            raise NotFound(f"nothing provides {domain} {key!r}")
        if selection is not None and all(one.provider != selection for one in candidates):
            known = ", ".join(one.provider for one in candidates)
            raise NotFound(f"{selection!r} does not provide {domain} {key!r}; choose one of: {known}")
        return candidates


def _rank(candidate: Candidate[T], index: int, selection: str | None, needs: frozenset[str]) -> _Rank:
    """Smaller is better, tier by tier."""
    covered = len(needs & candidate.capabilities) if needs else 0
    return candidate.provider != selection, -covered, -candidate.stack, -candidate.priority, index


def _deciding(best: _Rank, other: _Rank) -> Tier | None:
    return next((tier for tier, one, two in zip(TIERS, best, other, strict=True) if one != two), None)
