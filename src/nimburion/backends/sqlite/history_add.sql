-- Add an attempt that ended badly.
-- Inputs: ?1 seq, ?2 JSON
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO attempt_error (seq, n, body)
SELECT ?1, coalesce(max(n), 0) + 1, ?2 FROM attempt_error WHERE seq = ?1
