"""Executors of plugins: opened in the gateway's process once they are enabled, and chosen by the resolver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import get_args

from pydantic import ValidationError

from omni_mcp.contracts.call import Call, Result
from omni_mcp.contracts.errors import ConfigError, NotFound, Problem
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Binding
from omni_mcp.contracts.plugins import EXECUTORS_GROUP
from omni_mcp.contracts.ports import Executor
from omni_mcp.engines.catalog.resolver import Candidate, Resolver
from omni_mcp.plugins.found import Found, get_plugin, refused

BUNDLED = "bundled"
DOMAIN = "executor"
_CLOSED = "inproc_safe"  # what runs in our own process is a closed list


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """One opened executor of a plugin."""

    provider: str
    binding: str
    priority: int
    executor: Executor


class Timed:
    """A plugin's executor, of which only `execute` is known: the gateway ends its calls, whatever it says of itself."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def execute(self, call: Call) -> Result:
        """As the port."""
        return await self._executor.execute(call)


@dataclass(slots=True)
class PluginExecutors:
    """What was opened, and what was not."""

    offered: list[Offered] = field(default_factory=list)
    problems: dict[str, tuple[Problem, ...]] = field(default_factory=dict)


@asynccontextmanager
async def open_executors(plugins: Sequence[Found], enabled: Mapping[str, JsonObject]) -> AsyncIterator[PluginExecutors]:
    """Open the executors of the enabled plugins; one that cannot be opened, or closed, stops nobody else.

    Args:
        enabled: settings by name of the entry point.
    """
    found = PluginExecutors()
    async with AsyncExitStack() as stack:
        for name, said in enabled.items():
            try:
                found.offered.append(await _open(stack, get_plugin(plugins, EXECUTORS_GROUP, name), said, found))
            except ConfigError as error:
                found.problems[name] = error.problems
            except (Exception, SystemExit) as error:
                found.problems[name] = refused(name, f"cannot be opened: {type(error).__name__}: {error}").problems
        yield found


async def _open(stack: AsyncExitStack, found: Found, said: JsonObject, into: PluginExecutors) -> Offered:
    if found.name == BUNDLED:
        raise refused(found.name, "the name of its entry point stands for the gateway's own executor")
    plugin = found.point.load()
    binding = getattr(plugin, "binding", None)
    if binding not in get_args(Binding) or binding == _CLOSED:
        raise refused(found.name, f"its binding is {binding!r}, which no plugin can run")
    try:
        settings = plugin.settings.model_validate(said)
    except ValidationError as error:
        raise _bad_settings(found.name, error) from error
    executor = await stack.enter_async_context(_closing_quietly(plugin.open(settings), found.name, into))
    return Offered(
        provider=found.name, binding=str(binding), priority=int(getattr(plugin, "priority", 0)),
        executor=Timed(executor),
    )  # fmt: skip


@asynccontextmanager
async def _closing_quietly(opening: object, name: str, into: PluginExecutors) -> AsyncIterator[Executor]:
    """A plugin that fails while it is closed is named; the gateway goes on closing everything else."""
    enter, leave = type(opening).__aenter__, type(opening).__aexit__  # type: ignore[attr-defined]
    executor: Executor = await enter(opening)
    try:
        yield executor
    finally:
        try:
            await leave(opening, None, None, None)
        except (Exception, SystemExit) as error:
            into.problems[name] = refused(name, f"cannot be closed: {type(error).__name__}: {error}").problems


def _bad_settings(name: str, error: ValidationError) -> ConfigError:
    return ConfigError(
        [
            Problem(
                file="omni.toml", line=0, path=".".join(["$.plugins.executors", name, *map(str, fault["loc"])]),
                message="unknown key" if fault["type"] == "extra_forbidden" else str(fault["msg"]),
            )
            for fault in error.errors()
        ]
    )  # fmt: skip


def choose_executors(
    own: Mapping[str, Executor], offered: Sequence[Offered], selected: Mapping[str, str]
) -> tuple[dict[str, Executor], list[JsonObject]]:
    """Return the executor of each binding, and why it is that one.

    Args:
        own: the gateway's.
        selected: provider by binding, as the operator said; `bundled` is the gateway's own.
    """
    resolver: Resolver[Executor] = Resolver()
    for binding, executor in own.items():
        resolver.register(DOMAIN, binding, Candidate(provider=BUNDLED, value=executor))
    for one in offered:
        candidate = Candidate(provider=one.provider, value=one.executor, stack=1, priority=one.priority)
        resolver.register(DOMAIN, one.binding, candidate)
    chosen: dict[str, Executor] = {}
    why: list[JsonObject] = []
    for domain, binding in resolver.keys():  # noqa: SIM118 (a list of pairs, not a mapping)
        selection = selected.get(binding)
        try:
            chosen[binding] = resolver.resolve(domain, binding, selection=selection)
        except NotFound:
            selection = BUNDLED  # what was selected is not there: never another third party's in its place
            if binding not in own:
                continue
            chosen[binding] = own[binding]
        why.append(resolver.explain(domain, binding, selection=selection).as_json())
    return chosen, why
