-- Whether many jobs are unfinished.
-- Inputs: ?1 what is many
-- Result: 0 or 1
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT count(*) >= ?1 FROM (
    SELECT 1 FROM ready UNION ALL SELECT 1 FROM scheduled UNION ALL SELECT 1 FROM lease LIMIT ?1
)
