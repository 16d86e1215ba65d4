"""Probes of the kernel's own surface: calls that no tool needs, and ways past a filter of calls."""

from __future__ import annotations

from dataclasses import dataclass

from tests.escape.probe import Probe

_NO_KEXEC = "this kernel has no kexec (CONFIG_KEXEC)"
_NO_PORTS = "this kernel gives ports to nobody (CONFIG_X86_IOPL_IOPERM)"
_NO_MODULES = "this kernel has no loadable modules (CONFIG_MODULES)"


@dataclass(frozen=True, slots=True)
class _Call:
    """A system call with arguments that do no harm where it is carried out."""

    name: str
    attempts: str
    arguments: str
    initial: bool = False
    no_control: str = ""
    before: str = ""


_CALLS = (
    _Call("add_key", "Put a key into the session's ring.", "b'user', b'mine', b'x', 1, -3"),
    _Call("request_key", "Ask for a key, which can start a program of the host.", "b'user', b'none', 0, -3"),
    _Call("keyctl", "Find the ring of keys of the session, which the gateway's may be.", "0, -3, 1, 0, 0"),
    _Call("bpf", "Make a map for kernel programs.", "0, struct.pack('7I', 2, 4, 4, 1, 0, 0, 0) + bytes(100), 128",
          True, "", "import struct\n"),
    _Call("perf_event_open", "Measure the processors.",
          "struct.pack('IIQ', 1, 112, 0) + bytes(96), -1, 0, -1, 0", True, "", "import struct\n"),
    _Call("userfaultfd", "Handle own page faults, which makes races in the kernel easy.", "1"),
    _Call("io_uring_setup", "Make calls that no filter sees.", "4, ctypes.create_string_buffer(248)"),
    _Call("memfd_secret", "Get memory that the kernel itself cannot look at.", "0",
          no_control="off unless the kernel is started with secretmem.enable"),
    _Call("fanotify_init", "Watch all files of a mount.", "0, 0", True),
    _Call("syslog", "Read the kernel's log.", "3, ctypes.create_string_buffer(64), 64", True),
    _Call("acct", "Open the accounting of processes.", "b'/nonexistent/file'", True),
    _Call("swapon", "Add swap.", "b'/nonexistent/file', 0", True),
    _Call("swapoff", "Take swap away.", "b'/nonexistent/file'", True),
    _Call("kexec_load", "Put another kernel in place.", "0, 0, 0, -1", True, _NO_KEXEC),
    _Call("kexec_file_load", "Put another kernel in place, from a file.", "-1, -1, 0, 0, -1", True, _NO_KEXEC),
    _Call("init_module", "Load a module into the kernel.", "b'', 0, b''", True, _NO_MODULES),
    _Call("finit_module", "Load a module into the kernel, from a file.", "-1, b'', 0", True, _NO_MODULES),
    _Call("delete_module", "Take a module out of the kernel.", "b'none', 0", True, _NO_MODULES),
    _Call("reboot", "Restart the machine.", "0, 0, 0, 0", True),
    _Call("clock_settime", "Set the clock.", "0, struct.pack('qq', 0, -1)", True, "", "import struct\n"),
    _Call("settimeofday", "Set the clock by the old call.", "struct.pack('qq', 0, 1 << 40), 0", True, "",
          "import struct\n"),
    _Call("adjtimex", "Look at how the clock is steered.", "ctypes.create_string_buffer(256)"),
    _Call("clock_adjtime", "Look at how any clock is steered.", "0, ctypes.create_string_buffer(256)"),
    _Call("vhangup", "Hang up the terminal.", "", True),
    _Call("iopl", "Get the input and output ports of the machine.", "0", no_control=_NO_PORTS),
    _Call("ioperm", "Get one port of the machine.", "0x80, 1, 0", no_control=_NO_PORTS),
    _Call("modify_ldt", "Write own segments for the processor.", "0, ctypes.create_string_buffer(64), 64"),
    _Call("sysfs", "List file systems by an old call.", "3"),
    _Call("ustat", "Look at a file system by an old call.", "0, ctypes.create_string_buffer(64)"),
    _Call("quotactl", "Look at the quotas of users.", "0x80000100, 0, 0, ctypes.create_string_buffer(64)"),
    _Call("lsm_list_modules", "List the kernel's security modules.",
          "ctypes.create_string_buffer(512), struct.pack('I', 512) + bytes(4), 0", False, "", "import struct\n"),
    _Call("process_madvise", "Advise on the memory of a process.", "os.pidfd_open(os.getpid()), 0, 0, 20, 0"),
    _Call("process_mrelease", "Take the memory of a process.", "os.pidfd_open(os.getpid()), 0"),
    _Call("move_pages", "Move pages of a process between nodes.", "0, 0, 0, 0, 0, 0"),
    _Call("migrate_pages", "Move all pages of a process between nodes.", "0, 1, bytes(8), bytes(8)"),
    _Call("set_mempolicy", "Choose the node of the machine from which memory comes.", "0, 0, 0"),
    _Call("mbind", "Choose the node of the machine for some pages.", "0, 4096, 0, 0, 0, 0"),
    _Call("remap_file_pages", "Rearrange mapped pages by an old call.", "0, 0, 0, 0, 0"),
    _Call("io_setup", "Take requests from the one account that all users of the machine share (fs.aio-max-nr).",
          "1024, ctypes.create_string_buffer(8)"),
    _Call("setxattrat", "Make a call that is younger than the last review.", "-1, b'', 0, b'', 0, 0"),
    _Call("mount", "Mount a file system.", "b'tmpfs', b'/tmp', b'tmpfs', 0, 0"),
    _Call("umount2", "Unmount what hides something.", "b'/tmp', 2"),
    _Call("pivot_root", "Make another directory the root.", "b'/tmp', b'/tmp'"),
    _Call("chroot", "Make another directory the root, to break out of it with an open one.", "b'/tmp'"),
    _Call("fsopen", "Prepare a file system.", "b'tmpfs', 0"),
    _Call("fspick", "Change a mounted file system.", "-100, b'/tmp', 0"),
    _Call("open_tree", "Clone a tree of mounts.", "-100, b'/usr', 1"),
    _Call("open_tree_attr", "Clone a tree of mounts by a younger call.", "-100, b'/usr', 1, bytes(32), 32"),
    _Call("move_mount", "Move a mount by descriptors.", "-1, b'', -1, b'', 0"),
    _Call("mount_setattr", "Make a read-only mount writable.", "-100, b'/usr', 0, bytes(32), 32"),
    _Call("statmount", "Look at mounts by number.", "bytes(24), ctypes.create_string_buffer(512), 512, 0"),
    _Call("listmount", "List mounts by number.",
          "struct.pack('IIQQQ', 32, 0, (1 << 64) - 1, 0, 0), ctypes.create_string_buffer(512), 8, 0", False, "",
          "import struct\n"),
)  # fmt: skip


def _reached(it: _Call) -> Probe:
    arguments = f", {it.arguments}" if it.arguments else ""
    return Probe(
        name=f"call-{it.name}", group="kernel", attempts=it.attempts, initial=it.initial, no_control=it.no_control,
        script=f"{it.before}reaches('{it.name}'{arguments})",
    )  # fmt: skip


_MACHINE_CODE = """
import mmap
code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("CODE"))
print("calling", flush=True)
result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
escaped(f"the call answered {result}") if result >= 0 else stopped(f"the call answered {result}")
"""

_TERMINAL = """
import fcntl, pty, termios
leader, follower = pty.openpty()
with contextlib.suppress(OSError):
    os.setsid()
fcntl.ioctl(follower, termios.TIOCSCTTY, 0)
with attempt("ioctl"):
    fcntl.ioctl(follower, REQUEST, ARGUMENT)
    escaped("done")
stopped()
"""

PROBES = (
    *(_reached(it) for it in _CALLS),
    Probe(
        name="keys",
        group="kernel",
        attempts="See the keys of whoever started the gateway, by their names.",
        script="""
with attempt("keys"):
    if secret() in open("/proc/keys").read():
        escaped("a key is named")
with attempt("key-users"):
    escaped("users have keys") if open("/proc/key-users").read() else None
stopped()
""",
    ),
    Probe(
        name="remount-read-write",
        group="kernel",
        attempts="Make /usr writable by mounting it anew, as root without dropped capabilities can.",
        script="""
with attempt("remount"):
    call("mount", b"none", b"/usr", b"", 32 | 4096, 0)
    escaped("/usr is mounted read-write")
stopped()
""",
    ),
    Probe(
        name="move-a-mount",
        group="kernel",
        attempts="Move a mount away from what it hides.",
        script="""
os.makedirs("/tmp/there", exist_ok=True)
with attempt("move"):
    call("mount", b"/dev/shm", b"/tmp/there", b"", 8192, 0)
    escaped("it is moved")
stopped()
""",
    ),
    Probe(
        name="overlay",
        group="kernel",
        attempts="Lay own files over those of the system.",
        script="""
for name in ("upper", "work", "merged"):
    os.makedirs(f"/tmp/{name}")
with attempt("mount"):
    call("mount", b"overlay", b"/tmp/merged", b"overlay", 0, b"lowerdir=/usr,upperdir=/tmp/upper,workdir=/tmp/work")
    escaped("it is mounted")
stopped()
""",
    ),
    Probe(
        name="break-chroot",
        group="kernel",
        attempts="Go up out of a root that was changed while a directory was open.",
        script="""
os.mkdir("/tmp/jail")
outer = os.open("/", os.O_RDONLY)
with attempt("chroot"):
    os.chroot("/tmp/jail")
    os.fchdir(outer)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    escaped(f"the root holds {os.listdir('/')[:3]}")
stopped()
""",
    ),
    Probe(
        name="int-80",
        group="kernel",
        attempts="Make a new user namespace by the calls of i386, which a filter of x86_64 numbers does not know.",
        script=_MACHINE_CODE.replace("CODE", "53" + "b836010000" + "bb00000010" + "cd80" + "5b" + "c3"),
        ends=("signal 31", "policy"),
    ),
    Probe(
        name="sysenter",
        group="kernel",
        attempts="Get into the kernel by the instruction that only i386 programs use.",
        script=_MACHINE_CODE.replace("CODE", "b814000000" + "0f34" + "c3"),
        ends=("signal 31", "policy", "signal 11", "signal 4"),
        no_control="a 64-bit program that uses it comes back to no place it knows, and ends",
    ),
    Probe(
        name="x32",
        group="kernel",
        attempts="Make calls by the numbers of x32.",
        script="reaches(0x40000000 | 272, 0x10000000)",
        no_control="this kernel has no x32 (CONFIG_X86_X32_ABI)",
    ),
    Probe(
        name="high-number",
        group="kernel",
        attempts="Make a call with bits above the number that the kernel looks at.",
        script="reaches(ctypes.c_long((1 << 32) | (272 if platform.machine() == 'x86_64' else 97)).value, 0x04000000)",
    ),
    Probe(
        name="youngest-calls",
        group="kernel",
        attempts="Make any call that is younger than those reviewed.",
        script="""
for number in range(463, 600):
    try:
        call(number, -1, -1, -1, -1, -1, -1)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            escaped(f"{number}: {errno.errorcode[error.errno]}")
stopped("ENOSYS")
""",
    ),
    Probe(
        name="fixed-layout",
        group="kernel",
        attempts="Turn off the random layout of memory for what is started next.",
        script="reaches('personality', 0x0040000)",
    ),
    Probe(
        name="readable-is-executable",
        group="kernel",
        attempts="Make all memory executable.",
        script="reaches('personality', 0x0400000)",
    ),
    Probe(
        name="memory-map-of-our-own",
        group="kernel",
        attempts="Write the kernel's notes on the own address space.",
        script="reaches('prctl', 35, 6, 0, 0, 0)",
        no_control="root of this machine has no CAP_SYS_RESOURCE",
    ),
    Probe(
        name="lift-the-filter",
        group="kernel",
        attempts="Take the filter of calls off again, or put one in front that answers first.",
        script="""
import struct
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
allow = Program(1, struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
with attempt("allow all"):
    call("prctl", 38, 1, 0, 0, 0)
    call("prctl", 22, 2, ctypes.addressof(allow), 0, 0)
with attempt("off"):
    call("prctl", 22, 0, 0, 0, 0)
    escaped("it is off")
with attempt("unshare"):
    call("unshare", 0x04000000)
    escaped("it is not asked any more")
stopped()
""",
        initial=True,
    ),
    Probe(
        name="forge-terminal-input",
        group="kernel",
        attempts="Type into the terminal of whoever started the gateway (TIOCSTI).",
        script=_TERMINAL.replace("REQUEST", "termios.TIOCSTI").replace("ARGUMENT", "b'x'"),
    ),
    Probe(
        name="forge-by-high-bits",
        group="kernel",
        attempts="Type into the terminal with bits in the request that a filter compares and the kernel does not.",
        script="""
import fcntl, pty, termios
leader, descriptor = pty.openpty()
with contextlib.suppress(OSError):
    os.setsid()
fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
number = 16 if platform.machine() == "x86_64" else 29
reaches(number, descriptor, ctypes.c_long((1 << 32) | termios.TIOCSTI).value, b"x")
""",
    ),
    Probe(
        name="paste-into-the-console",
        group="kernel",
        attempts="Paste into a console (TIOCLINUX).",
        script="reaches(16 if platform.machine() == 'x86_64' else 29, 0, 0x541C, b'\\x03')",
    ),
    Probe(
        name="real-time",
        group="kernel",
        attempts="Run before every other process of the machine.",
        script="""
for policy in (os.SCHED_FIFO, os.SCHED_RR):
    with attempt("policy"):
        os.sched_setscheduler(0, policy, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        escaped("it is in real time")
with attempt("nice"):
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    escaped("it is nicer than others")
stopped()
""",
        initial=True,
    ),
    Probe(
        name="real-time-disk",
        group="kernel",
        attempts="Go before every other process at the disk.",
        script="""
with attempt("ioprio"):
    call("ioprio_set", 1, 0, 1 << 13)
    escaped("it is first")
stopped()
""",
        initial=True,
    ),
    Probe(
        name="deadline",
        group="kernel",
        attempts="Reserve a processor by deadline.",
        script="""
import struct
with attempt("sched_setattr"):
    call("sched_setattr", 0, struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 1000000, 10000000, 10000000), 0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    escaped("it is reserved")
stopped()
""",
        initial=True,
    ),
    Probe(
        name="raise-limits",
        group="kernel",
        attempts="Raise a limit that was lowered before the start.",
        script="""
import resource
for name in ("NOFILE", "NPROC", "CPU", "FSIZE", "CORE", "STACK"):
    number = getattr(resource, f"RLIMIT_{name}")
    soft, hard = resource.getrlimit(number)
    if hard == resource.RLIM_INFINITY:
        escaped(f"{name} has no limit")
    try:
        resource.setrlimit(number, (soft, hard + 1))
        escaped(f"{name} is {hard + 1}")
    except (OSError, ValueError) as error:
        _reasons.append(f"{name}: {error}")
stopped()
""",
    ),
    Probe(
        name="lock-memory",
        group="kernel",
        attempts="Lock so much memory that the machine cannot use it for anything else.",
        script="""
import mmap
block = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(block))
with attempt("mlock"):
    call(149 if platform.machine() == "x86_64" else 228, address, 32 << 20)
    escaped("32 MiB are locked")
with attempt("mlockall"):
    call(151 if platform.machine() == "x86_64" else 230, 3)
    escaped("everything is locked")
stopped()
""",
        initial=True,
        ends=("memory",),
    ),
    Probe(
        name="notice-readers",
        group="kernel",
        attempts="Be told whenever somebody on the host reads in a directory.",
        script="""
import fcntl
with attempt("F_NOTIFY"):
    fcntl.fcntl(os.open("/usr/bin", os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_ACCESS)
    escaped("it is told")
stopped()
""",
    ),
    Probe(
        name="hold-up-readers",
        group="kernel",
        attempts="Hold up whoever opens a file, which may be one that the host sees too.",
        script="""
import fcntl
mine = os.open("/tmp/leased", os.O_RDWR | os.O_CREAT)
os.unlink("/tmp/leased")
with attempt("F_SETLEASE"):
    fcntl.fcntl(mine, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    escaped("it has a lease")
stopped()
""",
    ),
    Probe(
        name="huge-pages",
        group="kernel",
        attempts="Take huge pages, which no account of ordinary memory holds.",
        script="""
import mmap
with attempt("mmap"):
    block = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
    block[0] = 1
    escaped("has two of them")
stopped()
""",
        no_control="this machine has reserved none (vm.nr_hugepages)",
    ),
)
