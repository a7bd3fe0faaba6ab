-- What stands in a lane behind a job.
-- Inputs: ?1 lane, ?2 rank, ?3 due, ?4 seq of that job, ?5 at most so many
-- Result: JSON: [[rank, due, seq], …]
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(json_array(rank, due, seq)) FROM (
    SELECT rank, due, seq FROM ready
    WHERE lane = ?1 AND (rank, due, seq) > (?2, ?3, ?4) ORDER BY rank, due, seq LIMIT ?5
)
