-- Sealed bodies: what stands masked in an event, as it really was, under a key of its run. Only appended to, like texts
-- and for the same reason; an empty one lies in a file of its own. The key of a run is wrapped by a key outside of the
-- database, so that a run is forgotten by overwriting 60 bytes, whatever copies of its bodies there are.
CREATE TABLE body_keys (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    wrapped BLOB NOT NULL
) STRICT;
CREATE INDEX body_keys_run ON body_keys (run, id);
CREATE TABLE bodies (
    gid INTEGER PRIMARY KEY,
    sealed BLOB NOT NULL
) STRICT;

CREATE TRIGGER body_keys_no_replace BEFORE INSERT ON body_keys
WHEN EXISTS (SELECT 1 FROM body_keys WHERE id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: this key exists');
END;
CREATE TRIGGER body_keys_no_update BEFORE UPDATE ON body_keys
WHEN NOT (
    NEW.id = OLD.id AND NEW.run = OLD.run AND NEW.wrapped = zeroblob(length(OLD.wrapped)) AND omni_mcp_may_erase() = 1
)
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: keys are never changed');
END;
CREATE TRIGGER body_keys_no_delete BEFORE DELETE ON body_keys
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: keys are never deleted');
END;
CREATE TRIGGER bodies_no_replace BEFORE INSERT ON bodies
WHEN EXISTS (SELECT 1 FROM bodies WHERE gid = NEW.gid)
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: this body exists');
END;
CREATE TRIGGER bodies_no_update BEFORE UPDATE ON bodies
WHEN NOT (NEW.gid = OLD.gid AND NEW.sealed = zeroblob(length(OLD.sealed)) AND omni_mcp_may_erase() = 1)
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: bodies are never changed');
END;
CREATE TRIGGER bodies_no_delete BEFORE DELETE ON bodies
BEGIN
    SELECT RAISE(ABORT, 'the run log is append-only: bodies are never deleted');
END;
