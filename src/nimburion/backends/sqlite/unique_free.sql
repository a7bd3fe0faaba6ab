-- Give back the unique keys of jobs that are finished.
-- Inputs: ?1 JSON array of seqs
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM unique_key
WHERE seq IN (SELECT value FROM json_each(?1)) AND until IS NULL
