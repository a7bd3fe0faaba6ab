-- Flows: their counts, the conditions of suspended jobs, and the changes that a step has left.
--
-- The writer thread runs these statements between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file, and each call has its own savepoint. `nimburion.backends.planning.flows` decides what they do. A condition is
-- open while its job waits for it. One that is impossible stays with the cancelled job, so that a replay can open it again.

-- name: find_flow
-- Read a flow or a group.
-- Inputs: ?1 id
-- Result: id, name, parent, members that it declared, unfinished, completed, failed, cancelled, max_failed, fail_fast, added, created_at, grown_at,
--   finished_at; or no row
SELECT id, name, parent, members, unfinished, completed, failed, cancelled, max_failed, fail_fast, added, created_at, grown_at,
    finished_at
FROM flow WHERE id = ?1;

-- name: list_flows_by_id
-- Read flows and groups.
-- Inputs: ?1 JSON array of ids
-- Result: as `find_flow`
SELECT f.id, f.name, f.parent, members, unfinished, completed, failed, cancelled, max_failed, fail_fast, added, created_at, grown_at,
    finished_at
FROM json_each(?1) AS x CROSS JOIN flow AS f ON f.id = x.value;

-- name: list_flow_tree
-- Read a flow and the groups inside it, at any depth.
-- Inputs: ?1 id
-- Result: as `find_flow`; the flow first, then the groups in the order of their ids
WITH RECURSIVE inside (id) AS (
    SELECT ?1 UNION ALL SELECT f.id FROM inside CROSS JOIN flow AS f ON f.parent = inside.id
)
SELECT f.id, name, parent, members, unfinished, completed, failed, cancelled, max_failed, fail_fast, added, created_at, grown_at,
    finished_at
FROM inside CROSS JOIN flow AS f ON f.id = inside.id ORDER BY f.id <> ?1, f.id;

-- name: list_flows
-- List flows that are no groups, the newest first.
-- Inputs: ?1 the number before which to list, ?2 whether only those that run, ?3 the maximum number
-- Result: number, and the columns of `find_flow`
SELECT number, id, name, parent, members, unfinished, completed, failed, cancelled, max_failed, fail_fast, added, created_at, grown_at,
    finished_at
FROM flow WHERE parent IS NULL AND number < ?1 AND (NOT ?2 OR finished_at IS NULL) ORDER BY number DESC LIMIT ?3;

-- name: insert_flow
-- Store a flow or a group.
-- Inputs: ?1 id, ?2 name, ?3 parent, ?4 number of members, ?5 max_failed, ?6 fail_fast, ?7 whether it is open, ?8 now
INSERT INTO flow (id, name, parent, members, unfinished, max_failed, fail_fast, added, created_at, grown_at, finished_at)
VALUES (?1, ?2, ?3, ?4, ?4 + ?7, ?5, ?6, ?7, ?8, iif(?7, ?8, NULL), iif(?4 + ?7 = 0, ?8, NULL));

-- name: save_flows
-- Store the counts of flows. The caller repeats the list of values for each.
-- Inputs: id, unfinished, completed, failed, cancelled, added, grown_at; now
WITH new (id, unfinished, completed, failed, cancelled, added, grown_at) AS (VALUES (?, ?, ?, ?, ?, ?, ?))
UPDATE flow SET unfinished = n.unfinished, completed = n.completed, failed = n.failed, cancelled = n.cancelled,
    added = n.added, grown_at = n.grown_at, finished_at = iif(n.unfinished = 0, ?, NULL)
FROM new AS n WHERE flow.id = n.id;

-- name: list_late_flows
-- List the open flows that got no members for a time.
-- Inputs: ?1 the time since which they got none, ?2 how many to list
-- Result: id
SELECT id FROM flow WHERE grown_at < ?1 ORDER BY grown_at LIMIT ?2;

-- name: find_sources
-- Find those of these jobs that belong to some flows.
-- Inputs: ?1 JSON array of ids of jobs, ?2 JSON array of ids of flows
-- Result: id
SELECT j.id FROM json_each(?1) AS x CROSS JOIN job AS j ON j.id = x.value
WHERE json_extract(j.options, '$.flow') IN (SELECT value FROM json_each(?2));

-- name: suspend_new
-- Suspend the new jobs that have conditions.
-- Inputs: ?1 the last seq before the new jobs
INSERT INTO suspended (seq, lane)
SELECT seq, lane FROM job WHERE seq > ?1 AND json_extract(options, '$.conditions') IS NOT NULL;

-- name: insert_other_new_ready
-- Add the new jobs that are due to `ready`, except suspended ones.
-- Inputs: ?1 the last seq before the new jobs, ?2 now
INSERT INTO ready (lane, rank, due, seq, has_failed)
SELECT lane, -priority, due, seq, 0 FROM job
WHERE seq > ?1 AND due <= ?2 AND json_extract(options, '$.conditions') IS NULL;

-- name: insert_other_new_scheduled
-- Add the new jobs that are not due yet to `scheduled`, except suspended ones.
-- Inputs: ?1 the last seq before the new jobs, ?2 now
INSERT INTO scheduled (due, seq, lane, rank, has_failed)
SELECT due, seq, lane, -priority, 0 FROM job
WHERE seq > ?1 AND due > ?2 AND json_extract(options, '$.conditions') IS NULL;

-- name: insert_conditions
-- Store the conditions of new jobs.
-- Inputs: ?1 the last seq before the new jobs
INSERT INTO wait_condition (source_kind, source, waiter, awaited)
SELECT json_extract(c.value, '$.source.kind'), json_extract(c.value, '$.source.id'), j.seq,
    coalesce(json_extract(c.value, '$.on'), 'success')
FROM job AS j CROSS JOIN json_each(j.options, '$.conditions') AS c WHERE j.seq > ?1;

-- name: insert_fail_fast
-- Let new members be cancelled if their flow fails, if it has `fail_fast`.
-- Inputs: ?1 the last seq before the new jobs
INSERT INTO wait_condition (source_kind, source, waiter, awaited)
SELECT 'flow', f.id, j.seq, ''
FROM job AS j CROSS JOIN flow AS f ON f.id = json_extract(j.options, '$.flow')
WHERE j.seq > ?1 AND f.fail_fast AND coalesce(json_extract(j.options, '$.group'), ' ') <> '';

-- name: list_ended_sources
-- List the jobs that have ended, and the flows that have ended or failed, for which new jobs wait.
-- Inputs: ?1 the last seq before the new jobs
-- Result: kind, id, state of the job (NULL: it is a flow)
SELECT DISTINCT c.source_kind, c.source, j.state
FROM wait_condition AS c LEFT JOIN job AS j ON c.source_kind = 'job' AND j.id = c.source
LEFT JOIN flow AS f ON c.source_kind = 'flow' AND f.id = c.source
WHERE c.waiter > ?1 AND (j.state > 0 OR f.unfinished = 0 OR f.failed + f.cancelled > f.max_failed);

-- name: list_stored_members
-- List the stored jobs that have one of these ids.
-- Inputs: ?1 ids (JSON array)
-- Result: id, its flow, the flow or the group that counts it (NULL: none), state
SELECT j.id, json_extract(j.options, '$.flow'),
    nullif(coalesce(json_extract(j.options, '$.group'), json_extract(j.options, '$.flow')), ''), j.state
FROM json_each(?1) AS each CROSS JOIN job AS j ON j.id = each.value;

-- name: count_members
-- Count those of these jobs that are members of flows, by flow.
-- Inputs: ?1 JSON array of seqs
-- Result: the flow or the group that counts them (NULL: none does, they are callbacks), their number, JSON array of the ids of those
--   for which other jobs wait
SELECT m.counted, count(*), json_group_array(m.id) FILTER (WHERE EXISTS (
    SELECT 1 FROM wait_condition AS c WHERE c.source_kind = 'job' AND c.source = m.id
))
FROM (
    SELECT j.id, nullif(coalesce(json_extract(j.options, '$.group'), json_extract(j.options, '$.flow')), '') AS counted
    FROM json_each(?1) AS x CROSS JOIN job AS j ON j.seq = x.value
    WHERE j.options IS NOT NULL AND json_extract(j.options, '$.flow') IS NOT NULL
) AS m
GROUP BY m.counted;

-- name: select_awaited
-- Select the sources that conditions name.
-- Inputs: ?1 JSON array of [kind, id of the source]
-- Result: the positions of these sources in the array, in their order
SELECT x.key FROM json_each(?1) AS x
WHERE EXISTS (
    SELECT 1 FROM wait_condition AS c
    WHERE c.source_kind = json_extract(x.value, '$[0]') AND c.source = json_extract(x.value, '$[1]')
);

-- name: list_few_waiters
-- List the conditions on sources, in no order. For many conditions, `list_waiters` lists those of each source.
-- Inputs: ?1 JSON array of [kind, id of the source, whether those that are impossible, whether those on the end of a flow are left
--   out], ?2 the maximum number
-- Result: seq of the job that waits, the position of the source in the array, id of the job, awaited
SELECT c.waiter, x.key, j.id, c.awaited
FROM json_each(?1) AS x CROSS JOIN wait_condition AS c ON c.source_kind = json_extract(x.value, '$[0]')
    AND c.source = json_extract(x.value, '$[1]') AND c.is_impossible = json_extract(x.value, '$[2]')
CROSS JOIN job AS j ON j.seq = c.waiter
WHERE NOT (json_extract(x.value, '$[3]') AND c.awaited IN ('finished', 'any')) LIMIT ?2;

-- name: list_waiters
-- List the conditions on a source, in the order of their jobs. The primary key has this order.
-- Inputs: ?1 kind, ?2 id of the source, ?3 whether those that are impossible, ?4 whether those on the end of a flow are left out,
--   ?5 the maximum number
-- Result: seq and id of the job that waits, awaited (empty: the job is cancelled if the flow fails)
SELECT c.waiter, j.id, c.awaited
FROM wait_condition AS c CROSS JOIN job AS j ON j.seq = c.waiter
WHERE c.source_kind = ?1 AND c.source = ?2 AND c.is_impossible = ?3 AND NOT (?4 AND c.awaited IN ('finished', 'any'))
ORDER BY c.waiter LIMIT ?5;

-- name: delete_conditions
-- Delete conditions that are met.
-- Inputs: ?1 JSON array of [kind, id of the source, seq of the job]
DELETE FROM wait_condition WHERE (source_kind, source, is_impossible, waiter) IN (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), 0, json_extract(value, '$[2]') FROM json_each(?1)
);

-- name: delete_alternatives
-- Delete those conditions of jobs of which one is enough.
-- Inputs: ?1 JSON array of seqs
DELETE FROM wait_condition WHERE awaited = 'any' AND waiter IN (SELECT value FROM json_each(?1));

-- name: list_due_conditions
-- List the conditions on times that have come, earliest first.
-- Inputs: ?1 now, ?2 the maximum number
-- Result: id of the source, seq and id of the job
SELECT c.source, c.waiter, j.id FROM wait_condition AS c CROSS JOIN job AS j ON j.seq = c.waiter
WHERE c.source_kind = 'time' AND c.source <= printf('%020d', ?1) ORDER BY c.source LIMIT ?2;

-- name: mark_conditions
-- Mark open conditions as impossible, or impossible ones as open again.
-- Inputs: ?1 JSON array of [kind, id of the source, seq of the job], ?2 whether they are impossible
UPDATE wait_condition SET is_impossible = ?2 WHERE (source_kind, source, is_impossible, waiter) IN (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), NOT ?2, json_extract(value, '$[2]') FROM json_each(?1)
);

-- name: delete_conditions_of_jobs
-- Delete the conditions of jobs.
-- Inputs: ?1 JSON array of seqs
DELETE FROM wait_condition WHERE waiter IN (SELECT value FROM json_each(?1));

-- name: resume_jobs
-- Remove those of these jobs from `suspended` that wait for no condition.
-- Inputs: ?1 JSON array of seqs
-- Result: seq
DELETE FROM suspended WHERE seq IN (SELECT value FROM json_each(?1))
    AND NOT EXISTS (SELECT 1 FROM wait_condition AS c WHERE c.waiter = suspended.seq AND c.awaited <> '')
RETURNING seq;

-- name: set_resumed_due
-- Set the due time of resumed jobs that were due before.
-- Inputs: ?1 JSON array of seqs, ?2 now
-- Result: for each, lane, and whether it is due later
UPDATE job SET due = max(due, ?2) WHERE seq IN (SELECT value FROM json_each(?1)) RETURNING lane, due > ?2;

-- name: insert_resumed_ready
-- Add resumed jobs that are due to `ready`.
-- Inputs: ?1 JSON array of seqs, ?2 now
INSERT INTO ready (lane, rank, due, seq, has_failed)
SELECT lane, -priority, due, seq, failures > 0 FROM job
WHERE seq IN (SELECT value FROM json_each(?1)) AND due <= ?2;

-- name: insert_resumed_scheduled
-- Add resumed jobs that are not due yet to `scheduled`.
-- Inputs: ?1 JSON array of seqs, ?2 now
INSERT INTO scheduled (due, seq, lane, rank, has_failed)
SELECT due, seq, lane, -priority, failures > 0 FROM job
WHERE seq IN (SELECT value FROM json_each(?1)) AND due > ?2;

-- name: find_suspended
-- Find a suspended job.
-- Inputs: ?1 id
-- Result: seq, lane, options, whether a worker must end it; or no row
SELECT j.seq, j.lane, j.options, EXISTS (SELECT 1 FROM step WHERE step.seq = j.seq AND step.number = 0)
FROM job AS j CROSS JOIN suspended AS s ON s.seq = j.seq WHERE j.id = ?1;

-- name: find_waiting
-- Find a job that waits for a worker.
-- Inputs: ?1 id
-- Result: as `find_suspended`
SELECT j.seq, j.lane, j.options, EXISTS (SELECT 1 FROM step WHERE step.seq = j.seq AND step.number = 0)
FROM job AS j
WHERE j.id = ?1 AND j.state = 0 AND NOT EXISTS (SELECT 1 FROM lease AS l WHERE l.seq = j.seq);

-- name: delete_suspended
-- Delete a job from `suspended`.
-- Inputs: ?1 seq
-- Result: the number of rows
DELETE FROM suspended WHERE seq = ?1;

-- name: find_reopened
-- Find a job that was cancelled because of a condition, and has no impossible one any more.
-- Inputs: ?1 id, ?2 JSON array of reasons
-- Result: seq, lane, options; or no row
SELECT j.seq, j.lane, j.options FROM job AS j
WHERE j.id = ?1 AND j.state = 3 AND j.reason IN (SELECT value FROM json_each(?2))
    AND NOT EXISTS (SELECT 1 FROM wait_condition AS c WHERE c.waiter = j.seq AND c.is_impossible);

-- name: reopen_job
-- Make a cancelled job unfinished again, and suspend it.
-- Inputs: ?1 seq, ?2 lane
UPDATE job SET state = 0, lane = ?2, finished_at = NULL, reason = NULL, ended_by = NULL WHERE seq = ?1;

-- name: insert_suspended
-- Add a job to `suspended`.
-- Inputs: ?1 seq, ?2 lane
INSERT INTO suspended (seq, lane) VALUES (?1, ?2);

-- name: take_flow_changes
-- Remove the changes that earlier steps have left.
-- Result: position, kind, id of the source, change
DELETE FROM flow_change RETURNING position, source_kind, source, change;

-- name: put_flow_change
-- Leave a change to a later step.
-- Inputs: ?1 kind, ?2 id of the source, ?3 change
INSERT INTO flow_change (source_kind, source, change) VALUES (?1, ?2, ?3);

-- name: has_flow_changes
-- Test whether an earlier step has left a change, or a time has come for which a durable run waits.
-- Inputs: ?1 now
SELECT EXISTS (SELECT 1 FROM flow_change)
    OR EXISTS (SELECT 1 FROM wait_condition WHERE source_kind = 'time' AND source <= printf('%020d', ?1));

-- name: list_unmet
-- List open or impossible conditions of a job.
-- Inputs: ?1 seq, ?2 whether those that are impossible, ?3 the maximum number
-- Result: kind, id of the source, awaited
SELECT source_kind, source, awaited FROM wait_condition
WHERE waiter = ?1 AND is_impossible = ?2 AND (is_impossible OR awaited <> '')
ORDER BY source_kind DESC, source LIMIT ?3;

-- name: count_unmet
-- Count the open or the impossible conditions of a job.
-- Inputs: ?1 seq, ?2 whether those that are impossible
SELECT count(*) FROM wait_condition WHERE waiter = ?1 AND is_impossible = ?2 AND (is_impossible OR awaited <> '');

-- name: delete_old_flows
-- Delete the flows that ended before a time, with the groups inside them.
-- Inputs: ?1 time
DELETE FROM flow WHERE id IN (
    WITH RECURSIVE old (id) AS (
        SELECT id FROM flow WHERE parent IS NULL AND finished_at < ?1
        UNION ALL SELECT f.id FROM old CROSS JOIN flow AS f ON f.parent = old.id
    )
    SELECT id FROM old
);
