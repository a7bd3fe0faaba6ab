-- Note that a tick was decided.
-- Inputs: ?1 name, ?2 tick, ?3 job id, NULL: the last one stays
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
UPDATE schedule SET last_tick = ?2, last_job = coalesce(?3, last_job) WHERE name = ?1
