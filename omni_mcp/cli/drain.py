"""`omni-mcp drain` and `undrain`: no new calls, those under way end, then the gateway does."""

from __future__ import annotations

import sys
import time
from threading import Thread
from typing import Any

import click
import orjson

from omni_mcp.cli.launch import ANSWER_TIMEOUT_S, control
from omni_mcp.cli.person import json_option, printable
from omni_mcp.contracts.errors import Conflict
from omni_mcp.datalock import read_note
from omni_mcp.paths import Home, find_home

WAITS_FOR_INPUT = "a call that waits for its caller's input"
LOOK_S = 0.2
REPEAT_S = 10.0  # what is waited for is said again after so long, also if it is the same
NAMES_SHOWN = 5
DEADLINE_S = 30.0
END_TIMEOUT_S = 60.0  # it has ten seconds; the rest is for a loaded machine

deadline_option = click.option(
    "--deadline", "deadline_s", type=click.FloatRange(0, 24 * 3600), default=DEADLINE_S, show_default=True,
    metavar="SECONDS", help="How long calls under way may take.",
)  # fmt: skip


@click.command()
@deadline_option
@click.option("--stay", is_flag=True, help="Let the gateway run on; `omni-mcp undrain` takes calls again.")
@json_option
def drain(deadline_s: float, stay: bool, as_json: bool) -> None:
    """Take no new calls, wait for those under way, then end the gateway.

    \b
    omni-mcp drain                    end the gateway once its calls have ended; after 30 s they are cancelled
    omni-mcp drain --deadline 300     give them five minutes
    omni-mcp drain --stay             do not end it: before maintenance, or to take it out of a load balancer

    From the first moment new calls are refused (`draining`, with the seconds after which to come back), and
    `/readyz` answers 503; lists and reads of the log are served. What is waited for is said on stderr.

    Exit code 0 when every call ended by itself, 1 when the deadline came first: then what was left is cancelled,
    with its outcome on record, or with --stay still under way.
    """
    home = find_home()
    ends_s = time.monotonic() + deadline_s
    wanted = {"deadline_s": deadline_s, "stay": stay}
    if stay:
        _ask(home, "drain", wanted)
        left = _wait(home, ends_s)
    else:
        answer = _hear(home, wanted, deadline_s, ends_s)
        left = [str(name) for name in answer["left"]]
        _until_gone(home, answer.get("pid"))
    if as_json:
        click.echo(orjson.dumps({"drained": not left, "ended": not stay, "left": left}))
    elif left and stay:
        click.echo(f"{len(left)} calls are still under way; wait on with: omni-mcp drain --stay", err=True)
    elif left:
        click.echo(f"{len(left)} calls were cancelled; see: omni-mcp runs list", err=True)
    sys.exit(1 if left else 0)


@click.command()
@json_option
def undrain(as_json: bool) -> None:
    """Take calls again, after `omni-mcp drain`."""
    _ask(find_home(), "undrain", None)
    if as_json:
        click.echo(orjson.dumps({"draining": False}))


def calls_inside(home: Home) -> dict[str, Any] | None:
    """Return what the running gateway says of its calls; None if none runs or it has no local socket."""
    answer = control(home, "calls")
    return answer if answer is not None and answer.get("ok") is True else None


class Progress:
    """Says on stderr what is waited for: when it changes, and again now and then."""

    def __init__(self, ends_s: float) -> None:
        self._ends_s = ends_s
        self._said: list[str] = []
        self._said_at_s = 0.0

    def show(self, calls: list[dict[str, Any]], waiting_for_input: int = 0) -> None:
        """Say it, unless it was said just now."""
        now_s = time.monotonic()
        ids = [str(one["call"]) for one in calls] + [f"and {waiting_for_input}"]
        if ids == self._said and now_s < self._said_at_s + REPEAT_S:
            return
        self._said, self._said_at_s = ids, now_s
        words = [_words(one) for one in calls[:NAMES_SHOWN]]
        if len(calls) > NAMES_SHOWN:
            words.append(f"{len(calls) - NAMES_SHOWN} more")
        if waiting_for_input:
            words.append(f"{waiting_for_input} that wait for their caller's input")
        if words:
            left_s = max(0.0, self._ends_s - now_s)
            click.echo(f"{left_s:.0f} s left; waiting for: {'; '.join(words)}", err=True)


def _words(one: dict[str, Any]) -> str:
    state = "running" if one["dispatched"] else "not started: waits for a person (omni-mcp approvals list) or a place"
    return printable(f"{one['name']} of {one['principal']} ({one['since_s']:.0f} s, {state})")


def _ask(
    home: Home, name: str, arguments: dict[str, Any] | None, *, timeout_s: float = ANSWER_TIMEOUT_S
) -> dict[str, Any]:
    """Ask the running gateway for something that changes it.

    Raises:
        Conflict: none runs, it has no socket, or it refuses; with the next step.
    """
    answer = control(home, name, timeout_s=timeout_s, arguments=arguments)
    if answer is None:
        note = read_note(home.daemon_lock)
        if note is None:
            raise Conflict("no gateway runs here; see: omni-mcp status")
        raise Conflict(
            f"the gateway (process {note.get('pid')}) cannot be asked over its local socket; "
            f"to end it with 6 s for its calls: kill -TERM {note.get('pid')}"
        )
    if answer.get("ok") is not True:
        raise Conflict(str(answer.get("error")))
    return answer


def _wait(home: Home, ends_s: float) -> list[str]:
    """Say what is waited for until nothing is; returns the calls that were left at the end.

    Raises:
        Conflict: the gateway ended, or takes calls again.
    """
    progress = Progress(ends_s)
    while (found := calls_inside(home)) is not None and found["draining"]:
        rounds = int(found["waiting_for_input"])
        left = [str(one["name"]) for one in found["calls"]] + [WAITS_FOR_INPUT] * rounds
        if not left or time.monotonic() >= ends_s:
            return left
        progress.show(found["calls"], rounds)
        time.sleep(LOOK_S)
    raise Conflict("the gateway takes calls again, or has ended; see: omni-mcp status")


def _hear(home: Home, wanted: dict[str, Any], deadline_s: float, ends_s: float) -> dict[str, Any]:
    """Have the gateway drain and say what is waited for until it answers, which it does as it ends.

    Raises:
        Conflict: as `_ask`.
    """
    heard: list[dict[str, Any]] = []
    failed: list[Conflict] = []

    def ask() -> None:
        try:
            heard.append(_ask(home, "drain", wanted, timeout_s=deadline_s + END_TIMEOUT_S))
        except Conflict as error:
            failed.append(error)

    asking = Thread(target=ask, daemon=True)
    asking.start()
    progress = Progress(ends_s)
    while asking.is_alive():
        asking.join(LOOK_S)
        if asking.is_alive() and (found := calls_inside(home)) is not None and found["draining"]:
            progress.show(found["calls"], int(found["waiting_for_input"]))
    if failed:
        raise failed[0]
    return heard[0]


def _until_gone(home: Home, pid: object) -> None:
    """Wait until the process has ended: whoever starts the next one finds the data directory free.

    Raises:
        Conflict: it does not end.
    """
    ends_s = time.monotonic() + END_TIMEOUT_S
    while (note := read_note(home.daemon_lock)) is not None and note.get("pid") == pid:
        if time.monotonic() >= ends_s:
            raise Conflict(f"its calls have ended, and the gateway has not; look at its log, then: kill {pid}")
        time.sleep(LOOK_S)
