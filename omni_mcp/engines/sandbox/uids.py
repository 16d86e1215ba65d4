"""Uids: whom cells run as when the gateway is root, so that no job is ever root and no two jobs are the same user."""

from __future__ import annotations

import os
from collections.abc import Sequence

from omni_mcp.contracts.sandbox import Mount
from omni_mcp.engines.sandbox.failures import StartFailed
from omni_mcp.engines.sandbox.uid_locks import UidLocks

DEFAULT_RANGE = range(61000, 62000)  # between the users of usual distributions and systemd's dynamic users (61184 on
# some hosts: systemd allocates those only on demand; choose another range where that matters)


def jobs_part(uids: range) -> range:
    """Return the half of *uids* that jobs without a directory of their own take turns in."""
    return uids[: len(uids) // 2]


def owners_part(uids: range) -> range:
    """Return the half of *uids* that own directories which survive calls, one uid per project."""
    return uids[len(uids) // 2 :]


class UidPool:
    """Gives each template a uid that no other template of this machine has, as far as `UidLocks` can tell."""

    def __init__(self, uids: range) -> None:
        self._uids = uids
        self._free = list(reversed(uids))
        self._locks = UidLocks()

    def take(self) -> int:
        """Raises:
        IndexError: more jobs run than there are uids.
        """
        for place in reversed(range(len(self._free))):
            if self._locks.take(self._free[place]):
                return self._free.pop(place)
        raise IndexError("every uid is taken")

    def give_back(self, uid: int) -> None:
        """Take *uid* back if it is one of ours; those of directories that survive calls are not."""
        if uid in self._uids:
            self._locks.give_back(uid)
            self._free.append(uid)

    def close(self) -> None:
        """Let go of every uid: nothing runs any more."""
        self._locks.close()


def owner_of(mounts: Sequence[Mount], uids: range | None, *, workspace: str) -> int | None:
    """Return the uid that must run a job because a directory of it is theirs alone; None if any will do.

    Raises:
        StartFailed: a directory is missing, or the directories belong to several users, or not to one of *uids*.
    """
    if uids is None:
        return None
    wanted: set[int] = set()
    for mount in mounts:
        if not (mount.writable or mount.inside == workspace):
            continue
        try:
            uid = mount.source.stat().st_uid if mount.as_owner else mount.source.lstat().st_uid
        except OSError as error:
            raise StartFailed(f"a directory of the job is missing: {error.strerror}") from error
        if uid in uids or (mount.as_owner and uid != 0):
            wanted.add(uid)
        elif mount.writable:
            raise StartFailed(
                f"{mount.source} belongs to uid {uid}: no job runs as that, so none can write to it"
                if mount.as_owner else "a writable directory of the job belongs to no uid of the sandbox's range"
            )  # fmt: skip
    if len(wanted) > 1:
        raise StartFailed("the job's directories belong to several users, and it can run as one only")
    return wanted.pop() if wanted else None


def running_as_root() -> bool:
    return os.geteuid() == 0
