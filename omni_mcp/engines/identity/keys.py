"""Who holds a token: a file of hashes that only its owner can read, read again whenever it changes.

The file holds sha256 of 256-bit random tokens, never a token. A slow hash would protect guessable secrets; these
cannot be guessed, and the check stands on the path of every request.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import orjson
from pydantic import Field, ValidationError

from omni_mcp.contracts.call import OPERATOR, Principal
from omni_mcp.contracts.errors import BadRequest, ConfigError, Conflict, NotFound, Problem
from omni_mcp.contracts.manifest import Closed
from omni_mcp.paths import write_private

TOKEN_PREFIX = "omni_"
TOKEN_BYTES = 32
FILE_LIMIT_BYTES = 4 * 1024 * 1024  # some ten thousand keys
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
FIRST_KEY = "first"

Signature = tuple[int, ...]


class Key(Closed):
    """One token's entry. Times are UTC nanoseconds since the epoch."""

    name: str = Field(pattern=NAME_PATTERN)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    kind: Literal["User", "Agent"] = "User"
    id: str = Field(min_length=1, max_length=128)
    owner: str = Field("", max_length=128)
    roles: tuple[str, ...] = ()
    project: str = Field("default", pattern=NAME_PATTERN)
    created_at_ns: int
    expires_at_ns: int | None = None
    revoked_at_ns: int | None = None

    def holds_at(self, at_ns: int) -> bool:
        """Whether the key stands for somebody at *at_ns*."""
        return self.revoked_at_ns is None and (self.expires_at_ns is None or at_ns < self.expires_at_ns)

    @property
    def principal(self) -> Principal:
        """Whom the key stands for."""
        return Principal(kind=self.kind, id=self.id, project=self.project, owner=self.owner, roles=self.roles)


class _Stored(Closed):
    version: Literal[1, 2] = 2
    keys: tuple[Key, ...] = ()

    @property
    def present_keys(self) -> tuple[Key, ...]:
        """The keys as they count now. Version 1 knew no operators; its first key is the one that commands use.

        An agent's key of that name was made by hand, after the first had gone.
        """
        if self.version == 1:
            return tuple(
                _as_operator(key) if key.name == FIRST_KEY and key.kind == "User" else key for key in self.keys
            )
        return self.keys


def _as_operator(key: Key) -> Key:
    return key.model_copy(update={"roles": tuple(dict.fromkeys((*key.roles, OPERATOR)))})


class KeyRing:
    """The port `Identities` on one file."""

    def __init__(self, file: Path, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        """Read *file* if it is there.

        Raises:
            ConfigError: others can read or write the file or its directory, or it cannot be understood.
        """
        self._file = file
        self._places = str(file), str(file.parent)
        self._now_ns = now_ns
        self._signature: Signature | None = None
        self._by_hash: Mapping[str, tuple[Key, Principal]] = {}
        self._problem: str | None = None
        self._refresh()
        if self._problem is not None:
            raise ConfigError([Problem(file=str(file), line=0, path="", message=self._problem)])

    @property
    def problem(self) -> str | None:
        """Why no token is taken at the moment, or None."""
        self._refresh()
        return self._problem

    def principal_of(self, token: str) -> Principal | None:
        """Return whom *token* stands for; None for unknown, revoked and expired ones, and while the file is refused.

        The lookup is by hash, so its time says nothing about a stored token. The file is looked at for each
        request, so a change of it counts for the very next one.
        """
        self._refresh()
        found = self._by_hash.get(hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest())
        return found[1] if found is not None and found[0].holds_at(self._now_ns()) else None

    def keys(self) -> list[Key]:
        """Return every entry in the order of its making.

        Raises:
            ConfigError: as the constructor.
        """
        return list(read_keys(self._file))

    def create(
        self, name: str, principal: Principal, *, expires_at_ns: int | None = None, token: str | None = None
    ) -> str:
        """Add a key for *principal* and return its token, which is kept nowhere.

        Raises:
            BadRequest: *name* or the principal cannot be used.
            Conflict: a key that still holds has this name.
        """
        made = token or new_token()
        try:
            key = Key(
                name=name, sha256=_hash(made), kind=principal.kind, id=principal.id, owner=principal.owner,
                roles=principal.roles, project=principal.project, created_at_ns=self._now_ns(),
                expires_at_ns=expires_at_ns,
            )  # fmt: skip
        except ValidationError as error:
            raise BadRequest(f"the key cannot be made: {_first_fault(error)}") from error
        with _locked(self._file):
            found = read_keys(self._file)
            if any(other.name == name and other.holds_at(self._now_ns()) for other in found):
                raise Conflict(f"there is a key {name!r} already; revoke it first: omni-mcp keys revoke {name}")
            _write(self._file, (*(other for other in found if other.name != name), key))
        return made

    def revoke(self, name: str) -> Key:
        """Make the key *name* worthless from the next request on; its entry stays as a record.

        Raises:
            NotFound: no key that still holds has this name.
        """
        with _locked(self._file):
            found = read_keys(self._file)
            for key in found:
                if key.name == name and key.revoked_at_ns is None:
                    revoked = key.model_copy(update={"revoked_at_ns": self._now_ns()})
                    _write(self._file, tuple(revoked if other is key else other for other in found))
                    return revoked
        raise NotFound(f"there is no key {name!r} that could be revoked; see: omni-mcp keys list")

    def _refresh(self) -> None:
        signature = _signature(*self._places)
        if signature == self._signature:
            return
        try:
            self._by_hash = {key.sha256: (key, key.principal) for key in read_keys(self._file)}
            self._problem = None
        except ConfigError as error:
            self._by_hash = {}  # a file that others could have written says nothing about anybody
            self._problem = error.problems[0].message
        self._signature = signature


def new_token() -> str:
    """Return a fresh token: a prefix that scanners can find, and 256 random bits."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(TOKEN_BYTES)).rstrip(b"=").decode()


def local_user(uid: int, *, project: str = "default", roles: tuple[str, ...] = ()) -> Principal:
    """Return who the person at this machine is."""
    return Principal(kind="User", id=str(uid), project=project, roles=roles)


def mint_first_token(keys_file: Path, token_file: Path, *, uid: int) -> bool:
    """Make the first token, an operator's, for the user *uid*, unless one was ever made; returns whether one was.

    The token is written before its hash, so a crash between the two leaves a token that nobody accepts and the next
    start mints again.

    Raises:
        ConfigError: one of the files is open to others.
    """
    ring = KeyRing(keys_file)
    if any(key.name == FIRST_KEY for key in read_keys(keys_file)):
        return False  # a revoked one counts: what an operator took away does not come back by itself
    token = new_token()
    _write_private(token_file, token.encode() + b"\n")
    try:
        ring.create(FIRST_KEY, local_user(uid, roles=(OPERATOR,)), token=token)
    except Conflict:
        return False
    return True


def read_token(token_file: Path) -> str | None:
    """Return the token that the first start wrote, or None.

    Raises:
        ConfigError: others can read or write the file.
    """
    fault = private_file_fault(token_file)
    if fault:
        raise ConfigError([Problem(file=str(token_file), line=0, path="", message=fault)])
    return token_file.read_text("ascii").strip() if token_file.exists() else None


def tokens_in_clear(token_file: Path) -> dict[str, str]:
    """Return the tokens that this machine keeps in clear, by what the record calls them: those that are to be masked.

    All others are kept as hashes. A file that cannot be read brings nothing; its own readers say what is wrong with it.
    """
    try:
        token = token_file.read_text("ascii").strip()
    except (OSError, ValueError):
        return {}
    return {"omni-mcp token": token} if len(token) >= len(TOKEN_PREFIX) + TOKEN_BYTES else {}


def read_keys(file: Path) -> tuple[Key, ...]:
    """Return the entries of *file*, or nothing if there is no such file.

    Raises:
        ConfigError: others can read or write it or its directory, or it cannot be understood.
    """
    fault = private_file_fault(file)
    if fault is None and file.exists():
        try:
            data = _read_bounded(file)
            return _Stored.model_validate(orjson.loads(data)).present_keys
        except FileNotFoundError:
            return ()
        except (ValueError, OSError) as error:
            reason = _first_fault(error) if isinstance(error, ValidationError) else str(error)
            fault = f"cannot be understood: {reason}"
    if fault is None:
        return ()
    raise ConfigError([Problem(file=str(file), line=0, path="", message=fault)])


def private_file_fault(file: Path) -> str | None:
    """Return what is wrong with the permissions of *file* or of its directory, with the command that mends it."""
    try:
        directory = file.parent.stat()
        facts = file.lstat()
    except FileNotFoundError:
        return None
    if directory.st_uid not in (os.getuid(), 0) or directory.st_mode & 0o022:
        return f"others can write to its directory (chmod 700 {file.parent})"
    if not stat.S_ISREG(facts.st_mode):
        return "must be a regular file, not a link or a device"
    if facts.st_uid != os.getuid():
        return f"belongs to user {facts.st_uid} and not to you"
    if facts.st_mode & 0o077:
        return f"others can read or write it (chmod 600 {file})"
    return None


def parse_span_s(text: str) -> int:
    """Return the seconds that a span such as `30d`, `12h` or `90m` means.

    Raises:
        BadRequest: it is not one.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhdw])", text)
    if not found:
        raise BadRequest(f"{text!r} is no span of time; write for example 30d, 12h or 90m")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[found[2]]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _signature(file: str, directory_of_it: str) -> Signature:
    try:
        facts, directory = os.lstat(file), os.stat(directory_of_it)
    except FileNotFoundError:
        return ()
    # ctime and the mode are part of it: a chmod counts as a change
    return (
        facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_mode, facts.st_uid,
        directory.st_mode, directory.st_uid,
    )  # fmt: skip


def _read_bounded(file: Path) -> bytes:
    with file.open("rb") as stream:
        data = stream.read(FILE_LIMIT_BYTES + 1)
    if len(data) > FILE_LIMIT_BYTES:
        raise ValueError(f"is larger than {FILE_LIMIT_BYTES} bytes")
    return data


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
    return f"${path}: {fault['msg']}"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the writers' lock of *file*: a command and a starting gateway may write at the same time."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(file.with_name(file.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(file: Path, keys: tuple[Key, ...]) -> None:
    _write_private(file, orjson.dumps(_Stored(keys=keys).model_dump(), option=orjson.OPT_INDENT_2) + b"\n")


def _write_private(file: Path, data: bytes) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(file, data)
