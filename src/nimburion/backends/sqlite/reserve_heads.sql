-- The heads of several lanes.
-- Inputs: ?1 JSON array of lanes, ?2 at most so many of each
-- Result: JSON: [lane, [[rank, due, seq], …]] for each lane
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(json_array(l.value, json((
    SELECT json_group_array(json_array(rank, due, seq)) FROM (
        SELECT rank, due, seq FROM ready WHERE lane = l.value ORDER BY rank, due, seq LIMIT ?2
    )
)))) FROM json_each(?1) AS l
