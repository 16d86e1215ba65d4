"""One spelling for each host: what a URL names, what a pattern covers, and that the proxy reads it the same way."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from omni_mcp.contracts.hosts import NO_HOST, check_exact_host, check_host, host_of_url, is_covered
from omni_mcp.contracts.manifest import ToolManifest
from omni_mcp.engines.sandbox.egress.grant import EgressGrant
from omni_mcp.engines.sandbox.egress.target import parse_target

PIECES = st.sampled_from(
    ["http://", "HTTPS://", "a", "b.org", ".", "..", ":", "443", "0", "127.0.0.1", "0x7f.1", "[::1]", "[", "]", "@",
     "\\", "/", "#", "?", "%2e", " ", "\t", "\n", "é", "\u3002", "*", "xn--a", "-", "_", "//"]
)  # fmt: skip
URLS = st.lists(PIECES, min_size=1, max_size=8).map("".join)


@given(URLS | st.text(max_size=40) | URLS.map(lambda text: f"https://{text}"))
@example("https://a.org:0443/")
@example("http://[::ffff:1.2.3.4]/")
def test_whatever_names_a_host_names_the_one_that_the_proxy_and_the_standard_library_see(url: str) -> None:
    host = host_of_url(url)
    if host == NO_HOST:
        return
    check_exact_host(host)
    assert EgressGrant(hosts=(host,)).covers(parse_target(host))
    seen = urlsplit(url)
    default = {"http": 80, "https": 443}[seen.scheme]
    name = f"[{seen.hostname}]" if ":" in (seen.hostname or "") else seen.hostname
    assert host == f"{name}:{seen.port or default}"


NAMES = st.lists(st.sampled_from(["a", "b", "org", "www"]), min_size=1, max_size=4).map(".".join)
PATTERNS = st.tuples(st.sampled_from(["", "*."]), NAMES, st.sampled_from([":443", ":80"])).map("".join)


@given(NAMES, st.sampled_from([443, 80]), PATTERNS)
def test_a_pattern_covers_for_a_person_what_it_covers_for_the_proxy(name: str, port: int, pattern: str) -> None:
    check_host(pattern)
    host = f"{name}:{port}"
    assert is_covered(host, [pattern]) == EgressGrant(hosts=(pattern,)).covers(parse_target(host))


@given(NAMES, NAMES, NAMES, st.sampled_from(["", "*."]))
def test_a_pattern_within_a_pattern_covers_nothing_that_the_wider_one_does_not(
    suffix: str, further: str, name: str, mark: str
) -> None:
    wide, narrow = f"*.{suffix}:443", f"{mark}{further}.{suffix}:443"
    assert is_covered(narrow, [wide])
    assert not is_covered(wide, [narrow])
    for host in (f"{name}:443", f"{name}.{further}.{suffix}:443", f"{suffix}:443", f"{further}.{suffix}:80"):
        assert not is_covered(host, [narrow]) or is_covered(host, [wide])


@pytest.mark.parametrize(
    "text",
    [
        "", "a.org", "a.org:", ":443", "a.org:0", "a.org:65536", "a.org:0443", "A.org:443", "a.org.:443", "*:443",
        "*.:443", "*.*.org:443", "a.*.org:443", "*.1.2.3:80", "*.[::1]:80", "127.1:80", "0177.0.0.1:80", "0.0.0.0:80",
        "[::]:80", "::1:80", "[0:0::1]:80", "https://a.org:443", "a.org:443/", "u@a.org:443", "a.org:443 ", "ä.org:443",
        "a.org:４４３", "invalid:0", "224.0.0.1:80",
    ],
)  # fmt: skip
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host|port"):
        check_host(text)


def test_nothing_covers_what_names_no_host() -> None:
    assert not is_covered(NO_HOST, ["*.org:443", "a.org:443"])
    with pytest.raises(ValueError, match="pattern"):
        check_exact_host("*.org:443")


@pytest.mark.parametrize(
    "changes",
    [
        {"hosts": ["a.org"]}, {"hosts": ["A.org:443"]}, {"secrets": ["path"]}, {"secrets": ["ld_preload"]},
        {"secrets": ["https_proxy"]}, {"secrets": ["a-b"]}, {"secrets": ["PYTHONPATH"]},
        {"binding": {"kind": "sandbox_job", "entry_point": "a:b", "egress_argument": "path"}},
        {"binding": {"kind": "sandbox_job", "entry_point": "a:b", "egress_argument": "count"}},
        {"binding": {"kind": "sandbox_job", "entry_point": "a:b", "shares": ["../x"]}},
        {"labels": {"egress": False}},
    ],
)  # fmt: skip
def test_a_manifest_that_would_do_something_else_than_it_says_is_refused(changes: dict[str, Any]) -> None:
    facts: dict[str, Any] = {
        "id": "get", "version": "1.0.0", "title": "Get", "description": "Gets.", "secrets": ["token"],
        "input_schema": {"properties": {"url": {"type": "string"}, "count": {"type": "integer"}}},
        "binding": {"kind": "sandbox_job", "entry_point": "a:b", "egress_argument": "url"},
    }  # fmt: skip
    ToolManifest.model_validate(facts)
    with pytest.raises(ValidationError):
        ToolManifest.model_validate(facts | changes)
