-- Sessions: open, heartbeat, release, close.
--
-- Locks: the advisory lock of each session, in the order of their numbers; all limits; unique keys; then leases.

-- name: open_session
-- Open a session, and set the limits of its names. If the session exists, renew it.
-- Inputs: the time or NULL; the time by which sessions expire, or NULL; the id; the ttl in microseconds; the host; the
--   description as JSON; the names, and their limits, as for `declare_limits_1`; tenants, and for each its weight in hundredths
-- Result: whether the session is alive; false: a session with this id has ended. Whether a limit changed.
-- Locks: the advisory lock of the session; then as `declare_limits_1`
CREATE OR REPLACE FUNCTION {schema}.open_session_1(
    p_now int8, p_monotonic int8, p_id text, p_ttl int8, p_host text, p_description text, p_names text[],
    p_limits jsonb, p_tenants text[], p_units int4[], OUT alive bool, OUT limits_changed bool
)
LANGUAGE plpgsql AS $$
DECLARE
    now int8;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := {schema}.get_write_time_1(p_now);
    IF EXISTS (SELECT FROM {schema}.session WHERE id = p_id) THEN
        UPDATE {schema}.session SET expires_at = coalesce(p_monotonic, now) + ttl
        WHERE id = p_id AND left_at IS NULL AND ended_at IS NULL;
        alive := FOUND;
        limits_changed := false;
        RETURN;
    END IF;
    WITH opened AS (
        INSERT INTO {schema}.session (ttl, expires_at, opened_at, id, host)
        VALUES (p_ttl, coalesce(p_monotonic, now) + p_ttl, now, p_id, p_host) RETURNING number
    )
    INSERT INTO {schema}.session_description (session, names, description) SELECT o.number, p_names, p_description FROM opened o;
    limits_changed := {schema}.declare_limits_1(now, p_names, p_limits);
    IF cardinality(p_tenants) > 0 THEN
        PERFORM {schema}.set_tenant_weights_1(p_tenants, p_units);
    END IF;
    alive := true;
END $$;

-- name: heartbeat
-- Renew a session.
-- Inputs: the time or NULL; the time by which sessions expire, or NULL; the id; the vitals of the worker as JSON (NULL:
--   unchanged)
-- Result: no row if the session is not alive, else one row:
--   seqs, ids, fences, nonces   the leases of jobs to cancel
--   paused                      the paused queues
--   names, maxima, in_use       the limits of its names that have a maximum
--   command                     the latest command to the worker; NULL: none
--   fleet_size                  the number of sessions that expire later than half of the ttl from now
--   next_expiry                 microseconds until the first session expires; 0: a rescue has work to do now
-- Locks: the row of the session
-- Atomic: one UPDATE tests that the session is alive and moves its expiry. The commit is asynchronous: if the server
--   crashes and loses it, the next heartbeat renews the session.
CREATE OR REPLACE FUNCTION {schema}.heartbeat_1(
    p_now int8, p_monotonic int8, p_id text, p_vitals text, OUT seqs int8[], OUT ids bytea[], OUT fences int4[],
    OUT nonces bytea[], OUT paused text[], OUT names text[], OUT maxima int4[], OUT in_use int4[], OUT command text,
    OUT fleet_size int4, OUT next_expiry int8
) RETURNS SETOF record
LANGUAGE plpgsql
SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    session record;
    now int8;
    alive_now int8 := {schema}.get_write_time_1(p_monotonic);
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE {schema}.session s SET expires_at = alive_now + s.ttl,
        vitals = coalesce(p_vitals, s.vitals)
    WHERE s.id = p_id AND s.left_at IS NULL AND s.ended_at IS NULL
    RETURNING s.number, s.command, s.ttl INTO session;
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
    SELECT array_agg(r.job_name), array_agg(r.concurrency), array_agg(u.in_use) INTO names, maxima, in_use
    FROM {schema}.limit_rule r JOIN {schema}.limit_use u ON u.key = '' AND u.limit_name = r.limit_name
    WHERE r.limit_name = 'job:' || r.job_name AND r.concurrency IS NOT NULL AND r.job_name = ANY (
        (SELECT d.names FROM {schema}.session_description d WHERE d.session = session.number)::text[]
    );
    SELECT count(*) FILTER (WHERE s.ended_at IS NULL AND s.expires_at > alive_now + session.ttl / 2),
        min(CASE WHEN s.ended_at IS NOT NULL OR s.expires_at > alive_now + s.ttl + 1000000 THEN 0
            ELSE GREATEST(0, s.expires_at - alive_now) END)
    INTO fleet_size, next_expiry FROM {schema}.session s WHERE NOT s.is_drained;
    IF EXISTS (SELECT FROM {schema}.flow_change) OR EXISTS (SELECT FROM {schema}.failed_member) THEN  -- a rescue continues them
        next_expiry := 0;
    END IF;
    RETURN NEXT;
END $$;

-- name: release_leases
-- Release leases of a session that stays open. No failure and no loss is counted.
-- Inputs: the time or NULL; the id of the session; seqs, fences and nonces of leases; a nonce whose leases are released
--   too (NULL: none)
-- Result: the queues to notify
-- Locks: the advisory lock of the session; all limits; the durable runs to which a cancel was requested; unique keys; rows of jobs;
--   then as `resolve_flows_1`
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
    key_numbers int8[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := {schema}.get_write_time_1(p_now);
    SELECT number INTO session_number FROM {schema}.session WHERE id = p_id AND left_at IS NULL AND ended_at IS NULL;
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    UPDATE {schema}.exchange_log e SET is_open = false WHERE e.session = session_number AND e.nonce = p_nonce AND e.is_open;
    PERFORM {schema}.lock_all_limits_1();
    PERFORM {schema}.lock_cancelled_runs_1(ARRAY(
        SELECT l.seq FROM {schema}.lease l WHERE l.session = session_number AND l.cancel_requested
    ));
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
        PERFORM {schema}.refund_keys_1(now, held);
        key_numbers := key_numbers || held.key_numbers;
    END LOOP;
    RETURN ARRAY(SELECT DISTINCT queue FROM {schema}.lane WHERE id = ANY (ended))
        || {schema}.release_keys_1(now, key_numbers) || {schema}.continue_flows_1(now);
END $$;

-- name: close_session
-- End a session: release its leases, except those of handlers that still run.
-- Inputs: the time or NULL; the id of the session; seqs, fences and nonces of the leases that still run
-- Result: the queues to notify
-- Locks: the advisory lock of the session; all limits; the durable runs to which a cancel was requested; unique keys; rows of jobs;
--   then as `resolve_flows_1`
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
    key_numbers int8[];
    left_over bool;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := {schema}.get_write_time_1(p_now);
    SELECT number INTO session_number FROM {schema}.session WHERE id = p_id AND ended_at IS NULL;
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    PERFORM {schema}.lock_all_limits_1();
    PERFORM {schema}.lock_cancelled_runs_1(ARRAY(
        SELECT l.seq FROM {schema}.lease l WHERE l.session = session_number AND l.cancel_requested
    ));
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
        key_numbers := key_numbers || held.key_numbers;
    END LOOP;
    DELETE FROM {schema}.idle_worker WHERE session = p_id;
    left_over := EXISTS (SELECT FROM {schema}.lease WHERE session = session_number);
    UPDATE {schema}.session SET is_drained = NOT left_over, left_at = CASE WHEN left_over THEN now ELSE left_at END,
        ended_at = CASE WHEN left_over THEN ended_at ELSE now END
    WHERE number = session_number;
    RETURN ARRAY(SELECT DISTINCT queue FROM {schema}.lane WHERE id = ANY (ended))
        || {schema}.release_keys_1(now, key_numbers) || {schema}.continue_flows_1(now);
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
