-- Every paused queue.
-- Inputs: none
-- Result: queue
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT queue FROM paused ORDER BY queue
