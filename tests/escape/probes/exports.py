"""Probes by what a job leaves in `out/`: things that a careless collector follows, believes or chokes on."""

from __future__ import annotations

from typing import Any

from tests.escape.probe import Probe


def _leaves(name: str, attempts: str, script: str, may: tuple[str, ...] = (), **fields: Any) -> Probe:
    return Probe(
        name=f"leave-{name}", group="export", attempts=attempts, may_export=may, tried=True,
        script=f"{script.strip()}\ntried()", **fields,
    )  # fmt: skip


_OUT = 'os.mkdir("out")\n'
_SWAP = """
os.mkdir("out")
def put():
    with open("out/new", "wb") as file:
        file.write(b"good")
    os.rename("out/new", "out/good")
put()
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    started = False
    while True:
        OTHER
        put()
        if not started:
            os.write(writer, b"x")
            started = True
os.read(reader, 1)
"""

PROBES = (
    _leaves("link-to-a-file", "Leave a link to a file of the host.",
            _OUT + 'os.symlink(FACTS["secret"], "out/link")'),
    _leaves("relative-link", "Leave a link that goes up to the root.",
            _OUT + 'os.symlink("../" * 40 + FACTS["secret"][1:], "out/link")'),
    _leaves("link-to-a-directory", "Leave a link to a directory of the host.",
            _OUT + 'os.symlink(os.path.dirname(FACTS["secret"]), "out/link")'),
    _leaves("out-is-a-link", "Leave a link where the directory is looked for.",
            'os.symlink(os.path.dirname(FACTS["secret"]), "out")'),
    _leaves("link-through-proc", "Leave a link to what the collector itself has open.",
            _OUT + 'os.symlink("/proc/self/environ", "out/link")\nos.symlink("/proc/self/fd/0", "out/other")'),
    _leaves("second-name", "Leave a second name of a file elsewhere.",
            _OUT + 'open("elsewhere", "w").write("other")\nos.link("elsewhere", "out/link")'),
    _leaves("fifo", "Leave a pipe, at which a reader waits for ever.", _OUT + 'os.mkfifo("out/pipe")'),
    _leaves("socket", "Leave a socket.", _OUT + """
import socket
try:
    server = socket.socket(socket.AF_UNIX)
    server.bind("out/server")
except OSError:
    with attempt("bind"):
        server, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        server.bind("out/server")
"""),
    _leaves("device", "Leave a device.", _OUT + """
with attempt("node"):
    os.mknod("out/null", 0o20666, os.makedev(1, 3))
""", initial=True),
    _leaves("line-break", "Leave a name with a line break.", _OUT + 'open("out/a\\nb", "w").write("good")'),
    _leaves("no-text", "Leave a name that is no text.", _OUT + 'open(b"out/\\xff\\xfe", "w").write("good")'),
    _leaves("turned-name", "Leave a name that is shown from right to left.",
            _OUT + 'open("out/\\u202etxt.exe", "w").write("good")'),
    _leaves("terminal-codes", "Leave a name that clears the screen.",
            _OUT + 'open("out/\\x1b[2J", "w").write("good")'),
    _leaves("hole", "Leave a file with a hole that is larger than everything that may come out.", _OUT + """
with open("out/hole", "wb") as file:
    file.truncate(30 << 20)
""", limits={"file_size_mib": 64}),
    _leaves("deep", "Leave a file below many directories.", _OUT + """
os.makedirs("out/" + "d/" * 30)
open("out/" + "d/" * 30 + "good", "w").write("good")
"""),
    _leaves("loop", "Leave directories that hold each other.",
            _OUT + 'os.mkdir("out/a")\nos.symlink("..", "out/a/b")\nopen("out/good", "w").write("good")',
            ("out/good",)),
    _leaves("swapped-link", "Swap a file for a link to the host while it is collected.",
            _SWAP.replace("OTHER", 'os.symlink(FACTS["secret"], "out/new")\n        os.rename("out/new", "out/good")'),
            ("out/good", "out/new"), limits={"inodes": 256}),
    _leaves("swapped-directory", "Swap the directory for a link to the host while it is collected.",
            _SWAP.replace("OTHER", """os.symlink(os.path.dirname(FACTS["secret"]), "there")
        os.rename("out", "away")
        os.rename("there", "out")
        os.unlink("out")
        os.rename("away", "out")"""),
            ("out/good", "out/new"), limits={"inodes": 256}),
    _leaves("closed", "Leave a directory that nobody may enter, and a file that nobody may read.", _OUT + """
os.mkdir("out/shut")
for name in ("out/shut/file", "out/file"):
    with open(name, "w") as file:
        file.write("good")
    os.chmod(name, 0)
os.chmod("out/shut", 0)
os.chmod("out", 0o300)
""", ("out/file", "out/shut/file"), no_control="it is no way out; it must not make the collector stumble"),
    _leaves("many", "Leave more files than anybody looks at.", _OUT + """
for number in range(1500):
    with open(f"out/f{number}", "w") as file:
        file.write("good")
""", tuple(f"out/f{number}" for number in range(1500)), limits={"inodes": 4096}),
)  # fmt: skip
