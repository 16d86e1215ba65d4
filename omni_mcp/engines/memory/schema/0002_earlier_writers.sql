-- Calls that wrote an earlier version of which something still stands: an erasure of their run takes the item along.
CREATE TABLE earlier_writers (
    n INTEGER NOT NULL,
    carrier INTEGER NOT NULL REFERENCES carriers (carrier),
    PRIMARY KEY (n, carrier)
) WITHOUT ROWID, STRICT;
CREATE INDEX earlier_writers_by_carrier ON earlier_writers (carrier);
