"""`omni-mcp sandbox run --workspace` by root: what the way back takes and costs, and what it says of the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from omni_mcp.cli.sandbox_return import Brought, Return
from omni_mcp.cli.sandbox_workspace import WorkspaceRefused, open_as_checked
from tests.sandbox.conftest import LIMIT_S, RUN, Run, Start, report

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's directory is mounted, not copied")


def held_bytes(place: Path) -> int:
    """What the files below *place* take on the disk, each once."""
    facts = [file.lstat() for file in place.rglob("*")]
    return sum(blocks for _, blocks in {(fact.st_ino, fact.st_blocks * 512) for fact in facts})


def test_holes_stay_holes_in_both_directions(run: Run, place: Path) -> None:
    with (place / "sparse").open("wb") as file:
        file.truncate(50 << 20)
        file.seek(20 << 20)
        file.write(b"middle")
    script = (
        "truncate -s 60M a b c d e; printf end >> a; "
        "dd if=sparse bs=1M skip=20 count=1 2>/dev/null | head -c 6; printf more >> sparse"
    )
    done = run("--disk", "4", "--workspace", str(place), "--", "sh", "-c", script)

    assert (done.returncode, done.stdout) == (0, b"middle"), done.stderr
    assert [(place / name).stat().st_size for name in "abcde"] == [(60 << 20) + 3, *[60 << 20] * 4]
    assert (place / "a").read_bytes()[-4:] == b"\0end"
    found = (place / "sparse").read_bytes()
    assert found == bytes(20 << 20) + b"middle" + bytes((30 << 20) - 6) + b"more"
    assert held_bytes(place) < 1 << 20


def test_a_file_with_many_names_is_written_once(run: Run, place: Path) -> None:
    script = "head -c 2000000 /dev/urandom > sub/z; mkdir a; for n in $(seq 9); do ln sub/z a/$n; done; sha1sum sub/z"
    done = run("--disk", "3", "--workspace", str(place), "--", "sh", "-c", script)

    assert done.returncode == 0 and done.stderr == b""
    names = [place / "sub" / "z", *(place / "a").iterdir()]
    assert len(names) == 10 and len({name.stat().st_ino for name in names}) == 1
    assert held_bytes(place) < 3 << 20
    assert subprocess.run(["sha1sum", "sub/z"], cwd=place, capture_output=True, check=True).stdout == done.stdout


def test_names_of_one_file_can_be_changed_again_by_the_next_run(run: Run, place: Path) -> None:
    """Their copies are files of their own; the place to write to is one file with two names then."""
    for text in ("first", "second"):
        done = run("--workspace", str(place), "--", "sh", "-c", f"echo {text} > one; rm -f two; ln one two")
        assert (done.returncode, done.stderr) == (0, b"")

    assert (place / "one").read_text() == (place / "two").read_text() == "second\n"
    assert not [name for name in os.listdir(place) if name.startswith(".omni-")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_being_told_to_stop_ends_the_way_back(start: Start, place: Path, number: int, code: int) -> None:
    work = "import os; os.mkdir('many'); open('many/0', 'w'); [os.link('many/0', f'many/{n}') for n in range(1, 15000)]"
    process = start("--workspace", str(place), "--", "python3", "-c", f"{work}; print('made', flush=True)")
    assert process.stdout is not None and process.stdout.readline() == b"made\n"
    many = place / "many"
    while not (many.is_dir() and any(many.iterdir())):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=LIMIT_S)

    assert process.returncode == code
    assert 0 < len(list(many.iterdir())) < 15000
    assert b"and what follows it: stopped here\n" in stderr
    assert stderr.endswith(b"omni-mcp: the workspace was not copied back whole: interrupted\n")
    assert not [name for name in os.listdir(many) if name.startswith(".omni-")]


def test_the_way_back_ends_when_its_time_is_over(tmp_path: Path) -> None:
    made, given = tmp_path / "made", tmp_path / "given"
    for place in (made, given):
        place.mkdir()
    (made / "file").write_text("text")
    brought = Brought()
    source, target = (os.open(place, os.O_RDONLY) for place in (made, given))
    Return(target, brought, (0, 0), files={}, links={}, most_bytes=1 << 20, most_s=-1.0, stopped=threading.Event()).of(
        source
    )
    for descriptor in (source, target):
        os.close(descriptor)

    assert (brought.files, brought.cut) == (0, "it took longer than -1 s") and os.listdir(given) == []
    assert brought.left == ["/file: and what follows it: stopped here"]


def test_no_more_comes_back_than_the_job_may_write(tmp_path: Path) -> None:
    made, given = tmp_path / "made", tmp_path / "given"
    for place in (made, given):
        place.mkdir()
    for name, size in (("a", 3000), ("b", 3000), ("c", 500)):
        (made / name).write_bytes(b"x" * size)
    brought = Brought()
    source, target = (os.open(place, os.O_RDONLY) for place in (made, given))
    Return(target, brought, (0, 0), files={}, links={}, most_bytes=4000, most_s=60.0, stopped=threading.Event()).of(
        source
    )
    for descriptor in (source, target):
        os.close(descriptor)

    assert sorted(os.listdir(given)) == ["a"] and brought.left[0] == "/b: more than --disk in all"
    assert brought.cut == "not everything can be written"


def test_what_the_host_has_no_room_for_is_an_error(environment: dict[str, str], no_bwrap: bool, place: Path) -> None:
    if no_bwrap:
        pytest.skip("no bubblewrap")
    small = place / "small"
    small.mkdir()
    inside = f'mount -t tmpfs -o size=1m none {small} && "$@"; code=$?; ls {small}; exit $code'
    words = ["--workspace", str(small), "--", "sh", "-c", "echo text > a; head -c 3000000 /dev/zero > b; echo text > c"]
    command = ["unshare", "-m", "sh", "-c", inside, "sh", *RUN, *words]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=LIMIT_S, check=False)
    if b"mount:" in done.stderr or b"unshare:" in done.stderr:
        pytest.skip("root may not mount here")

    assert (done.returncode, done.stdout) == (141, b"a\nc\n")
    assert b"not copied back: /b: No space left on device\n" in done.stderr
    assert b"the workspace was not copied back whole: not everything can be written\n" in done.stderr


def test_links_that_the_job_made_are_told_and_those_that_were_there_are_not(run: Run, place: Path) -> None:
    script = "ln -s /etc new; ln -sf elsewhere in.txt; ln -sf sub/old.txt link; ln -s up sub/up; rm sub/up"
    done = run("--workspace", str(place), "--", "sh", "-c", script)

    told = [line.removeprefix(b"omni-mcp: not copied back: ") for line in done.stderr.splitlines()]
    assert (done.returncode, told) == (0, [b"/in.txt: a link", b"/link: a link", b"/new: a link"])
    assert (place / "in.txt").read_text() == "given\n" and os.readlink(place / "link") == "in.txt"
    assert run("--workspace", str(place), "--", "touch", "other").stderr == b""


def test_what_stays_out_is_counted_where_it_is_too_much_to_tell(run: Run, place: Path) -> None:
    done = run("--workspace", str(place), "--", "sh", "-c", "for n in $(seq 50); do mkfifo p$n; done")

    assert len(done.stderr.splitlines()) == 33
    assert done.stderr.endswith(b"omni-mcp: not copied back: 18 more\n")


def test_something_in_the_way_is_told_and_no_error(run: Run, place: Path) -> None:
    done = run(
        "--workspace", str(place), "--", "sh", "-c", "rm -r sub in.txt; echo text > sub; mkdir in.txt; touch other"
    )

    assert done.returncode == 0 and (place / "other").exists() and (place / "in.txt").read_text() == "given\n"
    assert [line.split(b" (")[0] for line in done.stderr.splitlines()] == [
        b"omni-mcp: not copied back: /in.txt: something else has that name",
        b"omni-mcp: not copied back: /sub: something else has that name",
    ]


def test_a_workspace_that_is_too_much_says_what_helps(run: Run, place: Path, environment: dict[str, str]) -> None:
    own = Path(environment["OMNI_HOME"], "profiles")
    own.mkdir(parents=True, mode=0o700)
    for name, inodes in (("few", 20), ("more", 200)):
        (own / f"{name}.toml").write_text(f'profile = 1\ndescription = "x"\n[limits]\ninodes = {inodes}\n')
        (own / f"{name}.toml").chmod(0o600)
    for number in range(40):
        (place / f"file{number}").touch()
    few = run("--json", "--profile", "few", "--disk", "50", "--workspace", str(place), "--", "true")
    assert few.returncode == 2 and "limits.inodes" in report(few)["message"] and "--disk" not in report(few)["message"]
    assert run("--profile", "more", "--workspace", str(place), "--", "true").returncode == 0

    (place / "large").write_bytes(bytes(3 << 20))
    large = run("--json", "--disk", "2", "--workspace", str(place), "--", "true")
    assert large.returncode == 2 and "a larger --disk helps" in report(large)["message"]
    assert run("--disk", "4", "--workspace", str(place), "--", "true").returncode == 0


def test_a_link_that_came_in_above_after_the_check_is_noticed(tmp_path: Path) -> None:
    """The check has resolved every link; whoever owns a directory above may have put one there since."""
    for name in ("before", "after"):
        (tmp_path / name / "given").mkdir(parents=True)
    checked = tmp_path / "before" / "given"
    os.close(open_as_checked(checked))
    (tmp_path / "before").rename(tmp_path / "aside")
    (tmp_path / "before").symlink_to("after")

    with pytest.raises(WorkspaceRefused, match="replaced by a link"):
        open_as_checked(checked)


def uids_of_jobs(word: str) -> set[int]:
    """Return whose the processes are that have *word* on their command line, but for root."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (entry / "cmdline").read_bytes():
                found.add(entry.stat().st_uid)
        except OSError:
            continue
    return found - {0}


@pytest.mark.parametrize("workspace", [False, True])
def test_two_jobs_at_once_are_two_users(start: Start, place: Path, workspace: bool) -> None:
    word = f"mark-{os.getpid()}-users"
    options = ["--workspace", str(place)] if workspace else []
    processes = [start(*options, "--", "sh", "-c", f"echo ready; read line; : {word}") for _ in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    users = uids_of_jobs(word)
    for process in processes:
        process.communicate(b"\n", timeout=LIMIT_S)

    assert len(users) == 3


def test_what_was_written_through_a_shared_mapping_comes_back(run: Run, place: Path) -> None:
    """Such a write need not change any time of the file."""
    (place / "mapped").write_bytes(b"A" * 800)
    (place / "read").write_bytes(b"A" * 800)
    script = (
        "import mmap, os\n"
        "for name in ('read', 'mapped'):\n"
        "    seen = mmap.mmap(os.open(name, os.O_RDWR), 0)\n"
        "    seen[:4]\n"
        "seen[:4] = b'BBBB'"
    )
    before = (place / "read").stat().st_mtime_ns
    done = run("--workspace", str(place), "--", "python3", "-c", script)

    assert done.returncode == 0, done.stderr
    assert (place / "mapped").read_bytes() == b"BBBB" + b"A" * 796
    assert (place / "read").stat().st_mtime_ns == before
