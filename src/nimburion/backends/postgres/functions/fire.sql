-- Decide one tick of a schedule: move its last tick by compare and swap, and store its job.
-- Inputs: the time or NULL; the name; the last tick that is expected (NULL: none), the tick; the overlap
--   rule; then the job, as `enqueue_1` takes a single one
-- Result: fired, skipped, moved, paused or missing; and the id of the job that stands for the tick
-- Locks: the schedule; then as `cancel_1` and `enqueue_1`
-- Atomic: one transaction
CREATE OR REPLACE FUNCTION nb.fire_1(
    p_now int8, p_name text, p_expected float8, p_tick float8, p_overlap text, p_queues text[],
    p_names text[], p_ranks int2[], p_lanes int4[], p_ids bytea[], p_digests bytea[],
    p_payloads bytea[], p_options text[], p_ats int8[], p_afters int8[], p_keys text[],
    p_spans int8[], p_lenient bool[], p_since int8, OUT outcome text, OUT job_id bytea
) LANGUAGE plpgsql AS $$
DECLARE
    kept record;
    stored record;
BEGIN
    SELECT * INTO kept FROM nb.schedule WHERE name = p_name FOR UPDATE;
    outcome := CASE WHEN kept.name IS NULL THEN 'missing' WHEN kept.paused THEN 'paused'
        WHEN kept.last_tick IS DISTINCT FROM p_expected THEN 'moved' END;
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    outcome := 'skipped';
    IF nb.makes_way_1(p_now, kept.last_job, p_overlap) THEN
        SELECT * INTO stored FROM nb.enqueue_1(p_now, p_queues, p_names, p_ranks, p_lanes, p_ids,
            p_digests, p_payloads, p_options, p_ats, p_afters, p_keys, p_spans, p_lenient, p_since);
        IF coalesce(stored.letters, 'c') IN ('c', 'e') THEN
            outcome := 'fired';
            job_id := coalesce(stored.holders[1], p_ids[1]);
        END IF;
    END IF;
    UPDATE nb.schedule SET last_tick = p_tick, last_job = coalesce(job_id, last_job) WHERE name = p_name;
END $$;
