-- Exchange: repeat or begin, promote what is due, merge lane heads, lease jobs, deliver them.
--
-- The writer thread runs these between its BEGIN IMMEDIATE and COMMIT: the transaction holds the write lock of the
-- file, and each call has a savepoint of its own, so that an exchange is applied whole or not at all.
-- Jobs travel as one JSON array of seqs (?1): each step of a statement releases the interpreter lock and may wait long to
-- get it back, so one row with a list is faster than many rows. CROSS JOIN fixes the order of the loops.

-- name: get_exchange_head
-- What an exchange must know before it begins.
-- Inputs: ?1 session id
-- Result: number, last_exchange, last_results, left_at, ended_at, paused queues (JSON), limits (JSON: name, bound,
--   in_use), earliest due time still ahead, whether a unique key is held; no row: no such session
SELECT
    number, last_exchange, last_results, left_at, ended_at,
    (SELECT json_group_array(queue) FROM paused_queue),
    (SELECT json_group_array(json_array(name, maximum, in_use)) FROM concurrency_limit),
    (SELECT min(due) FROM scheduled),
    EXISTS (SELECT 1 FROM unique_key WHERE valid_until IS NULL)
FROM session WHERE id = ?1;

-- name: get_repeated_leases
-- What an exchange handed out.
-- Inputs: ?1 session number, ?2 exchange number
-- Result: JSON array of seqs in rank order; the nonce
SELECT json_group_array(seq), max(nonce) FROM (
    SELECT seq, nonce FROM lease WHERE session = ?1 AND exchange_number = ?2 ORDER BY reply_position
);

-- name: get_next_due
-- The earliest due time still ahead.
-- Result: due, or NULL
SELECT min(due) FROM scheduled;

-- name: list_due_lanes
-- The lanes of the jobs that became due.
-- Inputs: ?1 now, ?2 at most so many jobs
-- Result: JSON array of lanes
SELECT json_group_array(DISTINCT lane) FROM (
    SELECT lane FROM scheduled WHERE due <= ?1 ORDER BY due, seq LIMIT ?2
);

-- name: copy_due_to_ready
-- Put jobs that became due into the line, earliest first.
-- Inputs: ?1 now, ?2 at most so many
-- Result: the number of rows
INSERT INTO ready (lane, rank, due, seq, has_failed)
SELECT lane, rank, due, seq, has_failed FROM scheduled WHERE due <= ?1 ORDER BY due, seq LIMIT ?2;

-- name: delete_promoted
-- Take the jobs that were put into the line from those set aside.
-- Inputs: ?1 now, ?2 at most so many, the same as for copy_due_to_ready
DELETE FROM scheduled WHERE (due, seq) IN (
    SELECT due, seq FROM scheduled WHERE due <= ?1 ORDER BY due, seq LIMIT ?2
);

-- name: list_limits
-- Every limit.
-- Result: JSON: [[name, maximum, in_use], …]
SELECT json_group_array(json_array(name, maximum, in_use)) FROM concurrency_limit;

-- name: read_lane
-- The head of one lane.
-- Inputs: ?1 lane, ?2 at most so many
-- Result: JSON array of seqs, first first
SELECT json_group_array(seq) FROM (
    SELECT seq FROM ready WHERE lane = ?1 ORDER BY rank, due, seq LIMIT ?2
);

-- name: read_lane_heads
-- The heads of several lanes.
-- Inputs: ?1 JSON array of lanes, ?2 at most so many of each
-- Result: JSON: [lane, [[rank, due, seq], …]] for each lane
SELECT json_group_array(json_array(l.value, json((
    SELECT json_group_array(json_array(rank, due, seq)) FROM (
        SELECT rank, due, seq FROM ready WHERE lane = l.value ORDER BY rank, due, seq LIMIT ?2
    )
)))) FROM json_each(?1) AS l;

-- name: read_lane_further
-- What stands in a lane behind a job.
-- Inputs: ?1 lane, ?2 rank, ?3 due, ?4 seq of that job, ?5 at most so many
-- Result: JSON: [[rank, due, seq], …]
SELECT json_group_array(json_array(rank, due, seq)) FROM (
    SELECT rank, due, seq FROM ready
    WHERE lane = ?1 AND (rank, due, seq) > (?2, ?3, ?4) ORDER BY rank, due, seq LIMIT ?5
);

-- name: get_sizes
-- How large jobs are.
-- Inputs: ?1 JSON array of seqs
-- Result: JSON: [[lane, bytes of payload and options], …], in the order of the seqs
SELECT json_group_array(json_array(j.lane, length(j.payload) + coalesce(length(j.options), 0)))
FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value;

-- name: take_limit
-- Take places under the limit of a job name.
-- Inputs: ?1 name, ?2 how many
UPDATE concurrency_limit SET in_use = in_use + ?2 WHERE name = ?1;

-- name: insert_leases
-- Lease jobs to a session.
-- Inputs: ?1 session number, ?2 exchange number, ?3 nonce, ?4 now, ?5 JSON array of seqs in rank order
INSERT INTO lease (session, seq, lane, exchange_number, reply_position, fence, nonce, leased_at)
SELECT ?1, j.seq, j.lane, ?2, s.key, j.fence + 1, ?3, ?4
FROM json_each(?5) AS s CROSS JOIN job AS j ON j.seq = s.value;

-- name: delete_leased_from_ready
-- Take leased jobs out of the line.
-- Inputs: ?1 JSON array of seqs
-- Result: the number of rows
DELETE FROM ready WHERE (lane, rank, due, seq) IN (
    SELECT j.lane, -j.priority, j.due, j.seq
    FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value
);

-- name: save_exchange
-- Remember an exchange, to answer its repetition.
-- Inputs: ?1 session number, ?2 number, ?3 results
UPDATE session SET last_exchange = ?2, last_results = ?3 WHERE number = ?1;

-- name: find_waiting_lanes
-- Which of these lanes hold jobs.
-- Inputs: ?1 JSON array of lanes, ?2 at most so many
-- Result: JSON array of lanes
SELECT json_group_array(value) FROM (
    SELECT value FROM json_each(?1)
    WHERE EXISTS (SELECT 1 FROM ready WHERE lane = value) LIMIT ?2
);

-- name: get_deliveries
-- The jobs with these places, in one row: each step of a statement gives up the interpreter lock
-- and may wait long to get it back.
-- Inputs: ?1 JSON array of seqs
-- Result: JSON: [[seq, id, lane, priority, failures, lost, due, created_at, fence, length of
--   payload, options], …]; the payloads end to end
SELECT
    json_group_array(json_array(
        j.seq, j.id, j.lane, j.priority, j.failures, j.lost, j.due, j.created_at, j.fence,
        length(j.payload), j.options
    )),
    CAST(group_concat(j.payload, '') AS BLOB)
FROM json_each(?1) AS s CROSS JOIN job AS j ON j.seq = s.value;
