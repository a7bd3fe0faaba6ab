-- Sessions: open, heartbeat, close, and the rescue of jobs whose session expired.
--
-- Locks: the advisory lock of each session, in the order of their numbers; all limits by name; unique keys; then leases.
-- That a session is expired is tested by the update that ends it, so a heartbeat comes before or after.

-- name: open_session
-- Begin a session, and say what limits its names have from now on.
-- Inputs: the time or NULL, the time that sessions live by or NULL; the id; how long it lives after
--   each heartbeat, in microseconds; what it says of itself, as JSON; its names and, side by side, their
--   limits (NULL: none)
-- Result: whether it lives; false when this id is over
-- Locks: the session's own number; the table `gate`, in EXCLUSIVE when a limit is new: exchanges hold
--   it in ROW SHARE, so that no lease is made between the count and the limit; then gates by name
CREATE OR REPLACE FUNCTION {schema}.open_session_1(
    p_now int8, p_mono int8, p_id text, p_ttl int8, p_info text, p_names text[], p_limits int4[]
) RETURNS bool
LANGUAGE plpgsql AS $$
DECLARE
    now int8;
    one record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := {schema}.clock_1(p_now);
    IF EXISTS (SELECT FROM {schema}.session WHERE id = p_id) THEN
        UPDATE {schema}.session SET expires = coalesce(p_mono, now) + ttl
        WHERE id = p_id AND left_at IS NULL AND dead_at IS NULL;
        RETURN FOUND;
    END IF;
    INSERT INTO {schema}.session (ttl, expires, opened, id, names, info)
    VALUES (p_ttl, coalesce(p_mono, now) + p_ttl, now, p_id, p_names, p_info);
    IF EXISTS (
        SELECT FROM unnest(p_names, p_limits) AS l (name, bound) WHERE l.bound IS NOT NULL
            AND NOT EXISTS (SELECT FROM {schema}.gate g WHERE g.name = l.name)
    ) THEN
        LOCK TABLE {schema}.gate IN EXCLUSIVE MODE;
    END IF;
    FOR one IN
        SELECT l.name, l.bound FROM unnest(p_names, p_limits) AS l (name, bound) ORDER BY l.name
    LOOP
        IF one.bound IS NULL THEN
            DELETE FROM {schema}.gate WHERE name = one.name;
        ELSE
            INSERT INTO {schema}.gate AS g (name, bound, held)
            VALUES (one.name, one.bound, (
                SELECT count(*) FROM {schema}.lease l JOIN {schema}.lane a ON a.id = l.lane WHERE a.name = one.name
            ))
            ON CONFLICT (name) DO UPDATE SET bound = excluded.bound;
        END IF;
    END LOOP;
    RETURN true;
END $$;

-- name: beat
-- Say that a session lives.
-- Inputs: the time that sessions live by or NULL; the id
-- Result: a row, none when it is not alive: the leases to cancel (seqs, ids, fences, nonces), the
--   queues that are paused, and the limits of its names (names, bounds, held)
-- Locks: its own row
-- Atomic: one update tests that it lives and moves its expiry. Its commit is not waited for: what a
--   server forgets that crashes, the next heartbeat says again
CREATE OR REPLACE FUNCTION {schema}.beat_1(
    p_mono int8, p_id text, OUT seqs int8[], OUT ids bytea[], OUT fences int4[], OUT nonces bytea[],
    OUT paused text[], OUT names text[], OUT bounds int4[], OUT held int4[]
) RETURNS SETOF record
LANGUAGE plpgsql
SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    me record;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE {schema}.session s SET expires = {schema}.clock_1(p_mono) + s.ttl
    WHERE s.id = p_id AND s.left_at IS NULL AND s.dead_at IS NULL
    RETURNING s.n, s.names INTO me;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT array_agg(l.seq), array_agg(j.id), array_agg(l.fence), array_agg(l.nonce)
    INTO seqs, ids, fences, nonces
    FROM {schema}.lease l JOIN {schema}.job j ON j.seq = l.seq WHERE l.session = me.n AND l.cancel;
    paused := ARRAY(SELECT p.queue FROM {schema}.paused p ORDER BY p.queue);
    SELECT array_agg(g.name), array_agg(g.bound), array_agg(g.held) INTO names, bounds, held
    FROM {schema}.gate g WHERE g.name = ANY (me.names);
    RETURN NEXT;
END $$;

-- name: release
-- Give back leases of a session that goes on. Nothing is counted.
-- Inputs: the time or NULL; the id; seqs, fences and nonces of leases, side by side; a nonce whose
--   leases are given back too, or NULL
-- Result: the queues to ring
-- Locks: the session's own number; all limits, by name; unique keys; then places
-- Atomic: one transaction; each lease is deleted by its whole token
CREATE OR REPLACE FUNCTION {schema}.release_1(
    p_now int8, p_id text, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_nonce bytea
) RETURNS text[]
LANGUAGE plpgsql
SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    now int8;
    me int4;
    held {schema}.lease;
    so_far {schema}.past;
    ended int4[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := {schema}.clock_1(p_now);
    SELECT n INTO me FROM {schema}.session WHERE id = p_id AND left_at IS NULL AND dead_at IS NULL;
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    PERFORM {schema}.lock_gates_1();
    FOR held IN
        DELETE FROM {schema}.lease l WHERE l.session = me AND (l.nonce = p_nonce OR EXISTS (
            SELECT FROM unnest(p_seqs, p_fences, p_nonces) AS r (seq, fence, nonce)
            WHERE r.fence = l.fence AND r.nonce = l.nonce AND r.seq = l.seq
        )) RETURNING l.*
    LOOP
        so_far := {schema}.end_lease_1(now, held, NULL);
        so_far.settled := int4send(held.fence) || held.nonce;
        PERFORM {schema}.wait_again_1(now, held, so_far);
        ended := ended || held.lane;
    END LOOP;
    PERFORM {schema}.open_gate_1(ended);
    RETURN ARRAY(SELECT DISTINCT queue FROM {schema}.lane WHERE id = ANY (ended));
END $$;

-- name: close_session
-- End a session: give back its leases, but for those that still run.
-- Inputs: the time or NULL; the id; seqs, fences and nonces of the leases that run, side by side
-- Result: the queues to ring
-- Locks: the session's own number; all limits, by name; unique keys; then places
CREATE OR REPLACE FUNCTION {schema}.close_session_1(
    p_now int8, p_id text, p_seqs int8[], p_fences int4[], p_nonces bytea[]
) RETURNS text[]
LANGUAGE plpgsql
SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    now int8;
    me int4;
    held {schema}.lease;
    ended int4[];
    left_over bool;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := {schema}.clock_1(p_now);
    SELECT n INTO me FROM {schema}.session WHERE id = p_id AND dead_at IS NULL;
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    PERFORM {schema}.lock_gates_1();
    FOR held IN
        DELETE FROM {schema}.lease l WHERE l.session = me AND NOT EXISTS (
            SELECT FROM unnest(p_seqs, p_fences, p_nonces) AS r (seq, fence, nonce)
            WHERE r.seq = l.seq AND r.fence = l.fence AND r.nonce = l.nonce
        ) RETURNING l.*
    LOOP
        PERFORM {schema}.wait_again_1(now, held, {schema}.end_lease_1(now, held, NULL));
        ended := ended || held.lane;
    END LOOP;
    PERFORM {schema}.open_gate_1(ended);
    left_over := EXISTS (SELECT FROM {schema}.lease WHERE session = me);
    UPDATE {schema}.session SET over = NOT left_over, left_at = CASE WHEN left_over THEN now ELSE left_at END,
        dead_at = CASE WHEN left_over THEN dead_at ELSE now END
    WHERE n = me;
    RETURN ARRAY(SELECT DISTINCT queue FROM {schema}.lane WHERE id = ANY (ended));
END $$;

-- name: rescue
-- Take back jobs of sessions that expired.
-- Inputs: the time or NULL, the time that sessions live by or NULL; at most so many jobs; at how many
--   losses a job fails; the history entry of a loss, before and behind the number of the attempt
-- Result: a row for each job: its id, and r: waits again, f: failed, c: cancelled; then one without an
--   id whose letter is m when there is more, with the queues to ring
-- Locks: the numbers of the sessions, in the order in which they were opened; all limits, by name;
--   unique keys; then places, those that another holds are passed over
-- Atomic: that a session expired is tested by the update that ends it, so a heartbeat comes before or after
CREATE OR REPLACE FUNCTION {schema}.rescue_1(
    p_now int8, p_mono int8, p_limit int4, p_max_lost int4, p_before text, p_behind text
) RETURNS TABLE (id bytea, letter text, rung text[])
LANGUAGE plpgsql
SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    now int8 := {schema}.clock_1(p_now);
    one record;
    held {schema}.lease;
    so_far {schema}.past;
    spared bool;
    ended int4[];
    counted int4 := 0;
BEGIN
    FOR one IN
        SELECT s.n, s.id FROM {schema}.session s
        WHERE s.dead_at IS NULL AND s.expires <= coalesce(p_mono, now) ORDER BY s.n
    LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended(one.id, 7041));
        UPDATE {schema}.session s SET dead_at = now
        WHERE s.n = one.n AND s.dead_at IS NULL AND s.expires <= coalesce(p_mono, now);
    END LOOP;
    PERFORM {schema}.lock_gates_1();
    FOR one IN
        -- A suspect (2: SUSPECT_AFTER) that was held beside other jobs had not begun.
        SELECT l.session, l.seq, s.left_at, l.lost >= 2 AND EXISTS (
            SELECT FROM {schema}.lease o WHERE o.session = l.session AND o.seq <> l.seq) AS not_begun
        FROM {schema}.session s JOIN {schema}.lease l ON l.session = s.n
        WHERE s.dead_at IS NOT NULL AND NOT s.over
        ORDER BY l.session, l.seq LIMIT p_limit FOR UPDATE OF l SKIP LOCKED
    LOOP
        counted := counted + 1;
        DELETE FROM {schema}.lease l WHERE l.session = one.session AND l.seq = one.seq RETURNING * INTO held;
        ended := ended || held.lane;
        spared := one.left_at IS NOT NULL OR one.not_begun;
        so_far := {schema}.end_lease_1(now, held, CASE WHEN NOT spared THEN
            convert_to(p_before || (held.failures + held.lost + 1) || p_behind, 'UTF8') END);
        SELECT j.id INTO id FROM {schema}.job j WHERE j.seq = one.seq;
        IF NOT spared AND so_far.lost >= p_max_lost AND NOT held.cancel THEN
            PERFORM {schema}.bury_1(now, so_far, 'lost');
            letter := 'f';
        ELSE
            SELECT CASE WHEN w.waits THEN 'r' ELSE 'c' END INTO letter
            FROM {schema}.wait_again_1(now, held, so_far) w;
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM {schema}.open_gate_1(ended);
    UPDATE {schema}.session s SET over = true WHERE s.dead_at IS NOT NULL AND NOT s.over
        AND NOT EXISTS (SELECT FROM {schema}.lease l WHERE l.session = s.n);
    id := NULL;
    letter := CASE WHEN counted = p_limit AND EXISTS (
        SELECT FROM {schema}.session s JOIN {schema}.lease l ON l.session = s.n WHERE s.dead_at IS NOT NULL AND NOT s.over
    ) THEN 'm' ELSE '' END;
    rung := ARRAY(SELECT DISTINCT a.queue FROM {schema}.lane a WHERE a.id = ANY (ended));
    RETURN NEXT;
END $$;

-- name: end_lease
-- Take a job back that its worker did not settle, as it was before.
-- Inputs: the time; its lease, that is gone; losses to count, with the history entry of the loss
--   (NULL: none)
-- Result: what is known of it, as a row of `past`
CREATE OR REPLACE FUNCTION {schema}.end_lease_1(p_now int8, p_lease {schema}.lease, p_loss bytea) RETURNS {schema}.past
LANGUAGE plpgsql AS $$
DECLARE
    so_far {schema}.past := ROW(p_lease.seq, p_lease.due, p_lease.at, p_lease.fence, p_lease.failures,
        p_lease.lost, p_lease.noted, p_lease.settled);
BEGIN
    IF p_loss IS NOT NULL THEN
        PERFORM {schema}.note_1(p_lease.seq, p_now, p_loss);
        so_far.lost := so_far.lost + 1;
        so_far.noted := so_far.noted | 1;
    END IF;
    RETURN so_far;
END $$;
