-- The ids of jobs.
-- Inputs: ?1 JSON array of seqs
-- Result: seq, id
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT seq, id FROM job WHERE seq IN (SELECT value FROM json_each(?1))
