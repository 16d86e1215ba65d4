"""Promise 10: a registered secret leaves no trace in what is recorded, in whatever common form it comes."""

from __future__ import annotations

import base64
import html
import json
import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_mcp.engines.secrets.key_names import is_secret_name
from omni_mcp.engines.secrets.masking import MARK, UNCHECKED, SecretMasker

SECRETS = {
    "plain": "s3cr3t-Value-0123456789",
    "odd": 'p"a/s\\s w&rd+<é>=%?\nline',
    "short": "pa55",
    "url": "postgres://app:hunter2@db.example/main",
}
ENCODINGS: dict[str, Callable[[str], str]] = {
    "raw": lambda s: s,
    "url": lambda s: urllib.parse.quote(s, safe=""),
    "url, path": urllib.parse.quote,
    "form": urllib.parse.quote_plus,
    "json": lambda s: json.dumps(s)[1:-1],
    "json, utf-8": lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    "json twice": lambda s: json.dumps(json.dumps(s, ensure_ascii=False)[1:-1], ensure_ascii=False)[1:-1],
    "html": html.escape,
    "hex": lambda s: s.encode().hex(),
    "HEX": lambda s: s.encode().hex().upper(),
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_a_registered_secret_is_masked_in_each_common_encoding(secret: str, encode: Callable[[str], str]) -> None:
    masker, form = SecretMasker(SECRETS), encode(secret)
    value = {"a": [{"text": f"before {form} after"}], form: 1}
    masked, paths = masker.mask(value)
    assert form not in json.dumps(masked, ensure_ascii=False) and form not in str(masked)
    assert masked["a"][0]["text"].startswith("before [masked:") and masked["a"][0]["text"].endswith("] after")
    assert paths == ("$.a[0].text", "$.*") or len(paths) == 2
    assert form not in str(masker.mask_known(value)) and form not in masker.mask_text(f"x {form} y")
    assert form not in str(paths)


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("name", ["plain", "odd", "url"])
def test_a_secret_inside_base64_is_masked_at_every_alignment(
    before: int, encode: Callable[[bytes], bytes], name: str
) -> None:
    secret = SECRETS[name].encode()
    text = encode(b"#" * before + secret + b"trailing").decode()
    masked = SecretMasker(SECRETS).mask_text(f"Basic {text}")
    assert "[masked:" in masked
    left = masked.removeprefix("Basic ").replace(f"[masked:{name}]", "")
    core = encode(secret).decode().rstrip("=")[4:-4]
    assert core not in masked and len(left) <= len(text) - len(secret)


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=4, max_size=40), st.text(max_size=60), st.text(max_size=60))
def test_any_secret_in_any_text_is_found(secret: str, before: str, after: str) -> None:
    masked, _ = SecretMasker({"k": secret}).mask({"x": [before + secret + after]})
    text = masked["x"][0]
    assert "[masked:k]" in text
    assert secret not in text.replace("[masked:k]", "\0")


def test_what_holds_no_secret_is_returned_as_it_is_and_untouched() -> None:
    value = {"path": "notes.txt", "max_tokens": 5, "token_count": 7, "list": [1, None, True, "s3cr3t-Value"]}
    masked, paths = SecretMasker(SECRETS).mask(value)
    assert masked is value and paths == ()


def test_the_input_is_never_changed() -> None:
    value = {"password": "x", "a": [SECRETS["plain"]]}
    SecretMasker(SECRETS).mask(value)
    assert value == {"password": "x", "a": [SECRETS["plain"]]}


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "db_password",
        "DB-PASSWORD",
        "dbPassword",
        "passwd",
        "api_key",
        "apiKey",
        "API_KEY",
        "x-api-key",
        "Authorization",
        "authorization",
        "access_token",
        "accessToken",
        "token",
        "secret",
        "client_secret",
        "private_key",
        "privateKey",
        "set-cookie",
        "Cookie",
        "credentials",
        "token_value",
        "password2",
        "newPassword",
        "aws_secret_access_key",
    ],
)
def test_values_under_names_of_secrets_are_masked_with_their_path(name: str) -> None:
    masked, paths = SecretMasker({}).mask({"arguments": {name: "hunter2", "b": {name: ["x", {"y": 1}]}}})
    assert masked == {"arguments": {name: MARK, "b": {name: MARK}}}
    assert paths == (f"$.arguments.{name}", f"$.arguments.b.{name}")


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "token_count",
        "tokens",
        "token_type",
        "secretary",
        "password_policy",
        "next_page_token",
        "progressToken",
        "key",
        "keys",
        "monkey",
        "public_key",
        "primary_key",
        "cookie_consent",
        "author",
        "authority",
        "keyboard",
        "tokenizer",
        "nextPageToken",
        "key_id",
        "secret_name",
    ],
)
def test_names_that_only_look_like_it_survive(name: str) -> None:
    assert not is_secret_name(name)
    assert SecretMasker({}).mask({name: "value"}) == ({name: "value"}, ())


def test_pairs_of_name_and_value_are_masked_like_fields() -> None:
    headers = [{"name": "Authorization", "value": "Bearer x"}, {"name": "Accept", "value": "*/*"}]
    masked, paths = SecretMasker({}).mask({"headers": headers})
    assert masked["headers"] == [{"name": "Authorization", "value": MARK}, {"name": "Accept", "value": "*/*"}]
    assert paths == ("$.headers[0].value",)


def test_empty_values_are_left_to_say_that_they_were_empty() -> None:
    value: dict[str, object] = {"password": "", "token": None, "secret": False, "cookies": []}
    assert SecretMasker({}).mask(value)[0] == value


def test_a_client_sees_registered_secrets_masked_and_nothing_else() -> None:
    value = {"password": "hunter2", "text": SECRETS["plain"]}
    assert SecretMasker(SECRETS).mask_known(value) == {"password": "hunter2", "text": "[masked:plain]"}


def test_a_field_that_cannot_be_checked_is_replaced_whole() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    deep: object = "x"
    for _ in range(100_000):
        deep = [deep]
    for bad in (deep, {1: "x"}):
        masked, paths = SecretMasker(SECRETS).mask({"good": "text", "bad": bad, "password": "x"})
        assert masked == {"good": "text", "bad": UNCHECKED, "password": MARK}
        assert set(paths) == {"$.bad", "$.password"}
    assert SecretMasker(SECRETS).mask_known(deep) == UNCHECKED


def test_a_secret_too_short_to_look_for_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="'pin' cannot be masked: shorter than 4") as refusal:
        SecretMasker({"pin": "xyz"})
    assert "xyz" not in str(refusal.value)


def test_lone_surrogates_and_huge_numbers_do_not_stop_masking() -> None:
    masked, _ = SecretMasker(SECRETS).mask({"a": "\ud800" + SECRETS["plain"], "n": 2**80})
    assert masked == {"a": "\ud800[masked:plain]", "n": 2**80}
