-- Take the write lock inside a caller's transaction, before anything is read: where another holds it,
-- SQLite waits for it only then. Changes nothing.
-- Inputs: none
-- Result: none
-- Locks: the file, for writing, until the caller's transaction ends
-- Atomic: one statement of the caller's transaction
DELETE FROM meta WHERE 0
