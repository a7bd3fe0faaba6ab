-- Forget sessions that died long ago and hold nothing.
-- Inputs: ?1 dead before
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM session
WHERE dead_at < ?1 AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.session = session.n)
