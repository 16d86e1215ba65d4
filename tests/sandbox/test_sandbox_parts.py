"""The sandbox's parts that need no cell: profiles, cgroup files, what a refusal means."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.sandbox import Job
from omni_mcp.engines.sandbox.cgroup import NoCgroups, find_hierarchy
from omni_mcp.engines.sandbox.cgroup_v2 import HierarchyV2
from omni_mcp.engines.sandbox.launcher import base_interpreter
from omni_mcp.engines.sandbox.probe import LAYERS, Missing, explain_refusal, faults_of, find_bwrap
from omni_mcp.engines.sandbox.profiles import load_profiles
from omni_mcp.engines.sandbox.uids import UidPool
from omni_mcp.paths import bundled
from tests.sandbox.conftest import Opener

# profiles


def test_the_shipped_profiles_load_and_demand_isolation() -> None:
    profiles = load_profiles(bundled("sandbox") / "profiles")

    assert {"job", "python", "shell"} <= set(profiles)
    assert {profile.posture for profile in profiles.values()} <= {"no-cgroup", "full"}
    assert not any(profile.unix_sockets for profile in profiles.values())


GOOD = 'profile = 1\ndescription = "x"\n'


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        (GOOD + "surprise = 1\n", "bad.toml:3: $.surprise", "Extra"),
        (GOOD + "cpus = 0\n", "bad.toml:3: $.cpus", "greater"),
        (GOOD + "unix_sockets = 1\n", "bad.toml:3: $.unix_sockets", "boolean"),
        (GOOD + 'posture = "some"\n', "bad.toml:3: $.posture", "full"),
        (GOOD + "[environment]\nA = 1\n", "bad.toml:4: $.environment.A", "string"),
        ("profile = 2\n" + 'description = "x"', "bad.toml:1: $.profile", "1"),
        ("profile = 1\n", "bad.toml: $.description", "required"),
        ("profile = = 1", "bad.toml:1", "Invalid value"),
        ("#" * 70_000, "bad.toml", "larger"),
    ],
)
def test_a_wrong_profile_is_refused_with_its_place(tmp_path: Path, text: str, place: str, word: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_profiles(tmp_path)

    assert place in str(caught.value)
    assert word in str(caught.value)


def test_all_faults_of_all_profiles_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(GOOD + "a = 1\nb = 2\n")
    (tmp_path / "Two.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError) as caught:
        load_profiles(tmp_path)

    assert len(caught.value.problems) == 4


# cgroups


def proc_of(place: Path, cgroup: str, mountinfo: str) -> Path:
    (place / "self").mkdir(parents=True)
    (place / "self" / "cgroup").write_text(cgroup)
    (place / "self" / "mountinfo").write_text(mountinfo)
    return place


def test_a_delegated_version_2_tree_is_found_and_limited(tmp_path: Path) -> None:
    """On plain files: which of them get which values. That the kernel then enforces them is not shown here."""
    own = tmp_path / "tree" / "user.slice"
    own.mkdir(parents=True)
    (own / "cgroup.controllers").write_text("cpu memory pids io\n")
    (own / "cgroup.subtree_control").write_text("cpu memory pids\n")
    mountinfo = f"30 24 0:26 / {tmp_path / 'tree'} rw,nosuid - cgroup2 cgroup2 rw\n"

    found = find_hierarchy(proc_of(tmp_path / "proc", "0::/user.slice\n", mountinfo))

    assert isinstance(found, HierarchyV2)
    assert found.controllers == {"cpu", "memory", "pids"}


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "word"),
    [("0::/\n", "", "no memory and pids controller"), ("4:memory:/\n0::/\n", "", "no memory and pids controller")],
)
def test_without_controllers_the_way_to_get_them_is_told(
    tmp_path: Path, cgroup: str, mountinfo: str, word: str
) -> None:
    found = find_hierarchy(proc_of(tmp_path / "proc", cgroup, mountinfo))

    assert isinstance(found, NoCgroups)
    assert word in found.reason
    assert "systemd-run" in found.reason


def test_a_version_2_cgroup_shared_with_others_is_left_alone(tmp_path: Path) -> None:
    own = tmp_path / "tree"
    own.mkdir()
    (own / "cgroup.controllers").write_text("memory pids\n")
    (own / "cgroup.subtree_control").write_text("")
    (own / "cgroup.procs").write_text("1\n2\n")
    mountinfo = f"30 24 0:26 / {own} rw - cgroup2 cgroup2 rw\n"

    found = find_hierarchy(proc_of(tmp_path / "proc", "0::/\n", mountinfo))

    assert isinstance(found, NoCgroups)
    assert not (own / "omni-gateway").exists()


@pytest.mark.sandbox
async def test_cgroups_that_a_dead_gateway_left_are_swept_at_the_next_start(opened: Opener) -> None:
    hierarchy = find_hierarchy()
    if isinstance(hierarchy, NoCgroups):
        pytest.skip(hierarchy.reason)
    group = hierarchy.create(1)
    mine = [Path(door).parent for door in group.doors]
    old = [place.with_name("omni-cell-999999-1-ab12-1") for place in mine]
    for place in old:
        place.mkdir()
    try:
        async with opened():
            assert not any(place.exists() for place in old)
            assert all(place.exists() for place in mine)  # its gateway lives
    finally:
        assert group.remove()


# the probe


@pytest.mark.parametrize(
    ("words", "layer", "fix"),
    [
        ("bwrap: setting up uid map: Permission denied", "user-namespaces", "AppArmor"),
        ("bwrap: setting up uid map: Operation not permitted", "user-namespaces", "ordinary user"),
        ("bwrap: No permissions to creating new namespace, likely because ...", "user-namespaces", "forbidden"),
        (
            "bwrap: Creating new namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)",
            "user-namespaces",
            "raise",
        ),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "proc", "masked"),
        ("omni-spawner: user: [Errno 1] Operation not permitted", "own-uid", "ordinary user"),
        ("omni-spawner: cgroup: [Errno 13] Permission denied", "cgroup", "cgroup.procs"),
        ("bwrap: execvp /usr/local/py/bin/python3: No such file or directory", "interpreter", "interpreter"),
        ("no system call filter for riscv64", "seccomp", "processor"),
        ("something new", "start", "something new"),
    ],
)
def test_each_way_of_saying_no_names_the_missing_layer_and_what_to_do(words: str, layer: str, fix: str) -> None:
    missing = explain_refusal(words)

    assert missing.layer == layer
    assert fix in missing.reason


FINE: dict[str, Any] = {
    "uid": 1000, "pid": 1, "capabilities": "0" * 16, "bounding": "0" * 16, "no_new_privileges": "1", "seccomp": "2",
    "new_user_namespace": "EPERM", "interfaces": ["lo"], "outer_environment_readable": False, "root_writable": False,
    "visible": [], "workspace_bytes": 7 << 20, "processes": 17, "descriptors": [0, 1, 2, 3],
}  # fmt: skip


def test_a_cell_that_stands_as_it_should_has_no_faults() -> None:
    assert faults_of(FINE, proc=True) == {}


@pytest.mark.parametrize(
    ("fact", "value", "layer"),
    [
        ("uid", 0, "namespaces"), ("pid", 812, "namespaces"), ("visible", ["/etc/shadow"], "filesystem"),
        ("root_writable", True, "filesystem"), ("interfaces", ["eth0", "lo"], "network"),
        ("workspace_bytes", 1 << 40, "tmpfs-limits"), ("processes", -1, "rlimits"),
        ("outer_environment_readable", True, "environment"), ("descriptors", [0, 1, 2, 3, 4], "descriptors"),
        ("new_user_namespace", "allowed", "seccomp"), ("seccomp", "0", "seccomp"),
        ("no_new_privileges", "0", "no-new-privileges"),
        ("capabilities", "000001ffffffffff", "capabilities"), ("bounding", "0000000000200000", "capabilities"),
    ],
)  # fmt: skip
def test_a_wall_with_a_hole_is_seen_from_inside(fact: str, value: object, layer: str) -> None:
    assert set(faults_of({**FINE, fact: value}, proc=True)) == {layer}


@pytest.mark.sandbox
async def test_the_isolation_names_every_layer_that_is_in_force(opened: Opener) -> None:
    async with opened() as sandbox:
        isolation = sandbox.isolation()
    if isolation.posture == "none":
        pytest.skip(str(isolation.missing))

    assert set(LAYERS) <= set(isolation.layers)
    assert isolation.posture == "full" or "cgroup" in isolation.missing


async def test_without_bubblewrap_no_cell_can_be_had_and_the_way_to_get_it_is_told(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with opened() as sandbox:
        isolation = sandbox.isolation()
        end = await sandbox.run(Job(profile="job", argv=("true",), posture="none"))

    assert isolation.posture in ("landlock", "none")
    assert "own-namespaces" not in isolation.layers
    assert "apt install bubblewrap" in isolation.missing["bubblewrap"]
    assert end.reason == "sandbox_unavailable"


@pytest.mark.parametrize("says", ["bubblewrap 0.4.1", "something else"])
def test_a_bubblewrap_that_is_too_old_is_no_bubblewrap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\necho {says}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    found = find_bwrap()

    assert isinstance(found, Missing)
    assert says in found.reason


@pytest.mark.parametrize(
    "words", ["setting up uid map: Permission denied", "Can't mount proc on /newroot/proc: Operation not permitted"]
)
async def test_a_bubblewrap_that_says_no_leaves_no_cells_and_its_reason(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    """The host's own refusals, played by a program that answers as bubblewrap does there."""
    fake = tmp_path / "bin" / "bwrap"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.9.0 && exit\necho "bwrap: {words}" >&2\nexit 1\n'
    )
    for place in (fake, fake.parent, tmp_path, tmp_path.parent, tmp_path.parent.parent):
        place.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))
    async with opened() as sandbox:
        isolation = sandbox.isolation()
        end = await sandbox.run(Job(profile="job", argv=("true",)))

    assert isolation.posture in ("landlock", "none")
    assert words in str(isolation.missing)
    assert end.reason == "sandbox_unavailable"


# small things


def test_the_interpreter_of_cells_is_outside_any_virtual_environment() -> None:
    interpreter = base_interpreter()

    assert Path(interpreter.binary).is_file()
    assert not any(Path(prefix, "pyvenv.cfg").exists() for prefix in interpreter.prefixes)


def test_no_two_running_jobs_share_a_uid() -> None:
    pool = UidPool(range(5, 8))
    taken = [pool.take() for _ in range(3)]
    assert len(set(taken)) == 3
    with pytest.raises(IndexError):
        pool.take()
    pool.give_back(6)

    assert pool.take() == 6


@pytest.mark.parametrize("uids", [range(1000), range(61000, 61004)])
async def test_a_range_of_uids_with_root_in_it_or_too_few_is_refused(opened: Opener, uids: range) -> None:
    if os.geteuid() != 0:
        pytest.skip("only a root gateway uses the range")
    with pytest.raises(ValueError, match="uid_range"):
        async with opened(uid_range=uids, max_jobs=4):
            pass


def test_this_machine_has_a_filter() -> None:
    assert platform.machine() in ("x86_64", "aarch64")
