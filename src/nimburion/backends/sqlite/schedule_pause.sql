-- Stop or resume a schedule.
-- Inputs: ?1 name, ?2 paused
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE schedule SET paused = ?2 WHERE name = ?1
