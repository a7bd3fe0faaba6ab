-- Add or replace a schedule; what it has done stays.
-- Inputs: ?1 name, ?2 spec, ?3 owner, ?4 paused, ?5 last_tick, ?6 last_job (for a new one)
-- Result: none
-- Locks: the file, for writing, from the BEGIN IMMEDIATE before it
-- Atomic: one statement of a call that is applied whole or not at all
INSERT INTO schedule (name, spec, owner, paused, last_tick, last_job) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, owner = excluded.owner
