-- Forget a schedule.
-- Inputs: ?1 name
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM schedule WHERE name = ?1
