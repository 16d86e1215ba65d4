"""`sandbox run` under odd callers: blocked and ignored signals, no directory to stand in, no /proc or a foreign one."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.conftest import LIMIT_S, RUN, Run, lacking, report

OF_THE_LIBRARY = 0x180000000  # signals 32 and 33, which only the C library's threads use
OWN_SERVER = """
import http.server, threading, urllib.request
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for host in ("localhost", "127.0.0.1"):
    print(urllib.request.urlopen(f"http://{host}:{server.server_port}/", timeout=9).status)
"""


def test_signals_that_the_caller_blocks_do_not_change_the_end(run: Run) -> None:
    every = signal.valid_signals() - {signal.SIGTERM}
    done = run(
        "--json", "--", "sh", "-c", "exit 3", preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, every)
    )

    assert (done.returncode, report(done)["reason"]) == (3, "exit")


def test_signals_that_the_caller_ignores_are_as_usual_in_the_job(run: Run) -> None:
    ignored = (signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM, signal.SIGUSR1, signal.SIGTSTP, signal.SIGCHLD, 50)

    def ignore() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    done = run("--", "grep", "SigIgn", "/proc/self/status", preexec_fn=ignore)

    assert int(done.stdout.split()[1], 16) & ~OF_THE_LIBRARY == 0


@pytest.mark.parametrize(("ignored", "code"), [(False, 129), (True, 0)])
def test_whoever_ignores_a_lost_terminal_goes_on_without_it(
    start: Callable[..., Any], ignored: bool, code: int
) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    process = start("--", "sh", "-c", "echo here; read line", preexec_fn=ignore)
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGHUP)
    if not ignored:
        assert process.wait(LIMIT_S) == code
    process.communicate(b"go on\n", LIMIT_S)

    assert process.returncode == code


@pytest.mark.parametrize("words", [["--workspace", "."], ["--read", "."]])
def test_a_directory_that_is_gone_is_refused_in_words(run: Run, tmp_path: Path, words: list[str]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()

    def stand_there() -> None:
        os.chdir(gone)
        gone.rmdir()

    done = run("--json", *words, "--", "true", preexec_fn=stand_there)

    assert (done.returncode, report(done)["reason"]) == (2, "usage")
    assert b"Traceback" not in done.stderr and words[0].encode() in done.stderr


@pytest.mark.parametrize(
    ("way", "why"),
    [
        (["--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh"], b"/proc is not mounted"),
        (["--pid", "--fork", "sh", "-c", '"$@"; exit $?', "sh"], b"another pid namespace"),
    ],
)
def test_without_a_proc_of_its_own_nothing_is_tried(environment: dict[str, str], way: list[str], why: bytes) -> None:
    if os.geteuid() != 0:
        lacking("root", "only root makes namespaces in this way")
    done = subprocess.run(
        ["unshare", *way, *RUN, "--", "true"], env=environment, capture_output=True, timeout=LIMIT_S, check=False
    )

    assert done.returncode == 126 and why in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_server_of_its_own_is_reached_beside_the_proxy(run: Run) -> None:
    done = run("--json", "--allow", "127.0.0.2:1", "--", "python3", "-c", OWN_SERVER)

    assert done.stdout == b"200\n200\n", done.stderr
    assert report(done)["connections"] == []


def test_the_standard_descriptors_can_be_opened_by_their_names(run: Run) -> None:
    script = "cat /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr"
    done = run("--", "sh", "-c", script, input=b"in\n")

    assert (done.returncode, done.stdout, done.stderr) == (0, b"in\nout\n", b"err\n")


def test_what_its_pipes_belong_to_outside_does_not_change(run: Run, tmp_path: Path) -> None:
    """Pipes between us and the job become the job's; what we were given ourselves never does."""
    files = [tmp_path / name for name in ("in", "out")]
    for file in files:
        file.touch()
    with files[0].open("rb") as stdin, files[1].open("wb") as stdout:
        run("--", "cat", input=None, capture_output=False, stdin=stdin, stdout=stdout)

    assert {file.stat().st_uid for file in files} == {os.geteuid()}
    assert os.stat(os.devnull).st_uid == 0


def test_a_job_whose_child_was_killed_for_memory_ends_as_one_that_was(run: Run) -> None:
    script = "python3 -c 'bytearray(200 << 20)'; exit 0"
    done = run("--json", "--memory", "64", "--", "sh", "-c", script)
    found = report(done)

    if found["isolation"]["posture"] != "full":
        lacking("cgroup", "only a cgroup kills one for all")
    assert (done.returncode, found["reason"]) == (137, "memory")


def test_many_terminals_of_many_runs_are_each_ones_own(start: Callable[..., Any]) -> None:
    script = "import os, pty; pty.openpty(); print(sorted(os.listdir('/dev/pts')), flush=True); input()"
    running = [start("--", "python3", "-c", script) for _ in range(2)]
    seen: list[bytes] = []
    threads = [threading.Thread(target=lambda one=one: seen.append(one.stdout.readline())) for one in running]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    for one in running:
        one.communicate(b"\n", LIMIT_S)

    assert seen == [b"['0', 'ptmx']\n"] * 2
