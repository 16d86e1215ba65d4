"""Where rules are read from, what happens when the files change, and that no decision sees half a change."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.engines.policy.files import MAX_FILE_BYTES
from omni_mcp.engines.policy.policy import CedarPolicy, Reload, open_policy
from omni_mcp.engines.policy.watcher import PolicyWatcher
from omni_mcp.paths import bundled

Write = Callable[..., Path]
EVERYTHING = '@id("all") permit (principal, action, resource);'


@pytest.fixture
def policy(rules_dir: Path, write: Write) -> CedarPolicy:
    """A policy that allows everything."""
    write(EVERYTHING)
    return open_policy(rules_dir, bundled("policies"), budget_ms=5000)


def _open_to_others(directory: Path) -> None:
    (directory / "rules.cedar").chmod(0o666)


def _group_writable_directory(directory: Path) -> None:
    directory.chmod(0o770)


def _missing(directory: Path) -> None:
    (directory / "rules.cedar").unlink()
    directory.rmdir()


def _link(directory: Path) -> None:
    file = directory / "rules.cedar"
    target = directory / "elsewhere"
    file.rename(target)
    file.symlink_to(target)


def _pipe(directory: Path) -> None:
    (directory / "rules.cedar").unlink()
    os.mkfifo(directory / "rules.cedar", 0o600)


UNSAFE = [_open_to_others, _group_writable_directory, _missing, _link, _pipe]


@pytest.mark.parametrize("harm", UNSAFE)
def test_unsafe_files_deny_everything_at_the_start_and_say_why(
    rules_dir: Path, write: Write, decide: Any, coder: Any, reader: Any, harm: Callable[[Path], None]
) -> None:
    write(EVERYTHING)
    harm(rules_dir)

    policy = open_policy(rules_dir, bundled("policies"))

    decision = decide(policy)
    assert decision.verdict == "deny"
    assert decision.errors and policy.problems
    assert policy.version.startswith("deny-all:") and decision.policy_version == policy.version
    assert policy.visible(action="call_tool", principal=coder, entries=[reader]) == [False]


@pytest.mark.parametrize("harm", UNSAFE)
def test_files_that_become_unsafe_deny_everything_until_they_are_mended(
    policy: CedarPolicy, rules_dir: Path, write: Write, decide: Any, harm: Callable[[Path], None]
) -> None:
    good = policy.version
    harm(rules_dir)

    reload = policy.reload()

    assert (reload.denies_all, reload.changed, bool(reload.problems)) == (True, True, True)
    assert decide(policy).verdict == "deny"
    if harm in (_link, _pipe):
        (rules_dir / "rules.cedar").unlink()
    rules_dir.mkdir(exist_ok=True)
    rules_dir.chmod(0o700)
    write(EVERYTHING)
    assert policy.reload().version == good
    assert decide(policy).verdict == "allow"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_denies_everything(policy: CedarPolicy, rules_dir: Path, decide: Any) -> None:
    os.chown(rules_dir / "rules.cedar", 12345, -1)

    reload = policy.reload()

    assert "belongs to user 12345" in str(reload.problems[0])
    assert decide(policy).verdict == "deny"


@pytest.mark.parametrize(
    "data",
    [b"permit (principal,", b"permit (x);", b"\xff\xfe", b" " * (MAX_FILE_BYTES + 1), EVERYTHING.encode() * 2],
    ids=["cut off", "no rule", "no UTF-8", "too large", "same id twice"],
)
def test_broken_files_keep_the_last_good_rules_and_say_so(
    policy: CedarPolicy, rules_dir: Path, decide: Any, data: bytes
) -> None:
    good = policy.version
    (rules_dir / "rules.cedar").write_bytes(data)

    reload = policy.reload()

    assert (reload.denies_all, reload.changed, reload.version) == (False, False, good)
    assert "rules.cedar" in str(reload.problems[0])
    assert decide(policy).verdict == "allow"


@pytest.mark.parametrize("data", [b"permit (principal,", b"\xff\xfe"])
def test_broken_files_at_the_start_deny_everything(rules_dir: Path, write: Write, decide: Any, data: bytes) -> None:
    write("").write_bytes(data)

    assert decide(open_policy(rules_dir, bundled("policies"))).verdict == "deny"


def test_a_removed_permit_is_gone_after_the_reload(policy: CedarPolicy, rules_dir: Path, decide: Any) -> None:
    (rules_dir / "rules.cedar").unlink()

    reload = policy.reload()

    assert (reload.changed, reload.problems, reload.rules) == (True, (), 3)
    assert decide(policy).verdict == "deny"


def test_files_of_other_kinds_and_hidden_ones_are_left_alone(rules_dir: Path, write: Write, decide: Any) -> None:
    write("not Cedar at all", name="README.md")
    write("half written", name=".rules.cedar")

    policy = open_policy(rules_dir, bundled("policies"))

    assert policy.problems == ()


def test_lists_follow_a_reload(policy: CedarPolicy, write: Write, coder: Any, reader: Any) -> None:
    assert policy.visible(action="call_tool", principal=coder, entries=[reader, reader]) == [True, True]

    write('@id("none") forbid (principal, action, resource);')
    policy.reload()

    assert policy.visible(action="call_tool", principal=coder, entries=[reader]) == [False]


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads take turns every 0.1 ms: more ways to interleave, and no 5 ms wait after each system call."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
def test_no_decision_mixes_two_versions_while_files_change_under_load(
    policy: CedarPolicy, rules_dir: Path, write: Write, decide: Any
) -> None:
    """Each text names its rule after itself, so that a decision by half of one and half of another would show."""
    texts = {f"v{n}": f'@id("v{n}") permit (principal, action, resource); @id("w{n}") forbid '
             '(principal, action, resource) when { resource.destructive };' for n in range(4)}  # fmt: skip
    versions: dict[str, set[str]] = {}
    wrong: list[str] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            decision = decide(policy)
            if decision.verdict != "allow":
                wrong.append(f"{decision.verdict} {decision.errors}")
            versions.setdefault(decision.policy_version, set()).update(decision.rules)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    file = rules_dir / "rules.cedar"
    for round_ in range(50):  # two reloads each
        text = texts[f"v{round_ % 4}"]
        file.write_text(text[: len(text) // 3])  # cut off: refused, the last good one stays
        assert policy.reload().problems
        file.write_text(text)
        assert not policy.reload().problems
    stop.set()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert len(versions) >= 2
    assert all(len(rules) == 1 for rules in versions.values())


@pytest.fixture
def seen() -> list[Reload]:
    return []


@pytest.fixture
def watcher(policy: CedarPolicy, seen: list[Reload]) -> PolicyWatcher:
    async def note(reload: Reload) -> None:
        seen.append(reload)

    return PolicyWatcher(policy, note)


async def test_the_watcher_says_nothing_while_nothing_changes(watcher: PolicyWatcher, seen: list[Reload]) -> None:
    for _ in range(4):
        await watcher.look()

    assert seen == []


async def test_the_watcher_waits_until_a_change_has_settled(
    watcher: PolicyWatcher, policy: CedarPolicy, write: Write, seen: list[Reload]
) -> None:
    """The first half of this file would allow everything."""
    await watcher.look()
    await watcher.look()
    before = policy.version

    write('@id("b") permit (principal, action, resource);')
    await watcher.look()
    assert policy.version == before
    write('@id("b") permit (principal, action, resource); @id("c") forbid (principal, action, resource);')
    await watcher.look()
    assert policy.version == before
    await watcher.look()

    assert [(reload.previous, reload.rules, reload.problems) for reload in seen] == [(before, 5, ())]
    assert policy.version == seen[0].version != before


async def test_the_watcher_reports_a_broken_change_once(
    watcher: PolicyWatcher, write: Write, seen: list[Reload]
) -> None:
    write("permit (")
    for _ in range(5):
        await watcher.look()

    assert [len(reload.problems) for reload in seen] == [1]


async def test_the_watcher_does_not_wait_when_others_can_write(
    watcher: PolicyWatcher, policy: CedarPolicy, rules_dir: Path, seen: list[Reload]
) -> None:
    await watcher.look()
    await watcher.look()
    (rules_dir / "rules.cedar").chmod(0o666)

    await watcher.look()

    assert [reload.denies_all for reload in seen] == [True]


async def test_a_change_that_keeps_size_and_mtime_is_seen(
    watcher: PolicyWatcher, policy: CedarPolicy, rules_dir: Path, seen: list[Reload]
) -> None:
    file = rules_dir / "rules.cedar"
    await watcher.look()
    await watcher.look()
    facts = file.stat()
    file.write_text(EVERYTHING.replace('"all"', '"any"'))
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    await watcher.look()
    await watcher.look()

    assert file.stat().st_size == facts.st_size
    assert len(seen) == 1


async def test_the_watcher_runs_by_its_clock_until_it_is_cancelled(
    policy: CedarPolicy, write: Write, seen: list[Reload]
) -> None:
    pauses: list[float] = []
    reported = asyncio.Event()

    async def note(reload: Reload) -> None:
        seen.append(reload)
        reported.set()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            write('@id("b") permit (principal, action, resource);')
        await asyncio.sleep(0)

    task = asyncio.create_task(PolicyWatcher(policy, note, sleep=pause, poll_s=0.5).run())
    await reported.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(pauses) == {0.5}
