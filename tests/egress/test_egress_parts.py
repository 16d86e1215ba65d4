"""The parts that decide: grants, addresses and the parsers of what a job or a host sends."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from omni_mcp.contracts.sandbox import Credential
from omni_mcp.engines.sandbox.egress.addresses import is_public, may_be_dialled, parse_address
from omni_mcp.engines.sandbox.egress.body import read_body
from omni_mcp.engines.sandbox.egress.grant import EgressGrant
from omni_mcp.engines.sandbox.egress.head import Framing, Malformed, framing_of, read_response_head, render
from omni_mcp.engines.sandbox.egress.hello import NotTls, find_hello
from omni_mcp.engines.sandbox.egress.request import ProxyRequest, read_request
from omni_mcp.engines.sandbox.egress.target import parse_target
from tests.egress.outside import HOST, client_hello


@pytest.mark.parametrize(
    "host",
    [
        "api.example.org",
        "api.example.org:",
        "api.example.org:0",
        "api.example.org:65536",
        "api.example.org:https",
        "api.example.org.:443",
        "*:443",
        "*.:443",
        "a.*.example.org:443",
        "*example.org:443",
        "*.10.0.0.1:443",
        "https://api.example.org:443",
        "api.example.org:443/path",
        "user@api.example.org:443",
        "b\u00fccher.example:443",
        "2130706433:80",
        "0x7f.1:80",
        "::1:80",
        "[::1]",
        "[fe80::1%eth0]:80",
        "[::ffff:127.0.0.1]:80",
        "0.0.0.0:80",
        "[::]:80",
        "224.0.0.1:80",
        "a" * 64 + ".example:80",
        "",
    ],
)
def test_a_host_that_cannot_be_understood_is_no_grant(host: str) -> None:
    with pytest.raises(ValueError, match=r"is no host with a port|nothing below an address|address of no single host"):
        EgressGrant(hosts=(host,))


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0", "10.0.0.1/8", "10.0.0.0/33", "office", "::ffff:10.0.0.0/104"])
def test_a_network_that_is_no_range_or_everything_is_no_grant(network: str) -> None:
    with pytest.raises(ValueError, match=r"range|every address|write IPv4"):
        EgressGrant(hosts=(), networks=(network,))


@pytest.mark.parametrize(
    ("host", "header", "value"),
    [
        ("api.example.org", "X-Key", "s3cret"),
        ("*.example.org:443", "X-Key", "s3cret"),
        ("api.example.org:443", "X Key", "s3cret"),
        ("api.example.org:443", "Host", "s3cret"),
        ("api.example.org:443", "Transfer-Encoding", "s3cret"),
        ("api.example.org:443", "X-Key", ""),
        ("api.example.org:443", "X-Key", "s3cret\r\nX: y"),
        ("api.example.org:443", "X-Key", "s3cret\u20ac"),
    ],
)
def test_a_credential_that_cannot_be_sent_is_refused_without_showing_it(host: str, header: str, value: str) -> None:
    with pytest.raises(ValueError, match="credential for") as caught:
        EgressGrant(hosts=(), credentials=(Credential(host=host, header=header, value=value),))
    assert "s3cret" not in str(caught.value)


def test_a_grant_shows_no_credential() -> None:
    grant = EgressGrant(hosts=(), credentials=(Credential(host="a.example:443", header="X-Key", value="s3cret"),))
    assert "s3cret" not in repr(grant)
    assert "s3cret" not in str(grant)


V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6)
NOT_PUBLIC_V4 = st.sampled_from(
    ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "224.0.0.0/4"]
).flatmap(lambda network: st.ip_addresses(network=network))


@given(address=V4)
@example(address=ipaddress.IPv4Address("168.63.129.16"))
def test_what_counts_as_public_is_never_special_for_python_either(address: ipaddress.IPv4Address) -> None:
    if is_public(address):
        assert address.is_global
        assert not address.is_multicast


@given(address=V6)
def test_a_public_address_of_version_6_is_global_unicast(address: ipaddress.IPv6Address) -> None:
    if is_public(address) and address not in ipaddress.IPv6Network("64:ff9b::/96") and address.ipv4_mapped is None:
        assert address in ipaddress.IPv6Network("2000::/3")
        assert address.is_global


@pytest.mark.parametrize(
    "text",
    ["8.8.8.8", "1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::808:808"],
)
def test_public_addresses_may_be_dialled(text: str) -> None:
    address = parse_address(text)
    assert address is not None
    assert may_be_dialled(address, ())


@given(inner=NOT_PUBLIC_V4)
def test_no_wrapping_makes_a_private_address_public(inner: ipaddress.IPv4Address) -> None:
    number = int(inner)
    wrapped = {
        "mapped": int(ipaddress.IPv6Address("::ffff:0:0")) | number,
        "compatible": number,
        "translated": int(ipaddress.IPv6Address("::ffff:0:0:0")) | number,
        "nat64": int(ipaddress.IPv6Address("64:ff9b::")) | number,
        "local nat64": int(ipaddress.IPv6Address("64:ff9b:1::")) | number,
        "6to4": int(ipaddress.IPv6Address("2002::")) | number << 80,
        "teredo": int(ipaddress.IPv6Address("2001::")) | (~number & 0xFFFFFFFF),
    }
    for kind, value in wrapped.items():
        address = parse_address(str(ipaddress.IPv6Address(value)))
        assert address is not None
        assert not may_be_dialled(address, ()), kind


def test_a_network_opens_what_is_in_it_and_nothing_else() -> None:
    networks = (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("64:ff9b::/96"))
    for text, allowed in (
        ("10.1.2.3", True),
        ("10.2.0.1", False),
        ("::ffff:10.1.2.3", True),
        ("64:ff9b::10.2.3.4", True),
        ("64:ff9b::169.254.169.254", False),
        ("2002:0a01:0203::", False),
    ):
        address = parse_address(text)
        assert address is not None
        assert may_be_dialled(address, networks) is allowed, text


def test_a_network_of_one_address_opens_even_the_metadata_service() -> None:
    address = ipaddress.ip_address("169.254.169.254")
    assert may_be_dialled(address, (ipaddress.ip_network("169.254.169.254/32"),))
    assert not may_be_dialled(address, (ipaddress.ip_network("169.254.169.254/31"),))


@given(text=st.text(max_size=80) | st.from_regex(r"[0-9a-fx.:\[\]@%]{1,30}", fullmatch=True))
@example(text="[::1]:80:80")
@example(text="a:1:2")
def test_a_target_that_is_understood_is_understood_the_same_way_again(text: str) -> None:
    try:
        target = parse_target(text, default_port=80)
    except ValueError:
        return
    assert parse_target(target.authority()) == target
    assert target.host.isascii()
    assert not set(target.host) & set("@/\\#? %")
    if target.address is None:
        assert any(character.isalpha() or character in "-_" for character in target.host.split(".")[-1])


def request_of(data: bytes) -> ProxyRequest | None:
    async def read() -> ProxyRequest | None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        try:
            return await read_request(reader, seen=lambda method, host, port: None)
        except (Malformed, EOFError):
            return None

    return asyncio.run(read())


GOOD = b"POST http://api.example.org/a HTTP/1.1\r\nHost: api.example.org\r\nContent-Length: 5\r\nX: y\r\n\r\n"
NOISE = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"\x00", b" ", b"\t", b":", b"@", b"\\", b"#", b"\xff", b"Host: b", b";"]
)


@given(at=st.integers(0, len(GOOD)), noise=st.lists(NOISE, min_size=1, max_size=3), drop=st.integers(0, 3))
def test_a_disturbed_head_is_refused_or_goes_out_for_the_same_host_with_one_meaning(
    at: int, noise: list[bytes], drop: int
) -> None:
    request = request_of(GOOD[:at] + b"".join(noise) + GOOD[at + drop :])
    if request is None:
        return
    out = request.upstream_head(())
    lines = out.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert out.endswith(b"\r\n\r\n")
    assert lines[0].count(b" ") == 2
    assert lines[0].endswith(b" HTTP/1.1")
    assert [line for line in lines if line.lower().startswith(b"host:")] == [b"host: " + request.target.host.encode()]
    assert sum(line.lower().startswith((b"content-length", b"transfer-encoding")) for line in lines) <= 1
    assert not any(set(line) & {0, 10, 13} for line in lines)
    assert all(b":" in line for line in lines[1:])


@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_request_are_refused_and_nothing_else_happens(data: bytes) -> None:
    assert request_of(data) is None


@given(data=st.binary(max_size=200), start=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 204 \r\nA: "]))
def test_an_answer_is_read_or_refused_and_never_grows_a_line(data: bytes, start: bytes) -> None:
    async def read() -> bytes:
        reader = asyncio.StreamReader()
        reader.feed_data(start + data)
        reader.feed_eof()
        answer = await read_response_head(reader)
        return render("HTTP/1.1 200 OK", answer.fields, framing_of(answer.fields, minor=1))

    try:
        out = asyncio.run(read())
    except (Malformed, EOFError):
        return
    assert out.index(b"\r\n\r\n") == len(out) - 4
    assert b"\n" not in out.replace(b"\r\n", b"")


@given(pieces=st.lists(st.binary(min_size=1, max_size=50), max_size=5), cut=st.integers(0, 300))
def test_chunks_are_read_whole_or_refused(pieces: list[bytes], cut: int) -> None:
    async def read(data: bytes) -> bytes:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return b"".join([piece async for piece in read_body(reader, Framing(chunked=True), idle_s=5)])

    good = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    assert asyncio.run(read(good)) == b"".join(pieces)
    if cut < len(good):
        with pytest.raises(EOFError):
            asyncio.run(read(good[:cut]))


HELLO = client_hello(HOST)


@given(cut=st.integers(0, len(HELLO) - 1))
def test_a_hello_is_not_judged_before_it_is_whole(cut: int) -> None:
    assert find_hello(HELLO[:cut]) is None


@given(tail=st.binary(max_size=20))
def test_a_hello_says_its_name_whatever_follows_it(tail: bytes) -> None:
    hello = find_hello(HELLO + tail)
    assert hello is not None
    assert hello.server_name == HOST
    assert not hello.hidden


@given(at=st.integers(0, len(HELLO) - 1), value=st.integers(0, 255))
def test_a_disturbed_hello_is_read_or_refused(at: int, value: int) -> None:
    try:
        hello = find_hello(HELLO[:at] + bytes([value]) + HELLO[at + 1 :])
    except NotTls:
        return
    assert hello is None or hello.server_name.isascii()


@given(
    data=st.binary(max_size=400), start=st.sampled_from([b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x10\x01\x00\x00\x0c"])
)
def test_any_bytes_are_a_hello_or_the_beginning_of_one_or_refused(data: bytes, start: bytes) -> None:
    try:
        find_hello(start + data)
    except NotTls:
        return


def test_a_hello_in_too_many_records_is_refused() -> None:
    body = HELLO[5:]
    with pytest.raises(NotTls):
        find_hello(b"".join(b"\x16\x03\x01\x00\x01" + body[at : at + 1] for at in range(len(body))))


def test_a_hello_with_two_names_is_refused() -> None:
    name = HOST.encode()
    entry = b"\x00" + len(name).to_bytes(2, "big") + name
    for names in (entry + entry, entry + b"\x00\x00\x01x"):
        extension = len(names).to_bytes(2, "big") + names
        with pytest.raises(NotTls):
            find_hello(_hello(b"\x00\x00" + len(extension).to_bytes(2, "big") + extension))
    extension = len(entry).to_bytes(2, "big") + entry
    whole = b"\x00\x00" + len(extension).to_bytes(2, "big") + extension
    with pytest.raises(NotTls):
        find_hello(_hello(whole + whole))
    found = find_hello(_hello(whole))
    assert found is not None
    assert found.server_name == HOST


def _hello(extensions: bytes) -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += len(extensions).to_bytes(2, "big") + extensions
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message
