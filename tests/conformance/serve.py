"""A real gateway with the conformance server behind it, under identity names, with a policy that permits all of it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from omni_mcp.assembly import open_gateway
from omni_mcp.config import LimitSettings, ProfileSettings, ServerSettings, Settings
from omni_mcp.contracts.json import JsonObject
from omni_mcp.daemon.run import run_daemon
from omni_mcp.gateway import Gateway
from omni_mcp.logs import LineSink
from omni_mcp.paths import Home, find_home
from tests.conformance.behind import opener_for, road_of
from tests.conformance.definitions import PROFILE, SERVER
from tests.conformance.fixture import ConformanceServer

POLICY = f"""
@id("conformance")
permit (principal, action, resource in Omni::Server::"{SERVER}");
"""


class Signals:
    """Passes what the fixture says on to the gateway that it stands behind, which is there only later."""

    def __init__(self) -> None:
        self._gateway: Gateway | None = None

    def attach(self, gateway: Gateway) -> None:
        """Say whom to tell."""
        self._gateway = gateway

    def list_changed(self, kind: str) -> None:
        """Tell clients that a list changed, though it holds what it held before: a tool came and went."""
        if self._gateway is not None and kind in ("tools", "prompts", "resources"):
            self._gateway.changes.lists_changed([kind])  # type: ignore[list-item]  # one of the three literals

    def resource_updated(self, uri: str) -> None:
        """Tell the subscribers of a resource."""
        if self._gateway is not None:
            self._gateway.changes.resource_updated(uri)


@asynccontextmanager
async def open_with_fixture(settings: Settings, home: Home) -> AsyncIterator[Gateway]:
    """Open a gateway with the fixture as its one upstream."""
    signals = Signals()
    fixture = ConformanceServer(list_changed=signals.list_changed, resource_updated=signals.resource_updated)
    opening = open_gateway(
        settings, home, sources=[fixture], executors={"mcp_remote": fixture}, completers={SERVER: fixture}, cells=False
    )
    async with opening as gateway:
        signals.attach(gateway)
        yield gateway


def settings_for(relay_port: int) -> Settings:
    """Return settings in which the relay's own name is one of the gateway's, and nothing else is loosened."""
    names = (f"127.0.0.1:{relay_port}", f"localhost:{relay_port}")
    return Settings(
        server=ServerSettings(port=0, hosts=names, origins=tuple(f"http://{name}" for name in names)),
        limits=LimitSettings(calls_per_minute=6000),
        profiles={PROFILE: ProfileSettings(servers=(SERVER,), names="identity")},
    )


def main() -> int:
    """Serve until told to end; the first line on stdout says where, and with which token."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--relay-port", type=int, required=True)
    parser.add_argument("--road", type=road_of, help="the fixture is a server behind the gateway, reached this way")
    given = parser.parse_args()
    given.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = find_home({**os.environ, "OMNI_HOME": str(given.home)})
    home.policies.mkdir(mode=0o700, exist_ok=True)
    (home.policies / "conformance.cedar").write_text(POLICY)
    (home.policies / "conformance.cedar").chmod(0o600)

    def announce(facts: JsonObject) -> None:
        print(json.dumps({"port": facts["port"], "token": home.token_file.read_text().strip()}), flush=True)

    sink = LineSink(file=None)
    opener = opener_for(given.road) if given.road else open_with_fixture
    try:
        return run_daemon(settings_for(given.relay_port), home, sink=sink, announce=announce, opener=opener)
    finally:
        sink.close()


if __name__ == "__main__":
    sys.exit(main())
