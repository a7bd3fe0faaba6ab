-- Enqueue: find or create lanes, insert jobs, take unique keys.
--
-- The writer thread runs these statements between its BEGIN IMMEDIATE and COMMIT. The transaction holds the write lock
-- of the file, and each call that shares it has its own savepoint. In a caller's transaction, `take_write_lock` takes that
-- lock first. The fast path is `insert_jobs` for many jobs at a time, followed by one `insert_new_ready`. If an id exists
-- already, what the call wrote is rolled back. Then, and for jobs with unique keys, `read_known_jobs`
-- reads what decides about each job before anything is stored.

-- name: get_numbering
-- Return the number of the newest lane, and how often numbers of lanes and tenants were freed or used again.
-- Result: id (0 if there is no lane); the count
SELECT coalesce((SELECT max(id) FROM lane), 0), coalesce((SELECT value FROM meta WHERE name = 'numbering'), 0);

-- name: change_numbering
-- Count that a number of a lane or a tenant was freed or is used again.
INSERT INTO meta (name, value) VALUES ('numbering', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1;

-- name: list_lanes
-- List all lanes.
-- Result: id, queue, name
SELECT id, queue, name FROM lane;

-- name: find_lane
-- Find a lane.
-- Inputs: ?1 queue, ?2 name
-- Result: id, or no row
SELECT id FROM lane WHERE queue = ?1 AND name = ?2;

-- name: find_tenant
-- Find the number of a tenant.
-- Inputs: ?1 tenant
-- Result: number, or no row
SELECT id FROM tenant WHERE name = ?1;

-- name: insert_tenant
-- Add a tenant.
-- Inputs: ?1 tenant
INSERT INTO tenant (name) VALUES (?1);

-- name: find_free_lane
-- Find the number of a new lane: the one after the newest, or after the last number the lowest that is free.
-- Inputs: ?1 the last number
-- Result: the number of the newest lane; the free number, NULL: there is none
SELECT m.id, CASE WHEN m.id < ?1 THEN m.id + 1 WHEN NOT EXISTS (SELECT 1 FROM lane WHERE id = 1) THEN 1 ELSE (
    SELECT l.id + 1 FROM lane AS l WHERE l.id < ?1 AND NOT EXISTS (SELECT 1 FROM lane AS n WHERE n.id = l.id + 1)
    ORDER BY l.id LIMIT 1
) END
FROM (SELECT coalesce(max(id), 0) AS id FROM lane) AS m;

-- name: insert_lane
-- Create a lane.
-- Inputs: ?1 number, ?2 queue, ?3 name
INSERT INTO lane (id, queue, name) VALUES (?1, ?2, ?3);

-- name: insert_jobs
-- Insert new jobs. The caller repeats the list of values for each job, without the second one. This test costs an enqueue
-- less than a statement of its own.
-- Inputs: id, what `get_numbering` returned when the numbers of the lanes were read, lane, priority, due, created_at, options,
--   digest, payload
-- Result: the seq of the last new job, as the row id; fails if a job has one of the ids already, or if numbers of lanes were
--   freed or used again since they were read: then the lane is NULL
INSERT INTO job (id, lane, priority, due, created_at, options, digest, payload)
VALUES (?, CASE WHEN (SELECT coalesce(max(value), 0) FROM meta WHERE name = 'numbering') = ? THEN ? END, ?, ?, ?, ?, ?, ?);

-- name: insert_new_ready
-- Add the new jobs that are due to `ready`.
-- Inputs: ?1 the last seq before the new jobs, ?2 now
INSERT INTO ready (lane, rank, due, seq, has_failed)
SELECT lane, -priority, due, seq, 0 FROM job WHERE seq > ?1 AND due <= ?2;

-- name: insert_new_scheduled
-- Add the new jobs that are not due yet to `scheduled`.
-- Inputs: ?1 the last seq before the new jobs, ?2 now
INSERT INTO scheduled (due, seq, lane, rank, has_failed)
SELECT due, seq, lane, -priority, 0 FROM job WHERE seq > ?1 AND due > ?2;

-- name: find_known_ids
-- Find the jobs that have one of these ids.
-- Inputs: ?1 JSON array of ids
-- Result: id, digest
SELECT id, digest FROM job WHERE id IN (SELECT value FROM json_each(?1));

-- name: find_unique_key
-- Find the job that has taken a unique key.
-- Inputs: ?1 job name, ?2 key
-- Result: id; the end of the validity (NULL: no fixed time); JSON array of the states in which the job holds the key (NULL:
--   each); or no row
SELECT id, valid_until, states FROM unique_key WHERE name = ?1 AND key = ?2;

-- name: take_unique_key
-- Assign a unique key to the job with this id.
-- Inputs: ?1 job name, ?2 key, ?3 job id, ?4 the end of the validity; NULL: until the job is finished, ?5 JSON array of the
--   states in which the job holds the key; NULL: in each
INSERT INTO unique_key (name, key, seq, id, valid_until, states)
SELECT ?1, ?2, seq, id, ?4, ?5 FROM job WHERE id = ?3
ON CONFLICT (name, key) DO UPDATE
SET seq = excluded.seq, id = excluded.id, valid_until = excluded.valid_until, states = excluded.states;

-- name: find_waiting_job
-- Read what is needed to replace a waiting job.
-- Inputs: ?1 job id
-- Result: seq, created_at, due, failures; no row: there is no such job, or it does not wait
SELECT j.seq, j.created_at, j.due, j.failures FROM job AS j
WHERE j.id = ?1 AND j.state = 0 AND (
    EXISTS (
        SELECT 1 FROM ready AS r
        WHERE r.lane = j.lane AND r.rank = -j.priority AND r.due = j.due AND r.seq = j.seq
    ) OR EXISTS (SELECT 1 FROM scheduled AS d WHERE d.due = j.due AND d.seq = j.seq)
    OR EXISTS (SELECT 1 FROM parked AS p WHERE p.seq = j.seq)
);

-- name: replace_job
-- Replace what a waiting job runs, and when. The caller has deleted it from `ready` and `scheduled`.
-- Inputs: ?1 seq, ?2 lane, ?3 priority, ?4 due, ?5 options (JSON), ?6 payload
UPDATE job SET lane = ?2, priority = ?3, due = ?4, options = ?5, payload = ?6 WHERE seq = ?1;

-- name: find_replacement
-- Find the enqueue of a job that replaced another job.
-- Inputs: ?1 job id, ?2 now
-- Result: the id of the job that was replaced, the digest of the body that was enqueued; or no row
SELECT job_id, digest FROM replacement WHERE id = ?1 AND valid_until > ?2;

-- name: put_replacement
-- Store that the enqueue of a job replaced another job.
-- Inputs: ?1 job id, ?2 the id of the job that was replaced, ?3 digest, ?4 the end of the validity
INSERT INTO replacement (id, job_id, digest, valid_until) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (id) DO UPDATE
SET job_id = excluded.job_id, digest = excluded.digest, valid_until = excluded.valid_until;

-- name: list_open_files
-- List the databases that a caller's connection has open. This PRAGMA reads no database. A SELECT from
-- `pragma_database_list` would start the read of a transaction, which then could not write once others have written.
-- Result: number, name and absolute path of each, the main database first; the path is empty for a database in memory
-- Atomic: one statement. The path of the main database never changes while the connection is open.
PRAGMA database_list;

-- name: take_write_lock
-- Take the write lock in a caller's transaction before anything is read. If another connection holds the lock,
-- SQLite waits for it only at this point. Changes nothing.
-- Locks: the write lock of the file, until the caller's transaction ends
-- Atomic: one statement of the caller's transaction
DELETE FROM meta WHERE 0;
