-- Whole records.
-- Inputs: ?1 JSON array of seqs, ?2 whether with payloads, ?3 now
-- Result: newest first: id, lane, priority, due, created_at, state, failures, lost, started_at,
--   finished_at, reason, options, history (JSON array), fraction, message, session id, reserved at,
--   cancel asked for, result, payload
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT
    j.id, j.lane, j.priority, j.due, j.created_at,
    CASE j.state WHEN 1 THEN 'completed' WHEN 2 THEN 'failed' WHEN 3 THEN 'cancelled' ELSE CASE
        WHEN NOT EXISTS (
            SELECT 1 FROM ready AS r
            WHERE (r.lane, r.rank, r.due, r.seq) = (j.lane, -j.priority, j.due, j.seq)
        ) AND NOT EXISTS (
            SELECT 1 FROM scheduled AS p WHERE (p.due, p.seq) = (j.due, j.seq)
        ) THEN 'processing'
        WHEN j.failures > 0 THEN 'retrying'
        WHEN j.due > ?3 THEN 'scheduled'
        ELSE 'pending' END END,
    j.failures, j.lost, j.started_at, j.finished_at, j.reason, j.options,
    (SELECT json_group_array(json(body)) FROM (
        SELECT body FROM attempt_error AS e WHERE e.seq = j.seq ORDER BY n
    )),
    p.fraction, p.message,
    s.id, l.at, l.cancel,
    j.result, iif(?2, j.payload, NULL)
FROM json_each(?1) AS x
CROSS JOIN job AS j ON j.seq = x.value
LEFT JOIN progress AS p ON p.seq = j.seq
LEFT JOIN lease AS l ON j.state = 0 AND l.session IN (SELECT n FROM session) AND l.seq = j.seq
LEFT JOIN session AS s ON s.n = l.session
ORDER BY j.seq DESC
