-- Which sheets there are: copies of 256 events of a run in a file each, and their sha256. Derived like the lists; an empty
-- digest says that there is none and none is to be made. Only numbers and digests in it, because rows here move.
CREATE TABLE sheets (
    run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (run, number)
) STRICT, WITHOUT ROWID;
