-- A session is over.
-- Inputs: ?1 session n, ?2 now
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE session SET dead_at = ?2 WHERE n = ?1
