-- Exchange: detect a repeated call, promote due jobs, merge the heads of lanes, lease jobs, read deliveries.
--
-- The writer thread runs these statements between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file, and each call has its own savepoint, so an exchange is applied completely or not at all.
-- Jobs are passed as one JSON array of seqs. Each step of a statement releases the interpreter lock and may wait long to
-- get it back, so one row with a list is faster than many rows. CROSS JOIN fixes the order of the loops.

-- name: get_exchange_head
-- Read what an exchange needs before it begins.
-- Inputs: ?1 session id, ?2 now
-- Result: no row if there is no such session, else one row:
--   number, last_exchange, last_results, left_at, ended_at of the session
--   the paused queues (JSON array)
--   the limits that close lanes, as from `list_lane_limits`
--   the earliest due time, as from `get_next_due`
--   whether any unique key is held until its job is finished; whether jobs may be parked for any limit, or any
--   lease counts for one, or one has changed
--   whether any lease may have been charged to a tenant: then the tenant has a share
--   whether a flow runs or a job is suspended
--   whether a durable run has steps
SELECT
    number, last_exchange, last_results, left_at, ended_at,
    (SELECT json_group_array(queue) FROM paused_queue WHERE until IS NULL OR until > ?2),
    (
        SELECT json_group_array(json_array(
            r.job_name, r.limit_name, r.concurrency, r.rate, r.interval, r.burst, r.cost, u.in_use, u.spent_until
        ))
        FROM limit_rule AS r LEFT JOIN limit_use AS u ON u.limit_name = r.limit_name AND u.key = '' WHERE r.closes_lane = 1
    ),
    (
        SELECT min(due) FROM (
            SELECT min(due) AS due FROM scheduled
            UNION ALL SELECT CAST(min(source) AS INTEGER) FROM wait_condition WHERE source_kind = 'time'
        )
    ),
    EXISTS (SELECT 1 FROM unique_key WHERE valid_until IS NULL),
    EXISTS (SELECT 1 FROM limit_rule WHERE closes_lane = 0) OR EXISTS (SELECT 1 FROM lease_key) OR EXISTS (SELECT 1 FROM changed_limit)
        OR EXISTS (SELECT 1 FROM changed_key),
    EXISTS (SELECT 1 FROM tenant_share),
    EXISTS (SELECT 1 FROM flow WHERE finished_at IS NULL) OR EXISTS (SELECT 1 FROM suspended),
    EXISTS (SELECT 1 FROM step WHERE seq > 0)  -- a search by the key, not a scan
FROM session WHERE id = ?1;

-- name: get_repeated_leases
-- Read the jobs that an exchange leased.
-- Inputs: ?1 session number, ?2 exchange number
-- Result: JSON array of seqs in the order of the reply; the nonce
SELECT json_group_array(seq), max(nonce) FROM (
    SELECT seq, nonce FROM lease WHERE session = ?1 AND exchange_number = ?2 ORDER BY reply_position
);

-- name: get_next_due
-- Return the earliest due time in `scheduled`, or the earliest time for which a durable run waits.
-- Result: due, or NULL
SELECT min(due) FROM (
    SELECT min(due) AS due FROM scheduled
    UNION ALL SELECT CAST(min(source) AS INTEGER) FROM wait_condition WHERE source_kind = 'time'
);

-- name: read_reported_due
-- Read the due time that an exchange reported last, if its session has not ended.
-- Result: due time and session number, or no row
SELECT due, session FROM reported_due WHERE session IN (SELECT number FROM session WHERE ended_at IS NULL);

-- name: save_reported_due
-- Store the due time that an exchange reports.
-- Inputs: ?1 due time, ?2 session number
INSERT INTO reported_due (id, due, session) VALUES (1, ?1, ?2)
ON CONFLICT (id) DO UPDATE SET due = excluded.due, session = excluded.session;

-- name: copy_due_to_ready
-- Copy the scheduled jobs that are due now to `ready`, earliest first.
-- Inputs: ?1 now, ?2 the maximum number of jobs
-- Result: the lane of each job
INSERT INTO ready (lane, rank, due, seq, has_failed)
SELECT lane, rank, due, seq, has_failed FROM scheduled WHERE due <= ?1 ORDER BY due, seq LIMIT ?2
RETURNING lane;

-- name: delete_promoted
-- Delete the jobs that were copied to `ready` from `scheduled`.
-- Inputs: ?1 now, ?2 the maximum number of jobs; the same values as for `copy_due_to_ready`
DELETE FROM scheduled WHERE (due, seq) IN (
    SELECT due, seq FROM scheduled WHERE due <= ?1 ORDER BY due, seq LIMIT ?2
);

-- name: find_holding_lanes
-- Find the lanes that hold jobs without a tenant, by reading the first job of each.
-- Inputs: ?1 the maximum number of lanes
-- Result: JSON array of lanes
WITH RECURSIVE found (lane) AS (
    SELECT min(lane) FROM ready WHERE lane < 1048576
    UNION ALL
    SELECT (SELECT min(r.lane) FROM ready AS r WHERE r.lane > found.lane AND r.lane < 1048576)
    FROM found WHERE found.lane IS NOT NULL
    LIMIT ?1
)
SELECT json_group_array(lane) FROM found WHERE lane IS NOT NULL;

-- name: read_lane
-- Read the first jobs of one lane.
-- Inputs: ?1 lane, ?2 the maximum number of jobs
-- Result: JSON array of seqs in the order of the lane
SELECT json_group_array(seq) FROM (
    SELECT seq FROM ready WHERE lane = ?1 ORDER BY rank, due, seq LIMIT ?2
);

-- name: read_lane_heads
-- Read the first jobs of several lanes.
-- Inputs: ?1 JSON array of lanes, ?2 the maximum number of jobs of each lane
-- Result: JSON array with one [lane, [[rank, due, seq], …]] for each lane
SELECT json_group_array(json_array(l.value, json((
    SELECT json_group_array(json_array(rank, due, seq)) FROM (
        SELECT rank, due, seq FROM ready WHERE lane = l.value ORDER BY rank, due, seq LIMIT ?2
    )
)))) FROM json_each(?1) AS l;

-- name: read_lane_further
-- Read the jobs that follow a job in its lane.
-- Inputs: ?1 lane, ?2 rank, ?3 due and ?4 seq of that job, ?5 the maximum number of jobs
-- Result: JSON array of [rank, due, seq]
SELECT json_group_array(json_array(rank, due, seq)) FROM (
    SELECT rank, due, seq FROM ready
    WHERE lane = ?1 AND (rank, due, seq) > (?2, ?3, ?4) ORDER BY rank, due, seq LIMIT ?5
);

-- name: get_sizes
-- Return the sizes of jobs.
-- Inputs: ?1 JSON array of seqs
-- Result: JSON array of the bytes of payload and options, in the order of the seqs
SELECT json_group_array(length(j.payload) + coalesce(length(j.options), 0))
FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value;

-- name: insert_leases
-- Lease jobs to a session.
-- Inputs: ?1 session number, ?2 exchange number, ?3 nonce, ?4 now, ?5 JSON array of seqs in the order of the reply
INSERT INTO lease (session, seq, lane, exchange_number, reply_position, fence, nonce, leased_at)
SELECT ?1, j.seq, j.lane, ?2, s.key, j.fence + 1, ?3, ?4
FROM json_each(?5) AS s CROSS JOIN job AS j ON j.seq = s.value;

-- name: delete_taken_from_ready
-- Delete jobs that were leased or parked from `ready`.
-- Inputs: ?1 JSON array of seqs
-- Result: the number of rows
DELETE FROM ready WHERE (lane, rank, due, seq) IN (
    SELECT j.lane, -j.priority, j.due, j.seq
    FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value
);

-- name: save_exchange
-- Store the number and results of an exchange, so that a repeated call gets the same reply.
-- Inputs: ?1 session number, ?2 exchange number, ?3 results
UPDATE session SET last_exchange = ?2, last_results = ?3 WHERE number = ?1;

-- name: find_waiting_lanes
-- Find the lanes that have jobs in `ready`.
-- Inputs: ?1 JSON array of lanes, ?2 the maximum number of lanes
-- Result: JSON array of lanes
SELECT json_group_array(value) FROM (
    SELECT value FROM json_each(?1)
    WHERE EXISTS (SELECT 1 FROM ready WHERE lane = value) OR EXISTS (SELECT 1 FROM tenant_turn WHERE main_lane = value)
    LIMIT ?2
);

-- name: get_deliveries
-- Read jobs for delivery, all in one row (see the header for the reason).
-- Inputs: ?1 JSON array of seqs
-- Result: three columns:
--   JSON array of [seq, id, lane, priority, failures, lost, due, created_at, fence, length of the payload, options]
--   the payloads, concatenated in the same order
--   the length of all options together
SELECT
    json_group_array(json_array(
        j.seq, j.id, j.lane, j.priority, j.failures, j.lost, j.due, j.created_at, j.fence,
        length(j.payload), j.options
    )),
    CAST(group_concat(j.payload, '') AS BLOB),
    coalesce(sum(length(j.options)), 0)
FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value;
