-- Take a unique key for the job of this id.
-- Inputs: ?1 job name, ?2 key, ?3 job id, ?4 until when, NULL: until it is finished
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO unique_key (name, key, seq, id, until)
SELECT ?1, ?2, seq, id, ?4 FROM job WHERE id = ?3
ON CONFLICT (name, key) DO UPDATE
SET seq = excluded.seq, id = excluded.id, until = excluded.until
