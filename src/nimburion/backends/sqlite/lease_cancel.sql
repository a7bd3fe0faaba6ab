-- Ask the worker of a job to cancel it.
-- Inputs: ?1 seq
-- Result: the number of rows; 0: nobody holds it
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE lease SET cancel = 1 WHERE session IN (SELECT n FROM session) AND seq = ?1
