"""A probe is one attempt to get through the wall, as data: what to run, and how to tell whether it got through."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Group = Literal[
    "files", "processes", "kernel", "namespaces", "network", "unix sockets", "resources", "life time", "export",
    "cross-job",
]  # fmt: skip
Word = Literal["ESCAPED", "STOPPED", "UNCLEAR"]
Place = Literal["full", "no-cgroup", "user"]  # by a root gateway with and without cgroups, by an ordinary user's

_PRELUDE = (Path(__file__).parent / "inside.py").read_text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One attempt.

    Args:
        name: short, unique over the suite.
        attempts: what it tries, one sentence.
        script: Python, after the text of `inside.py`; prints what it found through `escaped` or `stopped`.
        ends: ways of ending that are a stop by themselves, such as `timeout` or `signal 31`.
        tried: a line of `tried()` is enough, because the verdict is read from the outside.
        before: script of another job that has ended when this one starts.
        beside: script of another job that goes on while this one runs.
        limits: of the job, on top of `LIMITS`.
        profile: `usual`, as jobs of callers have it; `closed` has no unix sockets with names; `sockets` has them in any
            case, so that other layers are tried.
        given: the job gets a directory of the host as its workspace, with a fifo, a socket and planted programs in it.
        may_export: names that may come out of `out/`, with nothing but `good` in them; None: no export is asked for.
        initial: the control needs capabilities over the whole machine, which the call cannot use for any harm.
        no_control: why nothing can get through here even without a wall.
        not_in: places where it cannot be tried, with the reason.
        through_in: places where it is known to get through, with the reason.
        by_chance: it does not get through every time.
    """

    name: str
    group: Group
    attempts: str
    script: str
    ends: tuple[str, ...] = ()
    tried: bool = False
    before: str = ""
    beside: str = ""
    limits: Mapping[str, Any] = field(default_factory=dict)
    profile: Literal["usual", "closed", "sockets"] = "usual"
    given: bool = False
    may_export: tuple[str, ...] | None = None
    initial: bool = False
    no_control: str = ""
    not_in: Mapping[Place, str] = field(default_factory=dict)
    through_in: Mapping[Place, str] = field(default_factory=dict)
    by_chance: bool = False

    @property
    def shares(self) -> bool:
        """Whether it may be tried in one cell with others: a few calls that leave nothing behind."""
        alone = self.tried or self.before or self.beside or self.limits or self.profile != "usual" or self.given
        return self.group in ("kernel", "namespaces", "network") and not alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was seen of one probe: what it said, how it ended, and every fact from outside that shows a breach."""

    said: str
    ended: str
    breaches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a probe got through, with the reason; `UNCLEAR` is a failure of the probe in any place."""

    word: Word
    why: str


def judge(probe: Probe, outcome: Outcome) -> Verdict:
    """Weigh what was seen. A breach outweighs what the probe says about itself; silence is unclear."""
    lines = outcome.said.splitlines()
    found = [line for line in lines if line.startswith("ESCAPED: ")]
    if outcome.breaches or found:
        return Verdict(word="ESCAPED", why="; ".join([*outcome.breaches, *found]))
    stopped = [line for line in lines if line.startswith("STOPPED: ")]
    if stopped and outcome.ended in ("exit 0", *probe.ends):
        return Verdict(word="STOPPED", why=stopped[-1].removeprefix("STOPPED: "))
    if outcome.ended in probe.ends:
        return Verdict(word="STOPPED", why=outcome.ended)
    if probe.tried and "TRIED" in lines and outcome.ended == "exit 0":
        return Verdict(word="STOPPED", why="nothing of it is seen outside")
    return Verdict(word="UNCLEAR", why=f"{outcome.ended}: {outcome.said[-600:]!r}")


def program(script: str, facts: Mapping[str, Any]) -> str:
    """Return the whole text that the interpreter gets."""
    return f"{_PRELUDE}\nFACTS.update(json.loads({json.dumps(facts)!r}))\n{script}\n"
