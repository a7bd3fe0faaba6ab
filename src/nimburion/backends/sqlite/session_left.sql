-- A session said goodbye while some of its handlers still run.
-- Inputs: ?1 session n, ?2 now
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE session SET left_at = ?2 WHERE n = ?1
