-- What to say of a settlement whose lease is not held.
-- Inputs: seq, id, fence and nonce of that lease
-- Result: already: this token settled the job last; else stale
-- Locks: none; reads a snapshot
-- Atomic: one look each at the places where that token can be
CREATE OR REPLACE FUNCTION nb.unmatched_1(p_seq int8, p_id bytea, p_fence int4, p_nonce bytea) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    token bytea := int4send(p_fence) || p_nonce;
BEGIN
    IF EXISTS (SELECT FROM nb.past WHERE seq = p_seq AND settled = token)
        OR EXISTS (
            SELECT FROM nb.done d, nb.horizon h WHERE d.id = p_id AND d.seq = p_seq AND d.settled = token
                AND h.what = 'completed' AND (d.finished, d.seq) > (h.finished, h.seq)
        )
    THEN
        RETURN 'a';
    END IF;
    RETURN 's';
END $$;
