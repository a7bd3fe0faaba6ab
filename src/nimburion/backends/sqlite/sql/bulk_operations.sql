-- Bulk operations: start, claim, advance, cancel and read them.
--
-- The writer thread runs each call in one transaction, which holds the write lock of the file. So a step changes its jobs
-- and records its progress together. Times are in microseconds.

-- name: add_bulk_operation
-- Add a bulk operation.
-- Inputs: ?1 id, ?2 what is started (JSON), ?3 now
INSERT INTO bulk_operation (id, body, started_at, due) VALUES (?1, ?2, ?3, ?3);

-- name: find_surplus_bulk_operation
-- Find the oldest bulk operation, if the number to keep is reached.
-- Inputs: ?1 the number to keep
-- Result: number, id, state, or no row
SELECT number, id, state FROM bulk_operation
WHERE number <= (SELECT max(number) FROM bulk_operation) - ?1 + 1 ORDER BY number LIMIT 1;

-- name: delete_bulk_operation
-- Delete a bulk operation.
-- Inputs: ?1 number
DELETE FROM bulk_operation WHERE number = ?1;

-- name: find_next_bulk_operation
-- Find the running bulk operation whose next step can be claimed first.
-- Result: id, when its step can be claimed, or no row
SELECT id, max(due, coalesce(leased_until, due)) AS claimable FROM bulk_operation
WHERE state = 'running' ORDER BY claimable, number LIMIT 1;

-- name: claim_bulk_operation
-- Claim the next step of a bulk operation.
-- Inputs: ?1 id, ?2 until when
UPDATE bulk_operation SET fence = fence + 1, leased_until = ?2 WHERE id = ?1;

-- name: advance_bulk_operation
-- Record the progress of a bulk operation, and end its claim.
-- Inputs: ?1 id, ?2 jobs changed, ?3 jobs skipped, ?4 jobs that could not be changed, ?5 cursor, ?6 whether it is
--   exhausted, ?7 when the next step is due, ?8 state, ?9 when it ended (NULL: it runs), ?10 the error; '': as before
UPDATE bulk_operation
SET done = done + ?2, skipped = skipped + ?3, failed = failed + ?4, cursor = ?5, exhausted = ?6, due = ?7, state = ?8,
    ended_at = ?9, error = iif(?10 = '', error, ?10), leased_until = NULL
WHERE id = ?1;

-- name: cancel_bulk_operation
-- End a running bulk operation as cancelled, and end its claim.
-- Inputs: ?1 id, ?2 now
UPDATE bulk_operation SET state = 'cancelled', ended_at = ?2, fence = fence + 1, leased_until = NULL
WHERE id = ?1 AND state = 'running';

-- name: get_bulk_operation
-- Read a bulk operation.
-- Inputs: ?1 id
-- Result: number, body, state, started_at, ended_at, done, skipped, failed, error, cursor, exhausted, due, fence,
--   leased_until, or no row
SELECT number, body, state, started_at, ended_at, done, skipped, failed, error, cursor, exhausted, due, fence, leased_until
FROM bulk_operation WHERE id = ?1;

-- name: list_bulk_operations
-- List bulk operations, newest first.
-- Inputs: ?1 the number before which to list, ?2 the maximum number of them
-- Result: the columns of `get_bulk_operation`
SELECT number, body, state, started_at, ended_at, done, skipped, failed, error, cursor, exhausted, due, fence, leased_until
FROM bulk_operation WHERE number < ?1 ORDER BY number DESC LIMIT ?2;
