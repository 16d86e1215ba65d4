"""Probes that try to reach anybody over a network, to listen in, or to change how the machine is connected."""

from __future__ import annotations

from tests.escape.probe import Probe


def _talk(name: str, attempts: str, family: str, kind: str, addresses: str) -> Probe:
    """Say hello to each address; whoever answers, or refuses, is somebody."""
    return Probe(
        name=name,
        group="network",
        attempts=attempts,
        script=f"""
import socket
for address in {addresses}:
    with attempt(str(address)):
        try:
            talker = socket.socket(socket.{family}, socket.{kind})
            talker.settimeout(0.3)
            talker.connect(address)
            talker.send(b"who is there?")
            answer = talker.recv(1000)
        except TimeoutError as error:
            escaped(f"{{address}}: sent, and nobody refused")
        except ConnectionRefusedError:
            if address[0] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                escaped(f"{{address}} refused, so it is there")
            raise
        if answer:
            escaped(f"{{address}} answered")
stopped(_reasons and "; ".join(_reasons) or "there is no address to try")
""",
    )


def _family(name: str, attempts: str, family: int, kind: int, protocol: int, *, no_control: str = "") -> Probe:
    return Probe(
        name=f"socket-{name}",
        group="network",
        attempts=attempts,
        no_control=no_control,
        script=f"""
import socket
with attempt("socket"):
    socket.socket({family}, {kind}, {protocol})
    escaped("it is made")
stopped()
""",
    )


_NETLINKS = {
    "netfilter": 12, "transform": 6, "inspection": 4, "audit": 9, "events": 15, "generic": 16, "connector": 11,
    "crypto": 21, "scsi": 18, "security": 7,
}  # fmt: skip
_NO_MODULE = "this kernel has none"

PROBES = (
    _talk("host-tcp", "Connect to a port of the host's loopback.", "AF_INET", "SOCK_STREAM",
          "[('127.0.0.1', FACTS['ports']['tcp'])]"),
    _talk("host-udp", "Send a datagram to a port of the host's loopback.", "AF_INET", "SOCK_DGRAM",
          "[('127.0.0.1', FACTS['ports']['udp'])]"),
    _talk("host-tcp6", "Connect to a port of the host's loopback by IPv6.", "AF_INET6", "SOCK_STREAM",
          "[('::1', FACTS['ports']['tcp6'])] if FACTS['ports']['tcp6'] else []"),
    _talk("host-tcp-mapped", "Connect to a port of the host's loopback by an IPv4 address in an IPv6 one.", "AF_INET6",
          "SOCK_STREAM", "[('::ffff:127.0.0.1', FACTS['ports']['tcp'])]"),
    _talk("host-addresses", "Connect to the host by its own addresses.", "AF_INET", "SOCK_STREAM",
          "[(a, p) for a in FACTS['addresses'] for p in (22, 53, FACTS['ports']['tcp'])]"),
    _talk("outside-tcp", "Connect to an address outside.", "AF_INET", "SOCK_STREAM", "[('192.0.2.1', 53)]"),
    _talk("outside-udp", "Send a datagram to an address outside.", "AF_INET", "SOCK_DGRAM", "[('192.0.2.1', 53)]"),
    _talk("metadata", "Connect to the address at which clouds give away credentials.", "AF_INET", "SOCK_STREAM",
          "[('169.254.169.254', 53)]"),
    _talk("multicast", "Send a datagram to everybody on the link.", "AF_INET", "SOCK_DGRAM",
          "[('224.0.0.251', 5353), ('192.0.2.255', 9)]"),
    _talk("link-local", "Send a datagram to everybody on the link by IPv6.", "AF_INET6", "SOCK_DGRAM",
          "[('ff02::1', 9, 0, n) for n in range(1, 20)]"),
    Probe(
        name="resolve",
        group="network",
        attempts="Resolve a name, through which data can leave.",
        script="""
import socket
try:
    escaped(socket.getaddrinfo("data.example.com", 80))
except socket.gaierror as error:
    stopped(error)
""",
    ),
    Probe(
        name="interfaces",
        group="network",
        attempts="Find a way out besides the own loopback.",
        script="""
import socket
with open("/proc/net/route") as file:
    routes = file.read().splitlines()[1:]
names = [name for _, name in socket.if_nameindex() if name != "lo"]
escaped(f"there are {routes} {names}") if routes or names else stopped("there is lo")
""",
    ),
    Probe(
        name="add-a-route",
        group="network",
        attempts="Add a route by netlink.",
        script="""
import socket, struct
talker = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
talker.bind((0, 0))
body = struct.pack("BBBBBBBBI", 2, 24, 0, 0, 254, 3, 253, 1, 0)
body += struct.pack("HH4s", 8, 1, socket.inet_aton("198.51.100.0")) + struct.pack("HHI", 8, 4, 1)
talker.send(struct.pack("IHHII", 16 + len(body), 24, 0x605, 1, 0) + body)
code = struct.unpack("i", talker.recv(4096)[16:20])[0]
stopped(errno.errorcode[-code]) if code else escaped("it is added")
""",
    ),
    Probe(
        name="add-an-interface",
        group="network",
        attempts="Make an interface of any kind, which asks the kernel for its driver.",
        script="""
import socket, struct
talker = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
talker.bind((0, 0))
for kind in (b"veth", b"bridge", b"dummy", b"tun", b"vxlan"):
    info = struct.pack("HH", 4 + len(kind), 1) + kind + bytes(-len(kind) % 4)
    body = bytes(16) + struct.pack("HH", 4 + len(info), 18) + info
    talker.send(struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
    code = struct.unpack("i", talker.recv(4096)[16:20])[0]
    if code not in (-errno.EPERM, -errno.EACCES):
        escaped(f"{kind}: {errno.errorcode[-code] if code else 'made'}")
    _reasons.append(errno.errorcode[-code])
stopped()
""",
    ),
    Probe(
        name="configure-loopback",
        group="network",
        attempts="Give the loopback another address, that of a host which is trusted.",
        script="""
import fcntl, socket, struct
talker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
request = struct.pack("16sHH4s8x", b"lo:7", 2, 0, socket.inet_aton("198.51.100.7"))
with attempt("ioctl"):
    fcntl.ioctl(talker, 0x8916, request)
    escaped("it is given")
stopped()
""",
    ),
    Probe(
        name="network-settings",
        group="network",
        attempts="Open any setting of the network for writing.",
        script="""
names = []
for here, _, files in os.walk("/proc/sys/net"):
    names += [os.path.join(here, name) for name in files]
assert names
opens(*names, flags=os.O_WRONLY)
stopped(f"none of {len(names)}")
""",
    ),
    Probe(
        name="privileged-options",
        group="network",
        attempts="Mark packets, choose their device, or pretend to be another address.",
        script="""
import socket
for level, option, value in ((1, 36, 7), (1, 33, 0), (0, 19, 1), (41, 75, 1), (1, 12, 7)):
    with attempt(f"option {option}"):
        with socket.socket(socket.AF_INET6 if level == 41 else socket.AF_INET, socket.SOCK_DGRAM) as talker:
            talker.setsockopt(level, option, value)
            escaped(f"option {option} is set")
stopped()
""",
    ),
    _family("raw", "Make packets of one's own.", 2, 3, 1),
    _family("raw6", "Make packets of one's own by IPv6.", 10, 3, 58),
    _family("ping", "Send echo requests, through which data can leave.", 2, 2, 1),
    _family("packet", "Listen to everything that passes an interface.", 17, 3, 0),
    _family("vsock", "Talk to the machine that runs this one.", 40, 1, 0),
    _family("xdp", "Take packets before the kernel sees them.", 44, 3, 0),
    _family("alg", "Use the kernel's ciphers, a row of break-outs.", 38, 5, 0, no_control=_NO_MODULE),
    _family("key", "Manage the keys of IPsec.", 15, 3, 2, no_control=_NO_MODULE),
    _family("bluetooth", "Talk by radio.", 31, 3, 1, no_control=_NO_MODULE),
    _family("can", "Talk to a bus of devices.", 29, 3, 1, no_control=_NO_MODULE),
    _family("multipath", "Use a young protocol over several paths.", 2, 1, 262),
    *(
        _family(f"netlink-{name}", f"Talk to the kernel's {name} by netlink.", 16, 3, number,
                no_control=_NO_MODULE if name in ("crypto", "scsi") else "")
        for name, number in _NETLINKS.items()
    ),
    Probe(
        name="socket-filter",
        group="network",
        attempts="Give the kernel a program of one's own, to be compiled and run for each packet.",
        script="""
import socket, struct
talker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
block = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0), 8)
with attempt("attach"):
    talker.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(block)))
    escaped("it is attached")
stopped()
""",
    ),
    Probe(
        name="any-family",
        group="network",
        attempts="Make a socket of any family besides the internet's and unix, of any kind and a row of protocols.",
        script="""
import socket
for family in range(1, 64):
    for kind in (1, 2, 3, 4, 5, 10):
        for protocol in (0, 1, 2, 3):
            if family in (1, 2, 10) or (family == 16 and protocol == 0):
                continue
            with attempt("socket"):
                socket.socket(family, kind, protocol).close()
                escaped(f"family {family}, kind {kind}, protocol {protocol}")
stopped(f"{len(_reasons)} are refused")
""",
    ),
    Probe(
        name="high-bits-of-a-family",
        group="network",
        attempts="Make a socket with bits above the family that a filter compares and the kernel does not.",
        script="""
number = 41 if platform.machine() == "x86_64" else 198
with attempt("packet"):
    call(number, ctypes.c_long((1 << 32) | 17).value, 3, 0)
    escaped("a packet socket")
with attempt("generic netlink"):
    call(number, ctypes.c_long((1 << 32) | 16).value, 3, 16)
    escaped("a socket of generic netlink")
stopped()
""",
    ),
)  # fmt: skip
