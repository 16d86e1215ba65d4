"""What plugins promise, as tests: whoever writes one runs these against it. Used through `omni_mcp.testing`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from omni_mcp.contracts.call import Answer, Call, Grant, InputRequired, grant_digest
from omni_mcp.contracts.errors import OmniError
from omni_mcp.contracts.ports import Executor
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.engines.catalog.schemas import JsonSchemas

CANCEL_S = 2.0
ANSWER_S = 30.0


class PromiseBroken(AssertionError):
    """What a plugin promises does not hold."""


async def executor_promises(
    open_executor: Callable[[], AbstractAsyncContextManager[Executor]], good: Call, *, slow: Call | None = None
) -> None:
    """Check an executor: it answers, fails in our words, stops when it is cancelled, and leaves nothing behind.

    Args:
        open_executor: `lambda: plugin.open(settings)`; it is opened twice.
        good: a call of a tool of its binding that it can answer. Its grant is made here.
        slow: one that takes longer than two seconds, to be cancelled.

    Raises:
        PromiseBroken: with the promise.
    """
    before = asyncio.all_tasks()
    for _ in range(2):
        async with open_executor() as executor:
            await _answers(executor, granted(good))
            await _refuses_what_has_no_definition(executor, good)
            if slow is not None:
                await _stops(executor, granted(slow))
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    _check(not left, f"leaving the context ends everything; still running: {sorted(map(str, left))}")


def granted(call: Call) -> Call:
    """Return *call* as the chain hands it to an executor."""
    _check(call.tool is not None, "the call needs a tool")
    assert call.tool is not None
    return replace(call, grant=Grant(digest=grant_digest(call, call.tool), policy_version="promises"))


async def _answers(executor: Executor, call: Call) -> None:
    result = await asyncio.wait_for(executor.execute(call), ANSWER_S)
    _check(isinstance(result, Answer | InputRequired), "a call ends with an Answer or an InputRequired")
    if isinstance(result, Answer):
        member = {"tool": "content", "resource": "contents", "prompt": "messages"}[call.kind]
        _check(isinstance(result.body.get(member), list), f"the answer to a {call.kind} has a list of {member}")
        _check(bool(result.body.get("isError", False)) == result.is_error, "isError and is_error say the same")
        _check(result.where in ("cell", "remote", "in_process"), "the answer says where the call ran")


async def _refuses_what_has_no_definition(executor: Executor, call: Call) -> None:
    try:
        await asyncio.wait_for(executor.execute(replace(call, tool=None, grant=None)), ANSWER_S)
    except OmniError:
        return
    except Exception as error:
        raise PromiseBroken(f"failures are errors of ours, not {type(error).__name__}") from error
    raise PromiseBroken("a call without a definition does not run")


async def _stops(executor: Executor, call: Call) -> None:
    running = asyncio.ensure_future(executor.execute(call))
    await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=CANCEL_S)
    _check(bool(done), f"a cancelled call stops within {CANCEL_S:g} s")
    _check(running.cancelled(), "a cancelled call is cancelled, and nothing else")


def tool_promises(directory: Path, *, code: Path) -> list[Entry]:
    """Check a directory of manifests: each is one, each of its goldens fits its schema; returns the entries.

    Args:
        code: the directory of the bundled entry points.

    Raises:
        ConfigError: with every fault of every file.
        PromiseBroken: there is no manifest, or one without a golden, which is the proof that the tool works.
    """
    entries = list(ManifestSource([ManifestDirectory(path=directory, bundled=True)], code=code).load())
    _check(bool(entries), f"there is a manifest in {directory}")
    schemas = JsonSchemas()
    for entry in entries:
        assert entry.manifest is not None
        golden = entry.manifest.golden
        _check(golden is not None, f"{entry.name} has a golden")
        assert golden is not None
        faults = schemas.problems(entry.manifest.input_schema, golden.arguments)
        _check(not faults, f"the golden of {entry.name} fits its input schema: {faults}")
    return entries


def _check(holds: bool, promise: str) -> None:
    if not holds:
        raise PromiseBroken(promise)
