"""Ordinary use that a wall must not break. Each prints `WORKS` and ends well, or is refused for a stated reason."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.escape.probe import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Something that programs do. `refused_in` says where it is not to be had, and why."""

    name: str
    script: str
    needs: str = ""
    refused_in: Mapping[Place, str] = field(default_factory=dict)
    stdin: bytes = b""
    ends: str = "exit 0"

    def missing(self) -> bool:
        """Whether this machine lacks the program that it needs."""
        return bool(self.needs) and shutil.which(self.needs, path="/usr/bin:/bin") is None


_UNCOUNTED = "without a memory cgroup nothing counts files without a name"
_NO_MEMFD: Mapping[Place, str] = {"no-cgroup": _UNCOUNTED, "user": _UNCOUNTED}

USES = (
    Use(name="threads", script="""
import threading
seen = []
threads = [threading.Thread(target=seen.append, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert sorted(seen) == list(range(8))
"""),
    Use(name="thread-pool", script="""
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(lambda n: n * n, range(20))) == [n * n for n in range(20)]
"""),
    Use(name="processes", script="""
import multiprocessing
queue = multiprocessing.get_context("fork").Queue()
child = multiprocessing.get_context("fork").Process(target=queue.put, args=(1,))
child.start()
assert queue.get(timeout=10) == 1
child.join()
"""),
    Use(name="process-pool", script="""
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
"""),
    Use(name="fork-server", script="""
import multiprocessing
with multiprocessing.get_context("forkserver").Pool(2) as pool:
    assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
"""),
    Use(name="manager", script="""
import multiprocessing
context = multiprocessing.get_context("fork")
with context.Manager() as manager:
    shared = manager.dict()
    child = context.Process(target=shared.update, args=({"a": 1},))
    child.start(); child.join()
    assert dict(shared) == {"a": 1}
"""),
    Use(name="unix-server", script="""
import asyncio, os
async def serve(reader, writer):
    writer.write(await reader.read(9)); writer.close()
async def main():
    for name in ("/tmp/served", "/workspace/served", "\\0served"):
        server = await asyncio.start_unix_server(serve, name)
        reader, writer = await asyncio.open_unix_connection(name)
        writer.write(b"hello"); writer.write_eof()
        assert await reader.read() == b"hello"
        server.close()
asyncio.run(main())
"""),
    Use(name="pass-a-descriptor", script="""
import os, socket
left, right = socket.socketpair()
reader, writer = os.pipe()
if os.fork() == 0:
    socket.send_fds(left, [b"x"], [writer])
    os._exit(0)
_, (passed,), _, _ = socket.recv_fds(right, 1, 1)
os.write(passed, b"through"); os.close(writer)
assert os.read(reader, 9) == b"through"
os.wait()
"""),
    Use(name="semaphores", script="""
import multiprocessing
lock = multiprocessing.get_context("fork").Semaphore(1)
assert lock.acquire(timeout=1) and not lock.acquire(block=False)
"""),
    Use(name="shared-memory", script="""
from multiprocessing.shared_memory import SharedMemory
block = SharedMemory(create=True, size=4096)
block.buf[0] = 7
again = SharedMemory(name=block.name)
assert again.buf[0] == 7
again.close(); block.close(); block.unlink()
"""),
    Use(name="memfd", script="import os\nos.write(os.memfd_create('x'), b'x')", refused_in=_NO_MEMFD),
    Use(name="asyncio", script="""
import asyncio
async def main():
    child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    out, _ = await child.communicate(b"through")
    assert out == b"through" and await asyncio.gather(asyncio.sleep(0, 1), asyncio.to_thread(lambda: 2)) == [1, 2]
asyncio.run(main())
"""),
    Use(name="asyncio-server", script="""
import asyncio
async def serve(reader, writer):
    writer.write(await reader.read(9)); writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello"); writer.write_eof()
    assert await reader.read() == b"hello"
    server.close()
asyncio.run(main())
"""),
    Use(name="pipelines", script="""
import subprocess
done = subprocess.run("printf 'b\\na\\nb\\n' | sort | uniq -c | awk '{print $2 $1}' | tr '\\n' ' '", shell=True,
                      capture_output=True, text=True, check=True)
assert done.stdout == "a1 b2 ", done
"""),
    Use(name="loopback-tcp", script="""
import socket
server = socket.create_server(("127.0.0.1", 0)); client = socket.create_connection(server.getsockname())
peer, _ = server.accept(); peer.sendall(b"hello"); assert client.recv(5) == b"hello"
"""),
    Use(name="loopback-udp", script="""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); server.bind(("127.0.0.1", 0))
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", server.getsockname())
assert server.recv(9) == b"hello"
"""),
    Use(name="localhost", script="import socket\nassert socket.gethostbyname('localhost') == '127.0.0.1'"),
    Use(name="socketpair", script="import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'"),
    Use(name="temporary-files", script="""
import os, tempfile
with tempfile.NamedTemporaryFile() as file: file.write(b"x"); file.flush(); assert os.path.getsize(file.name) == 1
with tempfile.TemporaryDirectory() as place: open(place + "/x", "w").close()
with tempfile.TemporaryFile() as file: file.write(b"x")
"""),
    Use(name="workspace", script="""
import os, pathlib
pathlib.Path("a/b").mkdir(parents=True); pathlib.Path("a/b/c").write_text("x"); os.symlink("a/b/c", "link")
os.rename("a/b/c", "a/b/d"); assert not os.path.exists("link"); assert os.getcwd() == "/workspace"
os.link("a/b/d", "hard"); os.mkfifo("fifo"); os.chmod("hard", 0o600)
"""),
    Use(name="mapped-files", script="""
import mmap
with open("file", "w+b") as file:
    file.truncate(8192); block = mmap.mmap(file.fileno(), 8192); block[5000] = 7; block.flush()
    file.seek(5000); assert file.read(1) == b"\\x07"
"""),
    Use(name="file-locks", script="""
import fcntl
with open("lock", "w") as file: fcntl.flock(file, fcntl.LOCK_EX); fcntl.lockf(file, fcntl.LOCK_EX)
"""),
    Use(name="large-input", stdin=b"x" * (1 << 20), script="""
import sys
data = sys.stdin.buffer.read()
assert len(data) == 1 << 20
sys.stdout.buffer.write(data + b"\\n")
"""),
    Use(name="large-output", script="print('y' * 900_000)"),
    Use(name="signals", script="""
import os, signal
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1)); os.kill(os.getpid(), signal.SIGUSR1)
signal.setitimer(signal.ITIMER_REAL, 0.01); signal.signal(signal.SIGALRM, lambda *_: seen.append(2)); signal.pause()
assert seen == [1, 2]
"""),
    *(Use(name=f"exit-{code}", ends=f"exit {code}", script=f"import sys\nprint('WORKS', flush=True)\nsys.exit({code})")
      for code in (1, 2, 70, 126, 127, 128, 255)),
    *(Use(name=f"signal-{number}", ends=f"signal {number}",
          script=f"import os, signal\nprint('WORKS', flush=True)\n"
                 f"signal.signal({number}, 0) if {number} != 9 else 0\nos.kill(os.getpid(), {number})")
      for number in (1, 6, 9, 11, 15)),
    Use(name="text", script="""
import locale, os, sys
name = "Ümläut-文-🙂"
open(name, "w").write(name); assert name in os.listdir() and open(name).read() == name
assert sys.stdout.encoding.lower() == "utf-8", sys.stdout.encoding
print(name)
"""),
    Use(name="time", script="""
import datetime, time
assert time.time() > 1.7e9 and time.monotonic() > 0 and time.localtime().tm_year > 2024
datetime.datetime.now().astimezone()
"""),
    Use(name="randomness", script="""
import os, secrets, uuid
assert len({os.urandom(16), secrets.token_bytes(16), uuid.uuid4().bytes}) == 3
assert open("/dev/urandom", "rb").read(8) != bytes(8)
"""),
    Use(name="sqlite", script="""
import sqlite3
base = sqlite3.connect("base.db"); base.execute("pragma journal_mode=wal"); base.execute("create table t(x)")
base.executemany("insert into t values(?)", [(n,) for n in range(1000)]); base.commit()
assert base.execute("select sum(x) from t").fetchone() == (499500,)
"""),
    Use(name="who-am-i", script="""
import getpass, grp, os, pathlib, pwd
me = pwd.getpwuid(os.getuid()); grp.getgrgid(os.getgid())
assert os.getuid() and me.pw_name == getpass.getuser() and str(pathlib.Path.home()) == "/workspace"
"""),
    Use(name="host-name", script="import platform, socket\nassert socket.gethostname() and platform.machine()"),
    Use(name="own-proc", script="""
import os
open("/proc/self/status").read(); os.listdir("/proc/self/fd")
open("/proc/meminfo").read(); open("/proc/cpuinfo").read()
assert os.cpu_count() and os.sched_getaffinity(0)
"""),
    Use(name="devices", script="""
open("/dev/null", "w").write("x"); assert open("/dev/zero", "rb").read(3) == bytes(3)
try: open("/dev/full", "w", buffering=1).write("x\\n")
except OSError: pass
"""),
    Use(name="terminals", script="""
import os, pty, sys
leader, follower = pty.openpty()
os.write(leader, b"typed\\n"); assert os.read(follower, 9) == b"typed\\n" and os.ttyname(follower) == "/dev/pts/0"
pid, terminal = pty.fork()
if pid == 0:
    sys.exit(7 if sys.stdin.isatty() and open("/dev/tty").isatty() else 8)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""),
    Use(name="terminal-of-a-program", needs="script", script="""
import subprocess
done = subprocess.run(["script", "-qec", "tty; echo x", "/dev/null"], capture_output=True, stdin=subprocess.DEVNULL)
assert done.stdout.endswith(b"x\\r\\n") and b"/dev/pts/" in done.stdout, done
"""),
    Use(name="standard-names", script="""
import os
for name in ("/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/2"): os.close(os.open(name, os.O_WRONLY))
os.close(os.open("/dev/stdin", os.O_RDONLY))
"""),
    Use(name="sizes-of-buffers", script="""
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    one = socket.socket(socket.AF_INET, kind)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        one.setsockopt(socket.SOL_SOCKET, option, 1 << 20); assert one.getsockopt(socket.SOL_SOCKET, option) > 0
"""),
    Use(name="resources", script="""
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE); resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import os; os.nice(1)
"""),
    Use(name="ctypes", script="import ctypes\nassert ctypes.CDLL(None).getpid() > 1\nctypes.CFUNCTYPE(int)"),
    Use(name="inotify", script="""
import ctypes
libc = ctypes.CDLL(None); watch = libc.inotify_init(); assert libc.inotify_add_watch(watch, b"/tmp", 0x100) > 0
"""),
    Use(name="archives", script="""
import io, os, shutil, tarfile, zipfile
os.mkdir("d"); open("d/f", "w").write("x"); shutil.make_archive("a", "gztar", "d"); shutil.make_archive("a", "zip", "d")
tarfile.open("a.tar.gz").extractall("e"); assert open("e/f").read() == "x"
"""),
    Use(name="text-tools", needs="tar", script="""
import subprocess
script = '''
set -e
printf 'one\\ntwo\\nthree\\n' > f
grep -c t f; sed s/one/1/ f | head -n 1; sort f | tail -n 1; awk 'END { print NR }' f; wc -c < f; cut -c1 f | paste -s
tar cf f.tar f; mkdir g; tar xf f.tar -C g; cmp f g/f; find . -name f | sort; gzip -c f | gunzip -c | md5sum - > m
date +%Y; id -u; uname -s; hostname; ls -la / > l; ps 2>/dev/null || true; du -s .; df . > d; xargs -n1 echo < f
'''
done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
assert done.returncode == 0, done
"""),
    Use(name="git", needs="git", script="""
import subprocess
script = '''
set -e
git init -q repo; cd repo; git config user.email a@b; git config user.name me; echo x > f; git add f; git commit -qm one
git log --oneline | wc -l; git clone -q . ../again; git gc -q
'''
done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
assert done.returncode == 0, done
"""),
    Use(name="compile", script="import compileall, json, urllib.parse, ssl, hashlib\nhashlib.sha256(b'x')"),
    Use(name="here-documents", needs="bash", script="""
import subprocess
done = subprocess.run(["bash", "-c", "cat <<E\\nx\\nE\\ndiff <(echo a) <(echo a) && echo same"],
                      capture_output=True, text=True)
assert done.stdout == "x\\nsame\\n", done
"""),
)  # fmt: skip
