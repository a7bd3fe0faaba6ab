-- Make a failed job pending again: counts begin anew, history stays.
-- Inputs: ?1 seq, ?2 now
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE job
SET state = 0, due = ?2, failures = 0, lost = 0, finished_at = NULL, reason = NULL
WHERE seq = ?1
