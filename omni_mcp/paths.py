"""Where things live: the operator's directory, the runtime directory, and the data that ships with the package."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path


def bundled(name: str) -> Path:
    """Return the shipped directory *name* (`manifests`, `policies` or `sandbox`).

    In a wheel it travels inside the package; in an editable install or a checkout it stands beside the package.

    Raises:
        FileNotFoundError: the package is not complete.
    """
    here = Path(__file__).resolve().parent
    for place in (here / "_data" / name, here.parent / name):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"the shipped directory {name!r} is missing beside {here}")


@dataclass(frozen=True, slots=True)
class Home:
    """The operator's directory and all that hangs on it. `OMNI_HOME`, else the XDG directories."""

    config: Path
    data: Path
    runtime: Path

    @property
    def settings_file(self) -> Path:
        return self.config / "omni.toml"

    @property
    def lock_file(self) -> Path:
        return self.config / "omni.lock"

    @property
    def policies(self) -> Path:
        return self.config / "policies"

    @property
    def manifests(self) -> Path:
        return self.config / "manifests"

    @property
    def profiles(self) -> Path:
        """The operator's own sandbox profiles."""
        return self.config / "profiles"

    @property
    def log_file(self) -> Path:
        return self.data / "runlog.db"

    @property
    def state_file(self) -> Path:
        """Approvals and other small state that is not evidence."""
        return self.data / "state.db"

    @property
    def memory_file(self) -> Path:
        return self.data / "memory.db"

    @property
    def artifacts(self) -> Path:
        return self.data / "artifacts"

    @property
    def workspaces(self) -> Path:
        return self.data / "workspaces"

    @property
    def servers(self) -> Path:
        """Homes and caches of the servers that run in cells."""
        return self.data / "servers"

    @property
    def secrets(self) -> Path:
        """Keys of the gateway itself: log heads, argument hashes, seals. Mode 0700."""
        return self.data / "secrets"

    @property
    def keys_file(self) -> Path:
        """Hashes of client tokens and whom they stand for."""
        return self.data / "keys.json"

    @property
    def token_file(self) -> Path:
        """The token that the first start minted, mode 0600."""
        return self.data / "token"

    @property
    def daemon_lock(self) -> Path:
        return self.data / "gateway.lock"

    @property
    def socket(self) -> Path:
        return self.runtime / "gateway.sock"

    @property
    def runtime_file(self) -> Path:
        """Port, pid and version of the running gateway."""
        return self.runtime / "gateway.json"


def find_home(environment: dict[str, str] | None = None) -> Home:
    """Return the directories in force; creates nothing.

    The runtime directory has a short name of its own because a unix socket's path ends at 108 bytes.
    """
    env = os.environ if environment is None else environment
    if env.get("OMNI_HOME"):
        config = Path(env["OMNI_HOME"]).expanduser().absolute()
        data = config / "data"
    else:
        home = Path(env.get("HOME") or os.path.expanduser("~"))
        config = Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "omni-mcp"
        data = Path(env.get("XDG_DATA_HOME") or home / ".local" / "share") / "omni-mcp"
    name = hashlib.sha256(str(data).encode()).hexdigest()[:12]
    base = env.get("XDG_RUNTIME_DIR")
    runtime = (
        Path(base) / f"omni-mcp-{name}" if base and len(base) < 60 else Path(f"/tmp/omni-mcp-{os.getuid()}-{name}")
    )
    return Home(config=config, data=data, runtime=runtime)


def make_private_dir(path: Path) -> Path:
    """Create *path* with mode 0700 if it is missing.

    Raises:
        PermissionError: it exists but is a link, is somebody else's, or others may write to it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise PermissionError(f"{path} must be a directory of yours that nobody else can write to (chmod 700 {path})")
    return path


def ownership_fault(facts: os.stat_result, path: Path) -> str:
    """Return why somebody else may have written *path*, and what to do; nothing if only we or root can have.

    Root's files are as good as ours: whoever is root decides anyway, and images are often built that way.
    """
    if stat.S_ISLNK(facts.st_mode):
        return "is a link; put the thing itself here"
    if facts.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {facts.st_uid}; it must be yours (chown)"
    if facts.st_mode & 0o022:
        return f"others can write to it (mode {stat.S_IMODE(facts.st_mode):o}); mend it with: chmod go-w {path}"
    return ""


def write_private(file: Path, data: bytes) -> None:
    """Replace *file* in one step with *data*, mode 0600, durable: a reader finds the old or the new, never half of it.

    Raises:
        OSError: the directory is missing, full or cannot be written.
    """
    draft = file.with_name(f".{file.name}.{os.urandom(8).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(file.parent)


def sync_directory(directory: Path) -> None:
    """Have what was made, renamed or removed in *directory* survive a power cut.

    Raises:
        OSError: the disk fails.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
