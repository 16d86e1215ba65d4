"""The http tools: what they ask for and what they make of the answer. How it travels: http_proxy.py."""

from __future__ import annotations

import base64
import binascii
import codecs
import os
import random
import re
import time
from dataclasses import dataclass, field

import http_proxy
from failure import ToolFailure
from http_proxy import Asked, Response, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEADLINE_S = 5.0  # for everything: all tries, all redirects, all pauses
SEND_DEADLINE_S = 20.0  # one try, which may carry a body
TRIES = 3
FIRST_PAUSE_S = 0.2  # bound of the first pause; doubles with each
REDIRECTS = 5
BODY_LIMIT = 8 * 1024 * 1024
TEXT_LIMIT = 256 * 1024
BASE64_LIMIT = 64 * 1024
HEADERS_KEPT = 64
HEADER_CHARS = 1024

_REDIRECTING = frozenset({301, 302, 303, 307, 308})
_ALLOWED = frozenset(
    {"accept", "accept-language", "cache-control", "if-modified-since", "if-none-match", "range", "user-agent"}
)
_ALLOWED_TO_SEND = _ALLOWED | {"content-type", "if-match", "idempotency-key", "prefer"}
_NOT_SHOWN = frozenset({"set-cookie", "connection", "transfer-encoding", "keep-alive", "www-authenticate"})
_CHARSETS = re.compile(
    r"utf-8|ascii|iso8859-(1|2|3|4|5|6|7|8|9|10|11|13|14|15|16)|cp125[0-8]|utf-16(-[lb]e)?|utf-32(-[lb]e)?|"
    r"koi8-[ru]|shift_jis|euc_jp|iso2022_jp|gb2312|gbk|gb18030|big5|euc_kr|cp437|cp850|cp866|cp932|cp949|tis-620|mac-roman"
)  # Python knows codecs that are no charsets, and some that take quadratic time
_TEXT_TYPES = re.compile(
    r"text/.*|application/(.*\+)?(json|xml|yaml|javascript|ecmascript|sql|toml|x-www-form-urlencoded)"
)
_SUFFIXES = {
    "text/html": "html", "text/plain": "txt", "application/json": "json", "application/pdf": "pdf",
    "image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "application/zip": "zip", "text/csv": "csv",
    "application/xml": "xml", "text/xml": "xml",
}  # fmt: skip


def http_fetch(arguments: dict[str, Any]) -> dict[str, Any]:
    """Get a URL, or its headers only; tries again after passing failures, and follows redirects within the grant."""
    journey = _Journey(until=time.monotonic() + DEADLINE_S, tries=TRIES)
    method = arguments.get("method", "GET")
    headers = _chosen(arguments.get("headers", {}), _ALLOWED)
    url = http_proxy.plain_url(arguments["url"])
    response = journey.answer(Asked(method, url, headers))
    note: dict[str, Any] = {}
    for _ in range(REDIRECTS):
        to = _redirect_of(response, url)
        if to is None:
            break
        after = journey.answer(Asked(method, to, headers), may_be_denied=True)
        if after.denied:
            note = _elsewhere(to, after.denied)
            break
        response, url = after, to
    else:
        if (to := _redirect_of(response, url)) is not None:
            note = {"redirect": to, "note": f"{REDIRECTS} redirects were followed, this one was not"}
    return {**_facts(response, url, arguments.get("max_chars", TEXT_LIMIT)), **note, "attempts": journey.attempts}


def http_send(arguments: dict[str, Any]) -> dict[str, Any]:
    """Send a request that changes something: once, whatever comes back; redirects are not followed."""
    journey = _Journey(until=time.monotonic() + SEND_DEADLINE_S, tries=1)
    headers = _chosen(arguments.get("headers", {}), _ALLOWED_TO_SEND)
    url = http_proxy.plain_url(arguments["url"])
    body = _body_of(arguments)
    if body and "content-type" not in headers:
        headers["content-type"] = "text/plain; charset=utf-8" if "text" in arguments else "application/octet-stream"
    response = journey.answer(Asked(arguments["method"], url, headers, body))
    to = _redirect_of(response, url)
    note = {"redirect": to, "note": "a redirect is not followed"} if to is not None else {}
    return {**_facts(response, url, arguments.get("max_chars", TEXT_LIMIT)), **note, "attempts": journey.attempts}


@dataclass
class _Journey:
    """All requests of one call, in order, with what came of each and the pause before it."""

    until: float
    tries: int
    attempts: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, asked: Asked, *, may_be_denied: bool = False) -> Response:
        """Return the answer of the last try.

        Raises:
            ToolFailure: there is none, or (unless *may_be_denied*) the gateway refuses the host.
        """
        pause = 0.0
        for number in range(1, self.tries + 1):
            response, failure = self._try(asked, pause)
            if response is not None and response.denied and not may_be_denied:
                raise ToolFailure(f"the gateway did not let this through: {response.denied}")
            last = number == self.tries or (response is not None and not _is_transient(response))
            last = last or (failure is not None and not failure.passing)
            pause = _next_pause(pause, number, response)
            if last or time.monotonic() + pause >= self.until:
                break
            time.sleep(pause)
        if response is None:
            raise ToolFailure(f"{asked.method} {asked.url[:500]}: {failure}; attempts: {self._told()}")
        if response.failed:
            raise ToolFailure(f"{asked.method} {asked.url[:500]}: {response.failed}; attempts: {self._told()}")
        return response

    def _try(self, asked: Asked, pause: float) -> tuple[Response | None, Unreachable | None]:
        facts: dict[str, Any] = {"url": asked.url, "waited_ms": round(pause * 1000)}
        self.attempts.append(facts)
        try:
            response = http_proxy.exchange(asked, until=self.until, body_limit=BODY_LIMIT)
        except Unreachable as failure:
            facts["error"] = str(failure)
            return None, failure
        if response.denied or response.failed:
            facts["error"] = response.denied or response.failed
        else:
            facts["status"] = response.status
        return response, None

    def _told(self) -> str:
        words = [
            f"{one.get('status') or one.get('error')} after a pause of {one['waited_ms']} ms" for one in self.attempts
        ]
        return f"{len(words)} ({'; '.join(words)})"


def _is_transient(response: Response) -> bool:
    return (
        not response.denied and response.failed not in http_proxy.PERMANENT and response.status in http_proxy.TRANSIENT
    )


def _next_pause(before: float, number: int, response: Response | None) -> float:
    """Return a random pause up to a bound that doubles, never shorter than the one before or what the server asks."""
    bound = FIRST_PAUSE_S * 2 ** (number - 1)
    asked = response.headers.get("retry-after", "") if response is not None else ""
    wanted = float(asked) if re.fullmatch(r"[0-9]{1,4}", asked) else 0.0
    return max(random.uniform(before, max(before, bound)), wanted)


def _chosen(headers: dict[str, str], allowed: frozenset[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for name, value in headers.items():
        if name.lower() not in allowed or name.lower() in chosen:
            raise ToolFailure(
                f"the header {name[:64]!r} cannot be set, or is there twice; allowed: {', '.join(sorted(allowed))}"
            )
        if not re.fullmatch(r"[ -~]{0,1024}", value) or value != value.strip():
            raise ToolFailure(f"the header {name!r} holds what no header may hold")
        chosen[name.lower()] = value
    return chosen


def _body_of(arguments: dict[str, Any]) -> bytes:
    if "base64" not in arguments:
        return str(arguments.get("text", "")).encode()
    try:
        return base64.b64decode(arguments["base64"], validate=True)
    except binascii.Error as error:
        raise ToolFailure(f"base64: {error}") from error


def _redirect_of(response: Response, url: str) -> str | None:
    """Return where a response points to; None if nowhere, or to nothing that could be followed."""
    to = response.headers.get("location") if response.status in _REDIRECTING else None
    try:
        return http_proxy.plain_url(http_proxy.joined(url, to)) if to is not None else None
    except (ToolFailure, ValueError):
        return None


def _elsewhere(to: str, reason: str) -> dict[str, Any]:
    return {
        "redirect": to,
        "note": f"the answer points to {to[:500]}, which this call may not reach ({reason}); a call with that URL "
        "needs its own permission",
    }


def _facts(response: Response, url: str, most_chars: int) -> dict[str, Any]:
    shown = [(name, value) for name, value in response.headers.items() if name not in _NOT_SHOWN][:HEADERS_KEPT]
    facts: dict[str, Any] = {
        "status": response.status, "url": url, "headers": {name: value[:HEADER_CHARS] for name, value in shown},
        "size": len(response.body), "truncated": response.cut,
    }  # fmt: skip
    kind, charset = _type_of(response)
    text = _text_of(response.body, kind, charset)
    if text is None and len(response.body) <= BASE64_LIMIT:
        return {**facts, "base64": base64.b64encode(response.body).decode()}
    if text is None:
        return {**facts, "saved": _save(response.body, kind)}
    if len(text) <= most_chars:
        return {**facts, "text": text}
    return {**facts, "text": text[:most_chars], "truncated": True, "saved": _save(response.body, kind)}


def _type_of(response: Response) -> tuple[str, str]:
    """Return the media type and the charset that the headers name; a coding that nobody asked for makes it binary."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return "application/octet-stream", ""
    kind, _, rest = response.headers.get("content-type", "").partition(";")
    named = re.search(r'charset\s*=\s*"?([A-Za-z0-9_.:-]{1,40})', rest, re.IGNORECASE)
    return kind.strip().lower(), named[1] if named else ""


def _text_of(body: bytes, kind: str, charset: str) -> str | None:
    """Return the body as text, what does not fit replaced; None if it is no text."""
    if not body:
        return ""
    if not kind:
        try:
            return body.decode() if b"\x00" not in body else None
        except UnicodeDecodeError:
            return None
    return body.decode(_codec(body, charset), "replace") if _TEXT_TYPES.fullmatch(kind) else None


def _codec(body: bytes, charset: str) -> str:
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if body.startswith(mark):
            return name
    try:
        name = codecs.lookup(charset).name
    except (LookupError, ValueError):
        return "utf-8"
    return name if _CHARSETS.fullmatch(name) else "utf-8"


def _save(body: bytes, kind: str) -> str:
    """Leave the body in `out/`, which the gateway keeps as an artifact of the call."""
    name = f"body.{_SUFFIXES.get(kind, 'bin')}"
    os.makedirs("out", exist_ok=True)
    with open(os.path.join("out", name), "wb") as file:
        file.write(body)
    return name
