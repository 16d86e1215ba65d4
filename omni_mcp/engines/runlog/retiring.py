"""Which of many runs are erased together: to fill a table of the search index anew costs the same for all of them.

What is erased together holds the write lock together and must fit into the reserve together, so there is a bound.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

EVENTS_TOGETHER = 4096
BYTES_TOGETHER = 1024 * 1024  # of texts; the reserve for a full disk has four times that


def erased_together(connection: sqlite3.Connection, runs: Sequence[str]) -> Iterator[list[str]]:
    """Yield *runs* in their order, in groups; a run that is over the bounds is one for itself."""
    sql = (
        "SELECT count(*), coalesce(sum(length(t.body)), 0) FROM events e JOIN texts t ON t.gid = e.gid "
        "WHERE e.run = (SELECT run FROM run_keys WHERE id = ?) AND e.erased_by IS NULL"
    )
    group: list[str] = []
    events_left, bytes_left = EVENTS_TOGETHER, BYTES_TOGETHER
    for run in runs:
        events, size = connection.execute(sql, (run,)).fetchone()
        if group and (events > events_left or size > bytes_left):
            yield group
            group, events_left, bytes_left = [], EVENTS_TOGETHER, BYTES_TOGETHER
        group.append(run)
        events_left, bytes_left = events_left - events, bytes_left - size
    if group:
        yield group
