"""Probes that reach for other processes: those of the host, and process 1 of the cell, which guards it."""

from __future__ import annotations

from tests.escape.probe import Probe


def _of_1(name: str, what: str, attempts: str, *, write: bool = False) -> Probe:
    flags = ", flags=os.O_RDWR" if write else ""
    script = f"opens('/proc/1/{what}', '/proc/1/task/1/{what}'{flags})\nstopped()"
    return Probe(name=f"{name}-of-1", group="processes", attempts=attempts, script=script)


PROBES = (
    Probe(
        name="see-the-neighbour",
        group="processes",
        attempts="See a process of the host by its command line, or the command line of whoever started this one.",
        script="""
for pid in processes():
    with attempt(str(pid)):
        if secret() in open(f"/proc/{pid}/cmdline", errors="replace").read():
            escaped(f"process {pid}")
stopped(f"only {processes()} are seen")
""",
    ),
    Probe(
        name="count-processes",
        group="processes",
        attempts="See any process besides process 1 and this one.",
        script="""
others = [pid for pid in processes() if pid not in (1, os.getpid())]
escaped(f"{others} are seen") if others else stopped("no other is seen")
""",
    ),
    Probe(
        name="environments",
        group="processes",
        attempts="Read the environment of every process that can be seen, where secrets of the gateway would be.",
        script="""
for pid in ("self", *processes()):
    with attempt(str(pid)):
        if secret() in open(f"/proc/{pid}/environ", errors="replace").read():
            escaped(f"the environment of {pid} holds it")
stopped()
""",
    ),
    Probe(
        name="environment-of-our-own",
        group="processes",
        attempts="Find the gateway's secret in the own environment, or in the memory where it began.",
        script="""
if secret() in str(dict(os.environ)):
    escaped("it is in the environment")
for line in open("/proc/self/maps"):
    if "[stack]" in line:
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        memory = open("/proc/self/mem", "rb", buffering=0)
        memory.seek(start)
        if (secret().encode() + b"\\0") in memory.read(end - start):
            escaped("it is on the stack")
stopped("it is in neither")
""",
    ),
    _of_1("environ", "environ", "Read the environment of process 1."),
    _of_1("memory", "mem", "Open the memory of process 1 for writing.", write=True),
    _of_1("maps", "maps", "Learn the address-space layout of process 1, which the function of a tool shares."),
    _of_1("auxv", "auxv", "Read the start-up vector of process 1."),
    _of_1("pagemap", "pagemap", "Read the page table of process 1."),
    _of_1("syscall", "syscall", "Read what process 1 is doing."),
    Probe(
        name="links-of-1",
        group="processes",
        attempts="Follow the links of process 1 to its root, its directory, its program and its namespaces.",
        script="""
for name in ("root", "cwd", "exe", "ns/mnt", "ns/user", "ns/net", "ns/pid"):
    with attempt(name):
        escaped(f"{name} is {os.readlink('/proc/1/' + name)}")
stopped()
""",
    ),
    Probe(
        name="controls-of-1",
        group="processes",
        attempts="Open what controls process 1 for writing: its maps of users, its memory score, its name.",
        script="""
for name in ("uid_map", "gid_map", "setgroups", "oom_score_adj", "oom_adj", "coredump_filter", "clear_refs", "comm",
             "loginuid", "sched", "autogroup"):
    with attempt(name):
        os.close(os.open(f"/proc/1/{name}", os.O_WRONLY))
        escaped(f"opened {name}")
stopped()
""",
    ),
    Probe(
        name="signals-to-1",
        group="processes",
        attempts="Make process 1 obey a signal.",
        script="""
for number in signal.valid_signals():
    with attempt(str(number)):
        os.kill(1, number)
os.kill(1, 0)
import time
time.sleep(0.05)
stopped("it is alive") if os.path.exists("/proc/1") else escaped("it is gone")
""",
    ),
    Probe(
        name="thread-signals-to-1",
        group="processes",
        attempts="Make process 1 obey a signal that is sent to its thread, through a descriptor, or as a queued one.",
        script="""
handle = os.pidfd_open(1)
for number in signal.valid_signals():
    with attempt(str(number)):
        signal.pidfd_send_signal(handle, number)
    with attempt(str(number)):
        call(234 if platform.machine() == "x86_64" else 131, 1, 1, number)
import time
time.sleep(0.05)
stopped("it is alive") if os.path.exists("/proc/1") else escaped("it is gone")
""",
    ),
    Probe(
        name="kill-all",
        group="processes",
        attempts="Kill every process that can be reached, and go on.",
        script="""
with attempt("kill"):
    os.kill(-1, signal.SIGKILL)
tried()
""",
        tried=True,
    ),
    Probe(
        name="kill-the-neighbour",
        group="processes",
        attempts="Send a signal to a process of the host by its number.",
        script="""
with attempt("kill"):
    os.kill(FACTS["neighbour"], 0)
    escaped("it can be signalled")
stopped()
""",
    ),
    Probe(
        name="kill-every-number",
        group="processes",
        attempts="Find a process of the host that does not show in /proc by trying every number.",
        script="""
with open("/proc/sys/kernel/pid_max") as file:
    most = min(int(file.read()), 1 << 17)
found = []
for pid in range(2, most):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        continue
    except PermissionError:
        pass
    if pid != os.getpid():
        found.append(pid)
escaped(f"there are {found}") if found else stopped("none has an answer")
""",
    ),
    Probe(
        name="trace-1",
        group="processes",
        attempts="Attach to process 1 as a debugger does.",
        script="reaches('ptrace', 0x4206, 1, 0, 0)",
    ),
    Probe(
        name="be-traced",
        group="processes",
        attempts="Ask to be traced, the first step of every debugger.",
        script="reaches('ptrace', 0, 0, 0, 0)",
    ),
    *(
        Probe(
            name=f"{name}-of-1",
            group="processes",
            attempts=f"{verb} the memory of process 1 by system call.",
            script=f"""
import struct
block = ctypes.create_string_buffer(8)
local = struct.pack("QQ", ctypes.addressof(block), 8)
reaches("{name}", 1, local, 1, struct.pack("QQ", 4096, 8), 1, 0)
""",
        )
        for name, verb in (("process_vm_readv", "Read"), ("process_vm_writev", "Write"))
    ),
    Probe(
        name="descriptor-of-1",
        group="processes",
        attempts="Take the control socket of process 1 by number.",
        script="""
handle = os.pidfd_open(1)
for number in range(64):
    with attempt("take"):
        call("pidfd_getfd", handle, number, 0)
        escaped(f"took descriptor {number}")
stopped(_reasons[0])
""",
    ),
    Probe(
        name="compare-with-1",
        group="processes",
        attempts="Compare kernel objects with those of process 1.",
        script="reaches('kcmp', os.getpid(), 1, 1, 0, 0)",
    ),
    Probe(
        name="limits-of-1",
        group="processes",
        attempts="Take descriptors and processor time from process 1, so that it cannot report or clean up.",
        script="""
import resource
with attempt("read"):
    now = resource.prlimit(1, resource.RLIMIT_NOFILE)
    with attempt("write"):
        resource.prlimit(1, resource.RLIMIT_NOFILE, now)
        escaped("its limits can be set")
stopped()
""",
    ),
    Probe(
        name="priority-of-1",
        group="processes",
        attempts="Put process 1 behind every other, so that its cleaning up waits.",
        script="""
with attempt("nice"):
    os.setpriority(os.PRIO_PROCESS, 1, os.getpriority(os.PRIO_PROCESS, 1))
    escaped("its priority can be set")
stopped()
""",
    ),
    Probe(
        name="priority-by-user",
        group="processes",
        attempts="Put all processes of the own user behind others, process 1 among them.",
        script="""
before = os.getpriority(os.PRIO_PROCESS, 1)
with attempt("nice"):
    os.setpriority(os.PRIO_USER, 0, before + 1)
after = os.getpriority(os.PRIO_PROCESS, 1)
escaped(f"that of process 1 went from {before} to {after}") if before != after else stopped(_reasons or "only others")
""",
    ),
    Probe(
        name="disk-priority-of-1",
        group="processes",
        attempts="Put process 1 behind every other at the disk.",
        script="""
for kind, who in ((1, 1), (2, 1), (3, os.getuid())):
    before = call(252 if platform.machine() == "x86_64" else 31, 1, 1)
    with attempt("ioprio"):
        call("ioprio_set", kind, who, 2 << 13 | (6 if before & 7 == 7 else 7))
    if call(252 if platform.machine() == "x86_64" else 31, 1, 1) != before:
        escaped(f"it is changed, by kind {kind}")
stopped(_reasons or "only others")
""",
    ),
    Probe(
        name="scheduling-of-1",
        group="processes",
        attempts="Give process 1 only idle time, or one processor.",
        script="""
with attempt("policy"):
    os.sched_setscheduler(1, os.SCHED_OTHER, os.sched_param(0))
    escaped("its scheduling can be set")
with attempt("affinity"):
    os.sched_setaffinity(1, os.sched_getaffinity(1))
    escaped("its processors can be set")
stopped()
""",
    ),
    Probe(
        name="score-of-our-own",
        group="processes",
        attempts="Be the last that is killed when memory runs out.",
        script="""
with attempt("lower"):
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")
    escaped("the score is -1000")
stopped()
""",
        no_control="root of this machine has no CAP_SYS_RESOURCE",
    ),
    Probe(
        name="audit-identity",
        group="processes",
        attempts="Take on the audit identity of another user.",
        script="""
with attempt("write"):
    with open("/proc/self/loginuid", "w") as file:
        file.write("0")
    escaped("it is that of root")
stopped()
""",
    ),
    Probe(
        name="core-file",
        group="processes",
        attempts="Leave a core file, or start the program that the host has for them.",
        script="""
import resource
try:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
except ValueError as error:
    _reasons.append(str(error))
pid = os.fork()
if pid == 0:
    os.abort()
_, status = os.waitpid(pid, 0)
escaped("the kernel dumped core") if os.WCOREDUMP(status) else stopped()
""",
    ),
)
