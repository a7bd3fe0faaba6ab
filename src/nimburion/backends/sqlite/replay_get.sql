-- What a replay must know of a failed job.
-- Inputs: ?1 seq
-- Result: id, lane, priority, options
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT id, lane, priority, options FROM job WHERE seq = ?1
