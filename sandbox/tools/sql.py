"""The sql tool: one read-only query on a SQLite file of the workspace."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import time
import urllib.parse

import beneath
from failure import ToolFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BYTES_LIMIT = 512 * 1024
DEADLINE_S = 10.0
_STEPS_BETWEEN_LOOKS = 1_000
_HEADER = b"SQLite format 3\x00"
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"}


def sql_query(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run one SELECT and return its rows."""
    parameters, max_rows = arguments.get("parameters", []), arguments.get("max_rows", 100)
    return query(arguments["path"], arguments["sql"], parameters, max_rows=max_rows, deadline_s=DEADLINE_S)


def query(file: str, statement: str, parameters: Any, *, max_rows: int, deadline_s: float) -> dict[str, Any]:
    """Run one SELECT on a file of the workspace.

    Raises:
        ToolFailure: no such database, a statement that is refused or wrong, or the deadline passed.
    """
    path = _checked(file)
    connection = sqlite3.connect(f"file:{urllib.parse.quote(path)}?mode=ro", uri=True, timeout=2.0)
    try:
        _lock_down(connection, deadline_s)
        cursor = connection.execute(statement, parameters)
        if cursor.description is None:
            raise ToolFailure("the statement returns no rows; only SELECT is allowed")
        return _rows(cursor, max_rows)
    except sqlite3.OperationalError as error:
        if str(error) == "interrupted":
            raise ToolFailure(f"the query took longer than {deadline_s:g} s and was stopped") from error
        raise ToolFailure(f"SQL: {error}") from error
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise ToolFailure(f"SQL: {error}") from error
    finally:
        connection.close()


def _checked(path: str) -> str:
    """Return the path of a SQLite file after walking to it without following a link."""
    steps = beneath.split(path)
    with beneath.folder(steps[:-1]) as parent:
        if not steps or beneath.kind_at(parent, steps[-1]) != "file":
            raise ToolFailure(f"there is no regular file {path!r}; files_list shows what there is")
        descriptor = os.open(steps[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        with open(descriptor, "rb") as stream:
            if stream.read(len(_HEADER)) != _HEADER:
                raise ToolFailure(f"{path!r} is not a SQLite database")
    return "/".join(steps)


def _lock_down(connection: sqlite3.Connection, deadline_s: float) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 16 * 1024 * 1024)
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 64 * 1024)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.set_authorizer(_authorize)
    deadline = time.monotonic() + deadline_s
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), _STEPS_BETWEEN_LOOKS)


def _authorize(action: int, first: str | None, second: str | None, *_: Any) -> int:
    if action not in _READS or (action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _rows(cursor: sqlite3.Cursor, limit: int) -> dict[str, Any]:
    """Return rows up to the caps of number and size."""
    rows: list[list[Any]] = []
    size, more = 0, False
    for row in cursor:
        values = [_value(value) for value in row]
        size += len(json.dumps(values))
        if len(rows) >= limit or size > BYTES_LIMIT:
            more = True
            break
        rows.append(values)
    return {
        "columns": [column[0] for column in cursor.description],
        "rows": rows,
        "row_count": len(rows),
        "truncated": more,
    }


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value
