-- Queries: read jobs, counts, queues and sessions.
--
-- The reader thread runs each call in its own transaction. It reads one snapshot, takes no lock that a writer waits for,
-- and cannot write (query_only). Times are in microseconds. A parameter ?N has the same value wherever it is used.
-- The view `job_record` has the status of each job. Whether a waiting job is pending or scheduled depends on the time, so
-- the statements decide that themselves.
-- `state > 0` beside `state = 2` repeats the condition of the partial index `job_finished`: without it SQLite cannot use
-- that index.

-- name: find_job
-- Find a job by its id.
-- Inputs: ?1 id
-- Result: seq, state, lane, or no row
SELECT seq, state, lane FROM job WHERE id = ?1;

-- name: get_records
-- Read the complete records of jobs.
-- Inputs: ?1 JSON array of seqs, ?2 whether payloads are included, ?3 now
-- Result: one row for each job, newest first: id, lane, priority, due, created_at, state, failures, lost, started_at,
--   finished_at, reason, options, history (JSON array), fraction and message of the progress, session id, leased_at,
--   cancel_requested, result, payload
SELECT
    j.id, j.lane, j.priority, j.due, j.created_at,
    coalesce(nullif(j.status, 'waiting'), iif(j.due > ?3, 'scheduled', 'pending')),
    j.failures, j.lost, j.started_at, j.finished_at, j.reason, j.options,
    (SELECT json_group_array(json(body)) FROM (
        SELECT body FROM attempt_error AS e WHERE e.seq = j.seq ORDER BY position
    )),
    p.fraction, p.message,
    s.id, l.leased_at, l.cancel_requested,
    j.result, iif(?2, j.payload, NULL)
FROM json_each(?1) AS x
CROSS JOIN job_record AS j ON j.seq = x.value
LEFT JOIN progress AS p ON p.seq = j.seq
LEFT JOIN lease AS l ON j.state = 0 AND l.session IN (SELECT number FROM session) AND l.seq = j.seq
LEFT JOIN session AS s ON s.number = l.session
ORDER BY j.seq DESC;

-- name: list_ids
-- List those of the given jobs that match a filter.
-- Inputs: ?1 states (JSON array), ?2 queue, ?3 name, ?4 reason, ?5 the seq before which to list (for each of these,
--   NULL: any); ?6 the maximum number of jobs, ?7 now, ?8 JSON array of ids
-- Result: JSON array of seqs, newest first
SELECT json_group_array(seq) FROM (
    SELECT j.seq FROM json_each(?8) AS s CROSS JOIN job_record AS j ON j.id = s.value
    WHERE (?2 IS NULL OR j.lane IN (SELECT id FROM lane WHERE queue = ?2))
    AND (?3 IS NULL OR j.lane IN (SELECT id FROM lane WHERE name = ?3))
    AND (?4 IS NULL OR j.reason = ?4)
    AND (?5 IS NULL OR j.seq < ?5)
    AND (?1 IS NULL OR coalesce(nullif(j.status, 'waiting'), iif(j.due > ?7, 'scheduled', 'pending'))
        IN (SELECT value FROM json_each(?1)))
    ORDER BY j.seq DESC LIMIT ?6
);

-- name: list_failed
-- List the failed jobs that match a filter. It is used only when no other state is requested.
-- Inputs: ?1 states (JSON array); ?2 queue, ?3 name, ?4 reason, ?5 the seq before which to list (for each of these,
--   NULL: any); ?6 the maximum number of jobs
-- Result: JSON array of seqs, newest first
SELECT json_group_array(seq) FROM (
    SELECT j.seq FROM job AS j INDEXED BY job_finished
    WHERE j.state = 2 AND j.state > 0 AND (?2 IS NULL OR j.lane IN (SELECT id FROM lane WHERE queue = ?2))
    AND (?3 IS NULL OR j.lane IN (SELECT id FROM lane WHERE name = ?3))
    AND (?4 IS NULL OR j.reason = ?4)
    AND (?5 IS NULL OR j.seq < ?5)
    AND 'failed' IN (SELECT value FROM json_each(?1))
    ORDER BY j.seq DESC LIMIT ?6
);

-- name: list_unfinished
-- List the unfinished jobs that match a filter. It reads all of them, so it is used only when they are few.
-- Inputs: ?1 states (JSON array), ?2 queue, ?3 name, ?4 reason, ?5 the seq before which to list (for each of these,
--   NULL: any); ?6 the maximum number of jobs, ?7 now
-- Result: JSON array of seqs, newest first
SELECT json_group_array(seq) FROM (
    SELECT j.seq FROM (
        SELECT seq FROM ready UNION ALL SELECT seq FROM scheduled UNION ALL SELECT seq FROM lease
    ) AS s CROSS JOIN job_record AS j ON j.seq = s.seq
    WHERE (?2 IS NULL OR j.lane IN (SELECT id FROM lane WHERE queue = ?2))
    AND (?3 IS NULL OR j.lane IN (SELECT id FROM lane WHERE name = ?3))
    AND (?4 IS NULL OR j.reason = ?4)
    AND (?5 IS NULL OR j.seq < ?5)
    AND (?1 IS NULL OR coalesce(nullif(j.status, 'waiting'), iif(j.due > ?7, 'scheduled', 'pending'))
        IN (SELECT value FROM json_each(?1)))
    ORDER BY j.seq DESC LIMIT ?6
);

-- name: has_many_unfinished
-- Test whether at least this many jobs are unfinished.
-- Inputs: ?1 the number
-- Result: 0 or 1
SELECT count(*) >= ?1 FROM (
    SELECT 1 FROM ready UNION ALL SELECT 1 FROM scheduled UNION ALL SELECT 1 FROM lease LIMIT ?1
);

-- name: list_newest
-- List the jobs that match a filter. It scans from the newest job backwards.
-- Inputs: ?1 states (JSON array), ?2 queue, ?3 name, ?4 reason, ?5 the seq before which to list (for each of these,
--   NULL: any); ?6 the maximum number of jobs, ?7 now
-- Result: JSON array of seqs, newest first
SELECT json_group_array(seq) FROM (
    SELECT j.seq FROM job_record AS j
    WHERE (?2 IS NULL OR j.lane IN (SELECT id FROM lane WHERE queue = ?2))
    AND (?3 IS NULL OR j.lane IN (SELECT id FROM lane WHERE name = ?3))
    AND (?4 IS NULL OR j.reason = ?4)
    AND (?5 IS NULL OR j.seq < ?5)
    AND (?1 IS NULL OR coalesce(nullif(j.status, 'waiting'), iif(j.due > ?7, 'scheduled', 'pending'))
        IN (SELECT value FROM json_each(?1)))
    ORDER BY j.seq DESC LIMIT ?6
);

-- name: count_by_state
-- Count the jobs in each state.
-- Inputs: ?1 queue; NULL: all queues; ?2 now
-- Result: pending, scheduled, processing, retrying, completed, failed, cancelled
WITH
served AS (SELECT id FROM lane WHERE ?1 IS NULL OR queue = ?1),
waiting AS (
    SELECT has_failed, 1 AS ready, count(*) AS many FROM ready
    WHERE ?1 IS NULL OR lane IN served GROUP BY has_failed
    UNION ALL
    SELECT has_failed, due <= ?2, count(*) FROM scheduled
    WHERE ?1 IS NULL OR lane IN served GROUP BY has_failed, due <= ?2
),
finished AS (
    SELECT state, count(*) AS many FROM job INDEXED BY job_finished
    WHERE state > 0 AND (?1 IS NULL OR lane IN served) GROUP BY state
)
SELECT
    (SELECT coalesce(sum(many), 0) FROM waiting WHERE has_failed = 0 AND ready),
    (SELECT coalesce(sum(many), 0) FROM waiting WHERE has_failed = 0 AND NOT ready),
    (SELECT count(*) FROM lease WHERE ?1 IS NULL OR lane IN served),
    (SELECT coalesce(sum(many), 0) FROM waiting WHERE has_failed = 1),
    coalesce((SELECT many FROM finished WHERE state = 1), 0),
    coalesce((SELECT many FROM finished WHERE state = 2), 0),
    coalesce((SELECT many FROM finished WHERE state = 3), 0);

-- name: list_queues
-- List every lane that has an unfinished job, and every paused queue.
-- Inputs: ?1 now
-- Result: queue; name (NULL: the row says that the queue is paused); number of jobs that are due and wait; number of
--   jobs that are not due; number of jobs that are processing; the earliest due time of those that are due; paused
WITH unfinished AS (
    SELECT lane, count(*) AS size, 0 AS later, 0 AS running, min(due) AS oldest
    FROM ready GROUP BY lane
    UNION ALL
    SELECT lane, sum(due <= ?1), sum(due > ?1), 0, min(iif(due <= ?1, due, NULL))
    FROM scheduled GROUP BY lane
    UNION ALL
    SELECT lane, 0, 0, count(*), NULL FROM lease GROUP BY lane
)
SELECT lane.queue, lane.name, size, later, running, oldest, 0
FROM unfinished JOIN lane ON lane.id = unfinished.lane
UNION ALL
SELECT queue, NULL, 0, 0, 0, NULL, 1 FROM paused_queue;

-- name: list_sessions
-- List every session that has not ended, oldest first.
-- Result: id, description, ttl, expires_at, boot_id, opened_at, left_at, number of leases
SELECT id, description, ttl, expires_at, boot_id, opened_at, left_at,
    (SELECT count(*) FROM lease WHERE lease.session = session.number)
FROM session WHERE ended_at IS NULL ORDER BY opened_at, number;

-- name: get_format_and_latest
-- Read what the health check needs to know about the contents.
-- Result: the format of the file; created_at of the newest job (NULL: there is no job)
SELECT
    (SELECT value FROM meta WHERE name = 'format'),
    (SELECT created_at FROM job ORDER BY seq DESC LIMIT 1);
