-- The earliest due time still ahead.
-- Inputs: none
-- Result: due, or NULL
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT min(due) FROM scheduled
