"""`tools try` calls a tool and `tools search` looks for one, through the running gateway, as the person who asks."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import orjson

from omni_mcp.cli.person import json_option, printable
from omni_mcp.cli.person_client import EXIT_FAILED, agent_option, person_client, print_result, profile_option
from omni_mcp.contracts.json import JsonObject
from omni_mcp.serving.search_server import FOUND_LIMIT, SEARCH_TOOLS

LINE_CHARACTERS = 100


@click.command("try")
@click.argument("name")
@click.option("--args", "text", help="The arguments, as one JSON object.")
@click.option(
    "--file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="A file with the arguments; - for standard input.",
)  # fmt: skip
@profile_option
@agent_option
@json_option
def try_tool(name: str, text: str | None, file: Path | None, profile: str, agent: str | None, as_json: bool) -> None:
    """Call the tool NAME, as a client would, and print its answer; exits 1 if the call was refused or failed.

    It is an ordinary call: the policy decides it, a person may be asked, and it is on record.

    \b
    omni-mcp tools try tools__text_hash --args '{"text": "hello"}'
    echo '{"path": "notes.txt"}' | omni-mcp tools try tools__files_read --file -
    """
    arguments = _arguments(text, file)
    with person_client(agent=agent, profile=profile) as gateway:
        result = gateway.call(name, arguments)
    if not as_json:
        print_result(result)
        return
    click.echo(orjson.dumps(result))
    if result.get("isError") or result.get("resultType") == "input_required":
        raise click.exceptions.Exit(EXIT_FAILED)


@click.command("search")
@click.argument("words", nargs=-1, required=True)
@click.option("--limit", default=5, show_default=True, type=click.IntRange(1, FOUND_LIMIT))
@profile_option
@agent_option
@json_option
def search(words: tuple[str, ...], limit: int, profile: str, agent: str | None, as_json: bool) -> None:
    """Find tools by WORDS of their names, descriptions and parameters; exits 1 if nothing fits.

    What you find is what you, or your agent, could be allowed to call.
    """
    with person_client(agent=agent, profile=profile) as gateway:
        result = gateway.call(SEARCH_TOOLS, {"query": " ".join(words), "limit": limit})
    if "structuredContent" not in result:
        print_result(result)
        return
    found: JsonObject = result["structuredContent"]
    if as_json:
        click.echo(orjson.dumps(found))
    else:
        for tool in found["tools"]:
            _print_found(tool)
        if found["more"]:
            click.echo("there are more: add --limit, or another word", err=True)
    if not found["tools"]:
        click.echo("nothing fits; see: omni-mcp tools cost", err=True)
        raise click.exceptions.Exit(EXIT_FAILED)


def _print_found(tool: JsonObject) -> None:
    description = str(tool.get("description", tool.get("title", ""))).strip().partition("\n")[0]
    schema = tool.get("inputSchema", {})
    required = set(schema.get("required", []))
    parameters = [name if name in required else f"[{name}]" for name in schema.get("properties", {})]
    click.echo(printable(f"{tool['name']}  {' '.join(parameters)}".rstrip()))
    click.echo(printable(f"    {description[:LINE_CHARACTERS]}"))


def _arguments(text: str | None, file: Path | None) -> JsonObject:
    if text is not None and file is not None:
        raise click.UsageError("--args and --file exclude each other")
    if file is not None:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    try:
        arguments = orjson.loads(text or "{}")
    except orjson.JSONDecodeError as error:
        raise click.UsageError(f"the arguments are no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise click.UsageError('the arguments must be one JSON object, such as {"path": "notes.txt"}')
    return arguments
