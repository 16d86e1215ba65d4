"""`omni-mcp serve`: run the gateway until it is told to end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import structlog

from omni_mcp.cli.launch import log_file
from omni_mcp.config import Settings, load_settings
from omni_mcp.contracts.json import JsonObject
from omni_mcp.daemon.daemon import Announce
from omni_mcp.daemon.run import run_daemon
from omni_mcp.logs import LEVELS, LineSink
from omni_mcp.paths import find_home


@click.command()
@click.option("--host", help="Address to listen on; other than loopback needs --behind-proxy.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 for any free one.  [default: 6464]")
@click.option("--behind-proxy", is_flag=True, help="A proxy in front of this gateway ends TLS.")
@click.option("--log-level", type=click.Choice(list(LEVELS)), help="How much to say on stderr.  [default: info]")
@click.option("--from-shim", is_flag=True, hidden=True, help="A client started this: end when the last one has left.")
def serve(host: str | None, port: int | None, behind_proxy: bool, log_level: str | None, from_shim: bool) -> None:
    """Run the gateway: HTTP, HTTP+SSE and the local socket.

    It says on stderr where it listens and where its token is. SIGTERM or Ctrl-C lets running calls end (at most ten
    seconds), and `omni-mcp drain` gives them as long as you say. SIGHUP reads every file again that is watched anyway;
    one that is refused keeps what it said before, and holds no other back.
    """
    home = find_home()
    settings = _with_options(load_settings(home.settings_file), host, port, behind_proxy, log_level)
    sink = LineSink(file=Path(log_file(home)) if from_shim else None)
    try:
        code = run_daemon(settings, home, sink=sink, announce=_announcer(sink), from_shim=from_shim)
    finally:
        sink.close()
    sys.exit(code)


def _with_options(
    settings: Settings, host: str | None, port: int | None, behind_proxy: bool, log_level: str | None
) -> Settings:
    """Return *settings* with what the command line says in place of what the file says, checked again."""
    given = {"host": host, "port": port, "behind_proxy": behind_proxy or None}
    server = {name: value for name, value in given.items() if value is not None}
    log = {"level": log_level} if log_level else {}
    raw = settings.model_dump()
    return Settings.model_validate({**raw, "server": {**raw["server"], **server}, "log": {**raw["log"], **log}})


def _announcer(sink: LineSink) -> Announce:
    def announce(facts: JsonObject) -> None:
        token = facts["token_file"]
        if not os.isatty(2):
            structlog.get_logger().info("listening", url=facts["url"], socket=facts["socket"], token_file=token)
            return
        sink.write(f"omni-mcp {facts['version']} listens on {facts['url']}")
        sink.write(f"token:  {token} (send it as: Authorization: Bearer TOKEN)")
        sink.write(f"socket: {facts['socket'] or 'none: ' + str(facts['socket_problem'])}")
        sink.write("next:   connect a client (docs/connect.md), then allow a tool: omni-mcp allow tools__files_read")

    return announce
