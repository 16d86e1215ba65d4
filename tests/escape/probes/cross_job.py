"""Probes of one job against another: what it left, what it has now, and what both must share."""

from __future__ import annotations

from typing import Any

from tests.escape.probe import Probe


def _after(name: str, attempts: str, before: str, script: str, **fields: Any) -> Probe:
    return Probe(
        name=f"after-{name}", group="cross-job", attempts=attempts, before=f'{before.strip()}\nprint("LEFT")',
        script=script, **fields,
    )  # fmt: skip


def _beside(name: str, attempts: str, beside: str, script: str, **fields: Any) -> Probe:
    return Probe(
        name=f"beside-{name}", group="cross-job", attempts=attempts, beside=f"{beside.strip()}\nready()\nwait()",
        script=script, **fields,
    )  # fmt: skip


_LEAVE_FILES = """
for place in ("/tmp", "/dev/shm", "/workspace"):
    with open(place + "/left", "w") as file:
        file.write("mine")
"""
_FIND_FILES = """
opens("/tmp/left", "/dev/shm/left", "/workspace/left")
stopped()
"""
_SEGMENT = 'with contextlib.suppress(OSError):\n    call("shmget", 0x0E5C0001, 4096, 0o1666)'
_SEMAPHORE = 'with contextlib.suppress(OSError):\n    call("semget", 0x0E5C0002, 1, 0o1666)'
_QUEUE = 'with contextlib.suppress(OSError):\n    call("msgget", 0x0E5C0003, 0o1666)'
_POSIX_QUEUE = 'with contextlib.suppress(OSError):\n    call("mq_open", b"left", 0o102, 0o666, 0)'
_ONE_FILE = "the file is the host's own, and whoever can open a file can lock it (docs/sandbox.md)"
_SAME_USER = (
    "all jobs of an ordinary user's gateway are that one user's, and the kernel counts this for each user; a range of "
    "users of one's own (subuid) would part them"
)

PROBES = (
    _after("files", "Find files that another job left in its temporary places.", _LEAVE_FILES, _FIND_FILES),
    _beside("files", "Find files that another job has in its temporary places.",
            _LEAVE_FILES.replace(', "/workspace"', ""), _FIND_FILES),
    *(
        _after(f"{name}", f"Find a {what} that another job left.", left,
               f"with attempt('find'):\n    {find}\n    escaped('found it')\nstopped()")
        for name, what, left, find in (
            ("segment", "segment of shared memory", _SEGMENT, 'call("shmget", 0x0E5C0001, 4096, 0)'),
            ("semaphore", "semaphore", _SEMAPHORE, 'call("semget", 0x0E5C0002, 1, 0)'),
            ("queue", "message queue", _QUEUE, 'call("msgget", 0x0E5C0003, 0)'),
            ("posix-queue", "message queue with a name", _POSIX_QUEUE, 'call("mq_open", b"left", 0, 0, 0)'),
        )
    ),
    _beside("segment", "Attach to shared memory of the host.", "",
            """
with attempt("find"):
    call("shmget", FACTS["shared_memory_key"], 4096, 0)
    escaped("found it")
stopped()
"""),
    _beside("processes", "See another job's processes.", "", """
others = [pid for pid in processes() if pid not in (1, os.getpid())]
escaped(f"there are {others}") if others else stopped("none is seen")
"""),
    _beside("kill", "Kill another job's processes.", "", """
with attempt("kill"):
    os.kill(-1, signal.SIGKILL)
tried()
""", tried=True),
    _beside("loopback", "Connect to a server of another job.", """
import socket
server = socket.create_server(("127.0.0.1", 5777))
""", """
import socket
with attempt("connect"):
    socket.create_connection(("127.0.0.1", 5777), 5)
    escaped("connected")
stopped()
"""),
    _beside("port", "Keep another job from a port by taking it first.", """
import socket
server = socket.create_server(("127.0.0.1", 5778))
""", """
import socket
try:
    socket.create_server(("127.0.0.1", 5778))
except OSError as error:
    escaped(f"it is taken: {error}")
stopped("both have it")
"""),
    _beside("abstract-socket", "Connect to a unix socket of another job.", """
import socket
server = socket.socket(socket.AF_UNIX)
server.bind("\\0other-job")
server.listen()
""", """
import socket
with attempt("connect"):
    socket.socket(socket.AF_UNIX).connect("\\0other-job")
    escaped("connected")
stopped()
""", profile="sockets"),
    _beside("datagram-pair", "Reach another job by a pair of datagram sockets of which one got a name.", """
import socket
with attempt("bind"):
    server, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind("\\0other-pair")
    call(42 if platform.machine() == "x86_64" else 203, server.fileno(), bytes(2), 2)
""", """
import socket
with attempt("send"):
    talker, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    talker.sendto(b"hello", "\\0other-pair")
    escaped("sent")
stopped()
"""),
    _beside("keys", "Find a key of another job.", """
with attempt("add"):
    call("add_key", b"user", b"other-job", b"x", 1, -4)
""", """
if "other-job" in open("/proc/keys").read():
    escaped("it is listed")
stopped("not listed")
"""),
    _beside("key-users", "Learn who else has keys.", "", """
with open("/proc/key-users") as file:
    lines = [line for line in file.read().splitlines() if line.split(":")[0].strip() != str(os.getuid())]
escaped(f"{lines}") if lines else stopped("nobody else is listed")
""", no_control="a user without keys is not listed"),
    _beside("watches", "Use up what a user may watch, so that another job cannot watch a file.", """
init = 294 if platform.machine() == "x86_64" else 26
with attempt("watch"):
    for _ in range(4):
        if os.fork() == 0:
            break
    for _ in range(40):
        call(init, 0)
""", """
if FACTS["bare"]:
    import time
    time.sleep(0.1)
try:
    call(294 if platform.machine() == "x86_64" else 26, 0)
except OSError as error:
    escaped(error)
stopped("there is one left")
"""),
    _beside("pipes", "Use up what a user may have in pipes, so that another job gets the smallest ones.", """
import fcntl
kept = []
with attempt("enlarge"):
    for _ in range(70):
        pipe = os.pipe()
        kept.append(pipe)
        fcntl.fcntl(pipe[1], 1031, 1 << 20)
with attempt("more"):
    for _ in range(400):
        kept.append(os.pipe())
""", """
import fcntl
reader, writer = os.pipe()
size = fcntl.fcntl(writer, 1032)
stopped(f"a pipe has {size} bytes") if size >= 65536 else escaped(f"a pipe has {size} bytes")
""", limits={"open_files": 1024, "memory_mib": 256}),
    _beside("processes-in-all", "Use up the number of processes, so that another job cannot start one.", """
with attempt("fork"):
    for _ in range(24):
        if os.fork() == 0:
            wait()
""", """
for _ in range(10):
    try:
        if os.fork() == 0:
            wait()
    except OSError as error:
        escaped(error)
stopped("ten more run")
""", limits={"memory_mib": 512}, no_control="without a limit there is nothing to use up"),
    _beside("descriptors-in-flight", "Use up what a user may have on its way, so that another job cannot send.", """
import array, socket
kept = []
with attempt("send"):
    for _ in range(20):
        left, right = socket.socketpair()
        left.setblocking(False)
        kept += [left, right]
        for _ in range(20):
            left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 3))])
""", """
import array, socket
left, right = socket.socketpair()
try:
    left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
except OSError as error:
    escaped(error)
stopped("one more is sent")
""", through_in={"user": _SAME_USER}, by_chance=True,
    no_control="root may have as many as it likes on their way"),
    _beside("locks", "Hold a lock on a file of the system that another job needs.", """
import fcntl
with attempt("lock"):
    fcntl.flock(os.open("/usr/bin/env", os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
""", """
import fcntl
try:
    fcntl.flock(os.open("/usr/bin/env", os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)
except OSError as error:
    escaped(f"it is held: {error}")
stopped("it is free")
""", through_in={"full": _ONE_FILE, "no-cgroup": _ONE_FILE, "user": _ONE_FILE}),
    _beside("names", "Learn of another job by its name of the machine, its mounts or its load.", "", """
found = [line for line in open("/proc/self/mountinfo") if "/given-" in line]
found = [line for line in found if " /workspace " not in line]
escaped(found) if found else stopped("nothing of it is seen")
""", no_control="one place has one list of mounts"),
)  # fmt: skip
