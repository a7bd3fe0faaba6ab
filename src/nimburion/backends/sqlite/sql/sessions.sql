-- Sessions: open, heartbeat, close.
--
-- The writer thread runs these statements between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file. `expires_at` counts seconds since the host booted, and `boot_id` identifies that boot. Therefore a step of the
-- wall clock does not end a session.

-- name: get_session
-- Read a session, including one that has ended.
-- Inputs: ?1 session id
-- Result: number, description, ttl, left_at, ended_at, command, or no row
SELECT number, description, ttl, left_at, ended_at, command FROM session WHERE id = ?1;

-- name: insert_session
-- Create a session.
-- Inputs: ?1 id, ?2 description (JSON), ?3 ttl, ?4 expires_at, ?5 boot id, ?6 now
-- Result: none; fails if the id was used before
INSERT INTO session (id, description, ttl, expires_at, boot_id, opened_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6);

-- name: renew_session
-- Extend the life of a session.
-- Inputs: ?1 session number, ?2 expires_at, ?3 boot id, ?4 vitals (JSON; NULL: unchanged)
UPDATE session SET expires_at = ?2, boot_id = ?3, vitals = coalesce(?4, vitals) WHERE number = ?1;

-- name: read_fleet
-- Read what a heartbeat says about all sessions. See `expire_sessions` for when a session has expired.
-- Inputs: ?1 seconds since boot, ?2 boot id, ?3 half of the ttl of the session that is renewed
-- Result: how many sessions expire later than that from now; the seconds until the first session expires (0: a rescue has
--   work to do now: also if changes of flows are left)
SELECT
    coalesce(sum(ended_at IS NULL AND boot_id = ?2 AND expires_at > ?1 + ?3), 0),
    iif(EXISTS (SELECT 1 FROM flow_change), 0.0, coalesce(min(iif(
        ended_at IS NULL AND boot_id = ?2 AND expires_at <= ?1 + ttl + 1, max(expires_at - ?1, 0.0), 0.0
    )), 0.0))
FROM session
WHERE ended_at IS NULL OR EXISTS (SELECT 1 FROM lease AS l WHERE l.session = number);

-- name: list_cancel_requests
-- List the jobs of a session that are to be cancelled.
-- Inputs: ?1 session number
-- Result: seq, job id, fence, nonce
SELECT l.seq, j.id, l.fence, l.nonce FROM lease AS l CROSS JOIN job AS j ON j.seq = l.seq
WHERE l.session = ?1 AND l.cancel_requested = 1;

-- name: list_paused_queues
-- List the queues that are paused now.
-- Inputs: ?1 now
-- Result: queue
SELECT queue FROM paused_queue WHERE until IS NULL OR until > ?1 ORDER BY queue;

-- name: list_leases
-- List the leases of a session in the order of delivery.
-- Inputs: ?1 session number
-- Result: session, seq, lane, fence, nonce, leased_at, cancel_requested
SELECT session, seq, lane, fence, nonce, leased_at, cancel_requested FROM lease
WHERE session = ?1 ORDER BY exchange_number, reply_position;

-- name: mark_session_left
-- Record that a session was closed while some of its handlers still run.
-- Inputs: ?1 session number, ?2 now
UPDATE session SET left_at = ?2 WHERE number = ?1;

-- name: end_session
-- End a session.
-- Inputs: ?1 session number, ?2 now
UPDATE session SET ended_at = ?2 WHERE number = ?1;
