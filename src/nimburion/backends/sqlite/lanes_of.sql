-- The lanes of these jobs.
-- Inputs: ?1 JSON array of seqs
-- Result: lane
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT DISTINCT j.lane FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value
