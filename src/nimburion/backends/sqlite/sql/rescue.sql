-- Rescue: end expired sessions, and list the jobs that they held.
--
-- The writer thread runs these statements between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file. The statement that ends a session also tests whether it has expired, so a heartbeat comes before or after
-- that statement.

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
-- Result: session, seq, lane, fence, nonce, leased_at, cancel_requested; job id, failures, lost; id and host of the session;
--   whether it was closed while handlers still ran; whether it held more than one job when it expired
SELECT
    l.session, l.seq, l.lane, l.fence, l.nonce, l.leased_at, l.cancel_requested,
    j.id, j.failures, j.lost, s.id, coalesce(json_extract(s.description, '$.host'), ''), s.left_at IS NOT NULL,
    s.held_several
FROM session AS s
CROSS JOIN lease AS l ON l.session = s.number
CROSS JOIN job AS j ON j.seq = l.seq
WHERE s.ended_at IS NOT NULL LIMIT ?1;
