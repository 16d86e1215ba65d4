"""Probes that take more than their share: memory of every kind, processes, files, output, time.

What a probe takes at most is small enough to do no harm where nothing stops it.
"""

from __future__ import annotations

from typing import Any

from tests.escape.probe import Probe

MIB_TAKEN = 120  # of memory, under a limit of 64
_TAKE = f"""
MIB = 1 << 20
TAKEN = {MIB_TAKEN}

def fill(size):
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    return block

def in_children(number, take):
    reader, writer = os.pipe()
    for _ in range(number):
        if os.fork() == 0:
            os.close(reader)
            try:
                kept = take()
            except (OSError, MemoryError) as error:
                os._exit(1)
            os.write(writer, b"x")
            wait()
    os.close(writer)
    taken = 0
    while taken < number and os.read(reader, 1):
        taken += 1
    if taken < number:
        stopped(f"{{taken}} of {{number}} children have it")
    keep_for_a_while()
    escaped(f"{{number}} children have it")
"""


def _memory(name: str, attempts: str, script: str, **fields: Any) -> Probe:
    return Probe(
        name=f"memory-{name}", group="resources", attempts=attempts, ends=("memory", "signal 9"),
        script=f"{_TAKE}\ntry:\n    {script.strip().replace(chr(10), chr(10) + '    ')}\n"
        "except MemoryError:\n    stopped('MemoryError')\nexcept OSError as error:\n    stopped(error)\n",
        **fields,
    )  # fmt: skip


def _simple(name: str, attempts: str, script: str, *ends: str, **fields: Any) -> Probe:
    return Probe(name=name, group="resources", attempts=attempts, script=script, ends=ends, **fields)


_FILL_PLACE = """
written = 0
with attempt("write"):
    for number in range(10):
        with open(f"PLACE/fill{number}", "wb") as file:
            for _ in range(4):
                file.write(bytes(1 << 20))
                file.flush()
                written += 1
    escaped(f"{written} MiB are in PLACE")
stopped(f"after {written} MiB: {_reasons[0]}") if written < 9 else escaped(f"{written} MiB are in PLACE")
"""
_FLOOD = """
for _ in range(64):
    os.write(DESCRIPTOR, b"x" * 4096)
os.write(1, b"\\n")
escaped("256 KiB went out")
"""
_SPIN = """
import time
end = 3.0 if not FACTS["bare"] else 0.2
while time.process_time() < end:
    pass
"""

PROBES = (
    _memory("one", "Take memory in one process.", "block = fill(TAKEN * MIB)\nkeep_for_a_while()\nescaped('has it')"),
    _memory("children", "Take memory in several children, each below the limit.",
            "in_children(4, lambda: fill(TAKEN // 4 * MIB))"),
    _memory("orphans", "Take memory in processes whose parents have gone.", """
def take():
    if os.fork() == 0:
        return fill(TAKEN // 4 * MIB)
    os._exit(0)
in_children(4, take)
"""),
    _memory("undumpable", "Take memory in children that nobody may look at.", """
def take():
    call("prctl", 4, 0, 0, 0, 0)
    return fill(TAKEN // 4 * MIB)
in_children(4, take)
"""),
    _memory("behind-a-dead-thread", "Take memory in children whose main thread has ended: they look like dead.", """
import _thread
reader, writer = os.pipe()
def take():
    kept = fill(TAKEN // 6 * MIB)
    os.write(writer, b"x")
    wait()
for _ in range(6):
    if os.fork() == 0:
        _thread.start_new_thread(take, ())
        call(60 if platform.machine() == "x86_64" else 93, 0)
os.close(writer)
taken = 0
while taken < 6 and os.read(reader, 1):
    taken += 1
if taken < 6:
    stopped(f"{taken} of 6 have it")
keep_for_a_while()
escaped("6 of them have it")
"""),
    _memory("shared", "Take memory that several share, so that it belongs to none.", """
import mmap
block = mmap.mmap(-1, TAKEN * MIB)
for place in range(0, len(block), 4096):
    block[place] = 1
in_children(1, lambda: block)
"""),
    _memory("forgotten", "Take shared memory and forget each page at once: no process has it, and it stays.", """
import mmap
block = mmap.mmap(-1, TAKEN * MIB)
for place in range(0, len(block), MIB):
    block[place:place + MIB] = bytes(MIB)
    block.madvise(mmap.MADV_DONTNEED, place, MIB)
keep_for_a_while()
escaped("has what nobody sees")
"""),
    _memory("zero-device", "Take the same from the device that reads as zeros.", """
import mmap
block = mmap.mmap(os.open("/dev/zero", os.O_RDWR), TAKEN * MIB)
for place in range(0, len(block), MIB):
    block[place:place + MIB] = bytes(MIB)
    block.madvise(mmap.MADV_DONTNEED, place, MIB)
keep_for_a_while()
escaped("has what nobody sees")
"""),
    _memory("memfd", "Take memory in files without a name.", """
kept = []
for number in range(TAKEN // 6):
    kept.append(os.memfd_create(str(number)))
    os.write(kept[-1], bytes(6 * MIB))
keep_for_a_while()
escaped(f"has {len(kept)} files of 6 MiB")
"""),
    _memory("segments", "Take shared memory of System V, which outlives its process.", """
_libc.shmat.restype = ctypes.c_void_p
for number in range(TAKEN // 6):
    segment = call("shmget", 0, 6 * MIB, 0o1600)
    place = _libc.shmat(segment, None, 0)
    ctypes.memset(place, 1, 6 * MIB)
keep_for_a_while()
escaped("has 6 MiB each of them")
"""),
    _memory("pipes", "Take memory in pipes that nobody reads.", """
import fcntl
def take():
    for _ in range(48):
        reader, writer = os.pipe()
        fcntl.fcntl(writer, 1031, MIB)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(65536))
in_children(1, take)
""", limits={"memory_mib": 32, "open_files": 256}),
    _memory("unix-sockets", "Take memory in sockets that nobody reads.", """
import socket
kept, taken = [], 0
while taken < 48 * MIB:
    if len(kept) == 90:
        stopped(f"{len(kept)} pairs took {taken >> 20} MiB: none has the size that it asked for")
    pair = socket.socketpair()
    kept.append(pair)
    for one in pair:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                taken += one.send(bytes(65536))
keep_for_a_while()
escaped(f"{len(kept)} pairs took {taken >> 20} MiB")
""", limits={"memory_mib": 32, "open_files": 512}),
    _memory("tcp", "Take memory in connections that nobody reads.", """
import socket
server = socket.create_server(("127.0.0.1", 0))
kept, taken = [], 0
with contextlib.suppress(OSError):
    while taken < TAKEN * MIB:
        left = socket.create_connection(server.getsockname())
        right, _ = server.accept()
        kept.append((left, right))
        for one in (left, right):
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    taken += one.send(bytes(65536))
if taken < 48 * MIB:
    stopped(f"{len(kept)} connections took {taken >> 20} MiB")
keep_for_a_while()
escaped(f"{len(kept)} connections took {taken >> 20} MiB")
""", limits={"memory_mib": 32}),
    _memory("page-tables", "Take memory in page tables, by looking at one page in each 2 MiB of an empty map.", """
import mmap
def take():
    block = mmap.mmap(-1, 24 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=mmap.PROT_READ)
    with contextlib.suppress(OSError):
        block.madvise(15)
    return block, sum(block[place] for place in range(0, len(block), 2 << 20))
in_children(1, take)
""", limits={"memory_mib": 32}),
    _memory("given-to-pipes", "Take huge pages that only a pipe still holds, one small page of each.", """
import mmap
def take():
    reader, writer = os.pipe()
    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
    for _ in range(15):
        block = mmap.mmap(-1, 4 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.madvise(14)
        address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        inside = (address + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)
        ctypes.memset(inside, 1, 2 * MIB)
        vector = Vector(inside, 4096)
        call("vmsplice", writer, ctypes.addressof(vector), 1, 0)
        _libc.munmap(ctypes.c_void_p(address), 4 * MIB)
        kept.append(block)
    return reader, writer
kept = []
in_children(5, take)
"""),
    *(
        _simple(f"fill-{place.strip('/').replace('/', '-')}", f"Write more into {place} than it may hold.",
                _FILL_PLACE.replace("PLACE", place), "disk", "memory")
        for place in ("/workspace", "/tmp", "/dev/shm")
    ),
    _simple("inodes", "Make files, directories and links without end.", """
made = 0
for kind in (lambda name: os.close(os.open(name, os.O_CREAT)), os.mkdir, lambda name: os.symlink("nowhere", name)):
    with attempt("make"):
        for number in range(100):
            kind(f"/tmp/n{made}")
            made += 1
escaped(f"made {made}") if made > 150 else stopped(f"made {made}: {_reasons[0]}")
""", "disk"),
    _simple("attributes", "Keep data in attributes of files, which no size of a file counts.", """
taken = 0
with attempt("attribute"):
    for number in range(40):
        name = f"/tmp/a{number}"
        os.close(os.open(name, os.O_CREAT))
        for attribute in range(16):
            os.setxattr(name, f"user.{attribute}", bytes(60000))
            taken += 60000
escaped(f"{taken >> 20} MiB are in attributes") if taken > 16 << 20 else stopped(f"{taken} bytes: {_reasons[:1]}")
""", "disk", "memory"),
    _simple("deep-directories", "Nest directories without end.", """
depth = 0
with attempt("nest"):
    while depth < 400:
        os.mkdir("/tmp/d") if depth == 0 else os.mkdir("d")
        os.chdir("/tmp/d" if depth == 0 else "d")
        depth += 1
escaped(f"{depth} deep") if depth > 100 else stopped(f"{depth} deep: {_reasons[0]}")
""", "disk"),
    _simple("large-file", "Write a file that is larger than a file may be.", """
with attempt("write"):
    with open("/tmp/large", "wb", buffering=0) as file:
        for _ in range(6):
            file.write(bytes(1 << 20))
    escaped("6 MiB are in it")
stopped()
""", "file_size", limits={"file_size_mib": 4}),
    _simple("sparse-file", "Make a file that says to be a terabyte.", """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with attempt("truncate"):
    with open("/tmp/sparse", "wb") as file:
        file.truncate(1 << 40)
    escaped("it says so")
stopped()
"""),
    _simple("reserved-file", "Reserve room for a file without writing it.", """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for place in ("/tmp", "/workspace", "/dev/shm"):
    with attempt(place):
        with open(place + "/reserved", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 32 << 20)
        escaped("32 MiB are reserved")
stopped()
""", "disk"),
    _simple("forks", "Start processes without end.", """
made = 0
with attempt("fork"):
    while made < 100:
        if os.fork() == 0:
            wait()
        made += 1
escaped(f"{made} processes") if made > 40 else stopped(f"{made}: {_reasons[0]}")
""", "processes", limits={"memory_mib": 256}),
    _simple("threads", "Start threads without end.", """
import _thread, threading
made = 0
threading.stack_size(65536)
try:
    while made < 100:
        _thread.start_new_thread(wait, ())
        made += 1
except RuntimeError as error:
    _reasons.append(str(error))
escaped(f"{made} threads") if made > 40 else stopped(f"{made}: {_reasons[0]}")
""", "processes", limits={"memory_mib": 256}),
    _simple("zombies", "Leave dead children without end.", """
made = 0
with attempt("fork"):
    while made < 100:
        if os.fork() == 0:
            os._exit(0)
        made += 1
escaped(f"{made} dead children") if made > 40 else stopped(f"{made}: {_reasons[0]}")
""", "processes", limits={"memory_mib": 256}),
    _simple("dead-orphans", "Leave dead children to process 1, faster than it can bury them.", """
import time
made = 0
for _ in range(400):
    try:
        pid = os.fork()
    except OSError:
        break
    if pid == 0:
        try:
            os.fork()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    made += 1
left = sum(1 for pid in processes() if pid not in (1, os.getpid()))
escaped(f"{left} are left") if left > 40 else stopped(f"{left} of {made} are left")
""", "processes", limits={"memory_mib": 256}),
    _simple("open-files", "Open files without end.", """
kept = 0
with attempt("open"):
    while kept < 900:
        os.dup(0)
        kept += 1
escaped(f"{kept} are open") if kept > 100 else stopped(f"{kept}: {_reasons[0]}")
"""),
    _simple("files-in-flight", "Keep files open in sockets on their way, where no limit of open files counts them.", """
import array, socket
kept = 0
with attempt("send"):
    for _ in range(20):
        left, right = socket.socketpair()
        left.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(20):
                left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 20))])
                kept += 20
escaped(f"{kept} are on their way") if kept > 1000 else stopped(f"{kept}: {_reasons[:1]}")
""", initial=True),
    _simple("flood-output", "Write without end.", _FLOOD.replace("DESCRIPTOR", "1"), "output_limit"),
    _simple("flood-errors", "Write to the errors without end.", _FLOOD.replace("DESCRIPTOR", "2"), "output_limit"),
    _simple("flood-by-children", "Write from many processes at once.", """
for _ in range(8):
    if os.fork() == 0:
        for _ in range(8):
            os.write(1, b"x" * 4096)
        os._exit(0)
for _ in range(8):
    os.wait()
os.write(1, b"\\n")
escaped("256 KiB went out")
""", "output_limit"),
    _simple("sleep", "Stay for longer than allowed.", "keep_for_a_while()\nescaped('stayed')", "timeout",
            limits={"timeout_s": 0.4}),
    _simple("stop-oneself", "Stop, so that no signal that can be handled comes through.", """
if os.fork() == 0:
    keep_for_a_while()
    while " T " not in open(f"/proc/{os.getppid()}/stat").read():
        pass
    os.kill(os.getppid(), signal.SIGCONT)
    os._exit(0)
os.kill(os.getpid(), signal.SIGSTOP)
escaped("came back")
""", "timeout", limits={"timeout_s": 0.4}),
    _simple("ignore-signals", "Ignore every signal, and stay.", """
for number in signal.valid_signals():
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_IGN)
keep_for_a_while()
escaped("stayed")
""", "timeout", limits={"timeout_s": 0.4}),
    _simple("spin", "Use a processor for longer than allowed.", _SPIN + "escaped('used it')", "cpu_time",
            limits={"cpu_s": 0.3}),
    _simple("spin-ignoring", "Ignore the signal that says so, and go on.",
            "signal.signal(signal.SIGXCPU, signal.SIG_IGN)" + _SPIN + "escaped('used it')", "cpu_time",
            limits={"cpu_s": 0.3}),
    _simple("spin-in-children", "Use processors in children, each for less than allowed.",
            "import os\nchild = os.fork()\nos.fork()" + _SPIN
            + "with contextlib.suppress(ChildProcessError):\n    os.wait()\nif child:\n    escaped('used them')\n"
            "os._exit(0)",
            "cpu_time", limits={"cpu_s": 0.6}),
    _simple("spin-in-short-lives", "Use processors in children that end before anybody looks.", """
import time
rounds = 40 if not FACTS["bare"] else 4
for _ in range(rounds):
    if os.fork() == 0:
        while time.process_time() < 0.05:
            pass
        os._exit(0)
    os.wait()
escaped(f"{rounds} children used 50 ms each")
""", "cpu_time", limits={"cpu_s": 0.6}),
    _simple("endless-stack", "Lift the limit of the stack, which also makes the layout of memory a fixed one.", """
import resource
try:
    resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    escaped("it is lifted")
except ValueError as error:
    stopped(error)
"""),
)  # fmt: skip
