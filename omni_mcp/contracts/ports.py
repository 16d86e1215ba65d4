"""The protocols that the core needs and engines implement. Each has one suite of promise tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.artifact import ArtifactRef
from omni_mcp.contracts.call import Call, Durable, Principal, Result
from omni_mcp.contracts.events import Draft, RunEvent, RunKind
from omni_mcp.contracts.json import JsonObject, JsonValue
from omni_mcp.contracts.large import KeptFile
from omni_mcp.contracts.memory import Hits, MemoryItem, Readers, Recall, Taint
from omni_mcp.contracts.policy import Action, ApprovalFacts, Decision, StandingFacts
from omni_mcp.contracts.sandbox import Connection, Isolation, Job, JobEnd, Served, Streams
from omni_mcp.contracts.tool import CallKind, Entry

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray


class Masker(Protocol):
    """Takes secrets out of what is recorded."""

    def mask(self, value: JsonValue) -> tuple[JsonValue, tuple[str, ...]]:
        """Return *value* with secrets replaced, and the JSON paths that were touched. The input is not changed.

        Masks registered secrets in their common encodings, and values under secret-like keys.
        """
        ...

    def mask_known(self, value: JsonValue) -> JsonValue:
        """Return *value* with registered secrets replaced only: what a client gets."""
        ...

    def mask_text(self, text: str) -> str:
        """Return *text* with registered secrets replaced: for log lines and messages."""
        ...

    def mask_bytes(self, data: bytes) -> bytes:
        """Return *data* with registered secrets replaced: for files and blobs, text or not."""
        ...


class RunLog(Protocol):
    """The append-only record. One writer; appends are queued and committed in groups."""

    async def create_run(
        self,
        *,
        kind: RunKind,
        principal: Principal,
        actor: str,
        client: JsonObject,
        trace_id: str | None = None,
        parent_run: str | None = None,
        title: str | None = None,
        thread: str | None = None,
    ) -> str:
        """Append `run_created` and return the new run's id once it is durable.

        Raises:
            LogUnavailable: it could not be written.
        """
        ...

    def append(self, run: str, draft: Draft, *, parent: Durable | int | None = None, quiet: bool = False) -> Durable:
        """Queue one event, masked, and return at once; it gets its seq when it is written.

        *quiet* events (reads of the log itself) notify no subscriber, so that a log read does not feed itself.

        If *parent* could not be written, neither is this. Raises nothing: what fails shows in `durable()`.
        """
        ...

    def append_outcome(
        self, run: str, draft: Draft, *, parent: Durable | int | None = None, quiet: bool = False
    ) -> Durable:
        """Like `append`, for the outcome of something that was dispatched: if it cannot be written now it is kept in
        bounded memory and written on recovery, before anything newer of its run."""
        ...

    def read(self, run: str, *, after: int = 0, limit: int = 1000) -> AsyncIterator[RunEvent]:
        """Yield events of a run in order of seq, from the one after *after*."""
        ...

    async def runs(
        self, *, principal: str | None = None, limit: int = 50, before: str | None = None
    ) -> list[JsonObject]:
        """Return newest runs first, as projected: id, kind, project, principal, created_at, last_seq, open, calls."""
        ...

    async def get_run(self, run: str) -> JsonObject:
        """Return one run as `runs` does.

        Raises:
            NotFound: there is no such run.
        """
        ...

    async def find_call(self, call: str) -> list[RunEvent]:
        """Return the events of one call in order, or nothing."""
        ...

    async def search(
        self, query: str, *, principal: str | None = None, run: str | None = None, limit: int = 20
    ) -> list[RunEvent]:
        """Return events that contain every word of *query*, newest first. Any text is a valid query."""
        ...

    async def calls_of(self, run: str, *, limit: int) -> list[JsonObject]:
        """Return the newest calls of a run, newest first: call, seq, name, at and outcome."""
        ...

    async def newest_refusal(self, *, principal: str) -> str | None:
        """Return the newest refused call in the newest runs of a principal; None if there is none."""
        ...

    async def why(self, sha256: str, *, principal: str | None = None) -> JsonObject:
        """Return the paths that led to an artifact, as far as *principal* may see them (None: all of them).

        Raises:
            NotFound: nothing on record has left it, or another's run has: the same answer.
        """
        ...

    async def influence(self, run: str, seq: int, *, principal: str | None = None) -> JsonObject:
        """Return what one event went into, as far as *principal* may see it (None: all of it).

        Raises:
            NotFound: there is no such event, or it is another's: the same answer.
        """
        ...

    def subscribe(self, wants: Callable[[str, bool], bool] | None = None) -> AsyncIterator[tuple[str, int, bool]]:
        """Yield `(run, last seq, quiet)` after each commit; `quiet` events (reads of the log itself) notify nobody.

        Args:
            wants: asked with run and quiet at each commit, whether to yield it at all: cheaper than to be woken.
        """
        ...

    def arguments_hmac(self, arguments: JsonValue) -> str:
        """Return the keyed hash under which raw arguments are recorded."""
        ...


class Artifacts(Protocol):
    """Blobs by content, each visible to the principals that made it or were given it."""

    async def put(self, data: bytes, *, media_type: str, owner: str, run: str, name: str | None = None) -> ArtifactRef:
        """Store *data* durably and return its reference; storing the same bytes twice keeps one copy."""
        ...

    async def get(self, sha256: str, *, owner: str) -> tuple[ArtifactRef, bytes]:
        """Return a blob that *owner* may see.

        Raises:
            NotFound: no such blob, or not one of theirs: the same answer.
        """
        ...

    async def list_refs(self, *, owner: str, limit: int = 100) -> list[ArtifactRef]:
        """Return the newest references that *owner* may see."""
        ...


class LargeArtifacts(Artifacts, Protocol):
    """Artifacts that are also taken from a file."""

    async def put_file(self, kept: KeptFile, *, owner: str, run: str, name: str | None = None) -> ArtifactRef:
        """Store what was masked already; otherwise as `put`."""
        ...


class Policy(Protocol):
    """Decides. Never raises: whatever goes wrong is a deny with its reason in `errors`."""

    @property
    def version(self) -> str:
        """sha256 of everything that decides: rules, schema, guardrails."""
        ...

    def decide(
        self,
        *,
        action: Action,
        principal: Principal,
        entry: Entry | None,
        name: str,
        run: str,
        arguments_digest: str,
        arguments_bytes: int,
        egress: Sequence[str] = (),
        approval: ApprovalFacts | None = None,
        standing: StandingFacts | None = None,
    ) -> Decision:
        """Decide one request. `entry` None is the unknown resource: never allowed, never asked about.

        *standing* is looked at only where a person would be asked: it can turn an ask into an allow, and nothing else.
        """
        ...

    def visible(self, *, action: Action, principal: Principal, entries: Sequence[Entry]) -> list[bool]:
        """Say for each entry whether some arguments of *principal* could be allowed or asked about. Cached."""
        ...


class Desk(Protocol):
    """Where questions wait for a person."""

    async def ask(self, call: Call, question_rules: tuple[str, ...], policy_version: str) -> ApprovalFacts:
        """Ask about exactly this call and wait. Records `approval_requested` and `approval_decided`.

        An approved, unexpired, unused question of the same principal, definition and raw arguments is taken
        without asking again. The approval is *used* (compare and set) before this returns.

        Raises:
            ApprovalPending: the wait is over, the question is still open. `data` holds its id.
            ApprovalDenied, ApprovalExpired: as they say.
        """
        ...

    async def open_questions(self, *, project: str | None = None) -> list[Approval]:
        """Return what waits, oldest first."""
        ...


class StandingGrants(Protocol):
    """What people said yes to in advance."""

    def find(self, principal: Principal, entry: Entry, hosts: Sequence[str]) -> StandingFacts | None:
        """Return a standing grant that covers a call of *entry* by *principal* now and whose giving is on record.

        *hosts* are all that the call may reach; the grant covers each of them. Synchronous: it is asked about every
        call. A revocation shows within 200 ms.
        """
        ...


class Catalog(Protocol):
    """What can be named, per profile."""

    @property
    def version(self) -> str:
        """Changes whenever any listed definition does."""
        ...

    def find(self, profile: str, kind: CallKind, name: str, *, project: str = "") -> Entry | None:
        """Return the entry that *name* means in *profile* for *project*, quarantined or not; None if there is none."""
        ...

    def entries(self, profile: str, kind: str, *, project: str = "") -> list[tuple[str, Entry]]:
        """Return (public name or URI, entry) of everything accepted, in a fixed order, as *project* sees it."""
        ...

    def get(self, kind: str, server: str, name: str) -> Entry | None:
        """Return an entry by its key."""
        ...


class Schemas(Protocol):
    """Checks values against JSON Schema 2020-12, without ever fetching a reference."""

    def problems(self, schema: JsonObject, value: JsonValue, *, limit: int = 5) -> list[str]:
        """Return up to *limit* faults as `$.path: message`; nothing if *value* fits. Compiled once per schema."""
        ...


class Executor(Protocol):
    """Runs calls of one kind of binding."""

    async def execute(self, call: Call) -> Result:
        """Run the call to its end. `call.tool` and `call.grant` are set; intents are durable.

        Cancelling the task stops the tool: its processes are dead, or its server told, within two seconds.

        Raises:
            Refused: it could not be dispatched after all (no sandbox).
            Failed: as the failure catalogue says.
        """
        ...


class KeepsDeadlines:
    """Says of an `Executor` that it ends each call within its tool's time by itself, so that nobody else counts it."""


class Sandbox(Protocol):
    """Runs jobs in cells."""

    def isolation(self) -> Isolation:
        """What can be had here, probed once at start."""
        ...

    async def run(
        self,
        job: Job,
        *,
        streams: Streams | None = None,
        on_connection: Callable[[Connection], None] | None = None,
    ) -> JobEnd:
        """Run one job in one fresh cell and wait until nothing of it is left.

        A job that fails is a `JobEnd`, never an exception. Cancelling the task kills the cell first.

        Args:
            job: what to run.
            streams: pass output on while it comes; without, it is collected in the `JobEnd`.
            on_connection: told of each attempt to reach a host when it is over; must not block.
        """
        ...


class ServerSandbox(Sandbox, Protocol):
    """Runs servers in cells, too."""

    def serve(
        self,
        job: Job,
        *,
        on_stderr: Callable[[bytes], None],
        on_connection: Callable[[Connection], None] | None = None,
    ) -> AbstractAsyncContextManager[Served]:
        """Run a `lasting` job in one fresh cell until the context is left; then nothing of it is left.

        Args:
            job: what to run.
            on_stderr: told of what it writes there, as it comes; must not block.
            on_connection: as for `run`.

        Raises:
            SandboxUnavailable: the isolation that it demands cannot be had, or it cannot be started.
            RateLimited: as many servers run as may.
        """
        ...


class Source(Protocol):
    """Brings entries into the catalog: bundled manifests, our own servers, upstreams."""

    def load(self) -> Iterable[Entry]:
        """Return every entry; called at start and after each change.

        Raises:
            ConfigError: the files it reads are refused; the catalog keeps what it had.
        """
        ...


class Completer(Protocol):
    """Suggests values for an argument of a prompt or of a resource template."""

    async def complete(
        self, principal: Principal, entry: Entry, argument: JsonObject, context: JsonObject
    ) -> JsonObject:
        """Return `{"values": [...], "total"?, "hasMore"?}` for `argument` (`{"name", "value"}`); at most 100 values."""
        ...


class Identities(Protocol):
    """Who holds a credential."""

    def principal_of(self, token: str) -> Principal | None:
        """Return whom a bearer token stands for; None for unknown, revoked and expired ones. Constant time."""
        ...


class MemoryStore(Protocol):
    """Keeps items and finds them. What *readers* do not cover does not exist for the caller."""

    async def put(self, item: MemoryItem, *, expected_version: int | None = None) -> MemoryItem:
        """Store a new item, or the next version of one with the same id, durably; returns it as stored.

        An item whose `key` exists below its scope and owner replaces it: the id stays, the version grows.

        Raises:
            QuotaExceeded: its owner has as many items as may be.
            Conflict: its version is not *expected_version* any more.
            NotFound: a version was expected, and it was forgotten meanwhile.
        """
        ...

    async def put_many(self, items: Sequence[MemoryItem]) -> int:
        """Store many in one commit, as `put` each; returns how many there were."""
        ...

    async def get(self, item: str, *, readers: Readers, even_expired: bool = False) -> MemoryItem:
        """Return an item by id; *even_expired* for whoever wants to remove it.

        Raises:
            NotFound: there is none, it has expired, or it is not theirs: the same answer.
        """
        ...

    async def list_items(
        self, *, readers: Readers, limit: int = 50, before: str | None = None, kinds: Sequence[str] = (),
        tags: Sequence[str] = (), subject: str | None = None, session: str | None = None,
        without_taint: Sequence[Taint] = (),
    ) -> list[MemoryItem]:  # fmt: skip
        """Return newest items first, from the one before the id *before*, and none that carries one of some taints."""
        ...

    async def recall(self, wanted: Recall) -> Hits:
        """Return what fits best, best first, never an expired item. Any text is a valid query; an empty one finds
        nothing."""
        ...

    async def touched(self, items: Sequence[str], *, run: str, call: str) -> list[str]:
        """Note that a call carried the text of *items*: its events are erased with them.

        Returns those that are gone by now: they must not leave with its answer.
        """
        ...

    async def forget(self, item: str, *, readers: Readers) -> list[tuple[str, str]]:
        """Remove an item, its versions, its words and its vector from the disk; returns (run, call) of all that carried
        its text.

        Raises:
            NotFound: as `get`, but an expired item is still there to be forgotten.
        """
        ...

    async def sweep(
        self, *, now_ns: int, limit: int = 500, items: Sequence[str] | None = None
    ) -> list[tuple[MemoryItem, list[tuple[str, str]]]]:
        """Remove expired items as `forget` does, *limit* at most; returns each, its text left out, with who carried
        its text.

        Args:
            items: ids; nothing else is removed, and of these only what has expired by now.
        """
        ...

    async def to_erase(self) -> list[tuple[str, str]]:
        """Return (run, call) of all that carried a text which `forget` or `sweep` removed, until `erased` says so."""
        ...

    async def erased(self, calls: Sequence[tuple[str, str]]) -> None:
        """Note that nothing of these calls' texts is left."""
        ...

    async def duplicates(self, *, readers: Readers, limit: int = 20) -> list[tuple[MemoryItem, MemoryItem, float]]:
        """Return pairs that say nearly the same, most alike first. Nothing is changed."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors for search by meaning."""

    @property
    def name(self) -> str:
        """Which model, and which version of it: vectors of different names are never compared."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of each vector."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[float32]:
        """Return one row of length 1 (all zeros where nothing of the text is known) for each text.

        Raises:
            NoVectors: it cannot be asked now; nothing waits for it.
        """
        ...
