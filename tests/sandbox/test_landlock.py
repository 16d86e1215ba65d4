"""Landlock around one process, and the fallback that leans on it: a job as a plain process tree without namespaces."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.cli.postures import NOT_STOPPED
from omni_mcp.contracts.sandbox import POSTURES

SANDBOX = Path(__file__).parents[2] / "sandbox"
JOBS_UID = 200_000 + os.getpid()  # of no other test, also in a run beside this one
TREE = """
import os, sys, time
def daemon(name):
    seen, held = os.pipe()
    if os.fork():
        os.close(held)
        return os.read(seen, 1)  # the end, as soon as the daemon is a program of its own
    os.setsid()
    if os.fork(): os._exit(0)
    os.execv({python!r}, [name, "-I", "-S", "-c", "import signal, time; signal.signal(15, 1); time.sleep(120)"])
"""


def _module(name: str) -> Any:
    sys.path.insert(0, str(SANDBOX))
    try:
        return __import__(name)
    finally:
        sys.path.pop(0)


ABI = _module("landlock").abi()
NEEDED = pytest.mark.skipif(ABI == 0, reason="the kernel has no Landlock")
SCOPED = pytest.mark.skipif(ABI < 6, reason="this kernel's Landlock cannot keep signals in (Linux 6.12)")

# one process


def restricted(
    code: str, *, read: tuple[Any, ...] = (), write: tuple[Any, ...] = (), execute: tuple[Any, ...] = (),
    options: str = "network=False", before: str = "", **fields: Any,
) -> Any:  # fmt: skip
    """Run *code* behind Landlock in a fresh interpreter and return the JSON that `say` gets; `tried` gives an errno."""
    system = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", sys.base_prefix]
    script = f"""
import json, os, socket, subprocess, sys
sys.path.insert(0, {str(SANDBOX)!r})
import landlock
def tried(work, *arguments, **named):
    try: work(*arguments, **named); return 0
    except OSError as error: return error.errno
def say(what): print(json.dumps(what))
{before}
layers = landlock.restrict(
    {[*system, *map(str, read)]!r}, {list(map(str, write))!r}, {[*system, *map(str, execute)]!r}, {options})
{code}"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", script], capture_output=True, text=True, timeout=60, check=False,
        **fields,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Three directories with a file in each."""
    made = {name: tmp_path / name for name in ("given", "shown", "secret")}
    for place in made.values():
        place.mkdir()
        (place / "file").write_text("text")
    return made


@NEEDED
def test_what_is_not_listed_cannot_be_read_and_what_is_listed_can(places: dict[str, Path]) -> None:
    secret = places["secret"]
    code = f"""
say({{"file": tried(open, {str(secret / "file")!r}), "directory": tried(os.listdir, {str(secret)!r}),
     "link": tried(open, {str(places["given"] / "link")!r}), "shadow": tried(open, "/etc/shadow"),
     "shown": open({str(places["shown"] / "file")!r}).read(),
     "given": open({str(places["given"] / "file")!r}).read()}})"""
    (places["given"] / "link").symlink_to(secret / "file")
    seen = restricted(code, read=(places["shown"],), write=(places["given"],))

    assert (secret / "file").read_text() == "text"
    assert seen == {
        "file": errno.EACCES, "directory": errno.EACCES, "link": errno.EACCES, "shadow": errno.EACCES,
        "shown": "text", "given": "text",
    }  # fmt: skip


@NEEDED
def test_writing_ends_where_the_listed_directories_end(places: dict[str, Path]) -> None:
    shown, given = places["shown"], places["given"]
    (given / "deep").mkdir()
    code = f"""
shown, given = {str(shown)!r}, {str(given)!r}
say({{"append": tried(open, shown + "/file", "a"), "create": tried(open, shown + "/new", "w"),
     "remove": tried(os.unlink, shown + "/file"), "mkdir": tried(os.mkdir, shown + "/d"),
     "truncate": tried(os.truncate, shown + "/file", 0),
     "out": tried(os.rename, given + "/file", shown + "/taken"), "link": tried(os.link, given + "/file", shown + "/l"),
     "device": tried(os.mknod, given + "/null", 0o20666, os.makedev(1, 3)),
     "fine": [tried(open, given + "/new", "w"), tried(os.rename, given + "/new", given + "/deep/new"),
              tried(os.link, given + "/file", given + "/deep/l"), tried(os.symlink, "x", given + "/s"),
              tried(os.mkfifo, given + "/pipe"), tried(os.truncate, given + "/file", 0),
              tried(os.unlink, given + "/s")]}})"""
    seen = restricted(code, read=(shown,), write=(given,))

    assert seen.pop("fine") == [0] * 7
    assert set(seen.values()) <= {errno.EACCES, errno.EXDEV, errno.EPERM}
    assert (shown / "file").read_text() == "text"


@NEEDED
def test_only_listed_places_hold_programs(places: dict[str, Path]) -> None:
    program = places["given"] / "true"
    shutil.copy("/bin/true", program)
    code = f"say([tried(subprocess.run, [{str(program)!r}]), subprocess.run(['/bin/true']).returncode])"

    assert restricted(code, write=(places["given"],)) == [errno.EACCES, 0]
    assert restricted(code, write=(places["given"],), execute=(places["given"],)) == [0, 0]


@NEEDED
def test_an_open_directory_is_no_way_around_it(places: dict[str, Path]) -> None:
    code = "say([tried(os.open, 'file', os.O_RDONLY, dir_fd=held), tried(os.listdir, held)])"
    before = f"held = os.open({str(places['secret'])!r}, os.O_RDONLY)"

    assert restricted(code, before=before)[0] == errno.EACCES


@NEEDED
def test_children_and_their_programs_are_restricted_too(places: dict[str, Path]) -> None:
    code = f"say(subprocess.run(['/bin/cat', {str(places['secret'] / 'file')!r}], capture_output=True).returncode)"

    assert restricted(code) == 1


@NEEDED
def test_a_restriction_cannot_be_widened_by_another(places: dict[str, Path]) -> None:
    code = f"""
landlock.restrict(["/"], ["/"], ["/"], network=True)
say(tried(open, {str(places["secret"] / "file")!r}))"""

    assert restricted(code) == errno.EACCES


@pytest.mark.skipif(ABI < 4, reason="this kernel's Landlock knows no ports (Linux 6.7)")
@pytest.mark.parametrize(("network", "answer"), [(False, errno.EACCES), (True, 0)])
def test_ports_are_closed_unless_the_network_is_left_alone(network: bool, answer: int) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        code = f"""
say([tried(socket.create_connection, ("127.0.0.1", {server.getsockname()[1]})),
     tried(socket.socket().bind, ("127.0.0.1", 0))])"""
        seen = restricted(code, options=f"network={network}")

    assert seen == [answer, answer]


@NEEDED
def test_what_was_prepared_holds_for_the_directory_that_was_there_and_not_for_its_name(tmp_path: Path) -> None:
    """A ruleset is prepared ahead of a job; what takes a listed place afterwards gains nothing by its name."""
    given, kept = tmp_path / "given", tmp_path / "kept"
    given.mkdir()
    code = f"""
os.rename({str(given)!r}, {str(kept)!r})
os.mkdir({str(given)!r})
landlock.enforce(prepared)
say([tried(open, {str(kept / "file")!r}, "w"), tried(open, {str(given / "file")!r}, "w")])"""
    before = f"prepared = landlock.prepare(landlock.plan([], [{str(given)!r}], network=True))"
    seen = restricted(code, before=before, write=(tmp_path,))

    assert seen == [0, errno.EACCES]


@SCOPED
def test_signals_and_abstract_sockets_do_not_leave_it(tmp_path: Path) -> None:
    name = f"\0omni-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        code = f"""
child = subprocess.Popen(["/bin/sleep", "60"])
outside = socket.socket(socket.AF_UNIX)
seen = [tried(os.kill, os.getppid(), 0), tried(outside.connect, {name!r}), tried(os.kill, child.pid, 9), child.wait()]
say(seen)"""
        seen = restricted(code)

    assert seen == [errno.EPERM, errno.EPERM, 0, -9]


@NEEDED
@pytest.mark.parametrize("most", range(1, ABI + 1))
def test_each_version_takes_away_what_it_says_and_no_more(places: dict[str, Path], most: int) -> None:
    """An older kernel is played by asking for less; what is not named as in force is indeed still possible."""
    shown, given = places["shown"], places["given"]
    (given / "deep").mkdir()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        code = f"""
say({{"names": layers, "announced": landlock.layers(network=False, most_abi={most}),
     "links": tried(os.rename, {str(given / "file")!r}, {str(given / "deep/file")!r}),
     "truncate": tried(os.truncate, {str(shown / "file")!r}, 1),
     "tcp": tried(socket.create_connection, ("127.0.0.1", {server.getsockname()[1]})),
     "scopes": tried(os.kill, os.getppid(), 0)}})"""
        seen = restricted(code, read=(shown,), write=(given,), options=f"network=False, most_abi={most}")
    names = seen.pop("names")

    assert seen.pop("announced") == names
    assert names[:2] == [f"landlock-{most}", "landlock-files"]
    assert seen.pop("links") == (0 if "landlock-links" in names else errno.EXDEV)
    assert {name: code == 0 for name, code in seen.items()} == {
        name: f"landlock-{name}" not in names for name in ("truncate", "tcp", "scopes")
    }


@NEEDED
@pytest.mark.skipif(ABI < 2, reason="this kernel's Landlock forbids every move between directories (Linux 5.19)")
def test_ordinary_programs_run_behind_it_as_a_second_lock(tmp_path: Path) -> None:
    """As a cell would list it: everything to read and to run, but nothing of /proc or /etc to write."""
    (tmp_path / "pool.py").write_text(POOL)
    outside = tmp_path.parent / "outside"
    devices = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    commands = {"sh": ["/bin/sh", "-c", SHELL], "python": [sys.executable, str(tmp_path / "pool.py")]}
    if shutil.which("node"):
        commands["node"] = [str(shutil.which("node")), "-e", NODE]
    commands["refused"] = ["/bin/sh", "-c", f"echo x > {outside} || echo x > /proc/self/comm || echo refused"]
    said = {}
    for name, command in commands.items():
        script = f"""
import os, sys
sys.path.insert(0, {str(SANDBOX)!r})
import landlock
landlock.restrict(["/"], [{str(tmp_path)!r}, "/dev/shm", *{devices!r}], ["/"], network=True)
os.execv({command[0]!r}, {command!r})"""
        done = subprocess.run(
            [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=90, check=False, cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        )  # fmt: skip
        said[name] = done.stdout.split() if done.returncode == 0 else done.stderr

    assert said.pop("node", ["child", "thread"]) == ["child", "thread"]
    assert said == {"sh": ["first", "1", "20000", "through"], "python": ["[0,", "1,", "4]"], "refused": ["refused"]}


@NEEDED
@pytest.mark.sandbox
def test_a_directory_of_the_host_that_was_left_open_is_of_no_use_in_a_new_root(home: Path) -> None:
    """The control: bubblewrap passes it on, and without the second lock a file of the host is read through it."""
    bwrap = shutil.which("bwrap") or pytest.skip("no bubblewrap")
    (home / "file").write_text("the host's")
    (home / "file").chmod(0o644)
    code = """
import os, sys
sys.path.insert(0, "/sandbox")
import landlock
def read():
    try: return os.read(os.open("file", os.O_RDONLY, dir_fd=held), 64).decode()
    except OSError as error: return error.errno
held = int(sys.argv[1])
print(read())
landlock.restrict(["/"], ["/tmp"], ["/"], network=True)
print(read(), os.path.isdir("/usr/bin") and len(os.listdir("/usr")) > 3)"""
    held = os.open(home, os.O_RDONLY)
    as_other: dict[str, Any] = {"user": JOBS_UID, "group": JOBS_UID} if os.geteuid() == 0 else {}
    links = [word for name in ("bin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")]
    done = subprocess.run(
        [bwrap, "--unshare-all", "--ro-bind", "/usr", "/usr", *links, "--tmpfs", "/tmp", "--ro-bind",
         str(home / "sandbox"), "/sandbox", "--", "/usr/bin/python3", "-I", "-S", "-B", "-c", code, str(held)],
        pass_fds=[held], capture_output=True, text=True, timeout=60, check=False, **as_other,
    )  # fmt: skip
    os.close(held)
    if done.stderr.startswith("bwrap:"):
        pytest.skip(f"no new root can be had here: {done.stderr}")

    assert done.stdout.splitlines() == ["the host's", f"{errno.EACCES} True"], done.stderr


SHELL = """
git init -q one && cd one && git config user.email a@b && git config user.name n && echo 1 > 1 && git add . \
&& git commit -qm first && cd .. && git clone -q one two && git -C two log --format=%s && tar czf one.tgz one \
&& mkdir three && tar xzf one.tgz -C three && ls three/one && seq 20000 | sort -R | sort -n -S 1M -T . | tail -1 \
&& mkfifo pipe && (echo through > pipe &) && cat pipe && mv one/1 two/1"""
POOL = """
import multiprocessing
def square(n): return n * n
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(square, range(3)))
"""
NODE = """
const { Worker } = require("worker_threads"), { execFileSync } = require("child_process");
const said = execFileSync("/bin/echo", ["child"]).toString().trim();
new Worker("require('worker_threads').parentPort.postMessage('thread')", { eval: true })
  .on("message", thread => console.log(said, thread));
"""

# a plain process tree in place of a cell


class Plain:
    """One `plain.py`, spoken to as the gateway speaks to it."""

    def __init__(self, home: Path, **setup: Any) -> None:
        self.home = home
        self.workspace = home / "workspace"
        self.workspace.mkdir(mode=0o700)
        as_other: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(self.workspace, JOBS_UID, JOBS_UID)
            as_other = {"user": JOBS_UID, "group": JOBS_UID, "extra_groups": []}
        self.control, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            starter = (
                f"import os; os.dup2({number}, 3); os.closerange(4, 99); os.execv({python()!r}, {self.command()!r})"
            )
            self.process = subprocess.Popen(
                [python(), "-I", "-S", "-c", starter], pass_fds=[number], env={}, cwd="/", stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE, start_new_session=True, **{**as_other, **setup.pop("run_as", {})},
            )  # fmt: skip
        self.setup = {
            "workspace": str(self.workspace), "read": [], "write": [], "execute": [],
            "alone": os.geteuid() == 0, **setup,
        }  # fmt: skip
        self.channel, self.theirs = socket.socketpair()

    def command(self) -> list[str]:
        return [python(), "-I", "-S", "-B", str(self.home / "sandbox" / "plain.py")]

    def start(self, *argv: str, **order: Any) -> None:
        """Hand over one job; its output goes to files in `home`."""
        wire = _module("wire")
        for each in (self.control, self.channel):
            each.settimeout(30)
        wire.send(self.control, self.setup)
        assert wire.receive(self.control) == {"kind": "ready"}
        wire.send(self.control, {}, (self.theirs.fileno(),))
        self.theirs.close()
        assert wire.receive(self.channel) == {"kind": "ready"}
        files: dict[str, bytes] = order.pop("files", {})
        frame = {
            "argv": list(argv), "function": "", "arguments": {}, "bundled": True, "listen": False, "exports": False,
            "environment": {"PATH": "/usr/bin:/bin"}, "rlimits": {"RLIMIT_NPROC": [16, 16]},
            "sizes": {}, "files": [{"path": path, "size": len(data)} for path, data in files.items()], **order,
        }  # fmt: skip
        given = [os.open("/dev/null", os.O_RDONLY)]
        given += [
            os.open(self.home / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600) for name in ("out", "err", "result")
        ]
        with contextlib.suppress(BrokenPipeError):  # it may have said no and gone before we are done
            wire.send(self.channel, frame, tuple(given))
        for descriptor in given:
            os.close(descriptor)
        for data in files.values():
            self.channel.sendall(data)

    def end(self) -> tuple[dict[str, Any], list[int]]:
        """Wait for the report."""
        frame, descriptors = _module("wire").receive_with(self.channel, 1)
        return frame, descriptors

    def run(self, *argv: str, **order: Any) -> str:
        """Run one job to its end; returns its output, or what it said on stderr."""
        self.start(*argv, **order)
        frame, _ = self.end()
        assert frame["kind"] == "ended", frame
        assert not frame["not_started"], frame
        return (self.home / "out").read_text().strip() or (self.home / "err").read_text().strip()

    def run_python(self, code: str, **order: Any) -> str:
        return self.run(python(), "-I", "-S", "-c", TREE.format(python=python()) + code, **order)

    def close(self) -> None:
        self.control.close()
        self.channel.close()
        self.theirs.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            assert self.process.stderr is not None
            self.process.stderr.close()


def python() -> str:
    """An interpreter that another user can start."""
    if os.geteuid() != 0:
        return sys.executable
    return shutil.which("python3", path="/usr/local/bin:/usr/bin") or pytest.skip("no Python for other users")


@pytest.fixture
def home() -> Iterator[Path]:
    """A place that the job's user can reach, with a copy of the shipped code and a function of our own."""
    place = Path(tempfile.mkdtemp(prefix="omni-plain-"))
    place.chmod(0o755)
    shutil.copytree(SANDBOX, place / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "sandbox/tools/trial.py").write_text(
        """
import os
def is_open(number):
    try: os.fstat(number)
    except OSError: return False
    return True
def work(arguments):
    return {"got": arguments["n"] + 1, "cwd": os.getcwd(), "open": [n for n in range(64) if is_open(n)]}
"""
    )
    yield place
    shutil.rmtree(place)


@pytest.fixture
def plain(home: Path) -> Iterator[Plain]:
    with contextlib.closing(Plain(home)) as started:
        yield started


def alive(name: str) -> list[int]:
    """Return the processes that call themselves *name*."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(name.encode() + b"\0"):
                found.append(int(entry.name))
    return found


pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no filter for this machine")


@NEEDED
def test_a_command_runs_in_its_workspace_with_nothing_of_ours(plain: Plain) -> None:
    code = """
import json
def is_open(number):
    try: os.fstat(number); return True
    except OSError: return False
print(json.dumps([os.getcwd(), dict(os.environ), [n for n in range(64) if is_open(n)], os.getpid() == os.getsid(0)]))"""
    cwd, environment, descriptors, leads = json.loads(plain.run_python(code))

    assert (cwd, leads) == (str(plain.workspace), True)
    environment.pop("LC_CTYPE", "")  # Python's own doing
    assert environment == {"PATH": "/usr/bin:/bin", "HOME": cwd, "TMPDIR": cwd, "GIT_CONFIG_NOSYSTEM": "1"}
    assert descriptors == [0, 1, 2]


@NEEDED
def test_the_report_names_what_is_in_force(plain: Plain) -> None:
    plain.start("/bin/sh", "-c", "exit 3")
    frame, _ = plain.end()

    assert os.waitstatus_to_exitcode(frame["status"]) == 3
    assert {"landlock-files", "seccomp", "no-sockets", "no-new-privileges", "rlimits"} <= set(frame["layers"])
    assert "own-namespaces" not in frame["layers"]


@NEEDED
@pytest.mark.parametrize("bundled", [True, False])
def test_a_function_returns_its_object_and_finds_no_descriptor_of_ours(plain: Plain, bundled: bool) -> None:
    said = plain.run(function="trial:work", arguments={"n": 41}, bundled=bundled)

    assert said == ""
    result = json.loads((plain.home / "result").read_text())
    assert result == {"got": 42, "cwd": str(plain.workspace), "open": [0, 1, 2, 3]}  # 3 takes the result


@NEEDED
def test_files_come_in_and_the_out_directory_goes_back(plain: Plain) -> None:
    plain.start(
        "/bin/sh", "-c", "mkdir out && tr a-z A-Z < in/text > out/text", files={"in/text": b"hello"}, exports=True
    )
    frame, (out,) = plain.end()
    with open(os.open("text", os.O_RDONLY, dir_fd=out)) as file:
        text = file.read()
    os.close(out)

    assert (frame["exported"], text) == (True, "HELLO")


@pytest.mark.skipif(ABI < 2, reason="this kernel's Landlock forbids every move between directories (Linux 5.19)")
def test_a_job_may_move_and_link_files_from_one_of_its_directories_to_another(plain: Plain) -> None:
    """Not by copying: each of the two restrictions on the way to it has to leave that right."""
    code = """
os.makedirs("one"); os.makedirs("two/three"); open("one/file", "w").close()
os.rename("one/file", "two/three/file"); os.link("two/three/file", "one/link"); os.rename("two/three", "one/three")
print(sorted(os.listdir("one")))"""

    assert plain.run_python(code) == "['link', 'three']"


@NEEDED
def test_files_of_the_jobs_own_user_are_out_of_reach(plain: Plain) -> None:
    """Modes alone would let it: the file is its user's own. The control is the same program without Landlock."""
    secret = plain.home / "secret"
    secret.write_text("hidden")
    if os.geteuid() == 0:
        os.chown(secret, JOBS_UID, JOBS_UID)
    code = f"print(open({str(secret)!r}).read()); open('/tmp/x', 'w')"
    reads = subprocess.run([python(), "-c", code.partition(";")[0]], capture_output=True, text=True, check=False)

    assert reads.stdout.strip() == "hidden"
    assert "PermissionError" in plain.run_python(code)
    assert "hidden" not in (plain.home / "out").read_text()


@NEEDED
@pytest.mark.parametrize("place", ["/tmp", "/dev/shm", "/proc/self/environ", "/etc/passwd", "/root", "/var/log"])
def test_places_of_the_host_are_closed(plain: Plain, place: str) -> None:
    assert "PermissionError" in plain.run_python(f"print(os.open({place!r}, os.O_RDONLY))")


@NEEDED
def test_a_directory_that_is_granted_can_be_used_as_granted(home: Path) -> None:
    for name in ("shown", "given"):
        (home / name).mkdir()
        (home / name).chmod(0o777)
        (home / name / "file").write_text(name)
    with contextlib.closing(Plain(home, read=[str(home / "shown")], write=[str(home / "given")])) as plain:
        said = plain.run(
            "/bin/sh", "-c", "cat ../shown/file; cp ../shown/file ../given/copy; cp ../given/file ../shown/x"
        )

    assert said.startswith("shown")
    assert (home / "given" / "copy").read_text() == "shown"
    assert not (home / "shown" / "x").exists()


@NEEDED
def test_there_are_no_sockets_but_connected_pairs(plain: Plain) -> None:
    code = """
import json, socket
seen = {}
for name, work in {
    "internet": lambda: socket.socket(), "unix": lambda: socket.socket(socket.AF_UNIX),
    "netlink": lambda: socket.socket(16, 3, 0), "pair": socket.socketpair,
    "datagrams": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)}.items():
    try: work(); seen[name] = 0
    except OSError as error: seen[name] = error.errno
print(json.dumps(seen))"""
    no = errno.EAFNOSUPPORT

    assert json.loads(plain.run_python(code)) == {
        "internet": no, "unix": no, "netlink": no, "pair": 0, "datagrams": errno.EPROTONOSUPPORT
    }  # fmt: skip


@NEEDED
def test_shared_memory_of_the_host_is_out_of_reach(plain: Plain) -> None:
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
said = [libc.shmget(0, 4096, 0o1600), ctypes.get_errno(), libc.msgget(0, 0o1600), ctypes.get_errno()]
print(said)"""

    assert json.loads(plain.run_python(code)) == [-1, errno.EPERM, -1, errno.EPERM]


@NEEDED
def test_a_daemon_is_dead_when_the_job_is_reported_as_ended(plain: Plain) -> None:
    name = f"omni-daemon-{os.getpid()}"
    said = plain.run_python(f"daemon({name!r}); daemon({name!r}); print('started')")

    assert said == "started"
    assert alive(name) == []


def started_daemon(plain: Plain) -> str:
    """Start a job that leaves a daemon and goes on; returns the daemon's name when it runs."""
    name = f"omni-daemon-{os.getpid()}"
    ready = plain.workspace / "ready"
    os.mkfifo(ready)
    os.chmod(ready, 0o666)
    code = TREE.format(python=python()) + f"daemon({name!r}); open('ready', 'w').write('x'); time.sleep(120)"
    plain.start(python(), "-I", "-S", "-c", code)
    assert ready.read_text() == "x"
    return name


@NEEDED
def test_when_the_gateway_goes_the_whole_tree_goes(plain: Plain) -> None:
    name = started_daemon(plain)
    plain.channel.close()
    plain.process.wait(20)

    assert alive(name) == []


@NEEDED
def test_told_to_end_it_takes_the_whole_tree_along(plain: Plain) -> None:
    name = started_daemon(plain)
    plain.process.send_signal(signal.SIGTERM)
    plain.process.wait(20)

    assert alive(name) == []


@NEEDED
def test_a_fork_bomb_is_bounded_and_dies(plain: Plain) -> None:
    code = """
import signal
count = 0
for _ in range(200):
    try: child = os.fork()
    except OSError: break
    if child == 0:
        os.setsid(); signal.pause()
    count += 1
print(count)"""
    before = of_the_jobs_user()
    started = int(plain.run_python(code))

    assert 0 < started <= 16
    assert of_the_jobs_user() - before == set()


def of_the_jobs_user() -> set[int]:
    """Processes that live: what an earlier test left dead waits for process 1 of this machine."""
    if os.geteuid() != 0:
        return set()
    return {int(entry.name) for entry in Path("/proc").glob("[0-9]*") if owner_of(entry) == JOBS_UID and lives(entry)}


def lives(entry: Path) -> bool:
    try:
        return (entry / "stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def owner_of(entry: Path) -> int:
    try:
        return entry.stat().st_uid
    except OSError:
        return -1


@SCOPED
def test_signals_of_a_job_reach_neither_its_supervisor_nor_others_of_its_user(home: Path) -> None:
    """Nor does the end of the tree, though it kills all that it can: `alone` is not said."""
    as_other: dict[str, Any] = {"user": JOBS_UID, "group": JOBS_UID} if os.geteuid() == 0 else {}
    name = f"omni-daemon-{os.getpid()}"
    bystander = subprocess.Popen(["/bin/sleep", "60"], **as_other)
    try:
        with contextlib.closing(Plain(home, alone=False)) as plain:
            code = f"""
import json
def tried(pid):
    try: os.kill(pid, 9); return 0
    except OSError as error: return error.errno
seen = [tried(os.getppid()), tried({bystander.pid})]
try: os.kill(-1, 15)
except OSError: pass
daemon({name!r})
print(json.dumps(seen))"""
            said = plain.run_python(code, rlimits={"RLIMIT_NPROC": [64, 64]})
        assert json.loads(said) == [errno.EPERM, errno.EPERM]
        assert bystander.poll() is None
        assert alive(name) == []
    finally:
        bystander.kill()
        bystander.wait()


def test_without_scopes_the_tree_is_found_by_its_parents(home: Path) -> None:
    """What an older kernel has to do: a supervisor of its own kills daemons, and nobody else's child."""
    name, other = f"omni-walk-{os.getpid()}", f"omni-other-{os.getpid()}"
    code = f"""
sys.path.insert(0, {str(home / "sandbox")!r})
import plain
plain.kernel.adopt_orphans()
for _ in range(5): daemon({name!r})
plain.kill_descendants(at_once=False)
print("done")"""
    sleeper = "import signal, time; signal.signal(15, 1); time.sleep(120)"
    bystander = subprocess.Popen([other, "-I", "-S", "-c", sleeper], executable=python())
    try:
        done = subprocess.run(
            [python(), "-I", "-S", "-B", "-c", TREE.format(python=python()) + code],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout.strip() == "done", done.stderr
        assert alive(name) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@NEEDED
def test_root_gets_no_plain_process(home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("we are not root")
    with contextlib.closing(Plain(home, alone=False, run_as={"user": 0, "group": 0})) as plain:
        plain.start("/bin/true")
        frame, _ = plain.end()

    assert frame["kind"] == "failed"
    assert "root" in frame["what"]


@NEEDED
def test_a_job_that_wants_the_network_is_refused(plain: Plain) -> None:
    plain.start("/bin/true", listen=True)
    frame, _ = plain.end()

    assert frame == {"kind": "failed", "what": "a plain process has no network"}


@NEEDED
def test_a_program_that_is_not_there_is_said(plain: Plain) -> None:
    plain.start("no-such-program")
    frame, _ = plain.end()

    assert frame["not_started"] == "there is no command 'no-such-program' in the cell"


@NEEDED
def test_ordinary_programs_run_as_plain_processes(plain: Plain) -> None:
    rlimits = {"RLIMIT_NPROC": [64, 64], "RLIMIT_DATA": [1 << 30, 1 << 30]}
    said = plain.run("/bin/sh", "-c", SHELL, rlimits=rlimits)

    assert said.split() == ["first", "1", "20000", "through"]


@NEEDED
def test_node_runs_as_a_plain_process(plain: Plain) -> None:
    node = shutil.which("node", path="/usr/bin") or pytest.skip("no node below /usr")

    assert plain.run(node, "-e", NODE, rlimits={"RLIMIT_NPROC": [64, 64]}) == "child thread"


def test_what_is_not_stopped_is_said_in_sentences_for_every_posture() -> None:
    said = tomllib.loads((SANDBOX / "not_stopped.toml").read_text())

    assert set(said) == set(POSTURES)
    assert len(said["landlock"]) >= 6
    assert all(text.endswith(".") for texts in said.values() for text in texts)
    assert {posture: text + "." for posture, text in NOT_STOPPED.items()} == {
        posture: " ".join(texts) for posture, texts in said.items()
    }
