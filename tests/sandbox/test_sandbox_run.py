"""`omni-mcp sandbox run`: its streams, its exit codes, its limits, its workspace, and that nothing stays behind."""

from __future__ import annotations

import http.server
import os
import pty
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import omni_mcp
from omni_mcp.paths import bundled, find_home
from tests.sandbox.conftest import LIMIT_S, Run, cgroups_of, report, run_as_ordinary_user

HERE = Path(__file__).parent
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's directory is mounted, not copied")
USER_ONLY = pytest.mark.skipif(os.geteuid() == 0, reason="root's directory is copied, not mounted")


def processes_with(word: str) -> list[str]:
    """Return the command lines on this machine that hold *word*, but not that of this test."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found


def gone(word: str) -> bool:
    """Wait until no process has *word* on its command line."""
    until = time.monotonic() + 20
    while processes_with(word) and time.monotonic() < until:
        time.sleep(0.02)
    return not processes_with(word)


# what a command finds and says


def test_output_and_exit_code_are_those_of_the_command(run: Run) -> None:
    done = run("--", "sh", "-c", "echo out; echo err >&2; exit 7")

    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_the_hosts_programs_are_there(run: Run) -> None:
    programs = "python3 sh ls cat env id head sort"
    done = run("--", "sh", "-c", f"for name in {programs}; do command -v $name >/dev/null || echo no $name; done")

    assert (done.returncode, done.stdout) == (0, b"")


def test_it_stands_in_an_empty_workspace_as_nobody_special(run: Run) -> None:
    done = run("--", "sh", "-c", "pwd; ls -A; id -u; echo $HOME")

    assert done.stdout.split() == [b"/workspace", b"1000", b"/workspace"]


def test_words_after_the_command_are_the_commands_own(run: Run) -> None:
    assert run("echo", "--wall", "--json", "-h").stdout == b"--wall --json -h\n"
    assert run("--", "printf", "%s|", "a b", "", "$HOME", "*").stdout == b"a b||$HOME|*|"


def test_nothing_of_our_environment_arrives_but_what_is_named(run: Run, environment: dict[str, str]) -> None:
    environment["OMNI_TEST_SECRET"] = "hush"
    done = run("--env", "GREETING=hello there=1", "--env", "EMPTY=", "--", "env")

    assert b"hush" not in done.stdout and b"OMNI_HOME" not in done.stdout
    assert b"GREETING=hello there=1\n" in done.stdout and b"\nEMPTY=\n" in b"\n" + done.stdout


def test_a_megabyte_goes_in_and_comes_back_whole(run: Run) -> None:
    data = os.urandom(1 << 20)

    assert run("--", "cat", input=data).stdout == data


def test_large_output_comes_whole(run: Run) -> None:
    done = run("--", "head", "-c", "20000000", "/dev/zero")

    assert (done.returncode, len(done.stdout)) == (0, 20_000_000)


def test_input_that_nobody_reads_does_not_hold_the_command(run: Run) -> None:
    assert run("--", "true", input=bytes(4 << 20)).returncode == 0


def test_output_comes_while_the_command_runs_and_input_goes_in(start: Callable[..., Any]) -> None:
    process = start("--", "sh", "-c", "echo ready; read line; echo got $line; cat > /dev/null; exit 5")

    assert process.stdout.readline() == b"ready\n"
    process.stdin.write(b"this\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"got this\n"
    process.stdin.close()
    assert process.wait(LIMIT_S) == 5


def test_input_that_comes_late_through_a_descriptor_that_does_not_wait_goes_in(start: Callable[..., Any]) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    process = start("--", "sh", "-c", "echo ready; cat", stdin=reading)
    os.close(reading)
    assert process.stdout.readline() == b"ready\n"
    os.write(writing, b"late\n")
    os.close(writing)

    assert (process.stdout.read(), process.wait(LIMIT_S)) == (b"late\n", 0)


@pytest.mark.parametrize("closed", [0, 2])
def test_a_closed_stream_of_ours_is_an_empty_one(run: Run, closed: int) -> None:
    done = run("--", "sh", "-c", "cat; echo x; echo y >&2; exit 4", preexec_fn=lambda: os.close(closed), input=None)

    assert done.returncode == 4


@pytest.mark.parametrize(("script", "code"), [("echo x", 141), ("exit 4", 4)])
def test_output_for_which_there_is_no_place_is_an_error_and_no_output_is_none(run: Run, script: str, code: int) -> None:
    done = run("--", "sh", "-c", script, preexec_fn=lambda: os.close(1), input=None)

    assert done.returncode == code
    assert (b"the output cannot be written: Bad file descriptor" in done.stderr) is (code == 141)


def test_words_and_variables_that_are_not_utf8_arrive_as_they_are(run: Run) -> None:
    odd = b"a\xff\xfeb"
    done = run("--env", b"ODD=" + odd, "--", "sh", "-c", b'printf "%s|" "$ODD" "$0" ' + odd, odd)

    assert (done.returncode, done.stdout) == (0, b"|".join([odd] * 3) + b"|")


def test_our_terminal_is_not_the_jobs(start: Callable[..., Any]) -> None:
    ours, theirs = pty.openpty()
    probe = "import os, sys; print([os.isatty(n) for n in range(3)]); open('/dev/tty')"
    process = start("--", "python3", "-c", probe, stdin=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    try:
        assert process.stdout.read() == b"[False, False, False]\n"
        assert process.wait(LIMIT_S) == 1
    finally:
        os.close(ours)


# exit codes


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["--", "sh", "-c", "kill -TERM $$"], 143, "signal"),
        (["--", "sh", "-c", "kill -SEGV $$"], 139, "signal"),
        (["--wall", "0.5", "--", "sleep", "600"], 124, "timeout"),
        (["--wall", "0.5", "--", "sh", "-c", "trap '' TERM; setsid sleep 600 & sleep 600"], 124, "timeout"),
        (["--output", "64", "--", "yes"], 125, "output_limit"),
        (["--memory", "64", "--", "python3", "-c", "x = [bytearray(1 << 20) for n in range(300)]"], 137, "memory"),
        (["--cpu", "1", "--", "python3", "-c", "while True: pass"], 137, "cpu_time"),
        (["--fsize", "1", "--", "sh", "-c", "exec head -c 5000000 /dev/zero > x"], 137, "file_size"),
        (["--disk", "2", "--", "sh", "-c", "head -c 5000000 /dev/zero > x || exit 9"], 9, "disk"),
        (["--", "there-is-no-such-command"], 127, "start_failed"),
        (["--", "/no/such/command"], 127, "start_failed"),
        (["--", ""], 127, "start_failed"),
        (["--", b"not-utf8-\xff"], 127, "start_failed"),
        (["--posture", "full", "--no-cgroup", "--", "true"], 126, "sandbox_unavailable"),
    ],
)
def test_the_exit_code_and_the_report_say_how_it_ended(run: Run, words: list[str], code: int, reason: str) -> None:
    if reason == "memory" and report(run("--json", "--", "true"))["isolation"]["posture"] != "full":
        pytest.skip("without a cgroup the interpreter sees a MemoryError of its own")
    done = run("--json", *words)

    assert (done.returncode, report(done)["code"], report(done)["reason"]) == (code, code, reason)


def test_a_limit_that_ended_it_is_told_in_one_line(run: Run) -> None:
    done = run("--wall", "0.5", "--", "sh", "-c", "printf 'no line end' >&2; sleep 600")

    assert done.stderr == b"no line end\nomni-mcp: timeout: the job ran longer than --wall\n"


def test_more_processes_than_allowed_cannot_be_had(run: Run) -> None:
    code = "import subprocess\nfor n in range(40): subprocess.Popen(['sleep', '600'])"
    done = run("--pids", "8", "--", "python3", "-c", code)

    assert done.returncode == 1 and b"BlockingIOError" in done.stderr


def test_more_open_files_than_allowed_cannot_be_had(run: Run) -> None:
    done = run("--nofile", "32", "--", "python3", "-c", "x = [open('/dev/null') for n in range(64)]")

    assert done.returncode == 1 and b"Too many open files" in done.stderr


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--wall", "0"], "--wall"),
        (["--wall", "inf"], "--wall"),
        (["--memory", "1"], "--memory"),
        (["--pids", "0"], "--pids"),
        (["--cpu", "0"], "--cpu"),
        (["--output", "0"], "1<=x<=131072"),
        (["--output", "999999999"], "1<=x<=131072"),
        (["--allow", "api.example.org"], "--allow"),
        (["--allow-network", "10.0.0.0/99"], "--allow-network"),
        (["--allow-network", "0.0.0.0/0"], "every address"),
        (["--allow-network", "::ffff:10.0.0.0/104"], "--allow-network"),
        (["--env", "NAME"], "--env"),
        (["--env", "A B=1"], "--env"),
        (["--read", "/"], "--read"),
        (["--read", "/root/../proc"], "--read"),
        (["--read", "/srv/not-there"], "--read"),
        (["--profile", "nope"], "profile"),
        (["--workspace", "/no/such/place"], "--workspace"),
        (["--workspace", "/dev/null"], "--workspace"),
        (["--surprise"], "--surprise"),
    ],
)
def test_wrong_usage_names_the_option_and_starts_nothing(run_here: Run, words: list[str], word: str) -> None:
    done = run_here("--json", *words, "--", "echo", "started")

    assert (done.returncode, done.stdout) == (2, b"")
    assert word.encode() in done.stderr.splitlines()[-2]
    assert (report(done)["reason"], report(done)["code"]) == ("usage", 2) and word in report(done)["message"]


def test_without_json_wrong_usage_is_told_to_people_alone(run: Run) -> None:
    assert b"{" not in run("--surprise", "--", "true", "--json").stderr


def test_a_refused_workspace_and_a_faulty_profile_have_their_line_of_json_too(
    run: Run, environment: dict[str, str]
) -> None:
    own = Path(environment["OMNI_HOME"], "profiles")
    own.mkdir(parents=True, mode=0o700)
    (own / "broken.toml").write_text("profile = ")
    (own / "broken.toml").chmod(0o600)
    refused, faulty = run("--json", "--workspace", "/etc", "--", "true"), run("--json", "--profile", "broken", "true")

    assert (refused.returncode, report(refused)["reason"], report(refused)["code"]) == (126, "refused", 126)
    assert "the system's own" in report(refused)["message"]
    assert (faulty.returncode, report(faulty)["reason"], report(faulty)["code"]) == (1, "settings", 1)


def test_help_has_three_examples(run: Run) -> None:
    text = run("--help").stdout.decode()

    assert text.count("  omni-mcp sandbox run ") == 3


def test_the_report_says_what_was_in_force_and_what_it_took(run: Run) -> None:
    found = report(run("--json", "--memory", "128", "--wall", "9", "--", "sh", "-c", "echo hello"))

    assert (found["exit_code"], found["signal"], found["bytes_out"]) == (0, None, 6)
    assert (found["limits"]["memory_mib"], found["limits"]["timeout_s"]) == (128, 9.0)
    assert "seccomp" in found["isolation"]["layers"] and found["isolation"]["posture"] in ("full", "no-cgroup")
    assert found["wall_ms"] > 0 and found["memory_peak_bytes"] > 0 and found["temperature"] in ("hot", "cold")
    assert found["connections"] == []


def test_without_cgroups_it_says_so_and_the_limits_hold(run: Run) -> None:
    done = run("--no-cgroup", "--json", "--memory", "64", "--", "python3", "-c", "x = bytearray(300 << 20)")

    assert done.returncode == 1 and b"MemoryError" in done.stderr
    assert report(done)["isolation"]["posture"] == "no-cgroup" and "cgroup" in report(done)["isolation"]["missing"]


# an own profile


def test_an_own_profile_is_used_and_a_faulty_one_is_not(run: Run, environment: dict[str, str]) -> None:
    own = Path(environment["OMNI_HOME"], "profiles")
    own.mkdir(parents=True, mode=0o700)
    file = own / "mine.toml"
    file.write_text('profile = 1\ndescription = "x"\n[environment]\nA = "own"\n[limits]\nprocesses = 5\n')
    file.chmod(0o600)

    done = run("--profile", "mine", "--json", "--", "sh", "-c", "echo $A")
    assert done.stdout == b"own\n" and report(done)["limits"]["processes"] == 5
    file.chmod(0o666)
    assert run("--profile", "mine", "--", "true").returncode == 1


# whoever reads us, or stops us


def test_a_reader_that_goes_away_ends_the_command(start: Callable[..., Any]) -> None:
    word = f"mark-{os.getpid()}-reader"
    process = start("--", "sh", "-c", f": {word}; while :; do echo line; done")
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(LIMIT_S) == 141
    assert gone(word)


@pytest.mark.long
def test_a_reader_that_is_stuck_does_not_stop_the_clock(start: Callable[..., Any]) -> None:
    process = start("--wall", "1", "--", "yes")

    assert process.wait(LIMIT_S) == 124


def test_a_full_disk_under_our_output_ends_the_command(start: Callable[..., Any]) -> None:
    with open("/dev/full", "wb") as full:
        assert start("--", "yes", stdout=full).wait(LIMIT_S) == 141


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_nothing_is_left_when_we_are_stopped(start: Callable[..., Any], number: int, code: int) -> None:
    word = f"mark-{os.getpid()}-{number}"
    daemon = f"trap '' TERM INT HUP; while :; do sleep 600; done; : {word}"
    process = start("--", "sh", "-c", f'setsid sh -c "{daemon}" & echo ready; wait; : {word}')
    assert process.stdout.readline() == b"ready\n"
    assert processes_with(word)
    process.send_signal(number)

    assert process.wait(LIMIT_S) == code
    assert gone(word)
    if number != signal.SIGKILL:  # then only the next start can sweep the empty group away
        assert cgroups_of(process.pid) == []
    assert [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "omni-cell" in line] == []


def test_being_interrupted_while_we_still_load_our_modules_looks_the_same(start: Callable[..., Any]) -> None:
    process = start("--", "sleep", "600")
    maps = Path(f"/proc/{process.pid}/maps")
    while "pydantic_core" not in maps.read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=LIMIT_S)

    assert process.returncode in (130, -signal.SIGINT)  # the latter is 130 too, for a shell
    assert stderr == b""


def test_a_stuck_reader_does_not_delay_being_stopped(start: Callable[..., Any]) -> None:
    word = f"mark-{os.getpid()}-both"
    process = start("--", "sh", "-c", f"echo ready >&2; yes; : {word}")
    assert process.stderr.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)

    assert process.wait(LIMIT_S) == 143
    assert gone(word)


def test_daemons_of_a_command_that_ended_are_gone(run: Run) -> None:
    word = f"mark-{os.getpid()}-daemon"
    done = run("--", "sh", "-c", f"setsid sh -c 'sleep 600; : {word}' & exit 0")

    assert done.returncode == 0
    assert gone(word)


# the workspace


def test_a_workspace_gives_its_files_and_takes_new_and_changed_ones(run: Run, place: Path) -> None:
    script = (
        "cat link; echo new > new.txt; echo more >> sub/old.txt; mkdir -p a/b; echo deep > a/b/c; chmod 750 new.txt"
    )
    done = run("--workspace", str(place), "--", "sh", "-c", script)

    assert (done.returncode, done.stdout) == (0, b"given\n")
    assert (place / "new.txt").read_text() == "new\n" and (place / "sub" / "old.txt").read_text() == "old\nmore\n"
    assert (place / "a" / "b" / "c").read_text() == "deep\n"
    assert {file.stat().st_uid for file in place.rglob("*")} == {os.geteuid()}
    assert place.stat().st_uid == os.geteuid() and (place / "new.txt").stat().st_mode & 0o777 == 0o750


def test_a_workspace_may_be_named_from_where_we_stand(run: Run, place: Path, environment: dict[str, str]) -> None:
    environment["PYTHONSAFEPATH"] = "1"

    assert b"in.txt" in run("--workspace", ".", "--", "ls", cwd=place).stdout


@pytest.mark.parametrize("place", ["/", "/etc", "/usr", "/usr/lib", "/proc", "/sys", "/dev", "/boot"])
def test_no_directory_of_the_system_is_a_workspace(run_here: Run, place: str) -> None:
    if not os.path.isdir(place):
        pytest.skip("not there")
    done = run_here("--workspace", place, "--", "echo", "started")

    assert (done.returncode, done.stdout) == (126, b"")
    assert b"the system's own" in done.stderr


OURS = {
    "environment": Path(sys.prefix),
    "interpreter": Path(sys.base_prefix),
    "interpreter's binary": Path(os.path.realpath(sys.executable)).parent,
    "standard library": Path(sysconfig.get_path("stdlib")),
    "modules": Path(sysconfig.get_path("purelib")),
    "package": Path(omni_mcp.__path__[0]),
    "part of the package": Path(omni_mcp.__path__[0], "cli"),
    "around the package": Path(omni_mcp.__path__[0]).parent,
    "far side of the wall": bundled("sandbox"),
}


@pytest.mark.parametrize("which", OURS)
def test_no_directory_that_we_load_from_is_a_workspace(run_here: Run, which: str) -> None:
    if not os.access(OURS[which], os.R_OK):
        pytest.skip("not there, or closed to us")
    done = run_here("--workspace", str(OURS[which]), "--", "echo", "started")

    assert (done.returncode, done.stdout) == (126, b"")
    assert done.stderr.startswith(b"omni-mcp: --workspace: ")
    assert b"where " in done.stderr or b"the system's own" in done.stderr


@pytest.mark.parametrize("which", ["itself", "below", "above", "by a link"])
def test_no_directory_on_the_search_path_for_modules_is_a_workspace(
    run: Run, place: Path, environment: dict[str, str], which: str
) -> None:
    modules = place / "sub"
    (modules / "below").mkdir()
    (place / "alias").symlink_to(modules)
    environment["PYTHONPATH"] = f"{modules}:{environment.get('PYTHONPATH', '')}"
    given = {"itself": modules, "below": modules / "below", "above": place, "by a link": place / "alias"}[which]
    done = run("--workspace", str(given), "--", "echo", "started")

    assert (done.returncode, done.stdout) == (126, b"")
    assert b"where our own modules come from" in done.stderr


@pytest.mark.parametrize("which", ["itself", "above"])
def test_no_directory_in_which_programs_are_looked_for_is_a_workspace(
    run: Run, place: Path, environment: dict[str, str], which: str
) -> None:
    """A job would leave a bubblewrap of its own there for the next run."""
    programs = place / "sub"
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    done = run("--workspace", str({"itself": programs, "above": place}[which]), "--", "echo", "started")

    assert (done.returncode, done.stdout) == (126, b"")
    assert b"where programs such as bubblewrap are looked for" in done.stderr


def test_where_we_stand_is_no_workspace_if_modules_are_loaded_from_there(run: Run, place: Path) -> None:
    assert run("--workspace", ".", "--", "true", cwd=place).returncode == 126


@pytest.mark.parametrize("which", ["config", "profiles", "data", "runtime", "around it"])
def test_the_gateways_home_is_no_workspace(run: Run, environment: dict[str, str], tmp_path: Path, which: str) -> None:
    environment["XDG_RUNTIME_DIR"] = str(tmp_path)
    home = find_home(environment)
    places = {"config": home.config, "profiles": home.profiles, "data": home.data, "runtime": home.runtime}
    given = places.get(which, tmp_path)
    given.mkdir(parents=True, exist_ok=True)
    done = run("--workspace", str(given), "--", "echo", "started")

    assert (done.returncode, done.stdout) == (126, b"")
    assert b"where the gateway keeps its" in done.stderr


def test_a_workspace_beside_what_is_ours_is_one(run: Run, place: Path, environment: dict[str, str]) -> None:
    environment["PYTHONPATH"] = f"{place.parent / 'giv'}:{environment.get('PYTHONPATH', '')}"
    environment["PYTHONSAFEPATH"] = "1"

    assert run("--workspace", str(place), "--", "true").returncode == 0


def test_a_workspace_that_is_not_utf8_is_refused_in_words(run: Run, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(odd)
    done = run("--workspace", os.fsdecode(odd), "--", "true")

    assert done.returncode == 2 and b"is not UTF-8" in done.stderr and b"Traceback" not in done.stderr


def test_what_was_written_before_a_limit_ended_it_is_there(run: Run, place: Path) -> None:
    done = run("--workspace", str(place), "--wall", "2", "--", "sh", "-c", "echo part > part.txt; sleep 600")

    assert done.returncode == 124 and (place / "part.txt").read_text() == "part\n"


@ROOT_ONLY
def test_what_root_takes_back_are_plain_files_only(run: Run, place: Path) -> None:
    script = "cp /bin/sh set; chmod 6755 set; ln -s /etc/shadow evil; mkfifo pipe; ln -s / sub/up; rm in.txt"
    found = report(run("--json", "--workspace", str(place), "--", "sh", "-c", script))

    assert sorted(file.name for file in place.rglob("*")) == ["in.txt", "link", "old.txt", "set", "sub"]
    assert (place / "set").stat().st_mode & 0o7000 == 0
    left = ["/evil: a link", "/pipe: not a regular file", "/sub/up: a link"]
    assert found["workspace"] == {"files": 1, "left": left, "more": 0, "cut": ""}


@ROOT_ONLY
def test_root_does_not_write_through_a_link_that_stands_in_the_workspace(run: Run, place: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept\n")
    (place / "door").symlink_to(outside)
    (place / "file").symlink_to(outside / "kept")
    script = "rm door file; mkdir door; echo broken > door/kept; echo mine > file"
    found = report(run("--json", "--workspace", str(place), "--", "sh", "-c", script))

    assert (outside / "kept").read_text() == "kept\n" and sorted(outside.iterdir()) == [outside / "kept"]
    assert (place / "file").read_text() == "mine\n" and not (place / "file").is_symlink()
    assert any(line.startswith("/door") for line in found["workspace"]["left"])


@ROOT_ONLY
def test_owners_of_files_stay_and_new_ones_belong_to_the_directorys(run: Run, place: Path) -> None:
    os.chown(place, 4321, 4321)
    os.chown(place / "sub" / "old.txt", 4322, 4322)
    run("--workspace", str(place), "--", "sh", "-c", "echo more >> sub/old.txt; echo new > new.txt")

    owners = {file.name: file.stat().st_uid for file in (place, place / "new.txt", place / "sub" / "old.txt")}
    assert owners == {"given": 4321, "new.txt": 4321, "old.txt": 4322}


@ROOT_ONLY
def test_a_copy_of_a_workspace_is_bounded_by_disk(run: Run, place: Path) -> None:
    (place / "big").write_bytes(bytes(3 << 20))

    assert run("--workspace", str(place), "--disk", "2", "--", "true").returncode == 2
    done = run("--workspace", str(place), "--disk", "4", "--", "sh", "-c", "head -c 3000000 /dev/zero > more")
    assert done.returncode == 1


@ROOT_ONLY
def test_a_copy_lies_over_nothing_and_is_gone_afterwards(start: Callable[..., Any], place: Path) -> None:
    process = start("--workspace", str(place), "--", "sh", "-c", "echo mine > made; echo ready; read line")
    assert process.stdout.readline() == b"ready\n"
    mounts = Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()
    copies = [line.split()[4] for line in mounts if "omni-workspace-" in line]
    seen_by_us = sorted(os.listdir(f"/proc/{process.pid}/root{place}"))
    process.communicate(b"\n", timeout=LIMIT_S)

    assert seen_by_us == ["in.txt", "link", "sub"]
    assert not [line for line in mounts if line.split()[4] == str(place)]
    assert len(copies) == 1 and not os.path.lexists(copies[0])
    assert (process.returncode, (place / "made").read_text()) == (0, "mine\n")


@ROOT_ONLY
@pytest.mark.parametrize("how", ["refused", "interrupted"])
def test_no_place_for_a_copy_is_left(start: Callable[..., Any], place: Path, how: str) -> None:
    (place / "big").write_bytes(bytes(3 << 20))
    disk = "2" if how == "refused" else "9"
    process = start("--workspace", str(place), "--disk", disk, "--", "sh", "-c", "echo ready; sleep 600")
    if how == "interrupted":
        assert process.stdout.readline() == b"ready\n"
        assert list(Path("/run").glob(f"omni-workspace-{process.pid}-*"))
        process.send_signal(signal.SIGINT)

    assert process.wait(LIMIT_S) == (2 if how == "refused" else 130)
    assert not list(Path("/run").glob(f"omni-workspace-{process.pid}-*"))


@ROOT_ONLY
def test_the_next_run_takes_away_what_a_killed_one_left(start: Callable[..., Any], run: Run, place: Path) -> None:
    process = start("--workspace", str(place), "--", "sh", "-c", "echo ready; sleep 600")
    assert process.stdout.readline() == b"ready\n"
    made = list(Path("/run").glob(f"omni-workspace-{process.pid}-*"))
    assert run("--workspace", str(place), "--", "true").returncode == 0
    assert made and made[0].exists()
    process.kill()
    process.wait(LIMIT_S)
    run("--workspace", str(place), "--", "true")

    assert not made[0].exists()


@ROOT_ONLY
def test_a_new_directory_belongs_to_the_directorys_owner_and_stays_as_closed_as_it_was(run: Run, place: Path) -> None:
    os.chown(place, 4321, 4321)
    run("--workspace", str(place), "--", "sh", "-c", "mkdir -p a/b; chmod 700 a; chmod 4777 a/b; echo x > a/b/c")

    facts = [(place / name).stat() for name in ("a", "a/b", "a/b/c")]
    assert [fact.st_uid for fact in facts] == [4321, 4321, 4321]
    assert [fact.st_mode & 0o7777 for fact in facts[:2]] == [0o700, 0o755]


@USER_ONLY
def test_a_workspace_that_the_job_closed_is_open_to_its_owner_again(run: Run, place: Path) -> None:
    before = place.stat().st_mode
    done = run("--workspace", str(place), "--", "sh", "-c", "echo made > made; chmod 0 .")

    assert done.returncode == 0 and place.stat().st_mode & 0o700 == before & 0o700
    assert run("--workspace", str(place), "--", "cat", "made").stdout == b"made\n"


@USER_ONLY
def test_a_workspace_that_is_closed_is_refused_in_words(run: Run, place: Path) -> None:
    place.chmod(0)
    done = run("--workspace", str(place), "--", "true")
    place.chmod(0o700)

    assert done.returncode == 2 and b"is not readable" in done.stderr


@USER_ONLY
def test_a_job_cannot_fill_the_disk_through_its_workspace(run: Run, place: Path) -> None:
    script = "for n in 1 2 3 4 5 6 7 8; do head -c 8000000 /dev/zero > $n; done; sleep 600"
    done = run("--json", "--workspace", str(place), "--disk", "2", "--", "sh", "-c", script)

    assert (done.returncode, report(done)["reason"]) == (137, "disk")


def test_an_ordinary_user_can_use_it(no_bwrap: bool) -> None:
    if no_bwrap:
        pytest.skip("no bubblewrap")
    found = run_as_ordinary_user(HERE / "ordinary_run.py")

    assert found["plain"] == [3, "", ""]
    assert found["workspace"] == [0, "given\n", ""]
    assert (found["files"], found["owners"]) == ({"out.txt": "made\n"}, [True])
    assert (found["closing"], found["closed"]) == ([0, "", ""], [0, "made\n", ""])
    assert found["above"][0] == 126 and "where the gateway keeps its settings" in found["above"][2]
    assert found["foreign"][0] == 2 and "must be yours" in found["foreign"][2]
    assert found["memory"][0] == 1 and "MemoryError" in found["memory"][2]


# what else may be seen and reached


def test_a_directory_that_is_shown_can_be_read_and_not_written(run: Run) -> None:
    place = Path("/etc/init.d")  # of every machine, readable by all, and in no cell
    if not place.is_dir():
        pytest.skip("this machine has no such directory")
    done = run("--read", str(place), "--", "sh", "-c", f"ls -d {place}; echo x > {place}/written")

    assert done.stdout.strip() == str(place).encode() and b"Read-only" in done.stderr
    assert run("--", "ls", str(place)).returncode == 2


class _Origin(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"reached")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def origin() -> Iterator[int]:
    """The port of a web server on loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Origin) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=9).read())"


def test_only_an_allowed_host_can_be_reached_and_every_try_is_told(run: Run, origin: int) -> None:
    url = f"http://127.0.0.1:{origin}/"
    allowed = run("--json", "--allow", f"127.0.0.1:{origin}", "--", "python3", "-c", FETCH, url)
    refused = run("--json", "--allow", "127.0.0.1:1", "--", "python3", "-c", FETCH, url)
    closed = run("--json", "--", "python3", "-c", FETCH, url)

    assert allowed.stdout == b"b'reached'\n", allowed.stderr
    assert [connection["verdict"] for connection in report(allowed)["connections"]] == ["open"]
    assert refused.returncode == 1 and report(refused)["connections"][0]["verdict"] == "refused"
    assert closed.returncode == 1 and report(closed)["connections"] == []


FLOOD = """
import socket
for n in range(100):
    with socket.create_connection(("127.0.0.1", 3128)) as way_out:
        way_out.sendall(b"CONNECT " + b"x" * 200 + b"%d:1 HTTP/1.1\\r\\n\\r\\n" % n)
        way_out.recv(4096)
"""


def test_a_flood_of_refused_connections_is_counted_and_not_listed(run: Run) -> None:
    done = run("--json", "--allow", "127.0.0.1:1", "--", "python3", "-c", FLOOD)
    told = report(done)["connections"]

    assert done.returncode == 0, done.stderr
    assert {connection["verdict"] for connection in told} == {"refused"}
    assert len(told) == 33 and sum(1 + connection["more"] for connection in told) == 100
