-- Put one job into the line.
-- Inputs: ?1 lane, ?2 rank, ?3 due, ?4 seq, ?5 whether it failed before
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO ready (lane, rank, due, seq, retry) VALUES (?1, ?2, ?3, ?4, ?5)
