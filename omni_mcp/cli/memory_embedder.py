"""Which embedder the commands use: the one of the settings, so that they and a gateway keep the same vectors."""

from __future__ import annotations

import os
from collections.abc import Callable

from omni_mcp.config import Settings, load_settings, read_secrets
from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.memory import NoVectors
from omni_mcp.contracts.ports import Embedder
from omni_mcp.engines.memory.embedders import embedder_of
from omni_mcp.paths import Home


def embedder_at(home: Home) -> Callable[[], Embedder] | None:
    """Return what makes the embedder; None for the table of the package.

    Its secret is read when it is asked: most commands need none.

    Raises:
        ConfigError: `omni.toml` is wrong, or what the embedder needs is not there.
    """
    settings = load_settings(home.settings_file)
    return embedder_of(settings.memory, lambda: _token(settings))


def _token(settings: Settings) -> str | None:
    name = settings.memory.secret
    if name is None:
        return None
    try:
        only = settings.model_copy(update={"secrets": {name: settings.secrets[name]}})
        return read_secrets(only, dict(os.environ))[name]
    except ConfigError as error:
        raise NoVectors(f"the secret {name!r} of [memory] cannot be read here") from error
