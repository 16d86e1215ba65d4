-- What is derived from the events and can be dropped and rebuilt. No free text in it: rows here move between pages, and
-- bytes that stay behind would outlive an erasure. The search tables are made as they are needed, and dropped whole.
CREATE TABLE runs (
    run INTEGER PRIMARY KEY,
    kind TEXT,
    project TEXT,
    principal TEXT,
    parent_run TEXT,
    trace_id TEXT,
    created_at_ns INTEGER NOT NULL,
    closed_seq INTEGER,
    calls INTEGER NOT NULL DEFAULT 0,
    erased INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX runs_principal ON runs (principal, run);

-- Calls without an outcome: few at any time, so that this stays one page however long the log gets.
CREATE TABLE open_calls (
    call TEXT PRIMARY KEY,
    run INTEGER NOT NULL,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE search_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    gid INTEGER NOT NULL
) STRICT;
INSERT INTO search_state (id, gid) VALUES (1, 0);
