"""Profiles: what may stand in one, whose files count, and that those which ship can be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.engines.sandbox.profiles import Profile, find_profile, load_profiles, read_profile
from omni_mcp.paths import bundled

SHIPPED = bundled("sandbox") / "profiles"
GOOD = 'profile = 1\ndescription = "x"\n'


def written(place: Path, text: str, *, name: str = "mine", mode: int = 0o600) -> Path:
    file = place / f"{name}.toml"
    file.write_text(text)
    file.chmod(mode)
    return file


def fault_of(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_profile(file)
    return str(caught.value)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The operator's directory of profiles."""
    place = tmp_path / "profiles"
    place.mkdir(mode=0o700)
    return place


def test_the_shipped_profiles_are_those_that_the_page_names() -> None:
    assert set(load_profiles(SHIPPED)) == {"job", "http", "python", "shell", "server", "npx", "uvx"}


def test_no_shipped_profile_reaches_a_host_or_knows_a_secret_or_runs_with_less_than_namespaces() -> None:
    for profile in load_profiles(SHIPPED).values():
        assert (profile.hosts, profile.secrets, profile.read) == ((), {}, ())
        assert profile.posture in ("no-cgroup", "full")


def test_every_module_that_a_shipped_profile_loads_ahead_is_there() -> None:
    for profile in load_profiles(SHIPPED).values():
        for module in profile.preload:
            assert (bundled("sandbox") / "tools" / f"{module}.py").exists(), module


def test_package_runners_keep_their_cache_where_their_variables_say() -> None:
    npx, uvx = (load_profiles(SHIPPED)[name] for name in ("npx", "uvx"))

    assert npx.caches["npm"] == npx.environment["npm_config_cache"]
    assert uvx.caches["uv"] == uvx.environment["UV_CACHE_DIR"]


def test_two_lines_are_a_profile(tmp_path: Path) -> None:
    profile = read_profile(written(tmp_path, GOOD))

    assert (profile.posture, profile.home, profile.hosts, profile.warm) == ("no-cgroup", "workspace", (), 2)


def test_a_profile_can_say_all_that_there_is_to_say(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    text = f"""{GOOD}posture = "full"
cpus = 0.5
start_limit_s = 5
unix_sockets = true
read = ["/opt/data"]
certificates = true
hosts = ["api.example.org:443", "*.example.org:443", "[::1]:8080"]
home = "kept"
cache_mib = 10
preload = ["files"]
warm = 0
[environment]
A = "b"
[secrets]
TOKEN = "mine"
[limits]
memory_mib = 64
[caches]
npm = "/home/cell/.npm"
uv = "/home/cell/.cache/uv"
"""
    profile = read_profile(written(tmp_path, text))

    assert profile.limits.memory_mib == 64 and profile.limits.processes == 64
    assert profile.hosts[1] == "*.example.org:443"


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("surprise = 1", ":3: $.surprise"),
        ('posture = "weak"', ":3: $.posture"),
        ("cpus = 0", ":3: $.cpus"),
        ("cpus = nan", "mine.toml: Out of range"),
        ("warm = -1", ":3: $.warm"),
        ('hosts = ["api.example.org"]', ":3: $.hosts"),
        ('hosts = ["https://api.example.org:443"]', ":3: $.hosts"),
        ('hosts = ["*:443"]', ":3: $.hosts"),
        ('hosts = ["0177.0.0.1:80"]', ":3: $.hosts"),
        ('preload = ["os.path"]', ":3: $.preload"),
        ('preload = ["../x"]', ":3: $.preload"),
        ('environment = { "A=B" = "c" }', ":3: $.environment"),
        ('environment = { A = "\\u0000" }', ":3: $.environment"),
        ('environment = { A = "b" }\nsecrets = { A = "s" }', ":4: $.secrets"),
        ('caches = { npm = "/home/cell/.npm" }', ":3: $.caches"),
        ('home = "fresh"\ncaches = { npm = "/var/cache" }', ":4: $.caches"),
        ('home = "fresh"\ncaches = { npm = "/home/cell" }', ":4: $.caches"),
        ('home = "fresh"\ncaches = { npm = "/home/cell/../x" }', ":4: $.caches"),
        ('home = "fresh"\ncaches = { "a/b" = "/home/cell/a" }', ":4: $.caches"),
        ('home = "fresh"\ncaches = { a = "/home/cell/a", b = "/home/cell/a/b" }', ":4: $.caches"),
        ('home = "fresh"\ncaches = { a = "/home/cell/a", b = "/home/cell/a" }', ":4: $.caches"),
        ("[limits]\nmemory_mib = 1", ":4: $.limits.memory_mib"),
        ("[limits]\nmemory = 64", ":4: $.limits.memory"),
        ("description = 1979-05-27", "mine.toml"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(tmp_path: Path, line: str, place: str) -> None:
    assert place in fault_of(written(tmp_path, f"{GOOD}{line}\n"))


@pytest.mark.parametrize(
    "path",
    [
        "/", "/proc", "/proc/1", "/sys/fs/cgroup", "/dev", "/dev/shm", "/run", "/run/user/1000", "/var/run/docker.sock",
        "/var", "/etc", "/home", "/home/ann", "/root", "/usr", "/tmp", "/tmp/x", "/var/tmp/x", "/workspace", "/sandbox",
        "/packages/x", "/home/cell/x", "/home/ann/.ssh", "/srv/x/.aws/credentials", "/boot", "/etc/shadow",
        "/etc/ssh/x", "srv", "./srv", "~/x", "/srv/../etc", "/srv//x", "/srv/", "//srv/x", "/srv/./x", "/srv/\\u0007",
    ],
)  # fmt: skip
def test_a_place_that_is_too_wide_or_not_the_operators_to_show_is_refused(tmp_path: Path, path: str) -> None:
    assert ":3: $.read" in fault_of(written(tmp_path, f'{GOOD}read = ["{path}"]\n'))


def test_a_directory_below_a_wide_one_can_be_shown(tmp_path: Path) -> None:
    file = written(tmp_path, f'{GOOD}read = ["/srv/data", "/home/ann/project", "/var/lib/thing", "/etc/thing"]\n')

    assert len(read_profile(file).read) == 4


def test_a_link_does_not_show_what_may_not_be_shown() -> None:
    place = Path("/srv") / f"omni-test-{os.getpid()}"
    if not os.access("/srv", os.W_OK):
        pytest.skip("needs a directory outside /tmp to put a link into")
    place.symlink_to("/proc")
    try:
        with pytest.raises(ValueError, match="a link to /proc"):
            Profile.model_validate({"profile": 1, "description": "x", "read": (str(place),)})
    finally:
        place.unlink()


def test_the_home_of_whoever_runs_the_gateway_cannot_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/operator")

    with pytest.raises(ValueError, match="too wide"):
        Profile.model_validate({"profile": 1, "description": "x", "read": ("/srv/operator",)})


def test_what_the_gateway_keeps_cannot_be_shown_to_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_HOME", "/srv/omni/gateway")

    for path in ("/srv/omni/gateway", "/srv/omni", "/srv/omni/gateway/data/secrets", "/srv/omni/gateway/omni.toml"):
        with pytest.raises(ValueError, match="where the gateway keeps its"):
            Profile.model_validate({"profile": 1, "description": "x", "read": (path,)})
    Profile.model_validate({"profile": 1, "description": "x", "read": ("/srv/omni/beside",)})


def test_an_own_profile_replaces_the_shipped_one_of_its_name(own: Path) -> None:
    written(own, 'profile = 1\ndescription = "mine"\n', name="shell")

    assert load_profiles(SHIPPED, own=own)["shell"].description == "mine"
    found = find_profile("shell", SHIPPED, own=own)
    assert found is not None and found.description == "mine"
    assert load_profiles(SHIPPED)["shell"].description != "mine"


def test_without_an_own_directory_the_shipped_ones_count(tmp_path: Path) -> None:
    assert load_profiles(SHIPPED, own=tmp_path / "missing") == load_profiles(SHIPPED)
    assert find_profile("shell", SHIPPED, own=tmp_path / "missing") == load_profiles(SHIPPED)["shell"]


@pytest.mark.parametrize("name", ["nope", "../shell", "Shell", "", "shell.toml", "shell\0"])
def test_a_name_that_no_profile_has_finds_none(own: Path, name: str) -> None:
    assert find_profile(name, SHIPPED, own=own) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_own_profile_that_others_can_write_is_refused(own: Path, mode: int) -> None:
    written(own, GOOD, name="shell", mode=mode)

    for attempt in (lambda: load_profiles(SHIPPED, own=own), lambda: find_profile("shell", SHIPPED, own=own)):
        with pytest.raises(ConfigError, match="others can write"):
            attempt()


def test_an_own_directory_that_others_can_write_is_refused(own: Path) -> None:
    written(own, GOOD)
    own.chmod(0o777)

    for attempt in (lambda: load_profiles(SHIPPED, own=own), lambda: find_profile("mine", SHIPPED, own=own)):
        with pytest.raises(ConfigError, match="others can write"):
            attempt()


def test_a_link_is_no_own_profile(own: Path, tmp_path: Path) -> None:
    (own / "shell.toml").symlink_to(written(tmp_path, GOOD, name="elsewhere"))

    with pytest.raises(ConfigError, match=r"shell\.toml"):
        load_profiles(SHIPPED, own=own)
    with pytest.raises(ConfigError, match=r"shell\.toml"):
        find_profile("shell", SHIPPED, own=own)


def test_a_named_pipe_is_refused_and_does_not_hang(own: Path) -> None:
    os.mkfifo(own / "shell.toml", 0o600)

    with pytest.raises(ConfigError, match="regular file"):
        load_profiles(SHIPPED, own=own)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_an_own_profile_of_somebody_else_is_refused(own: Path) -> None:
    os.chown(written(own, GOOD), 4321, 4321)

    with pytest.raises(ConfigError, match="belongs to user 4321"):
        load_profiles(SHIPPED, own=own)


def test_every_fault_of_every_file_is_told_at_once(own: Path) -> None:
    written(own, GOOD + "a = 1\nb = 2\n", name="one")
    written(own, "profile = = 1", name="two")

    with pytest.raises(ConfigError) as caught:
        load_profiles(SHIPPED, own=own)
    assert len(caught.value.problems) == 3
