"""Launcher: writes bubblewrap's arguments for a template: a minimal read-only root, no network, nobody's user.

What bubblewrap cannot say, `sandbox/init.py` does from the inside; what has to happen before it, `sandbox/spawner.py`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.plan import Plan
from omni_mcp.engines.sandbox.profiles import Profile
from omni_mcp.engines.sandbox.sources import Source, Sources
from omni_mcp.engines.sandbox.views import View, depth_of, places_beneath

WORKSPACE = "/workspace"
HOME = "/home/cell"
PROXY = "http://127.0.0.1:3128"  # sandbox/ground.py, PROXY_PORT
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
BUNDLE = "/sandbox"
INSIDE_UID = 1000

Word = str | dict[str, int]  # a dict stands for something that only the spawner's child knows

_NAMESPACES = ("user", "pid", "ipc", "net", "uts")
_FLAGS = (
    *(f"--unshare-{name}" for name in _NAMESPACES), "--unshare-cgroup-try",
    "--as-pid-1", "--die-with-parent", "--new-session", "--clearenv", "--hostname", "cell",
    "--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID),
    "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SYS_RESOURCE", "--cap-add", "CAP_SETPCAP",
    "--cap-add", "CAP_NET_ADMIN",
)  # fmt: skip
_SHARED_DIRECTORIES = ("/tmp", "/dev/shm")
_ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_ETC_FROM_HOST = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
CERTIFICATES = (
    "/etc/ssl", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted", "/etc/ca-certificates",
)  # fmt: skip
_ETC = {
    "/etc/passwd": f"cell:x:{INSIDE_UID}:{INSIDE_UID}::{WORKSPACE}:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "/etc/group": f"cell:x:{INSIDE_UID}:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost cell\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "/etc/fstab": "",  # sandbox/wall.py lays it over what is not to be read
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """The Python that runs inside cells: a binary and the directories it needs besides /usr."""

    binary: str
    prefixes: tuple[str, ...]


def base_interpreter() -> Interpreter:
    """Return the interpreter behind this process, outside any virtual environment."""
    binary = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    wanted = {os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix), os.path.dirname(binary)}
    if any(path.startswith("/nix/store/") for path in wanted):
        wanted = {"/nix/store"}  # its libraries are spread over the store
    outside = {path for path in wanted if not _within(path, "/usr") and path != "/"}
    return Interpreter(
        binary=binary,
        prefixes=tuple(sorted(path for path in outside if not any(_within(path, o) for o in outside - {path}))),
    )


def seen_by_all(sandbox_dir: Path) -> tuple[str, ...]:
    """Return the directories of the host that every cell sees."""
    return ("/usr", *base_interpreter().prefixes, str(sandbox_dir))


def search_path(interpreter: Interpreter) -> str:
    """Return where jobs look for commands."""
    own = os.path.dirname(interpreter.binary)
    places = [own] if not _within(own, "/usr") else []
    return ":".join([*places, "/usr/local/bin", "/usr/bin", "/bin"])


def _within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")


class Launcher:
    """Writes spawn requests and setups. One per sandbox."""

    sets_environment = True  # of its templates: their jobs have it, and an order brings what is added
    ended_by = (signal.SIGKILL,)  # whatever is in a pid namespace dies with its process 1

    def __init__(self, *, bwrap: str, interpreter: Interpreter, sandbox_dir: Path, stage: bool) -> None:
        self._bwrap = bwrap
        self._interpreter = interpreter
        self._bundle = os.path.realpath(sandbox_dir)
        self._stage = stage
        self._bind_fd = _takes_descriptors(bwrap)
        self._sources = Sources()

    @property
    def interpreter(self) -> Interpreter:
        return self._interpreter

    def request(self, plan: Plan) -> dict[str, Any]:
        """Return the message that makes the spawner start one template.

        Raises:
            StartFailed: a directory is missing, or a job could have led it elsewhere.
        """
        profile, mounts = plan.profile, plan.mounts
        reads, given = self._views(profile, mounts)
        sources: list[str | Source] = []
        nested = places_beneath(reads, given)
        words: list[Word] = [*_FLAGS, "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LD_BIND_NOW", "1"]
        words += self._system(sources)
        first = len(sources)
        words += _bound(sources, reads)
        for index, path in enumerate(_ETC):
            words += ["--perms", "0444", "--file", {"data": index}, path]
        words += ["--proc", "/proc"] if plan.proc else ["--dir", "/proc"]
        words += _devices()
        words += ["--perms", "1777", "--tmpfs", "/tmp", "--perms", "1777", "--tmpfs", "/dev/shm"]
        for place in self.own_directories(profile, mounts):
            if place not in _SHARED_DIRECTORIES:
                words += ["--perms", "0700", "--tmpfs", place]
        words += _bound(sources, given)
        words += ["--remount-ro", "/", "--chdir", WORKSPACE]
        return {
            "op": "spawn", "id": plan.number, "bwrap": self._bwrap, "args": words,
            "sources": [source.path if isinstance(source, Source) else source for source in sources],
            "identities": [[s.device, s.inode] if isinstance(s, Source) else None for s in sources],
            "nested": [[first + number, place] for number, place in nested], "bind_fd": self._bind_fd,
            "command": [self._interpreter.binary, "-I", "-S", "-B", f"{BUNDLE}/init.py"],
            "data": list(_ETC.values()), "uid": plan.uid, "stage": self._stage,
            "cgroups": plan.group.doors if plan.group else [],
        }  # fmt: skip

    def shown(self, profile: Profile) -> tuple[str, ...]:
        """Return what every cell of *profile* sees of the host, beside the system's directories and those to read."""
        return (*self._interpreter.prefixes, self._bundle, *(CERTIFICATES if profile.certificates else ()))

    def setup(self, plan: Plan) -> JsonObject:
        """Return the first frame that process 1 of the template gets."""
        return {
            "tmpfs": self.own_directories(plan.profile, plan.mounts),
            "mounts": [mount.inside for mount in plan.mounts],
            "sizes": {"disk_bytes": plan.sizes.disk_bytes, "inodes": plan.sizes.inodes},
            "proc": plan.proc,
            "unix_sockets": plan.unix_sockets,
            "count_memory": plan.group is None,
            "writable": [mount.inside for mount in plan.mounts if mount.writable],
            "preload": list(plan.profile.preload),
            "environment": {**self.environment(plan.profile), **plan.profile.environment},
        }

    def own_directories(self, profile: Profile, mounts: Sequence[Mount]) -> list[str]:
        """Return the directories that are empty, bounded and each cell's own: where nothing of the host is mounted."""
        wanted = [WORKSPACE, *_SHARED_DIRECTORIES, *([HOME] if profile.home != "workspace" else [])]
        taken = {mount.inside for mount in mounts}
        return [place for place in wanted if place not in taken]

    def environment(self, profile: Profile) -> dict[str, str]:
        """Return what every job of *profile* finds in its environment."""
        return {
            "PATH": search_path(self._interpreter),
            "HOME": WORKSPACE if profile.home == "workspace" else HOME,
            "TMPDIR": "/tmp",
            "USER": "cell",
            "LOGNAME": "cell",
            "SHELL": "/bin/sh",
        }

    def _views(self, profile: Profile, mounts: Sequence[Mount]) -> tuple[list[View], list[View]]:
        """Return what the profile shows and what the job brings, each with the outer before the inner."""
        paths = (*profile.read, *(CERTIFICATES if profile.certificates else ()))
        reads = [
            View(source=self._sources.find(path), inside=path, writable=False)
            for path in sorted(paths, key=depth_of) if os.path.exists(path)
        ]  # fmt: skip
        given = [
            View(source=self._sources.find_mount(mount), inside=mount.inside, writable=mount.writable)
            for mount in sorted(mounts, key=lambda mount: depth_of(mount.inside))
        ]
        return reads, given

    def _system(self, sources: list[str | Source]) -> list[Word]:
        words: list[Word] = ["--ro-bind", "/usr", "/usr"]
        for name in _ROOT_LINKS:
            path = f"/{name}"
            if os.path.islink(path):
                words += ["--symlink", os.readlink(path), path]
            elif os.path.isdir(path):
                words += ["--ro-bind", path, path]
        for path in _ETC_FROM_HOST:
            words += ["--ro-bind-try", path, path]
        for prefix in self._interpreter.prefixes:
            words += ["--ro-bind", _source(sources, prefix), prefix]
        return [*words, "--ro-bind", _source(sources, self._bundle), BUNDLE]


def covers_workspace(mounts: Sequence[Mount]) -> bool:
    """Whether one of *mounts* is the workspace itself."""
    return any(mount.inside == WORKSPACE for mount in mounts)


def proxy_environment(granted: Sequence[str]) -> dict[str, str]:
    """Return how a job learns of the way out to the hosts *granted* (`name:port`).

    Its own loopback is not out there, unless that of the host is among them.
    """
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
    hosts = {one.rpartition(":")[0].strip("[]").lower() for one in granted}
    direct = ",".join(name for name in _LOOPBACK if name not in hosts)
    return {**dict.fromkeys(names, PROXY), "no_proxy": direct, "NO_PROXY": direct, "NODE_USE_ENV_PROXY": "1"}


def _takes_descriptors(bwrap: str) -> bool:
    """Whether this bubblewrap has `--bind-fd`: some releases were given it later, so their numbers do not tell."""
    try:
        return b"ro-bind-fd" in Path(bwrap).read_bytes()
    except OSError:
        return False


def _bound(sources: list[str | Source], views: Sequence[View]) -> list[Word]:
    words: list[Word] = []
    for view in views:
        sources.append(view.source)
        words += [{"mount": len(sources) - 1, "writable": int(view.writable)}, view.inside]
    return words


def _source(sources: list[str | Source], path: str) -> Word:
    sources.append(path)
    return {"source": len(sources) - 1}


def _devices() -> list[Word]:
    words: list[Word] = []
    for name in _DEVICES:
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in _DEVICE_LINKS.items():
        words += ["--symlink", target, f"/dev/{name}"]
    return [*words, "--dev-bind-try", "/dev/tty", "/dev/tty", "--dir", "/dev/pts"]  # sandbox/wall.py fills the last
