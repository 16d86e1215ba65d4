"""E08: two runs are equal up to what no run can repeat; a golden file with one edit is rejected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import pytest

from omni_mcp.contracts.call import Answer, Call
from omni_mcp.contracts.events import ToolResult, draft
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.engines.runlog.signing import SigningKey, signed_document
from omni_mcp.testing import ALLOW_ALL, Canary, MemoryClient, home_in, local_gateway
from tests.evidence.conftest import Evidence

Session = Callable[[MemoryClient], Awaitable[object]]


async def _ordinary(client: MemoryClient) -> None:
    await client.call("canary__echo", {"word": "quince"})
    await client.call("canary__own_id")
    await client.call("nobody__knows", {"x": [1, 2]})


async def _played(directory: Path, *sessions: Session) -> tuple[Evidence, list[str]]:
    """Run each session in a gateway of one home; returns the run of each."""
    canary = Canary(directory / "touched")

    async def own_id(call: Call) -> Answer:
        return Answer(body={"content": [{"type": "text", "text": f"call {call.id} in {call.run}"}]}, where="remote")

    canary.tool("echo")
    canary.tool("own_id", own_id)
    runs = []
    async with local_gateway(ALLOW_ALL, canary=canary, directory=directory, cells=False) as here:
        for session in sessions:
            async with here.client(version="2025-11-25") as client:
                assert client.run is not None
                runs.append(client.run)
                await session(client)
    return Evidence(home_in(directory), runs[0], runs[-1]), runs


async def test_the_same_session_again_is_equal_whatever_its_ids_and_times_are(tmp_path: Path) -> None:
    evidence, (first, second) = await _played(tmp_path, _ordinary, _ordinary)
    assert evidence.events(first) != evidence.events(second)
    found = evidence.json("runs", "diff", first, second)
    assert found["equal"] and found["difference"] is None
    assert evidence.omni("runs", "diff", first, second).stdout == "equal\n"


def _but(argument: JsonObject | None = None, *, more: bool = False, name: str = "canary__echo") -> Session:
    async def session(client: MemoryClient) -> None:
        await client.call(name, argument or {"word": "quince"})
        await client.call("canary__own_id")
        await client.call("nobody__knows", {"x": [1, 2]})
        if more:
            await client.call("canary__echo")

    return session


@pytest.mark.parametrize(
    ("session", "seq", "path"),
    [
        (_but({"word": "medlar"}), 2, "$.payload.arguments.word"),
        (_but({"word": "quince", "more": 1}), 2, "$.payload.arguments.more"),
        (_but({"word": 7}), 2, "$.payload.arguments.word"),
        (_but(name="canary__own_id"), 2, "$.payload.arguments_bytes"),
        (_but(more=True), 11, "$.call"),
    ],
)
async def test_the_first_field_that_differs_is_named_with_both_values(
    tmp_path: Path, session: Session, seq: int, path: str
) -> None:
    evidence, (first, second) = await _played(tmp_path, _ordinary, session)
    found = evidence.json("runs", "diff", first, second, code=1)["difference"]
    if path == "$.payload.arguments_bytes":
        assert found["seq"] == seq
    else:
        assert (found["seq"], found["path"]) == (seq, path)
    text = evidence.omni("runs", "diff", first, second)
    assert text.exit_code == 1 and f"event {seq} differs first at" in text.stdout


async def test_an_id_of_the_wrong_call_in_an_answer_is_a_difference(tmp_path: Path) -> None:
    """Ids are compared by what they stand for, so the same id in another place is another answer."""
    evidence, (first, second) = await _played(tmp_path, _ordinary, _ordinary)
    events = evidence.events(second)
    calls = [event.call for event in events if event.kind == "tool_call"]
    from omni_mcp.engines.runlog.difference import comparable, first_difference

    twisted = [
        event.model_copy(update={"payload": orjson.loads(canonical(event.payload).replace(*_swap(calls)))})
        if event.kind == "tool_result" and event.call == calls[1]
        else event
        for event in events
    ]
    found = first_difference(comparable(evidence.events(first)), comparable(twisted))
    assert found is not None and found.path == "$.payload.result.content[0].text"
    assert (found.left, found.right) == ("call id:3 in id:1", "call id:2 in id:1")


def _swap(calls: list[str | None]) -> tuple[bytes, bytes]:
    return str(calls[1]).encode(), str(calls[0]).encode()


async def test_an_unknown_run_is_an_error_and_no_difference(evidence: Evidence) -> None:
    told = evidence.json("runs", "diff", evidence.ann, "zzz", code=1)
    assert told["ok"] is False and "there is no run" in told["error"]["message"]


async def test_a_golden_file_holds_for_the_same_session_and_not_for_another(tmp_path: Path) -> None:
    evidence, (first, second, third) = await _played(tmp_path, _ordinary, _ordinary, _but({"word": "medlar"}))
    file = str(tmp_path / "golden.json")
    written = evidence.json("runs", "golden", "write", first, "-o", file)
    assert evidence.omni("runs", "golden", "check", file).exit_code == 0
    assert evidence.json("runs", "golden", "check", file, second)["equal"]
    found = evidence.json("runs", "golden", "check", file, third, code=1)
    assert found["difference"]["path"] == "$.payload.arguments.word" and found["signed_by"] == written["fingerprint"]


async def test_a_golden_file_with_one_edit_is_rejected(evidence: Evidence, tmp_path: Path) -> None:
    file = tmp_path / "golden.json"
    evidence.json("runs", "golden", "write", evidence.ann, "-o", str(file))
    good = file.read_bytes()
    spelt = orjson.dumps(orjson.loads(good), option=orjson.OPT_INDENT_2)
    for edit in (
        good.replace(b"quince", b"quincy"),
        good.replace(b"quince", b"quinc", 1),
        good[:-2],
        b" " + good,
        spelt,
    ):
        assert edit != good
        file.write_bytes(edit)
        told = evidence.json("runs", "golden", "check", str(file), evidence.ann, code=1)
        assert told["ok"] is False and told["error"]["code"] == "log_corrupt"
    for at in range(0, len(good), 61):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert evidence.omni("runs", "golden", "check", str(file)).exit_code == 1, at


async def test_a_golden_file_that_another_signed_counts_only_for_who_names_that_key(
    evidence: Evidence, tmp_path: Path
) -> None:
    file = tmp_path / "golden.json"
    evidence.json("runs", "golden", "write", evidence.ann, "-o", str(file))
    document = orjson.loads(file.read_bytes())["document"]
    other = SigningKey(bytes(32))
    file.write_bytes(signed_document(other, "golden run", document))
    assert "is signed with the key" in evidence.omni("runs", "golden", "check", str(file)).output
    assert evidence.omni("runs", "golden", "check", str(file), "--key", other.fingerprint).exit_code == 0
    file.write_bytes(signed_document(other, "log anchor", document))
    told = evidence.omni("runs", "golden", "check", str(file), "--key", other.fingerprint)
    assert told.exit_code == 1, "what was signed as something else is no golden file"


async def test_an_erased_run_makes_no_golden_file(evidence: Evidence, tmp_path: Path) -> None:
    assert evidence.omni("erase", "--run", evidence.ann, "--yes").exit_code == 0
    told = evidence.json("runs", "golden", "write", evidence.ann, "-o", str(tmp_path / "x"), code=1)
    assert "was erased" in told["error"]["detail"] and not (tmp_path / "x").exists()


def test_what_is_left_out_of_a_comparison_is_a_closed_list_of_fields_that_there_are() -> None:
    from omni_mcp.contracts.events import CODES, PAYLOADS
    from omni_mcp.engines.runlog.difference import VOLATILE

    known = {**PAYLOADS, **CODES}
    for name, paths in VOLATILE.items():
        assert {path.split(".")[0] for path in paths} <= known[name].model_fields.keys(), name
    page = Path("docs/run-log.md").read_text()
    for name, paths in VOLATILE.items():
        for path in paths:
            assert f"`{path}`" in page, f"docs/run-log.md does not list {name}.{path}"
    assert (
        draft(ToolResult(is_error=False, result=None, where="none", duration_ms=1, bytes_out=0), actor="x").kind
        in VOLATILE
    )
