-- Drop finished jobs.
-- Inputs: ?1 JSON array of seqs
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM job WHERE state > 0 AND seq IN (SELECT value FROM json_each(?1))
