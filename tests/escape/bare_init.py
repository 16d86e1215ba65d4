"""Process 1 of a bare place: a small host of its own, with everything that a probe could want and no wall in it.

Started by `bare.py` in fresh namespaces and a cgroup. Reads what to run as JSON from its input, prints what was seen.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from tests.escape.probe import program
from tests.escape.world import LEAKED_DIRECTORY, LEAKED_FILE, World, open_fifo, plant_programs, survivors, wait_for

FELL = 99  # how the place ends when process 1 obeys a signal from inside
GOOD = b"good"
MOST_FILES = 1000
SWAPPING_S = 3.0  # for what is there only now and then
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 32, 4096, 16384
_MNT_DETACH = 2
_KEPT_ETC = ("ld.so.cache", "localtime", "nsswitch.conf")
_ROUTES = """\
link set lo up
address add 192.0.2.1/32 dev lo
address add 169.254.169.254/32 dev lo
route add default dev lo
route add ff02::/16 dev lo table local
"""
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    order = json.load(sys.stdin)
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, _fall)
    _build_root(Path(order["base"]), order["prefixes"], order["interpreter"])
    subprocess.run(["ip", "-batch", "-"], input=_ROUTES, text=True, check=True)
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
    place = Path("/outside")
    place.mkdir()
    world = World(place)
    for address in ("192.0.2.1", "169.254.169.254"):
        world.listen_at((address, 53))
    if order["given"]:
        plant_programs(Path("/workspace"))
        world.listen_in(Path("/workspace"))
    print(json.dumps(_run(order, world)), flush=True)
    os._exit(0)


def _fall(number: int, frame: FrameType | None) -> None:
    os._exit(FELL)


def _build_root(base: Path, prefixes: list[str], interpreter: str) -> None:
    _mount("tmpfs", base, "tmpfs")
    for name in ("proc", "tmp", "workspace", "run", "var", "home", "root", "old", "etc", "opt", "usr", "dev", "sys"):
        (base / name).mkdir()
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            (base / name).symlink_to(os.readlink(f"/{name}"))
    for name in ("/usr", *prefixes):
        _bind(name, base)
        _mount(name, base / name[1:], flags=_MS_REMOUNT | _MS_BIND | _MS_RDONLY)
    _own_copy(interpreter, base)
    for name in ("/dev", "/sys"):
        _bind(name, base)
    for name in _KEPT_ETC:
        source = Path("/etc", name)
        if source.exists():
            shutil.copy(source, base / "etc" / name)
    (base / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (base / "etc/group").write_text("root:x:0:\n")
    (base / "etc/shadow").write_text("root:$y$not-a-real-one:1::::::\n")
    (base / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    (base / "etc/shadow").chmod(0o600)
    _mount("proc", base / "proc", "proc")
    _mount("tmpfs", base / "dev/shm", "tmpfs")
    os.chdir(base)
    if _libc.syscall(155 if os.uname().machine == "x86_64" else 41, b".", b"old") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    os.chdir("/")
    if _libc.umount2(b"/old", _MNT_DETACH) != 0:
        raise OSError(ctypes.get_errno(), "umount2")


def _own_copy(interpreter: str, base: Path) -> None:
    """Put a copy that may be written in the interpreter's place."""
    copy = base / "opt/interpreter"
    shutil.copy(interpreter, copy)
    _mount(str(copy), base / interpreter[1:], flags=_MS_BIND)


def _bind(name: str, base: Path) -> None:
    target = base / name[1:]
    target.mkdir(parents=True, exist_ok=True)
    _mount(name, target, flags=_MS_BIND | _MS_REC)


def _mount(source: str, target: Path, kind: str = "", flags: int = 0) -> None:
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}")


def _run(order: dict[str, Any], world: World) -> dict[str, Any]:
    """Run the other job if there is one, then the probe, and look round."""
    facts = {**world.facts(), "workspace": "/workspace", "hold_s": 0, "bare": True, "addresses": ["192.0.2.1"]}
    other = None
    if order["before"]:
        done = _start(order["interpreter"], order["before"], facts)
        said = done.communicate()[0].decode()
        if "LEFT" not in said:
            return {"said": said, "ended": "the job before it left nothing", "breaches": []}
    if order["beside"]:
        beside_fifo = open_fifo(Path("/outside/beside"))
        other = _start(order["interpreter"], order["beside"], {**facts, "fifo": "/outside/beside"})
        if not wait_for(beside_fifo):
            other.kill()
            return {"said": other.communicate()[0].decode(), "ended": "the job beside it did not start", "breaches": []}
    fifo = open_fifo(Path("/outside/fifo"))
    look = world.watch()
    probe = _start(order["interpreter"], order["script"], {**facts, "fifo": "/outside/fifo"})
    assert probe.stdout is not None
    said = _said_until_end(probe)
    breaches = look()
    status = probe.returncode
    ended = f"exit {status}" if status >= 0 else f"signal {-status}"
    if order["holds"]:
        state = survivors(fifo)
        breaches += {"alive": ["a process goes on after the job's end"], "gone": []}.get(state, [])
        if state == "nobody came":
            ended = "nobody held the fifo"
    if other is not None and survivors(beside_fifo) != "alive":
        breaches.append("the other job was killed")
    if order["may_export"] is not None:
        breaches += _exported_naively(Path("/workspace/out"), set(order["may_export"]))
    return {"said": said, "ended": ended, "breaches": breaches}


def _start(interpreter: str, script: str, facts: dict[str, Any]) -> subprocess.Popen[bytes]:
    with open("/tmp/input", "wb") as file:
        file.write(b"input")
    with open("/tmp/input", "rb") as stdin:
        return subprocess.Popen(
            [interpreter, "-I", "-S", "-c", program(script, facts)], stdin=stdin, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, cwd="/workspace", pass_fds=(LEAKED_DIRECTORY, LEAKED_FILE),
        )  # fmt: skip


def _said_until_end(probe: subprocess.Popen[bytes]) -> str:
    """Return the probe's output up to its end; whoever else holds the pipe is not waited for."""
    assert probe.stdout is not None
    os.set_blocking(probe.stdout.fileno(), False)
    said = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ended = probe.poll() is not None
        while chunk := probe.stdout.read(65536):
            said = (said + chunk)[-65536:]
        if ended:
            return said.decode(errors="replace")
        time.sleep(0.002)
    probe.kill()
    probe.wait()
    return said.decode(errors="replace") + "\nkilled after 30 seconds"


def _exported_naively(out: Path, may: set[str]) -> list[str]:
    """Collect what was left as a careless gateway would: follow everything, while the job's processes still run."""
    until = time.monotonic() + SWAPPING_S
    while time.monotonic() < until:
        seen = 0
        for here, _, names in os.walk(out, followlinks=True):
            for name in names:
                path = os.path.join(here, name)
                seen += 1
                relative = os.path.relpath(path, out.parent)
                if relative not in may or _read(path) not in (GOOD, b""):
                    return [f"came out: {relative!r}"]
                if seen > MOST_FILES:
                    return ["too many files came out"]
    return []


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return GOOD
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return GOOD
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
