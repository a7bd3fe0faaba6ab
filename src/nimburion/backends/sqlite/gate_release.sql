-- Give back one place under the limit of the job name, if it has one.
-- Inputs: ?1 lane
-- Result: the number of rows
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE gate SET held = max(0, held - 1) WHERE name = (SELECT name FROM lane WHERE id = ?1)
