-- Take the limit of a job name away.
-- Inputs: ?1 name
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM gate WHERE name = ?1
