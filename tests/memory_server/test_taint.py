"""An item carries what its writer had read; a rule keeps such items out; and whoever reads one carries it on."""

from __future__ import annotations

from pathlib import Path

from omni_mcp.contracts.call import Answer, Call
from omni_mcp.contracts.ids import new_id
from omni_mcp.contracts.manifest import Labels
from omni_mcp.serving.memory.taint import TAINTS, Readings
from omni_mcp.testing import ANN, Canary, MemoryClient
from tests.memory_server.world import AGENT, HANDSHAKE, STRANGER, done, refused, remembering, resource, texts

UNTRUSTED = Labels(read_only=True, destructive=False, egress=False, reads_private=False, reads_untrusted=True)
PRIVATE = Labels(read_only=True, destructive=False, egress=False, reads_private=True, reads_untrusted=False)
NO_STRANGERS = """
@id("all") permit (principal, action, resource);
@id("no-strangers") forbid (principal == Omni::User::"ann", action, resource) when { resource.reads_untrusted };
"""


def _world(canary: Canary) -> Canary:
    canary.tool("web", labels=UNTRUSTED)
    canary.tool("mail", labels=PRIVATE)
    canary.tool("clock")
    return canary


async def _taint(client: MemoryClient, text: str = "something") -> list[str]:
    found: list[str] = (await done(client, "remember", text=text))["taint"]
    return found


async def test_an_item_carries_the_labels_of_what_its_run_has_read(canary: Canary, tmp_path: Path) -> None:
    async with remembering(tmp_path, canary=_world(canary)) as here:
        async with here.client(version=HANDSHAKE) as client:
            await client.call("canary__clock")
            assert await _taint(client) == []
            await client.call("canary__web")
            made = await done(client, "remember", text="the page said so")
            assert made["taint"] == ["reads_untrusted"]
            await client.call("canary__mail")
            assert await _taint(client) == ["reads_private", "reads_untrusted"]
            assert (await resource(client, made["uri"]))["taint"] == ["reads_untrusted"]
        async with here.client(version=HANDSHAKE) as fresh:
            assert await _taint(fresh) == []
            assert (await done(fresh, "revise", id=made["id"], text="I say so"))["taint"] == ["reads_untrusted"]
        async with here.client(version=HANDSHAKE) as other:
            await other.call("runs__read", {"run": made["source"]["run"]})
            assert await _taint(other) == ["reads_private", "reads_untrusted"]
        written = [event.payload or {} for event in await here.events() if event.code == "memory_written"]
        assert [len(event["taint"]) for event in written] == [0, 1, 2, 0, 1, 2]


async def test_a_refused_call_has_read_nothing_and_one_under_way_counts(canary: Canary, tmp_path: Path) -> None:
    async def talks_first(call: Call) -> Answer:
        async with here.client(version=HANDSHAKE) as other:
            assert await _taint(other) == []
        assert await _taint(client) == ["reads_untrusted"]
        return Answer(body={"content": [], "isError": False}, where="remote")

    canary.tool("slow", talks_first, labels=UNTRUSTED)
    rules = '@id("most") permit (principal, action, resource) unless { resource == Omni::Tool::"canary__web" };'
    async with remembering(tmp_path, rules, canary=_world(canary)) as here, here.client(version=HANDSHAKE) as client:
        assert (await client.call("canary__web"))["isError"]
        assert await _taint(client) == []
        assert not (await client.call("canary__slow"))["isError"]


def test_of_a_run_that_nobody_remembers_the_worst_is_assumed() -> None:
    readings = Readings(keep=2)
    runs = [new_id() for _ in range(4)]
    for run in runs[:3]:
        readings.note(run, ["reads_private"])
    assert [readings.of(run) for run in runs] == [TAINTS, ("reads_private",), ("reads_private",), ()]
    readings.note(runs[0], ["reads_private"])
    assert readings.of(runs[0]) == TAINTS


async def test_whoever_recalls_a_tainted_item_carries_its_taint_on(canary: Canary, tmp_path: Path) -> None:
    async with remembering(tmp_path, canary=_world(canary)) as here:
        async with here.client(version=HANDSHAKE) as client:
            await done(client, "remember", text="clean about tea")
            await client.call("canary__web")
            made = await done(client, "remember", text="dirty about tea")
        for arguments, taint in (({"without_taint": ["reads_untrusted"]}, []), ({}, ["reads_untrusted"])):
            async with here.client(version=HANDSHAKE) as reader:
                assert len(await texts(reader, "tea", **arguments)) == (2 if taint else 1)
                assert await _taint(reader, "copied from memory") == taint
        async with here.client(version=HANDSHAKE) as reader:
            await resource(reader, made["uri"])
            assert await _taint(reader) == ["reads_untrusted"]
        async with here.client(version=HANDSHAKE) as reader:
            await done(reader, "list", kinds=["procedural"])
            assert await _taint(reader) == []
            await done(reader, "list")
            assert await _taint(reader) == ["reads_untrusted"]


async def test_a_rule_about_untrusted_reading_keeps_tainted_items_out_everywhere(
    canary: Canary, tmp_path: Path
) -> None:
    """The memory carries the label only where its items do: clean items are found under the same rule."""
    async with (
        remembering(tmp_path, NO_STRANGERS, canary=_world(canary)) as here,
        here.client(principal=AGENT, version=HANDSHAKE) as writer,
        here.client(principal=ANN, version=HANDSHAKE) as reader,
    ):
        clean = await done(writer, "share", text="tea is ready at four")
        await writer.call("canary__web")
        dirty = await done(writer, "share", text="tea is ready at four!")
        found = await done(reader, "recall", query="tea")
        assert [item["id"] for item in found["items"]] == [clean["id"]]
        assert found["without_taint"] == ["reads_untrusted"]
        assert [item["id"] for item in (await done(reader, "list"))["items"]] == [clean["id"]]
        assert (await done(reader, "duplicates"))["pairs"] == []
        assert [item["id"] for item in (await resource(reader, "memory://latest"))["items"]] == [clean["id"]]
        assert await resource(reader, dirty["uri"]) == await resource(reader, "memory://missing")
        assert await _taint(reader) == []
        async with here.client(principal=STRANGER) as other:
            assert len(await texts(other, "tea")) == 2
            assert len((await done(other, "duplicates"))["pairs"]) == 1


async def test_what_is_promoted_is_what_was_said_with_its_place_and_taint(canary: Canary, tmp_path: Path) -> None:
    async def page(call: Call) -> Answer:
        text = [{"type": "text", "text": "The museum opens at ten. It is closed on Mondays."}]
        return Answer(body={"content": text, "isError": False}, where="remote")

    canary.tool("page", page, labels=UNTRUSTED)
    async with remembering(tmp_path, canary=_world(canary)) as here:
        async with here.client(version=HANDSHAKE) as client:
            await client.call("canary__page", {"which": "museum"})
            asked, answered = [event for event in await here.events() if event.kind in ("tool_call", "tool_result")]
            place = {"run": answered.run, "seq": answered.seq}
            made = await done(client, "promote", **place, quote="It is closed on Mondays.", kind="episodic")
            assert made["taint"] == ["reads_untrusted"]
            assert made["source"]["from_run"] == answered.run and made["source"]["from_seq"] == answered.seq
            assert made["source"]["call"] not in (None, answered.call)
            await done(client, "promote", run=asked.run, seq=asked.seq)
            assert set(await texts(client, "museum mondays")) == {"It is closed on Mondays.", '{"which":"museum"}'}
            for wrong, code in (
                ({**place, "quote": "It is open on Mondays."}, "invalid_arguments"),
                ({"run": answered.run, "seq": 1}, "invalid_arguments"),
                ({"run": answered.run, "seq": 999}, "not_found"),
                ({"artifact": "0" * 64}, "not_found"),
                ({**place, "artifact": "0" * 64}, "invalid_arguments"),
                ({}, "invalid_arguments"),
            ):
                assert (await refused(client, "promote", **wrong))[0] == code, wrong
        async with here.client(version=HANDSHAKE) as later:
            made = await done(later, "promote", **place)
            assert made["taint"] == ["reads_private", "reads_untrusted"]
        async with here.client(principal=STRANGER, version=HANDSHAKE) as stranger:
            mine = await refused(stranger, "promote", **place)
            nobodys = await refused(stranger, "promote", run="nobody", seq=answered.seq)
            assert mine[1].replace(answered.run, "RUN") == nobodys[1].replace("nobody", "RUN")


async def test_what_is_kept_out_takes_no_place_among_what_is_shown(canary: Canary, tmp_path: Path) -> None:
    """Else whoever has read something of strangers could blank everybody's newest items by sharing some of its own."""
    async with remembering(tmp_path, NO_STRANGERS, canary=_world(canary)) as here, here.client() as reader:
        clean = [(await done(reader, "remember", text=f"clean {number}"))["id"] for number in range(3)]
        async with here.client(principal=STRANGER, version=HANDSHAKE) as client:
            await client.call("canary__web")
            for number in range(25):
                await done(client, "share", text=f"from a page {number}")
        newest = [item["id"] for item in (await resource(reader, "memory://latest"))["items"]]
        listed = await done(reader, "list", limit=2)
        rest = await done(reader, "list", limit=2, before=listed["items"][-1]["id"])
    assert newest == clean[::-1]
    assert [item["id"] for item in listed["items"] + rest["items"]] == clean[::-1]
    assert (listed["more"], rest["more"]) == (True, False)
