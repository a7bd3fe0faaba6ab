-- The number of a lane.
-- Inputs: ?1 queue, ?2 name
-- Result: id, or no row
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT id FROM lane WHERE queue = ?1 AND name = ?2
