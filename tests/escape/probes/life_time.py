"""Probes that try to go on after their job has ended. Their processes hold a fifo that is looked at outside."""

from __future__ import annotations

from typing import Any

from tests.escape.probe import Probe


def _stays(name: str, attempts: str, script: str, *ends: str, **fields: Any) -> Probe:
    return Probe(
        name=name, group="life time", attempts=attempts, script=f"{script.strip()}\ntried()", tried=True, ends=ends,
        **fields,
    )  # fmt: skip


_AND_STAY = """
if not FACTS["bare"]:
    wait()
"""
_SHORT = {"limits": {"timeout_s": 1.0}}

PROBES = (
    _stays("daemon", "Leave a daemon: forked twice, in a session of its own, without streams.", """
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (0, 1, 2):
        os.close(number)
    hold()
    os.write(writer, b"x")
    wait()
os.read(reader, 1)
"""),
    _stays("held-output", "Leave a process that holds the output, so that it never ends.", """
hold()
if os.fork() == 0:
    os.setsid()
    wait()
"""),
    _stays("deaf-child", "Leave a process that ignores every signal that can be ignored.", """
hold()
reader, writer = os.pipe()
if os.fork() == 0:
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    os.write(writer, b"x")
    wait()
os.read(reader, 1)
"""),
    _stays("stopped-child", "Leave a process that is stopped.", """
hold()
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
    wait()
os.waitpid(child, os.WUNTRACED)
"""),
    _stays("hopping", "Leave processes that are never there for long: each starts the next and ends.", """
hold()
reader, writer = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        os.write(writer, b"x")
        while True:
            with attempt("fork"):
                if os.fork():
                    os._exit(0)
for _ in range(4):
    os.read(reader, 1)
""", "memory"),
    _stays("storm", "Fork as fast as possible while the job ends.", """
hold()
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, b"x")
    for _ in range(4 if FACTS["bare"] else 1 << 30):
        with attempt("fork"):
            os.fork()
    wait()
os.read(reader, 1)
""", "memory", "processes"),
    _stays("sibling", "Leave a process that is a child of process 1 and not ours.", """
hold()
if call("clone", 0x8000 | 17, 0, 0, 0, 0) == 0:
    wait()
"""),
    _stays("reaper", "Collect orphans below a process of one's own, out of the sight of process 1.", """
hold()
reader, writer = os.pipe()
if os.fork() == 0:
    call("prctl", 36, 1, 0, 0, 0)
    if os.fork() == 0:
        if os.fork():
            os._exit(0)
        os.write(writer, b"x")
        wait()
    os.wait()
    wait()
os.read(reader, 1)
"""),
    _stays("frozen-parent", "Leave a parent that waits in the kernel for a child that never lets it go.", """
hold()
reader, writer = os.pipe()
if os.fork() == 0:
    if call("clone", 0x4000 | 17, 0, 0, 0, 0) == 0:
        os.write(writer, b"x")
        wait()
os.read(reader, 1)
"""),
    _stays("another-program", "Leave another program, started in the background by a shell.", """
hold()
for number in os.listdir("/proc/self/fd"):
    with contextlib.suppress(OSError):
        os.set_inheritable(int(number), True)
os.system("nohup setsid sleep 600 >/dev/null 2>&1 &")
"""),
    _stays("no-parent-death", "Leave a child that has been told not to die with its parent.", """
hold()
reader, writer = os.pipe()
if os.fork() == 0:
    call("prctl", 1, 0, 0, 0, 0)
    os.setsid()
    os.write(writer, b"x")
    wait()
os.read(reader, 1)
"""),
    _stays("undumpable-child", "Leave a child that nobody may look at.", """
hold()
reader, writer = os.pipe()
if os.fork() == 0:
    call("prctl", 4, 0, 0, 0, 0)
    os.write(writer, b"x")
    wait()
os.read(reader, 1)
"""),
    _stays("idle-child", "Leave a child that gets a processor only when nobody else wants one.", """
hold()
reader, writer = os.pipe()
if os.fork() == 0:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.write(writer, b"x")
    while True:
        pass
os.read(reader, 1)
"""),
    _stays("dead-main-thread", "End the main thread and go on in another one.", """
import _thread
hold()
if FACTS["bare"] and os.fork():
    tried()
    os._exit(0)
_thread.start_new_thread(wait, ())
call(60 if platform.machine() == "x86_64" else 93, 0)
""", "timeout", **_SHORT),
    _stays("sleeping-children", "Stay with children in sessions of their own until time is up.", f"""
hold()
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        wait()
{_AND_STAY}
""", "timeout", **_SHORT),
    _stays("unread-input", "Stay without reading the input, with all streams closed.", """
hold()
if FACTS["bare"] and os.fork() == 0:
    wait()
tried()
if FACTS["bare"]:
    os._exit(0)
for number in (0, 1, 2):
    os.close(number)
wait()
""", "timeout", **_SHORT),
    _stays("killed-in-a-flood", "Leave children that write without end, so that the limit of output ends it.", f"""
hold()
for _ in range(3):
    if os.fork() == 0:
        while True:
            with contextlib.suppress(OSError):
                os.write(1 if not FACTS["bare"] else os.open("/dev/null", os.O_WRONLY), b"x" * 4096)
{_AND_STAY}
""", "output_limit"),
)  # fmt: skip
