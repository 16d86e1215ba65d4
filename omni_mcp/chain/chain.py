"""The architecture is this list: the one way to run a tool, read a resource or get a prompt."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from omni_mcp.chain.approve import Approve
from omni_mcp.chain.check_arguments import CheckArguments
from omni_mcp.chain.check_result import CheckResult
from omni_mcp.chain.compose import compose
from omni_mcp.chain.decide import Decide, Decisions
from omni_mcp.chain.execute import Execute, Freeze, at_once
from omni_mcp.chain.limit import Limit, Shed
from omni_mcp.chain.record import Record
from omni_mcp.chain.resolve import Resolve
from omni_mcp.chain.retry import Retries
from omni_mcp.contracts.call import Handler, Stage
from omni_mcp.contracts.ports import Catalog, Desk, Executor, LargeArtifacts, Masker, Schemas
from omni_mcp.contracts.tool import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the stages need. `record` and `limit` are made by the caller because it asks them how things stand."""

    record: Record
    limit: Limit
    decisions: Decisions
    catalog: Catalog
    desk: Desk
    schemas: Schemas
    artifacts: LargeArtifacts
    masker: Masker
    executors: Mapping[str, Executor]
    places: Mapping[str, int]
    shed: Shed
    freeze: Freeze
    retries: Retries
    readings: Stage
    settled: Callable[[Entry], Awaitable[None]] = at_once


def call_chain(parts: Parts) -> Handler:
    """Build the chain, outermost stage first. Why this order: docs/call-chain.md."""
    return compose(
        [
            parts.shed,  # of a flood over its limits, one call a second is let through to be refused on record
            parts.record,  # before all else, so that it sees refusals, crashes and cancellation
            parts.limit,  # rate and pending calls; slots are taken in Execute
            Resolve(parts.catalog),  # name -> pinned definition; never refuses
            Decide(parts.decisions),  # allow, ask or deny
            CheckArguments(parts.schemas),  # before a person is asked
            Approve(parts.desk, parts.decisions),  # a person answers "ask", then the policy decides again
            CheckResult(parts.schemas, parts.artifacts, parts.masker),  # on the way back
            parts.readings,  # what a run has read taints what it remembers
        ],
        Execute(  # needs a fitting grant
            parts.executors,
            parts.places,
            parts.catalog,
            parts.decisions,
            parts.freeze,
            retries=parts.retries,
            settled=parts.settled,
        ),
    )
