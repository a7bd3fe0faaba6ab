-- Remember an exchange, to answer its repetition.
-- Inputs: ?1 session n, ?2 number, ?3 results
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE session SET number = ?2, results = ?3 WHERE n = ?1
