-- Nothing here changes. From now on a run may hold events `decision_premises`, which a gateway that does not know them
-- would show to callers as they are: it refuses this version of the database instead. A program that only reads does not
-- look at the version: an older one shows decisions that name their premises without their tool.
UPDATE search_state SET gid = gid;
