-- Take a job out of the line.
-- Inputs: ?1 seq
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM ready
WHERE (lane, rank, due, seq) = (SELECT lane, -priority, due, seq FROM job WHERE seq = ?1)
