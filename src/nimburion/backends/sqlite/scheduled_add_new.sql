-- Put new jobs that are not due aside until they are.
-- Inputs: ?1 the last seq before them, ?2 now
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO scheduled (due, seq, lane, rank, retry)
SELECT due, seq, lane, -priority, 0 FROM job WHERE seq > ?1 AND due > ?2
