-- Settle: store the outcomes of attempts. Completions are settled in bulk, one group for each token. Other outcomes are
-- settled one by one.
--
-- The writer thread runs these statements between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file, and each call has its own savepoint. A settlement is applied only if session, seq, fence and nonce match
-- those of its lease. The bulk statements compare them in the join; the others are preceded by `get_lease`.

-- name: count_completed_at
-- Add the jobs that were completed at one time to the count of finished jobs, or subtract them. They are next to each
-- other in an index: counting them takes a third of the time of counting the leases that `complete_jobs` joins.
-- Inputs: ?1 the time, ?2 1 or -1
INSERT INTO finished_count (lane, state, number)
SELECT lane & 1048575, 1, ?2 * count(*) FROM job INDEXED BY job_finished
WHERE state = 1 AND state > 0 AND finished_at = ?1 GROUP BY lane & 1048575
ON CONFLICT (lane, state) DO UPDATE SET number = number + excluded.number;

-- name: complete_jobs
-- Complete the jobs that a session holds under one token.
-- Inputs: ?1 now, ?2 session number, ?3 JSON array of seqs, ?4 fence, ?5 nonce, ?6 whether the payloads are kept,
--   ?7 what the handler of each returned; NULL: nothing, or they differ
-- Result: the number of rows
UPDATE job
SET state = 1, finished_at = ?1, payload = iif(?6, payload, NULL), result = ?7, fence = ?4, settled_fence = ?4, settled_nonce = ?5,
    ended_by = (SELECT id FROM session WHERE number = ?2),
    started_at = (
        SELECT l.leased_at FROM lease AS l WHERE l.session = ?2 AND l.nonce = ?5 AND l.seq IN (
            SELECT value FROM json_each(?3)
        ) LIMIT 1
    )
WHERE seq IN (
    SELECT l.seq FROM json_each(?3) AS s
    CROSS JOIN lease AS l ON l.session = ?2 AND l.seq = s.value AND l.fence = ?4 AND l.nonce = ?5
);

-- name: find_matching_leases
-- Find the jobs that a session holds under one token.
-- Inputs: ?1 session number, ?2 JSON array of seqs, ?3 fence, ?4 nonce
-- Result: JSON array of seqs
SELECT json_group_array(l.seq) FROM json_each(?2) AS s
CROSS JOIN lease AS l ON l.session = ?1 AND l.seq = s.value AND l.fence = ?3 AND l.nonce = ?4;

-- name: release_limits
-- Count these jobs no more in the limits that close their lanes.
-- Inputs: ?1 session number, ?2 JSON array of seqs, ?3 fence, ?4 nonce
UPDATE limit_use SET in_use = max(0, in_use - freed.many)
FROM (
    SELECT r.limit_name, count(*) AS many FROM json_each(?2) AS s
    CROSS JOIN lease AS l ON l.session = ?1 AND l.seq = s.value AND l.fence = ?3 AND l.nonce = ?4
    CROSS JOIN lane ON lane.id = l.lane & 1048575
    CROSS JOIN limit_rule AS r ON r.job_name = lane.name AND r.limit_name IN ('job:' || lane.name, 'queue:' || lane.queue)
    GROUP BY r.limit_name
) AS freed
WHERE limit_use.limit_name = freed.limit_name AND limit_use.key = '';

-- name: delete_completed_leases
-- Delete the leases that a session holds under one token.
-- Inputs: ?1 session number, ?2 JSON array of seqs, ?3 fence, ?4 nonce
-- Result: the number of rows
DELETE FROM lease
WHERE session = ?1 AND seq IN (SELECT value FROM json_each(?2)) AND fence = ?3 AND nonce = ?4;

-- name: store_results
-- Store the return values of the handlers of completed jobs.
-- Inputs: ?1 JSON object: seq -> offset * 2^32 + length in ?2; ?2 the concatenated results
UPDATE job SET result = substr(?2, (p.value >> 32) + 1, p.value & 4294967295)
FROM json_each(?1) AS p WHERE job.seq = CAST(p.key AS INTEGER);

-- name: free_unique_keys
-- Release the unique keys of finished jobs. A key with a fixed validity is kept.
-- Inputs: ?1 JSON array of seqs
-- Result: the number of rows
DELETE FROM unique_key
WHERE seq IN (SELECT value FROM json_each(?1)) AND valid_until IS NULL;

-- name: get_lane_of_job
-- Return the lane of a job.
-- Inputs: ?1 seq
-- Result: lane
SELECT lane FROM job WHERE seq = ?1;

-- name: list_lanes_of_jobs
-- List the lanes of these jobs.
-- Inputs: ?1 JSON array of seqs
-- Result: lane
SELECT DISTINCT j.lane FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value;

-- name: get_lease
-- Read a lease of a session.
-- Inputs: ?1 session number, ?2 seq
-- Result: as `list_leases`, or no row
SELECT session, seq, lane, fence, nonce, leased_at, cancel_requested,
    cancel_requested AND EXISTS (SELECT 1 FROM step WHERE step.seq = lease.seq AND step.number = 0)
FROM lease WHERE session = ?1 AND seq = ?2;

-- name: get_settled_token
-- Return the token that settled a job last.
-- Inputs: ?1 seq, ?2 job id
-- Result: fence, nonce, or no row
SELECT settled_fence, settled_nonce FROM job WHERE seq = ?1 AND id = ?2;

-- name: delete_lease
-- Delete a lease.
-- Inputs: ?1 session number, ?2 seq
DELETE FROM lease WHERE session = ?1 AND seq = ?2;

-- name: release_limit
-- Count one job less in the limits that close its lane.
-- Inputs: ?1 lane
-- Result: the number of rows
UPDATE limit_use SET in_use = max(0, in_use - 1)
WHERE key = '' AND limit_name IN (
    SELECT r.limit_name FROM lane CROSS JOIN limit_rule AS r
        ON r.job_name = lane.name AND r.limit_name IN ('job:' || lane.name, 'queue:' || lane.queue)
    WHERE lane.id = ?1 & 1048575
);

-- name: finish_job
-- Finish a job.
-- Inputs:
--   ?1 seq
--   ?2 state: 1 completed, 2 failed, 3 cancelled
--   ?3 now
--   ?4 reason
--   ?5 number to add to failures
--   ?6 number to add to lost
--   ?7 result
--   ?8 fence of the delivery that ended; NULL: no delivery ended
--   ?9 nonce of the token that settles the job; NULL: no token does
--   ?10 started_at of the delivery that ended; NULL: no delivery ended
--   ?11 number of the session whose delivery ended; NULL: no delivery ended
--   ?12 fingerprint of the error that made the job a dead letter; NULL: it is none
--   ?13 whether the payload is kept
UPDATE job
SET state = ?2, finished_at = ?3, reason = ?4, failures = failures + ?5, lost = lost + ?6, result = ?7,
    payload = iif(?13, payload, NULL), fence = coalesce(?8, fence),
    settled_fence = iif(?9 IS NULL, settled_fence, ?8), settled_nonce = coalesce(?9, settled_nonce),
    started_at = coalesce(?10, started_at), ended_by = (SELECT id FROM session WHERE number = ?11), fingerprint = ?12
WHERE seq = ?1;

-- name: count_finished
-- Change the count of finished jobs.
-- Inputs: ?1 lane, ?2 state, ?3 number to add
INSERT INTO finished_count (lane, state, number) VALUES (?1 & 1048575, ?2, ?3)
ON CONFLICT (lane, state) DO UPDATE SET number = number + excluded.number;

-- name: requeue_job
-- Record that a delivery ended and that the job waits again.
-- Inputs:
--   ?1 seq
--   ?2 due; NULL: unchanged
--   ?3 number to add to failures
--   ?4 number to add to lost
--   ?5 fence of the delivery that ended
--   ?6 nonce of the token that settles the delivery; NULL: no token does
--   ?7 started_at of the delivery that ended
-- Result: priority, due, failures
UPDATE job
SET due = coalesce(?2, due), failures = failures + ?3, lost = lost + ?4,
    fence = ?5, settled_fence = iif(?6 IS NULL, settled_fence, ?5), settled_nonce = coalesce(?6, settled_nonce),
    started_at = ?7
WHERE seq = ?1
RETURNING priority, due, failures;

-- name: insert_ready
-- Add one job to `ready`.
-- Inputs: ?1 lane, ?2 rank, ?3 due, ?4 seq, ?5 whether it failed before
INSERT INTO ready (lane, rank, due, seq, has_failed) VALUES (?1, ?2, ?3, ?4, ?5);

-- name: insert_scheduled
-- Add one job to `scheduled`.
-- Inputs: ?1 lane, ?2 rank, ?3 due, ?4 seq, ?5 whether it failed before
INSERT INTO scheduled (lane, rank, due, seq, has_failed) VALUES (?1, ?2, ?3, ?4, ?5);

-- name: insert_attempt_error
-- Add the error of an attempt to the history of its job.
-- Inputs: ?1 seq, ?2 the error (JSON)
INSERT INTO attempt_error (seq, position, body)
SELECT ?1, coalesce(max(position), 0) + 1, ?2 FROM attempt_error WHERE seq = ?1;

-- name: save_progress
-- Store the progress of a job.
-- Inputs: ?1 seq, ?2 fraction, ?3 message
INSERT INTO progress (seq, fraction, message) VALUES (?1, ?2, ?3)
ON CONFLICT (seq) DO UPDATE SET fraction = excluded.fraction, message = excluded.message;
