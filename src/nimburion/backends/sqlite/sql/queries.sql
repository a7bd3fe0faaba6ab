-- Queries: read jobs, counts, queues and sessions.
--
-- The reader thread runs each call in its own transaction. It reads one snapshot, takes no lock that a writer waits for,
-- and cannot write (query_only). Times are in microseconds. A parameter ?N has the same value wherever it is used.
-- The view `job_record` has the status of each job. Whether a waiting job is pending or scheduled depends on the time, so
-- the statements decide that themselves.

-- name: find_job
-- Find a job by its id.
-- Inputs: ?1 id
-- Result: seq, state, lane, or no row
SELECT seq, state, lane FROM job WHERE id = ?1;

-- name: get_records
-- Read the complete records of jobs.
-- Inputs: ?1 JSON array of seqs, ?2 the bytes of each payload to read (0: none), ?3 now
-- Result: one row for each job, newest first: id, lane, priority, due, created_at, state, failures, lost, started_at,
--   finished_at, reason, options, history (JSON array), fraction and message of the progress, id of the session that
--   holds the lease, leased_at, cancel_requested, id of the session that ended the job, host of that or the other
--   session (NULL: unknown), result, payload
SELECT
    j.id, j.lane, j.priority, j.due, j.created_at,
    coalesce(nullif(j.status, 'waiting'), iif(j.due > ?3, 'scheduled', 'pending')),
    j.failures, j.lost, j.started_at, j.finished_at, j.reason, j.options,
    (SELECT json_group_array(json(body)) FROM (
        SELECT body FROM attempt_error AS e WHERE e.seq = j.seq ORDER BY position
    )),
    p.fraction, p.message,
    s.id, l.leased_at, l.cancel_requested, j.ended_by, json_extract(coalesce(s.description, e.description), '$.host'),
    j.result, CASE WHEN ?2 = 0 THEN NULL WHEN length(j.payload) <= ?2 THEN j.payload ELSE substr(j.payload, 1, ?2) END
FROM json_each(?1) AS x
CROSS JOIN job_record AS j ON j.seq = x.value
LEFT JOIN progress AS p ON p.seq = j.seq
LEFT JOIN lease AS l ON j.state = 0 AND l.session IN (SELECT number FROM session) AND l.seq = j.seq
LEFT JOIN session AS s ON s.number = l.session
LEFT JOIN session AS e ON e.id = j.ended_by
ORDER BY j.seq DESC;

-- The next five statements list the records that a filter examines, and `filter_jobs` keeps those that match.

-- name: list_newest
-- List jobs of all states.
-- Inputs: ?1 the seq before which to list, ?2 the maximum number of jobs
-- Result: JSON array of seqs, newest first
SELECT json_group_array(seq) FROM (SELECT seq FROM job WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2);

-- name: list_failed
-- List failed jobs.
-- Inputs: ?1 the seq before which to list, ?2 the maximum number of jobs
-- Result: JSON array of seqs, newest first
SELECT json_group_array(seq) FROM (
    SELECT seq FROM job INDEXED BY job_failed WHERE fingerprint IS NOT NULL AND seq < ?1 ORDER BY seq DESC LIMIT ?2
);

-- name: list_leased
-- List processing jobs. It sorts all leases, which are as many as the workers have slots.
-- Inputs: ?1 the seq before which to list, ?2 the maximum number of jobs
-- Result: JSON array of seqs, newest first
SELECT json_group_array(seq) FROM (SELECT seq FROM lease WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2);

-- name: list_unfinished
-- List unfinished jobs. It reads all of them, so it is used only when they are few.
-- Inputs: ?1 the seq before which to list, ?2 the maximum number of jobs
-- Result: JSON array of seqs, newest first
SELECT json_group_array(seq) FROM (
    SELECT seq FROM (
        SELECT seq FROM ready UNION ALL SELECT seq FROM scheduled UNION ALL SELECT seq FROM lease
        UNION ALL SELECT seq FROM parked UNION ALL SELECT seq FROM suspended
    ) WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2
);

-- name: list_by_ids
-- List the jobs with the given ids.
-- Inputs: ?1 the seq before which to list, ?2 the maximum number of jobs, ?3 JSON array of ids
-- Result: JSON array of seqs, newest first
SELECT json_group_array(seq) FROM (
    SELECT j.seq FROM json_each(?3) AS s CROSS JOIN job AS j ON j.id = s.value
    WHERE j.seq < ?1 ORDER BY j.seq DESC LIMIT ?2
);

-- name: has_many_unfinished
-- Test whether more than this many jobs are unfinished.
-- Inputs: ?1 the number
-- Result: 0 or 1
SELECT count(*) > ?1 FROM (
    SELECT 1 FROM ready UNION ALL SELECT 1 FROM scheduled UNION ALL SELECT 1 FROM lease
    UNION ALL SELECT 1 FROM parked UNION ALL SELECT 1 FROM suspended LIMIT ?1 + 1
);

-- name: filter_jobs
-- Keep the first of these jobs that match a filter. A condition whose input is NULL is left out.
-- Inputs: ?1 JSON array of seqs, ?2 the maximum number of jobs, ?3 now
--   ?4 states (JSON array)
--   ?5 ids (JSON array)
--   ?6 queue
--   ?7 name
--   ?8 reason
--   ?9 and ?10 the range of created_at
--   ?11 and ?12 the range of finished_at
--   ?13 tenant
--   ?14 correlation id
--   ?15 fingerprint
--   ?16 the least number of failures
--   ?17 tag
--   ?18 flow
-- Result: JSON array of seqs in the same order
SELECT json_group_array(seq) FROM (
    SELECT j.seq FROM json_each(?1) AS x CROSS JOIN job_record AS j ON j.seq = x.value
    WHERE (?5 IS NULL OR j.id IN (SELECT value FROM json_each(?5)))
    AND (?6 IS NULL OR j.lane & 1048575 IN (SELECT id FROM lane WHERE queue = ?6))
    AND (?7 IS NULL OR j.lane & 1048575 IN (SELECT id FROM lane WHERE name = ?7))
    AND (?8 IS NULL OR j.reason = ?8)
    AND (?9 IS NULL OR j.created_at >= ?9)
    AND (?10 IS NULL OR j.created_at < ?10)
    AND (?11 IS NULL OR j.finished_at >= ?11)
    AND (?12 IS NULL OR j.finished_at < ?12)
    AND (?13 IS NULL OR json_extract(j.options, '$.tenant') = ?13)
    AND (?14 IS NULL OR json_extract(j.options, '$.correlation_id') = ?14)
    AND (?15 IS NULL OR j.fingerprint = ?15)
    AND (?16 IS NULL OR j.failures >= ?16)
    AND (?17 IS NULL OR ?17 IN (SELECT value FROM json_each(j.options, '$.tags')))
    AND (?18 IS NULL OR (json_extract(j.options, '$.flow') = ?18 AND coalesce(json_extract(j.options, '$.group'), ' ') <> ''))
    AND (?4 IS NULL OR coalesce(nullif(j.status, 'waiting'), iif(j.due > ?3, 'scheduled', 'pending'))
        IN (SELECT value FROM json_each(?4)))
    LIMIT ?2
);

-- name: list_dead_letters
-- Read what the groups of dead letters need, all in one row.
-- Inputs: ?1 JSON array of seqs
-- Result: JSON array of [id, lane, finished_at, fingerprint], in the order of the seqs
SELECT json_group_array(json_array(j.id, j.lane, j.finished_at, j.fingerprint))
FROM json_each(?1) AS x CROSS JOIN job AS j ON j.seq = x.value;

-- name: list_last_errors
-- Read the latest errors of jobs.
-- Inputs: ?1 JSON array of ids
-- Result: id, the error (JSON)
SELECT j.id, (SELECT body FROM attempt_error AS e WHERE e.seq = j.seq ORDER BY position DESC LIMIT 1)
FROM json_each(?1) AS x CROSS JOIN job AS j ON j.id = x.value;

-- name: get_pause
-- Read the pause of a queue that is in force.
-- Inputs: ?1 queue, ?2 now
-- Result: who paused it, reason, since, until, or no row
SELECT paused_by, reason, since, until FROM paused_queue
WHERE queue = ?1 AND (until IS NULL OR until > ?2);


-- name: count_by_state
-- Count the jobs in each state.
-- Inputs: ?1 queue; NULL: all queues; ?2 now; ?3 how many jobs are counted in each place where jobs wait
-- Result: pending, scheduled, processing, retrying, suspended, completed, failed, cancelled; 1 if all jobs that wait are counted
-- The suspended jobs have 2 in place of `has_failed`. The lanes of tenants are behind all others. Their due jobs are examined up to ?3, those of other lanes are looked up.
WITH
served AS MATERIALIZED (SELECT id FROM lane WHERE ?1 IS NULL OR queue = ?1),
waiting AS MATERIALIZED (
    SELECT 1 AS place, has_failed, 1 AS ready, count(*) AS examined, count(*) AS many
    FROM (SELECT r.has_failed FROM served CROSS JOIN ready AS r ON r.lane = served.id LIMIT ?3) GROUP BY has_failed
    UNION ALL
    SELECT 2, has_failed, 1, count(*), sum(?1 IS NULL OR lane & 1048575 IN served)
    FROM (SELECT lane, has_failed FROM ready WHERE lane > 1048575 LIMIT ?3) GROUP BY has_failed
    UNION ALL
    SELECT 3, has_failed, 1, count(*), sum(?1 IS NULL OR lane & 1048575 IN served)
    FROM (SELECT lane, has_failed FROM parked LIMIT ?3) GROUP BY has_failed
    UNION ALL
    SELECT 4, has_failed, due <= ?2, count(*), sum(?1 IS NULL OR lane & 1048575 IN served)
    FROM (SELECT lane, has_failed, due FROM scheduled ORDER BY due LIMIT ?3) GROUP BY has_failed, due <= ?2
    UNION ALL
    SELECT 5, 2, 0, count(*), sum(?1 IS NULL OR lane & 1048575 IN served) FROM (SELECT lane FROM suspended LIMIT ?3)
),
finished AS (
    SELECT state, sum(number) AS many FROM finished_count
    WHERE ?1 IS NULL OR lane & 1048575 IN served GROUP BY state
)
SELECT
    (SELECT coalesce(sum(many), 0) FROM waiting WHERE has_failed = 0 AND ready),
    (SELECT coalesce(sum(many), 0) FROM waiting WHERE has_failed = 0 AND NOT ready),
    (SELECT count(*) FROM lease WHERE ?1 IS NULL OR lane & 1048575 IN served),
    (SELECT coalesce(sum(many), 0) FROM waiting WHERE has_failed = 1),
    (SELECT coalesce(sum(many), 0) FROM waiting WHERE has_failed = 2),
    coalesce((SELECT many FROM finished WHERE state = 1), 0),
    coalesce((SELECT many FROM finished WHERE state = 2), 0),
    coalesce((SELECT many FROM finished WHERE state = 3), 0),
    NOT EXISTS (SELECT 1 FROM waiting GROUP BY place HAVING sum(examined) >= ?3);

-- name: list_queues
-- List every lane that has an unfinished job, and every queue that is paused now.
-- Inputs: ?1 now, ?2 how many jobs are counted in each place where jobs wait
-- Result: queue; name (NULL: the row says that the queue is paused); number of jobs that are due and wait; number of
--   jobs that are not due; number of jobs that are processing; the earliest due time of those that are due; 1 if all due
--   jobs are counted, 1 if all that are not due are; and of a paused queue: who paused it, the reason, since, until
-- The lanes share ?2 in `ready`. The earliest due time of a lane is the least of those of its ranks: each is the
-- first row of the rank, so that it costs no count.
WITH served AS MATERIALIZED (
    SELECT id FROM lane WHERE EXISTS (SELECT 1 FROM ready WHERE ready.lane = lane.id)
),
share (most) AS MATERIALIZED (SELECT max(1, ?2 / max(1, (SELECT count(*) FROM served)))),
rank (number) AS (VALUES (0), (-1), (-2), (-3), (-4), (-5), (-6), (-7), (-8), (-9)),
counted AS MATERIALIZED (
    SELECT
        served.id AS lane, share.most,
        (SELECT count(*) FROM (
            SELECT 1 FROM ready WHERE ready.lane = served.id LIMIT (SELECT most FROM share)
        )) AS size,
        (SELECT min(first) FROM (
            SELECT (
                SELECT due FROM ready WHERE ready.lane = served.id AND ready.rank = rank.number ORDER BY due LIMIT 1
            ) AS first FROM rank
        )) AS oldest
    FROM served CROSS JOIN share
),
turns AS MATERIALIZED (
    SELECT id FROM lane WHERE EXISTS (SELECT 1 FROM tenant_turn WHERE main_lane = lane.id)
),
counted_turns AS MATERIALIZED (
    SELECT
        turns.id AS lane, max(1, ?2 / (SELECT count(*) FROM turns)) AS most,
        (SELECT count(*) FROM (
            SELECT 1 FROM tenant_turn AS t CROSS JOIN ready AS r ON r.lane = t.main_lane + (t.tenant << 20) AND r.rank = t.rank
            WHERE t.main_lane = turns.id LIMIT max(1, ?2 / (SELECT count(*) FROM turns))
        )) AS size,
        (SELECT min(due) FROM (SELECT due FROM tenant_turn WHERE main_lane = turns.id LIMIT ?2)) AS oldest
    FROM turns
),
counted_parked AS MATERIALIZED (
    SELECT lane, count(*) AS size, min(due) AS oldest FROM (SELECT lane, due FROM parked LIMIT ?2) GROUP BY lane
),
counted_scheduled AS MATERIALIZED (
    SELECT lane, sum(due <= ?1) AS size, sum(due > ?1) AS later, min(iif(due <= ?1, due, NULL)) AS oldest
    FROM (SELECT lane, due FROM scheduled ORDER BY due LIMIT ?2) GROUP BY lane
),
unfinished AS (
    SELECT lane, size, 0 AS later, 0 AS running, oldest, size < most AS complete FROM counted
    UNION ALL
    SELECT lane, size, 0, 0, oldest, size < most FROM counted_turns
    UNION ALL
    SELECT lane, size, 0, 0, oldest, 1 FROM counted_parked
    UNION ALL
    SELECT lane, size, later, 0, oldest, 1 FROM counted_scheduled
    UNION ALL
    SELECT lane, 0, 0, count(*), NULL, 1 FROM lease GROUP BY lane
),
whole (size, later) AS MATERIALIZED (
    SELECT (SELECT coalesce(sum(size), 0) FROM counted_parked) < ?2,
        (SELECT coalesce(sum(size + later), 0) FROM counted_scheduled) < ?2
)
SELECT lane.queue, lane.name, unfinished.size, unfinished.later, running, oldest, complete AND whole.size, whole.later,
    NULL, NULL, NULL, NULL
FROM unfinished CROSS JOIN whole JOIN lane ON lane.id = unfinished.lane & 1048575
UNION ALL
SELECT queue, NULL, 0, 0, 0, NULL, 1, whole.later, paused_by, reason, since, until FROM paused_queue CROSS JOIN whole
WHERE until IS NULL OR until > ?1;

-- name: list_sessions
-- List every session that has not ended, oldest first.
-- Result: id, description, ttl, expires_at, boot_id, opened_at, left_at, number of leases, vitals (JSON), command
SELECT id, description, ttl, expires_at, boot_id, opened_at, left_at,
    (SELECT count(*) FROM lease WHERE lease.session = session.number), vitals, command
FROM session WHERE ended_at IS NULL ORDER BY opened_at, number;

-- name: get_format_and_latest
-- Read what the health check needs to know about the contents.
-- Result: the format of the file; created_at of the newest job (NULL: there is no job)
SELECT
    (SELECT value FROM meta WHERE name = 'format'),
    (SELECT created_at FROM job ORDER BY seq DESC LIMIT 1);
