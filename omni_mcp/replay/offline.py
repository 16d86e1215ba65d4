"""A gateway without an outside: it has the operator's files, a data directory that is thrown away, and the record."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from omni_mcp.assembly import open_gateway
from omni_mcp.config import LimitSettings, PluginSettings, Settings
from omni_mcp.contracts.manifest import Binding
from omni_mcp.contracts.ports import Source
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.runlog.keys import ARGUMENTS_KEY_FILE
from omni_mcp.gateway import Gateway, StandIns
from omni_mcp.paths import Home, make_private_dir
from omni_mcp.plugins.tools import PluginTools
from omni_mcp.replay.answers import Answers, RecordedDesk
from omni_mcp.replay.recorded import RecordedRun
from omni_mcp.upstreams.definitions import known_entries

NO_LIMIT = 1_000_000_000
NO_PLUGINS = PluginTools((), (), code=Path(), taken=frozenset())

Opener = Callable[[Settings, Home], AbstractAsyncContextManager[Gateway]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offline:
    """What serves a replay: open it with these settings, in this home, by this opener."""

    settings: Settings
    home: Home
    opener: Opener
    answers: Answers


def offline_gateway(
    settings: Settings, home: Home, runs: Sequence[RecordedRun], *, scratch: Path, sources: Sequence[Source] = (),
    plugins: PluginTools = NO_PLUGINS,
) -> Offline:  # fmt: skip
    """Prepare a gateway that answers clients from *runs*. Nothing is started, and nothing is written but *scratch*.

    Policies, manifests, accepted definitions and client tokens are the operator's; what servers offer is what they
    offered last.

    Args:
        scratch: an empty directory for what a gateway writes.
        sources: further entries for the catalog.
        plugins: whose tools are there too.

    Raises:
        ConfigError: a kept listing is not what the gateway writes.
    """
    known = known_entries(settings.servers, home, plugins)
    answers = Answers(call for run in runs for call in run.calls)
    own = Home(config=home.config, data=scratch / "data", runtime=scratch / "run")
    _bring(home, own)
    unlimited = LimitSettings.model_validate(
        {**settings.limits.model_dump(), "calls_per_minute": NO_LIMIT, "events_per_run": NO_LIMIT}
    )
    quiet = settings.log.model_copy(update={"keep_bodies": False, "keep_bodies_of": {}})

    @asynccontextmanager
    async def opener(settings: Settings, home: Home) -> AsyncIterator[Gateway]:
        async with open_gateway(
            settings, home, sources=[Known(known), *sources], executors=dict.fromkeys(get_args(Binding), answers),
            stand_ins=StandIns(desk=RecordedDesk(answers), id_of=answers.id_of),
        ) as gateway:  # fmt: skip
            yield gateway

    return Offline(
        settings=settings.model_copy(update={"limits": unlimited, "log": quiet, "plugins": PluginSettings()}),
        home=own, opener=opener, answers=answers,
    )  # fmt: skip


class Known:
    """Port `Source`: what servers offered last."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = tuple(entries)

    def load(self) -> Iterable[Entry]:
        """As the port."""
        return self._entries


def _bring(home: Home, own: Home) -> None:
    """Bring what tells clients apart, and the key by which an approval is bound to arguments."""
    make_private_dir(own.data)
    make_private_dir(own.secrets)
    for source, place in (
        (home.keys_file, own.keys_file),
        (home.token_file, own.token_file),
        (home.secrets / ARGUMENTS_KEY_FILE, own.secrets / ARGUMENTS_KEY_FILE),
    ):
        if source.exists():
            shutil.copy2(source, place)  # with its mode
