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
    erased INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX runs_principal ON runs (principal, run);

CREATE TABLE calls (
    call TEXT PRIMARY KEY,
    run INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    outcome_seq INTEGER,
    outcome TEXT,
    outcome_code TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX calls_run ON calls (run, seq);
CREATE INDEX calls_open ON calls (call) WHERE outcome_seq IS NULL;

CREATE TABLE search_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    gid INTEGER NOT NULL
) STRICT;
INSERT INTO search_state (id, gid) VALUES (1, 0);
