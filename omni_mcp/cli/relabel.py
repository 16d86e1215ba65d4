"""`omni-mcp accept` of what is accepted already: a person says anew what they vouch for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Sequence

import click

from omni_mcp.contracts.ids import iso_time
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Labels
from omni_mcp.engines.catalog.difference_text import one_line
from omni_mcp.engines.catalog.lock_listing import KeptListing
from omni_mcp.engines.catalog.lockfile import LockFile
from omni_mcp.engines.catalog.relabelling import Relabelled, relabel, relabelled_of
from omni_mcp.engines.identity.keys import local_user


def changes_of(
    lock_file: LockFile, listing: KeptListing, names: Collection[str], labels: Labels
) -> Sequence[Relabelled]:
    """Return what of *names* (all, if there are none) is accepted with other labels than *labels*."""
    found = relabelled_of(lock_file.read(), listing.server, listing.definitions(), listing.launch, labels)
    return [one for one in found if not names or one.item in names or one.item.removeprefix("tool/") in names]


def vouch_anew(lock_file: LockFile, changes: Sequence[Relabelled], *, yes: bool) -> Sequence[Relabelled]:
    """Ask about each of *changes*, unless it was said already, and write down those with a yes.

    Raises:
        click.UsageError: there is no terminal to ask on.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on; add --yes")
    wanted = [one for one in changes if yes or _asked(one)]
    if wanted:
        by, at = local_user(os.getuid()).id, iso_time(time.time_ns())
        lock_file.edit(lambda now: relabel(now, wanted, by=by, at=at))
    return wanted


def change_line(one: Relabelled) -> str:
    """Say what becomes other: `tool/look: read_only no -> yes`."""
    before, after = one.before.model_dump(), one.labels.model_dump()
    words = {True: "yes", False: "no"}
    parts = [f"{name} {words[before[name]]} -> {words[after[name]]}" for name in after if before[name] != after[name]]
    return one_line(f"{one.item}: {', '.join(parts)}")


def changes_as_json(changes: Sequence[Relabelled]) -> list[JsonObject]:
    """Return the same for programs."""
    return [
        {
            "server": one.server, "item": one.item, "version": one.version, "digest": one.digest,
            "before": one.before.model_dump(), "labels": one.labels.model_dump(),
            "risks": {risk: list(why) for risk, why in one.risks.items()},
        }
        for one in changes
    ]  # fmt: skip


def _asked(one: Relabelled) -> bool:
    click.echo(change_line(one), err=True)
    return click.confirm("Vouch for this instead?", default=False, err=True)
