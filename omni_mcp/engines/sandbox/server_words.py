"""What an operator reads when a server has ended: how, what may have been missing, and its last words."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from omni_mcp.contracts.sandbox import Connection, JobEnd

LINES = 20  # of its last words; the rest is in the tail
_LETTERS = 1400  # so that everything fits into the 2000 that a record keeps of a reason
_HOSTS = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """What of a launch can be the reason for its end."""

    hosts: Collection[str]
    fetches: bool  # it has a cache, so it may be meant to fetch something


def words_of(end: JobEnd, setting: Setting, refused: Collection[Connection], said: str) -> str:
    """Return the story on a few lines, at most about 2000 characters; *said* is the tail, masked already."""
    parts = [_how(end)]
    if end.exit_code or end.reason == "start_failed":
        parts += _hints(end, setting, refused)
    if said.strip():
        parts.append("it last said:\n" + _last_lines(said))
    return "; ".join(parts)


def _how(end: JobEnd) -> str:
    if end.reason == "start_failed":
        return end.message
    if end.reason == "exit":
        return f"it ended with exit status {end.exit_code}"
    return f"it ended: {end.reason}" + (f" ({end.message})" if end.message else "")


def _hints(end: JobEnd, setting: Setting, refused: Collection[Connection]) -> list[str]:
    if end.reason == "start_failed":
        return ["a cell sees /usr, what its profile names in `read`, and the server's directories"]
    hints = []
    closed = _names(refused, "not_granted")
    if closed:
        hints.append(f"it was kept from {closed}: if it needs that: omni-mcp servers set NAME --allow HOST:PORT")
    special = _names(refused, "private_address")
    if special:
        hints.append(f"{special} is in a special address range: name the range in omni.toml, `egress.networks`")
    if setting.fetches and not setting.hosts:
        hints.append("it may reach no host: if it is to fetch its package: omni-mcp servers set NAME --packages")
    return hints


def _names(refused: Collection[Connection], reason: str) -> str:
    found = sorted({f"{one.host}:{one.port}" for one in refused if one.reason == reason})
    return ", ".join(found[:_HOSTS]) + (" and more" if len(found) > _HOSTS else "")


def _last_lines(said: str) -> str:
    return "\n".join(said.strip().splitlines()[-LINES:])[-_LETTERS:]
