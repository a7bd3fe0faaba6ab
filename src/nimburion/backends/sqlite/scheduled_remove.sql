-- Take a job from those set aside.
-- Inputs: ?1 seq
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
DELETE FROM scheduled WHERE (due, seq) = (SELECT due, seq FROM job WHERE seq = ?1)
