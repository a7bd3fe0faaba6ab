-- Which of these lanes hold jobs.
-- Inputs: ?1 JSON array of lanes, ?2 at most so many
-- Result: JSON array of lanes
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(value) FROM (
    SELECT value FROM json_each(?1)
    WHERE EXISTS (SELECT 1 FROM ready WHERE lane = value) LIMIT ?2
)
