-- Failed jobs that match.
-- Inputs: ?1 states (JSON array), ?2 queue, ?3 name, ?4 reason, ?5 only before this seq (NULL:
--   any, for each of these), ?6 at most so many, ?7 now
-- Result: JSON array of seqs, newest first
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT json_group_array(seq) FROM (
    SELECT j.seq FROM job AS j INDEXED BY job_finished
    WHERE j.state = 2 AND j.state > 0 AND (?2 IS NULL OR j.lane IN (SELECT id FROM lane WHERE queue = ?2))
    AND (?3 IS NULL OR j.lane IN (SELECT id FROM lane WHERE name = ?3))
    AND (?4 IS NULL OR j.reason = ?4)
    AND (?5 IS NULL OR j.seq < ?5)
    AND (?1 IS NULL OR CASE j.state WHEN 1 THEN 'completed' WHEN 2 THEN 'failed' WHEN 3 THEN 'cancelled' ELSE CASE
        WHEN NOT EXISTS (
            SELECT 1 FROM ready AS r
            WHERE (r.lane, r.rank, r.due, r.seq) = (j.lane, -j.priority, j.due, j.seq)
        ) AND NOT EXISTS (
            SELECT 1 FROM scheduled AS p WHERE (p.due, p.seq) = (j.due, j.seq)
        ) THEN 'processing'
        WHEN j.failures > 0 THEN 'retrying'
        WHEN j.due > ?7 THEN 'scheduled'
        ELSE 'pending' END END IN (SELECT value FROM json_each(?1)))
    ORDER BY j.seq DESC LIMIT ?6
)
