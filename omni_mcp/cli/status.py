"""`omni-mcp status`: what runs, what waits and what is in force. Exit code 0 when a gateway runs, 1 when none does."""

from __future__ import annotations

import http.client
import sys

import click
import orjson

from omni_mcp.cli.launch import control
from omni_mcp.cli.status_text import status_lines
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.json import JsonObject
from omni_mcp.datalock import read_note
from omni_mcp.engines.identity.keys import read_token
from omni_mcp.paths import Home, find_home

TIMEOUT_S = 5.0
ANSWER_LIMIT_BYTES = 4 * 1024 * 1024
_INTERNAL = {"ok", "omni"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def status(as_json: bool) -> None:
    """Show what runs, what waits and what is in force."""
    facts = find_status(find_home())
    if as_json:
        click.echo(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    else:
        for line in _lines(facts):
            click.echo(line)
    sys.exit(0 if facts["running"] else 1)


def find_status(home: Home) -> JsonObject:
    """Ask the gateway that uses *home*: by its socket, else over HTTP; says `running: false` if there is none."""
    answer = control(home, "status", timeout_s=TIMEOUT_S)
    if answer is not None and answer.get("ok") is True:
        return {key: value for key, value in answer.items() if key not in _INTERNAL}
    note = read_note(home.daemon_lock)
    if note is None:
        return {"running": False, "next": "omni-mcp serve"}
    over_http = _over_http(home, note)
    if over_http is not None:
        return over_http
    if note.get("embedded"):
        return {**note, "running": True, "embedded": True, "next": "its one client owns it; it ends with that client"}
    return {**note, "running": False, "next": f"process {note.get('pid')} holds the data directory but does not answer"}


def _over_http(home: Home, note: JsonObject) -> JsonObject | None:
    if not note.get("port"):
        return None
    try:
        token = read_token(home.token_file)
        if token is None:
            return None
        connection = http.client.HTTPConnection(note["host"], note["port"], timeout=TIMEOUT_S)
        try:
            connection.request("GET", "/api/status", headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            facts = orjson.loads(answer.read(ANSWER_LIMIT_BYTES))
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException, ConfigError):
        return None
    return {**note, **facts, "running": True} if answer.status == 200 and isinstance(facts, dict) else None


def _lines(facts: JsonObject) -> list[str]:
    if not facts["running"]:
        return ["not running", f"next: {facts['next']}"]
    return status_lines(facts)
