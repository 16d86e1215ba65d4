"""Uids: whom cells run as when the gateway is root, so that no job is ever root and no two jobs are the same user."""

from __future__ import annotations

import os

DEFAULT_RANGE = range(61000, 62000)  # between the users of usual distributions and systemd's dynamic users (61184 on
# some hosts: systemd allocates those only on demand; choose another range where that matters)


def jobs_part(uids: range) -> range:
    """Return the half of *uids* that jobs without a directory of their own take turns in."""
    return uids[: len(uids) // 2]


def owners_part(uids: range) -> range:
    """Return the half of *uids* that own directories which survive calls, one uid per project."""
    return uids[len(uids) // 2 :]


class UidPool:
    """Gives each running job a uid that no other running job has."""

    def __init__(self, uids: range) -> None:
        self._free = list(reversed(uids))

    def take(self) -> int:
        """Raises:
        IndexError: more jobs run than there are uids.
        """
        return self._free.pop()

    def give_back(self, uid: int) -> None:
        self._free.append(uid)


def running_as_root() -> bool:
    return os.geteuid() == 0
