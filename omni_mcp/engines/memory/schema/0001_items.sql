-- What people and agents wrote stands in `bodies` and nowhere else. A row of `bodies` or `marks` is appended, and later
-- overwritten with zeros of the same length, never moved: so no page keeps an old copy of it.
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    change INTEGER NOT NULL,      -- number of the newest change
    forgot_until INTEGER NOT NULL, -- `gone` is complete for later changes only
    emptied INTEGER NOT NULL,     -- bytes of bodies and marks that are zeros now
    unclean INTEGER NOT NULL      -- 1 from the begin of a vacuum to its end
) STRICT;
INSERT INTO state (id, change, forgot_until, emptied, unclean) VALUES (1, 0, 0, 0, 0);

CREATE TABLE places (
    place INTEGER PRIMARY KEY,
    scope TEXT NOT NULL,
    owner TEXT NOT NULL,
    project TEXT NOT NULL,
    items INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    UNIQUE (scope, owner, project)
) STRICT;

CREATE TABLE recipes (
    recipe INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE      -- embedder and version of the words
) STRICT;

-- Calls that wrote an item or carried its text.
CREATE TABLE carriers (
    carrier INTEGER PRIMARY KEY,
    run TEXT NOT NULL,
    call TEXT NOT NULL,
    UNIQUE (run, call)
) STRICT;

-- Names are kept as 64-bit hashes here: key, session, subject.
CREATE TABLE items (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    place INTEGER NOT NULL REFERENCES places (place),
    body INTEGER NOT NULL,
    mark INTEGER NOT NULL,
    recipe INTEGER NOT NULL REFERENCES recipes (recipe), -- of the mark
    writer INTEGER REFERENCES carriers (carrier),
    version INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    taint INTEGER NOT NULL,
    importance REAL NOT NULL,
    key INTEGER,
    session INTEGER,
    subject INTEGER,
    at_ns INTEGER NOT NULL,
    created_at_ns INTEGER NOT NULL,
    revised_at_ns INTEGER,
    expires_at_ns INTEGER,
    size INTEGER NOT NULL,
    change INTEGER NOT NULL
) STRICT;
CREATE INDEX items_by_place ON items (place, n);
CREATE INDEX items_by_id ON items (place, id);
CREATE INDEX items_by_recipe ON items (place, recipe);
CREATE UNIQUE INDEX items_by_key ON items (place, key) WHERE key IS NOT NULL;
CREATE INDEX items_by_change ON items (change);
CREATE INDEX items_by_end ON items (expires_at_ns) WHERE expires_at_ns IS NOT NULL;
CREATE INDEX items_by_writer ON items (writer) WHERE writer IS NOT NULL;

CREATE TABLE bodies (
    body INTEGER PRIMARY KEY,
    json BLOB NOT NULL             -- text, key, session, subject, tags, source
) STRICT;

CREATE TABLE marks (
    mark INTEGER PRIMARY KEY,
    length INTEGER NOT NULL,       -- words of the text
    question INTEGER NOT NULL,     -- 1: the text ends with a question mark
    vector BLOB NOT NULL,          -- int8
    words BLOB NOT NULL,           -- for each different word its hash (4 bytes, little-endian) and count (1 byte)
    subject_words BLOB NOT NULL    -- of the subject, likewise
) STRICT;

CREATE TABLE tags (
    place INTEGER NOT NULL,
    tag INTEGER NOT NULL,          -- a 64-bit hash
    n INTEGER NOT NULL,
    PRIMARY KEY (place, tag, n)
) WITHOUT ROWID, STRICT;
CREATE INDEX tags_by_item ON tags (n);

CREATE TABLE carried (
    n INTEGER NOT NULL,
    carrier INTEGER NOT NULL REFERENCES carriers (carrier),
    PRIMARY KEY (n, carrier)
) WITHOUT ROWID, STRICT;
CREATE INDEX carried_by_carrier ON carried (carrier);

-- Items that were removed, for whoever holds an index in memory.
CREATE TABLE gone (
    change INTEGER PRIMARY KEY,
    place INTEGER NOT NULL,
    n INTEGER NOT NULL
) STRICT;

-- Calls that carried a text which is forgotten, until the log has let go of them too.
CREATE TABLE to_erase (
    carrier INTEGER PRIMARY KEY REFERENCES carriers (carrier)
) STRICT;
