"""A directory of rules, the shipped guardrails, and a few callers and tools to try them on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.policy import Action, ApprovalFacts, Decision, StandingFacts
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.policy.policy import CedarPolicy, open_policy
from omni_mcp.paths import bundled

SAFE = Labels(read_only=True, destructive=False, egress=False, reads_private=False, reads_untrusted=False)


class Decide(Protocol):
    """Decides one call of one tool by some rules."""

    def __call__(
        self,
        policy: CedarPolicy,
        entry: Entry | None = ...,
        *,
        principal: Principal = ...,
        action: Action = ...,
        approval: ApprovalFacts | None = ...,
        standing: StandingFacts | None = ...,
        egress: tuple[str, ...] = ...,
        arguments_bytes: int = ...,
        run: str = ...,
        name: str = ...,
    ) -> Decision: ...


@pytest.fixture
def rules_dir(tmp_path: Path) -> Path:
    """An empty, private directory of rules."""
    directory = tmp_path / "policies"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def write(rules_dir: Path) -> Callable[..., Path]:
    """Write one rule file that nobody else can write to."""

    def write_rules(text: str, name: str = "rules.cedar") -> Path:
        file = rules_dir / name
        file.write_text(text, "utf-8")
        file.chmod(0o600)
        return file

    return write_rules


@pytest.fixture
def policy_of(rules_dir: Path, write: Callable[..., Path]) -> Callable[[str], CedarPolicy]:
    """Open the policy that one text makes."""

    def open_text(text: str) -> CedarPolicy:
        write(text)
        return open_policy(rules_dir, bundled("policies"), budget_ms=5000)

    return open_text


@pytest.fixture
def coder() -> Principal:
    return Principal(kind="Agent", id="coder", owner="1000", project="default", roles=("editor",))


@pytest.fixture
def reader() -> Entry:
    """A tool that only reads."""
    return Entry(kind="tool", server="tools", name="read", definition={}, labels=SAFE, side_effects="none")


@pytest.fixture
def writer() -> Entry:
    """A tool that writes on this machine and can be undone."""
    return Entry(
        kind="tool", server="tools", name="write", definition={}, labels=Labels(destructive=False, egress=False)
    )


@pytest.fixture
def unlabelled() -> Entry:
    """A tool that nobody vouched for."""
    return Entry(kind="tool", server="other", name="anything", definition={})


@pytest.fixture
def decide(coder: Principal, reader: Entry) -> Decide:
    def decide_one(
        policy: CedarPolicy,
        entry: Entry | None = reader,
        *,
        principal: Principal = coder,
        action: Action = "call_tool",
        approval: ApprovalFacts | None = None,
        standing: StandingFacts | None = None,
        egress: tuple[str, ...] = (),
        arguments_bytes: int = 10,
        run: str = "run",
        name: str = "tools__read",
    ) -> Decision:
        return policy.decide(
            action=action,
            principal=principal,
            entry=entry,
            name=name,
            run=run,
            arguments_digest="sha256:these",
            arguments_bytes=arguments_bytes,
            egress=egress,
            approval=approval,
            standing=standing,
        )

    return decide_one
