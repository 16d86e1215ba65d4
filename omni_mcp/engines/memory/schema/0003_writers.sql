-- Who wrote what stands in places that several may write to, and how much of it there is: none of them fills it alone.
CREATE TABLE writers (
    writer INTEGER PRIMARY KEY,
    principal TEXT NOT NULL UNIQUE,
    items INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;
ALTER TABLE items ADD COLUMN principal INTEGER REFERENCES writers (writer); -- NULL: its own place, or an import
