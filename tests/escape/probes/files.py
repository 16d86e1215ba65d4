"""Probes that reach for files of the host, or change what is read-only."""

from __future__ import annotations

from tests.escape.probe import Probe


def _opens(name: str, attempts: str, paths: str, *, write: bool = False, initial: bool = False) -> Probe:
    flags = ", flags=os.O_WRONLY" if write else ""
    return Probe(
        name=name, group="files", attempts=attempts, script=f"opens({paths}{flags})\nstopped()", initial=initial
    )


_WALK = """
names = []
for here, _, files in os.walk("/proc/sys"):
    names += [os.path.join(here, name) for name in files]
# Everybody may open it; writing asks for CAP_CHECKPOINT_RESTORE and changes the own pid namespace only.
names = [name for name in names if name != "/proc/sys/kernel/ns_last_pid"]
assert len(names) > 100, names
opens(*names, flags=os.O_WRONLY)
stopped(f"none of {len(names)}")
"""
_WALK_PROC = """
names = []
for here, places, files in os.walk("/proc"):
    if here == "/proc":
        places[:] = [name for name in places if not name.isdigit() and name not in ("self", "thread-self", "sys")]
    names += [os.path.join(here, name) for name in files]
# What everybody may write there are questions about the machine's load.
names = [name for name in names if not name.startswith("/proc/pressure/")]
assert len(names) > 20, names
opens(*names, flags=os.O_WRONLY | os.O_NONBLOCK)
stopped(f"none of {len(names)}")
"""

PROBES = (
    _opens("shadow", "Read the passwords of the host.", "'/etc/shadow'"),
    _opens("secret-by-path", "Read a file of the host that everybody may read.", "FACTS['secret']"),
    _opens(
        "secret-by-dot-dot",
        "Climb out of the root by going up more often than there are directories.",
        "'../' * 64 + FACTS['secret'][1:]",
    ),
    _opens("secret-by-root-of-1", "Go through the root of process 1.", "'/proc/1/root' + FACTS['secret']"),
    _opens("secret-by-directory-of-1", "Go through the directory of process 1.", "'/proc/1/cwd/..' + FACTS['secret']"),
    _opens(
        "secret-by-task-of-1",
        "Go through the root of a thread of 1.",
        "'/proc/1/task/1/root' + FACTS['secret']",
    ),
    Probe(
        name="secret-by-any-root",
        group="files",
        attempts="Go through the root of every process that can be seen, and of every thread of it.",
        script="""
import glob
roots = glob.glob("/proc/[0-9]*/root") + glob.glob("/proc/[0-9]*/task/*/root")
assert roots
opens(*(root + FACTS["secret"] for root in roots))
stopped()
""",
    ),
    Probe(
        name="change-a-file",
        group="files",
        attempts="Write to a file of the host that everybody may write.",
        script="""
with attempt("open"):
    os.write(os.open(FACTS["touch"], os.O_WRONLY), b"changed")
tried()
""",
        tried=True,
    ),
    Probe(
        name="make-a-file",
        group="files",
        attempts="Make a file in a directory of the host that everybody may write.",
        script="""
with attempt("open"):
    os.open(FACTS["drop"] + "/made", os.O_WRONLY | os.O_CREAT)
tried()
""",
        tried=True,
    ),
    Probe(
        name="inherited-directory",
        group="files",
        attempts="Find an inherited directory, whatever its number, and open a file beside it.",
        script="""
for number in range(3, 70000):
    with contextlib.suppress(OSError):
        os.close(os.open("../" * 40 + FACTS["secret"][1:], os.O_RDONLY, dir_fd=number))
        escaped(f"through descriptor {number}")
stopped("no descriptor leads out")
""",
    ),
    Probe(
        name="inherited-file",
        group="files",
        attempts="Read whatever is open behind an inherited descriptor.",
        script="""
for number in range(3, 70000):
    with contextlib.suppress(OSError):
        if secret() in os.pread(number, 4096, 0).decode(errors="replace"):
            escaped(f"descriptor {number} was left open")
stopped("no descriptor holds it")
""",
    ),
    Probe(
        name="any-descriptor",
        group="files",
        attempts="Find any descriptor besides input, output and errors.",
        script="""
listing = os.open("/proc/self/fd", os.O_RDONLY)
extra = [int(name) for name in os.listdir(listing) if int(name) > 2 and int(name) != listing]
extra = [number for number in extra if os.path.exists(f"/proc/self/fd/{number}")]
escaped(f"found {extra}") if extra else stopped("0, 1 and 2 are all")
""",
    ),
    Probe(
        name="descriptors-of-1",
        group="files",
        attempts="Open again what process 1 has open: its control socket, its files.",
        script="""
with attempt("list"):
    names = os.listdir("/proc/1/fd")
    escaped(f"process 1 has {names}")
stopped()
""",
    ),
    Probe(
        name="places-of-the-host",
        group="files",
        attempts="See directories in which a host keeps data, logs, sockets and devices.",
        script="""
kept = [name for name in ("/var", "/run", "/sys", "/boot", "/mnt", "/srv", "/media", "/opt") if os.path.exists(name)]
escaped(f"there is {kept}") if kept else stopped("none is there")
""",
    ),
    Probe(
        name="write-to-the-root",
        group="files",
        attempts="Make a file in a directory that must be read-only.",
        script="""
for place in ("/", "/usr", "/etc", "/dev", "/sandbox", "/proc", os.path.dirname(os.sys.executable)):
    with attempt(place):
        os.close(os.open(place + "/made", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        escaped(f"made a file in {place}")
stopped()
""",
    ),
    Probe(
        name="write-to-system-files",
        group="files",
        attempts="Open the files of the system for writing.",
        script="""
opens("/etc/passwd", "/etc/nsswitch.conf", "/etc/ld.so.cache", "/usr/bin/env", "/bin/sh", "/sandbox/init.py",
      flags=os.O_WRONLY)
stopped()
""",
    ),
    Probe(
        name="write-to-the-interpreter",
        group="files",
        attempts="Open the running program for writing, as the break-out of runc did (CVE-2019-5736).",
        script="""
for name in ("/proc/self/exe", "/proc/1/exe", os.path.realpath("/proc/self/exe")):
    try:
        os.close(os.open(name, os.O_WRONLY))
        escaped(f"opened {name}")
    except OSError as error:
        if error.errno == errno.ETXTBSY:
            escaped(f"{name} may be written once it does not run")
        _reasons.append(f"{name}: {errno.errorcode[error.errno]}")
stopped()
""",
    ),
    Probe(
        name="write-to-the-input",
        group="files",
        attempts="Open the own input again, to write to it.",
        script="""
import stat
if stat.S_ISFIFO(os.fstat(0).st_mode) and not FACTS["bare"]:
    stopped("a pipe of its own")
with attempt("open"):
    os.write(os.open("/proc/self/fd/0", os.O_RDWR), b"forged")
    escaped("the input can be changed")
stopped()
""",
    ),
    _opens("core-pattern", "Name a program that the kernel starts.", "'/proc/sys/kernel/core_pattern'", write=True),
    _opens("drop-caches", "Empty the caches of the host.", "'/proc/sys/vm/drop_caches'", write=True),
    Probe(name="any-switch", group="files", attempts="Open any file of the kernel for writing.", script=_WALK_PROC),
    Probe(name="any-sysctl", group="files", attempts="Open any setting of the kernel for writing.", script=_WALK),
    Probe(
        name="kernel-files",
        group="files",
        attempts="Open the files in which the kernel shows its memory and its timers.",
        script="""
opens("/proc/kcore", "/proc/kmsg", "/proc/kpagecount", "/proc/kpageflags", "/proc/slabinfo", "/proc/timer_list",
      "/proc/vmallocinfo", "/proc/mtrr")
stopped()
""",
    ),
    _opens(
        "kernel-switches",
        "Open the switches of the kernel for writing.",
        "'/proc/sysrq-trigger', '/proc/mtrr', '/proc/irq/default_smp_affinity', '/proc/bus/pci/devices', '/proc/acpi', "
        "'/proc/dynamic_debug/control', '/proc/tty/driver'",
        write=True,
    ),
    Probe(
        name="addresses-of-the-kernel",
        group="files",
        attempts="Read real addresses of the kernel.",
        script="""
with attempt("kallsyms"):
    lines = open("/proc/kallsyms").read(65536).splitlines()
    if any(int(line.split()[0], 16) for line in lines):
        escaped("kallsyms shows addresses")
    stopped("kallsyms shows zeros")
stopped()
""",
        initial=True,
    ),
    Probe(
        name="physical-pages",
        group="files",
        attempts="Learn where in the machine's memory the own pages are.",
        script="""
block = ctypes.create_string_buffer(8192)
block[0] = b"x"
with attempt("pagemap"):
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(ctypes.addressof(block) // 4096 * 8)
        entry = int.from_bytes(file.read(8), "little")
    if entry & ((1 << 55) - 1):
        escaped("the page's number is shown")
    stopped("the page's number is zero")
stopped()
""",
        initial=True,
    ),
    Probe(
        name="devices",
        group="files",
        attempts="Open any device besides null, zero, full, random, urandom and what gives terminals of its own.",
        script="""
import stat
for here, _, names in os.walk("/dev"):
    for name in names:
        path = os.path.join(here, name)
        with contextlib.suppress(OSError):
            if name not in ("null", "zero", "full", "random", "urandom") and stat.S_ISBLK(os.lstat(path).st_mode):
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
                escaped(f"opened {path}")
known = {"null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr", "shm"}
known |= {"pts", "ptmx", "tty"}
extra = set(os.listdir("/dev")) - known
escaped(f"there are {sorted(extra)[:9]}") if extra else stopped("no other is there")
""",
    ),
    Probe(
        name="make-a-device",
        group="files",
        attempts="Make a node for the machine's disk, and for its memory, in an own directory.",
        script="""
for number in (os.makedev(254, 0), os.makedev(8, 0), os.makedev(1, 1)):
    for place in ("/tmp", "/workspace", "/dev/shm"):
        with attempt(place):
            os.mknod(place + f"/node{number}", 0o60600, number)
            escaped(f"made a node in {place}")
stopped()
""",
        initial=True,
    ),
    Probe(
        name="file-by-handle",
        group="files",
        attempts="Get a number for a file, which can be opened without a path.",
        script="""
handle = ctypes.create_string_buffer(b"\\x80\\0\\0\\0", 136)
mount = ctypes.c_int()
reaches("name_to_handle_at", -100, b"/usr", handle, ctypes.cast(ctypes.byref(mount), ctypes.c_char_p), 0)
""",
    ),
    Probe(
        name="open-by-handle",
        group="files",
        attempts="Open a file by its number, as the break-out of early Docker did.",
        script="""
handle = ctypes.create_string_buffer(b"\\x08\\0\\0\\0\\x01\\0\\0\\0\\x02", 136)
reaches("open_by_handle_at", os.open("/usr", os.O_RDONLY), handle, 0)
""",
        initial=True,
    ),
    Probe(
        name="setuid-program",
        group="files",
        attempts="Start a program that runs as its owner, root.",
        script="""
import subprocess
run = dict(capture_output=True, text=True, **({"user": 1000} if FACTS["bare"] else {}))
said = subprocess.run([FACTS["workspace"] + "/setuid", "/proc/self/status"], **run)
ids = [line.split()[1:] for line in said.stdout.splitlines() if line.startswith("Uid")]
assert ids, said
if len(set(ids[0])) > 1:
    escaped(f"its ids are {ids}")
stopped(f"its ids are {ids}")
""",
        given=True,
        initial=True,
        not_in={"user": "an ordinary user cannot plant a program of root's"},
    ),
    Probe(
        name="capable-program",
        group="files",
        attempts="Start a program whose file carries capabilities.",
        script="""
import subprocess
run = dict(capture_output=True, text=True, **({"user": 1000} if FACTS["bare"] else {}))
said = subprocess.run([FACTS["workspace"] + "/capable", "/proc/self/status"], **run)
held = [line.split()[1] for line in said.stdout.splitlines() if line.startswith("CapEff")]
if not held:
    stopped(f"it does not start: {said.stderr}")
escaped(f"it holds {held}") if int(held[0], 16) else stopped("it holds none")
""",
        given=True,
        initial=True,
        not_in={"user": "an ordinary user cannot plant a program with capabilities"},
    ),
    Probe(
        name="control-groups",
        group="files",
        attempts="Reach the control groups, to leave one's own or to lift its limits.",
        script="""
import glob
names = glob.glob("/sys/fs/cgroup/**/cgroup.procs", recursive=True)[:50]
opens(*names, flags=os.O_WRONLY)
stopped(f"none of {len(names)}")
""",
    ),
    Probe(
        name="file-systems-of-the-kernel",
        group="files",
        attempts="Read debugging, tracing and security file systems.",
        script="""
for name in ("/sys/kernel", "/sys/kernel/debug", "/sys/kernel/security", "/sys/fs/bpf", "/proc/scsi"):
    with attempt(name):
        escaped(f"{name} holds {os.listdir(name)[:3]}")
stopped()
""",
    ),
)
