"""`omni-mcp stdio`: what a desktop client starts. Relays bytes to and from the gateway, which it starts if needed.

Nothing heavy is imported here (no click, asyncio or pydantic): the client waits for its first answer, and every client
has a process like this one. It only looks at message ids, so that it can answer what is open if the gateway dies.
"""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Sequence
from typing import Any

from omni_mcp import __version__
from omni_mcp.cli.launch import StartFailed, connect_or_start
from omni_mcp.cli.linetap import LineTap
from omni_mcp.paths import find_home

USAGE = """usage: omni-mcp stdio [--agent NAME] [--profile NAME | --server NAME] [--embedded]
More: omni-mcp stdio --help"""

PIPE_BUF = select.PIPE_BUF  # a pipe that polls as writable takes this much without blocking (POSIX, "poll")
CHUNK_BYTES = 64 * 1024
BUFFER_LIMIT_BYTES = 256 * 1024
GOODBYE_TIMEOUT_S = 15.0  # a gateway that drains needs up to ten
EXIT_FAILED, EXIT_USAGE, EXIT_NOT_HERE, EXIT_INTERRUPTED = 1, 2, 3, 130
INTERNAL_ERROR = -32603
DIED = "the gateway ended before it answered; the call may or may not have taken effect"


class UsageError(Exception):
    """The command line cannot be understood."""


def main(arguments: Sequence[str]) -> int:
    """Connect this process's stdin and stdout to the gateway until one side ends; returns the exit code."""
    try:
        hello = parse_arguments(arguments)
    except UsageError as error:
        return _fail(f"{error}\n{USAGE}", EXIT_USAGE)
    if sys.stdin is not None and sys.stdin.isatty():
        _say("waiting for MCP messages on standard input; a client starts this command (see docs/connect.md)")
    try:
        connection = connect_or_start(find_home(), hello)
    except StartFailed as error:
        return _fail(str(error), EXIT_NOT_HERE if error.not_possible_here else EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    with connection:
        try:
            return Relay(connection).run()
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED


def parse_arguments(arguments: Sequence[str]) -> dict[str, object]:
    """Return the hello that the command line asks for.

    Raises:
        UsageError: an option is unknown, has no value or contradicts another.
    """
    hello: dict[str, object] = {"omni": 1, "agent": None, "profile": None, "server": None, "version": __version__}
    rest = list(arguments)
    while rest:
        option, joined, value = rest.pop(0).partition("=")
        if option not in ("--agent", "--profile", "--server"):
            raise UsageError(f"unknown option {option!r}")
        if not joined:
            if not rest:
                raise UsageError(f"{option} needs a name")
            value = rest.pop(0)
        if not value:
            raise UsageError(f"{option} needs a name")
        hello[option[2:]] = value
    if hello["profile"] and hello["server"]:
        raise UsageError("--profile and --server exclude each other")
    return hello


class Relay:
    """Moves bytes both ways with bounded buffers, and knows which requests are open."""

    def __init__(self, connection: socket.socket, *, source: int = 0, sink: int = 1) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._source = source
        self._sink = sink
        self._to_gateway = bytearray()
        self._to_client = bytearray()
        self._asked = LineTap()
        self._answered = LineTap()
        self._open: dict[str, object] = {}
        self._client_left = False
        self._gateway_left = False
        self._said_goodbye = False
        self._sink_is_pollable = not stat.S_ISREG(os.fstat(sink).st_mode)
        self._deadline_s: float | None = None

    def run(self) -> int:
        """Relay until both sides are done; returns the exit code."""
        while not self._gateway_left:
            if self._deadline_s is not None and time.monotonic() > self._deadline_s:
                break
            self._wait_and_move()
        if self._client_left:
            self._flush_to_client()
            return 0
        return self._answer_what_is_open()

    def _wait_and_move(self) -> None:
        poll = select.poll()
        link = self._connection.fileno()
        if not self._client_left and len(self._to_gateway) < BUFFER_LIMIT_BYTES:
            poll.register(self._source, select.POLLIN)
        wanted = select.POLLOUT if self._to_gateway else 0
        if len(self._to_client) < BUFFER_LIMIT_BYTES:
            wanted |= select.POLLIN
        poll.register(link, wanted)
        if self._sink_is_pollable:  # also without anything to write: it tells when the client stops listening
            poll.register(self._sink, select.POLLOUT if self._to_client else 0)
        for descriptor, event in poll.poll(1000 if self._deadline_s is not None else None):
            if descriptor == self._source:
                self._read_client()
            elif descriptor == self._sink:
                self._write_client(event)
            else:
                self._exchange(event)
        if not self._sink_is_pollable and self._to_client:
            self._put(len(self._to_client))  # a file takes all there is
        if self._client_left and not self._to_gateway:
            self._say_goodbye()

    def _read_client(self) -> None:
        try:
            data = os.read(self._source, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._leave_client()
            return
        self._to_gateway += data
        for message in self._asked.feed(data):
            self._note_request(message)

    def _leave_client(self) -> None:
        self._client_left = True
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + GOODBYE_TIMEOUT_S

    def _say_goodbye(self) -> None:
        """Tell the gateway that nothing more comes; it ends what is open and closes."""
        if not self._said_goodbye:
            self._said_goodbye = True
            try:
                self._connection.shutdown(socket.SHUT_WR)
            except OSError:
                self._gateway_left = True

    def _exchange(self, event: int) -> None:
        if event & select.POLLOUT and self._to_gateway:
            try:
                del self._to_gateway[: self._connection.send(memoryview(bytes(self._to_gateway[:CHUNK_BYTES])))]
            except BlockingIOError:
                pass
            except OSError:
                self._to_gateway.clear()  # what it still has to say can be read below
        if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
            try:
                data = self._connection.recv(CHUNK_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._gateway_left = True
                return
            self._to_client += data
            for message in self._answered.feed(data):
                self._note_answer(message)

    def _write_client(self, event: int) -> None:
        if event & (select.POLLERR | select.POLLNVAL):
            self._to_client.clear()  # the client does not listen any more, so it will not answer either
            self._to_gateway.clear()
            self._sink_is_pollable = False
            self._sink = os.open(os.devnull, os.O_WRONLY)
            self._leave_client()
        elif event & select.POLLOUT and self._to_client:
            self._put(PIPE_BUF)

    def _put(self, size: int) -> None:
        try:
            del self._to_client[: os.write(self._sink, self._to_client[:size])]
        except BlockingIOError:
            return
        except OSError:
            self._to_client.clear()  # nobody reads it any more
            self._leave_client()

    def _flush_to_client(self) -> None:
        """Write all that waits, for as long as a client may take that still listens."""
        ends_s = time.monotonic() + GOODBYE_TIMEOUT_S
        poll = select.poll()
        poll.register(self._sink, select.POLLOUT)
        while self._to_client and time.monotonic() < ends_s:
            for _, event in poll.poll(1000):
                if event & (select.POLLERR | select.POLLNVAL):
                    self._to_client.clear()
                else:
                    self._put(PIPE_BUF)

    def _note_request(self, message: Any) -> None:
        for part in message if isinstance(message, list) else [message]:
            if not isinstance(part, dict) or not isinstance(part.get("method"), str):
                continue
            params = part.get("params")
            if part["method"] == "notifications/cancelled" and isinstance(params, dict):
                self._open.pop(_key(params.get("requestId")), None)
            elif "id" in part and len(self._open) < 10_000:
                self._open[_key(part["id"])] = part["id"]

    def _note_answer(self, message: Any) -> None:
        for part in message if isinstance(message, list) else [message]:
            if isinstance(part, dict) and "id" in part and "method" not in part:
                self._open.pop(_key(part["id"]), None)

    def _answer_what_is_open(self) -> int:
        """Give every open request an error: a client must not wait for an answer that cannot come."""
        if self._answered.in_the_middle:
            self._to_client += b"\n"  # what was cut off must cost only itself
        for identifier in self._open.values():
            error = {"code": INTERNAL_ERROR, "message": DIED, "data": {"code": "outcome_unknown"}}
            self._to_client += json.dumps({"jsonrpc": "2.0", "id": identifier, "error": error}).encode() + b"\n"
        self._flush_to_client()
        return _fail(
            f"the gateway ended ({len(self._open)} requests were open); start this client again, "
            "and see: omni-mcp status, omni-mcp runs list",
            EXIT_FAILED,
        )


def _key(identifier: object) -> str:
    return json.dumps(identifier)


def _say(text: str) -> None:
    try:
        sys.stderr.write(f"omni-mcp: {text}\n")
        sys.stderr.flush()
    except (OSError, AttributeError):
        return  # a client that closed stderr does not want to know


def _fail(text: str, code: int) -> int:
    _say(text)
    return code
