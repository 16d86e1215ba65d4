"""A gateway whose files every cell would see does not start: what is shown to all jobs is no place for a token."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.host_places import HostPlaces
from omni_mcp.paths import Home
from omni_mcp.testing import local_gateway


@pytest.fixture
def below_usr() -> Iterator[Path]:
    place = Path("/usr/local") / f"omni-test-{os.getpid()}"
    if not os.access("/usr/local", os.W_OK):
        pytest.skip("needs a directory that every cell sees")
    place.mkdir(mode=0o700)
    try:
        yield place
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("linked", [False, True])
async def test_a_gateway_does_not_start_on_a_directory_that_every_cell_sees(
    below_usr: Path, tmp_path: Path, linked: bool
) -> None:
    directory = below_usr
    if linked:
        directory = tmp_path / "link"
        directory.symlink_to(below_usr)
    with pytest.raises(ConfigError, match="which every cell sees"):
        async with local_gateway(directory=directory):
            pass


def test_what_a_link_of_the_gateway_leads_to_counts_too(tmp_path: Path) -> None:
    seen, config = tmp_path / "prefix", tmp_path / "config"
    (seen / "rules").mkdir(parents=True)
    config.mkdir()
    home = Home(config=config, data=tmp_path / "data", runtime=tmp_path / "runtime")
    before = HostPlaces(home).seen_in([str(seen)])
    (config / "policies").symlink_to(seen / "rules")
    (seen / "rules").chmod(0o700)
    (config / "public").symlink_to("/usr/share")

    assert HostPlaces(home).seen_in(["/usr"]) == ""
    assert before == "" and str(seen) in HostPlaces(home).seen_in([str(seen)])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_another_mount_of_what_holds_the_gateways_own_is_refused_as_it_is(tmp_path: Path) -> None:
    for name in ("whole", "holder/inner", "plain"):
        (tmp_path / name).mkdir(parents=True)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from omni_mcp.host_places import HostPlaces\n"
        "from omni_mcp.paths import find_home\n"
        "judge = HostPlaces(find_home(os.environ))\n"
        "print([bool(judge.fault(place)) for place in sys.argv[1:]])"
    )
    script = 'mount --bind / "$1" && mount --bind "$OMNI_HOME" "$2/inner" && exec "$0" -c "$4" "$1" "$2" "$3"'
    own = tmp_path / "own"
    own.mkdir()
    places = [str(tmp_path / name) for name in ("whole", "holder", "plain")]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, *places, code],
        env={**os.environ, "OMNI_HOME": str(own)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.stdout == "[True, True, False]\n", done.stderr
