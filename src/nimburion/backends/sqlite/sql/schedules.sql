-- Schedules: store them, and decide their ticks.
--
-- The writer thread runs the statements that write between its BEGIN IMMEDIATE and COMMIT. A tick is decided in one
-- transaction: the result of `get_schedule` is compared with the last tick that the caller expects, then `save_tick`
-- writes the new one.

-- name: put_schedule
-- Add or replace a schedule. An existing schedule keeps its state (paused, last tick, last job).
-- Inputs: ?1 name, ?2 spec, ?3 owner; for a new schedule: ?4 paused, ?5 last_tick, ?6 last_job
INSERT INTO schedule (name, spec, owner, paused, last_tick, last_job) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, owner = excluded.owner;

-- name: list_schedules
-- List all schedules by name.
-- Result: name, spec, owner, paused, last_tick, last_job
SELECT name, spec, owner, paused, last_tick, last_job FROM schedule ORDER BY name;

-- name: pause_schedule
-- Pause or resume a schedule.
-- Inputs: ?1 name, ?2 paused
-- Result: the number of rows
UPDATE schedule SET paused = ?2 WHERE name = ?1;

-- name: delete_schedule
-- Delete a schedule.
-- Inputs: ?1 name
-- Result: the number of rows
DELETE FROM schedule WHERE name = ?1;

-- name: get_schedule
-- Read the state of a schedule.
-- Inputs: ?1 name
-- Result: paused, last_tick, last_job, or no row
SELECT paused, last_tick, last_job FROM schedule WHERE name = ?1;

-- name: get_job_state
-- Return the state of a job.
-- Inputs: ?1 id, ?2 now
-- Result: state, started_at, or no row
SELECT coalesce(nullif(j.status, 'waiting'), iif(j.due > ?2, 'scheduled', 'pending')), j.started_at
FROM job_record AS j WHERE j.id = ?1;

-- name: save_tick
-- Store the last tick of a schedule.
-- Inputs: ?1 name, ?2 tick, ?3 job id; NULL: the last job is unchanged
UPDATE schedule SET last_tick = ?2, last_job = coalesce(?3, last_job) WHERE name = ?1;
