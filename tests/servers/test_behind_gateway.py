"""Four more servers of other people behind the whole daemon: presets, lockfile, policy and log as operators have it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from omni_mcp.testing import error_of
from tests.clients.running import new_place, serving
from tests.servers.behind import npm_server, owned_by_somebody, pypi_server, write_profiles
from tests.servers.sources import npm_source, pypi_source
from tests.upstream_faults.yard import (
    GENEROUS,
    READS,
    SURFACE,
    Yard,
    accept_listed,
    as_json,
    ask,
    listed,
    offers_all,
    prepare,
    text_of,
    until,
    until_listed,
)

pytestmark = [
    pytest.mark.sandbox, pytest.mark.node, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900),
]  # fmt: skip

RULES = """
@id("all") permit (principal, action, resource);
@id("no-env") forbid (principal, action, resource == Omni::Tool::"everything__get-env");
"""
SQLITE = (
    "--with",
    "mcp<2",
    "mcp-server-sqlite",
)  # its last version breaks with the second SDK, which it does not rule out
PAGE = b"<html><body><h1>A page of this test</h1></body></html>"


@dataclass(frozen=True)
class Behind:
    """The daemon with the servers behind it."""

    yard: Yard
    port: int

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        return ask(self.yard.running, "tools/call", {"name": name, "arguments": arguments}, limit_s=90.0)


@pytest.fixture(scope="module")
def behind(cells: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """Everything fetched, listed and accepted once."""
    npm, pypi = npm_source(), pypi_source()
    data = owned_by_somebody(tmp_path_factory.mktemp("behind") / "data")
    with web_site() as port, new_place() as place:
        servers = {
            "everything": npm_server("@modelcontextprotocol/server-everything", source=npm),
            "thinking": npm_server("@modelcontextprotocol/server-sequential-thinking", source=npm),
            "fetch": pypi_server("mcp-server-fetch", "--allow-private-ips", source=pypi, hosts=(f"localhost:{port}",)),
            "sqlite": pypi_server(
                *SQLITE, "--db-path", str(data / "shop.db"), source=pypi,
                mounts=({"source": str(data), "writable": True},),
            ),
        }  # fmt: skip
        networks = json.dumps(["127.0.0.0/8", *npm.networks, *pypi.networks])
        prepare(place, servers, settings=f"{GENEROUS}{SURFACE}[egress]\nnetworks = {networks}\n", policy=RULES)
        write_profiles(place)
        with serving(place) as running:
            until_listed(place, servers, limit_s=600.0)
            accept_listed(place, READS)
            yard = Yard(place, running)
            until(lambda: offers_all(yard, servers), "accepted tools in force", place)
            yield Behind(yard, port)


@contextmanager
def web_site() -> Iterator[int]:
    """Serve one page on loopback, and no robots.txt."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/page"
            self.send_response(200 if found else 404)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE if found else b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_everything_server_answers_and_what_policy_forbids_of_it_does_not_run(behind: Behind) -> None:
    names = {tool["name"] for tool in listed(behind.yard.running)}
    echoed = behind.call("everything__echo", message="hello")
    added = behind.call("everything__get-sum", a=2, b=3)
    refused = behind.call("everything__get-env")

    assert "hello" in text_of(echoed) and "5" in text_of(added), as_json([echoed, added])
    assert error_of(refused)["code"] == "policy_denied"
    assert "everything__get-env" not in names and "everything__echo" in names


def test_the_thinking_server_keeps_its_thoughts(behind: Behind) -> None:
    thought = {"nextThoughtNeeded": True, "totalThoughts": 2}
    behind.call("thinking__sequentialthinking", thought="first", thoughtNumber=1, **thought)
    second = behind.call("thinking__sequentialthinking", thought="second", thoughtNumber=2, **thought)

    assert json.loads(text_of(second))["thoughtHistoryLength"] == 2


def test_the_fetch_server_reaches_the_host_it_was_given_and_no_other(behind: Behind) -> None:
    page = behind.call("fetch__fetch", url=f"http://localhost:{behind.port}/page", raw=True)
    with web_site() as other:
        elsewhere = behind.call("fetch__fetch", url=f"http://localhost:{other}/page", raw=True)

    assert "A page of this test" in text_of(page), as_json(page)
    assert elsewhere["result"]["isError"] and "A page of this test" not in text_of(elsewhere)


def test_the_sqlite_server_writes_where_it_may(behind: Behind, tmp_path: Path) -> None:
    made = behind.call("sqlite__create_table", query="CREATE TABLE item (name TEXT)")
    behind.call("sqlite__write_query", query="INSERT INTO item VALUES ('lamp')")
    read = behind.call("sqlite__read_query", query="SELECT name FROM item")

    assert not made["result"].get("isError") and "lamp" in text_of(read), as_json([made, read])


def test_every_call_of_them_has_one_outcome_on_record(behind: Behind) -> None:
    behind.call("everything__echo", message="again")

    assert set(behind.yard.outcome_counts()) == {1}
