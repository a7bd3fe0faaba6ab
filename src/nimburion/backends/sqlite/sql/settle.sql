-- Settle: what became of attempts. Completions go in bulk, one group for each token; other outcomes one by one.
--
-- The writer thread runs these between its BEGIN IMMEDIATE and COMMIT: the transaction holds the write lock of the
-- file, and each call has a savepoint of its own. A settlement is applied only where session, seq, fence and nonce of its
-- lease match: the bulk statements compare them in the join, the others after `get_lease`.

-- name: complete_jobs
-- Complete the jobs that this session holds under one token.
-- Inputs: ?1 now, ?2 session number, ?3 JSON array of seqs, ?4 fence, ?5 nonce
-- Result: the number of rows
UPDATE job
SET state = 1, finished_at = ?1, payload = NULL, fence = ?4, settled_fence = ?4, settled_nonce = ?5,
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
-- Which of these jobs this session holds under one token.
-- Inputs: ?1 session number, ?2 JSON array of seqs, ?3 fence, ?4 nonce
-- Result: JSON array of seqs
SELECT json_group_array(l.seq) FROM json_each(?2) AS s
CROSS JOIN lease AS l ON l.session = ?1 AND l.seq = s.value AND l.fence = ?3 AND l.nonce = ?4;

-- name: release_limits
-- Give back the places of these jobs under their limits.
-- Inputs: ?1 session number, ?2 JSON array of seqs, ?3 fence, ?4 nonce
UPDATE concurrency_limit SET in_use = max(0, in_use - freed.many)
FROM (
    SELECT lane.name, count(*) AS many FROM json_each(?2) AS s
    CROSS JOIN lease AS l ON l.session = ?1 AND l.seq = s.value AND l.fence = ?3 AND l.nonce = ?4
    CROSS JOIN lane ON lane.id = l.lane
    GROUP BY lane.name
) AS freed
WHERE concurrency_limit.name = freed.name;

-- name: delete_completed_leases
-- End the leases that this session holds under one token.
-- Inputs: ?1 session number, ?2 JSON array of seqs, ?3 fence, ?4 nonce
-- Result: the number of rows
DELETE FROM lease
WHERE session = ?1 AND seq IN (SELECT value FROM json_each(?2)) AND fence = ?3 AND nonce = ?4;

-- name: store_results
-- Keep what the handlers of completed jobs returned.
-- Inputs: ?1 JSON object: seq -> offset * 2^32 + length in ?2, ?2 the results end to end
UPDATE job SET result = substr(?2, (p.value >> 32) + 1, p.value & 4294967295)
FROM json_each(?1) AS p WHERE job.seq = CAST(p.key AS INTEGER);

-- name: free_unique_keys
-- Give back the unique keys of jobs that are finished.
-- Inputs: ?1 JSON array of seqs
-- Result: the number of rows
DELETE FROM unique_key
WHERE seq IN (SELECT value FROM json_each(?1)) AND valid_until IS NULL;

-- name: list_lanes_of_jobs
-- The lanes of these jobs.
-- Inputs: ?1 JSON array of seqs
-- Result: lane
SELECT DISTINCT j.lane FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value;

-- name: get_lease
-- A lease of this session.
-- Inputs: ?1 session number, ?2 seq
-- Result: session, seq, lane, fence, nonce, leased_at, cancel_requested, or no row
SELECT session, seq, lane, fence, nonce, leased_at, cancel_requested FROM lease WHERE session = ?1 AND seq = ?2;

-- name: get_settled_token
-- The token that settled a job last.
-- Inputs: ?1 seq, ?2 job id
-- Result: fence, nonce, or no row
SELECT settled_fence, settled_nonce FROM job WHERE seq = ?1 AND id = ?2;

-- name: delete_lease
-- End a lease.
-- Inputs: ?1 session number, ?2 seq
DELETE FROM lease WHERE session = ?1 AND seq = ?2;

-- name: release_limit
-- Give back one place under the limit of the job name, if it has one.
-- Inputs: ?1 lane
-- Result: the number of rows
UPDATE concurrency_limit SET in_use = max(0, in_use - 1) WHERE name = (SELECT name FROM lane WHERE id = ?1);

-- name: finish_job
-- End a job: 1 completed, 2 failed, 3 cancelled. Only a failed one keeps its payload.
-- Inputs: ?1 seq, ?2 state, ?3 now, ?4 reason, ?5 failures to add, ?6 losses to add, ?7 result,
--   ?8 fence and ?10 started_at of the delivery that ended, NULL: none did; ?9 nonce of the token
--   that settles it, NULL: none does
UPDATE job
SET state = ?2, finished_at = ?3, reason = ?4, failures = failures + ?5, lost = lost + ?6, result = ?7,
    payload = iif(?2 = 2, payload, NULL), fence = coalesce(?8, fence),
    settled_fence = iif(?9 IS NULL, settled_fence, ?8), settled_nonce = coalesce(?9, settled_nonce),
    started_at = coalesce(?10, started_at)
WHERE seq = ?1;

-- name: requeue_job
-- Note that a delivery ended and the job waits again.
-- Inputs: ?1 seq, ?2 due, NULL: as it was, ?3 failures to add, ?4 losses to add, ?5 fence, ?6
--   nonce of the token that settles it, NULL: none does, ?7 started_at
-- Result: priority, due, failures
UPDATE job
SET due = coalesce(?2, due), failures = failures + ?3, lost = lost + ?4,
    fence = ?5, settled_fence = iif(?6 IS NULL, settled_fence, ?5), settled_nonce = coalesce(?6, settled_nonce),
    started_at = ?7
WHERE seq = ?1
RETURNING priority, due, failures;

-- name: insert_ready
-- Put one job into the line.
-- Inputs: ?1 lane, ?2 rank, ?3 due, ?4 seq, ?5 whether it failed before
INSERT INTO ready (lane, rank, due, seq, has_failed) VALUES (?1, ?2, ?3, ?4, ?5);

-- name: insert_scheduled
-- Put one job aside until it is due.
-- Inputs: ?1 lane, ?2 rank, ?3 due, ?4 seq, ?5 whether it failed before
INSERT INTO scheduled (lane, rank, due, seq, has_failed) VALUES (?1, ?2, ?3, ?4, ?5);

-- name: insert_attempt_error
-- Add an attempt that ended badly.
-- Inputs: ?1 seq, ?2 JSON
INSERT INTO attempt_error (seq, position, body)
SELECT ?1, coalesce(max(position), 0) + 1, ?2 FROM attempt_error WHERE seq = ?1;

-- name: save_progress
-- Note how far a job has come.
-- Inputs: ?1 seq, ?2 fraction, ?3 message
INSERT INTO progress (seq, fraction, message) VALUES (?1, ?2, ?3)
ON CONFLICT (seq) DO UPDATE SET fraction = excluded.fraction, message = excluded.message;
