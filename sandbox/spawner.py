"""The process that starts templates: it has one thread, so it can do between fork and exec what the gateway cannot.

bubblewrap's `--die-with-parent` follows the thread that started it; this process has one, for life. It lives as long
as the gateway's end of its socket, and takes every cell with it. Standard library only;
`python3 -I -S -B spawner.py FD`.

Each message on the socket (SOCK_SEQPACKET) is one JSON object. In: `sweep` (the cgroups to remove at the end, by what
their paths begin with, and directories), `spawn` with four descriptors (0, 1, 2 and the control socket), `kill`. Out:
`{"id", "pid"}` once, then `{"id", "exit"}`, negative for a signal. A request without `bwrap` starts a plain process
tree; if its supervisor is killed, what is left of it is killed here before its exit is told. A message that is no
good is answered by the exit of what it asked for, where it says what that is, and has no other effect.

Of `args` of a `spawn` a word {"source"} stands for the path of a source, {"mount", "writable"} for the option of
bubblewrap that binds one. `identities` has device and inode of each source, or null; `nested` says which sources are
mounted beneath which others, and where.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import select
import signal
import socket
import stat
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import kernel
import paths

MESSAGE_LIMIT_BYTES = 256 * 1024
DESCRIPTORS = 4
EXIT_NOT_STARTED = 97
_ABOVE_ALL = 200  # where received descriptors wait while the low numbers are laid out
_STAGE = "/tmp"
_PARENT_CHECK_MS = 1000
_ALWAYS_AS_USUAL = {signal.SIGKILL, signal.SIGSTOP}
_LAST_WORDS_S = 3.0
_NO_KEYS = (errno.ENOSYS, errno.EPERM, errno.EACCES)  # a kernel without them; a container that forbids these calls

Request = dict[str, Any]


class Spawner:
    """Starts, reaps and kills; knows nothing of what runs."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._ids: dict[int, int] = {}  # pid of bubblewrap → id of the request
        self._pids: dict[int, int] = {}
        self._sweep: list[str] = []
        self._directories: list[str] = []
        self._plain: set[int] = set()  # pids of supervisors
        self._untold: list[Request] = []

    def serve(self) -> None:
        """Work until the gateway has gone, then end everything that was started."""
        parent = os.getppid()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whoever started the gateway may have blocked any of them
        kernel.adopt_orphans()
        if os.getpriority(os.PRIO_PROCESS, 0) < 0:
            os.setpriority(os.PRIO_PROCESS, 0, 0)  # a gateway that goes ahead of others takes no job with it
        wakeups, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        poller.register(wakeups, select.POLLIN)
        try:
            while os.getppid() == parent:
                ready = {descriptor for descriptor, _ in poller.poll(_PARENT_CHECK_MS)}
                if wakeups in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wakeups, 4096)
                    self._reap()
                if self._channel.fileno() in ready and not self._serve_one():
                    return
        except OSError:
            return  # the gateway has gone while we answered
        finally:
            self._end_all()

    def _serve_one(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._channel, MESSAGE_LIMIT_BYTES, DESCRIPTORS)
        if not data:
            return False
        try:
            request = _read(data)
            if request.get("op") == "spawn":
                self._spawn(request, descriptors)
            elif request.get("op") == "sweep":
                self._sweep, self._directories = request["prefixes"], request["directories"]
            elif request.get("op") == "kill" and request["id"] in self._pids:
                with contextlib.suppress(OSError, OverflowError):
                    _send(self._pids[request["id"]], request["signal"])
        except (LookupError, TypeError, ValueError):
            pass  # a message that is no good
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _spawn(self, request: Request, descriptors: list[int]) -> None:
        number = int(request["id"])
        try:
            pid = self._forked(request, descriptors)
        except (OSError, LookupError, ValueError) as error:
            if len(descriptors) == DESCRIPTORS:
                _report(descriptors[2], "fork", error)
            self._say({"id": number, "exit": EXIT_NOT_STARTED})
            return
        plain = request["bwrap"] is None
        self._ids[pid] = number
        self._pids[number] = pid
        if plain:
            self._plain.add(pid)
        self._say({"id": number, "pid": pid})

    def _forked(self, request: Request, descriptors: list[int]) -> int:
        if len(descriptors) != DESCRIPTORS:
            raise ValueError(f"{len(descriptors)} descriptors came of {DESCRIPTORS}")
        pid = os.fork()
        if pid == 0:
            start_cell(request, descriptors)
        return pid

    def _reap(self) -> None:
        self._collect()
        if self._kill_orphans():
            return  # their end wakes us again
        for message in self._untold:
            self._say(message)
        self._untold.clear()

    def _collect(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._plain.discard(pid)
                number = self._ids.pop(pid, None)
                if number is not None:  # else it was an orphan
                    del self._pids[number]
                    self._untold.append({"id": number, "exit": os.waitstatus_to_exitcode(status)})

    def _kill_orphans(self) -> bool:
        """Kill the children that we did not start. Returns whether any live.

        They lost a supervisor that was killed, or a bubblewrap: its child waits for it without end if it is killed
        between their fork and its word to go on (0.8).
        """
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                orphans = [pid for pid in map(int, file.read().split()) if pid not in self._ids]
        except FileNotFoundError:
            return False  # a kernel without CONFIG_PROC_CHILDREN
        for pid in orphans:
            _send(pid, signal.SIGKILL)
        return bool(orphans)

    def _say(self, message: Request) -> None:
        self._channel.send(json.dumps(message).encode())

    def _end_all(self) -> None:
        """The gateway has gone: kill everything, and remove the cgroups and directories that it no longer can."""
        for pid in self._ids:
            _send(pid, signal.SIGTERM if pid in self._plain else signal.SIGKILL)
        deadline = time.monotonic() + _LAST_WORDS_S
        told = deadline - _LAST_WORDS_S / 2
        while time.monotonic() < deadline:
            self._collect()
            if time.monotonic() > told:
                for pid in self._plain:
                    _send(pid, signal.SIGKILL)
            lives = self._kill_orphans() or bool(self._ids)
            groups = [group for prefix in self._sweep for group in glob.glob(f"{glob.escape(prefix)}*")]
            for group in groups:
                with contextlib.suppress(OSError):  # somebody in it is still dying
                    os.rmdir(group)
            if not groups and not lives:
                break
            time.sleep(0.01)
        if self._directories:
            self._remove_directories()

    def _remove_directories(self) -> None:
        import shutil  # large, and of use once at the end, if at all

        for directory in self._directories:
            with contextlib.suppress(OSError, RecursionError):
                shutil.rmtree(directory)


def _read(data: bytes) -> Request:
    try:
        request = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return request if isinstance(request, dict) else {}


def _report(descriptor: int, step: str, error: BaseException) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, f"omni-spawner: {step}: {error}\n".encode(errors="replace"))


def _send(pid: int, number: int) -> None:
    """Send a signal to a child of ours, not reaped: the number is still its own."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        if number != signal.SIGKILL:
            os.kill(pid, signal.SIGCONT)


def start_cell(request: Request, descriptors: list[int]) -> None:
    """In the forked child: lay out descriptors, join cgroups, stage, become the job's user, exec. Never returns."""
    step = "descriptors"
    try:
        spare = _lay_out(descriptors)
        step = "cgroup"
        for door in request["cgroups"]:
            _join(door)
        step = "stage"
        bwrap, sources, handed = request["bwrap"], request["sources"], list[int]()
        if bwrap is not None:
            staged = request["stage"] and _has_own_mounts()
            step = "sources"
            opened = _opened(request)
            step = "stage"
            if staged:
                bwrap, *sources = _staged([os.open(bwrap, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC), *opened])
            elif request["bind_fd"]:
                handed = opened
        elif request["stage"]:
            _uncover(sources)
        step = "user"
        if request["uid"] is not None:
            os.setgroups([])
            os.setresgid(request["uid"], request["uid"], request["uid"])
            os.setresuid(request["uid"], request["uid"], request["uid"])
        leave_key_ring()
        kernel.carry_out([kernel.no_new_privileges()])
        step = "exec"
        if bwrap is None:
            os.execve(request["command"][0], request["command"], {"PATH": "/usr/bin:/bin"})
        _exec(bwrap, request, sources, handed, spare)
    except BaseException as error:
        _report(2, step, error)
    os._exit(EXIT_NOT_STARTED)


def leave_key_ring() -> None:
    """Leave the keys of whoever started the gateway behind, where this machine has keys at all.

    Raises:
        OSError: there is no other ring for us, as when the user's quota of keys is used up.
    """
    try:
        kernel.carry_out([kernel.new_key_ring()])
    except OSError as error:
        if error.errno not in _NO_KEYS:
            raise


def _lay_out(descriptors: list[int]) -> int:
    """Put the four descriptors at 0 to 3, close every other, reset signals; returns the next free number."""
    waiting = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _ABOVE_ALL) for descriptor in descriptors]
    for number, descriptor in enumerate(waiting):
        os.dup2(descriptor, number, inheritable=True)
    os.closerange(DESCRIPTORS, 1 << 20)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - _ALWAYS_AS_USUAL:
        signal.signal(number, signal.SIG_DFL)
    os.chdir("/")
    os.umask(0o022)
    return DESCRIPTORS


def _join(door: str) -> None:
    descriptor = os.open(door, os.O_WRONLY | os.O_CLOEXEC)
    os.write(descriptor, b"0")
    os.close(descriptor)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    kernel.carry_out([kernel.mounting(source, target, kind, flags, options)])


def _has_own_mounts() -> bool:
    """Enter a mount namespace that only this start sees; false for a root without CAP_SYS_ADMIN (a container)."""
    try:
        kernel.carry_out([kernel.leaving(kernel.CLONE_NEWNS)])
    except PermissionError:
        return False  # what is reachable as it stands has to do
    _mount("none", "/", "none", kernel.MS_REC | kernel.MS_PRIVATE)
    return True


def _opened(request: Request) -> list[int]:
    """Open each source without following a link, and see that those beneath others have their place there.

    The numbers are high, out of the way of those that bubblewrap gets.

    Raises:
        OSError, ValueError: one is missing, or was replaced since the gateway looked.
    """
    pairs = zip(request["sources"], request["identities"], strict=True)
    opened = []
    for source, identity in pairs:
        descriptor = paths.opened(source, identity)
        opened.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE_ALL))
        os.close(descriptor)
    for outer, place in request["nested"]:
        os.close(paths.opened_beneath(opened[outer], place))
    return opened


def _staged(opened: list[int]) -> list[str]:
    """Bind each source to a place that every user can reach.

    A root gateway's interpreter, its package and its data often live under a directory of mode 0700.
    """
    _mount("tmpfs", _STAGE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=64k")
    places = [f"{_STAGE}/{number}" for number in range(len(opened))]
    for place, descriptor in zip(places, opened, strict=True):
        _bind(descriptor, place)
    return places


def _uncover(paths: list[str]) -> None:
    """Have every user reach *paths* where they are, in a mount namespace that only this process tree sees.

    A directory above one of them that is closed to others is hidden behind an empty one, with those paths in it.
    """
    covers = {path: cover for path in paths if (cover := _closed_above(path))}
    if not covers:
        return
    if not _has_own_mounts():
        return
    opened = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in sorted(covers)}
    for cover in set(covers.values()):
        _mount("tmpfs", cover, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=64k")
    for path, descriptor in opened.items():
        if not os.path.lexists(path):  # else it is in one of the others
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _bind(descriptor, path)


def _closed_above(path: str) -> str:
    """Return the first directory on the way to *path* that others cannot go through; nothing if they can."""
    place = ""
    for name in path.split("/")[1:-1]:
        place = f"{place}/{name}"
        if not os.stat(place).st_mode & stat.S_IXOTH:
            return place
    return ""


def _bind(descriptor: int, place: str) -> None:
    """Make *place*, and have there what *descriptor* holds, which is closed."""
    if os.path.isdir(f"/proc/self/fd/{descriptor}"):
        os.mkdir(place)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    _mount(f"/proc/self/fd/{descriptor}", place, "none", kernel.MS_BIND | kernel.MS_REC)
    os.close(descriptor)


def _exec(bwrap: str, request: Request, sources: list[str], handed: list[int], spare: int) -> None:
    """Write bubblewrap's arguments and the synthesized files into anonymous files and become bubblewrap.

    Nothing of a job stands on the command line, where every user of the machine could read it. bubblewrap gets those
    sources that are *handed* over as descriptors, and closes them.
    """
    data_fds = []
    for text in request["data"]:
        data_fds.append(_anonymous_file(text.encode(), spare))
        spare += 1
    words = []
    for word in request["args"]:
        if isinstance(word, str):
            words.append(word)
        elif "source" in word:
            words.append(sources[word["source"]])
        elif "mount" in word:
            option, number = "--bind" if word["writable"] else "--ro-bind", word["mount"]
            if handed:
                os.set_inheritable(handed[number], True)
            words += [f"{option}-fd", str(handed[number])] if handed else [option, sources[number]]
        else:
            words.append(str(data_fds[word["data"]]))
    listed = _anonymous_file(b"".join(word.encode() + b"\0" for word in words), spare)
    command = ["bwrap", "--args", str(listed), "--", *request["command"]]
    os.execve(bwrap, command, {"PATH": "/usr/bin:/bin"})


def _anonymous_file(content: bytes, number: int) -> int:
    descriptor = os.memfd_create("omni", 0)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    if descriptor != number:
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)
    return number


def main() -> None:
    """Serve on the socket whose number is the only argument."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(channel.fileno(), False)
    Spawner(channel).serve()


if __name__ == "__main__":
    main()
