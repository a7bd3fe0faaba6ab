-- The number of the newest lane.
-- Inputs: none
-- Result: id; 0 when there is no lane
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT coalesce(max(id), 0) FROM lane
