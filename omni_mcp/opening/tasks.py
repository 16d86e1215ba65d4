"""Tasks that live as long as a gateway: one that ends by itself is a fault, and is told when it happens."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

import structlog


def keep_running(stack: AsyncExitStack, name: str, work: Coroutine[Any, Any, None]) -> None:
    """Run *work* until *stack* is closed."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_say_if_failed)
    stack.push_async_callback(end_task, task)


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end.

    Raises:
        Exception: what the task failed with.
    """
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


def _say_if_failed(task: asyncio.Task[None]) -> None:
    """A watcher that ends is a fault that somebody must hear of when it happens, not when the gateway closes."""
    if not task.cancelled() and (error := task.exception()) is not None:
        structlog.get_logger("omni_mcp").critical(
            "a part of the gateway ended", part=task.get_name(), error=repr(error)
        )
