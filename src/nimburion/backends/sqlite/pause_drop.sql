-- Resume a queue.
-- Inputs: ?1 queue
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM paused WHERE queue = ?1
