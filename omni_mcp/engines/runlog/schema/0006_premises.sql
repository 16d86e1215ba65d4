-- Nothing here changes. From now on a run may hold events `decision_premises`, which a program that does not know them
-- would show to callers as they are: it refuses this version of the database instead.
UPDATE search_state SET gid = gid;
