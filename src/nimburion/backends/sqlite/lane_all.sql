-- Every lane.
-- Inputs: none
-- Result: id, queue, name
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT id, queue, name FROM lane
