-- Maintenance: cancel, pause, commands, replay, delete and prune, and numbers of lanes and tenants that nothing uses.
--
-- The writer thread runs these statements between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file, and each call has its own savepoint. The rows of a job in other tables are deleted
-- before its row in `job`. No job comes to a lane while its number is deleted. Other processes clear their caches of numbers,
-- because the transaction changes the count that `get_numbering` reads.

-- name: request_cancel
-- Request that the worker of a running job cancels it.
-- Inputs: ?1 seq
-- Result: the id of the session that holds the job; no row: none holds it
UPDATE lease SET cancel_requested = 1 WHERE session IN (SELECT number FROM session) AND seq = ?1
RETURNING (SELECT s.id FROM session AS s WHERE s.number = lease.session);

-- name: find_job_to_cancel
-- Find a job by its id.
-- Inputs: ?1 id
-- Result: seq, state, lane, whether a worker must end it; or no row
SELECT seq, state, lane, state = 0 AND EXISTS (SELECT 1 FROM step WHERE step.seq = job.seq AND step.number = 0)
FROM job WHERE id = ?1;

-- name: delete_ready
-- Delete a job from `ready`.
-- Inputs: ?1 seq
-- Result: the number of rows
DELETE FROM ready
WHERE (lane, rank, due, seq) = (SELECT lane, -priority, due, seq FROM job WHERE seq = ?1);

-- name: find_later_job
-- Find a job that waits for a later time.
-- Inputs: ?1 id, ?2 now
-- Result: seq, lane, priority, failures, or no row
SELECT j.seq, j.lane, j.priority, j.failures FROM job AS j JOIN scheduled AS s ON (s.due, s.seq) = (j.due, j.seq)
WHERE j.id = ?1 AND j.due > ?2;

-- name: set_due
-- Set the due time of a job.
-- Inputs: ?1 seq, ?2 due time
UPDATE job SET due = ?2 WHERE seq = ?1;

-- name: delete_scheduled
-- Delete a job from `scheduled`.
-- Inputs: ?1 seq
-- Result: the number of rows
DELETE FROM scheduled WHERE (due, seq) = (SELECT due, seq FROM job WHERE seq = ?1);

-- name: pause_queue
-- Pause a queue. A pause in force keeps the time since which it is in force.
-- Inputs: ?1 queue, ?2 who pauses it, ?3 reason, ?4 now, ?5 when the pause ends; NULL: when the queue is resumed
INSERT INTO paused_queue (queue, paused_by, reason, since, until) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (queue) DO UPDATE
SET paused_by = excluded.paused_by, reason = excluded.reason, until = excluded.until,
    since = iif(until IS NULL OR until > excluded.since, since, excluded.since);

-- name: resume_queue
-- Resume a queue.
-- Inputs: ?1 queue
DELETE FROM paused_queue WHERE queue = ?1;

-- name: send_command
-- Store a command to the worker of a session that has not ended, or only look whether it has.
-- Inputs: ?1 session id, ?2 whether to store, ?3 command; NULL: none
-- Result: the number of rows
UPDATE session SET command = CASE WHEN ?2 THEN ?3 ELSE command END WHERE id = ?1 AND ended_at IS NULL;

-- name: get_dead_letter
-- Read what a replay needs of a failed job.
-- Inputs: ?1 id
-- Result: seq, lane, priority, options, or no row
SELECT seq, lane, priority, options FROM job WHERE id = ?1 AND state = 2;

-- name: get_job_state
-- Return the state of a job.
-- Inputs: ?1 id, ?2 now
-- Result: state, started_at, or no row
SELECT coalesce(nullif(j.status, 'waiting'), iif(j.due > ?2, 'scheduled', 'pending')), j.started_at
FROM job_record AS j WHERE j.id = ?1;

-- name: reset_dead_letter
-- Make a failed job pending again. Its counters are reset and its history is kept.
-- Inputs: ?1 seq, ?2 now, ?3 lane
UPDATE job
SET state = 0, lane = ?3, due = ?2, failures = 0, lost = 0, finished_at = NULL, reason = NULL, ended_by = NULL,
    fingerprint = NULL
WHERE seq = ?1;

-- name: list_finished_jobs
-- Return which of these jobs have finished. Those of flows that run are left out.
-- Inputs: ?1 JSON array of ids
-- Result: seq, id
SELECT j.seq, j.id FROM json_each(?1) AS x CROSS JOIN job AS j ON j.id = x.value
WHERE j.state > 0 AND coalesce(json_extract(options, '$.flow') IN (SELECT id FROM flow WHERE finished_at IS NULL), 0) = 0;

-- name: delete_attempt_errors
-- Delete the histories of jobs.
-- Inputs: ?1 JSON array of seqs
DELETE FROM attempt_error WHERE seq IN (SELECT value FROM json_each(?1));

-- name: delete_progress
-- Delete the progress of jobs.
-- Inputs: ?1 JSON array of seqs
DELETE FROM progress WHERE seq IN (SELECT value FROM json_each(?1));

-- name: has_runs
-- Test whether any job has a step or a signal.
SELECT EXISTS (SELECT 1 FROM step) OR EXISTS (SELECT 1 FROM signal);

-- name: select_first_jobs
-- Select the first of these jobs that have no more than a number of steps and signals together. Their last numbers are at least as
-- many.
-- Inputs: ?1 JSON array of seqs, ?2 the number
-- Result: JSON array of seqs, with at least one of them
SELECT json_group_array(seq) FROM (
    SELECT x.value AS seq, x.key AS place, sum(
        coalesce((SELECT max(number) FROM step WHERE step.seq = x.value), 0)
        + coalesce((SELECT max(number) FROM signal WHERE signal.seq = x.value), 0)
    ) OVER (ORDER BY x.key) AS total
    FROM json_each(?1) AS x
) WHERE place = 0 OR total <= ?2;

-- name: delete_steps
-- Delete the steps of jobs.
-- Inputs: ?1 JSON array of seqs
DELETE FROM step WHERE seq IN (SELECT value FROM json_each(?1));

-- name: delete_signals
-- Delete the signals of jobs.
-- Inputs: ?1 JSON array of seqs
DELETE FROM signal WHERE seq IN (SELECT value FROM json_each(?1));

-- name: uncount_jobs
-- Subtract finished jobs from their counts, before they are deleted.
-- Inputs: ?1 JSON array of seqs
UPDATE finished_count SET number = finished_count.number - deleted.number
FROM (
    SELECT j.lane & 1048575 AS lane, j.state, count(*) AS number FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value
    WHERE j.state > 0 GROUP BY j.lane & 1048575, j.state
) AS deleted
WHERE finished_count.lane = deleted.lane AND finished_count.state = deleted.state;

-- name: delete_jobs
-- Delete finished jobs.
-- Inputs: ?1 JSON array of seqs
-- Result: the number of rows
DELETE FROM job WHERE state > 0 AND seq IN (SELECT value FROM json_each(?1));

-- name: delete_expired_keys
-- Delete the unique keys whose time has passed.
-- Inputs: ?1 now
DELETE FROM unique_key WHERE valid_until IS NOT NULL AND valid_until <= ?1;

-- name: delete_expired_replacements
-- Delete the replacements whose repeats are no longer recognised.
-- Inputs: ?1 now
DELETE FROM replacement WHERE valid_until <= ?1;

-- name: delete_ended_sessions
-- Delete sessions that ended before a time and hold no lease.
-- Inputs: ?1 time
-- Result: the number of rows
DELETE FROM session
WHERE ended_at < ?1 AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.session = session.number);

-- name: list_older
-- List the jobs of one finished state that ended before a time, oldest first. Members of flows that run are left out.
-- Inputs: ?1 state, ?2 time, ?3 the maximum number of jobs, ?4 whether they were cancelled because of another job
-- Result: JSON array of seqs
SELECT json_group_array(seq) FROM (
    SELECT seq FROM job
    WHERE state = ?1 AND state > 0 AND finished_at < ?2 AND coalesce(state = 3 AND reason IN ('dependency', 'not needed'), 0) = ?4
        AND coalesce(json_extract(options, '$.flow') IN (SELECT id FROM flow WHERE finished_at IS NULL), 0) = 0
    ORDER BY finished_at LIMIT ?3
);

-- name: list_excess
-- List completed and cancelled jobs beyond the number to keep, oldest first. Jobs of flows that run do not count, and stay, as do those
-- that were cancelled because of another job. They are counted only if there are more jobs.
-- Inputs: ?1 the number to keep, ?2 the maximum number of jobs
-- Result: JSON array of seqs
SELECT json_group_array(seq) FROM (
    SELECT finished_at, seq FROM job WHERE state = 1 AND state > 0
        AND coalesce(json_extract(options, '$.flow') IN (SELECT id FROM flow WHERE finished_at IS NULL), 0) = 0
    UNION ALL
    SELECT finished_at, seq FROM job WHERE state = 3 AND state > 0 AND coalesce(reason NOT IN ('dependency', 'not needed'), 1)
        AND coalesce(json_extract(options, '$.flow') IN (SELECT id FROM flow WHERE finished_at IS NULL), 0) = 0
    ORDER BY finished_at, seq
    LIMIT (
        SELECT max(0, min(?2, kept.number - ?1 - iif(kept.number <= ?1, 0, (
            SELECT count(*) FROM job
            WHERE state IN (1, 3) AND state > 0 AND finished_at >= (SELECT min(created_at) FROM flow WHERE finished_at IS NULL)
                AND json_extract(options, '$.flow') IN (SELECT id FROM flow WHERE finished_at IS NULL)
        ) + (
            SELECT count(*) FROM job
            WHERE state = 3 AND state > 0 AND reason IN ('dependency', 'not needed')
                AND coalesce(json_extract(options, '$.flow') IN (SELECT id FROM flow WHERE finished_at IS NULL), 0) = 0
        )))) FROM (SELECT coalesce(sum(number), 0) AS number FROM finished_count WHERE state IN (1, 3)) AS kept
    )
);

-- name: delete_old_results
-- Delete the results of jobs that ended before a time, oldest first. Members of flows that run keep theirs.
-- Inputs: ?1 time, ?2 the maximum number of results
-- Result: the number of rows
UPDATE job SET result = NULL WHERE seq IN (
    SELECT seq FROM job WHERE result IS NOT NULL AND finished_at < ?1
        AND coalesce(json_extract(options, '$.flow') IN (SELECT id FROM flow WHERE finished_at IS NULL), 0) = 0
    ORDER BY finished_at LIMIT ?2
);

-- name: has_many_later_jobs
-- Test whether there are more scheduled or more parked jobs than this.
-- Inputs: ?1 the number
SELECT EXISTS (SELECT 1 FROM scheduled LIMIT 1 OFFSET ?1) OR EXISTS (SELECT 1 FROM parked LIMIT 1 OFFSET ?1);

-- name: list_next_lanes
-- List lanes after one of them.
-- Inputs: ?1 the number of that lane, ?2 the maximum number of lanes
-- Result: id
SELECT id FROM lane WHERE id > ?1 ORDER BY id LIMIT ?2;

-- name: list_next_tenants
-- List tenants after one of them.
-- Inputs: ?1 the number of that tenant, ?2 the maximum number of tenants
-- Result: id
SELECT id FROM tenant WHERE id > ?1 ORDER BY id LIMIT ?2;

-- name: delete_idle_lanes
-- Delete those of these lanes that have no job in any state. What a lane has in the small tables and in indexes is tested first: the
-- other tables are read only if a lane may be idle.
-- Inputs: ?1 JSON array of lanes
-- Result: id of each deleted lane
DELETE FROM lane WHERE id IN (
    SELECT l.value FROM json_each(?1) AS l
    WHERE NOT EXISTS (SELECT 1 FROM finished_count AS f WHERE f.lane = l.value AND f.number > 0)
        AND NOT EXISTS (SELECT 1 FROM ready AS r WHERE r.lane = l.value)
        AND NOT EXISTS (SELECT 1 FROM tenant_turn AS t WHERE t.main_lane = l.value)
        AND l.value NOT IN (SELECT lane & 1048575 FROM lease)
        AND l.value NOT IN (SELECT lane FROM changed_key)
        AND l.value NOT IN (SELECT lane FROM parked)
        AND l.value NOT IN (SELECT lane & 1048575 FROM scheduled)
        AND l.value NOT IN (SELECT lane & 1048575 FROM suspended)
)
RETURNING id;

-- name: delete_idle_tenants
-- Delete those of these tenants that have no share and no unfinished job.
-- Inputs: ?1 JSON array of tenants
-- Result: id of each deleted tenant
DELETE FROM tenant WHERE id IN (
    SELECT t.value FROM json_each(?1) AS t
    WHERE t.value NOT IN (SELECT tenant FROM tenant_share)
        AND t.value NOT IN (SELECT tenant FROM tenant_turn)
        AND t.value NOT IN (SELECT lane >> 20 FROM lease)
        AND t.value NOT IN (SELECT j.lane >> 20 FROM parked AS p CROSS JOIN job AS j ON j.seq = p.seq)
        AND t.value NOT IN (SELECT lane >> 20 FROM scheduled)
        AND t.value NOT IN (SELECT lane >> 20 FROM suspended)
)
RETURNING id;

-- name: delete_counts_of_lanes
-- Delete the counts of deleted lanes, which are 0.
-- Inputs: ?1 JSON array of lanes
DELETE FROM finished_count WHERE lane IN (SELECT value FROM json_each(?1));
