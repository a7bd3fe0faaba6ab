-- Give back leases of a session that goes on. Nothing is counted.
-- Inputs: the time or NULL; the id; seqs, fences and nonces of leases, side by side; a nonce whose
--   leases are given back too, or NULL
-- Result: the queues to ring
-- Locks: the session's own number; all limits, by name; unique keys; then places
-- Atomic: one transaction; each lease is deleted by its whole token
CREATE OR REPLACE FUNCTION nb.release_1(
    p_now int8, p_id text, p_seqs int8[], p_fences int4[], p_nonces bytea[], p_nonce bytea
) RETURNS text[]
LANGUAGE plpgsql
SET enable_hashjoin TO off SET enable_mergejoin TO off SET jit TO off AS $$
DECLARE
    now int8;
    me int4;
    held nb.lease;
    so_far nb.past;
    ended int4[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));
    now := nb.clock_1(p_now);
    SELECT n INTO me FROM nb.session WHERE id = p_id AND left_at IS NULL AND dead_at IS NULL;
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    PERFORM nb.lock_gates_1();
    FOR held IN
        DELETE FROM nb.lease l WHERE l.session = me AND (l.nonce = p_nonce OR EXISTS (
            SELECT FROM unnest(p_seqs, p_fences, p_nonces) AS r (seq, fence, nonce)
            WHERE r.fence = l.fence AND r.nonce = l.nonce AND r.seq = l.seq
        )) RETURNING l.*
    LOOP
        so_far := nb.end_lease_1(now, held, NULL);
        so_far.settled := int4send(held.fence) || held.nonce;
        PERFORM nb.wait_again_1(now, held, so_far);
        ended := ended || held.lane;
    END LOOP;
    PERFORM nb.open_gate_1(ended);
    RETURN ARRAY(SELECT DISTINCT queue FROM nb.lane WHERE id = ANY (ended));
END $$;
