"""A sandbox to throw jobs at, in each of the two postures that can be had, and a watch that nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner

import omni_mcp
from omni_mcp.cli.root import cli
from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import Job
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox, open_sandbox
from omni_mcp.engines.sandbox.launcher import base_interpreter
from omni_mcp.engines.sandbox.probe import Missing, find_bwrap
from omni_mcp.engines.sandbox.profiles import Profile, load_profiles
from omni_mcp.engines.sandbox.uids import DEFAULT_RANGE, owners_part
from omni_mcp.paths import bundled

HERE = Path(__file__).parent
NOBODY = 65534
PYTHON = base_interpreter().binary
ENOUGH_S = 40.0
RUN = [sys.executable, "-m", "omni_mcp.cli.main", "sandbox", "run"]
LIMIT_S = 60
Done = subprocess.CompletedProcess[bytes]
Run = Callable[..., Done]
Start = Callable[..., "subprocess.Popen[bytes]"]
REQUIRED = frozenset(os.environ.get("OMNI_REQUIRE", "").split(","))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all tests of a file here, so that they can share a sandbox."""
    for item in items:
        if HERE in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)


def lacking(what: str, why: str) -> None:
    """Skip, or fail where this machine was promised to have it."""
    if what in REQUIRED:
        pytest.fail(f"OMNI_REQUIRE names {what}, but: {why}")
    pytest.skip(why)


def in_python(code: str, **fields: Any) -> Job:
    """A job that runs *code* in a fresh interpreter."""
    return Job(profile="python", argv=(PYTHON, "-I", "-S", "-c", code), **fields)


def in_shell(script: str, **fields: Any) -> Job:
    return Job(profile="shell", argv=("/bin/sh", "-c", script), **fields)


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def templates_of(sandbox: BubblewrapSandbox) -> list[int]:
    """Return the processes 1 of all templates: children of bubblewrap, which the helper process started."""
    return [pid for bwrap in children_of(sandbox.spawner_pid or 0) for pid in children_of(bwrap)]


def limits(**fields: Any) -> Limits:
    return Limits(**{"timeout_s": 20, **fields})


def outside(code: str, **fields: Any) -> str:
    """Run *code* on this side of the wall: the control that shows that a probe bites."""
    command = [PYTHON, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **fields)
    return str(done.stdout.strip() or done.stderr.strip())


@pytest.fixture(scope="session")
def profiles() -> dict[str, Profile]:
    return load_profiles(bundled("sandbox") / "profiles")


@pytest.fixture(scope="session")
def sandbox_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped directory with the tests' own tools in it, at a place that only the gateway's user can reach."""
    private = tmp_path_factory.mktemp("private")
    private.chmod(0o700)
    copy = private / "sandbox"
    shutil.copytree(bundled("sandbox"), copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "trial_tools.py", copy / "tools" / "trial_tools.py")
    return copy


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A directory of the host that a job may be given writable."""
    place = tmp_path / "given"
    place.mkdir(mode=0o700)
    if os.geteuid() == 0:
        uid = owners_part(DEFAULT_RANGE)[7]
        os.chown(place, uid, uid)
    return place


Opener = Callable[..., Any]


@pytest.fixture(scope="session")
def opened(profiles: dict[str, Profile], sandbox_dir: Path) -> Opener:
    """Opens a sandbox with other settings than usual."""

    def open_with(**settings: Any) -> Any:
        return open_sandbox(**{"profiles": profiles, "sandbox_dir": sandbox_dir, **settings})

    return open_with


def usable(sandbox: BubblewrapSandbox) -> BubblewrapSandbox:
    isolation = sandbox.isolation()
    if not isolation.at_least("no-cgroup"):
        lacking("userns" if isinstance(find_bwrap(), str) else "bwrap", f"no sandbox here: {isolation.missing}")
    return sandbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(opened: Opener) -> AsyncIterator[BubblewrapSandbox]:
    """The best sandbox that can be had here."""
    async with opened() as found:
        yield usable(found)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["full", "no-cgroup"])
async def each_sandbox(request: pytest.FixtureRequest, opened: Opener) -> AsyncIterator[BubblewrapSandbox]:
    """A sandbox in each posture: what a test says must hold in both."""
    async with opened(use_cgroups=request.param == "full") as found:
        if usable(found).isolation().posture != request.param:
            lacking("cgroup", f"posture {request.param} cannot be had here: {found.isolation().missing}")
        yield found


def cgroups_of(pid: int, kind: str = "cell") -> list[str]:
    """Return the cgroups of the cells of gateway *pid*, or of another *kind* of place that it made."""
    return [
        f"{place}/{name}"
        for place, names, _ in os.walk("/sys/fs/cgroup")  # unlike a glob it minds no directory that goes meanwhile
        for name in names
        if name.startswith(f"omni-{kind}-{pid}-")
    ]


def left_behind(place: Path, not_ours: set[str]) -> list[str]:
    """Return what is left of the cells that were started from *place*: processes, cgroups, mounts.

    Other tests of this process may have a gateway of their own: its helper was started from elsewhere, and its cgroups
    are those in *not_ours*.
    """
    left, ours = [], set[int]()
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            name, _, rest = (entry / "stat").read_text().partition(" (")[2].rpartition(") ")
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(rest.split()[1]) in ours or os.fsencode(place) in command:
            ours.add(int(entry.name))
            left.append(f"process {entry.name} {name}")
    left += [group for group in cgroups_of(os.getpid()) if group not in not_ours]
    left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "omni-cell" in line]
    return left


@pytest.fixture(scope="package", autouse=True)
def nothing_stays(sandbox_dir: Path) -> Iterator[None]:
    """After all of these tests no process, cgroup or mount of ours is left."""
    not_ours = set(cgroups_of(os.getpid()))
    yield
    assert left_behind(sandbox_dir, not_ours) == []


def _interpreter_for_others() -> str | None:
    """Return a Python of our version that everybody can run."""
    for place in ("/usr/bin", "/usr/local/bin"):
        found = shutil.which(f"python{sysconfig.get_python_version()}", path=place)
        if found:
            return found
    return None


def run_as_ordinary_user(script: Path, *arguments: str, ourselves: bool = False) -> dict[str, Any]:
    """Run *script* as another user if we are root, or as *ourselves*, and return the JSON object that it prints."""
    packages = [str(Path(omni_mcp.__path__[0]).parent), *site.getsitepackages()]
    how: dict[str, Any] = {
        "env": {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": ":".join(packages),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        "cwd": "/", "capture_output": True, "text": True, "check": False, "timeout": 60,
    }  # fmt: skip
    interpreter = sys.executable
    if os.geteuid() == 0 and not ourselves:
        other = _interpreter_for_others()
        if other is None:
            lacking("ordinary-user", "no interpreter of this version outside a private directory")
            raise AssertionError
        interpreter, how = other, {**how, "user": NOBODY, "group": NOBODY, "extra_groups": []}
    usable = subprocess.run([interpreter, "-c", "import omni_mcp.engines.sandbox.cells"], **how)
    if usable.returncode != 0:
        lacking("ordinary-user", f"an ordinary user cannot import the package here: {usable.stderr[-200:]!r}")
    done = subprocess.run([interpreter, str(script), *arguments], **how)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="session")
def no_bwrap() -> bool:
    return isinstance(find_bwrap(), Missing)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What the command `sandbox run` finds in its environment."""
    return {**os.environ, "OMNI_HOME": str(tmp_path / "omni-home")}


@pytest.fixture
def run(environment: dict[str, str], no_bwrap: bool) -> Run:
    """Run `sandbox run` to its end."""
    if no_bwrap:
        pytest.skip("no bubblewrap")

    def run(*words: str, **how: Any) -> Done:
        given = {"capture_output": True, "env": environment, "timeout": LIMIT_S, "check": False, **how}
        return subprocess.run([*RUN, *words], **given)

    return run


@pytest.fixture
def run_here(environment: dict[str, str], no_bwrap: bool) -> Run:
    """As `run`, in this process: for what is refused before anything is started."""
    if no_bwrap:
        pytest.skip("no bubblewrap")

    def run(*words: str) -> Done:
        done = CliRunner().invoke(cli, ["sandbox", "run", *words], env=environment)
        return Done(words, done.exit_code, done.stdout_bytes, done.stderr_bytes)

    return run


@pytest.fixture
def start(environment: dict[str, str], no_bwrap: bool) -> Iterator[Start]:
    """Start `sandbox run`; whatever still runs at the end of the test is killed."""
    if no_bwrap:
        pytest.skip("no bubblewrap")
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, **how: Any) -> subprocess.Popen[bytes]:
        given = {
            "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment,
            "preexec_fn": partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
        }  # fmt: skip
        started.append(subprocess.Popen([*RUN, *words], **{**given, **how}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A workspace for `sandbox run`, with a file, a link and a directory in it."""
    made = tmp_path / "given"
    (made / "sub").mkdir(parents=True)
    (made / "in.txt").write_text("given\n")
    (made / "sub" / "old.txt").write_text("old\n")
    (made / "link").symlink_to("in.txt")
    return made


def report(done: Done) -> dict[str, Any]:
    """Return what `sandbox run --json` printed at the end."""
    found: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    return found
