-- A new lane.
-- Inputs: ?1 queue, ?2 name
-- Result: the row id
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO lane (queue, name) VALUES (?1, ?2)
