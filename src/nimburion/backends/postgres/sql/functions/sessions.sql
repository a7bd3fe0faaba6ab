-- Sessions: open, heartbeat, close, and the rescue of jobs whose session expired.
--
-- Locks: the advisory lock of each session, in the order of their numbers; all limits by name; unique keys; then leases.
-- The UPDATE that ends a session also tests whether it has expired, so a heartbeat comes before or after it.

-- name: open_session
-- Open a session, and set the concurrency limits and the rate limits of its names. If the session exists, renew it.
-- Inputs: the time or NULL; the time by which sessions expire, or NULL; the id; the ttl in microseconds; the host; the
--   description as JSON; the names, and for each its concurrency limit (NULL: none) and its rate limit (NULL: none); the limits by key, as for `set_keyed_limits_1`; tenants, and for
--   each its weight in hundredths
-- Result: whether the session is alive; false: a session with this id has ended
-- Locks: the advisory lock of the session; then as `declare_limits_1`
CREATE OR REPLACE FUNCTION {schema}.open_session_1(
    p_now int8, p_monotonic int8, p_id text, p_ttl int8, p_host text, p_description text, p_names text[],
    p_limits int4[], p_rates text[], p_intervals int8[], p_bursts int8[], p_costs int8[], p_keyed jsonb,
    p_tenants text[], p_units int4[]
) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    now int8;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := {schema}.get_write_time_1(p_now);
    IF EXISTS (SELECT FROM {schema}.session WHERE id = p_id) THEN
        UPDATE {schema}.session SET expires_at = coalesce(p_monotonic, now) + ttl
        WHERE id = p_id AND left_at IS NULL AND ended_at IS NULL;
        RETURN FOUND;
    END IF;
    INSERT INTO {schema}.session (ttl, expires_at, opened_at, id, host, names, description)
    VALUES (p_ttl, coalesce(p_monotonic, now) + p_ttl, now, p_id, p_host, p_names, p_description);
    PERFORM {schema}.declare_limits_1(now, p_names, p_limits, p_rates, p_intervals, p_bursts, p_costs, p_keyed);
    IF cardinality(p_tenants) > 0 THEN
        PERFORM {schema}.set_tenant_weights_1(p_tenants, p_units);
    END IF;
    RETURN true;
END $$;

-- name: heartbeat
-- Renew a session.
-- Inputs: the time or NULL; the time by which sessions expire, or NULL; the id; the vitals of the worker as JSON (NULL:
--   unchanged)
-- Result: no row if the session is not alive, else one row:
--   seqs, ids, fences, nonces   the leases of jobs to cancel
--   paused                      the paused queues
--   names, maxima, in_use       the concurrency limits of its names
--   command                     the latest command to the worker; NULL: none
-- Locks: the row of the session
-- Atomic: one UPDATE tests that the session is alive and moves its expiry. The commit is asynchronous: if the server
--   crashes and loses it, the next heartbeat renews the session.
CREATE OR REPLACE FUNCTION {schema}.heartbeat_1(
    p_now int8, p_monotonic int8, p_id text, p_vitals text, OUT seqs int8[], OUT ids bytea[], OUT fences int4[],
    OUT nonces bytea[], OUT paused text[], OUT names text[], OUT maxima int4[], OUT in_use int4[], OUT command text
) RETURNS SETOF record
LANGUAGE plpgsql
SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    session record;
    now int8;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE {schema}.session s SET expires_at = {schema}.get_write_time_1(p_monotonic) + s.ttl,
        vitals = coalesce(p_vitals, s.vitals)
    WHERE s.id = p_id AND s.left_at IS NULL AND s.ended_at IS NULL
    RETURNING s.number, s.names, s.command INTO session;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT array_agg(l.seq), array_agg(j.id), array_agg(l.fence), array_agg(l.nonce)
    INTO seqs, ids, fences, nonces
    FROM {schema}.lease l JOIN {schema}.job j ON j.seq = l.seq WHERE l.session = session.number AND l.cancel_requested;
    now := {schema}.get_read_time_1(p_now);
    paused := ARRAY(
        SELECT p.queue FROM {schema}.paused_queue p WHERE p.ends_at IS NULL OR p.ends_at > now ORDER BY p.queue
    );
    command := session.command;
    SELECT array_agg(c.name), array_agg(c.maximum), array_agg(c.in_use) INTO names, maxima, in_use
    FROM {schema}.concurrency_limit c WHERE c.name = ANY (session.names);
    RETURN NEXT;
END $$;

-- name: release_leases
-- Release leases of a session that stays open. No failure and no loss is counted.
-- Inputs: the time or NULL; the id of the session; seqs, fences and nonces of leases; a nonce whose leases are released
--   too (NULL: none)
-- Result: the queues to notify
-- Locks: the advisory lock of the session; all limits by name; unique keys; then rows of jobs
-- Atomic: one transaction; each lease is deleted by its whole token
CREATE OR REPLACE FUNCTION {schema}.release_leases_1(
    p_now int8, p_id text, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_nonce bytea
) RETURNS text[]
LANGUAGE plpgsql
SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    now int8;
    session_number int4;
    held {schema}.lease;
    attempts {schema}.attempt_state;
    ended int4[];
    unparked text[] := '{}';
    taken_at int8[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := {schema}.get_write_time_1(p_now);
    SELECT number INTO session_number FROM {schema}.session WHERE id = p_id AND left_at IS NULL AND ended_at IS NULL;
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    PERFORM {schema}.lock_all_limits_1();
    FOR held IN
        WITH ended AS (
            DELETE FROM {schema}.lease l WHERE l.session = session_number AND (l.nonce = p_nonce OR EXISTS (
                SELECT FROM unnest(p_seqs, p_fences, p_nonces) AS r (seq, fence, nonce)
                WHERE r.fence = l.fence AND r.nonce = l.nonce AND r.seq = l.seq
            )) RETURNING l.*
        )
        SELECT * FROM ended ORDER BY lane
    LOOP
        attempts := {schema}.end_lease_1(now, held, NULL);
        attempts.settled_token := int4send(held.fence) || held.nonce;
        PERFORM {schema}.requeue_1(now, held, attempts);
        ended := ended || held.lane;
        taken_at := taken_at || held.leased_at;
        PERFORM {schema}.refund_keys_1(now, held);
        unparked := unparked || {schema}.release_keys_1(now, held.key_numbers);
    END LOOP;
    PERFORM {schema}.release_limits_1(ended);
    PERFORM {schema}.give_units_back_1(now, ended, taken_at);
    RETURN ARRAY(SELECT DISTINCT queue FROM {schema}.lane WHERE id = ANY (ended)) || unparked;
END $$;

-- name: close_session
-- End a session: release its leases, except those of handlers that still run.
-- Inputs: the time or NULL; the id of the session; seqs, fences and nonces of the leases that still run
-- Result: the queues to notify
-- Locks: the advisory lock of the session; all limits by name; unique keys; then rows of jobs
CREATE OR REPLACE FUNCTION {schema}.close_session_1(
    p_now int8, p_id text, p_seqs int8[], p_fences int4[], p_nonces bytea[]
) RETURNS text[]
LANGUAGE plpgsql
SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    now int8;
    session_number int4;
    held {schema}.lease;
    ended int4[];
    unparked text[] := '{}';
    left_over bool;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := {schema}.get_write_time_1(p_now);
    SELECT number INTO session_number FROM {schema}.session WHERE id = p_id AND ended_at IS NULL;
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    PERFORM {schema}.lock_all_limits_1();
    FOR held IN
        WITH ended AS (
            DELETE FROM {schema}.lease l WHERE l.session = session_number AND NOT EXISTS (
                SELECT FROM unnest(p_seqs, p_fences, p_nonces) AS r (seq, fence, nonce)
                WHERE r.seq = l.seq AND r.fence = l.fence AND r.nonce = l.nonce
            ) RETURNING l.*
        )
        SELECT * FROM ended ORDER BY lane
    LOOP
        PERFORM {schema}.requeue_1(now, held, {schema}.end_lease_1(now, held, NULL));
        ended := ended || held.lane;
        unparked := unparked || {schema}.release_keys_1(now, held.key_numbers);
    END LOOP;
    PERFORM {schema}.release_limits_1(ended);
    left_over := EXISTS (SELECT FROM {schema}.lease WHERE session = session_number);
    UPDATE {schema}.session SET is_drained = NOT left_over, left_at = CASE WHEN left_over THEN now ELSE left_at END,
        ended_at = CASE WHEN left_over THEN ended_at ELSE now END
    WHERE number = session_number;
    RETURN ARRAY(SELECT DISTINCT queue FROM {schema}.lane WHERE id = ANY (ended)) || unparked;
END $$;

-- name: rescue_jobs
-- End expired sessions, and release or fail their jobs.
-- Inputs: the time or NULL; the time by which sessions expire, or NULL; the maximum number of jobs; the number of losses
--   at which a job fails; the history entry of a loss (JSON without its last brace), as the texts before and after the
--   number of the attempt. The function adds when the attempt started, the session and its host.
-- Result: one row for each job: its id, and a code: r waits again, f failed, c cancelled. Then one row without an id: the
--   code m says that more jobs are left; `to_notify` are the queues to notify.
-- Locks: the advisory locks of the sessions, in the order in which they were opened; all limits by name; unique keys; then
--   rows of jobs, where rows that another transaction has locked are skipped
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
    loss bytea;
    ended int4[];
    unparked text[] := '{}';
    counted int4 := 0;
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
    END LOOP;
    PERFORM {schema}.lock_all_limits_1();
    FOR candidate IN
        -- A suspect (2: SUSPECT_AFTER) that was held with other jobs had not started.
        SELECT * FROM (
            SELECT l.session, l.seq, l.lane, s.id AS session_id, s.host, s.left_at, l.lost >= 2 AND s.held_several AS not_begun
            FROM {schema}.session s JOIN {schema}.lease l ON l.session = s.number
            WHERE s.ended_at IS NOT NULL AND NOT s.is_drained
            ORDER BY l.session, l.seq LIMIT p_limit FOR UPDATE OF l SKIP LOCKED
        ) l ORDER BY l.lane, l.seq
    LOOP
        counted := counted + 1;
        DELETE FROM {schema}.lease l WHERE l.session = candidate.session AND l.seq = candidate.seq RETURNING * INTO held;
        ended := ended || held.lane;
        unparked := unparked || {schema}.release_keys_1(now, held.key_numbers);
        loss := CASE WHEN candidate.left_at IS NULL AND NOT candidate.not_begun THEN convert_to(
            p_before || (held.failures + held.lost + 1) || p_after || ',"started_at":' || held.leased_at / 1000000
            || '.' || lpad(CAST(held.leased_at % 1000000 AS text), 6, '0') || ',"session":' || to_json(candidate.session_id)
            || ',"host":' || to_json(candidate.host) || '}', 'UTF8') END;
        attempts := {schema}.end_lease_1(now, held, loss);
        SELECT j.id INTO id FROM {schema}.job j WHERE j.seq = candidate.seq;
        IF loss IS NOT NULL AND attempts.lost >= p_max_lost AND NOT held.cancel_requested THEN
            PERFORM {schema}.fail_job_1(now, attempts, held.session, 'lost', loss);
            code := 'f';
        ELSE
            SELECT CASE WHEN w.waits THEN 'r' ELSE 'c' END INTO code
            FROM {schema}.requeue_1(now, held, attempts) w;
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM {schema}.release_limits_1(ended);
    UPDATE {schema}.session s SET is_drained = true WHERE s.ended_at IS NOT NULL AND NOT s.is_drained
        AND NOT EXISTS (SELECT FROM {schema}.lease l WHERE l.session = s.number);
    id := NULL;
    code := CASE WHEN counted = p_limit AND EXISTS (
        SELECT FROM {schema}.session s JOIN {schema}.lease l ON l.session = s.number WHERE s.ended_at IS NOT NULL
            AND NOT s.is_drained
    ) THEN 'm' ELSE '' END;
    to_notify := ARRAY(SELECT DISTINCT a.queue FROM {schema}.lane a WHERE a.id = ANY (ended)) || unparked;
    RETURN NEXT;
END $$;

-- name: end_lease
-- Make the attempt state of a job whose lease ended without a settlement. Its tenant is charged nothing.
-- Inputs: the time; the deleted lease; the history entry of a loss (NULL: no loss is counted)
-- Result: the state, as a row of `attempt_state`
CREATE OR REPLACE FUNCTION {schema}.end_lease_1(p_now int8, p_lease {schema}.lease,
    p_loss bytea) RETURNS {schema}.attempt_state
LANGUAGE plpgsql AS $$
DECLARE
    attempts {schema}.attempt_state := ROW(p_lease.seq, p_lease.due, p_lease.leased_at, p_lease.fence, p_lease.failures,
        p_lease.lost, p_lease.extra_flags, p_lease.settled_token);
BEGIN
    IF p_loss IS NOT NULL THEN
        PERFORM {schema}.add_error_1(p_lease.seq, p_now, p_loss);
        attempts.lost := attempts.lost + 1;
        attempts.extra_flags := attempts.extra_flags | 1;
    END IF;
    IF p_lease.charge IS NOT NULL THEN
        PERFORM {schema}.return_charge_1(p_lease.share, p_lease.charge);
    END IF;
    RETURN attempts;
END $$;
