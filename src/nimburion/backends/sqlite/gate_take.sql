-- Take places under the limit of a job name.
-- Inputs: ?1 name, ?2 how many
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE gate SET held = held + ?2 WHERE name = ?1
