-- Take back jobs of sessions that expired.
-- Inputs: the time or NULL, the time that sessions live by or NULL; at most so many jobs; at how many
--   losses a job fails; the history entry of a loss, before and behind the number of the attempt
-- Result: a row for each job: its id, and r: waits again, f: failed, c: cancelled; then one without an
--   id whose letter is m when there is more, with the queues to ring
-- Locks: the numbers of the sessions, in the order in which they were opened; all limits, by name;
--   unique keys; then places, those that another holds are passed over
-- Atomic: that a session expired is tested by the update that ends it, so a heartbeat comes before or after
CREATE OR REPLACE FUNCTION nb.rescue_1(
    p_now int8, p_mono int8, p_limit int4, p_max_lost int4, p_before text, p_behind text
) RETURNS TABLE (id bytea, letter text, rung text[])
LANGUAGE plpgsql
SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    now int8 := nb.clock_1(p_now);
    one record;
    held nb.lease;
    so_far nb.past;
    spared bool;
    ended int4[];
    counted int4 := 0;
BEGIN
    FOR one IN
        SELECT s.n, s.id FROM nb.session s
        WHERE s.dead_at IS NULL AND s.expires <= coalesce(p_mono, now) ORDER BY s.n
    LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended(one.id, 7041));
        UPDATE nb.session s SET dead_at = now
        WHERE s.n = one.n AND s.dead_at IS NULL AND s.expires <= coalesce(p_mono, now);
    END LOOP;
    PERFORM nb.lock_gates_1();
    FOR one IN
        -- A suspect (2: SUSPECT_AFTER) that was held beside other jobs had not begun.
        SELECT l.session, l.seq, s.left_at, l.lost >= 2 AND EXISTS (
            SELECT FROM nb.lease o WHERE o.session = l.session AND o.seq <> l.seq) AS not_begun
        FROM nb.session s JOIN nb.lease l ON l.session = s.n
        WHERE s.dead_at IS NOT NULL AND NOT s.over
        ORDER BY l.session, l.seq LIMIT p_limit FOR UPDATE OF l SKIP LOCKED
    LOOP
        counted := counted + 1;
        DELETE FROM nb.lease l WHERE l.session = one.session AND l.seq = one.seq RETURNING * INTO held;
        ended := ended || held.lane;
        spared := one.left_at IS NOT NULL OR one.not_begun;
        so_far := nb.end_lease_1(now, held, CASE WHEN NOT spared THEN
            convert_to(p_before || (held.failures + held.lost + 1) || p_behind, 'UTF8') END);
        SELECT j.id INTO id FROM nb.job j WHERE j.seq = one.seq;
        IF NOT spared AND so_far.lost >= p_max_lost AND NOT held.cancel THEN
            PERFORM nb.bury_1(now, so_far, 'lost');
            letter := 'f';
        ELSE
            SELECT CASE WHEN w.waits THEN 'r' ELSE 'c' END INTO letter
            FROM nb.wait_again_1(now, held, so_far) w;
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM nb.open_gate_1(ended);
    UPDATE nb.session s SET over = true WHERE s.dead_at IS NOT NULL AND NOT s.over
        AND NOT EXISTS (SELECT FROM nb.lease l WHERE l.session = s.n);
    id := NULL;
    letter := CASE WHEN counted = p_limit AND EXISTS (
        SELECT FROM nb.session s JOIN nb.lease l ON l.session = s.n WHERE s.dead_at IS NOT NULL AND NOT s.over
    ) THEN 'm' ELSE '' END;
    rung := ARRAY(SELECT DISTINCT a.queue FROM nb.lane a WHERE a.id = ANY (ended));
    RETURN NEXT;
END $$;
