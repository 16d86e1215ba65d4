"""Probes of terminals: those of the host, of whoever started the gateway, and of another job."""

from __future__ import annotations

from tests.escape.probe import Probe

_OF_SIZE = """
import fcntl, struct, termios
def sized(rows, columns):
    for name in os.listdir("/dev/pts") if os.path.isdir("/dev/pts") else ():
        if name.isdigit():
            with attempt(name):
                terminal = os.open(f"/dev/pts/{name}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
                found = struct.unpack("4H", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))
                os.close(terminal)
                if found[:2] == (rows, columns):
                    escaped(f"/dev/pts/{name} is open")
"""
_OWN = """
import fcntl, pty, termios
leader, follower = pty.openpty()
os.setsid() if os.getsid(0) != os.getpid() else None
fcntl.ioctl(follower, termios.TIOCSCTTY, 0)
"""

PROBES = (
    Probe(
        name="terminal-of-the-host",
        group="kernel",
        attempts="Open a terminal in which a program of the host runs.",
        script=f'{_OF_SIZE}\nsized(*FACTS["terminal"])\nstopped()',
    ),
    Probe(
        name="take-a-terminal",
        group="kernel",
        attempts="Open the terminal from which the gateway was started, or a console.",
        script=f"""
if FACTS['bare']:
    exec({_OWN!r})
for name in ("/dev/tty", "/dev/console", "/dev/tty0"):
    with attempt(name):
        os.close(os.open(name, os.O_RDWR | os.O_NOCTTY))
        escaped("opened " + name)
for number in (0, 1, 2):
    if os.isatty(number):
        escaped("it is open as a standard one")
stopped()
""",
    ),
    Probe(
        name="beside-terminals",
        group="cross-job",
        attempts="Open a terminal in which another job runs.",
        beside="""
import fcntl, pty, struct, termios
leader, follower = pty.openpty()
fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("4H", 4321, 1234, 0, 0))
ready()
wait()
""",
        script=f"{_OF_SIZE}\nsized(4321, 1234)\nstopped()",
    ),
    Probe(
        name="terminals",
        group="resources",
        attempts="Make terminals without end: they come out of one number for the whole machine.",
        limits={"open_files": 512},
        script="""
import pty
made = 0
with attempt("open"):
    while made < 100:
        pty.openpty()
        made += 1
escaped(f"{made} terminals") if made > 40 else stopped(f"{made}: {_reasons[0]}")
""",
    ),
    Probe(
        name="lift-the-bound-of-terminals",
        group="kernel",
        attempts="Mount the own terminals anew, without a bound, or lift that of the machine.",
        script="""
with attempt("mount"):
    call("mount", b"devpts", b"/dev/pts", b"devpts", 32, b"max=4000")
    escaped("mounted anew")
opens("/proc/sys/kernel/pty/max", flags=os.O_WRONLY)
stopped()
""",
        initial=True,
    ),
)
