"""PersonClient: the command line as a client of the running gateway. Its calls are ordinary calls of this person."""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import orjson

from omni_mcp import __version__
from omni_mcp.cli.launch import StartFailed, connect_or_start
from omni_mcp.cli.person import printable
from omni_mcp.contracts.errors import BadRequest, OutcomeUnknown
from omni_mcp.contracts.json import JsonObject
from omni_mcp.paths import find_home
from omni_mcp.protocol.eras import META_CAPABILITIES, META_CLIENT, META_VERSION, MODERN_VERSIONS

EXIT_FAILED, EXIT_NOT_HERE = 1, 3
PATIENCE_S = 3.0
CHUNK_BYTES = 256 * 1024
WAITING = "waiting for the answer; a call that needs an approval is shown by: omni-mcp approvals list"

agent_option = click.option("--agent", help="As this agent of yours; else as yourself.")
profile_option = click.option("--profile", default="default", show_default=True, help="Of the endpoint /mcp/PROFILE.")


class NotHere(click.ClickException):
    """This system has no way to a gateway."""

    exit_code = EXIT_NOT_HERE


class PersonClient:
    """One connection that speaks the modern era: every request stands for itself.

    Args:
        name: what this client calls itself.
        tell: hears once that an answer takes long.
    """

    def __init__(self, connection: socket.socket, *, name: str, tell: Callable[[str], None]) -> None:
        self._connection = connection
        self._name = name
        self._tell = tell
        self._numbers = itertools.count(1)
        self._read = bytearray()

    def request(self, method: str, params: JsonObject, *, name: str | None = None) -> JsonObject:
        """Send a request, under another client's *name* if one is given, and return its result.

        Raises:
            BadRequest: it was answered with an error.
            OutcomeUnknown: the gateway went away.
        """
        number = next(self._numbers)
        meta = {
            META_VERSION: MODERN_VERSIONS[-1],
            META_CAPABILITIES: {},
            META_CLIENT: {"name": self._name if name is None else name, "version": __version__},
        }
        frame = {"jsonrpc": "2.0", "id": number, "method": method, "params": {**params, "_meta": meta}}
        self._connection.sendall(orjson.dumps(frame) + b"\n")
        while True:
            message = self._message()
            if message.get("id") == number and "method" not in message:
                break
        if "error" in message:
            raise BadRequest(f"the gateway refused: {message['error'].get('message')}")
        result: JsonObject = message["result"]
        return result

    def tools(self, *, name: str | None = None) -> list[JsonObject]:
        """Return every tool that a client of this *name* is listed."""
        found: list[JsonObject] = []
        cursor: JsonObject = {}
        while True:
            page = self.request("tools/list", cursor, name=name)
            found += page["tools"]
            if "nextCursor" not in page:
                return found
            cursor = {"cursor": page["nextCursor"]}

    def call(self, tool: str, arguments: JsonObject) -> JsonObject:
        """Call a tool and return its result, which may say that it failed."""
        return self.request("tools/call", {"name": tool, "arguments": arguments})

    def _message(self) -> dict[str, Any]:
        while True:
            line, end, rest = self._read.partition(b"\n")
            if end:
                self._read = rest
                message = orjson.loads(line)
                if isinstance(message, dict):
                    return message
                continue
            self._read += self._receive()

    def _receive(self) -> bytes:
        self._connection.settimeout(PATIENCE_S)
        try:
            data = self._connection.recv(CHUNK_BYTES)
        except TimeoutError:
            self._tell(WAITING)
            self._tell = _nobody
            self._connection.settimeout(None)
            data = self._connection.recv(CHUNK_BYTES)
        if not data:
            raise OutcomeUnknown("the gateway ended before it answered; the call may or may not have taken effect")
        return data


@contextmanager
def person_client(*, agent: str | None, profile: str, name: str = "omni-mcp") -> Iterator[PersonClient]:
    """Connect to the gateway of this user, which is started if none runs.

    Raises:
        click.ClickException: no gateway can be reached, or it knows no such profile.
    """
    hello: dict[str, object] = {"omni": 1, "agent": agent, "profile": profile, "server": None, "version": __version__}
    try:
        connection = connect_or_start(find_home(), hello)
    except StartFailed as error:
        raise (NotHere if error.not_possible_here else click.ClickException)(str(error)) from error
    with connection:
        yield PersonClient(connection, name=name, tell=lambda text: click.echo(text, err=True))


def print_result(result: JsonObject) -> None:
    """Print what a tool answered, and leave with exit code 1 where that is a failure, or a question.

    Raises:
        click.exceptions.Exit: with 1.
    """
    if result.get("resultType") == "input_required":
        asked = [question.get("params", {}).get("message") for question in result.get("inputRequests", {}).values()]
        texts = "; ".join(printable(str(text)) for text in asked if text)
        click.echo(f"the tool asks for input, which this command cannot give: {texts}", err=True)
        raise click.exceptions.Exit(EXIT_FAILED)
    failed = bool(result.get("isError"))
    for block in result.get("content", []):
        text = block["text"] if block.get("type") == "text" else orjson.dumps(block).decode()
        click.echo(safe_for(sys.stderr if failed else sys.stdout, text), err=failed)
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)


def safe_for(stream: Any, text: str) -> str:
    """Escape what a terminal would act on; what goes to a file or a pipe goes as it is."""
    if not stream.isatty():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _nobody(text: str) -> None:
    return
