-- Which of these ids are kept.
-- Inputs: ?1 JSON array of ids
-- Result: id, digest
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT id, digest FROM job WHERE id IN (SELECT value FROM json_each(?1))
