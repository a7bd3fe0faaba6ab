-- Add a schedule, or replace what it says; what happened to a kept one stays.
-- Inputs: name, spec, owner; of a new one: whether it is paused, last tick, last job
-- Result: none
-- Locks: its row
-- Atomic: one statement
CREATE OR REPLACE FUNCTION nb.put_schedule_1(
    p_name text, p_spec bytea, p_owner text, p_paused bool, p_last_tick float8, p_last_job bytea
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO nb.schedule (name, spec, owner, paused, last_tick, last_job)
    VALUES (p_name, p_spec, p_owner, p_paused, p_last_tick, p_last_job)
    ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, owner = excluded.owner;
END $$;
