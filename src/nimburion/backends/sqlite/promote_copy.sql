-- Put jobs that became due into the line, earliest first.
-- Inputs: ?1 now, ?2 at most so many
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO ready (lane, rank, due, seq, retry)
SELECT lane, rank, due, seq, retry FROM scheduled WHERE due <= ?1 ORDER BY due, seq LIMIT ?2
