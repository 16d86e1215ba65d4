"""Who finds what: nobody sees another's memory by any tool or resource, unless it was shared on purpose."""

from __future__ import annotations

from pathlib import Path

from omni_mcp.contracts.call import Principal
from omni_mcp.testing import LocalGateway, MemoryClient, error_of
from tests.memory_server.world import (
    AGENT,
    ELSEWHERE,
    HANDSHAKE,
    MODERN,
    SIBLING,
    STRANGER,
    done,
    forget,
    refused,
    remembering,
    resource,
    texts,
)  # fmt: skip

WRITES, FORGETS = "memory__remember", "memory__forget"  # the one takes no item, the other is looked at apart
MISSING = "01890000-0000-7000-8000-000000000000"


async def _everything_that_is_seen(client: MemoryClient, item: str, source: dict[str, object]) -> dict[str, object]:
    """What a client is told of *item* by every tool and resource, with the id taken out."""
    calls: tuple[tuple[str, dict[str, object]], ...] = (
        ("recall", {"query": "harbour"}), ("recall", {"query": item}), ("list", {}), ("list", {"before": item}),
        ("duplicates", {}), ("revise", {"id": item, "text": "mine now"}), ("share", {"revises": item, "text": "mine"}),
        ("promote", {"run": source["run"], "seq": source["seq"]}),
    )  # fmt: skip
    told: dict[str, object] = {}
    for number, (tool, arguments) in enumerate(calls):
        result = await client.call(f"memory__{tool}", arguments)
        result["_meta"] = {**error_of(result), "call": ""}
        told[f"{number} {tool}"] = str(result).replace(item, "ID").replace(str(source["run"]), "RUN")
    told["one"] = str(await resource(client, f"memory://{item}")).replace(item, "ID")
    told["latest"] = await resource(client, "memory://latest")
    subscribed = await client.request("resources/subscribe", {"uri": f"memory://{item}"})
    told["subscribe"] = str({name: subscribed.get(name) for name in ("result", "error")}).replace(item, "ID")
    return told


async def _forgets(here: LocalGateway, client: MemoryClient, item: str) -> str:
    code, _ = await refused(client, "forget", id=item)
    assert code == "approval_pending"
    here.answer(True)
    result = await client.call("memory__forget", {"id": item})
    return str(result["content"][0]["text"]).replace(item, "ID")


async def test_a_strangers_item_and_a_missing_one_are_told_apart_by_nothing(tmp_path: Path) -> None:
    eve = Principal(kind="User", id="eve")
    async with remembering(tmp_path) as here, here.client(principal=AGENT, version=HANDSHAKE) as mine:
        made = {
            scope: await done(mine, "remember", text=f"the {scope} harbour password is swordfish", scope=scope, key="k")
            for scope in ("agent", "user", "run")
        }
        for scope, stranger in (
            ("agent", STRANGER), ("user", ELSEWHERE), ("user", eve), ("run", STRANGER),
        ):  # fmt: skip
            item = made[scope]
            async with here.client(principal=stranger, version=HANDSHAKE) as theirs:
                there = await _everything_that_is_seen(theirs, item["id"], item["source"])
                tools = {tool["name"] for tool in await theirs.listed("tools") if tool["name"].startswith("memory__")}
                assert tools == {f"memory__{name.split()[1]}" for name in there if " " in name} | {WRITES, FORGETS}
                missing = await _everything_that_is_seen(theirs, MISSING, {**item["source"], "run": "no-such-run"})
                assert there == missing, (scope, stranger)
                assert f"the {scope} harbour" not in str(there)
                assert await _forgets(here, theirs, item["id"]) == await _forgets(here, theirs, MISSING)
        assert len(await texts(mine, "harbour")) == 3
        async with here.client(principal=SIBLING, version=HANDSHAKE) as sibling:
            assert await texts(sibling, "harbour") == ["the user harbour password is swordfish"]
            for scope in ("agent", "run"):
                gone = await resource(sibling, made[scope]["uri"])
                assert str(gone).replace(made[scope]["id"], MISSING) == str(
                    await resource(sibling, f"memory://{MISSING}")
                )


async def test_the_same_key_of_two_principals_names_two_items(tmp_path: Path) -> None:
    async with (
        remembering(tmp_path) as here, here.client(principal=AGENT) as mine, here.client(principal=STRANGER) as theirs,
    ):  # fmt: skip
        await done(mine, "remember", text="mine", key="k")
        made = await done(theirs, "remember", text="theirs", key="k")
        assert made["version"] == 1
        assert await texts(mine, "mine theirs") == ["mine"] and await texts(theirs, "mine theirs") == ["theirs"]


async def test_user_scope_is_for_the_clients_of_one_user_in_one_project(tmp_path: Path) -> None:
    ann = Principal(kind="User", id="ann")
    async with (
        remembering(tmp_path) as here,
        here.client(principal=AGENT) as coder,
        here.client(principal=SIBLING) as writer,
        here.client(principal=ann) as person,
        here.client(principal=STRANGER) as stranger,
        here.client(principal=ELSEWHERE) as elsewhere,
    ):
        made = await done(coder, "remember", text="Ann likes her coffee black", scope="user")
        for client in (writer, person):
            assert await texts(client, "coffee") == ["Ann likes her coffee black"]
        for client in (stranger, elsewhere):
            assert await texts(client, "coffee") == []
        await done(writer, "revise", id=made["id"], text="Ann likes her coffee white")
        assert await texts(coder, "coffee") == ["Ann likes her coffee white"]
        await forget(here, person, made["id"])
        assert await texts(coder, "coffee") == []


async def test_run_scope_ends_with_the_run(tmp_path: Path) -> None:
    async with remembering(tmp_path) as here:
        async with here.client(principal=AGENT, version=HANDSHAKE) as first:
            await done(first, "remember", text="only now", scope="run")
            assert await texts(first, "now") == ["only now"]
        async with here.client(principal=AGENT, version=HANDSHAKE) as second:
            assert await texts(second, "now") == []


async def test_what_is_shared_is_found_by_the_project_and_changed_by_its_writer_alone(tmp_path: Path) -> None:
    async with (
        remembering(tmp_path) as here,
        here.client(principal=AGENT, version=HANDSHAKE) as writer,
        here.client(principal=STRANGER, version=MODERN) as reader,
        here.client(principal=ELSEWHERE) as elsewhere,
    ):
        made = await done(writer, "share", text="deploys happen on Tuesdays")
        assert made["scope"] == "project"
        assert (
            await texts(reader, "deploys") == ["deploys happen on Tuesdays"] and await texts(elsewhere, "deploys") == []
        )
        missing = (await refused(reader, "revise", id=MISSING, text="x"))[1].replace(MISSING, "ID")
        for tool, arguments in (("revise", {"id": made["id"]}), ("share", {"revises": made["id"]})):
            code, words = await refused(reader, tool, text="deploys happen never", **arguments)
            assert (code, words.replace(made["id"], "ID")) == ("not_found", missing)
        assert await _forgets(here, reader, made["id"]) == missing
        code, _ = await refused(writer, "revise", id=made["id"], text="deploys happen on Mondays")
        assert code == "invalid_arguments"
        again = await done(writer, "share", revises=made["id"], text="deploys happen on Mondays", expected_version=1)
        assert (again["id"], again["version"]) == (made["id"], 2)
        assert await texts(reader, "deploys") == ["deploys happen on Mondays"]
        await forget(here, writer, made["id"])
        assert await texts(reader, "deploys") == []


RULES = """
@id("most") permit (principal, action, resource);
@id("no-sharing") forbid (principal == Omni::Agent::"coder", action, resource == Omni::Tool::"memory__share");
"""


async def test_a_rule_about_sharing_is_a_rule_about_all_that_others_find(tmp_path: Path) -> None:
    async with remembering(tmp_path, RULES) as here, here.client(principal=AGENT) as client:
        assert "memory__share" not in {tool["name"] for tool in await client.listed("tools")}
        code, _ = await refused(client, "share", text="to all")
        assert code == "policy_denied"
        made = await done(client, "remember", text="to me")
        for tool, arguments in (
            ("remember", {"text": "x", "scope": "project"}), ("promote", {"run": "r", "seq": 1, "scope": "project"}),
        ):  # fmt: skip
            code, _ = await refused(client, tool, **arguments)
            assert code == "invalid_arguments"
        code, _ = await refused(client, "revise", id=made["id"], scope="project")
        assert code == "invalid_arguments"


async def test_without_a_rule_nothing_of_the_memory_is_listed_or_answers(tmp_path: Path) -> None:
    rules = '@id("runs") permit (principal, action, resource in Omni::Server::"runs");'
    async with remembering(tmp_path, rules) as here, here.client() as client:
        assert not [tool for tool in await client.listed("tools") if tool["name"].startswith("memory__")]
        for tool, arguments in (("recall", {"query": "x"}), ("remember", {"text": "x"}), ("list", {}), ("nothing", {})):
            code, words = await refused(client, tool, **arguments)
            assert code == "policy_denied" and "is not available to you" in words
        assert (await resource(client, "memory://latest"))["message"] == "Resource not found"
