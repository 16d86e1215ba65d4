"""What is taken for a secret, by name and by form, and what is not: both faults cost something."""

from __future__ import annotations

import pytest

from omni_mcp.clients.secret_values import (
    is_secret,
    is_secret_header,
    looks_secret,
    secret_variables,
    shown_file,
    shown_text,
    shown_words,
)
from omni_mcp.engines.secrets.key_names import is_secret_name

NAMES = secret_variables(is_secret_name)


@pytest.mark.parametrize(
    "value",
    [
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "github_pat_11ABCDEFG0123456789", "glpat-abcdefgh12345678",
        "sk-proj-abcdefgh12345678", "sk_live_abcdefgh12345678", "xoxb-1234567890-abcdefghij", "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv", "hf_abcdefghijklmnop", "npm_abcdefghijklmnop",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "postgresql://ann:hunter2@db.example.org/app",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaA==\n-----END OPENSSH PRIVATE KEY-----",
        "0123456789abcdef0123456789abcdef", "q7Vt2LpX9sRw4KmZ8bNc3YdF6hJgT1aE", "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA==",
    ],
)  # fmt: skip
def test_a_secret_is_known_by_its_form(value: str) -> None:
    assert looks_secret(value)


@pytest.mark.parametrize(
    "value",
    [
        "", "true", "8080", "info", "eu-central-1", "my-project-2024-eu-west", "/home/ann/Documents/notes-2024",
        "https://api.example.org/v1?limit=10", "postgresql://db.example.org/app", "@modelcontextprotocol/server-github",
        "server-sequential-thinking", "550e8400-e29b-41d4-a716-446655440000", "ann@example.org", "2024-10-01T12:00:00Z",
        "a text with some words that is long enough", "mcp-server-time==2025.1.17", "--local-timezone=Europe/Berlin",
        "TRANSACTION_ISOLATION_READ_COMMITTED", "gpt-5.2-codex", "C:\\Users\\Ann\\AppData\\Roaming\\npm",
    ],
)  # fmt: skip
def test_ordinary_values_are_no_secrets(value: str) -> None:
    assert not looks_secret(value)
    assert shown_text(value, NAMES) == value


@pytest.mark.parametrize(
    "name",
    ["GITHUB_TOKEN", "OPENAI_API_KEY", "DB_PASSWORD", "TAVILY_KEY", "GH_PAT", "SLACK_WEBHOOK_URL", "SENTRY_DSN"],
)
def test_a_variable_is_known_by_its_name(name: str) -> None:
    assert is_secret(name, "anything", NAMES)


@pytest.mark.parametrize("name", ["LOG_LEVEL", "MAX_TOKENS", "KEYBOARD", "PATH", "AWS_REGION", "SSH_PUBLIC_KEY"])
def test_ordinary_variables_are_no_secrets(name: str) -> None:
    assert not is_secret(name, "anything", NAMES)


@pytest.mark.parametrize("value", ["", "abc", "true", "None", " on "])
def test_what_would_mask_half_of_the_record_is_no_secret_whatever_its_name(value: str) -> None:
    assert not is_secret("API_TOKEN", value, NAMES)
    assert not is_secret_header("Authorization", value, NAMES)


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("Authorization", "anything", True), ("X-API-Key", "anything", True), ("X-Session-Id", "anything", True),
        ("Cookie", "a=b1", True), ("X-Team", "blue", False), ("Accept-Language", "de-DE", False),
        ("X-Readonly", "true", False), ("X-Trace", "0123456789abcdef0123456789abcdef", True),
    ],
)  # fmt: skip
def test_headers(name: str, value: str, secret: bool) -> None:
    assert is_secret_header(name, value, NAMES) is secret


def test_a_command_is_shown_without_its_secrets_and_with_everything_else() -> None:
    words = [
        "npx",
        "-y",
        "x@1.2.3",
        "--api-key",
        "abcd",
        "--token=abcd",
        "--port",
        "80",
        "https://e.org?key=a&api_key=abcd",
    ]
    assert shown_words(words, NAMES) == [
        "npx", "-y", "x@1.2.3", "--api-key", "***", "--token=***", "--port", "80", "https://e.org?key=a&api_key=***",
    ]  # fmt: skip


def test_a_file_is_shown_without_its_secrets_and_with_everything_else() -> None:
    text = """{"a": {"API_KEY": "abcd", 'B_TOKEN' : 'ef"gh', "LOG": "info"}, "args": ["--password", "ijkl", "x"]}
API_KEY = "mnop"
url = "https://u:qrst@e.org/x"
"""
    assert (
        shown_file(text, NAMES)
        == """{"a": {"API_KEY": "***", 'B_TOKEN' : "***", "LOG": "info"}, "args": ["--password", "***", "x"]}
API_KEY = "***"
url = "https://***@e.org/x"
"""
    )
