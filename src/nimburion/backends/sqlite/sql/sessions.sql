-- Sessions: open, heartbeat, close, and rescue: end those that have expired, and list the jobs that they held.
--
-- The writer thread runs these statements between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file. `expires_at` counts seconds since the host booted, and `boot_id` identifies that boot. Therefore a step of the
-- wall clock does not end a session. The statement that ends a session also tests whether it has expired, so a heartbeat comes
-- before or after that statement.

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
-- Result: session, seq, lane, fence, nonce, leased_at, cancel_requested, whether a worker must end the job then
SELECT session, seq, lane, fence, nonce, leased_at, cancel_requested,
    cancel_requested AND EXISTS (SELECT 1 FROM step WHERE step.seq = lease.seq AND step.number = 0)
FROM lease
WHERE session = ?1 ORDER BY exchange_number, reply_position;

-- name: mark_session_left
-- Record that a session was closed while some of its handlers still run.
-- Inputs: ?1 session number, ?2 now
UPDATE session SET left_at = ?2 WHERE number = ?1;

-- name: end_session
-- End a session.
-- Inputs: ?1 session number, ?2 now
UPDATE session SET ended_at = ?2 WHERE number = ?1;

-- name: expire_sessions
-- End the sessions that have expired. A session has expired if its time is over, if the host booted since its last
-- heartbeat, or if `expires_at` is more than its ttl ahead because the clock was reset.
-- Inputs: ?1 now, ?2 seconds since boot, ?3 boot id
-- Result: their ids
UPDATE session SET ended_at = ?1, held_several = EXISTS (
    SELECT 1 FROM lease AS l WHERE l.session = session.number LIMIT 1 OFFSET 1
)
WHERE ended_at IS NULL AND (boot_id <> ?3 OR expires_at <= ?2 OR expires_at > ?2 + ttl + 1)
RETURNING id;

-- name: list_orphaned_leases
-- List leases of sessions that have ended, with what decides about their jobs.
-- Inputs: ?1 the maximum number of leases
-- Result: the columns of `list_leases`; job id, failures, lost; id and host of the session;
--   whether it was closed while handlers still ran; whether it held more than one job when it expired
SELECT
    l.session, l.seq, l.lane, l.fence, l.nonce, l.leased_at, l.cancel_requested,
    l.cancel_requested AND EXISTS (SELECT 1 FROM step WHERE step.seq = l.seq AND step.number = 0),
    j.id, j.failures, j.lost, s.id, coalesce(json_extract(s.description, '$.host'), ''), s.left_at IS NOT NULL,
    s.held_several
FROM session AS s
CROSS JOIN lease AS l ON l.session = s.number
CROSS JOIN job AS j ON j.seq = l.seq
WHERE s.ended_at IS NOT NULL LIMIT ?1;
