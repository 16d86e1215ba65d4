"""A real gateway in a process of its own, as a user runs it: a temporary home, a policy file, `omni-mcp serve`."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni_mcp.paths import Home, find_home

OMNI = str(Path(sys.executable).with_name("omni-mcp"))
START_LIMIT_S = 30.0
STOP_LIMIT_S = 20.0
COMMAND_LIMIT_S = 60.0
LOOK_AGAIN_S = 0.02

ALLOW_RUNS = """
@id("test-runs")
permit (principal, action, resource in Omni::Server::"runs");
"""


class NotStarted(Exception):
    """The gateway ended or said nothing; the message holds its last lines."""


@dataclass(frozen=True, slots=True)
class Place:
    """An operator's directory, and how the commands find it."""

    root: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What a command gets: nothing of the caller's own settings leaks into it."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_")}
        inherited["PATH"] = f"{Path(OMNI).parent}{os.pathsep}{inherited.get('PATH', '')}"
        return {**inherited, "OMNI_HOME": str(self.root / "home"), "XDG_RUNTIME_DIR": str(self.root), **self.extra}

    @property
    def home(self) -> Home:
        """The directories in force."""
        return find_home(self.environment)

    def write_policy(self, text: str, name: str = "test.cedar") -> None:
        """Put one rule file in force."""
        self.home.policies.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self.home.policies / name
        file.write_text(text)
        file.chmod(0o600)

    def end_of(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end, whatever that is."""
        return subprocess.run(
            [OMNI, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )

    def run(self, *arguments: str) -> str:
        """Run one command that has to succeed and return what it printed."""
        end = self.end_of(*arguments)
        assert end.returncode == 0, f"omni-mcp {' '.join(arguments)} ended with {end.returncode}:\n{end.stderr}"
        return end.stdout

    def run_json(self, *arguments: str) -> Any:
        """Run one command with `--json`."""
        return json.loads(self.run(*arguments, "--json"))


@contextmanager
def new_place(**extra: str) -> Iterator[Place]:
    """Make a directory with a short name (a unix socket's path ends at 108 bytes) and remove it again."""
    root = Path(tempfile.mkdtemp(prefix="omni-"))
    (root / "home").mkdir(mode=0o700)
    try:
        yield Place(root, extra)
    finally:
        shutil.rmtree(root)


@dataclass(slots=True)
class Running:
    """A gateway that serves."""

    place: Place
    process: subprocess.Popen[bytes]
    port: int

    @property
    def token(self) -> str:
        """The token that the first start minted."""
        return self.place.home.token_file.read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        """What an HTTP client has to send."""
        return {"Authorization": f"Bearer {self.token}"}

    def url(self, path: str = "/mcp") -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}{path}"

    def wait_for_end(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Wait until the process has ended; a negative number is the signal that ended it."""
        return self.process.wait(limit_s)


@contextmanager
def serving(
    place: Place, *arguments: str, command: Sequence[str] = (OMNI, "serve", "--port", "0")
) -> Iterator[Running]:
    """Run a gateway until the block ends; whatever is left of it then is killed."""
    before = _runtime_stamp(place)
    said = place.root / "gateway.log"
    with said.open("ab") as output:
        process = subprocess.Popen(
            [*command, *arguments], env=place.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield Running(place, process, _wait_for_port(place, process, before, said))
    finally:
        stop(process)


def end_gateway_of_shim(place: Place) -> None:
    """End the gateway that a shim started: it would live on for its idle time. Waits until it is gone."""
    pid = int(json.loads(place.home.runtime_file.read_text())["pid"])
    handle = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        ended, _, _ = select.select([handle], [], [], STOP_LIMIT_S)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            select.select([handle], [], [], STOP_LIMIT_S)
    finally:
        os.close(handle)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End *process* the way an operator would, then by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _runtime_stamp(place: Place) -> int:
    try:
        return place.home.runtime_file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _wait_for_port(place: Place, process: subprocess.Popen[bytes], before: int, said: Path) -> int:
    """The runtime file is the sign that it listens; a file can only be looked at again and again."""
    deadline_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        if _runtime_stamp(place) not in (0, before):
            try:
                facts: dict[str, Any] = json.loads(place.home.runtime_file.read_text())
            except (ValueError, FileNotFoundError):
                facts = {}
            if facts.get("pid") == process.pid:
                return int(facts["port"])
        time.sleep(LOOK_AGAIN_S)
    raise NotStarted(f"the gateway did not start ({process.poll()}):\n{said.read_text(errors='replace')[-3000:]}")
