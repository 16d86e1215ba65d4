"""The outside of the egress tests: an origin on loopback, names that lead where a test says, and a job's side."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from omni_mcp.contracts.json import JsonObject
from omni_mcp.contracts.sandbox import Connection, Credential
from omni_mcp.engines.sandbox.egress.grant import EgressGrant
from omni_mcp.engines.sandbox.egress.limits import DEFAULT_LIMITS, EgressLimits
from omni_mcp.engines.sandbox.egress.proxy import serve_egress

HOST = "api.example.org"
HERE = "127.0.0.1"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
PATIENCE_S = 20.0

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Origin:
    """A server that keeps what it was sent. Answers each connection with the same bytes once a head has come."""

    def __init__(self, answer: bytes = OK, *, handler: Handler | None = None, reads_to_end: bool = False) -> None:
        self._answer = answer
        self._handler = handler
        self._reads_to_end = reads_to_end
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.heads: list[bytes] = []
        self.after: list[bytes] = []  # what came after each head, up to the end of the stream
        self.connections = 0
        self.last_over = asyncio.Event()

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Origin]:
        server = await asyncio.start_server(self._accept, HERE, 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._handler is not None:
                await self._handler(reader, writer)
                return
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            if self._reads_to_end:
                self.after.append(await _until(reader, b"0\r\n\r\n"))
            writer.write(self._answer)
            await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
                if not self._reads_to_end:
                    self.after.append(await reader.read())
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            self.last_over.set()


async def _until(reader: asyncio.StreamReader, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = await reader.read(1 << 16)
        if not more:
            break
        data += more
    return data


class Names:
    """A resolver: for each name a list of answers, given one after the other; the last one stays."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {name: list(each) for name, each in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answers = self._answers.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return answers.pop(0) if len(answers) > 1 else answers[0]


@dataclass(slots=True, kw_only=True)
class Answer:
    """What the job got, read to the end of the stream. `broken`: the stream ended with a reset."""

    raw: bytes
    broken: bool = False

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def head(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[0] + b"\r\n"

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def told(self) -> JsonObject:
        told: JsonObject = json.loads(self.body)
        return told


@dataclass(slots=True, kw_only=True)
class Proxy:
    """A running proxy, as the job sees it, and the record of it."""

    port: int
    reports: list[Connection] = field(default_factory=list)
    queue: asyncio.Queue[Connection] = field(default_factory=asyncio.Queue)

    def note(self, connection: Connection) -> None:
        self.reports.append(connection)
        self.queue.put_nowait(connection)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(HERE, self.port)

    async def ask(self, request: bytes) -> Answer:
        """Send bytes, read until the proxy closes."""
        reader, writer = await self.connect()
        try:
            writer.write(request)
            return await read_all(reader)
        finally:
            writer.transport.abort()

    async def report(self) -> Connection:
        """Wait for the next report."""
        return await asyncio.wait_for(self.queue.get(), PATIENCE_S)


def reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection off, so that the other side gets a reset."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def read_all(reader: asyncio.StreamReader) -> Answer:
    data = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while more := await reader.read(1 << 16):
                data += more
    except ConnectionError:
        return Answer(raw=data, broken=True)
    return Answer(raw=data)


@asynccontextmanager
async def proxy(
    *hosts: str,
    names: Names | None = None,
    networks: tuple[str, ...] = ("127.0.0.1/32",),
    credentials: tuple[Credential, ...] = (),
    tls: ssl.SSLContext | None = None,
    limits: EgressLimits = DEFAULT_LIMITS,
) -> AsyncIterator[Proxy]:
    """A proxy whose names all lead to loopback unless *names* says otherwise."""
    listener = socket.create_server((HERE, 0), backlog=256)
    here = Proxy(port=listener.getsockname()[1])
    grant = EgressGrant(hosts=hosts, networks=networks, credentials=credentials)
    resolve = names or Names(**{HOST: [[HERE]]})
    async with serve_egress(listener, grant, on_connection=here.note, resolve=resolve, tls=tls, limits=limits):
        yield here


def get(target: str, *fields: str, host: str | None = None, method: str = "GET") -> bytes:
    """A request head; *host* defaults to that of *target*."""
    host = target.split("//")[-1].split("/")[0] if host is None else host
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode("latin-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """A server's context for *name*, and a client's that trusts it."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def certificates(folder: Path, name: str = HOST) -> Certificates:
    """Make a certificate for *name* that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([_general_name(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "certificate.pem").write_bytes(
        pem
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate.pem")
    client = ssl.create_default_context(cadata=pem.decode())
    return Certificates(server=server, client=client)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def client_hello(name: str | None) -> bytes:
    """The first bytes of a TLS client that asks for *name*."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a server")
