-- Note how far a job has come.
-- Inputs: ?1 seq, ?2 fraction, ?3 message
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO progress (seq, fraction, message) VALUES (?1, ?2, ?3)
ON CONFLICT (seq) DO UPDATE SET fraction = excluded.fraction, message = excluded.message
