-- What an examination reads of the contents.
-- Inputs: none
-- Result: the file's format, and when the latest job was stored (NULL when there is none)
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT
    (SELECT value FROM meta WHERE name = 'format'),
    (SELECT created_at FROM job ORDER BY seq DESC LIMIT 1)
