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

-- name: set_limit
-- Set the concurrency limit of a job name. The `in_use` of a new limit is the number of leased jobs of that name.
-- Inputs: ?1 name, ?2 limit
INSERT INTO concurrency_limit (name, maximum, in_use) VALUES (
    ?1, ?2, (SELECT count(*) FROM lease WHERE lane & 1048575 IN (SELECT id FROM lane WHERE name = ?1))
)
ON CONFLICT (name) DO UPDATE SET maximum = excluded.maximum;

-- name: delete_limit
-- Delete the concurrency limit of a job name.
-- Inputs: ?1 name
DELETE FROM concurrency_limit WHERE name = ?1;

-- name: list_effective_limits
-- Return all limits, without their use: one JSON text for each kind.
SELECT
    (SELECT json_group_array(json_array(name, maximum)) FROM concurrency_limit),
    (SELECT json_group_array(json_array(name, interval, burst, cost)) FROM rate_limit),
    (SELECT json_group_array(json_array(job_name, limit_name, concurrency, interval, burst, cost)) FROM keyed_limit);

-- name: set_rate
-- Set the rate limit of a job name. A limit that exists keeps the units that its jobs have taken.
-- Inputs: ?1 name, ?2 rate, ?3 interval, ?4 burst, ?5 cost
INSERT INTO rate_limit (name, rate, interval, burst, cost, spent_until) VALUES (?1, ?2, ?3, ?4, ?5, 0)
ON CONFLICT (name) DO UPDATE
SET rate = excluded.rate, interval = excluded.interval, burst = excluded.burst, cost = excluded.cost;

-- name: delete_rate
-- Delete the rate limit of a job name.
-- Inputs: ?1 name
DELETE FROM rate_limit WHERE name = ?1;

-- name: renew_session
-- Extend the life of a session.
-- Inputs: ?1 session number, ?2 expires_at, ?3 boot id, ?4 vitals (JSON; NULL: unchanged)
UPDATE session SET expires_at = ?2, boot_id = ?3, vitals = coalesce(?4, vitals) WHERE number = ?1;

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
