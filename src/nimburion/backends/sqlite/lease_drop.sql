-- End a lease.
-- Inputs: ?1 session n, ?2 seq
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM lease WHERE session = ?1 AND seq = ?2
