-- Completed and cancelled jobs beyond the newest so many, oldest first.
-- Inputs: ?1 how many are kept, ?2 at most so many
-- Result: JSON array of seqs
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(seq) FROM (
    SELECT finished_at, seq FROM job WHERE state = 1 AND state > 0
    UNION ALL
    SELECT finished_at, seq FROM job WHERE state = 3 AND state > 0
    ORDER BY finished_at, seq
    LIMIT max(0, min(?2, (SELECT count(*) FROM job WHERE state IN (1, 3) AND state > 0) - ?1))
)
