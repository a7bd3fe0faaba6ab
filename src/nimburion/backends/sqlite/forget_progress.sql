-- Drop the progress of jobs.
-- Inputs: ?1 JSON array of seqs
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM progress WHERE seq IN (SELECT value FROM json_each(?1))
