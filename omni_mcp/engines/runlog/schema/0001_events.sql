-- The evidence: which runs there are, their events, and the authenticated heads of the chains.
CREATE TABLE run_keys (
    run INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE
) STRICT;

-- In global order, so that a commit of many runs appends to one page; ordered by run, it would write one page for each.
CREATE TABLE events (
    run INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    gid INTEGER PRIMARY KEY,
    at_ns INTEGER NOT NULL,
    v INTEGER NOT NULL,
    kind TEXT NOT NULL,
    code TEXT,
    actor TEXT NOT NULL,
    call TEXT,
    parent INTEGER,
    privacy TEXT NOT NULL,
    erased_by INTEGER,
    payload_digest BLOB NOT NULL,
    body_digest BLOB NOT NULL,
    prev BLOB NOT NULL,
    hash BLOB NOT NULL,
    UNIQUE (run, seq)
) STRICT;
CREATE INDEX events_call ON events (call) WHERE call IS NOT NULL;

-- The texts: 16 bytes of salt, then the payload. Apart from the headers and only ever appended, so that SQLite never
-- moves one to another page: a page that cells were moved from keeps their old bytes, out of reach of secure_delete.
-- For the same reason an erasure overwrites a text with as many zeros and does not delete the row.
CREATE TABLE texts (
    gid INTEGER PRIMARY KEY,
    body BLOB NOT NULL
) STRICT;

CREATE TABLE heads (
    run INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    hash BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT;
CREATE TABLE global_head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    count INTEGER NOT NULL,
    hash BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT;

-- Append-only for everybody. The one update there is replaces a text by a tombstone; it needs a function that only
-- the erasing connection registers, so that any other program is refused, by the function's absence if by nothing else.
CREATE TRIGGER events_no_replace BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM events WHERE run = NEW.run AND seq = NEW.seq)
  OR EXISTS (SELECT 1 FROM events WHERE gid = NEW.gid)
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: this event exists');
END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: events are never deleted');
END;
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
WHEN NOT (
    OLD.erased_by IS NULL AND NEW.erased_by IS NOT NULL
    AND NEW.run = OLD.run AND NEW.seq = OLD.seq AND NEW.gid = OLD.gid AND NEW.at_ns = OLD.at_ns AND NEW.v = OLD.v
    AND NEW.kind = OLD.kind AND NEW.code IS OLD.code AND NEW.actor = OLD.actor AND NEW.call IS OLD.call
    AND NEW.parent IS OLD.parent AND NEW.privacy = OLD.privacy AND NEW.payload_digest = OLD.payload_digest
    AND NEW.body_digest = OLD.body_digest AND NEW.prev = OLD.prev AND NEW.hash = OLD.hash
    AND omni_mcp_may_erase() = 1
)
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: events are never changed');
END;
CREATE TRIGGER texts_no_replace BEFORE INSERT ON texts
WHEN EXISTS (SELECT 1 FROM texts WHERE gid = NEW.gid)
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: this text exists');
END;
CREATE TRIGGER texts_no_update BEFORE UPDATE ON texts
WHEN NOT (NEW.gid = OLD.gid AND NEW.body = zeroblob(length(OLD.body)) AND omni_mcp_may_erase() = 1)
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: texts are never changed');
END;
CREATE TRIGGER texts_no_delete BEFORE DELETE ON texts
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: texts are never deleted');
END;
CREATE TRIGGER run_keys_no_replace BEFORE INSERT ON run_keys
WHEN EXISTS (SELECT 1 FROM run_keys WHERE run = NEW.run OR id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: this run exists');
END;
CREATE TRIGGER run_keys_no_update BEFORE UPDATE ON run_keys
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: runs are never changed');
END;
CREATE TRIGGER run_keys_no_delete BEFORE DELETE ON run_keys
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: runs are never deleted');
END;
