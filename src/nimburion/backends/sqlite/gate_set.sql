-- Set the limit of a job name; a new one counts what is processing now.
-- Inputs: ?1 name, ?2 limit
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO gate (name, bound, held) VALUES (
    ?1, ?2, (SELECT count(*) FROM lease WHERE lane IN (SELECT id FROM lane WHERE name = ?1))
)
ON CONFLICT (name) DO UPDATE SET bound = excluded.bound
