"""Characters that a reader does not see, sees in the wrong place, or takes for others."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache

from omni_mcp.engines.catalog.difference_finding import Finding, Text, excerpt_of

SKELETONS_KEPT = 32_768  # of names; the names of all tools are looked at for each new one

# Default_Ignorable_Code_Point of Unicode 16 that is not of category Cf, and blanks that look like nothing.
_IGNORABLE = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8" + (
    "\U000e0000-\U000e0fff"
)
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_TAGS = "\U000e0001\U000e0020-\U000e007f"
_UNUSUAL = re.compile("[^\t\n\r\x20-\x7e]")
_HIDDEN_MORE = re.compile(f"[{_IGNORABLE}]")
_BIDI_ONE = re.compile(f"[{_BIDI}]")
_TAG_RUN = re.compile(f"[{_TAGS}]+")
_SELECTOR = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef\u180b-\u180d\u180f]")
# Emoji: a selector behind a symbol or keycap, a joiner between two symbols, and the three flags made of tags.
_EMOJI = "[\u00a9\u00ae\u203c-\u3299\U0001f000-\U0001faff]"
_SYMBOL = f"(?:{_EMOJI}[\U0001f3fb-\U0001f3ff]?\ufe0f?)"
_EMOJI_WHOLE = re.compile(
    f"{_SYMBOL}(?:\u200d{_SYMBOL})+|{_EMOJI}\ufe0f|[0-9#*]\ufe0f\u20e3"
    "|\U0001f3f4\U000e0067\U000e0062(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063\U000e0074"
    "|\U000e0077\U000e006c\U000e0073)\U000e007f"
)
# Joiners between letters belong to the spelling of Arabic and Indic scripts, direction marks to Arabic and Hebrew.
_JOINED = re.compile("(?<=[\u0600-\u0dff])[\u200c\u200d](?=[\u0600-\u0dff])")
_MARKED = re.compile("[\u200e\u200f](?=[\u0590-\u08ff])|(?<=[\u0590-\u08ff])[\u200e\u200f]")

# What is read as another letter in most fonts; after NFKC, which already folds full width and mathematical letters.
_LOOKS_LIKE = str.maketrans(
    {
        **dict(zip("аеорсухіјѕһԁԛԝвкмнтьгзո", "aeopcyxijshdqwbkmhtbr3n", strict=True)),
        **dict(zip("αβεηικνορτυχγωµμѵӏ", "abenikvoptuxywuuvl", strict=True)),
        **dict(zip("ɑɡıɩʀɴʏⅼօսցհզ", "agliRnYlough2", strict=True)),
    }
)
_TWINS = str.maketrans("01|", "oll")


def is_shown(character: str) -> bool:
    """Whether a reader of a plain text sees this character at its place."""
    return character.isprintable() and _HIDDEN_MORE.match(character) is None


def shown(text: str) -> str:
    """Return *text* with everything written out that a reader would not see or a terminal would act on."""
    return _UNUSUAL.sub(lambda found: found[0] if is_shown(found[0]) else f"\\u{{{ord(found[0]):x}}}", text).replace(
        "\r", "\\r"
    )


def without_hidden(text: str) -> str:
    """Return *text* as a model may read it: without hidden characters, and look-alikes as the letters they pass for."""
    if text.isascii():
        return _UNUSUAL.sub("", text)
    folded = unicodedata.normalize("NFKC", text)
    return "".join(c for c in folded if c in "\t\n\r" or is_shown(c) or c.isspace()).casefold().translate(_LOOKS_LIKE)


def character_findings(texts: Iterable[Text]) -> Iterator[Finding]:
    """Yield what is hidden in *texts*; one finding for each text and kind of character."""
    for text in texts:
        if _UNUSUAL.search(text.text) is None:
            continue
        rest = _MARKED.sub("", _JOINED.sub("", _EMOJI_WHOLE.sub("", text.text)))
        kinds: dict[str, tuple[str, int]] = {}
        for found in _UNUSUAL.finditer(rest):
            kind = _kind_of(found[0])
            if kind is not None:
                kinds.setdefault(kind, (found[0], found.start()))
        for kind, (_, at) in kinds.items():
            yield Finding(
                rule=kind,
                severity="severe",
                path=text.path,
                excerpt=_hidden_words(rest) or excerpt_of(rest, at, at + 1),
            )


def name_findings(texts: Iterable[Text], *, siblings: Iterable[str], others: Iterable[str]) -> Iterator[Finding]:
    """Yield names that pass for others.

    Args:
        texts: names that the server chose: its tool's and those of parameters.
        siblings: names of the server's other tools.
        others: names of other servers' tools.
    """
    known = {skeleton(name): name for name in (*others, *siblings)}
    same = {*siblings, *others}
    for text in texts:
        name = text.text
        plain = unicodedata.normalize("NFKC", name).casefold().translate(_LOOKS_LIKE)
        if not name.isascii() and plain.isascii():
            yield Finding(rule="look_alike_name", severity="severe", path=text.path, excerpt=f"{name} reads as {plain}")
        elif not name.isascii() and re.search("[a-zA-Z]", name):
            yield Finding(rule="mixed_script_name", severity="severe", path=text.path, excerpt=name)
        elif len(text.place) == 1 and name not in same and (twin := known.get(skeleton(name))) is not None:
            yield Finding(rule="look_alike_name", severity="severe", path=text.path, excerpt=f"{name} reads as {twin}")


@lru_cache(maxsize=SKELETONS_KEPT)
def skeleton(name: str) -> str:
    """Return the form in which names that look alike are equal."""
    return without_hidden(name).casefold().translate(_LOOKS_LIKE).translate(_TWINS)


def _kind_of(character: str) -> str | None:
    if _TAG_RUN.match(character):
        return "tag_character"
    if _BIDI_ONE.match(character):
        return "bidi_character"
    if _SELECTOR.match(character):
        return "variation_selector"
    category = unicodedata.category(character)
    if category == "Cc":
        return "control_character"
    if category in ("Cf", "Zl", "Zp") or _HIDDEN_MORE.match(character):
        return "invisible_character"
    return "unassigned_character" if category in ("Co", "Cs", "Cn") else None


def _hidden_words(text: str) -> str:
    """The ASCII text that a run of tag characters spells."""
    words = "".join(chr(ord(c) - 0xE0000) for run in _TAG_RUN.findall(text) for c in run if ord(c) >= 0xE0020)
    return f"hidden: {excerpt_of(words)}" if words else ""
