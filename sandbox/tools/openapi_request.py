"""The request of an operation: each argument is written where its parameter stands, and nowhere else.

Sources: OpenAPI 3.1.1, 4.8.12 (style values), appendix C; RFC 6570; RFC 3986, 2.
"""

from __future__ import annotations

import json
import re
import unicodedata
import urllib.parse

import http_proxy
import openapi_body
from failure import ToolFailure
from http_proxy import Asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DECODINGS = 8
HEADER_CHARS = 4096
_RESERVED_KEPT = ":/?@!$'()*,;"  # `#`, `&`, `=`, `+`, `[` and `]` would end a value or begin another
_DELIMITERS = {"form": ",", "spaceDelimited": "%20", "pipeDelimited": "%7C"}
_DOTS = (".", "..")


def build(plan: dict[str, Any], arguments: dict[str, Any]) -> Asked:
    """Return the request that *plan* makes of *arguments*.

    Raises:
        ToolFailure: an argument cannot be written where it belongs, or is needed and missing.
    """
    given = [(one, arguments[one["argument"]]) for one in plan["parameters"] if one["argument"] in arguments]
    given = [(one, value) for one, value in given if value is not None]
    path = _path(plan["path"], {one["name"]: (one, value) for one, value in given if one["in"] == "path"})
    names = {one["name"] for one in plan["parameters"] if one["in"] == "query"}
    query = "&".join(part for one, value in given if one["in"] == "query" for part in _query(one, value, names))
    url = f"{plan['origin']}{plan['prefix']}{path}" + (f"?{query}" if query else "")
    url = http_proxy.plain_url(url)
    check_stays(url, plan)
    headers = {one["name"].lower(): _header(one, value) for one, value in given if one["in"] == "header"}
    cookies = "; ".join(part for one, value in given if one["in"] == "cookie" for part in _cookie(one, value))
    headers |= {"accept": plan["accept"]} | ({"cookie": cookies} if cookies else {})
    body = plan["body"]
    if body is None or arguments.get(body["argument"]) is None:
        return Asked(plan["method"], url, headers)
    media, data = openapi_body.written(body, arguments[body["argument"]])
    return Asked(plan["method"], url, {**headers, "content-type": media}, data)


def check_stays(url: str, plan: dict[str, Any]) -> None:
    """Look whether *url* is below the origin and path prefix of the plan, however its path is read.

    Raises:
        ToolFailure: it is not.
    """
    parts = urllib.parse.urlsplit(url)
    if f"{parts.scheme}://{parts.netloc}" != plan["origin"] or not f"{parts.path}/".startswith(f"{plan['prefix']}/"):
        raise ToolFailure("the request would leave the origin or path of its interface")
    *inner, last = parts.path[1:].split("/")
    for segment in inner:
        _check_segment(segment, "the path", may_be_empty=False)
    _check_segment(last, "the path", may_be_empty=True)


def _path(template: str, given: dict[str, tuple[dict[str, Any], Any]]) -> str:
    """Write the parameters of a path; each stays within the segment in which it stands."""
    segments = []
    for segment in template[1:].split("/"):
        parts = re.split(r"\{([^{}]*)\}", segment)
        written = parts[0]
        for name, literal in zip(parts[1::2], parts[2::2], strict=True):
            if name not in given:
                raise ToolFailure(f"the path parameter {name!r} is missing")
            written += _in_path(*given[name]) + literal
        if names := [repr(name) for name in parts[1::2]]:
            what = "the path parameter" if len(names) == 1 else "what the path parameters make together,"
            _check_segment(written, f"{what} {' and '.join(names)}", may_be_empty=False)
        segments.append(written)
    return "/" + "/".join(segments)


def _in_path(parameter: dict[str, Any], value: Any) -> str:
    what, style, explode = f"the path parameter {parameter['name']!r}", parameter["style"], parameter["explode"]
    if parameter["media"]:
        return _quoted(_as_media(parameter, value, what))
    name = _quoted(parameter["name"])
    if isinstance(value, list):
        items = [_quoted(_scalar(item, what)) for item in value]
        if style == "matrix":
            return "".join(f";{name}={item}" for item in items) if explode else f";{name}={','.join(items)}"
        return "." + ("." if explode else ",").join(items) if style == "label" else ",".join(items)
    if isinstance(value, dict):
        pairs = [(_quoted(key), _quoted(_scalar(one, what))) for key, one in value.items()]
        if explode:
            members = [f"{key}={one}" for key, one in pairs]
            return {"matrix": ";" + ";".join(members), "label": "." + ".".join(members)}.get(style, ",".join(members))
        flat = ",".join(word for pair in pairs for word in pair)
        return {"matrix": f";{name}={flat}", "label": f".{flat}"}.get(style, flat)
    text = _quoted(_scalar(value, what))
    return {"matrix": f";{name}={text}" if text else f";{name}", "label": f".{text}"}.get(style, text)


def _check_segment(segment: str, what: str, *, may_be_empty: bool) -> None:
    """Refuse a segment that some server could read as none, as several, or as a step up.

    Servers decode once, twice or more, fold look-alikes, and cut off what follows a `;`.
    """
    if not segment and not may_be_empty:
        raise ToolFailure(f"{what} must not be empty")
    text = segment
    for _ in range(DECODINGS):
        folded = unicodedata.normalize("NFKC", text)
        if re.search(r"[/\\\x00-\x1f\x7f]|%u[0-9a-f]{4}", folded, re.IGNORECASE):
            raise ToolFailure(f"{what} must hold no slash, backslash or control character, in whatever spelling")
        first = folded.partition(";")[0].strip()
        if first in _DOTS or (folded and not first and not segment.startswith(";")):
            raise ToolFailure(f"{what} must not be empty, '.' or '..', in whatever spelling")
        try:
            decoded = urllib.parse.unquote(text, errors="strict")
        except UnicodeDecodeError as error:
            raise ToolFailure(f"{what} holds a percent code that is no UTF-8") from error
        if decoded == text:
            return
        text = decoded
    raise ToolFailure(f"{what} is percent-encoded too many times")


def _query(parameter: dict[str, Any], value: Any, names: set[str]) -> list[str]:
    """Return the `name=value` parts of a query parameter. *names* are those of all of them."""
    what, name = f"the query parameter {parameter['name']!r}", _quoted(parameter["name"])
    kept = _RESERVED_KEPT if parameter["reserved"] else ""
    if parameter["media"]:
        return [f"{name}={_quoted(_as_media(parameter, value, what), kept)}"]
    if not isinstance(value, list | dict):
        return [f"{name}={_quoted(_scalar(value, what), kept)}"]
    if parameter["style"] == "deepObject":
        return [f"{name}{path}={one}" for path, one in _deep(value, what, kept)]
    if parameter["explode"] and isinstance(value, list):
        return [f"{name}={_quoted(_scalar(item, what), kept)}" for item in value]
    if parameter["explode"] and isinstance(value, dict):
        if taken := sorted(set(value) & (names - {parameter["name"]})):
            raise ToolFailure(f"{what}: {taken[0]!r} is a parameter of its own")
        return [f"{_quoted(key)}={_quoted(_scalar(one, what), kept)}" for key, one in value.items()]
    words = value if isinstance(value, list) else [word for pair in value.items() for word in pair]
    delimiter = _DELIMITERS[parameter["style"]]
    kept = kept.replace(",", "")
    written = [_quoted(_scalar(word, what), kept) for word in words]
    if delimiter != "," and any(delimiter in word for word in written):
        raise ToolFailure(
            f"{what}: a value must not hold {urllib.parse.unquote(delimiter)!r}, which stands between them"
        )
    return [f"{name}={delimiter.join(written)}"] if words else []


def _deep(value: Any, what: str, kept: str, path: str = "") -> list[tuple[str, str]]:
    """Return (`[key][key]`, value) of each scalar within *value*; lists repeat their key."""
    if isinstance(value, list):
        return [(path, _quoted(_scalar(item, what), kept)) for item in value]
    if not isinstance(value, dict):
        return [(path, _quoted(_scalar(value, what), kept))]
    found = []
    for key, one in value.items():
        if "[" in key or "]" in key:
            raise ToolFailure(f"{what}: a key must hold no brackets")
        if one is not None:
            found += _deep(one, what, kept, f"{path}%5B{_quoted(key)}%5D")
    return found


def _header(parameter: dict[str, Any], value: Any) -> str:
    what = f"the header {parameter['name']!r}"
    if parameter["media"]:
        text = _as_media(parameter, value, what)
    elif isinstance(value, list):
        text = ",".join(_without_comma(_scalar(item, what), what) for item in value)
    elif isinstance(value, dict):
        pairs = [(_without_comma(key, what), _without_comma(_scalar(one, what), what)) for key, one in value.items()]
        text = ",".join(f"{key}={one}" if parameter["explode"] else f"{key},{one}" for key, one in pairs)
    else:
        text = _scalar(value, what)
    if not re.fullmatch(r"[ -~]*", text) or text != text.strip() or len(text) > HEADER_CHARS:
        raise ToolFailure(f"{what} must be printable ASCII without spaces around it, at most {HEADER_CHARS} characters")
    return text


def _without_comma(text: str, what: str) -> str:
    if "," in text:
        raise ToolFailure(f"{what}: a value of several must not hold a comma")
    return text


def _cookie(parameter: dict[str, Any], value: Any) -> list[str]:
    what, name = f"the cookie {parameter['name']!r}", parameter["name"]
    if parameter["media"]:
        return [f"{name}={_quoted(_as_media(parameter, value, what))}"]
    if isinstance(value, list):
        items = [_quoted(_scalar(item, what)) for item in value]
        return [f"{name}={item}" for item in items] if parameter["explode"] else [f"{name}={','.join(items)}"]
    if isinstance(value, dict):
        pairs = [(_quoted(key), _quoted(_scalar(one, what))) for key, one in value.items()]
        if parameter["explode"]:
            raise ToolFailure(f"{what}: an object cannot be written as cookies of names of its own")
        return [f"{name}={','.join(word for pair in pairs for word in pair)}"]
    return [f"{name}={_quoted(_scalar(value, what))}"]


def _scalar(value: Any, what: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return value
    raise ToolFailure(f"{what}: {'null' if value is None else 'a list or object'} cannot be written here")


def _as_media(parameter: dict[str, Any], value: Any, what: str) -> str:
    """A parameter with `content` is written as that media type says."""
    if "json" in parameter["media"]:
        return json.dumps(value, separators=(",", ":"))
    return _scalar(value, what)


def _quoted(text: str, kept: str = "") -> str:
    try:
        return urllib.parse.quote(text, safe=kept)
    except UnicodeEncodeError as error:
        raise ToolFailure("a text holds half of a surrogate pair") from error
