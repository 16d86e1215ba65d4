"""The clients of this user: which come through the gateway, and which start servers past it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

from omni_mcp.cli.doctor.finding import Finding, Patient
from omni_mcp.cli.person import printable
from omni_mcp.clients.found import Reading
from omni_mcp.clients.places import CLIENTS, places_of, surroundings_of
from omni_mcp.clients.reading import read_place
from omni_mcp.contracts.errors import BadRequest


def check_clients(patient: Patient) -> Iterator[Finding]:
    """The files of known clients, those that exist; nothing of a client that is not installed."""
    try:
        around = surroundings_of(os.environ, platform=sys.platform)
    except BadRequest:
        return  # no home directory: nobody's clients
    for client in CLIENTS:
        for place in places_of(client, around):
            reading = read_place(place, around)
            if reading.exists:
                yield from _of(reading)


def _of(reading: Reading) -> Iterator[Finding]:
    client, file = reading.place.client, reading.place.file
    for problem in () if reading.readable else reading.problems:
        yield Finding(name=client, level="warn", text=printable(str(problem)), next="mend the file; it cannot be read")
    gone = [command for command in reading.own.values() if command and shutil.which(command) is None]
    beside = ", ".join(sorted({server.name for server in reading.servers}))
    if gone:
        text = printable(f"starts {gone[0]}, which is not there ({file})")
        yield Finding(name=client, level="fail", text=text, next=f"omni-mcp connect {client}")
    elif reading.own and beside:
        text = printable(f"comes through the gateway, and starts past it: {beside}")
        hint = f"omni-mcp import; omni-mcp connect {client} --move"
        yield Finding(name=client, level="warn", text=text, next=hint)
    elif reading.own:
        yield Finding(name=client, level="ok", text="comes through the gateway")
    elif reading.readable:
        text = "does not come through the gateway" + (f"; it starts: {beside}" if beside else "")
        yield Finding(name=client, level="ok", text=printable(f"{text} (omni-mcp connect {client})"))
