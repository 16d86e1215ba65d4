"""What a token of one's own tells of the others: over every route, no name, no path, no count that is theirs."""

from __future__ import annotations

from pathlib import Path

from omni_mcp.contracts.call import OPERATOR, Principal
from omni_mcp.serving.api.routes import ROUTES
from omni_mcp.testing import ANN
from tests.api.world import api_world, caller, furnish, path_of, request_of, routes
from tests.memory_server.world import CommandLine

OWN_SERVERS = """
@id("ann") permit (principal == Omni::User::"ann", action, resource);
@id("bob") permit (principal == Omni::User::"bob", action, resource)
when { resource in Omni::Server::"runs" || resource in Omni::Server::"memory" || resource in Omni::Server::"messages" };
"""
ADMIN = Principal(kind="Agent", id="prometheus", owner="ops", roles=(OPERATOR,))


async def test_no_route_tells_a_caller_of_servers_files_or_people_that_are_not_its_own(tmp_path: Path) -> None:
    """The canary is a server that bob may not use; everything that ann has is in the gateway beside him."""
    async with api_world(tmp_path, OWN_SERVERS) as world:
        things = await furnish(world)
        home = world.here.home
        secrets = [str(home.data), str(home.config), "canary", ANN.key, '"ann"']
        said = [(await world.bob.get(path)).text for path in ("/readyz", "/healthz", "/metrics")]
        for route in routes(memory=True):
            sent = request_of(route, {"run": "nothing"})
            if route.operation == "make_call":
                sent = {"json": {"name": "runs__list"}}
            for names in ({}, {**things, "project": "elsewhere"}):
                said.append((await world.bob.request(route.method, path_of(route, names), **sent)).text)
    for text in said:
        for one in secrets:
            assert one not in text.replace("\\", ""), (one, text)
    assert len(said) == 3 + 2 * len(routes(memory=True))


async def test_the_status_says_whether_it_serves_and_only_an_operator_hears_how_it_stands(tmp_path: Path) -> None:
    async with api_world(tmp_path) as world:
        await furnish(world)
        plain = (await world.bob.get("/api/status")).json()
        async with caller(world.here, ADMIN) as admin:
            whole = (await admin.get("/api/status")).json()
            metrics = await admin.get("/metrics")
        refused = await world.bob.get("/metrics")
    assert plain == {
        "version": world.here.gateway.version, "ready": True, "log": "ok", "draining": False,
        "principal": 'User::"bob"@default',
    }  # fmt: skip
    assert whole["log"]["file"] == str(world.here.home.log_file) and "servers" in whole
    assert metrics.status_code == 200 and "omni_calls_total" in metrics.text
    assert refused.status_code == 403 and "omni_calls_total" not in refused.text


async def test_being_an_operator_opens_no_route_that_the_policy_closes(tmp_path: Path) -> None:
    async with api_world(tmp_path, OWN_SERVERS) as world:
        things = await furnish(world)
        async with caller(world.here, ADMIN) as admin:
            for route in ROUTES:
                if route.like is not None:
                    sent = request_of(route, things)
                    answer = await admin.request(route.method, path_of(route, things), **sent)
                    assert answer.json()["code"] == "access_refused", route.operation


async def test_no_other_role_is_an_operators(tmp_path: Path) -> None:
    async with api_world(tmp_path) as world:
        for role in ("Operator", "operators", "operator ", "admin"):
            async with caller(world.here, Principal(kind="User", id="eve", roles=(role,))) as eve:
                assert (await eve.get("/metrics")).status_code == 403
                assert "servers" not in (await eve.get("/api/status")).json()


async def test_an_operators_key_is_made_at_the_command_line_and_in_no_other_way(tmp_path: Path) -> None:
    async with api_world(tmp_path, keep=tmp_path) as world:
        line, found = CommandLine(tmp_path), {}
        for name, words in (
            ("monitor", ["--agent", "monitor", "--operator"]),
            ("laptop", []),
            ("coder", ["--agent", "c"]),
        ):
            token = (await line.json("keys", "create", name, *words))["token"]
            headers = {"Authorization": f"Bearer {token}"}
            found[name] = (await world.nobody.get("/metrics", headers=headers)).status_code
        listed = {key["name"]: key["operator"] for key in await line.json("keys", "list")}
    assert found == {"monitor": 200, "laptop": 403, "coder": 403}
    assert {name: listed[name] for name in found} == {"monitor": True, "laptop": False, "coder": False}
