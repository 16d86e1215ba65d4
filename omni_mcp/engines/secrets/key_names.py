"""A name says that its value is a secret when the last word of the name is one: `db_password`, not `token_count`."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

# The word that a secret's name ends with. Plurals of `token` are left out: `max_tokens` counts something.
_NOUNS = frozenset(
    {
        "password",
        "passwords",
        "passwd",
        "passphrase",
        "pwd",
        "secret",
        "secrets",
        "token",
        "apikey",
        "authorization",
        "cookie",
        "cookies",
        "credential",
        "credentials",
        "jwt",
        "bearer",
        "accesskey",
        "privatekey",
        "authtoken",
        "accesstoken",
        "secretkey",
        "totp",
        "otp",
    }
)
_KEY_OWNERS = frozenset(
    {
        "api",
        "access",
        "private",
        "secret",
        "signing",
        "encryption",
        "account",
        "master",
        "shared",
        "session",
        "ssh",
        "license",
        "auth",
    }
)
_QUALIFIERS = frozenset(
    {"value", "values", "string", "header", "hash", "b64", "base64", "hex", "old", "new", "raw", "plain", "text", "pem"}
)
# Names that end in `token` and let nobody in: places in a list, marks of a tokenizer.
_HARMLESS_TOKENS = frozenset(
    {"progress", "page", "next", "continuation", "sync", "eos", "bos", "pad", "unk", "sep", "mask", "stop"}
)


def is_secret_name(name: str) -> bool:
    """Say whether a value under *name* is to be masked; case and separators do not matter."""
    words = [word.lower() for word in _WORD.findall(name[:256])]
    while words and (words[-1] in _QUALIFIERS or words[-1].isdigit()):
        words.pop()
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in {"key", "keys"}:
        return before in _KEY_OWNERS
    if last == "token":
        return before not in _HARMLESS_TOKENS
    return last in _NOUNS
