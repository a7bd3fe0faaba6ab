-- A schedule.
-- Inputs: ?1 name
-- Result: paused, last_tick, last_job, or no row
-- Locks: none; reads a snapshot
-- Atomic: one statement in one snapshot
SELECT paused, last_tick, last_job FROM schedule WHERE name = ?1
