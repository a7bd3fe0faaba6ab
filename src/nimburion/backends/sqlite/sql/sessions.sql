-- Sessions: open, heartbeat, close, and the rescue of jobs whose session expired.
--
-- The writer thread runs these between its BEGIN IMMEDIATE and COMMIT: the transaction holds the write lock of the
-- file. Whether a session is expired is decided by the statement that ends it, so a heartbeat comes before or after.
-- `expires_at` counts seconds since the host booted, `boot_id` says which boot that was: a step of the wall clock expires nobody.

-- name: get_session
-- A session, dead or alive.
-- Inputs: ?1 session id
-- Result: number, description, ttl, left_at, ended_at, or no row
SELECT number, description, ttl, left_at, ended_at FROM session WHERE id = ?1;

-- name: insert_session
-- A new session.
-- Inputs: ?1 id, ?2 description (JSON), ?3 ttl, ?4 expires, ?5 boot id, ?6 now
-- Result: none; fails when the id was used
INSERT INTO session (id, description, ttl, expires_at, boot_id, opened_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6);

-- name: set_limit
-- Set the limit of a job name; a new one counts what is processing now.
-- Inputs: ?1 name, ?2 limit
INSERT INTO concurrency_limit (name, maximum, in_use) VALUES (
    ?1, ?2, (SELECT count(*) FROM lease WHERE lane IN (SELECT id FROM lane WHERE name = ?1))
)
ON CONFLICT (name) DO UPDATE SET maximum = excluded.maximum;

-- name: delete_limit
-- Take the limit of a job name away.
-- Inputs: ?1 name
DELETE FROM concurrency_limit WHERE name = ?1;

-- name: renew_session
-- Let a session live on.
-- Inputs: ?1 session number, ?2 expires_at, ?3 boot id
UPDATE session SET expires_at = ?2, boot_id = ?3 WHERE number = ?1;

-- name: list_cancel_requests
-- Which jobs of a session somebody wants cancelled.
-- Inputs: ?1 session number
-- Result: seq, job id, fence, nonce
SELECT l.seq, j.id, l.fence, l.nonce FROM lease AS l CROSS JOIN job AS j ON j.seq = l.seq
WHERE l.session = ?1 AND l.cancel_requested = 1;

-- name: list_paused_queues
-- Every paused queue.
-- Result: queue
SELECT queue FROM paused_queue ORDER BY queue;

-- name: list_leases
-- What a session holds, in the order it was handed out.
-- Inputs: ?1 session number
-- Result: session, seq, lane, fence, nonce, leased_at, cancel_requested
SELECT session, seq, lane, fence, nonce, leased_at, cancel_requested FROM lease
WHERE session = ?1 ORDER BY exchange_number, reply_position;

-- name: mark_session_left
-- A session left while some of its handlers still run.
-- Inputs: ?1 session number, ?2 now
UPDATE session SET left_at = ?2 WHERE number = ?1;

-- name: end_session
-- A session is over.
-- Inputs: ?1 session number, ?2 now
UPDATE session SET ended_at = ?2 WHERE number = ?1;

-- name: expire_sessions
-- End the sessions whose time is up: overdue, of another boot, or ahead of a clock that began
-- anew.
-- Inputs: ?1 now, ?2 seconds since boot, ?3 boot id
-- Result: the number of rows
UPDATE session SET ended_at = ?1
WHERE ended_at IS NULL AND (boot_id <> ?3 OR expires_at <= ?2 OR expires_at > ?2 + ttl + 1);

-- name: list_orphaned_leases
-- Leases of sessions that are over.
-- Inputs: ?1 at most so many, ?2 losses that make a suspect
-- Result: session, seq, lane, fence, nonce, leased_at, cancel_requested, whether the job is spared the loss (the
--   session had left, or a suspect was held beside other jobs and so had not begun), job id, lost,
--   failures
SELECT
    l.session, l.seq, l.lane, l.fence, l.nonce, l.leased_at, l.cancel_requested,
    s.left_at IS NOT NULL OR (
        j.lost >= ?2
        AND EXISTS (SELECT 1 FROM lease AS o WHERE o.session = l.session AND o.seq <> l.seq)
    ),
    j.id, j.lost, j.failures
FROM session AS s
CROSS JOIN lease AS l ON l.session = s.number
CROSS JOIN job AS j ON j.seq = l.seq
WHERE s.ended_at IS NOT NULL LIMIT ?1;
