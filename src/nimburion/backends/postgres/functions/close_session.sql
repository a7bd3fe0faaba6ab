-- End a session: give back its leases, but for those that still run.
-- Inputs: the time or NULL; the id; seqs, fences and nonces of the leases that run, side by side
-- Result: the queues to ring
-- Locks: the session's own number; all limits, by name; unique keys; then places
-- Atomic: one transaction
CREATE OR REPLACE FUNCTION nb.close_session_1(
    p_now int8, p_id text, p_seqs int8[], p_fences int4[], p_nonces bytea[]
) RETURNS text[]
LANGUAGE plpgsql
SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    now int8;
    me int4;
    held nb.lease;
    ended int4[];
    left_over bool;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := nb.clock_1(p_now);
    SELECT n INTO me FROM nb.session WHERE id = p_id AND dead_at IS NULL;
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    PERFORM nb.lock_gates_1();
    FOR held IN
        DELETE FROM nb.lease l WHERE l.session = me AND NOT EXISTS (
            SELECT FROM unnest(p_seqs, p_fences, p_nonces) AS r (seq, fence, nonce)
            WHERE r.seq = l.seq AND r.fence = l.fence AND r.nonce = l.nonce
        ) RETURNING l.*
    LOOP
        PERFORM nb.wait_again_1(now, held, nb.end_lease_1(now, held, NULL));
        ended := ended || held.lane;
    END LOOP;
    PERFORM nb.open_gate_1(ended);
    left_over := EXISTS (SELECT FROM nb.lease WHERE session = me);
    UPDATE nb.session SET over = NOT left_over, left_at = CASE WHEN left_over THEN now ELSE left_at END,
        dead_at = CASE WHEN left_over THEN dead_at ELSE now END
    WHERE n = me;
    RETURN ARRAY(SELECT DISTINCT queue FROM nb.lane WHERE id = ANY (ended));
END $$;
