-- Rescue: end expired sessions, and rescue their jobs. backends/planning/rescue.py decides the same in Python.
--
-- Locks: the advisory lock of each session, in the order of their numbers; all limits; the durable runs to which a cancel was requested;
-- unique keys; then leases.
-- The UPDATE that ends a session also tests whether it has expired, so a heartbeat comes before or after it.

-- name: rescue_jobs
-- End expired sessions, and release or fail their jobs. Continue the changes of flows that were left, and resume durable runs.
-- Inputs: the time or NULL; the time by which sessions expire, or NULL; the maximum number of jobs; the number of losses
--   at which a job fails; the history entry of a loss (JSON without its last brace), as the texts before and after the
--   number of the attempt. The function adds when the attempt started, the session and its host.
-- Result: one row for each job: its id, and a code: r waits again, f failed, c cancelled. Then one row without an id: the
--   code m says that more jobs or changes are left; `to_notify` are the queues to notify.
-- Locks: the advisory locks of the sessions, in the order in which they were opened; all limits; durable runs; unique keys; then
--   rows of jobs, where rows that another transaction has locked are skipped; then as `resolve_flows_1`
-- Atomic: the UPDATE that ends a session also tests whether it has expired, so a heartbeat comes before or after it
CREATE OR REPLACE FUNCTION {schema}.rescue_jobs_1(
    p_now int8, p_monotonic int8, p_limit int4, p_max_lost int4, p_before text, p_after text
) RETURNS TABLE (id bytea, code text, to_notify text[])
LANGUAGE plpgsql
SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    now int8 := {schema}.get_write_time_1(p_now);
    candidate record;
    held {schema}.lease;
    attempts {schema}.attempt_state;
    loss bytea;  -- NULL: no loss is counted
    ended int4[];
    key_numbers int8[];
    counted int4 := 0;
    lanes int4[];
    resumed int4[];
    is_left bool := false;
BEGIN
    -- Sessions of before the clock was set back: they expire a TTL from now, unless they send a heartbeat.
    FOR candidate IN
        SELECT s.number, s.id FROM {schema}.session s
        WHERE s.ended_at IS NULL AND s.expires_at > coalesce(p_monotonic, now) + s.ttl + 1000000 ORDER BY s.number
    LOOP
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(hashtextextended(candidate.id, 7041));
        UPDATE {schema}.session s SET expires_at = LEAST(s.expires_at, coalesce(p_monotonic, now) + s.ttl)
        WHERE s.number = candidate.number;
    END LOOP;
    FOR candidate IN
        SELECT s.number, s.id FROM {schema}.session s
        WHERE s.ended_at IS NULL AND NOT s.is_drained AND s.expires_at <= coalesce(p_monotonic, now) ORDER BY s.number
    LOOP
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(hashtextextended(candidate.id, 7041));
        UPDATE {schema}.session s SET ended_at = now, held_several = EXISTS (
            SELECT FROM {schema}.lease l WHERE l.session = s.number OFFSET 1)
        WHERE s.number = candidate.number AND s.ended_at IS NULL AND s.expires_at <= coalesce(p_monotonic, now);
        DELETE FROM {schema}.idle_worker w WHERE w.session = candidate.id;
    END LOOP;
    IF NOT EXISTS (SELECT FROM {schema}.session s WHERE s.ended_at IS NOT NULL AND NOT s.is_drained) THEN
        resumed := {schema}.resume_times_1(now);
        IF EXISTS (SELECT FROM {schema}.flow_change) THEN
            SELECT r.to_notify, r.is_cut INTO lanes, is_left FROM {schema}.resolve_flows_1(now) r;
        END IF;
        lanes := resumed || lanes;
        code := CASE WHEN is_left THEN 'm' ELSE '' END;  -- most calls end here, without a lock of the limits
        to_notify := ARRAY(SELECT a.queue FROM unnest(lanes) l (lane) JOIN {schema}.lane a ON a.id = l.lane);
        RETURN NEXT;
        RETURN;
    END IF;
    PERFORM {schema}.lock_all_limits_1();
    PERFORM {schema}.lock_cancelled_runs_1(ARRAY(
        SELECT l.seq FROM {schema}.session s JOIN {schema}.lease l ON l.session = s.number
        WHERE s.ended_at IS NOT NULL AND NOT s.is_drained AND l.cancel_requested
    ));
    FOR candidate IN
        -- A suspect (2: SUSPECT_AFTER) that was held with other jobs had not started.
        SELECT * FROM (
            SELECT l.session, l.seq, l.lane, s.id AS session_id, s.host,
                s.left_at IS NULL AND NOT (l.lost >= 2 AND s.held_several) AS is_loss
            FROM {schema}.session s JOIN {schema}.lease l ON l.session = s.number
            WHERE s.ended_at IS NOT NULL AND NOT s.is_drained
            ORDER BY l.session, l.seq LIMIT p_limit FOR UPDATE OF l SKIP LOCKED
        ) l ORDER BY l.lane, l.seq
    LOOP
        counted := counted + 1;
        DELETE FROM {schema}.lease l WHERE l.session = candidate.session AND l.seq = candidate.seq RETURNING * INTO held;
        ended := ended || held.lane;
        key_numbers := key_numbers || held.key_numbers;
        loss := CASE WHEN candidate.is_loss THEN convert_to(
            p_before || (held.failures + held.lost + 1) || p_after || ',"started_at":' || held.leased_at / 1000000
            || '.' || lpad(CAST(held.leased_at % 1000000 AS text), 6, '0') || ',"session":' || to_json(candidate.session_id)
            || ',"host":' || to_json(candidate.host) || '}', 'UTF8') END;
        attempts := {schema}.end_lease_1(now, held, loss);
        SELECT j.id INTO id FROM {schema}.job j WHERE j.seq = candidate.seq;
        IF loss IS NOT NULL AND attempts.lost >= p_max_lost
            AND NOT (held.cancel_requested AND NOT {schema}.needs_cleanup_1(held.seq))
        THEN
            PERFORM {schema}.fail_job_1(now, attempts, held.session, 'lost', loss);
            code := 'f';
        ELSE
            SELECT CASE WHEN w.waits THEN 'r' ELSE 'c' END INTO code
            FROM {schema}.requeue_1(now, held, attempts) w;
        END IF;
        RETURN NEXT;
    END LOOP;
    UPDATE {schema}.session s SET is_drained = true WHERE s.ended_at IS NOT NULL AND NOT s.is_drained
        AND NOT EXISTS (SELECT FROM {schema}.lease l WHERE l.session = s.number);
    id := NULL;
    to_notify := ARRAY(SELECT DISTINCT a.queue FROM {schema}.lane a WHERE a.id = ANY (ended))
        || {schema}.release_keys_1(now, key_numbers);
    resumed := {schema}.resume_times_1(now);
    IF EXISTS (SELECT FROM {schema}.flow_change) THEN
        SELECT r.to_notify, r.is_cut INTO lanes, is_left FROM {schema}.resolve_flows_1(now) r;
    END IF;
    to_notify := to_notify || ARRAY(SELECT a.queue FROM unnest(resumed || lanes) l (lane) JOIN {schema}.lane a ON a.id = l.lane);
    code := CASE WHEN is_left OR counted = p_limit AND EXISTS (
        SELECT FROM {schema}.session s JOIN {schema}.lease l ON l.session = s.number WHERE s.ended_at IS NOT NULL
            AND NOT s.is_drained
    ) THEN 'm' ELSE '' END;
    RETURN NEXT;
END $$;
