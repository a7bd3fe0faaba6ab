-- The head of one lane.
-- Inputs: ?1 lane, ?2 at most so many
-- Result: JSON array of seqs, first first
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(seq) FROM (
    SELECT seq FROM ready WHERE lane = ?1 ORDER BY rank, due, seq LIMIT ?2
)
