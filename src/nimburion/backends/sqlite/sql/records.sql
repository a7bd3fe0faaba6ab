-- Records: add, replace, delete and read them.
--
-- The writer thread runs the statements that write between its BEGIN IMMEDIATE and COMMIT. So a version that `get_record`
-- reads is still that of the record when `write_record` replaces it. Times are in microseconds.

-- name: get_record
-- Read a record.
-- Inputs: ?1 kind, ?2 id
-- Result: position, id, version, created_at, due, changed, held, body, or no row
SELECT position, id, version, created_at, due, changed, held, body FROM record WHERE kind = ?1 AND id = ?2;

-- name: list_records
-- List the records of a kind, newest first.
-- Inputs: ?1 kind, ?2 the position before which to list, ?3 the maximum number of records
-- Result: the columns of `get_record`
SELECT position, id, version, created_at, due, changed, held, body FROM record
WHERE kind = ?1 AND position < ?2 ORDER BY position DESC LIMIT ?3;

-- name: list_due_records
-- List the records of a kind that have a due time, earliest first.
-- Inputs: ?1 kind, ?2 the maximum number of records
-- Result: the columns of `get_record`
SELECT position, id, version, created_at, due, changed, held, body FROM record
WHERE kind = ?1 AND due IS NOT NULL ORDER BY due, position LIMIT ?2;

-- name: add_record
-- Add a record. Its position is one above the newest of its kind, its version begins with the time.
-- Inputs: ?1 kind, ?2 id, ?3 now, ?4 due, ?5 body
INSERT INTO record (kind, position, id, version, created_at, due, body)
SELECT ?1, coalesce(max(position), 0) + 1, ?2, ?3, ?3, ?4, ?5 FROM record WHERE kind = ?1;

-- name: write_record
-- Replace what a record holds, and increment its version.
-- Inputs: ?1 kind, ?2 id, ?3 due, ?4 body, ?5 jobs that were changed with it, ?6 jobs that could not be changed
UPDATE record SET version = version + 1, due = ?3, body = ?4, changed = changed + ?5, held = held + ?6
WHERE kind = ?1 AND id = ?2;

-- name: find_due_surplus
-- Find the oldest record with a due time that is not among the newest ones, when a new one is added.
-- Inputs: ?1 kind, ?2 the number of records to keep
-- Result: the columns of `get_record`, or no row
SELECT position, id, version, created_at, due, changed, held, body FROM record
WHERE kind = ?1 AND due IS NOT NULL AND position <= (SELECT max(position) FROM record WHERE kind = ?1) + 1 - ?2
ORDER BY position LIMIT 1;

-- name: delete_surplus_records
-- Delete the oldest records of a kind beyond a number.
-- Inputs: ?1 kind, ?2 the number to keep
DELETE FROM record WHERE kind = ?1 AND position <= (SELECT max(position) FROM record WHERE kind = ?1) - ?2;

-- name: delete_record
-- Delete a record.
-- Inputs: ?1 kind, ?2 id
-- Result: the number of rows
DELETE FROM record WHERE kind = ?1 AND id = ?2;
