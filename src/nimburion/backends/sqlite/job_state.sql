-- The state of a job.
-- Inputs: ?1 id, ?2 now
-- Result: state, started_at, or no row
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT
    CASE j.state WHEN 1 THEN 'completed' WHEN 2 THEN 'failed' WHEN 3 THEN 'cancelled' ELSE CASE
        WHEN NOT EXISTS (
            SELECT 1 FROM ready AS r
            WHERE (r.lane, r.rank, r.due, r.seq) = (j.lane, -j.priority, j.due, j.seq)
        ) AND NOT EXISTS (
            SELECT 1 FROM scheduled AS p WHERE (p.due, p.seq) = (j.due, j.seq)
        ) THEN 'processing'
        WHEN j.failures > 0 THEN 'retrying'
        WHEN j.due > ?2 THEN 'scheduled'
        ELSE 'pending' END END,
    j.started_at
FROM job AS j WHERE j.id = ?1
