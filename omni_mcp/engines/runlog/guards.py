"""The guarding triggers: which there must be, which of them are missing, and how they come back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

from omni_mcp.migrations import migrate, read_migrations

SCHEMA = Path(__file__).parent / "schema"
_TRIGGERS = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"


@cache
def expected_triggers() -> dict[str, str]:
    """Return name and text of each trigger that the schema makes."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, read_migrations(SCHEMA))
        return dict(connection.execute(_TRIGGERS))


def trigger_faults(connection: sqlite3.Connection) -> list[str]:
    """Return what is wrong with the triggers of a log, one sentence for each."""
    found, expected = dict(connection.execute(_TRIGGERS)), expected_triggers()
    faults = [f"the trigger {name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [
        f"the trigger {name} was changed"
        for name in sorted(expected)
        if found.get(name, expected[name]) != expected[name]
    ]
    return faults + [f"the trigger {name} is not one of ours" for name in sorted(found.keys() - expected.keys())]


def mend_triggers(connection: sqlite3.Connection) -> list[str]:
    """Make triggers anew that are missing or were changed; returns one sentence for each fault of any."""
    faults = trigger_faults(connection)
    if not faults:
        return []
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = dict(connection.execute(_TRIGGERS))
        for name, sql in expected_triggers().items():
            if name in found and found[name] != sql:
                connection.execute(f'DROP TRIGGER "{name}"')
            if found.get(name) != sql:
                connection.execute(sql)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    ours = ("is missing", "was changed")
    return [
        f"{fault}; it was made anew" if fault.endswith(ours) else f"{fault}; run: omni-mcp audit verify"
        for fault in faults
    ]
