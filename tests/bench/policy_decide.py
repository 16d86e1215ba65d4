"""How long a decision takes at 10 and at 100 rules, and a list of 1,000 tools, cold and warm.

Run: python tests/bench/policy_decide.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from omni_mcp.contracts.call import Principal
from omni_mcp.contracts.manifest import Labels
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.policy.policy import CedarPolicy, open_policy
from omni_mcp.paths import bundled

ROUNDS = 3000
CALLER = Principal(kind="Agent", id="coder", owner="1000", roles=("editor",))
SAFE = Labels(read_only=True, destructive=False, egress=False)


def policy_of(rules: int, directory: Path, *, named: bool) -> CedarPolicy:
    """A policy of *rules* in all, the last of which allows the call.

    Args:
        named: each rule names one tool, as `omni-mcp allow` writes them; else every rule looks at every call.
    """
    own = rules - 3
    grants = [
        f'@id("g{n}") permit (principal is Omni::Agent, action == Omni::Action::"call_tool", '
        + (f'resource == Omni::Tool::"tools__t{n}");' if named else f'resource) when {{ resource.name == "t{n}" }};')
        for n in range(own)
    ]
    file = directory / "rules.cedar"
    file.write_text("\n".join(grants))
    file.chmod(0o600)
    return open_policy(directory, bundled("policies"))


def tool(number: int, labels: Labels = SAFE) -> Entry:
    return Entry(kind="tool", server="tools", name=f"t{number}", definition={}, labels=labels)


def timings_us(work: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Return (median, p99) in microseconds."""
    work()
    spent = []
    for _ in range(rounds):
        started = time.perf_counter_ns()
        work()
        spent.append((time.perf_counter_ns() - started) / 1000)
    return statistics.median(spent), statistics.quantiles(spent, n=100)[98]


def decide(policy: CedarPolicy, entry: Entry | None) -> str:
    return policy.decide(
        action="call_tool",
        principal=CALLER,
        entry=entry,
        name="tools__t",
        run="01990000-0000-7000-8000-000000000000",
        arguments_digest="sha256:" + "0" * 64,
        arguments_bytes=120,
    ).verdict


def main() -> None:
    for rules, named in ((10, True), (10, False), (100, True), (100, False)):
        print(f"{rules} rules, {'each for one tool' if named else 'each looks at every call'}")
        with tempfile.TemporaryDirectory() as directory:
            policy = policy_of(rules, Path(directory), named=named)
        last, asking, none = tool(rules - 4), tool(rules - 4, Labels()), tool(10_000)
        for name, entry, verdict in (("allow", last, "allow"), ("ask", asking, "ask"), ("no rule", none, "deny")):
            assert decide(policy, entry) == verdict
            median, p99 = timings_us(lambda policy=policy, entry=entry: decide(policy, entry))  # type: ignore[misc]
            print(f"  {name:<8} median {median:7.1f} us   p99 {p99:7.1f} us")
        entries = [tool(number) for number in range(1000)]
        started = time.process_time_ns()
        policy.visible(action="call_tool", principal=CALLER, entries=entries)
        cold_ms = (time.process_time_ns() - started) / 1e6
        warm, _ = timings_us(
            lambda policy=policy, entries=entries: policy.visible(  # type: ignore[misc]
                action="call_tool", principal=CALLER, entries=entries
            ),
            200,
        )
        print(f"  list of 1,000: cold {cold_ms:.0f} ms, warm {warm / 1000:.2f} ms")


if __name__ == "__main__":
    main()
