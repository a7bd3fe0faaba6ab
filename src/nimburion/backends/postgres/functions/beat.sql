-- Say that a session lives.
-- Inputs: the time that sessions live by or NULL; the id
-- Result: a row, none when it is not alive: the leases to cancel (seqs, ids, fences, nonces), the
--   queues that are paused, and the limits of its names (names, bounds, held)
-- Locks: its own row
-- Atomic: one update tests that it lives and moves its expiry. Its commit is not waited for: what a
--   server forgets that crashes, the next heartbeat says again
CREATE OR REPLACE FUNCTION nb.beat_1(
    p_mono int8, p_id text, OUT seqs int8[], OUT ids bytea[], OUT fences int4[], OUT nonces bytea[],
    OUT paused text[], OUT names text[], OUT bounds int4[], OUT held int4[]
) RETURNS SETOF record
LANGUAGE plpgsql
SET enable_seqscan TO off SET jit TO off AS $$
DECLARE
    me record;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE nb.session s SET expires = nb.clock_1(p_mono) + s.ttl
    WHERE s.id = p_id AND s.left_at IS NULL AND s.dead_at IS NULL
    RETURNING s.n, s.names INTO me;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT array_agg(l.seq), array_agg(j.id), array_agg(l.fence), array_agg(l.nonce)
    INTO seqs, ids, fences, nonces
    FROM nb.lease l JOIN nb.job j ON j.seq = l.seq WHERE l.session = me.n AND l.cancel;
    paused := ARRAY(SELECT p.queue FROM nb.paused p ORDER BY p.queue);
    SELECT array_agg(g.name), array_agg(g.bound), array_agg(g.held) INTO names, bounds, held
    FROM nb.gate g WHERE g.name = ANY (me.names);
    RETURN NEXT;
END $$;
