"""What one job does to a directory does not lead the directory of another job, or its own next one, elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from omni_mcp.contracts.errors import SandboxUnavailable
from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.manifest import Limits
from omni_mcp.contracts.sandbox import JobEnd, Mount, Streams
from omni_mcp.engines.sandbox.cells import BubblewrapSandbox
from omni_mcp.engines.sandbox.channel import Channel
from omni_mcp.engines.sandbox.launcher import Launcher, base_interpreter
from omni_mcp.engines.sandbox.plan import Plan, Sizes
from omni_mcp.engines.sandbox.probe import find_bwrap
from omni_mcp.engines.sandbox.profiles import Profile, load_profiles
from omni_mcp.engines.sandbox.servers import ServerCells, ServerLaunch, Tail
from omni_mcp.engines.sandbox.spawning import SpawnerLink
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home, bundled
from tests.sandbox.conftest import HERE, in_shell, lacking, run_as_ordinary_user

pytestmark = pytest.mark.sandbox

OWNER = 61700
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only a root gateway reaches what its jobs cannot")


def owned(place: Path) -> None:
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{OWNER}:{OWNER}", str(place)], check=True)


@pytest.fixture
def open_place(tmp_path: Path) -> Path:
    """A directory of root's in which a project of somebody else stands."""
    project = tmp_path / "project"
    (project / "repo" / "data").mkdir(parents=True)
    (project / "repo" / "data" / "x").write_text("granted")
    private = tmp_path / "private" / "data"
    private.mkdir(parents=True)
    (private / "x").write_text("never granted")
    owned(project)
    return tmp_path


def shown(source: Path, inside: str = "", *, writable: bool = False) -> Mount:
    return Mount(source=source, inside=inside or str(source), writable=writable, as_owner=True)


def here(place: Path) -> HostPlaces:
    """Return what judges mounts for a gateway whose own directories are in *place*."""
    return HostPlaces(Home(config=place / "own" / "config", data=place / "own" / "data", runtime=place / "own" / "run"))


async def end_of(sandbox: BubblewrapSandbox, script: str, *mounts: Mount) -> JobEnd:
    """How a job ends in a template that nobody has used before."""
    await sandbox.drop_templates()
    return await sandbox.run(in_shell(script, mounts=mounts))


@pytest.mark.parametrize("inner_writable", [False, True])
@pytest.mark.parametrize("inner_first", [False, True])
async def test_nothing_is_mounted_beneath_a_directory_that_the_job_can_write(
    sandbox: BubblewrapSandbox, open_place: Path, inner_writable: bool, inner_first: bool
) -> None:
    project = open_place / "project"
    mounts = [shown(project, writable=True), shown(project / "repo" / "data", writable=inner_writable)]

    end = await end_of(sandbox, "true", *(mounts[::-1] if inner_first else mounts))

    assert end.reason == "start_failed"
    assert f"{project}/repo/data" in end.message
    assert "can write" in end.message


async def test_nor_beneath_a_read_only_view_of_what_the_job_can_write_elsewhere(
    sandbox: BubblewrapSandbox, open_place: Path
) -> None:
    project = open_place / "project"

    end = await end_of(
        sandbox, "true", shown(project, "/srv/view"), shown(project, "/srv/same", writable=True),
        shown(open_place / "private", "/srv/view/repo/data"),
    )  # fmt: skip

    assert end.reason == "start_failed"
    assert "can write" in end.message


async def test_a_link_in_a_read_only_directory_is_no_place_for_another(
    sandbox: BubblewrapSandbox, open_place: Path
) -> None:
    """bubblewrap would follow it, to anywhere in the cell."""
    project = open_place / "project"
    (project / "led").symlink_to("/newroot/usr")
    mounts = (shown(project, "/srv/view"), shown(open_place / "private", "/srv/view/led/share"))

    end = await end_of(sandbox, "ls /usr/share", *mounts)

    assert end.reason == "start_failed"
    assert "a link on the way" in end.message


@pytest.mark.parametrize("top", ["/srv/it", "/tmp/it", "/workspace/it", "/home/cell/it"])
@pytest.mark.parametrize("inner_first", [False, True])
async def test_a_writable_directory_stands_in_a_read_only_one_wherever_both_are(
    sandbox: BubblewrapSandbox, open_place: Path, top: str, inner_first: bool
) -> None:
    project = open_place / "project"
    mounts = [shown(project, top), shown(project / "repo" / "data", f"{top}/repo/data", writable=True)]
    script = f"cat {top}/repo/data/x; echo more > {top}/repo/data/y; echo more 2>/dev/null > {top}/y"

    end = await end_of(sandbox, script, *(mounts[::-1] if inner_first else mounts))

    assert (end.reason, end.stdout, end.message) == ("exit", b"granted", "")
    assert (project / "repo" / "data" / "y").exists()
    assert not (project / "y").exists()


@AS_ROOT
@pytest.mark.parametrize("replaced", ["repo", "repo/data"])
async def test_a_source_that_a_job_replaced_by_a_link_is_not_followed_by_root(
    sandbox: BubblewrapSandbox, open_place: Path, replaced: str
) -> None:
    project, target = open_place / "project", open_place / "private" / ("data" if replaced == "repo/data" else "")
    part = shown(project / "repo" / "data", "/srv/part")
    first = await end_of(sandbox, "cat /srv/part/x", part)
    swap = f"cd {project} && mv {replaced} old && ln -s {target} {replaced} && echo ok"
    swapped = await end_of(sandbox, swap, shown(project, writable=True))

    end = await end_of(sandbox, "cat /srv/part/x", part)

    assert (first.stdout, swapped.stdout) == (b"granted", b"ok\n")
    assert (end.reason, end.stdout) == ("start_failed", b"")
    assert "is a link that a job could have made" in end.message


@AS_ROOT
async def test_nor_one_that_was_there_before_the_gateway(sandbox: BubblewrapSandbox, open_place: Path) -> None:
    link = open_place / "project" / "link"
    link.symlink_to(open_place / "private" / "data")
    os.lchown(link, OWNER, OWNER)

    end = await end_of(sandbox, "cat /srv/part/x", shown(link, "/srv/part"))

    assert (end.reason, end.stdout) == ("start_failed", b"")


async def test_a_link_of_the_operators_is_followed(sandbox: BubblewrapSandbox, open_place: Path) -> None:
    """The control. The link is in a directory that no job can write, as `/var/run` is."""
    place = Path("/var/tmp") if os.geteuid() == 0 else open_place
    link = place / f"omni-link-{os.getpid()}"
    link.symlink_to(open_place / "project")
    try:
        end = await end_of(sandbox, "cat /srv/part/x", shown(link / "repo" / "data", "/srv/part"))
    finally:
        link.unlink()

    assert (end.reason, end.stdout, end.message) == ("exit", b"granted", "")


def test_an_ordinary_users_source_is_not_led_elsewhere_either() -> None:
    found = run_as_ordinary_user(HERE / "ordinary_mounts.py", str(bundled("sandbox")))
    if "after" not in found:
        lacking("userns", f"no sandbox for an ordinary user: {found['isolation']['missing']}")

    assert (found["before"], found["linked"], found["swap"]) == ("granted", "granted", "ok\n")
    assert found["after"][:2] == ["start_failed", ""]
    assert "is a link that a job could have made" in found["after"][2]
    unknown, known = found["refusals"]
    assert unknown == "exit"  # nobody told this gateway that a server may write there
    assert "is a link that a job could have made" in known


HOW = [pytest.param("staged", marks=AS_ROOT), "by descriptor", "by path"]


@asynccontextmanager
async def started(mount: Mount, replace: Callable[[], object], how: str) -> AsyncIterator[Started]:
    """Plan a start with *mount*, call *replace*, and let the spawner do as planned."""
    stage = how == "staged"
    bwrap = find_bwrap()
    if not isinstance(bwrap, str):
        lacking("bwrap", bwrap.reason)
        raise AssertionError
    sandbox_dir = bundled("sandbox")
    launcher = Launcher(bwrap=bwrap, interpreter=base_interpreter(), sandbox_dir=sandbox_dir, stage=stage)
    plan = Plan(
        number=1, profile=load_profiles(sandbox_dir / "profiles")["shell"], mounts=(mount,),
        uid=OWNER if stage else None, alone=True, group=None, proc=True, sizes=Sizes.of(Limits()),
    )  # fmt: skip
    request = launcher.request(plan)
    request["bind_fd"] = how == "by descriptor"  # an older bubblewrap cannot
    replace()
    link = SpawnerLink.start(sandbox_dir)
    reader, writer = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR)
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    try:
        with theirs:
            exited = await link.spawn(request, (nothing, nothing, writer, theirs.fileno()))
        os.close(writer)
        yield Started(link=link, exited=exited, words=reader, channel=channel, setup=launcher.setup(plan))
    finally:
        channel.close()
        os.close(reader)
        os.close(nothing)
        await link.close()


@dataclass(frozen=True, kw_only=True)
class Started:
    link: SpawnerLink
    exited: asyncio.Future[int]
    words: int
    channel: Channel
    setup: JsonObject

    async def be_ready(self) -> None:
        """Wait until the template has its mounts and has imported what it needs."""
        async with asyncio.timeout(30):
            await self.channel.send(self.channel.begin(self.setup))
            await self.channel.receive()

    async def last_words(self) -> bytes:
        async with asyncio.timeout(30):
            await self.exited
        return os.read(self.words, 4096)


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("by", ["a link", "another directory"])
async def test_what_takes_a_sources_place_after_the_look_at_it_is_not_mounted(
    tmp_path: Path, how: str, by: str
) -> None:
    source, other = tmp_path / "source", tmp_path / "other"
    source.mkdir()
    other.mkdir()

    def replace() -> None:
        source.rename(tmp_path / "away")
        source.symlink_to(other) if by == "a link" else other.rename(source)

    async with started(shown(source, "/srv/part"), replace, how) as start:
        said = await start.last_words()

    assert b"the directory was replaced" in said


@pytest.mark.parametrize("how", HOW)
async def test_a_source_that_stays_is_no_fault(tmp_path: Path, how: str) -> None:
    """The control."""
    async with started(shown(tmp_path, "/srv/part"), lambda: None, how) as start:
        await start.be_ready()

        assert not start.exited.done()


@AS_ROOT
async def test_no_descriptor_of_a_source_is_left_open(tmp_path: Path) -> None:
    """Through one a job could write what it may only read. Only root can look at them."""
    async with started(shown(tmp_path, "/srv/part"), lambda: None, "by descriptor") as start:
        await start.be_ready()
        held = {
            pid: [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
            for pid in descendants(start.link.pid)
        }

    assert len(held) >= 2  # bubblewrap, process 1
    inside = held[max(held)]
    assert "/dev/null" in inside
    allowed = ("/dev/", "/memfd:", "/proc/loadavg")
    assert not [place for place in inside if place.startswith("/") and not place.startswith(allowed)]


async def test_a_cache_in_a_home_that_is_kept_is_refused_with_the_reason(
    sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    kept = Profile(profile=1, description="Both.", home="kept", caches={"bin": "/home/cell/.local/bin"}, warm=0)
    cells = ServerCells(sandbox, {"both": kept}, tmp_path / "homes", secrets={}, shown=here(tmp_path))

    with pytest.raises(SandboxUnavailable) as refused:
        async with cells.start(ServerLaunch(name="both", argv=("/bin/true",), profile="both"), tail=Tail()):
            pass

    assert 'home = "fresh"' in refused.value.detail
    assert "/home/cell/.local/bin" in refused.value.detail


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("place", ["own/config", "own/data/secrets", "own", "own/config/policies", "linked"])
async def test_a_server_is_not_started_with_a_directory_of_the_gateways_own(
    sandbox: BubblewrapSandbox, tmp_path: Path, place: str, writable: bool
) -> None:
    for own in ("own/config/policies", "own/data/secrets"):
        (tmp_path / own).mkdir(parents=True)
    (tmp_path / "linked").symlink_to("own/data")
    assert "where the gateway keeps its" in await refusal(sandbox, tmp_path, tmp_path / place, writable)


async def test_what_was_fit_when_it_was_defined_is_judged_again_at_each_start(
    sandbox: BubblewrapSandbox, open_place: Path
) -> None:
    (open_place / "own" / "data").mkdir(parents=True)
    link = open_place / "notes"
    link.symlink_to("project/repo")
    before = await refusal(sandbox, open_place, link, False)
    link.unlink()
    link.symlink_to("own/data")
    after = await refusal(sandbox, open_place, link, False)

    assert before == "" and "where the gateway keeps its" in after


async def test_nothing_else_is_mounted_than_what_was_judged(sandbox: BubblewrapSandbox, open_place: Path) -> None:
    facts = (open_place / "project").stat()
    judged = replace(shown(open_place / "project"), identity=(facts.st_dev, facts.st_ino))
    other = replace(shown(open_place / "private"), identity=judged.identity)
    ends = [await end_of(sandbox, f"cat {one.source}/*/x {one.source}/*/*/x", one) for one in (judged, other)]

    assert b"granted" in ends[0].stdout
    assert ends[1].reason == "start_failed" and "replaced at this moment" in ends[1].message and not ends[1].stdout


async def refusal(sandbox: BubblewrapSandbox, place: Path, directory: Path, writable: bool) -> str:
    """Return why a server with *directory* is not started; nothing if it is."""
    cells = ServerCells(
        sandbox, load_profiles(bundled("sandbox") / "profiles"), place / "h", secrets={}, shown=here(place)
    )
    launch = ServerLaunch(name="one", argv=("/bin/true",), directories=(shown(directory, writable=writable),))
    try:
        async with cells.start(launch, tail=Tail()) as served:
            await served.ended
    except SandboxUnavailable as error:
        return error.detail
    return ""


@pytest.fixture
def deep(tmp_path: Path) -> list[Mount]:
    """More and longer directories than one message holds."""
    place, mounts = str(tmp_path), []
    while len(place) < 3500:
        place += "/" + "x" * 200
        os.mkdir(place)
    for number in range(64):
        os.mkdir(f"{place}/{number}")
        mounts.append(shown(Path(f"{place}/{number}")))
    return mounts


async def test_a_request_that_is_too_long_fails_alone(sandbox: BubblewrapSandbox, deep: list[Mount]) -> None:
    reader, writer = os.pipe()
    said, up = bytearray(), asyncio.Event()

    async def on_output(data: bytes) -> None:
        said.extend(data)
        up.set()

    streams = Streams(stdin=reader, stdout=on_output, stderr=on_output)
    other = asyncio.create_task(sandbox.run(in_shell("echo up; read word; echo $word"), streams=streams))
    async with asyncio.timeout(30):
        await up.wait()
    before = sandbox.spawner_pid

    end = await sandbox.run(in_shell("true", mounts=tuple(deep)))

    assert end.reason == "start_failed"
    assert "too long" in end.message
    os.write(writer, b"done\n")
    assert ((await other).reason, bytes(said)) == ("exit", b"up\ndone\n")
    os.close(reader)
    os.close(writer)
    assert sandbox.spawner_pid == before
    assert (await sandbox.run(in_shell("echo fine"))).stdout == b"fine\n"


BAD = [
    b"\xff", b"no json", b"[]", b"{}", b'{"op": "spawn"}', b'{"op": "spawn", "id": 7}', b'{"op": "kill", "id": []}',
    b'{"op": "spawn", "id": 8, "bwrap": "/bin/true"}', b'{"op": "sweep"}', b'{"op": "spawn", "id": "x", "bwrap": null}',
    b'{"op": "spawn", "id": [], "bwrap": null}', b"[" * 100_000,
]  # fmt: skip


def test_a_bad_message_does_not_end_the_spawner() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    script = str(bundled("sandbox") / "spawner.py")
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", script, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL,
            )  # fmt: skip
        ours.settimeout(20)
        try:
            for message in BAD:
                ours.send(message)
            with open(os.devnull, "r+b") as nothing:
                request = {
                    "op": "spawn", "id": 9, "bwrap": None, "sources": [], "stage": False, "uid": None, "cgroups": [],
                    "command": ["/bin/true"],
                }  # fmt: skip
                socket.send_fds(ours, [json.dumps(request).encode()], [nothing.fileno()] * 4)
            answers = []
            while {"id": 9, "exit": 0} not in answers:
                answers.append(json.loads(ours.recv(4096)))
        finally:
            ours.close()
            process.wait(20)

    assert {"id": 7, "exit": 97} in answers
    assert {"id": 8, "exit": 97} in answers
