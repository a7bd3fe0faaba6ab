-- Complete many jobs at once. No lease may be named twice.
-- Inputs: the time; the session; seqs, ids, fences and nonces of the leases; results (NULL: none)
-- Result: a letter for each: done, already, stale; the lanes whose leases ended, where they are asked
--   for; the lanes to ring
-- Locks: the jobs' own rows; their unique keys, one after the other
-- Atomic: of the caller's transaction; leases are deleted by their whole tokens, so each settles once
CREATE OR REPLACE FUNCTION nb.settle_plain_1(
    p_now int8, p_session int4, p_seqs int8[], p_ids bytea[], p_fences int4[], p_nonces bytea[],
    p_bodies bytea[], OUT letters text, OUT ended int4[], OUT rung int4[]
) LANGUAGE plpgsql AS $$
DECLARE
    settled_seqs int8[];
    notes int2;
    any_tried bool;
    keyed int8[];
    keyed_lanes int4[];
    keys text[];
BEGIN
    WITH l AS (
        DELETE FROM nb.lease l USING unnest(p_seqs, p_fences, p_nonces) AS g (seq, fence, nonce)
        WHERE l.session = p_session AND l.seq = g.seq AND l.fence = g.fence AND l.nonce = g.nonce
        RETURNING l.*
    ), j AS (
        DELETE FROM nb.job j USING l WHERE j.seq = l.seq
        RETURNING j.seq, l.due, j.created, l.at, j.lane, l.failures, l.lost, l.noted, l.tried, j.id,
            j.digest, l.fence, l.nonce, j.options, j.unique_key
    ), d AS (
        INSERT INTO nb.done (seq, due, created, started, finished, lane, failures, lost, state, id,
            digest, settled, options, history_at, history, fraction, message)
        SELECT j.seq, j.due, j.created, j.at, p_now, j.lane, j.failures, j.lost, 1, j.id, j.digest,
            int4send(j.fence) || j.nonce, j.options,
            CASE WHEN j.noted & 1 > 0 THEN (SELECT array_agg(e.at ORDER BY n) FROM nb.attempt_error e WHERE e.seq = j.seq) END,
            CASE WHEN j.noted & 1 > 0 THEN (SELECT array_agg(e.body ORDER BY n) FROM nb.attempt_error e WHERE e.seq = j.seq) END,
            CASE WHEN j.noted & 2 > 0 THEN (SELECT p.fraction FROM nb.progress p WHERE p.seq = j.seq) END,
            CASE WHEN j.noted & 2 > 0 THEN (SELECT p.message FROM nb.progress p WHERE p.seq = j.seq) END
        FROM j
    )
    SELECT array_agg(j.seq), coalesce(bit_or(j.noted), 0::int2), coalesce(bool_or(j.tried > 0), false),
        array_agg(j.seq) FILTER (WHERE j.unique_key IS NOT NULL),
        array_agg(j.lane) FILTER (WHERE j.unique_key IS NOT NULL),
        array_agg(j.unique_key) FILTER (WHERE j.unique_key IS NOT NULL), array_agg(j.lane)
    INTO settled_seqs, notes, any_tried, keyed, keyed_lanes, keys, ended
    FROM j;
    IF any_tried OR notes > 0 THEN
        PERFORM nb.forget_1(settled_seqs, notes);
    END IF;
    IF p_bodies IS NOT NULL THEN
        INSERT INTO nb.result (seq, finished, body)
        SELECT g.seq, p_now, g.body FROM unnest(p_seqs, p_bodies) AS g (seq, body)
        WHERE g.body IS NOT NULL AND g.seq = ANY (settled_seqs);
    END IF;
    IF keyed IS NOT NULL THEN
        WITH freed AS (
            DELETE FROM nb.unique_key WHERE ctid = ANY (ARRAY(
                SELECT u.ctid FROM unnest(keyed, keyed_lanes, keys) AS k (seq, lane, key)
                JOIN nb.lane a ON a.id = k.lane
                JOIN nb.unique_key u ON u.name = a.name AND u.key = k.key AND u.seq = k.seq
                WHERE u.until IS NULL
                ORDER BY u.name, u.key FOR UPDATE OF u
            )) RETURNING seq
        )
        SELECT array_agg(DISTINCT k.lane) INTO rung
        FROM freed f JOIN unnest(keyed, keyed_lanes) AS k (seq, lane) ON k.seq = f.seq;
    END IF;
    IF coalesce(cardinality(settled_seqs), 0) = cardinality(p_seqs) THEN
        letters := repeat('d', cardinality(p_seqs));
    ELSE
        SELECT string_agg(CASE WHEN g.seq = ANY (settled_seqs) THEN 'd'
            ELSE nb.unmatched_1(g.seq, g.id, g.fence, g.nonce) END, '' ORDER BY g.place)
        INTO letters
        FROM unnest(p_seqs, p_ids, p_fences, p_nonces) WITH ORDINALITY
            AS g (seq, id, fence, nonce, place);
    END IF;
END $$;
