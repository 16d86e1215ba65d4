"""The tables of docs/reference are made from the code: `python -m omni_mcp.reference`, with `--check` to compare."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from pydantic import BaseModel

from omni_mcp.chain.chain import call_chain
from omni_mcp.cli.root import cli
from omni_mcp.config import Settings
from omni_mcp.contracts.errors import CATALOGUE
from omni_mcp.contracts.events import CODES, PAYLOADS, RunEvent
from omni_mcp.contracts.manifest import ToolManifest
from omni_mcp.protocol.methods import METHODS

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _first_sentence(thing: object) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def errors_page() -> str:
    """Every code that a client or a person can meet."""
    rows = [
        (f"`{entry.code}`", entry.category, entry.retry, str(entry.http_status), entry.meaning, entry.recovery)
        for entry in CATALOGUE.values()
    ]
    head = ("code", "category", "retry", "HTTP", "what it means", "next step")
    return "# Errors\n\nOne code means one thing everywhere: events, API, command line.\n\n" + table(head, rows)


def events_page() -> str:
    """Kinds and codes of RunEvents with their fields."""
    envelope = table(("field", "type"), _fields(RunEvent))
    kinds = table(
        ("kind", "what", "fields"),
        [(f"`{kind}`", _first_sentence(model), _field_names(model)) for kind, model in PAYLOADS.items()],
    )
    codes = table(
        ("code", "what", "fields"),
        [(f"`{code}`", _first_sentence(model), _field_names(model)) for code, model in CODES.items()],
    )
    return f"# Events\n\n## Envelope\n\n{envelope}\n## Kinds\n\n{kinds}\n## Codes of `system_event`\n\n{codes}"


def settings_page() -> str:
    """Every key of omni.toml with its default."""
    rows: list[tuple[str, str, str]] = []
    for name, field in Settings.model_fields.items():
        section = field.default
        if isinstance(section, BaseModel):
            for key, inner in type(section).model_fields.items():
                rows.append((f"`{name}.{key}`", f"`{inner.default!r}`", inner.description or ""))
        else:
            rows.append((f"`{name}`", f"`{field.default!r}`", field.description or ""))
    return "# Settings\n\n`omni.toml` in the operator's directory. Unknown keys are refused.\n\n" + table(
        ("key", "default", "what"), rows
    )


def commands_page() -> str:
    """Every command with its help."""
    parts = ["# Commands\n"]
    context = click.Context(cli, info_name="omni-mcp")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        parts.append(_command_help(command, ["omni-mcp", name]))
    return "\n".join(parts)


def _command_help(command: click.Command, path: list[str]) -> str:
    with click.Context(command, info_name=" ".join(path), terminal_width=100) as context:
        text = f"## {' '.join(path)}\n\n```text\n{command.get_help(context)}\n```\n"
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                text += "\n" + _command_help(inner, [*path, name]).replace("## ", "### ", 1)
    return text


def stages_page() -> str:
    """The stages of the chain, as the one function that builds it says."""
    source = inspect.getsource(call_chain)
    return f"# Stages\n\nThe one way to run a tool, as `omni_mcp/chain/chain.py` builds it:\n\n```python\n{source}```\n"


def methods_page() -> str:
    """The protocol's methods and what decides them."""
    rows = [
        (
            f"`{method.name}`",
            ", ".join(sorted(method.eras)),
            " or ".join(f"`{action}`" for action in method.action or ()),
            "" if method.handler or method.name.startswith("notifications/") else "answered as unknown",
        )
        for method in METHODS.values()
    ]
    return "# Methods\n\n" + table(("method", "eras", "Cedar action", ""), rows)


def manifest_page() -> str:
    """The fields of a tool manifest."""
    return "# Manifest fields\n\n" + table(("field", "type"), _fields(ToolManifest))


def _fields(model: type[BaseModel]) -> list[tuple[str, str]]:
    return [(f"`{name}`", f"`{_type_name(field.annotation)}`") for name, field in model.model_fields.items()]


def _type_name(annotation: object) -> str:
    name = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
    return name or str(annotation).replace("typing.", "").replace("omni_mcp.contracts.", "")


def _field_names(model: type[BaseModel]) -> str:
    return ", ".join(f"`{name}`" for name in model.model_fields if name != "code")


PAGES = {
    "errors.md": errors_page,
    "events.md": events_page,
    "settings.md": settings_page,
    "commands.md": commands_page,
    "stages.md": stages_page,
    "methods.md": methods_page,
    "manifest.md": manifest_page,
}
NOTE = "<!-- Made by `python -m omni_mcp.reference` from the code; do not edit. -->\n\n"


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with `--check` name those that differ and return 1."""
    stale = []
    for name, page in PAGES.items():
        file, text = REFERENCE / name, NOTE + page()
        if "--check" not in arguments:
            REFERENCE.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.stderr.write(
            f"docs/reference differs from the code: {', '.join(stale)}; run: python -m omni_mcp.reference\n"
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
