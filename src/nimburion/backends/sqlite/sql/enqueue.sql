-- Enqueue: find or add lanes, add jobs, take unique keys.
--
-- The writer thread runs these between its BEGIN IMMEDIATE and COMMIT: the transaction holds the write lock of the
-- file, and each call has a savepoint of its own. In a caller's transaction `take_write_lock` takes that lock first.
-- Fast path: `insert_jobs` for many jobs at a time, then one `insert_new_ready`. Where an id or a unique key is known, the call
-- is rolled back to its savepoint, and each job is decided by `find_known_ids` and `find_key_holder` before anything is stored.

-- name: get_latest_lane
-- The number of the newest lane.
-- Result: id; 0 when there is no lane
SELECT coalesce(max(id), 0) FROM lane;

-- name: list_lanes
-- Every lane.
-- Result: id, queue, name
SELECT id, queue, name FROM lane;

-- name: find_lane
-- The number of a lane.
-- Inputs: ?1 queue, ?2 name
-- Result: id, or no row
SELECT id FROM lane WHERE queue = ?1 AND name = ?2;

-- name: insert_lane
-- A new lane.
-- Inputs: ?1 queue, ?2 name
-- Result: the row id
INSERT INTO lane (queue, name) VALUES (?1, ?2);

-- name: get_last_seq
-- The latest place in the enqueue order.
-- Result: seq, 0 when there is no job
SELECT coalesce(max(seq), 0) FROM job;

-- name: insert_jobs
-- New jobs; the list of values is repeated for as many as there are.
-- Inputs: id, lane, priority, due, created_at, options, digest, payload, for each
-- Result: none; fails when an id is kept already
INSERT INTO job (id, lane, priority, due, created_at, options, digest, payload)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_new_ready
-- Put new jobs that are due into the line.
-- Inputs: ?1 the last seq before them, ?2 now
INSERT INTO ready (lane, rank, due, seq, has_failed)
SELECT lane, -priority, due, seq, 0 FROM job WHERE seq > ?1 AND due <= ?2;

-- name: insert_new_scheduled
-- Put new jobs that are not due aside until they are.
-- Inputs: ?1 the last seq before them, ?2 now
INSERT INTO scheduled (due, seq, lane, rank, has_failed)
SELECT due, seq, lane, -priority, 0 FROM job WHERE seq > ?1 AND due > ?2;

-- name: find_known_ids
-- Which of these ids are kept.
-- Inputs: ?1 JSON array of ids
-- Result: id, digest
SELECT id, digest FROM job WHERE id IN (SELECT value FROM json_each(?1));

-- name: find_key_holder
-- Who holds a unique key now.
-- Inputs: ?1 job name, ?2 key, ?3 now
-- Result: id, seq, or no row
SELECT id, seq FROM unique_key
WHERE name = ?1 AND key = ?2 AND (valid_until IS NULL OR valid_until > ?3);

-- name: take_unique_key
-- Take a unique key for the job of this id.
-- Inputs: ?1 job name, ?2 key, ?3 job id, ?4 until when, NULL: until it is finished
INSERT INTO unique_key (name, key, seq, id, valid_until)
SELECT ?1, ?2, seq, id, ?4 FROM job WHERE id = ?3
ON CONFLICT (name, key) DO UPDATE
SET seq = excluded.seq, id = excluded.id, valid_until = excluded.valid_until;

-- name: get_main_file
-- The file that a caller's connection has open as its main database.
-- Result: its absolute path; empty for a database in memory
-- Atomic: one statement; the answer never changes while the connection is open
SELECT file FROM pragma_database_list WHERE name = 'main';

-- name: take_write_lock
-- Take the write lock inside a caller's transaction, before anything is read: where another holds it,
-- SQLite waits for it only then. Changes nothing.
-- Locks: the file, for writing, until the caller's transaction ends
-- Atomic: one statement of the caller's transaction
DELETE FROM meta WHERE 0;
