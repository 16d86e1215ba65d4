"""Probes that take memory in sockets that no account of the kernel's holds: only a look at the sockets finds it."""

from __future__ import annotations

from tests.escape.probe import Probe

_SHARED = """
import socket, struct
MIB = 1 << 20
def send(sender, data):
    sender.setblocking(False)
    with contextlib.suppress(OSError):
        return sender.send(data)
    return 0
def judge(amount, how):
    if amount < 64 * MIB:
        stopped(f"{amount >> 20} MiB {how}")
    keep_for_a_while()
    escaped(f"{amount >> 20} MiB {how}")
"""


def _takes(name: str, attempts: str, script: str) -> Probe:
    return Probe(
        name=f"memory-{name}", group="resources", attempts=attempts, ends=("memory", "signal 9"),
        limits={"memory_mib": 32, "open_files": 2400}, script=_SHARED + script,
    )  # fmt: skip


PROBES = (
    _takes("netlink", "Ask for lists of interfaces, without ever reading one.", """
ABOUT_LOOPBACK = struct.pack("IHHII", 32, 18, 1, 1, 0) + struct.pack("BxHiII", 0, 0, 1, 0, 0)  # RTM_GETLINK
kept = []
for _ in range(1000):
    kept.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    kept[-1].bind((0, 0))
    for _ in range(60):
        if not send(kept[-1], ABOUT_LOOPBACK):
            break
held = sum(int(line.split()[4]) for line in open("/proc/net/netlink").readlines()[1:])
judge(held, "are held")
"""),
    _takes("unaccepted", "Send to a server that never accepts, and leave.", """
server = socket.create_server(("127.0.0.1", 0), backlog=4000)
taken = 0
for _ in range(1500):
    with socket.socket() as client:
        client.settimeout(2)
        try:
            client.connect(server.getsockname())
        except OSError:
            break
        taken += send(client, bytes(65536))
judge(taken, "were taken")
"""),
    _takes("connections", "Hold what each of very many connections may have whatever their limit together is.", """
server = socket.create_server(("127.0.0.1", 0))
kept, taken = [], 0
for _ in range(1100):
    left = socket.create_connection(server.getsockname())
    right, _ = server.accept()
    kept += [left, right]
    taken += send(left, bytes(65536)) + send(right, bytes(65536))
judge(taken, "were taken")
"""),
    _takes("unix-unaccepted", "Send through connections that nobody takes, to very many servers, and leave.", """
kept, taken = [], 0
for number in range(400):
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"\\0{number}")
    server.listen(4096)
    kept.append(server)
    for _ in range(16):
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.setblocking(False)
            client.connect(f"\\0{number}")
            taken += send(client, bytes(65536)) + send(client, bytes(65536))
    if taken > 160 * MIB:
        break
judge(taken, "were taken")
"""),
    _takes("unix-pairs", "Fill both directions of very many pairs.", """
kept, taken = [], 0
for _ in range(1000):
    kept += socket.socketpair()
    for end in kept[-2:]:
        taken += send(end, bytes(65536)) + send(end, bytes(65536))
    if taken > 160 * MIB:
        break
judge(taken, "were taken")
"""),
    _takes("unix-datagrams", "Send large datagrams to names that nobody reads, each from a sender that leaves.", """
kept, taken = [], 0
for number in range(100):
    kept.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    kept[-1].bind(f"\\0{number}")
    for _ in range(11):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            with contextlib.suppress(OSError):
                taken += sender.sendto(bytes(200_000), f"\\0{number}")
    if taken > 160 * MIB:
        break
judge(taken, "were taken")
"""),
    _takes("copies-of-what-was-sent", "Ask for the time of each datagram sent, and leave the copies that bring it.", """
kept, held = [], 0
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
TIMESTAMPING, ON_SENDING = 37, 1 << 1 | 1 << 8  # SOF_TIMESTAMPING_TX_SOFTWARE, TX_SCHED
for _ in range(1000):
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    kept.append(sender)
    sender.setblocking(False)
    asked = [(socket.SOL_SOCKET, TIMESTAMPING, struct.pack("I", ON_SENDING))]
    with contextlib.suppress(OSError):
        for _ in range(8):
            sender.sendmsg([bytes(60000)], asked, 0, receiver.getsockname())
for line in open("/proc/net/udp").readlines()[1:]:
    held += int(line.split()[4].split(":")[1], 16)
judge(held, "are held")
"""),
)  # fmt: skip
