"""Stages become one handler: each stage gets the call and the rest of the chain.

A stage that has nothing to do on the way back returns what the rest of the chain returned, without awaiting it: it is
an ordinary function then, and no wait of the call passes through it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from omni_mcp.contracts.call import Call, Handler, Result, Stage


def compose(stages: Sequence[Stage], last: Handler) -> Handler:
    """Return a handler that runs *stages* in order, outermost first, and ends in *last*."""
    handler = last
    for stage in reversed(stages):
        handler = _bind(stage, handler)
    return handler


def _bind(stage: Stage, rest: Handler) -> Handler:
    run: Stage = stage.__call__  # type: ignore[operator]  # looked up once for all calls

    def handle(call: Call) -> Awaitable[Result]:
        return run(call, rest)

    return handle
