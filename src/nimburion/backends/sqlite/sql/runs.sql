-- Durable runs: their steps and signals, and what they wait for.
--
-- The writer thread runs the statements that write between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file, and each call has its own savepoint. The steps of a run are stored only under its lease, whose token is compared
-- in the join. A signal whose payload is NULL was taken by a step. Its id stays for a while, so that it is not stored again.

-- name: insert_steps
-- Store steps, except those whose token is not that of the lease, and those whose number the run has. The caller repeats the
-- list of values for each step, no number of a run twice.
-- Inputs: seq, number, fence, nonce, body; now, session number
-- Result: seq and number of each step that was stored, and how often its job has failed or was lost
WITH new (seq, number, fence, nonce, body) AS (VALUES (?, ?, ?, ?, ?))
INSERT INTO step (seq, number, at, body)
SELECT l.seq, n.number, ?, n.body FROM new AS n
CROSS JOIN lease AS l ON l.session = ? AND l.seq = n.seq AND l.fence = n.fence AND l.nonce = n.nonce
WHERE true
ON CONFLICT (seq, number) DO NOTHING
RETURNING seq, number, (SELECT failures + lost FROM job WHERE job.seq = step.seq);

-- name: delete_other_steps
-- Delete all steps of a run but one.
-- Inputs: ?1 seq, ?2 number
DELETE FROM step WHERE seq = ?1 AND number <> ?2;

-- name: take_signals
-- Mark signals as taken.
-- Inputs: ?1 JSON array of [seq, number of the signal]
UPDATE signal SET payload = NULL WHERE (seq, number) IN (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?1)
);

-- name: reset_failures
-- Reset the failures and the losses of jobs.
-- Inputs: ?1 JSON array of seqs
UPDATE job SET failures = 0, lost = 0 WHERE seq IN (SELECT value FROM json_each(?1));

-- name: settle_suspended_runs
-- Record that the deliveries of durable runs ended, which wait from now on. Runs whose token is not that of the lease, or whose
-- cancel was requested, are left out. The caller repeats the list of values for each run.
-- Inputs: seq, fence, nonce; session number
-- Result: seq of each other run
WITH ended (seq, fence, nonce) AS (VALUES (?, ?, ?))
UPDATE job SET fence = l.fence, settled_fence = l.fence, settled_nonce = l.nonce, started_at = l.leased_at
FROM ended AS e CROSS JOIN lease AS l ON l.session = ? AND l.seq = e.seq AND l.fence = e.fence AND l.nonce = e.nonce
WHERE job.seq = l.seq AND NOT l.cancel_requested
RETURNING job.seq;

-- name: insert_suspended_runs
-- Add durable runs, which are leased, to `suspended`.
-- Inputs: ?1 session number, ?2 JSON array of seqs
INSERT INTO suspended (seq, lane)
SELECT l.seq, l.lane FROM json_each(?2) AS x CROSS JOIN lease AS l ON l.session = ?1 AND l.seq = x.value;

-- name: delete_leases
-- Delete leases of a session.
-- Inputs: ?1 session number, ?2 JSON array of seqs
DELETE FROM lease WHERE session = ?1 AND seq IN (SELECT value FROM json_each(?2));

-- name: insert_run_conditions
-- Let durable runs wait, each for the first of some sources.
-- Inputs: ?1 JSON array of [kind, id of the source, seq]
INSERT INTO wait_condition (source_kind, source, waiter, awaited)
SELECT DISTINCT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), 'any' FROM json_each(?1);

-- name: has_signal
-- Test whether a job has an unread signal of a name.
-- Inputs: ?1 job id, ?2 name
SELECT EXISTS (
    SELECT 1 FROM signal INDEXED BY signal_unread WHERE seq = (SELECT seq FROM job WHERE id = ?1) AND name = ?2 AND payload IS NOT NULL
);

-- name: list_signalled_jobs
-- Read what decides about signals to jobs.
-- Inputs: ?1 JSON array of ids
-- Result: id, seq, state, whether it is suspended, the number of its unread signals, the number of its last signal
SELECT j.id, j.seq, j.state, EXISTS (SELECT 1 FROM suspended AS u WHERE u.seq = j.seq),
    (SELECT count(*) FROM signal AS s INDEXED BY signal_unread WHERE s.seq = j.seq AND s.payload IS NOT NULL AND s.name <> ''),
    (SELECT coalesce(max(number), 0) FROM signal AS s WHERE s.seq = j.seq)
FROM json_each(?1) AS x CROSS JOIN job AS j ON j.id = x.value;

-- name: list_known_signals
-- List those of these signals that their jobs have, or had.
-- Inputs: ?1 JSON array of [seq, id of the signal]
-- Result: seq, id of the signal
SELECT s.seq, s.id FROM json_each(?1) AS x
CROSS JOIN signal AS s ON s.seq = json_extract(x.value, '$[0]') AND s.id = json_extract(x.value, '$[1]');

-- name: insert_signal
-- Store a signal.
-- Inputs: ?1 seq, ?2 number, ?3 id, ?4 name, ?5 now, ?6 payload
INSERT INTO signal (seq, number, id, name, at, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6);

-- name: forget_signals
-- Delete the oldest signals of a job that were taken. That which asks it to end stays.
-- Inputs: ?1 seq, ?2 the number of the first signal that stays
DELETE FROM signal WHERE seq = ?1 AND number < ?2 AND payload IS NULL AND name <> '';

-- name: insert_cancel_signal
-- Ask a durable run to end as cancelled, unless it was asked before.
-- Inputs: ?1 seq, ?2 now
INSERT INTO signal (seq, number, id, name, at, payload)
SELECT ?1, coalesce(max(number), 0) + 1, '', '', ?2, x'' FROM signal WHERE seq = ?1
ON CONFLICT (seq, id) DO NOTHING;

-- name: list_steps
-- List the steps of a run after one of them.
-- Inputs: ?1 seq, ?2 the number of that step, ?3 the maximum number of steps
-- Result: number, body, at
SELECT number, body, at FROM step WHERE seq = ?1 AND number > ?2 ORDER BY number LIMIT ?3;

-- name: read_small_runs
-- Read all steps of runs that have few, in one row (see the header of the exchange for the reason).
-- Inputs: ?1 JSON array of seqs, ?2 the maximum number of bytes of a run
-- Result: three columns:
--   JSON array of [seq, number, at, length of the body], by seq and number
--   the bodies, concatenated in the same order
--   whether any of these jobs has an unread signal
SELECT
    json_group_array(json_array(s.seq, s.number, s.at, length(s.body))),
    CAST(group_concat(s.body, '') AS BLOB),
    EXISTS (SELECT 1 FROM json_each(?1) AS x CROSS JOIN signal AS g INDEXED BY signal_unread ON g.seq = x.value AND g.payload IS NOT NULL)
FROM json_each(?1) AS x CROSS JOIN step AS s ON s.seq = x.value
WHERE (SELECT count(*) <= 100 AND total(size) <= ?2 FROM (SELECT length(body) AS size FROM step WHERE seq = x.value LIMIT 101));

-- name: list_unread_signals
-- List the unread signals of a job after one of them.
-- Inputs: ?1 seq, ?2 the number of that signal, ?3 the maximum number of signals
-- Result: number, name, payload, at
SELECT number, name, payload, at FROM signal INDEXED BY signal_unread
WHERE seq = ?1 AND number > ?2 AND payload IS NOT NULL ORDER BY number LIMIT ?3;
