"""Plain requests: one request of a job to one host and its answer, each read to its end and written anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from omni_mcp.engines.sandbox.egress.attempt import Attempt
from omni_mcp.engines.sandbox.egress.body import LAST_CHUNK, framed, read_body
from omni_mcp.engines.sandbox.egress.dial import Outside, dial
from omni_mcp.engines.sandbox.egress.ending import Ended
from omni_mcp.engines.sandbox.egress.head import (
    Framing,
    Malformed,
    ResponseHead,
    end_to_end,
    framing_of,
    read_response_head,
    render,
)
from omni_mcp.engines.sandbox.egress.request import ProxyRequest
from omni_mcp.engines.sandbox.egress.stream import Stream, deadline

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MOST_INTERIM_ANSWERS = 8
_ONLY_OURS = "x-omni-error"  # no host may speak in the gateway's name


async def serve_request(job: Stream, request: ProxyRequest, *, outside: Outside, attempt: Attempt) -> None:
    """Send *request* to its host and its answer to the job.

    Raises:
        Ended: either could not be done to its end.
    """
    credentials = outside.grant.credentials_for(request.target)
    secure = request.scheme == "https"
    host = await dial(
        request.target,
        outside=outside,
        attempt=attempt,
        secure=secure,
        clear_secret=bool(credentials) and not secure,
    )
    try:
        attempt.sends(len(request.upstream_head(())))
        attempt.credential = bool(credentials)
        async with deadline(outside.limits.idle_s):
            with contextlib.suppress(OSError):  # it may have answered before it closed
                await host.send(request.upstream_head(credentials))
        await _exchange(job, host, request, outside=outside, attempt=attempt)
    finally:
        await host.close()


async def _exchange(job: Stream, host: Stream, request: ProxyRequest, *, outside: Outside, attempt: Attempt) -> None:
    """Pass on the body while the answer is awaited: a host may answer before it has read everything."""
    idle_s = outside.limits.idle_s
    sending = asyncio.create_task(_send_body(job, host, request, attempt=attempt, idle_s=idle_s))
    answering = asyncio.create_task(_read_answer(host))
    try:
        await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
            async with deadline(outside.limits.answer_s):
                await asyncio.wait((answering,))
        await _pass_answer(job, host, request, answering.result(), attempt=attempt, idle_s=idle_s)
    finally:
        for task in (sending, answering):
            task.cancel()
        await asyncio.gather(sending, answering, return_exceptions=True)


async def _send_body(job: Stream, host: Stream, request: ProxyRequest, *, attempt: Attempt, idle_s: float) -> None:
    try:
        if request.waits_for_continue:
            async with deadline(idle_s):
                await job.send(_CONTINUE)
        if request.framing == Framing():
            return
        pieces = read_body(job.reader, request.framing, idle_s=idle_s)
        await _copy(pieces, request.framing, host, count=attempt.sends, idle_s=idle_s)
    except Malformed as error:
        raise Ended("bad_request") from error
    except EOFError as error:
        raise Ended("closed") from error
    except OSError:
        if job.reader.exception() is not None:
            raise
        # the host reads no more: what it has to say about that is its answer


async def _read_answer(host: Stream) -> ResponseHead:
    try:
        for _ in range(_MOST_INTERIM_ANSWERS):
            answer = await read_response_head(host.reader)
            if answer.status >= 200:
                return answer
            if answer.status == 101:
                break
    except (Malformed, EOFError, OSError) as error:
        raise Ended("bad_response") from error
    raise Ended("bad_response")


async def _pass_answer(
    job: Stream, host: Stream, request: ProxyRequest, answer: ResponseHead, *, attempt: Attempt, idle_s: float
) -> None:
    try:
        announced = framing_of(answer.fields, minor=answer.minor)
        empty = request.method == "HEAD" or answer.status in (204, 304)
        # HTTP/1.0 knows no chunks: there the end of the body is the end of the connection
        shown = Framing() if answer.status == 204 or (announced.chunked and request.head.minor == 0) else announced
        fields = tuple((name, value) for name, value in end_to_end(answer.fields) if name != _ONLY_OURS)
        head = render(f"HTTP/1.1 {answer.status} {answer.phrase}", fields, shown)
        attempt.receives(len(head))
        attempt.opened()
        attempt.answered = True
        async with deadline(idle_s):
            await job.send(head)
        if not empty:
            pieces = read_body(host.reader, announced, idle_s=idle_s)
            await _copy(pieces, shown, job, count=attempt.receives, idle_s=idle_s)
    except (Malformed, EOFError) as error:
        raise Ended("bad_response") from error
    except OSError as error:
        raise Ended("bad_response" if host.reader.exception() is not None else "closed") from error


async def _copy(
    pieces: AsyncIterator[bytes], framing: Framing, sink: Stream, *, count: Callable[[int], None], idle_s: float
) -> None:
    async for piece in pieces:
        count(len(piece))
        async with deadline(idle_s):
            await sink.send(framed(piece, framing))
    if framing.chunked:
        async with deadline(idle_s):
            await sink.send(LAST_CHUNK)
