-- Every schedule, by name.
-- Inputs: none
-- Result: name, spec, owner, paused, last_tick, last_job
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT name, spec, owner, paused, last_tick, last_job FROM schedule ORDER BY name
