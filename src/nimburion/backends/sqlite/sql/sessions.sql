-- Sessions: open, heartbeat, close, and the rescue of jobs whose session expired.
--
-- The writer thread runs these between its BEGIN IMMEDIATE and COMMIT: the transaction holds the write lock of the
-- file. Whether a session is expired is decided by the statement that ends it, so a heartbeat comes before or after.
-- `expires` counts seconds since the host booted, `boot` says which boot that was: a step of the wall clock expires nobody.

-- name: session_get
-- A session, dead or alive.
-- Inputs: ?1 session id
-- Result: n, info, ttl, left_at, dead_at, or no row
SELECT n, info, ttl, left_at, dead_at FROM session WHERE id = ?1;

-- name: session_open
-- A new session.
-- Inputs: ?1 id, ?2 info (JSON), ?3 ttl, ?4 expires, ?5 boot id, ?6 now
-- Result: none; fails when the id was used
INSERT INTO session (id, info, ttl, expires, boot, opened_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6);

-- name: gate_set
-- Set the limit of a job name; a new one counts what is processing now.
-- Inputs: ?1 name, ?2 limit
INSERT INTO gate (name, bound, held) VALUES (
    ?1, ?2, (SELECT count(*) FROM lease WHERE lane IN (SELECT id FROM lane WHERE name = ?1))
)
ON CONFLICT (name) DO UPDATE SET bound = excluded.bound;

-- name: gate_drop
-- Take the limit of a job name away.
-- Inputs: ?1 name
DELETE FROM gate WHERE name = ?1;

-- name: session_beat
-- Let a session live on.
-- Inputs: ?1 session n, ?2 expires, ?3 boot id
UPDATE session SET expires = ?2, boot = ?3 WHERE n = ?1;

-- name: session_cancels
-- Which jobs of a session somebody wants cancelled.
-- Inputs: ?1 session n
-- Result: seq, job id, fence, nonce
SELECT l.seq, j.id, l.fence, l.nonce FROM lease AS l CROSS JOIN job AS j ON j.seq = l.seq
WHERE l.session = ?1 AND l.cancel = 1;

-- name: paused_all
-- Every paused queue.
-- Result: queue
SELECT queue FROM paused ORDER BY queue;

-- name: session_leases
-- What a session holds, in the order it was handed out.
-- Inputs: ?1 session n
-- Result: session, seq, lane, fence, nonce, at, cancel
SELECT session, seq, lane, fence, nonce, at, cancel FROM lease
WHERE session = ?1 ORDER BY number, place;

-- name: session_left
-- A session said goodbye while some of its handlers still run.
-- Inputs: ?1 session n, ?2 now
UPDATE session SET left_at = ?2 WHERE n = ?1;

-- name: session_dead
-- A session is over.
-- Inputs: ?1 session n, ?2 now
UPDATE session SET dead_at = ?2 WHERE n = ?1;

-- name: session_expire
-- End the sessions whose time is up: overdue, of another boot, or ahead of a clock that began
-- anew.
-- Inputs: ?1 now, ?2 seconds since boot, ?3 boot id
-- Result: the number of rows
UPDATE session SET dead_at = ?1
WHERE dead_at IS NULL AND (boot <> ?3 OR expires <= ?2 OR expires > ?2 + ttl + 1);

-- name: rescue_leases
-- Leases of sessions that are over.
-- Inputs: ?1 at most so many, ?2 losses that make a suspect
-- Result: session, seq, lane, fence, nonce, at, cancel, whether the job is spared the loss (the
--   session had left, or a suspect was held beside other jobs and so had not begun), job id, lost,
--   failures
SELECT
    l.session, l.seq, l.lane, l.fence, l.nonce, l.at, l.cancel,
    s.left_at IS NOT NULL OR (
        j.lost >= ?2
        AND EXISTS (SELECT 1 FROM lease AS o WHERE o.session = l.session AND o.seq <> l.seq)
    ),
    j.id, j.lost, j.failures
FROM session AS s
CROSS JOIN lease AS l ON l.session = s.n
CROSS JOIN job AS j ON j.seq = l.seq
WHERE s.dead_at IS NOT NULL LIMIT ?1;
