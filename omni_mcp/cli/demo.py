"""`omni-mcp demo`: one call from client to record, on this machine, with real clients, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click

from omni_mcp.paths import find_home

STEP_TIMEOUT_S = 60.0

ESCAPE = """
import os, socket, urllib.request
def attempt(what, action):
    try:
        print(f"{what}: REACHED {action()!r}")
    except Exception as error:
        print(f"{what}: stopped ({type(error).__name__}: {error})")
attempt("the internet", lambda: urllib.request.urlopen("http://1.1.1.1", timeout=3).status)
attempt("the gateway's own port", lambda: socket.create_connection(("127.0.0.1", PORT), timeout=3))
def look_home():
    found = [name for name in NAMES if os.path.lexists(os.path.join(HOME, name))]
    if not found:
        raise FileNotFoundError(f"none of its {len(NAMES)} entries is there")
    return found
attempt("your home directory", look_home)
attempt("the gateway's token", lambda: open(TOKEN).read())
print("computed all the same:", sum(n * n for n in range(1000)))
"""


class DemoFailed(click.ClickException):
    """A step did not show what it must show."""


@click.command()
@click.option("--keep", is_flag=True, help="Keep the demo's directory and say where it is.")
def demo(keep: bool) -> None:
    """Walk one call through everything: allowed, refused, approved, sandboxed, recorded, verified.

    Uses a directory and a gateway of its own; nothing of yours is touched. Exit code 3: no sandbox can be had here.
    """
    try:
        import mcp  # noqa: F401  (a real client from elsewhere; only the demo and the tests need it)
    except ImportError as error:
        raise DemoFailed("the demo's client is missing; install it with: pip install 'omni-mcp[demo]'") from error
    home = Path(tempfile.mkdtemp(prefix="omni-demo-"))
    try:
        sandboxed = asyncio.run(Walk(home).run())
    except BaseExceptionGroup as group:  # the client library wraps what happens inside its contexts
        failed = group.subgroup(DemoFailed)
        raise _first_leaf(failed or group) from None
    finally:
        if keep:
            click.echo(f"\nkept: OMNI_HOME={home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    if not sandboxed:
        click.echo("\nNo sandbox can be had here, so every sandboxed call was refused. Next: omni-mcp doctor", err=True)
        sys.exit(3)


class Walk:
    """The steps, in order, against one gateway of their own."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._env = {**os.environ, "OMNI_HOME": str(home), "NO_COLOR": "1"}
        self._env.pop("XDG_RUNTIME_DIR", None)
        self._place = find_home(self._env)
        self._number = 0
        self._started = time.monotonic()

    async def run(self) -> bool:
        """Walk; returns whether a sandbox could be had."""
        self._step("Start a gateway of its own")
        async with self._gateway() as port:
            self._say(f"listens on http://127.0.0.1:{port}/mcp and a local socket; token in a file of mode 0600")
            sandboxed = self._show_isolation()
            async with self._stdio_client() as client:
                call = await self._refused(client)
                self._explain(call)
                await self._allowed(client, sandboxed)
            async with self._http_client(port) as client:
                await self._approved(client, sandboxed)
                await self._escape(client, port, sandboxed)
            self._record()
        self._step("Clean up")
        self._check_gone()
        self._say(f"gateway stopped, nothing left running; {time.monotonic() - self._started:.0f} s in all")
        return sandboxed

    def _show_isolation(self) -> bool:
        status = json.loads(self._omni("status", "--json"))
        isolation = status["isolation"]
        self._say(f"isolation in force: {isolation['posture']} ({', '.join(isolation['layers']) or 'no layer'})")
        for layer, reason in isolation["missing"].items():
            self._say(f"  lacks {layer}: {reason}")
        return isolation["posture"] not in ("none", "landlock")

    async def _refused(self, client: Any) -> str:
        self._step("Over stdio: call a tool that no rule allows")
        listed = await client.list_tools()
        self._say(f"{client.protocol_version} client sees {len(listed.tools)} tools: silence is a deny")
        result = await client.call_tool("tools__text_hash", {"text": "hello"})
        self._show_result(result)
        if not result.is_error:
            raise DemoFailed("a call that no rule allows was not refused")
        error = (result.meta or {}).get("io.omni-mcp/error", {})
        return str(error["call"])

    def _explain(self, call: str) -> None:
        self._step("Ask why")
        self._print_output(self._omni("explain", call))

    async def _allowed(self, client: Any, sandboxed: bool) -> None:
        self._step("Allow it, and call again")
        rules = self._policy()["rules"]
        for tool in ("tools__text_hash", "tools__files_write", "tools__files_read", "tools__python_run"):
            self._omni("allow", tool)
            self._say(f"$ omni-mcp allow {tool}")
            rules += 1
        async with asyncio.timeout(STEP_TIMEOUT_S):
            while self._policy()["rules"] < rules:
                await asyncio.sleep(0.1)
        self._say(f"in force without a restart: policy {self._policy()['version'][:19]}")
        result = await client.call_tool("tools__text_hash", {"text": "hello"})
        self._show_result(result)
        if sandboxed and result.is_error:
            raise DemoFailed("an allowed call was refused")

    async def _approved(self, client: Any, sandboxed: bool) -> None:
        self._step("Over HTTP: a call that waits for a person")
        arguments = {"path": "note.txt", "text": "written after a person said yes\n"}
        waiting = asyncio.create_task(client.call_tool("tools__files_write", arguments))
        approval = await self._pending_approval(waiting)
        self._say(f"the client waits; question {approval['id']} asks about {approval['name']} {approval['arguments']}")
        self._omni("approvals", "approve", approval["id"], "--yes")
        self._say(f"$ omni-mcp approvals approve {approval['id']} --yes")
        result = await asyncio.wait_for(waiting, STEP_TIMEOUT_S)
        self._show_result(result)
        if sandboxed and result.is_error:
            raise DemoFailed("an approved call did not run")

    async def _escape(self, client: Any, port: int, sandboxed: bool) -> None:
        self._step("Run Python that reaches for the network and the home directory")
        facts = {"PORT": port, "HOME": str(Path.home()), "NAMES": _home_entries(), "TOKEN": str(self._place.token_file)}
        code = "".join(f"{name} = {value!r}\n" for name, value in facts.items()) + ESCAPE
        result = await asyncio.wait_for(client.call_tool("tools__python_run", {"code": code}), STEP_TIMEOUT_S)
        text = (result.structured_content or {}).get("stdout", "")
        self._print_output(text or _text_of(result))
        if sandboxed and ("REACHED" in text or "computed all the same" not in text):
            raise DemoFailed("the sandboxed job got out, or did not run")

    def _record(self) -> None:
        self._step("What the record says")
        for run in json.loads(self._omni("runs", "list", "--json")):
            if run["kind"] == "session":
                self._print_output(self._omni("runs", "show", run["id"]))
        self._step("Verify the chain")
        self._print_output(self._omni("audit", "verify"))

    def _policy(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._omni("status", "--json"))["policy"]
        return found

    @asynccontextmanager
    async def _gateway(self) -> AsyncIterator[int]:
        log = (self._home / "gateway.log").open("wb")
        process = subprocess.Popen(
            [*_omni(), "serve", "--port", "0"], env=self._env, stdin=subprocess.DEVNULL, stderr=log
        )
        try:
            yield await self._port_of(process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, 15)
            except subprocess.TimeoutExpired:
                process.kill()
                raise DemoFailed("the gateway did not stop within 15 s") from None
            finally:
                log.close()

    async def _port_of(self, process: subprocess.Popen[bytes]) -> int:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            while True:
                if process.poll() is not None:
                    raise DemoFailed("the gateway did not start:\n" + (self._home / "gateway.log").read_text()[-2000:])
                if self._place.runtime_file.exists() and (facts := json.loads(self._place.runtime_file.read_text())):
                    return int(facts["port"])
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def _stdio_client(self) -> AsyncIterator[Any]:
        from mcp import StdioServerParameters
        from mcp.client.client import Client

        parameters = StdioServerParameters(command=_omni()[0], args=[*_omni()[1:], "stdio"], env=self._env)
        async with Client(parameters) as client:
            yield client

    @asynccontextmanager
    async def _http_client(self, port: int) -> AsyncIterator[Any]:
        import httpx2
        from mcp.client.client import Client
        from mcp.client.streamable_http import streamable_http_client

        headers = {"Authorization": f"Bearer {self._place.token_file.read_text().strip()}"}
        async with httpx2.AsyncClient(headers=headers, timeout=STEP_TIMEOUT_S) as http:
            transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http)
            async with Client(transport) as client:
                yield client

    async def _pending_approval(self, waiting: asyncio.Task[Any]) -> dict[str, Any]:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            while True:
                if waiting.done():
                    raise DemoFailed(f"the call did not wait for a person: {_text_of(waiting.result())}")
                pending = json.loads(await asyncio.to_thread(self._omni, "approvals", "list", "--json"))
                if pending:
                    found: dict[str, Any] = pending[0]
                    return found
                await asyncio.sleep(0.1)

    def _check_gone(self) -> None:
        if self._place.runtime_file.exists() or self._place.socket.exists():
            raise DemoFailed(f"the gateway left something in {self._place.runtime}")
        shutil.rmtree(self._place.runtime, ignore_errors=True)

    def _omni(self, *arguments: str) -> str:
        done = subprocess.run(
            [*_omni(), *arguments], env=self._env, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            raise DemoFailed(f"omni-mcp {' '.join(arguments)} ended {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _step(self, title: str) -> None:
        self._number += 1
        click.echo(click.style(f"\n{self._number}. {title}", bold=True))

    def _say(self, text: str) -> None:
        click.echo(f"   {text}")

    def _print_output(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            click.echo(f"   | {line}")

    def _show_result(self, result: Any) -> None:
        mark = click.style("refused", fg="red") if result.is_error else click.style("answered", fg="green")
        self._say(f"{mark}: {_text_of(result)[:300]}")


def _home_entries() -> list[str]:
    """What is in the home directory, but for the way to the interpreter, which a cell needs."""
    way = Path(sys.base_prefix).parts
    return [entry.name for entry in Path.home().iterdir() if entry.name not in way] if Path.home().is_dir() else []


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_leaf(first) if isinstance(first, BaseExceptionGroup) else first


def _omni() -> list[str]:
    """This very installation, as a command."""
    return [sys.executable, "-m", "omni_mcp.cli.main"]


def _text_of(result: Any) -> str:
    return " ".join(block.text for block in result.content if block.type == "text")
