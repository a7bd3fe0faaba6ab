-- Finished jobs of one state that ended before a time, oldest first.
-- Inputs: ?1 state, ?2 time, ?3 at most so many
-- Result: JSON array of seqs
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(seq) FROM (
    SELECT seq FROM job WHERE state = ?1 AND state > 0 AND finished_at < ?2 ORDER BY finished_at LIMIT ?3
)
