"""Probes by unix sockets: to services of the host, and for descriptors that travel through them."""

from __future__ import annotations

from tests.escape.probe import Probe


def _reach(label: str, *, allowed: bool) -> Probe:
    kind = "SOCK_STREAM" if label.endswith("stream") else "SOCK_DGRAM"
    how = "by its name in the abstract space" if label.startswith("abstract") else "by path"
    return Probe(
        name=f"{label.replace('_', '-')}{'-allowed' if allowed else ''}",
        group="unix sockets",
        attempts=f"Reach a service of the host {how}{', where unix sockets are allowed' if allowed else ''}.",
        profile="sockets" if allowed else "usual",
        script=f"""
import socket
with attempt("reach"):
    talker = socket.socket(socket.AF_UNIX, socket.{kind})
    talker.connect(FACTS["unix"]["{label}"])
    talker.send(b"who is there?")
    escaped("sent")
stopped()
""",
    )


def _aim(label: str, *, send_to: bool) -> Probe:
    action = "talker.sendto(b'who?', address)" if send_to else "talker.connect(address); talker.send(b'who?')"
    return Probe(
        name=f"{'send' if send_to else 'connect'}-pair-to-{label.replace('_', '-')}",
        group="unix sockets",
        attempts="Make a pair of datagram sockets, which is always allowed, and aim one of them at the host.",
        given=label == "given",
        script=f"""
import socket
address = {"'/workspace/dgram'" if label == "given" else f'FACTS["unix"]["{label}"]'}
with attempt("aim"):
    talker, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    {action}
    escaped("sent")
stopped()
""",
    )


def _usual(path: str) -> Probe:
    return Probe(
        name=f"service-{path.strip('/').replace('/', '-').replace('_', '-').replace('.', '-')}",
        group="unix sockets",
        attempts=f"Reach whoever serves on {path}.",
        script=f"""
import socket
for path in ({path!r}, {path!r}.replace("/var/run", "/run")):
    with attempt(path):
        socket.socket(socket.AF_UNIX).connect(path)
        escaped(f"connected to {{path}}")
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)
        escaped(f"{{path}} is seen")
stopped()
""",
        no_control="what serves there on this machine is nobody's to be asked",
    )


def _reach_given(*, hand_over: bool) -> Probe:
    """A directory of the host is mounted: then there are no unix sockets with names at all."""
    beside = "(socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(4))" if hand_over else ""
    return Probe(
        name=f"given-socket{'-and-a-descriptor' if hand_over else ''}",
        group="unix sockets",
        attempts=f"{'Hand a descriptor to' if hand_over else 'Reach'} a service in a directory that the job was given.",
        given=True,
        script=f"""
import socket
with attempt("reach"):
    talker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    talker.connect("/workspace/dgram")
    talker.sendmsg([b"x"], [{beside}])
    escaped("sent")
stopped()
""",
    )


PROBES = (
    *(_reach(label, allowed=allowed) for label in ("stream", "dgram", "abstract_stream", "abstract_dgram")
      for allowed in (False, True)),
    *(_aim(label, send_to=send_to) for label in ("dgram", "abstract_dgram", "given") for send_to in (False, True)),
    Probe(
        name="serve-from-a-pair",
        group="unix sockets",
        profile="closed",
        attempts="Give a name to one of a pair of datagram sockets, and so be a service without a socket of one's own.",
        script="""
import socket
with attempt("bind"):
    server, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind("/tmp/server")
    call(42 if platform.machine() == "x86_64" else 203, server.fileno(), bytes(2), 2)
    client, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.sendto(b"hello", "/tmp/server")
    escaped(f"heard {server.recv(9)}")
stopped()
""",
    ),
    *(_usual(place) for place in ("/run/dbus/system_bus_socket", "/var/run/docker.sock", "/tmp/.X11-unix/X0")),
    *(_reach_given(hand_over=hand_over) for hand_over in (False, True)),
    Probe(
        name="descriptors-in-flight",
        group="unix sockets",
        attempts="Send more descriptors, without ever taking them, than a user may have open.",
        script="""
import array, resource, socket
most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
left, right = socket.socketpair()
sent = 0
with attempt("send"):
    while sent < 8 * most:
        left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 16))])
        sent += 16
    escaped(f"{sent} are under way, of {most} that may be open")
stopped(f"{sent} are under way")
""",
        no_control="the kernel itself counts what is under way, but for those who may raise any limit",
    ),
    Probe(
        name="aim-a-stream-pair",
        group="unix sockets",
        attempts="Take a pair of stream sockets apart and connect one of them anew.",
        script="""
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    talker, other = socket.socketpair(socket.AF_UNIX, kind)
    other.close()
    with attempt("apart"):
        call(42 if platform.machine() == "x86_64" else 203, talker.fileno(), bytes(2), 2)
        escaped("it is apart")
    with attempt("connect"):
        talker.connect(FACTS["unix"]["stream"])
        escaped("it is connected")
stopped()
""",
        no_control="the kernel itself lets no connected stream go to another address",
    ),
    Probe(
        name="control-socket",
        group="unix sockets",
        attempts="Find the control socket of process 1, and ask it for a descriptor.",
        script="""
import socket
for number in range(3, 4096):
    with contextlib.suppress(OSError):
        found = socket.socket(fileno=os.dup(number))
        escaped(f"descriptor {number} is a socket of family {found.family}")
with open("/proc/net/unix") as file:
    seen = file.read().splitlines()[1:]
named = [line.split()[7] for line in seen if len(line.split()) > 7]
escaped(f"sockets with names are seen: {named[:3]}") if named else stopped("none is there")
""",
    ),
    Probe(
        name="receive-a-descriptor",
        group="unix sockets",
        attempts="Wait for a descriptor from whatever is open as input, output or errors.",
        script="""
import array, socket
for number in (0, 1, 2):
    with attempt(str(number)):
        found = socket.socket(fileno=os.dup(number))
        found.setblocking(False)
        _, extra, _, _ = found.recvmsg(1, 4096)
        escaped(f"{number} is a socket that gave {extra}")
stopped()
""",
        no_control="where the streams are no sockets there is nothing to receive from",
    ),
    Probe(
        name="credentials",
        group="unix sockets",
        attempts="Send the credentials of process 1, or of root, instead of one's own.",
        script="""
import socket, struct
left, right = socket.socketpair()
right.setsockopt(socket.SOL_SOCKET, 16, 1)
for who in ((1, os.getuid(), os.getgid()), (os.getpid(), 0, 0)):
    with attempt(str(who)):
        left.sendmsg([b"x"], [(socket.SOL_SOCKET, 2, struct.pack("3i", *who))])
        if who != (os.getpid(), os.getuid(), os.getgid()):
            escaped(f"sent as {who}")
stopped()
""",
    ),
)  # fmt: skip
