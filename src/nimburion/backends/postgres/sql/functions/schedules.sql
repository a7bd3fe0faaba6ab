-- Schedules: store them, and decide their ticks. A tick is a compare-and-swap of the last tick under the row lock of the
-- schedule.

-- name: put_schedule
-- Add or replace a schedule. An existing schedule keeps its state (paused, last tick, last job).
-- Inputs: name, spec, owner; for a new schedule: paused, last tick, last job
CREATE OR REPLACE FUNCTION {schema}.put_schedule_1(
    p_name text, p_spec bytea, p_owner text, p_paused bool, p_last_tick float8, p_last_job bytea
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.schedule (name, spec, owner, paused, last_tick, last_job)
    VALUES (p_name, p_spec, p_owner, p_paused, p_last_tick, p_last_job)
    ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, owner = excluded.owner;
END $$;

-- name: fire_schedule
-- Decide one tick of a schedule: compare and swap its last tick, and store its job.
-- Inputs: the time or NULL; the name; the last tick that the caller expects (NULL: none); the tick; the overlap rule;
--   then one job with the arguments of `enqueue_1`
-- Result: fired, skipped, moved, paused or missing; the id of the job of this tick; what the cancel of the previous job
--   notifies, as in `cancel_job_1`
-- Locks: the schedule; then as `cancel_job_1` and `enqueue_1`
CREATE OR REPLACE FUNCTION {schema}.fire_schedule_1(
    p_now int8, p_name text, p_expected float8, p_tick float8, p_overlap text, p_queues text[],
    p_names text[], p_ranks int2[], p_lanes int4[], p_ids bytea[], p_digests bytea[],
    p_payloads bytea[], p_options text[], p_ats int8[], p_afters int8[], p_keys text[],
    p_spans int8[], p_states text[], p_on_duplicate text[], p_max_waits int8[], p_since int8, OUT outcome text, OUT job_id bytea, OUT cancel_to_notify text
) LANGUAGE plpgsql AS $$
DECLARE
    kept record;
    previous record;
    stored record;
BEGIN
    SELECT * INTO kept FROM {schema}.schedule WHERE name = p_name FOR UPDATE;
    outcome := CASE WHEN kept.name IS NULL THEN 'missing' WHEN kept.paused THEN 'paused'
        WHEN kept.last_tick IS DISTINCT FROM p_expected THEN 'moved' END;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    outcome := 'skipped';
    SELECT * INTO previous FROM {schema}.allows_next_job_1(p_now, kept.last_job, p_overlap);
    cancel_to_notify := previous.to_notify;
    IF previous.allowed THEN
        SELECT * INTO stored FROM {schema}.enqueue_1(p_now, p_queues, p_names, p_ranks, p_lanes, p_ids,
            p_digests, p_payloads, p_options, p_ats, p_afters, p_keys, p_spans, p_states, p_on_duplicate, p_max_waits, p_since);
        IF coalesce(stored.codes, 'c') IN ('c', 'e', 'p') THEN
            outcome := 'fired';
            job_id := coalesce(stored.holders[1], p_ids[1]);
        END IF;
    END IF;
    UPDATE {schema}.schedule SET last_tick = p_tick, last_job = coalesce(job_id, last_job) WHERE name = p_name;
END $$;

-- name: allows_next_job
-- Decide whether the previous job of a schedule allows the next one.
-- Inputs: the time or NULL; the id of the previous job (NULL: none); the overlap rule
-- Result: whether the next job is allowed; what the cancel of the previous job notifies, as in `cancel_job_1`
-- Locks: as `cancel_job_1` if the rule is `cancel_previous`
CREATE OR REPLACE FUNCTION {schema}.allows_next_job_1(p_now int8, p_id bytea, p_overlap text, OUT allowed bool, OUT to_notify text)
LANGUAGE plpgsql AS $$
DECLARE
    previous record;
BEGIN
    SELECT r.status, r.failures INTO previous FROM {schema}.job_record r WHERE r.id = p_id AND r.status IN ('waiting', 'processing');
    allowed := NOT FOUND OR p_overlap = 'allow' OR p_overlap = 'cancel_previous'
        OR p_overlap = 'queue_one' AND (previous.status = 'processing' OR previous.failures > 0);
    IF FOUND AND p_overlap = 'cancel_previous' THEN
        SELECT c.to_notify INTO to_notify FROM {schema}.cancel_job_1(p_now, p_id) c;
    END IF;
END $$;
