-- New jobs; the list of values is repeated for as many as there are.
-- Inputs: id, lane, priority, due, created_at, options, digest, payload, for each
-- Result: none; fails when an id is kept already
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO job (id, lane, priority, due, created_at, options, digest, payload)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
