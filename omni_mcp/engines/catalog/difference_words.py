"""Words of a definition that speak to the model instead of describing the tool. A list of reasons to look, no proof.

No list of patterns finds every instruction; what protects is that nothing new is listed before a person accepted it.
Every pattern is bounded, so the time that a text takes grows with its length and no faster.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from functools import cache
from urllib.parse import unquote

from omni_mcp.engines.catalog.difference_characters import without_hidden
from omni_mcp.engines.catalog.difference_finding import Finding, Severity, Text, excerpt_of

TEXT_LIMIT = 256 * 1024
BLOB_LIMIT = 64 * 1024
BLOBS_DECODED = 50


_GAP = r"[^.!?]{0,60}?"
_NOT = r"(?:do not|don'?t|never|must not|mustn'?t|should not|shouldn'?t|without|refrain from|avoid)"
_PERSON = r"(?:user|users|human|humans|person|operator|owner|customer|anyone|anybody|them|him|her)"
_TELL = (
    r"(?:tell|telling|mention|mentioning|inform|informing|notify|notifying|reveal|revealing|disclose|"
    r"disclosing|alert|alerting|warn|warning)"
)
_TALK = (
    r"(?:system prompt|conversation|chat history|chat log|message history|your instructions|your context|"
    r"context window)"
)
_TAKE = (
    r"(?:send|sends|upload|uploads|post|posts|forward|forwards|transmit|transmits|copy|copies|"
    r"leak|leaks|include|append|attach|embed|insert|put|pass)"
)
_SECRET = (
    r"(?:\.ssh\b|id_rsa|id_ed25519|private key|\.aws/|\.netrc|\.npmrc|\.pgpass|\.kube/|\.gnupg|\.git-credentials|"
    r"/etc/(?:passwd|shadow)|(?<![\w.])\.env\b(?!\.)|dotenv file|mcp\.json|\.cursor/|claude_desktop_config|"
    r"keychain|browser cookies|wallet\.dat|seed phrase)"
)

_RULES: tuple[tuple[str, Severity, str], ...] = (
    (
        "override", "severe",
        rf"\b(?:ignore|disregard|forget|override|overrides|bypass|supersede|supersedes|discard)\b{_GAP}\b"
        r"(?:(?:previous|prior|above|earlier|preceding|other|system|user|user's|safety|all|your|any)\s+){1,3}"
        r"(?:instruction|prompt|rule|guideline|polic|direction|command|message|constraint|restriction)",
    ),
    ("override", "severe",
        r"\b(?:you are now|from now on,? you|act as (?:an? )?(?:admin|root|dan|unrestricted)|(?:enter|"
        r"enable|activate|in) developer mode)\b",
    ),
    ("override", "severe",
        r"\b(?:new|updated|real|actual|hidden|secret) (?:system )?instructions?\s*(?::|for (?:the )?(?:ai|"
        r"assistant|model|agent|llm))",
    ),
    ("authority_tag", "severe",
        r"</?\s*(?:important|system|instructions?|secret|hidden|admin|assistant|critical|mandatory|"
        r"priority|override|user|prompt)\b[^>]{0,40}>",
    ),
    ("authority_tag", "severe",
        r"\[/?(?:inst|system|important|admin|override)\]|<\|[a-z_]{2,20}\|>|<<sys>>|\b(?:important )?system (?:note"
        r"|message|notice|override|alert)\s*:",
    ),
    ("concealment", "severe",
        rf"\b{_NOT}\b(?:\s+\w+){{0,3}}?\s+{_TELL}\b\s+(?:\w+\s+){{0,2}}?{_PERSON}\b",
    ),
    ("concealment", "severe",
        rf"\b{_NOT}\b\s+(?:mention|reveal|disclose|show|display|log|report|talk about)\b{_GAP}\b"
        rf"(?:to (?:the )?{_PERSON}|this (?:step|instruction|action|tool)|these (?:steps|instructions))\b",
    ),
    ("concealment", "severe",
        rf"\bwithout (?:the )?{_PERSON}(?:'s|s')? (?:knowledge|knowing|consent|noticing|awareness|permission)",
    ),
    ("concealment", "severe",
        rf"\b(?:hide|conceal|keep)\b{_GAP}\b(?:from (?:the )?{_PERSON}|secret from)\b",
    ),
    ("concealment", "severe",
        rf"\b(?:silently|secretly|covertly|in the background)\s+(?:\w+\s+)?{_TAKE}\b",
    ),
    ("concealment", "severe",
        rf"\b(?:the )?{_PERSON} (?:must|should|may|need|does|do) not (?:\w+ )?(?:see|know|notice|be (?:told|"
        rf"informed|aware|shown))\b",
    ),
    ("exfiltration", "severe", r"\bexfiltrat"),
    ("exfiltration", "severe",
        rf"\b{_TAKE}\b{_GAP}\b(?:{_TALK}|api keys?|passwords?|credentials|environment variables|private keys?|"
        rf"access tokens?)\b{_GAP}\b(?:to|in|into|as|with)\b",
    ),
    ("exfiltration", "severe",
        rf"\b(?:read|open|load|cat|fetch|get|access|retrieve|include|pass)\b{_GAP}{_SECRET}",
    ),
    ("exfiltration", "severe", rf"\b(?:full|entire|complete|whole|all) (?:of )?(?:the |your )?{_TALK}"),
    ("exfiltration", "severe",
        rf"\b(?:bcc|forward|redirect|reroute)\b{_GAP}[\w.+-]{{1,64}}@[\w-]{{1,63}}\.",
    ),
    ("bypass", "severe",
        rf"\b(?:bypass|bypasses|bypassing|circumvent|circumvents|skip|skips|disable|disables|evade|"
        rf"ignores?)\b{_GAP}\b(?:approval|confirmation|permission (?:check|prompt|validation)|permissions|"
        rf"safety|security (?:check|control|polic|warning)|guardrail|sandbox|access control|authoriz|"
        rf"consent)",
    ),
    ("bypass", "severe",
        rf"\b{_NOT}\b(?: \w+){{0,2}}? (?:ask|asking|wait for|waiting for|require|request|requesting|"
        rf"seek)\b(?: \w+){{0,3}}? (?:confirmation|approval|permission|consent)\b",
    ),
    ("order", "warning",
        r"\b(?:before|prior to|after|whenever|when|every time)\b(?:\s+you)?\s+(?:use|using|call|calling|"
        r"invoke|invoking|run|running|execute|executing)\s+(?:this|any|any other|other|all|another|"
        r"every|the other)\s+(?:tool|function|command|operation)s?\b",
    ),
    ("order", "warning",
        r"\b(?:you|the (?:ai|assistant|model|agent|llm)|ai|assistant) (?:must|should|has to|have to|"
        r"needs? to) (?:always |first |also )?(?:call|use|invoke|run|execute|read|send|pass|include|"
        r"obey|follow|adopt)\b",
    ),
    ("order", "warning",
        r"\b(?:always|must|first) (?:call|invoke|execute|use|run) (?:this|the present) (?:tool|function)\b",
    ),
    ("preference", "warning",
        r"\b(?:always prefer|prefer|choose|select) this (?:tool|function|server)\b|\b(?:instead of|"
        r"over|rather than) (?:any|all|every) other (?:tool|function|server)s?\b|\bdo not use (?:any )?other (?:too"
        r"l|server)s?\b",
    ),
    ("raw_address", "warning", r"\bhttps?://(?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-f:]+\])"),
    ("script", "severe",
        r"\bjavascript:|<script\b[^>]{0,200}>[^<]{1,200}</script|<svg\b[^>]{0,400}\bon[a-z]{3,20}\s*=",
    ),
    ("html_comment", "warning", r"<!--"),
    ("secret_path", "warning", _SECRET),
    ("url", "note", r"\bhttps?://[^\s\"'<>)]{4,}"),
)  # fmt: skip

_ONE_WORD = re.compile(r"(?!exfiltrat|id_rsa|id_ed25519|keychain)[\w$-]*", re.IGNORECASE)
_BLANKS = re.compile(r"(?<!\s)\s{15,}(?=\S)")
_BLANKS_LIMIT, _LINES_LIMIT = 60, 15  # text behind so many is outside the window that a person looks at
_BLOB = re.compile(r"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/_-]{48,}={0,2}(?![A-Za-z0-9+/=])")
_COMPOUND = re.compile(r"(?=.*(?:[_-]|[a-z][A-Z])).{5,}")
_WORD = re.compile(r"[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)*")
# JSON Schema, HTTP and the icon's own place: addresses there point a machine and do not speak to a model.
_NOT_PROSE = frozenset({"$schema", "$id", "mimeType", "src", "uri", "uriTemplate"})


def word_findings(texts: Iterable[Text], *, siblings: Iterable[str], others: Iterable[str]) -> Iterator[Finding]:
    """Yield what reads like an instruction, an address, hidden or coded text; one finding for each text and rule.

    Args:
        siblings: names of the server's other tools.
        others: names of other servers' tools.
    """
    own = {name for name in siblings if _COMPOUND.fullmatch(name)}
    foreign = {name for name in others if _COMPOUND.fullmatch(name)} - own
    for text in texts:
        yield from _in_text(text, own, foreign)


def _in_text(text: Text, own: set[str], foreign: set[str]) -> Iterator[Finding]:
    raw = text.text[:TEXT_LIMIT]
    if len(text.text) > TEXT_LIMIT:
        yield Finding(rule="too_long_to_read", severity="severe", path=text.path, excerpt=excerpt_of(raw, 0, 80))
    is_machine = bool(text.place) and text.place[-1] in _NOT_PROSE and not text.is_name
    yield from _matches(text, _prose(text, raw), skip={"url", "raw_address"} if is_machine else frozenset())
    if text.is_name:
        return
    if (behind := _padded(raw)) is not None:
        yield Finding(rule="padding", severity="severe", path=text.path, excerpt=excerpt_of(raw[behind:]))
    yield from _blobs(text, raw)
    if text.place and text.place[-1] == "description":
        words = set(_WORD.findall(raw))
        for name in sorted(words & foreign)[:5]:
            yield Finding(rule="names_foreign_tool", severity="warning", path=text.path, excerpt=name)
        for name in sorted(words & own)[:5]:
            yield Finding(rule="names_sibling_tool", severity="note", path=text.path, excerpt=name)


def _padded(raw: str) -> int | None:
    """Return where text goes on behind a wide gap."""
    for run in _BLANKS.finditer(raw):
        widest = max(map(len, run[0].split("\n")))
        if widest >= _BLANKS_LIMIT or run[0].count("\n") >= _LINES_LIMIT:
            return run.end()
    return None


def _prose(text: Text, raw: str) -> str:
    plain = without_hidden(raw)
    if text.is_name:
        plain = re.sub(r"\b_?dot_", " .", plain)
        plain = re.sub(r"_(?=ssh_)", "/", plain).replace("_", " ")
        plain = re.sub(r"\bid rsa\b", "id_rsa", plain)
    return _on_one_line(plain)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


@cache
def _compiled_rules() -> tuple[tuple[str, Severity, re.Pattern[str]], ...]:
    return tuple((name, severity, re.compile(pattern, re.IGNORECASE)) for name, severity, pattern in _RULES)


def _matches(text: Text, prose: str, *, skip: Iterable[str] = (), via: str = "") -> Iterator[Finding]:
    if _ONE_WORD.fullmatch(prose):
        return
    done = set(skip)
    for rule, severity, pattern in _compiled_rules():
        if rule not in done and (found := pattern.search(prose)) is not None:
            done.add(rule)
            excerpt = excerpt_of(prose, found.start(), found.end())
            yield Finding(rule=rule, severity=severity, path=text.path, excerpt=f"{via}{excerpt}")


def _blobs(text: Text, raw: str) -> Iterator[Finding]:
    """Coded text: what a model may decode and a person does not read."""
    if raw.startswith("data:image/"):
        yield from _matches(text, _on_one_line(_decoded_image(raw)), skip={"url", "secret_path"}, via="in the image: ")
        return
    blobs = [found[0] for found in _BLOB.finditer(raw[:BLOB_LIMIT]) if _is_coded(found[0])]
    if blobs:
        yield Finding(rule="coded_text", severity="warning", path=text.path, excerpt=excerpt_of(blobs[0], 0, 60))
    for blob in blobs[:BLOBS_DECODED]:
        yield from _matches(text, _on_one_line(_decoded(blob)), skip={"url"}, via="decoded: ")


def _is_coded(word: str) -> bool:
    """A long word of small and large letters and digits; a path begins with a slash."""
    return all(re.search(part, word) for part in ("[a-z]", "[A-Z]", "[0-9]")) and not word.startswith("/")


def _decoded_image(uri: str) -> str:
    head, _, body = uri.partition(",")
    return _decoded(body) if head.endswith(";base64") else unquote(body[:BLOB_LIMIT])


def _decoded(blob: str) -> str:
    plain = blob.rstrip("=").translate(str.maketrans("-_", "+/"))[:BLOB_LIMIT]
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4)).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""
