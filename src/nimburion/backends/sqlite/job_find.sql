-- A job by its id.
-- Inputs: ?1 id
-- Result: seq, state, lane, or no row
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT seq, state, lane FROM job WHERE id = ?1
