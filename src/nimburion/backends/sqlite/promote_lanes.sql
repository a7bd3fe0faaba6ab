-- The lanes of the jobs that became due.
-- Inputs: ?1 now, ?2 at most so many jobs
-- Result: JSON array of lanes
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(DISTINCT lane) FROM (
    SELECT lane FROM scheduled WHERE due <= ?1 ORDER BY due, seq LIMIT ?2
)
