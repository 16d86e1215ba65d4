"""Whose signature counts: the key that the reader names, else the key of this gateway; else it proves no more than
that nothing was changed since somebody signed it."""

from __future__ import annotations

import hmac

import orjson

from omni_mcp.contracts.errors import LogCorrupt
from omni_mcp.contracts.json import JsonObject, canonical
from omni_mcp.engines.runlog.signing import Signature, read_signature

UNKNOWN_SIGNER = (
    "who signed it is not known here: compare the fingerprint with the one that the export printed, or give it as --key"
)


def distrust(signature: Signature, *, wanted: str | None, own: str | None) -> str:
    """Return why *signature*, which fits, is not by whom it should be; nothing if that cannot be said.

    Args:
        wanted: the fingerprint that the reader named.
        own: the fingerprint of this gateway's key, where there is one.
    """
    expected = wanted or own
    if expected is None or hmac.compare_digest(signature.fingerprint, expected):
        return ""
    whose = "the key that was named" if wanted else "this gateway's own key; name the other one as --key"
    return f"it is signed with the key {signature.fingerprint}, not with {whose}"


def read_document(data: bytes, what: str, *, name: str) -> tuple[JsonObject, Signature]:
    """Return a signed document, as `signed_document` writes it, and its signature, which fits.

    Raises:
        LogCorrupt: it is none, or was edited. *name* says which file.
    """
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise LogCorrupt("the file cannot be read", detail=f"{name}: {error}") from error
    document = found.get("document") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(document, dict):
        raise LogCorrupt("the file is not a signed document", detail=name)
    signature = read_signature({key: value for key, value in found.items() if key != "document"})
    try:
        is_whole = signature is not None and signature.fits(what, canonical(document))
        is_whole = is_whole and canonical(found) + b"\n" == data
    except TypeError:  # nested too deep to have been written
        is_whole = False
    if signature is None or not is_whole:
        raise LogCorrupt("the file is not what was signed: it was edited", detail=name)
    return document, signature
