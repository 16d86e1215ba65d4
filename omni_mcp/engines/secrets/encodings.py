"""The forms in which a secret travels: as it is, quoted for a URL or JSON, in hex, in base64 at any alignment."""

from __future__ import annotations

import base64
import html
import json
import urllib.parse

MIN_SECRET_CHARS = 4  # a shorter "secret" would mask ordinary words all over the record
MIN_ENCODED_CHARS = 6  # a shorter fragment of an encoding is found in ordinary text by chance


def forms_of(secret: str) -> tuple[str, ...]:
    """Return every form of *secret* to look for, longest first.

    Raises:
        ValueError: it is too short to be looked for.
    """
    if len(secret) < MIN_SECRET_CHARS:
        raise ValueError(f"shorter than {MIN_SECRET_CHARS} characters")
    plain = {secret, *_quoted(secret)}
    encoded = {form for form in (*_hex(secret), *_base64(secret)) if len(form) >= MIN_ENCODED_CHARS}
    return tuple(sorted(plain | encoded, key=lambda form: (-len(form), form)))


def json_escaped(text: str) -> str:
    """Return *text* as it stands between the quotes of a JSON string, with characters beyond ASCII as they are."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _quoted(secret: str) -> set[str]:
    upper = urllib.parse.quote(secret, safe="", errors="surrogatepass")
    lower = "".join(part.lower() if part.startswith("%") else part for part in _percent_parts(upper))
    once = json_escaped(secret)
    return {
        upper,
        lower,
        urllib.parse.quote(secret, errors="surrogatepass"),
        urllib.parse.quote_plus(secret, errors="surrogatepass"),
        once,
        json_escaped(once),
        json.dumps(secret)[1:-1],
        once.replace("/", "\\/"),
        html.escape(secret),
        html.escape(secret, quote=False),
    }


def _percent_parts(text: str) -> list[str]:
    parts, at = [], 0
    while at < len(text):
        width = 3 if text[at] == "%" else 1
        parts.append(text[at : at + width])
        at += width
    return parts


def _hex(secret: str) -> tuple[str, str]:
    found = secret.encode("utf-8", "surrogatepass").hex()
    return found, found.upper()


def _base64(secret: str) -> set[str]:
    """Return what the secret looks like inside base64, whatever stands before and after it.

    With 1 or 2 bytes before it in its group of 3, the first 2 or 3 characters also hold bits of the neighbour, and so
    may the last one; what lies between is the secret's alone.
    """
    raw = secret.encode("utf-8", "surrogatepass")
    found = set()
    for before, shared in ((0, 0), (1, 2), (2, 3)):
        whole = (before + len(raw)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(bytes(before) + raw).decode()[shared:whole])
    return found
