-- Statistics: the counters of each process by interval, queue and name.
--
-- The writer thread runs the statements that write between its BEGIN IMMEDIATE and COMMIT, without waiting for the disk.
-- The primary key begins with step and start, so reads and deletions touch only the rows that they concern.

-- name: put_statistics
-- Store counters, or replace those that the same process stored for the same interval, queue and name.
-- Inputs: ?1 step, ?2 start, ?3 queue, ?4 name, ?5 source, ?6 counters (JSON)
INSERT INTO job_statistics (step, start, queue, name, source, counters) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (step, start, queue, name, source) DO UPDATE SET counters = excluded.counters;

-- name: put_enqueue_count
-- Store the number of jobs that a caller's transaction enqueues, inside that transaction. The step is 0: it is no interval yet.
-- Inputs: ?1 time in seconds, ?2 queue, ?3 name, ?4 number of jobs
INSERT INTO job_statistics (step, start, queue, name, source, counters)
VALUES (0, ?1, ?2, ?3, hex(randomblob(16)), json_object('enqueued', ?4));

-- name: take_enqueue_counts
-- Delete counts of callers' transactions, oldest first.
-- Inputs: ?1 the latest time in seconds, ?2 the maximum number of rows
-- Result: queue, name, number of jobs
DELETE FROM job_statistics WHERE (step, start, queue, name, source) IN (
    SELECT step, start, queue, name, source FROM job_statistics
    WHERE step = 0 AND start <= ?1 ORDER BY start, queue, name, source LIMIT ?2
)
RETURNING queue, name, json_extract(counters, '$.enqueued');

-- name: list_statistics
-- List counters of all processes.
-- Inputs: ?1 step, ?2 the first start, ?3 the start before which to list, ?4 queue, ?5 name (NULL: any)
-- Result: start, queue, name, counters
SELECT start, queue, name, counters FROM job_statistics
WHERE step = ?1 AND start >= ?2 AND start < ?3 AND (?4 IS NULL OR queue = ?4) AND (?5 IS NULL OR name = ?5);

-- name: delete_old_statistics
-- Delete the counters of the intervals of one length that started before a time, oldest first.
-- Inputs: ?1 step, ?2 time in seconds, ?3 the maximum number of rows
DELETE FROM job_statistics WHERE (step, start, queue, name, source) IN (
    SELECT step, start, queue, name, source FROM job_statistics
    WHERE step = ?1 AND start < ?2 ORDER BY start, queue, name, source LIMIT ?3
);

-- name: list_unmerged_statistics
-- List counters of single processes for the intervals of one length that started before a time, oldest first.
-- Inputs: ?1 step, ?2 time in seconds, ?3 the maximum number of rows
-- Result: start, queue, name, source, counters
SELECT start, queue, name, source, counters FROM job_statistics INDEXED BY job_statistics_unmerged
WHERE step = ?1 AND start < ?2 AND source <> '' ORDER BY start LIMIT ?3;

-- name: get_statistics
-- Read the counters of one interval, queue, name and source.
-- Inputs: ?1 step, ?2 start, ?3 queue, ?4 name, ?5 source
-- Result: counters, or no row
SELECT counters FROM job_statistics WHERE step = ?1 AND start = ?2 AND queue = ?3 AND name = ?4 AND source = ?5;

-- name: delete_statistics
-- Delete the counters of one interval, queue, name and source.
-- Inputs: ?1 step, ?2 start, ?3 queue, ?4 name, ?5 source
DELETE FROM job_statistics WHERE step = ?1 AND start = ?2 AND queue = ?3 AND name = ?4 AND source = ?5;
