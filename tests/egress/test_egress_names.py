"""Where names may lead: resolved once, every address checked, the checked one dialled."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from omni_mcp.engines.sandbox.egress.grant import EgressGrant
from omni_mcp.engines.sandbox.egress.proxy import serve_egress
from tests.egress.outside import HERE, HOST, Names, Origin, Proxy, get, proxy

PRIVATE = [
    "127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "168.63.129.16",
    "100.100.100.200",
    "0.0.0.0",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.0.192",
    "198.18.0.1",
    "::",
    "::1",
    "::127.0.0.1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%lo",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::1",
    "2001:0:1:1:1:1:80ff:fffe",
    "nonsense",
]


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_name_that_leads_to_an_address_that_is_not_public_is_refused(address: str) -> None:
    names = Names(**{HOST: [[address]]})
    async with Origin().running() as origin, proxy(f"{HOST}:{origin.port}", names=names, networks=()) as here:
        got = await here.ask(get(f"http://{HOST}:{origin.port}/"))
        report = await here.report()

    assert got.status == 403
    assert got.told["reason"] == "private_address"
    assert (report.verdict, report.reason, report.address) == ("refused", "private_address", "")
    assert origin.connections == 0


async def test_of_several_addresses_only_those_that_are_allowed_are_dialled() -> None:
    names = Names(**{HOST: [["10.0.0.1", "127.0.0.2", "::1", HERE]]})
    async with Origin().running() as origin, proxy(f"{HOST}:{origin.port}", names=names) as here:
        got = await here.ask(get(f"http://{HOST}:{origin.port}/"))
        report = await here.report()

    assert got.status == 200
    assert report.address == HERE


async def test_a_name_is_asked_for_once_so_its_second_answer_changes_nothing() -> None:
    names = Names(**{HOST: [[HERE], ["127.0.0.2"]]})
    async with Origin().running() as origin, proxy(f"{HOST}:{origin.port}", names=names) as here:
        first = await here.ask(get(f"http://{HOST}:{origin.port}/"))
        second = await here.ask(get(f"http://{HOST}:{origin.port}/"))

    assert first.status == 200
    assert second.told["reason"] == "private_address"
    assert names.asked == [HOST, HOST]


async def test_a_mapped_address_is_dialled_as_the_address_inside() -> None:
    names = Names(**{HOST: [[f"::ffff:{HERE}"]]})
    async with Origin().running() as origin, proxy(f"{HOST}:{origin.port}", names=names) as here:
        assert (await here.ask(get(f"http://{HOST}:{origin.port}/"))).status == 200
        assert (await here.report()).address == HERE


@pytest.mark.parametrize("answers", [{}, {HOST: [[]]}])
async def test_a_name_without_an_address_is_not_resolved(answers: dict[str, list[list[str]]]) -> None:
    async with proxy(f"{HOST}:80", names=Names(**answers)) as here:
        got = await here.ask(get(f"http://{HOST}/"))
        report = await here.report()

    assert got.status == 502
    assert (report.verdict, report.reason) == ("failed", "not_resolved")


async def test_an_address_that_holds_for_one_interface_only_is_not_dialled_whatever_is_granted() -> None:
    names = Names(**{HOST: [["fe80::1%lo"]]})
    async with proxy(f"{HOST}:80", names=names, networks=("fe80::/10",)) as here:
        assert (await here.ask(get(f"http://{HOST}/"))).told["reason"] == "private_address"


async def test_a_wide_network_does_not_open_the_metadata_service() -> None:
    names = Names(**{HOST: [["169.254.169.254"]]})
    async with proxy(f"{HOST}:80", names=names, networks=("169.254.0.0/16",)) as here:
        assert (await here.ask(get(f"http://{HOST}/"))).told["reason"] == "private_address"


async def test_without_another_resolver_the_machines_own_is_asked() -> None:
    listener = socket.create_server((HERE, 0))
    here = Proxy(port=listener.getsockname()[1])
    async with Origin().running() as origin:
        grant = EgressGrant(hosts=(f"localhost:{origin.port}",), networks=(f"{HERE}/32",))
        async with serve_egress(listener, grant, on_connection=here.note):
            assert (await here.ask(get(f"http://localhost:{origin.port}/"))).body == b"hello"


async def test_without_networks_the_name_of_this_machine_is_refused() -> None:
    listener = socket.create_server((HERE, 0))
    here = Proxy(port=listener.getsockname()[1])
    async with serve_egress(listener, EgressGrant(hosts=("localhost:80",)), on_connection=here.note):
        assert (await here.ask(get("http://localhost/"))).told["reason"] == "private_address"


OWN_ADDRESS = """
import asyncio, sys
from tests.egress.outside import HOST, Names, get, proxy

OWN = "93.184.216.34"

async def main():
    async def ok(reader, writer):
        await reader.readuntil(b"\\r\\n\\r\\n")
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(ok, "0.0.0.0", 8080)
    for host, networks in ((OWN, ()), (OWN, (OWN + "/32",))):
        async with proxy(HOST + ":8080", names=Names(**{HOST: [[host]]}), networks=networks) as here:
            got = await here.ask(get("http://" + HOST + ":8080/"))
            print(got.status, (await here.report()).reason or "open")
    async with proxy(OWN + ":8080", networks=()) as here:
        print((await here.ask(get("http://" + OWN + ":8080/"))).status)
    server.close()

asyncio.run(main())
"""


def test_a_name_that_leads_back_to_this_machine_by_its_public_address_is_refused() -> None:
    """In a network namespace of its own, where the loopback device has a public address."""
    set_up = 'ip link set lo up && ip addr add 93.184.216.34/32 dev lo && exec "$0" -c "$1"'
    try:
        done = subprocess.run(
            ["unshare", "-Urn", "sh", "-c", set_up, sys.executable, OWN_ADDRESS],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if "unshare:" in done.stderr or "ip:" in done.stderr:
        pytest.skip("no network namespace can be had here")

    assert done.stderr == ""
    assert done.stdout.splitlines() == ["403 private_address", "200 open", "200"]
