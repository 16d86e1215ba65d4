"""What of this machine a cell may be shown: nothing of the gateway's own, nothing of the system's, no home as a whole.

One rule for servers, profiles, shared directories and `sandbox run`. A link counts as what it leads to, too, and a
directory counts as what lies in it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from omni_mcp.paths import Home, bundled, find_home

# Closed with all that is below: the kernel's, the system's own, and services that listen there.
_CLOSED = ("/proc", "/sys", "/dev", "/run", "/var/run", "/boot", "/lost+found",
           "/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh", "/etc/ssl/private")  # fmt: skip
# Too wide as a whole: the directory below is named that is meant.
_WIDE = frozenset(
    ("/", "/bin", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/root", "/sbin", "/srv", "/tmp", "/usr",
     "/var", "/var/cache", "/var/lib", "/var/log", "/var/spool", "/var/tmp", "/Users", "/Library", "/Volumes")
)  # fmt: skip
_A_HOME = re.compile(r"/(?:home|Users)/[^/]+")
# Whoever may write here decides what the system runs.
_SYSTEM = ("/proc", "/sys", "/dev", "/run", "/usr", "/boot", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64",
           "/libx32")  # fmt: skip
_KEYS = (".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".password-store", ".netrc", ".git-credentials",
         ".config/gcloud", ".config/gh", ".config/op", ".local/share/keyrings", ".mozilla", ".thunderbird",
         ".config/google-chrome", ".config/chromium", ".config/BraveSoftware", ".config/microsoft-edge",
         ".config/vivaldi", "snap/firefox", ".npmrc", ".pypirc", ".pgpass", ".vault-token",
         "Library/Keychains")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    path: str
    what: str
    is_linked: bool = False


class HostPlaces:
    """Judges places of this machine for the gateway on *home*; looks anew each time, for a link may lead elsewhere now.

    The gateway that this user has without `OMNI_HOME` counts as much.
    """

    def __init__(self, home: Home) -> None:
        self._homes = tuple(dict.fromkeys((home, _usual_home())))

    def fault(self, path: str, *, writable: bool = False) -> str:
        """Return why no cell may be shown *path*; nothing if one may.

        Args:
            writable: the cell could change what is there.
        """
        own = self._own()
        for place in _both(path):
            reason = _general_fault(place) or _nearness(place, own) or (_danger(place) if writable else "")
            if reason:
                return f"{_shown(path, place)} {reason}"
        same = _same_fault(path, own)
        return f"{path} {same}" if same else ""

    def danger(self, path: str) -> str:
        """Return what whoever can write at *path* would decide for the system or for us; nothing if it is nothing."""
        place, own = os.path.realpath(path), self._own()
        return _danger(place) or _nearness(place, own) or _same_fault(place, own)

    def seen_in(self, places: Iterable[str]) -> str:
        """Return what of this gateway lies in *places*, which every cell sees; nothing if nothing does."""
        tops = [os.path.realpath(place) for place in places]
        for own in _own(self._homes[0]):
            if own.is_linked and _is_public(own.path):
                continue
            top = next((top for top in tops if is_within(own.path, top)), None)
            if top is not None:
                return f"{own.path}, {own.what}, lies in {top}, which every cell sees"
        return ""

    def _own(self) -> list[_Place]:
        return [place for home in self._homes for place in _own(home)]


def _is_public(path: str) -> bool:
    """Whether everybody may read *path*, and root only may change it, as what a distribution installs."""
    try:
        facts = os.stat(path)
    except OSError:
        return False
    return facts.st_uid == 0 and facts.st_mode & 0o026 == 0o004


def general_fault(path: str) -> str:
    """Return why no cell may be shown *path*, whoever's gateway this is; nothing if one may."""
    return next((f"{_shown(path, place)} {reason}" for place in _both(path) if (reason := _general_fault(place))), "")


def keys_at(path: str) -> str:
    """Return the well-known place of keys that *path* is, or lies in; nothing if it is none."""
    for place in _both(path):
        for keys in _KEYS:
            if f"/{keys}/" in f"{place}/":
                return keys
    return ""


def keys_in(path: str) -> tuple[str, ...]:
    """Return the well-known places of keys that are in the directory *path*, as far as they exist."""
    return tuple(keys for keys in _KEYS if os.path.lexists(os.path.join(path, keys)))


def is_within(path: str, top: str) -> bool:
    """Whether *path* is *top* or below it; both absolute and normal."""
    return path == top or path.startswith(f"{top.rstrip('/')}/")


def _usual_home() -> Home:
    return find_home({name: value for name, value in os.environ.items() if name != "OMNI_HOME"})


def _both(path: str) -> Iterable[str]:
    return dict.fromkeys((os.path.normpath(path), os.path.realpath(path)))


def _shown(path: str, place: str) -> str:
    return path if place == os.path.normpath(path) else f"{path} (a link to {place})"


def _general_fault(place: str) -> str:
    return _closed_fault(place) or _wide_fault(place)


def _closed_fault(place: str) -> str:
    top = next((top for top in _CLOSED if is_within(place, top)), None)
    return f"may not be shown: nothing at or below {top} may" if top is not None else ""


def _wide_fault(place: str) -> str:
    person = os.path.realpath(os.path.expanduser("~"))
    if place in _WIDE or _A_HOME.fullmatch(place) or (is_within(person, place) and person != "/"):
        return "is too wide: name the directory below it that is meant"
    return ""


def _danger(place: str) -> str:
    if place == "/" or any(is_within(place, top) for top in _SYSTEM):
        return "is the system's own"
    return _nearness(place, _programs())


def _own(home: Home) -> Iterator[_Place]:
    """Yield the resolved places of what makes up the gateway on *home*, also where a link leads out of its own."""
    for path, what in (
        (home.config, "where the gateway keeps its settings"),
        (home.data, "where the gateway keeps its data"),
        (home.runtime, "where the gateway keeps its socket"),
    ):
        yield _Place(path=os.path.realpath(path), what=what)
    for directory in (home.config, home.data, home.policies, home.manifests, home.profiles, home.secrets):
        for link in _links_in(directory):
            yield _Place(path=os.path.realpath(link), what=f"which {link} of the gateway leads to", is_linked=True)


def _links_in(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.is_symlink()]
    except OSError:
        return []


def _programs() -> Iterator[_Place]:
    """Yield the resolved places that programs and modules of the gateway are loaded from."""
    binary = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, os.path.dirname(binary))
    for path in prefixes:
        yield _Place(path=os.path.realpath(path), what="where the interpreter is")
    for path in (str(Path(__file__).parent), str(bundled("sandbox")), *sys.path):
        yield _Place(path=os.path.realpath(path), what="where our own modules come from")
    for path in filter(os.path.isabs, os.environ.get("PATH", "").split(os.pathsep)):
        yield _Place(path=os.path.realpath(path), what="where programs such as bubblewrap are looked for")


def _nearness(place: str, others: Iterable[_Place]) -> str:
    for other in others:
        if is_within(place, other.path):
            return f"lies in {other.path}, {other.what}" if place != other.path else f"is {other.what}"
        if is_within(other.path, place):
            return f"holds {other.path}, {other.what}"
    return ""


def _same_fault(path: str, own: Iterable[_Place]) -> str:
    """As `_nearness`, where a directory is mounted at a second place: by what is there instead of by its name."""
    real, facts = os.path.realpath(path), os.stat("/")
    root = (facts.st_dev, facts.st_ino)
    shown = [found for seen in (real, *_mounts_below(real)) if (found := list(_identities(seen)))]
    for place in own:
        theirs = list(_identities(place.path))
        if theirs and any(theirs[0] in above or above[0] in (*theirs, root) for above in shown):
            return f"is another way to {place.path}, {place.what}"
    return ""


def _mounts_below(path: str) -> Iterator[str]:
    """Yield where something is mounted in *path*: a cell is shown that too."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return  # no Linux
    for line in lines:
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split(" ")[4])
        if place != path and is_within(place, path):
            yield place


def _identities(path: str) -> Iterator[tuple[int, int]]:
    """Yield which one *path* is, if it exists, and then the directories above it, short of the root."""
    for place in (Path(path), *Path(path).parents)[: len(Path(path).parts) - 1]:
        try:
            facts = os.stat(place)
        except OSError:
            return
        yield facts.st_dev, facts.st_ino
