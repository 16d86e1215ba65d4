"""Which values are secrets by their form, and how a command or URL is shown without them.

Names are judged elsewhere; here it is the value itself: the prefixes that issuers of tokens use, private keys, URLs
with a password, and long strings without structure.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

HIDDEN = "***"
LEAST_CHARS = 4  # a shorter value cannot be masked in the record, so it is not kept as a secret
_LEAST_RANDOM_CHARS = 20
_LEAST_BITS = 3.5  # a character; English prose has about 4 over 27 letters, but it has spaces

_ISSUED = re.compile(
    r"(?:gh[pousr]_|github_pat_|gl(?:pat|cbt|dt)-|sk-|[sr]k_(?:live|test)_|pk_live_|whsec_|xox[abceoprs]-|xapp-|hf_|npm_|"
    r"pypi-|dop_v1_|SG\.|shp(?:at|ca|pa|ss)_|lin_api_|ntn_|secret_|figd_|sbp_|tvly-|pplx-|gsk_|glsa_|PMAK-|dapi|"
    r"AKIA|ASIA|AIza|ya29\.|EAA)[A-Za-z0-9._\-]{8,}"
)
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*", re.DOTALL)
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
_QUERY = re.compile(r"(?<=[?&])([A-Za-z0-9_.\-\[\]]+)=([^&#\s]+)")
_HEX = re.compile(r"[0-9a-fA-F]{32,}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_RANDOM = re.compile(r"[A-Za-z0-9+_=\-]{20,}")
_VARIABLE = re.compile(r"(?<!PUBLIC)[_-](?:KEY|PAT|CREDS|DSN|WEBHOOK_URL|CONNECTION_STRING)$", re.IGNORECASE)
_HEADER = re.compile(r"key|token|secret|auth|session|credential|password|^cookie$", re.IGNORECASE)
_HARMLESS = frozenset({"true", "false", "none", "null", "yes", "no", "on", "off"})
_QUOTED = r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\''
_PAIR = re.compile(rf"(?P<head>(?P<name>{_QUOTED}|[A-Za-z0-9_-]+)\s*[:=]\s*)(?P<value>{_QUOTED})")
_FLAG_AND_VALUE = re.compile(rf"(?P<head>(?P<name>[\"']--?[A-Za-z0-9_-]+[\"'])\s*,\s*)(?P<value>{_QUOTED})")
_PARTS = (_ISSUED, _JWT, _PRIVATE_KEY, _URL_PASSWORD)

NameTest = Callable[[str], bool]


def secret_variables(is_secret_name: NameTest) -> NameTest:
    """Return a test that also knows variables of servers, such as `TAVILY_KEY`, `GH_PAT` and `SLACK_WEBHOOK_URL`."""
    return lambda name: is_secret_name(name) or bool(_VARIABLE.search(name))


def looks_secret(value: str) -> bool:
    """Say whether *value* is a secret by its form alone."""
    text = value.strip()
    if any(pattern.search(text) for pattern in _PARTS):
        return True
    if _UUID.fullmatch(text):
        return False
    if _HEX.fullmatch(text):
        return True
    return bool(_RANDOM.fullmatch(text)) and _is_random(text)


def is_secret(name: str, value: str, is_secret_name: NameTest) -> bool:
    """Say whether *value* under *name* is kept as a secret: by name or by form, unless it is too short or a plain word
    such as `true`, which would be masked all over the record."""
    text = value.strip()
    if len(text) < LEAST_CHARS or text.lower() in _HARMLESS:
        return False
    return is_secret_name(name) or looks_secret(text)


def is_secret_header(name: str, value: str, is_secret_name: NameTest) -> bool:
    """Say the same of a header. Headers of servers are mostly keys, so here a random part of a value is enough."""
    text = value.strip()
    if len(text) < LEAST_CHARS or text.lower() in _HARMLESS:
        return False
    return _keeps_secrets(name, is_secret_name) or looks_secret(text) or any(map(_HEX.fullmatch, text.split()))


def shown_words(words: Sequence[str], is_secret_name: NameTest) -> list[str]:
    """Return the words of a command with secrets replaced by `***`."""
    shown: list[str] = []
    for index, word in enumerate(words):
        flag, joined, value = word.partition("=")
        before = words[index - 1] if index else ""
        if joined and value and is_secret_name(flag.lstrip("-")):
            shown.append(f"{flag}={HIDDEN}")
        elif before.startswith("-") and "=" not in before and not word.startswith("-") and is_secret_name(before):
            shown.append(HIDDEN)
        elif joined and looks_secret(value) and not _in_parts(word):
            shown.append(f"{flag}={HIDDEN}")
        else:
            shown.append(shown_text(word, is_secret_name))
    return shown


def shown_text(text: str, is_secret_name: NameTest) -> str:
    """Return *text*, such as a URL, with secrets in it replaced by `***`."""
    for pattern in _PARTS:
        text = pattern.sub(HIDDEN, text)
    text = _QUERY.sub(
        lambda found: f"{found[1]}={HIDDEN}" if is_secret_name(found[1]) or looks_secret(found[2]) else found[0], text
    )
    return HIDDEN if looks_secret(text) else text


def shown_file(text: str, is_secret_name: NameTest) -> str:
    """Return the text of a client's file, JSON or TOML, with the values that may be secrets replaced by `***`."""

    def hide(found: re.Match[str]) -> str:
        name, value = found["name"].strip("\"'"), found["value"][1:-1]
        hidden = len(value) >= LEAST_CHARS and _keeps_secrets(name, is_secret_name)
        return f'{found["head"]}"{HIDDEN}"' if hidden else found[0]

    def hide_argument(found: re.Match[str]) -> str:
        return f'{found["head"]}"{HIDDEN}"' if is_secret_name(found["name"].strip("\"'-")) else found[0]

    def hide_string(found: re.Match[str]) -> str:
        return found[0][0] + shown_text(found[0][1:-1], is_secret_name) + found[0][0]

    text = _PAIR.sub(hide, text)
    text = _FLAG_AND_VALUE.sub(hide_argument, text)
    return re.sub(_QUOTED, hide_string, text)


def _keeps_secrets(name: str, is_secret_name: NameTest) -> bool:
    return is_secret_name(name) or bool(_HEADER.search(name))


def _in_parts(text: str) -> bool:
    return any(pattern.search(text) for pattern in _PARTS)


def _is_random(text: str) -> bool:
    classes = sum(bool(re.search(pattern, text)) for pattern in ("[a-z]", "[A-Z]", "[0-9]"))
    if classes < 2 or not re.search("[0-9]", text):
        return False
    longest_word = max(len(word) for word in re.split(r"[^A-Za-z]", text))
    if classes == 2 and "-" in text and longest_word < len(text) / 3 and text.lower() == text:
        return False  # a slug such as my-project-2024-eu-west
    counts = Counter(text)
    bits = -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())
    return bits >= _LEAST_BITS and len(text) >= _LEAST_RANDOM_CHARS
