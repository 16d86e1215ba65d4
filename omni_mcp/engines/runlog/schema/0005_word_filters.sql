-- Which words a table of the search index cannot have: some bits for each word, so that a search passes a table over.
-- Rows are only appended, 128 for 16 tables, and each table's part is overwritten in its place, so that nothing of it
-- stays behind when an erasure makes it anew. `filtered` names the tables whose part says the truth.
CREATE TABLE word_filters (
    id INTEGER PRIMARY KEY,
    bits BLOB NOT NULL
) STRICT;
CREATE TABLE filtered (
    number INTEGER PRIMARY KEY
) STRICT;
