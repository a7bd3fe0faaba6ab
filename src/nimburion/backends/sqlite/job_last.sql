-- The latest place in the enqueue order.
-- Inputs: none
-- Result: seq, 0 when there is no job
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
SELECT coalesce(max(seq), 0) FROM job
