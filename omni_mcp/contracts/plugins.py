"""What a third-party package may bring: tools by a directory of manifests, or an executor in the gateway's process."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel

from omni_mcp.contracts.manifest import Binding
from omni_mcp.contracts.ports import Executor

TOOLS_GROUP = "omni_mcp.tools"  # name = the server's name; value = package, or package:directory
EXECUTORS_GROUP = "omni_mcp.executors"  # name = the provider's name; value = package.module:an ExecutorPlugin
GROUPS = (TOOLS_GROUP, EXECUTORS_GROUP)

PluginState = Literal["off", "on", "failed", "missing"]
S_contra = TypeVar("S_contra", bound=BaseModel, contravariant=True)


class ExecutorPlugin(Protocol[S_contra]):
    """Brings one executor. Its promises are tests: `omni_mcp.testing.executor_promises`."""

    binding: Binding
    """Whose calls it runs."""

    priority: int
    """Of several that run the same, the one with the highest wins where the operator selected none."""

    settings: type[Any]
    """A pydantic model that refuses unknown keys: `[plugins.executors.NAME]` of omni.toml."""

    def open(self, settings: S_contra) -> AbstractAsyncContextManager[Executor]:
        """Start the executor; leaving the context stops it and frees what it holds."""
        ...
