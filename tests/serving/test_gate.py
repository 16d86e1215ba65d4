"""Every HTTP route is behind one gate: host, origin, token, type and size, each with its own clear answer."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import httpx2
import pytest

from omni_mcp.serving.gate import Gate
from omni_mcp.serving.metrics import Metrics
from tests.serving.edge_world import MODERN, World, initialize, modern, modern_headers, request

CALL = modern("tools/call", {"name": "t__echo", "arguments": {"x": "1"}})


async def post(http: httpx2.AsyncClient, *, path: str = "/mcp", **headers: str) -> httpx2.Response:
    return await http.post(path, json=CALL, headers={**modern_headers(CALL), **headers})


async def test_every_route_but_health_wants_a_token_and_says_how_to_get_one() -> None:
    face = World().http()
    async with World().direct(token=None) as http:
        for route in face.routes:
            for method in (*route.methods, "OPTIONS", "HEAD"):
                answer = await http.request(method, route.path, content=b"{}")
                if route.public:
                    assert answer.status_code in (200, 405)
                else:
                    assert answer.status_code == 401, (method, route.path)
                    assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.headers["x-request-id"]
        for path in ("/api/status", "/nothing", "/mcp/tools", "/", "/docs", "/mcp/", "//mcp", "/healthz/"):
            assert (await http.get(path)).status_code == 401
    assert [route.path for route in face.routes if route.public] == ["/healthz"]


@pytest.mark.parametrize(
    "token", [None, "", "Bearer", "Basic ann-token", "Bearer wrong", "ann-token", "Bearer ann-token x",
              "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."],
)  # fmt: skip
async def test_without_a_valid_token_nothing_is_called(token: str | None) -> None:
    world = World()
    async with world.direct(token=None) as http:
        answer = await post(http, **({} if token is None else {"Authorization": token}))
    assert answer.status_code == 401 and "omni-mcp keys create" in answer.json()["detail"]
    assert not world.calls
    assert world.log.codes() == ["request_rejected"]


async def test_a_key_may_come_as_x_api_key() -> None:
    world = World()
    async with world.direct(token=None) as http:
        assert (await post(http, **{"X-API-Key": "bob-token"})).status_code == 200
    assert world.calls[0].principal.id == "bob"


async def test_two_different_credentials_are_nobodys() -> None:
    world = World()
    async with world.direct(token=None) as http:
        two = await post(http, **{"X-API-Key": "bob-token", "Authorization": "Bearer ann-token"})
        wrong = await post(http, **{"X-API-Key": "bob-token", "Authorization": "bearer nonsense"})
        same = await post(http, **{"X-API-Key": "bob-token", "Authorization": "Bearer bob-token"})
    assert [two.status_code, wrong.status_code, same.status_code] == [400, 400, 200]
    assert "send one of them" in two.json()["detail"] and len(world.calls) == 1


async def test_the_addresses_that_clients_reach_take_nothing_that_stays() -> None:
    """A gateway that listens on every address of a machine can be reached at millions of them."""

    def gates() -> int:
        gc.collect()
        return sum(isinstance(one, Gate) for one in gc.get_objects())

    async with World().direct() as http:
        before = gates()
        for number in range(1, 9):
            address = f"http://127.0.0.{number}:{http.base_url.port}"
            answer = await http.get(f"{address}/healthz", headers={"Host": "gateway.test"})
            assert answer.status_code == 200
        assert gates() == before + 1


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1#", "127.0.0.1:PORT.evil.example", "evil@127.0.0.1:PORT", "",
             "localhost:1", "127.0.0.1:PORT ,evil", "0.0.0.0:PORT", "127.0.0.1:0PORT"],
)  # fmt: skip
async def test_another_host_is_misdirected_on_every_route(host: str) -> None:
    world = World()
    async with world.direct() as http:
        host = host.replace("PORT", str(http.base_url.port))
        assert (await post(http, Host=host)).status_code == 421
        assert (await http.get("/healthz", headers={"Host": host})).status_code == 421
        assert (await http.get("/metrics", headers={"Host": host})).status_code == 421
        assert (await http.get("/api/status", headers={"Host": host})).status_code == 421
    assert not world.calls


async def test_loopback_names_and_listed_hosts_are_served() -> None:
    async with World().direct() as http:
        port = http.base_url.port
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "gateway.test"):
            assert (await post(http, Host=host)).status_code == 200, host


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://page.test.evil.example", "http://page.test"]
)
async def test_another_web_page_is_refused(origin: str) -> None:
    world = World()
    async with world.direct() as http:
        assert (await post(http, Origin=origin)).status_code == 403
        assert (await http.get("/healthz", headers={"Origin": origin})).status_code == 403
    assert not world.calls


async def test_listed_and_own_origins_are_served_but_never_get_cors_headers() -> None:
    async with World().direct() as http:
        for origin in ("https://page.test", f"http://127.0.0.1:{http.base_url.port}"):
            answer = await post(http, Origin=origin)
            assert answer.status_code == 200
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_browser_that_hides_its_origin_is_refused() -> None:
    async with World().direct() as http:
        assert (await post(http, **{"Sec-Fetch-Site": "cross-site"})).status_code == 403


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/json-patch+json", "text/json",
             "application/json; charset=utf-16", "application/json, text/plain"],
)  # fmt: skip
async def test_only_json_is_taken(kind: str) -> None:
    world = World()
    async with world.direct() as http:
        assert (await post(http, **{"Content-Type": kind})).status_code == 415
        assert (
            await http.post("/messages?session_id=x", content=b"{}", headers={"Content-Type": kind})
        ).status_code == 415
    assert not world.calls


async def test_a_body_over_the_limit_is_refused_by_its_length_and_as_it_comes() -> None:
    world = World()
    large = b" " * (300 * 1024)

    async def chunks() -> Any:
        for _ in range(400):
            yield b" " * 1024

    async with world.direct() as http:
        kind = {"Content-Type": "application/json"}
        assert (await http.post("/mcp", content=large, headers=kind)).status_code == 413
        assert (await http.post("/mcp", content=chunks(), headers=kind)).status_code == 413
        assert (await post(http)).status_code == 200, "the next call is served"


@pytest.mark.parametrize("name", ["Authorization", "Mcp-Name", "Mcp-Method", "MCP-Protocol-Version", "Content-Type",
                                  "Origin", "Mcp-Session-Id", "Mcp-Param-Region"])  # fmt: skip
async def test_a_header_that_decides_may_not_come_twice(name: str) -> None:
    world = World()
    async with world.direct() as http:
        values = {**modern_headers(CALL), "Authorization": "Bearer ann-token", "Content-Type": "application/json",
                  "Host": http.base_url.netloc.decode(), "Origin": "https://page.test"}  # fmt: skip
        twice = [*values.items(), (name, values.get(name, "x")), (name.lower(), values.get(name, "x"))]
        del http.headers["Authorization"]
        answer = await http.post("/mcp", json=CALL, headers=twice)
    assert answer.status_code == 400
    assert not world.calls


async def test_whitespace_around_header_values_does_not_count() -> None:
    """The HTTP parser keeps it; RFC 9110 (5.5) says that it is no part of the value."""
    world = World()
    async with world.served() as base:
        port = int(base.rpartition(":")[2])
        body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t__echo","_meta":' + META_JSON + b"}}"
        head = (
            f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{port} \r\nAuthorization:  Bearer ann-token\t\r\n"
            f"Content-Type: application/json  \r\nMCP-Protocol-Version:\t{MODERN} \r\nMCP-METHOD: tools/call \t\r\n"
            f"mcp-name:   t__echo  \r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        answer = await raw(port, head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b"server:" not in answer.lower()


META_JSON = b'{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}'


async def test_two_host_headers_are_refused() -> None:
    async with World().served() as base:
        port = int(base.rpartition(":")[2])
        answer = await raw(
            port, f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil\r\nConnection: close\r\n\r\n".encode()
        )
    assert answer.startswith(b"HTTP/1.1 400")


async def raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_an_unknown_profile_is_not_there() -> None:
    world = World()
    async with world.direct() as http:
        assert (await post(http, path="/mcp/tools")).status_code == 200
        for name in ("nothing", "secret", "tools/x", "%2e%2e", "tools%00"):
            assert (await post(http, path=f"/mcp/{name}")).status_code == 404
    assert [call.profile for call in world.calls] == ["tools"]


async def test_wrong_http_methods_say_which_are_right() -> None:
    async with World().direct() as http:
        answer = await http.put("/mcp", content=b"{}")
        assert answer.status_code == 405 and answer.headers["allow"] == "POST, GET, DELETE"
        for method in ("GET", "DELETE"):
            modern_one = await http.request(method, "/mcp", headers={"MCP-Protocol-Version": MODERN})
            assert modern_one.status_code == 405


async def test_health_readiness_and_metrics_tell_how_it_stands() -> None:
    world = World()
    async with world.direct() as http:
        await post(http)
        await http.post("/mcp", content=b"{", headers={"Content-Type": "application/json"})
        metrics = (await http.get("/metrics", headers={"Authorization": "Bearer ops-token"})).text
        ready = await http.get("/readyz")
        world.log.broken = True
        unready = await http.get("/readyz")
        healthy = await http.get("/healthz")
    assert (ready.status_code, unready.status_code, healthy.status_code) == (200, 503, 200)
    assert unready.json() == {"ready": False, "log": "unavailable", "draining": False}
    assert 'omni_calls_total{kind="tool",outcome="ok"} 1.0' in metrics
    assert 'omni_rejected_total{reason="not_json",transport="http"} 1.0' in metrics
    assert "omni_open_sessions" in metrics and "omni_http_sessions 0.0" in metrics


def test_the_times_of_calls_are_counted_up_to_and_with_each_bound() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.0011, 299.0, 301.0):
        metrics.call_ended("tool", "ok", seconds)
    told = metrics.render().decode()
    buckets = [
        f'omni_call_seconds_bucket{{kind="tool",le="{bound}"}} {count}.0'
        for bound, count in (("0.001", 1), ("0.0025", 2), ("60.0", 2), ("300.0", 3), ("+Inf", 4))
    ]
    assert all(bucket in told for bucket in buckets), told
    assert 'omni_call_seconds_count{kind="tool"} 4.0' in told
    assert "omni_run_log_notices_total 0.0" in told


async def test_metrics_count_everybodys_calls_and_are_for_operators() -> None:
    world = World()
    async with world.direct() as http:
        refused = await http.get("/metrics")
        told = await http.get("/metrics", headers={"Authorization": "Bearer ops-token"})
    assert refused.status_code == 403 and "--operator" in refused.json()["detail"]
    assert "omni_" not in refused.text
    assert told.status_code == 200 and told.text.count("omni_") > 5


async def test_mounted_routes_are_behind_the_same_gate() -> None:
    async with World().direct() as http:
        answer = await http.get("/api/status")
        assert answer.status_code == 200 and answer.headers["x-request-id"]
        assert (await http.post("/api/events", json={})).status_code == 403


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"{", -32700), (b"[]", -32600), (b"[1]", -32600), (b"1", -32600),
     (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
     (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', -32700), (b'{"jsonrpc":"2.0","id":1,"result":{}}', -32600)],
)  # fmt: skip
async def test_a_bad_body_is_a_400_with_a_json_rpc_error_in_both_eras(body: bytes, code: int) -> None:
    world = World()
    async with world.direct() as http:
        kind = {"Content-Type": "application/json"}
        session = (await http.post("/mcp", json=initialize())).headers["mcp-session-id"]
        for headers in ({"MCP-Protocol-Version": MODERN, "Mcp-Method": "ping"}, {"Mcp-Session-Id": session}):
            answer = await http.post("/mcp", content=body, headers={**kind, **headers})
            if "result" in body.decode() and "Mcp-Session-Id" in headers:
                assert answer.status_code == 202, "an answer that nobody waits for is taken and dropped"
            else:
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
        pong = await http.post("/mcp", json=request("ping"), headers={"Mcp-Session-Id": session})
    assert pong.json()["result"] == {}


async def test_a_fault_of_our_own_is_a_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = World()

    class Broken:
        def principal_of(self, token: str) -> None:
            raise RuntimeError("secret detail")

    async with world.direct(identities=Broken()) as http:
        answer = await post(http)
    assert answer.status_code == 500 and "secret" not in answer.text and answer.headers["x-request-id"]
