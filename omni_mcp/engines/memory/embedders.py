"""Which embedder the settings ask for. Nothing is imported, read or reached before it is made."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from omni_mcp.contracts.errors import ConfigError, Problem
from omni_mcp.contracts.memory import MemorySettings
from omni_mcp.contracts.ports import Embedder

EXTRA = ("onnxruntime", "tokenizers")


def embedder_of(settings: MemorySettings, secret: Callable[[], str | None]) -> Callable[[], Embedder] | None:
    """Return what makes the embedder when the memory is first used; None for the table of the package.

    Args:
        secret: returns the token for the endpoint; asked at each request.

    Raises:
        ConfigError: what the embedder needs is not installed, or not there.
    """
    match settings.embedder:
        case "static":
            return None
        case "onnx":
            return _onnx(settings)
        case "openai":
            return lambda: cast(
                Embedder,
                import_module("omni_mcp.engines.memory.embedder_endpoint").EndpointEmbedder(
                    url=settings.url, model=settings.model, dimensions=settings.dimensions, secret=secret,
                    timeout_s=settings.timeout_s,
                ),
            )  # fmt: skip


def _onnx(settings: MemorySettings) -> Callable[[], Embedder]:
    directory = Path(settings.model or "").expanduser()
    if missing := [name for name in EXTRA if find_spec(name) is None]:
        message = f"{' and '.join(missing)} not installed; see: pip install 'omni-mcp[memory-onnx]'"
        raise ConfigError([Problem(file="omni.toml", line=0, path="$.memory.embedder", message=message)])
    if lacking := [name for name in ("model.onnx", "tokenizer.json") if not (directory / name).is_file()]:
        message = f"{directory} holds no {' and no '.join(lacking)}"
        raise ConfigError([Problem(file="omni.toml", line=0, path="$.memory.model", message=message)])
    return lambda: cast(
        Embedder, import_module("omni_mcp.engines.memory.embedder_onnx").OnnxEmbedder(directory)
    )  # fmt: skip
